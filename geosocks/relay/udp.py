"""A UDP association: datagrams between one client and whom it writes to (RFC 1928, section 7).

::

    client  <- header, DATA ->  inside |association| outside  <- DATA ->  hosts

The inside socket is bound where the client reached us, and only the client is heard on it; targets
write to the outside sockets, one for each family, made when first needed.  ``up`` is from the
client and runs in the greenlet that calls ``run``, which watches the client's connection, too;
``down`` runs in one more.  A name is looked up in a greenlet of its own, so that nothing waits for
it but the datagrams to that name.

Knows sockets and datagrams.  Where a datagram may go is a callback's to say.
"""

import errno
import random
import socket as stdlib_socket  # constants
import time
from _socket import socket as RawSocket
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final, Literal, Protocol

import gevent
from gevent import getcurrent
from gevent.hub import get_hub

from geosocks.errors import ProtocolError, RequestDenied, RequestFailed
from geosocks.relay.fragments import ReassemblyQueue
from geosocks.relay.pump import End, Meter
from geosocks.relay.target import Family
from geosocks.stream import Connection
from geosocks.wire.socks5 import Address, Datagram, IPAddress, udp_header_size

BATCH: Final = 32
"""Datagrams taken from a socket before others get their turn."""

SIZE: Final = 1 << 16
"""Octets received at a time.  UDP's Length ends at 65,535, so no datagram is ever cut."""

MAX_ROUTES: Final = 1024
"""Destinations and sources of an association that are remembered; beyond, the oldest goes."""

ASKED_FOR: Final = 120.0
"""Seconds that a host may answer after a datagram was last sent to it."""

FAILED_FOR: Final = 5.0
"""Seconds that a name without an address is not looked up again."""

MAX_LOOKUPS: Final = 8
"""Names of an association that are looked up at a time."""

MAX_WAITING: Final = 16
"""Datagrams that wait for one name."""

MAX_WAITING_OCTETS: Final = 128 * 1024
"""And octets of them, for all names of an association."""

MAX_STRAY: Final = 64 * 1024
"""Octets on the client's connection, which has nothing left to say."""

PORT_TRIES: Final = 128
"""Ports of a range that are tried before it counts as used up."""

Version = Literal[4, 6]

_READ, _WRITE = 1, 2
_CLIENT, _DATAGRAMS, _FAULT = 1, 2, 4  # what woke ``up``
_VERSIONS: Final[dict[Family, tuple[Version, ...]]] = {
    "any": (4, 6),
    "ipv4": (4,),
    "ipv6": (6,),
}
_BIT: Final = {4: 1, 6: 2}  # and ``down``, by IP version
_ONWARD: Final = 4
_NONBLOCK: Final = getattr(stdlib_socket, "SOCK_NONBLOCK", 0)  # 0 where there is none
_NO_WAY: Final = frozenset(
    (
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.EADDRNOTAVAIL,
        errno.EAFNOSUPPORT,
        errno.EINVAL,  # from a loopback address to another host
    )
)
"""errno of sendto(2) after which another address of the same name may do."""

SockAddr = tuple[Any, ...]

Judge = Callable[[Address], tuple[IPAddress, ...] | None]
"""Where may a datagram to this destination go, and in which order to try?  Blocks for a name.

None: onward, to the upstream as it is.

Raises RequestDenied, or another RequestFailed when it is a name without an address.
"""


class Seal(Protocol):
    """Encapsulates datagrams between the client and us; ``geosocks.auth.Seal``."""

    def wrap(self, datagram: bytes, /) -> bytes:
        """What to send for ``datagram``; ProtocolError when it is too long."""
        ...

    def unwrap(self, datagram: bytes, /) -> bytes:
        """The datagram inside; ProtocolError when it is to be dropped."""
        ...


class Onward(Protocol):
    """An association of ours with an upstream, which relays what this one does not."""

    @property
    def sock(self) -> RawSocket:
        """Connected to the upstream's relay; it does not block."""
        ...

    @property
    def seal(self) -> Seal | None:
        """Encapsulates every datagram between the upstream and us."""
        ...

    def wait(self) -> str:
        """Return when the upstream has ended it: how."""
        ...

    def close(self) -> None:
        """End it."""
        ...


