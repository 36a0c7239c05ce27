"""The client's UDP ASSOCIATE, against relays that play a transcript and against our own."""

import errno
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import gevent
import gevent.event
import gevent.socket
import pytest

from geosocks.auth import Grant
from geosocks.auth.gss import GssAuthenticator, GssCredential
from geosocks.client import Association, Client, association
from geosocks.client.address import is_reachable
from geosocks.codes import ProtectionLevel
from geosocks.errors import (
    CommandNotSupported,
    GeosocksError,
    NegotiationTimeout,
    ProtocolError,
    RelayBroken,
    RequestDenied,
)
from geosocks.policy import Policy
from geosocks.rules import RuleSet
from geosocks.stream import Stream
from geosocks.wire.socks5 import Address
from tests.support.dns import dns
from tests.support.fake_gss import start_threads
from tests.support.kdc import Realm, environment
from tests.support.net import recv_exactly, reset, serving
from tests.support.servers import EVERYWHERE, proxy
from tests.support.udp_client import address as name_of
from tests.support.udp_client import answering, udp_socket

pytestmark = pytest.mark.usefixtures("no_leaks")

CHOICE = bytes.fromhex("05 00")
TARGET = ("192.0.2.7", 53)
HEADER = bytes.fromhex("0000 00 01 c0000207 0035")
BIGGEST = 65_497
"""Octets of DATA that a header for IPv4 leaves of 65,507."""


def reply(host: str, port: int, rep: int = 0) -> bytes:
    """A reply's octets."""
    return bytes((5, rep, 0)) + Address(host, port).encode()


class Relay:
    """A server that grants an association, and its relay, which the test plays by hand."""

    def __init__(self, host: str = "127.0.0.1", bnd: str | None = None, method: int = 0) -> None:
        self.method = method
        self.sock = udp_socket(host)
        self.host, self.port = name_of(self.sock)
        self.bnd = bnd or self.host
        self.control: Any = None
        self.request = b""
        self.client: Any = None
        self.ended = gevent.event.Event()

    def __call__(self, sock: gevent.socket.socket, _: object) -> None:
        self.control = sock
        assert recv_exactly(sock, 3) == bytes((5, 1, self.method))
        sock.sendall(bytes((5, self.method)))
        head = recv_exactly(sock, 4)
        self.request = head + recv_exactly(sock, 6 if head[3] == 1 else 18)
        sock.sendall(reply(self.bnd, self.port))
        with suppress(OSError):
            while sock.recv(100):
                pass
        self.ended.set()

    def receive(self) -> bytes:
        """The next datagram from the client."""
        with gevent.Timeout(5, AssertionError("no datagram came")):
            octets, self.client = self.sock.recvfrom(65536)
        return octets

    def send(self, octets: bytes) -> None:
        """Send the client octets; it has to have sent some before."""
        self.sock.sendto(octets, self.client)


@contextmanager
def associated(relay: Relay, **options: Any) -> Iterator[Association]:
    """A client's association with ``relay``."""
    with serving(relay, relay.host) as address:
        with Client(address).associate(**options) as made:
            made.settimeout(5)
            yield made
        assert relay.ended.wait(5), "the control connection outlives it"
        relay.sock.close()


# --- the request ------------------------------------------------------------------------------


def test_the_request_does_not_claim_what_a_nat_may_change() -> None:
    relay = Relay()
    with associated(relay) as made:
        assert relay.request == bytes.fromhex("05 03 00 01 00000000 0000")
        assert made.relay == made.told == Address("127.0.0.1", relay.port)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_request_may_claim_where_datagrams_come_from(host: str) -> None:
    relay = Relay(host)
    with associated(relay, claim=True) as made:
        claimed = Address.decode(relay.request, 3)
        assert claimed == Address(*made.getsockname()[:2])
        assert str(claimed.host) == host
        assert claimed.port
        made.sendto(b"x", TARGET)
        assert relay.receive() == HEADER + b"x"
        assert relay.client[:2] == (host, claimed.port)


