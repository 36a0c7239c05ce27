"""The server's half of RFC 1928, section 3, top to bottom: one session, one greenlet.

Negotiate, authenticate, read the request, judge it, establish the connection or deny it, relay.
Knows no listener and no other session.
"""

import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

from geosocks.auth import Authenticator, Grant
from geosocks.codes import SOCKS5_VERSION, Cmd, Method, Rep, name_of
from geosocks.errors import (
    AuthFailed,
    CommandNotSupported,
    NegotiationFailed,
    NegotiationTimeout,
    NoAcceptableMethod,
    ProtocolError,
    RequestDenied,
    RequestFailed,
    TargetTimeout,
    Truncated,
)
from geosocks.events import (
    Authenticated,
    AuthenticationFailed,
    MethodSelected,
    NegotiationEnded,
    Observer,
    RequestJudged,
    RequestRefused,
    SessionClosed,
    SessionCrashed,
    SessionEstablished,
    SessionOpened,
)
from geosocks.policy import Policy
from geosocks.relay.pump import End, Meter, Pump, abort
from geosocks.relay.target import is_own_address
from geosocks.rules import Question
from geosocks.stream import Connection, Stream, deadline, finish, read_message
from geosocks.wire.socks5 import (
    UNSPECIFIED,
    Address,
    IPAddress,
    MethodChoice,
    MethodOffer,
    Reply,
    Request,
)


class NothingSaid(Truncated):
    """The client closed before its first octet: a health check, or a change of mind."""


class SessionCut(BaseException):
    """Thrown into a session's greenlet to end it: idle, drained, killed."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True, eq=False)
class Session:
    """The live record of one session: written by its greenlet, read by whoever likes."""

    id: int
    client: Connection
    peer: Address
    listener: str
    policy: Policy
    own_ports: frozenset[int] = frozenset()
    """Ports that this server itself listens on; a session cannot be led back to them."""

    opened: float = field(default_factory=time.monotonic)
    greenlet: Any = None
    stream: Stream | None = None
    """The client's octets, unwrapped once the method encapsulates."""

    target: Stream | None = None
    method: int | None = None
    identity: str | None = None
    command: int | None = None
    destination: Address | None = None
    dialled: Address | None = None
    rule: str | None = None
    replied: bool = False
    meter: Meter = field(default_factory=Meter)
    reason: str = "refused"


def run(session: Session, pump: Pump, emit: Observer) -> None:
    """Serve ``session`` to its end, close all it holds and tell what came of it.

    Raises nothing: whatever happens ends this session and no other.
    """
    emit(SessionOpened(session.id, session.peer, session.listener))
    orderly = False
    try:
        orderly = serve(session, pump, emit)
    except SessionCut as cut:
        session.reason = cut.reason
        orderly = True
    except Exception as fault:
        session.reason = "crashed"
        emit(SessionCrashed(session.id, repr(fault), traceback.format_exc()))
        if session.stream is not None and session.command is not None and not session.replied:
            with suppress(OSError):
                session.stream.sendall(Reply(Rep.GENERAL_FAILURE).encode())
                orderly = True
    finally:
        for stream in (session.target, session.stream or session.client):
            if stream is not None:
                (_close if orderly else abort)(stream)
        session.client.close()
        emit(_closed(session))


def _close(stream: Stream) -> None:
    stream.close()


def _closed(session: Session) -> SessionClosed:
    return SessionClosed(
        session.id,
        client=session.peer,
        method=session.method,
        identity=session.identity,
        command=session.command,
        destination=session.destination,
        dialled=session.dialled,
        rule=session.rule,
        reason=session.reason,
        up=session.meter.up,
        down=session.meter.down,
        seconds=time.monotonic() - session.opened,
    )


def serve(session: Session, pump: Pump, emit: Observer) -> bool:
    """Serve one client; True when its streams are to be closed in order, False for a reset."""
    stream: Stream = session.client
    limit = session.policy.timeouts.negotiation
    late = NegotiationTimeout(f"the handshake was not done within {limit:g} s")
    try:
        with deadline(limit, late):
            authenticator = choose_method(session, emit)
            session.method = authenticator.method
            stream = authenticate(session, authenticator, emit).stream
            session.stream = stream
            request = read_request(session, stream)
        return COMMANDS.get(request.cmd, unsupported)(session, request, pump, emit)
    except RequestFailed as failure:
        refuse(session, stream, failure, emit)
    except AuthFailed as failure:
        emit(
            AuthenticationFailed(
                session.id,
                session.peer,
                Method.NO_ACCEPTABLE if session.method is None else session.method,
                failure.identity,
                str(failure),
            )
        )
        finish(session.client)
    except NoAcceptableMethod as failure:
        emit(NegotiationEnded(session.id, session.peer, str(failure)))
        finish(session.client)
    except NothingSaid:
        session.reason = "nothing_said"
    except (NegotiationFailed, ProtocolError) as failure:
        emit(NegotiationEnded(session.id, session.peer, str(failure)))
    except OSError as error:  # the client went while we spoke with it
        emit(NegotiationEnded(session.id, session.peer, f"client: {error.strerror or error}"))
        return False
    return True


