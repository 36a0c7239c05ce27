"""The load: clients that go through a proxy, and the targets that it connects to.

One process is both, in one epoll loop, so that on a small machine all that is not the proxy has a
core of its own and nobody is woken up across cores.  The process that measures shares a few
counters with it (``Counters``) and nothing else.

A client is a generator: it yields where it has to wait for its socket.
"""

import errno
import mmap
import os
import resource
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from itertools import count, cycle
from types import TracebackType

Address = tuple[str, int]
Wait = Generator[None, None, None]

CHUNK = 1 << 20  # octets that a stream offers to the kernel at a time
BLOCK = bytes(range(256)) * (CHUNK // 256)
PROVED = 1 << 16  # octets of each stream that are compared; the others are counted
ECHOED = 16  # octets there and back in a short session
SILENCE = 10.0  # seconds after which a handshake, or a short session, has failed
LOST = 0.2  # seconds after which a datagram counts as lost
IN_FLIGHT = 32  # datagrams
OPENING = 64  # sessions at a time on their way, where many are to stay open
ADDRESSES = 16
"""Targets and clients have that many addresses each: with one, a busy minute fills the kernel's
table of ports in TIME_WAIT, and the search for a free one is paid by the proxy."""


class Broken(Exception):
    """A session did not go as it should."""


class Counters:
    """Numbers that the load writes and the process that measures reads, in shared memory."""

    CELLS = ("ready", "done", "octets", "errors", "lost", "stalled", "mark")

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self.cells = memoryview(self._memory)[: 8 * len(self.CELLS)].cast("q")
        self._said = memoryview(self._memory)[1024:1280]

    def __getattr__(self, name: str) -> int:
        try:
            return self.cells[self.CELLS.index(name)]
        except ValueError:
            raise AttributeError(name) from None

    def mark(self) -> None:
        """From here on ``stalled`` says how many clients have not moved."""
        self.cells[MARK] = 1

    def say(self, what: str) -> None:
        """Leave word of what went wrong; the first word stays."""
        if not self._said[0]:
            octets = what.encode(errors="replace")[: len(self._said)]
            self._said[: len(octets)] = octets

    @property
    def said(self) -> str:
        """What went wrong first."""
        return bytes(self._said).rstrip(b"\0").decode(errors="replace")


READY, DONE, OCTETS, ERRORS, LOST_CELL, STALLED, MARK = range(len(Counters.CELLS))


@dataclass(frozen=True)
class Work:
    """What the load is to do.  Without ``proxy`` the clients go to the targets directly."""

    mode: str  # bulk, rate, rtt, idle, udp
    sessions: int  # at a time
    proxy: Address | None
    login: tuple[str, str] | None = None
    size: int = 64  # octets of a message, or of a datagram
    spin: bool = False  # never sleep: to be woken up costs the proxy more than its own write


class Client:
    """One client: its generator, how much it has done, and when to give it up."""

    __slots__ = ("deadline", "done", "seen", "steps")

    def __init__(self) -> None:
        self.steps: Wait = iter_nothing()
        self.done = 0
        self.seen = 0
        self.deadline = float("inf")


def iter_nothing() -> Wait:
    """Wait for nothing."""
    yield from ()


class Load:
    """The loop; owned by the process that it runs in."""

    def __init__(self, work: Work, counters: Counters) -> None:
        self.work = work
        self.cells = counters.cells
        self.say = counters.say
        self.poll = select.epoll()
        self.handlers: dict[int, Callable[[], None] | Client] = {}
        self.later: deque[tuple[float, Client]] = deque()  # each after the same delay, so in order
        self.clients: list[Client] = []
        self.open: set[socket.socket] = set()
        self.sources = cycle([f"127.0.2.{n + 1}" for n in range(ADDRESSES)])
        self.targets = cycle(self._listen())
        self.buffer = bytearray(CHUNK)

    # --- targets ------------------------------------------------------------------------------

    def _listen(self) -> list[Address]:
        """Listen on each address; what is told to a bulk client's connection is BLOCK, for ever."""
        serve = self._pour if self.work.mode == "bulk" else self._echo
        addresses: list[Address] = []
        for number in range(ADDRESSES if self.work.mode in ("rate", "idle") else 1):
            udp = self.work.mode == "udp"
            sock = socket.socket(type=socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
            sock.setblocking(False)
            sock.bind((f"127.0.1.{number + 1}", 0))
            if udp:
                self.handle(sock, self._echo_datagrams(sock))
            else:
                sock.listen(4096)
                self.handle(sock, self._accept(sock, serve))
            addresses.append(sock.getsockname())
        return addresses

    def _accept(
        self, listener: socket.socket, serve: Callable[[socket.socket], None]
    ) -> Callable[[], None]:
        def accept() -> None:
            for _ in range(64):
                try:
                    sock, _ = listener.accept()
                except BlockingIOError:
                    return
                sock.setblocking(False)
                serve(sock)

        return accept

    def _echo(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def echo() -> None:
            try:
                data = sock.recv(4096)
                if data and sock.send(data) == len(data):
                    return
            except BlockingIOError:
                return
            except OSError:
                pass
            self.forget(sock)

        self.handle(sock, echo)

    def _pour(self, sock: socket.socket) -> None:
        sent = 0

        def pour() -> None:
            nonlocal sent
            try:
                sent += sock.send(memoryview(BLOCK)[sent % CHUNK :])
            except BlockingIOError:
                return
            except OSError:
                self.forget(sock)

        self.handle(sock, pour, select.EPOLLOUT)

    def _echo_datagrams(self, sock: socket.socket) -> Callable[[], None]:
        def echo() -> None:
            for _ in range(IN_FLIGHT):
                try:
                    data, address = sock.recvfrom(65536)
                    sock.sendto(data, address)
                except BlockingIOError:
                    return

        return echo

    # --- the loop -----------------------------------------------------------------------------

    def handle(
        self,
        sock: socket.socket,
        handler: Callable[[], None] | Client,
        events: int = select.EPOLLIN,
    ) -> None:
        """Have ``handler`` called, or resumed, whenever ``sock`` is ready."""
        self.handlers[sock.fileno()] = handler
        self.open.add(sock)
        self.poll.register(sock.fileno(), events)

    def forget(self, sock: socket.socket) -> None:
        """Close it."""
        self.handlers.pop(sock.fileno(), None)
        self.open.discard(sock)
        sock.close()  # which takes it out of the epoll set, too

    def run(self, ends: float) -> None:
        """Go on until the monotonic time ``ends``, or until killed."""
        for _ in range(self.work.sessions):
            client = Client()
            client.steps = CLIENTS[self.work.mode](self, client)
            self.clients.append(client)
        waiting = deque(self.clients)
        parent, look, timeout = os.getppid(), 0.0, 0.0 if self.work.spin else 0.02
        while True:
            for fd, _ in self.poll.poll(timeout, 256):
                handler = self.handlers.get(fd)
                if isinstance(handler, Client):
                    self.resume(handler)
                elif handler is not None:
                    handler()
            now = time.monotonic()
            if now < look:
                continue
            look = now + 0.005
            while self.later and self.later[0][0] <= now:
                self.resume(self.later.popleft()[1])
            begun = len(self.clients) - len(waiting)
            while waiting and begun < self.cells[READY] + self.cells[ERRORS] + OPENING:
                self.resume(waiting.popleft())
                begun += 1
            self._look(now)
            if now > ends or os.getppid() != parent:
                return

    def _look(self, now: float) -> None:
        """Give up the clients that wait too long, and say how many have not moved."""
        marked, self.cells[MARK] = self.cells[MARK], 0
        stalled = 0
        for client in self.clients:
            if marked:
                client.seen = client.done
            stalled += client.done == client.seen
            if client.deadline < now:
                self.resume(client, Broken(f"no answer within {SILENCE:g} s"))
        self.cells[STALLED] = stalled

    def resume(self, client: Client, error: Exception | None = None) -> None:
        """Let a client go on."""
        try:
            if error is None:
                next(client.steps)
            else:
                client.steps.throw(error)
        except StopIteration:
            client.deadline = float("inf")
        except (OSError, Broken) as failure:
            client.deadline = float("inf")
            self.failed(failure)

    def failed(self, failure: Exception) -> None:
        """Count an error."""
        self.cells[ERRORS] += 1
        self.say(str(failure) or type(failure).__name__)

    def progress(self, client: Client, units: int = 1) -> None:
        """Count what a client has done; the first time it is ready to be measured."""
        if not client.done:
            self.cells[READY] += 1
        client.done += 1
        self.cells[DONE] += units

    # --- clients ------------------------------------------------------------------------------

    def connect(self, client: Client, to: Address) -> Generator[None, None, socket.socket]:
        """Open a connection; the client is resumed whenever it can be read from."""
        client.deadline = time.monotonic() + SILENCE
        sock = socket.socket()
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((next(self.sources), 0))
            code = sock.connect_ex(to)
            if code == errno.EINPROGRESS:
                self.handle(sock, client, select.EPOLLOUT)
                yield
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                self.poll.modify(sock.fileno(), select.EPOLLIN)
            if code:
                raise OSError(code, os.strerror(code))
        except BaseException:
            self.forget(sock)
            raise
        return sock

    def enter(self, client: Client) -> Generator[None, None, socket.socket]:
        """Connect to a target, through the proxy if there is one."""
        target = next(self.targets)
        sock = yield from self.connect(client, self.work.proxy or target)
        try:
            if self.work.proxy:
                yield from negotiate(sock, self.work.login)
                yield from request(sock, 1, target)
        except BaseException:
            self.forget(sock)
            raise
        return sock

    def bulk(self, client: Client) -> Wait:
        """Take what a target pours, as fast as it comes."""
        sock = yield from self.enter(client)
        got = 0
        try:
            while got < PROVED:
                yield
                some = sock.recv(PROVED - got)
                if some != BLOCK[got : got + len(some)] or not some:
                    raise Broken("other octets came than the target sent")
                got += len(some)
            client.deadline = float("inf")
            while True:
                self.progress(client)
                yield
                # Counted, and thrown away by the kernel, without a copy (tcp(7), MSG_TRUNC).
                try:
                    number = sock.recv_into(self.buffer, CHUNK, socket.MSG_TRUNC)
                except BlockingIOError:
                    continue
                if not number:
                    raise Broken("the stream ended")
                self.cells[OCTETS] += number
        finally:
            self.forget(sock)

    def rate(self, client: Client) -> Wait:
        """One short session after the other."""
        message = os.urandom(ECHOED)
        while True:
            try:
                sock = yield from self.enter(client)
                try:
                    yield from ping(sock, message)
                finally:
                    self.forget(sock)
                self.progress(client)
            except (OSError, Broken) as failure:
                self.failed(failure)
                client.deadline = float("inf")
                self.later.append((time.monotonic() + 0.05, client))
                yield

    def rtt(self, client: Client) -> Wait:
        """Messages to and fro over a session that stays open."""
        message = os.urandom(self.work.size)
        sock = yield from self.enter(client)
        client.deadline = float("inf")
        try:
            while True:
                yield from ping(sock, message)
                self.progress(client)
        finally:
            self.forget(sock)

    def idle(self, client: Client) -> Wait:
        """One message, and then silence."""
        sock = yield from self.enter(client)
        try:
            yield from ping(sock, os.urandom(self.work.size))
            self.progress(client)
            client.deadline = float("inf")
            yield
            raise Broken("an idle session was closed")
        finally:
            self.forget(sock)

    def udp(self, client: Client) -> Wait:
        """Datagrams to and fro through one association, a window of them at a time."""
        target = next(self.targets)
        header = b""
        sock = socket.socket(type=socket.SOCK_DGRAM)
        sock.setblocking(False)
        control = None
        try:
            relay, source = target, "127.0.0.1"
            if self.work.proxy:
                control = yield from self.connect(client, self.work.proxy)
                yield from negotiate(control, self.work.login)
                relay = yield from request(control, 3, ("0.0.0.0", 0))
                if relay[0] == "0.0.0.0":  # where the client found the proxy
                    relay = (self.work.proxy[0], relay[1])
                header = b"\0\0\0" + encoded(target)
                # A proxy takes datagrams from the client's address only (RFC 1928, section 7).
                source = control.getsockname()[0]
            client.deadline = float("inf")
            sock.bind((source, 0))
            sock.connect(relay)
            self.handle(sock, client)
            yield from self._ping_pong(sock, client, header)
        finally:
            self.forget(sock)
            if control:
                self.forget(control)

    def _ping_pong(self, sock: socket.socket, client: Client, header: bytes) -> Wait:
        fill = os.urandom(self.work.size - 8)
        numbers = count()
        flying: dict[bytes, float] = {}

        def send() -> None:
            number = next(numbers).to_bytes(8)
            sock.send(header + number + fill)
            flying[number] = time.monotonic()

        for _ in range(IN_FLIGHT):
            send()
        while True:
            self.later.append((time.monotonic() + LOST / 4, client))
            yield
            while self.later and self.later[-1][1] is client:
                self.later.pop()
            for _ in range(IN_FLIGHT):
                try:
                    data = sock.recv(65536)
                except BlockingIOError:
                    break
                if flying.pop(data[len(header) : len(header) + 8], None) and data.endswith(fill):
                    self.progress(client)
                    send()
            now = time.monotonic()
            # Sent in order, so the first is the oldest.
            while flying and now - next(iter(flying.values())) > LOST:
                flying.pop(next(iter(flying)))
                self.cells[LOST_CELL] += 1
                send()


IP_BIND_ADDRESS_NO_PORT = 24  # ip(7); the socket module of Python 3.11 has no name for it

CLIENTS: dict[str, Callable[[Load, Client], Wait]] = {
    "bulk": Load.bulk,
    "rate": Load.rate,
    "rtt": Load.rtt,
    "idle": Load.idle,
    "udp": Load.udp,
}


# --- the protocol from the client's end ---------------------------------------------------------


def read(sock: socket.socket, octets: int) -> Generator[None, None, bytes]:
    """Read so many octets."""
    data = b""
    while len(data) < octets:
        yield
        try:
            some = sock.recv(octets - len(data))
        except BlockingIOError:
            continue
        if not some:
            raise Broken("closed before all was said")
        data += some
    return data


def negotiate(sock: socket.socket, login: tuple[str, str] | None) -> Wait:
    """Offer one method, and authenticate (RFC 1928, section 3; RFC 1929)."""
    method = b"\x02" if login else b"\x00"
    sock.send(b"\x05\x01" + method)
    choice = yield from read(sock, 2)
    if choice != b"\x05" + method:
        raise Broken(f"answered {choice.hex(' ')} to the offer of method {method.hex()}")
    if login:
        name, password = map(str.encode, login)
        sock.send(b"\x01%c%b%c%b" % (len(name), name, len(password), password))
        status = yield from read(sock, 2)
        if status[1]:
            raise Broken(f"password refused with status {status[1]}")


def encoded(address: Address) -> bytes:
    """Write ATYP, ADDR and PORT (RFC 1928, section 5)."""
    return b"\x01" + socket.inet_aton(address[0]) + address[1].to_bytes(2)


def request(sock: socket.socket, cmd: int, to: Address) -> Generator[None, None, Address]:
    """Make a request; returns BND.ADDR and BND.PORT (RFC 1928, sections 4 and 6)."""
    sock.send(b"\x05%c\x00" % cmd + encoded(to))
    reply = yield from read(sock, 4)
    if reply[:2] != b"\x05\x00":
        raise Broken(f"the request was refused: {reply.hex(' ')}")
    octets = {1: 4, 4: 16}.get(reply[3])
    if octets is None:
        raise Broken(f"a reply of address type {reply[3]}")
    rest = yield from read(sock, octets + 2)
    family = socket.AF_INET if octets == 4 else socket.AF_INET6
    return socket.inet_ntop(family, rest[:-2]), int.from_bytes(rest[-2:])


def ping(sock: socket.socket, message: bytes) -> Wait:
    """Send a message and wait until it is back."""
    sock.send(message)
    if (yield from read(sock, len(message))) != message:
        raise Broken("other octets came back than were sent")


# --- the process ----------------------------------------------------------------------------------


class Running:
    """A load in a process of its own, until the end of a ``with`` block."""

    def __init__(self, work: Work, cpus: Iterable[int], seconds: float) -> None:
        self.counters = Counters()
        self._arguments = work, frozenset(cpus), seconds
        self.pid = 0

    def __enter__(self) -> "Running":
        self.pid = os.fork()
        if not self.pid:
            self._child()
        return self

    def _child(self) -> None:
        code = 1
        try:
            work, cpus, seconds = self._arguments
            # The terminal's ctrl-C is for the parent, who ends this process, too.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.sched_setaffinity(0, cpus)
            Load(work, self.counters).run(time.monotonic() + seconds)
            code = 0
        except Exception as error:
            self.counters.say(f"the load failed: {error!r}")
        finally:
            os._exit(code)

    def alive(self) -> bool:
        """Whether the process goes on."""
        if self.pid and os.waitpid(self.pid, os.WNOHANG)[0]:
            self.pid = 0
        return self.pid != 0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.alive():
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0


def raise_descriptor_limit() -> int:
    """Allow this process, and those it starts, as many descriptors as the system lets it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
