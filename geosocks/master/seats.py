"""Where a process that serves sits: alone, or below a master; and how it tells how it is."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from geosocks.shared import Layout, Slab
from geosocks.systemd import Notifier

IDS_OF_A_LIFE: Final = 1_000_000_000
"""Session ids that each life of a worker has to itself."""


@dataclass(frozen=True, slots=True)
class Cells:
    """Where in its row a worker tells its master how it is; times are milliseconds."""

    beat: int
    """When it last showed that it is alive."""

    reloaded: int
    """When it began the last reload that it is done with."""

    @classmethod
    def of(cls, layout: Layout) -> "Cells":
        """Take them."""
        return cls(
            layout.cell("master.beat", gauge=True), layout.cell("master.reloaded", gauge=True)
        )


def milliseconds() -> int:
    """The monotonic clock, which all processes share, as a number for a cell."""
    return time.monotonic_ns() // 1_000_000


class Overseer(Protocol):
    """Whom a process that serves tells how it is: its master, or the service manager."""

    beats_every: float | None
    """Seconds between two signs of life; None where nobody looks for them."""

    def ready(self) -> None:
        """It serves."""

    def beat(self) -> None:
        """It is alive."""

    def reloading(self) -> None:
        """It reads its configuration anew."""

    def reloaded(self, outcome: str) -> None:
        """It has done so, well or not."""

    def stopping(self) -> None:
        """It takes no more clients."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """The place of a process among those that serve; one alone has the only seat there is."""

    overseer: Overseer
    slab: Slab
    slot: int = 0
    slots: int = 1
    life: int = 0
    """How many workers had this slot before."""

    master: int | None = None
    """The master's process id."""

    @property
    def has_master(self) -> bool:
        """False for a process that is alone."""
        return self.master is not None

    @property
    def first_id(self) -> int:
        """The first number for a session; the next is ``slots`` above, and none is another's."""
        return self.life * IDS_OF_A_LIFE * self.slots + self.slot + 1


class Alone:
    """The overseer of a process without a master: the service manager, if there is one."""

    def __init__(self, notifier: Notifier, on_ready: Callable[[], None]) -> None:
        self.beats_every = notifier.watchdog and notifier.watchdog / 4
        self._notifier = notifier
        self._on_ready = on_ready

    def ready(self) -> None:
        """As ``Overseer.ready``."""
        self._on_ready()
        self._notifier.ready("serving")

    def beat(self) -> None:
        """As ``Overseer.beat``."""
        self._notifier.feed()

    def reloading(self) -> None:
        """As ``Overseer.reloading``."""
        self._notifier.reloading()

    def reloaded(self, outcome: str) -> None:
        """As ``Overseer.reloaded``."""
        self._notifier.ready(f"serving; {outcome}")

    def stopping(self) -> None:
        """As ``Overseer.stopping``."""
        self._notifier.stopping("draining")


class Above:
    """The overseer of a worker: its master, who reads a pipe once and the worker's row always."""

    def __init__(self, pipe: int, row: memoryview, cells: Cells, beats_every: float | None) -> None:
        self.beats_every = beats_every
        self._pipe = pipe
        self._row = row
        self._cells = cells
        self._began = 0

    def ready(self) -> None:
        """As ``Overseer.ready``."""
        self.beat()
        os.write(self._pipe, b"!")
        os.close(self._pipe)

    def beat(self) -> None:
        """As ``Overseer.beat``."""
        self._row[self._cells.beat] = milliseconds()

    def reloading(self) -> None:
        """As ``Overseer.reloading``."""
        self._began = milliseconds()

    def reloaded(self, outcome: str) -> None:
        """As ``Overseer.reloaded``."""
        self._row[self._cells.reloaded] = self._began

    def stopping(self) -> None:
        """It was the master who said so."""
