"""The status page, /metrics, /healthz, /readyz and /sessions, by HTTP in the server's own hub.

``open_admin`` listens, and needs no hub, so that a process may do it and then fork and drop its
privileges; ``start_admin`` serves.  Needs ``prometheus_client``, the extra ``metrics``.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, Self

import gevent
import gevent.socket

from geosocks.admin.access import read_token
from geosocks.admin.app import Application
from geosocks.admin.health import Overview, overview
from geosocks.admin.http import AdminServer
from geosocks.admin.recent import Recent, merge
from geosocks.control_client import Answer, ControlError
from geosocks.errors import ConfigError
from geosocks.events import AdminCrashed, Listening
from geosocks.listening import Listen, Opened, is_loopback, open_listener, spelt
from geosocks.metrics.cells import EVERY, Cells
from geosocks.metrics.history import History
from geosocks.metrics.observer import Metrics
from geosocks.rows import Row, session_rows
from geosocks.server import Server
from geosocks.shared import Layout, Slab

__all__ = ["Admin", "AdminPlace", "check_admin", "open_admin", "start_admin"]

LOOK_EVERY: Final = 2.0
"""Seconds between two looks at the running sessions."""

PATIENCE: Final = 2.0
"""Seconds for the other workers to answer; then the page does without them."""

Ask = Callable[..., dict[int, Answer | ControlError]]
"""Asks the other workers: a verb of the control socket, and its arguments."""


@dataclass(frozen=True, slots=True)
class AdminPlace:
    """Where the page is to be, listened on already, and who may see it."""

    opened: Opened
    token: bytes | None

    def close(self) -> None:
        """Listen no more; a UNIX socket's file goes.  For whoever has opened it."""
        self.opened.close()


def open_admin(
    where: tuple[str, int] | str, token_file: str | os.PathLike[str] | None = None
) -> AdminPlace:
    """Listen at ``where``, an address or a UNIX socket's path; makes no hub.

    Raises:
        ConfigError: prometheus_client is missing, the token cannot be used, or there is none and
            the address is not a loopback one.
        OSError: it cannot be listened on.
    """
    check_admin(where, token_file)
    import_module("geosocks.metrics.collector")  # it may not be readable once the privileges go
    token = None if token_file is None else read_token(token_file)
    return AdminPlace(open_listener(Listen(where), ()), token)


def check_admin(
    where: tuple[str, int] | str, token_file: str | os.PathLike[str] | None = None
) -> None:
    """Raise ConfigError where ``open_admin`` would."""
    if find_spec("prometheus_client") is None:
        raise ConfigError(
            "--admin needs the package prometheus_client, which is not installed: "
            "pip install 'geosocks[metrics]'"
        )
    if token_file is not None:
        read_token(token_file)
    elif isinstance(where, tuple) and not is_loopback(where[0]):
        raise ConfigError(
            f"{spelt(where)} is not a loopback address, so --admin needs --admin-token-file FILE"
        )


def start_admin(
    server: Server,
    where: AdminPlace | tuple[str, int] | str,
    *,
    version: str = "",
    cells: Cells | None = None,
    slab: Slab | None = None,
    slot: int = 0,
    others: Ask | None = None,
) -> "Admin":
    """Serve the page of ``server``, which runs, in the hub of this thread; returns at once.

    ``slab`` is what the workers share, ``cells`` are its cells for metrics and ``slot`` is our row;
    without them the server is taken to be one process.  ``others`` asks the other workers.

    Raises:
        ConfigError, OSError: as ``open_admin``, where ``where`` is not open yet.
    """
    place = where if isinstance(where, AdminPlace) else open_admin(where)
    if cells is None or slab is None:
        layout = Layout()
        cells = Cells.take(layout)
        slab = layout.slab(1)
    return Admin(server, place, version, History(cells, slab), slot, others, place is not where)


