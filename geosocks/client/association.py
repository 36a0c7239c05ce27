"""UDP ASSOCIATE: datagrams by way of the server, as if it were not there (RFC 1928, section 7).

::

    caller  <- DATA ->  |Association|  <- header, DATA ->  the server's relay  <- DATA ->  hosts

The header, and under GSSAPI the encapsulation, are put on and taken off here.  The association
lives as long as the connection that asked for it, which a greenlet watches.
"""

import errno
import os
import socket as stdlib_socket  # constants
import time
from _socket import socket as RawSocket
from functools import lru_cache
from typing import Any, Final, Self

import gevent
import gevent.socket
from gevent.hub import get_hub

from geosocks.auth import Grant
from geosocks.client.address import SockAddr, address_of, destination, is_reachable
from geosocks.errors import GeosocksError, ProtocolError, RelayBroken
from geosocks.wire.socks5 import MAX_DATAGRAM, MAX_UDP_HEADER, Address, Datagram

SIZE: Final = 1 << 16
"""Octets received at a time: no datagram is longer."""

MAX_DATAGRAM_V6: Final = 65_527
"""Octets of the longest UDP payload over IPv6, whose header does not count (RFC 8200)."""

MAX_STRAY: Final = 64 * 1024
"""Octets on the control connection, on which the server has nothing left to say."""

TURN: Final = 64
"""Datagrams after which others get their turn."""

_READ: Final = 1
_HEADERS: Final = {4: 10, 6: 22}
_LOST: Final = frozenset((errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH))
"""errno by which an ICMP message tells of a datagram sent before."""


class Association:
    """A datagram socket at the server's end.

    ``relay`` is where its datagrams go: BND of the reply, which is ``told``, or the server's own
    address where that is none for us to reach.  ``method`` and ``grant`` tell how it was
    negotiated.  ``dropped`` counts the relay's datagrams that nobody gets to see: fragments, which
    we do not put together, and what does not unwrap or decode.  The kernel drops those from
    anywhere else.

    One greenlet may receive while others send.  The caller closes it.
    """

    def __init__(self, method: int, grant: Grant, told: Address, sock: RawSocket) -> None:
        """Go on from the reply that grants it, with ``sock`` of ``open_socket``, which is ours now.

        Raises:
            OSError: nothing can be sent to the relay.  Nothing is closed then.
        """
        control: Any = grant.stream
        server = control.getpeername()
        relay = (str(told.host), told.port)
        if not is_reachable(told, address_of(server)):
            relay = (server[0], told.port, *server[2:])
        self.relay = address_of(relay)
        self.told = told
        self.method = method
        self.grant = grant
        self.dropped = 0
        limit = MAX_DATAGRAM_V6 if ":" in str(self.relay.host) else MAX_DATAGRAM
        self._room = limit if grant.seal is None else grant.seal.room(limit)
        self._sock = _connected(sock, relay)
        self._timeout: float | None = None
        self._turn = 0
        self._over = ""  # why; empty while it lives
        self._readable: Any = get_hub().loop.io(self._sock.fileno(), _READ)
        self._watcher: Any = gevent.spawn(self._watch, control)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(relay={str(self.relay)!r})"

    def sendto(self, data: bytes, to: Address | tuple[str, int]) -> int:
        """Send one datagram to ``to``; a name is resolved by the server.  The count of ``data``.

        Raises:
            OSError: EMSGSIZE, ``data`` is longer than there is room for; or as send(2).
            RelayBroken: the association has ended.
            ValueError: ``to`` cannot be sent.
        """
        self._take_turns()
        self._check()
        datagram = b"".join((_header(to), data))
        if len(datagram) > self._room:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        seal = self.grant.seal
        self._send(datagram if seal is None else seal.wrap(datagram))
        return len(data)

    def recvfrom(self, size: int = SIZE) -> tuple[bytes, Address]:
        """The next datagram's DATA, cut to ``size`` octets, and who sent it to the server.

        Raises:
            TimeoutError: none came in time.
            RelayBroken: the association has ended.
        """
        end = None if self._timeout is None else time.monotonic() + self._timeout
        while True:
            datagram = self._opened(self._receive(end))
            if datagram is not None:
                return datagram.data[:size], datagram.destination
            self.dropped += 1
            if end is not None and time.monotonic() >= end:
                raise TimeoutError("timed out")

    def room(self, to: Address | tuple[str, int] | None = None) -> int:
        """Octets of DATA that a datagram to ``to`` can hold; without it, to anybody.

        A datagram socket's own, less the header (10 octets for IPv4, 262 for a name and 22 for
        IPv6, of which the RFC's 20 forget the port) and less what encapsulation adds.
        """
        host = "" if to is None else destination(to).host
        header = MAX_UDP_HEADER if isinstance(host, str) else _HEADERS[host.version]
        return max(0, self._room - header)

    def settimeout(self, seconds: float | None) -> None:
        """Let ``recvfrom`` wait for so long at most; None: for ever; 0: not at all."""
        if seconds is not None and seconds < 0:
            raise ValueError("a timeout below 0")
        self._timeout = seconds

    def gettimeout(self) -> float | None:
        """Seconds, or None."""
        return self._timeout

    def getsockname(self) -> SockAddr:
        """Where its datagrams leave from."""
        name: SockAddr = self._sock.getsockname()
        return name

    def fileno(self) -> int:
        """The descriptor; -1 when closed.  That it is readable does not mean there is a datagram
        for us."""
        return self._sock.fileno()

    def close(self) -> None:
        """End it; may be called again."""
        if self._sock.fileno() < 0:
            return
        self._over = self._over or "it was closed"
        waited_for = self._readable.active
        closed = OSError(errno.EBADF, os.strerror(errno.EBADF))
        get_hub().cancel_wait(self._readable, closed, True)
        self._watcher.kill()
        if waited_for:
            gevent.sleep(0)  # whoever waits has to have left before the descriptor goes
        self._sock.close()
        self.grant.stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _opened(self, octets: bytes) -> Datagram | None:
        """What a datagram from the relay says; None for one to drop."""
        seal = self.grant.seal
        try:
            datagram = Datagram.decode(octets if seal is None else seal.unwrap(octets))
        except ProtocolError:
            return None
        # "An implementation that does not support fragmentation MUST drop any datagram whose FRAG
        # field is other than X'00'" (section 7).
        return None if datagram.frag else datagram

    def _receive(self, end: float | None) -> bytes:
        """The next datagram's octets; ``end`` is when to give up."""
        while True:
            self._take_turns()
            self._check()
            try:
                return self._sock.recv(SIZE)
            except BlockingIOError:
                if self._timeout == 0:
                    raise
            except OSError as error:
                if error.errno not in _LOST:
                    raise
                continue
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError("timed out")
            gevent.socket.wait(self._readable, left, TimeoutError("timed out"))

    def _send(self, datagram: bytes) -> None:
        told = False
        while True:
            try:
                self._sock.send(datagram)
                return
            except BlockingIOError:
                gevent.socket.wait_write(self._sock.fileno())
            except OSError as error:
                if told or error.errno not in _LOST:
                    raise
                told = True  # of an earlier one; this one was not sent

    def _check(self) -> None:
        if self._sock.fileno() < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if self._over:
            raise RelayBroken(f"the association is over: {self._over}")

    def _take_turns(self) -> None:
        """Let others run now and then, the watcher among them: a flood never makes us wait."""
        self._turn += 1
        if self._turn >= TURN:
            self._turn = 0
            gevent.sleep(0)

    def _watch(self, control: Any) -> None:
        """Note the end of the control connection, which is the association's (section 6)."""
        self._over = _end_of(control)
        gevent.socket.cancel_wait(
            self._readable, RelayBroken(f"the association is over: {self._over}")
        )


