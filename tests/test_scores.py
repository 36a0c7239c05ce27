"""Scores that fade."""

from hypothesis import given
from hypothesis import strategies as st

from geosocks.scores import FREE, LONGEST_DELAY, SLOWEST, Scores, delay_after


def test_failures_add_up_and_fade() -> None:
    scores = Scores(fade=30.0, ceiling=20)
    assert not scores
    assert [scores.add("a", 0.0) for _ in range(3)] == [1, 2, 3]
    assert scores
    assert scores.of("a", 30.0) == 2
    assert scores.add("a", 45.0) == 2.5
    assert scores.of("b", 45.0) == 0
    assert scores.of("a", 45.0 + 74.9) > 0
    assert scores.of("a", 45.0 + 75.0) == 0
    assert not scores


def test_a_score_has_a_ceiling_so_it_is_forgotten_in_a_known_time() -> None:
    scores = Scores(fade=10.0, ceiling=5)
    assert [scores.add("a", 0.0) for _ in range(100)][-1] == 5
    assert scores.of("a", 50.0) == 0


def test_a_full_table_forgets_the_one_that_failed_longest_ago() -> None:
    scores = Scores(fade=1e9, ceiling=5, most=3)
    for key in ("a", "b", "c", "a", "d"):
        scores.add(key, 0.0)
    assert [scores.of(key, 0.0) for key in "abcd"] == [2, 0, 1, 1]
    assert len(scores) == 3


def test_a_sweep_forgets_who_has_none_any_more() -> None:
    scores = Scores(fade=10.0, ceiling=5)
    for number in range(100):
        scores.add(number, float(number))
    scores.sweep(59.0)
    assert len(scores) == 50
    scores.sweep(1000.0)
    assert not scores


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0, 100)), max_size=60))
def test_no_score_is_below_zero_or_above_the_ceiling_and_the_table_is_bounded(
    steps: list[tuple[str, float]],
) -> None:
    scores, now = Scores(fade=7.0, ceiling=4, most=4), 0.0
    for key, later in steps:
        now += later
        assert 1 <= scores.add(key, now) <= 4
        assert len(scores) <= 4
        assert 0 <= scores.of("a", now) <= 4


def test_ten_failures_are_free_then_the_delay_doubles_up_to_two_seconds() -> None:
    assert FREE == 10
    assert [delay_after(score) for score in (0, 1, 9.5, 10)] == [0] * 4
    assert [delay_after(FREE + over) for over in (0.1, 1, 2, 3, 4, 5, 6, 13)] == [
        *(0.125, 0.125, 0.25, 0.5, 1, 2, 2, 2),
    ]
    assert delay_after(SLOWEST) == LONGEST_DELAY == 2
