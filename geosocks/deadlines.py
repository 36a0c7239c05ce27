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

IDLE_LENGTHS: Final = 16
"""Lengths whose timer is kept though no limit of that length is running."""


class Deadline:
    """A ``with`` block that raises ``error`` inside when it lasts longer than ``seconds``.

    ``error`` is an exception or a type of one.  The block belongs to one greenlet, and is cut where
    that greenlet waits.  One object is good for one block at a time.  ``here`` is that greenlet's
    hub, from whoever knows it.
    """

    __slots__ = ("_here", "_running", "due", "error", "greenlet", "seconds")

    def __init__(
        self,
        seconds: float,
        error: BaseException | type[BaseException],
        here: OfHub | None = None,
    ) -> None:
        self.seconds = seconds
        self.error = error
        self.due = 0.0
        self._here = here
        self.greenlet: greenlet | None = None
        self._running: _Running | None = None

    def __enter__(self) -> "Deadline":
        self.greenlet = _getcurrent()
        self.due = _monotonic() + self.seconds
        here = self._here
        running = self._running = _running_of(self.seconds, of_hub() if here is None else here)
        if not running.limits:
            running.begin()
        running.limits[self] = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        running = self._running
        assert running is not None
        if running.limits.pop(self, self) is None and not running.limits:
            running.pause()


class _Running:
    """The limits of one length that are running in one hub, the oldest first."""

    __slots__ = ("_armed", "_loop", "_seconds", "_timer", "limits")

    def __init__(self, seconds: float, loop: Any) -> None:
        self.limits: dict[Deadline, None] = {}
        self._seconds = seconds
        self._loop = loop
        self._timer: Any = None
        self._armed = False

    def begin(self) -> None:
        """The first of them begins."""
        if self._armed:
            self._timer.ref = True
        else:
            self._arm(self._seconds)

    def pause(self) -> None:
        """The last of them has ended.

        The timer goes on, most often the next limit is not far; but it keeps no loop alive.
        """
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
        while self.limits:
            oldest = next(iter(self.limits))
            left = oldest.due - monotonic()
            if left > 0:
                # One that was cut may have begun another.
                if not self._armed:
                    self._arm(left)
                return
            del self.limits[oldest]
            assert oldest.greenlet is not None
            oldest.greenlet.throw(oldest.error)


def _running_of(seconds: float, here: OfHub) -> _Running:
    running: _Running | None = here.limits.get(seconds)
    if running is None:
        if len(here.limits) >= IDLE_LENGTHS:
            _forget_idle(here.limits)
        running = here.limits[seconds] = _Running(seconds, here.loop)
    return running


def _forget_idle(lengths: dict[float, _Running]) -> None:
    for seconds, running in list(lengths.items()):
        if not running.limits:
            running.close()
            del lengths[seconds]
