"""The client's half of RFC 1928, section 3: offer METHODs, authenticate, ask, and have a stream.

Works on gevent sockets: in a gevent program other greenlets go on meanwhile, in an ordinary one the
call simply blocks its thread.  There ``socket.socket(fileno=stream.detach())`` is an ordinary
blocking socket.  A thread other than the main one that has come to its end of this leaves its hub's
descriptors behind, unless it says ``gevent.get_hub().destroy(destroy_loop=True)`` (gevent's way).
"""

import os
import re
import socket as stdlib_socket  # constants
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self
from urllib.parse import SplitResult, unquote, unquote_to_bytes, urlsplit

import gevent
import gevent.socket

from geosocks.auth import Credential, Grant, NoAuth
from geosocks.auth.gss import SERVICE, GssCredential
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
from geosocks.stream import Stream, read_message
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
    failure = kind(f"{to}: the server answers X'{rep:02X}', {words}")
    failure.rep = rep
    return failure


@dataclass(frozen=True, slots=True)
class Established:
    """A connection through the server: the stream, its BND, and how it was negotiated."""

    stream: Stream
    bound: Address
    method: int
    grant: Grant


class ClientSocket(gevent.socket.socket):
    """A gevent socket whose descriptor, once detached, blocks as an ordinary program expects."""

    def detach(self) -> int:
        """Give the descriptor away; it is the caller's to close."""
        descriptor: int = super().detach()
        os.set_blocking(descriptor, True)
        return descriptor


class Client:
    """A SOCKS5 server to go through, and what we can show it.

    ``credentials`` are offered in their order, one for each method; the server selects.
    ``timeout`` is in seconds and bounds all of a ``connect``: finding and reaching the server, the
    handshake, and the server's own dialling.  Errors do not name the server: the caller knows it.

    Raises:
        ValueError: no credentials, two of one method, or a METHOD that cannot be offered.
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
        if not credentials or len(self.credentials) < len(credentials):
            raise ValueError("credentials: one or more, each of another method")
        if not all(Method.NONE <= method < Method.NO_ACCEPTABLE for method in self.credentials):
            raise ValueError("credentials: a METHOD is X'00' to X'FE'")

    def __repr__(self) -> str:
        methods = ", ".join(name_of(Method, method) for method in self.credentials)
        return f"{type(self).__name__}({str(self.server)!r}, {methods})"

    @classmethod
    def from_url(cls, url: str, *, password: str | None = None, timeout: float = 30.0) -> Self:
        """Make a client from ``socks5://[user[:password]@]host[:port][?setting=value&...]``.

        ``socks5h`` is the same.  User, password, host and values may be percent-encoded, and must
        be where they hold characters that a URL has a use for.

        ``password`` is used when the URL has none; ``password-file`` names a file whose first line
        is it, which nobody else may read.  ``auth`` lists the methods to offer: ``none``,
        ``username``, ``gssapi``; by default ``username`` when there is a user, else ``none``.
        ``service`` (``rcmd``) and ``level`` (``confidentiality``, ``integrity``, ``clear``) are
        GSSAPI's; a user with ``gssapi`` and not ``username`` is the principal to be.

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
            OSError: it could not be reached, or went away.
            ValueError: ``to`` cannot be sent.
        """
        return self.establish(to, timeout).stream

    def establish(self, to: Address | tuple[str, int], timeout: float | None = None) -> Established:
        """As ``connect``, and tell how it went."""
        to = destination(to)
        seconds = self.timeout if timeout is None else timeout
        # Not stream.deadline: the error that it raises is an OSError, and as such would look to
        # whoever tries several addresses like one that does not answer.
        with gevent.Timeout(seconds) as late:
            try:
                return self._establish(to)
            except gevent.Timeout as timeout_:
                if timeout_ is not late:
                    raise
        raise NegotiationTimeout(f"no connection to {to} within {seconds:g} s")

    def _establish(self, to: Address) -> Established:
        stream = self.reach()
        try:
            method, grant = self.negotiate(stream)
            reply = self.request(grant.stream, Request(Cmd.CONNECT, to))
        except BaseException:
            stream.close()
            raise
        return Established(grant.stream, reply.bound, method, grant)

    def reach(self) -> ClientSocket:
        """Open the TCP connection to the server; the caller closes it.

        Raises:
            OSError: no address of it answers; of several, how the last one failed.
        """
        failure = OSError(f"{self.server.host} has no address")
        for family, address in self._addresses():
            sock = ClientSocket(family, stdlib_socket.SOCK_STREAM)
            try:
                sock.connect(address)
                sock.setsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_NODELAY, 1)
            except OSError as error:
                sock.close()
                if error.errno is None:
                    raise  # no system call's, but some timer's: an end to all of it
                failure = error
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        raise failure

    def _addresses(self) -> list[tuple[int, Any]]:
        """Where the server may be, as family and sockaddr."""
        host, port = self.server.host, self.server.port
        if not isinstance(host, str):
            family = stdlib_socket.AF_INET if host.version == 4 else stdlib_socket.AF_INET6
            return [(family, (str(host), port))]
        try:
            found = gevent.socket.getaddrinfo(host, port, 0, stdlib_socket.SOCK_STREAM)
        except UnicodeError as error:
            raise OSError(f"{host!a} is no host name") from error
        return [(entry[0], entry[4]) for entry in found]

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
            raise NoAcceptableMethod(f"the server takes no method that we offer: {offered}")
        credential = self.credentials.get(method)
        if credential is None:
            raise ProtocolError(f"the server selected METHOD {method:#04x}, which was not offered")
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

_LEVELS: Final = {
    level.name.lower(): level
    for level in (ProtectionLevel.CONFIDENTIALITY, ProtectionLevel.INTEGRITY, ProtectionLevel.CLEAR)
}
_SETTINGS: Final = ("auth", "service", "level", "password-file")
_ENCODE: Final = "a character such as / ? # @ in user or password is written %2F %3F %23 %40"


def without_password(text: str) -> str:
    """Write ``text`` without what may be the user and password of a URL in it."""
    return re.sub("://.*@", "://***@", text, flags=re.DOTALL)


def _parse_url(url: str, password: str | None) -> tuple[Address, list[Credential]]:
    parts, port = _split(url)
    settings = _settings(parts.query)
    host = unquote(parts.hostname or "")
    try:
        server = destination((host, port or SOCKS_PORT))
    except ValueError:
        raise ConfigError("proxy URL: no host name; write socks5://host:port") from None
    has_user = parts.username is not None
    methods = settings.get("auth", "username" if has_user else "none").split(",")
    if len(set(methods)) < len(methods):
        raise ConfigError("proxy URL: auth names a method twice")
    return server, [_credential(method, methods, parts, settings, password) for method in methods]


def _split(url: str) -> tuple[SplitResult, int | None]:
    """Take a URL to pieces; whatever its errors quote, it is no part of it but the scheme."""
    if not url.isprintable() or " " in url:
        raise ConfigError("proxy URL: a blank or control character in it; write it as %20 or such")
    try:
        # ValueError's own words may quote the password.
        parts = urlsplit(url)
    except ValueError:
        raise ConfigError(f"proxy URL: no host can be read from it; {_ENCODE}") from None
    if parts.scheme not in ("socks5", "socks5h") or "://" not in url:
        known = f"scheme {parts.scheme!r}" if url.startswith(f"{parts.scheme}://") else "no scheme"
        raise ConfigError(f"proxy URL: {known}; write socks5://host:port")
    if "@" in parts.path + parts.query + parts.fragment:
        raise ConfigError(f"proxy URL: an @ behind the host; {_ENCODE}")
    if parts.path not in ("", "/") or parts.fragment:
        raise ConfigError("proxy URL: more behind the host than :port and ?settings")
    if not parts.hostname:
        raise ConfigError("proxy URL: no host; write socks5://host:port")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise ConfigError(f"proxy URL: the port is no number from 1 to 65535; {_ENCODE}")
    return parts, port


def _settings(query: str) -> dict[str, str]:
    """Read ``setting=value&...``; + is itself, as in a file's name."""
    settings: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        name, _, value = pair.partition("=")
        if name not in _SETTINGS:
            known = ", ".join(_SETTINGS)
            raise ConfigError(f"proxy URL: unknown setting {name!a}; known: {known}")
        if name in settings:
            raise ConfigError(f"proxy URL: {name} stands there twice")
        if not value:
            raise ConfigError(f"proxy URL: {name} has no value")
        settings[name] = unquote(value)
    return settings


