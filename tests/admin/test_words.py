"""Numbers, times and plots as a person reads them."""

import re

import pytest

from geosocks.admin.plot import HEIGHT, WIDTH, Series, ceiling, plot
from geosocks.admin.words import REASONS, ago, duration, number, octets, rate, roughly
from geosocks.metrics import cells as c


@pytest.mark.parametrize(
    ("value", "written"),
    [
        *((0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (9940, "9.9 kB"), (9960, "10 kB")),
        *((999_499, "999 kB"), (999_500, "1.0 MB"), (1_234_567, "1.2 MB"), (5e13, "50 TB")),
        *((3.2e18, "3200 PB"), (0.4, "0 B")),
    ],
)
def test_octets(value: float, written: str) -> None:
    assert octets(value) == written
    assert rate(value) == f"{written}/s"


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        *((-5, "0 s"), (0.9, "0 s"), (59, "59 s"), (60, "1 min"), (61, "1 min 1 s")),
        *((3600, "1 h"), (3661, "1 h 1 min"), (3605, "1 h"), (90_000, "1 d 1 h")),
    ],
)
def test_durations(seconds: float, written: str) -> None:
    assert duration(seconds) == written


def test_times_and_numbers() -> None:
    assert [ago(-3), ago(1.9), ago(59), ago(61), ago(7300), ago(200_000)] == [
        "just now",
        "just now",
        "59 s ago",
        "1 min ago",
        "2 h ago",
        "2 d ago",
    ]
    assert roughly(3599) == "59 min"
    assert [number(0), number(0.5), number(1234567), number(2.0)] == ["0", "0.5", "1,234,567", "2"]


def test_every_reason_has_words() -> None:
    assert set(c.REASONS) == REASONS.keys()
    assert len(set(REASONS.values())) == len(REASONS)


# --- plots ------------------------------------------------------------------------------------


def drawn(*points: tuple[int, float], first: int = 0, last: int = 100, least: float = 1) -> str:
    return plot(
        "Title & more",
        "in <words>",
        (Series("line", "one", points),),
        first=first,
        last=last,
        least=least,
        when=("then", "a", "b", "now"),
        written=str,
    )


def lines(svg: str) -> list[list[tuple[float, float]]]:
    return [
        [(float(x), float(y)) for x, y in (place.split(",") for place in points.split())]
        for points in re.findall(r'<polyline [^>]*points="([^"]*)"', svg)
    ]


@pytest.mark.parametrize(
    ("value", "top"), [(0, 1), (1, 1), (1.1, 2), (3, 5), (6, 10), (11, 20), (1e6 + 1, 2e6)]
)
def test_the_top_is_a_round_number(value: float, top: float) -> None:
    assert ceiling(value) == top
    assert ceiling(0, 1000) == 1000
    assert ceiling(1001, 1000) == 2000


def test_a_line_goes_from_the_left_to_the_right_and_its_highest_to_the_top() -> None:
    assert lines(drawn((0, 0.0), (2, 5.0), (5, 10.0), (8, 0.0), (10, 10.0), last=10)) == [
        [(0, HEIGHT), (144, 80), (360, 0), (576, HEIGHT), (WIDTH, 0)]
    ]


def test_a_gap_stays_one_and_what_is_outside_is_left_out() -> None:
    pieces = lines(drawn((-5, 1.0), (10, 1.0), (11, 1.0), (50, 1.0), (51, 1.0), (101, 9.0)))
    assert [len(piece) for piece in pieces] == [2, 2]
    assert all(0 <= x <= WIDTH for piece in pieces for x, _ in piece)


def test_a_single_moment_is_seen() -> None:
    ((one, other),) = lines(drawn((50, 1.0)))
    assert one[0] < other[0]


def test_nothing_says_so_and_words_are_escaped() -> None:
    svg = drawn()
    assert "Nothing yet" in svg
    assert "Title &amp; more" in svg
    assert "in &lt;words&gt;" in svg
    assert "<words>" not in svg
