"""Ceilings on sessions at a time, and the stores that count towards them.

A ceiling says how many places there are for one key, which is a user, or a user by one rule.  A
session takes a place of each that concerns it, and gives them back when it ends, however it ends.
The counts live in a store, not in a policy: a reload brings other ceilings and forgets nobody.

``LocalStore`` counts within one process.  ``SlabStore`` counts over the workers of one server.

Knows keys and numbers, not who is asking.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple, Protocol, Self

from geosocks.errors import RequestDenied
from geosocks.events import Event, LimitTableFull, Observer
from geosocks.shared import Layout, Slab


class LimitStore(Protocol):
    """Where places are counted.  Nothing in it may block: a check and its count are one."""

    def take(self, key: str, ceiling: int) -> bool:
        """Take a place of ``key``; False when ``ceiling`` are taken already."""
        ...

    def give_back(self, key: str) -> None:
        """Give back a place that was taken.

        Raises:
            KeyError: none was.
        """
        ...


class LocalStore:
    """Counts of one process.  Owned by its hub's thread."""

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}

    def take(self, key: str, ceiling: int) -> bool:
        """As ``LimitStore.take``."""
        taken = self._taken.get(key, 0)
        if taken >= ceiling:
            return False
        self._taken[key] = taken + 1
        return True

    def give_back(self, key: str) -> None:
        """As ``LimitStore.give_back``; who has nothing left is forgotten."""
        left = self._taken[key] - 1
        if left:
            self._taken[key] = left
        else:
            del self._taken[key]

    def counts(self) -> dict[str, int]:
        """Places taken here, by key."""
        return dict(self._taken)


# --- over the workers of one server -----------------------------------------------------------

WAYS: Final = 8
"""Cells of a bucket: that many keys with the same place in the table get on with each other."""

BUCKETS: Final = 4096
"""Of each worker's table, which so has room for some 20,000 keys before any bucket is full."""


@dataclass(frozen=True, slots=True)
class LimitCells:
    """Where in a row the table of a worker is: hashes of keys, and the count of each."""

    keys: range
    counts: range

    @classmethod
    def laid_out(cls, layout: Layout, buckets: int = BUCKETS) -> Self:
        """Take the cells of a table, which is cleared when its worker has died."""
        return cls(
            layout.block("limits.keys", buckets * WAYS, gauge=True),
            layout.block("limits.counts", buckets * WAYS, gauge=True),
        )


class SlabStore:
    """Counts over all workers: each keeps its own in its row of the slab, and reads the others'.

    The sum is read, then the own cell is written.  So a ceiling may be passed by at most one place
    for each other worker, and only when they take at the same moment.  A key that finds its bucket
    full goes by this worker's count alone, until there is room; ``observer`` is told.

    A key is known to other workers by its hash, which is secret and the same in all processes
    that were forked from one; the table need not hold names, and nobody can choose keys that meet
    in one bucket.  A store belongs to one worker and is made after the fork; whoever had its row
    before has to be forgotten by then (``Slab.forget``).
    """

    def __init__(
        self, slab: Slab, cells: LimitCells, slot: int, observer: Observer | None = None
    ) -> None:
        self.observer = observer
        self._keys, self._counts = cells.keys.start, cells.counts.start
        self._buckets = len(cells.keys) // WAYS
        self._row = slab.row(slot)
        self._others = [slab.row(other) for other in range(slab.rows) if other != slot]
        self._taken: dict[str, int] = {}
        self._ways: dict[str, int] = {}  # where in the table a key is
        self._is_full = False

    def take(self, key: str, ceiling: int) -> bool:
        """As ``LimitStore.take``."""
        taken = self._taken.get(key, 0)
        if taken >= ceiling:
            return False
        mark = _mark(key)
        if taken + self._taken_elsewhere(mark) >= ceiling:
            return False
        self._taken[key] = taken + 1
        way = self._ways.get(key)
        if way is not None:
            self._row[self._counts + way] = taken + 1
        else:
            self._enter(key, mark, taken + 1)
        return True

    def give_back(self, key: str) -> None:
        """As ``LimitStore.give_back``; who has nothing left is forgotten."""
        left = self._taken[key] - 1
        way = self._ways.get(key)
        if left:
            self._taken[key] = left
            if way is not None:
                self._row[self._counts + way] = left
            return
        del self._taken[key]
        if way is not None:
            del self._ways[key]
            self._row[self._keys + way] = 0  # first: the count is nobody's then
            self._row[self._counts + way] = 0
            self._is_full = False

    def counts(self) -> dict[str, int]:
        """Places taken in this worker, by key."""
        return dict(self._taken)

    def _taken_elsewhere(self, mark: int) -> int:
        """What other workers have taken of the key with this hash."""
        first = mark % self._buckets * WAYS
        begin = self._keys + first
        end = begin + WAYS
        taken = 0
        for row in self._others:
            marks = row[begin:end].tolist()
            if mark in marks:
                way = marks.index(mark)
                count = row[self._counts + first + way]
                if row[begin + way] == mark:  # still: the place may have changed hands
                    taken += count
        return taken

    def _enter(self, key: str, mark: int, count: int) -> None:
        """Put a key into the table, if its bucket has room."""
        first = mark % self._buckets * WAYS
        begin = self._keys + first
        marks = self._row[begin : begin + WAYS].tolist()
        if 0 in marks:
            way = first + marks.index(0)
            self._ways[key] = way
            self._row[self._counts + way] = count
            self._row[self._keys + way] = mark  # last: now the count is this key's
        elif not self._is_full:
            self._is_full = True
            self._tell(LimitTableFull(len(self._ways)))

    def _tell(self, event: Event) -> None:
        if self.observer is not None:
            self.observer(event)


def _mark(key: str) -> int:
    """A key as the table has it; 0 is nobody."""
    return hash(key) or 1


# --- what a policy holds ----------------------------------------------------------------------


class Ceiling(NamedTuple):
    """There are ``places`` for ``key``; ``limit`` is what the log calls this."""

    limit: str
    key: str
    places: int


class CeilingMet(RequestDenied):
    """All places of ``ceiling`` are taken: X'02', and the client is not told why."""

    def __init__(self, ceiling: Ceiling) -> None:
        super().__init__(f"limit reached: {ceiling.limit} {ceiling.places}")
        self.ceiling = ceiling


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How many sessions at a time a policy lets each user have, and where they are counted."""

    per_user: int | None = None
    """Of each user, or of each host where nobody is named; None: any number."""

    store: LimitStore = field(default_factory=LocalStore, compare=False, repr=False)
    """Live state, the process's: handed on from one policy to the next."""

    def counted_in(self, store: LimitStore) -> Self:
        """These limits, with their counts in another store."""
        return replace(self, store=store)

    def take(self, ceilings: Iterable[Ceiling]) -> tuple[str, ...]:
        """Take a place of each, or of none; returns their keys, for ``give_back``.

        Raises:
            CeilingMet: of one there is none left.
        """
        taken: list[str] = []
        for ceiling in ceilings:
            if not self.store.take(ceiling.key, ceiling.places):
                self.give_back(taken)
                raise CeilingMet(ceiling)
            taken.append(ceiling.key)
        return tuple(taken)

    def give_back(self, keys: Iterable[str]) -> None:
        """Give back one place of each of ``keys``."""
        for key in keys:
            self.store.give_back(key)
