"""SOCKS4 and 4A beside RFC 1928: the same requests and answers, in other words.

Version 4 has no methods.  Its USERID is whatever the client says it is: a claim that is logged and
never believed.  So it is served where nobody need prove anything, as by method X'00'.
"""

from ipaddress import IPv4Address
from typing import Final

from geosocks.codes import SOCKS4_VERSION, Cmd, Method, Rep, Socks4Cd, name_of
from geosocks.errors import AuthFailed, CommandNotSupported, ProtocolError, RequestDenied
from geosocks.session.record import Session
from geosocks.stream import finish, read_message
from geosocks.wire import socks4
from geosocks.wire.socks5 import UNSPECIFIED_V4, Address, Request

COMMANDS: Final[dict[int, Cmd]] = {Socks4Cd.CONNECT: Cmd.CONNECT, Socks4Cd.BIND: Cmd.BIND}


def encode_reply(rep: int, bound: Address) -> bytes:
    """Write a reply: 90 for X'00', 91 for any other REP.

    An address that is not IPv4 becomes 0.0.0.0; in the answer to a CONNECT nobody looks at it.
    """
    if not isinstance(bound.host, IPv4Address):
        bound = Address(UNSPECIFIED_V4, bound.port)
    cd = Socks4Cd.GRANTED if rep == Rep.SUCCEEDED else Socks4Cd.REJECTED
    return socks4.Reply(cd, bound).encode()


def negotiate(session: Session, start: bytes) -> Request:
    """Read the request, which ``start`` begins, and see whether its sender may make any.

    Raises:
        RequestFailed: it may not, or asks for what there is not.
        ProtocolError: these octets are no request, or SOCKS4 is switched off.
    """
    session.version = SOCKS4_VERSION
    session.write_reply = encode_reply
    if not session.policy.socks4:
        session.answer(Rep.GENERAL_FAILURE)
        finish(session.stream)
        raise ProtocolError("client speaks SOCKS4, which is switched off")
    request = read_message(session.stream, socks4.Request.decode, start)
    command = session.command = COMMANDS.get(request.cd)
    session.destination = request.destination
    session.claimed = request.userid.decode("utf-8", "surrogateescape") or None
    session.method = Method.NONE
    admit(session)
    if command is None:
        raise CommandNotSupported(f"SOCKS4 CD {name_of(Socks4Cd, request.cd)} is no request")
    return Request(command, request.destination)


def admit(session: Session) -> None:
    """Let the client in where it need not prove who it is.

    Raises:
        RequestDenied: every method that is taken asks for more, or X'00' does not want this client.
    """
    for authenticator in session.authenticators:
        if authenticator.method == Method.NONE:
            try:
                grant = authenticator.authenticate(session.stream, session.peer)
            except AuthFailed as failure:
                raise RequestDenied(str(failure)) from failure
            session.enter(Method.NONE, grant)
            return
    wanted = ", ".join(name_of(Method, a.method) for a in session.authenticators)
    raise RequestDenied(f"SOCKS4 proves nobody's identity; we take {wanted}")
