"""connect(2) to one address, without blocking the hub."""

import errno
import os
import socket as stdlib_socket  # constants
from _socket import socket as RawSocket
from contextlib import suppress
from typing import Final

from geosocks.stream import Connection

# Looking these up in their modules costs as much as a small system call.
_Socket: Final = RawSocket
_EINPROGRESS: Final = errno.EINPROGRESS
_EALREADY: Final = errno.EALREADY
_EINTR: Final = errno.EINTR
_EISCONN: Final = errno.EISCONN
_IPPROTO_TCP: Final = stdlib_socket.IPPROTO_TCP
_TCP_NODELAY: Final = stdlib_socket.TCP_NODELAY
_AF_INET: Final = int(stdlib_socket.AF_INET)
_AF_INET6: Final = int(stdlib_socket.AF_INET6)
_NONBLOCK: Final[int] = getattr(stdlib_socket, "SOCK_NONBLOCK", 0)  # 0 where there is none
_TCP: Final = stdlib_socket.SOCK_STREAM | _NONBLOCK
_BIND_ADDRESS_NO_PORT: Final = 24  # linux/in.h; the socket module does not name it


def dial(is_v4: bool, address: tuple[str, int], source: str | None) -> Connection:
    """Connect to ``address``, from ``source`` where there is one; the caller closes what it gets.

    Raises:
        OSError: as connect(2), or ECONNREFUSED when the kernel joined the socket to itself.
    """
    sock = _Socket(_AF_INET if is_v4 else _AF_INET6, _TCP)
    if not _NONBLOCK:
        sock.setblocking(False)
    connection = Connection(sock)
    try:
        if source is not None:
            # The port is chosen at connect, when the kernel knows the whole four-tuple: the
            # same source port can serve many targets (ip(7), IP_BIND_ADDRESS_NO_PORT).
            with suppress(OSError):  # Linux only
                sock.setsockopt(stdlib_socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
            sock.bind((source, 0))
        _connect(connection, address)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(connection: Connection, address: tuple[str, int]) -> None:
    sock = connection.sock
    code = sock.connect_ex(address)
    if code == _EINPROGRESS:
        code = sock.connect_ex(address)  # a target on this host has answered by now
    while code in (_EINPROGRESS, _EALREADY, _EINTR):
        connection.wait_writable()
        code = sock.connect_ex(address)  # asks how it went: 0, EISCONN or the error
    if code and code != _EISCONN:
        raise OSError(code, os.strerror(code))
    # Dialling a port of this host from which outgoing connections are made can meet itself
    # (simultaneous open): nobody listens there.
    connection.remote = address
    if connection.getsockname()[:2] == address:
        raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    sock.setsockopt(_IPPROTO_TCP, _TCP_NODELAY, 1)
