"""The server's half of RFC 1928, section 3, top to bottom: one session, one greenlet.

Negotiate, authenticate, read the request, judge it, establish the connection or deny it, relay.
Knows no listener and no other session.
"""

import traceback
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Final

from greenlet import getcurrent

from geosocks.auth import Authenticator
from geosocks.codes import SOCKS4_VERSION, SOCKS5_VERSION, Cmd, Method, Rep, name_of
from geosocks.deadlines import Deadline
from geosocks.entrance import Gate
from geosocks.errors import (
    AuthFailed,
    CommandNotSupported,
    NegotiationFailed,
    NegotiationTimeout,
    NoAcceptableMethod,
    NothingSaid,
    Penalised,
    ProtocolError,
    RequestFailed,
    Truncated,
)
from geosocks.events import (
    AuthenticationFailed,
    FanOut,
    MethodSelected,
    NegotiationEnded,
    SessionCrashed,
    SessionOpened,
)
from geosocks.relay.pump import Pump, abort
from geosocks.relay.udp import Associations
from geosocks.session import socks4
from geosocks.session.admission import await_turn, leave, note_failure
from geosocks.session.associate import associate
from geosocks.session.bind import bind
from geosocks.session.connect import connect
from geosocks.session.messages import OFFERS, REQUESTS, Offered, Requested
from geosocks.session.record import Session, SessionCut, address_of
from geosocks.session.standing import Standing
from geosocks.stream import Connection, Stream, at_once, finish, read_message, send
from geosocks.tls import accept
from geosocks.wire.address import Address
from geosocks.wire.socks5 import CHOICES, MethodOffer, Request

# As Final they need no look-up by name, which costs as much as a short function.
_monotonic: Final = monotonic
_getcurrent: Final = getcurrent
_CHOICES: Final = CHOICES
_Late: Final = NegotiationTimeout

__all__ = ["Session", "SessionCut", "address_of", "run", "serve_client"]


def serve_client(
    sessions: dict[int, Session],
    number: int,
    client: Connection,
    peer: Address,
    listener: str,
    tls: bool,
    standing: Standing,
    pump: Pump,
    emit: FanOut,
    gate: Gate,
    own_ports: frozenset[int],
    associations: Associations,
) -> None:
    """Serve one client in the greenlet at hand; its session is ``number`` of ``sessions`` so long.

    ``tls`` says what its listener speaks, ``gate`` counts its handshake, and the others are as of
    ``Session``.
    """
    session = Session(
        number, client, peer, listener, standing, pump, emit, gate, own_ports, associations
    )
    session.tls = tls
    session.greenlet = _getcurrent()
    gate.handshakes += 1
    sessions[number] = session
    try:
        run(session)
    finally:
        if session.requested is None:
            gate.handshakes -= 1
        del sessions[number]


def run(session: Session) -> None:
    """Serve ``session`` to its end, close all it holds and tell what came of it.

    Raises nothing: whatever happens ends this session and no other.
    """
    if session.emit.details() and session.emit.audience[SessionOpened]:
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
            session.refused = Rep.GENERAL_FAILURE
            with suppress(OSError):
                session.answer(Rep.GENERAL_FAILURE)
                orderly = True
    finally:
        end(session.target, orderly)
        end(session.stream, orderly)
        if session.stream is not session.client:
            session.client.close()
        session.emit.tell(session.closed())


def end(stream: Stream | None, orderly: bool) -> None:
    """Close ``stream``, if there is one; with a reset if it is not to be ``orderly``."""
    if type(stream) is Connection and orderly:
        stream.close()  # the same as below, but cheaper where the kind is known
    elif stream is not None:
        if orderly:
            stream.close()
        else:
            abort(stream)


def serve(session: Session) -> bool:
    """Serve one client; True when its streams are to be closed in order, False for a reset."""
    emit = session.emit
    limit = session.standing.negotiation
    try:
        with Deadline(limit, _Late, session.pump.here, session.greenlet, session.opened):
            request = negotiate(session)
        session.requested = _monotonic()
        session.gate.handshakes -= 1
        try:
            command = COMMANDS.get(session.command)
            return unsupported(request) if command is None else command(session, request)
        finally:
            # Before the client hears of its end: it may come back at once.
            if session.places:
                leave(session)
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
        if session.method != Method.GSSAPI:  # which fails by clocks and keys: there is no guessing
            note_failure(session)
        finish(session.stream)
    except NoAcceptableMethod as failure:
        emit(NegotiationEnded(session.id, session.peer, str(failure), "no_method"))
        finish(session.stream)
    except NegotiationTimeout:
        late = f"the handshake was not done within {limit:g} s"
        emit(NegotiationEnded(session.id, session.peer, late, "timeout"))
    except NothingSaid:
        session.reason = "nothing_said"
    except Penalised as failure:
        emit(NegotiationEnded(session.id, session.peer, str(failure), "penalised"))
    except (NegotiationFailed, ProtocolError) as failure:
        kind = "gone" if isinstance(failure, Truncated) else "protocol"
        emit(NegotiationEnded(session.id, session.peer, str(failure), kind))
    except OSError as error:  # the client went while we spoke with it
        what = f"client: {error.strerror or error}"
        emit(NegotiationEnded(session.id, session.peer, what, "gone"))
        return False
    return True


