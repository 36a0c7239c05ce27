"""What the sessions of one hub have in common: who waits for what to read, and their time limits.

It hangs on the hub itself, so it ends with it, and no two threads ever meet in it.
"""

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from gevent.hub import get_hub
from greenlet import getcurrent, greenlet

from geosocks.in_c import compiled

# As Final they need no look-up by name, which costs as much as a short function.
_getcurrent: Final = getcurrent
_Greenlet: Final = greenlet
_switch: Final = greenlet.switch

Wake: TypeAlias = Callable[[], object] | greenlet
"""Who is to be woken: called, or if it is a greenlet, switched to.  To make a method of it first
costs as much as a third of the switch."""

READ: Final = 1
WRITE: Final = 2

MOST: Final = 512
"""Watchers that are kept for later sockets: as many as greenlets."""

_NAME: Final = "geosocks_of_hub"

_polls: Any = compiled("polls")


class _Reader:
    """Who is to be called for one descriptor, and the loop's watcher of it."""

    __slots__ = ("armed", "keep", "wake", "watcher")

    def __init__(self, watcher: Any) -> None:
        self.watcher: Any = watcher
        self.wake: Wake | None = None
        self.keep = False
        self.armed = False

    def readable(self) -> None:
        """In the hub: there is something to read."""
        wake = self.wake
        if wake is None:
            self.stop()
            return
        if not self.keep:
            self.wake = None
        try:
            if isinstance(wake, greenlet):
                wake.switch()
            else:
                wake()
        except BaseException:
            self.stop()  # as gevent does, or it might be so again and again
            raise

    def stop(self) -> None:
        """Look at it no longer."""
        self.wake = None
        self.armed = False
        self.watcher.stop()


class Watchers:
    """Who is to be called when there is something to read at a connection: by the loop's watchers.

    A watcher once started stays so from one wait to the next.  One that nobody waits for stops
    itself at its next event; and it is kept for another descriptor, as a new one costs as much as a
    small system call.  ``in_c.polls`` does the same with less, where it has been compiled.
    """

    def __init__(self, hub: Any) -> None:
        self._loop: Any = hub.loop
        self._readers: dict[int, _Reader] = {}
        self._spare: list[Any] = []
        self.left = 0
        """Events that have been taken from the kernel and told nobody yet."""

    def watch(self, fd: int, wake: Wake, keep: bool, first: bool) -> None:
        """Have ``wake`` called in the hub, once, when there is something to read at ``fd``.

        A greenlet is switched to.  To ``keep`` is to have it called each time, until ``unwatch``;
        the ``first`` time of a descriptor is to be told, as another one may have had its number.

        Raises:
            ValueError: ``fd`` is negative.
        """
        if first:
            self.forget(fd)
            self._readers[fd] = reader = _Reader(self._watcher(fd))
        else:
            reader = self._readers[fd]
        reader.wake = wake
        reader.keep = keep
        if not reader.armed:
            reader.armed = True
            reader.watcher.start(reader.readable)

    def _watcher(self, fd: int) -> Any:
        if not self._spare or fd < 0:
            return self._loop.io(fd, READ)
        watcher = self._spare.pop()
        watcher.fd = fd
        return watcher

    def unwatch(self, fd: int) -> None:
        """Have nobody called."""
        reader = self._readers.get(fd)
        if reader is not None:
            reader.wake = None

    def is_watched(self, fd: int) -> bool:
        """Whether somebody is called each time there is something to read."""
        reader = self._readers.get(fd)
        return reader is not None and reader.keep and reader.wake is not None

    def forget(self, fd: int) -> None:
        """It is about to be closed."""
        reader = self._readers.pop(fd, None)
        if reader is None:
            return
        reader.stop()
        if len(self._spare) < MOST:
            self._spare.append(reader.watcher)
        else:
            reader.watcher.close()

    def fileno(self) -> int:
        """The descriptor of epoll(7) on which the connections are waited for."""
        fd: int = self._loop.fileno()
        return fd

    def around(self) -> int:
        """The loop's own, if that one is another one, on it; -1 as it is not."""
        return -1


class OfHub:
    """One hub, its loop, and what is kept there."""

    __slots__ = (
        "forget",
        "giving_way",
        "hub",
        "is_watched",
        "last_limit",
        "limits",
        "loop",
        "unwatch",
        "watch",
        "watchers",
    )

    def __init__(self, hub: Any) -> None:
        self.hub: Any = hub
        self.loop: Any = hub.loop
        self.limits: dict[float, Any] = {}
        """The time limits that run, by length: ``geosocks.deadlines``."""

        self.last_limit: Any = None
        """The one of these that was asked for last."""

        self.giving_way = 0
        """Greenlets that would go on at once if nobody else had anything to do."""

        self.watchers: Any = Watchers(hub) if _polls is None else _polls.Polls(hub)
        # Its methods, which are called more often than they should be looked up.
        self.watch: Callable[[int, Wake, bool, bool], None] = self.watchers.watch
        self.unwatch: Callable[[int], None] = self.watchers.unwatch
        self.is_watched: Callable[[int], bool] = self.watchers.is_watched
        self.forget: Callable[[int], None] = self.watchers.forget

    def wait(self) -> Any:
        """Give way to others until somebody switches back; what it was called with."""
        if type(_getcurrent()) is _Greenlet:
            # What ``hub.switch`` does beside this is for kinds that want to know of it.
            return _switch(self.hub)
        return self.hub.switch()


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
