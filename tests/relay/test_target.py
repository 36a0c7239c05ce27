"""Look-ups against a DNS server of our own, dialling, and what each failure answers."""

import errno
import time
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

import gevent
import pytest

from geosocks.codes import Rep
from geosocks.errors import (
    AddressTypeNotSupported,
    HostUnreachable,
    NetworkUnreachable,
    RequestDenied,
    RequestFailed,
    TargetRefused,
    TargetTimeout,
)
from geosocks.relay.direct import DirectDialer, interleave
from geosocks.relay.target import (
    AresResolver,
    ThreadResolver,
    failure_of,
    is_own_address,
    most_telling,
)
from geosocks.wire.socks5 import Address, IPAddress
from tests.support.dns import dns
from tests.support.net import SilentAddress, echo, serving, unused_port

pytestmark = pytest.mark.usefixtures("no_leaks")


def ips(*texts: str) -> tuple[IPAddress, ...]:
    return tuple(ip_address(text) for text in texts)


# --- what a failure answers -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "rep"),
    [
        (errno.ENETUNREACH, 3),
        (errno.ENETDOWN, 3),
        (errno.EHOSTUNREACH, 4),
        (errno.EHOSTDOWN, 4),
        (errno.ECONNREFUSED, 5),
        (errno.ECONNRESET, 5),
        (errno.ETIMEDOUT, 6),
        (errno.EAFNOSUPPORT, 8),
        (errno.EPROTONOSUPPORT, 8),
        (errno.EACCES, 2),
        (errno.EPERM, 2),
        (errno.EMFILE, 1),
        (errno.ENOBUFS, 1),
        (errno.EADDRNOTAVAIL, 1),
    ],
)
def test_errno_decides_the_reply(number: int, rep: int) -> None:
    failure = failure_of(OSError(number, "why"), Address("192.0.2.7", 80))
    assert failure.rep == rep
    assert "192.0.2.7:80" in str(failure)


def test_of_several_failures_the_most_telling_is_answered() -> None:
    order = [TargetRefused, TargetTimeout, HostUnreachable, NetworkUnreachable, RequestFailed]
    failures = [kind("x") for kind in order]
    while failures:
        told = most_telling(list(reversed(failures)))
        assert type(told) is order[len(order) - len(failures)]
        failures.pop(0)


# --- names ------------------------------------------------------------------------------------


def test_all_addresses_of_a_name_come_from_one_look_up() -> None:
    names = {"both.test": ["192.0.2.1", "192.0.2.2", "2001:db8::1"]}
    with dns(names) as server:
        resolver = server.resolver()
        found = resolver.resolve("both.test")
        assert set(found) == set(ips("192.0.2.1", "192.0.2.2", "2001:db8::1"))
        assert server.asked["both.test"] <= 2  # one for each family
        resolver.close()


def test_a_name_that_does_not_exist_is_host_unreachable() -> None:
    with dns({}) as server:
        resolver = server.resolver()
        with pytest.raises(HostUnreachable, match=r"nowhere\.test"):
            resolver.resolve("nowhere.test")
        resolver.close()


def test_a_name_without_addresses_is_host_unreachable() -> None:
    with dns({"empty.test": []}) as server:
        resolver = server.resolver()
        with pytest.raises(HostUnreachable):
            resolver.resolve("empty.test")
        resolver.close()


def test_a_silent_dns_server_is_given_up_and_delays_nobody() -> None:
    with dns({"good.test": ["192.0.2.1"]}) as server:
        resolver = server.resolver(seconds=0.5)

        def ask(name: str) -> float:
            start = time.monotonic()
            with pytest.raises(HostUnreachable, match="no answer"):
                resolver.resolve(name)
            return time.monotonic() - start

        silent = [gevent.spawn(ask, f"n{number}.silent.test") for number in range(100)]
        gevent.sleep(0.05)
        for _ in range(5):
            start = time.monotonic()
            assert resolver.resolve("good.test") == ips("192.0.2.1")
            assert resolver.resolve("localhost")
            assert time.monotonic() - start < 0.39
        gevent.joinall(silent, raise_error=True)
        assert all(0.4 < waited.get() < 1.5 for waited in silent)
        resolver.close()


