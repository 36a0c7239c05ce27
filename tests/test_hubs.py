"""What the sessions of one hub share."""

import gc
import os
import socket
import threading
import weakref
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent.hub import get_hub
from greenlet import greenlet

from geosocks import hubs
from geosocks.hubs import MOST, OfHub, Watchers, of_hub
from geosocks.stream import Connection
from tests.support.forks import in_children
from tests.support.net import connection_pair, plain_pair, wait_for

pytestmark = pytest.mark.usefixtures("no_leaks")

KINDS: dict[str, Any] = {"of the loop": Watchers}
with suppress(ImportError):  # tests/test_compiled.py runs these where it is
    KINDS["by polls"] = import_module("geosocks.in_c.polls").Polls


def test_it_is_the_same_wherever_one_asks_in_a_thread() -> None:
    here = of_hub()
    assert here.hub is get_hub()
    assert gevent.spawn(of_hub).get() is here
    below: list[OfHub] = []
    greenlet(lambda: greenlet(lambda: below.append(of_hub())).switch()).switch()
    get_hub().loop.run_callback(lambda: below.append(of_hub()))  # in the hub itself
    gevent.sleep(0.01)
    assert below == [here, here]


def test_each_thread_has_its_own_which_ends_with_its_hub() -> None:
    seen: list[Any] = []

    def ask() -> None:
        seen.append(of_hub() is of_hub())
        seen.append(weakref.ref(get_hub()))
        one, other = socket.socketpair()
        of_hub().watch(other.fileno(), print, False, True)
        of_hub().forget(other.fileno())
        one.close()
        other.close()
        get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    gc.collect()
    assert seen[0]
    assert seen[1]() is None


def test_a_hub_of_a_thread_that_gevent_keeps_holds_no_descriptor_of_ours() -> None:
    """One that has run is not always freed; the fixture looks for what is left."""
    heard: list[bytes] = []

    def listen() -> None:
        for _ in range(3):
            far, near = socket.socketpair()
            near.setblocking(False)
            connection = Connection(near)
            waiting = gevent.spawn(connection.recv, 1)
            gevent.sleep(0.005)
            far.send(b"x")
            heard.append(waiting.get())
            connection.close()
            far.close()
        get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert heard == [b"x"] * 3


def test_it_is_compiled_where_the_rest_is() -> None:
    assert (hubs._polls is not None) is not str(hubs.__file__).endswith(".py")
    assert type(of_hub().watchers) is list(KINDS.values())[-1]


# --- who is to be called ----------------------------------------------------------------------


@pytest.fixture(params=list(KINDS), scope="module")
def watchers(request: pytest.FixtureRequest) -> Any:
    return KINDS[request.param](get_hub())


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with plain_pair() as pair:
        yield pair


Pair = tuple[socket.socket, socket.socket]


def done_with(watchers: Any, pairs: list[Pair]) -> None:
    """Forget the second of each pair, and close both."""
    for far, near in pairs:
        watchers.forget(near.fileno())
        far.close()
        near.close()


def turns(number: int = 3) -> None:
    """Give the loop so many turns."""
    for _ in range(number):
        gevent.sleep(0.002)


def test_it_is_called_once_or_each_time(watchers: Any, pair: Pair) -> None:
    far, near = pair
    fd, called = near.fileno(), list[int]()
    watchers.watch(fd, lambda: called.append(1), False, True)
    assert not watchers.is_watched(fd), "it is not kept"
    turns()
    assert not called, "there is nothing yet"
    far.send(b"x")
    turns()
    assert called == [1], "once, though there is something to read still"
    watchers.watch(fd, lambda: called.append(2), True, False)
    assert watchers.is_watched(fd)
    turns()
    assert called.count(2) > 1
    near.recv(10)
    turns()
    called.clear()
    turns()
    assert not called
    far.send(b"y")
    turns()
    assert 2 in called
    watchers.unwatch(fd)
    assert not watchers.is_watched(fd)
    turns()
    called.clear()
    turns()
    assert not called
    watchers.watch(fd, lambda: called.append(3), False, False)
    turns()
    assert called == [3], "it was not looked at meanwhile, and is again"
    watchers.forget(fd)


def test_the_end_is_something_to_read(watchers: Any, pair: Pair) -> None:
    far, near = pair
    called = list[int]()
    watchers.watch(near.fileno(), lambda: called.append(1), False, True)
    far.close()
    turns()
    assert called == [1]
    watchers.forget(near.fileno())
    watchers.forget(near.fileno())  # again, which is nothing
    watchers.unwatch(near.fileno())


