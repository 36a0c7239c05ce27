"""All that a session may ask, in one frozen value.

Knows no option names and no files: an embedder makes a ``Policy`` in Python, the command line makes
one from its settings.  A session keeps the policy that it was accepted with; a reload is one
assignment of another.
"""

import dataclasses
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from geosocks.auth import Authenticator, NoAuth
from geosocks.entrance import Entrance
from geosocks.limits import Limits
from geosocks.relay.direct import DirectDialer
from geosocks.relay.listen import Binder, DirectBinder
from geosocks.relay.target import AresResolver, Dialer
from geosocks.rules import LOCAL, Resolver, RuleSet
from geosocks.upstream import Health
from geosocks.wire.socks5 import Address, IPAddress


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

    udp: float = 120.0
    """Without a datagram either way, of a UDP association."""

    bind: float = 60.0
    """Until the peer comes that a BIND waits for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Udp:
    """What UDP associations are allowed."""

    ports: range | None = None
    """Those that clients send their datagrams to, for a firewall to let in; None for any."""

    from_any: bool = False
    """Pass on what any host sends, not only those that the client has written to of late."""

    reassemble: bool = True
    """Make a whole of a client's fragments; otherwise they are dropped (RFC 1928, section 7)."""

    max_associations: int = 1000
    """At a time, of the whole server."""

    max_per_user: int = 64
    """At a time, of one user, or of one host where nobody is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AtListener:
    """What holds for the clients of one listener."""

    authenticators: tuple[Authenticator, ...] | None = None
    """In place of the policy's; None: those."""

    tls: ssl.SSLContext | None = field(default=None, repr=False)
    """The certificate to show, of a listener that speaks TLS; ``tls.server_context`` makes one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Who may do what, how targets are found and reached, and how long it may take.

    ``authenticators`` stand in the server's order of preference; the first whose METHOD the client
    offers is selected (RFC 1928, section 3).  The default is a server for programs on its own host:
    no authentication, and only clients from loopback, who may go anywhere.
    """

    authenticators: tuple[Authenticator, ...] = (NoAuth(),)
    listeners: Mapping[str, AtListener] = field(default_factory=dict)
    """What is different at some listeners, by their names."""

    rules: RuleSet = LOCAL
    resolver: Resolver = field(default_factory=AresResolver)
    dialer: Dialer = field(default_factory=DirectDialer)
    binder: Binder = field(default_factory=DirectBinder)
    dialers: Mapping[str, Dialer] = field(default_factory=dict)
    """The upstreams that a verdict's ``via`` may name; any ``Dialer``, ``Upstream`` among them."""

    via: tuple[str, ...] = ()
    """Those for rules that name none, in the order to try them; empty: directly."""

    health: Health = field(default_factory=Health, compare=False, repr=False)
    """Which of them rest: live state, the process's, handed on from one policy to the next."""

    advertise: tuple[IPAddress, ...] = ()
    """Where the world sees this host, one address of each family at most: BND.ADDR of the sockets
    that peers shall reach from beyond a NAT, in place of their own."""

    socks4: bool = True
    """Serve SOCKS4 and 4A too, to clients of whom method X'00' asks nothing more."""

    udp: Udp = field(default_factory=Udp)
    limits: Limits = field(default_factory=Limits)
    entrance: Entrance = field(default_factory=Entrance)
    timeouts: Timeouts = field(default_factory=Timeouts)

    def authenticators_at(self, listener: str) -> tuple[Authenticator, ...]:
        """Those for the clients of the listener so named."""
        own = self.listeners.get(listener)
        if own is None or own.authenticators is None:
            return self.authenticators
        return own.authenticators

    def tls_at(self, listener: str) -> ssl.SSLContext | None:
        """The TLS context of the listener so named; None where there is none."""
        own = self.listeners.get(listener)
        return None if own is None else own.tls

    def advertised(self, bound: Address) -> Address:
        """``bound`` as a peer reaches it: with the address to advertise of its family, if any."""
        for host in self.advertise:
            if not isinstance(bound.host, str) and host.version == bound.host.version:
                return Address(host, bound.port)
        return bound

    def replace(self, **changes: Any) -> Self:
        """This policy with other values in some fields.

        Raises:
            TypeError: a field that does not exist.
        """
        return dataclasses.replace(self, **changes)
