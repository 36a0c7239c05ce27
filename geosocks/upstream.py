"""Upstreams: other proxies to send sessions through, alone, in chains, and one for another.

A rule's ``via``, or the server's default, names upstreams in the order to try them.  The first that
takes us gets the request and its answer is the answer, whatever it is; one that cannot be reached
or breaks its handshake is passed over, and rests for a while (``Health``).

A chain is one upstream of several hops: each is asked to connect to the next, and the handshake
with that one runs inside.  Names are passed on as they are; the last hop finds out what they stand
for.  The first hop's own name is looked up by the server's resolver and dialled as any target is.

Knows proxies; knows no client of ours and no rule.
"""

import socket as stdlib_socket  # constants
import time
from _socket import socket as RawSocket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Final, Protocol, TypeVar
from urllib.parse import urlsplit

import gevent

from geosocks.auth import Grant
from geosocks.auth.userpass import Password
from geosocks.client import Client, failure_of
from geosocks.codes import Cmd, Method, Rep, Socks4Cd, name_of
from geosocks.errors import (
    AddressTypeNotSupported,
    AuthFailed,
    CommandNotSupported,
    ConfigError,
    GeosocksError,
    HostUnreachable,
    ProtocolError,
    RequestDenied,
    RequestFailed,
    TargetTimeout,
)
from geosocks.events import Observer, UpstreamFailed, UpstreamRecovered
from geosocks.relay.target import Dialer, is_own_address
from geosocks.relay.udp import MAX_STRAY
from geosocks.rules import Resolver
from geosocks.stream import Stream, read_message
from geosocks.wire import socks4
from geosocks.wire.http import ConnectRequest, ResponseHead, basic
from geosocks.wire.socks5 import UNSPECIFIED, Address, IPAddress, Reply, Request

T = TypeVar("T")

DEFAULT: Final = "default"
"""What the default upstream is called."""

REST: Final = 30.0
"""Seconds that an upstream rests when it has failed; twice as many each time it fails again."""

LONGEST_REST: Final = 300.0
"""Seconds."""

SHARE: Final = 0.9
"""Of the time to connect, what reaching upstreams may take; the rest is the target's."""

MAX_INTERIM: Final = 4
"""1xx responses before the one that counts (RFC 9110, section 15.2)."""


class UpstreamUnusable(RequestFailed):
    """The upstream itself cannot be reached, or broke its handshake: another may do.

    ``rests``: it had better be left alone for a while.  A ticket that has expired, or a connection
    lost while the target was waited for, is no reason to.
    """

    def __init__(self, reason: str, rests: bool = True) -> None:
        super().__init__(reason)
        self.rests = rests


# --- one proxy --------------------------------------------------------------------------------


class Hop(Protocol):
    """One proxy: how we come to terms with it, and how it is asked."""

    @property
    def server(self) -> Address:
        """Where it is."""
        ...

    @property
    def by_ticket(self) -> bool:
        """A refusal of our credentials can be over at any moment: somebody runs kinit."""
        ...

    def negotiate(self, stream: Stream, /) -> Grant:
        """Run the handshake; what to go on with.

        Raises:
            NegotiationFailed: it does not take us.
            ProtocolError: it does not speak its protocol.
        """
        ...

    def request(self, stream: Stream, to: Address, /) -> Address:
        """Ask for a connection to ``to``; where it was made from, as far as the proxy tells.

        Raises:
            RequestFailed: the proxy refuses, or could not reach ``to``.
            NegotiationFailed: it does not take us.
            ProtocolError: it does not speak its protocol.
            ValueError: ``to`` cannot be sent.
        """
        ...

    def listen(self, stream: Stream, peer: Address, /) -> Address:
        """Ask for a BIND for ``peer``; where the proxy listens, 0.0.0.0 for its own address.

        Raises:
            CommandNotSupported: such a proxy knows no BIND.
            and as ``request``.
        """
        ...

    def accept(self, stream: Stream, /) -> Address:
        """Wait for the peer of a BIND; who came.  Raises as ``request``."""
        ...

    def associate(self, stream: Stream, /) -> Address:
        """Ask for a UDP ASSOCIATE; where the relay is, 0.0.0.0 for the proxy's own address.

        Raises:
            CommandNotSupported: such a proxy relays no datagrams.
            and as ``request``.
        """
        ...


