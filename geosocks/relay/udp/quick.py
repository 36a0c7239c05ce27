"""What of an association goes without Python, where ``in_c.datagrams`` has been compiled.

What an association has found out about a destination is told to ``datagrams``, which from then on
passes on batches by itself, and gives back whatever is not so simple, with all that came after it.

It knows no more than it was told, and may forget any of it at any time: then the association sees
to the datagram, and tells it again.  What the association forgets or changes has to be taken back.
"""

from _socket import socket as RawSocket
from typing import Any

from geosocks.in_c import compiled
from geosocks.relay.udp.sockets import SockAddr
from geosocks.relay.udp.traffic import Traffic
from geosocks.relay.way import Meter

_datagrams: Any = compiled("datagrams")


class Quick:
    """One association's; owned by it."""

    def __init__(self, inside: RawSocket, traffic: Traffic, meter: Meter) -> None:
        self._inside = inside
        self._traffic = traffic
        self._meter = meter
        self._datagrams: Any = None
        """Made when there is something to tell: many an association has one datagram only."""

        self.is_told = False
        """There is something to pass on by itself."""

    def lead(
        self, client: SockAddr, destination: bytes, sock: RawSocket, to: SockAddr, asked: float
    ) -> None:
        """From now on send what has ``destination`` from ``sock`` to ``to``, which was ``asked``
        then."""
        if self._datagrams is None:
            self._datagrams = _datagrams.Datagrams(self._inside.fileno(), client)
            self.is_told = True
        self._datagrams.ask(to[0], asked)
        self._datagrams.lead(destination, sock.fileno(), to)

    def forget(self, destination: bytes) -> None:
        """A destination leads to where it did no longer."""
        if self._datagrams is not None:
            self._datagrams.forget(destination)

    def forget_all(self) -> None:
        """Nor does any."""
        if self._datagrams is not None:
            self._datagrams.forget_all()

    def unask(self, host: str) -> None:
        """``host`` may answer no longer."""
        if self._datagrams is not None:
            self._datagrams.unask(host)

    def up(self, since: float) -> list[tuple[bytes, SockAddr]]:
        """Take a batch from the client, pass on what is for hosts asked ``since`` then; the rest of
        it."""
        outcome: tuple[int, int, bool, list[tuple[bytes, SockAddr]]]
        outcome = self._datagrams.up(since)
        count, octets, failed, rest = outcome
        self._traffic.up += count
        self._traffic.failed += failed
        self._meter.up += octets
        self._meter.datagrams += count
        return rest

    def down(self, sock: RawSocket, since: float, from_any: bool) -> list[tuple[bytes, SockAddr]]:
        """Take a batch from ``sock``, pass on what is of hosts asked ``since`` then, or
        ``from_any``; the rest of it."""
        outcome: tuple[int, int, bool, list[tuple[bytes, SockAddr]]]
        outcome = self._datagrams.down(sock.fileno(), since, from_any)
        count, octets, failed, rest = outcome
        self._traffic.down += count
        self._traffic.failed += failed
        self._meter.down += octets
        self._meter.datagrams += count
        return rest


def quick_of(inside: RawSocket, traffic: Traffic, meter: Meter) -> Quick | None:
    """That of an association; None where it has not been compiled."""
    return None if _datagrams is None else Quick(inside, traffic, meter)
