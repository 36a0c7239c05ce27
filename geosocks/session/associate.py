"""UDP ASSOCIATE: may the client, open a relay, say where, relay datagrams (RFC 1928, 6 and 7).

DST of the request is where the client "expects to use to send UDP datagrams on": a hint, which no
rule is asked about and to which nothing is ever sent for its own sake.  The rules are asked whether
the client may use UDP at all, and then about the destination of each datagram.
"""

from typing import Final

from geosocks.codes import Cmd, Rep
from geosocks.errors import CommandNotSupported, RequestDenied, RequestFailed
from geosocks.events import (
    DestinationRefused,
    LimitReached,
    RequestJudged,
    UdpAssociated,
    UdpEnded,
)
from geosocks.guard import unmapped
from geosocks.relay.direct import DirectDialer
from geosocks.relay.pump import End
from geosocks.relay.target import is_own_address
from geosocks.relay.udp import Association, open_inside
from geosocks.rules import Resolver
from geosocks.session.admission import admit, whose
from geosocks.session.connect import pass_on
from geosocks.session.record import Session, address_of
from geosocks.upstream import UpstreamAssociation, associate_by
from geosocks.wire.socks5 import UNSPECIFIED, Address, IPAddress, Request

MAX_NAMES: Final = 256
"""Names of an association whose addresses are pinned; beyond, the oldest goes."""

MAX_TOLD: Final = 16
"""Refused destinations of an association that have an event each; all are counted."""


def associate(session: Session, request: Request) -> bool:
    """Serve a UDP ASSOCIATE; True when its stream is to be closed in order.

    Raises:
        RequestFailed: denied, too many, or no socket for the relay.
    """
    permit(session, request)
    user = whose(session)
    # Before the check: nothing may block between that and the count.
    onward = pass_on(session, associate_by) if session.via else None
    try:
        make_room(session, user)
        association = open_association(session, request, onward)
    except BaseException:
        if onward is not None:
            onward.close()
        raise
    relay = association.bound
    session.associations.add(user, relay.port)
    try:
        told = session.policy.advertised(relay)
        try:
            session.answer(Rep.SUCCEEDED, told)
        except OSError:
            session.reason = End.RESET_BY_CLIENT.value
            return False
        session.replied = True
        session.emit(UdpAssociated(session.id, session.identity, session.peer, relay, told))
        end, error = association.run()
    finally:
        session.associations.remove(user, relay.port)
        association.close()
        session.emit(ended(session, association))
    told_more = end in (End.BROKEN_BY_CLIENT, End.RESET_BY_TARGET)
    session.reason = f"{end.value}: {error}" if told_more else end.value
    return end is End.CLOSED


def permit(session: Session, request: Request) -> None:
    """Refuse a client all of whose datagrams would be dropped.

    Raises:
        RequestDenied: no rule lets it use UDP.
        CommandNotSupported: its datagrams would have to go where none can: through an upstream,
            or by an embedder's dialer, which must not be passed by.
    """
    policy = session.policy
    # Not about the hint, which may be any text at all: PySocks sends the name "0".
    verdict = policy.rules.may_use(session.question(Cmd.UDP_ASSOCIATE, UNSPECIFIED))
    session.rule = verdict.rule
    session.via = verdict.via
    if not isinstance(policy.dialer, DirectDialer):
        raise CommandNotSupported("the dialer in use sends no datagrams")
    if verdict.effects is not None or policy.limits.per_user is not None:
        admit(session, verdict)
    session.emit(
        RequestJudged(session.id, session.identity, request.cmd, request.destination, verdict.rule)
    )


def make_room(session: Session, user: str) -> None:
    """Raise RequestFailed, X'01', where one more association is one too many."""
    udp, alive = session.policy.udp, session.associations
    if len(alive) >= udp.max_associations:
        met = LimitReached("udp_associations", udp.max_associations)
    elif alive.of(user) >= udp.max_per_user:
        met = LimitReached("udp_associations_per_user", udp.max_per_user, user)
    else:
        return
    session.emit(met)
    raise RequestFailed(f"limit reached: {met.limit} {met.ceiling}")


