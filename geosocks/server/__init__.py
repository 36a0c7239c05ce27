"""The server: listeners, the live sessions, the policy in force, drain.

Lives in the hub of whoever starts it.  Never patches, never installs a signal handler, never
configures logging, never exits: that is the program's around it.
"""

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import gevent
import gevent.event

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
    open_listener,
    refuse_bare_tls,
    refuse_open_proxy,
)
from geosocks.policy import Policy
from geosocks.relay.pump import Pump
from geosocks.server.accepting import Door, Reception
from geosocks.server.descriptors import (
    DESCRIPTORS_EACH,
    RESERVED_DESCRIPTORS,
    descriptor_limit,
    max_sessions_for,
)
from geosocks.server.listener import Listener
from geosocks.server.reaper import Reaper
from geosocks.server.seldom import Seldom
from geosocks.session import Session, SessionCut
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
        self.emit = FanOut(observers)
        self.max_sessions = max_sessions or max_sessions_for(descriptor_limit())
        self.reception = Reception(
            policy or Policy(),
            self.max_sessions,
            self.emit,
            itertools.count(first_id, id_step),
            self._turns_away,
            self._ended,
        )
        self.sessions = self.reception.sessions
        """The live sessions by id."""

        self._listen = tuple(map(as_listen, listen))
        self._allow_open = allow_open
        self._shares_sockets = shares_sockets
        self._listeners: list[Listener] = []
        self.listening: tuple[Listen, ...] = ()
        """Where it listens, each with its address as the kernel tells and its name."""

        self._kept_from: frozenset[int] = frozenset()
        self._pump: Pump | None = None
        self._empty = gevent.event.Event()
        self._stopped = gevent.event.Event()
        self._running = False
        self._accept_failures = Seldom(10.0)
        self._ceiling_met = Seldom(10.0)
        self._many_handshakes = Seldom(10.0)
        self._many_of_source = Seldom(10.0)
        self.gate = Gate(self.max_sessions, self._handshakes)
        """Who is let in to begin a handshake."""

        self.reception.gate = self.gate

        self._reaper = Reaper(self.sessions, self.gate, lambda: self.policy.timeouts, self.cut)
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
        self._pump = self.reception.pump = Pump(greenlets=greenlets)
        self.reception.own_ports = self._kept_from.union(
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
        self._reaper.start()
        return self

    @property
    def policy(self) -> Policy:
        """What a session may ask; may be assigned at any time."""
        return self.reception.policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        self.reception.policy = policy

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
        self.reception.own_ports |= {port}

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
        self._reaper.stop()
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
        return self._reaper.silence(session, now)

    def _throw(self, session: Session, cut: SessionCut) -> None:
        # Its greenlet may serve another one by now; and once is enough.
        if self.sessions.get(session.id) is session and not session.cut:
            session.cut = True
            session.greenlet.throw(cut)

    def _ended(self, was_full: bool) -> None:
        """A session has ended that a drain waits for, or clients for whom there was no place."""
        if was_full:
            for listener in self._listeners:
                listener.resume()
        if not self.sessions:
            self._empty.set()

    def _turns_away(self, peer: Address, door: Door) -> bool:
        """Whether a connection is not to be served, as there are too many or its source is bad."""
        gate = self.gate
        assert not isinstance(peer.host, str)
        why = gate.refuses(peer.host)
        if why is None:
            return False
        if self.emit.audience[ConnectionRefused]:
            self.emit(ConnectionRefused(peer, door.name, why))
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
