"""Who is let in to begin a handshake: early drop, many of one source, sources that guess."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geosocks.entrance import (
    HANDSHAKES,
    MOST_HANDSHAKES,
    OF_SOURCE,
    PENALISED,
    Entrance,
    Gate,
    Handshake,
    refusal_after,
    source_of,
)
from geosocks.scores import FREE, SLOWEST
from geosocks.wire.socks5 import IPAddress

ALICE, BOB = ip_address("192.0.2.7"), ip_address("192.0.2.8")


class World:
    """A gate, with a clock and a chance that are numbers, and handshakes that are a list."""

    def __init__(self, entrance: Entrance | None = None, max_sessions: int = 1000) -> None:
        self.now = 0.0
        self.chance = 0.0
        self.clients: list[tuple[float, IPAddress]] = []
        self.looks = 0
        self.gate = Gate(max_sessions, self.all, clock=lambda: self.now, chance=lambda: self.chance)
        if entrance is not None:
            self.gate.adopt(entrance)

    def all(self) -> list[Handshake]:
        """All in a handshake."""
        self.looks += 1
        return [(*client, number) for number, client in enumerate(self.clients)]

    def comes(self, host: IPAddress) -> str | None:
        """What a new client meets; it stays if it is let in."""
        gate = self.gate
        why = None
        if gate.handshakes >= gate.watch or gate.alert:
            why = gate.refuses(host)
        if why is None:
            self.clients.append((self.now, host))
            gate.handshakes += 1
        return why

    def ends(self, host: IPAddress) -> None:
        """One handshake of a client's is over."""
        self.clients.remove(next(client for client in self.clients if client[1] == host))
        self.gate.handshakes -= 1


# --- thresholds -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entrance", "max_sessions", "expected"),
    [
        (Entrance(), 1000, (250, 500, 125)),
        (Entrance(), 5000, (1250, 2500, 625)),
        (Entrance(), 1_000_000, (10_000, MOST_HANDSHAKES, 5000)),
        (Entrance(), 1, (1, 2, 1)),
        (Entrance(start=10, full=20), 1000, (10, 20, 5)),
        (Entrance(start=10, full=20, per_source=15), 1000, (10, 20, 15)),
        (Entrance(per_source=7), 1000, (250, 500, 7)),
        (Entrance(start=900), 1000, (900, 900, 450)),
    ],
)
def test_thresholds_by_what_is_written_and_by_how_many_sessions_there_can_be(
    entrance: Entrance, max_sessions: int, expected: tuple[int, int, int]
) -> None:
    gate = World(entrance, max_sessions).gate
    assert (gate.start, gate.full, gate.per_source) == expected
    assert gate.watch == min(expected[0], expected[2])


# --- early drop -------------------------------------------------------------------------------


def test_from_start_on_a_part_is_turned_away_at_full_all() -> None:
    world = World(Entrance(start=100, rate=0.2, full=200, per_source=1000))
    for handshakes, chance, outcome in (
        (99, 0.0, None),
        (100, 0.19, HANDSHAKES),
        (100, 0.2, None),
        (150, 0.59, HANDSHAKES),
        (150, 0.61, None),
        (199, 0.99, HANDSHAKES),
        (199, 0.995, None),
        (200, 0.9999999, HANDSHAKES),
        (500, 0.9999999, HANDSHAKES),
    ):
        world.clients = [(0.0, BOB)] * handshakes
        world.gate.handshakes, world.chance = handshakes, chance
        world.now += 1
        assert world.gate.refuses(ALICE) == outcome


def test_start_and_full_may_be_one_number() -> None:
    world = World(Entrance(start=2, full=2, rate=0.0))
    assert [world.comes(ALICE), world.comes(BOB)] == [None, None]
    world.now = 1.0
    assert world.comes(ALICE) == HANDSHAKES
    world.ends(BOB)
    world.now = 1.1
    assert world.comes(BOB) is None


