"""UDP through an upstream, and through a chain of them."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import gevent
import gevent.socket
import pytest

from geosocks.auth import NoAuth
from geosocks.auth.gss import GssAuthenticator, GssCredential
from geosocks.client import Client
from geosocks.codes import Rep
from geosocks.errors import ProtocolError
from geosocks.events import (
    RequestRefused,
    SessionClosed,
    SessionCrashed,
    UdpEnded,
    UpstreamFailed,
)
from geosocks.policy import Policy
from geosocks.relay.direct import DirectDialer
from geosocks.rules import RuleSet
from geosocks.server import Server
from geosocks.upstream import SocksHop, Upstream
from geosocks.upstream.datagrams import NestedSeal, relay_of
from geosocks.wire.socks5 import Address
from tests.support.fake_gss import FakeContext, start_threads
from tests.support.net import recv_all, recv_exactly, serving
from tests.support.servers import EVERYWHERE, Witness, proxy
from tests.support.upstreams import (
    BOUND,
    GREETING,
    NAME,
    Book,
    Fake,
    Script,
    associated,
    octets,
    through,
    upstreams,
)

pytestmark = pytest.mark.usefixtures("no_leaks")


def udp_socket() -> gevent.socket.socket:
    sock = gevent.socket.socket(gevent.socket.AF_INET, gevent.socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.settimeout(3)
    return sock


@contextmanager
def udp_echo() -> Iterator[tuple[str, int]]:
    """Answers each datagram with itself, in capitals."""
    sock = udp_socket()
    sock.settimeout(None)

    def answer() -> None:
        while True:
            data, source = sock.recvfrom(65536)
            sock.sendto(data.upper(), source)

    greenlet = gevent.spawn(answer)
    try:
        yield sock.getsockname()
    finally:
        greenlet.kill()
        sock.close()


def datagram(host: str, port: int, data: bytes) -> bytes:
    return b"\0\0\0" + Address(host, port).encode() + data


@pytest.mark.parametrize("host", ["127.0.0.1", NAME])
def test_datagrams_through_geosocks_which_looks_their_names_up(host: str) -> None:
    there, here = Book(www_corp_test="127.0.0.1"), Book()
    exit_policy = Policy(rules=EVERYWHERE, resolver=there)
    with udp_echo() as (_, port), proxy(exit_policy) as (exit_, exit_saw):
        url = f"socks5://127.0.0.1:{exit_.addresses[0][1]}"
        with through(url, book=here) as (server, witness):
            control, reply = associated(server)
            assert reply.rep == 0
            sock = udp_socket()
            relay = (str(reply.bound.host), reply.bound.port)
            for size in (0, 1, 1000, 60_000):
                sock.sendto(datagram(host, port, b"x" * size), relay)
                assert sock.recv(65536) == datagram("127.0.0.1", port, b"X" * size)
            control.close()
            closed = witness.wait(SessionClosed)
            assert (closed.reason, closed.upstream) == ("closed", "u0")
            assert closed.up == closed.down == 61_001
            assert exit_saw.wait(SessionClosed).reason == "closed"
            sock.close()
    assert here.asked == []
    assert there.asked == ([NAME] if host == NAME else [])


@contextmanager
def udp_fake() -> Iterator[tuple[str, int, gevent.socket.socket, list[Any]]]:
    """A SOCKS5 server that grants an association; its relay's socket, and its connections."""
    relay = udp_socket()
    controls: list[Any] = []
    script = [
        *GREETING,
        (
            octets("05 03 00 01 00000000 0000"),
            octets("05 00 00 01 00000000") + relay.getsockname()[1].to_bytes(2),
        ),
    ]

    def hold(sock: gevent.socket.socket) -> None:
        controls.append(sock)
        recv_all(sock)

    with serving(Fake(script, hold)) as (ip, port):
        yield ip, port, relay, controls
    relay.close()