def choose_method(session: Session, emit: Observer) -> Authenticator:
    """Read the offer and select a METHOD from it, in our order of preference (RFC 1928, 3).

    Raises:
        NoAcceptableMethod: none of those offered is acceptable; X'FF' was sent.
        ProtocolError: this is not SOCKS version 5.
    """
    client = session.client
    start = client.recv(1)
    if start != _VERSION:
        not_socks5(session, start)
    offer = read_message(client, MethodOffer.decode, start)
    for authenticator in session.policy.authenticators:
        if authenticator.method in offer.methods:
            client.sendall(MethodChoice(authenticator.method).encode())
            emit(MethodSelected(session.id, authenticator.method, offer.methods))
            return authenticator
    client.sendall(MethodChoice(Method.NO_ACCEPTABLE).encode())
    offered = ", ".join(name_of(Method, method) for method in offer.methods) or "nothing"
    wanted = ", ".join(name_of(Method, a.method) for a in session.policy.authenticators)
    raise NoAcceptableMethod(f"no acceptable method: client offers {offered}; we take {wanted}")


_VERSION: Final = bytes((SOCKS5_VERSION,))

_HTTP_ANSWER: Final = (
    b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    b"This is a SOCKS5 proxy, not a web server or an HTTP proxy.\n"
    b"Set it as the SOCKS host of your program, or write socks5h:// in front of its address.\n"
)


def not_socks5(session: Session, start: bytes) -> None:
    """Turn a client away whose first octet is not X'05'.

    Raises:
        NothingSaid: it closed without a word, as a health check does.
        ProtocolError: it speaks something else; a web browser is told in its own words.
    """
    if not start:
        raise NothingSaid("client closed before it said anything")
    if start in b"GHPCDOT":  # GET, HEAD, POST, PUT, CONNECT, DELETE, OPTIONS, TRACE
        session.client.sendall(_HTTP_ANSWER)
        finish(session.client)
        raise ProtocolError("client speaks HTTP")
    raise ProtocolError(f"first octet is {start[0]:#04x}, expected 0x05")


def authenticate(session: Session, authenticator: Authenticator, emit: Observer) -> Grant:
    """Run the selected method's sub-negotiation.

    Raises:
        AuthFailed: the client was refused and told so.
    """
    grant = authenticator.authenticate(session.client, session.peer)
    session.identity = grant.identity
    emit(Authenticated(session.id, authenticator.method, grant.identity, grant.detail))
    return grant


def read_request(session: Session, stream: Stream) -> Request:
    """Read the relay request, unwrapped when the method encapsulates (RFC 1928, section 4)."""
    request = read_message(stream, Request.decode)
    session.command = request.cmd
    session.destination = request.destination
    return request


def judge(session: Session, request: Request, emit: Observer) -> tuple[IPAddress, ...]:
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
    emit(
        RequestJudged(session.id, session.identity, request.cmd, request.destination, verdict.rule)
    )
    return verdict.addresses


def connect(session: Session, request: Request, pump: Pump, emit: Observer) -> bool:
    """CONNECT: reach the target, say so, relay (RFC 1928, sections 4 and 6).

    Raises:
        RequestFailed: denied, or the target could not be reached.
    """
    assert session.stream is not None
    policy = session.policy
    addresses = judge(session, request, emit)
    limit = policy.timeouts.connect
    late = TargetTimeout(f"{request.destination}: no answer within {limit:g} s")
    with deadline(limit, late):
        target = policy.dialer.open_connection(request.destination, addresses)
    session.target = target
    session.dialled = name_of_end(target, "getpeername", request.destination)
    try:
        session.stream.sendall(Reply(Rep.SUCCEEDED, name_of_end(target, "getsockname")).encode())
    except OSError:
        session.reason = End.RESET_BY_CLIENT.value
        return False
    session.replied = True
    emit(
        SessionEstablished(
            session.id,
            session.identity,
            request.destination,
            session.dialled,
            time.monotonic() - session.opened,
        )
    )
    end, error = pump.relay(session.stream, target, session.meter)
    session.reason = (
        end.value if error is None or end.value.startswith("reset") else (f"{end.value}: {error}")
    )
    return end is End.CLOSED


def unsupported(session: Session, request: Request, pump: Pump, emit: Observer) -> bool:
    """Any CMD that we do not do: X'07'."""
    raise CommandNotSupported(f"command {name_of(Cmd, request.cmd)} is not supported")


COMMANDS: Final[dict[int, Callable[[Session, Request, Pump, Observer], bool]]] = {
    Cmd.CONNECT: connect
}


def refuse(session: Session, stream: Stream, failure: RequestFailed, emit: Observer) -> None:
    """Answer the request with the failure's REP, and see that the client can read it."""
    emit(
        RequestRefused(
            session.id,
            client=session.peer,
            method=Method.NONE if session.method is None else session.method,
            identity=session.identity,
            command=session.command,
            destination=session.destination,
            reply=failure.rep,
            rule=getattr(failure, "rule", None),
            reason=str(failure),
        )
    )
    try:
        stream.sendall(Reply(failure.rep).encode())
    except OSError:
        return  # it has gone
    finish(stream)


def name_of_end(stream: Stream, which: str, otherwise: Address = UNSPECIFIED) -> Address:
    """One end's address as BND or a log shows it; ``otherwise`` when the stream cannot tell."""
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
    host, port = name[:2]
    if ":" not in host:
        return Address(IPv4Address(host), port)
    address = IPv6Address(host.partition("%")[0])
    return Address(address.ipv4_mapped or address, port)
