"""Beginning to log: the place, the form of a line, the handler.

Whatever that needs is imported with this module, but for the journal's package, which
``journal.missing`` imports; a process that has dropped its privileges may be unable to.
"""

import logging
import sys
from pathlib import Path
from typing import Literal, TextIO

from geosocks.logs.handler import ThreadedHandler
from geosocks.logs.journal import JournalPlace
from geosocks.logs.json_lines import JsonLines
from geosocks.logs.lines import TextLines
from geosocks.logs.places import STDOUT, FilePlace, LogTo, Place, StreamPlace
from geosocks.logs.repeats import REPEATS
from geosocks.logs.syslog import SyslogPlace


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
    if to.kind == "journald":
        return JournalPlace(to.address if isinstance(to.address, str) else None)
    if to.kind == "syslog":
        return SyslogPlace(to.address, to.tcp)
    return StreamPlace(sys.stderr if to.kind == "stderr" else sys.stdout)


def _lines(log_format: Literal["json", "text"], place: Place) -> logging.Formatter:
    if log_format == "text":
        return TextLines("none" if place.stamps else "time" if place.is_terminal else "date")
    return JsonLines()
