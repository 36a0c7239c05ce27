"""The frames of the GSSAPI method as values (RFC 1961).

Sections 3.4, 4.3 and 5: context tokens, the protection level and encapsulated data travel alike::

    +------+------+------+.......................+
    + ver  | mtyp | len  |       token           |
    +------+------+------+.......................+
    + 0x01 | 1/2/3| 0x02 | up to 2^16 - 1 octets |
    +------+------+------+.......................+

Section 3.8: a refusal is the two octets 01 FF.

Knows octets and nothing else: not what a token means, nor the gssapi package.  Both sides use it.
"""

from typing import Final, Self

from geosocks.codes import GSSAPI_VERSION, Mtyp
from geosocks.errors import ProtocolError
from geosocks.values import value
from geosocks.wire import NeedMore, need

HEADER: Final = 4
"""Octets before the token."""

MAX_TOKEN: Final = 0xFFFF
"""Octets of the longest token that LEN can tell (section 3.4)."""

KNOWN: Final = frozenset((Mtyp.AUTHENTICATION, Mtyp.PROTECTION_LEVEL, Mtyp.ENCAPSULATED))


@value
class Frame:
    """One message: MTYP and its token; ABORT has none."""

    mtyp: int
    token: bytes = b""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the frame that ``data`` begins or is.

        Raises:
            NeedMore: a good beginning.
            ProtocolError: VER is not X'01', or MTYP is none of the RFC's.
        """
        if data and data[0] != GSSAPI_VERSION:
            raise ProtocolError(f"GSSAPI VER is {data[0]:#04x}, expected 0x01")
        need(data, 2)
        mtyp = data[1]
        if mtyp == Mtyp.ABORT:
            return cls(mtyp)
        if mtyp not in KNOWN:
            raise ProtocolError(f"GSSAPI MTYP {mtyp:#04x} is not known")
        need(data, HEADER)
        end = HEADER + (data[2] << 8 | data[3])
        need(data, end)
        return cls(mtyp, data[HEADER:end])

    def encode(self) -> bytes:
        """VER, MTYP, LEN, TOKEN; VER, MTYP alone for ABORT.

        Raises:
            ValueError: a token of more than 65,535 octets.
        """
        if self.mtyp == Mtyp.ABORT:
            return bytes((GSSAPI_VERSION, Mtyp.ABORT))
        size = len(self.token)
        if size > MAX_TOKEN:
            raise ValueError(f"a token of {size} octets; LEN holds up to {MAX_TOKEN}")
        return bytes((GSSAPI_VERSION, self.mtyp, size >> 8, size & 0xFF)) + self.token


def encapsulated_size(data: bytes | bytearray) -> int:
    """Octets of the encapsulated message (section 5) that ``data`` begins, its header included.

    Reads the header alone, so a buffer of many messages is measured without a copy.

    Raises:
        NeedMore: a good beginning of a header.
        ProtocolError: it is no encapsulated message: clear octets, say, or the peer's abort.
    """
    if data and data[0] != GSSAPI_VERSION:
        raise ProtocolError(f"VER is {data[0]:#04x} where an encapsulated message must begin")
    if len(data) >= 2 and data[1] != Mtyp.ENCAPSULATED:
        if data[1] == Mtyp.ABORT:
            raise ProtocolError("the peer aborted the GSSAPI context (01 FF)")
        raise ProtocolError(f"MTYP is {data[1]:#04x} where encapsulated data must come (0x03)")
    if len(data) < HEADER:
        raise NeedMore(HEADER - len(data))
    return HEADER + (data[2] << 8 | data[3])


ABORT: Final = Frame(Mtyp.ABORT).encode()
"""01 FF: the refusal of a context or of a client (section 3.8)."""