@dataclass(frozen=True, slots=True)
class Socks5Hop:
    """A SOCKS5 server (RFC 1928), by any of its methods."""

    client: Client

    @property
    def server(self) -> Address:
        return self.client.server

    @property
    def by_ticket(self) -> bool:
        return Method.GSSAPI in self.client.credentials

    def negotiate(self, stream: Stream, /) -> Grant:
        return self.client.negotiate(stream)[1]

    def request(self, stream: Stream, to: Address, /) -> Address:
        return self.client.request(stream, Request(Cmd.CONNECT, to)).bound

    def listen(self, stream: Stream, peer: Address, /) -> Address:
        return self.client.request(stream, Request(Cmd.BIND, peer)).bound

    def accept(self, stream: Stream, /) -> Address:
        reply = read_message(stream, Reply.decode)
        if reply.rep != Rep.SUCCEEDED:
            raise failure_of(reply.rep, reply.bound)
        return reply.bound

    def associate(self, stream: Stream, /) -> Address:
        return self.client.request(stream, Request(Cmd.UDP_ASSOCIATE, UNSPECIFIED)).bound


@dataclass(frozen=True, slots=True)
class Socks4Hop:
    """A SOCKS4A server; of plain version 4 when ``resolver`` finds the IPv4 addresses of names."""

    server: Address
    userid: bytes = b""
    resolver: Resolver | None = field(default=None, repr=False)
    by_ticket: bool = field(default=False, init=False, repr=False)

    def negotiate(self, stream: Stream, /) -> Grant:
        return Grant(stream)

    def request(self, stream: Stream, to: Address, /) -> Address:
        self._ask(stream, Socks4Cd.CONNECT, to)
        return UNSPECIFIED

    def listen(self, stream: Stream, peer: Address, /) -> Address:
        return self._ask(stream, Socks4Cd.BIND, peer)

    def accept(self, stream: Stream, /) -> Address:
        return _granted(stream)

    def associate(self, stream: Stream, /) -> Address:
        raise CommandNotSupported("SOCKS4 knows no UDP")

    def _ask(self, stream: Stream, code: Socks4Cd, to: Address) -> Address:
        if self.resolver is not None:
            to = Address(_ipv4(to, self.resolver), to.port)
        stream.sendall(socks4.Request(code, to, self.userid).encode())
        return _granted(stream)


def _granted(stream: Stream) -> Address:
    """DST of a SOCKS4 reply that grants."""
    reply = read_message(stream, socks4.Reply.decode)
    code = reply.cd
    if code in (Socks4Cd.IDENT_MISSING, Socks4Cd.IDENT_DIFFERS):
        raise AuthFailed(f"the server wants an identd on this host (CD {code})")
    if code != Socks4Cd.GRANTED:
        raise RequestFailed(f"the server answers CD {code}, {name_of(Socks4Cd, code)}")
    return reply.bound


def _ipv4(to: Address, resolver: Resolver) -> IPv4Address:
    addresses = resolver.resolve(to.host) if isinstance(to.host, str) else (to.host,)
    for address in addresses:
        if isinstance(address, IPv4Address):
            return address
    raise AddressTypeNotSupported(f"{to} has no IPv4 address, and SOCKS4 knows no other")


HTTP_FAILURES: Final[Mapping[int, type[RequestFailed]]] = {
    403: RequestDenied,
    404: HostUnreachable,
    405: CommandNotSupported,
    408: TargetTimeout,
    451: RequestDenied,
    501: CommandNotSupported,
    502: HostUnreachable,
    503: HostUnreachable,
    504: TargetTimeout,
}
"""Status to the failure that carries its REP; any other is X'01', general failure."""


@dataclass(frozen=True, slots=True)
class HttpHop:
    """An HTTP proxy that does CONNECT; ``authorization`` is what to show it."""

    server: Address
    authorization: str | None = field(default=None, repr=False)
    by_ticket: bool = field(default=False, init=False, repr=False)

    def negotiate(self, stream: Stream, /) -> Grant:
        return Grant(stream)

    def request(self, stream: Stream, to: Address, /) -> Address:
        stream.sendall(ConnectRequest(to, self.authorization).encode())
        head = read_message(stream, ResponseHead.decode)
        for _ in range(MAX_INTERIM):
            if head.status >= 200:
                break
            head = read_message(stream, ResponseHead.decode)
        words = f"the proxy answers {head.status} {head.reason}".rstrip()
        if 200 <= head.status < 300:
            return UNSPECIFIED
        if head.status < 200:
            raise ProtocolError(f"{words} again and again")
        if head.status == 407:
            raise AuthFailed(words)
        raise HTTP_FAILURES.get(head.status, RequestFailed)(f"{to}: {words}")

    def listen(self, stream: Stream, peer: Address, /) -> Address:
        raise CommandNotSupported("HTTP knows no BIND")

    def accept(self, stream: Stream, /) -> Address:
        raise CommandNotSupported("HTTP knows no BIND")

    def associate(self, stream: Stream, /) -> Address:
        raise CommandNotSupported("HTTP knows no UDP")


