"""The two halves of a method's sub-negotiation, and method X'00', which has none (RFC 1928, 3).

An ``Authenticator`` is the server's half, a ``Credential`` the client's.  Both are structural:
nothing to inherit, nothing to register; private methods X'80' to X'FE' are yours.
"""

from typing import Final, Protocol

from geosocks.codes import Method
from geosocks.stream import Stream
from geosocks.wire.socks5 import Address


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


class Authenticator(Protocol):
    """The server's half of one METHOD."""

    @property
    def method(self) -> int:
        """The METHOD it speaks, X'00' to X'FE'."""
        ...

    def authenticate(self, stream: Stream, peer: Address) -> Grant:
        """Run the sub-negotiation, the refusal included.

        Raises:
            AuthFailed: refused, and the peer was told.
            ProtocolError: the peer broke the wire.
        """
        ...


class Credential(Protocol):
    """The client's half of one METHOD."""

    @property
    def method(self) -> int:
        """The METHOD it speaks, X'00' to X'FE'."""
        ...

    def present(self, stream: Stream) -> Grant:
        """Run the sub-negotiation.

        Raises:
            AuthFailed: the server refused, or we do not like the server.
            ProtocolError: the server broke the wire.
        """
        ...


class NoAuth:
    """Method X'00', NO AUTHENTICATION REQUIRED: both halves, and there is nothing to say."""

    method: int = Method.NONE

    def authenticate(self, stream: Stream, peer: Address) -> Grant:
        """Anybody may go on, as nobody in particular."""
        return Grant(stream)

    def present(self, stream: Stream) -> Grant:
        """Go on."""
        return Grant(stream)
