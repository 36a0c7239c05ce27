"""Bulk to and from a peer on this very host goes as fast as it is taken.

BBR, the default of many servers, paces what it sends by timers.  Within a host there is no network
to be gentle to: there they cost up to half of the speed, and more CPU time than all the rest.  What
listens on loopback accepts no paced socket at all, and no target on loopback is dialled with one
(``do_not_pace``).  A socket that has begun with BBR keeps a clock for each segment for good; of
those only a way that is alone is better off without (``unpace``).

What a peer has chosen for itself cannot be changed from here.  But one whose window is all but
taken up waits for our next read in place of its clock (``narrow``).

Knows sockets; which way is alone is known by ``coalescing``.
"""

import socket
from _socket import SO_RCVBUF, SOL_SOCKET
from _socket import socket as RawSocket
from collections.abc import Callable
from contextlib import closing, suppress
from functools import cache, partial
from typing import Any, Final

from geosocks.stream import Connection

_IPPROTO_TCP: Final = int(socket.IPPROTO_TCP)
_CONGESTION: Final[int] = getattr(socket, "TCP_CONGESTION", 0)  # tcp(7), Linux only
_WINDOW_CLAMP: Final[int] = getattr(socket, "TCP_WINDOW_CLAMP", 0)  # as well
_NAME: Final = 16
"""Octets of the longest name (TCP_CA_NAME_MAX, linux/tcp.h)."""

_PACES: Final = b"bbr"
"""What such algorithms' names begin with."""

_DOES_NOT: Final = b"reno"
"""One that every Linux has, and everybody may choose."""

NARROW: Final = 256 * 1024
"""Octets of a narrow receive buffer (SO_RCVBUF, which Linux doubles).  Neither 208 nor 320 KiB, nor
more, made anything faster."""


def unpace(connection: Connection) -> None:
    """Send without pacing, if the peer is on this host; anything else is left as it is.

    Once paced, a socket keeps a clock for each segment, however early the next one may go.
    """
    with suppress(OSError):  # it has gone
        if is_within_host(connection.getsockname(), connection.getpeername()):
            do_not_pace(connection.sock)


def do_not_pace(sock: Any) -> None:
    """Of a socket that listens, or is to connect: neither it nor what it accepts is ever paced."""
    with suppress(OSError):  # it is no TCP socket
        if _paces(sock):
            sock.setsockopt(_IPPROTO_TCP, _CONGESTION, _DOES_NOT)


def narrow(connection: Connection) -> Callable[[], None] | None:
    """Begin to keep the window small for good, if the peer is on this host and most likely paces.

    It then sends from where we read, on our processor in place of its own: a single stream was
    faster by a quarter, for up to twice the CPU time of ours.  From one that does not pace nothing
    is gained, so it, and any other, is left as it is.

    What has been promised room is dropped where there is none, and its sender waits for 200 ms.  So
    no more is promised from now on; what this returns is to be called when all of before has come,
    and the socket has just been read dry.
    """
    with suppress(OSError):  # it has gone
        within = is_within_host(connection.getsockname(), connection.getpeername())
        if within and _is_narrow_of_use():
            connection.sock.setsockopt(_IPPROTO_TCP, _WINDOW_CLAMP, NARROW)
            return partial(_cut, connection.sock)
    return None


def _cut(sock: Any) -> None:
    with suppress(OSError):  # it has gone
        sock.setsockopt(SOL_SOCKET, SO_RCVBUF, NARROW)


@cache
def _is_narrow_of_use() -> bool:
    """Whether whoever says nothing else paces here, and a buffer may be as large as that at all."""
    with closing(RawSocket()) as sock:
        if not _paces(sock):
            return False
        sock.setsockopt(SOL_SOCKET, SO_RCVBUF, NARROW)
        return (
            sock.getsockopt(SOL_SOCKET, SO_RCVBUF) >= 2 * NARROW
        )  # else net.core.rmem_max is less


def _paces(sock: Any) -> bool:
    name: bytes = sock.getsockopt(_IPPROTO_TCP, _CONGESTION, _NAME) if _CONGESTION else b""
    return name.startswith(_PACES)


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
