"""CONNECT: judge, reach the target, say so, relay (RFC 1928, sections 4 and 6)."""

import time

from geosocks.codes import Method, Rep
from geosocks.errors import RequestDenied, RequestFailed, TargetTimeout
from geosocks.events import RequestJudged, SessionEstablished
from geosocks.relay.pump import End
from geosocks.relay.target import failure_of, is_own_address
from geosocks.rules import Question
from geosocks.session.record import Session, name_of_end
from geosocks.stream import Stream, deadline
from geosocks.wire.socks5 import IPAddress, Request


def judge(session: Session, request: Request) -> tuple[IPAddress, ...]:
    """The addresses that the rules let the client reach, in the order to try them.

    Raises:
        RequestDenied: a rule said no, or the way leads back to this server.
        HostUnreachable: the name has no address.
    """
    policy = session.policy
    question = Question(
        peer=session.peer,
        identity=session.identity,
        method=session.method or Method.NONE,
        command=request.cmd,
        destination=request.destination,
        resolver=policy.resolver,
        listener=session.listener,
    )
    verdict = policy.rules.judge(question)
    session.rule = verdict.rule
    if request.destination.port in session.own_ports and any(
        map(is_own_address, verdict.addresses)
    ):
        raise RequestDenied("this server itself is the destination", rule="loop")
    session.emit(
        RequestJudged(session.id, session.identity, request.cmd, request.destination, verdict.rule)
    )
    return verdict.addresses


def connect(session: Session, request: Request) -> bool:
    """Serve a CONNECT; True when its streams are to be closed in order.

    Raises:
        RequestFailed: denied, or the target could not be reached.
    """
    policy = session.policy
    addresses = judge(session, request)
    limit = policy.timeouts.connect
    late = TargetTimeout(f"{request.destination}: no answer within {limit:g} s")
    try:
        with deadline(limit, late):
            session.target = policy.dialer.open_connection(request.destination, addresses)
    except RequestFailed:
        raise
    except OSError as error:  # of somebody else's dialer: the target's trouble, not the client's
        raise failure_of(error, request.destination) from error
    session.dialled = name_of_end(session.target, "getpeername", request.destination)
    try:
        session.answer(Rep.SUCCEEDED, name_of_end(session.target, "getsockname"))
    except OSError:
        session.reason = End.RESET_BY_CLIENT.value
        return False
    return relay(session, session.target, request)


def relay(session: Session, target: Stream, request: Request) -> bool:
    """Relay between the client and ``target``, now that the client knows it is there."""
    session.replied = True
    session.emit(
        SessionEstablished(
            session.id,
            session.identity,
            request.destination,
            session.dialled or request.destination,
            time.monotonic() - session.opened,
        )
    )
    end, error = session.pump.relay(session.stream, target, session.meter)
    broken = end in (End.BROKEN_BY_CLIENT, End.BROKEN_BY_TARGET)
    session.reason = f"{end.value}: {error}" if broken else end.value
    return end is End.CLOSED
