"""connect(2) to one address, without blocking the hub."""

import errno
import os
import socket as stdlib_socket  # constants
import sys
from _socket import socket as RawSocket
from contextlib import suppress
from typing import Final

from geosocks.calls import connect
from geosocks.deadlines import Deadline
from geosocks.relay.pacing import do_not_pace, is_loopback
from geosocks.stream import Connection

# Looking these up in their modules costs as much as a small system call.
_at_once: Final = connect
_Socket: Final = RawSocket
_EINPROGRESS: Final = errno.EINPROGRESS
_EALREADY: Final = errno.EALREADY
_EINTR: Final = errno.EINTR
_EISCONN: Final = errno.EISCONN
_AF_INET: Final = int(stdlib_socket.AF_INET)
_AF_INET6: Final = int(stdlib_socket.AF_INET6)
_NONBLOCK: Final[int] = getattr(stdlib_socket, "SOCK_NONBLOCK", 0)  # 0 where there is none
_TCP: Final = stdlib_socket.SOCK_STREAM | _NONBLOCK
_KIND_V4: Final = (_AF_INET, int(stdlib_socket.SOCK_STREAM), 0)
_KIND_V6: Final = (_AF_INET6, int(stdlib_socket.SOCK_STREAM), 0)
_BIND_ADDRESS_NO_PORT: Final = 24  # linux/in.h; the socket module does not name it

_HOLD_BACK: Final = 2 if sys.platform == "linux" else 1
"""Few octets that the peer has not confirmed hold back others, and only on Linux these only."""


class NoAnswer(Exception):
    """There was none within ``seconds``."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


def dial(
    is_v4: bool, address: tuple[str, int], source: str | None, seconds: float | None = None
) -> Connection:
    """Connect to ``address``, from ``source`` where there is one; the caller closes what it gets.

    A connection to loopback is not paced (``relay.pacing``).  ``seconds`` are for the answer, where
    that has to be waited for.

    Raises:
        OSError: as connect(2), or ECONNREFUSED when the kernel joined the socket to itself.
        NoAnswer: there was none within ``seconds``.
    """
    if source is None and _at_once is not None:
        fd, code, local = _at_once(is_v4, address[0], address[1])
        connection = Connection(None, fd, _KIND_V4 if is_v4 else _KIND_V6)
        connection.local = local
    else:
        connection, code = _begin(is_v4, address, source)
    try:
        if connection.local is None:
            if seconds is None:
                _connect(connection, address, code)
            else:
                with Deadline(seconds, NoAnswer(seconds)):
                    _connect(connection, address, code)
    except BaseException:
        connection.close()
        raise
    connection.remote = address
    connection.hold_back = _HOLD_BACK
    return connection


def _begin(is_v4: bool, address: tuple[str, int], source: str | None) -> tuple[Connection, int]:
    """A socket that connects, and connect(2)'s errno so far."""
    sock = _Socket(_AF_INET if is_v4 else _AF_INET6, _TCP)
    try:
        if is_loopback(address[0]):
            do_not_pace(sock)
        if not _NONBLOCK:
            sock.setblocking(False)
        if source is not None:
            # The port is chosen at connect, when the kernel knows the whole four-tuple: the
            # same source port can serve many targets (ip(7), IP_BIND_ADDRESS_NO_PORT).
            with suppress(OSError):  # Linux only
                sock.setsockopt(stdlib_socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
            sock.bind((source, 0))
        code = sock.connect_ex(address)
        if code == _EINPROGRESS:
            code = sock.connect_ex(address)  # a target on this host has answered by now
    except BaseException:
        sock.close()
        raise
    return Connection(sock), code


def _connect(connection: Connection, address: tuple[str, int], code: int) -> None:
    sock = connection.sock
    while code in (_EINPROGRESS, _EALREADY, _EINTR):
        connection.wait_writable()
        code = sock.connect_ex(address)  # asks how it went: 0, EISCONN or the error
    if code and code != _EISCONN:
        raise OSError(code, os.strerror(code))
    # Dialling a port of this host from which outgoing connections are made can meet itself
    # (simultaneous open): nobody listens there.
    if connection.getsockname()[:2] == address:
        raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
