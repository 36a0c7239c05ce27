"""Giving way to others, sockets among them."""

from collections.abc import Callable

import gevent
import pytest
from gevent import socket

from geosocks.greenlets import give_way

pytestmark = pytest.mark.usefixtures("no_leaks")


def turns_until_heard(yielding: Callable[[], object]) -> int:
    """How often a busy greenlet yields until another has received an octet from a third."""
    ours, theirs = socket.socketpair()
    turns = 0

    def busy() -> None:
        nonlocal turns
        while not heard.ready():
            turns += 1
            yielding()

    with ours, theirs:
        heard = gevent.spawn(ours.recv, 1)
        gevent.sleep(0.01)  # it waits
        worker = gevent.spawn(busy)
        gevent.spawn(theirs.send, b"x").join()
        gevent.joinall([heard, worker], raise_error=True)
    return turns


def test_a_socket_is_heard_within_a_few_turns() -> None:
    assert turns_until_heard(give_way) < 10


def test_which_is_more_than_sleeping_for_no_time_does() -> None:
    assert turns_until_heard(lambda: gevent.sleep(0)) > turns_until_heard(give_way)


def test_several_may_give_way_at_a_time() -> None:
    order: list[int] = []

    def count(number: int) -> None:
        for _ in range(3):
            order.append(number)
            give_way()

    gevent.joinall([gevent.spawn(count, number) for number in range(3)], raise_error=True)
    assert sorted(order[:3]) == sorted(order[3:6]) == sorted(order[6:]) == [0, 1, 2]


def test_one_that_gives_way_may_be_ended_there() -> None:
    def for_ever() -> None:
        while True:
            give_way()

    worker = gevent.spawn(for_ever)
    gevent.sleep(0.01)
    worker.kill(timeout=1)
    assert worker.dead
