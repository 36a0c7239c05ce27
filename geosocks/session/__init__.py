"""The server's half of RFC 1928, section 3, top to bottom: one session, one greenlet.

Negotiate, authenticate, read the request, judge it, establish the connection or deny it, relay.
Knows no listener and no other session.
"""

import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from geosocks.auth import Authenticator
from geosocks.codes import SOCKS5_VERSION, Cmd, Method, Rep, name_of
from geosocks.errors import (
    AuthFailed,
    CommandNotSupported,
    NegotiationFailed,
    NegotiationTimeout,
    NoAcceptableMethod,
    ProtocolError,
    RequestFailed,
    Truncated,
)
from geosocks.events import (
    Authenticated,
    AuthenticationFailed,
    MethodSelected,
    NegotiationEnded,
    SessionCrashed,
    SessionOpened,
)
from geosocks.relay.pump import abort
from geosocks.session.connect import connect
from geosocks.session.record import Session, SessionCut, address_of
from geosocks.stream import deadline, finish, read_message
from geosocks.wire.socks5 import MethodChoice, MethodOffer, Request

__all__ = ["Session", "SessionCut", "address_of", "run"]


class NothingSaid(Truncated):
    """The client closed before its first octet: a health check, or a change of mind."""


def run(session: Session) -> None:
    """Serve ``session`` to its end, close all it holds and tell what came of it.

    Raises nothing: whatever happens ends this session and no other.
    """
    session.emit(SessionOpened(session.id, session.peer, session.listener))
    orderly = False
    try:
        orderly = serve(session)
    except SessionCut as cut:
        session.reason = cut.reason
        orderly = True
    except Exception as fault:
        session.reason = "crashed"
        session.emit(SessionCrashed(session.id, repr(fault), traceback.format_exc()))
        if session.command is not None and not session.replied:
            with suppress(OSError):
                session.answer(Rep.GENERAL_FAILURE)
                orderly = True
    finally:
        for stream in (session.target, session.stream):
            if stream is None:
                continue
            if orderly:
                stream.close()
            else:
                abort(stream)
        session.client.close()
        session.emit(session.closed())


def serve(session: Session) -> bool:
    """Serve one client; True when its streams are to be closed in order, False for a reset."""
    emit = session.emit
    limit = session.policy.timeouts.negotiation
    late = NegotiationTimeout(f"the handshake was not done within {limit:g} s")
    try:
        with deadline(limit, late):
            authenticator = choose_method(session)
            authenticate(session, authenticator)
            request = read_request(session)
        return COMMANDS.get(request.cmd, unsupported)(session, request)
    except RequestFailed as failure:
        session.refuse(failure)
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


def choose_method(session: Session) -> Authenticator:
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
            session.emit(MethodSelected(session.id, authenticator.method, offer.methods))
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


def authenticate(session: Session, authenticator: Authenticator) -> None:
    """Run the selected method's sub-negotiation.

    Raises:
        AuthFailed: the client was refused and told so.
    """
    session.method = authenticator.method
    grant = authenticator.authenticate(session.client, session.peer)
    session.stream = grant.stream
    session.identity = grant.identity
    session.emit(Authenticated(session.id, authenticator.method, grant.identity, grant.detail))


def read_request(session: Session) -> Request:
    """Read the relay request, unwrapped when the method encapsulates (RFC 1928, section 4)."""
    request = read_message(session.stream, Request.decode)
    session.command = request.cmd
    session.destination = request.destination
    return request


def unsupported(session: Session, request: Request) -> bool:
    """Any CMD that we do not do: X'07'."""
    raise CommandNotSupported(f"command {name_of(Cmd, request.cmd)} is not supported")


COMMANDS: Final[dict[int, Callable[[Session, Request], bool]]] = {Cmd.CONNECT: connect}
