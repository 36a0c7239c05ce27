"""Datagrams of UDP associations, passed on in batches (RFC 1928, section 7).

::

    client  <- RSV, FRAG, ATYP, ADDR, PORT, DATA ->  inside |association| outside  <- DATA ->  hosts

What it saves is all that Python does about a recvfrom(2) and a sendto(2), and most of their calls.
It passes on what needs no thought: from the client to a destination that it was told of, and from a
host that was asked of late to the client.  From the first datagram on with which it is otherwise,
the rest of a batch is the caller's, in its order.  Who is told of what, and when it is forgotten,
is known by ``relay.udp.quick``.
"""

import cython

if not cython.compiled:
    raise ImportError("it has not been compiled")

from cython.cimports.cpython.bytes import PyBytes_AS_STRING
from cython.cimports.geosocks.in_c.linux import (
    AF_INET,
    AF_INET6,
    ARENA,
    BATCH,
    HEAD,
    LENGTH,
    MSG_DONTWAIT,
    STRIDE,
    Name,
    htonl,
    htons,
    inet_ntop,
    inet_pton,
    iovec,
    mmsghdr,
    ntohl,
    ntohs,
    recvmmsg,
    sendmmsg,
    sockaddr_in,
    sockaddr_in6,
)
from cython.cimports.geosocks.in_c.table import Table
from cython.cimports.libc.errno import EAGAIN, EINTR, errno
from cython.cimports.libc.string import memcmp, memcpy, memset

# One of each for all associations of the process: whoever uses them keeps the GIL from recvmmsg(2)
# to the last look at them, and makes no object meanwhile that could set off the garbage collector.
# What no datagram has come to yet takes no memory.
_arena = cython.declare(cython.uchar[ARENA])
_names = cython.declare(Name[BATCH])
_came = cython.declare(mmsghdr[BATCH])
_came_in = cython.declare(iovec[BATCH])
_goes = cython.declare(mmsghdr[BATCH])
_goes_from = cython.declare(iovec[BATCH])


@cython.cfunc
@cython.exceptval(check=False)
def _lay_out() -> cython.void:
    """Say once where datagrams go, and where they are to be taken from."""
    at: cython.int
    for at in range(BATCH):
        _came_in[at].iov_base = cython.address(_arena[at * STRIDE + HEAD])
        _came_in[at].iov_len = LENGTH
        _came[at].msg_hdr.msg_name = cython.address(_names[at])
        _came[at].msg_hdr.msg_iov = cython.address(_came_in[at])
        _came[at].msg_hdr.msg_iovlen = 1
        _goes[at].msg_hdr.msg_iov = cython.address(_goes_from[at])
        _goes[at].msg_hdr.msg_iovlen = 1


_lay_out()


@cython.cfunc
@cython.exceptval(check=False)
def _receive(fd: cython.int) -> cython.int:
    """How many came; -1 and errno where none did."""
    at: cython.int
    for at in range(BATCH):
        _came[at].msg_hdr.msg_namelen = cython.sizeof(Name)
    return recvmmsg(fd, _came, BATCH, MSG_DONTWAIT, cython.NULL)


@cython.cfunc
@cython.exceptval(check=False)
def _size_of_header(at: cython.int) -> cython.int:
    """Octets of the header of what came; 0 where it is none, or a fragment's."""
    octets: cython.p_uchar = cython.address(_arena[at * STRIDE + HEAD])
    size: cython.int = 0  # as ``wire.socks5.udp_header_size`` has it
    if _came[at].msg_len >= 5 and octets[0] == octets[1] == octets[2] == 0:
        if octets[3] == 1:
            size = 10
        elif octets[3] == 4:
            size = 22
        elif octets[3] == 3 and octets[4]:
            size = 7 + octets[4]
    return size if _came[at].msg_len >= cython.cast(cython.uint, size) else 0


