"""The last hour, a moment every ten seconds, in the rows themselves.

So it outlives a worker, and any worker can show that of all.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from geosocks.metrics import cells as c
from geosocks.metrics.cells import EVERY, MOMENTS, OF_A_MOMENT, REASONS, Cells
from geosocks.shared import Slab

WIDTH: Final = len(OF_A_MOMENT)


@dataclass(frozen=True, slots=True)
class Moment:
    """What was so, and what had been counted, at a time; of one worker or of all together."""

    number: int
    """Which: the time in units of ``EVERY`` seconds."""

    active: int = 0
    ended: int = 0
    up: int = 0
    down: int = 0
    reasons: tuple[int, ...] = (0,) * len(REASONS)
    """How often each of REASONS was one."""

    @property
    def refused(self) -> int:
        """All of them together."""
        return sum(self.reasons)


class History:
    """Writes one worker's row, and reads all of them."""

    def __init__(self, cells: Cells, slab: Slab) -> None:
        self.cells = cells
        self.slab = slab
        self._reasons = {reason: cells.reason(reason) for reason in REASONS}

    def now(self) -> Moment:
        """How all workers together stand at this moment."""
        cells, total = self.cells, self.slab.total
        up, down = map(total, cells.of(c.OCTETS))
        return Moment(
            int(time.time() / EVERY),
            total(cells.one(c.ACTIVE)),
            sum(map(total, cells.of(c.SESSION_ENDS))),
            up,
            down,
            tuple(sum(map(total, self._reasons[reason])) for reason in REASONS),
        )

    def record(self, slot: int, now: float | None = None) -> None:
        """Keep how the worker in ``slot`` stands; ``now`` is the time in seconds since 1970."""
        number = int((time.time() if now is None else now) / EVERY)
        row, cells = self.slab.row(slot), self.cells
        start = cells.history.start + number % MOMENTS * WIDTH
        up, down = (row[cell] for cell in cells.of(c.OCTETS))
        values = (
            number,
            row[cells.one(c.ACTIVE)],
            sum(row[cell] for cell in cells.of(c.SESSION_ENDS)),
            up,
            down,
            *(sum(row[cell] for cell in self._reasons[reason]) for reason in REASONS),
        )
        for offset, value in enumerate(values):
            row[start + offset] = value

    def moments(self, now: float | None = None) -> list[Moment]:
        """The last hour's, of all workers together, oldest first; those that somebody kept.

        What a worker had counted is still counted when it has missed a moment.
        """
        last = int((time.time() if now is None else now) / EVERY)
        together: dict[int, list[int]] = {}
        for slot in range(self.slab.rows):
            for number, values in self._filled(slot, last):
                total = together.setdefault(number, [0] * (WIDTH - 1))
                for index, value in enumerate(values):
                    total[index] += value
        kept = {moment[0] for slot in range(self.slab.rows) for moment in self._kept(slot, last)}
        return [_moment(number, together[number]) for number in sorted(kept)]

    def _kept(self, slot: int, last: int) -> list[list[int]]:
        block = self.cells.history
        values = self.slab.row(slot)[block.start : block.stop].tolist()
        moments = [values[start : start + WIDTH] for start in range(0, len(values), WIDTH)]
        return sorted(moment for moment in moments if last - MOMENTS < moment[0] <= last)

    def _filled(self, slot: int, last: int) -> list[tuple[int, list[int]]]:
        """A worker's moments without gaps after its first: no sessions, and the counts so far."""
        kept = self._kept(slot, last)
        filled: list[tuple[int, list[int]]] = []
        for moment in kept:
            while filled and filled[-1][0] + 1 < moment[0]:
                filled.append((filled[-1][0] + 1, [0, *filled[-1][1][1:]]))
            filled.append((moment[0], moment[1:]))
        while filled and filled[-1][0] < last:
            filled.append((filled[-1][0] + 1, [0, *filled[-1][1][1:]]))
        return filled


def _moment(number: int, values: Sequence[int]) -> Moment:
    active, ended, up, down, *reasons = values
    return Moment(number, active, ended, up, down, tuple(reasons))
