"""BIND: judge, listen, say where, wait for the peer, say who came, relay (RFC 1928, section 6).

"Two replies are sent from the SOCKS server to the client during a BIND operation."  Of all that may
come to the port between them, only the peer that the request names is let in.
"""

from contextlib import closing
from functools import partial
from ipaddress import IPv6Address
from typing import Any, Final

import gevent
from gevent import getcurrent

from geosocks.codes import SOCKS4_VERSION, Cmd, Rep
from geosocks.errors import (
    AddressTypeNotSupported,
    CommandNotSupported,
    ProtocolError,
    RequestDenied,
    RequestFailed,
    TargetTimeout,
)
from geosocks.events import BindWaiting, RequestJudged, StrangersDropped
from geosocks.guard import unmapped
from geosocks.relay.direct import DirectDialer
from geosocks.relay.listen import DirectBinder, Listener
from geosocks.relay.pump import End, abort
from geosocks.session.admission import admit
from geosocks.session.connect import as_judged, judge, pass_on, relay
from geosocks.session.record import Session, address_of
from geosocks.stream import Stream, deadline
from geosocks.upstream import listen_by
from geosocks.wire.socks5 import Address, IPAddress, Request

MAX_KEPT: Final = 64 * 1024
"""Octets taken from a client ahead of its peer; the kernel keeps what more it sends."""

Peers = tuple[IPAddress, ...] | None
"""Who may come: one of these, or anybody whom the rules let in."""