def test_datagrams_travel_as_they_are_and_what_is_none_is_dropped() -> None:
    with (
        udp_fake() as (ip, port, relay, controls),
        through(f"socks5://{ip}:{port}") as (server, witness),
    ):
        control, reply = associated(server)
        assert reply.rep == 0
        sock = udp_socket()
        sock.connect((str(reply.bound.host), reply.bound.port))
        sent = datagram(NAME, 53, b"question")
        sock.send(sent)
        got, source = relay.recvfrom(65536)
        assert got == sent
        for noise in (b"", b"\0", b"\0\0\1" + sent[3:], b"\0\0\0\x07abc", sent[:9]):
            relay.sendto(noise, source)
        stranger = udp_socket()
        stranger.sendto(datagram("192.0.2.7", 53, b"spoofed"), source)
        stranger.close()
        answer = datagram("192.0.2.7", 53, b"answer")
        relay.sendto(answer, source)
        assert sock.recv(65536) == answer
        controls[0].shutdown(gevent.socket.SHUT_WR)
        with pytest.raises(ConnectionResetError):
            recv_all(control)
        closed = witness.wait(SessionClosed)
        assert closed.reason == "reset_by_target: upstream u0 ended the association"
        assert (closed.up, closed.down) == (8, 6)
        sock.close()
        control.close()


def test_a_datagram_that_a_rule_denies_reaches_no_upstream() -> None:
    rules = RuleSet.parse("deny port 53\nallow to any\n")
    with (
        udp_fake() as (ip, port, relay, _),
        through(f"socks5://{ip}:{port}", rules=rules) as (server, _witness),
    ):
        control, reply = associated(server)
        sock = udp_socket()
        sock.connect((str(reply.bound.host), reply.bound.port))
        for host, number in ((NAME, 53), ("10.0.0.1", 80), ("127.0.0.1", 80), (NAME, 80)):
            sock.send(datagram(host, number, b"x"))
        assert relay.recv(65536) == datagram(NAME, 80, b"x")
        sock.close()
        control.close()


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ([(octets("05 01 00"), octets("05 ff"))], Rep.GENERAL_FAILURE),
        *(
            (
                [
                    *GREETING,
                    (octets("05 03 00 01 00000000 0000"), bytes((5, code, 0)) + BOUND),
                ],
                code,
            )
            for code in (1, 2, 7, 9)
        ),
        ([*GREETING, (octets("05 03 00 01 00000000 0000"), b"")], Rep.GENERAL_FAILURE),
    ],
)
def test_an_upstream_that_grants_no_association(script: Script, code: int) -> None:
    with (
        serving(Fake(script, after=lambda sock: sock.close())) as (ip, port),
        through(f"socks5://{ip}:{port}") as (server, _),
    ):
        control, reply = associated(server)
        assert reply.rep == code
        control.close()


def test_udp_goes_through_socks5_servers_and_nothing_else() -> None:
    with udp_fake() as (ip, port, _, _):
        here = f"{ip}:{port}"
        for urls, complaint in (
            ({"a": f"http://{here}"}, "HTTP knows no UDP"),
            ({"a": f"socks4a://{here}"}, "SOCKS4 knows no UDP"),
            ({"b": f"socks4a://{here}", "a": f"socks5://{here}?via=b"}, "SOCKS4 knows no UDP"),
        ):
            made = upstreams(**urls)
            with proxy(Policy(rules=EVERYWHERE, dialers=made, via=("a",))) as (server, witness):
                control, reply = associated(server)
                assert reply.rep == Rep.COMMAND_NOT_SUPPORTED
                assert complaint in witness.wait(RequestRefused).reason
                assert not witness.of(UpstreamFailed)
                control.close()


# --- UDP through a chain ----------------------------------------------------------------------


def sealing() -> GssAuthenticator:
    """GSSAPI's server half, with contexts that only pretend."""
    return GssAuthenticator(new_context=lambda: FakeContext(b"server", expects=(b"client",)))


def sealed() -> GssCredential:
    """And the client's."""
    return GssCredential(
        "proxy", new_context=lambda: FakeContext(b"client", None, expects=(None, b"server"))
    )


@pytest.fixture
def threads() -> None:
    """The threads for context steps stay, and are no leak."""
    start_threads()


Hops = Sequence[tuple[Server, Witness]]


@contextmanager
def chain(*methods: str, last: Book) -> Iterator[tuple[Server, Witness, Hops]]:
    """A server whose upstream is a chain of servers, with GSSAPI (g) or no authentication (n)."""
    with ExitStack() as stack:
        hops: list[tuple[Server, Witness]] = []
        for number, method in enumerate(methods):
            policy = Policy(
                rules=EVERYWHERE, resolver=last if number == len(methods) - 1 else Book()
            )
            if method == "g":
                policy = policy.replace(authenticators=(sealing(),))
            hops.append(stack.enter_context(proxy(policy)))
        made = Upstream(
            "c",
            [
                SocksHop(Client(hop.addresses[0], [sealed() if method == "g" else NoAuth()]))
                for (hop, _), method in zip(hops, methods, strict=True)
            ],
            Book(),
            DirectDialer(),
        )
        policy = Policy(rules=EVERYWHERE, resolver=Book(), dialers={"c": made}, via=("c",))
        server, witness = stack.enter_context(proxy(policy))
        yield server, witness, hops
        assert not any(saw.of(SessionCrashed) for _, saw in (*hops, (server, witness)))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("host", ["127.0.0.1", NAME])
