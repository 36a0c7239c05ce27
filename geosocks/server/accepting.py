"""Taking connections from a listening socket, in the hub, and having a session made of each."""

from collections.abc import Callable, Iterator
from typing import Any, Final

from geosocks.calls import Taken, close
from geosocks.entrance import Gate
from geosocks.events import FanOut
from geosocks.greenlets import GreenletPool
from geosocks.hubs import OfHub
from geosocks.policy import Policy
from geosocks.relay.pump import Pump
from geosocks.relay.udp import Associations
from geosocks.session import Session, address_of, serve_client
from geosocks.session.standing import Standing
from geosocks.stream import Connection
from geosocks.wire.address import Address


class Door:
    """Where a client comes in: a listener, to sessions."""

    __slots__ = ("name", "tls")

    def __init__(self, name: str, tls: bool) -> None:
        self.name: Final = name
        self.tls: Final = tls
        """Before the first octet of SOCKS there is a handshake of TLS."""


class Reception:
    """What the sessions of a server begin with, and how each begins.

    It stands apart from the server as it is compiled: a frame of Python below a session costs 4 KiB
    for as long as that goes on.
    """

    def __init__(
        self,
        policy: Policy,
        most: int,
        emit: FanOut,
        ids: Iterator[int],
        turns_away: Callable[[Address, Door], bool],
        ended: Callable[[bool], None],
    ) -> None:
        """For up to ``most`` sessions at a time, with ``ids``.

        ``turns_away`` is asked, of a peer and its door, where there are many handshakes or bad
        sources.  ``ended`` is told of each end after which there are no sessions (False), or one
        place, where there was none (True).
        """
        self._standing = Standing(policy)
        self.most = most
        self.sessions: dict[int, Session] = {}
        self.gate: Gate | None = None
        self.pump: Pump | None = None
        self.own_ports: frozenset[int] = frozenset()
        self.associations = Associations()
        self._emit = emit
        self._next_id: Callable[[], int] = ids.__next__
        self._turns_away = turns_away
        self._ended = ended

    @property
    def policy(self) -> Policy:
        """What the next sessions may ask."""
        return self._standing.policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        self._standing = Standing(policy)

    def is_full(self) -> bool:
        """Whether there is no place left."""
        return len(self.sessions) >= self.most

    def serve(self, client: Connection, name: Any, door: Door) -> None:
        """Serve one client, whose socket has that ``name``; in its own greenlet."""
        standing, gate, pump, sessions = self._standing, self.gate, self.pump, self.sessions
        assert gate is not None
        assert pump is not None
        peer = address_of(name)
        if gate.entrance is not standing.entrance:
            gate.adopt(standing.entrance)
        if (gate.handshakes >= gate.watch or gate.alert) and self._turns_away(peer, door):
            client.close()
            return
        try:
            serve_client(
                sessions,
                self._next_id(),
                client,
                peer,
                door.name,
                door.tls,
                standing,
                pump,
                self._emit,
                gate,
                self.own_ports,
                self.associations,
            )
        except BaseException:  # before there was a session that closes it
            client.close()
            raise
        finally:
            was_full = len(sessions) + 1 >= self.most  # there was no place but its own
            if was_full or not sessions:
                self._ended(was_full)


def accept_waiting(
    accept: Callable[[], Taken | None],
    kind: tuple[int, int, int],
    most: int,
    is_full: Callable[[], bool],
    greenlets: GreenletPool,
    reception: Reception,
    door: Door,
    here: OfHub,
) -> OSError | None:
    """Accept up to ``most`` connections, as long as there are any, and have each served.

    ``accept`` is as ``geosocks.calls.accepting`` makes it, and ``kind`` are family, type and
    protocol of the sockets.  Each is served in a greenlet of its own.  ``is_full`` is told, and has
    the last word, when the reception is.

    Returns accept(2)'s error, if it was one that ends this.  What is one client's trouble, such as
    a connection that was reset before we took it (ECONNABORTED), is nobody else's (accept(2),
    "Error handling"): it is returned, too, and the next event goes on from there.
    """
    serve = reception.serve
    while True:
        try:
            taken = accept()
        except OSError as error:
            return error
        if taken is None:
            return None
        fd, address = taken
        try:
            connection = Connection(None, fd, kind, here)
        except BaseException:
            close(fd)
            raise
        greenlets.run(serve, connection, address, door)
        most -= 1
        if most <= 0 or (reception.is_full() and is_full()):
            return None
