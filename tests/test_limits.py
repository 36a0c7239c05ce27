"""Stores of counts: within a process, and over the rows of several."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geosocks.events import Event, LimitTableFull
from geosocks.limits import (
    WAYS,
    Ceiling,
    CeilingMet,
    LimitCells,
    Limits,
    LimitStore,
    LocalStore,
    SlabStore,
)
from geosocks.shared import Layout, Slab
from tests.support.forks import in_children


def slab_of(workers: int, buckets: int = 16) -> tuple[Slab, LimitCells]:
    """A slab with a table for each of some workers, and something before it."""
    layout = Layout()
    layout.cell("somebody else's")
    cells = LimitCells.laid_out(layout, buckets)
    return layout.slab(workers), cells


def slab_stores(workers: int, buckets: int = 16) -> list[SlabStore]:
    """The stores of some workers, all in this process."""
    slab, cells = slab_of(workers, buckets)
    return [SlabStore(slab, cells, slot) for slot in range(workers)]


MAKERS = [
    pytest.param(LocalStore, id="local"),
    pytest.param(lambda: slab_stores(1)[0], id="slab-of-one"),
    pytest.param(lambda: slab_stores(3)[1], id="slab-of-three"),
]


@pytest.mark.parametrize("make", MAKERS)
def test_takes_up_to_the_ceiling_and_what_is_given_back_can_be_taken(
    make: Callable[[], LimitStore],
) -> None:
    store = make()
    assert [store.take("alice", 2) for _ in range(3)] == [True, True, False]
    assert store.take("bob", 1)
    store.give_back("alice")
    assert [store.take("alice", 2) for _ in range(2)] == [True, False]
    # A ceiling is of the asking, not of the store.
    assert [store.take("alice", 3), store.take("alice", 3)] == [True, False]
    assert not store.take("alice", 1)


@pytest.mark.parametrize("make", MAKERS)
def test_no_more_is_given_back_than_was_taken(make: Callable[[], LimitStore]) -> None:
    store = make()
    with pytest.raises(KeyError):
        store.give_back("alice")
    assert store.take("alice", 1)
    store.give_back("alice")
    with pytest.raises(KeyError):
        store.give_back("alice")
    assert store.take("alice", 1)
    assert not store.take("alice", 1)


def test_whoever_has_nothing_left_leaves_no_trace() -> None:
    slab, cells = slab_of(1)
    store, local = SlabStore(slab, cells, 0), LocalStore()
    for number in range(1000):
        for each in (store, local):
            assert each.take(f"user {number}", 1)
            each.give_back(f"user {number}")
    assert store.counts() == local.counts() == {}
    assert not any(slab.row(0))


# --- over workers -----------------------------------------------------------------------------


def test_a_ceiling_is_one_for_all_workers() -> None:
    one, two, three = slab_stores(3)
    assert one.take("alice", 3)
    assert two.take("alice", 3)
    assert three.take("alice", 3)
    assert not any(store.take("alice", 3) for store in (one, two, three))
    two.give_back("alice")
    assert one.take("alice", 3)
    assert not two.take("alice", 3)
    assert one.counts() == {"alice": 2}
    assert all(store.take("bob", 3) for store in (one, two, three))


def test_a_dead_workers_places_are_free_once_it_is_forgotten() -> None:
    slab, cells = slab_of(2)
    one, two = (SlabStore(slab, cells, slot) for slot in range(2))
    slab.row(1)[0] = 7  # what somebody else counts there: no gauge
    assert one.take("alice", 2)
    assert two.take("alice", 2)
    assert not one.take("alice", 2)
    slab.forget(1)
    assert slab.row(1)[0] == 7
    assert one.take("alice", 2)
    heir = SlabStore(slab, cells, 1)
    assert not heir.take("alice", 2)
    one.give_back("alice")
    assert heir.take("alice", 2)


def test_a_full_bucket_falls_back_to_the_workers_own_count_and_says_so_once() -> None:
    slab, cells = slab_of(2, buckets=1)
    told: list[Event] = []
    full, other = SlabStore(slab, cells, 0, told.append), SlabStore(slab, cells, 1)
    for number in range(WAYS):
        assert full.take(f"user {number}", 1)
    assert not told
    for key in ("alice", "bob"):
        assert [full.take(key, 2) for _ in range(3)] == [True, True, False]
        assert other.take(key, 2)  # it cannot know
    assert told == [LimitTableFull(WAYS)]
    # Those in the table are counted together still.
    assert not other.take("user 3", 1)
    # There is room again, and the next place is seen by all.
    full.give_back("user 3")
    full.give_back("alice")
    assert full.take("alice", 5)
    assert [other.take("alice", 4) for _ in range(2)] == [True, False]
    for key in ("alice", "alice", "bob", "bob"):
        full.give_back(key)
    assert full.counts() == {f"user {number}": 1 for number in range(WAYS) if number != 3}


def test_a_full_bucket_without_an_observer_is_no_trouble() -> None:
    (store,) = slab_stores(1, buckets=1)
    assert all(store.take(f"user {number}", 1) for number in range(WAYS + 3))


KEYS = [f"user {number}" for number in range(12)]
STEP = st.tuples(st.integers(0, 2), st.sampled_from(KEYS), st.integers(0, 5))


@settings(max_examples=300, deadline=None)
@given(steps=st.lists(STEP, max_size=120), buckets=st.sampled_from([1, 2, 64]))
def test_whatever_is_taken_and_given_back_the_counts_are_right(
    steps: list[tuple[int, str, int]], buckets: int
) -> None:
    """Ceiling 0 stands for giving back.  With room for all, the ceiling holds to the place."""
    stores = slab_stores(3, buckets)
    model: list[dict[str, int]] = [{} for _ in stores]
    for worker, key, ceiling in steps:
        mine = model[worker].get(key, 0)
        if ceiling == 0:
            if mine:
                stores[worker].give_back(key)
                model[worker][key] = mine - 1
            continue
        everybody = sum(counts.get(key, 0) for counts in model)
        taken = stores[worker].take(key, ceiling)
        if everybody < ceiling:
            assert taken  # nobody is refused wrongly, full or not
        if mine >= ceiling or (buckets == 64 and everybody >= ceiling):
            assert not taken
        if taken:
            model[worker][key] = mine + 1
    for store, counts in zip(stores, model, strict=True):
        assert store.counts() == {key: count for key, count in counts.items() if count}
        for key, count in store.counts().items():
            for _ in range(count):
                store.give_back(key)
    assert not any(value for store in stores for value in store._row)


def test_processes_together_pass_a_ceiling_by_no_more_than_their_number() -> None:
    slab, cells = slab_of(4)
    layout = Layout()
    worst, ready = layout.cell("most seen"), layout.cell("ready")
    seen = layout.slab(4)
    ceiling = 10

    def counted() -> list[int]:
        span = slice(cells.counts.start, cells.counts.stop)
        return [sum(slab.row(slot)[span]) for slot in range(4)]

    def work(slot: int) -> None:
        store = SlabStore(slab, cells, slot)
        held = 0
        seen.row(slot)[ready] = 1
        while seen.total(ready) < 4:
            pass
        for turn in range(8000):
            if store.take("alice", ceiling):
                held += 1
                way = slab.row(slot)[cells.counts.start : cells.counts.stop].tolist()
                assert max(way) == held
                # Rows are read one after the other: only what is read twice was so at one time.
                everybody = counted()
                if everybody == counted():
                    seen.row(slot)[worst] = max(seen.row(slot)[worst], sum(everybody))
            elif held:
                store.give_back("alice")
                held -= 1
            if turn % 7 == 0 and held:
                store.give_back("alice")
                held -= 1
        for _ in range(held):
            store.give_back("alice")

    assert in_children(*(lambda slot=slot: work(slot) for slot in range(4))) == [0] * 4
    assert ceiling <= max(seen.column(worst)) <= ceiling + 3
    assert not any(slab.row(slot)[cell] for slot in range(4) for cell in cells.counts)


# --- a policy's limits ------------------------------------------------------------------------


def test_places_of_several_ceilings_are_taken_all_or_none() -> None:
    limits = Limits(per_user=3)
    wide, narrow = Ceiling("wide", "alice", 3), Ceiling("narrow", "alice by rule", 1)
    held = limits.take([wide, narrow])
    assert held == ("alice", "alice by rule")
    with pytest.raises(CeilingMet, match="limit reached: narrow 1") as caught:
        limits.take([wide, narrow])
    assert (caught.value.rep, caught.value.ceiling) == (2, narrow)
    assert limits.store.counts() == {"alice": 1, "alice by rule": 1}  # type: ignore[attr-defined]
    limits.give_back(held)
    assert limits.take([wide, narrow])
    assert limits.take([]) == ()
    limits.give_back(())