def test_a_burst_is_no_flood_until_it_has_lasted_a_second() -> None:
    world = World(Entrance(start=5, full=5, per_source=3))
    assert [world.comes(ALICE) for _ in range(1000)] == [None] * 1000
    world.now = 0.99
    assert world.comes(ALICE) is None
    world.now = 1.09
    assert world.comes(ALICE) == world.comes(BOB) == HANDSHAKES
    for _ in range(996):
        world.ends(ALICE)
    world.now = 1.2
    assert [world.comes(ALICE), world.comes(BOB)] == [OF_SOURCE, None]


def test_exempt_clients_are_never_turned_away() -> None:
    world = World(Entrance(start=1, full=1, per_source=1, slow_after=0.0))
    for host in ("127.0.0.1", "127.9.9.9", "::1"):
        assert [world.comes(ip_address(host)) for _ in range(300)] == [None] * 300
    assert world.comes(ALICE) == HANDSHAKES  # those count, though
    world = World(Entrance(start=1, full=1, slow_after=0.0, exempt=(ip_network("192.0.2.0/24"),)))
    assert [world.comes(ALICE) for _ in range(3)] == [None] * 3
    assert world.comes(ip_address("127.0.0.1")) == HANDSHAKES


# --- one source -------------------------------------------------------------------------------


def test_one_source_has_so_many_and_others_have_theirs() -> None:
    world = World(Entrance(start=1000, full=1000, per_source=3))
    assert [world.comes(ALICE) for _ in range(3)] == [None] * 3
    world.now = 1.0
    assert [world.comes(ALICE), world.comes(ALICE)] == [OF_SOURCE] * 2
    assert [world.comes(BOB) for _ in range(4)] == [None] * 4
    world.ends(ALICE)
    assert world.comes(ALICE) == OF_SOURCE  # nobody has looked again
    world.now = 1.1
    assert world.comes(ALICE) is None
    world.now = 2.2
    assert [world.comes(ALICE), world.comes(BOB)] == [OF_SOURCE] * 2


def test_a_host_of_ipv6_is_its_network() -> None:
    world = World(Entrance(start=1000, full=1000, per_source=2))
    mine = [ip_address(f"2001:db8:1:1::{number:x}") for number in range(1, 4)]
    assert [world.comes(host) for host in mine] == [None] * 3
    world.now = 1.0
    assert world.comes(mine[0]) == OF_SOURCE
    assert world.comes(ip_address("2001:db8:1:2::1")) is None
    assert source_of(mine[0]) == "2001:db8:1:1::/64"
    assert source_of(ALICE) == "192.0.2.7"


def test_a_flood_is_looked_at_ten_times_a_second() -> None:
    world = World(Entrance(start=10_000, full=10_000, per_source=20))
    refused = 0
    for _ in range(20_000):
        refused += world.comes(ALICE) == OF_SOURCE
        world.now += 0.0001
    assert refused > 8000
    assert world.looks <= 21


def test_other_numbers_hold_at_once() -> None:
    world = World(Entrance(start=10, full=10, slow_after=0.0))
    assert world.comes(ALICE) is None
    world.gate.adopt(Entrance(start=1, full=1, slow_after=0.0))
    assert world.comes(ALICE) == HANDSHAKES


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.floats(0, 0.7)), max_size=150),
    st.integers(1, 6),
)
def test_who_has_fewer_slow_ones_than_the_cap_is_let_in_and_who_has_more_is_not(
    steps: list[tuple[bool, int, float]], per_source: int
) -> None:
    world = World(Entrance(start=1000, full=1000, per_source=per_source))
    hosts = [ip_address(0x0A000000 + number) for number in range(5)] + [ip_address("127.0.0.1")]
    for begins, which, later in steps:
        world.now += later
        host = hosts[which]
        if not begins:
            if any(client[1] == host for client in world.clients):
                world.ends(host)
                world.now += 0.1
            continue
        ages = [world.now - began for began, client in world.clients if client == host]
        surely = sum(age >= 1.1 for age in ages) >= per_source
        perhaps = sum(age >= 1.0 for age in ages) >= per_source
        why = world.comes(host)
        if which == 5 or not perhaps:
            assert why is None
        elif surely:
            assert why == OF_SOURCE


