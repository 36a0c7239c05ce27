"""The UDP association by itself: sockets, datagrams and a judge that is a dict."""

import errno
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from ipaddress import ip_address
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent.hub import get_hub

from geosocks.errors import HostUnreachable, RequestDenied, RequestFailed
from geosocks.relay.pump import End
from geosocks.relay.udp import (
    Association,
    Associations,
    Inbox,
    open_inside,
    open_outside,
    quick,
    wait_writable,
)
from geosocks.relay.way import Meter
from geosocks.wire.socks5 import Address, IPAddress
from tests.support import datagrams
from tests.support.net import connection_pair, wait_for
from tests.support.udp_client import Target, UdpClient, address, answering, udp_socket

pytestmark = pytest.mark.usefixtures("no_leaks")

LOOPBACK = ip_address("127.0.0.1")


@pytest.fixture(autouse=True, params=["as it is", "quick"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is tested holds without ``in_c.datagrams``, and with it; compiled, only so."""
    if request.param == "quick":
        if quick._datagrams is not None:
            pytest.skip("it is")
        monkeypatch.setattr(quick, "_datagrams", datagrams)


def anywhere(destination: Address) -> tuple[IPAddress, ...]:
    """A judge that lets everything through, and knows no names."""
    if isinstance(destination.host, str):
        raise HostUnreachable(f"{destination.host} has no address")
    return (destination.host,)


class Running:
    """An association in a greenlet of its own, and a client of it."""

    def __init__(self, judge: Callable[[Address], tuple[IPAddress, ...]], **options: Any) -> None:
        far, near = connection_pair()
        self.meter = Meter()
        self.association = Association(
            open_inside(("127.0.0.1", 0)), near, LOOPBACK, 0, judge, self.meter, **options
        )
        self.traffic = self.association.traffic
        bound = self.association.bound
        self.client = UdpClient(far, (str(bound.host), bound.port), "127.0.0.1")
        self.near = near
        self.greenlet = gevent.spawn(self._run)

    def _run(self) -> Any:
        try:
            return self.association.run()
        except ZeroDivisionError as error:
            return error
        finally:
            self.association.close()
            self.near.close()


@contextmanager
def running(
    judge: Callable[[Address], tuple[IPAddress, ...]] = anywhere, **options: Any
) -> Iterator[Running]:
    """An association until the block ends."""
    run = Running(judge, **options)
    try:
        yield run
    finally:
        run.client.close()
        run.greenlet.join()


def judging(
    places: Mapping[str, tuple[str, ...]],
) -> Callable[[Address], tuple[IPAddress, ...]]:
    """A judge that knows names."""

    def judge(destination: Address) -> tuple[IPAddress, ...]:
        return tuple(map(ip_address, places[str(destination.host)]))

    return judge


# --- it goes on -------------------------------------------------------------------------------


def test_targets_that_are_not_there_harm_nobody() -> None:
    with answering() as (target, _), running() as run:
        for host in ("127.0.0.1", "127.0.0.3"):
            run.client.send(b"anybody?", (host, 9))  # ICMP: port unreachable
        run.client.send(b"nowhere", ("127.0.0.1", 0))
        run.client.send(b"broadcast", ("255.255.255.255", 9))
        for _ in range(3):
            assert run.client.ask(b"hello", target) == b"hello"
        assert run.traffic.failed == 2


def test_a_client_that_does_not_listen_any_more_harms_nobody() -> None:
    with answering() as (target, clients), running() as run:
        assert run.client.ask(b"hello", target) == b"hello"
        run.client.sock.close()
        sender = udp_socket()
        for _ in range(50):
            sender.sendto(b"late", ("127.0.0.1", clients[0][1]))
        wait_for(lambda: run.traffic.down == 51)
        assert not run.greenlet.dead
        sender.close()


def test_the_next_address_of_a_name_is_tried_where_there_is_no_way_to_the_first() -> None:
    judge = judging({"both.test": ("192.0.2.1", "127.0.0.1"), "none.test": ("192.0.2.1",)})
    # From a loopback address there is no way to any other host.
    with answering() as (target, _), running(judge, outgoing={4: "127.0.0.1"}) as run:
        for _ in range(2):
            run.client.send(b"hello", ("both.test", target[1]))
            assert run.client.receive() == (target, b"hello")
        assert run.traffic.failed == 0
        run.client.send(b"hello", ("none.test", target[1]))
        wait_for(lambda: run.traffic.failed == 1)


def test_without_a_socket_for_it_a_datagram_is_dropped_and_the_next_is_tried_anew() -> None:
    with answering() as (target, _), running(outgoing={4: "192.0.2.1"}) as run:  # not ours
        for number in (1, 2, 3):
            run.client.send(b"hello", target)
            wait_for(lambda wanted=number: run.traffic.failed == wanted)
        run.association._outside.source.clear()  # "now there is one"
        assert run.client.ask(b"hello", target) == b"hello"


def test_a_host_may_answer_for_a_while_and_each_datagram_to_it_begins_that_anew() -> None:
    with answering() as (target, clients), running(asked_for=0.2) as run:
        assert run.client.ask(b"hello", target) == b"hello"
        gevent.sleep(0.25)  # it is time that this is about
        late = udp_socket()
        late.sendto(b"late", ("127.0.0.1", clients[0][1]))
        wait_for(lambda: run.traffic.unasked == 1)
        late.close()


def test_a_judge_that_breaks_ends_it_with_what_it_raised() -> None:
    def judge(destination: Address) -> tuple[IPAddress, ...]:
        raise ZeroDivisionError(str(destination))

    for destination in (("127.0.0.1", 9), ("name.test", 9)):
        with running(judge) as run:
            run.client.send(b"hello", destination)
            assert isinstance(run.greenlet.get(), ZeroDivisionError)


def test_refusals_are_counted_by_what_they_are() -> None:
    def judge(destination: Address) -> tuple[IPAddress, ...]:
        match destination.port:
            case 1:
                raise RequestDenied("no", "deny")
            case 2:
                raise HostUnreachable("no address")
            case _:
                return (LOOPBACK,)

    with answering() as (target, _), running(judge) as run:
        for host in ("192.0.2.1", "name.test"):
            for port in (1, 1, 2, 2):
                run.client.send(b"x", (host, port))
        assert run.client.ask(b"x", target) == b"x"
        wait_for(lambda: run.traffic.denied + run.traffic.unresolved == 8)
        assert (run.traffic.denied, run.traffic.unresolved) == (4, 4)


def test_a_queue_of_fragments_that_never_ends_is_bounded_and_harms_nobody() -> None:
    with answering() as (target, _), running() as run:
        for number in range(500):
            run.client.send(bytes(5000), target, number % 127 + 1)
            if not number % 10:
                gevent.sleep(0.0005)
        assert run.client.ask(b"whole", target) == b"whole"
        run.client.close()
        run.greenlet.join()
        assert run.traffic.up == 1
        assert run.traffic.fragments > 400


# --- its end ----------------------------------------------------------------------------------


def test_how_it_ends_is_told() -> None:
    with running() as run:
        run.client.control.close()
        assert run.greenlet.get() == (End.CLOSED, None)
    with running() as run:
        run.client.control.sendall(b"x")
        run.client.control.shutdown(socket.SHUT_WR)
        assert run.greenlet.get() == (End.CLOSED, None)


def test_octets_read_ahead_of_it_count_as_stray() -> None:
    far, near = connection_pair()
    far.sendall(bytes(100))
    near.recv(1)
    association = Association(open_inside(("127.0.0.1", 0)), near, LOOPBACK, 0, anywhere, Meter())
    assert association._stray == 99
    association.close()
    association.close()  # once more does no harm
    near.close()
    far.close()


# --- the inbox --------------------------------------------------------------------------------


def test_an_inbox_tells_which_descriptors_are_readable() -> None:
    one, other, sender = udp_socket(), udp_socket(), udp_socket()
    inbox = Inbox()
    with closing(inbox):
        inbox.add(one.fileno(), 1)
        sender.sendto(b"x", address(one))
        assert inbox.wait() == 1
        assert inbox.wait() == 1  # it is still there
        one.recv(10)
        gevent.spawn_later(0.01, sender.sendto, b"x", address(other))
        inbox.add(other.fileno(), 2)  # nobody waits, and then somebody does
        assert inbox.wait() == 2
    for sock in (one, other, sender):
        sock.close()


def test_an_inbox_is_quiet_while_nobody_waits_and_keeps_what_wakes_it() -> None:
    one, sender = udp_socket(), udp_socket()
    turns = 0

    def count() -> None:
        nonlocal turns
        turns += 1

    prepare = get_hub().loop.prepare()
    inbox = Inbox()
    with closing(inbox):
        inbox.add(one.fileno(), 1)
        sender.sendto(b"x", address(one))
        prepare.start(count)
        gevent.sleep(0.05)
        prepare.stop()
        prepare.close()
        assert turns < 20, "a watcher that nobody waits for turns the loop"
        inbox.wake(4)
        gevent.sleep(0)
        assert inbox.wait() == 4
        assert inbox.wait() == 1
    one.close()
    sender.close()


def test_a_socket_that_can_be_written_to_is_not_waited_for() -> None:
    sock = open_outside(4)
    wait_writable(sock)
    sock.close()


# --- sockets ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("local", "host"),
    [
        (("127.0.0.1", 1080), "127.0.0.1"),
        (("::1", 1080, 0, 0), "::1"),
        (("::ffff:127.0.0.1", 1080, 0, 0), "127.0.0.1"),
    ],
)
def test_the_inside_socket_is_where_the_client_reached_us(local: Target, host: str) -> None:
    sock = open_inside(local)
    assert sock.getsockname()[0] == host
    assert sock.getsockname()[1] not in (0, 1080)
    sock.close()


def test_every_port_of_a_range_is_used_before_it_is_used_up() -> None:
    with closing(udp_socket()) as probe:
        first = probe.getsockname()[1]
    ports = range(first, first + 4)
    opened = []
    for _ in ports:
        try:
            opened.append(open_inside(("127.0.0.1", 0), ports))
        except RequestFailed:
            break  # somebody else has one of them
    assert {sock.getsockname()[1] for sock in opened} <= set(ports)
    with pytest.raises(RequestFailed, match=f"the ports {first} to {first + 3} cannot be had"):
        open_inside(("127.0.0.1", 0), ports)
    for sock in opened:
        sock.close()


def test_an_address_that_is_not_ours_is_no_place_for_a_relay() -> None:
    with pytest.raises(RequestFailed, match=r"no relay on 192\.0\.2\.1: Cannot assign"):
        open_inside(("192.0.2.1", 0))
    with pytest.raises(OSError, match="Cannot assign") as caught:
        open_outside(4, "192.0.2.1")
    assert caught.value.errno == errno.EADDRNOTAVAIL


# --- all of them ------------------------------------------------------------------------------


def test_associations_are_counted_and_forgotten() -> None:
    alive = Associations()
    for user, port in (("a", 1), ("a", 2), ("b", 1)):
        alive.add(user, port)
    assert (len(alive), alive.of("a"), alive.of("b"), alive.of("c")) == (3, 2, 1, 0)
    alive.remove("a", 1)
    assert set(alive.ports) == {1, 2}
    alive.remove("a", 2)
    alive.remove("b", 1)
    assert (len(alive), alive.of("a"), set(alive.ports)) == (0, 0, set())
