"""UDP ASSOCIATE with an upstream: our socket to its relay, and what keeps it alive.

Through a chain each hop relays to the relay of the next, so that a datagram has a header for each
(RFC 1928, section 7), and under GSSAPI an encapsulation for each::

    sealed by 1 ( relay of 2, sealed by 2 ( relay of 3, sealed by 3 ( target, DATA ) ) )

Only the last hop learns the target, and resolves its name.
"""

import socket as stdlib_socket  # constants
from _socket import socket as RawSocket
from collections.abc import Sequence
from typing import Final

import gevent

from geosocks.auth import Grant, Seal
from geosocks.client.address import is_reachable, is_unspecified
from geosocks.errors import GeosocksError, ProtocolError
from geosocks.relay.udp import MAX_STRAY
from geosocks.rules import Resolver
from geosocks.stream import Stream
from geosocks.wire.socks5 import Address, Datagram, udp_header_size

_ADDRESS: Final = 3
"""Where ATYP, DST.ADDR and DST.PORT begin, behind RSV and FRAG."""


class UpstreamAssociation:
    """A UDP ASSOCIATE of ours with an upstream, one for each hop; a ``relay.udp.Onward``."""

    def __init__(
        self, name: str, grants: Sequence[Grant], relays: Sequence[Address], sock: RawSocket
    ) -> None:
        """Go on from what the hops granted, first hop first, and their ``relays``.

        The grants' streams, the controls, are ours now, and so is ``sock``, of ``socket_to`` the
        first relay.
        """
        self.sock = sock
        self.seal: Seal | None = grants[0].seal
        if len(grants) > 1:
            self.seal = NestedSeal([grant.seal for grant in grants], relays[1:])
        self._name = name
        self._controls = [grant.stream for grant in grants]

    def wait(self) -> str:
        """Return when a hop has ended it: how."""
        if len(self._controls) == 1:
            return self._end_of(self._controls[0])
        watching = [gevent.spawn(self._end_of, control) for control in self._controls]
        try:
            return str(next(gevent.iwait(watching)).get())
        finally:
            gevent.killall(watching)

    def _end_of(self, control: Stream) -> str:
        left = MAX_STRAY
        try:
            while data := control.recv(4096):
                left -= len(data)
                if left < 0:
                    return f"upstream {self._name}: it keeps sending on an association"
        except (GeosocksError, OSError) as error:
            return f"upstream {self._name}: {error}"
        return f"upstream {self._name} ended the association"

    def close(self) -> None:
        """End it, with the last hop first."""
        for control in reversed(self._controls):
            control.close()
        self.sock.close()


class NestedSeal:
    """What goes around a datagram on its way through a chain; a ``Seal``.

    What comes back counts only from the relays that we send to: by address and port, or where a
    relay has a name, by the port, and by the address of the first that proves good.
    """

    __slots__ = ("_first", "_headers", "_seals", "_sources")

    def __init__(self, seals: Sequence[Seal | None], relays: Sequence[Address]) -> None:
        """``seals`` are the hops', first hop first; ``relays`` those of the hops behind it."""
        self._first, *self._seals = seals
        self._headers = [Datagram(relay, b"").encode() for relay in relays]
        self._sources = [
            None if relay.is_name else header[_ADDRESS:]
            for relay, header in zip(relays, self._headers, strict=True)
        ]

    def wrap(self, datagram: bytes, /) -> bytes:
        """``datagram``, its header included, as it goes to the first relay.

        Raises:
            ProtocolError: it is too long, or a context does not wrap any more.
        """
        for seal, header in zip(reversed(self._seals), reversed(self._headers), strict=True):
            datagram = header + (datagram if seal is None else seal.wrap(datagram))
        return datagram if self._first is None else self._first.wrap(datagram)

    def unwrap(self, datagram: bytes, /) -> bytes:
        """What the last hop's relay has sent.

        Raises:
            ProtocolError: it did not come all the way, was changed, or has been here before.
        """
        if self._first is not None:
            datagram = self._first.unwrap(datagram)
        for number, seal in enumerate(self._seals):
            size = udp_header_size(datagram)
            source = datagram[_ADDRESS:size]
            if datagram[2] or not self._may_be_from(number, source):
                raise ProtocolError("a datagram through the chain that is not from the next relay")
            datagram = datagram[size:]
            if seal is not None:
                datagram = seal.unwrap(datagram)
            self._sources[number] = source
        return datagram

    def room(self, size: int, /) -> int:
        """Octets of the longest datagram that is no longer than ``size`` when wrapped.

        Each hop takes a header, 10 octets for a relay of IPv4, and what its encapsulation adds.
        """
        if self._first is not None:
            size = self._first.room(size)
        for seal, header in zip(self._seals, self._headers, strict=True):
            size = max(0, size - len(header))
            if seal is not None:
                size = seal.room(size)
        return size

    def _may_be_from(self, number: int, source: bytes) -> bool:
        expected = self._sources[number]
        return source[-2:] == self._headers[number][-2:] if expected is None else source == expected


def relay_of(told: Address, server: Address) -> Address:
    """Where the relay of a hop is, to the hop before it.

    That is what the hop tells, unless it knows no address of its own or one that who reaches the
    hop cannot be thought to reach; then it is where the hop itself is.
    """
    if is_unspecified(told) or not (server.is_name or told.is_name or is_reachable(told, server)):
        return Address(server.host, told.port)
    return told


def socket_to(relay: Address, control: Stream, resolver: Resolver) -> RawSocket:
    """A socket for datagrams to an upstream's ``relay``, from where ``control`` comes from."""
    near, far = (getattr(control, which)() for which in ("getsockname", "getpeername"))
    host = relay.host
    if isinstance(host, str):
        host = resolver.resolve(host)[0]
    to = far[0] if host.is_unspecified else str(host)
    family = stdlib_socket.AF_INET6 if ":" in to else stdlib_socket.AF_INET
    sock = RawSocket(family, stdlib_socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if (":" in near[0]) == (":" in to):
            sock.bind((near[0], 0))
        sock.connect((to, relay.port))
    except BaseException:
        sock.close()
        raise
    return sock
