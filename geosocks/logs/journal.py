"""systemd's journal, with every fact of an event as a field of its own (its native protocol).

journalctl -t geosocks GEOSOCKS_SESSION=7
journalctl -t geosocks GEOSOCKS_EVENT=authentication_failed GEOSOCKS_IDENTITY=alice
"""

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from logging import LogRecord
from typing import Any, Final

from geosocks.logs.places import Line
from geosocks.logs.syslog import FACILITY, TIMEOUT, severity

SOCKET: Final = "/run/systemd/journal/socket"

_Fields = list[tuple[str, Any]]


def missing() -> str | None:
    """What to do about the package that is missing; None where it is not."""
    try:
        import logging_journald  # noqa: F401  # an extra, and large for those who need it not
    except ImportError:
        return "needs the package logging-journald: pip install 'geosocks[journald]'"
    return None


class JournalPlace:
    """The journal's socket.  A journal that is away for a moment gets its records later."""

    stamps = True
    is_terminal = False
    patient = True

    def __init__(self, path: str | None = None) -> None:
        from logging_journald import JournaldTransport

        path = path or SOCKET
        if not os.path.exists(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        # Each datagram is sent to the path: a journal that was restarted is another socket there.
        self._transport = JournaldTransport(path, connected=False)
        self._transport.socket.settimeout(TIMEOUT)

    def maker(self, line: Line) -> Callable[[LogRecord], Any]:
        """A record's line becomes MESSAGE, beside the fields."""

        def make(record: LogRecord) -> _Fields:
            fields: _Fields = [
                ("MESSAGE", _utf8(line(record))),
                ("PRIORITY", severity(record.levelno)),
                ("SYSLOG_IDENTIFIER", "geosocks"),
                ("SYSLOG_FACILITY", FACILITY),
            ]
            event = record.__dict__.get("event")
            if event is not None:
                fields.append(("GEOSOCKS_EVENT", event))
                facts = record.__dict__["facts"].items()
                fields += [(f"GEOSOCKS_{name.upper()}", _utf8(value)) for name, value in facts]
            return fields

        return make

    def write(self, items: Sequence[_Fields]) -> int:
        """Send records, a datagram each."""
        sent = 0
        with suppress(OSError):
            for fields in items:
                self._transport.send(fields)
                sent += 1
        return sent

    def reopen(self) -> None:
        """There is no file to begin anew."""

    def close(self) -> None:
        """Close the socket."""
        self._transport.socket.close()


def _utf8(value: Any) -> Any:
    """A value that can be encoded: a traceback may name a file whose name is no text."""
    if not isinstance(value, str) or value.isascii():
        return value
    return value.encode("utf-8", "backslashreplace").decode()