# --- an upstream ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opened:
    """A connection through an upstream: its stream, and where the last hop made it from."""

    stream: Stream
    bound: Address = UNSPECIFIED


@dataclass(frozen=True, slots=True)
class Upstream:
    """One hop, or a chain of them; a ``Dialer``.

    ``urls`` are what it was made from, hops in order: two of one name and the same URLs are equal,
    and share their health.  ``own_ports`` are those that this server listens on, where an upstream
    must not be.
    """

    name: str
    hops: Sequence[Hop] = field(compare=False)
    resolver: Resolver = field(compare=False, repr=False)
    dialer: Dialer = field(compare=False, repr=False)
    urls: tuple[str, ...] = field(default=(), repr=False)  # with their passwords
    own_ports: frozenset[int] = field(default=frozenset(), compare=False, repr=False)

    def open_connection(self, to: Address, addresses: tuple[IPAddress, ...]) -> Stream:
        """Connect to ``to``; ``addresses`` are the last hop's to find.

        Raises:
            RequestFailed: as ``open``.
        """
        return self.open(to).stream

    def open(self, to: Address, seconds: float | None = None) -> Opened:
        """Connect to ``to``, reaching the last hop within ``seconds``.

        Raises:
            UpstreamUnusable: a hop cannot be reached or does not do its part.
            RequestFailed: the last hop's answer.
        """
        stream, bound = self._asked(self.hops[-1].request, to, seconds)
        return Opened(stream, UNSPECIFIED if bound.is_name else bound)

    def listen(self, peer: Address, seconds: float | None = None) -> "UpstreamListener":
        """Have the last hop listen for ``peer``, reaching it within ``seconds`` (BIND).

        Raises:
            UpstreamUnusable: as ``open``.
            RequestFailed: the last hop's answer.
        """
        last = self.hops[-1]
        stream, bound = self._asked(last.listen, peer, seconds)
        host = bound.host
        if isinstance(host, str) or host.is_unspecified:
            bound = Address(last.server.host, bound.port)
        return UpstreamListener(self, stream, UNSPECIFIED if bound.is_name else bound)

    def associate(self, seconds: float | None = None) -> "UpstreamAssociation":
        """Have the only hop relay datagrams, reaching it within ``seconds`` (UDP ASSOCIATE).

        Raises:
            CommandNotSupported: it is a chain, or no SOCKS5 server.
            UpstreamUnusable: as ``open``.
            RequestFailed: its answer.
        """
        if len(self.hops) > 1:
            raise CommandNotSupported(f"upstream {self.name}: no UDP through a chain")
        grant = self._reach(seconds)
        try:
            relay = self.hops[-1].associate(grant.stream)
            sock = _socket_to(relay, grant.stream, self.resolver)
        except BaseException as error:
            grant.stream.close()
            if isinstance(error, (GeosocksError, OSError)):
                raise self.refusal(error) from error
            raise
        return UpstreamAssociation(self.name, grant, sock)

    def _asked(
        self, ask: Callable[[Stream, Address], Address], to: Address, seconds: float | None
    ) -> tuple[Stream, Address]:
        stream = self._reach(seconds).stream
        try:
            return stream, ask(stream, to)
        except BaseException as error:
            stream.close()
            if isinstance(error, (GeosocksError, OSError, ValueError)):
                raise self.refusal(error) from error
            raise

    def _reach(self, seconds: float | None) -> Grant:
        """What the last hop grants us, ready for a request; the caller closes its stream."""
        # A Timeout of gevent's own: an OSError, such as stream.deadline raises, would be taken for
        # an address that does not answer.
        with gevent.Timeout(seconds) as late:
            try:
                return self._negotiated()
            except gevent.Timeout as timeout:
                if timeout is not late:
                    raise
        raise UpstreamUnusable(f"upstream {self.name}: no handshake within {seconds:g} s")

    def _negotiated(self) -> Grant:
        stream: Stream | None = None
        hop = self.hops[0]
        try:
            stream = self._dial(hop.server)
            for following in self.hops[1:]:
                stream = hop.negotiate(stream).stream
                hop.request(stream, following.server)
                hop = following
            return hop.negotiate(stream)
        except BaseException as error:
            if stream is not None:
                stream.close()
            if isinstance(error, (GeosocksError, OSError, ValueError)):
                raise self._unusable(hop, error) from error
            raise

    def _dial(self, server: Address) -> Stream:
        host = server.host
        addresses = self.resolver.resolve(host) if isinstance(host, str) else (host,)
        if server.port in self.own_ports and any(map(is_own_address, addresses)):
            raise UpstreamUnusable("it is this server itself")
        return self.dialer.open_connection(server, addresses)

    def _unusable(self, hop: Hop, error: Exception, rests: bool = True) -> UpstreamUnusable:
        rests = rests and not (hop.by_ticket and isinstance(error, AuthFailed))
        why = getattr(error, "strerror", None) or str(error)
        where = str(hop.server)
        place = "" if why.startswith(where) else f"{where}: "
        return UpstreamUnusable(f"upstream {self.name}: {place}{why}", rests)

    def refusal(self, error: Exception) -> RequestFailed:
        """What came of a request to the last hop, when it is not what was asked for."""
        if isinstance(error, RequestFailed):
            answer = type(error)(f"upstream {self.name}: {error}")
            answer.rep = error.rep
            return answer
        if isinstance(error, ValueError) and not isinstance(error, GeosocksError):
            return HostUnreachable(f"upstream {self.name}: {error}")
        # Some servers close where they ought to answer that the target cannot be reached.
        closed = isinstance(error, OSError) and type(error) is not ProtocolError
        return self._unusable(
            self.hops[-1], error, rests=not closed or isinstance(error, AuthFailed)
        )


