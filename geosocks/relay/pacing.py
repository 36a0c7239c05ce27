"""Bulk to a peer on this very host is sent as fast as it is taken.

BBR, the default of many servers, paces what it sends by timers.  Within a host there is no network
to be gentle to: there they cost up to half of the speed, and more CPU time than all the rest.  What
listens on loopback accepts no paced socket at all, and no target on loopback is dialled with one
(``do_not_pace``).  A socket that has begun with BBR keeps a clock for each segment for good; of
those only a way that is alone is better off without (``unpace``).

Knows sockets; which way is alone is known by ``coalescing``.
"""

import socket
from contextlib import suppress
from typing import Any, Final

from geosocks.stream import Connection

_IPPROTO_TCP: Final = int(socket.IPPROTO_TCP)
_CONGESTION: Final[int] = getattr(socket, "TCP_CONGESTION", 0)  # tcp(7), Linux only
_NAME: Final = 16
"""Octets of the longest name (TCP_CA_NAME_MAX, linux/tcp.h)."""

_PACES: Final = b"bbr"
"""What such algorithms' names begin with."""

_DOES_NOT: Final = b"reno"
"""One that every Linux has, and everybody may choose."""


def unpace(connection: Connection) -> None:
    """Send without pacing, if the peer is on this host; anything else is left as it is.

    Once paced, a socket keeps a clock for each segment, however early the next one may go.
    """
    if has_peer_within_host(connection):
        do_not_pace(connection.sock)


def do_not_pace(sock: Any) -> None:
    """Of a socket that listens, or is to connect: neither it nor what it accepts is ever paced."""
    if not _CONGESTION:
        return
    with suppress(OSError):  # it is no TCP socket
        if sock.getsockopt(_IPPROTO_TCP, _CONGESTION, _NAME).startswith(_PACES):
            sock.setsockopt(_IPPROTO_TCP, _CONGESTION, _DOES_NOT)


def has_peer_within_host(connection: Connection) -> bool:
    """Whether the other end is on this very host; one that has gone is not."""
    with suppress(OSError):
        return is_within_host(connection.getsockname(), connection.getpeername())
    return False


def is_within_host(ours: Any, theirs: Any) -> bool:
    """Whether two names of a socket, ours and the peer's, are of one host.

    Loopback, or an address that the host has made a connection to itself with.
    """
    if not isinstance(ours, tuple) or not isinstance(theirs, tuple):
        return False  # of a UNIX socket
    return ours[0] == theirs[0] or is_loopback(str(theirs[0]).removeprefix("::ffff:"))


def is_loopback(host: str) -> bool:
    """Whether an IP address, as text, is of loopback."""
    return host.startswith("127.") or host == "::1"
