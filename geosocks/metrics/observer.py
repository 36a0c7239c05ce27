"""Counts events, and what running sessions have relayed, into one worker's row.

A session costs one event, its last; everything else that is counted here is rare.
"""

import os
import resource
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import Any, Final, Protocol

from geosocks.codes import PRIVATE_METHODS, Cmd, Method, Rep
from geosocks.events import (
    AcceptPaused,
    AuthenticationFailed,
    ConnectionRefused,
    Draining,
    Event,
    LimitReached,
    NegotiationEnded,
    Reloaded,
    ReloadRefused,
    SessionClosed,
    SessionCrashed,
    UdpEnded,
    UpstreamFailed,
)
from geosocks.greenlets import give_way
from geosocks.metrics import cells as c
from geosocks.metrics.cells import BOUNDS, MICRO, OTHER, Cells, Family
from geosocks.session import Session

TURN: Final = 1000
"""Sessions looked at before others get a turn: about a millisecond's work."""

PAGE: Final = os.sysconf("SC_PAGE_SIZE")

Share = Callable[[Session, int, int], None]
"""Told of the octets that a running session has relayed, up and down, since it was told last."""


class Live(Protocol):
    """What of a server there is to see."""

    max_sessions: int

    @property
    def sessions(self) -> Mapping[int, Session]:
        """The live ones, by id."""
        ...


