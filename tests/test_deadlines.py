"""Time limits: cut on time, cheap while they hold, gone without a trace."""

import time
from concurrent.futures import ThreadPoolExecutor

import gevent
import gevent.event
import pytest
from gevent.hub import get_hub

from geosocks.deadlines import IDLE_LENGTHS, ROOM, Deadline, _Running
from geosocks.hubs import of_hub

pytestmark = pytest.mark.usefixtures("no_leaks")


class Late(Exception):
    """What the limits of these tests raise."""


def forever() -> None:
    gevent.event.Event().wait()


@pytest.mark.parametrize("error", [Late, Late("mine")])
def test_a_block_that_lasts_too_long_is_cut_on_time(error: Late) -> None:
    began = time.monotonic()
    with pytest.raises(Late) as caught, Deadline(0.1, error):
        forever()
    assert 0.1 <= time.monotonic() - began < 0.5
    assert error is Late or caught.value is error


def test_a_block_that_ends_in_time_is_left_alone() -> None:
    with Deadline(0.02, Late):
        gevent.sleep(0)
    gevent.sleep(0.05)


def test_each_of_many_has_its_own_time() -> None:
    cut: dict[int, float] = {}

    def wait(number: int) -> None:
        gevent.sleep(number * 0.02)
        began = time.monotonic()
        try:
            with Deadline(0.1, Late):
                forever()
        except Late:
            cut[number] = time.monotonic() - began

    gevent.joinall([gevent.spawn(wait, number) for number in range(10)], raise_error=True)
    assert len(cut) == 10
    assert all(0.1 <= seconds < 0.25 for seconds in cut.values())


def test_limits_that_hold_do_not_delay_the_one_that_does_not() -> None:
    def short() -> None:
        for _ in range(50):
            with Deadline(0.1, Late):
                gevent.sleep(0.005)

    others = [gevent.spawn(short) for _ in range(5)]
    began = time.monotonic()
    with pytest.raises(Late), Deadline(0.1, Late):
        forever()
    assert 0.1 <= time.monotonic() - began < 0.24
    gevent.joinall(others, raise_error=True)


def test_the_inner_of_two_is_cut_first_and_the_outer_still_holds() -> None:
    def wait_twice() -> None:
        with pytest.raises(Late, match="inner"), Deadline(0.05, Late("inner")):
            forever()
        forever()

    with pytest.raises(Late, match="outer"), Deadline(0.1, Late("outer")):
        wait_twice()


def test_one_that_was_cut_may_begin_another() -> None:
    began = time.monotonic()
    for _ in range(3):
        with pytest.raises(Late), Deadline(0.05, Late):
            forever()
    assert 0.15 <= time.monotonic() - began < 0.6


def test_another_error_goes_through_and_ends_the_limit() -> None:
    with pytest.raises(KeyError), Deadline(0.02, Late):
        raise KeyError
    gevent.sleep(0.05)


def test_a_limit_of_no_time_is_cut_at_the_first_wait() -> None:
    with pytest.raises(Late), Deadline(0.0, Late):
        forever()


def test_whoever_waits_is_cut_and_not_whoever_runs_meanwhile() -> None:
    bystander = gevent.spawn(gevent.sleep, 0.06)
    with pytest.raises(Late), Deadline(0.02, Late):
        forever()
    bystander.get()


def test_no_loop_is_kept_alive_by_a_limit_that_has_ended() -> None:
    """In a thread of its own, whose loop runs nothing else."""

    def seconds_to_end() -> float:
        with Deadline(30.0, Late):
            gevent.sleep(0)
        began = time.monotonic()
        get_hub().join(timeout=5)
        seconds = time.monotonic() - began
        get_hub().destroy(destroy_loop=True)
        return seconds

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(seconds_to_end).result() < 1


def test_a_loop_is_kept_alive_by_one_that_runs() -> None:
    def wait() -> None:
        with pytest.raises(Late), Deadline(0.05, Late):
            get_hub().switch()

    waiting = gevent.spawn(wait)
    waiting.join()  # a loop with nothing to wait for would raise LoopExit
    waiting.get()


def test_lengths_that_nobody_uses_any_more_are_forgotten() -> None:
    for number in range(IDLE_LENGTHS * 3):
        with Deadline(10.0 + number / 8, Late):
            gevent.sleep(0)
    assert len(of_hub().limits) <= IDLE_LENGTHS + 1


def test_limits_that_hold_share_a_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[float] = []
    timer_of = _Running._arm

    def arm(self: _Running, seconds: float) -> None:
        made.append(seconds)
        timer_of(self, seconds)

    monkeypatch.setattr(_Running, "_arm", arm)

    def hold() -> None:
        for _ in range(100):
            with Deadline(7.25, Late):
                gevent.sleep(0)

    gevent.joinall([gevent.spawn(hold) for _ in range(10)], raise_error=True)
    assert made == [7.25]


def test_one_that_is_used_again_has_its_whole_time_each_time() -> None:
    again, other = Deadline(0.2, Late), Deadline(0.2, Late)

    def hold() -> float:
        began = time.monotonic()
        with pytest.raises(Late), other:
            forever()
        return time.monotonic() - began

    waiting = gevent.spawn(hold)
    gevent.sleep(0.05)
    for _ in range(3):
        with again:
            gevent.sleep(0.03)
    began = time.monotonic()
    with pytest.raises(Late), again:
        forever()
    assert 0.2 <= time.monotonic() - began < 0.5
    assert 0.2 <= waiting.get() < 0.33  # though one that began earlier has begun anew since


def test_limits_that_have_ended_do_not_pile_up() -> None:
    def hold() -> None:
        with Deadline(9.0, Late):
            forever()

    holding = [gevent.spawn(hold) for _ in range(100)]
    gevent.sleep(0)
    for _ in range(1000):
        with Deadline(9.0, Late):
            pass
    running = of_hub().limits[9.0]
    assert running.live == 100
    assert len(running._listed) <= 2 * 100 + ROOM
    gevent.killall(holding)
    assert (running.live, running._listed) == (0, [])