@dataclass(slots=True)
class Traffic:
    """Datagrams of an association, relayed and dropped.  Written by its greenlets."""

    up: int = 0
    down: int = 0
    strangers: int = 0
    """From another address or port than the client's; never answered."""

    malformed: int = 0
    """From the client, but no datagram of section 7, or not as its method encapsulates."""

    fragments: int = 0
    """Of sequences that never became a whole, or all when they are not reassembled."""

    denied: int = 0
    """To where no rule lets the client go."""

    unresolved: int = 0
    """To a name that has no address."""

    overflow: int = 0
    """To names that were still looked up when too many waited for them."""

    unasked: int = 0
    """From hosts that the client has not written to of late."""

    too_long: int = 0
    """To the client, of no room for the header and what encapsulates it."""

    failed: int = 0
    """The kernel would not send or receive: no way there, no descriptor, an ICMP error."""


@dataclass(slots=True, eq=False)
class Route:
    """Where datagrams with one destination go; to nowhere without a ``sock``."""

    sock: RawSocket | None = None
    to: SockAddr = ()
    others: tuple[SockAddr, ...] = ()
    """To try where there is no way ``to`` it."""

    onward: bytes = b""
    """The header of what goes to the upstream."""

    refusal: str = ""
    """The counter of ``Traffic`` for what is dropped."""

    until: float = float("inf")
    """When a refusal ends, in seconds of the monotonic clock."""


@dataclass(slots=True)
class Waiting:
    """Datagrams that wait for the look-up of their name."""

    data: list[bytes] = field(default_factory=list)


