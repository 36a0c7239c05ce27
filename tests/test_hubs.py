"""What the sessions of one hub share."""

import gc
import socket
import threading
import weakref
from typing import Any

import gevent
import pytest
from gevent.hub import get_hub
from greenlet import greenlet

from geosocks.hubs import MOST, OfHub, of_hub
from tests.support.net import connection_pair, wait_for

pytestmark = pytest.mark.usefixtures("no_leaks")


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
        get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    gc.collect()
    assert seen[0]
    assert seen[1]() is None


def test_a_watcher_is_used_again_for_another_descriptor() -> None:
    here = of_hub()
    far, near = connection_pair()
    woken: list[str] = []
    first = here.reader(near.fileno())
    first.start(woken.append, "first")
    far.sendall(b"x")
    wait_for(lambda: woken)
    here.give_back(first)
    other_far, other_near = connection_pair()
    again = here.reader(other_near.fileno())
    assert again is first
    woken.clear()
    again.start(woken.append, "again")
    gevent.sleep(0.02)
    assert not woken, "it still looks at the former descriptor"
    other_far.sendall(b"y")
    wait_for(lambda: woken)
    assert set(woken) == {"again"}
    here.give_back(again)
    for one in (far, near, other_far, other_near):
        one.close()


def test_a_watcher_sees_another_socket_that_got_the_same_number() -> None:
    """The kernel forgets a descriptor that is closed; nobody here may take it for known."""
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


def test_no_more_are_kept_than_the_bound() -> None:
    here = of_hub()
    one, other = socket.socketpair()
    watchers = [here.reader(one.fileno()) for _ in range(MOST + 10)]
    for watcher in watchers:
        here.give_back(watcher)
    kept = [here.reader(one.fileno()) for _ in range(MOST + 1)]
    assert len({id(watcher) for watcher in kept} & {id(watcher) for watcher in watchers}) == MOST
    for watcher in kept:
        here.give_back(watcher)
    one.close()
    other.close()


def test_there_is_no_watcher_for_what_is_closed() -> None:
    with pytest.raises(ValueError, match="non-negative"):
        of_hub().reader(-1)
