"""Signals for a program without a hub."""

import math
import os
import select
import signal
from contextlib import suppress
from typing import Final

SIGNALS: Final = (
    signal.SIGHUP,
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCHLD,
)


class Wakeups:
    """Signals as octets in a pipe, so that one wait is for them and for the workers alike."""

    def __init__(self) -> None:
        self._hear, self._tell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._before = [(number, signal.signal(number, _note)) for number in SIGNALS]
        self._fd_before = signal.set_wakeup_fd(self._tell, warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # one may have waited for this

    def wait(self, pipes: list[int], timeout: float | None) -> tuple[list[int], list[int]]:
        """The signals that have arrived, and the ``pipes`` that have something to tell.

        Signals that come close together are told together.
        """
        poll = select.poll()  # select(2) knows no descriptor above 1023
        for fd in (self._hear, *pipes):
            poll.register(fd, select.POLLIN)
        events = poll.poll(None if timeout is None else math.ceil(timeout * 1000))
        readable = [fd for fd, _ in events]
        arrived: list[int] = []
        with suppress(BlockingIOError):
            while True:
                arrived += os.read(self._hear, 4096)
        return arrived, readable

    def leave(self) -> None:
        """In a worker: signals are its own, and do what they do in any program."""
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        os.close(self._hear)
        os.close(self._tell)

    def close(self) -> None:
        """Let signals do again what they did before."""
        signal.set_wakeup_fd(self._fd_before)
        for number, handler in self._before:
            signal.signal(number, handler)
        os.close(self._hear)
        os.close(self._tell)


def _note(number: int, frame: object) -> None:
    """Nothing: the number is in the pipe."""
