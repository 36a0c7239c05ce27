"""How the server stands: its figures put together, and whether it is well, in sentences."""

import time
from collections.abc import Container
from dataclasses import dataclass
from typing import Any, Final, Literal

from geosocks.metrics import cells as c
from geosocks.metrics.cells import EVERY, MICRO, Cells, Family
from geosocks.metrics.history import History, Moment
from geosocks.shared import Slab

LATELY: Final = 300.0
"""Seconds for which a want of descriptors is worth a word."""

HOUR: Final = 3600.0
NEARLY: Final = 0.9
"""Of the sessions that there may be."""

Level = Literal["well", "warn", "bad"]


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker's gauges, in their units."""

    slot: int
    up: bool
    active: int
    handshakes: int
    ceiling: int
    draining: bool
    config_good: bool
    config_loaded: float
    started: float
    cpu: float
    memory: int
    descriptors: int
    max_descriptors: int


@dataclass(frozen=True, slots=True)
class Overview:
    """All that the page shows."""

    at: float
    """The time, in seconds since 1970."""

    version: str
    workers: tuple[Worker, ...]
    now: Moment
    moments: list[Moment]
    recent: dict[str, Any]
    """As ``recent.merge`` gives it."""

    unheard: tuple[int, ...] = ()
    """Workers that are up, and did not tell what happened lately."""

    @property
    def ceiling(self) -> int:
        """How many sessions there may be."""
        return sum(worker.ceiling for worker in self.workers)

    @property
    def an_hour_ago(self) -> Moment | None:
        """The oldest moment there is; None when there is none yet."""
        return self.moments[0] if self.moments else None

    @property
    def rates(self) -> tuple[float, float] | None:
        """Octets a second up and down, between the last two moments; None without them."""
        if len(self.moments) < 2:
            return None
        before, last = self.moments[-2:]
        seconds = (last.number - before.number) * EVERY
        ways = (last.up - before.up, last.down - before.down)
        return max(0, ways[0]) / seconds, max(0, ways[1]) / seconds


def workers_of(cells: Cells, slab: Slab) -> tuple[Worker, ...]:
    """The gauges of every worker."""

    def read(row: memoryview, family: Family) -> int:
        value: int = row[cells.one(family)]
        return value

    return tuple(
        Worker(
            slot=slot,
            up=bool(read(row, c.UP)),
            active=read(row, c.ACTIVE),
            handshakes=read(row, c.HANDSHAKES),
            ceiling=read(row, c.CEILING),
            draining=bool(read(row, c.DRAINING)),
            config_good=bool(read(row, c.CONFIG_GOOD)),
            config_loaded=read(row, c.CONFIG_LOADED) / MICRO,
            started=read(row, c.STARTED) / MICRO,
            cpu=read(row, c.CPU) / MICRO,
            memory=read(row, c.MEMORY),
            descriptors=read(row, c.DESCRIPTORS),
            max_descriptors=read(row, c.MAX_DESCRIPTORS),
        )
        for slot, row in ((slot, slab.row(slot)) for slot in range(slab.rows))
    )


def overview(
    history: History, recent: dict[str, Any], version: str, heard: Container[int]
) -> Overview:
    """How it stands at this moment; ``heard`` are the workers that ``recent`` is of."""
    workers = workers_of(history.cells, history.slab)
    unheard = (worker.slot for worker in workers if worker.up and worker.slot not in heard)
    return Overview(
        at=time.time(),
        version=version,
        workers=workers,
        now=history.now(),
        moments=history.moments(),
        recent=recent,
        unheard=tuple(unheard),
    )


def judge(seen: Overview) -> tuple[Level, list[str]]:
    """Whether it is well, and why, the weightiest first; never without a sentence."""
    bad = [*_workers(seen), *_room(seen)]
    warn = [*_drain(seen), *_settings(seen), *_upstreams(seen), *_faults(seen)]
    if bad:
        return "bad", bad + warn
    if warn:
        return "warn", warn
    return "well", ["All is well."]


def _workers(seen: Overview) -> list[str]:
    down = [worker.slot for worker in seen.workers if not worker.up]
    if not down:
        return []
    if len(seen.workers) == 1:
        return ["The server is not running."]
    are = "is" if len(down) == 1 else "are"
    which = ", ".join(f"worker {slot}" for slot in down)
    return [f"{len(down)} of {len(seen.workers)} workers {are} down: {which}."]


def _room(seen: Overview) -> list[str]:
    said = []
    full = [one.slot for one in seen.workers if one.up and one.active >= one.ceiling > 0]
    if full and len(full) == len(seen.workers):
        said.append(f"Full: there are {seen.ceiling} sessions, and further clients wait.")
    elif full:
        said.append(f"Full: worker {', '.join(map(str, full))} takes no more sessions for now.")
    elif seen.now.active >= NEARLY * seen.ceiling > 0:
        said.append(f"Nearly full: {seen.now.active} sessions of {seen.ceiling}.")
    pauses = seen.recent["pauses"]
    if pauses and seen.at - pauses[0] < LATELY:
        said.append(f"Clients had to wait: {pauses[1]}.")
    return said


def _drain(seen: Overview) -> list[str]:
    if not any(worker.draining for worker in seen.workers):
        return []
    return ["Draining: no more connections are taken, and those there are run on."]


def _settings(seen: Overview) -> list[str]:
    if all(worker.config_good for worker in seen.workers if worker.up):
        return []
    why = seen.recent["reload_refused"]
    because = f": {why}" if why else ""
    return [f"The last reload was refused, and the settings before it are in force{because}."]


def _upstreams(seen: Overview) -> list[str]:
    return [f"Upstream {name} fails: {why}." for name, why in seen.recent["upstreams"].items()]


def _faults(seen: Overview) -> list[str]:
    crashed = seen.recent["crashed"]
    if not crashed or seen.at - crashed > HOUR:
        return []
    return ["A fault of this program ended a session in the last hour; the log has the details."]