@pytest.mark.parametrize("methods", ["nn", "gg", "ng", "gn", "nnn", "ggg", "gng"])
def test_datagrams_through_a_chain_and_only_the_last_looks_names_up(
    methods: str, host: str
) -> None:
    book = Book(www_corp_test="127.0.0.1")
    with udp_echo() as (_, port), chain(*methods, last=book) as (server, witness, hops):
        control, reply = associated(server)
        assert reply.rep == 0
        sock = udp_socket()
        relay = (str(reply.bound.host), reply.bound.port)
        for size in (0, 1, 1000, 60_000):
            sock.sendto(datagram(host, port, b"x" * size), relay)
            assert sock.recv(65536) == datagram("127.0.0.1", port, b"X" * size)
        control.close()
        closed = witness.wait(SessionClosed)
        assert (closed.reason, closed.upstream) == ("closed", "c")
        assert closed.up == closed.down == 61_001
        for number, (_, saw) in enumerate(hops):
            # The association, and a connection to each hop behind it.
            saw.wait(SessionClosed, len(hops) - number)
            assert len(saw.of(UdpEnded)) == 1
            ended = saw.of(UdpEnded)[0]
            assert (ended.datagrams_up, ended.datagrams_down) == (4, 4)
        sock.close()
    assert book.asked == ([NAME] if host == NAME else [])


class Six:
    """A seal that adds as much as ours with a ``FakeContext``: four octets, and its two."""

    def wrap(self, datagram: bytes, /) -> bytes:
        return b"sealed" + datagram

    def unwrap(self, datagram: bytes, /) -> bytes:
        return datagram[6:]

    def room(self, size: int, /) -> int:
        return size - 6


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("methods", ["nn", "gg", "ngn"])
def test_the_longest_datagram_through_a_chain(methods: str) -> None:
    """The headers of all hops, and what encapsulation adds, come off the longest there can be."""
    fakes = [Six() if method == "g" else None for method in methods]
    behind = [Address("127.0.0.1", 1)] * (len(methods) - 1)
    room = NestedSeal(fakes, behind).room(65_507)
    assert room == 65_507 - 10 * len(behind) - 6 * methods.count("g")
    data = room - 10
    with udp_echo() as (_, port), chain(*methods, last=Book()) as (server, witness, _):
        control, reply = associated(server)
        sock = udp_socket()
        sock.connect((str(reply.bound.host), reply.bound.port))
        too_long = int("g" not in methods)  # our pretended contexts cannot do without one of theirs
        if too_long:
            sock.send(datagram("127.0.0.1", port, b"x" * (data + 1)))
        sock.send(datagram("127.0.0.1", port, b"x" * data))
        assert sock.recv(65536) == datagram("127.0.0.1", port, b"X" * data)
        control.close()
        ended = witness.wait(UdpEnded)
        assert (ended.datagrams_up, ended.failed) == (1, too_long)
        sock.close()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_association_through_a_chain_ends_with_any_hop(number: int) -> None:
    with chain("n", "n", "n", last=Book()) as (server, witness, hops):
        control, reply = associated(server)
        assert reply.rep == 0
        hops[number][0].stop()
        with suppress(ConnectionResetError):
            assert recv_all(control) == b""
        closed = witness.wait(SessionClosed)
        assert closed.reason.startswith("reset_by_target: upstream c")
        control.close()


