"""Datagrams in batches: those that it was told of go where they are to go, and no others do.

On the source the tests bring ``Datagrams`` in Python; on the compiled form they meet the real one.
"""

import os
import socket
from collections.abc import Iterator
from importlib import import_module
from itertools import chain
from typing import Any

import pytest

from geosocks.relay.udp import open_inside, open_outside
from geosocks.relay.udp.association import BATCH
from tests.support import datagrams as in_python
from tests.support.net import connection_pair
from tests.support.udp_client import (
    address,
    header,
    opened,
    udp_socket,
)

pytestmark = pytest.mark.usefixtures("no_leaks")

try:
    datagrams: Any = import_module("geosocks.in_c.datagrams")
except ImportError:
    datagrams = in_python

IP_RECVERR = 11
NOTHING = (0, 0, False, [])


class Ends:
    """One association's descriptors, and whoever is at the other ends of them."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host
        self.inside = open_inside((host, 0))
        self.outside = {4: open_outside(4), 6: open_outside(6)}
        self.client = udp_socket(host)
        self.opened: list[Any] = [self.inside, self.client, *self.outside.values()]
        self.datagrams = datagrams.Datagrams(self.inside.fileno(), self.client.getsockname())

    def target(self, host: str = "127.0.0.1") -> Any:
        """A host to write to."""
        self.opened.append(udp_socket(host))
        return self.opened[-1]

    def led(self, host: str = "127.0.0.1", name: str = "") -> Any:
        """A host, once asked, of which it has been told; as ``name``, if there is one."""
        target = self.target(host)
        self.lead(header(name or host, address(target)[1])[3:], target)
        self.datagrams.ask(host, 100.0)
        return target

    def lead(self, destination: bytes, target: Any) -> None:
        """Have a destination lead there."""
        to = address(target)
        outside = self.outside[6 if ":" in to[0] else 4]
        self.datagrams.lead(destination, outside.fileno(), to)

    def say(self, data: bytes, target: Any, name: str = "") -> bytes:
        """From the client; the datagram."""
        host, port = address(target)
        datagram = header(name or host, port) + data
        self.send(datagram)
        return datagram

    def send(self, datagram: bytes, client: Any = None) -> None:
        """Octets of the client, or of another one."""
        (client or self.client).sendto(datagram, self.inside.getsockname())

    def up(self, since: float = 100.0) -> Any:
        """A batch."""
        return self.datagrams.up(since)

    def down(self, version: int = 4, since: float = 100.0, from_any: bool = False) -> Any:
        """A batch."""
        return self.datagrams.down(self.outside[version].fileno(), since, from_any)

    def answer(self, data: bytes, target: Any) -> None:
        """From a target that has been written to."""
        host, _ = address(target)
        outside = self.outside[6 if ":" in host else 4]
        target.sendto(data, (host, outside.getsockname()[1]))

    def close(self) -> None:
        for sock in self.opened:
            sock.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.close()


@pytest.fixture(params=["127.0.0.1", "::1"])
def of_any(request: pytest.FixtureRequest) -> Iterator[Ends]:
    """The client is of one IP version or the other."""
    ends = Ends(request.param)
    yield ends
    ends.close()


def heard(sock: Any) -> list[bytes]:
    """All that has come to it."""
    sock.setblocking(False)
    came = []
    try:
        while True:
            came.append(sock.recv(1 << 16))
    except BlockingIOError:
        return came


# --- up ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_what_is_for_a_known_destination_is_passed_on_and_counted(of_any: Ends, host: str) -> None:
    target = of_any.led(host)
    assert of_any.up() == NOTHING
    for data in (b"one", b"", b"three"):
        of_any.say(data, target)
    assert of_any.up() == (3, 8, False, [])
    data, source = target.recvfrom(100)
    assert (data, source[1]) == (b"one", of_any.outside[6 if ":" in host else 4].getsockname()[1])
    assert heard(target) == [b"", b"three"]
    assert of_any.up() == NOTHING


@pytest.mark.parametrize("name", ["x", "host.test", 255 * "n"])
def test_a_destination_may_be_a_name(ends: Ends, name: str) -> None:
    target = ends.led(name=name)
    ends.say(b"hello", target, name)
    assert ends.up() == (1, 5, False, [])
    assert heard(target) == [b"hello"]


@pytest.mark.parametrize("size", [1, 512, 1472, 8192, 40_000, 65_497])
def test_datagrams_of_any_size_are_whole_both_ways(ends: Ends, size: int) -> None:
    target, data = ends.led(), [os.urandom(size) for _ in range(3)]
    for number in range(3):
        ends.say(data[number], target)
        ends.answer(data[number], target)
    assert ends.up() == (3, 3 * size, False, [])
    assert ends.down() == (3, 3 * size, False, [])
    assert heard(target) == data
    assert [opened(datagram)[1] for datagram in heard(ends.client)] == data


def test_those_of_a_batch_go_where_each_of_them_is_to_go_in_their_order(ends: Ends) -> None:
    targets = [ends.led(), ends.led("127.0.0.2"), ends.led("::1"), ends.led(name="a.test")]
    for number in range(20):
        at = number * number % 4 + number % 3
        ends.say(b"%d" % number, targets[at % 4], "a.test" if at % 4 == 3 else "")
    assert ends.up() == (20, 30, False, [])
    came = [list(map(int, heard(target))) for target in targets]
    assert sorted(chain(*came)) == list(range(20))
    assert all(numbers == sorted(numbers) for numbers in came)


def test_no_more_than_a_batch_is_taken_at_a_time(ends: Ends) -> None:
    target = ends.led()
    for _ in range(BATCH + 3):
        ends.say(b"x", target)
    assert ends.up() == (BATCH, BATCH, False, [])
    assert ends.up() == (3, 3, False, [])


def test_from_the_first_that_is_unknown_on_all_are_handed_over_in_their_order(of_any: Ends) -> None:
    known, unknown = of_any.led(), of_any.target()
    said = [of_any.say(b"%d" % n, unknown if n in (2, 5) else known) for n in range(7)]
    mine = of_any.client.getsockname()
    assert of_any.up() == (2, 2, False, [(datagram, mine) for datagram in said[2:]])
    assert heard(known) == [b"0", b"1"]
    assert heard(unknown) == []


def bad() -> Iterator[bytes]:
    """No datagrams, and parts of them."""
    for host in ("127.0.0.1", "::1", "name.test"):
        whole = header(host, 9)
        yield from (whole[:cut] for cut in range(len(whole)))
        yield header(host, 9, frag=1)
        yield header(host, 9, frag=0x81) + b"x"
        yield b"\0\1" + whole[2:] + b"x"
        yield b"\1\0" + whole[2:] + b"x"
    yield bytes.fromhex("000000 00") + bytes(30)
    yield bytes.fromhex("000000 02") + bytes(30)
    yield bytes.fromhex("000000 03 00") + bytes(30)
    yield bytes.fromhex("000000 03 ff") + bytes(30)
    yield bytes(1)


def test_octets_that_are_no_datagram_of_a_known_kind_are_handed_over(ends: Ends) -> None:
    for host in ("127.0.0.1", "::1", "name.test"):
        ends.datagrams.lead(header(host, 9)[3:], ends.outside[4].fileno(), ("127.0.0.1", 9))
    ends.datagrams.ask("127.0.0.1", 100.0)
    for octets in bad():
        ends.send(octets)
        assert ends.up() == (0, 0, False, [(octets, ends.client.getsockname())]), octets.hex()


def test_strangers_are_handed_over(of_any: Ends) -> None:
    target, stranger = of_any.led(), udp_socket(of_any.host)
    of_any.opened.append(stranger)
    datagram = of_any.say(b"mine", target)
    of_any.send(datagram, stranger)
    assert of_any.up() == (1, 4, False, [(datagram, stranger.getsockname())])
    assert heard(target) == [b"mine"]


def test_another_host_with_the_port_of_the_client_is_a_stranger(ends: Ends) -> None:
    target, other = ends.led(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ends.opened.append(other)
    other.bind(("127.0.0.2", address(ends.client)[1]))
    ends.send(header(*address(target)), other)
    assert ends.up()[3] == [(header(*address(target)), other.getsockname())]


def test_who_was_asked_too_long_ago_or_never_is_handed_over(ends: Ends) -> None:
    target, never = ends.led(), ends.target("127.0.0.3")
    mine = ends.client.getsockname()
    ends.lead(header(*address(never))[3:], never)
    for since, one in ((100.1, target), (0.0, never)):
        datagram = ends.say(b"x", one)
        assert ends.up(since) == (0, 0, False, [(datagram, mine)])
    ends.datagrams.ask("127.0.0.1", 101.0)
    ends.say(b"x", target)
    assert ends.up(100.5) == (1, 1, False, [])
    ends.datagrams.unask("127.0.0.1")
    ends.datagrams.unask("127.0.0.1")
    ends.say(b"x", target)
    assert ends.up()[0] == 0


def test_a_destination_leads_elsewhere_or_is_forgotten_as_it_was_told(ends: Ends) -> None:
    one, other = ends.led(), ends.led()
    destination = header(*address(one))[3:]
    ends.lead(destination, other)
    ends.say(b"elsewhere", one)
    assert ends.up() == (1, 9, False, [])
    assert (heard(one), heard(other)) == ([], [b"elsewhere"])
    ends.datagrams.forget(destination)
    ends.datagrams.forget(destination)
    ends.say(b"x", one)
    assert ends.up()[0] == 0
    ends.say(b"x", other)
    assert ends.up()[0] == 1
    ends.datagrams.forget_all()
    ends.say(b"x", other)
    assert ends.up()[0] == 0


def test_any_number_of_destinations_and_none_of_them_is_mistaken_for_another(ends: Ends) -> None:
    targets = [ends.led(f"127.0.{n}.1") for n in range(3)]
    fd = ends.outside[4].fileno()
    for n in range(5000):
        ends.datagrams.lead(header(f"host-{n}.test", 9)[3:], fd, address(targets[n % 3]))
        ends.datagrams.ask(f"10.0.{n >> 8}.{n & 255}", 100.0)
    for n in range(0, 5000, 2):
        ends.datagrams.forget(header(f"host-{n}.test", 9)[3:])
    for n in range(3):
        ends.datagrams.ask(f"127.0.{n}.1", 100.0)
    passed = 0
    for n in range(0, 5000, 7):
        ends.send(header(f"host-{n}.test", 9) + b"%d" % n)
        count, _, _, rest = ends.up()
        passed += count
        assert count + len(rest) == 1
        assert [heard(target) for target in targets] == [
            [b"%d" % n] if count and n % 3 == at else [] for at in range(3)
        ]
        assert not count or n % 2
    assert passed >= 100


# --- down -------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_what_a_host_that_was_asked_sends_comes_with_a_header(of_any: Ends, host: str) -> None:
    target, version = of_any.led(host), 6 if ":" in host else 4
    assert of_any.down(version) == NOTHING
    for data in (b"one", b"", b"three"):
        of_any.answer(data, target)
    assert of_any.down(version) == (3, 8, False, [])
    assert heard(of_any.client) == [
        header(*address(target)) + data for data in (b"one", b"", b"three")
    ]


def test_from_the_first_that_was_not_asked_on_all_are_handed_over(ends: Ends) -> None:
    target, other = ends.led(), ends.target("127.0.0.2")
    for number, sock in enumerate((target, other, target)):
        sock.sendto(b"%d" % number, ("127.0.0.1", ends.outside[4].getsockname()[1]))
    rest = [(b"1", other.getsockname()), (b"2", target.getsockname())]
    assert ends.down() == (1, 1, False, rest)
    assert heard(ends.client) == [header(*address(target)) + b"0"]


def test_who_was_asked_too_long_ago_is_handed_over_or_anybody_may_write(of_any: Ends) -> None:
    for host in ("127.0.0.1", "::1"):
        target, version = of_any.led(host), 6 if ":" in host else 4
        of_any.answer(b"late", target)
        assert of_any.down(version, 100.1) == (0, 0, False, [(b"late", target.getsockname())])
        of_any.datagrams.unask(host)
        of_any.answer(b"never", target)
        assert of_any.down(version) == (0, 0, False, [(b"never", target.getsockname())])
        of_any.answer(b"welcome", target)
        assert of_any.down(version, from_any=True) == (1, 7, False, [])
        assert heard(of_any.client) == [header(*address(target)) + b"welcome"]


def test_an_answer_without_room_for_its_header_is_handed_over(ends: Ends) -> None:
    target = ends.led()
    for size in (1, 65_498, 65_497):
        ends.answer(bytes(size), target)
    count, octets, failed, rest = ends.down()
    assert (count, octets, failed) == (1, 1, False)
    assert [(len(data), source) for data, source in rest] == [
        (65_498, target.getsockname()),
        (65_497, target.getsockname()),
    ]


# --- what the kernel says no to ---------------------------------------------------------------


def full() -> tuple[Any, Any]:
    """A socket that takes nothing more, and its other end.

    One of TCP: what a datagram socket on loopback sends has been received at once.
    """
    far, near = connection_pair()
    near.sock.setblocking(False)
    try:
        while True:
            near.sock.send(bytes(1 << 20))
    except BlockingIOError:
        return far, near


def test_what_a_full_socket_does_not_take_is_handed_over(ends: Ends) -> None:
    far, near = full()
    target, other = ends.led(), ends.led()
    ends.datagrams.lead(header(*address(other))[3:], near.fileno(), address(other))
    said = [ends.say(b"%d" % number, one) for number, one in enumerate((target, other, target))]
    mine = ends.client.getsockname()
    assert ends.up() == (1, 1, False, [(datagram, mine) for datagram in said[1:]])
    assert heard(target) == [b"0"]
    ends.datagrams = datagrams.Datagrams(near.fileno(), mine)
    ends.answer(b"answer", target)
    assert ends.down(from_any=True) == (0, 0, False, [(b"answer", target.getsockname())])
    far.close()
    near.close()


def test_what_the_kernel_refuses_to_send_is_handed_over(ends: Ends) -> None:
    target = ends.led()
    destination = header("192.0.2.1", 9)
    ends.datagrams.lead(destination[3:], ends.outside[4].fileno(), ("255.255.255.255", 9))
    ends.datagrams.ask("255.255.255.255", 100.0)
    said = [ends.say(b"before", target), destination + b"refused"]
    ends.send(said[1])
    said.append(ends.say(b"after", target))
    mine = ends.client.getsockname()
    assert ends.up() == (1, 6, False, [(said[1], mine), (said[2], mine)])
    with pytest.raises(PermissionError):
        ends.outside[4].sendto(b"refused", ("255.255.255.255", 9))


def test_an_error_that_waits_at_a_socket_is_told_of(ends: Ends) -> None:
    target = ends.led()
    there = address(target)
    outside = ends.outside[4]
    outside.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    target.close()  # ICMP: port unreachable
    ends.send(header(*there) + b"anybody?")
    assert ends.up() == (1, 8, False, [])
    assert ends.down() == (0, 0, True, [])
    assert ends.down() == NOTHING
    outside.sendto(b"anybody?", there)
    ends.send(header(*there) + b"anybody?")
    handed_over = [(header(*there) + b"anybody?", ends.client.getsockname())]
    assert ends.up() == (0, 0, False, handed_over)


def test_what_is_no_socket_or_no_address_is_an_error(ends: Ends) -> None:
    with open(os.devnull) as devnull:
        assert datagrams.Datagrams(devnull.fileno(), ("::1", 9, 0, 0)).up(0.0) == (0, 0, True, [])
    for call in (
        lambda: datagrams.Datagrams(0, ("name.test", 9)),
        lambda: ends.datagrams.lead(b"x", 0, ("name.test", 9)),
        lambda: ends.datagrams.ask("", 0.0),
        lambda: ends.datagrams.unask("1.2.3"),
    ):
        with pytest.raises(ValueError, match="is no IP address"):
            call()