def negotiate(session: Session) -> Request:
    """All that comes before the request, and the request, by the version that the client speaks.

    Raises:
        GeosocksError: any failure that ``serve`` knows an end for.
    """
    if session.tls:
        secure(session)
    offered = at_once(session.stream, OFFERS)
    if offered is None:
        start = session.stream.recv(2)
        if start[:1] == _VERSION_4:
            return socks4.negotiate(session, start)
        if start[:1] != _VERSION:
            not_socks5(session, start[:1])
        offered = Offered(read_message(session.stream, MethodOffer.decode, start))
    authenticate(session, choose_method(session, offered.methods))
    return read_request(session)


def secure(session: Session) -> None:
    """Run the handshake of a listener that speaks TLS; SOCKS is spoken inside.

    Raises:
        ProtocolError: it fails; the client was told why as TLS does it.
        NothingSaid: the client closed without a word.
    """
    context = session.policy.tls_at(session.listener)
    if context is None:  # never to be spoken to in the clear instead
        raise NegotiationFailed("TLS: the policy has no certificate for this listener")
    stream = accept(session.client, context)
    if stream is None:
        raise NothingSaid("client closed before it said anything")
    session.stream = stream
    session.certificate = stream.peer_name()


def choose_method(session: Session, methods: bytes) -> Authenticator:
    """Select a METHOD from those that the client offers, and tell it (RFC 1928, section 3).

    The first in our order of preference that the client offers.

    Raises:
        NoAcceptableMethod: none of those offered is acceptable; X'FF' was sent.
    """
    client, authenticators = session.stream, session.authenticators
    for authenticator in authenticators:
        method = authenticator.method
        if method in methods:
            send(client, _CHOICES[method])
            if session.emit.details() and session.emit.audience[MethodSelected]:
                session.emit(MethodSelected(session.id, method, methods))
            return authenticator
    client.sendall(CHOICES[Method.NO_ACCEPTABLE])
    offered = ", ".join(name_of(Method, method) for method in methods) or "nothing"
    wanted = ", ".join(name_of(Method, a.method) for a in authenticators)
    raise NoAcceptableMethod(f"no acceptable method: client offers {offered}; we take {wanted}")


_VERSION: Final = bytes((SOCKS5_VERSION,))
_VERSION_4: Final = bytes((SOCKS4_VERSION,))
_TLS_HANDSHAKE: Final = b"\x16"

_HTTP_ANSWER: Final = (
    b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    b"This is a SOCKS5 proxy, not a web server or an HTTP proxy.\n"
    b"Set it as the SOCKS host of your program, or write socks5h:// in front of its address.\n"
)


def not_socks5(session: Session, start: bytes) -> None:
    """Turn a client away whose first octet is neither X'05' nor X'04'.

    Raises:
        NothingSaid: it closed without a word, as a health check does.
        ProtocolError: it speaks something else; a web browser is told in its own words.
    """
    if not start:
        raise NothingSaid("client closed before it said anything")
    if start in b"GHPCDOT":  # GET, HEAD, POST, PUT, CONNECT, DELETE, OPTIONS, TRACE
        session.stream.sendall(_HTTP_ANSWER)
        finish(session.stream)
        raise ProtocolError("client speaks HTTP")
    if start == _TLS_HANDSHAKE and not session.tls:
        session.client.discard()  # its message may well be longer than what we looked at
        raise ProtocolError("client speaks TLS, and this listener does not: write it tls://")
    raise ProtocolError(f"first octet is {start[0]:#04x}, expected 0x05")


def authenticate(session: Session, authenticator: Authenticator) -> None:
    """Run the selected method's sub-negotiation.

    Raises:
        AuthFailed: the client was refused and told so.
        Penalised: it may not even try.
    """
    method = session.method = authenticator.method
    if session.gate.failures:
        await_turn(session)
    grant = authenticator.authenticate(session.stream, session.peer)
    session.enter(method, grant)


def read_request(session: Session) -> Request:
    """Read the relay request, unwrapped when the method encapsulates (RFC 1928, section 4)."""
    requested = at_once(session.stream, REQUESTS)
    if requested is None:
        requested = Requested(read_message(session.stream, Request.decode, least=8))
    session.command = requested.command
    session.destination = requested.destination
    return requested.request


def unsupported(request: Request) -> bool:
    """Any CMD that we do not do: X'07'."""
    raise CommandNotSupported(f"command {name_of(Cmd, request.cmd)} is not supported")


COMMANDS: Final[dict[int | None, Callable[[Session, Request], bool]]] = {
    Cmd.CONNECT.value: connect,
    Cmd.BIND.value: bind,
    Cmd.UDP_ASSOCIATE.value: associate,
}