class Association:
    """One client's relay; owned by the greenlet that calls ``run`` and then ``close``."""

    def __init__(
        self,
        inside: RawSocket,
        client: Connection,
        host: IPAddress,
        port: int,
        judge: Judge,
        meter: Meter,
        *,
        seal: Seal | None = None,
        outgoing: Mapping[Version, str] | None = None,
        family: Family = "any",
        from_any: bool = False,
        asked_for: float = ASKED_FOR,
        reassemble: bool = True,
        onward: Onward | None = None,
    ) -> None:
        """Relay between ``inside``, which it closes, and the world.

        Args:
            inside: a bound socket, as ``open_inside`` makes it.
            client: the connection whose end is the end of the association.
            host: the client's address; what comes from any other MUST be dropped (section 7).
            port: the client's, 0 when it is not known: then the first valid datagram tells.
            judge: asked once for each destination that is remembered.
            meter: counts octets of DATA, and datagrams.
            seal: encapsulates every datagram between the client and us.
            outgoing: source address by IP version.
            family: leaves the addresses of the other one out.
            from_any: pass on what any host sends, not only those that were written to.
            asked_for: seconds that a host is one that was.
            reassemble: make a whole of fragments; they are dropped otherwise.
            onward: where to send what ``judge`` wants to go there; closed by ``close``.
        """
        self.traffic = Traffic()
        self.client: SockAddr | None = None
        """Where the client's datagrams come from, once one has told."""

        self.bound = _address_of(inside)
        """Where the client is to send its datagrams."""

        self._inside = inside
        self._connection = client
        self._host = _kernel_name(host)
        self._port = port
        self._judge = judge
        self._meter = meter
        self._seal = seal
        self._outgoing = dict(outgoing or {})
        self._versions = _VERSIONS[family]
        self._from_any = from_any
        self._asked_for = asked_for
        self._queue = ReassemblyQueue() if reassemble else None
        self._stray = len(client.take_rest())
        self._routes: dict[bytes, Route] = {}
        self._headers: dict[SockAddr, bytes] = {}
        self._asked: dict[str, float] = {}
        self._waiting: dict[bytes, Waiting] = {}
        self._waiting_octets = 0
        self._outside: dict[Version, RawSocket] = {}
        self._fault: Exception | None = None
        self._onward = onward
        self._onward_ended = ""
        self._up = Inbox()
        self._down = Inbox()
        self._greenlets: list[gevent.Greenlet[..., None]] = []
        self._is_down_running = False

    def run(self) -> tuple[End, str | None]:
        """Relay until the client's connection ends; returns how, and the error.

        Raises:
            Exception: what ``judge`` raises beyond RequestFailed.
        """
        self._up.add(self._connection.fileno(), _CLIENT)
        self._up.add(self._inside.fileno(), _DATAGRAMS)
        if self._onward is not None:
            self._hear(self._onward.sock, _ONWARD)
            self._spawn(self._watch, self._onward)
        while True:
            events = self._up.wait()
            if self._fault is not None:
                raise self._fault
            if self._onward_ended:
                return End.RESET_BY_TARGET, self._onward_ended
            if events & _CLIENT:
                end = self._listen()
                if end is not None:
                    return end
            if events & _DATAGRAMS:
                self._take()

    def close(self) -> None:
        """End its greenlets, then close its sockets; the connection is the caller's."""
        try:
            gevent.killall(self._greenlets)
        finally:  # even if somebody loses patience with us
            self._up.close()
            self._down.close()
            for sock in (self._inside, *self._outside.values()):
                sock.close()
            if self._onward is not None:
                self._onward.close()
        if self._queue is not None:
            self._queue.abandon()
            self.traffic.fragments, self._queue.abandoned = self._queue.abandoned, 0

    def _listen(self) -> tuple[End, str | None] | None:
        """How the client's connection ended; None while it lives.  What it says means nothing."""
        try:
            data = self._connection.sock.recv(4096)
        except BlockingIOError:
            return None
        except OSError as error:
            return End.RESET_BY_CLIENT, str(error)
        if not data:
            return End.CLOSED, None
        self._stray += len(data)
        if self._stray > MAX_STRAY:
            return End.BROKEN_BY_CLIENT, "it keeps sending on the connection of an association"
        return None

    # --- up -----------------------------------------------------------------------------------

    def _take(self) -> None:
        """Take up to BATCH datagrams from the inside socket."""
        traffic, seal, routes = self.traffic, self._seal, self._routes
        receive = self._inside.recvfrom
        now = time.monotonic()
        for _ in range(BATCH):
            try:
                datagram, source = receive(SIZE)
            except BlockingIOError:
                return
            except OSError:
                traffic.failed += 1
                continue
            if source != self.client and not self._may_be_client(source):
                traffic.strangers += 1
                continue
            try:
                if seal is not None:
                    datagram = seal.unwrap(datagram)
                size = udp_header_size(datagram)
            except ProtocolError:
                traffic.malformed += 1
                continue
            if self.client is None:
                self.client = source  # "valid": only now it is locked
            destination, data = datagram[3:size], datagram[size:]
            if datagram[2] or (self._queue is not None and self._queue.pending):
                whole = self._reassembled(datagram[2], destination, data, now)
                if whole is None:
                    continue
                data = whole
            route = routes.get(destination)
            if route is None or route.until < now:
                self._find_route(destination, data, now)
            elif route.sock is None:
                self._drop(route.refusal)
            else:
                self._send(route, data, now)

    def _may_be_client(self, source: SockAddr) -> bool:
        """True for a source that nothing speaks against: none was seen yet, and it fits."""
        if self.client is not None or source[0] != self._host:
            return False
        return self._port in (0, source[1])

    def _reassembled(self, frag: int, destination: bytes, data: bytes, now: float) -> bytes | None:
        """DATA to send on: the whole of a sequence, or of a datagram of its own."""
        queue = self._queue
        if queue is None:
            self.traffic.fragments += 1
            return None
        if not frag:
            # X'00' is less than any FRAG processed, too: who sends it has done with the sequence.
            queue.abandon()
            return data
        return queue.add(frag, destination, data, now)

    def _find_route(self, destination: bytes, data: bytes, now: float) -> None:
        """Send on, or drop, the first datagram to ``destination``."""
        waiting = self._waiting.get(destination)
        if waiting is None:
            asked = Datagram.decode(b"\0\0\0" + destination).destination
            if not asked.is_name:
                route = self._judged(asked, now)
                self._remember(destination, route)
                self._deliver(route, data, now)
                return
            if len(self._waiting) >= MAX_LOOKUPS:
                self.traffic.overflow += 1
                return
            waiting = self._waiting[destination] = Waiting()
            self._spawn(self._look_up, destination, asked, waiting)
        room = MAX_WAITING_OCTETS - self._waiting_octets
        if len(waiting.data) >= MAX_WAITING or len(data) > room:
            self.traffic.overflow += 1
            return
        waiting.data.append(data)
        self._waiting_octets += len(data)

    def _look_up(self, destination: bytes, asked: Address, waiting: Waiting) -> None:
        """Find the route to a name, and send what has waited for it; in its own greenlet."""
        try:
            route = self._judged(asked, time.monotonic())
        finally:
            del self._waiting[destination]
            self._waiting_octets -= sum(map(len, waiting.data))
        self._remember(destination, route)
        now = time.monotonic()
        for data in waiting.data:
            self._deliver(route, data, now)

    def _judged(self, asked: Address, now: float) -> Route:
        """Ask where ``asked`` may be reached, and aim there."""
        try:
            addresses = self._judge(asked)
        except RequestDenied:
            return Route(refusal="denied")
        except RequestFailed:
            return Route(refusal="unresolved", until=now + FAILED_FOR)
        if addresses is None:
            assert self._onward is not None
            return Route(self._onward.sock, onward=Datagram(asked, b"").encode())
        usable = tuple(
            (_kernel_name(address), asked.port)
            for address in addresses
            if address.version in self._versions
        )
        if not usable:
            return Route(refusal="unresolved")
        route = Route()
        if not self._aim(route, usable):
            return Route(refusal="failed", until=now)  # no descriptor is left: perhaps next time
        return route

    def _aim(self, route: Route, at: tuple[SockAddr, ...]) -> bool:
        """Send on ``route`` to the first of ``at``; False where no socket can be had for it."""
        version: Version = 6 if ":" in at[0][0] else 4
        sock = self._outside.get(version)
        if sock is None:
            try:
                sock = open_outside(version, self._outgoing.get(version))
            except OSError:
                return False
            self._outside[version] = sock
            self._hear(sock, _BIT[version])
        route.sock, route.to, route.others = sock, at[0], at[1:]
        return True

    def _hear(self, sock: RawSocket, event: int) -> None:
        """Have ``down`` read ``sock``, too."""
        self._down.add(sock.fileno(), event)
        if not self._is_down_running:
            self._is_down_running = True
            self._spawn(self._run_down)

    def _watch(self, onward: Onward) -> None:
        """End with the upstream's association; in its own greenlet."""
        self._onward_ended = onward.wait()
        self._up.wake(_FAULT)

    def _remember(self, destination: bytes, route: Route) -> None:
        routes = self._routes
        routes.pop(destination, None)
        if len(routes) >= MAX_ROUTES:
            del routes[next(iter(routes))]
        routes[destination] = route

    def _deliver(self, route: Route, data: bytes, now: float) -> None:
        if route.sock is None:
            self._drop(route.refusal)
        else:
            self._send(route, data, now)

    def _drop(self, why: str) -> None:
        traffic = self.traffic
        setattr(traffic, why, getattr(traffic, why) + 1)

    def _send(self, route: Route, data: bytes, now: float) -> None:
        """Send DATA to a target."""
        octets = data
        if route.onward:
            assert self._onward is not None
            octets, seal = route.onward + data, self._onward.seal
            try:
                octets = octets if seal is None else seal.wrap(octets)
            except ProtocolError:
                self.traffic.failed += 1
                return
        while True:
            assert route.sock is not None
            try:
                if route.onward:
                    route.sock.send(octets)
                else:
                    route.sock.sendto(octets, route.to)
            except BlockingIOError:
                wait_writable(route.sock)
            except OSError as error:
                if error.errno in _NO_WAY and route.others and self._aim(route, route.others):
                    continue
                self.traffic.failed += 1
                return
            else:
                break
        if not route.onward:  # whom it lets answer is the upstream's to know
            host = route.to[0]
            if now - self._asked.get(host, float("-inf")) > 1.0:
                self._ask(host, now)
        self.traffic.up += 1
        self._meter.up += len(data)
        self._meter.datagrams += 1

    def _ask(self, host: str, now: float) -> None:
        """Let ``host`` answer from now on."""
        asked = self._asked
        asked.pop(host, None)  # so that the first of all is the one asked longest ago
        if len(asked) >= MAX_ROUTES:
            del asked[next(iter(asked))]
        asked[host] = now

    # --- down ---------------------------------------------------------------------------------

    def _run_down(self) -> None:
        """Pass on to the client what comes to the outside sockets; in its own greenlet."""
        while True:
            ready = self._down.wait()
            for version, sock in tuple(self._outside.items()):
                if ready & _BIT[version]:
                    self._answer(sock)
            if ready & _ONWARD and self._onward is not None:
                self._pass_back(self._onward)

    def _answer(self, sock: RawSocket) -> None:
        """Take up to BATCH datagrams from an outside socket."""
        traffic, asked = self.traffic, self._asked
        receive, client = sock.recvfrom, self.client
        assert client is not None  # nothing is outside before it has spoken
        since, from_any = time.monotonic() - self._asked_for, self._from_any
        for _ in range(BATCH):
            try:
                data, source = receive(SIZE)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error, for example
                traffic.failed += 1
                continue
            if not from_any and asked.get(source[0], float("-inf")) < since:
                traffic.unasked += 1
                continue
            header = self._headers.get(source) or self._header(source)
            self._to_client(header + data, len(data), client)

    def _pass_back(self, onward: Onward) -> None:
        """Take up to BATCH datagrams from the upstream, each with its header."""
        traffic, theirs = self.traffic, onward.seal
        for _ in range(BATCH):
            try:
                datagram = onward.sock.recv(SIZE)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error, for example
                traffic.failed += 1
                continue
            try:
                if theirs is not None:
                    datagram = theirs.unwrap(datagram)
                size = udp_header_size(datagram)
            except ProtocolError:
                traffic.failed += 1
                continue
            if datagram[2] or self.client is None:  # a fragment; nobody to send it to
                traffic.failed += 1
                continue
            self._to_client(datagram, len(datagram) - size, self.client)

    def _to_client(self, datagram: bytes, payload: int, client: SockAddr) -> None:
        """Send a datagram, its header included, to the client; ``payload`` octets count."""
        try:
            if self._seal is not None:
                datagram = self._seal.wrap(datagram)
            while True:
                try:
                    self._inside.sendto(datagram, client)
                except BlockingIOError:
                    wait_writable(self._inside)
                else:
                    break
        except ProtocolError:
            self.traffic.too_long += 1
        except OSError as error:
            self._drop("too_long" if error.errno == errno.EMSGSIZE else "failed")
        else:
            self.traffic.down += 1
            self._meter.down += payload
            self._meter.datagrams += 1

    def _header(self, source: SockAddr) -> bytes:
        """The UDP request header for what ``source`` sends: who it really is."""
        headers = self._headers
        if len(headers) >= MAX_ROUTES:
            del headers[next(iter(headers))]
        address = Address(ip_address(source[0].partition("%")[0]), source[1])
        header = headers[source] = Datagram(address, b"").encode()
        return header

    # --- greenlets ----------------------------------------------------------------------------

    def _spawn(self, job: Callable[..., None], *args: object) -> None:
        """Run ``job`` beside ``run``, which raises what it raises."""

        def guarded() -> None:
            try:
                job(*args)
            except Exception as fault:
                self._fault = fault
                self._up.wake(_FAULT)

        greenlet = gevent.spawn(guarded)
        self._greenlets = [other for other in self._greenlets if not other.dead]
        self._greenlets.append(greenlet)


