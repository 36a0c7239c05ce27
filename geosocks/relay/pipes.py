"""Pipes for splice(2), shared by the sessions of a hub.

Knows descriptors and nothing else: what is moved through a pipe, and when, is the pump's.
"""

import os
import sys
from dataclasses import dataclass
from typing import Final

PIPE_SIZE: Final = 512 * 1024
"""Octets that a pipe is asked to hold."""

MAX_PIPES: Final = 32
"""Pipes at a time, for all sessions of a hub."""

CAN_SPLICE: Final = sys.platform == "linux"

SPLICE_FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK if sys.platform == "linux" else 0

if sys.platform == "linux":
    import fcntl


@dataclass(frozen=True, slots=True)
class Pipe:
    """A pipe(7): octets go ``into`` it and come ``out_of`` it; it holds ``size`` of them."""

    into: int
    out_of: int
    size: int

    def close(self) -> None:
        """Give both descriptors back."""
        os.close(self.into)
        os.close(self.out_of)


class PipePool:
    """At most ``most`` pipes, made when first needed and used again.

    A pipe that holds less than ``least`` octets (an unprivileged user's pipes shrink beyond
    ``/proc/sys/fs/pipe-user-pages-soft``, see pipe(7)) is worth less than copying: then, and when
    no descriptor is left, the pool stops growing.
    """

    def __init__(self, most: int, least: int) -> None:
        self.most = most
        self.least = least
        self._made = 0
        self._free: list[Pipe] = []

    def available(self) -> bool:
        """True when ``take`` would most likely give one."""
        return bool(self._free) or self._made < self.most

    def take(self) -> Pipe | None:
        """A pipe that is empty, or None; the caller gives it back."""
        if self._free:
            return self._free.pop()
        if sys.platform != "linux" or self._made >= self.most:
            return None
        try:
            out_of, into = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            self.most = self._made
            return None
        try:
            size = fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        except OSError:
            size = fcntl.fcntl(into, fcntl.F_GETPIPE_SZ)
        pipe = Pipe(into, out_of, size)
        if size < self.least:
            pipe.close()
            self.most = self._made
            return None
        self._made += 1
        return pipe

    def give_back(self, pipe: Pipe, empty: bool) -> None:
        """Take ``pipe`` in again; one that is not ``empty`` is closed."""
        if empty and self._made <= self.most:
            self._free.append(pipe)
        else:
            self._made -= 1
            pipe.close()

    def close(self) -> None:
        """Close the pipes that nobody uses, and those in use when they come back."""
        self.most = 0
        for pipe in self._free:
            pipe.close()
        self._made -= len(self._free)
        self._free.clear()
