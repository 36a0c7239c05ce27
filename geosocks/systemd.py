"""What systemd and a service tell each other: sockets handed over, and notes of how it is.

sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3): environment variables and datagrams.  Needs
no hub; knows nothing of what the sockets are for.
"""

import os
import socket  # constants
import time
from _socket import socket as RawSocket
from collections.abc import MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Self

from geosocks.errors import ConfigError

FIRST: Final = 3
"""The first descriptor handed over (SD_LISTEN_FDS_START)."""

_NO_NAMES: Final = ("", "unknown", "stored")
"""What LISTEN_FDNAMES says where nobody gave a name."""


@dataclass(frozen=True, slots=True)
class Passed:
    """A listening socket that was handed over.

    ``name`` is what the unit's FileDescriptorName= says, or the unit's own; ``address`` is
    ``(host, port, ...)`` as the kernel tells, or a UNIX socket's path.
    """

    fd: int
    name: str | None
    address: Any


def take_passed(environ: MutableMapping[str, str], pid: int) -> tuple[Passed, ...]:
    """The sockets that were handed over to the process ``pid``, which is this one.

    Takes the variables away, so that no child believes that they are meant for it.

    Raises:
        ConfigError: one of them is no stream socket that listens.
    """
    told = [environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")]
    if told[0] != str(pid) or not told[1].isdecimal():
        return ()
    count = int(told[1])
    names = told[2].split(":")[:count]
    names += [""] * (count - len(names))
    return tuple(_passed(FIRST + index, name) for index, name in enumerate(names))


def _passed(fd: int, name: str) -> Passed:
    try:
        os.set_inheritable(fd, False)
        sock = RawSocket(fileno=fd)
    except OSError as error:
        raise ConfigError(f"LISTEN_FDS: descriptor {fd}: {error.strerror}") from error
    try:
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if sock.type != socket.SOCK_STREAM or not listens:
            raise ConfigError(
                f"LISTEN_FDS: descriptor {fd} is no stream socket that listens; "
                "write ListenStream= and Accept=no in the .socket unit"
            )
        return Passed(fd, None if name in _NO_NAMES else name, sock.getsockname())
    finally:
        sock.detach()


class Notifier:
    """Tells the service manager how it is; nothing where there is none.

    ``watchdog`` is the number of seconds within which it wants to be fed, None for never.
    """

    def __init__(self, address: str | None = None, watchdog: float | None = None) -> None:
        self.watchdog = watchdog if address else None
        self._address = address
        self._socket: RawSocket | None = None

    @classmethod
    def take(cls, environ: MutableMapping[str, str], pid: int) -> Self:
        """The one that the environment of the process ``pid`` names; takes the variables away."""
        address = environ.pop("NOTIFY_SOCKET", "")
        microseconds = environ.pop("WATCHDOG_USEC", "")
        for_us = environ.pop("WATCHDOG_PID", str(pid)) == str(pid)
        if not address.startswith(("/", "@")):
            return cls()
        if not for_us or not microseconds.isdecimal() or not int(microseconds):
            return cls(address)
        return cls(address, int(microseconds) / 1e6)

    def ready(self, status: str) -> None:
        """It serves: it has started, or the reload is done."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """It reads its configuration anew; ``ready`` tells the end of it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        """It is about to end."""
        self._send("STOPPING=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """How it is, in a line for people."""
        self._send(f"STATUS={status}")

    def feed(self) -> None:
        """Keep the watchdog quiet."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        message = "\n".join(line.replace("\n", " ") for line in lines).encode()
        with suppress(OSError):  # nobody to tell; that ends no service
            if self._socket is None:
                kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
                self._socket = RawSocket(socket.AF_UNIX, kind)
            # "@" stands for the abstract namespace (unix(7)).
            self._socket.sendto(message, self._address.replace("@", "\0", 1))

    def close(self) -> None:
        """Tell no more."""
        self._address = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