class Inbox:
    """Wakes one greenlet when any of a few descriptors is readable.

    As with ``Connection``, a watcher stays armed from one wait to the next, and one that nobody
    waits for stops itself at its next event.
    """

    __slots__ = ("_events", "_hub", "_stopped", "_waiter", "_watchers")

    def __init__(self) -> None:
        self._hub = get_hub()
        self._watchers: list[tuple[Any, int]] = []
        self._stopped: list[tuple[Any, int]] = []
        self._waiter: Any = None
        self._events = 0

    def add(self, fd: int, event: int) -> None:
        """Watch ``fd`` too; ``wait`` then gives ``event``, one bit."""
        watcher = self._hub.loop.io(fd, _READ)
        self._watchers.append((watcher, event))
        watcher.start(self._readable, watcher, event)

    def wait(self) -> int:
        """The events that have come, once there are any."""
        for watcher, event in self._stopped:
            watcher.start(self._readable, watcher, event)
        self._stopped.clear()
        if self._events:
            return self._taken()
        self._waiter = getcurrent()
        try:
            self._hub.switch()
        finally:
            self._waiter = None
        return self._taken()

    def _taken(self) -> int:
        events, self._events = self._events, 0
        return events

    def wake(self, event: int) -> None:
        """End the wait with ``event``; from any greenlet."""
        self._hub.loop.run_callback(self._wake, event)

    def _readable(self, watcher: Any, event: int) -> None:
        if self._waiter is None:
            watcher.stop()
            self._stopped.append((watcher, event))
        else:
            self._wake(event)

    def _wake(self, event: int) -> None:
        self._events |= event
        if self._waiter is not None:
            self._waiter.switch()

    def close(self) -> None:
        """Stop and close the watchers; the descriptors are the caller's."""
        for watcher, _ in self._watchers:
            watcher.stop()
            watcher.close()
        self._watchers.clear()
        self._stopped.clear()


