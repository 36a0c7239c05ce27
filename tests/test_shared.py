"""The slab: rows that outlive their writers, and are seen by every process."""

import pytest

from geosocks.shared import CELL, LINE, Layout, Slab
from tests.support.forks import in_children


def test_begins_with_zeros() -> None:
    slab = Slab(3, 5)
    assert [slab.total(cell) for cell in range(5)] == [0] * 5
    assert slab.row(2).tolist() == [0] * 5


def test_what_a_child_writes_is_seen_here_and_outlives_it() -> None:
    slab = Slab(2, 4)

    def work() -> None:
        slab.row(1)[3] = 42

    assert in_children(work) == [0]
    assert slab.row(1).tolist() == [0, 0, 0, 42]
    assert slab.row(0).tolist() == [0] * 4


def test_a_child_sees_what_is_written_here() -> None:
    slab = Slab(2, 1)
    slab.row(0)[0] = 7

    def work() -> None:
        assert slab.total(0) == 7

    assert in_children(work) == [0]


def test_two_processes_count_in_their_own_rows_and_lose_nothing() -> None:
    slab = Slab(2, 9)

    def count(slot: int) -> None:
        row, other = slab.row(slot), slab.row(1 - slot)
        row[1] = 1
        while not other[1]:
            pass  # both begin at once
        for _ in range(20_000):
            row[8] += 1
            row[0] += 2 + slot

    assert in_children(lambda: count(0), lambda: count(1)) == [0, 0]
    assert slab.column(8) == [20_000, 20_000]
    assert slab.total(8) == 40_000
    assert slab.column(0) == [40_000, 60_000]


def test_the_successor_of_a_dead_worker_goes_on_counting() -> None:
    slab = Slab(1, 1)

    def work() -> None:
        slab.row(0)[0] += 5

    assert in_children(work) == [0]
    assert in_children(work) == [0]
    assert slab.total(0) == 10


def test_forgetting_a_worker_clears_its_gauges_only_and_nobody_elses() -> None:
    layout = Layout()
    total = layout.cell("sessions_total")
    table = layout.block("table", 6, gauge=True)
    more = layout.cell("octets")
    active = layout.cell("sessions_active", gauge=True)
    slab = layout.slab(2)
    for slot in range(2):
        row = slab.row(slot)
        for cell in range(slab.cells):
            row[cell] = slot + 1
    slab.forget(0)
    mine, other = slab.row(0), slab.row(1)
    assert (mine[total], mine[more]) == (1, 1)
    assert [mine[cell] for cell in (*table, active)] == [0] * 7
    assert other.tolist() == [2] * slab.cells


def test_a_layout_deals_out_each_cell_once() -> None:
    layout = Layout()
    assert layout.cell("a") == 0
    assert layout.block("b", 3) == range(1, 4)
    assert layout.cell("c") == 4
    assert layout.size == 5
    assert layout.blocks == {"a": range(1), "b": range(1, 4), "c": range(4, 5)}
    assert layout.slab(2).cells == 5


def test_a_name_is_taken_once() -> None:
    layout = Layout()
    layout.cell("a")
    with pytest.raises(ValueError, match="a: these cells are taken"):
        layout.block("a", 2)


def test_nothing_is_dealt_out_once_there_is_a_slab() -> None:
    layout = Layout()
    layout.cell("a")
    layout.slab(1)
    with pytest.raises(ValueError, match="before it is made"):
        layout.cell("late")


@pytest.mark.parametrize(("rows", "cells"), [(0, 1), (1, 0), (-1, 1)])
def test_a_slab_of_nothing_is_refused(rows: int, cells: int) -> None:
    with pytest.raises(ValueError, match="at least one row and one cell"):
        Slab(rows, cells)


@pytest.mark.parametrize("slot", [-1, 2])
def test_no_row_but_those_there_are(slot: int) -> None:
    with pytest.raises(IndexError):
        Slab(2, 3).row(slot)


@pytest.mark.parametrize("cell", [-1, 3, LINE - 1])
def test_no_cell_but_those_there_are(cell: int) -> None:
    slab = Slab(2, 3)
    with pytest.raises(IndexError):
        slab.total(cell)
    with pytest.raises(IndexError):
        slab.row(0)[LINE - 1] = 1  # the padding is nobody's


def test_cells_hold_what_fits_an_int64() -> None:
    slab = Slab(2, 1)
    slab.row(0)[0] = 2**63 - 1
    slab.row(1)[0] = -(2**63)
    assert slab.total(0) == -1
    with pytest.raises(ValueError, match="invalid value"):
        slab.row(0)[0] = 2**63


def test_rows_share_no_cache_line() -> None:
    assert CELL * LINE == 64
    slab = Slab(3, LINE + 1)
    for slot in range(3):
        slab.row(slot)[LINE] = slot
    assert slab.column(LINE) == [0, 1, 2]
