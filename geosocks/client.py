"""The client's half of RFC 1928, section 3: offer METHODs, authenticate, ask, and have a stream.

Works on gevent sockets: in a gevent program other greenlets go on meanwhile, in an ordinary one the
call simply blocks its thread.
"""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import SplitResult, parse_qsl, unquote, unquote_to_bytes, urlsplit

import gevent.socket

from geosocks.auth import Credential, Grant, NoAuth
from geosocks.auth.gss import GssCredential
from geosocks.auth.userpass import Password
from geosocks.codes import SOCKS_PORT, Cmd, Method, ProtectionLevel, Rep, name_of
from geosocks.errors import (
    AddressTypeNotSupported,
    CommandNotSupported,
    ConfigError,
    HostUnreachable,
    NegotiationTimeout,
    NetworkUnreachable,
    NoAcceptableMethod,
    ProtocolError,
    RequestDenied,
    RequestFailed,
    TargetRefused,
    TargetTimeout,
)
from geosocks.stream import Stream, deadline, read_message
from geosocks.wire.socks5 import Address, MethodChoice, MethodOffer, Reply, Request

FAILURES: Final[dict[int, tuple[type[RequestFailed], str]]] = {
    Rep.GENERAL_FAILURE: (RequestFailed, "general SOCKS server failure"),
    Rep.NOT_ALLOWED: (RequestDenied, "connection not allowed by ruleset"),
    Rep.NETWORK_UNREACHABLE: (NetworkUnreachable, "network unreachable"),
    Rep.HOST_UNREACHABLE: (HostUnreachable, "host unreachable"),
    Rep.CONNECTION_REFUSED: (TargetRefused, "connection refused"),
    Rep.TTL_EXPIRED: (TargetTimeout, "TTL expired"),
    Rep.COMMAND_NOT_SUPPORTED: (CommandNotSupported, "command not supported"),
    Rep.ADDRESS_TYPE_NOT_SUPPORTED: (AddressTypeNotSupported, "address type not supported"),
}
"""The RFC's words for each REP (RFC 1928, section 6)."""


def failure_of(rep: int, to: Address) -> RequestFailed:
    """The exception for a reply other than X'00'."""
    kind, words = FAILURES.get(rep, (RequestFailed, "unassigned reply"))
    failure = kind(f"{to}: server answers X'{rep:02X}', {words}")
    failure.rep = rep
    return failure


@dataclass(frozen=True, slots=True)
class Established:
    """A connection through the server: the stream, its BND, and how it was negotiated."""

    stream: Stream
    bound: Address
    method: int
    grant: Grant


class Client:
    """A SOCKS5 server to go through, and what we can show it.

    ``credentials`` are offered in their order; the server selects.  ``timeout`` is in seconds and
    bounds all of a ``connect``: reaching the server, the handshake, and the server's own dialling.
    """

    def __init__(
        self,
        server: Address | tuple[str, int],
        credentials: Sequence[Credential] = (NoAuth(),),
        *,
        timeout: float = 30.0,
    ) -> None:
        self.server = server if isinstance(server, Address) else Address(*server)
        self.credentials = {credential.method: credential for credential in credentials}
        self.timeout = timeout

    @classmethod
    def from_url(cls, url: str, *, password: str | None = None, timeout: float = 30.0) -> Self:
        """Make a client from ``socks5://[user[:password]@]host[:port][?auth=...]``.

        ``password`` is used when the URL has none; ``?password-file=F`` names a file that holds it,
        which nobody else may read.  ``auth`` lists the methods to offer: ``none``, ``username``,
        ``gssapi``; by default what the URL has credentials for.  ``service`` (``rcmd``) and
        ``level`` (``confidentiality``, ``integrity``, ``clear``) are GSSAPI's.

        Raises:
            ConfigError: the URL cannot be used as written; its password is never quoted.
        """
        return cls(*_parse_url(url, password), timeout=timeout)

    def connect(self, to: Address | tuple[str, int], timeout: float | None = None) -> Any:
        """Connect to ``to`` through the server; a name is resolved there, never here.

        Returns a gevent socket, or a stream with its methods when GSSAPI encapsulates the octets.

        Raises:
            NegotiationFailed: the server does not take us, or was too slow.
            RequestFailed: it takes us, and answered the request with ``rep``.
            ProtocolError: it does not speak SOCKS version 5 as the RFC has it.
            OSError: it could not be reached.
        """
        return self.establish(to, timeout).stream

    def establish(self, to: Address | tuple[str, int], timeout: float | None = None) -> Established:
        """As ``connect``, and tell how it went."""
        to = destination(to)
        seconds = self.timeout if timeout is None else timeout
        late = NegotiationTimeout(f"{self.server}: no connection to {to} within {seconds:g} s")
        with deadline(seconds, late):
            stream = self.reach()
            try:
                method, grant = self.negotiate(stream)
                reply = self.request(grant.stream, Request(Cmd.CONNECT, to))
            except BaseException:
                stream.close()
                raise
        return Established(grant.stream, reply.bound, method, grant)

    def reach(self) -> gevent.socket.socket:
        """Open the TCP connection to the server; the caller closes it."""
        sock = gevent.socket.create_connection((str(self.server.host), self.server.port))
        sock.setsockopt(gevent.socket.IPPROTO_TCP, gevent.socket.TCP_NODELAY, 1)
        return sock

    def negotiate(self, stream: Stream) -> tuple[int, Grant]:
        """Offer our METHODs and run the one that the server selects (RFC 1928, section 3).

        Raises:
            NoAcceptableMethod: X'FF'.
            AuthFailed: the sub-negotiation ended in a refusal.
            ProtocolError: the server selected what was not offered, or broke the wire.
        """
        stream.sendall(MethodOffer(bytes(self.credentials)).encode())
        method = read_message(stream, MethodChoice.decode).method
        if method == Method.NO_ACCEPTABLE:
            offered = ", ".join(name_of(Method, ours) for ours in self.credentials)
            raise NoAcceptableMethod(f"{self.server}: takes no method that we offer: {offered}")
        credential = self.credentials.get(method)
        if credential is None:
            raise ProtocolError(f"{self.server}: selected METHOD {method:#04x}, not offered")
        return method, credential.present(stream)

    def request(self, stream: Stream, request: Request) -> Reply:
        """Send a relay request and read its reply (RFC 1928, sections 4 and 6).

        Raises:
            RequestFailed: the reply is not X'00'.
        """
        stream.sendall(request.encode())
        reply = read_message(stream, Reply.decode)
        if reply.rep != Rep.SUCCEEDED:
            raise failure_of(reply.rep, request.destination)
        return reply


