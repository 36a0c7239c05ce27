"""What is counted: an association's datagrams, and the associations."""

from collections import Counter
from dataclasses import dataclass


@dataclass(slots=True)
class Traffic:
    """Datagrams of an association, relayed and dropped.  Written by its greenlets."""

    up: int = 0
    down: int = 0
    strangers: int = 0
    """From another address or port than the client's; never answered."""

    malformed: int = 0
    """From the client, but no datagram of section 7, or not as its method encapsulates."""

    fragments: int = 0
    """Of sequences that never became a whole, or all when they are not reassembled."""

    denied: int = 0
    """To where no rule lets the client go."""

    unresolved: int = 0
    """To a name that has no address."""

    overflow: int = 0
    """To names that were still looked up when too many waited for them."""

    unasked: int = 0
    """From hosts that the client has not written to of late."""

    too_long: int = 0
    """To the client, of no room for the header and what encapsulates it."""

    failed: int = 0
    """The kernel would not send or receive: no way there, no descriptor, an ICMP error."""


class Associations:
    """The associations alive: how many, whose, and on which ports.  Owned by the server.

    Nothing between a check and its count blocks.
    """

    def __init__(self) -> None:
        self.ports: Counter[int] = Counter()
        """Ports of their inside sockets, of one address or another."""

        self._of: Counter[object] = Counter()

    def __len__(self) -> int:
        return self._of.total()

    def of(self, user: object) -> int:
        """How many ``user`` has."""
        return self._of.get(user, 0)

    def add(self, user: object, port: int) -> None:
        """One more has begun."""
        self._of[user] += 1
        self.ports[port] += 1

    def remove(self, user: object, port: int) -> None:
        """It has ended."""
        self._of[user] -= 1
        self.ports[port] -= 1
        # "+" keeps what is above zero: who has gone is forgotten.
        self._of, self.ports = +self._of, +self.ports
