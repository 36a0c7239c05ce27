"""The handler that all of a process's records go through, and its thread."""

import logging
import threading
from pathlib import Path
from typing import Any, Final

from geosocks.events.written import Straight
from geosocks.logs.places import FilePlace, Place
from geosocks.logs.repeats import REPEATS, Repeats
from geosocks.logs.straight import ClosedLine, Waiting


class ThreadedHandler(logging.Handler):
    """Writes records in a thread, so that a slow disk or a full pipe stops no session.

    An item to write is made where its record is emitted, which is quick, and waits in a list of up
    to ``most``; what does not fit is counted, and told when there is room again.  What comes within
    ``LINGER`` seconds is written at once: a thread that woke for each line would cost more than
    the line.

    A process that is to fork has no threads: not ``threaded``, each line is written as it comes.
    """

    LINGER: Final = 0.05
    RETRY: Final = 1.0
    """Seconds until a patient place is tried again."""

    PATIENCE: Final = 2.0
    """Seconds that a place which does not take its lines may hold up the end of the process."""

    def __init__(
        self,
        place: Place,
        formatter: logging.Formatter,
        *,
        repeats: int | None = REPEATS,
        most: int = 20000,
        threaded: bool = True,
    ) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.place = place
        self._make = place.maker(formatter.format)
        # A place that writes lines as they are needs no record, where there is another way to one.
        line: ClosedLine | None = getattr(formatter, "of_closed", None)
        if self._make != formatter.format:
            line = None
        self._repeats = Repeats(repeats)
        self._most = most
        self._dropped = 0
        self._closed = False
        self._work = threading.Event()
        self._waiting = Waiting(self, line, most, self._work)
        self.straight: Straight | None = self._waiting if threaded else None
        """For ``LogObserver``: the way of what there is one of for every session."""

        self._ending = threading.Event()
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None
        if threaded:
            self._thread = threading.Thread(target=self._run, name="geosocks-log", daemon=True)
            self._thread.start()

    @property
    def path(self) -> Path | None:
        """The file's, if it is one."""
        return self.place.path if isinstance(self.place, FilePlace) else None

    def emit(self, record: logging.LogRecord) -> None:
        """Make an item of ``record`` and queue it, if it is not one repeat too many."""
        if not self._repeats.admits(record):
            return
        if len(self._waiting.items) >= self._most:
            self._dropped += 1
            return
        try:
            item = self._make(record)
        except Exception as error:
            item = self._make(_record("log_record_broken", {"error": repr(error)}))
        self._waiting.items.append(item)
        if not self._work.is_set():
            self._work.set()
        if self._thread is None:
            self._write()

    def createLock(self) -> None:
        """None is needed: a list's append is one step."""
        self.lock = None

    def _run(self) -> None:
        while not self._ending.is_set():
            if self._work.wait(self._until()):
                self._ending.wait(self.LINGER)
            self._work.clear()
            try:
                self._write()
            except Exception:  # a fault of ours costs these lines, not all that come
                self._dropped += 1

    def _until(self) -> float | None:
        """Seconds until there is something to do that nobody will wake us for."""
        left = self._repeats.left()
        if not self._waiting.items:
            return left
        return self.RETRY if left is None else min(left, self.RETRY)

    def _write(self) -> None:
        with self._writing:
            items, self._waiting.items = self._waiting.items, []
            for record in self._repeats.over():
                if len(items) < self._most:
                    items.append(self._make(record))
                else:
                    self._dropped += 1
            rest = items[self.place.write(items) :] if items else ()
            if not rest:
                self._tell_dropped()
            elif self.place.patient:
                self._waiting.items[:0] = rest
            else:
                self._dropped += len(rest)

    def _tell_dropped(self) -> None:
        """Say how many lines are missing, now that lines are taken again."""
        dropped = self._dropped
        if dropped:
            told = self._make(_record("log_records_dropped", {"records": dropped}))
            if self.place.write([told]):
                self._dropped -= dropped

    def flush(self) -> None:
        """Write what waits; blocks until it is written."""
        if not self._closed:
            self._write()

    def reopen(self) -> None:
        """Open a file anew, after it was moved away (logrotate).

        Raises:
            OSError: it cannot be opened; what was open is written to as before.
        """
        with self._writing:
            self.place.reopen()

    def close(self) -> None:
        """Write what waits, end the thread, close the place; a stuck place is left behind."""
        if self._closed:
            return
        self._closed = True
        self._waiting.end()
        self._ending.set()
        self._work.set()
        if self._thread is not None:
            self._thread.join(self.PATIENCE)
        if self._thread is None or not self._thread.is_alive():
            self._repeats.end()
            self._write()
            self.place.close()
        super().close()


def _record(name: str, facts: dict[str, Any]) -> logging.LogRecord:
    """A warning of the log's own."""
    told = {"levelno": logging.WARNING, "levelname": "WARNING", "msg": name, "event": name}
    return logging.makeLogRecord(told | {"facts": facts})