class UpstreamListener:
    """What a BIND waits at when its peer comes to an upstream; a ``relay.listen.Listener``.

    Whom to let in is the upstream's to know: it was told whom to expect.  ``admits`` has the last
    word, but there is nobody after the one who came.
    """

    dropped = 0

    def __init__(self, upstream: Upstream, stream: Stream, bound: Address) -> None:
        self.bound = bound
        self._upstream = upstream
        self._stream: Stream | None = stream

    def accept(self, admits: Callable[[Address], bool]) -> tuple[Stream, Address]:
        """The peer's stream, and its address as the upstream tells it; the caller closes it.

        Raises:
            RequestFailed: the upstream says that nobody came, or ``admits`` will not have who did.
        """
        stream, upstream = self._stream, self._upstream
        assert stream is not None
        try:
            peer = upstream.hops[-1].accept(stream)
        except (GeosocksError, OSError) as error:
            raise upstream.refusal(error) from error
        if peer.is_name or not admits(peer):
            raise RequestDenied(f"upstream {upstream.name}: {peer} is not to come in")
        self._stream = None
        return stream, peer

    def close(self) -> None:
        """Wait no more."""
        if self._stream is not None:
            self._stream.close()


class UpstreamAssociation:
    """A UDP ASSOCIATE of ours with an upstream; a ``relay.udp.Onward``."""

    def __init__(self, name: str, grant: Grant, sock: RawSocket) -> None:
        self.sock = sock
        self.seal = grant.seal
        self._name = name
        self._control = grant.stream

    def wait(self) -> str:
        """Return when the upstream has ended it: how."""
        left = MAX_STRAY
        try:
            while data := self._control.recv(4096):
                left -= len(data)
                if left < 0:
                    return f"upstream {self._name}: it keeps sending on an association"
        except (GeosocksError, OSError) as error:
            return f"upstream {self._name}: {error}"
        return f"upstream {self._name} ended the association"

    def close(self) -> None:
        """End it."""
        self._control.close()
        self.sock.close()


