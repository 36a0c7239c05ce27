"""The messages of SOCKS version 4 and 4A as values (Ying-Da Lee, "SOCKS 4A: A Simple Extension").

The client's request, in which 4A sends a name where the client could not resolve it::

    +----+----+---------+-------------------+---------+------+ +--------+------+
    | VN | CD | DSTPORT |       DSTIP       | USERID  | NULL | | DOMAIN | NULL |
    +----+----+---------+-------------------+---------+------+ +--------+------+
    | 1  | 1  |    2    | 4 (4A: 0.0.0.x)   | up to 255 |  1 | | 1..255 |  1   |
    +----+----+---------+-------------------+---------+------+ +--------+------+

And the server's reply, whose VN is 0; DSTPORT and DSTIP mean something for BIND alone::

    +----+----+---------+-------+
    | VN | CD | DSTPORT | DSTIP |
    +----+----+---------+-------+
    | 1  | 1  |    2    |   4   |
    +----+----+---------+-------+

Knows octets and nothing else: no sockets, no policy, nor that there is a version 5 but for the
Address that both versions ask for.  Both sides use it.
"""

from ipaddress import IPv4Address
from typing import Final, Self

from geosocks.codes import SOCKS4_VERSION
from geosocks.errors import ProtocolError
from geosocks.values import value
from geosocks.wire import NeedMore, need
from geosocks.wire.socks5 import UNSPECIFIED, Address

MAX_FIELD: Final = 255
"""Octets of the longest USERID or domain that we take or send; the documents name no limit."""

_HEAD: Final = 8
"""Octets before USERID."""

_NAME_FOLLOWS: Final = b"\x00\x00\x00\x01"
"""The DSTIP that we send before a name; 4A asks for any 0.0.0.x with an x that is not 0."""


@value
class Request:
    """CD, DST and USERID; ``cd`` may be one we cannot name, and ``userid`` is a mere claim."""

    cd: int
    destination: Address
    userid: bytes = b""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a request, whole whatever its CD, so that a refusal leaves nothing unread.

        Raises:
            NeedMore: a good beginning.
            ProtocolError: VN is not 4, USERID or the name is longer than 255 octets, or the name
                has none.
        """
        if data and data[0] != SOCKS4_VERSION:
            raise ProtocolError(f"SOCKS4 request VN is {data[0]:#04x}, expected 0x04")
        need(data, _HEAD + 1)
        host: IPv4Address | str = IPv4Address(data[4:_HEAD])
        is_4a = data[4:7] == bytes(3) and data[7] != 0
        # After USERID and its NULL a name of one octet and another NULL are the least to come.
        end = _find_null(data, _HEAD, "USERID", 3 if is_4a else 1)
        if is_4a:
            start = end + 1
            name_end = _find_null(data, start, "name", 2 if len(data) == start else 1)
            if name_end == start:
                raise ProtocolError("SOCKS4A name of no octets")
            host = data[start:name_end].decode("ascii", "surrogateescape")
        return cls(data[1], Address(host, data[2] << 8 | data[3]), data[_HEAD:end])

    def encode(self) -> bytes:
        """VN, CD, DSTPORT, DSTIP, USERID, NULL, and for 4A the name and its NULL.

        What version 4 has no room for is sent as a name: an IPv6 address, or one that a 4A server
        would take for the sign of a name.

        Raises:
            ValueError: USERID or the name cannot be sent.
        """
        host, port = self.destination.host, self.destination.port
        ip, name = _NAME_FOLLOWS, b""
        if isinstance(host, IPv4Address) and not 0 < int(host) <= 0xFF:
            ip = host.packed
        else:
            name = _field("name", str(host).encode("ascii", "surrogateescape")) + b"\0"
            if len(name) == 1:
                raise ValueError("a name of no octets")
        head = bytes((SOCKS4_VERSION, self.cd)) + port.to_bytes(2) + ip
        return head + _field("USERID", self.userid) + b"\0" + name


@value
class Reply:
    """The server's CD, which may be one we cannot name, and for BIND where it listens."""

    cd: int
    bound: Address = UNSPECIFIED

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a reply.

        Raises:
            NeedMore: a good beginning.
            ProtocolError: VN is not 0.
        """
        if data and data[0]:
            raise ProtocolError(f"SOCKS4 reply VN is {data[0]:#04x}, expected 0x00")
        need(data, _HEAD)
        return cls(data[1], Address(IPv4Address(data[4:_HEAD]), data[2] << 8 | data[3]))

    def encode(self) -> bytes:
        """VN, CD, DSTPORT, DSTIP.

        Raises:
            ValueError: ``bound`` is no IPv4 address.
        """
        host, port = self.bound.host, self.bound.port
        if not isinstance(host, IPv4Address):
            raise ValueError(f"a SOCKS4 reply holds an IPv4 address, not {host!a}")
        return bytes((0, self.cd)) + port.to_bytes(2) + host.packed


def _find_null(data: bytes, start: int, what: str, missing: int) -> int:
    """Where the field from ``start`` ends; at least ``missing`` octets come where it does not."""
    end = data.find(b"\0", start, start + MAX_FIELD + 1)
    if end >= 0:
        return end
    octets = len(data) - start
    if octets > MAX_FIELD:
        raise ProtocolError(f"SOCKS4 {what} of more than {MAX_FIELD} octets")
    raise NeedMore(missing)


def _field(what: str, octets: bytes) -> bytes:
    if len(octets) > MAX_FIELD or b"\0" in octets:
        raise ValueError(f"{what} of {len(octets)} octets: up to {MAX_FIELD}, and none of them 0")
    return octets