def wait_writable(sock: RawSocket) -> None:
    """Give way to others until something can be sent."""
    hub = get_hub()
    watcher: Any = hub.loop.io(sock.fileno(), _WRITE)
    try:
        hub.wait(watcher)
    finally:
        watcher.close()


# --- sockets ----------------------------------------------------------------------------------


def open_inside(local: SockAddr, ports: range | None = None) -> RawSocket:
    """A socket bound to the IP address of ``local``, a name as getsockname(2) gives.

    ``ports`` are those to take, None for any.

    Raises:
        RequestFailed: none can be had.
    """
    host, rest = local[0], tuple(local[2:])
    mapped = IPv6Address(host.partition("%")[0]).ipv4_mapped if ":" in host else None
    if mapped is not None:
        host, rest = str(mapped), ()  # an IPv4 client of a dual-stack listener
    tries: Iterable[int] = (0,)
    if ports is not None:
        tries = random.sample(ports, min(len(ports), PORT_TRIES))
    try:
        sock = _socket(6 if ":" in host else 4)
        for port in tries:
            try:
                sock.bind((host, port, *rest))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    sock.close()
                    raise
            else:
                return sock
    except OSError as error:
        raise RequestFailed(f"no relay on {host}: {error.strerror or error}") from error
    sock.close()
    where = "any port" if ports is None else f"the ports {ports.start} to {ports.stop - 1}"
    raise RequestFailed(f"no relay on {host}: {where} cannot be had, being in use")


