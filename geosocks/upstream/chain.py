"""An upstream: one proxy, or several in a row, each reached through the one before.

Knows proxies and how the first of them is dialled; knows no client of ours, no rule, no other
upstream.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import gevent

from geosocks.auth import Grant
from geosocks.errors import (
    AuthFailed,
    CommandNotSupported,
    GeosocksError,
    HostUnreachable,
    ProtocolError,
    RequestDenied,
    RequestFailed,
)
from geosocks.relay.target import Dialer, is_own_address
from geosocks.rules import Resolver
from geosocks.stream import Stream
from geosocks.upstream.datagrams import UpstreamAssociation, relay_of, socket_to
from geosocks.upstream.hops import Hop
from geosocks.wire.socks5 import UNSPECIFIED, Address, IPAddress

T = TypeVar("T")


class UpstreamUnusable(RequestFailed):
    """The upstream itself cannot be reached, or broke its handshake: another may do.

    ``rests``: it had better be left alone for a while.  A ticket that has expired, or a connection
    lost while the target was waited for, is no reason to.
    """

    def __init__(self, reason: str, rests: bool = True) -> None:
        super().__init__(reason)
        self.rests = rests


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

    def associate(self, seconds: float | None = None) -> UpstreamAssociation:
        """Have the last hop relay datagrams, reaching it within ``seconds`` (UDP ASSOCIATE).

        In a chain every hop relays, to the relay of the next.  Each association has a connection
        of its own, reached as any is: by CONNECT through the hops before.

        Raises:
            CommandNotSupported: a hop relays no datagrams.
            UpstreamUnusable: as ``open``.
            RequestFailed: the last hop's answer.
        """
        for hop in self.hops:
            if hop.no_udp:
                raise CommandNotSupported(f"upstream {self.name}: {hop.no_udp}")
        grants: list[Grant] = []
        relays: list[Address] = []
        try:
            self._in_time(seconds, lambda: self._associate_but_last(grants, relays))
            try:
                relays.append(self.hops[-1].associate(grants[-1].stream))
                if len(relays) > 1:
                    relays[-1] = relay_of(relays[-1], self.hops[-1].server)
                sock = socket_to(relays[0], grants[0].stream, self.resolver)
            except (GeosocksError, OSError) as error:
                raise self.refusal(error) from error
        except BaseException:
            for grant in reversed(grants):
                grant.stream.close()
            raise
        return UpstreamAssociation(self.name, grants, relays, sock)

    def _associate_but_last(self, grants: list[Grant], relays: list[Address]) -> None:
        """Come to terms with each hop, and have all but the last relay; what there is so far is in
        ``grants`` and ``relays``."""
        last = len(self.hops) - 1
        for number, hop in enumerate(self.hops):
            grants.append(self._negotiated(self.hops[: number + 1]))
            if number == last:
                return
            try:
                told = hop.associate(grants[-1].stream)
            except CommandNotSupported as error:
                raise self.refusal(error) from error
            except (GeosocksError, OSError) as error:
                raise self._unusable(hop, error) from error
            relays.append(relay_of(told, hop.server) if number else told)

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
        return self._in_time(seconds, lambda: self._negotiated(self.hops))

    def _in_time(self, seconds: float | None, job: Callable[[], T]) -> T:
        # A Timeout of gevent's own: an OSError, such as stream.deadline raises, would be taken for
        # an address that does not answer.
        with gevent.Timeout(seconds) as late:
            try:
                return job()
            except gevent.Timeout as timeout:
                if timeout is not late:
                    raise
        raise UpstreamUnusable(f"upstream {self.name}: no handshake within {seconds:g} s")

    def _negotiated(self, hops: Sequence[Hop]) -> Grant:
        """What the last of ``hops`` grants us, reached through the others."""
        stream: Stream | None = None
        hop = hops[0]
        try:
            stream = self._dial(hop.server)
            for following in hops[1:]:
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