def _end_of(control: Any) -> str:
    """Wait until ``control`` ends; how it did."""
    left = MAX_STRAY
    try:
        while data := control.recv(4096):
            left -= len(data)
            if left < 0:
                return "the server keeps sending on its control connection"
    except (GeosocksError, OSError) as error:
        return f"its control connection broke: {error}"
    return "the server ended it"


def open_socket(near: SockAddr) -> RawSocket:
    """A socket for datagrams, on the address that the control connection has on this host.

    Raises:
        OSError: it cannot be had.
    """
    family = stdlib_socket.AF_INET6 if ":" in near[0] else stdlib_socket.AF_INET
    sock = RawSocket(family, stdlib_socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.bind((near[0], 0, *near[2:]))
    except BaseException:
        sock.close()
        raise
    return sock


def _connected(sock: RawSocket, relay: SockAddr) -> RawSocket:
    """``sock``, heard by and hearing ``relay`` only; or another, where it has no way there."""
    is_v6 = ":" in relay[0]
    if is_v6 == (sock.family == stdlib_socket.AF_INET6):
        try:
            sock.connect(relay)
            return sock
        except OSError as error:
            if error.errno != errno.EINVAL:  # from loopback to another host
                raise
    other = RawSocket(
        stdlib_socket.AF_INET6 if is_v6 else stdlib_socket.AF_INET, stdlib_socket.SOCK_DGRAM
    )
    try:
        other.setblocking(False)
        other.connect(relay)
    except BaseException:
        other.close()
        raise
    sock.close()
    return other


@lru_cache(maxsize=256)
def _header(to: Address | tuple[str, int]) -> bytes:
    """RSV, FRAG X'00', and where the datagram shall go."""
    return Datagram(destination(to), b"").encode()