def _credential(
    method: str,
    methods: Sequence[str],
    parts: SplitResult,
    settings: dict[str, str],
    password: str | None,
) -> Credential:
    user = parts.username
    match method:
        case "none":
            return NoAuth()
        case "username" if user is not None:
            secret = _password(parts, settings, password)
            try:
                return Password(unquote_to_bytes(user), secret)
            except ValueError as error:
                raise ConfigError(f"proxy URL: {error}") from None
        case "username":
            raise ConfigError("proxy URL: method username, but no user; write socks5://user@host")
        case "gssapi":
            level = settings.get("level", "confidentiality")
            if level not in _LEVELS:
                raise ConfigError(f"proxy URL: level {level!a}; known: {', '.join(_LEVELS)}")
            # A name that is the user's with method username may be unknown to Kerberos.
            principal = unquote(user) if user and "username" not in methods else None
            return GssCredential(
                unquote(parts.hostname or ""),
                service=settings.get("service", SERVICE),
                level=_LEVELS[level],
                principal=principal,
            )
    raise ConfigError(f"proxy URL: auth {method!a}; known: none, username, gssapi")


def _password(parts: SplitResult, settings: dict[str, str], password: str | None) -> bytes:
    path = settings.get("password-file")
    if parts.password is not None:
        if path is not None:
            raise ConfigError("proxy URL: both a password and a password-file")
        return unquote_to_bytes(parts.password)
    if path is not None:
        return _password_in(path)
    if password is None:
        raise ConfigError(
            "proxy URL: a user but no password; name a file, ?password-file=F, which holds it"
        )
    return os.fsencode(password)


def _password_in(path: str) -> bytes:
    """The first line of a file that only its owner may read."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigError("is no file", path)
            if stat.S_IMODE(mode) & 0o077:
                raise ConfigError("others may read or change it; chmod 600 it", path)
            secret = file.readline(4096).rstrip(b"\r\n")
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", path) from error
    except ConfigError:
        raise
    except ValueError:  # a NUL in it
        raise ConfigError("proxy URL: password-file is no file's name") from None
    if not secret:
        raise ConfigError("its first line, which is the password, is empty", path)
    return secret


def _without_waiting(path: str, flags: int) -> int:
    """Open a file, and a pipe or device at once, too: it is refused then."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
