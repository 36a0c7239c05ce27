"""Time limits that cost next to nothing while they hold.

A session has several, and nearly all of them end unmet: a timer each would cost more than the rest
of a short session's bookkeeping.  Limits of one length are met in the order in which they began, so
one timer for each length is enough, and it looks only at the oldest.
"""

from time import monotonic
from types import TracebackType
from typing import Any, Final

from greenlet import getcurrent, greenlet

from geosocks.hubs import OfHub, of_hub

# As Final they need no look-up by name, which costs as much as a short function.
_monotonic: Final = monotonic
_getcurrent: Final = getcurrent

ROOM: Final = 64
"""Limits that have ended and are still listed, beside as many as are running, before all are looked
at."""

IDLE_LENGTHS: Final = 16
"""Lengths whose timer is kept though no limit of that length is running."""


class Deadline:
    """A ``with`` block that raises ``error`` inside when it lasts longer than ``seconds``.

    ``error`` is an exception or a type of one.  The block belongs to one greenlet, and is cut where
    that greenlet waits.  One object is good for one block at a time.

    Whoever knows them already gives ``here``, which belongs to that greenlet's hub, the greenlet
    itself (``whom``), and ``since`` when it lasts, by ``time.monotonic``.
    """

    __slots__ = (
        "_here",
        "_running",
        "_since",
        "_whom",
        "due",
        "error",
        "greenlet",
        "listed",
        "seconds",
    )

    def __init__(
        self,
        seconds: float,
        error: BaseException | type[BaseException],
        here: OfHub | None = None,
        whom: greenlet | None = None,
        since: float | None = None,
    ) -> None:
        self.seconds = seconds
        self.error = error
        self.due = 0.0
        self._here = here
        self._whom = whom
        self._since = since
        self.greenlet: greenlet | None = None
        """Whom it would cut; None before and after the block."""

        self.listed = False
        """Whether ``_running`` knows it, as it does for a while after the block."""

        self._running: _Running | None = None

    def __enter__(self) -> "Deadline":
        here = self._here
        if self.listed and self._running is not None:
            self._running.forget(self)
        running = self._running = _running_of(self.seconds, of_hub() if here is None else here)
        whom, since = self._whom, self._since
        self.greenlet = _getcurrent() if whom is None else whom
        self.due = (_monotonic() if since is None else since) + self.seconds
        running.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        running = self._running
        assert running is not None
        if self.greenlet is not None:  # it was not cut
            running.end(self)


class _Running:
    """The limits of one length that are running in one hub, the oldest first.

    One that has ended stays listed until it is found so: to take it out costs more than all else.
    """

    __slots__ = ("_armed", "_listed", "_loop", "_room", "_timer", "live", "seconds")

    def __init__(self, seconds: float, loop: Any) -> None:
        self.live = 0
        """How many are running."""

        self._listed: list[Deadline] = []
        self._room = ROOM
        self.seconds = seconds
        self._loop = loop
        self._timer: Any = None
        self._armed = False

    def add(self, limit: Deadline) -> None:
        """It begins, and will end after all others."""
        if not self.live:
            self._begin()
        elif len(self._listed) >= self._room:
            self._look_at_all()
        self.live += 1
        self._listed.append(limit)
        limit.listed = True

    def _look_at_all(self) -> None:
        listed, self._listed = self._listed, []
        for one in listed:
            if one.greenlet is None:
                one.listed = False
            else:
                self._listed.append(one)
        self._room = 2 * len(self._listed) + ROOM

    def forget(self, limit: Deadline) -> None:
        """It has ended, and is to begin anew."""
        self._listed.remove(limit)
        limit.listed = False

    def end(self, limit: Deadline) -> None:
        """It is over, one way or the other."""
        limit.greenlet = None
        self.live -= 1
        if not self.live:
            self._pause()

    def _begin(self) -> None:
        """The first of them begins."""
        if self._armed:
            self._timer.ref = True
        else:
            self._arm(self.seconds)

    def _pause(self) -> None:
        """The last of them has ended.

        The timer goes on, most often the next limit is not far; but it keeps no loop alive.
        """
        for one in self._listed:
            one.listed = False
        self._listed.clear()
        if self._armed:
            self._timer.ref = False

    def close(self) -> None:
        """Give the timer back."""
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None
            self._armed = False

    def _arm(self, seconds: float) -> None:
        self.close()
        self._timer = self._loop.timer(max(seconds, 0.0))
        self._timer.start(self._look)
        self._armed = True

    def _look(self) -> None:
        """In the hub: cut those that are over."""
        self.close()
        while True:
            oldest = self._oldest()
            if oldest is None:
                return
            left = oldest.due - monotonic()
            if left > 0:
                # One that was cut may have begun another.
                if not self._armed:
                    self._arm(left)
                return
            whom = oldest.greenlet
            assert whom is not None
            self.end(oldest)
            whom.throw(oldest.error)

    def _oldest(self) -> Deadline | None:
        """The first that is running; those before it are listed no longer."""
        ended = 0
        for one in self._listed:
            if one.greenlet is not None:
                break
            one.listed = False
            ended += 1
        del self._listed[:ended]
        return self._listed[0] if self._listed else None


def _running_of(seconds: float, here: OfHub) -> _Running:
    running: _Running | None = here.last_limit
    if running is not None and running.seconds == seconds:  # as most often
        return running
    running = here.limits.get(seconds)
    if running is None:
        if len(here.limits) >= IDLE_LENGTHS:
            _forget_idle(here.limits)
        running = here.limits[seconds] = _Running(seconds, here.loop)
    here.last_limit = running
    return running


def _forget_idle(lengths: dict[float, _Running]) -> None:
    for seconds, running in list(lengths.items()):
        if not running.live:
            running.close()
            del lengths[seconds]
