"""Events of one session."""

import logging
from collections.abc import Callable
from dataclasses import field, fields
from typing import ClassVar, Final

from geosocks.events.event import UNLOGGED, Event
from geosocks.in_c import compiled
from geosocks.values import value
from geosocks.wire.socks5 import Address


@value
class SessionEvent(Event):
    """A fact about one session; ``session`` is the same number in all of them."""

    session: int


@value
class SessionOpened(SessionEvent):
    """A client connected."""

    level: ClassVar[int] = logging.DEBUG
    client: Address
    listener: str


@value
class MethodSelected(SessionEvent):
    """The server selected ``method`` from what the client offered."""

    level: ClassVar[int] = logging.DEBUG
    method: int
    offered: bytes


@value
class NegotiationEnded(SessionEvent):
    """No request came of it: no acceptable method, bad octets, too slow.

    ``kind`` is ``reason`` in one of NEGOTIATION_ENDS: ``no_method``, ``timeout``, ``gone`` (the
    client left in the middle), ``penalised`` (too many failures of its source) or ``protocol``
    (octets that do not belong there).
    """

    client: Address
    reason: str
    kind: str = "protocol"


NEGOTIATION_ENDS: Final = ("no_method", "timeout", "gone", "penalised", "protocol")


@value
class Authenticated(SessionEvent):
    """The sub-negotiation ended well; ``detail`` is the method's, such as a protection level."""

    level: ClassVar[int] = logging.DEBUG
    method: int
    identity: str | None
    detail: str | None


@value
class AuthenticationFailed(SessionEvent):
    """The sub-negotiation ended in a refusal; ``identity`` is a claim."""

    level: ClassVar[int] = logging.WARNING
    client: Address
    method: int
    identity: str | None
    reason: str


@value
class RequestJudged(SessionEvent):
    """A rule let the request through."""

    level: ClassVar[int] = logging.DEBUG
    identity: str | None
    command: int
    destination: Address
    rule: str


@value
class RequestRefused(SessionEvent):
    """The request was answered with ``reply``, which is not X'00'.

    ``claimed`` is the USERID that a SOCKS4 client gave itself.
    """

    client: Address
    method: int
    identity: str | None
    command: int | None
    destination: Address | None
    reply: int
    rule: str | None
    reason: str
    claimed: str | None = None


@value
class BindWaiting(SessionEvent):
    """A BIND listens, and the client was told where: at ``bound``, for up to ``limit`` seconds."""

    level: ClassVar[int] = logging.DEBUG
    identity: str | None
    destination: Address
    bound: Address
    limit: float


@value
class StrangersDropped(SessionEvent):
    """``count`` peers came to a BIND's port who were not to be let in; ``first`` tells of one.

    One event for a wait, however many came.
    """

    bound: Address
    count: int
    first: Address
    reason: str


@value
class UdpAssociated(SessionEvent):
    """A UDP relay is open at ``relay``, and ``client`` was told that it is at ``bound``."""

    level: ClassVar[int] = logging.DEBUG
    identity: str | None
    client: Address
    relay: Address
    bound: Address


@value
class DestinationRefused(SessionEvent):
    """The first datagram of a UDP association to ``destination`` was dropped.

    Those that follow it are dropped, too, without an event; so are all beyond 16 destinations.
    """

    identity: str | None
    destination: Address
    rule: str | None
    reason: str


@value
class UdpEnded(SessionEvent):
    """A UDP association has ended: datagrams relayed, and dropped, and for what reason.

    ``client`` is where its datagrams came from, or its connection if there were none.  Dropped are
    those of ``strangers``, that is of other addresses or ports than the client's; ``malformed``
    ones; ``fragments`` that never became a whole; ``denied``, to where no rule lets the client go;
    ``unresolved``, to names without an address; ``overflow``, of too many for names being looked
    up; ``unasked``, from hosts that the client had not written to; ``too_long`` for the client's
    header; ``failed``, where the kernel would not send or receive.
    """

    identity: str | None
    client: Address
    relay: Address
    datagrams_up: int
    datagrams_down: int
    strangers: int
    malformed: int
    fragments: int
    denied: int
    unresolved: int
    overflow: int
    unasked: int
    too_long: int
    failed: int


@value
class SessionEstablished(SessionEvent):
    """The target was reached and the client told so."""

    level: ClassVar[int] = logging.DEBUG
    identity: str | None
    destination: Address
    dialled: Address
    seconds: float
    upstream: str | None = None


@value
class SessionClosed(SessionEvent):
    """The end of every session, whatever it came to.

    ``reason`` is ``closed`` (both sides were done), ``reset_by_client``, ``reset_by_target``,
    ``broken_by_client: ...`` or ``broken_by_target: ...`` (octets that its stream refuses),
    ``idle``, ``half_close_idle``, ``udp_idle``, ``drained``, ``killed``, ``crashed``,
    ``crowded_out`` (a slow handshake while others waited for a place),
    ``no_longer_allowed`` (by the rules of a reload),
    ``nothing_said`` (a health check), ``given_up`` (the client left before its BIND's peer came),
    or ``refused`` when no relay came of it, which another event has told already.
    ``up`` and ``down`` are octets relayed, from the client and to it; ``seconds`` are those from
    accept to close.  ``dialled`` is the address of ``upstream``, where it went through one.

    For those who count, and left out of the log, where other events tell them: ``reply`` is the REP
    that the request was answered with; ``handshake`` the seconds from accept to the whole request,
    and ``connect`` those from there until the target of a CONNECT was reached.
    """

    client: Address
    method: int | None
    identity: str | None
    command: int | None
    destination: Address | None
    dialled: Address | None
    rule: str | None
    reason: str
    up: int
    down: int
    seconds: float
    claimed: str | None = None
    upstream: str | None = None
    reply: int | None = field(default=None, metadata=UNLOGGED)
    handshake: float | None = field(default=None, metadata=UNLOGGED)
    connect: float | None = field(default=None, metadata=UNLOGGED)


def _maker() -> Callable[..., SessionClosed]:
    slots = compiled("slots")
    if slots is None:
        return SessionClosed
    make: Callable[..., SessionClosed] = slots.Maker(
        SessionClosed, tuple([one.name for one in fields(SessionClosed)])
    )
    return make


make_closed: Final = _maker()
"""Makes one of all its fields, in their order.  There is one for every session, and its own
``__init__``, which is interpreted, takes three times as long.  Where it is not called, a
``__post_init__`` would not be, either."""


@value
class SessionCrashed(SessionEvent):
    """A fault of ours ended the session; ``traceback`` is for the report."""

    level: ClassVar[int] = logging.ERROR
    error: str
    traceback: str
