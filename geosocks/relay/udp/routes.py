"""Where a client's datagrams go: asked once for each destination, and remembered.

A name is looked up in a greenlet of its own, so that nothing waits for it but the datagrams to that
name.
"""

import time
from _socket import socket as RawSocket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from geosocks.errors import RequestDenied, RequestFailed
from geosocks.relay.target import Family
from geosocks.relay.udp.onward import Onward
from geosocks.relay.udp.quick import Quick
from geosocks.relay.udp.sockets import SockAddr, Version, kernel_name, open_outside
from geosocks.relay.udp.traffic import Traffic
from geosocks.wire.socks5 import Address, Datagram, IPAddress

MAX_ROUTES: Final = 1024
"""Destinations and sources of an association that are remembered; beyond, the oldest goes."""

FAILED_FOR: Final = 5.0
"""Seconds that a name without an address is not looked up again."""

MAX_LOOKUPS: Final = 8
"""Names of an association that are looked up at a time."""

MAX_WAITING: Final = 16
"""Datagrams that wait for one name."""

MAX_WAITING_OCTETS: Final = 128 * 1024
"""And octets of them, for all names of an association."""

_VERSIONS: Final[dict[Family, tuple[Version, ...]]] = {
    "any": (4, 6),
    "ipv4": (4,),
    "ipv6": (6,),
}

BIT: Final[dict[Version, int]] = {4: 1, 6: 2}
"""What wakes who reads the outside sockets, by IP version."""

Judge = Callable[[Address], tuple[IPAddress, ...] | None]
"""Where may a datagram to this destination go, and in which order to try?  Blocks for a name.

None: onward, to the upstream as it is.

Raises RequestDenied, or another RequestFailed when it is a name without an address.
"""


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


class Outside:
    """Sockets towards targets, one for each IP version, made when first needed."""

    def __init__(
        self,
        source: Mapping[Version, str],
        family: Family,
        hear: Callable[[RawSocket, int], None],
    ) -> None:
        """``source`` is the address to send from, by IP version; ``family`` leaves the addresses of
        the other one out.  ``hear`` is told of each new socket, and its ``BIT``."""
        self.source = dict(source)
        self.versions = _VERSIONS[family]
        self._hear = hear
        self._sockets: dict[Version, RawSocket] = {}

    def aim(self, route: Route, at: tuple[SockAddr, ...]) -> bool:
        """Have ``route`` lead to the first of ``at``; False where no socket can be had for it."""
        version: Version = 6 if ":" in at[0][0] else 4
        sock = self._sockets.get(version)
        if sock is None:
            try:
                sock = open_outside(version, self.source.get(version))
            except OSError:
                return False
            self._sockets[version] = sock
            self._hear(sock, BIT[version])
        route.sock, route.to, route.others = sock, at[0], at[1:]
        return True

    def ready(self, events: int) -> list[RawSocket]:
        """Those that ``events`` are about."""
        return [sock for version, sock in self._sockets.items() if events & BIT[version]]

    def close(self) -> None:
        """Close them."""
        for sock in self._sockets.values():
            sock.close()


class Routes:
    """The routes of one association; owned by its greenlet."""

    def __init__(
        self,
        judge: Judge,
        outside: Outside,
        onward: Onward | None,
        traffic: Traffic,
        spawn: Callable[..., None],
        deliver: Callable[[Route, bytes, float], None],
        quick: Quick | None,
    ) -> None:
        """``judge`` is asked, and ``deliver`` gets each route with its DATA; ``spawn`` runs a
        look-up in a greenlet that ends with the association.  ``quick`` hears what is forgotten."""
        self.known: dict[bytes, Route] = {}
        """By ATYP, DST.ADDR and DST.PORT, as octets."""

        self._judge = judge
        self._outside = outside
        self._onward = onward
        self._traffic = traffic
        self._spawn = spawn
        self._deliver = deliver
        self._quick = quick
        self._waiting: dict[bytes, Waiting] = {}
        self._waiting_octets = 0

    def find(self, destination: bytes, data: bytes, now: float) -> None:
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
                self._traffic.overflow += 1
                return
            waiting = self._waiting[destination] = Waiting()
            self._spawn(self._look_up, destination, asked, waiting)
        room = MAX_WAITING_OCTETS - self._waiting_octets
        if len(waiting.data) >= MAX_WAITING or len(data) > room:
            self._traffic.overflow += 1
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
            (kernel_name(address), asked.port)
            for address in addresses
            if address.version in self._outside.versions
        )
        if not usable:
            return Route(refusal="unresolved")
        route = Route()
        if not self._outside.aim(route, usable):
            return Route(refusal="failed", until=now)  # no descriptor is left: perhaps next time
        return route

    def _remember(self, destination: bytes, route: Route) -> None:
        routes = self.known
        # Only a refusal is found anew, of which ``quick`` knows nothing.
        routes.pop(destination, None)
        if len(routes) >= MAX_ROUTES:
            oldest = next(iter(routes))
            del routes[oldest]
            if self._quick is not None:
                self._quick.forget(oldest)
        routes[destination] = route
