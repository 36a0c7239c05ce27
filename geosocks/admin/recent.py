"""What happened lately: who relayed how much to where, and what failed, in bounded tables.

Of one worker.  ``snapshot`` is what another one may ask for, and ``merge`` puts them together.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from geosocks.codes import Cmd, Method, Rep, name_of
from geosocks.events import (
    AcceptPaused,
    AuthenticationFailed,
    Event,
    NegotiationEnded,
    Reloaded,
    ReloadRefused,
    RequestRefused,
    SessionClosed,
    SessionCrashed,
    UpstreamFailed,
    UpstreamRecovered,
    escape,
)
from geosocks.session import Session
from geosocks.wire.socks5 import Address

PARTS: Final = 6
PART_SECONDS: Final = 600.0
"""The tables are of the last hour, in parts that are forgotten one by one."""

MOST: Final = 256
"""Names that a part of a table keeps once it is tidied up: those with the most octets."""

FAILURES: Final = 30
SHOWN: Final = 10
"""Rows of a table that is shown."""

TOLD: Final = 50
"""Rows that a worker tells of; the first of all may not be the first of any one."""

MAX_UPSTREAMS: Final = 64

Row = dict[str, Any]


class Top:
    """Octets and sessions by name over the last hour, of those who have the most."""

    def __init__(self) -> None:
        self._parts: deque[dict[object, list[int]]] = deque([{}], PARTS)
        self._began = time.monotonic()

    def add(self, name: object, octets: int, sessions: int) -> None:
        """Count; ``name`` is anything that can be hashed and written."""
        part = self._parts[-1]
        entry = part.get(name)
        if entry is None:
            if len(part) >= 2 * MOST:
                part = self._tidied(part)
            entry = part[name] = [0, 0]
        entry[0] += octets
        entry[1] += sessions

    def _tidied(self, part: dict[object, list[int]]) -> dict[object, list[int]]:
        kept = dict(sorted(part.items(), key=lambda item: item[1], reverse=True)[:MOST])
        self._parts[-1] = kept
        return kept

    def turn(self, now: float) -> None:
        """Begin another part if it is time; ``now`` is by ``time.monotonic``."""
        while now - self._began >= PART_SECONDS:
            self._began += PART_SECONDS
            self._parts.append({})

    def rows(self, most: int) -> list[Row]:
        """Those with the most octets, most first."""
        together: dict[object, list[int]] = {}
        for part in self._parts:
            for name, (octets, sessions) in part.items():
                entry = together.setdefault(name, [0, 0])
                entry[0] += octets
                entry[1] += sessions
        first = sorted(together.items(), key=lambda item: item[1], reverse=True)[:most]
        return [
            {"name": escape(str(name)), "octets": octets, "sessions": sessions}
            for name, (octets, sessions) in first
        ]


class Recent:
    """An observer of what the page tells beyond the counts."""

    def __init__(self) -> None:
        self.users = Top()
        self.destinations = Top()
        self.failures: deque[tuple[float, Event]] = deque(maxlen=FAILURES)
        self.pauses: tuple[float, str] | None = None
        """When and why no connection was accepted last."""

        self.reload_refused: str | None = None
        """Why the last reload was refused, if it was."""

        self.crashed: float | None = None
        """When a session crashed last."""

        self.upstreams: dict[str, str] = {}
        """Those that failed and have not recovered, and why."""

        self._shared: dict[int, int] = {}
        """Octets of running sessions that are in the tables."""

        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            SessionClosed: self._closed,
            NegotiationEnded: self._failed,
            AuthenticationFailed: self._failed,
            RequestRefused: self._failed,
            UpstreamFailed: self._upstream_failed,
            UpstreamRecovered: self._upstream_recovered,
            SessionCrashed: self._crashed,
            AcceptPaused: self._paused,
            Reloaded: lambda _: self._reloaded(None),
            ReloadRefused: lambda event: self._reloaded(event.reason),
        }

    def wants(self, kind: type[Event]) -> bool:
        """Whether events of ``kind`` matter here."""
        return kind in self._handlers

    def __call__(self, event: Event) -> None:
        self._handlers[type(event)](event)

    def share(self, session: Session, up: int, down: int) -> None:
        """A running session has relayed that many octets more."""
        if session.destination is None:
            return
        before = self._shared.get(session.id)
        self._shared[session.id] = (before or 0) + up + down
        self._count(session, session.peer, up + down, int(before is None))

    def turn(self) -> None:
        """Forget what is more than an hour ago."""
        now = time.monotonic()
        self.users.turn(now)
        self.destinations.turn(now)

    def _closed(self, event: SessionClosed) -> None:
        shared = self._shared.pop(event.session, None)
        if event.reply == Rep.SUCCEEDED:
            octets = event.up + event.down - (shared or 0)
            self._count(event, event.client, octets, int(shared is None))

    def _count(
        self, of: Session | SessionClosed, client: Address, octets: int, sessions: int
    ) -> None:
        self.users.add(client.host if of.identity is None else of.identity, octets, sessions)
        if of.command != Cmd.UDP_ASSOCIATE:  # its datagrams have destinations of their own
            self.destinations.add(of.destination, octets, sessions)

    def _failed(self, event: Event) -> None:
        self.failures.append((time.time(), event))

    def _upstream_failed(self, event: UpstreamFailed) -> None:
        self._failed(event)
        if len(self.upstreams) < MAX_UPSTREAMS:
            self.upstreams[event.upstream] = event.reason

    def _upstream_recovered(self, event: UpstreamRecovered) -> None:
        self.upstreams.pop(event.upstream, None)

    def _crashed(self, event: SessionCrashed) -> None:
        self._failed(event)
        self.crashed = time.time()

    def _paused(self, event: AcceptPaused) -> None:
        self.pauses = time.time(), event.error

    def _reloaded(self, refused: str | None) -> None:
        self.reload_refused = refused

    def snapshot(self) -> Row:
        """All of it in numbers and escaped text, as JSON can carry it."""
        return {
            "users": self.users.rows(TOLD),
            "destinations": self.destinations.rows(TOLD),
            "failures": [_failure(when, event) for when, event in self.failures],
            "pauses": None if self.pauses is None else [self.pauses[0], escape(self.pauses[1])],
            "reload_refused": _text(self.reload_refused),
            "crashed": self.crashed,
            "upstreams": {escape(name): escape(why) for name, why in self.upstreams.items()},
        }


def _failure(when: float, event: Event) -> Row:
    """A failure as a row: when, what kind, who, where to, and why in words."""
    client = getattr(event, "client", None)
    destination = getattr(event, "destination", None)
    return {
        "when": when,
        "what": _what(event),
        "client": _text(client),
        "identity": _text(getattr(event, "identity", None)),
        "destination": _text(destination),
        "why": escape(getattr(event, "reason", "") or getattr(event, "error", "")),
    }


def _what(event: Event) -> str:
    match event:
        case AuthenticationFailed(method=method):
            return f"{name_of(Method, method)}: not let in"
        case RequestRefused(reply=reply):
            return name_of(Rep, reply).replace("_", " ")
        case NegotiationEnded():
            return "no request"
        case UpstreamFailed(upstream=upstream):
            return f"upstream {escape(upstream)}"
    return "crashed"


def _text(value: object) -> str | None:
    return None if value is None else escape(str(value))


def merge(snapshots: Iterable[Row]) -> Row:
    """Those of several workers as one."""
    all_of_them = list(snapshots)
    failures = sorted(
        (failure for one in all_of_them for failure in one["failures"]),
        key=lambda failure: float(failure["when"]),
    )
    pauses = [one["pauses"] for one in all_of_them if one["pauses"]]
    crashes = [one["crashed"] for one in all_of_them if one["crashed"]]
    refused = [one["reload_refused"] for one in all_of_them if one["reload_refused"]]
    return {
        "users": _together(one["users"] for one in all_of_them),
        "destinations": _together(one["destinations"] for one in all_of_them),
        "failures": failures[-FAILURES:],
        "pauses": max(pauses, default=None),
        "reload_refused": refused[0] if refused else None,
        "crashed": max(crashes, default=None),
        "upstreams": {name: why for one in all_of_them for name, why in one["upstreams"].items()},
    }


def _together(tables: Iterable[list[Row]]) -> list[Row]:
    together: dict[str, Row] = {}
    for table in tables:
        for row in table:
            entry = together.setdefault(row["name"], row | {"octets": 0, "sessions": 0})
            entry["octets"] += row["octets"]
            entry["sessions"] += row["sessions"]
    rows = sorted(together.values(), key=lambda row: (row["octets"], row["sessions"]), reverse=True)
    return rows[:SHOWN]
