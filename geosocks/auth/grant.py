"""What a sub-negotiation ends in."""

from typing import Final, Protocol

from geosocks.stream import Stream


class Seal(Protocol):
    """Encapsulates datagrams one by one, as ``Grant.stream`` does the octets of the connection.

    Loss and another order are a datagram's life and no faults.
    """

    def wrap(self, datagram: bytes, /) -> bytes:
        """What to send for ``datagram``, the UDP request header included (RFC 1928, section 7).

        Raises:
            ProtocolError: it cannot be wrapped, being too long for one.
        """
        ...

    def unwrap(self, datagram: bytes, /) -> bytes:
        """The datagram inside one that was received.

        Raises:
            ProtocolError: it is to be dropped: changed, made by somebody else, seen before.
        """
        ...

    def room(self, size: int, /) -> int:
        """Octets of the longest datagram that is no longer than ``size`` when wrapped; 0: none."""
        ...


class Grant:
    """What a sub-negotiation ends in: who the client is, and the stream to go on with.

    ``stream`` is the one given, or a wrapper of it when the method encapsulates what follows
    (RFC 1928, section 4).  ``identity`` is None when the method does not tell.  ``detail`` is a
    word for the log, such as the protection level.  ``seal`` encapsulates the datagrams of a
    UDP ASSOCIATE; None when the method leaves them as they are.
    """

    __slots__ = ("detail", "identity", "seal", "stream")

    def __init__(
        self,
        stream: Stream,
        identity: str | None = None,
        detail: str | None = None,
        seal: Seal | None = None,
    ) -> None:
        self.stream: Final = stream
        self.identity: Final = identity
        self.detail: Final = detail
        self.seal: Final = seal