@pytest.mark.parametrize("is_told", [True, False])
def test_another_socket_of_the_same_number(watchers: Any, is_told: bool) -> None:
    """The kernel forgets a descriptor that is closed; nobody here may take it for known."""
    called = list[int]()
    first: int | None = None
    for number in range(3):
        one, other = socket.socketpair()
        fd = other.fileno()
        first = fd if first is None else first
        assert fd == first, "this proves nothing"
        watchers.watch(fd, lambda number=number: called.append(number), True, True)
        turns()
        one.send(b"x")
        turns()
        assert set(called) == {number}
        called.clear()
        if is_told:
            watchers.forget(fd)
        other.close()
        one.close()
    watchers.forget(fd)


def test_there_is_none_for_what_is_closed(watchers: Any) -> None:
    with pytest.raises(ValueError, match="non-negative"):
        watchers.watch(-1, print, False, True)
    assert not watchers.is_watched(-1)
    watchers.unwatch(-1)
    watchers.forget(-1)
    assert not watchers.is_watched(1_000_000)
    watchers.forget(1_000_000)


def test_an_error_is_the_hubs_to_tell_and_ends_it(
    watchers: Any, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    far, near = pair
    told: list[Any] = []
    monkeypatch.setattr(get_hub(), "handle_error", lambda _, *error: told.append(error[1]))
    others = [socket.socketpair() for _ in range(3)]
    called = list[int]()

    def wrong() -> None:
        raise RuntimeError("a fault of ours")

    watchers.watch(near.fileno(), wrong, True, True)
    for _, other in others:
        watchers.watch(
            other.fileno(), lambda other=other: called.append(other.recv(1)[0]), True, True
        )
    far.send(b"x")
    for one, _ in others:
        one.send(b"y")
    turns()
    assert [str(error) for error in told] == ["a fault of ours"]
    assert called == [ord("y")] * 3
    assert not watchers.is_watched(near.fileno())
    watchers.forget(near.fileno())
    done_with(watchers, others)


def test_one_that_is_called_may_close_those_that_would_be_next(watchers: Any) -> None:
    """And what it opens meanwhile has their numbers, and is not to be taken for them."""
    pairs = [socket.socketpair() for _ in range(20)]
    new: list[Pair] = []
    called = list[str]()

    def close_all() -> None:
        called.append("first")
        done_with(watchers, pairs)
        for _ in pairs:
            new.append(socket.socketpair())
            fd = new[-1][1].fileno()
            watchers.watch(fd, lambda: called.append("new"), False, True)

    for one, other in pairs:
        watchers.watch(other.fileno(), close_all, False, True)
        one.send(b"x")
    turns()
    assert called == ["first"]
    for one, _ in new:
        one.send(b"x")
    turns()
    assert called == ["first"] + ["new"] * 20
    done_with(watchers, new)


@pytest.mark.parametrize("waits", [True, False], ids=["waits at once", "waits later"])
def test_what_nobody_waits_for_may_be_closed_by_one_told_later(watchers: Any, waits: bool) -> None:
    """And another one that has its number by then is told what comes, whenever it waits."""
    silent, last = socket.socketpair(), socket.socketpair()
    new: list[Pair] = []
    called = list[str]()

    def close_the_silent_one() -> None:
        done_with(watchers, [silent])
        new.append(socket.socketpair())
        watchers.watch(new[0][1].fileno(), lambda: called.append("new"), False, True)
        if not waits:
            watchers.unwatch(new[0][1].fileno())
        new[0][0].send(b"x")

    numbers = {silent[1].fileno(), silent[0].fileno()}
    watchers.watch(silent[1].fileno(), lambda: called.append("silent"), True, True)
    watchers.unwatch(silent[1].fileno())
    silent[0].send(b"x")
    watchers.watch(last[1].fileno(), close_the_silent_one, False, True)
    last[0].send(b"x")
    turns(5)
    assert new[0][1].fileno() in numbers
    assert called == (["new"] if waits else [])
    if not waits:
        watchers.watch(new[0][1].fileno(), lambda: called.append("new"), False, False)
        turns(5)
        assert called == ["new"]
    done_with(watchers, [*new, last])


def test_many_at_a_time_and_numbers_of_any_size(watchers: Any) -> None:
    pairs = [socket.socketpair() for _ in range(300)]
    called = set[int]()
    for one, other in pairs:
        fd = other.fileno()
        watchers.watch(fd, lambda fd=fd: called.add(fd), False, True)
        one.send(b"x")
    turns(10)
    assert called == {other.fileno() for _, other in pairs}
    done_with(watchers, pairs)


def test_whoever_waits_for_nothing_else_is_not_told_that_it_waits_for_ever(pair: Pair) -> None:
    """Gevent raises LoopExit where nothing is left that could happen."""

    def wait(kind: Any) -> None:
        watchers = kind(get_hub())
        here = gevent.getcurrent()
        watchers.watch(pair[1].fileno(), here.switch, False, True)
        get_hub().switch()
        watchers.forget(pair[1].fileno())
        with pytest.raises(gevent.exceptions.LoopExit):
            get_hub().switch()
        seen.append(kind)
        get_hub().destroy(destroy_loop=True)

    for kind in KINDS.values():
        seen = list[Any]()
        thread = threading.Thread(target=wait, args=(kind,))
        thread.start()
        gevent.sleep(0.02)
        pair[0].send(b"x")
        thread.join(5)
        assert seen == [kind]


def test_a_child_of_fork_leaves_its_parent_what_it_has(pair: Pair) -> None:
    far, near = pair
    here = of_hub()
    called = list[int]()
    here.watch(near.fileno(), lambda: called.append(near.recv(1)[0]), True, True)
    turns()

    def child() -> None:
        own, other = socket.socketpair()
        mine = list[int]()
        here.watch(other.fileno(), lambda: mine.append(1), False, True)
        here.unwatch(near.fileno())
        far.send(b"a")  # it is for the parent to read
        own.send(b"x")
        gevent.sleep(0.05)
        here.forget(near.fileno())
        near.close()
        assert mine == [1]

    assert in_children(child) == [0]
    wait_for(lambda: called)
    far.send(b"b")
    wait_for(lambda: len(called) == 2)
    assert bytes(called) == b"ab"
    here.forget(near.fileno())


def test_what_is_closed_here_and_open_elsewhere_does_not_spin(pair: Pair) -> None:
    """The kernel takes a descriptor out of an epoll when nobody has what is behind it any more."""
    far, near = pair
    here = of_hub()
    called = list[int]()
    here.watch(near.fileno(), lambda: called.append(1), False, True)
    turns()
    copy = os.dup(near.fileno())  # as a process that was forked would have
    here.forget(near.fileno())
    near.close()
    other_far, other = socket.socketpair()
    here.watch(other.fileno(), lambda: called.append(other.recv(1)[0]), True, True)
    far.send(b"x")
    used = sum(os.times()[:2])
    gevent.sleep(0.5)
    assert sum(os.times()[:2]) - used < 0.25
    other_far.send(b"y")
    wait_for(lambda: called)
    assert bytes(called) == b"y"
    here.forget(other.fileno())
    os.close(copy)
    other_far.close()
    other.close()


# --- the loop's own ---------------------------------------------------------------------------


def test_a_watcher_is_used_again_for_another_descriptor_and_no_more_are_kept_than_the_bound() -> (
    None
):
    made = list[Any]()

    class Loop:
        def io(self, fd: int, _: int) -> Any:
            made.append(get_hub().loop.io(fd, 1))
            return made[-1]

    watchers = Watchers(SimpleNamespace(loop=Loop()))
    pairs = [socket.socketpair() for _ in range(MOST // 2 + 5)]
    fds = [end.fileno() for pair in pairs for end in pair]
    for _ in range(3):
        for fd in fds:
            watchers.watch(fd, print, False, True)
        for fd in fds:
            watchers.forget(fd)
    assert len(made) == MOST + 3 * (len(fds) - MOST)
    for one, other in pairs:
        one.close()
        other.close()


# --- of connections ---------------------------------------------------------------------------


def test_a_connection_sees_another_socket_that_got_the_same_number() -> None:
    numbers = []
    for _ in range(20):
        far, near = connection_pair()
        with gevent.Timeout(2):
            waiting = gevent.spawn(near.recv, 10)
            gevent.sleep(0)
            far.sendall(b"here")
            assert waiting.get() == b"here"
        numbers.append(near.fileno())
        near.close()
        far.close()
    assert len(set(numbers)) < len(numbers), "no number came again: this proves nothing"


def test_a_connection_that_was_dropped_unclosed_does_no_harm_to_the_next() -> None:
    for _ in range(3):
        one, other = socket.socketpair()
        other.setblocking(False)
        dropped = Connection(other)
        waiting = gevent.spawn(dropped.recv, 1)
        gevent.sleep(0)
        one.send(b"x")
        assert waiting.get(timeout=2) == b"x"
        fd = other.fileno()
        del dropped, waiting
        other.close()
        one.close()
        far, near = connection_pair()
        assert fd in (far.fileno(), near.fileno()), "this proves nothing"
        reader = gevent.spawn(near.recv, 1)
        back = gevent.spawn(far.recv, 1)
        gevent.sleep(0)
        far.sendall(b"y")
        near.sendall(b"z")
        assert reader.get(timeout=2) == b"y"
        assert back.get(timeout=2) == b"z"
        far.close()
        near.close()


def test_one_that_is_killed_while_it_waits_is_not_called_later() -> None:
    far, near = connection_pair()
    order = list[str]()

    def wait() -> None:
        try:
            near.recv(1)
        finally:
            order.append("killed")
            gevent.sleep(0.05)
            order.append("slept")

    waiting = gevent.spawn(wait)
    gevent.sleep(0)
    killing = gevent.spawn(waiting.kill)
    gevent.sleep(0.01)
    far.sendall(b"x")
    gevent.sleep(0.01)
    assert order == ["killed"]
    killing.get()
    assert order == ["killed", "slept"]
    far.close()
    near.close()
