"""The client's half of RFC 1928, section 3: offer METHODs, authenticate, ask, and have a stream.

Works on gevent sockets: in a gevent program other greenlets go on meanwhile, in an ordinary one the
call simply blocks its thread, and ``stream.ordinary()`` is an ordinary blocking socket.  A thread
other than the main one that has come to its end of this leaves its hub's descriptors behind, unless
it says ``gevent.get_hub().destroy(destroy_loop=True)`` (gevent's way).
"""

import socket as stdlib_socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import gevent
import gevent.socket

from geosocks.auth import Credential, Grant, NoAuth
from geosocks.client.address import address_of, destination
from geosocks.client.association import Association, open_socket
from geosocks.client.bound import Bound
from geosocks.client.failures import FAILURES, failure_of
from geosocks.client.socks4 import Socks4
from geosocks.client.url import parse_url, without_password
from geosocks.codes import Cmd, Method, Rep, name_of
from geosocks.errors import (
    CommandNotSupported,
    ConfigError,
    NegotiationTimeout,
    NoAcceptableMethod,
    ProtocolError,
)
from geosocks.stream import Stream, read_message
from geosocks.tls import wrap_client
from geosocks.wire.socks5 import UNSPECIFIED, Address, MethodChoice, MethodOffer, Reply, Request

__all__ = [
    "FAILURES",
    "Association",
    "Bound",
    "Client",
    "ClientSocket",
    "Established",
    "Socks4",
    "destination",
    "failure_of",
    "without_password",
]


@dataclass(frozen=True, slots=True)
class Established:
    """A connection through the server: the stream, its BND, and how it was negotiated."""

    stream: Stream
    bound: Address
    method: int
    grant: Grant


class ClientSocket(gevent.socket.socket):
    """A gevent socket that an ordinary program can make its own."""

    def ordinary(self) -> stdlib_socket.socket:  # noqa: TID251  # that is the point
        """An ordinary blocking socket in its place; the caller closes it."""
        sock = stdlib_socket.socket(fileno=self.detach())  # noqa: TID251
        sock.setblocking(True)
        return sock


