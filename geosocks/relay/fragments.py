"""Reassembly of a client's fragments (RFC 1928, section 7).

"The FRAG field indicates whether or not this datagram is one of a number of fragments": X'00' is a
datagram of its own, 1 to 127 is a place in a sequence, and the high-order bit marks the last one.

Knows octets and a clock that others read; no sockets.
"""

from dataclasses import dataclass, field
from typing import Final

from geosocks.wire.socks5 import MAX_DATAGRAM

REASSEMBLY_TIMER: Final = 5.0
"""Seconds that a sequence may take.  "The reassembly timer MUST be no less than 5 seconds." """

END_OF_SEQUENCE: Final = 0x80


@dataclass(slots=True)
class ReassemblyQueue:
    """The fragments of one sequence so far; owned by whoever receives them.

    "The reassembly queue must be reinitialized and the associated fragments abandoned whenever the
    REASSEMBLY TIMER expires, or a new datagram arrives carrying a FRAG field whose value is less
    than the highest FRAG value processed for this fragment sequence."  So a fragment that was
    overtaken can never take its place, and a gap is the end of its sequence at once: fragments make
    a whole in their order or not at all.  Nothing in them tells two sequences apart, so we also
    give up where the destination changes, or where a place comes again with other octets.

    Holds no more than ``MAX_DATAGRAM`` octets, in 127 pieces.
    """

    abandoned: int = 0
    """Fragments that came and never became part of a whole."""

    _pieces: list[bytes] = field(default_factory=list)
    _destination: bytes = b""
    _octets: int = 0
    _since: float = 0.0

    @property
    def pending(self) -> int:
        """Fragments that wait for the rest of their sequence."""
        return len(self._pieces)

    def abandon(self) -> None:
        """Reinitialize: what is here will not become a whole."""
        self.abandoned += len(self._pieces)
        self._pieces.clear()
        self._octets = 0

    def add(self, frag: int, destination: bytes, data: bytes, now: float) -> bytes | None:
        """Take a datagram whose FRAG is not X'00'; DATA of the whole if this makes it one.

        ``destination`` is ATYP, DST.ADDR and DST.PORT as they came; ``now`` is in seconds, of any
        clock that never goes back.
        """
        pieces = self._pieces
        place = frag & ~END_OF_SEQUENCE
        if pieces and now - self._since >= REASSEMBLY_TIMER:
            self.abandon()
        if pieces and self._repeats(frag, destination, data):
            self.abandoned += 1
            return None
        if pieces and (place != len(pieces) + 1 or destination != self._destination):
            self.abandon()
        if place != len(pieces) + 1:
            self.abandoned += 1
            return None
        if not pieces:
            self._destination, self._since = destination, now
        pieces.append(data)
        self._octets += len(data)
        if self._octets > MAX_DATAGRAM:
            self.abandon()
            return None
        if not frag & END_OF_SEQUENCE:
            return None
        whole = b"".join(pieces)
        pieces.clear()
        self._octets = 0
        return whole

    def _repeats(self, frag: int, destination: bytes, data: bytes) -> bool:
        """True for the highest FRAG once more, octet for octet: the network doubled it."""
        pieces = self._pieces
        same = frag == len(pieces) and destination == self._destination
        return same and data == pieces[-1]
