"""The two halves of a method's sub-negotiation, and method X'00', which has none (RFC 1928, 3).

An ``Authenticator`` is the server's half, a ``Credential`` the client's.  Both are structural:
nothing to inherit, nothing to register; private methods X'80' to X'FE' are yours.
"""

from typing import Protocol

from geosocks.auth.grant import Grant as Grant
from geosocks.auth.grant import Seal as Seal
from geosocks.auth.none import NoAuth as NoAuth
from geosocks.stream import Stream
from geosocks.wire.socks5 import Address


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