def test_the_resolver_closes_itself_when_nobody_knows_it_any_more() -> None:
    with dns({"a.test": ["192.0.2.1"]}) as server:
        resolver = server.resolver()
        resolver.resolve("a.test")
        del resolver


def test_resolvers_are_equal_by_what_they_were_told() -> None:
    assert AresResolver(("192.0.2.1",)) == AresResolver(("192.0.2.1",))
    assert AresResolver() != AresResolver(seconds=1.0)
    assert ThreadResolver() != AresResolver()


def test_the_systems_resolver_in_threads() -> None:
    resolver = ThreadResolver(threads=2)
    try:
        assert ip_address("127.0.0.1") in resolver.resolve("localhost")
        with pytest.raises(HostUnreachable):
            resolver.resolve("nosuch.invalid")
    finally:
        resolver.close()
        gevent.sleep(0.05)


# --- connections ------------------------------------------------------------------------------


def test_a_connection_to_one_address() -> None:
    with serving(echo) as (host, port):
        connection = DirectDialer().open_connection(Address("echo.test", port), ips(host))
        connection.sendall(b"hello")
        assert connection.recv(5) == b"hello"
        connection.close()


def test_ipv6_works_as_well() -> None:
    with serving(echo, "::1") as (_, port):
        connection = DirectDialer().open_connection(Address("::1", port), ips("::1"))
        connection.sendall(b"hello")
        assert connection.recv(5) == b"hello"
        connection.close()


@pytest.mark.parametrize("addresses", [("127.0.0.1",), ("127.0.0.1", "127.0.0.2", "::1")])
def test_a_refusal_is_refused(addresses: tuple[str, ...]) -> None:
    with pytest.raises(TargetRefused) as caught:
        DirectDialer().open_connection(Address("x.test", unused_port()), ips(*addresses))
    assert caught.value.rep == Rep.CONNECTION_REFUSED


def test_the_next_address_is_tried_when_one_refuses() -> None:
    with serving(echo) as (host, port):
        start = time.monotonic()
        connection = DirectDialer().open_connection(
            Address("x.test", port), ips("::1", "127.0.0.9", host)
        )
        assert connection.getpeername() == (host, port)
        assert time.monotonic() - start < DirectDialer.STAGGER
        connection.close()


def test_a_silent_address_is_passed_over_after_the_stagger() -> None:
    silent = SilentAddress()
    listener = gevent.socket.socket()
    listener.bind(("127.0.0.1", silent.port))
    listener.listen()
    start = time.monotonic()
    connection = DirectDialer().open_connection(
        Address("x.test", silent.port), ips("127.0.0.3", "127.0.0.1")
    )
    waited = time.monotonic() - start
    assert connection.getpeername()[0] == "127.0.0.1"
    assert DirectDialer.STAGGER * 0.9 < waited < DirectDialer.STAGGER + 0.5
    connection.close()
    listener.close()
    silent.close()


@pytest.mark.parametrize("addresses", [("127.0.0.3",), ("127.0.0.3", "127.0.0.3")])
def test_dialling_takes_no_longer_than_it_may_and_leaves_nothing(addresses: Sequence[str]) -> None:
    silent = SilentAddress()
    start = time.monotonic()
    with pytest.raises(TargetTimeout, match=r"x\.test:\d+: no answer within 0\.1 s") as caught:
        DirectDialer().open_connection(Address("x.test", silent.port), ips(*addresses), 0.1)
    assert 0.1 <= time.monotonic() - start < 2.0
    assert caught.value.rep == Rep.TTL_EXPIRED
    silent.close()