@pytest.mark.parametrize(
    ("bnd", "server", "expected"),
    [
        ("0.0.0.0", "127.0.0.1", True),
        ("::", "127.0.0.1", True),
        ("::", "::1", True),
        ("::ffff:0.0.0.0", "127.0.0.1", True),
        ("224.0.0.1", "127.0.0.1", True),
        ("relay.test", "127.0.0.1", True),
        ("127.0.0.9", "127.0.0.1", False),
    ],
)
def test_what_is_no_address_of_a_relay_is_the_servers(
    bnd: str, server: str, expected: bool
) -> None:
    relay = Relay(server, bnd)
    with associated(relay) as made:
        assert made.told == Address(bnd, relay.port)
        assert (str(made.relay.host) == server) is expected
        if expected:
            made.sendto(b"x", TARGET)
            assert relay.receive() == HEADER + b"x"


@pytest.mark.parametrize(
    ("told", "server", "expected"),
    [
        ("198.51.100.2", "198.51.100.1", True),
        ("8.8.8.8", "9.9.9.9", True),
        ("8.8.8.8", "10.0.0.1", True),
        ("10.0.0.1", "9.9.9.9", False),
        ("fd00::1", "9.9.9.9", False),
        ("10.0.0.2", "10.0.0.1", True),
        ("127.0.0.1", "10.0.0.1", False),
        ("169.254.0.1", "10.0.0.1", False),
        ("172.17.0.2", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("::1", "127.0.0.1", True),
        ("239.0.0.1", "127.0.0.1", False),
        ("0.0.0.0", "127.0.0.1", False),
        ("a.test", "127.0.0.1", False),
    ],
)
def test_who_reaches_the_server_reaches_no_narrower_place(
    told: str, server: str, expected: bool
) -> None:
    assert is_reachable(Address(told, 1), Address(server, 1080)) is expected


def test_a_relay_of_the_other_family() -> None:
    relay = Relay("::1")
    relay.host = "127.0.0.1"  # where the control connection is
    with associated(relay) as made:
        made.sendto(b"x", TARGET)
        assert relay.receive() == HEADER + b"x"
        relay.send(HEADER + b"y")
        assert made.recvfrom() == (b"y", Address(*TARGET))


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (reply("0.0.0.0", 0, rep=7), CommandNotSupported),
        (reply("0.0.0.0", 0, rep=2), RequestDenied),
        (b"\x04\0\0\1" + bytes(6), ProtocolError),
        (reply("127.0.0.1", 9)[:7], NegotiationTimeout),
    ],
    ids=["command", "denied", "version", "cut"],
)
def test_an_association_that_is_not_granted(answer: bytes, kind: type[Exception]) -> None:
    def serve(sock: gevent.socket.socket, _: object) -> None:
        recv_exactly(sock, 3)
        sock.sendall(CHOICE)
        recv_exactly(sock, 10)
        sock.sendall(answer)
        assert sock.recv(100) == b""

    with serving(serve) as address, pytest.raises(kind):
        Client(address).associate(timeout=0.2)


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            Client(free.getsockname()).associate()


# --- datagrams --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "header"),
    [
        (TARGET, HEADER),
        (Address(*TARGET), HEADER),
        (
            ("2001:db8::7", 53),
            bytes.fromhex("0000 00 04 20010db8000000000000000000000007 0035"),
        ),
        (("a.test", 53), bytes.fromhex("0000 00 03 06") + b"a.test\0\x35"),
        (("bücher.test", 53), bytes.fromhex("0000 00 03 12") + b"xn--bcher-kva.test\0\x35"),
        (("n" * 255, 53), bytes.fromhex("0000 00 03 ff") + b"n" * 255 + b"\0\x35"),
    ],
    ids=["ipv4", "address", "ipv6", "name", "idna", "longest-name"],
)
def test_the_header_is_the_rfcs(to: Any, header: bytes) -> None:
    relay = Relay()
    with associated(relay) as made:
        assert made.sendto(b"data", to) == 4
        assert relay.receive() == header + b"data"
        relay.send(header + b"answer")
        data, source = made.recvfrom()
        assert (data, source.encode()) == (b"answer", header[3:])


