"""Encapsulation: a stream whose octets travel in GSSAPI tokens (RFC 1961, section 5).

    +------+------+------+.......................+
    + ver  | mtyp | len  |       token           |
    +------+------+------+.......................+
    + 0x01 | 0x03 | 0x02 | up to 2^16 - 1 octets |
    +------+------+------+.......................+

"The token" is what gss_wrap (RFC 1961: gss_seal) makes of a piece of the stream: signed at level 1,
signed and encrypted at level 2.  Where one piece ends and the next begins means nothing.

Knows an established context, not how it came about.
"""

from typing import Any, Final, cast

from geosocks.auth.gss_context import Wrapping, load_gssapi
from geosocks.codes import Mtyp, ProtectionLevel
from geosocks.errors import ProtocolError, RelayBroken, Truncated
from geosocks.greenlets import give_way
from geosocks.stream import Stream
from geosocks.wire import NeedMore
from geosocks.wire.gss import HEADER, MAX_TOKEN, Frame, encapsulated_size

READ: Final = 2 * (HEADER + MAX_TOKEN)
"""Octets asked of the inner stream at once: more than a message, since a second often waits."""

TURN: Final = 1 << 18
"""Octets after which others get their turn: a fast peer never makes us wait, and a quarter of a
megabyte takes some 1.5 ms to encrypt."""

TOKEN_COST: Final = 4096
"""What a token counts beside its octets: an empty one costs time too."""


