"""Reassembly as RFC 1928, section 7, has it: the right whole, or nothing."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geosocks.relay.fragments import REASSEMBLY_TIMER, ReassemblyQueue
from geosocks.wire.socks5 import MAX_DATAGRAM

HERE, THERE = b"\1\x7f\0\0\1\0\x35", b"\1\x7f\0\0\2\0\x35"
Arrivals = list[tuple[int, bytes]]


def wholes(*arrivals: tuple[int, bytes] | tuple[int, bytes, bytes, float]) -> list[bytes]:
    """What becomes of fragments as they arrive: (FRAG, DATA), destination and time if need be."""
    queue = ReassemblyQueue()
    made = []
    for frag, data, *rest in arrivals:
        destination, now = rest or (HERE, 0.0)
        whole = queue.add(frag, destination, data, now)  # type: ignore[arg-type]
        if whole is not None:
            made.append(whole)
    return made


def test_the_timer_is_no_less_than_5_seconds() -> None:
    assert REASSEMBLY_TIMER >= 5


@pytest.mark.parametrize(
    ("arrivals", "expected"),
    [
        pytest.param([(1, b"a"), (0x82, b"b")], [b"ab"], id="two"),
        pytest.param([(0x81, b"a")], [b"a"], id="one-alone"),
        pytest.param([(1, b""), (2, b""), (0x83, b"")], [b""], id="of-no-octets"),
        pytest.param([(1, b"a"), (1, b"a"), (0x82, b"b")], [b"ab"], id="the-highest-twice"),
        pytest.param([(1, b"a"), (0x82, b"b"), (0x82, b"b")], [b"ab"], id="the-last-twice"),
        pytest.param(
            [(1, b"a"), (2, b"b"), (1, b"a"), (2, b"b"), (0x83, b"c")], [b"abc"], id="all-twice"
        ),
        pytest.param(
            [(1, b"a"), (0x82, b"b"), (1, b"c"), (0x82, b"d")], [b"ab", b"cd"], id="two-sequences"
        ),
        pytest.param([(1, b"old"), (1, b"a"), (0x82, b"b")], [b"ab"], id="begun-anew"),
        pytest.param(
            [(1, b"x"), (2, b"y"), (1, b"a"), (0x82, b"b")], [b"ab"], id="restart-below-highest"
        ),
        pytest.param([(0x82, b"b"), (1, b"a")], [], id="backwards"),
        pytest.param([(1, b"a"), (3, b"c"), (2, b"b"), (0x84, b"d")], [], id="overtaken"),
        pytest.param([(1, b"a"), (0x83, b"c")], [], id="a-gap"),
        pytest.param([(2, b"b"), (0x83, b"c")], [], id="no-beginning"),
        pytest.param([(0x80, b"a")], [], id="end-at-place-0"),
        pytest.param([(1, b"a"), (0x80, b"b"), (0x82, b"b")], [], id="end-at-place-0-within"),
        pytest.param([(1, b"a"), (0x81, b"b")], [b"b"], id="another-that-ends-at-once"),
        pytest.param([(1, b"a"), (0x81, b"a")], [b"a"], id="no-repetition-but-an-end"),
        pytest.param([(1, b"a"), (2, b"b"), (0x82, b"z")], [], id="a-place-with-two-contents"),
    ],
)
def test_sequences(arrivals: Arrivals, expected: list[bytes]) -> None:
    assert wholes(*arrivals) == expected


def test_the_timer_expires_from_the_first_fragment_on() -> None:
    assert wholes((1, b"a", HERE, 0.0), (0x82, b"b", HERE, 4.99)) == [b"ab"]
    assert wholes((1, b"a", HERE, 0.0), (0x82, b"b", HERE, 5.0)) == []
    slowly = [(place, b"x", HERE, place * 1.0) for place in range(1, 10)]
    assert wholes(*slowly, (0x8A, b"x", HERE, 10.0)) == []
    # What is late for the old sequence may begin a new one.
    assert wholes((1, b"a", HERE, 0.0), (1, b"b", HERE, 9.0), (0x82, b"c", HERE, 9.0)) == [b"bc"]


def test_two_destinations_are_never_mixed() -> None:
    assert wholes((1, b"a", HERE, 0), (0x82, b"b", THERE, 0)) == []
    interleaved = [(1, b"a", HERE, 0), (1, b"c", THERE, 0), (0x82, b"b", HERE, 0)]
    assert wholes(*interleaved, (0x82, b"d", THERE, 0)) == []
    assert wholes((1, b"a", HERE, 0), (1, b"c", THERE, 0), (0x82, b"d", THERE, 0)) == [b"cd"]


def test_all_127_places() -> None:
    arrivals = [(place, bytes((place,))) for place in range(1, 127)]
    assert wholes(*arrivals, (0xFF, b"\x7f")) == [bytes(range(1, 128))]
    # A place 128 cannot be said: 0x80 is an end at place 0.
    assert wholes(*arrivals, (127, b"\x7f"), (0x80, b"x")) == []


def test_octets_are_bounded() -> None:
    half = bytes(MAX_DATAGRAM // 2)
    assert len(wholes((1, half), (0x82, half))[0]) == 2 * len(half)
    assert wholes((1, half), (2, half), (0x83, b"12")) == []
    queue = ReassemblyQueue()
    for number in range(10_000):  # an endless queue
        assert queue.add(number % 127 + 1, HERE, bytes(2000), 0.0) is None
        assert queue.pending * 2000 <= MAX_DATAGRAM
    assert queue.abandoned + queue.pending == 10_000


def test_abandoned_fragments_are_counted() -> None:
    queue = ReassemblyQueue()
    for frag in (1, 2, 2, 4, 0x80, 1):
        queue.add(frag, HERE, b"x", 0.0)
    assert (queue.abandoned, queue.pending) == (5, 1)
    queue.abandon()
    assert (queue.abandoned, queue.pending) == (6, 0)


PIECES = st.lists(st.binary(max_size=3), min_size=1, max_size=6)


@given(st.data(), PIECES)
@settings(max_examples=300, deadline=None)
def test_whatever_the_network_does_it_is_the_right_whole_or_nothing(
    data: st.DataObject, pieces: list[bytes]
) -> None:
    count = len(pieces)
    sent = [
        (place | (0x80 if place == count else 0), piece) for place, piece in enumerate(pieces, 1)
    ]
    arrivals = data.draw(st.lists(st.sampled_from(sent), max_size=20))  # any order, doubled, lost
    made = wholes(*arrivals)
    assert set(made) <= {b"".join(pieces)}
    places = [frag & 0x7F for frag, _ in arrivals]
    in_order = all(later == earlier + 1 for earlier, later in pairwise(places))
    if places and in_order and places[0] == 1 and places[-1] == count:
        assert made


@given(
    st.lists(
        st.tuples(
            st.integers(1, 255),
            st.binary(max_size=4),
            st.sampled_from([HERE, THERE]),
            st.floats(0, 3),
        ),
        max_size=60,
    )
)
@settings(max_examples=200, deadline=None)
def test_nothing_gets_lost_in_the_count_nor_kept_without_bound(
    arrivals: list[tuple[int, bytes, bytes, float]],
) -> None:
    queue = ReassemblyQueue()
    now, used = 0.0, 0
    for frag, piece, destination, later in arrivals:
        now += later
        waiting = queue.pending
        lost = queue.abandoned
        whole = queue.add(frag, destination, piece, now)
        if whole is not None:
            # Those that waited, or were given up for this one, and this one itself.
            used += waiting + 1 - (queue.abandoned - lost)
        assert queue.pending <= 127
    assert queue.abandoned + queue.pending + used == len(arrivals)
