"""A receive window is narrow where a way is not slower with it."""

import hashlib
import os
import socket
import struct
import sys
from contextlib import closing
from time import monotonic
from typing import Any

import gevent
import pytest

from geosocks.relay.coalescing import Coalescer
from geosocks.relay.narrowing import (
    AGAIN,
    NARROW,
    SETTLE,
    SLOWER,
    STEPS,
    ReceiveWindow,
    Trial,
    trial_of,
)
from geosocks.relay.pipes import CAN_SPLICE
from geosocks.relay.pump import Pump
from geosocks.relay.way import Meter
from geosocks.stream import Connection
from tests.support.net import connection_pair, plain_pair, reset, wait_for

pytestmark = [
    pytest.mark.usefixtures("no_leaks"),
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a window cannot be clamped"),
]


def clamp(near: Connection) -> int:
    """How wide its window may be."""
    return near.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP)


# --- the window -----------------------------------------------------------------------------------


def move(far: Any, near: Connection, octets: int) -> None:
    """All of them come as they were sent."""
    data = os.urandom(octets)
    sender = gevent.spawn(far.sendall, data)
    got = bytearray()
    while len(got) < octets:
        got += near.recv(min(1 << 20, octets - len(got)))
    sender.get(timeout=10)
    assert got == data


def grow(far: Any, near: Connection) -> None:
    """Have the kernel make the buffer as large as is of use, and leave it so (tcp(7))."""
    for _ in range(8):
        move(far, near, 4 << 20)
    near.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    if clamp(near) <= NARROW:
        pytest.skip("no window is that wide here")


def may_send(far: Any) -> int:
    """How many octets the peer may have under way (tcpi_snd_wnd, linux/tcp.h)."""
    info = far.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
    if len(info) < 232:
        pytest.skip("this kernel does not tell")
    (octets,) = struct.unpack_from("I", info, 228)
    return int(octets)


def test_a_peer_has_no_more_under_way_than_a_narrow_window_and_then_as_before(
    pair: tuple[Any, Connection],
) -> None:
    far, near = pair
    window = ReceiveWindow(near.sock)
    with gevent.Timeout(30):
        grow(far, near)
        before = clamp(near)
        move(far, near, 16 << 20)
        assert may_send(far) > NARROW
        window.narrow()
        assert window.is_narrow
        assert clamp(near) == NARROW
        move(far, near, 16 << 20)
        assert 0 < may_send(far) <= NARROW
        window.widen()
        assert not window.is_narrow
        assert clamp(near) == before
        move(far, near, 32 << 20)
        assert may_send(far) > NARROW


def test_what_the_kernel_has_made_wide_meanwhile_stays(pair: tuple[Any, Connection]) -> None:
    far, near = pair
    window = ReceiveWindow(near.sock)
    grow(far, near)
    window.narrow()
    near.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, NARROW + 4096)
    window.widen()
    assert not window.is_narrow
    assert clamp(near) == NARROW + 4096


def test_nothing_of_what_was_promised_is_lost(pair: tuple[Any, Connection]) -> None:
    far, near = pair
    window = ReceiveWindow(near.sock)
    data = os.urandom(16 << 20)
    got = bytearray()
    with gevent.Timeout(30):
        sender = gevent.spawn(far.sendall, data)
        while len(got) < len(data):
            gevent.sleep(0)
            got += near.recv(1 << 20)
            if window.is_narrow:
                window.widen()
            else:
                window.narrow()
        sender.get()
    assert got == data


def test_a_window_that_is_less_stays_as_it_is(pair: tuple[Any, Connection]) -> None:
    _, near = pair
    near.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, NARROW - 4096)
    window = ReceiveWindow(near.sock)
    window.narrow()
    assert not window.is_narrow
    window.widen()
    assert clamp(near) == NARROW - 4096


def test_a_connection_that_has_gone_is_no_trouble(pair: tuple[Any, Connection]) -> None:
    _, near = pair
    window, other = ReceiveWindow(near.sock), ReceiveWindow(near.sock)
    window.narrow()
    near.close()
    window.widen()
    other.narrow()
    assert not window.is_narrow
    assert not other.is_narrow


def test_only_peers_on_this_host_are_tried(pair: tuple[Any, Connection]) -> None:
    far, near = pair
    assert trial_of(near) is not None
    with plain_pair() as (_, ours):
        assert trial_of(Connection(ours)) is None
    reset(far)
    with closing(Connection(socket.SocketType(fileno=os.dup(near.fileno())))) as gone:
        assert trial_of(gone) is None


# --- the trial ------------------------------------------------------------------------------------


class Window(ReceiveWindow):
    """One that only says what it was asked."""

    def __init__(self) -> None:
        self.asked = ""

    @property
    def is_narrow(self) -> bool:
        return self.asked.endswith("n")

    def narrow(self) -> None:
        self.asked += "n"

    def widen(self) -> None:
        self.asked += "w"


@pytest.fixture
def window() -> Window:
    return Window()


@pytest.fixture
def trial(window: Window) -> Trial:
    return Trial(window)


def note(trial: Trial, *speeds: float) -> None:
    for speed in speeds:
        trial.note(speed)


SETTLING = (0.0,) * SETTLE


def test_it_is_narrow_after_so_many_steps(trial: Trial, window: Window) -> None:
    note(trial, *[10.0] * (STEPS - 1))
    assert window.asked == ""
    note(trial, 10.0)
    assert window.asked == "n"


