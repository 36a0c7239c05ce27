"""The server: listeners, the live sessions, the policy in force, drain.

Lives in the hub of whoever starts it.  Never patches, never installs a signal handler, never
configures logging, never exits: that is the program's around it.
"""

import errno
import itertools
import time
from _socket import socket as RawSocket
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Self

import gevent
import gevent.event
import gevent.socket
from gevent.server import StreamServer

from geosocks.codes import Cmd
from geosocks.entrance import (
    HANDSHAKES,
    LOOK_EVERY,
    OF_SOURCE,
    Gate,
    Handshake,
    source_of,
)
from geosocks.events import (
    AcceptPaused,
    ConnectionRefused,
    Draining,
    FanOut,
    LimitReached,
    Listening,
    Observer,
    Stopped,
)
from geosocks.greenlets import GreenletPool
from geosocks.listening import (
    OWNER_ONLY,
    Listen,
    Opened,
    Where,
    as_listen,
    is_loopback,
    keepalive,
    open_listener,
    refuse_bare_tls,
    refuse_open_proxy,
)
from geosocks.policy import Policy
from geosocks.relay.pipes import MAX_PIPES
from geosocks.relay.pump import Pump
from geosocks.relay.udp import Associations
from geosocks.session import Session, SessionCut, address_of, run
from geosocks.stream import Connection
from geosocks.wire.socks5 import Address

__all__ = [
    "DESCRIPTORS_EACH",
    "OWNER_ONLY",
    "RESERVED_DESCRIPTORS",
    "Listen",
    "Server",
    "Where",
    "descriptor_limit",
    "is_loopback",
    "max_sessions_for",
    "refuse_bare_tls",
    "refuse_open_proxy",
]

RESERVED_DESCRIPTORS: Final = 64 + 2 * MAX_PIPES
"""Kept free of sessions: listeners, logs, DNS, and the pipes that bulk sessions share."""

DESCRIPTORS_EACH: Final = 3
"""What a session may hold: its client, its target, one more while it dials several addresses."""


def max_sessions_for(descriptors: int) -> int:
    """How many sessions ``descriptors`` (RLIMIT_NOFILE) are enough for; at least 1."""
    return max(1, (descriptors - RESERVED_DESCRIPTORS) // DESCRIPTORS_EACH)


def descriptor_limit() -> int:
    """The soft RLIMIT_NOFILE of this process; a large number where there is no such thing."""
    try:
        import resource
    except ImportError:  # not a Unix
        return 1 << 16
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft


class Listener(StreamServer):
    """gevent's StreamServer, taught to survive a lack of descriptors in silence.

    The stock one prints a traceback for every failed accept(2) and sleeps up to a second.
    """

    max_accept = 64
    PAUSE: Final = 0.1
    """Seconds without accepting once there are no descriptors."""

    def __init__(self, opened: Opened, server: "Server", greenlets: GreenletPool) -> None:
        sock = _of_this_hub(opened.sock)
        super().__init__(sock, handle=server._accepted)
        self.server = server
        self._greenlets = greenlets
        # Told to each socket accepted, whose constructor would ask the kernel for them.
        self._kind = int(sock.family), int(sock.type), sock.proto
        self.name = opened.name
        self.tls = opened.listen.tls
        self._file = opened.file

    def full(self) -> bool:
        """True at the ceiling of sessions: further clients wait in the backlog."""
        return self.server._is_full()

    def do_read(self) -> tuple[Any, Any] | None:  # type: ignore[override]  # no gevent socket
        """Accept one connection, or none.

        A connection that was reset before we took it (ECONNABORTED), or any other trouble of one
        client, is nobody else's (accept(2), "Error handling").
        """
        listening: Any = self.socket
        try:
            fd, address = listening._accept()
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in _EXHAUSTED:
                self._pause()
                self.server._accept_failed(error, self.PAUSE)
            elif error.errno in self.fatal_errors:
                raise
            return None
        sock = RawSocket(*self._kind, fd)
        sock.setblocking(False)
        return sock, (address, self)

    def do_handle(self, *accepted: Any) -> None:
        """Serve it in a greenlet of the pool; connections are accepted in the hub."""
        self._greenlets.run(self.server._accepted, *accepted)

    def _pause(self) -> None:
        self.stop_accepting()
        self._timer = self.loop.timer(self.PAUSE)
        self._timer.start(self.resume)

    def resume(self) -> None:
        """Accept again, if this listener is not closed."""
        if self.started:
            self.start_accepting()

    def close(self) -> None:
        """Accept no more; the file of a UNIX socket goes, if it is still the one made here."""
        super().close()
        if self._file is not None:
            self._file.remove()
            self._file = None


def _of_this_hub(sock: gevent.socket.socket | RawSocket) -> gevent.socket.socket:
    """``sock`` as one of gevent's, which owns it from here on."""
    if isinstance(sock, gevent.socket.socket):
        return sock
    return gevent.socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach())


