"""A process that serves: builds hub, policy and server on sockets that listen, and heeds signals.

There is one of these, or there are several with a master above; either way what they have in common
is a ``Job``.
"""

import faulthandler
import gc
import os
import signal
import sys
from contextlib import suppress
from functools import partial

from geosocks.admin import Admin, start_admin
from geosocks.control import Control, start_control
from geosocks.control_client import ask_workers, worker_path
from geosocks.daemon import to_nowhere
from geosocks.errors import ConfigError
from geosocks.events import ControlUnavailable, LogObserver
from geosocks.limits import SlabStore
from geosocks.logs.handler import ThreadedHandler
from geosocks.master import SIGNALS, Seat
from geosocks.server import Server
from geosocks.worker.job import InForce, Job, SharedCells, open_log, share
from geosocks.worker.life import Life, Signals


def serve(job: Job, cells: SharedCells, seat: Seat, in_force: InForce, log: ThreadedHandler) -> int:
    """Serve in this thread's hub until told to stop; returns the exit code."""
    settings = job.loaded.settings
    server = Server(
        job.listen(seat.slot),
        in_force.policy,
        observers=[LogObserver()],
        max_sessions=share(settings),
        allow_open=settings.allow_open,
        first_id=seat.first_id,
        id_step=seat.slots,
        shares_sockets=seat.slots > 1 and not settings.reuse_port,
    )
    if seat.slots > 1:
        store = SlabStore(seat.slab, cells.limits, seat.slot, server.emit)
        limits = in_force.policy.limits.counted_in(store)
        server.policy = in_force.policy.replace(limits=limits)
    # What has been made so far stays; and sessions make much that is soon gone by itself, so the
    # collector of cycles need not look so often.
    if not faulthandler.is_enabled():  # a watchdog's SIGABRT is to tell where it stood
        with suppress(OSError, ValueError):  # no standard error
            faulthandler.enable()
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
        Life(job, seat, server, in_force.drain, log, signals).live()
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

    def reload() -> None:
        tell(signal.SIGHUP)
        if seat.has_master:  # what it finds wrong it tells its log, and not us
            job.check()

    path = worker_path(path, seat.slot)
    try:
        return start_control(
            server,
            path,
            version=job.version,
            mode=job.loaded.settings.control_mode,
            worker=seat.slot,
            workers=seat.slots,
            reload=reload,
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
    # Where we have no control socket, the paths beside ours may be another server's.
    path = None if control is None else job.loaded.settings.control
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


def work(job: Job, cells: SharedCells, seat: Seat, in_force: InForce) -> int:
    """Be a worker: ``serve``, with a log of its own."""
    try:
        log = open_log(job.loaded.settings)
    except ConfigError as error:
        print(f"geosocks serve: {error}", file=sys.stderr)
        return 2
    try:
        return serve(job, cells, seat, in_force, log)
    finally:
        log.close()
