"""A process that serves: builds hub, policy and server on sockets that listen, and heeds signals.

There is one of these, or there are several with a master above; either way what they have in common
is a ``Job``, made before any hub and any fork.
"""

import gc
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import gevent
import gevent.event

from geosocks.admin import Admin, AdminPlace, start_admin
from geosocks.codes import Cmd
from geosocks.config import (
    NEEDS_RESTART,
    ListenOption,
    Loaded,
    Settings,
    build_policy,
    load_settings,
    of_the_process,
)
from geosocks.control import Control, start_control
from geosocks.control_client import ask_workers, worker_path
from geosocks.daemon import to_nowhere
from geosocks.errors import ConfigError
from geosocks.events import (
    ControlUnavailable,
    LogObserver,
    Observer,
    Reloaded,
    ReloadRefused,
    StateTold,
)
from geosocks.limits import LimitCells, SlabStore
from geosocks.listening import Listen, Opened, refuse_bare_tls, refuse_open_proxy
from geosocks.logs.handler import ThreadedHandler
from geosocks.logs.start import set_up
from geosocks.master import SIGNALS, Seat
from geosocks.metrics.cells import Cells as MetricCells
from geosocks.policy import Policy
from geosocks.server import Server
from geosocks.session import Session
from geosocks.session.again import is_still_allowed
from geosocks.shared import Layout
from geosocks.systemd import Passed