# --- no place for anybody ---------------------------------------------------------------------


def test_the_oldest_of_too_many_slow_ones_are_to_go() -> None:
    world = World(Entrance(start=4, full=8, per_source=3))
    others = [ip_address(0x0A000000 + number) for number in range(4)]
    world.clients = [(0.1 * number, ALICE) for number in range(5)]  # 0 to 4
    world.clients += [(0.05, others[0]), (0.6, others[1]), (0.7, others[2])]  # 5 to 7
    assert world.gate.crowding() == []  # none of them is slow
    world.now = 1.45
    assert world.gate.crowding() == [1, 0]  # Alice's oldest
    world.now = 2.0
    # Of all there remain 4: two of others', and Alice's youngest.
    assert sorted(world.gate.crowding()) == [0, 1, 2, 5]


def test_exempt_clients_are_not_cut() -> None:
    world = World(Entrance(start=1, full=1))
    world.clients = [(0.0, ip_address("127.0.0.1"))] * 5
    world.now = 5.0
    assert world.gate.crowding() == []


# --- penalties --------------------------------------------------------------------------------


def test_failures_are_free_then_slow_then_shut_out_and_fade() -> None:
    world = World()
    gate = world.gate
    assert [gate.failed(ALICE) for _ in range(FREE)] == [None] * FREE
    assert gate.delay(ALICE) == 0
    slow = [gate.failed(ALICE) for _ in range(SLOWEST - FREE)]
    assert slow == [("192.0.2.7", delay, 0) for delay in (0.125, 0.25, 0.5, 1, 2)]
    assert gate.delay(ALICE) == 2
    assert world.comes(ALICE) is None
    out = [gate.failed(ALICE) for _ in range(10)]
    assert [told[2] for told in out if told] == [5, 10, 20, 40, 80, 160, 320, 600, 600, 600]
    assert world.comes(ALICE) == PENALISED
    assert gate.is_refused(ALICE)
    assert world.comes(BOB) is None
    assert (gate.delay(BOB), gate.is_refused(BOB)) == (0, False)
    world.now = 599.9
    assert world.comes(ALICE) == PENALISED
    world.now = 600.1
    assert world.comes(ALICE) is None
    assert not gate.alert
    world.now = 690.0
    assert gate.delay(ALICE) == 0
    gate.sweep()
    assert not gate.failures


def test_a_few_failures_a_minute_have_no_consequence() -> None:
    world = World()
    for _ in range(1000):
        assert world.gate.failed(ALICE) is None
        world.now += 30.0


def test_exempt_clients_gather_no_failures() -> None:
    gate = World().gate
    assert [gate.failed(ip_address("127.0.0.1")) for _ in range(100)] == [None] * 100
    assert not gate.failures
    assert gate.delay(ip_address("127.0.0.1")) == 0


def test_the_sweep_lets_those_in_whose_time_is_over() -> None:
    world = World()
    for number in range(50):
        for _ in range(SLOWEST + 1):
            world.gate.failed(ip_address(0x0A000000 + number))
    world.gate.sweep()
    assert world.gate.alert
    world.now = 6.0
    world.gate.sweep()
    assert not world.gate.alert


def test_the_tables_are_bounded() -> None:
    gate = World().gate
    gate.failures.most = 10
    for number in range(100):
        for _ in range(SLOWEST + 2):
            gate.failed(ip_address(0x0A000000 + number))
    assert len(gate.failures) == len(gate._refused) == 10


@pytest.mark.parametrize(("score", "seconds"), [(0, 0), (15, 0), (15.1, 5), (16, 5), (40, 600)])
def test_refusals_by_score(score: float, seconds: float) -> None:
    assert refusal_after(score) == seconds
