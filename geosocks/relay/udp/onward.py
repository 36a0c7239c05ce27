"""What an association has on its ends, as it sees it: an encapsulation, an upstream."""

from _socket import socket as RawSocket
from typing import Final, Protocol

MAX_STRAY: Final = 64 * 1024
"""Octets on the connection of an association, which has nothing left to say."""


class Seal(Protocol):
    """Encapsulates datagrams between the client and us; ``geosocks.auth.Seal``."""

    def wrap(self, datagram: bytes, /) -> bytes:
        """What to send for ``datagram``; ProtocolError when it is too long."""
        ...

    def unwrap(self, datagram: bytes, /) -> bytes:
        """The datagram inside; ProtocolError when it is to be dropped."""
        ...


class Onward(Protocol):
    """An association of ours with an upstream, which relays what this one does not."""

    @property
    def sock(self) -> RawSocket:
        """Connected to the upstream's relay; it does not block."""
        ...

    @property
    def seal(self) -> Seal | None:
        """Encapsulates every datagram between the upstream and us."""
        ...

    def wait(self) -> str:
        """Return when the upstream has ended it: how."""
        ...

    def close(self) -> None:
        """End it."""
        ...
