"""Signals, and what a process that serves does about them."""

import signal
import time
from typing import Final

import gevent
import gevent.event

from geosocks.events import StateTold
from geosocks.logs.handler import ThreadedHandler
from geosocks.master import SIGNALS, Seat
from geosocks.server import Server
from geosocks.worker.job import Job
from geosocks.worker.reloading import reload, reopen

HEEDED: Final = tuple(number for number in SIGNALS if number != signal.SIGCHLD)


class Signals:
    """Notes the signals that arrive; whatever they ask for is done elsewhere."""

    def __init__(self) -> None:
        self.wake = gevent.event.Event()
        self._arrived: list[int] = []
        self._watchers = [gevent.signal_handler(number, self._note, number) for number in HEEDED]
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # a master blocks them until now

    def _note(self, number: int) -> None:
        self._arrived.append(number)
        self.wake.set()

    def raise_signal(self, number: int) -> None:
        """Note a signal as if it had come."""
        self._note(number)

    def wait(self) -> list[int]:
        """Those that have arrived since the last call, once ``wake`` is set."""
        self.wake.wait()
        self.wake.clear()
        arrived, self._arrived = self._arrived, []
        return arrived

    def close(self) -> None:
        """Note no more."""
        for watcher in self._watchers:
            watcher.cancel()


class Life:
    """What a process that serves does as it is told, until the last session has ended."""

    def __init__(
        self,
        job: Job,
        seat: Seat,
        server: Server,
        drain: float,
        log: ThreadedHandler,
        signals: Signals,
    ) -> None:
        self._job = job
        self._seat = seat
        self._server = server
        self._log = log
        self._signals = signals
        self._seconds_to_drain = drain
        self._began = time.monotonic()
        self._draining: gevent.Greenlet[..., int] | None = None

    def live(self) -> None:
        """Do as the signals say; returns when the server has stopped."""
        heart = gevent.spawn(self._beat) if self._seat.overseer.beats_every else None
        try:
            while not self._heed(self._signals.wait()):
                pass
        finally:
            if heart is not None:
                heart.kill()

    def _beat(self) -> None:
        """Show that the hub turns: whatever stops it stops this greenlet, too."""
        while True:
            self._seat.overseer.beat()
            gevent.sleep(self._seat.overseer.beats_every or 1.0)

    def _heed(self, arrived: list[int]) -> bool:
        """Do as told; True when it is over."""
        if signal.SIGUSR1 in arrived:
            reopen(self._log, self._server.emit)
        if signal.SIGUSR2 in arrived:
            self._server.emit(self._state())
        if signal.SIGHUP in arrived and self._draining is None:
            self._reload()
        if self._draining is None and (signal.SIGTERM in arrived or self._interrupted(arrived)):
            arrived.remove(signal.SIGTERM if signal.SIGTERM in arrived else signal.SIGINT)
            self._drain()
        now = signal.SIGQUIT in arrived
        if self._draining is not None and not self._seat.has_master:
            now = now or signal.SIGTERM in arrived or signal.SIGINT in arrived
        if now:
            if self._draining is not None:
                self._draining.kill()
            self._stop_listening()
            self._server.stop()
            return True
        return self._draining is not None and self._draining.ready()

    def _interrupted(self, arrived: list[int]) -> bool:
        # A terminal tells the whole group; those who have a master leave it to the master.
        return signal.SIGINT in arrived and not self._seat.has_master

    def _drain(self) -> None:
        self._stop_listening()
        self._seat.overseer.stopping()
        self._draining = gevent.spawn(self._server.drain, self._seconds_to_drain)
        self._draining.link(lambda _: self._signals.wake.set())

    def _stop_listening(self) -> None:
        self._server.close_listeners()
        if not self._seat.has_master:
            self._job.stop_listening()

    def _reload(self) -> None:
        self._seat.overseer.reloading()
        job = self._job
        outcome = reload(self._server, job.argv, job.loaded, job.passed)
        if outcome.settings is not None:
            self._seconds_to_drain = outcome.settings.drain
        self._seat.overseer.reloaded(outcome.told)

    def _state(self) -> StateTold:
        server = self._server
        sessions = list(server.sessions.values())
        return StateTold(
            uptime_seconds=time.monotonic() - self._began,
            worker=self._seat.slot if self._seat.has_master else None,
            sessions=len(sessions),
            handshakes=sum(session.command is None for session in sessions),
            max_sessions=server.max_sessions,
            draining=self._draining is not None,
            observer_failures=server.emit.failures,
        )