@cython.cfunc
def _rest(rest: list, first: cython.int, count: cython.int) -> list:
    """What came from ``first`` on, as (datagram, source)."""
    at: cython.int
    for at in range(first, count):
        octets: cython.p_char = cython.cast(
            cython.p_char, cython.address(_arena[at * STRIDE + HEAD])
        )
        rest.append(octets[: _came[at].msg_len])
        octets = cython.cast(cython.p_char, cython.address(_names[at]))
        rest.append(octets[: cython.sizeof(Name)])
    # Not before: a tuple may set off the garbage collector.
    return [(rest[at], _as_tuple(rest[at + 1])) for at in range(0, len(rest), 2)]


@cython.cfunc
def _as_tuple(octets: bytes) -> tuple:
    """A name as Python has it."""
    name: Name
    text: cython.char[64]
    memcpy(cython.address(name), PyBytes_AS_STRING(octets), cython.sizeof(Name))
    if name.v4.sin_family == AF_INET:
        inet_ntop(AF_INET, cython.address(name.v4.sin_addr), text, 64)
        return cython.cast(bytes, text).decode(), ntohs(name.v4.sin_port)
    inet_ntop(AF_INET6, cython.address(name.v6.sin6_addr), text, 64)
    host = cython.cast(bytes, text).decode()
    flow, scope = ntohl(name.v6.sin6_flowinfo), name.v6.sin6_scope_id
    return host, ntohs(name.v6.sin6_port), flow, scope


@cython.cfunc
def _name_of(there: tuple, name: cython.pointer[Name]) -> cython.uint:
    """Have ``name`` be as the kernel has it; its size."""
    octets: bytes = _octets_of(there[0])
    memset(name, 0, cython.sizeof(Name))
    if len(octets) == 4:
        name.v4.sin_family = AF_INET
        name.v4.sin_port = htons(there[1])
        memcpy(cython.address(name.v4.sin_addr), PyBytes_AS_STRING(octets), 4)
        return cython.sizeof(sockaddr_in)
    name.v6.sin6_family = AF_INET6
    name.v6.sin6_port = htons(there[1])
    memcpy(name.v6.sin6_addr.s6_addr, PyBytes_AS_STRING(octets), 16)
    if len(there) == 4:
        name.v6.sin6_flowinfo, name.v6.sin6_scope_id = htonl(there[2]), there[3]
    return cython.sizeof(sockaddr_in6)


@cython.cfunc
def _octets_of(host: str) -> bytes:
    """An IP address, as it stands in a header."""
    octets: cython.char[16]
    text: bytes = host.encode()
    if inet_pton(AF_INET, text, octets) == 1:
        return octets[:4]
    if inet_pton(AF_INET6, text, octets) == 1:
        return octets[:16]
    raise ValueError(f"{host} is no IP address")