class GssStream:
    """A Stream over ``inner`` that wraps what it sends and unwraps what it receives.

    One greenlet may read while another writes.  Wrapping is plain CPU and never yields, so the
    two cannot meet inside the context.  It shares the life of ``inner``; the context goes with the
    last reference, and nothing is sent for it (RFC 1961, section 6).

    TCP's end of stream is not protected: whoever can cut the connection can end a stream between
    two messages, as with any SOCKS method.
    """

    __slots__ = (
        "_at",
        "_broken",
        "_confidential",
        "_inner",
        "_plain",
        "_turn",
        "_wire",
        "context",
        "level",
        "piece",
    )

    def __init__(self, inner: Stream, context: Wrapping, level: ProtectionLevel) -> None:
        """Encapsulate at ``level``, INTEGRITY or CONFIDENTIALITY.

        Raises:
            ProtocolError: the context's tokens leave no room for data.
        """
        self.level = level
        self._inner = inner
        self.context = context  # ``GssSeal`` puts another in its place
        self._confidential = level == ProtectionLevel.CONFIDENTIALITY
        self.piece = context.get_wrap_size_limit(MAX_TOKEN, self._confidential)
        """Octets that fit one token, to which the context adds up to some 60 of its own."""

        if self.piece <= 0:
            raise ProtocolError(f"the GSSAPI context leaves no room in {MAX_TOKEN} octets")
        self._wire = bytearray()  # received, not yet unwrapped
        self._plain = b""  # unwrapped, read by the caller up to _at
        self._at = 0
        self._turn = 0
        self._broken = ""  # why no more can be read; empty while it can

    def recv(self, size: int, /) -> bytes:
        """Read up to ``size`` octets of the data; b"" at the end of the stream.

        Raises:
            ProtocolError: a message is clear, changed, repeated, out of order or not protected as
                the level says; from then on every recv raises.
            Truncated: the peer closed inside a message, which is an abort and no half-close.
            OSError: as recv(2).
        """
        if not self._plain:
            self._plain = self._next_piece()
        plain, start = self._plain, self._at
        self._at += size
        if self._at >= len(plain):
            self._plain, self._at = b"", 0  # an idle stream keeps nothing
        return plain[start : start + size]  # a whole piece is not copied

    def sendall(self, data: bytes | memoryview, /) -> None:
        """Send all of ``data``, in as many messages as it needs.

        Raises:
            RelayBroken: the context does not wrap any more, or not as the level says.
            OSError: as send(2).
        """
        for start in range(0, len(data), self.piece):
            self._take_turns()
            # A whole piece of bytes is not copied.
            self._inner.sendall(self._wrap(bytes(data[start : start + self.piece])))

    def send(self, data: bytes | memoryview, /) -> int:
        """Send all of ``data``; the count of its octets, as a socket's send gives."""
        self.sendall(data)
        return len(data)

    def shutdown(self, how: int, /) -> None:
        """Close one way or both of the inner stream."""
        self._inner.shutdown(how)

    def close(self) -> None:
        """Close the inner stream."""
        self._inner.close()

    def reset(self) -> None:
        """Close the inner stream so that its peer sees a reset, where it can do that."""
        cast(Any, getattr(self._inner, "reset", self._inner.close))()

    @property
    def sock(self) -> Any:
        """The inner socket, for its options."""
        return getattr(self._inner, "sock", self._inner)

    def fileno(self) -> int:
        """The inner descriptor.  That it is readable does not mean that ``recv`` has data."""
        return cast(int, cast(Any, self._inner).fileno())

    def getpeername(self) -> Any:
        """The inner socket's peer."""
        return cast(Any, self._inner).getpeername()

    def getsockname(self) -> Any:
        """The inner socket's own address."""
        return cast(Any, self._inner).getsockname()

    def _next_piece(self) -> bytes:
        """The plaintext of the next message that has any; b"" at the end of the stream."""
        if self._broken:
            raise ProtocolError(self._broken)
        try:
            while True:
                self._take_turns()
                token = self._next_token()
                if token is None:
                    return b""
                # An empty message is one more token on the wire, not an end.
                if piece := self._unwrap(token):
                    return piece
        except ProtocolError as error:
            self._broken = str(error)
            raise

    def _next_token(self) -> bytes | None:
        """The next token; None when the peer closed between two messages."""
        wire = self._wire
        while True:
            try:
                size = encapsulated_size(wire)
            except NeedMore:
                size = HEADER
            else:
                if len(wire) >= size:
                    break
            chunk = self._inner.recv(READ)
            if not chunk:
                if wire:
                    raise Truncated(f"peer closed after {len(wire)} octets of a GSSAPI message")
                return None
            wire += chunk
        with memoryview(wire) as view:
            token = bytes(view[HEADER:size])
        del wire[:size]  # moves bytearray's own start; the rest is not copied
        self._turn += size + TOKEN_COST
        return token

    def _unwrap(self, token: bytes) -> bytes:
        """The plaintext of ``token``."""
        try:
            unwrapped = self.context.unwrap(token)
        except load_gssapi().exceptions.GSSError as error:
            raise ProtocolError(f"a GSSAPI message does not unwrap: {why(error)}") from error
        # At level 2 conf_req is always TRUE, so a peer that only signs is not to be believed; at
        # level 1 it is always FALSE, and encrypted data is not what was agreed either (section 5).
        if unwrapped.encrypted != self._confidential:
            found = "encrypted" if unwrapped.encrypted else "not encrypted"
            raise ProtocolError(f"a GSSAPI message is {found} under {self.level.name.lower()}")
        return unwrapped.message

    def _wrap(self, piece: bytes) -> bytes:
        """``piece`` as an encapsulated message."""
        try:
            wrapped = self.context.wrap(piece, self._confidential)
        except load_gssapi().exceptions.GSSError as error:
            raise RelayBroken(f"the GSSAPI context does not wrap: {why(error)}") from error
        if wrapped.encrypted != self._confidential:
            raise RelayBroken(f"the GSSAPI context does not give {self.level.name.lower()}")
        if len(wrapped.message) > MAX_TOKEN:
            raise RelayBroken(f"a GSSAPI token of {len(wrapped.message)} octets; LEN cannot say it")
        self._turn += len(wrapped.message) + TOKEN_COST
        return Frame(Mtyp.ENCAPSULATED, wrapped.message).encode()

    def _take_turns(self) -> None:
        """Let others run after ``TURN`` octets."""
        if self._turn >= TURN:
            self._turn = 0
            give_way()


def why(error: Any) -> str:
    """The library's word for a token's fault: the major status says which (RFC 2744, 3.9.1)."""
    return "; ".join(error.get_all_statuses(error.maj_code, True))
