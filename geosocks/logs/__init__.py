"""Where a process's events are written: as JSON or text, by a thread of its own, to a place.

Knows the ``logging`` package and the shape of ``events.LogObserver``'s records; belongs to the
process, never to the library.
"""

import logging
import sys
from pathlib import Path
from typing import Literal, TextIO

from geosocks.logs.handler import ThreadedHandler
from geosocks.logs.lines import TextLines
from geosocks.logs.places import (
    LEVELS,
    LOG_PLACES,
    STDOUT,
    SYSLOG_PORT,
    FilePlace,
    LogTo,
    Place,
    StreamPlace,
)
from geosocks.logs.repeats import REPEATS

__all__ = [
    "LEVELS",
    "LOG_PLACES",
    "REPEATS",
    "SYSLOG_PORT",
    "LogTo",
    "TextLines",
    "ThreadedHandler",
    "set_up",
]


def set_up(
    log_format: Literal["json", "text"] | None,
    level: str,
    path: Path | None = None,
    stream: TextIO | None = None,
    *,
    to: LogTo = STDOUT,
    repeats: int | None = REPEATS,
    threaded: bool = True,
) -> ThreadedHandler:
    """Send the ``geosocks`` logger's records to a place; the caller closes what this returns.

    The place is ``path``, else ``stream``, else ``to``.  Without a ``log_format`` it is text where
    a person or a system's log reads it, and JSON elsewhere.  ``repeats`` is told in ``Repeats``;
    None writes them all.  ``threaded``: see ``ThreadedHandler``.

    Raises:
        OSError: there is no such place; ``filename`` says which.
        ConfigError: the package that speaks to it is missing.
    """
    place = _place(path, stream, to)
    if log_format is None:
        log_format = "text" if place.stamps or place.is_terminal else "json"
    # No line of ours tells a thread or a process, so no record need find them out.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = ThreadedHandler(place, _lines(log_format, place), repeats=repeats, threaded=threaded)
    logger = logging.getLogger("geosocks")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(level.upper())
    return handler


def _place(path: Path | None, stream: TextIO | None, to: LogTo) -> Place:
    if path is not None:
        return FilePlace(path)
    if stream is not None:
        return StreamPlace(stream)
    # What speaks to a system's log is read where there is one to speak to.
    if to.kind == "journald":
        from geosocks.logs.journal import JournalPlace

        return JournalPlace(to.address if isinstance(to.address, str) else None)
    if to.kind == "syslog":
        from geosocks.logs.syslog import SyslogPlace

        return SyslogPlace(to.address, to.tcp)
    return StreamPlace(sys.stderr if to.kind == "stderr" else sys.stdout)


def _lines(log_format: Literal["json", "text"], place: Place) -> logging.Formatter:
    if log_format == "text":
        return TextLines("none" if place.stamps else "time" if place.is_terminal else "date")
    from geosocks.logs.json_lines import JsonLines  # what it needs takes its time to import

    return JsonLines()