def _socket_to(relay: Address, control: Stream, resolver: Resolver) -> RawSocket:
    """A socket for datagrams to an upstream's ``relay``, from where ``control`` comes from."""
    near, far = (getattr(control, which)() for which in ("getsockname", "getpeername"))
    host = relay.host
    if isinstance(host, str):
        host = resolver.resolve(host)[0]
    to = far[0] if host.is_unspecified else str(host)
    family = stdlib_socket.AF_INET6 if ":" in to else stdlib_socket.AF_INET
    sock = RawSocket(family, stdlib_socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if (":" in near[0]) == (":" in to):
            sock.bind((near[0], 0))
        sock.connect((to, relay.port))
    except BaseException:
        sock.close()
        raise
    return sock


# --- one for another --------------------------------------------------------------------------


@dataclass(slots=True)
class _Trouble:
    reason: str
    rest: float
    since: float
    until: float


class Health:
    """Which upstreams rest, and for how long.

    Owned by the process: a policy hands it on to the next.  Nothing here blocks.
    """

    def __init__(
        self,
        rest: float = REST,
        longest: float = LONGEST_REST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rest = rest
        self._longest = longest
        self._clock = clock
        self._troubles: dict[Dialer, _Trouble] = {}

    def order(self, dialers: Mapping[str, Dialer]) -> list[str]:
        """The names to try, in order: those that do not rest, or else the one that rests least."""
        now = self._clock()
        rests = {
            name: trouble.until - now
            for name, dialer in dialers.items()
            if (trouble := self._troubles.get(dialer)) is not None and trouble.until > now
        }
        well = [name for name in dialers if name not in rests]
        return well or [min(rests, key=lambda name: rests[name])]

    def failed(self, name: str, dialer: Dialer, failure: UpstreamUnusable) -> UpstreamFailed | None:
        """Note a failure; the fact to tell, unless it has been told lately."""
        now = self._clock()
        reason = str(failure)
        trouble = self._troubles.get(dialer)
        known = trouble is not None and trouble.reason == reason
        rest = 0.0
        if failure.rests:
            rest = self._rest
            if trouble is not None and trouble.rest:
                if trouble.until > now:  # one of several that tried it at the same time
                    if known:
                        return None
                    rest = trouble.rest
                else:
                    rest = min(2 * trouble.rest, self._longest)
        elif trouble is not None and known and now < trouble.since + self._rest:
            return None
        self._troubles[dialer] = _Trouble(reason, rest, now, now + rest)
        return UpstreamFailed(name, reason, rest)

    def answered(self, name: str, dialer: Dialer) -> UpstreamRecovered | None:
        """Note that it did its part; the fact to tell when it had failed before."""
        return UpstreamRecovered(name) if self._troubles.pop(dialer, None) else None

    def keep(self, dialers: Iterable[Dialer]) -> None:
        """Forget all but ``dialers``."""
        kept = set(dialers)
        for dialer in self._troubles.keys() - kept:
            del self._troubles[dialer]


def open_by(
    dialer: Dialer, seconds: float, to: Address, addresses: tuple[IPAddress, ...]
) -> Opened:
    """Connect to ``to`` by way of ``dialer``, reaching it within ``seconds``."""
    if isinstance(dialer, Upstream):
        return dialer.open(to, seconds)
    return Opened(dialer.open_connection(to, addresses))


def listen_by(dialer: Dialer, seconds: float, peer: Address) -> UpstreamListener:
    """Listen for ``peer`` by way of ``dialer``, reaching it within ``seconds``."""
    if isinstance(dialer, Upstream):
        return dialer.listen(peer, seconds)
    raise CommandNotSupported("the upstream listens for nobody")


def associate_by(dialer: Dialer, seconds: float) -> UpstreamAssociation:
    """An association by way of ``dialer``, reaching it within ``seconds``."""
    if isinstance(dialer, Upstream):
        return dialer.associate(seconds)
    raise CommandNotSupported("the upstream relays no datagrams")


def first_to_answer(
    via: Sequence[str],
    dialers: Mapping[str, Dialer],
    health: Health,
    ask: Callable[[Dialer, float], T],
    seconds: float,
    emit: Observer,
) -> tuple[str, T]:
    """Ask the upstreams of ``via`` until one does its part; which, and what it gave.

    ``seconds`` are those that all of it may take, which the caller sees to; ``ask`` is told how
    many of them an upstream has to be reached.

    Raises:
        UpstreamUnusable: none did.
        RequestFailed: the answer of the one that did.
    """
    unknown = [name for name in via if name not in dialers]
    if unknown:
        raise RequestFailed(f"there is no upstream {', '.join(unknown)}")
    failures: list[str] = []
    order = health.order({name: dialers[name] for name in via})
    for name in order:
        dialer = dialers[name]
        fact: UpstreamFailed | UpstreamRecovered | None = None
        try:
            answer = ask(dialer, seconds * SHARE / len(order))
        except UpstreamUnusable as failure:
            fact = health.failed(name, dialer, failure)
            failures.append(str(failure))
        except CommandNotSupported:
            raise  # perhaps without having asked
        except RequestFailed:
            fact = health.answered(name, dialer)
            raise
        else:
            fact = health.answered(name, dialer)
            return name, answer
        finally:
            if fact is not None:
                emit(fact)
    raise UpstreamUnusable("; ".join(failures))


# --- from URLs --------------------------------------------------------------------------------

SCHEMES: Final = ("socks5", "socks5h", "socks5+tls", "socks5h+tls", "socks4", "socks4a", "http")


def build_upstreams(
    urls: Mapping[str, str],
    resolver: Resolver,
    dialer: Dialer,
    *,
    password: str | None = None,
    own_ports: Iterable[int] = (),
) -> dict[str, Upstream]:
    """Make upstreams of URLs by name; ``?via=NAME`` in one says through which other it is reached.

    ``password`` is that of ``DEFAULT`` when its URL has a user and none.

    Raises:
        ConfigError: a URL cannot be used as written, or chains go round; no password is quoted.
    """
    hops: dict[str, Hop] = {}
    before: dict[str, str | None] = {}
    for name, url in urls.items():
        try:
            bare, before[name] = split_via(url)
            hops[name] = hop_of(bare, resolver, password if name == DEFAULT else None)
        except ConfigError as error:
            what = f"upstream {name}: {error.what}"
            raise ConfigError(what, error.path, error.line, error.column) from None
    made = {}
    for name in urls:
        chain = _chain(name, before)
        made[name] = Upstream(
            name,
            tuple(hops[link] for link in chain),
            resolver,
            dialer,
            tuple(urls[link] for link in chain),
            frozenset(own_ports),
        )
    return made


def _chain(name: str, before: Mapping[str, str | None]) -> list[str]:
    """The names of a chain, first hop first."""
    chain = [name]
    while (via := before[chain[0]]) is not None:
        if via not in before:
            known = ", ".join(before)
            raise ConfigError(f"upstream {chain[0]}: via={via} is no upstream; known: {known}")
        if via in chain:
            circle = " via ".join((*reversed(chain), via))
            raise ConfigError(f"upstream {name}: its chain goes round: {circle}")
        chain.insert(0, via)
    return chain


def split_via(url: str) -> tuple[str, str | None]:
    """A proxy URL without its ``via``, and that."""
    base, _, query = url.partition("?")
    pairs = query.split("&") if query else []
    via = [pair.removeprefix("via=") for pair in pairs if pair.startswith("via=")]
    if len(via) > 1 or via == [""]:
        raise ConfigError("proxy URL: via stands there once, with an upstream's name")
    rest = "&".join(pair for pair in pairs if not pair.startswith("via="))
    return (f"{base}?{rest}" if rest else base), (via[0] if via else None)


def hop_of(url: str, resolver: Resolver, password: str | None = None) -> Hop:
    """Make a hop of a URL; ``resolver`` finds what plain SOCKS4 cannot leave to the server.

    Raises:
        ConfigError: it cannot be used as written; no password is quoted.
    """
    scheme, colon, rest = url.partition("://")
    if not colon or scheme.lower() not in SCHEMES:
        raise ConfigError(f"proxy URL: write {'://, '.join(SCHEMES)}:// and host:port")
    if scheme.lower().removesuffix("+tls") in ("socks5", "socks5h"):
        return Socks5Hop(Client.from_url(url, password=password))
    return _other_hop(scheme.lower(), rest, resolver, password)


def _other_hop(scheme: str, rest: str, resolver: Resolver, password: str | None) -> Hop:
    """A hop that shares no more than the URL's form with SOCKS5."""
    known = ("password-file",) if scheme == "http" else ()
    for pair in filter(None, rest.partition("?")[2].split("&")):
        if pair.partition("=")[0] not in known:
            raise ConfigError(f"proxy URL: {scheme}:// has no setting but via", None)
    url = f"socks5://{rest}"
    if scheme == "http":
        client = Client.from_url(url, password=password)
        return HttpHop(client.server, _basic(client))
    client = Client.from_url(url, password="none")
    if urlsplit(url).password is not None:
        raise ConfigError(f"proxy URL: {scheme}:// has a user, but no password")
    shown = client.credentials.get(Method.USERNAME)
    userid = shown.uname if isinstance(shown, Password) else b""
    return Socks4Hop(client.server, userid, resolver if scheme == "socks4" else None)


def _basic(client: Client) -> str | None:
    shown = client.credentials.get(Method.USERNAME)
    if not isinstance(shown, Password):
        return None
    try:
        return basic(shown.uname, shown.passwd)
    except ValueError as error:
        raise ConfigError(f"proxy URL: {error}") from None
