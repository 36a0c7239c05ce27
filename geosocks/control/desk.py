"""What the verbs of a control socket work on: the server, and what it does not know of itself."""

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Final

from geosocks.control.arguments import Arguments
from geosocks.control.peers import Peer
from geosocks.events import ControlUsed, Draining, Event, Reloaded
from geosocks.policy import Policy
from geosocks.rows import Row
from geosocks.server import Server

Work = Generator[Row | None, None, Row]
"""A verb at work: it yields rows, or None to have those so far sent, and returns what there is to
say of the whole."""


class Clock:
    """Since when the policy is in force, and whether the server drains; an observer of its events.

    A policy that was assigned without an event counts from when it is first seen.
    """

    KINDS: Final = (Draining, Reloaded)

    def __init__(self, server: Server) -> None:
        self.started = time.time()
        self.draining = False
        self._server = server
        self._policy: Policy = server.policy
        self._since = time.monotonic()

    def wants(self, kind: type[Event]) -> bool:
        """Only what tells of the server itself."""
        return kind in self.KINDS

    def __call__(self, event: Event) -> None:
        if isinstance(event, Draining):
            self.draining = True
        else:
            self._policy, self._since = self._server.policy, time.monotonic()

    def policy_seconds(self) -> float:
        """For how long the policy in force has been that."""
        if self._server.policy is not self._policy:
            self._policy, self._since = self._server.policy, time.monotonic()
        return time.monotonic() - self._since


@dataclass(slots=True)
class Desk:
    """What the verbs work on.  Owned by the control socket."""

    server: Server
    version: str
    worker: int
    workers: int
    reload: Callable[[], None] | None
    drain: Callable[[], None] | None
    lately: Callable[[], Row] | None = None
    """What happened lately, where somebody keeps that: for the status pages of other workers."""

    clock: Clock = field(init=False)
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.clock = Clock(self.server)


@dataclass(frozen=True, slots=True)
class Call:
    """One request: on which desk, by whom, and its arguments."""

    desk: Desk
    peer: Peer
    arguments: Arguments

    def note(self, what: str) -> None:
        """Tell that something is changed."""
        self.desk.server.emit(ControlUsed(self.peer.uid, self.peer.pid, what))
