"""What a server tells about itself: frozen facts in the past tense, and those who listen.

Session code neither logs nor counts; it emits one of these.  An event's name in the JSON log is its
class name in snake case.  Client octets inside are as they came; whoever writes them down escapes
them (``escape``).  No event ever carries a secret.
"""

import logging
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import field, fields
from enum import IntEnum
from functools import cache, lru_cache
from operator import attrgetter
from typing import Any, ClassVar, Final, NamedTuple

from geosocks.codes import Cmd, Method, Rep
from geosocks.values import value
from geosocks.wire.socks5 import Address


@value
class Event:
    """A fact.  ``level`` is its weight in a log (``logging``'s numbers)."""

    level: ClassVar[int] = logging.INFO


UNLOGGED: Final = {"unlogged": True}
"""Metadata of a field that ``plain`` leaves out."""


Observer = Callable[[Event], None]
"""Called in the greenlet that saw the fact: be quick, do not block."""


# --- the server -------------------------------------------------------------------------------


@value
class Listening(Event):
    """A listener takes connections; ``name`` is what rules call it, where it has one."""

    address: str
    name: str | None = None


@value
class AcceptPaused(Event):
    """No descriptor (or memory) was left to accept with; the listener waits ``seconds``.

    At most one of these in ten seconds, with the number of pauses since the last.
    """

    level: ClassVar[int] = logging.ERROR
    error: str
    pauses: int
    seconds: float


@value
class LimitReached(Event):
    """A ceiling was met and somebody had to wait or was turned away.

    ``whose`` ceiling, if it is not the whole server's: ``user alice``, ``host 192.0.2.7``.
    """

    level: ClassVar[int] = logging.WARNING
    limit: str
    ceiling: int
    whose: str | None = None


@value
class LimitTableFull(Event):
    """What workers tell each other of their counts has no room for one more key.

    Until there is room this worker goes by its own count for such keys; ``keys`` are those that it
    has in its table.
    """

    level: ClassVar[int] = logging.WARNING
    keys: int


@value
class ConnectionRefused(Event):
    """A connection was closed before a word was said, for one of ``geosocks.entrance.REASONS``.

    There may be thousands a second: the log is told of limits by ``LimitReached``, now and then.
    """

    level: ClassVar[int] = logging.DEBUG
    client: Address
    listener: str
    reason: str


@value
class SourcePenalised(Event):
    """A source fails to authenticate, time and again.

    Each attempt of it waits ``delay`` seconds from now on; ``refused_seconds`` is for how long
    it is not even let in.
    """

    level: ClassVar[int] = logging.WARNING
    source: str
    delay: float
    refused_seconds: float


@value
class Reloaded(Event):
    """A new policy is in force."""

    what: str


@value
class ReloadRefused(Event):
    """The new settings cannot be used; the old policy stays in force."""

    level: ClassVar[int] = logging.ERROR
    reason: str


@value
class Draining(Event):
    """No more connections are accepted; ``sessions`` of them run on for up to ``seconds``."""

    sessions: int
    seconds: float


@value
class Stopped(Event):
    """The last session has ended."""

    sessions_cut: int


@value
class ControlUnavailable(Event):
    """There is no control socket: ``geosocks ctl`` cannot ask this process."""

    level: ClassVar[int] = logging.WARNING
    path: str
    reason: str


@value
class ControlRefused(Event):
    """A program was turned away at the control socket; the kernel tells its ids."""

    level: ClassVar[int] = logging.WARNING
    uid: int
    pid: int
    reason: str


@value
class ControlUsed(Event):
    """Somebody at the control socket changed something: ``what``, in the words of the request."""

    uid: int
    pid: int
    what: str


@value
class WorkerStarted(Event):
    """The master has started the worker of a slot, 0 and up."""

    worker: int
    pid: int


@value
class WorkerEnded(Event):
    """A worker is gone: by a signal, or with an exit code.

    The next takes its slot after ``pause`` seconds; none does where that is None.
    """

    level: ClassVar[int] = logging.WARNING
    worker: int
    pid: int
    reason: str
    pause: float | None = None