@pytest.mark.parametrize("to", [("", 1), ("n" * 256, 1), ("a.test", 65536), ("a.test", -1)])
def test_a_destination_that_cannot_be_sent(to: tuple[str, int]) -> None:
    with associated(Relay()) as made, pytest.raises(ValueError, match=r"."):
        made.sendto(b"x", to)


@pytest.mark.parametrize("size", [0, 1, BIGGEST])
def test_any_size_is_whole(size: int) -> None:
    relay = Relay()
    with associated(relay) as made:
        data = os.urandom(size)
        assert made.sendto(data, TARGET) == size
        assert relay.receive() == HEADER + data
        relay.send(HEADER + data)
        assert made.recvfrom() == (data, Address(*TARGET))


def test_any_buffer_is_data() -> None:
    relay = Relay()
    with associated(relay) as made:
        for data in (bytearray(b"x"), memoryview(b"x")):
            made.sendto(data, TARGET)  # type: ignore[arg-type]
            assert relay.receive() == HEADER + b"x"


def test_the_room_is_less_by_the_header_as_section_7_asks() -> None:
    with associated(Relay()) as made:
        assert made.room(("192.0.2.7", 53)) == BIGGEST == 65_507 - 10
        assert made.room(("2001:db8::7", 53)) == 65_507 - 22
        assert made.room(("a.test", 53)) == made.room() == 65_507 - 262
        for to in (TARGET, ("2001:db8::7", 53), ("n" * 255, 53)):
            made.sendto(bytes(made.room(to)), to)
            with pytest.raises(OSError, match="too long") as caught:
                made.sendto(bytes(made.room(to) + 1), to)
            assert caught.value.errno == errno.EMSGSIZE


def test_the_room_over_ipv6_is_ipv6s() -> None:
    relay = Relay("::1")
    with associated(relay) as made:
        assert made.room(TARGET) == 65_527 - 10
        made.sendto(bytes(65_517), TARGET)
        assert len(relay.receive()) == 65_527


def test_what_does_not_fit_the_callers_buffer_is_cut_as_a_socket_cuts() -> None:
    relay = Relay()
    with associated(relay) as made:
        made.sendto(b"", TARGET)
        relay.receive()
        relay.send(HEADER + b"answer")
        relay.send(HEADER + b"next")
        assert made.recvfrom(3)[0] == b"ans"
        assert made.recvfrom(3)[0] == b"nex"


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"\0\0\0\x01\xc0",
        bytes.fromhex("0000 01") + HEADER[3:] + b"x",
        bytes.fromhex("0000 81") + HEADER[3:] + b"x",
        bytes.fromhex("0100 00") + HEADER[3:] + b"x",
        bytes.fromhex("0000 00 02 c0000207 0035") + b"x",
        bytes.fromhex("0000 00 03 00 0035") + b"x",
    ],
    ids=["empty", "cut", "fragment", "last-fragment", "rsv", "atyp", "no-name"],
)
def test_what_is_no_whole_datagram_is_dropped(octets: bytes) -> None:
    relay = Relay()
    with associated(relay) as made:
        made.sendto(b"", TARGET)
        relay.receive()
        relay.send(octets)
        relay.send(HEADER + b"good")
        assert made.recvfrom()[0] == b"good"
        assert made.dropped == 1


def test_datagrams_from_elsewhere_are_dropped() -> None:
    relay = Relay()
    with associated(relay) as made:
        made.sendto(b"", TARGET)
        relay.receive()
        for host in ("127.0.0.1", "127.0.0.2"):
            stranger = udp_socket(host)
            stranger.sendto(HEADER + b"evil", relay.client)
            stranger.close()
        relay.send(HEADER + b"good")
        assert made.recvfrom()[0] == b"good"