class Client:
    """A SOCKS server to go through, and what we can show it.

    ``credentials`` are offered in their order, one for each method; the server selects.
    ``timeout`` is in seconds and bounds all of a ``connect``: finding and reaching the server, the
    handshake, and the server's own dialling.  Errors do not name the server: the caller knows it.
    With ``tls``, SOCKS is spoken inside TLS, and the server has to be ``server.host``;
    ``tls.client_context`` makes one.  With ``socks4`` it is a server of version 4 or 4A, which
    knows no credentials and no UDP.

    Raises:
        ValueError: no credentials, two of one method, or a METHOD that cannot be offered.
    """

    def __init__(
        self,
        server: Address | tuple[str, int],
        credentials: Sequence[Credential] = (NoAuth(),),
        *,
        timeout: float = 30.0,
        tls: ssl.SSLContext | None = None,
        socks4: Socks4 | None = None,
    ) -> None:
        self.tls = tls
        self.socks4 = socks4
        self.server = server if isinstance(server, Address) else Address(*server)
        self.credentials = {credential.method: credential for credential in credentials}
        self.timeout = timeout
        if not credentials or len(self.credentials) < len(credentials):
            raise ValueError("credentials: one or more, each of another method")
        if not all(Method.NONE <= method < Method.NO_ACCEPTABLE for method in self.credentials):
            raise ValueError("credentials: a METHOD is X'00' to X'FE'")
        if socks4 is not None and list(self.credentials) != [Method.NONE]:
            raise ValueError("credentials: SOCKS4 has no way to show any")

    def __repr__(self) -> str:
        if self.socks4 is not None:
            return f"{type(self).__name__}({str(self.server)!r}, {self.socks4})"
        methods = ", ".join(name_of(Method, method) for method in self.credentials)
        return f"{type(self).__name__}({str(self.server)!r}, {methods})"

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        password: str | None = None,
        timeout: float = 30.0,
        credentials: Sequence[Credential] = (),
    ) -> Self:
        """Make a client from ``socks5://[user[:password]@]host[:port][?setting=value&...]``.

        ``socks5h`` is the same; ``socks5+tls`` is SOCKS inside TLS, whose ``ca`` names the file of
        authorities to trust (the system's by default), and ``cert`` and ``key`` what to show if
        asked.  User, password, host and values may be percent-encoded, and must
        be where they hold characters that a URL has a use for.

        ``password`` is used when the URL has none; ``password-file`` names a file whose first line
        is it, which nobody else may read.  ``auth`` lists the methods to offer: ``none``,
        ``username``, ``gssapi``; by default ``username`` when there is a user, else ``none``.
        ``service`` (``rcmd``) and ``level`` (``confidentiality``, ``integrity``, ``clear``) are
        GSSAPI's; a user with ``gssapi`` and not ``username`` is the principal to be.

        ``socks4://[user@]host[:port]`` is SOCKS4, for which names are looked up on this host, and
        ``socks4a`` is 4A, which passes them on; the user is USERID, a claim and no proof.
        ``credentials`` are offered in place of what the URL says.

        Raises:
            ConfigError: the URL cannot be used as written; its password is never quoted.
        """
        found = parse_url(url, password)
        if found.socks4 is not None and credentials:
            raise ConfigError("proxy URL: SOCKS4 has no way to show credentials")
        return cls(
            found.server,
            credentials or found.credentials,
            timeout=timeout,
            tls=found.tls,
            socks4=found.socks4,
        )

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
        with self._limit(timeout, f"connection to {to}"):
            method, grant, reply = self._ask(Request(Cmd.CONNECT, to))
        return Established(grant.stream, reply.bound, method, grant)

    def bind(
        self, peer: Address | tuple[str, int] = UNSPECIFIED, timeout: float | None = None
    ) -> Bound:
        """Have the server listen for one connection from ``peer``, by default from anybody (BIND).

        What the server makes of the port is its own matter: nobody knows it beforehand.
        ``Bound.address`` is where the peer shall connect to, ``Bound.accept`` waits for it.

        Raises:
            as ``connect``.
        """
        peer = destination(peer)
        with self._limit(timeout, f"listening for {peer}"):
            method, grant, reply = self._ask(Request(Cmd.BIND, peer))
        return Bound(method, grant, reply.bound, lambda: self.read_reply(grant.stream, peer))

    def associate(self, *, claim: bool = False, timeout: float | None = None) -> Association:
        """Have the server relay datagrams (UDP ASSOCIATE).

        With ``claim`` it is told the address and port that they will come from, and may hold us to
        that; do so only where no NAT is on the way to it.

        Raises:
            CommandNotSupported: it is a SOCKS4 server.
            and as ``connect``.
        """
        if self.socks4 is not None:
            raise CommandNotSupported("SOCKS4 knows no UDP")
        with self._limit(timeout, "association"):
            return self._associate(claim)

    def _associate(self, claim: bool) -> Association:
        stream = self.reach()
        try:
            sock = open_socket(stream.getsockname())
        except BaseException:
            stream.close()
            raise
        try:
            # "If the client is not in possession of the information [...], the client MUST use a
            # port number and address of all zeros" (section 6).
            own = address_of(sock.getsockname()) if claim else UNSPECIFIED
            method, grant = self.negotiate(stream)
            reply = self.request(grant.stream, Request(Cmd.UDP_ASSOCIATE, own))
            return Association(method, grant, reply.bound, sock)
        except BaseException:
            sock.close()
            stream.close()
            raise

    @contextmanager
    def _limit(self, timeout: float | None, what: str) -> Iterator[None]:
        """Bound the time that a ``with`` block takes, by default as ``self.timeout`` says."""
        seconds = self.timeout if timeout is None else timeout
        # Not stream.deadline: the error that it raises is an OSError, and as such would look to
        # whoever tries several addresses like one that does not answer.
        with gevent.Timeout(seconds) as late:
            try:
                yield
            except gevent.Timeout as timeout_:
                if timeout_ is not late:
                    raise
                raise NegotiationTimeout(f"no {what} within {seconds:g} s") from None

    def _ask(self, request: Request) -> tuple[int, Grant, Reply]:
        """Reach the server, negotiate, and have ``request`` granted."""
        stream = self.reach()
        try:
            method, grant = self.negotiate(stream)
            return method, grant, self.request(grant.stream, request)
        except BaseException:
            stream.close()
            raise

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

    def secure(self, stream: Stream) -> Stream:
        """``stream``, or where we speak TLS with the server the stream inside that.

        Raises:
            ProtocolError: the server is not who it should be, or does not speak TLS.
        """
        if self.tls is None:
            return stream
        return wrap_client(stream, self.tls, str(self.server.host))

    def negotiate(self, stream: Stream) -> tuple[int, Grant]:
        """Offer our METHODs and run the one that the server selects (RFC 1928, section 3).

        That is all done inside TLS, where we have to use it; so is what the grant's stream is for.

        SOCKS4 has none of it.

        Raises:
            NoAcceptableMethod: X'FF'.
            AuthFailed: the sub-negotiation ended in a refusal.
            ProtocolError: the server selected what was not offered, or broke the wire.
        """
        stream = self.secure(stream)
        if self.socks4 is not None:
            return Method.NONE, Grant(stream)
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
        if self.socks4 is not None:
            self.socks4.ask(stream, request)
        else:
            stream.sendall(request.encode())
        is_udp = request.cmd == Cmd.UDP_ASSOCIATE
        return self.read_reply(stream, "UDP ASSOCIATE" if is_udp else request.destination)

    def read_reply(self, stream: Stream, to: Address | str) -> Reply:
        """Read a reply to a request about ``to``, which errors name; a BIND has two.

        Raises:
            RequestFailed: it is not X'00'.
        """
        if self.socks4 is not None:
            return self.socks4.read_reply(stream, to)
        reply = read_message(stream, Reply.decode)
        if reply.rep != Rep.SUCCEEDED:
            raise failure_of(reply.rep, to)
        return reply