def open_outside(version: Version, source: str | None = None) -> RawSocket:
    """A socket towards targets, bound to the address ``source`` if there is one.

    Raises:
        OSError: as socket(2), bind(2).
    """
    sock = _socket(version)
    try:
        # Bound at once: it is watched before its first datagram.
        sock.bind((source or ("" if version == 4 else "::"), 0))
    except OSError:
        sock.close()
        raise
    return sock


def _socket(version: Version) -> RawSocket:
    family = stdlib_socket.AF_INET if version == 4 else stdlib_socket.AF_INET6
    sock = RawSocket(family, stdlib_socket.SOCK_DGRAM | _NONBLOCK)
    if not _NONBLOCK:
        sock.setblocking(False)
    if version == 6:
        sock.setsockopt(stdlib_socket.IPPROTO_IPV6, stdlib_socket.IPV6_V6ONLY, 1)
    return sock


def _address_of(sock: RawSocket) -> Address:
    name = sock.getsockname()
    return Address(ip_address(name[0].partition("%")[0]), name[1])


def _kernel_name(address: IPAddress) -> str:
    """``address`` as the kernel's names have it, so that the two can be compared."""
    if isinstance(address, IPv4Address):
        return str(address)
    return stdlib_socket.inet_ntop(stdlib_socket.AF_INET6, address.packed)


# --- all of them ------------------------------------------------------------------------------


class Associations:
    """The associations alive: how many, whose, and on which ports.  Owned by the server.

    Nothing between a check and its count blocks.
    """

    def __init__(self) -> None:
        self.ports: Counter[int] = Counter()
        """Ports of their inside sockets, of one address or another."""

        self._of: Counter[object] = Counter()

    def __len__(self) -> int:
        return self._of.total()

    def of(self, user: object) -> int:
        """How many ``user`` has."""
        return self._of.get(user, 0)

    def add(self, user: object, port: int) -> None:
        """One more has begun."""
        self._of[user] += 1
        self.ports[port] += 1

    def remove(self, user: object, port: int) -> None:
        """It has ended."""
        self._of[user] -= 1
        self.ports[port] -= 1
        # "+" keeps what is above zero: who has gone is forgotten.
        self._of, self.ports = +self._of, +self.ports
