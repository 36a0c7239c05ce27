"""Lines that say the same over and over: the first are written, the others counted.

A scanner or a broken program makes thousands of refusals that differ in a port and a number.  Of
those of one kind, with the same reason and from the same host (or of the same upstream, or at the
same user's limit), the first ``most`` in ``WINDOW``
seconds are written, and then one line that tells how many there were besides.  ``session_closed``,
which is the access log, is never held back, and neither are the events of level debug.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

REPEATS: Final = 20
WINDOW: Final = 10.0
MOST_KEYS: Final = 1024
"""Kinds with reason and host that are told apart; beyond, kinds only."""

LIMITED: Final = frozenset(
    {"request_refused", "negotiation_ended", "destination_refused", "strangers_dropped"}
)
"""Events of level info that are held back.  Of those above info, all are."""

_REASONS: Final = ("reason", "error", "limit")
_WHOSE: Final = ("client", "source", "whose", "upstream")
_Fact = tuple[str, str]
_Key = tuple[str, _Fact | None, _Fact | None]
"""The event, its reason, and whose it is."""


@dataclass(slots=True)
class _Seen:
    level: int
    times: int = 0


class Repeats:
    """Counts what is the same within a window.

    ``admits`` is for those who emit, ``over`` and ``left`` for the thread that writes.  ``most`` is
    None to admit all.
    """

    def __init__(
        self, most: int | None = REPEATS, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = most
        self._clock = clock
        self._seen: dict[_Key, _Seen] = {}
        self._ends = 0.0

    def admits(self, record: logging.LogRecord) -> bool:
        """Whether to write a record."""
        event = record.__dict__.get("event")
        if event is None or not (event in LIMITED or record.levelno > logging.INFO):
            return True
        return self._most is None or self._count(record, event) <= self._most

    def _count(self, record: logging.LogRecord, event: str) -> int:
        if not self._seen:
            self._ends = self._clock() + WINDOW
        key = _key(event, record.__dict__["facts"])
        seen = self._seen.get(key)
        if seen is None:
            if len(self._seen) >= MOST_KEYS:
                key = (event, None, None)
            seen = self._seen.setdefault(key, _Seen(record.levelno))
        seen.times += 1
        return seen.times

    def left(self) -> float | None:
        """Seconds until the window ends; None where nothing was counted."""
        return max(0.0, self._ends - self._clock()) if self._seen else None

    def over(self) -> Iterator[logging.LogRecord]:
        """What there is to tell of a window that has ended, if one has."""
        if self._seen and self._clock() >= self._ends:
            seen, self._seen = self._seen, {}
            for key, one in seen.items():
                if self._most is not None and one.times > self._most:
                    yield _told(key, one.level, one.times - self._most)

    def end(self) -> None:
        """End the window now."""
        self._ends = 0.0


def _key(event: str, facts: dict[str, Any]) -> _Key:
    reason = _first(_REASONS, facts)
    whose = _first(_WHOSE, facts)
    if whose is not None and whose[0] == "client":
        host, _, port = whose[1].rpartition(":")
        whose = ("client", host or port)
    return event, reason, whose


def _first(names: tuple[str, ...], facts: dict[str, Any]) -> _Fact | None:
    return next(((name, str(facts[name])) for name in names if name in facts), None)


def _told(key: _Key, level: int, lines: int) -> logging.LogRecord:
    event, *more = key
    facts: dict[str, Any] = {"of": event, "lines": lines, "seconds": WINDOW}
    facts |= [fact for fact in more if fact is not None]
    name = "lines_held_back"
    told = {"levelno": level, "levelname": logging.getLevelName(level), "msg": name}
    return logging.makeLogRecord(told | {"event": name, "facts": facts})
