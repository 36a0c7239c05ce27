"""What nearly every session says, written and read without a value in between.

RFC 1928, section 6, and RFC 1929, section 2: see ``wire.socks5`` and ``wire.userpass``.
"""

from collections.abc import Callable
from typing import Final, Generic, TypeVar

from geosocks.codes import SOCKS5_VERSION, USERPASS_VERSION
from geosocks.wire.address import Address

_REPLIES: Final = tuple(bytes((SOCKS5_VERSION, rep, 0)) for rep in range(256))
_USERPASS: Final[int] = USERPASS_VERSION


M = TypeVar("M")


class Whole(Generic[M]):
    """Reads messages of one kind, each from the octets that it is.

    Nearly every message comes in one piece, the only one.
    """

    def read(self, octets: bytes) -> M | None:
        """The message, if ``octets`` are one, no less and no more; None for all else."""
        raise NotImplementedError


class Familiar(Whole[M]):
    """What ``decode`` makes of octets, for messages that say what many have said before them."""

    def __init__(self, decode: Callable[[bytes], M | None], most: int) -> None:
        """``decode`` tells as ``read`` does; up to ``most`` messages are remembered.

        What is none never is: a password may stand behind a message that came with others.
        """
        self._decode = decode
        self._most = most
        self._known: dict[bytes, M] = {}

    def read(self, octets: bytes) -> M | None:
        """As of ``Whole``."""
        message = self._known.get(octets)
        return self._learn(octets) if message is None else message

    def _learn(self, octets: bytes) -> M | None:
        message = self._decode(octets)
        if message is not None:
            if len(self._known) >= self._most:
                self._known.clear()
            self._known[octets] = message
        return message


class UnameAndPasswd(Whole[tuple[bytes, bytes]]):
    """UNAME and PASSWD of RFC 1929; none is remembered."""

    def read(self, octets: bytes) -> tuple[bytes, bytes] | None:
        """As of ``Whole``."""
        return uname_and_passwd(octets)


def encode_reply(rep: int, bound: Address) -> bytes:
    """The octets of ``socks5.Reply(rep, bound)``."""
    return _REPLIES[rep] + bound.encode()


def uname_and_passwd(octets: bytes) -> tuple[bytes, bytes] | None:
    """UNAME and PASSWD, if ``octets`` are such a message, no less and no more; else None."""
    size = len(octets)
    if size < 3 or octets[0] != _USERPASS:
        return None
    plen_at = 2 + octets[1]
    if plen_at >= size or plen_at + 1 + octets[plen_at] != size:
        return None
    return octets[2:plen_at], octets[plen_at + 1 :]
