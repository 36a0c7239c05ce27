"""The last hour, kept in the rows."""

from dataclasses import replace

import pytest

from geosocks.metrics import cells as c
from geosocks.metrics.cells import EVERY, MOMENTS, Cells
from geosocks.metrics.history import History, Moment
from geosocks.shared import Layout

NOON = 1_800_000_000.0


@pytest.fixture
def history() -> History:
    layout = Layout()
    cells = Cells.take(layout)
    return History(cells, layout.slab(2))


def stand(history: History, slot: int, active: int, up: int) -> None:
    row = history.slab.row(slot)
    row[history.cells.one(c.ACTIVE)] = active
    row[history.cells.one(c.OCTETS, "up")] = up
    row[history.cells.one(c.SESSION_ENDS, "closed")] = up // 10
    row[history.cells.one(c.REFUSED, "timeout")] = 1
    for command in ("connect", "bind"):
        row[history.cells.one(c.SESSIONS, command, "not_allowed")] = 1


REASONS_SEEN = tuple({"timeout": 2, "not_allowed": 4}.get(reason, 0) for reason in c.REASONS)


def number(now: float) -> int:
    return int(now / EVERY)


def test_nothing_is_known_at_first(history: History) -> None:
    assert history.moments(NOON) == []


def test_moments_of_all_workers_are_one(history: History) -> None:
    for slot, active in enumerate((3, 4)):
        stand(history, slot, active, 100)
        history.record(slot, NOON)
    assert history.moments(NOON) == [
        Moment(number(NOON), active=7, ended=20, up=200, down=0, reasons=REASONS_SEEN)
    ]
    assert history.moments(NOON)[0].refused == 6
    assert replace(history.now(), number=number(NOON)) == history.moments(NOON)[0]


def test_it_keeps_an_hour_and_no_more(history: History) -> None:
    for moment in range(MOMENTS + 10):
        stand(history, 0, moment, moment)
        history.record(0, NOON + moment * EVERY)
    last = NOON + (MOMENTS + 9) * EVERY
    kept = history.moments(last)
    assert len(kept) == MOMENTS
    assert [kept[0].active, kept[-1].active] == [10, MOMENTS + 9]
    assert len(history.moments(last + 3000)) == 60
    assert history.moments(last + 3600) == []


def test_a_dead_worker_has_no_sessions_but_what_it_counted_stays_counted(
    history: History,
) -> None:
    stand(history, 0, 1, 100)
    stand(history, 1, 5, 500)
    for slot in range(2):
        history.record(slot, NOON)
    history.slab.forget(1)
    history.record(0, NOON + EVERY)
    history.record(0, NOON + 2 * EVERY)
    history.record(1, NOON + 2 * EVERY)  # another one in its place
    seen = [(moment.active, moment.up) for moment in history.moments(NOON + 2 * EVERY)]
    assert seen == [(6, 600), (1, 600), (1, 600)]


def test_a_clock_that_was_set_back_spoils_nothing(history: History) -> None:
    stand(history, 0, 1, 100)
    history.record(0, NOON + 600)
    history.record(0, NOON)
    assert [moment.number for moment in history.moments(NOON)] == [number(NOON)]


def test_a_gap_of_everybody_stays_a_gap(history: History) -> None:
    stand(history, 0, 1, 100)
    history.record(0, NOON)
    history.record(0, NOON + 100)
    assert [moment.number for moment in history.moments(NOON + 100)] == [
        number(NOON),
        number(NOON + 100),
    ]