class Metrics:
    """An observer of one worker's events.  Its row is written by nobody else."""

    def __init__(self, cells: Cells, row: memoryview) -> None:
        self.row = row
        self.cells = cells
        self._told: dict[int, tuple[int, int]] = {}
        """Octets of running sessions that are in the counts already."""

        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            SessionClosed: self._closed,
            NegotiationEnded: self._negotiation_ended,
            AuthenticationFailed: self._authentication_failed,
            ConnectionRefused: self._connection_refused,
            UdpEnded: self._udp_ended,
            LimitReached: self._limit_reached,
            AcceptPaused: lambda event: self._add(c.ACCEPT_PAUSES, event.pauses),
            UpstreamFailed: lambda _: self._add(c.UPSTREAM_FAILURES, 1),
            SessionCrashed: lambda _: self._add(c.CRASHES, 1),
            Reloaded: lambda _: self._configured(),
            ReloadRefused: lambda _: self.set(c.CONFIG_GOOD, 0),
            Draining: lambda _: self.set(c.DRAINING, 1),
        }
        # What every session needs, found once.
        self._up, self._down = cells.of(c.OCTETS)
        self._handshake = cells.of(c.HANDSHAKE)
        self._connect = cells.of(c.CONNECT)
        self._ends = {reason: cells.one(c.SESSION_ENDS, reason) for reason in c.ENDS}
        self._sessions = {
            (command, reply): cells.one(c.SESSIONS, _command(command), _reply(reply))
            for command, reply in product((*Cmd, None), (*Rep, None))
        }
        self._let_in = {
            method: cells.one(c.AUTHENTICATIONS, _method(method), "success")
            for method in (*range(256), None)
        }

    def wants(self, kind: type[Event]) -> bool:
        """Whether events of ``kind`` are counted."""
        return kind in self._handlers

    def __call__(self, event: Event) -> None:
        self._handlers[type(event)](event)

    def set(self, family: Family, value: int) -> None:
        """Set a gauge, in parts of its unit."""
        self.row[self.cells.one(family)] = value

    def _add(self, family: Family, number: int, *labels: str) -> None:
        self.row[self.cells.one(family, *labels)] += number

    # --- events -------------------------------------------------------------------------------

    def _closed(self, event: SessionClosed) -> None:
        row = self.row
        up, down = self._told.pop(event.session, _NOTHING)
        row[self._up] += event.up - up
        row[self._down] += event.down - down
        end = self._ends.get(event.reason) or self._end(event.reason)
        row[end] += 1
        if event.command is not None or event.reply is not None:
            key = event.command, event.reply
            row[self._sessions.get(key) or self._session(*key)] += 1
            row[self._let_in[event.method]] += 1
        if event.handshake is not None:
            self._observe(self._handshake, event.handshake)
        if event.connect is not None:
            self._observe(self._connect, event.connect)

    def _observe(self, histogram: range, seconds: float) -> None:
        row = self.row
        row[histogram.start + bisect_left(BOUNDS, seconds)] += 1
        row[histogram.stop - 1] += int(seconds * MICRO)

    def _end(self, reason: str) -> int:
        return self._ends.get(reason.partition(":")[0], self._ends[OTHER])

    def _session(self, command: int | None, reply: int | None) -> int:
        return self.cells.one(c.SESSIONS, _command(command), _reply(reply))

    def _negotiation_ended(self, event: NegotiationEnded) -> None:
        self._add(c.REFUSED, 1, event.kind)

    def _connection_refused(self, event: ConnectionRefused) -> None:
        reason = event.reason if event.reason in c.REFUSED_AT_ONCE else OTHER
        self._add(c.REFUSED, 1, reason)

    def _authentication_failed(self, event: AuthenticationFailed) -> None:
        self._add(c.REFUSED, 1, "authentication")
        self._add(c.AUTHENTICATIONS, 1, _method(event.method), "failure")

    def _udp_ended(self, event: UdpEnded) -> None:
        for labels, name in c.DATAGRAMS.items():
            self._add(c.UDP, getattr(event, name), *labels)

    def _limit_reached(self, event: LimitReached) -> None:
        self._add(c.LIMITS_REACHED, 1, event.limit if event.limit in c.LIMITS else OTHER)

    def _configured(self) -> None:
        self.set(c.CONFIG_GOOD, 1)
        self.set(c.CONFIG_LOADED, int(time.time() * MICRO))

    # --- what no event tells ------------------------------------------------------------------

    def begin(self) -> None:
        """The worker is up, with the settings that it was started with."""
        self.set(c.UP, 1)
        self.set(c.STARTED, int(time.time() * MICRO))
        self.set(c.DRAINING, 0)
        self._configured()

    def end(self) -> None:
        """The worker is not there any more: its gauges are zero, its counts stay."""
        for family in c.FAMILIES:
            if family.kind == "gauge":
                self.set(family, 0)

    def look(self, server: Live, shares: Iterable[Share] = ()) -> None:
        """Count what running sessions have relayed until now, and how many there are.

        Gives way to other greenlets every ``TURN`` sessions.
        """
        shares = tuple(shares)
        handshakes = 0
        for number, session in enumerate(list(server.sessions.values()), 1):
            if number % TURN == 0:
                give_way()
            # Between its last event and its leaving there is no turn for anybody else.
            if session.id not in server.sessions:
                continue
            handshakes += session.requested is None
            self._share(session, shares)
        self.set(c.ACTIVE, len(server.sessions))
        self.set(c.HANDSHAKES, handshakes)
        self.set(c.CEILING, server.max_sessions)

    def _share(self, session: Session, shares: tuple[Share, ...]) -> None:
        up, down = session.meter.up, session.meter.down
        was_up, was_down = self._told.get(session.id, _NOTHING)
        if up == was_up and down == was_down:
            return
        self._told[session.id] = up, down
        self.row[self._up] += up - was_up
        self.row[self._down] += down - was_down
        for share in shares:
            share(session, up - was_up, down - was_down)

    def told(self, session: int) -> tuple[int, int]:
        """Octets up and down of a running session that ``look`` has counted."""
        return self._told.get(session, _NOTHING)

    def measure_process(self) -> None:
        """Note what this process takes (proc(5), getrusage(2))."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        self.set(c.CPU, int((used.ru_utime + used.ru_stime) * MICRO))
        self.set(c.DESCRIPTORS, _descriptors())
        self.set(c.MEMORY, _resident())
        self.set(c.MAX_DESCRIPTORS, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


_NOTHING: Final = (0, 0)


_COMMANDS: Final[dict[int | None, str]] = {cmd.value: cmd.name.lower() for cmd in Cmd}
_REPLIES: Final[dict[int | None, str]] = {rep.value: rep.name.lower() for rep in Rep}
_REPLIES[None] = c.NO_REPLY
_METHODS: Final[dict[int | None, str]] = {
    **dict.fromkeys(PRIVATE_METHODS, "private"),
    **{method.value: method.name.lower() for method in Method if method != Method.NO_ACCEPTABLE},
}


def _command(number: int | None) -> str:
    return _COMMANDS.get(number, OTHER)


def _reply(number: int | None) -> str:
    return _REPLIES.get(number, OTHER)


def _method(number: int | None) -> str:
    return _METHODS.get(number, OTHER)


def _descriptors() -> int:
    try:
        with os.scandir("/proc/self/fd") as entries:
            return sum(1 for _ in entries) - 1  # not the one that it is read by
    except OSError:  # no Linux
        return 0


def _resident() -> int:
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * PAGE
    except OSError:
        return 0
