"""Events of the server, and of the process around it."""

import logging
from typing import ClassVar

from geosocks.events.event import Event
from geosocks.values import value
from geosocks.wire.socks5 import Address


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
