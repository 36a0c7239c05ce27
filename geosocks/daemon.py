"""What init scripts ask of a service: to go into the background, and to say who it is in a file."""

import fcntl
import os
from contextlib import suppress
from typing import Final, Self

from geosocks.errors import ConfigError

_MODE: Final = 0o644


class PidFile:
    """The file with the number of the process that takes the signals (daemon(7)).

    Locked from when it is opened: whoever cannot lock it knows that a server runs, and a file that
    a crash has left behind, which nobody locks, is simply taken over.
    """

    def __init__(self, path: str) -> None:
        """Open the file, with the privileges of now; there is nothing in it yet.

        Raises:
            ConfigError: it cannot be written.
            BlockingIOError: a server runs that has it.
        """
        self.path = os.path.abspath(path)
        try:
            self._fd = self._open()
        except BlockingIOError:
            raise
        except OSError as error:
            raise ConfigError(f"pidfile cannot be written: {error.strerror}", path) from error
        os.ftruncate(self._fd, 0)

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        while True:
            fd = os.open(self.path, flags, _MODE)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                other = os.pread(fd, 32, 0).strip().decode(errors="replace") or "unknown"
                os.close(fd)
                what = f"{self.path}: a server runs already, with process id {other}"
                raise BlockingIOError(error.errno, what) from None
            if self._is_at_its_path(fd):
                return fd
            os.close(fd)  # the one that had it has just removed it

    def _is_at_its_path(self, fd: int) -> bool:
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(fd), os.stat(self.path, follow_symlinks=False))
        return False

    def write(self) -> None:
        """Say that this process is the one."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def let_go(self) -> None:
        """In a process forked from the one that takes the signals: it is not this one's."""
        os.close(self._fd)

    def remove(self) -> None:
        """Say that there is no server any more; an empty file where it cannot be removed."""
        try:
            if self._is_at_its_path(self._fd):
                os.unlink(self.path)
        except OSError:  # the directory is not ours, as we have dropped our privileges
            os.ftruncate(self._fd, 0)
        os.close(self._fd)


class Background:
    """The way from a background process to the one in the foreground that waits for it to start."""

    def __init__(self, told: int) -> None:
        self._told: int | None = told

    @classmethod
    def enter(cls) -> Self:
        """Fork into the background; what returns is the background process.

        The one in the foreground ends with the exit code that ``tell`` is told, or with 1 where
        the background ends without.  Standard error stays open until then.  The working directory
        stays as it is, for relative paths are taken from there at every reload.
        """
        hear, told = os.pipe()
        if os.fork():
            os.close(told)
            code = os.read(hear, 1)
            os._exit(code[0] if code else 1)
        os.close(hear)
        os.setsid()
        if os.fork():  # no leader of a session can come by a terminal (setsid(2))
            os._exit(0)
        to_nowhere(0, 1)
        return cls(told)

    def tell(self, code: int) -> None:
        """Let the foreground end with ``code``; the first call counts."""
        if self._told is None:
            return
        if code == 0:
            to_nowhere(2)
        with suppress(OSError):  # nobody waits any more
            os.write(self._told, bytes((code & 0xFF,)))
        self.let_go()

    def let_go(self) -> None:
        """In a process forked from the one that will tell: it has no say."""
        if self._told is not None:
            os.close(self._told)
            self._told = None


def to_nowhere(*descriptors: int) -> None:
    """Have ``descriptors`` read nothing, and write to nobody."""
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
