"""A syslog: the host's own by its UNIX socket, or a server by UDP or TCP.

The host's own takes what syslog(3) writes (RFC 3164's form without a host name); a server takes
RFC 5424, over UDP one message a datagram (RFC 5426), over TCP with the count of octets before each
(RFC 6587, section 3.4.1).
"""

import errno
import logging
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from logging import LogRecord
from typing import Any, Final

from geosocks.logs.lines import local
from geosocks.logs.places import Line
from geosocks.logs.stamps import when

SOCKET: Final = "/dev/log"
FACILITY: Final = 3
"""daemon (RFC 5424, section 6.2.1)."""

TIMEOUT: Final = 5.0
"""Seconds that one write may take."""

PAUSES: Final = (1.0, 2.0, 5.0, 15.0, 30.0)
"""Seconds until a server that could not be reached is tried again."""

MAX_OCTETS: Final = 8192
"""Of a message: what common receivers take; the rest is cut off."""

_SEVERITIES: Final = (  # at or above; RFC 5424, section 6.2.1
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
)


def severity(level: int) -> int:
    """The number that syslog and journal have for a level of ``logging``."""
    return next((number for least, number in _SEVERITIES if level >= least), 7)


class SyslogPlace:
    """A syslog, connected anew when it was away; what it missed comes later.

    ``address`` is a path, or an IP address with a port; None is /dev/log.
    """

    stamps = True
    is_terminal = False
    patient = True

    def __init__(self, address: tuple[str, int] | str | None = None, tcp: bool = False) -> None:
        self._address = address or SOCKET
        self._tcp = tcp
        self._host = socket.gethostname() or "-"
        self._sock: Any = None
        self._failures = 0
        self._not_before = 0.0
        if isinstance(self._address, str):
            self._connect()  # it is there, or this is no place to log to

    def maker(self, line: Line) -> Callable[[LogRecord], Any]:
        """A record's line becomes a message in the form that the other side takes."""
        header = self._old_header if isinstance(self._address, str) else self._header
        frame = _counted if self._tcp else bytes

        def make(record: LogRecord) -> bytes:
            text = f"{header(record)}{line(record)}"
            return frame(text.encode("utf-8", "backslashreplace")[:MAX_OCTETS])

        return make

    def _old_header(self, record: LogRecord) -> str:
        priority = FACILITY * 8 + severity(record.levelno)
        stamp = local(int(record.created), "%b %e %H:%M:%S")
        return f"<{priority}>{stamp} geosocks[{os.getpid()}]: "

    def _header(self, record: LogRecord) -> str:
        priority = FACILITY * 8 + severity(record.levelno)
        event = record.__dict__.get("event", "-")
        return (
            f"<{priority}>1 {when(record.created)} {self._host} geosocks {os.getpid()} {event} - "
        )

    def write(self, items: Sequence[bytes]) -> int:
        """Send messages; after a failure, none until a pause is over."""
        if time.monotonic() < self._not_before:
            return 0
        sent = 0
        try:
            if self._sock is not None and self._is_stream and _hung_up(self._sock):
                self.close()
            if self._sock is None:
                self._connect()
            for item in items:
                self._send(item)
                sent += 1
        except OSError as error:
            if error.errno == errno.EMSGSIZE:  # this one can never be sent
                return sent + 1
            self._give_up()
            return sent
        self._failures = 0
        return sent

    def _send(self, item: bytes) -> None:
        if isinstance(self._address, str) and self._is_stream:
            item += b"\0"  # as syslog(3) ends a record there
        self._sock.sendall(item)

    @property
    def _is_stream(self) -> bool:
        return bool(self._sock.type == socket.SOCK_STREAM)

    def _connect(self) -> None:
        if isinstance(self._address, str):
            try:
                self._open(socket.AF_UNIX, socket.SOCK_DGRAM)
            except OSError as error:
                if error.errno != errno.EPROTOTYPE:
                    raise OSError(error.errno, error.strerror, self._address) from error
                self._open(socket.AF_UNIX, socket.SOCK_STREAM)
            return
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        self._open(family, socket.SOCK_STREAM if self._tcp else socket.SOCK_DGRAM)

    def _open(self, family: int, kind: int) -> None:
        # An ordinary socket: the thread that writes has no hub, and may wait.
        sock = socket.socket(family, kind)  # noqa: TID251
        try:
            sock.settimeout(TIMEOUT)
            sock.connect(self._address)
        except OSError:
            sock.close()
            raise
        self._sock = sock

    def _give_up(self) -> None:
        self.close()
        pause = PAUSES[min(self._failures, len(PAUSES) - 1)]
        self._failures += 1
        self._not_before = time.monotonic() + pause

    def reopen(self) -> None:
        """There is no file to begin anew."""

    def close(self) -> None:
        """Close the connection."""
        if self._sock is not None:
            with suppress(OSError):
                self._sock.close()
            self._sock = None


def _hung_up(sock: Any) -> bool:
    """Whether the other side has ended the stream: a write would seem to succeed, once.

    It says nothing as long as all is well.
    """
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _counted(message: bytes) -> bytes:
    return b"%d " % len(message) + message
