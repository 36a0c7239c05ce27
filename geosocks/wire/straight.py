"""What nearly every session says, written and read without a value in between.

RFC 1928, section 6, and RFC 1929, section 2: see ``wire.socks5`` and ``wire.userpass``.
"""

from typing import Final

from geosocks.codes import SOCKS5_VERSION, USERPASS_VERSION
from geosocks.wire.address import Address

_REPLIES: Final = tuple(bytes((SOCKS5_VERSION, rep, 0)) for rep in range(256))
_USERPASS: Final[int] = USERPASS_VERSION


def encode_reply(rep: int, bound: Address) -> bytes:
    """The octets of ``socks5.Reply(rep, bound)``."""
    return _REPLIES[rep] + bound.encode()


def uname_and_passwd(octets: bytes) -> tuple[bytes, bytes] | None:
    """UNAME and PASSWD, if ``octets`` are such a message, no less and no more; None for all else.

    Nearly every message comes in one piece, the only one.
    """
    size = len(octets)
    if size < 3 or octets[0] != _USERPASS:
        return None
    plen_at = 2 + octets[1]
    if plen_at >= size or plen_at + 1 + octets[plen_at] != size:
        return None
    return octets[2:plen_at], octets[plen_at + 1 :]
