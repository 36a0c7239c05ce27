"""The system calls of every session, without what Python does around each: see ``geosocks.calls``.

None of them can wait, as all sockets here are non-blocking; so the interpreter's lock is kept,
which costs less than to give it away and take it back.
"""

import os

import cython

if not cython.compiled:
    raise ImportError("it has not been compiled")

from cython.cimports.cpython.bytes import PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cython.cimports.cpython.exc import PyErr_SetFromErrno
from cython.cimports.cpython.unicode import PyUnicode_DecodeASCII
from cython.cimports.geosocks.in_c.linux import (
    AF_INET,
    AF_INET6,
    EINPROGRESS,
    IPPROTO_TCP,
    LITTLE,
    NAME,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    TCP_CA_NAME_MAX,
    TCP_CONGESTION,
    TCP_NODELAY,
    accept4,
    getsockname,
    getsockopt,
    htons,
    inet_ntop,
    inet_pton,
    ntohl,
    ntohs,
    setsockopt,
    sockaddr,
    sockaddr_in,
    sockaddr_in6,
    sockaddr_storage,
    socklen_t,
)
from cython.cimports.geosocks.in_c.linux import connect as _connect
from cython.cimports.geosocks.in_c.linux import shutdown as _shutdown
from cython.cimports.geosocks.in_c.linux import socket as _socket
from cython.cimports.libc.errno import EAGAIN, ECONNREFUSED, EINTR, EISCONN, errno
from cython.cimports.libc.string import memcmp, memset, strlen
from cython.cimports.posix.unistd import close as _close
from cython.cimports.posix.unistd import read as _read
from cython.cimports.posix.unistd import write as _write

_many = os.read
_of_any = os.write


def read(fd: cython.int, size: cython.Py_ssize_t) -> bytes:
    """As os.read."""
    room: cython.char[LITTLE]
    got: cython.Py_ssize_t
    if size > LITTLE:
        return _many(fd, size)
    while True:
        got = _read(fd, room, size)
        if got >= 0:
            return PyBytes_FromStringAndSize(room, got)
        if errno != EINTR:
            PyErr_SetFromErrno(OSError)


def write(fd: cython.int, data: object) -> cython.Py_ssize_t:
    """As os.write."""
    sent: cython.Py_ssize_t
    if type(data) is not bytes:
        return _of_any(fd, data)
    octets: bytes = data
    while True:
        sent = _write(fd, PyBytes_AS_STRING(octets), len(octets))
        if sent >= 0:
            return sent
        if errno != EINTR:
            PyErr_SetFromErrno(OSError)


def close(fd: cython.int) -> None:
    """As os.close."""
    if _close(fd) < 0:
        PyErr_SetFromErrno(OSError)


def shutdown(fd: cython.int, how: cython.int) -> None:
    """As a socket's shutdown."""
    if _shutdown(fd, how) < 0:
        PyErr_SetFromErrno(OSError)


def send_at_once(fd: cython.int) -> None:
    """Set TCP_NODELAY (tcp(7))."""
    yes: cython.int = 1
    if setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, cython.address(yes), cython.sizeof(yes)) < 0:
        PyErr_SetFromErrno(OSError)


@cython.cfunc
def _name(where: cython.pointer(sockaddr_storage)) -> tuple:
    """A socket's name as Python has it, of IPv4 or IPv6."""
    text: cython.char[NAME]
    size: cython.int
    four: cython.pointer(sockaddr_in)
    six: cython.pointer(sockaddr_in6)
    if where.ss_family == AF_INET:
        four = cython.cast(cython.pointer(sockaddr_in), where)
        size = _spell(cython.cast(cython.p_uchar, cython.address(four.sin_addr)), text)
        return (PyUnicode_DecodeASCII(text, size, cython.NULL), ntohs(four.sin_port))
    six = cython.cast(cython.pointer(sockaddr_in6), where)
    inet_ntop(AF_INET6, cython.address(six.sin6_addr), text, NAME)
    host = PyUnicode_DecodeASCII(text, strlen(text), cython.NULL)
    return (host, ntohs(six.sin6_port), ntohl(six.sin6_flowinfo), six.sin6_scope_id)


@cython.cfunc
@cython.exceptval(check=False)
def _spell(octets: cython.p_uchar, text: cython.p_char) -> cython.int:
    """Write an IPv4 address; returns its length.  inet_ntop does it by printf: ten times that."""
    size: cython.int = 0
    place: cython.int
    octet: cython.int
    for place in range(4):
        octet = octets[place]
        if octet >= 100:
            text[size] = 48 + octet // 100
            size += 1
        if octet >= 10:
            text[size] = 48 + octet // 10 % 10
            size += 1
        text[size] = 48 + octet % 10
        text[size + 1] = 46
        size += 2
    return size - 1