def test_what_goes_through_a_chain_octet_by_octet() -> None:
    """Two hops: two connections to the first, an association with each, a header for each."""
    first, second = udp_socket(), udp_socket()
    met: list[str] = []

    def hop(sock: gevent.socket.socket, _: object) -> None:
        assert recv_exactly(sock, 3) == octets("05 01 00")
        sock.sendall(octets("05 00"))
        asked = recv_exactly(sock, 10)
        met.append(asked[:2].hex())
        relay = second if met == ["0503", "0501", "0503"] else first
        if asked[1] == 1:
            assert asked == octets("05 01 00 01 c0000209 0438")
            sock.sendall(octets("05 00 00 01 00000000 0000"))
            hop(sock, None)
            return
        assert asked == octets("05 03 00 01 00000000 0000")
        # The second tells no address: it is where we reach it, 192.0.2.9.
        sock.sendall(octets("05 00 00 01 00000000") + relay.getsockname()[1].to_bytes(2))
        recv_all(sock)

    with serving(hop) as (ip, port):
        made = upstreams(a=f"socks5://{ip}:{port}", b="socks5://192.0.2.9:1080?via=a")
        with proxy(Policy(rules=EVERYWHERE, dialers=made, via=("b",))) as (server, witness):
            control, reply = associated(server)
            assert reply.rep == 0
            assert met == ["0503", "0501", "0503"]
            sock = udp_socket()
            sock.connect((str(reply.bound.host), reply.bound.port))
            sent = datagram(NAME, 53, b"question")
            outer = octets("0000 00 01 c0000209") + second.getsockname()[1].to_bytes(2)
            sock.send(sent)
            got, source = first.recvfrom(65536)
            assert got == outer + sent
            answer = datagram("192.0.2.7", 53, b"answer")
            bad = (
                answer,  # from the target itself, not by the second relay
                datagram("192.0.2.9", 1, answer),  # from another port of the second hop
                datagram("192.0.2.8", second.getsockname()[1], answer),  # from another host
                octets("0000 01") + outer[3:] + answer,  # a fragment
                outer + answer[:9],
                outer,
                b"",
            )
            for noise in bad:
                first.sendto(noise, source)
            first.sendto(outer + answer, source)
            assert sock.recv(65536) == answer
            sock.close()
            control.close()
            assert witness.wait(UdpEnded).failed == len(bad)
    first.close()
    second.close()


@pytest.mark.parametrize(
    ("rep_of_first", "code", "failed"),
    [(7, Rep.COMMAND_NOT_SUPPORTED, 0), (2, Rep.GENERAL_FAILURE, 1)],
)
def test_a_chain_whose_first_hop_will_not_relay(rep_of_first: int, code: int, failed: int) -> None:
    script = [
        *GREETING,
        (octets("05 03 00 01 00000000 0000"), bytes((5, rep_of_first, 0)) + BOUND),
    ]
    with serving(Fake(script, recv_all)) as (ip, port):
        made = upstreams(a=f"socks5://{ip}:{port}", b="socks5://192.0.2.9:1080?via=a")
        with proxy(Policy(rules=EVERYWHERE, dialers=made, via=("b",))) as (server, witness):
            control, reply = associated(server)
            assert reply.rep == code
            assert len(witness.of(UpstreamFailed)) == failed
            control.close()


def test_a_relay_with_a_name_is_who_answers_first_from_its_port() -> None:
    seal = NestedSeal([None, None], [Address("gw.test", 9)])
    sent = datagram(NAME, 53, b"x")
    assert seal.wrap(sent) == datagram("gw.test", 9, sent)
    with pytest.raises(ProtocolError):
        seal.unwrap(datagram("192.0.2.9", 10, sent))
    assert seal.unwrap(datagram("192.0.2.9", 9, sent)) == sent
    with pytest.raises(ProtocolError):
        seal.unwrap(datagram("192.0.2.8", 9, sent))
    assert seal.unwrap(datagram("192.0.2.9", 9, sent)) == sent


@pytest.mark.parametrize(
    ("told", "server", "relay"),
    [
        ("198.51.100.1", "203.0.113.1", "198.51.100.1"),
        ("0.0.0.0", "203.0.113.1", "203.0.113.1"),
        ("::", "gw.test", "gw.test"),
        ("10.0.0.1", "8.8.8.8", "8.8.8.8"),
        ("10.0.0.1", "10.0.0.2", "10.0.0.1"),
        ("127.0.0.1", "10.0.0.2", "10.0.0.2"),
        ("127.0.0.1", "localhost", "127.0.0.1"),
        ("relay.test", "8.8.8.8", "relay.test"),
    ],
)
def test_where_the_relay_of_a_hop_is(told: str, server: str, relay: str) -> None:
    assert relay_of(Address(told, 9), Address(server, 1080)) == Address(relay, 9)
