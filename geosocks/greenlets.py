"""Greenlets that are used again.

CPython gives every greenlet that runs Python code a stack of its own, which costs more to map and
unmap than a short session costs otherwise.  A pool keeps those whose work is done parked in the hub
for the next job.
"""

import sys
from collections.abc import Callable
from typing import Any, Final

from gevent import GreenletExit
from gevent.hub import get_hub
from greenlet import getcurrent, greenlet

from geosocks.hubs import of_hub

Job = tuple[Callable[..., object], tuple[Any, ...]]

# As Final they need no look-up by name, which costs as much as a short function.
_getcurrent: Final = getcurrent
_switch: Final = greenlet.switch

MOST: Final = 512
"""Greenlets that a pool keeps parked."""


def give_way() -> None:
    """Let all others run, those that wait for a socket among them.

    ``gevent.sleep(0)`` is no good for that: the loop takes up to fifty such turns, one after the
    other, before it looks at any socket.  An idle watcher has it look without waiting, and at this
    priority it is not kept waiting itself by those that are busy.
    """
    here = of_hub()
    idle = here.loop.idle(priority=here.loop.MAXPRI)
    here.giving_way += 1
    try:
        here.hub.wait(idle)
    finally:
        here.giving_way -= 1
        idle.close()


class GreenletPool:
    """Runs jobs in greenlets of one hub, and keeps up to ``most`` of them for later jobs."""

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self._hub = get_hub()
        self._parked: list[greenlet] = []

    def run(self, function: Callable[..., object], *args: Any) -> None:
        """Run ``function`` in a greenlet of its own until it first waits; only from the hub."""
        worker = self._parked.pop() if self._parked else greenlet(self._work, self._hub)
        _switch(worker, (function, args))

    def spawn(self, function: Callable[..., object], *args: Any) -> None:
        """Run ``function`` in a greenlet of its own, soon; from anywhere in the hub's thread."""
        self._hub.loop.run_callback(self.run, function, *args)

    def _work(self, job: Job) -> None:
        hub = self._hub
        while True:
            function, args = job
            try:
                function(*args)
            except GreenletExit:
                return
            except BaseException:
                hub.handle_error(function, *sys.exc_info())
            del function, args, job
            if len(self._parked) >= self.most:
                return
            self._parked.append(_getcurrent())
            job = _switch(hub)

    def close(self) -> None:
        """End the parked greenlets; those at work end with their work."""
        self.most = 0
        parked, self._parked = self._parked, []
        for worker in parked:
            self._hub.loop.run_callback(worker.throw, GreenletExit)