@cython.cclass
class Accept:
    """Called, it takes one connection of a listening socket of IPv4 or IPv6."""

    _fd: cython.int

    def __cinit__(self, fd: cython.int):
        self._fd = fd

    def __call__(self):
        """The descriptor, which does not block, and the peer's name; None where nobody waits.

        Raises:
            OSError: as accept(2).
        """
        where: sockaddr_storage
        size: socklen_t = cython.sizeof(where)
        fd: cython.int = accept4(
            self._fd,
            cython.cast(cython.pointer(sockaddr), cython.address(where)),
            cython.address(size),
            SOCK_NONBLOCK | SOCK_CLOEXEC,
        )
        if fd < 0:
            if errno == EAGAIN:
                return None
            PyErr_SetFromErrno(OSError)
        return (fd, _name(cython.address(where)))


paces = cython.declare(cython.int, -1)
"""Whether this host's sockets pace what they send, by default; -1 before that has been asked."""


@cython.cfunc
@cython.exceptval(check=False)
def _do_not_pace(fd: cython.int) -> cython.void:
    """As ``relay.pacing`` has it of what listens; what is unknown or unwanted stays as it is."""
    global paces
    name: cython.char[TCP_CA_NAME_MAX]
    size: socklen_t = cython.sizeof(name)
    if paces < 0:
        memset(name, 0, size)
        getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, cython.address(size))
        paces = not memcmp(name, cython.cast(cython.p_char, b"bbr"), 3)
    if paces:
        setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, cython.cast(cython.p_char, b"reno"), 4)


def connect(is_v4: cython.bint, host: str, port: cython.int) -> tuple:
    """A new TCP socket that connects to an address; one on loopback is never paced.

    Returns:
        Its descriptor, which does not block; 0 or the errno of connect(2), as of now; and its name,
        where it is connected.  One that was joined to itself is refused (ECONNREFUSED).

    Raises:
        OSError: as socket(2), or getsockname(2).
        ValueError: ``host`` is no address of that family.
    """
    to: sockaddr_storage
    ours: sockaddr_storage
    four: cython.pointer(sockaddr_in) = cython.cast(cython.pointer(sockaddr_in), cython.address(to))
    six: cython.pointer(sockaddr_in6) = cython.cast(
        cython.pointer(sockaddr_in6), cython.address(to)
    )
    spelt: bytes = host.encode("ascii")
    size: socklen_t
    read_as: cython.int
    memset(cython.address(to), 0, cython.sizeof(to))
    if is_v4:
        size = cython.sizeof(sockaddr_in)
        four.sin_family = AF_INET
        four.sin_port = htons(port)
        read_as = inet_pton(AF_INET, spelt, cython.address(four.sin_addr))
    else:
        size = cython.sizeof(sockaddr_in6)
        six.sin6_family = AF_INET6
        six.sin6_port = htons(port)
        read_as = inet_pton(AF_INET6, spelt, cython.address(six.sin6_addr))
    if read_as != 1:
        raise ValueError(f"{host} is no address of that family")
    kind: cython.int = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC
    fd: cython.int = _socket(to.ss_family, kind, 0)
    if fd < 0:
        PyErr_SetFromErrno(OSError)
    if (is_v4 and ntohl(four.sin_addr.s_addr) >> 24 == 127) or spelt == b"::1":
        _do_not_pace(fd)
    at: cython.pointer(sockaddr) = cython.cast(cython.pointer(sockaddr), cython.address(to))
    code: cython.int = 0 if _connect(fd, at, size) == 0 else errno
    if code == EINPROGRESS:  # a target on this host has answered by now
        code = 0 if _connect(fd, at, size) == 0 else errno
    if code == EISCONN:
        code = 0
    if code:
        return (fd, code, None)
    memset(cython.address(ours), 0, cython.sizeof(ours))
    length: socklen_t = cython.sizeof(ours)
    if (
        getsockname(
            fd,
            cython.cast(cython.pointer(sockaddr), cython.address(ours)),
            cython.address(length),
        )
        < 0
    ):
        try:
            PyErr_SetFromErrno(OSError)
        finally:
            _close(fd)
    if not memcmp(cython.address(ours), cython.address(to), cython.sizeof(ours)):
        return (fd, ECONNREFUSED, None)
    return (fd, 0, _name(cython.address(ours)))
