"""The messages of SOCKS version 5 as values (RFC 1928).

Section 3.  The client offers METHODs and the server selects one::

    +----+----------+----------+        +----+--------+
    |VER | NMETHODS | METHODS  |        |VER | METHOD |
    +----+----------+----------+        +----+--------+
    | 1  |    1     | 1 to 255 |        | 1  |   1    |
    +----+----------+----------+        +----+--------+

Sections 4 and 6.  The client's request, and the server's reply with REP for CMD and BND for DST::

    +----+-----+-------+------+----------+----------+
    |VER | CMD |  RSV  | ATYP | DST.ADDR | DST.PORT |
    +----+-----+-------+------+----------+----------+
    | 1  |  1  | X'00' |  1   | Variable |    2     |
    +----+-----+-------+------+----------+----------+

Section 7.  Every datagram between the client and the relay begins with a UDP request header::

    +----+------+------+----------+----------+----------+
    |RSV | FRAG | ATYP | DST.ADDR | DST.PORT |   DATA   |
    +----+------+------+----------+----------+----------+
    | 2  |  1   |  1   | Variable |    2     | Variable |
    +----+------+------+----------+----------+----------+

Knows octets and nothing else: no sockets, no policy.  Both sides use it.
"""

from ipaddress import IPv4Address
from typing import Final, NoReturn, Self

from geosocks.codes import SOCKS5_VERSION, Atyp
from geosocks.errors import AddressTypeNotSupported, ProtocolError
from geosocks.values import value
from geosocks.wire import NeedMore, need
from geosocks.wire.address import Address as Address
from geosocks.wire.address import IPAddress as IPAddress


def _wrong_version(what: str, version: int) -> NoReturn:
    raise ProtocolError(f"{what} VER is {version:#04x}, expected 0x05")


@value
class MethodOffer:
    """Version identifier/method selection message: the client's METHODS, in its order."""

    methods: bytes

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a method selection message.

        NMETHODS of 0 is below the RFC's "1 to 255" but harmless: nothing is acceptable in it.

        Raises:
            NeedMore: a good beginning.
            ProtocolError: VER is not X'05'.
        """
        if data and data[0] != SOCKS5_VERSION:
            _wrong_version("method selection", data[0])
        need(data, 2)
        end = 2 + data[1]
        need(data, end)
        return cls(data[2:end])

    def encode(self) -> bytes:
        """VER, NMETHODS, METHODS."""
        return bytes((SOCKS5_VERSION, len(self.methods))) + self.methods


@value
class MethodChoice:
    """METHOD selection message: the METHOD that the server selected, or X'FF'."""

    method: int

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a METHOD selection message.

        Raises:
            NeedMore: a good beginning.
            ProtocolError: VER is not X'05'.
        """
        if data and data[0] != SOCKS5_VERSION:
            _wrong_version("METHOD selection", data[0])
        need(data, 2)
        return cls(data[1])

    def encode(self) -> bytes:
        """VER, METHOD."""
        return bytes((SOCKS5_VERSION, self.method))


CHOICES: Final = tuple(MethodChoice(method).encode() for method in range(256))
"""The octets of each METHOD selection message."""


