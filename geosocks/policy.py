"""All that a session may ask, in one frozen value.

Knows no option names and no files: an embedder makes a ``Policy`` in Python, the command line makes
one from its settings.  A session keeps the policy that it was accepted with; a reload is one
assignment of another.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Self

from geosocks.auth import Authenticator, NoAuth
from geosocks.relay.target import AresResolver, Dialer, DirectDialer
from geosocks.rules import LOCAL, Resolver, RuleSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long things may take, in seconds."""

    negotiation: float = 10.0
    """From accept until the relay request is whole, however many octets that takes."""

    connect: float = 10.0
    """Until the target answers, all its addresses together."""

    idle: float = 3600.0
    """Without an octet either way."""

    half_close: float = 300.0
    """Without an octet, once one side has ended its way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Who may do what, how targets are found and reached, and how long it may take.

    ``authenticators`` stand in the server's order of preference; the first whose METHOD the client
    offers is selected (RFC 1928, section 3).  The default is a server for programs on its own host:
    no authentication, and only clients from loopback, who may go anywhere.
    """

    authenticators: tuple[Authenticator, ...] = (NoAuth(),)
    rules: RuleSet = LOCAL
    resolver: Resolver = field(default_factory=AresResolver)
    dialer: Dialer = field(default_factory=DirectDialer)
    timeouts: Timeouts = field(default_factory=Timeouts)

    def replace(self, **changes: Any) -> Self:
        """This policy with other values in some fields.

        Raises:
            TypeError: a field that does not exist.
        """
        return dataclasses.replace(self, **changes)