@pytest.mark.parametrize("speed", [10.0 * SLOWER + 0.001, 10.0, 20.0])
def test_it_stays_narrow_where_that_is_not_slower(
    trial: Trial, window: Window, speed: float
) -> None:
    note(trial, *[10.0] * STEPS, *SETTLING, *[speed] * STEPS)
    note(trial, *[1.0] * AGAIN)
    assert window.asked == "n"


@pytest.mark.parametrize("speed", [10.0 * SLOWER - 0.001, 5.0, 0.0])
def test_it_is_wide_again_where_that_is_slower(trial: Trial, window: Window, speed: float) -> None:
    note(trial, *[10.0] * STEPS, *SETTLING, *[speed] * (STEPS - 1))
    assert window.asked == "n"
    note(trial, speed)
    assert window.asked == "nw"
    note(trial, *[20.0] * AGAIN)
    assert window.asked == "nw"


def test_all_of_the_steps_count(trial: Trial, window: Window) -> None:
    as_fast = 10.0 * SLOWER
    note(trial, *[10.0] * STEPS, *SETTLING, as_fast + 2, *[as_fast] * (STEPS - 2), as_fast - 1.9)
    assert window.asked == "n"
    other = Window()
    note(Trial(other), *[10.0] * STEPS, *SETTLING, 12, *[as_fast] * (STEPS - 2), as_fast * 2 - 12.1)
    assert other.asked == "nw"


def test_what_was_narrow_is_tried_again_later(trial: Trial, window: Window) -> None:
    note(trial, *[10.0] * STEPS, *SETTLING, *[11.0] * STEPS, *[11.0] * AGAIN)
    assert window.asked == "n"
    note(trial, 11.0)
    assert window.asked == "nw"
    note(trial, *SETTLING, *[12.0] * STEPS)
    assert window.asked == "nwn"
    note(trial, *SETTLING, *[10.0] * STEPS)
    assert window.asked == "nwnw"


def test_what_was_wide_is_tried_again_later(trial: Trial, window: Window) -> None:
    note(trial, *[10.0] * STEPS, *SETTLING, *[8.0] * STEPS, *[10.0] * AGAIN)
    assert window.asked == "nw"
    note(trial, *[10.0] * STEPS)
    assert window.asked == "nwn"
    note(trial, *SETTLING, *[11.0] * STEPS, *[11.0] * AGAIN)
    assert window.asked == "nwn"


@pytest.mark.parametrize("narrow", range(STEPS))
def test_one_that_is_broken_off_is_wide_and_begins_anew(
    trial: Trial, window: Window, narrow: int
) -> None:
    note(trial, *[10.0] * STEPS, *SETTLING, *[11.0] * narrow)
    trial.break_off()
    assert window.asked == "nw"
    trial.break_off()
    assert window.asked == "nw"
    note(trial, *SETTLING, *[12.0] * (STEPS - 1))
    assert window.asked == "nw"
    note(trial, 12.0)
    assert window.asked == "nwn"
    note(trial, *SETTLING, *[10.0] * STEPS)
    assert window.asked == "nwnw"


def test_what_was_decided_is_not_broken_off(trial: Trial, window: Window) -> None:
    note(trial, *[10.0] * STEPS, *SETTLING, *[11.0] * STEPS, *[11.0] * 10)
    trial.break_off()
    assert window.asked == "n"
    note(trial, *[11.0] * (AGAIN - 10))
    assert window.asked == "n"
    note(trial, 11.0)
    assert window.asked == "nw"


# --- on a way -------------------------------------------------------------------------------------


class Clock:
    """Runs at double speed while a window is narrow, or while it is wide: the way seems slower."""

    def __init__(self, near: Connection, is_faster: bool) -> None:
        self._near = near
        self._is_faster = is_faster
        self._now = self._at = monotonic()
        self.was_narrow = False

    def now(self) -> float:
        at = monotonic()
        is_narrow = clamp(self._near) == NARROW
        self.was_narrow = self.was_narrow or is_narrow
        self._now += (at - self._at) * (1 if is_narrow == self._is_faster else 2)
        self._at = at
        return self._now


@pytest.mark.skipif(not CAN_SPLICE, reason="no way is fast here")
@pytest.mark.parametrize("is_faster", [True, False])
def test_the_only_fast_way_is_tried_and_all_of_it_comes(is_faster: bool) -> None:
    pump = Pump(splice=True)
    client, near_client = connection_pair()
    target, near_target = connection_pair()
    grow(target, near_target)
    clock = Clock(near_target, is_faster)
    pump.coalescer = Coalescer(now=clock.now)
    relay = gevent.spawn(pump.relay, near_client, near_target, Meter())
    reader = gevent.spawn(hash_of, client)

    def is_decided() -> bool:
        return clock.was_narrow and (clamp(near_target) == NARROW) is is_faster

    sent, begin = hashlib.sha256(), monotonic()
    while monotonic() < begin + 2.5 or (not is_decided() and monotonic() < begin + 20):
        data = os.urandom(100_001) * 3
        sent.update(data)
        target.sendall(data)
    assert is_decided()
    assert clamp(near_client) != NARROW, "from where little comes"
    target.close()
    assert reader.get(timeout=10) == sent.digest()
    client.close()
    relay.get(timeout=10)
    near_client.close()
    near_target.close()
    wait_for(lambda: pump.coalescer._clock is None)
    pump.close()


def hash_of(sock: Any) -> bytes:
    """Of all that comes until the end."""
    got = hashlib.sha256()
    while data := sock.recv(1 << 18):
        got.update(data)
    return got.digest()
