"""Fast ways are told of many octets at a time, and nobody's octets lie there for long."""

import gc
import hashlib
import socket
from collections.abc import Iterator

import gevent
import pytest

from geosocks.relay.coalescing import (
    GRAIN,
    MOST_GRAINS,
    MOST_GRAINS_ALONE,
    WINDOW,
    Coalescer,
    Flow,
)
from geosocks.relay.narrowing import Trial
from geosocks.relay.pipes import CAN_SPLICE
from geosocks.relay.pump import End, Pump
from geosocks.relay.way import Meter
from geosocks.stream import Connection
from tests.support.net import connection_pair, recv_all, recv_exactly, reset, wait_for

pytestmark = pytest.mark.usefixtures("no_leaks")

MUCH = 64 * 1024 * 1024
LONG = WINDOW * 1.01


class Clock:
    """Stands still until told otherwise."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time


def low_water(near: Connection) -> int:
    """How many octets the kernel waits for."""
    return near.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)


class Told(Trial):
    """A trial that only says what it was told: a speed, or 0 when it was broken off."""

    def __init__(self) -> None:
        self.heard: list[float] = []

    def note(self, speed: float) -> None:
        self.heard.append(speed)

    def break_off(self) -> None:
        self.heard.append(0)


class Pair:
    """A connection whose flow the test counts by hand."""

    def __init__(self, coalescer: Coalescer, clock: Clock) -> None:
        self.clock = clock
        self.far, self.near = connection_pair()
        self.late = 0
        self.alone = 0
        self.trial: Told | None = None
        self.flow = Flow(coalescer, self.near.sock, self._be_late, self._be_alone)

    def _be_late(self) -> None:
        self.late += 1

    def _be_alone(self) -> Trial | None:
        self.alone += 1
        return self.trial

    def move(self, octets: int, seconds: float = LONG) -> None:
        self.clock.time += seconds
        self.flow.count(octets)

    def close(self) -> None:
        self.far.close()
        self.near.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def coalescer(clock: Clock) -> Coalescer:
    return Coalescer(most=2, now=clock.now)


@pytest.fixture
def pairs(coalescer: Coalescer, clock: Clock) -> Iterator[list[Pair]]:
    pairs = [Pair(coalescer, clock) for _ in range(3)]
    yield pairs
    for pair in pairs:
        pair.close()
    wait_for(lambda: coalescer._clock is None)


def test_a_fast_way_waits_for_many_octets_until_it_falls_silent(pairs: list[Pair]) -> None:
    pair = pairs[0]
    pair.move(MUCH)
    assert low_water(pair.near) == MOST_GRAINS_ALONE * GRAIN
    wait_for(lambda: pair.late)
    assert low_water(pair.near) == 1
    assert pair.late == 1


def test_a_way_waits_for_what_it_moves_in_half_a_tick(pairs: list[Pair]) -> None:
    pair = pairs[0]
    pair.move(4_000_000)  # 100 MB/s
    assert low_water(pair.near) == GRAIN
    pair.move(6_500_000)
    assert low_water(pair.near) == 2 * GRAIN


def test_each_of_several_waits_for_less_than_one_alone(pairs: list[Pair]) -> None:
    first, second = pairs[:2]
    first.move(MUCH)
    assert first.flow.is_alone()
    second.move(MUCH)
    first.move(MUCH)
    assert not first.flow.is_alone()
    assert [low_water(pair.near) for pair in (first, second)] == [MOST_GRAINS * GRAIN] * 2
    wait_for(lambda: second.late)
    first.move(MUCH)
    assert first.flow.is_alone()
    assert not second.flow.is_alone()
    assert low_water(first.near) == MOST_GRAINS_ALONE * GRAIN


@pytest.mark.parametrize(("octets", "seconds"), [(MUCH, WINDOW / 2), (MUCH, 10), (50_000, LONG)])
def test_others_do_not(pairs: list[Pair], octets: int, seconds: float) -> None:
    pair = pairs[0]
    pair.move(octets, seconds)
    assert low_water(pair.near) == 1
    assert pair.late == 0


def test_a_way_that_was_late_soon_has_to_prove_itself_for_longer(pairs: list[Pair]) -> None:
    pair = pairs[0]
    pair.move(MUCH)
    for times in (2, 4, 8, 16, 16):
        before = pair.late
        wait_for(lambda before=before: pair.late > before)
        pair.move(MUCH * 16, LONG * times / 2)
        assert low_water(pair.near) == 1
        pair.move(0, LONG * times / 2)
        assert low_water(pair.near) > 1


def test_a_way_that_was_fast_for_long_has_not(pairs: list[Pair]) -> None:
    pair = pairs[0]
    pair.move(MUCH)
    pair.clock.time += LONG
    wait_for(lambda: pair.late)
    pair.move(MUCH, LONG / 2)
    assert low_water(pair.near) == 1
    pair.move(0, LONG / 2)
    assert low_water(pair.near) == MOST_GRAINS_ALONE * GRAIN


def test_as_long_as_it_moves_it_is_left_alone(pairs: list[Pair]) -> None:
    pair = pairs[0]
    pair.move(MUCH)
    for _ in range(10):
        pair.move(MUCH, 0)
        gevent.sleep(0.001)
    assert pair.late == 0


def test_only_so_many_are_fast_at_a_time(pairs: list[Pair]) -> None:
    for pair in pairs:
        pair.move(MUCH)
    assert [low_water(pair.near) == 1 for pair in pairs] == [False, False, True]
    wait_for(lambda: pairs[0].late)
    pairs[2].move(MUCH)
    assert low_water(pairs[2].near) > 1


def test_none_is_fast_once_closed(pairs: list[Pair], coalescer: Coalescer) -> None:
    pairs[0].move(MUCH)
    coalescer.close()
    pairs[1].move(MUCH)
    assert low_water(pairs[1].near) == 1
    wait_for(lambda: pairs[0].late)
    assert low_water(pairs[0].near) == 1


def test_a_socket_may_be_closed_meanwhile(pairs: list[Pair]) -> None:
    pairs[0].move(MUCH)
    pairs[0].close()
    wait_for(lambda: pairs[0].late)


class Fast:
    """A session of which the way up is fast."""

    def __init__(self, clock: Clock) -> None:
        self.pump = Pump(splice=True)
        self.pump.coalescer = Coalescer(now=clock.now)
        self.client, near_client = connection_pair()
        self.target, near_target = connection_pair()
        self.near = (near_client, near_target)
        self.relay = gevent.spawn(self.pump.relay, *self.near, Meter())
        self.sent = hashlib.sha256()
        self.received = hashlib.sha256()
        self.move(8_000_000)
        clock.time += LONG
        self.move(8_000_000)

    def move(self, octets: int) -> None:
        data = hashlib.shake_128(b"%d" % octets).digest(octets)
        sender = gevent.spawn(self.client.sendall, data)
        self.sent.update(data)
        self.received.update(recv_exactly(self.target, octets))
        sender.get()

    def close(self) -> None:
        self.relay.kill()
        for sock in (self.client, self.target, *self.near):
            sock.close()
        self.pump.close()
        wait_for(lambda: self.pump.coalescer._clock is None)


@pytest.fixture
def fast(clock: Clock) -> Iterator[Fast]:
    if not CAN_SPLICE:
        pytest.skip("no splice(2) here")
    fast = Fast(clock)
    yield fast
    fast.close()


def test_what_is_less_than_waited_for_comes_all_the_same(fast: Fast) -> None:
    for octets in (5, 100_000, 3_000_000, 1):
        with gevent.Timeout(1.0):
            fast.move(octets)
    assert fast.received.digest() == fast.sent.digest()
    wait_for(lambda: low_water(fast.near[0]) == 1)


def test_a_way_that_is_often_late_stays_whole(fast: Fast, clock: Clock) -> None:
    for _ in range(20):
        clock.time += LONG
        fast.move(4_000_001)
    assert fast.received.digest() == fast.sent.digest()


def test_the_end_of_a_fast_way_is_passed_on_at_once_with_all_before_it(fast: Fast) -> None:
    fast.client.sendall(b"the last words")
    fast.client.shutdown(socket.SHUT_WR)
    assert recv_all(fast.target) == b"the last words"
    fast.target.close()
    assert fast.relay.get() == (End.CLOSED, None)


def test_an_ended_session_leaves_nothing_for_the_collector(fast: Fast) -> None:
    gc.collect()
    gc.disable()
    try:
        assert any(type(item) is Flow for item in gc.get_objects())
        fast.client.close()
        fast.target.close()
        fast.relay.get()
        wait_for(lambda: fast.pump.coalescer._clock is None)
        wait_for(lambda: not any(type(item) is Flow for item in gc.get_objects()))
    finally:
        gc.enable()


def test_a_reset_of_a_fast_way_is_noticed(fast: Fast) -> None:
    reset(fast.client)
    end, _ = fast.relay.get(timeout=1.0)
    assert end is End.RESET_BY_CLIENT


def test_a_fast_way_to_a_reader_that_stops_goes_on_when_that_does(fast: Fast) -> None:
    data = hashlib.shake_128(b"slow").digest(20_000_000)
    sender = gevent.spawn(fast.client.sendall, data)
    wait_for(lambda: low_water(fast.near[0]) == 1)
    assert recv_exactly(fast.target, len(data)) == data
    sender.get()


def test_a_way_that_stays_the_only_fast_one_is_told_once(pairs: list[Pair]) -> None:
    pair = pairs[0]
    pair.move(MUCH)
    assert pair.alone == 0, "others may begin in the same instant"
    for _ in range(3):
        pair.move(MUCH)
    assert pair.alone == 1


def test_one_of_several_is_told_when_the_others_have_fallen_silent(pairs: list[Pair]) -> None:
    for _ in range(3):
        for pair in pairs[:2]:
            pair.move(MUCH)
    assert [pair.alone for pair in pairs] == [0, 0, 0]
    wait_for(lambda: pairs[1].late)
    pairs[0].move(MUCH)
    pairs[0].move(MUCH)
    assert [pair.alone for pair in pairs] == [1, 0, 0]


def test_the_trial_of_the_only_one_is_told_of_its_speed(pairs: list[Pair]) -> None:
    pair = pairs[0]
    told = pair.trial = Told()
    for _ in range(2):
        pair.move(MUCH)
    assert told.heard == [], "that is when it is found to be alone"
    pair.move(MUCH)
    pair.move(MUCH, LONG / 2)
    pair.move(MUCH, LONG / 2)
    assert told.heard == [pytest.approx(MUCH / LONG), pytest.approx(2 * MUCH / LONG)]


def test_the_trial_is_broken_off_while_there_are_others(pairs: list[Pair]) -> None:
    first, second = pairs[:2]
    told = first.trial = Told()
    for _ in range(3):
        first.move(MUCH)
    second.move(MUCH)
    first.move(MUCH)
    assert told.heard == [pytest.approx(MUCH / LONG), 0]
    wait_for(lambda: first.late and second.late)
    for _ in range(3):
        first.move(MUCH)
    assert told.heard[-1] == pytest.approx(MUCH / LONG)


def test_the_trial_is_broken_off_when_the_way_falls_silent(pairs: list[Pair]) -> None:
    pair = pairs[0]
    told = pair.trial = Told()
    for _ in range(2):
        pair.move(MUCH)
    wait_for(lambda: pair.late)
    assert told.heard == [0]
    pair.move(1000)
    assert told.heard == [0, 0], "it is slow now"
