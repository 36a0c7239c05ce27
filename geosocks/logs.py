"""Where a process's events are written: JSON or text, one line each, by a thread of its own.

Knows the ``logging`` package and the shape of ``events.LogObserver``'s records; belongs to the
process, never to the library.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any, Final, Literal, TextIO, get_args

from pythonjsonlogger.json import JsonEncoder, JsonFormatter

LEVELS: Final = ("debug", "info", "warning", "error")

Kind = Literal["stdout", "stderr", "journald", "syslog"]
LOG_PLACES: Final[tuple[Kind, ...]] = get_args(Kind)
SYSLOG_PORT: Final = 514


@dataclass(frozen=True, slots=True)
class LogTo:
    """A place to log to, other than a file."""

    kind: Kind
    address: tuple[str, int] | str | None = None
    """Of a syslog server, or the path of its UNIX socket; None for /dev/log."""

    tcp: bool = False
    """Whether that server is spoken to over TCP, not UDP."""

    def __str__(self) -> str:
        if self.address is None:
            return self.kind
        if isinstance(self.address, str):
            return f"{self.kind}:{self.address}"
        host, port = self.address
        host = f"[{host}]" if ":" in host else host
        return f"{self.kind}:{'tcp://' if self.tcp else ''}{host}:{port}"


def _when(created: float) -> str:
    """RFC 3339, UTC, milliseconds."""
    seconds = int(created)
    return f"{_second(seconds)}.{int((created - seconds) * 1000):03}Z"


@lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


class JsonLines(JsonFormatter):
    """One JSON object a line: ``time``, ``level``, ``event``, then the event's fields.

    An event's record is plain values only, so it is laid out here and not searched for extras; a
    record of anybody else goes the library's way.
    """

    _encode = JsonEncoder().encode

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        event = record.__dict__.get("event")
        if event is None:
            return super().format(record)
        line = f'{{"time": "{_when(record.created)}{_what(event, record.levelname)}'
        for name, value in record.__dict__["facts"].items():
            encode = _VALUES.get(type(value)) or self._encode
            line += f"{_key(name)}{encode(value)}"
        return line + "}"

    def add_fields(
        self,
        log_data: dict[str, Any],
        record: logging.LogRecord,
        message_dict: dict[str, Any],
    ) -> None:
        """Lay a record out that is no event's."""
        log_data["time"] = _when(record.created)
        log_data["level"] = record.levelname.lower()
        log_data["event"] = record.getMessage()
        for name in ("exc_info", "stack_info"):
            if message_dict.get(name):
                log_data[name] = message_dict[name]


_VALUES: Final[dict[type, Callable[[Any], str]]] = {
    str: encode_basestring_ascii,
    int: int.__repr__,
    float: float.__repr__,
}
"""The kinds of value that nearly all are; the encoder has a way for each kind there is."""


@lru_cache(maxsize=1024)
def _what(event: str, level: str) -> str:
    return f'", "level": "{level.lower()}", "event": {encode_basestring_ascii(event)}'


@lru_cache(maxsize=1024)
def _key(name: str) -> str:
    return f", {encode_basestring_ascii(name)}: "


class TextLines(logging.Formatter):
    """For people: the time, the level where it is not plain information, the event, its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        words = [_when(record.created)[11:19]]
        if record.levelno != logging.INFO:
            words.append(record.levelname.lower())
        words.append(record.getMessage().replace("_", " ") + ":")
        facts: dict[str, Any] = getattr(record, "facts", {})
        words += [f"{name}={_quoted(value)}" for name, value in facts.items()]
        if record.exc_info:
            words.append(ascii(self.formatException(record.exc_info)))
        return " ".join(words).removesuffix(":")


def _quoted(value: Any) -> str:
    text = str(value)
    if "\n" in text:
        text = text.encode("unicode_escape").decode()
    return f'"{text}"' if " " in text or not text else text


class ThreadedHandler(logging.Handler):
    """Writes lines in a thread, so that a slow disk or a full pipe stops no session.

    A line is made where its record is emitted, which is quick, and waits in a list of up to
    ``most``; what does not fit is counted, and told when there is room again.  What comes within
    ``LINGER`` seconds is written at once: a thread that woke for each line would cost more than
    the line.

    A process that is to fork has no threads: not ``threaded``, each line is written as it comes.
    """

    LINGER: Final = 0.05

    def __init__(
        self,
        path: Path | None = None,
        *,
        stream: TextIO = sys.stderr,
        most: int = 20000,
        threaded: bool = True,
    ) -> None:
        super().__init__()
        self.path = path
        self._out = path.open("a", encoding="utf-8") if path else stream
        self._most = most
        self._lines: list[str] = []
        self._dropped = 0
        self._work = threading.Event()
        self._ending = threading.Event()
        self._writing = threading.Lock()
        self._thread = None
        if threaded:
            self._thread = threading.Thread(target=self._run, name="geosocks-log", daemon=True)
            self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Make a line of ``record`` and queue it."""
        if len(self._lines) >= self._most:
            self._dropped += 1
            return
        try:
            line = self.format(record)
        except Exception as error:
            line = f"a log record could not be written: {error!r}"
        self._lines.append(line)
        if not self._work.is_set():
            self._work.set()
        if self._thread is None:
            self._write()

    def createLock(self) -> None:
        """None is needed: a list's append is one step."""
        self.lock = None

    def _run(self) -> None:
        while not self._ending.is_set():
            self._work.wait()
            self._ending.wait(self.LINGER)
            self._work.clear()
            self._write()

    def _write(self) -> None:
        with self._writing:
            lines, self._lines = self._lines, []
            if self._dropped:
                lines.append(self._tell_dropped())
            if lines:
                try:
                    self._out.write("\n".join(lines) + "\n")
                    self._out.flush()
                except (OSError, ValueError):
                    self._dropped += len(lines)

    def _tell_dropped(self) -> str:
        facts = {"records": self._dropped}
        self._dropped = 0
        told = {"levelno": logging.WARNING, "levelname": "WARNING", "msg": "log_records_dropped"}
        return self.format(
            logging.makeLogRecord(told | {"event": "log_records_dropped", "facts": facts})
        )

    def flush(self) -> None:
        """Write what waits; blocks until it is written."""
        self._write()

    def reopen(self) -> None:
        """Open the file anew, after it was moved away (logrotate).

        Raises:
            OSError: it cannot be opened; what was open is written to as before.
        """
        if self.path is not None:
            with self._writing:
                old, self._out = self._out, self.path.open("a", encoding="utf-8")
                old.close()

    def close(self) -> None:
        """Write what waits, end the thread, close the file."""
        self._ending.set()
        self._work.set()
        if self._thread is not None:
            self._thread.join(2.0)
        self._write()
        if self.path is not None:
            self._out.close()
        super().close()


def set_up(
    log_format: str,
    level: str,
    path: Path | None = None,
    stream: TextIO = sys.stderr,
    *,
    threaded: bool = True,
) -> ThreadedHandler:
    """Send the ``geosocks`` logger's records to ``path`` or ``stream``; the caller closes it.

    Raises:
        OSError: the file cannot be opened.
    """
    handler = ThreadedHandler(path, stream=stream, threaded=threaded)
    handler.setFormatter(JsonLines() if log_format == "json" else TextLines())
    # No line of ours tells a thread or a process, so no record need find them out.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logger = logging.getLogger("geosocks")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(level.upper())
    return handler