def destination(to: Address | tuple[str, int]) -> Address:
    """Make an Address that can be sent: a name beyond ASCII in its IDNA form.

    Raises:
        ValueError: no DOMAINNAME can hold it.
    """
    address = to if isinstance(to, Address) else Address(*to)
    if isinstance(address.host, str) and not address.host.isascii():
        address = Address(address.host.encode("idna").decode("ascii"), address.port)
    address.encode()
    return address


# --- proxy URLs -------------------------------------------------------------------------------

_LEVELS: Final = {level.name.lower(): level for level in ProtectionLevel}
_SETTINGS: Final = ("auth", "service", "level", "password-file")


def _parse_url(url: str, password: str | None) -> tuple[Address, list[Credential]]:
    try:
        parts = urlsplit(url)
        port = parts.port or SOCKS_PORT
    except ValueError as error:
        raise ConfigError(f"proxy URL: {error}") from None
    if parts.scheme not in ("socks5", "socks5h"):
        raise ConfigError(f"proxy URL: scheme {parts.scheme!r}; write socks5://host:port")
    if not parts.hostname:
        raise ConfigError("proxy URL: no host; write socks5://host:port")
    settings = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = ", ".join(sorted(settings.keys() - set(_SETTINGS)))
    if unknown:
        raise ConfigError(f"proxy URL: unknown setting {unknown}; known: {', '.join(_SETTINGS)}")
    has_user = parts.username is not None
    methods = settings.get("auth", "username" if has_user else "none").split(",")
    credentials = [_credential(method, parts, settings, password) for method in methods]
    return Address(parts.hostname, port), credentials


def _credential(
    method: str, parts: SplitResult, settings: dict[str, str], password: str | None
) -> Credential:
    if method == "none":
        return NoAuth()
    if method == "username":
        if parts.username is None:
            raise ConfigError("proxy URL: method username, but no user; write socks5://user@host")
        return Password(unquote_to_bytes(parts.username), _password(parts, settings, password))
    if method == "gssapi":
        level = settings.get("level", "confidentiality")
        if level not in _LEVELS:
            raise ConfigError(f"proxy URL: level {level!r}; known: {', '.join(_LEVELS)}")
        return GssCredential(
            parts.hostname or "",
            service=unquote(settings.get("service", "rcmd")),
            level=_LEVELS[level],
        )
    raise ConfigError(f"proxy URL: auth {method!r}; known: none, username, gssapi")


def _password(parts: SplitResult, settings: dict[str, str], password: str | None) -> bytes:
    if parts.password is not None:
        return unquote_to_bytes(parts.password)
    if "password-file" in settings:
        path = Path(settings["password-file"])
        try:
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                raise ConfigError("others may read it; chmod 600 it", str(path))
            return path.read_bytes().split(b"\n", 1)[0]
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror}", str(path)) from error
    if password is None:
        raise ConfigError("proxy URL: a user but no password")
    return os.fsencode(password)
