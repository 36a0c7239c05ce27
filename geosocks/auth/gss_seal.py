"""Encapsulation of datagrams: each is one message of its own (RFC 1961, section 5).

    +------+------+------+.......................+
    + ver  | mtyp | len  |       token           |
    +------+------+------+.......................+
    + 0x01 | 0x03 | 0x02 | up to 2^16 - 1 octets |
    +------+------+------+.......................+

Datagrams get lost and overtake each other, which a context with sequence detection reports and
which is no fault here; one that comes twice is dropped.

Knows an established context, and the stream that shares it.
"""

from typing import Final

from geosocks.auth.gss_context import Message, load_gssapi
from geosocks.auth.gss_loose import LooseContext, loosened
from geosocks.auth.gss_stream import GssStream, why
from geosocks.codes import Mtyp, ProtectionLevel
from geosocks.errors import ProtocolError
from geosocks.wire.gss import HEADER, MAX_TOKEN, Frame, encapsulated_size


class GssSeal:
    """A ``Seal``: wraps and unwraps datagrams with the context of a ``GssStream``.

    From its first use the stream must go on in step with the peer's: both count the tokens of the
    stream and the datagrams in one sequence, so a stream that is still read after a datagram was
    lost finds a gap.
    """

    __slots__ = ("_confidential", "_context", "_stream", "_window")

    def __init__(self, stream: GssStream) -> None:
        self._stream = stream
        self._confidential = stream.level == ProtectionLevel.CONFIDENTIALITY
        self._context: LooseContext | None = None
        self._window = ReplayWindow()

    def wrap(self, datagram: bytes, /) -> bytes:
        """``datagram`` as one encapsulated message, encrypted if the level says so.

        Raises:
            ProtocolError: its token is too long for LEN, or the context does not wrap any more.
        """
        try:
            wrapped = self._loose().wrap(datagram, self._confidential)
        except load_gssapi().exceptions.GSSError as error:
            raise ProtocolError(f"the GSSAPI context does not wrap: {why(error)}") from error
        if wrapped.encrypted != self._confidential:
            raise ProtocolError(f"the GSSAPI context does not give {self._level}")
        if len(wrapped.message) > MAX_TOKEN:
            raise ProtocolError(f"a GSSAPI token of {len(wrapped.message)} octets")
        return Frame(Mtyp.ENCAPSULATED, wrapped.message).encode()

    def unwrap(self, datagram: bytes, /) -> bytes:
        """The datagram inside one encapsulated message.

        Raises:
            ProtocolError: it is no such message or more than one; changed, made by somebody else
                or not protected as the level says; or has been here before.
        """
        if len(datagram) < HEADER or encapsulated_size(datagram) != len(datagram):
            raise ProtocolError(f"{len(datagram)} octets are not one GSSAPI message")
        token = datagram[HEADER:]
        unwrapped = self._unwrapped(token)
        if unwrapped.encrypted != self._confidential:
            found = "encrypted" if unwrapped.encrypted else "not encrypted"
            raise ProtocolError(f"a GSSAPI datagram is {found} under {self._level}")
        number = sequence_number(token)
        if number is not None and not self._window.is_new(number):
            raise ProtocolError("a GSSAPI datagram that has been here before")
        return unwrapped.message

    def room(self, size: int, /) -> int:
        """Octets of the longest datagram that is no longer than ``size`` when wrapped."""
        if size <= HEADER:
            return 0
        limit = min(size - HEADER, MAX_TOKEN)
        return max(0, self._loose().get_wrap_size_limit(limit, self._confidential))

    @property
    def _level(self) -> str:
        return self._stream.level.name.lower()

    def _unwrapped(self, token: bytes) -> Message:
        context = self._loose()
        # What has been here before is told by the number inside an RFC 4121 token, and our window.
        ours = sequence_number(token) is not None
        try:
            return context.unwrap_in_any_order(token) if ours else context.unwrap(token)
        except load_gssapi().exceptions.GSSError as error:
            raise ProtocolError(f"a GSSAPI datagram does not unwrap: {why(error)}") from error

    def _loose(self) -> LooseContext:
        """The context; taken over from the stream at first use."""
        if self._context is None:
            self._context = self._stream.context = loosened(self._stream.context)
        return self._context


_WRAP_TOKEN: Final = b"\x05\x04"
"""TOK_ID of a Kerberos Wrap token (RFC 4121, section 4.2.6.2); older ones begin with X'60'."""


def sequence_number(token: bytes) -> int | None:
    """SND_SEQ of an RFC 4121 Wrap token, which its checksum covers; None for an older token."""
    if len(token) < 16 or token[:2] != _WRAP_TOKEN:
        return None
    return int.from_bytes(token[8:16])


class ReplayWindow:
    """Which of the last ``WIDTH`` sequence numbers were seen; older ones count as seen.

    The library's own detection looks back 64 numbers, takes new ones for doubled after a jump of
    more (MIT Kerberos 1.20), and is there only where the context was made with it.
    """

    WIDTH: Final = 1024

    __slots__ = ("_newest", "_seen")

    def __init__(self) -> None:
        self._newest = -1
        self._seen = 0  # bit n: newest - n was seen

    def is_new(self, number: int) -> bool:
        """True the first time that it is asked about ``number``, unless that is too old."""
        ahead = number - self._newest
        if ahead > 0:
            # A jump beyond the window forgets all of it, and shifts no further than that.
            kept = self._seen << ahead if ahead < self.WIDTH else 0
            self._seen = (kept | 1) & ((1 << self.WIDTH) - 1)
            self._newest = number
            return True
        if -ahead >= self.WIDTH or self._seen >> -ahead & 1:
            return False
        self._seen |= 1 << -ahead
        return True
