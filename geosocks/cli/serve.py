"""``geosocks serve``: the proxy as a process, or as several with a master, and its exit codes."""

import errno
import os
import resource
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Final

from geosocks import __version__
from geosocks.admin import AdminPlace, check_admin, open_admin
from geosocks.config import Settings, shown
from geosocks.control import prepare_directory
from geosocks.daemon import Background, PidFile
from geosocks.errors import ConfigError
from geosocks.events import FanOut, LogObserver
from geosocks.listening import Listen, Opened, open_listener
from geosocks.master import Alone, Cells, Master, Seat
from geosocks.master.wakeups import SIGNALS
from geosocks.policy import Policy
from geosocks.privileges import Owner, drop
from geosocks.server import max_sessions_for
from geosocks.shared import Layout
from geosocks.systemd import Notifier, take_passed
from geosocks.worker import serve, work
from geosocks.worker.job import InForce, Job, load, new_policy, open_log, refuse_awaited, share
from geosocks.worker.reloading import reopen

USAGE: Final = 2
TEMPORARY: Final = 75
"""EX_TEMPFAIL of sysexits.h: try again later."""


def main(argv: Sequence[str]) -> int:
    """Serve until told to stop; returns the exit code."""
    try:
        # Taken out of the environment, so that no child believes that they are meant for it.
        notifier = Notifier.take(os.environ, os.getpid())
        passed = take_passed(os.environ, os.getpid())
        loaded = load(argv, passed)
        settings = loaded.settings
        if loaded.print_config:
            print(shown(loaded), end="")
            return 0
        refuse_too_many_sessions(settings, raise_descriptor_limit())
        owner = Owner.named(settings.user, settings.group)
        places = [one.listen for one in settings.listen]
        policy = new_policy(settings, places, settings.allow_open)
        if settings.admin is not None:
            check_admin(settings.admin, settings.admin_token_file)
        if loaded.check_config:
            print("configuration is good")
            return 0
        refuse_awaited(settings)
    except ConfigError as error:
        return _fail(str(error), USAGE)
    background = Background.enter() if settings.daemon else None
    code = 1
    try:
        with ExitStack() as held:
            held.callback(notifier.close)
            # Clients can connect as soon as the sockets are open, and a TERM is a drain from then
            # on; signals wait until somebody heeds them.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            held.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
            try:
                pidfile = _pidfile(settings, held)
                job = Job(
                    argv=tuple(argv),
                    passed=passed,
                    loaded=loaded,
                    listening=_open_all(settings, owner, held),
                    admin=_open_admin(settings, owner, held),
                    version=__version__,
                )
                _prepare_control(settings, owner)
                if owner is not None:
                    drop(owner)
                    # Once more as who it is now, who has to be able to read it all at a reload.
                    policy = new_policy(settings, places, settings.allow_open)
                running = Running(job, notifier, pidfile, background)
                run = running.alone if settings.workers == 1 else running.as_master
                code = run(policy)
            except ConfigError as error:
                code = _fail(str(error), USAGE)
            except OSError as error:
                code = _fail(*_why_not(error))
        return code
    finally:
        if background is not None:
            background.tell(code)


def _fail(what: str, code: int) -> int:
    print(f"geosocks serve: {what}", file=sys.stderr)
    return code


def _why_not(error: OSError) -> tuple[str, int]:
    match error.errno:
        case errno.EADDRINUSE:
            is_control = str(error.strerror).startswith("--control")
            other = "take another path" if is_control else "--listen on another port"
            return f"{error.strerror}; end the other server, or {other}", TEMPORARY
        case errno.EWOULDBLOCK:  # the pidfile is somebody's
            return str(error.strerror), TEMPORARY
        case errno.EACCES:
            return f"{error.strerror}; ports below 1024 need root or CAP_NET_BIND_SERVICE", USAGE
        case errno.EADDRNOTAVAIL:
            return f"{error.strerror}; --listen on an address of this host", USAGE
        case _:
            return str(error.strerror or error), 1


def refuse_too_many_sessions(settings: Settings, descriptors: int) -> None:
    """Raise ConfigError when a process has fewer descriptors than its sessions may need."""
    wanted, most = share(settings), max_sessions_for(descriptors)
    if wanted is not None and wanted > most:
        each = "" if settings.workers == 1 else " in each worker"
        raise ConfigError(
            f"--max-sessions {settings.max_sessions}: {descriptors} descriptors are enough for "
            f"{most}{each}; raise the limit (ulimit -n, LimitNOFILE=)"
        )