@value
class Request:
    """The relay request: CMD and DST (RFC 1928, section 4).  ``cmd`` may be one we cannot name."""

    cmd: int
    destination: Address

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a request, whole whatever its CMD, so that a refusal leaves nothing unread.

        RSV "must be set to X'00'" by the sender; what it holds is not looked at.

        Raises:
            NeedMore: a good beginning.
            ProtocolError: VER is not X'05', or a name of no octets.
            AddressTypeNotSupported: an ATYP that nobody knows.
        """
        if data and data[0] != SOCKS5_VERSION:
            _wrong_version("request", data[0])
        # 4 octets bring ATYP; the shortest request (a name of one octet) has 8, so ask for those.
        need(data, 4)
        return cls(data[1], Address.decode(data, 3))

    def encode(self) -> bytes:
        """VER, CMD, RSV, ATYP, DST.ADDR, DST.PORT."""
        return bytes((SOCKS5_VERSION, self.cmd, 0)) + self.destination.encode()


def whole_offer(octets: bytes) -> MethodOffer | None:
    """The method selection message that ``octets`` are, no less and no more; None for all else."""
    if len(octets) < 2 or len(octets) != 2 + octets[1] or octets[0] != SOCKS5_VERSION:
        return None
    return MethodOffer.decode(octets)


def whole_request(octets: bytes) -> Request | None:
    """As ``whole_offer``, for requests; None, too, for one that could be written otherwise."""
    try:
        request = Request.decode(octets)
    except (NeedMore, ProtocolError, AddressTypeNotSupported):
        return None
    return request if request.encode() == octets else None


UNSPECIFIED_V4 = IPv4Address(0)
UNSPECIFIED = Address(UNSPECIFIED_V4, 0)
"""BND of a reply that has no address to tell: 0.0.0.0:0."""


@value
class Reply:
    """The server's REP, which may be one we cannot name, and BND (RFC 1928, section 6)."""

    rep: int
    bound: Address = UNSPECIFIED

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a reply.

        Raises:
            NeedMore: a good beginning.
            ProtocolError: VER is not X'05', or ATYP cannot be read.
        """
        if data and data[0] != SOCKS5_VERSION:
            _wrong_version("reply", data[0])
        need(data, 4)
        try:
            return cls(data[1], Address.decode(data, 3))
        except AddressTypeNotSupported as error:
            raise ProtocolError(f"reply with {error}") from None

    def encode(self) -> bytes:
        """VER, REP, RSV, ATYP, BND.ADDR, BND.PORT."""
        return bytes((SOCKS5_VERSION, self.rep, 0)) + self.bound.encode()


# --- section 7 --------------------------------------------------------------------------------

MAX_DATAGRAM: Final = 65_507
"""Octets of the longest UDP payload over IPv4 (RFC 768, RFC 791): 65,535 less both headers."""

MAX_UDP_HEADER: Final = 262
"""Octets of the longest UDP request header, one with a name of 255."""

_V4_HEADER, _V6_HEADER, _NAME_HEADER = 10, 22, 7
"""Octets of a header with an IPv4 address, an IPv6 address, and a name beside the name itself.

Section 7 counts 20 for IPv6, which forgets DST.PORT: RSV, FRAG, ATYP, 16 octets and a port are 22.
"""


def udp_header_size(datagram: bytes) -> int:
    """Octets of the UDP request header that ``datagram`` begins with; DATA is what follows.

    The cheap way to take a datagram apart: ``datagram[3:size]`` is its ATYP, DST.ADDR and DST.PORT,
    and what they mean can be remembered by these octets.

    Raises:
        ProtocolError: it is no such datagram, or was cut: a datagram comes whole, so there is
            never more to come.
    """
    # An RSV in use is somebody's extension (UDP over TCP has a length there), and means
    # something else than what we would read.
    if len(datagram) < _NAME_HEADER or datagram[0] or datagram[1]:
        raise ProtocolError(f"{len(datagram)} octets that begin no UDP request header")
    atyp = datagram[3]
    if atyp == Atyp.IPV4:
        size = _V4_HEADER
    elif atyp == Atyp.IPV6:
        size = _V6_HEADER
    elif atyp == Atyp.DOMAINNAME and datagram[4]:
        size = _NAME_HEADER + datagram[4]
    else:
        raise ProtocolError(f"UDP request header with ATYP {atyp:#04x}, or a name of no octets")
    if len(datagram) < size:
        raise ProtocolError(f"UDP request header cut after {len(datagram)} of {size} octets")
    return size


@value
class Datagram:
    """UDP request header and DATA (RFC 1928, section 7).

    ``destination`` is where a datagram from the client shall go, and where one from the relay came
    from.  ``frag`` is 0 for a whole one, else 1 to 127 for its place, with the high-order bit set
    in the last fragment.
    """

    destination: Address
    data: bytes
    frag: int = 0

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a whole datagram.

        Raises:
            ProtocolError: it is none, or was cut.  Never NeedMore: a datagram comes whole.
        """
        size = udp_header_size(data)
        return cls(Address.decode(data, 3), data[size:], data[2])

    def encode(self) -> bytes:
        """RSV, FRAG, ATYP, DST.ADDR, DST.PORT, DATA.

        Raises:
            ValueError: a name of no octets or of more than 255, or a FRAG beyond 255.
        """
        return bytes((0, 0, self.frag)) + self.destination.encode() + self.data