# --- time, and waiting ------------------------------------------------------------------------


def test_timeouts_are_a_sockets() -> None:
    with associated(Relay()) as made:
        made.settimeout(0.05)
        assert made.gettimeout() == 0.05
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            made.recvfrom()
        assert 0.04 < time.monotonic() - start < 2
        made.settimeout(0)
        with pytest.raises(BlockingIOError):
            made.recvfrom()
        with pytest.raises(ValueError, match="below 0"):
            made.settimeout(-1)


def test_datagrams_to_drop_do_not_make_the_wait_longer() -> None:
    relay = Relay()
    with associated(relay) as made:
        made.sendto(b"", TARGET)
        relay.receive()

        def flood() -> None:
            while True:
                relay.send(b"junk")
                gevent.sleep(0.005)

        flooding = gevent.spawn(flood)
        made.settimeout(0.1)
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            made.recvfrom()
        assert time.monotonic() - start < 2
        assert made.dropped
        flooding.kill()


def test_a_flood_lets_others_run() -> None:
    relay = Relay()
    with associated(relay) as made:
        made.sendto(b"", TARGET)
        relay.receive()
        turns = []

        def other() -> None:
            while True:
                turns.append(len(turns))
                gevent.sleep(0)

        running = gevent.spawn(other)
        for _ in range(3):
            for _ in range(100):
                relay.send(HEADER)
            for _ in range(100):
                made.recvfrom()
        assert len(turns) >= 4
        running.kill()


def test_its_descriptor_can_be_waited_for() -> None:
    relay = Relay()
    with associated(relay) as made:
        made.sendto(b"", TARGET)
        relay.receive()
        assert select.select([made], [], [], 0) == ([], [], [])
        relay.send(HEADER + b"x")
        assert select.select([made], [], [], 5)[0] == [made]
        assert made.recvfrom()[0] == b"x"


def test_one_greenlet_receives() -> None:
    with associated(Relay()) as made:
        waiting = gevent.spawn(raised_by, made.recvfrom)
        gevent.sleep(0.01)
        with pytest.raises(gevent.exceptions.ConcurrentObjectUseError):
            made.recvfrom()
        made.close()
        assert isinstance(waiting.get(timeout=5), OSError)


# --- its end ----------------------------------------------------------------------------------


def raised_by(call: Callable[..., object], *args: object) -> BaseException | None:
    """What ``call`` raises; a greenlet that ends in an exception would print it."""
    try:
        call(*args)
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("how", ["close", "reset", "chatter"])
def test_the_end_of_the_control_connection_is_its_end(how: str) -> None:
    relay = Relay()
    with associated(relay) as made:
        made.settimeout(None)
        waiting = gevent.spawn(raised_by, made.recvfrom)
        gevent.sleep(0.01)
        if how == "close":
            relay.control.shutdown(socket.SHUT_WR)
        elif how == "reset":
            reset(relay.control)
            relay.ended.set()
        else:
            relay.control.sendall(bytes(association.MAX_STRAY + 1))
        error = waiting.get(timeout=5)
        assert isinstance(error, RelayBroken)
        assert isinstance(error, ConnectionError)
        with pytest.raises(ConnectionError, match="the association is over"):
            made.recvfrom()
        with pytest.raises(ConnectionError, match="the association is over"):
            made.sendto(b"x", TARGET)


def test_stray_octets_on_the_control_connection_are_ignored() -> None:
    relay = Relay()
    with associated(relay) as made:
        relay.control.sendall(bytes(1000))
        made.sendto(b"x", TARGET)
        relay.receive()
        relay.send(HEADER + b"y")
        assert made.recvfrom()[0] == b"y"