class ClientGone(BaseException):
    """Thrown into a session that waits for a peer: nobody is left to wait for it."""

    def __init__(self, reason: str, orderly: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.orderly = orderly


def bind(session: Session, request: Request) -> bool:
    """Serve a BIND; True when its streams are to be closed in order.

    Raises:
        RequestFailed: denied, nowhere to listen, or nobody came in time.  CommandNotSupported, if
            the peer were to come by way of an upstream or of an embedder's dialer.
    """
    policy = session.policy
    if isinstance(policy.binder, DirectBinder) and not isinstance(policy.dialer, DirectDialer):
        raise CommandNotSupported("the dialer in use listens for nobody")  # nor is passed by
    peers = expected(session, request)
    opened = open_listener(session, request, peers)
    try:
        with closing(opened) as listener:
            bound = listener.bound if session.via else policy.advertised(listener.bound)
            tell(session, bound)
            limit = policy.timeouts.bind
            session.emit(
                BindWaiting(session.id, session.identity, request.destination, bound, limit)
            )
            ahead = wait(session, listener, Doorkeeper(session, request, peers), limit)
        assert session.target is not None
        assert session.dialled is not None
        tell(session, session.dialled)
    except ClientGone as gone:
        session.reason = gone.reason
        return gone.orderly
    if ahead:
        session.stream = Resumed(session.stream, ahead)
    return relay(session, session.target, request)


def open_listener(session: Session, request: Request, peers: Peers) -> Listener:
    """Where to wait: on this host, or at an upstream."""
    if session.via:
        to = as_judged(request, peers or ())
        return pass_on(session, partial(listen_by, peer=to))
    near = address_of(session.client.getsockname()).host
    assert not isinstance(near, str)
    return session.policy.binder.open_listener(request.destination, peers, near)


def expected(session: Session, request: Request) -> Peers:
    """Judge the request itself, and tell who may come: every judged address of DST.ADDR.

    All zeros are anybody, each to be judged on arrival.  DST.PORT is what rules see as the port,
    and nothing else: nobody knows beforehand which port the peer will come from.

    Raises:
        RequestFailed: denied, or nobody is left who could come.
    """
    host = request.destination.host
    if not isinstance(host, str) and unmapped(host).is_unspecified:
        asked = session.question(Cmd.BIND, request.destination)
        verdict = session.policy.rules.may_use(asked)
        if verdict.via == session.policy.via:
            session.via = verdict.via
        if verdict.effects is not None or session.policy.limits.per_user is not None:
            admit(session, verdict)
        judged(session, request.destination, verdict.rule)
        return None
    peers = judge(session)
    if session.version == SOCKS4_VERSION:  # its replies hold no other
        peers = tuple(peer for peer in peers if peer.version == 4)
    if not peers and not (session.via and request.destination.is_name):
        raise AddressTypeNotSupported(f"no address of {request.destination} can be waited for")
    return peers


def judged(session: Session, destination: Address, rule: str) -> None:
    """Remember, and tell, which rule let ``destination`` through."""
    session.rule = rule
    session.emit(RequestJudged(session.id, session.identity, Cmd.BIND, destination, rule))


def tell(session: Session, bound: Address) -> None:
    """Send one of the two replies of success.

    Raises:
        AddressTypeNotSupported: SOCKS4 has no room for ``bound``.
        ClientGone: it cannot be told.
    """
    if session.version == SOCKS4_VERSION and isinstance(bound.host, IPv6Address):
        raise AddressTypeNotSupported(f"a SOCKS4 reply has no room for {bound}")
    try:
        session.answer(Rep.SUCCEEDED, bound)
    except OSError:
        raise ClientGone(End.RESET_BY_CLIENT.value) from None


def wait(session: Session, listener: Listener, doorkeeper: "Doorkeeper", limit: float) -> bytes:
    """Wait for the peer, who becomes the session's target; gives what the client sent meanwhile.

    Raises:
        ClientGone: the client left first.
        TargetTimeout: nobody came within ``limit`` seconds.
        RequestFailed: nobody can come any more.
    """
    attention = Attention(session.stream)
    late = TargetTimeout(f"{doorkeeper.awaited}: no peer came within {limit:g} s")
    try:
        with attention, deadline(limit, late):
            session.target, session.dialled = listener.accept(doorkeeper)
    finally:
        if doorkeeper.first is not None:
            first, reason = doorkeeper.first
            session.emit(
                StrangersDropped(session.id, listener.bound, listener.dropped, first, reason)
            )
    return bytes(attention.heard)


class Doorkeeper:
    """Decides who is let in; ``first`` is the first who was not, and why.

    A peer is judged in its own right, whatever was said of the request: as a destination of BIND,
    with the port that it comes from, the guard in force.  One that was named is still asked about
    by its name, which now has this one address.
    """

    def __init__(self, session: Session, request: Request, peers: Peers) -> None:
        self.awaited = request.destination
        self.first: tuple[Address, str] | None = None
        self._session = session
        self._peers = peers

    def __call__(self, peer: Address) -> bool:
        try:
            self._judge(peer)
        except RequestFailed as failure:
            if self.first is None:
                self.first = peer, str(failure)
            return False
        return True

    def _judge(self, peer: Address) -> None:
        assert not isinstance(peer.host, str)
        host: IPAddress | str = unmapped(peer.host)
        if self._session.via and self._peers is not None:
            return  # an upstream was told whom to let in; what it calls him is its own matter
        if self._peers is not None and host not in self._peers:
            raise RequestDenied(f"{peer} is not {self.awaited.host}")
        if self.awaited.is_name:
            host = self.awaited.host
        asked = self._session.question(Cmd.BIND, Address(host, peer.port), OneAddress(peer.host))
        verdict = self._session.policy.rules.judge(asked)
        if verdict.via != self._session.via:
            raise RequestDenied(f"{peer} is to be reached another way", verdict.rule)
        judged(self._session, peer, verdict.rule)


class OneAddress:
    """A resolver that knows what every name stands for: the address of who has come."""

    def __init__(self, address: IPAddress) -> None:
        self.address = address

    def resolve(self, name: str) -> tuple[IPAddress, ...]:
        """The address."""
        return (self.address,)


class Attention:
    """Listens to the client while its session waits for somebody else.

    For as long as a ``with`` block of it lasts: throws ClientGone into the block's greenlet when
    the client has gone, and keeps in ``heard`` what it says, up to MAX_KEPT octets of it.
    """

    def __init__(self, stream: Stream) -> None:
        self.heard = bytearray()
        self._stream = stream
        self._waiter: Any = None
        self._reader: Any = None

    def __enter__(self) -> None:
        self._waiter = getcurrent()
        self._reader = gevent.spawn(self._read)
        self._reader.link(self._ended)

    def __exit__(self, *_: object) -> None:
        self._waiter = None
        self._reader.kill()

    def _read(self) -> ClientGone | None:
        """Read until the client has gone; None when it says more than is kept."""
        try:
            while len(self.heard) < MAX_KEPT:
                data = self._stream.recv(MAX_KEPT - len(self.heard))
                if not data:
                    return ClientGone("given_up", orderly=True)
                self.heard += data
        except ProtocolError as error:
            return ClientGone(f"{End.BROKEN_BY_CLIENT.value}: {error}")
        except OSError:
            return ClientGone(End.RESET_BY_CLIENT.value)
        return None

    def _ended(self, reader: Any) -> None:
        """Tell the waiter; in the hub, while it waits."""
        if self._waiter is not None and isinstance(reader.value, ClientGone):
            self._waiter.throw(reader.value)


class Resumed:
    """``stream``, with octets that were read from it before anybody could take them."""

    def __init__(self, stream: Stream, ahead: bytes) -> None:
        self._stream = stream
        self._ahead = ahead

    def recv(self, size: int, /) -> bytes:
        """Read up to ``size`` octets, those read before first."""
        if not self._ahead:
            return self._stream.recv(size)
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        return data

    def sendall(self, data: bytes, /) -> None:
        """Send all of ``data``."""
        self._stream.sendall(data)

    def shutdown(self, how: int, /) -> None:
        """Close one way or both."""
        self._stream.shutdown(how)

    def close(self) -> None:
        """Close the stream."""
        self._stream.close()

    def reset(self) -> None:
        """Close the stream so that its peer sees a reset."""
        abort(self._stream)
