"""What waits to be written, and how a session's end gets there past the records of ``logging``.

Apart from ``ThreadedHandler``, whose base is not ours: a class below such a one is not to be
compiled.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any

from geosocks.events import SessionClosed
from geosocks.events.written import Straight

ClosedLine = Callable[[SessionClosed, float], str]
"""What makes a line of a session's end and a time by ``time.time``."""


class Waiting(Straight):
    """The items that wait for the thread of a handler, and its way for the ends of sessions."""

    def __init__(
        self,
        handler: logging.Handler,
        line: ClosedLine | None,
        most: int,
        work: threading.Event,
    ) -> None:
        """``line`` makes items, if that can be done without a record; ``work`` wakes the thread."""
        self.items: list[Any] = []
        self._handler = handler
        self._line = line
        self._most = most
        self._work = work

    def is_open(self) -> bool:
        """Whether nobody but the thread has a say in what is written."""
        handler = self._handler
        return self._line is not None and handler.level <= logging.INFO and not handler.filters

    def end(self) -> None:
        """Take no more: the thread is about to end."""
        self._line = None

    def takes(self, event: SessionClosed, created: float) -> bool:
        """Queue the line of a session's end at once, if there is room."""
        line = self._line
        if line is None or len(self.items) >= self._most:
            return False
        item = line(event, created)
        items = self.items  # no later than here: the thread may have taken the former list
        items.append(item)
        if len(items) == 1:  # the thread knows of the others
            self._work.set()
        return True