def raise_descriptor_limit() -> int:
    """Raise the soft RLIMIT_NOFILE to the hard one; returns what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 1 << 20  # "unlimited" is no number to reckon with
    wanted = most if hard == resource.RLIM_INFINITY else min(hard, most)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft


# --- what has to be opened before the privileges go -------------------------------------------


def _pidfile(settings: Settings, held: ExitStack) -> PidFile | None:
    if settings.pidfile is None:
        return None
    pidfile = PidFile(settings.pidfile)
    held.callback(pidfile.remove)
    return pidfile


def _open_all(
    settings: Settings, owner: Owner | None, held: ExitStack
) -> tuple[tuple[Opened, ...], ...]:
    """The sockets to listen on, for each worker, or once for all of them."""
    places = [one.listen for one in settings.listen]
    each = settings.reuse_port and settings.workers > 1
    if each:
        for listen in places:  # with SO_REUSEPORT, nobody would notice another server of ours
            if isinstance(listen.where, tuple) and listen.where[1]:
                open_listener(listen, places).close()
    rows: list[tuple[Opened, ...]] = []
    for _ in range(settings.workers if each else 1):
        row: list[Opened] = []
        for number, listen in enumerate(places):
            if rows and not isinstance(listen.where, tuple):
                row.append(rows[0][number])  # there is only one of its kind
                continue
            if rows:  # where port 0 has led
                listen = replace(listen, where=rows[0][number].address[:2])
            opened = open_listener(listen, places, each)
            held.callback(opened.close)
            if owner is not None and isinstance(listen.where, str):
                os.chown(listen.where, owner.uid, owner.gid)
            row.append(opened)
        rows.append(tuple(row))
    return tuple(rows)


def _open_admin(settings: Settings, owner: Owner | None, held: ExitStack) -> AdminPlace | None:
    """Listen for those who want to see the status page."""
    if settings.admin is None:
        return None
    place = open_admin(settings.admin, settings.admin_token_file)
    held.callback(place.close)
    if owner is not None and isinstance(settings.admin, str):
        os.chown(settings.admin, owner.uid, owner.gid)
    return place


def _prepare_control(settings: Settings, owner: Owner | None) -> None:
    """Make the control socket's directory; if it was asked for, see that it can be opened.

    Raises:
        OSError: it was asked for, and cannot.
    """
    if settings.control is None:
        return
    try:
        who = None if owner is None else (owner.uid, owner.gid)
        prepare_directory(settings.control, settings.control_mode, who)
        if settings.control_named:
            open_listener(Listen(settings.control), ()).close()
    except OSError as error:
        if settings.control_named:
            error.strerror = f"--control {error.strerror or error}"
            raise


# --- running ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Running:
    """A server with all that it needs open."""

    job: Job
    notifier: Notifier
    pidfile: PidFile | None
    background: Background | None

    def _on_ready(self) -> None:
        if self.pidfile is not None:
            self.pidfile.write()
        if self.background is not None:
            self.background.tell(0)

    def alone(self, policy: Policy) -> int:
        """Serve in this process."""
        log = open_log(self.job.loaded.settings)
        try:
            layout = Layout()
            cells = self.job.cells(layout)
            overseer = Alone(self.notifier, self._on_ready)
            seat = Seat(overseer=overseer, slab=layout.slab(1))
            in_force = InForce(policy, self.job.loaded.settings.drain)
            return serve(self.job, cells, seat, in_force, log)
        finally:
            log.close()

    def as_master(self, policy: Policy) -> int:
        """Have workers serve, and look after them."""
        settings = self.job.loaded.settings
        log = open_log(settings, threaded=False)
        emit = FanOut([LogObserver()])
        layout = Layout()
        cells, own_cells = self.job.cells(layout), Cells.of(layout)

        in_force = InForce(policy, settings.drain)

        def check() -> None:
            nonlocal in_force  # for those that take the places of others from now on
            in_force = self.job.check()

        def be_a_worker(seat: Seat) -> int:
            log.close()
            if self.pidfile is not None:
                self.pidfile.let_go()
            if self.background is not None:
                self.background.let_go()
            return work(self.job, cells, seat, in_force)

        try:
            return Master(
                be_a_worker,
                slots=settings.workers,
                slab=layout.slab(settings.workers),
                cells=own_cells,
                emit=emit,
                check=check,
                stop_listening=self.job.stop_listening,
                reopen=lambda: reopen(log, emit),
                on_ready=self._on_ready,
                notifier=self.notifier,
            ).run()
        finally:
            log.close()
