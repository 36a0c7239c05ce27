"""What octets pass through, as others may make it: below these, whoever has such a thing.

Not to be compiled: classes of other programs are below these, and compiled ones bear none.
"""

from typing import Protocol


class Stream(Protocol):
    """The few calls that a session makes.  A gevent socket already is one."""

    def recv(self, size: int, /) -> bytes:
        """Up to ``size`` octets as soon as there are any; b"" once the peer has closed its way."""
        ...

    def sendall(self, data: bytes, /) -> None:
        """Send all of ``data``."""
        ...

    def shutdown(self, how: int, /) -> None:
        """Close one way or both; ``SHUT_WR`` tells the peer that nothing more comes."""
        ...

    def close(self) -> None:
        """Give the descriptor back."""
        ...


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
