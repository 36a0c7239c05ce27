"""Events as they happen, for those who follow them at the control socket."""

import logging
import time
from collections import deque
from collections.abc import Collection, Iterator
from typing import Final

import gevent.event

from geosocks.control.desk import Call, Work
from geosocks.control_client import LEVELS
from geosocks.events import Event, SessionClosed, event_name, plain
from geosocks.greenlets import give_way
from geosocks.rows import TURN

MOST_WAITING: Final = 1000
"""Events that wait for one who follows them; what does not fit is counted, and told."""

TOLD_BEFORE: Final = ("refused", "nothing_said")
"""Ends of sessions that are worth a debug line only, as in the log: an event before told them."""

BREATH: Final = 1.0
"""Seconds after which one who follows events is looked at, were there none."""


def events(call: Call) -> Work:
    """What happens, from now on, until the one who asks hangs up."""
    arguments = call.arguments
    names = {event_name(kind): kind for kind in _kinds(Event)}
    level = arguments.word("level", LEVELS) or "info"
    kinds = arguments.words("event", names)
    follower = _Follower(
        logging.getLevelNamesMapping()[level.upper()] if not kinds else logging.DEBUG,
        kinds,
        arguments.text("user"),
        arguments.sessions("session"),
    )
    arguments.end()
    emit = call.desk.server.emit
    emit.add(follower)
    try:
        while True:
            yield None
            for number, (when, event) in enumerate(follower.take(), 1):
                if number % TURN == 0:
                    give_way()
                kind = type(event)
                row = {"time": when, "level": logging.getLevelName(event.level).lower()}
                yield row | {"worker": call.desk.worker, "event": event_name(kind)} | plain(event)
            if follower.dropped:
                yield {"event": "events_dropped", "events": follower.dropped}
                follower.dropped = 0
    finally:
        emit.remove(follower)


class _Follower:
    """An observer that keeps events for somebody at the other end of a socket."""

    def __init__(
        self,
        level: int,
        kinds: Collection[str],
        user: str | None,
        sessions: Collection[int],
    ) -> None:
        self._level = level
        self._kinds = kinds
        self._is_brief = level > logging.DEBUG
        self._user = user
        self._sessions = sessions
        self._waiting: deque[tuple[float, Event]] = deque()
        self._some = gevent.event.Event()
        self.dropped = 0
        """Events that found no room, since this was last set to 0."""

    def wants(self, kind: type[Event]) -> bool:
        """By weight and name; what an event says is looked at when it comes."""
        return kind.level >= self._level and (not self._kinds or event_name(kind) in self._kinds)

    def __call__(self, event: Event) -> None:
        if self._user is not None and getattr(event, "identity", None) != self._user:
            return
        if self._sessions and getattr(event, "session", None) not in self._sessions:
            return
        if isinstance(event, SessionClosed) and event.reason in TOLD_BEFORE and self._is_brief:
            return
        if len(self._waiting) >= MOST_WAITING:
            self.dropped += 1
            return
        self._waiting.append((round(time.time(), 3), event))
        self._some.set()

    def take(self) -> Iterator[tuple[float, Event]]:
        """Those that wait, each with its time, oldest first; none after a while without any."""
        self._some.wait(BREATH)
        self._some.clear()
        for _ in range(len(self._waiting)):
            yield self._waiting.popleft()


def _kinds(kind: type[Event]) -> Iterator[type[Event]]:
    """Every kind of event that ends the family tree."""
    below = kind.__subclasses__()
    for one in below:
        yield from _kinds(one)
    if not below:
        yield kind
