"""An association some of whose datagrams go without Python does the same as ever.

On the source the tests bring ``Datagrams`` in Python; on the compiled form they meet the real one.
So do those in ``test_udp``.
"""

import time
from importlib import import_module
from typing import Any

import gevent
import pytest

from geosocks.errors import RequestDenied
from geosocks.relay.udp import quick
from geosocks.relay.udp.hosts import ASK_AGAIN
from geosocks.relay.udp.routes import MAX_ROUTES
from geosocks.wire.socks5 import Address, IPAddress
from tests.relay.test_udp import LOOPBACK, anywhere, judging, running
from tests.support import datagrams as in_python
from tests.support.net import wait_for
from tests.support.udp_client import address, answering, header, udp_socket

pytestmark = pytest.mark.usefixtures("no_leaks")

try:
    datagrams: Any = import_module("geosocks.in_c.datagrams")
except ImportError:
    datagrams = in_python


@pytest.fixture
def is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Associations have it, compiled or not."""
    if datagrams is in_python:
        monkeypatch.setattr(quick, "_datagrams", in_python)


quickly = pytest.mark.usefixtures("is_quick")


@quickly
def test_what_went_without_python_is_counted_as_all_is() -> None:
    with answering() as (target, _), running() as run:
        for number in range(50):
            data = b"%d" % number
            assert run.client.ask(data, target) == data
            assert run.association._quick.is_told is (number > 0)
        assert (run.traffic.up, run.traffic.down, run.meter.datagrams) == (50, 50, 100)
        assert run.meter.up == run.meter.down == 90


def test_there_is_none_where_it_is_not_compiled_or_datagrams_are_encapsulated() -> None:
    class Turning:
        def wrap(self, datagram: bytes, /) -> bytes:
            return datagram[::-1]

        unwrap = wrap

    with running() as run:
        assert (run.association._quick is None) is (datagrams is in_python)
    with running(seal=Turning()) as run:
        assert run.association._quick is None


@quickly
def test_a_batch_of_all_kinds_is_treated_in_its_order() -> None:
    def judge(destination: Address) -> tuple[IPAddress, ...]:
        if destination.port == 9:
            raise RequestDenied("no", "deny")
        return (LOOPBACK,)

    heard: list[bytes] = []
    with answering(lambda data: heard.append(data)) as (target, _), running(judge) as run:
        other = udp_socket()
        for number in range(3):
            run.client.send(b"%d" % number, target)
        wait_for(lambda: len(heard) == 3)
        run.client.send(b"3", target)
        run.client.send(b"4", ("name.test", target[1]))
        run.client.send(b"5", target, frag=1)
        run.client.send(b"6", target, frag=0x82)
        run.client.send(b"7", target)
        run.client.send(b"no", ("127.0.0.1", 9))
        other.sendto(header(*target) + b"stranger", run.client.relay)
        run.client.send_raw(b"bad")
        run.client.send(b"abandoned", target, frag=1)
        run.client.send(b"8", target)
        run.client.send(b"9", target)
        wait_for(lambda: len(heard) == 9)
        other.close()
        # Only a name is looked up beside the others.
        assert [data for data in heard if data != b"4"] == b"0 1 2 3 56 7 8 9".split()
        traffic = run.traffic
        assert (traffic.denied, traffic.strangers, traffic.malformed) == (1, 1, 1)
        assert (traffic.up, run.meter.up, run.meter.datagrams) == (9, 10, 9)
        run.client.close()
        run.greenlet.join()
        assert traffic.fragments == 1


@quickly
def test_a_host_may_answer_for_as_long_as_ever() -> None:
    with answering() as (target, clients), running(asked_for=0.3) as run:
        for _ in range(3):
            assert run.client.ask(b"x", target) == b"x"
        relay = ("127.0.0.1", clients[0][1])
        with_time, other = udp_socket(), udp_socket("127.0.0.2")
        with_time.sendto(b"in time", relay)
        assert run.client.receive() == (address(with_time), b"in time")
        other.sendto(b"never asked", relay)
        wait_for(lambda: run.traffic.unasked == 1)
        gevent.sleep(0.35)  # it is time that this is about
        with_time.sendto(b"late", relay)
        wait_for(lambda: run.traffic.unasked == 2)
        gevent.sleep(ASK_AGAIN - 0.3)
        assert run.client.ask(b"x", target) == b"x"  # asked anew, on the other way
        with_time.sendto(b"in time", relay)
        assert run.client.receive() == (address(with_time), b"in time")
        with_time.close()
        other.close()


@quickly
def test_a_destination_that_was_forgotten_is_judged_anew() -> None:
    judged: list[int] = []

    def judge(destination: Address) -> tuple[IPAddress, ...]:
        judged.append(destination.port)
        return anywhere(destination)

    with answering() as (target, _), running(judge) as run:
        for _ in range(4):
            assert run.client.ask(b"x", target) == b"x"
        assert judged == [target[1]]
        for number in range(MAX_ROUTES):
            run.client.send(b"", (f"127.1.{number >> 8}.{number & 255}", 9))
            if number % 64 == 63:
                wait_for(lambda wanted=number: run.traffic.up == 5 + wanted)
        assert len(judged) == MAX_ROUTES + 1
        assert run.client.ask(b"x", target) == b"x"
        assert len(judged) == MAX_ROUTES + 2


@quickly
def test_a_host_that_was_forgotten_may_not_answer() -> None:
    with answering() as (target, clients), running() as run:
        for _ in range(4):
            assert run.client.ask(b"x", target) == b"x"
        hosts = run.association._hosts
        for number in range(MAX_ROUTES):
            hosts.ask(f"10.1.{number >> 8}.{number & 255}", hosts.asked("127.0.0.1"))
        late = udp_socket()
        late.sendto(b"who?", ("127.0.0.1", clients[0][1]))
        wait_for(lambda: run.traffic.unasked == 1)
        late.close()


@quickly
def test_the_next_address_of_a_name_is_taken_when_there_is_no_way_any_longer() -> None:
    judge = judging({"name.test": ("127.0.0.1",)})
    with (
        answering() as (first, _),
        answering() as (other, _),
        running(judge, outgoing={4: "127.0.0.1"}) as run,
    ):
        for _ in range(3):
            run.client.send(b"hello", ("name.test", first[1]))
            assert run.client.receive() == (first, b"hello")
        ((destination, route),) = run.association._routes.known.items()
        # From a loopback address there is no way to any other host.
        route.to, route.others = ("192.0.2.1", 9), (other,)
        known, now = run.association._quick, time.monotonic()
        known.lead(run.association.client, destination, route.sock, route.to, now)
        for _ in range(3):
            run.client.send(b"hello", ("name.test", first[1]))
            assert run.client.receive() == (other, b"hello")
        assert (run.traffic.up, run.traffic.failed) == (6, 0)