@cython.cclass
class Datagrams:
    """One association's, whose client is known."""

    _inside: cython.int
    _client: Name
    _client_size: cython.uint
    _routes: Table
    _hosts: Table

    def __init__(self, inside: int, client: tuple):
        """``inside`` is the descriptor that ``client`` writes to."""
        self._inside = inside
        self._client_size = _name_of(client, cython.address(self._client))
        self._routes = Table()
        self._hosts = Table()

    def lead(self, destination: bytes, fd: int, to: tuple):
        """Send what has ``destination`` (ATYP, DST.ADDR, DST.PORT) from ``fd`` to ``to``."""
        # All of it is C's before there is a place for it: what fails leaves none half made.
        outside: cython.int = fd
        name: Name
        size: cython.uint = _name_of(to, cython.address(name))
        place = self._routes.put(destination)
        place.fd, place.name, place.name_size = outside, name, size

    def forget(self, destination: bytes):
        """Leave what has ``destination`` to the caller."""
        self._routes.drop(destination)

    def forget_all(self):
        """Leave all that the client sends to the caller."""
        self._routes.clear()

    def ask(self, host: str, now: float):
        """``host`` was asked now, in seconds of the caller's clock."""
        asked: cython.double = now
        self._hosts.put(_octets_of(host)).asked = asked

    def unask(self, host: str):
        """``host`` is one that was not."""
        self._hosts.drop(_octets_of(host))

    def up(self, since: float) -> tuple:
        """Take a batch from the client, and pass on what goes to hosts asked ``since`` then.

        Returns:
            How many were passed on, and octets of their DATA; whether recvmmsg(2) failed; and
            (datagram, source) of each that is the caller's.
        """
        rest: list = []
        earliest: cython.double = since
        octets: cython.longlong = 0
        done: cython.int = 0
        count: cython.int = _receive(self._inside)
        if count < 0:
            return 0, 0, errno != EAGAIN and errno != EINTR, rest
        at: cython.int
        until: cython.int
        while done < count:
            fd: cython.int = self._led(done, earliest)
            if fd < 0:
                break
            until = done + 1
            while until < count and self._led(until, earliest) == fd:
                until += 1
            sent: cython.int = sendmmsg(fd, cython.address(_goes[done]), until - done, MSG_DONTWAIT)
            for at in range(sent):
                octets += _goes[done + at].msg_len
            done += max(sent, 0)
            if done < until:
                break
        return done, octets, False, _rest(rest, done, count)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _led(self, at: cython.int, since: cython.double) -> cython.int:
        """Make ready what came, without its header; the descriptor to send it from, -1 for none."""
        size: cython.int = _size_of_header(at)
        if (
            not size
            or _came[at].msg_hdr.msg_namelen != self._client_size
            or memcmp(cython.address(_names[at]), cython.address(self._client), self._client_size)
        ):
            return -1
        octets: cython.p_uchar = cython.address(_arena[at * STRIDE + HEAD])
        way = self._routes.find(octets + 3, size - 3)
        if not way or not self._is_asked(cython.address(way.name), since):
            return -1
        _goes[at].msg_hdr.msg_name = cython.address(way.name)
        _goes[at].msg_hdr.msg_namelen = way.name_size
        _goes_from[at].iov_base = octets + size
        _goes_from[at].iov_len = _came[at].msg_len - size
        return way.fd

    @cython.cfunc
    @cython.exceptval(check=False)
    def _is_asked(self, name: cython.pointer[Name], since: cython.double) -> cython.bint:
        if name.v4.sin_family == AF_INET:
            host = self._hosts.find(
                cython.cast(cython.p_uchar, cython.address(name.v4.sin_addr)), 4
            )
        else:
            host = self._hosts.find(name.v6.sin6_addr.s6_addr, 16)
        return host != cython.NULL and host.asked >= since

    def down(self, outside: int, since: float, from_any: bool) -> tuple:
        """Take a batch from ``outside``, and pass on what is of hosts asked ``since`` then.

        With ``from_any`` it may be of others, too.  Returns the same as ``up``.
        """
        rest: list = []
        earliest: cython.double = since
        anyone: cython.bint = from_any
        octets: cython.longlong = 0
        ready: cython.int = 0
        count: cython.int = _receive(outside)
        if count < 0:
            return 0, 0, errno != EAGAIN and errno != EINTR, rest
        at: cython.int
        while ready < count:
            if not anyone and not self._is_asked(cython.address(_names[ready]), earliest):
                break
            self._add_header(ready)
            ready += 1
        sent: cython.int = 0
        if ready:
            sent = max(sendmmsg(self._inside, _goes, ready, MSG_DONTWAIT), 0)
        for at in range(sent):
            octets += _came[at].msg_len
        return sent, octets, False, _rest(rest, sent, count)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _add_header(self, at: cython.int) -> cython.void:
        """Make ready what came, for the client: with a header that says from whom."""
        data: cython.p_uchar = cython.address(_arena[at * STRIDE + HEAD])
        name: cython.pointer[Name] = cython.address(_names[at])
        size: cython.int
        if name.v4.sin_family == AF_INET:
            size = 10
            memcpy(data - 6, cython.address(name.v4.sin_addr), 4)
            memcpy(data - 2, cython.address(name.v4.sin_port), 2)
        else:
            size = 22
            memcpy(data - 18, name.v6.sin6_addr.s6_addr, 16)
            memcpy(data - 2, cython.address(name.v6.sin6_port), 2)
        memset(data - size, 0, 3)
        data[3 - size] = 1 if size == 10 else 4
        _goes[at].msg_hdr.msg_name = cython.address(self._client)
        _goes[at].msg_hdr.msg_namelen = self._client_size
        _goes_from[at].iov_base = data - size
        _goes_from[at].iov_len = size + _came[at].msg_len