def test_what_is_dialled_as_asked_says_whom_it_is_to_and_what_is_not_does_not() -> None:
    with serving(echo) as (host, port):
        asked = Address(host, port)
        for to, addresses, peer in (
            (asked, (asked.host,), asked),
            (Address("echo.test", port), (asked.host,), None),
            (asked, ips("::1", host), None),  # raced
        ):
            connection = DirectDialer().open_connection(to, addresses)
            assert connection.peer is peer
            connection.close()


def test_dialling_can_be_ended_from_outside_and_leaves_nothing() -> None:
    silent = SilentAddress()
    for addresses in (("127.0.0.3",), ("127.0.0.3", "127.0.0.3")):
        with pytest.raises(TargetTimeout), gevent.Timeout(0.1, TargetTimeout("late")):
            DirectDialer().open_connection(Address("x.test", silent.port), ips(*addresses))
    silent.close()


def test_a_family_can_be_left_out() -> None:
    with serving(echo) as (host, port):
        dialer = DirectDialer(family="ipv4")
        connection = dialer.open_connection(Address("x.test", port), ips("::1", host))
        assert connection.getpeername() == (host, port)
        connection.close()
        with pytest.raises(AddressTypeNotSupported):
            DirectDialer(family="ipv6").open_connection(Address("x.test", port), ips(host))


def test_the_source_address_can_be_told() -> None:
    with serving(echo) as (host, port):
        dialer = DirectDialer(outgoing=ips("127.0.0.5", "::1"))
        connection = dialer.open_connection(Address("x.test", port), ips(host))
        assert connection.getsockname()[0] == "127.0.0.5"
        connection.close()


def test_a_source_address_that_is_not_ours_is_a_general_failure() -> None:
    with serving(echo) as (host, port):
        dialer = DirectDialer(outgoing=ips("192.0.2.1"))
        with pytest.raises(RequestFailed) as caught:
            dialer.open_connection(Address("x.test", port), ips(host))
        assert caught.value.rep == Rep.GENERAL_FAILURE


def test_a_destination_that_the_kernel_forbids_is_denied() -> None:
    with pytest.raises(RequestFailed) as caught:
        DirectDialer().open_connection(Address("255.255.255.255", 9), ips("255.255.255.255"))
    assert isinstance(caught.value, RequestDenied | NetworkUnreachable)


def test_a_socket_never_meets_itself() -> None:
    # An ephemeral port of our own, dialled from itself: the kernel would join it to itself.
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    dialer = DirectDialer()
    refused = 0
    for port in range(low + 1, min(high, low + 400), 2):
        try:
            connection = dialer.open_connection(Address("127.0.0.1", port), ips("127.0.0.1"))
        except TargetRefused:
            refused += 1
        else:  # some other program listens there
            assert connection.sock.getsockname() != connection.sock.getpeername()
            connection.close()
    assert refused > 100


def test_families_take_turns() -> None:
    assert interleave(ips("2001:db8::1", "2001:db8::2", "192.0.2.1", "192.0.2.2")) == list(
        ips("2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2")
    )
    assert interleave(ips("192.0.2.1", "192.0.2.2", "2001:db8::1")) == list(
        ips("192.0.2.1", "2001:db8::1", "192.0.2.2")
    )
    assert interleave(ips("192.0.2.1")) == list(ips("192.0.2.1"))


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("0.0.0.0", True),
        ("::", True),
        ("::ffff:127.0.0.1", True),
        ("192.0.2.1", False),
        ("2001:db8::1", False),
        ("8.8.8.8", False),
    ],
)
def test_which_addresses_are_this_hosts(text: str, own: bool) -> None:
    assert is_own_address(ip_address(text)) is own


def test_bytes_sent_at_once_after_connecting_arrive() -> None:
    with serving(echo) as (host, port):
        for _ in range(20):
            connection = DirectDialer().open_connection(Address("x.test", port), ips(host))
            connection.sendall(b"a" * 10)
            far = connection
            assert far.recv(10) == b"a" * 10
            connection.close()
