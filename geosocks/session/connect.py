"""CONNECT: judge, reach the target, say so, relay (RFC 1928, sections 4 and 6)."""

from collections.abc import Callable, Collection
from functools import partial
from time import monotonic
from typing import Final, TypeVar

from geosocks.codes import Rep
from geosocks.deadlines import Deadline
from geosocks.errors import RequestDenied, RequestFailed
from geosocks.events import RequestJudged, SessionEstablished
from geosocks.relay.pump import End
from geosocks.relay.target import Dialer, failure_of, is_own_address, no_answer
from geosocks.rules import Verdict
from geosocks.rules.memory import Noted
from geosocks.session.admission import admit
from geosocks.session.record import Session, name_of_end
from geosocks.stream import Connection, Stream
from geosocks.upstream import first_to_answer, open_by
from geosocks.wire.socks5 import Address, IPAddress, Request

T = TypeVar("T")

# As Final they need no look-up by name, which costs as much as a short function.
_monotonic: Final = monotonic
_CLOSED: Final = End.CLOSED
_SUCCEEDED: Final = Rep.SUCCEEDED


def judge(session: Session) -> tuple[IPAddress, ...]:
    """The addresses that the rules let the client reach by its request, in the order to try them.

    There are none for a name that goes to an upstream, which ``session.via`` then tells.

    Raises:
        RequestDenied: a rule said no, there is no place, or the way leads back to this server.
        HostUnreachable: the name has no address.
    """
    standing, destination, command = session.standing, session.destination, session.command
    assert destination is not None  # the request is whole
    assert command is not None
    # All that rules can see; of a name it is not enough, as its addresses may be others each time.
    asked = (
        session.peer.forms.spelling,
        session.identity,
        session.method,
        command,
        destination.text,
        session.listener,
        standing.via,
    )
    memory = standing.memory
    noted: Noted | None = None if destination.is_name else memory.recall(asked)
    if noted is None:
        noted = Noted(standing.rules.judge(session.question(command, destination)))
        if not destination.is_name:
            memory.note(asked, noted)
    session.rule = noted.rule
    session.via = noted.via
    if leads_back(noted.verdict, destination.port, session.own_ports):
        raise RequestDenied(LOOP, rule="loop")
    if noted.effects is not None or standing.has_ceiling:
        admit(session, noted.verdict)
    if session.emit.details() and session.emit.audience[RequestJudged]:
        session.emit(RequestJudged(session.id, session.identity, command, destination, noted.rule))
    return noted.addresses


LOOP: Final = "this server itself is the destination"


def leads_back(verdict: Verdict, port: int, own_ports: Collection[int]) -> bool:
    """True when ``port`` of the addresses to dial is one that this server listens on.

    An upstream's addresses are not ours, even where they read the same.
    """
    return port in own_ports and not verdict.via and any(map(is_own_address, verdict.addresses))


class _Late(Exception):
    """The time to connect is over."""


def connect(session: Session, request: Request) -> bool:
    """Serve a CONNECT; True when its streams are to be closed in order.

    Raises:
        RequestFailed: denied, or the target could not be reached.
    """
    addresses = judge(session)
    standing, destination = session.standing, session.destination
    assert destination is not None
    try:
        if session.via:
            opened = pass_on(
                session, partial(open_by, to=as_judged(request, addresses), addresses=addresses)
            )
            session.target, bound = opened.stream, opened.bound
        else:
            if standing.direct is not None:
                session.target = standing.direct(destination, addresses, standing.connect)
            else:
                with Deadline(standing.connect, _Late, session.pump.here):
                    session.target = standing.dial(destination, addresses)
            bound = name_of_end(session.target, "getsockname")
    except _Late:
        raise no_answer(destination, standing.connect) from None
    except RequestFailed:
        raise
    except OSError as error:  # of somebody else's dialer: the target's trouble, not the client's
        raise failure_of(error, destination) from error
    assert session.target is not None
    session.reached = _monotonic()
    session.dialled = reached_by(session.target, destination)
    try:
        session.answer(_SUCCEEDED, bound)
    except OSError:
        session.reason = End.RESET_BY_CLIENT.value
        return False
    return relay(session, session.target, request)


def reached_by(target: Stream, destination: Address) -> Address:
    """Whom ``target`` is a connection to; most often it is just the destination."""
    if type(target) is Connection and target.peer is destination:
        return destination
    return name_of_end(target, "getpeername", destination)


def as_judged(request: Request, addresses: tuple[IPAddress, ...]) -> Address:
    """The destination to tell an upstream: an address as it was judged, a name as it was asked."""
    to = request.destination
    return Address(addresses[0], to.port) if addresses else to


def pass_on(session: Session, ask: Callable[[Dialer, float], T]) -> T:
    """What ``ask`` gets from the first of the session's upstreams that does its part.

    Raises:
        RequestFailed: none does, the answer of the one that does, or it took too long.
    """
    policy = session.policy
    limit = policy.timeouts.connect
    try:
        with Deadline(limit, _Late):
            session.upstream, answer = first_to_answer(
                session.via, policy.dialers, policy.health, ask, limit, session.emit
            )
    except _Late:
        raise no_answer(session.destination, limit) from None
    return answer


def relay(session: Session, target: Stream, request: Request) -> bool:
    """Relay between the client and ``target``, now that the client knows it is there."""
    session.replied = True
    if session.emit.details() and session.emit.audience[SessionEstablished]:
        session.emit(
            SessionEstablished(
                session.id,
                session.identity,
                request.destination,
                session.dialled or request.destination,
                monotonic() - session.opened,
                session.upstream,
            )
        )
    end, error = session.pump.relay(session.stream, target, session.meter)
    if end is _CLOSED:
        session.reason = "closed"
        return True
    broken = end in (End.BROKEN_BY_CLIENT, End.BROKEN_BY_TARGET)
    session.reason = f"{end.value}: {error}" if broken else end.value
    return False
