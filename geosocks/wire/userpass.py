"""Username/password sub-negotiation as values (RFC 1929).

RFC 1929, section 2.  The client sends::

    +----+------+----------+------+----------+
    |VER | ULEN |  UNAME   | PLEN |  PASSWD  |
    +----+------+----------+------+----------+
    | 1  |  1   | 1 to 255 |  1   | 1 to 255 |
    +----+------+----------+------+----------+

and the server answers VER, STATUS.  Any STATUS but X'00' is a refusal, and VER is X'01' both ways.

Knows octets and nothing else: no sockets, no user store.  Both sides use it.
"""

from dataclasses import field
from typing import NoReturn, Self

from geosocks.codes import USERPASS_VERSION
from geosocks.errors import ProtocolError
from geosocks.values import value
from geosocks.wire import need


def _wrong_version(version: int) -> NoReturn:
    raise ProtocolError(f"username/password VER is {version:#04x}, expected 0x01")


@value
class UserPassRequest:
    """The client's UNAME and PASSWD, as the octets it sent."""

    uname: bytes
    passwd: bytes = field(repr=False)  # a session may be logged; a password may not

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the message that ``data`` begins or is.

        A length of 0 is below the RFC's "1 to 255", but curl 7.88 sends one for an empty
        password: read it, and let the user store refuse.

        Raises:
            NeedMore: a good beginning.
            ProtocolError: VER is not X'01'.
        """
        if data and data[0] != USERPASS_VERSION:
            _wrong_version(data[0])
        need(data, 2)
        plen_at = 2 + data[1]
        need(data, plen_at + 1)
        end = plen_at + 1 + data[plen_at]
        need(data, end)
        return cls(uname=data[2:plen_at], passwd=data[plen_at + 1 : end])

    def encode(self) -> bytes:
        """VER, ULEN, UNAME, PLEN, PASSWD.

        Raises:
            ValueError: a field of more than 255 octets.
        """
        if len(self.uname) > 255 or len(self.passwd) > 255:
            raise ValueError("user name and password hold 1 to 255 octets each")
        return b"".join(
            (
                bytes((USERPASS_VERSION, len(self.uname))),
                self.uname,
                bytes((len(self.passwd),)),
                self.passwd,
            )
        )


@value
class UserPassReply:
    """The server's STATUS; any but X'00' is a refusal."""

    status: int

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the answer.

        Raises:
            NeedMore: a good beginning.
            ProtocolError: VER is not X'01'.
        """
        if data and data[0] != USERPASS_VERSION:
            _wrong_version(data[0])
        need(data, 2)
        return cls(data[1])

    def encode(self) -> bytes:
        """VER, STATUS."""
        return bytes((USERPASS_VERSION, self.status))