@value
class StateTold(Event):
    """Somebody asked (USR2) how it is: a process that serves, or the master of ``workers``."""

    uptime_seconds: float
    worker: int | None = None
    sessions: int | None = None
    handshakes: int | None = None
    max_sessions: int | None = None
    draining: bool | None = None
    observer_failures: int | None = None
    workers: str | None = None


@value
class ControlCrashed(Event):
    """A fault of ours ended a request at the control socket; ``traceback`` is for the report."""

    level: ClassVar[int] = logging.ERROR
    error: str
    traceback: str


@value
class AdminCrashed(Event):
    """A fault of ours ended a request for the status page; ``traceback`` is for the report."""

    level: ClassVar[int] = logging.ERROR
    error: str
    traceback: str


@value
class UpstreamFailed(Event):
    """An upstream could not be reached, or broke its handshake; it rests for so many seconds.

    Told when it happens first, when ``reason`` changes and when a rest has not helped; not for
    every session that meets it.
    """

    level: ClassVar[int] = logging.WARNING
    upstream: str
    reason: str
    rest_seconds: float


@value
class UpstreamRecovered(Event):
    """An upstream that had failed did its part again."""

    upstream: str


# --- one session ------------------------------------------------------------------------------


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


@value
class SessionCrashed(SessionEvent):
    """A fault of ours ended the session; ``traceback`` is for the report."""

    level: ClassVar[int] = logging.ERROR
    error: str
    traceback: str


# --- those who listen -------------------------------------------------------------------------


class FanOut:
    """One observer that tells many.  One that raises is counted, and harms nobody.

    An observer may have a method ``wants(kind)``; it then says, once for each kind of event,
    whether it wants to be told.  ``wants`` of all of them together saves making an event that
    nobody would see.
    """

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self.observers = tuple(observers)
        self.failures = 0
        """How often an observer raised."""

        self.audience = _Audience(self)
        """Who is to be told of each kind of event; nobody (false) saves making it."""

    def add(self, observer: Observer) -> None:
        """Tell ``observer`` too, from the next event on."""
        self.observers = (*self.observers, observer)
        self.ask_again()

    def remove(self, observer: Observer) -> None:
        """Tell ``observer`` no more."""
        self.observers = tuple(one for one in self.observers if one is not observer)
        self.ask_again()

    def ask_again(self) -> None:
        """Forget what the observers want: one of them has changed its mind."""
        self.audience.clear()

    def wants(self, kind: type[Event]) -> bool:
        """Whether anybody wants to be told of events of ``kind``."""
        return bool(self.audience[kind])

    def __call__(self, event: Event) -> None:
        for observer in self.audience[type(event)]:
            try:
                observer(event)
            except Exception:
                self.failures += 1


class _Audience(dict[type[Event], tuple[Observer, ...]]):
    """Who is told of each kind of event, found out when it is first asked for."""

    def __init__(self, of: FanOut) -> None:
        super().__init__()
        self._of = of

    def __missing__(self, kind: type[Event]) -> tuple[Observer, ...]:
        audience = self[kind] = tuple(
            observer
            for observer in self._of.observers
            if getattr(observer, "wants", lambda _: True)(kind)
        )
        return audience


_NAMES: Final[dict[type[Event], str]] = {}
_SNAKE: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")
_ENUMS: Final[dict[str, type[IntEnum]]] = {"method": Method, "command": Cmd, "reply": Rep}
_MAX_TEXT: Final = 512


def escape(text: str) -> str:
    r"""Write what a client sent so that it stays one harmless line: printable ASCII or ``\x..``.

    Control characters, everything that could reorder or hide text, and octets beyond ASCII become
    escapes; at most 512 characters are kept.
    """
    if len(text) > _MAX_TEXT:
        text = text[:_MAX_TEXT] + "..."
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    return "".join(_escaped(char) for char in text)


