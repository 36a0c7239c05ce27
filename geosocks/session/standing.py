"""What every session asks of its policy, looked up once for all of them."""

from collections.abc import Callable
from typing import Final

from geosocks.auth import Authenticator
from geosocks.entrance import Entrance
from geosocks.policy import Policy
from geosocks.relay.direct import DirectDialer
from geosocks.rules import RuleSet
from geosocks.rules.memory import Memory
from geosocks.stream import Stream
from geosocks.wire.socks5 import Address, IPAddress

Direct = Callable[[Address, tuple[IPAddress, ...], float], Stream]


class Standing:
    """A policy, and of it what a session would look up: twenty times, at the cost of a connect(2).

    A policy never changes; what replaces it has one of its own.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy: Final = policy
        self.authenticators: Final[tuple[Authenticator, ...]] = policy.authenticators
        self.is_alike: Final = not policy.listeners
        """Nothing is different at any listener."""

        self.entrance: Final[Entrance] = policy.entrance
        self.negotiation: Final[float] = policy.timeouts.negotiation
        self.connect: Final[float] = policy.timeouts.connect
        self.rules: Final[RuleSet] = policy.rules
        self.memory: Final[Memory] = policy.rules.memory
        self.via: Final[tuple[str, ...]] = policy.via
        self.has_ceiling: Final = policy.limits.per_user is not None
        """There is one for each user, whatever rule lets it through."""

        self.dial: Final[Callable[[Address, tuple[IPAddress, ...]], Stream]] = (
            policy.dialer.open_connection
        )
        """Connects to the target itself (``Dialer.open_connection``)."""

        self.direct: Final[Direct | None] = (
            policy.dialer.open_connection if type(policy.dialer) is DirectDialer else None
        )
        """The same where it takes the time it may take, and needs a limit only if it waits."""
