"""Where a process's events are written: as JSON or text, by a thread of its own, to a place.

Knows the ``logging`` package and the shape of ``events.LogObserver``'s records; belongs to the
process, never to the library.  ``start.set_up`` begins it; here are names that others have use for.
"""

from geosocks.logs.lines import TextLines
from geosocks.logs.places import LEVELS, LOG_PLACES, SYSLOG_PORT, LogTo
from geosocks.logs.repeats import REPEATS

__all__ = ["LEVELS", "LOG_PLACES", "REPEATS", "SYSLOG_PORT", "LogTo", "TextLines"]
