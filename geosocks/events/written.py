"""Events written down: as plain values, and to a ``logging`` logger."""

import logging
import re
import time
from collections.abc import Callable
from dataclasses import fields
from enum import IntEnum
from functools import cache, lru_cache
from operator import attrgetter
from typing import Any, Final, NamedTuple

from geosocks.codes import Cmd, Method, Rep
from geosocks.events.event import Event
from geosocks.events.session import SessionClosed, SessionCrashed
from geosocks.wire.socks5 import Address

_NAMES: Final[dict[type[Event], str]] = {}
_SNAKE: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")
_ENUMS: Final[dict[str, type[IntEnum]]] = {"method": Method, "command": Cmd, "reply": Rep}
_MAX_TEXT: Final = 512
_now: Final = time.time
LOOK_EVERY: Final = 0.01
"""Seconds that a logger and its handler are taken to be as they were: a busy server has a hundred
sessions end meanwhile, and looking costs half as much as their lines."""

_Closed: Final = SessionClosed


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


class Straight:
    """A way past the records of ``logging``: the ``straight`` of a handler that has one.

    Only that of the one handler of a logger is asked, if it has no filters and propagates nothing.
    """

    def is_open(self) -> bool:
        """Whether nobody else has a say in it, such as a filter of the handler."""
        raise NotImplementedError

    def takes(self, event: SessionClosed, created: float) -> bool:
        """Whether it has taken the end of a session, of level INFO and at a time."""
        raise NotImplementedError


class LogObserver:
    """Writes events to a ``logging`` logger; whoever owns the process configures that logger.

    The record's message is the event's name; its attributes ``event`` (the name again) and
    ``facts`` (the fields) are for a formatter.  A refused session has told its story in the event
    of the refusal, so its ``session_closed`` is worth a debug line only: one line a session.

    The logger's level is read once for each kind of event, and how it handles the ends of sessions
    a hundred times a second at most.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self.logger = logger or logging.getLogger("geosocks")
        self._straight: Straight | None = None
        """The way of sessions' ends, if there was one when it was looked for."""

        self._looked = 0.0

    def wants(self, kind: type[Event]) -> bool:
        """Whether the logger's level lets events of ``kind`` through."""
        self._looked = 0.0  # it is asked again when that has changed
        return self.logger.isEnabledFor(kind.level)

    def __call__(self, event: Event) -> None:
        if type(event) is _Closed:
            self._tell_closed(event)
        elif self.logger.isEnabledFor(event.level):
            self._tell(event, event.level, _now())

    def _tell_closed(self, event: SessionClosed) -> None:
        now = _now()
        if not 0 <= now - self._looked < LOOK_EVERY:
            self._looked = now
            self._straight = self._look()
        straight, reason = self._straight, event.reason
        level = logging.DEBUG if reason in ("refused", "nothing_said") else logging.INFO
        if straight is not None and level == logging.INFO and straight.takes(event, now):
            return
        if self.logger.isEnabledFor(level):
            self._tell(event, level, now)

    def _look(self) -> Straight | None:
        """The straight way, if the logger has one."""
        logger = self.logger
        handlers = logger.handlers
        if not logger.isEnabledFor(logging.INFO) or logger.propagate or logger.filters:
            return None
        if len(handlers) != 1:
            return None
        straight = getattr(handlers[0], "straight", None)
        return straight if isinstance(straight, Straight) and straight.is_open() else None

    def _tell(self, event: Event, level: int, now: float) -> None:
        record = logging.LogRecord.__new__(logging.LogRecord)
        record.__dict__ = _record_of(event_name(type(event)), level, self.logger.name) | {
            "created": now,
            "msecs": int(now % 1 * 1000),
            "facts": plain(event),
        }
        self.logger.handle(record)


@cache
def _record_of(name: str, level: int, logger: str) -> dict[str, Any]:
    """What all records of an event have in common; making one anew each time costs more.

    Where in the code it came from is nobody's business.
    """
    record = logging.LogRecord(logger, level, "", 0, name, None, None)
    return record.__dict__ | {"event": name, "relativeCreated": 0.0}
