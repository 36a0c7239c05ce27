"""The places that a log can go to, and the two plain ones: a stream and a file."""

import os
import select
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from logging import LogRecord
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TextIO, get_args

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


STDOUT: Final = LogTo("stdout")

Line = Callable[[LogRecord], str]
"""How a record becomes a line."""


class Place(Protocol):
    """Where records go.  ``maker`` is for those who emit; all else is the writing thread's."""

    stamps: bool
    """Whether the place itself says when a line came, and of what weight it is."""

    is_terminal: bool
    patient: bool
    """Whether what could not be written is worth another try later."""

    def maker(self, line: Line) -> Callable[[LogRecord], Any]:
        """What makes an item to write out of a record; quick, for it is called by sessions."""
        ...

    def write(self, items: Sequence[Any]) -> int:
        """Write items, in order; returns how many of them were written, or never can be."""
        ...

    def reopen(self) -> None:
        """Begin a file anew after it was moved away.

        Raises:
            OSError: it cannot be opened; what was open is written to as before.
        """
        ...

    def close(self) -> None:
        """Write no more."""
        ...


class StreamPlace:
    """Standard output, or another stream that somebody else closes.

    It is written to by its descriptor: a thread that is stuck in there holds no lock of the stream,
    which the end of the process would wait for.
    """

    stamps = False
    patient = False

    def __init__(self, stream: TextIO) -> None:
        self.is_terminal = stream.isatty()
        self._stream = stream
        self._fd = _descriptor(stream)
        self._at_once = _at_once(self._fd)
        self._torn = False

    def maker(self, line: Line) -> Callable[[LogRecord], Any]:
        """Lines are written as they are."""
        return line

    def write(self, items: Sequence[str]) -> int:
        """Write lines, several at a time, and none of them torn by another process's."""
        begin = size = 0
        try:
            for number, line in enumerate(items):
                size += len(line) + 1
                if size > self._at_once and number > begin:
                    self._write(items[begin:number])
                    begin, size = number, len(line) + 1
            self._write(items[begin:])
        except (OSError, ValueError):
            return begin
        return len(items)

    def _write(self, lines: Sequence[str]) -> None:
        text = "\n".join(lines) + "\n"
        if self._fd is None:
            self._stream.write(text)
            self._stream.flush()
        else:
            self._send(self._fd, text.encode("utf-8", "backslashreplace"))

    def _send(self, fd: int, data: bytes) -> None:
        if self._torn:
            data = b"\n" + data
        whole = len(data)
        try:
            while data:
                try:
                    data = data[os.write(fd, data) :]
                except BlockingIOError:  # somebody has made it so
                    poll = select.poll()
                    poll.register(fd, select.POLLOUT)
                    poll.poll()
        finally:
            self._torn = 0 < len(data) < whole or (self._torn and len(data) == whole)

    def reopen(self) -> None:
        """There is nothing to open."""

    def close(self) -> None:
        """It is not ours to close."""


class FilePlace(StreamPlace):
    """A file, which is begun anew by ``reopen``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(self._open())
        self.is_terminal = False

    def _open(self) -> TextIO:
        return self.path.open("a", encoding="utf-8")

    def reopen(self) -> None:
        """Open the file anew, after it was moved away (logrotate)."""
        old, self._stream = self._stream, self._open()
        self._fd = _descriptor(self._stream)
        self._torn = False
        old.close()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):  # in memory only
        return None


def _at_once(fd: int | None) -> int:
    """Characters that may be written together: several workers may share a stream.

    A pipe keeps writes of up to PIPE_BUF octets together (pipe(7)), an O_APPEND file all of one
    write (open(2)).  Events are nearly all ASCII; a line that is longer than this stands alone.
    """
    return 1 << 16 if fd is None or stat.S_ISREG(os.fstat(fd).st_mode) else _PIPE_BUF


_PIPE_BUF: Final = 4096