def open_association(
    session: Session, request: Request, onward: UpstreamAssociation | None
) -> Association:
    """The relay, on the address at which the client reached us.

    Raises:
        RequestFailed: no port is to be had.
    """
    policy, udp = session.policy, session.policy.udp
    dialer, host = policy.dialer, session.peer.host
    assert isinstance(dialer, DirectDialer)
    assert not isinstance(host, str)
    near = session.client.getsockname()
    local = near if isinstance(near, tuple) else ("127.0.0.1", 0)  # a UNIX socket: on this host
    return Association(
        open_inside(local, udp.ports),
        session.client,
        host,
        hinted_port(request.destination, host),
        Judge(session),
        session.meter,
        seal=session.seal,
        outgoing=dialer.outgoing,
        family=dialer.family,
        from_any=udp.from_any,
        reassemble=udp.reassemble,
        onward=onward,
    )


def hinted_port(hint: Address, client: IPAddress) -> int:
    """The port that the client says it will send from; 0 where it does not know.

    An address that is not the client's own is no hint to go by: clients behind a NAT send the one
    they know, and others put the target there.
    """
    if isinstance(hint.host, str):
        return 0
    host = unmapped(hint.host)
    return hint.port if host.is_unspecified or host == client else 0


def ended(session: Session, association: Association) -> UdpEnded:
    """What came of an association."""
    client, traffic = association.client, association.traffic
    return UdpEnded(
        session.id,
        session.identity,
        client=session.peer if client is None else address_of(client),
        relay=association.bound,
        datagrams_up=traffic.up,
        datagrams_down=traffic.down,
        strangers=traffic.strangers,
        malformed=traffic.malformed,
        fragments=traffic.fragments,
        denied=traffic.denied,
        unresolved=traffic.unresolved,
        overflow=traffic.overflow,
        unasked=traffic.unasked,
        too_long=traffic.too_long,
        failed=traffic.failed,
    )


class Judge:
    """Says where a datagram may go; the association asks it once for each destination.

    A name is looked up once, and what it stood for then is what it stands for from there on.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._resolver = Pinned(session.policy.resolver)
        self._told = 0

    def __call__(self, destination: Address) -> tuple[IPAddress, ...] | None:
        """The addresses that the rules let the client send to; None: it goes to the upstream.

        Raises:
            RequestDenied: none.
            RequestFailed: there are none.
        """
        session = self._session
        try:
            rule, addresses = self._judge(destination)
        except RequestFailed as failure:
            if self._told < MAX_TOLD:
                self._told += 1
                session.emit(
                    DestinationRefused(
                        session.id,
                        session.identity,
                        destination,
                        getattr(failure, "rule", None),
                        str(failure),
                    )
                )
            raise
        session.emit(
            RequestJudged(session.id, session.identity, Cmd.UDP_ASSOCIATE, destination, rule)
        )
        return addresses

    def _judge(self, destination: Address) -> tuple[str, tuple[IPAddress, ...] | None]:
        session = self._session
        verdict = session.policy.rules.judge(
            session.question(Cmd.UDP_ASSOCIATE, destination, self._resolver)
        )
        if verdict.via:
            if verdict.via != session.via:
                what = f"this association goes to no upstream {','.join(verdict.via)}"
                raise RequestDenied(what, verdict.rule)
            return verdict.rule, None
        port = destination.port
        ours = port in session.own_ports or port in session.associations.ports
        if ours and any(map(is_own_address, verdict.addresses)):
            raise RequestDenied("this server itself is the destination", rule="loop")
        return verdict.rule, verdict.addresses


class Pinned:
    """A resolver that asks another one about each name once."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._found: dict[str, tuple[IPAddress, ...]] = {}

    def resolve(self, name: str) -> tuple[IPAddress, ...]:
        """As ``Resolver.resolve``; a failure is not remembered."""
        found = self._found.get(name)
        if found is None:
            found = self._resolver.resolve(name)
            if len(self._found) >= MAX_NAMES:
                del self._found[next(iter(self._found))]
            # Another look-up of it may have been quicker: that one stands.
            found = self._found.setdefault(name, found)
        return found