class Admin:
    """A status page.  ``address`` is where; ``close`` ends it."""

    def __init__(
        self,
        server: Server,
        place: AdminPlace,
        version: str,
        history: History,
        slot: int,
        others: Ask | None,
        owns_place: bool,
    ) -> None:
        # Only here, so that this package can be imported where that one is missing.
        from geosocks.metrics.collector import Exposition, SlabCollector

        self.metrics = Metrics(history.cells, history.slab.row(slot))
        self.recent = Recent()
        self._server = server
        self._version = version
        self._history = history
        self._slot = slot
        self._others = others
        self._place = place
        self._owns_place = owns_place
        self._exposition = Exposition(SlabCollector(history.cells, history.slab, version))
        self.address = place.opened.address
        on_network = isinstance(self.address, tuple)
        if on_network:
            server.keep_clients_from(self.address[1])
        # What was accepted before it was counted is not counted when it ends.
        server.emit.add(self.metrics)
        server.emit.add(self.recent)
        self.metrics.begin()
        listening = gevent.socket.socket(fileno=place.opened.sock.detach())
        application = Application(self, place.token, on_network=on_network)
        self._http = AdminServer(listening, application, shared=history.slab.rows > 1)
        self._http.start()
        server.emit(Listening(f"http://{place.opened.spelt}" if on_network else self.address))
        self._sampler: gevent.Greenlet[..., None] | None = gevent.spawn(self._sample)

    def close(self) -> None:
        """Serve no more; may be called again."""
        if self._sampler is None:
            return
        self._sampler.kill()
        self._sampler = None
        self._http.close_now()
        self._server.emit.remove(self.metrics)
        self._server.emit.remove(self.recent)
        self.metrics.end()
        if self._owns_place:
            self._place.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _look(self) -> None:
        self.metrics.look(self._server, (self.recent.share,))

    def _sample(self) -> None:
        """Look at the running sessions, and keep each moment of the hour."""
        kept = 0
        while True:
            self._look()
            moment = int(time.time() / EVERY)
            if moment != kept:
                kept = moment
                self.metrics.measure_process()
                self._history.record(self._slot)
                self.recent.turn()
            gevent.sleep(LOOK_EVERY)

    # --- what the application asks for --------------------------------------------------------

    def metrics_text(self, accept: str) -> tuple[str, bytes]:
        """The content type and the text of /metrics."""
        self._look()
        return self._exposition.render(accept)

    def ready(self) -> str | None:
        """Why no connections are taken; None if they are."""
        server = self._server
        if not server.accepting:
            return "draining: no more connections are taken"
        if len(server.sessions) >= server.max_sessions:
            return "full: further clients wait"
        return None

    def overview(self) -> Overview:
        """What the page shows."""
        self._look()
        told = {self._slot: self.recent.snapshot()}
        for slot, answer in self._ask("lately").items():
            if isinstance(answer, Answer) and answer.ok:
                told[slot] = answer.ok
        return overview(self._history, merge(told.values()), self._version, told)

    def sessions(self, most: int) -> tuple[Iterable[Row], Row]:
        """The first ``most`` sessions, and how many there are, here and at the other workers."""
        self._look()
        of_all = {
            "active": self._history.now().active,
            "limit": most,
            "workers": self._history.slab.rows,
        }
        return self._first(most), of_all

    def _first(self, most: int) -> Iterator[Row]:
        left = most
        for row in session_rows(self._server, self._slot):
            if left <= 0:
                return
            left -= 1
            yield row
        if left <= 0:
            return
        for answer in self._ask("sessions").values():
            rows = answer.rows if isinstance(answer, Answer) else []
            yield from rows[:left]
            left = max(0, left - len(rows))

    def _ask(self, verb: str, **arguments: Any) -> dict[int, Answer | ControlError]:
        if self._others is None or self._history.slab.rows == 1:
            return {}
        return self._others(verb, patience=PATIENCE, **arguments)

    def crashed(self, fault: Exception, traceback: str) -> None:
        """A fault of ours ended a request."""
        self._server.emit(AdminCrashed(repr(fault), traceback))
