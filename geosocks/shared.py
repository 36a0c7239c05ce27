"""Numbers that the workers of one server share: a slab of int64 cells, one row for each worker.

The master maps it once, before it forks (mmap(2), MAP_SHARED and MAP_ANONYMOUS); there is no file,
no lock and nothing to clean up after a crash.  What makes that right is one rule: **a worker writes
its own row only, and everybody may read all rows.**  A cell is eight octets on an eight-octet
boundary, so a reader sees its old value or its new one, never half of each; two cells read one
after the other may be of different moments.

A row outlives the process that wrote it.  So counters go on where a dead worker left them and never
go back; what was true of that worker only, its gauges, the master clears (``Slab.forget``).

Knows cells, not what they count: each part asks a ``Layout`` for its own.
"""

import mmap
from collections.abc import Iterable
from typing import Final

CELL: Final = 8
"""Octets of a cell."""

LINE: Final = 64 // CELL
"""Cells of a cache line: rows begin on one of their own, so that no two workers fight for it."""


class Layout:
    """Deals out the cells of a row, before there are any rows.

    One for a whole program: each part takes the cells it needs, in ignorance of the others, and
    ``slab`` makes the memory for all of them.  Every process must have the same layout, which it
    has when it was forked after that.
    """

    def __init__(self) -> None:
        self._blocks: dict[str, range] = {}
        self._gauges: list[range] = []
        self._size = 0
        self._sealed = False

    @property
    def size(self) -> int:
        """Cells dealt out so far."""
        return self._size

    @property
    def blocks(self) -> dict[str, range]:
        """All cells dealt out, by name."""
        return dict(self._blocks)

    def cell(self, name: str, *, gauge: bool = False) -> int:
        """Take one cell.

        A ``gauge`` is true of a living worker only: it is zero again when its worker is forgotten.
        Anything else counts, and survives.

        Raises:
            ValueError: ``name`` is taken, or there is a slab already.
        """
        return self.block(name, 1, gauge=gauge).start

    def block(self, name: str, cells: int, *, gauge: bool = False) -> range:
        """Take ``cells`` of them in a row; otherwise as ``cell``."""
        if self._sealed:
            raise ValueError(f"{name}: the cells of a slab are dealt out before it is made")
        if name in self._blocks:
            raise ValueError(f"{name}: these cells are taken")
        block = range(self._size, self._size + cells)
        self._blocks[name] = block
        self._size = block.stop
        if gauge:
            self._gauges.append(block)
        return block

    def slab(self, rows: int) -> "Slab":
        """Make the memory: ``rows`` of the cells dealt out, all zero.  No more can be taken."""
        self._sealed = True
        return Slab(rows, self._size, self._gauges)


class Slab:
    """``rows`` of ``cells`` int64, shared with every process that is forked from now on.

    The memory goes when the last process that has it does.
    """

    def __init__(self, rows: int, cells: int, gauges: Iterable[range] = ()) -> None:
        if rows < 1 or cells < 1:
            raise ValueError("a slab has at least one row and one cell")
        self.rows: Final = rows
        self.cells: Final = cells
        self._gauges = tuple(gauges)
        self._stride = -(-cells // LINE) * LINE
        memory = mmap.mmap(-1, rows * self._stride * CELL)
        self._all = memoryview(memory).cast("q")

    def row(self, slot: int) -> memoryview:
        """The cells of the worker in ``slot``, 0 and up: of ints, writable.

        Raises:
            IndexError: there is no such slot.
        """
        if not 0 <= slot < self.rows:
            raise IndexError(f"slot {slot} of {self.rows}")
        start = slot * self._stride
        return self._all[start : start + self.cells]

    def column(self, cell: int) -> list[int]:
        """What ``cell`` holds in each row, in their order.

        Raises:
            IndexError: there is no such cell.
        """
        if not 0 <= cell < self.cells:
            raise IndexError(f"cell {cell} of {self.cells}")
        return self._all[cell :: self._stride].tolist()

    def total(self, cell: int) -> int:
        """The sum of ``cell`` over all rows; raises as ``column``."""
        return sum(self.column(cell))

    def forget(self, slot: int) -> None:
        """Clear the gauges of a row whose worker has died.

        For the master, before it puts another worker in that slot.
        """
        row = self.row(slot)
        for block in self._gauges:
            zeros = memoryview(bytes(CELL * len(block))).cast("q")
            row[block.start : block.stop] = zeros