_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Server:
    """A SOCKS5 server on one or more listening addresses.

    ``listen`` holds ``(host, port)`` pairs, port 0 for any, paths of UNIX sockets to make, sockets
    that listen already, or ``Listen`` values, which say more about one of these.
    ``observers`` are called with every event.  ``max_sessions`` is a ceiling on sessions at a time,
    by default what the descriptor limit is enough for.  ``allow_open`` lets anybody on the network
    use it, which is refused otherwise.  Sessions are numbered ``first_id``, that and ``id_step``,
    and so on: several servers that share a log have each numbers of its own.  One that
    ``shares_sockets`` with other processes takes one client at a time, and leaves them the rest.

    ``policy`` may be assigned at any time; sessions keep the one they were accepted with.
    """

    def __init__(
        self,
        listen: Sequence[Where | Listen],
        policy: Policy | None = None,
        *,
        observers: Iterable[Observer] = (),
        max_sessions: int | None = None,
        allow_open: bool = False,
        first_id: int = 1,
        id_step: int = 1,
        shares_sockets: bool = False,
    ) -> None:
        self.policy = policy or Policy()
        self.emit = FanOut(observers)
        self.sessions: dict[int, Session] = {}
        """The live sessions by id."""

        self.max_sessions = max_sessions or max_sessions_for(descriptor_limit())
        self._listen = tuple(map(as_listen, listen))
        self._allow_open = allow_open
        self._shares_sockets = shares_sockets
        self._listeners: list[Listener] = []
        self.listening: tuple[Listen, ...] = ()
        """Where it listens, each with its address as the kernel tells and its name."""

        self._own_ports: frozenset[int] = frozenset()
        self._kept_from: frozenset[int] = frozenset()
        self._ids = itertools.count(first_id, id_step)
        self._associations = Associations()
        self._pump: Pump | None = None
        self._reaper: gevent.Greenlet[..., None] | None = None
        self._seen: dict[int, tuple[int, float]] = {}  # the reaper's: octets, and since when
        self._empty = gevent.event.Event()
        self._stopped = gevent.event.Event()
        self._running = False
        self._accept_failures = _Seldom(10.0)
        self._ceiling_met = _Seldom(10.0)
        self._many_handshakes = _Seldom(10.0)
        self._many_of_source = _Seldom(10.0)
        self.gate = Gate(self.max_sessions, self._handshakes)
        """Who is let in to begin a handshake."""

        self._room_maker: gevent.Greenlet[..., None] | None = None

    # --- life ---------------------------------------------------------------------------------

    def start(self) -> Self:
        """Listen and serve, in the hub of this thread; returns at once.

        Raises:
            OSError: an address cannot be listened on; then none is.
            ConfigError: it would be open to everybody.
        """
        opened: list[Opened] = []
        try:
            for listen in self._listen:
                opened.append(open_listener(listen, self._listen))
            refuse_bare_tls([one.as_listen() for one in opened], self.policy)
            if not self._allow_open:
                refuse_open_proxy([one.as_listen() for one in opened], self.policy)
        except BaseException:
            for one in opened:
                one.close()
            raise
        self._running = True
        greenlets = GreenletPool()
        self._pump = Pump(greenlets=greenlets)
        self._own_ports = self._kept_from.union(
            one.address[1] for one in opened if isinstance(one.address, tuple)
        )
        self._listeners = [Listener(one, self, greenlets) for one in opened]
        if self._shares_sockets:
            for listener in self._listeners:
                listener.max_accept = 1
        self.listening = tuple(one.as_listen() for one in opened)
        for listener, one in zip(self._listeners, opened, strict=True):
            listener.start()
            self.emit(Listening(one.spelt, one.listen.name))
        self._reaper = gevent.spawn(self._reap)
        return self

    @property
    def addresses(self) -> list[Any]:
        """Where it listens: ``(host, port)`` as the kernel tells, or the path of a UNIX socket."""
        return [listener.address for listener in self._listeners]

    @property
    def accepting(self) -> bool:
        """Whether connections are taken, as far as there are places for them."""
        return self._running and any(not listener.closed for listener in self._listeners)

    def keep_clients_from(self, port: int) -> None:
        """Let no session begin to lead to ``port`` of this host, whatever the rules say."""
        self._kept_from |= {port}
        self._own_ports |= {port}

    def close_listeners(self) -> None:
        """Accept no more; sessions go on."""
        for listener in self._listeners:
            listener.close()

    def drain(self, timeout: float = 30.0) -> int:
        """Accept no more, wait for the sessions to end, cut what is left after ``timeout`` seconds.

        Returns the number of sessions cut.  A second call while the first waits cuts at once what
        it is told to; ``start`` may be called again afterwards.
        """
        if not self._running:
            return 0
        self.close_listeners()
        self.emit(Draining(len(self.sessions), timeout))
        self._wait_until_empty(timeout)
        left = list(self.sessions.values())
        for session in left:
            self.cut(session, "drained")
        self._wait_until_empty(None)
        if self._reaper is not None:
            self._reaper.kill()
            self._reaper = None
        if self._pump is not None:
            self._pump.close()
        self._listeners = []
        if self._running:  # another drain may have been quicker
            self._running = False
            self._stopped.set()
            self.emit(Stopped(len(left)))
        return len(left)

    def _wait_until_empty(self, timeout: float | None) -> None:
        end = None if timeout is None else time.monotonic() + timeout
        while self.sessions:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                return
            self._empty.clear()
            self._empty.wait(left)

    def stop(self) -> None:
        """Stop now: a drain that waits for nobody."""
        self.drain(0.0)

    def serve_forever(self) -> None:
        """Start, and block until another greenlet stops or drains the server."""
        self._stopped.clear()
        self.start()
        self._stopped.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- sessions -----------------------------------------------------------------------------

    def cut(self, session: Session, reason: str = "killed") -> None:
        """End ``session``; its ``SessionClosed`` tells ``reason``."""
        gevent.get_hub().loop.run_callback(self._throw, session, SessionCut(reason))

    def silence(self, session: Session, now: float) -> float | None:
        """For how many seconds no octet has passed, to within 5; None where nobody has looked.

        ``now`` is the time by ``time.monotonic``.
        """
        known = self._seen.get(session.id)
        if known is None:
            return None
        meter = session.meter
        return now - known[1] if known[0] == meter.up + meter.down + meter.datagrams else 0.0

    def _throw(self, session: Session, cut: SessionCut) -> None:
        # Its greenlet may serve another one by now; and once is enough.
        if self.sessions.get(session.id) is session and not session.cut:
            session.cut = True
            session.greenlet.throw(cut)

    def _accepted(self, sock: RawSocket, origin: tuple[Any, Listener]) -> None:
        """Serve one client; in its own greenlet."""
        address, listener = origin
        assert self._pump is not None
        peer, policy, gate = address_of(address), self.policy, self.gate
        if gate.entrance is not policy.entrance:
            gate.adopt(policy.entrance)
        if (gate.handshakes >= gate.watch or gate.alert) and self._turns_away(peer, listener):
            sock.close()
            return
        gate.handshakes += 1
        session = Session(
            next(self._ids),
            Connection(sock),
            peer,
            listener.name,
            policy,
            self._pump,
            self.emit,
            gate,
            self._own_ports,
            self._associations,
        )
        if listener.tls:
            session.tls = True
        session.greenlet = gevent.getcurrent()
        self.sessions[session.id] = session
        try:
            run(session)
        finally:
            if session.requested is None:
                gate.handshakes -= 1
            was_full = len(self.sessions) >= self.max_sessions
            del self.sessions[session.id]
            if was_full:
                for listener_ in self._listeners:
                    listener_.resume()
            if not self.sessions:
                self._empty.set()

    def _turns_away(self, peer: Address, listener: Listener) -> bool:
        """Whether a connection is not to be served, as there are too many or its source is bad."""
        gate = self.gate
        assert not isinstance(peer.host, str)
        why = gate.refuses(peer.host)
        if why is None:
            return False
        if self.emit.audience[ConnectionRefused]:
            self.emit(ConnectionRefused(peer, listener.name, why))
        if why == HANDSHAKES and self._many_handshakes.now():
            self.emit(LimitReached(why, gate.start))
        elif why == OF_SOURCE and self._many_of_source.now():
            self.emit(LimitReached(why, gate.per_source, f"host {source_of(peer.host)}"))
        return True

    def _handshakes(self) -> Iterator[Handshake]:
        """The clients that have not made their request."""
        for session in self.sessions.values():
            host = session.peer.host
            if session.requested is None and not isinstance(host, str):
                yield session.opened, host, session.id

    def _make_room(self) -> None:
        """Cut slow handshakes, as long as there is no place for anybody else."""
        while len(self.sessions) >= self.max_sessions:
            for number in self.gate.crowding():
                self.cut(self.sessions[number], "crowded_out")
            gevent.sleep(LOOK_EVERY)

    def _is_full(self) -> bool:
        if len(self.sessions) < self.max_sessions:
            return False
        if self._ceiling_met.now():
            self.emit(LimitReached("sessions", self.max_sessions))
        if not self._room_maker:
            self._room_maker = gevent.spawn(self._make_room)
        return True

    def _accept_failed(self, error: OSError, seconds: float) -> None:
        if self._accept_failures.now():
            pauses = self._accept_failures.taken()
            self.emit(AcceptPaused(error.strerror or str(error), pauses, seconds))

    def _reap(self) -> None:
        """Cut sessions that have been silent for too long.

        A session's octets, and a UDP association's datagrams, are counted anyway; whoever has the
        same count as when it was looked at ``idle`` seconds ago has been idle.  So a session pays
        for no timer and no clock.
        """
        while True:
            timeouts = self.policy.timeouts
            shortest = min(timeouts.idle, timeouts.half_close, timeouts.udp)
            gevent.sleep(max(0.02, min(5.0, shortest / 10)))
            self.gate.sweep()
            now = time.monotonic()
            before, seen = self._seen, dict[int, tuple[int, float]]()
            self._seen = seen
            for session in list(self.sessions.values()):
                if not session.replied:
                    continue
                meter, timeouts = session.meter, session.policy.timeouts
                octets = meter.up + meter.down + meter.datagrams
                known = before.get(session.id)
                if known is None:
                    keepalive(session.target)
                if known is None or known[0] != octets:
                    seen[session.id] = (octets, now)
                    continue
                seen[session.id] = known
                silence = now - known[1]
                if session.command == Cmd.UDP_ASSOCIATE:
                    if silence >= timeouts.udp:
                        self.cut(session, "udp_idle")
                elif silence >= timeouts.idle:
                    self.cut(session, "idle")
                elif meter.half_closed and silence >= timeouts.half_close:
                    self.cut(session, "half_close_idle")


class _Seldom:
    """Says yes at most once in ``seconds``, and counts how often it was asked."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._last = float("-inf")
        self._asked = 0

    def now(self) -> bool:
        self._asked += 1
        if time.monotonic() - self._last < self.seconds:
            return False
        self._last = time.monotonic()
        return True

    def taken(self) -> int:
        """How often it was asked since this was last called."""
        asked, self._asked = self._asked, 0
        return asked
