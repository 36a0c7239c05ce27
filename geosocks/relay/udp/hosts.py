"""Who may answer the client, and what answers begin with."""

from ipaddress import ip_address
from typing import Final

from geosocks.relay.udp.quick import Quick
from geosocks.relay.udp.routes import MAX_ROUTES
from geosocks.relay.udp.sockets import SockAddr
from geosocks.wire.socks5 import Address, Datagram

ASK_AGAIN: Final = 1.0
"""Seconds in which it is not noted again that a host was asked."""

NEVER: Final = float("-inf")
"""When a host was asked that was not."""


class Hosts:
    """Those that the client has written to; owned by its association."""

    def __init__(self, quick: Quick | None) -> None:
        self._quick = quick
        self._asked: dict[str, float] = {}
        self._headers: dict[SockAddr, bytes] = {}

    def ask(self, host: str, now: float) -> None:
        """Let ``host`` answer from now on."""
        asked = self._asked
        if now - asked.get(host, NEVER) <= ASK_AGAIN:
            return
        asked.pop(host, None)  # so that the first of all is the one asked longest ago
        if len(asked) >= MAX_ROUTES:
            oldest = next(iter(asked))
            del asked[oldest]
            if self._quick is not None:
                self._quick.unask(oldest)
        asked[host] = now

    def asked(self, host: str) -> float:
        """When it was, in seconds of the monotonic clock."""
        return self._asked.get(host, NEVER)

    def header(self, source: SockAddr) -> bytes:
        """The UDP request header for what ``source`` sends: who it really is."""
        headers = self._headers
        header = headers.get(source)
        if header is None:
            if len(headers) >= MAX_ROUTES:
                del headers[next(iter(headers))]
            address = Address(ip_address(source[0].partition("%")[0]), source[1])
            header = headers[source] = Datagram(address, b"").encode()
        return header
