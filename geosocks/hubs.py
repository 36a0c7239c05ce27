"""What the sessions of one hub have in common: watchers that are used again, and their time limits.

It hangs on the hub itself, so it ends with it, and no two threads ever meet in it.
"""

from typing import Any, Final

from gevent.hub import get_hub
from greenlet import getcurrent, greenlet

# As Final they need no look-up by name, which costs as much as a short function.
_getcurrent: Final = getcurrent
_Greenlet: Final = greenlet
_switch: Final = greenlet.switch

READ: Final = 1
WRITE: Final = 2

MOST: Final = 512
"""Watchers that are kept for later sockets: as many as greenlets."""

_NAME: Final = "geosocks_of_hub"


class OfHub:
    """One hub, its loop, and what is kept there."""

    __slots__ = ("_readers", "giving_way", "hub", "limits", "loop")

    def __init__(self, hub: Any) -> None:
        self.hub: Any = hub
        self.loop: Any = hub.loop
        self.limits: dict[float, Any] = {}
        """The time limits that run, by length: ``geosocks.deadlines``."""

        self.giving_way = 0
        """Greenlets that would go on at once if nobody else had anything to do."""

        self._readers: list[Any] = []

    def wait(self) -> Any:
        """Give way to others until somebody switches back; what it was called with."""
        if type(_getcurrent()) is _Greenlet:
            # What ``hub.switch`` does beside this is for kinds that want to know of it.
            return _switch(self.hub)
        return self.hub.switch()

    def reader(self, fd: int) -> Any:
        """A watcher that tells when there is something to read; ``give_back`` when done.

        A new one costs as much as a small system call, and makes one.

        Raises:
            ValueError: ``fd`` is negative.
        """
        readers = self._readers
        if not readers or fd < 0:
            return self.loop.io(fd, READ)
        watcher = readers.pop()
        watcher.fd = fd
        return watcher

    def give_back(self, watcher: Any) -> None:
        """Stop ``watcher``, and have it for another descriptor."""
        watcher.stop()
        if len(self._readers) < MOST:
            self._readers.append(watcher)
        else:
            watcher.close()


def of_hub() -> OfHub:
    """What belongs to this thread's hub, which is made if there is none."""
    # The parent of nearly every greenlet is the hub; to ask gevent for it costs twice as much.
    found: OfHub | None = getattr(_getcurrent().parent, _NAME, None)
    return _find() if found is None else found


def _find() -> OfHub:
    hub = get_hub()
    found: OfHub | None = getattr(hub, _NAME, None)
    if found is None:
        found = OfHub(hub)
        setattr(hub, _NAME, found)
    return found
