"""What a session asks of the rules, and what a rule answers.

Knows neither the rule language nor where names are looked up.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Final, Protocol

from geosocks.errors import HostUnreachable, RequestFailed
from geosocks.guard import Face, canonical_name, face, faces, unmapped
from geosocks.wire.address import Address, IPAddress, literal


class Resolver(Protocol):
    """Where names become addresses."""

    def resolve(self, name: str) -> tuple[IPAddress, ...]:
        """Look ``name`` up.

        Raises:
            RequestFailed: HostUnreachable, X'04', when it has no address.
        """
        ...


class Question:
    """May ``identity``, by ``method``, coming from ``peer``, do ``command`` to ``destination``?

    ``name`` is the destination's name as rules compare it, None when it is an address.
    ``listener`` is the name of the listener that accepted the client.  ``via`` are the upstreams to
    pass it on to where a rule says nothing else, as in a verdict.  Owned by the session's greenlet;
    all but the look-up is fixed when it is made.

    Raises:
        HostUnreachable: the destination is no host name, or has a zone id.
    """

    __slots__ = (
        "_failure",
        "_resolver",
        "_weighed",
        "command",
        "destination",
        "identity",
        "listener",
        "method",
        "name",
        "peer",
        "source",
        "via",
    )

    def __init__(
        self,
        peer: Address,
        identity: str | None,
        method: int,
        command: int,
        destination: Address,
        resolver: Resolver,
        listener: str | None = None,
        via: tuple[str, ...] = (),
    ) -> None:
        self.peer = peer
        self.identity = identity
        self.method = method
        self.command = command
        self.destination = destination
        self.listener = listener
        self.via = via
        self._resolver = resolver
        self._failure: RequestFailed | None = None
        self._weighed: tuple[tuple[IPAddress, tuple[Face, ...]], ...] | None = None
        self.source = _source(peer.host)
        host = destination.host
        if isinstance(host, str):
            self.name: str | None = canonical_name(host)
        elif isinstance(host, IPv6Address) and host.scope_id is not None:
            raise HostUnreachable(f"{str(host)!a} has a zone id")
        else:
            self.name = None
            plain = unmapped(host)
            self._weighed = ((plain, faces(plain)),)

    def __str__(self) -> str:
        host = self.destination.host if self.name is None else self.name
        return str(Address(host, self.destination.port))

    @property
    def looked_up(self) -> bool:
        """True when ``addresses`` costs no look-up."""
        return self._weighed is not None

    @property
    def weighed(self) -> tuple[tuple[IPAddress, tuple[Face, ...]], ...]:
        """Every address of the destination, with what it really is; a name is resolved once.

        Raises:
            RequestFailed: the name has no address; again each time, without a second look-up.
        """
        if self._weighed is None:
            self._weighed = tuple((address, faces(address)) for address in self._resolve())
        return self._weighed

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """Every address of the destination, a v4-mapped one as its IPv4; as ``weighed``."""
        return tuple([address for address, _ in self.weighed])

    def _resolve(self) -> Iterable[IPAddress]:
        if self._failure is not None:
            raise self._failure
        assert self.name is not None
        try:
            found = self._resolver.resolve(self.name)
            usable = dict.fromkeys(
                unmapped(address)
                for address in found
                if not (isinstance(address, IPv6Address) and address.scope_id is not None)
            )
            if not usable:
                raise HostUnreachable(f"{self.name} has no address")
        except RequestFailed as error:
            self._failure = error
            raise
        return usable


def _source(host: IPAddress | str) -> tuple[Face, ...]:
    """What the client's address is in itself; nothing when it has none (a UNIX socket)."""
    if isinstance(host, str):  # the kernel names a link-local client fe80::1%eth0
        address = literal(host.partition("%")[0])
        return () if address is None else (face(address),)
    return (face(host),)


DIRECT: Final = ("direct",)
"""What a rule answers that wants no upstream, whatever is the default."""


@dataclass(frozen=True, slots=True)
class Effects:
    """What else comes of an allow.

    ``sessions`` are those at a time that it lets each user have, or each host where nobody is
    named; None: any number.  They are counted under ``name``, so that a rule which is read again
    finds its counts again; without one, under the rule's text.
    """

    sessions: int | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule has to say.

    ``addresses`` are those it covers.  None, from a rule in Python, stands for all that are not
    guarded in an allow, and for all there are in a deny.

    ``via`` names the upstreams to pass an allowed request on to, the first that answers; DIRECT is
    none of them, and an empty one the question's own.  ``effects`` is None where there are none.

    A verdict of ``RuleSet.judge`` always has the addresses to dial, but for a name that goes to an
    upstream: it is not looked up.  Its ``via`` is empty for a request that goes to no upstream.
    """

    allowed: bool
    rule: str
    addresses: tuple[IPAddress, ...] = ()
    via: tuple[str, ...] = ()
    effects: Effects | None = None


Rule = Callable[[Question], Verdict | None]
"""One rule; None: no opinion, ask the next.  It may raise RequestDenied to end the matter."""

Test = Callable[[Question], bool]