HEEDED: Final = tuple(number for number in SIGNALS if number != signal.SIGCHLD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a server was started with; the same for all its workers."""

    argv: tuple[str, ...]
    passed: tuple[Passed, ...]
    loaded: Loaded
    listening: tuple[tuple[Opened, ...], ...]
    """For each worker, or once for all of them."""

    admin: AdminPlace | None = None
    """Where the status page is to be."""

    version: str = ""
    """Ours, for those who ask."""

    def cells(self, layout: Layout) -> "SharedCells":
        """Take what each worker keeps in its row."""
        return SharedCells(limits=LimitCells.laid_out(layout), metrics=MetricCells.take(layout))

    def load(self) -> Loaded:
        """The settings as they now stand.

        Raises:
            ConfigError: they cannot be used.
        """
        return load(self.argv, self.passed)

    def check(self) -> None:
        """See whether the settings as they now stand could be put in force.

        Raises:
            ConfigError: they could not.
        """
        listening = [one.as_listen() for one in self.listening[0]]
        new_policy(self.load().settings, listening, self.loaded.settings.allow_open)

    def listen(self, slot: int) -> tuple[Listen, ...]:
        """The sockets for the worker in ``slot``; those of others are closed here."""
        mine = self.listening[slot % len(self.listening)]
        for one in self._all():
            if one not in mine:
                one.sock.close()
        return tuple(replace(one.listen, where=one.sock) for one in mine)

    def stop_listening(self) -> None:
        """Close this process's copies of the sockets, and remove the files that go with them."""
        for one in self._all():
            one.close()

    def _all(self) -> list[Opened]:
        return [one for row in self.listening for one in row]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedCells:
    """Where in its row a worker keeps what."""

    limits: LimitCells
    metrics: MetricCells


# --- settings ---------------------------------------------------------------------------------


def load(argv: Sequence[str], passed: Sequence[Passed]) -> Loaded:
    """The settings, with the sockets that were handed over in the places of ``systemd``.

    Raises:
        ConfigError: something cannot be used as written.
    """
    loaded = load_settings(argv)
    listen = tuple(at for one in loaded.settings.listen for at in _exchanged(one, passed))
    names = Counter(one.listen.name for one in listen if isinstance(one.listen.where, Passed))
    for one in listen:
        passed_on = isinstance(one.listen.where, Passed)
        if not passed_on and one.listen.name is not None and one.listen.name in names:
            raise ConfigError(f"--listen: two have the name {one.listen.name}")
    return replace(loaded, settings=replace(loaded.settings, listen=listen))


def _exchanged(option: ListenOption, passed: Sequence[Passed]) -> list[ListenOption]:
    """``option`` for each socket that it stands for; as it is where there are none yet."""
    name = option.inherited
    if name is None:
        return [option]
    taken = [one for one in passed if name in ("", one.name)]
    return [
        replace(
            option, listen=replace(option.listen, where=one, name=option.listen.name or one.name)
        )
        for one in taken
    ] or [option]


def refuse_awaited(settings: Settings) -> None:
    """Raise ConfigError where a socket was to be handed over, and was not."""
    for one in settings.listen:
        if one.inherited is not None and not isinstance(one.listen.where, Passed):
            raise ConfigError(
                f"--listen {one}: no such socket was handed over (LISTEN_FDS); "
                "systemd does that where a .socket unit starts the service"
            )


def new_policy(
    settings: Settings,
    listening: Sequence[Listen],
    allow_open: bool,
    before: Policy | None = None,
) -> Policy:
    """The policy of ``settings``, fit for the sockets that listen.

    Raises:
        ConfigError: it cannot be made, or would do harm there.
    """
    policy = build_policy(settings, before)
    if not allow_open:
        refuse_open_proxy(listening, policy)
    refuse_bare_tls(listening, policy)
    return policy


def open_log(settings: Settings, threaded: bool = True) -> ThreadedHandler:
    """Begin to log where the settings say; by a thread, except where the process is to fork.

    Raises:
        ConfigError: there is no writing there.
    """
    path = Path(settings.log_file) if settings.log_file else None
    try:
        return set_up(
            settings.log_format,
            settings.log_level,
            path,
            to=settings.log_to,
            repeats=settings.log_repeats,
            threaded=threaded,
        )
    except OSError as error:
        if path is None:
            what = f"--log-to {settings.log_to}: {error.filename}: {error.strerror}"
            raise ConfigError(what) from error
        raise ConfigError(f"log file cannot be written: {error.strerror}", str(path)) from error


# --- serving ----------------------------------------------------------------------------------


def share(settings: Settings) -> int | None:
    """How many of ``--max-sessions`` each worker may have."""
    most = settings.max_sessions
    return None if most is None else -(-most // settings.workers)


def serve(job: Job, cells: SharedCells, seat: Seat, policy: Policy, log: ThreadedHandler) -> int:
    """Serve in this thread's hub until told to stop; returns the exit code."""
    settings = job.loaded.settings
    server = Server(
        job.listen(seat.slot),
        policy,
        observers=[LogObserver()],
        max_sessions=share(settings),
        allow_open=settings.allow_open,
        first_id=seat.first_id,
        id_step=seat.slots,
    )
    if seat.slots > 1:
        store = SlabStore(seat.slab, cells.limits, seat.slot, server.emit)
        server.policy = policy.replace(limits=policy.limits.counted_in(store))
    # What has been made so far stays; and sessions make much that is soon gone by itself, so the
    # collector of cycles need not look so often.
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    signals = Signals()  # from here on a TERM is a drain, however early it comes
    control: Control | None = None
    admin: Admin | None = None
    try:
        server.start()
        control = open_control(job, seat, server, signals)
        admin = open_page(job, cells, seat, server, control)
        seat.overseer.ready()
        if settings.daemon and seat.has_master:
            to_nowhere(2)
        Life(job, seat, server, log, signals).live()
        return 0
    finally:
        if admin is not None:
            admin.close()
        if control is not None:
            control.close()
        if seat.has_master:  # one that comes now finds a process that has done as it was told
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        signals.close()


def open_control(job: Job, seat: Seat, server: Server, signals: "Signals") -> Control | None:
    """Let ``geosocks ctl`` ask this process; where that cannot be, an event tells so."""
    path = job.loaded.settings.control
    if path is None:
        return None

    def tell(number: int) -> None:
        if seat.master is None:
            signals.raise_signal(number)
        elif seat.master == os.getppid():  # never whoever has taken its place
            os.kill(seat.master, number)

    path = worker_path(path, seat.slot)
    try:
        return start_control(
            server,
            path,
            version=job.version,
            mode=job.loaded.settings.control_mode,
            worker=seat.slot,
            workers=seat.slots,
            reload=partial(tell, signal.SIGHUP),
            drain=partial(tell, signal.SIGTERM),
        )
    except OSError as error:
        server.emit(ControlUnavailable(path, error.strerror or str(error)))
        return None


def open_page(
    job: Job, cells: SharedCells, seat: Seat, server: Server, control: Control | None
) -> Admin | None:
    """Serve the status page, if there is to be one; what happens elsewhere, ``control`` can ask."""
    if job.admin is None:
        return None
    path = job.loaded.settings.control
    admin = start_admin(
        server,
        job.admin,
        version=job.version,
        cells=cells.metrics,
        slab=seat.slab,
        slot=seat.slot,
        others=None if path is None else partial(ask_workers, path, besides=seat.slot),
    )
    if control is not None:
        control.tell_lately(admin.recent.snapshot)
    return admin


def work(job: Job, cells: SharedCells, seat: Seat) -> int:
    """Be a worker: ``serve`` with a policy and a log of its own."""
    settings = job.loaded.settings
    try:
        listening = [one.as_listen() for one in job.listening[0]]
        policy = new_policy(settings, listening, settings.allow_open)
        log = open_log(settings)
    except ConfigError as error:
        print(f"geosocks serve: {error}", file=sys.stderr)
        return 2
    try:
        return serve(job, cells, seat, policy, log)
    finally:
        log.close()


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
        self, job: Job, seat: Seat, server: Server, log: ThreadedHandler, signals: Signals
    ) -> None:
        self._job = job
        self._seat = seat
        self._server = server
        self._log = log
        self._signals = signals
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
        self._draining = gevent.spawn(self._server.drain, self._job.loaded.settings.drain)
        self._draining.link(lambda _: self._signals.wake.set())

    def _stop_listening(self) -> None:
        self._server.close_listeners()
        if not self._seat.has_master:
            self._job.stop_listening()

    def _reload(self) -> None:
        self._seat.overseer.reloading()
        job = self._job
        outcome = reload(self._server, job.argv, job.loaded, job.passed)
        self._seat.overseer.reloaded(outcome)

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


def reopen(log: ThreadedHandler, emit: Observer) -> None:
    """Open the log anew; where that cannot be, the old one goes on."""
    try:
        log.reopen()
    except OSError as error:
        emit(ReloadRefused(f"{log.path}: log file cannot be written: {error.strerror}"))


def reload(
    server: Server, argv: Sequence[str], loaded: Loaded, passed: Sequence[Passed] = ()
) -> str:
    """Put the settings as they now stand in force, all at once or, if they are wrong, not at all.

    What belongs to the process stays as it is; a change there is reported.  Returns what came of
    it, which an event has told.
    """
    try:
        fresh = load(argv, passed).settings
        policy = new_policy(fresh, server.listening, loaded.settings.allow_open, server.policy)
    except ConfigError as error:
        server.emit(ReloadRefused(str(error)))
        return f"reload refused: {error}"
    server.policy = policy
    changed = [
        name.replace("_", "-")
        for name in NEEDS_RESTART
        if of_the_process(fresh, name) != of_the_process(loaded.settings, name)
    ]
    note = f"; a change of {', '.join(changed)} needs a restart" if changed else ""
    server.emit(Reloaded("policy" + note))
    if fresh.rejudge:
        cut_no_longer_allowed(server)
    return "reloaded" + note


def cut_no_longer_allowed(server: Server) -> None:
    """End the sessions that the policy in force would not let through now; leave the others be."""
    dialling = []
    for session in list(server.sessions.values()):
        if not is_still_allowed(session, server.policy):
            server.cut(session, "no_longer_allowed")
        elif session.command is None or session.command in _JUDGED_AS_THEY_GO:
            session.policy = server.policy
        elif session.dialled is None:
            dialling.append(session)
    if dialling:  # where a name leads is not known before it is there
        gevent.spawn_later(server.policy.timeouts.connect + 1.0, _cut_of, server, dialling)


_JUDGED_AS_THEY_GO: Final = (Cmd.BIND, Cmd.UDP_ASSOCIATE)
"""What is still to come of them, each peer and each destination, is for the new rules."""


def _cut_of(server: Server, sessions: Sequence[Session]) -> None:
    for session in sessions:
        alive = server.sessions.get(session.id) is session
        if alive and not is_still_allowed(session, server.policy):
            server.cut(session, "no_longer_allowed")
