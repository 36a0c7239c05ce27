"""The live record of one session, and what every part of it needs: answers, addresses, its end."""

from collections.abc import Callable
from ipaddress import IPv4Address
from time import monotonic
from typing import Any, Final

from geosocks.auth import Authenticator, Grant, Seal
from geosocks.codes import SOCKS5_VERSION, Method, Rep
from geosocks.entrance import Gate
from geosocks.errors import RequestFailed
from geosocks.events import Authenticated, FanOut, RequestRefused, SessionClosed
from geosocks.events.session import make_closed
from geosocks.policy import Policy
from geosocks.relay.pump import Pump
from geosocks.relay.udp import Associations
from geosocks.relay.way import Meter
from geosocks.rules import Question, Resolver
from geosocks.session.standing import Standing
from geosocks.stream import Connection, Stream, finish, send
from geosocks.wire.address import host_of
from geosocks.wire.socks5 import UNSPECIFIED, Address
from geosocks.wire.straight import encode_reply

# As Final they need no look-up by name, which costs as much as a short function.
_SUCCEEDED: Final = Rep.SUCCEEDED
_monotonic: Final = monotonic
_make_closed: Final = make_closed


class SessionCut(BaseException):
    """Thrown into a session's greenlet to end it: idle, drained, killed."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Session:
    """The live record of one session: written by its greenlet, read by whoever likes.

    What most sessions never change stands in the class: there are thousands of them a second.
    """

    tls = False
    """Its listener is for TLS: before the first octet of SOCKS there is a handshake."""

    certificate: str | None = None
    """Whom the client's certificate names, once it was verified."""

    greenlet: Any = None
    cut = False
    """Somebody has told it to end."""

    method: int | None = None
    identity: str | None = None
    claimed: str | None = None
    """Who a SOCKS4 client says it is (USERID); proves nothing, and no rule asks for it."""

    version: int = SOCKS5_VERSION
    command: int | None = None
    destination: Address | None = None
    dialled: Address | None = None
    rule: str | None = None
    via: tuple[str, ...] = ()
    """The upstreams that the rules want it passed on to, in the order to try them."""

    upstream: str | None = None
    """The one that it went through."""

    requested: float | None = None
    """When its request was whole, by ``time.monotonic``."""

    reached: float | None = None
    """When the target of its CONNECT was."""

    refused: int | None = None
    """The REP that its request was refused with."""

    places: tuple[str, ...] = ()
    """What it has taken of its user's and its rule's ceilings: keys of ``policy.limits``."""

    write_reply: Callable[[int, Address], bytes] | None = None
    """How another version of the protocol than 5 writes a REP and BND."""

    replied = False
    """The request was granted: from here on there is nothing left to answer."""

    reason = "refused"

    def __init__(
        self,
        id: int,
        client: Connection,
        peer: Address,
        listener: str,
        standing: Standing,
        pump: Pump,
        emit: FanOut,
        gate: Gate,
        own_ports: frozenset[int],
        associations: Associations,
    ) -> None:
        """A client of ``listener`` was accepted, under the policy of ``standing``.

        ``gate`` counts it while it has not made its request.  ``own_ports`` are those that this
        server itself listens on: a session cannot be led back to them.  ``associations`` are the
        UDP associations of the whole server.
        """
        self.id = id
        self.client = client
        self.peer = peer
        self.listener = listener
        self.standing = standing
        self.pump = pump
        self.emit = emit
        self.gate = gate
        self.own_ports = own_ports
        self.associations = associations
        self.opened = _monotonic()
        self.meter = Meter()
        self.stream: Stream = client
        """The client's octets, out of TLS, and unwrapped once the method encapsulates."""

        # Not in the class: mypyc drops a None there that may be a protocol.
        self.target: Stream | None = None
        self.seal: Seal | None = None
        """Encapsulates its datagrams, where the method does."""

    @property
    def policy(self) -> Policy:
        """What it may ask."""
        return self.standing.policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        self.standing = Standing(policy)

    @property
    def authenticators(self) -> tuple[Authenticator, ...]:
        """The methods for clients of its listener, in our order of preference."""
        standing = self.standing
        if standing.is_alike:
            return standing.authenticators
        return standing.policy.authenticators_at(self.listener)

    def question(
        self, command: int, destination: Address, resolver: Resolver | None = None
    ) -> Question:
        """May this client do ``command`` to ``destination``?  The policy's resolver, if no other.

        Raises:
            HostUnreachable: the destination is no host name, or has a zone id.
        """
        return Question(
            peer=self.peer,
            identity=self.identity,
            method=self.method or Method.NONE,
            command=command,
            destination=destination,
            resolver=self.policy.resolver if resolver is None else resolver,
            listener=self.listener,
            via=self.policy.via,
        )

    def enter(self, method: int, grant: Grant) -> None:
        """Go on as ``grant`` says; who has shown a certificate and no other name has that one."""
        self.method = method
        self.stream = grant.stream
        self.seal = grant.seal
        self.identity, detail = grant.identity, grant.detail
        if self.identity is None and self.certificate is not None:
            self.identity, detail = self.certificate, detail or "certificate"
        if self.emit.details() and self.emit.audience[Authenticated]:
            self.emit(Authenticated(self.id, method, self.identity, detail))

    def answer(self, rep: int, bound: Address = UNSPECIFIED) -> None:
        """Send a reply (RFC 1928, section 6).

        Raises:
            OSError: the client has gone.
        """
        written = self.write_reply
        send(self.stream, encode_reply(rep, bound) if written is None else written(rep, bound))

    def refuse(self, failure: RequestFailed) -> None:
        """Answer the request with the failure's REP, and see that the client can read it."""
        self.refused = failure.rep
        self.emit(
            RequestRefused(
                self.id,
                client=self.peer,
                method=Method.NONE if self.method is None else self.method,
                identity=self.identity,
                command=self.command,
                destination=self.destination,
                reply=failure.rep,
                rule=getattr(failure, "rule", None),
                reason=str(failure),
                claimed=self.claimed,
            )
        )
        try:
            self.answer(failure.rep)
        except OSError:
            return  # it has gone
        finish(self.stream)

    def closed(self) -> SessionClosed:
        """The fact that it has ended."""
        opened, requested, reached = self.opened, self.requested, self.reached
        return _make_closed(  # of all its fields, in their order
            self.id,
            self.peer,
            self.method,
            self.identity,
            self.command,
            self.destination,
            self.dialled,
            self.rule,
            self.reason,
            self.meter.up,
            self.meter.down,
            _monotonic() - opened,
            self.claimed,
            self.upstream,
            _SUCCEEDED if self.replied else self.refused,
            None if requested is None else requested - opened,
            None if requested is None or reached is None else reached - requested,
        )


def name_of_end(stream: Stream, which: str, otherwise: Address = UNSPECIFIED) -> Address:
    """One end's address as BND or a log shows it; ``otherwise`` when the stream cannot tell."""
    if type(stream) is Connection and stream.local is not None and which == "getsockname":
        return address_of(stream.local)
    ask = getattr(stream, which, None)
    if ask is None:
        return otherwise
    try:
        return address_of(ask())
    except OSError:
        return otherwise


def address_of(name: Any) -> Address:
    """A socket's name as an Address; an IPv4 peer of a dual-stack socket as IPv4.

    The name of a UNIX socket is none: its clients are on this host, so it becomes 127.0.0.1:0.
    """
    if not isinstance(name, tuple):
        return Address(IPv4Address("127.0.0.1"), 0)
    return Address(host_of(name[0]), name[1])