def _escaped(char: str) -> str:
    code = ord(char)
    if 0x20 <= code < 0x7F and char != "\\":
        return char
    if 0xDC80 <= code <= 0xDCFF:  # an octet that surrogateescape kept
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("ascii", "backslashreplace").decode() if code > 0x7F else f"\\x{code:02x}"


def event_name(kind: type[Event]) -> str:
    """``SessionClosed`` is ``session_closed``."""
    name = _NAMES.get(kind)
    if name is None:
        name = _NAMES[kind] = _SNAKE.sub("_", kind.__name__).lower()
    return name


def plain(event: Event) -> dict[str, Any]:
    """The event's fields as a log or a page shows them: numbers, escaped text, names for codes.

    Fields that hold None are left out.
    """
    shown: dict[str, Any] = {}
    plan = _plan(type(event))
    for (name, names), fact in zip(plan.fields, plan.fetch(event), strict=True):
        if fact is None:
            continue
        kind = type(fact)
        if names is not None:
            fact = names.get(fact) or f"{fact:#04x}"
        elif kind is str:
            fact = _escape_known(fact)
        elif kind is Address:
            fact = escape(str(fact)) if fact.is_name else str(fact)
        elif kind is float:
            fact = round(fact, 6)
        elif kind is bytes:
            fact = fact.hex(" ")
        shown[name] = fact
    if type(event) is SessionCrashed:
        shown["traceback"] = event.traceback[-4096:]
    return shown


_escape_known: Final = lru_cache(maxsize=1024)(escape)
"""Rules, reasons and users are the same few again and again."""


class _Plan(NamedTuple):
    """The fields of a kind of event, and the names of their values where those have names."""

    fields: tuple[tuple[str, dict[int, str] | None], ...]
    fetch: Callable[[Event], tuple[Any, ...]]


_PLANS: Final[dict[type[Event], _Plan]] = {}


def _plan(kind: type[Event]) -> _Plan:
    plan = _PLANS.get(kind)
    if plan is None:
        plan = _PLANS[kind] = _make_plan(kind)
    return plan


def _make_plan(kind: type[Event]) -> _Plan:
    names = [one.name for one in fields(kind) if "unlogged" not in one.metadata]
    if len(names) > 1:
        fetch: Callable[[Event], tuple[Any, ...]] = attrgetter(*names)
    else:  # of one name it makes no tuple

        def fetch(event: Event) -> tuple[Any, ...]:
            return tuple(getattr(event, name) for name in names)

    meanings = ({v.value: v.name.lower() for v in _ENUMS.get(name, ())} or None for name in names)
    return _Plan(tuple(zip(names, meanings, strict=True)), fetch)


class LogObserver:
    """Writes events to a ``logging`` logger; whoever owns the process configures that logger.

    The record's message is the event's name; its attributes ``event`` (the name again) and
    ``facts`` (the fields) are for a formatter.  A refused session has told its story in the event
    of the refusal, so its ``session_closed`` is worth a debug line only: one line a session.

    The logger's level is read once for each kind of event.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self.logger = logger or logging.getLogger("geosocks")

    def wants(self, kind: type[Event]) -> bool:
        """Whether the logger's level lets events of ``kind`` through."""
        return self.logger.isEnabledFor(kind.level)

    def __call__(self, event: Event) -> None:
        kind = type(event)
        level = event.level
        if kind is SessionClosed and event.reason in ("refused", "nothing_said"):  # type: ignore[attr-defined]
            level = logging.DEBUG
        logger = self.logger
        if logger.isEnabledFor(level):
            record = logging.LogRecord.__new__(logging.LogRecord)
            now = time.time()
            record.__dict__ = _record_of(event_name(kind), level, logger.name) | {
                "created": now,
                "msecs": int(now % 1 * 1000),
                "facts": plain(event),
            }
            logger.handle(record)


@cache
def _record_of(name: str, level: int, logger: str) -> dict[str, Any]:
    """What all records of an event have in common; making one anew each time costs more.

    Where in the code it came from is nobody's business.
    """
    record = logging.LogRecord(logger, level, "", 0, name, None, None)
    return record.__dict__ | {"event": name, "relativeCreated": 0.0}