def test_closing_ends_a_wait() -> None:
    with associated(Relay()) as made:
        waiting = gevent.spawn(raised_by, made.recvfrom)
        gevent.sleep(0.01)
        made.close()
        made.close()
        error = waiting.get(timeout=5)
        assert isinstance(error, OSError)
        assert error.errno == errno.EBADF
        assert made.fileno() == -1
        for call in (made.recvfrom, lambda: made.sendto(b"", TARGET)):
            with pytest.raises(OSError, match="Bad file"):
                call()


def test_icmp_of_one_datagram_harms_no_other() -> None:
    relay = Relay()
    with associated(relay) as made:
        port = relay.port
        relay.sock.close()
        for _ in range(3):  # ECONNREFUSED is told at the next call
            made.sendto(b"lost", TARGET)
        made.sendto(b"lost", TARGET)
        made.settimeout(0.05)
        with pytest.raises(TimeoutError):
            made.recvfrom()
        relay.sock = udp_socket()
        relay.sock.close()
        relay.sock = gevent.socket.socket(type=socket.SOCK_DGRAM)
        relay.sock.bind(("127.0.0.1", port))
        made.sendto(b"x", TARGET)
        assert relay.receive() == HEADER + b"x"


# --- sealed -----------------------------------------------------------------------------------


class Xor:
    """A seal that turns octets over and puts four before them; ``T`` is the first."""

    def wrap(self, datagram: bytes, /) -> bytes:
        return b"T" + len(datagram).to_bytes(3) + bytes(octet ^ 0xFF for octet in datagram)

    def unwrap(self, datagram: bytes, /) -> bytes:
        if datagram[:1] != b"T":
            raise ProtocolError("clear")
        return bytes(octet ^ 0xFF for octet in datagram[4:])

    def room(self, size: int, /) -> int:
        return max(0, size - 4)


class Sealing:
    """A method that seals datagrams and leaves the connection as it is."""

    method = 0x80

    def present(self, stream: Stream) -> Grant:
        return Grant(stream, seal=Xor())

    def authenticate(self, stream: Stream, peer: Address) -> Grant:
        return Grant(stream, "alice", seal=Xor())


@contextmanager
def sealed() -> Iterator[tuple[Relay, Association]]:
    """An association whose datagrams are sealed."""
    relay = Relay(method=0x80)
    with serving(relay) as address:
        with Client(address, [Sealing()]).associate() as made:
            made.settimeout(5)
            yield relay, made
        relay.sock.close()


def test_datagrams_are_sealed_header_and_all() -> None:
    seal = Xor()
    with sealed() as (relay, made):
        made.sendto(b"data", TARGET)
        assert relay.receive() == seal.wrap(HEADER + b"data")
        relay.send(HEADER + b"clear")
        relay.send(seal.wrap(HEADER + b"answer"))
        assert made.recvfrom() == (b"answer", Address(*TARGET))
        assert made.dropped == 1


def test_the_room_is_less_by_what_the_seal_adds() -> None:
    with sealed() as (relay, made):
        assert made.room(TARGET) == 65_507 - 4 - 10
        made.sendto(bytes(made.room(TARGET)), TARGET)
        assert len(relay.receive()) == 65_507
        with pytest.raises(OSError, match="too long") as caught:
            made.sendto(bytes(made.room(TARGET) + 1), TARGET)
        assert caught.value.errno == errno.EMSGSIZE


# --- against our own server -------------------------------------------------------------------


def echo_sizes(made: Association, target: tuple[str, int], sizes: tuple[int, ...]) -> None:
    """Send datagrams of these sizes to an echo, and see that they come back."""
    made.settimeout(5)
    for size in sizes:
        data = os.urandom(size)
        made.sendto(data, target)
        assert made.recvfrom() == (data, Address(*target))


