"""The process above several workers: starts them, replaces them, and hands on what it is told.

A plain blocking program.  It never makes a hub, has no threads and touches no octet of a client, so
that it can fork at any time and has little to die of.  Knows neither SOCKS nor options: what a
worker does, and what of the configuration to check before a reload, are calls given to it.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from geosocks.errors import ConfigError
from geosocks.events import (
    Event,
    Observer,
    Reloaded,
    ReloadRefused,
    StateTold,
    WorkerEnded,
    WorkerStarted,
)
from geosocks.master.seats import Above, Alone, Cells, Seat, milliseconds
from geosocks.master.wakeups import SIGNALS, Wakeups
from geosocks.privileges import die_with_parent
from geosocks.shared import Slab
from geosocks.systemd import Notifier

__all__ = ["SIGNALS", "Alone", "Cells", "Master", "Seat"]

FIRST_PAUSE: Final = 0.1
"""Seconds before a worker that has ended is replaced; twice as many each time it ends again."""

LONGEST_PAUSE: Final = 30.0

GOOD_WHILE: Final = 60.0
"""Seconds after which a worker that ends is an accident of its own, and no part of a series."""

HOPELESS: Final = 5
"""Workers in a row that do not live to serve, after which there is no point in another."""

RELOAD_LIMIT: Final = 10.0
"""Seconds that a reload may take in the workers before it counts as done without them."""

FAULT: Final = 70
"""EX_SOFTWARE of sysexits.h: a worker ended by a fault of ours."""


@dataclass(slots=True)
class _Worker:
    """A living worker.  Owned by the master."""

    slot: int
    pid: int
    ready_pipe: int
    since: float = field(default_factory=time.monotonic)
    ready: bool = False
    stuck: bool = False
    """It has shown no sign of life, and was told to end for it."""


class Master:
    """``slots`` workers, each of which runs ``work`` and ends with what that returns.

    ``check`` raises ConfigError when the configuration as it now stands cannot be put in force.
    ``stop_listening`` closes the master's own copies of the listening sockets.  ``on_ready`` is
    called once, when every worker serves for the first time.  ``reopen`` opens the log anew.
    """

    def __init__(
        self,
        work: Callable[[Seat], int],
        *,
        slots: int,
        slab: Slab,
        cells: Cells,
        emit: Observer,
        check: Callable[[], None],
        stop_listening: Callable[[], None],
        reopen: Callable[[], None],
        on_ready: Callable[[], None],
        notifier: Notifier,
        good_while: float = GOOD_WHILE,
    ) -> None:
        self._work = work
        self._slots = slots
        self._slab = slab
        self._cells = cells
        self._emit = emit
        self._check = check
        self._stop_listening = stop_listening
        self._reopen = reopen
        self._on_ready = on_ready
        self._notifier = notifier
        self._good_while = good_while
        self._began = time.monotonic()
        self._workers: dict[int, _Worker] = {}  # by slot
        self._lives = [0] * slots
        self._series = [0] * slots  # ends in a row
        self._due: dict[int, float] = {}  # slots without a worker, and when there is to be one
        self._stillborn = 0  # workers in a row that did not live to serve
        self._served = False  # all workers have served at a time
        self._ending = False
        self._reloading: tuple[int, float] | None = None  # since when, and how long to wait
        self._fed = 0.0
        self._code = 0

    # --- its life -----------------------------------------------------------------------------

    def run(self) -> int:
        """Have the workers work until told to stop; returns the exit code."""
        self._wakeups = Wakeups()
        try:
            for slot in range(self._slots):
                self._start(slot)
            while self._workers or self._due:
                pipes = [one.ready_pipe for one in self._workers.values() if not one.ready]
                arrived, readable = self._wakeups.wait(pipes, self._patience())
                self._hear(readable)
                self._bury()
                self._heed(arrived)
                self._replace()
                self._reload_done()
                self._feed()
            return self._code
        finally:
            for worker in self._workers.values():  # a fault of ours: leave nobody behind
                with suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGQUIT)
            self._wakeups.close()

    def _patience(self) -> float | None:
        """Seconds until there is something to do without being told."""
        now = time.monotonic()
        moments = [due for due in self._due.values() if not self._ending]
        if self._notifier.watchdog is not None:
            moments.append(self._fed + self._notifier.watchdog / 4)
        if self._reloading is not None:
            moments.append(now + 0.02)
        return max(0.0, min(moments) - now) if moments else None

    # --- workers ------------------------------------------------------------------------------

    def _start(self, slot: int) -> None:
        hear, tell = os.pipe()
        master = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        # Until it can heed them, signals wait for the worker; none of them ends it unawares.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                os._exit(self._live_as(slot, master, hear, tell))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(tell)
        self._workers[slot] = _Worker(slot, pid, hear)
        self._lives[slot] += 1
        self._emit(WorkerStarted(slot, pid))

    def _live_as(self, slot: int, master: int, hear: int, tell: int) -> int:
        """Be a worker; returns its exit code."""
        try:
            die_with_parent(signal.SIGQUIT)
            if os.getppid() != master:
                return FAULT
            self._wakeups.leave()
            self._notifier.close()
            for other in self._workers.values():
                os.close(other.ready_pipe)
            os.close(hear)
            beats_every = self._notifier.watchdog and min(1.0, self._notifier.watchdog / 8)
            seat = Seat(
                overseer=Above(tell, self._slab.row(slot), self._cells, beats_every),
                slab=self._slab,
                slot=slot,
                slots=self._slots,
                life=self._lives[slot],
                master=master,
            )
            return self._work(seat)
        except BaseException:
            traceback.print_exc()
            return FAULT
        finally:
            with suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()

    def _hear(self, readable: Iterable[int]) -> None:
        """Note which workers have begun to serve."""
        for worker in self._workers.values():
            if worker.ready_pipe in readable and not worker.ready and os.read(worker.ready_pipe, 1):
                worker.ready = True
                self._stillborn = 0
        everybody = len(self._workers) == self._slots
        if not self._served and everybody and all(one.ready for one in self._workers.values()):
            self._served = True
            if not self._ending:
                self._on_ready()
                self._notifier.ready(self._status())

    def _bury(self) -> None:
        """Note which workers have ended, and when they are to be replaced."""
        for worker in list(self._workers.values()):
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                self._ended(worker, os.waitstatus_to_exitcode(status))

    def _ended(self, worker: _Worker, code: int) -> None:
        slot = worker.slot
        del self._workers[slot]
        os.close(worker.ready_pipe)
        self._slab.forget(slot)
        reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        if worker.stuck:
            reason = f"it stood still: {reason}"
        if self._ending:
            if code:
                self._code = self._code or 1
                self._emit(WorkerEnded(slot, worker.pid, reason))
            return
        if not worker.ready:
            self._stillborn += 1
        if self._is_hopeless(code):
            self._emit(WorkerEnded(slot, worker.pid, reason))
            self._give_up(code, reason)
            return
        lived = time.monotonic() - worker.since
        self._series[slot] = 0 if lived >= self._good_while else self._series[slot] + 1
        pause = min(FIRST_PAUSE * 2 ** max(0, self._series[slot] - 1), LONGEST_PAUSE)
        self._due[slot] = time.monotonic() + pause
        self._emit(WorkerEnded(slot, worker.pid, reason, pause))

    def _is_hopeless(self, code: int) -> bool:
        """Whether nothing will come of a further worker: none serves, and none comes to."""
        if not self._stillborn or any(worker.ready for worker in self._workers.values()):
            return False
        # Before the first has served, a wrong configuration is one for all of them.
        return self._stillborn >= HOPELESS or (not self._served and 0 < code != FAULT)

    def _give_up(self, code: int, reason: str) -> None:
        self._code = code if code > 0 else 1
        if self._stillborn >= HOPELESS:
            print(
                f"geosocks serve: {self._stillborn} workers in a row ended before they served, "
                f"the last one with {reason}",
                file=sys.stderr,
            )
        self._end(signal.SIGQUIT)

    def _replace(self) -> None:
        for slot, due in list(self._due.items()):
            if self._ending or due <= time.monotonic():
                del self._due[slot]
                if not self._ending:
                    self._start(slot)

    def _tell_all(self, number: int) -> None:
        for worker in self._workers.values():
            # A worker that has ended is not reaped yet, so its number is nobody else's.
            os.kill(worker.pid, number)

    # --- what it is told ----------------------------------------------------------------------

    def _heed(self, arrived: list[int]) -> None:
        if signal.SIGUSR1 in arrived:
            self._tell_all(signal.SIGUSR1)
            self._reopen()
        if signal.SIGUSR2 in arrived:
            self._tell_all(signal.SIGUSR2)
            self._emit(self._state())
        if signal.SIGHUP in arrived and not self._ending:
            self._reload()
        for number in arrived:
            if number == signal.SIGQUIT or (
                number in (signal.SIGTERM, signal.SIGINT) and self._ending
            ):
                self._end(signal.SIGQUIT)
            elif number in (signal.SIGTERM, signal.SIGINT):
                self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        """Have all workers end, and replace none: SIGTERM to drain them, SIGQUIT for now."""
        if not self._ending:
            self._ending = True
            # A shared socket listens for as long as anybody has it open.
            self._stop_listening()
            self._notifier.stopping(self._status())
        self._tell_all(number)

    def _reload(self) -> None:
        """Look whether the configuration is good before any worker sees it."""
        self._notifier.reloading()
        began = milliseconds()
        try:
            self._check()
        except ConfigError as error:
            self._emit(ReloadRefused(str(error)))
            self._notifier.ready(f"{self._status()}; reload refused: {error}")
            return
        self._tell_all(signal.SIGHUP)
        self._reloading = began, time.monotonic() + RELOAD_LIMIT

    def _reload_done(self) -> None:
        """Tell that a reload is done, once no worker is about it any more."""
        if self._reloading is None:
            return
        began, end = self._reloading
        moments = self._slab.column(self._cells.reloaded)
        busy = [w for w in self._workers.values() if w.ready and moments[w.slot] < began]
        if not busy or time.monotonic() > end:
            self._reloading = None
            self._emit(Reloaded(f"{len(self._workers) - len(busy)} workers"))
            self._notifier.ready(self._status())

    # --- how it is ----------------------------------------------------------------------------

    def _status(self) -> str:
        number = len(self._workers)
        return f"{number} worker{'s' * (number != 1)}" + (" draining" if self._ending else "")

    def _state(self) -> Event:
        return StateTold(
            uptime_seconds=time.monotonic() - self._began,
            workers=" ".join(
                f"{slot}:{worker.pid}{'' if worker.ready else ':starting'}"
                for slot, worker in sorted(self._workers.items())
            ),
        )

    def _feed(self) -> None:
        """Keep the watchdog quiet, unless a worker is stuck: that one is replaced, or it bites."""
        if self._notifier.watchdog is None or not self._served:
            return
        now = time.monotonic()
        if now - self._fed < self._notifier.watchdog / 4:
            return
        self._fed = now
        beats = self._slab.column(self._cells.beat)
        latest = milliseconds() - self._notifier.watchdog * 500
        stuck = [w for w in self._workers.values() if w.ready and beats[w.slot] < latest]
        for worker in stuck:
            # The first tells where it stands (faulthandler), the second cannot be put off.
            os.kill(worker.pid, signal.SIGKILL if worker.stuck else signal.SIGABRT)
            worker.stuck = True
        if not stuck:
            self._notifier.feed()