@pytest.mark.parametrize("claim", [False, True])
def test_through_our_server(claim: bool) -> None:
    with answering() as (target, _), proxy() as (server, _):
        client = Client(server.addresses[0])
        with client.associate(claim=claim) as made:
            echo_sizes(made, target, (0, 1, 1472, 9000, BIGGEST))
            assert not made.dropped


def test_through_our_server_by_name() -> None:
    with (
        dns({"echo.test": ["127.0.0.1"]}) as names,
        answering() as ((_, port), _),
        proxy(Policy(rules=EVERYWHERE, resolver=names.resolver())) as (server, _),
        Client(server.addresses[0]).associate() as made,
    ):
        made.settimeout(5)
        made.sendto(b"x", ("echo.test", port))
        assert made.recvfrom() == (b"x", Address("127.0.0.1", port))
        server.policy.resolver.close()  # type: ignore[attr-defined]


def test_through_our_server_sealed() -> None:
    policy = Policy(rules=EVERYWHERE, authenticators=(Sealing(),))
    with answering() as (target, _), proxy(policy) as (server, _):
        client = Client(server.addresses[0], [Sealing()])
        with client.associate() as made:
            echo_sizes(made, target, (0, 1, 9000, BIGGEST - 4))


def test_our_server_stops() -> None:
    with proxy() as (server, _), Client(server.addresses[0]).associate() as made:
        waiting = gevent.spawn(raised_by, made.recvfrom)
        gevent.sleep(0.01)
        server.stop()
        assert isinstance(waiting.get(timeout=5), GeosocksError)


def test_our_server_denies_udp() -> None:
    rules = RuleSet.parse("allow command connect to everywhere\n")
    with proxy(Policy(rules=rules)) as (server, _), pytest.raises(RequestDenied):
        Client(server.addresses[0]).associate()


def test_two_thousand_datagrams_in_a_window_all_come_back() -> None:
    with (
        answering() as (target, _),
        proxy() as (server, _),
        Client(server.addresses[0]).associate() as made,
    ):
        made.settimeout(5)
        seen = set()
        for start in range(0, 2000, 20):
            for number in range(start, start + 20):
                made.sendto(number.to_bytes(4), target)
            for _ in range(20):
                seen.add(int.from_bytes(made.recvfrom()[0]))
        assert seen == set(range(2000))


@pytest.fixture(scope="module")
def threads() -> None:
    """The threads for context steps stay, and are no leak."""
    start_threads()


@pytest.mark.kerberos
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("level", [ProtectionLevel.INTEGRITY, ProtectionLevel.CONFIDENTIALITY])
def test_under_gssapi(realm: Realm, level: ProtectionLevel) -> None:
    authenticator = GssAuthenticator(keytab=realm.keytab, levels=[level])
    policy = Policy(rules=EVERYWHERE, authenticators=(authenticator,))
    with (
        environment(KRB5CCNAME=realm.ticket()),
        answering() as (target, _),
        proxy(policy) as (server, _),
    ):
        address = ("localhost", server.addresses[0][1])
        client = Client(address, [GssCredential("localhost", level=level)])
        with client.associate() as made:
            room = made.room(target)
            assert BIGGEST - 100 < room < BIGGEST
            echo_sizes(made, target, (0, 1, 1400, 9000))
            made.sendto(bytes(room), target)
            assert len(made.recvfrom()[0]) == room
            with pytest.raises(OSError, match="too long"):
                made.sendto(bytes(room + 1), target)
            # Loss and another order are a datagram's life.
            first, second = (made.grant.seal.wrap(header(target) + it) for it in (b"1", b"2"))  # type: ignore[union-attr]
            for octets in (second, first, first):
                made._sock.send(octets)
            assert {made.recvfrom()[0] for _ in range(2)} == {b"1", b"2"}
            made.settimeout(0.05)
            with pytest.raises(TimeoutError):
                made.recvfrom()


def header(to: tuple[str, int]) -> bytes:
    """A UDP request header."""
    return b"\0\0\0" + Address(*to).encode()
