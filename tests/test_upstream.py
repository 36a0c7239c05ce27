"""Upstreams: what is said to each kind of proxy, what each answer becomes, failover and chains."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import gevent
import gevent.socket
import pytest

from geosocks.auth import Grant
from geosocks.auth.userpass import PasswordAuthenticator
from geosocks.client import Client
from geosocks.codes import Rep
from geosocks.config import build_policy, load_settings, shown
from geosocks.errors import (
    AuthFailed,
    ConfigError,
    RequestDenied,
    RequestFailed,
    TargetRefused,
)
from geosocks.events import (
    RequestRefused,
    SessionClosed,
    SessionEstablished,
    UpstreamFailed,
    UpstreamRecovered,
)
from geosocks.policy import Policy, Timeouts
from geosocks.relay.direct import DirectDialer
from geosocks.rules import RuleSet
from geosocks.stream import Connection, Stream
from geosocks.upstream import (
    Health,
    SocksHop,
    Upstream,
    UpstreamUnusable,
    build_upstreams,
    hop_of,
    split_via,
)
from geosocks.wire.socks5 import UNSPECIFIED, Address, IPAddress, Reply
from tests.support.net import echo, recv_all, recv_exactly, reset, serving, unused_port, wait_for
from tests.support.servers import EVERYWHERE, greeted, proxy, read_reply, request
from tests.support.upstreams import (
    BEHIND,
    BOUND,
    GREETING,
    NAME,
    NAME_FIELD,
    Book,
    Fake,
    Script,
    ask,
    associated,
    octets,
    rep,
    through,
    upstreams,
)

pytestmark = pytest.mark.usefixtures("no_leaks")

SOON = Timeouts(connect=0.4)

# URL with {} for host:port; what is asked for; what is said.
TRANSCRIPTS: Mapping[str, tuple[str, str, Script, Address]] = {
    "socks5-name": (
        "socks5://{}",
        NAME,
        [
            (octets("05 01 00"), octets("05 00")),
            (octets("05 01 00 03") + NAME_FIELD + b"\x00\x50", octets("05 00 00") + BOUND + BEHIND),
        ],
        Address("192.0.2.7", 8080),
    ),
    "socks5h-ipv4": (
        "socks5h://{}",
        "198.51.100.9",
        [
            (octets("05 01 00"), octets("05 00")),
            (octets("05 01 00 01 c6336409 0050"), octets("05 00 00") + BOUND + BEHIND),
        ],
        Address("192.0.2.7", 8080),
    ),
    "socks5-ipv6-and-a-name-as-bnd": (
        "socks5://{}",
        "2001:db8::9",
        [
            (octets("05 01 00"), octets("05 00")),
            (
                octets("05 01 00 04 20010db8000000000000000000000009 0050"),
                octets("05 00 00 03 02 6162 0050") + BEHIND,
            ),
        ],
        UNSPECIFIED,
    ),
    "socks5-password": (
        "socks5://alice:won%3Ader@{}",
        NAME,
        [
            (octets("05 01 02"), octets("05 02")),
            (b"\x01\x05alice\x07won:der", octets("01 00")),
            (octets("05 01 00 03") + NAME_FIELD + b"\x00\x50", octets("05 00 00") + BOUND + BEHIND),
        ],
        Address("192.0.2.7", 8080),
    ),
    "socks4a-name": (
        "socks4a://{}",
        NAME,
        [
            (
                octets("04 01 0050 00000001 00") + NAME.encode() + b"\x00",
                octets("00 5a 0000 00000000") + BEHIND,
            )
        ],
        UNSPECIFIED,
    ),
    "socks4a-userid-and-address": (
        "socks4a://al%20ice@{}",
        "198.51.100.9",
        [(octets("04 01 0050 c6336409") + b"al ice\x00", octets("00 5a 0000 00000000") + BEHIND)],
        UNSPECIFIED,
    ),
    "socks4-looks-up-itself": (
        "socks4://{}",
        NAME,
        [(octets("04 01 0050 c6336409 00"), octets("00 5a 0000 00000000") + BEHIND)],
        UNSPECIFIED,
    ),
    "http-name": (
        "http://{}",
        NAME,
        [
            (
                b"CONNECT www.corp.test:80 HTTP/1.1\r\nHost: www.corp.test:80\r\n\r\n",
                b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n" + BEHIND,
            )
        ],
        UNSPECIFIED,
    ),
    "http-basic-ipv6-and-interim": (
        "http://al%40ice:won%3Ader@{}",
        "2001:db8::9",
        [
            (
                b"CONNECT [2001:db8::9]:80 HTTP/1.1\r\nHost: [2001:db8::9]:80\r\n"
                b"Proxy-Authorization: Basic YWxAaWNlOndvbjpkZXI=\r\n\r\n",
                b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 204 Fine\r\n\r\n" + BEHIND,
            )
        ],
        UNSPECIFIED,
    ),
}


@pytest.mark.parametrize(
    ("url", "host", "script", "bound"), TRANSCRIPTS.values(), ids=TRANSCRIPTS.keys()
)
def test_what_is_said_to_each_kind_of_proxy(
    url: str, host: str, script: Script, bound: Address
) -> None:
    fake = Fake(script)
    book = Book(**{NAME.replace(".", "_"): "2001:db8::1 198.51.100.9"})
    with (
        serving(fake) as (ip, port),
        through(url.format(f"{ip}:{port}"), book=book) as (
            server,
            witness,
        ),
    ):
        reply, sock = ask(server, host)
        assert (reply.rep, reply.bound) == (0, bound)
        assert recv_exactly(sock, len(BEHIND)) == BEHIND
        [session] = server.sessions.values()
        assert type(session.target) is Connection, "it could not be spliced"
        sock.sendall(b"hello")
        assert recv_exactly(sock, 5) == b"hello"
        sock.shutdown(gevent.socket.SHUT_WR)
        assert recv_all(sock) == b""
        sock.close()
        closed = witness.wait(SessionClosed)
        assert (closed.reason, closed.up, closed.down) == ("closed", 5, 5 + len(BEHIND))
        assert closed.upstream == "u0"
        assert closed.dialled == Address(ip, port)
        assert closed.destination == Address(host, 80)
        established = witness.of(SessionEstablished)[0]
        assert (established.upstream, established.dialled) == ("u0", Address(ip, port))
    assert fake.met == [expected for expected, _ in script]
    assert book.asked == ([NAME] if url.startswith("socks4:") and host == NAME else [])


@pytest.mark.parametrize(
    "kind", ["socks5-password", "socks4a-name", "http-basic-ipv6-and-interim", "socks5-name"]
)
def test_answers_that_come_octet_by_octet(kind: str) -> None:
    url, host, script, _ = TRANSCRIPTS[kind]

    def slow(sock: gevent.socket.socket, _: object) -> None:
        for expected, answer in script:
            assert recv_exactly(sock, len(expected)) == expected
            for octet in answer:
                sock.sendall(bytes((octet,)))
                gevent.sleep(0)
        echo(sock, None)

    with serving(slow) as (ip, port), through(url.format(f"{ip}:{port}")) as (server, _witness):
        reply, sock = ask(server, host)
        assert reply.rep == 0
        assert recv_exactly(sock, len(BEHIND)) == BEHIND
        sock.close()


# --- answers that are no ----------------------------------------------------------------------


@pytest.mark.parametrize("code", [*range(1, 9), 0x09, 0x5B, 0xFF])
def test_a_refusal_by_a_socks5_server_is_passed_on_and_is_no_failure(code: int) -> None:
    fake = Fake(
        [
            (octets("05 01 00"), octets("05 00")),
            (octets("05 01 00 03") + NAME_FIELD + b"\x00\x50", bytes((5, code, 0)) + BOUND),
        ],
        after=lambda sock: sock.close(),
    )
    with serving(fake) as (ip, port), through(f"socks5://{ip}:{port}") as (server, witness):
        assert rep(server) == code
        refused = witness.wait(RequestRefused)
        assert refused.reply == code
        assert "upstream u0" in refused.reason
        assert f"X'{code:02X}'" in refused.reason
        assert not witness.of(UpstreamFailed)
        assert rep(server) == code
    assert fake.sessions == 2


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, Rep.GENERAL_FAILURE),
        (302, Rep.GENERAL_FAILURE),
        (403, Rep.NOT_ALLOWED),
        (404, Rep.HOST_UNREACHABLE),
        (405, Rep.COMMAND_NOT_SUPPORTED),
        (451, Rep.NOT_ALLOWED),
        (500, Rep.GENERAL_FAILURE),
        (501, Rep.COMMAND_NOT_SUPPORTED),
        (502, Rep.HOST_UNREACHABLE),
        (503, Rep.HOST_UNREACHABLE),
        (504, Rep.TTL_EXPIRED),
        (999, Rep.GENERAL_FAILURE),
    ],
)
def test_a_refusal_by_an_http_proxy(status: int, code: int) -> None:
    def answer(sock: gevent.socket.socket, _: object) -> None:
        sock.recv(1000)
        sock.sendall(b"HTTP/1.1 %d No\x07\r\nX: y\r\n\r\n<html>" % status)
        sock.close()

    with serving(answer) as (ip, port), through(f"http://{ip}:{port}") as (server, witness):
        assert rep(server) == code
        assert f"the proxy answers {status} No" in witness.wait(RequestRefused).reason
        assert not witness.of(UpstreamFailed)


def test_a_refusal_by_a_socks4_server() -> None:
    for code in (91, 0, 255):
        fake = Fake([(octets("04 01 0050 c6336409 00"), bytes((0, code)) + bytes(6))])
        with serving(fake) as (ip, port), through(f"socks4a://{ip}:{port}") as (server, witness):
            assert rep(server, "198.51.100.9") == Rep.GENERAL_FAILURE
            assert f"CD {code}" in witness.wait(RequestRefused).reason
            assert not witness.of(UpstreamFailed)


def test_plain_socks4_has_no_room_for_ipv6() -> None:
    with serving(Fake([])) as (ip, port), through(f"socks4://{ip}:{port}") as (server, witness):
        assert rep(server, "2001:db8::1") == Rep.ADDRESS_TYPE_NOT_SUPPORTED
        assert rep(server, NAME) == Rep.HOST_UNREACHABLE
        assert not witness.of(UpstreamFailed)


# --- upstreams that break ---------------------------------------------------------------------

REQUEST = octets("05 01 00 03") + NAME_FIELD + b"\x00\x50"
USERPASS = [(octets("05 01 02"), octets("05 02"))]

BREAKS = [
    ("socks5://{}", [(octets("05 01 00"), octets("05 ff"))], "no method that we offer", 30.0),
    ("socks5://{}", [(octets("05 01 00"), octets("05 02"))], "was not offered", 30.0),
    ("socks5://{}", [(octets("05 01 00"), octets("05"))], "closed after 1 octets", 30.0),
    ("socks5://{}", [(octets("05 01 00"), b"")], "closed before its next message", 30.0),
    ("socks5://{}", [(octets("05 01 00"), b"HTTP/1.1 400")], "VER is 0x48", 30.0),
    ("socks5://u:p@{}", [*USERPASS, (b"\x01\x01u\x01p", octets("01 01"))], "refused user", 30.0),
    ("socks5://u:p@{}", [*USERPASS, (b"\x01\x01u\x01p", octets("05 00"))], "VER", 30.0),
    ("socks5://u:p@{}", [*USERPASS, (b"\x01\x01u\x01p", b"")], "closed", 30.0),
    ("socks5://{}", [*GREETING, (REQUEST, octets("04 00 00") + BOUND)], "VER is 0x04", 30.0),
    ("socks5://{}", [*GREETING, (REQUEST, octets("05 00 00 02"))], "ATYP", 30.0),
    # Closed while the target was waited for: perhaps its way of saying no.
    ("socks5://{}", [*GREETING, (REQUEST, b"")], "closed before its next message", 0.0),
    ("socks5://{}", [*GREETING, (REQUEST, octets("05 00 00 01 00"))], "closed after 5", 0.0),
    ("socks4a://{}", [(octets("04 01 0050 00000001 00"), octets("05 5a"))], "VN is 0x05", 30.0),
    ("socks4a://{}", [(octets("04 01 0050 00000001 00"), octets("00 5a"))], "closed after 2", 0.0),
    (
        "socks4a://{}",
        [(octets("04 01 0050 00000001 00"), octets("00 5c") + bytes(6))],
        "identd",
        30.0,
    ),
    ("http://{}", [(b"CONNECT ", b"HTTP/1.1 407 Who are you\r\n\r\n")], "407 Who are you", 30.0),
    ("http://{}", [(b"CONNECT ", octets("05 ff"))], "does not begin as HTTP/1", 30.0),
    ("http://{}", [(b"CONNECT ", b"HTTP/1.1 2xx\r\n\r\n")], "cannot be read", 30.0),
    ("http://{}", [(b"CONNECT ", b"HTTP/1.1 100 Wait\r\n\r\n" * 9)], "again and again", 30.0),
    ("http://{}", [(b"CONNECT ", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 16384)], "16384", 30.0),
    ("http://{}", [(b"CONNECT ", b"HTTP/1.1 200 OK\r\n")], "closed after 17", 0.0),
]


@pytest.mark.parametrize(
    ("url", "script", "reason", "rest"), BREAKS, ids=[entry[2] for entry in BREAKS]
)
def test_an_upstream_that_breaks_is_told_and_the_client_gets_x01(
    url: str, script: Script, reason: str, rest: float
) -> None:
    def end(sock: gevent.socket.socket) -> None:
        sock.shutdown(gevent.socket.SHUT_WR)
        recv_all(sock)
        sock.close()

    fake = Fake(script, after=end)
    with serving(fake) as (ip, port), through(url.format(f"{ip}:{port}")) as (server, witness):
        assert rep(server) == Rep.GENERAL_FAILURE
        failed = witness.wait(UpstreamFailed)
        assert (failed.upstream, failed.rest_seconds) == ("u0", rest)
        assert reason in failed.reason
        assert f"{ip}:{port}" in failed.reason
        assert reason in witness.wait(RequestRefused).reason
        assert rep(server) == Rep.GENERAL_FAILURE
        assert len(witness.of(UpstreamFailed)) == 1, "told again for every session"
    assert fake.sessions == 2, "the only one there is has to be tried, resting or not"


@pytest.mark.parametrize("url", ["socks5://{}", "socks5://u:p@{}", "socks4a://{}", "http://{}"])
def test_a_reset_in_answer_to_the_first_octet(url: str) -> None:
    def angry(sock: gevent.socket.socket, _: object) -> None:
        sock.recv(1)
        reset(sock)

    with serving(angry) as (ip, port), through(url.format(f"{ip}:{port}")) as (server, witness):
        assert rep(server) == Rep.GENERAL_FAILURE
        assert "reset" in witness.wait(UpstreamFailed).reason


def test_an_upstream_that_nobody_runs() -> None:
    port = unused_port()
    with through(f"socks5://127.0.0.1:{port}") as (server, witness):
        assert rep(server) == Rep.GENERAL_FAILURE
        failed = witness.wait(UpstreamFailed)
        assert failed.reason == f"upstream u0: 127.0.0.1:{port}: Connection refused"


def test_an_upstream_whose_name_does_not_exist() -> None:
    book = Book()
    with through("socks5://gw.corp.test", book=book) as (server, witness):
        assert rep(server) == Rep.GENERAL_FAILURE
        assert "gw.corp.test does not exist" in witness.wait(UpstreamFailed).reason
    assert book.asked == ["gw.corp.test"]


def test_the_upstreams_name_is_looked_up_by_the_servers_resolver_and_all_its_addresses_tried() -> (
    None
):
    book = Book(gw_corp_test="127.0.0.2 127.0.0.1")
    url, _, script, _ = TRANSCRIPTS["socks5-name"]
    with (
        serving(Fake(script)) as (_, port),
        through(url.format(f"gw.corp.test:{port}"), book=book) as (server, witness),
    ):
        reply, sock = ask(server)
        assert reply.rep == 0
        sock.close()
        assert witness.wait(SessionEstablished).dialled == Address("127.0.0.1", port)
    assert book.asked == ["gw.corp.test"]


def silent(sock: gevent.socket.socket, _: object) -> None:
    with suppress(OSError):
        recv_all(sock)


def test_a_silent_upstream_is_given_up_within_the_time_to_connect() -> None:
    with serving(silent) as (ip, port):
        url = f"socks5://{ip}:{port}"
        with through(url, timeouts=SOON) as (server, witness), gevent.Timeout(2):
            assert rep(server) == Rep.GENERAL_FAILURE
            assert "no handshake within 0.36 s" in witness.wait(UpstreamFailed).reason


@pytest.mark.parametrize("kind", ["socks5-name", "socks4a-name", "http-name"])
def test_silence_after_the_request_is_the_targets_and_no_failure(kind: str) -> None:
    url, _, script, _ = TRANSCRIPTS[kind]
    script = [*script[:-1], (script[-1][0], b"")]
    fake = Fake(script, after=lambda sock: silent(sock, None))
    with (
        serving(fake) as (ip, port),
        through(url.format(f"{ip}:{port}"), timeouts=SOON) as (server, witness),
    ):
        assert rep(server) == Rep.TTL_EXPIRED
        assert f"{NAME}:80: no answer within 0.4 s" in witness.wait(RequestRefused).reason
        assert not witness.of(UpstreamFailed)


def test_a_session_that_is_cut_while_it_waits_leaves_nothing_behind() -> None:
    with serving(silent) as (ip, port), through(f"socks5://{ip}:{port}") as (server, witness):
        sock = greeted(server)
        sock.sendall(request(1, NAME, 80))
        wait_for(lambda: server.sessions)
        gevent.sleep(0.01)
        server.cut(next(iter(server.sessions.values())))
        assert witness.wait(SessionClosed).reason == "killed"
        assert not witness.of(UpstreamFailed)
        sock.close()


def test_an_upstream_that_is_this_server_itself_is_seen() -> None:
    made = upstreams(u="socks5://127.0.0.1:1")
    policy = Policy(rules=EVERYWHERE, via=("u",))
    with proxy(policy) as (server, witness):
        port = server.addresses[0][1]
        made = build_upstreams(
            {"u": f"socks5://127.0.0.1:{port}"}, Book(), DirectDialer(), own_ports=[port]
        )
        server.policy = policy.replace(dialers=made)
        assert rep(server) == Rep.GENERAL_FAILURE
        assert "this server itself" in witness.wait(UpstreamFailed).reason


def test_a_name_that_no_dialer_has() -> None:
    with proxy(Policy(rules=EVERYWHERE, via=("nobody",))) as (server, witness):
        assert rep(server) == Rep.GENERAL_FAILURE
        assert witness.wait(RequestRefused).reason == "there is no upstream nobody"


@pytest.mark.parametrize("host", ["192.0.2.7", NAME, "0.0.0.0"])
def test_a_bind_that_an_http_proxy_cannot_do_is_x07(host: str) -> None:
    with serving(silent) as (ip, port), through(f"http://{ip}:{port}") as (server, witness):
        sock = greeted(server)
        sock.sendall(request(2, host, 80))
        assert read_reply(sock).rep == Rep.COMMAND_NOT_SUPPORTED
        sock.close()
        assert "HTTP knows no BIND" in witness.wait(RequestRefused).reason
        assert not witness.of(UpstreamFailed)


# --- BIND -------------------------------------------------------------------------------------

BINDS = [
    pytest.param(
        "socks5://{}",
        [*GREETING, (octets("05 02 00 03") + NAME_FIELD + b"\x00\x15", octets("05 00 00") + BOUND)],
        octets("05 00 00 01 c6336409 0014"),
        Address("192.0.2.7", 8080),
        id="socks5",
    ),
    pytest.param(
        "socks5://{}",
        [
            *GREETING,
            (
                octets("05 02 00 03") + NAME_FIELD + b"\x00\x15",
                octets("05 00 00 01 00000000 1f90"),
            ),
        ],
        octets("05 00 00 01 c6336409 0014"),
        Address("127.0.0.1", 8080),
        id="socks5-on-its-own-address",
    ),
    pytest.param(
        "socks4a://{}",
        [
            (
                octets("04 02 0015 00000001 00") + NAME.encode() + b"\x00",
                octets("00 5a 1f90 c0000207"),
            )
        ],
        octets("00 5a 0014 c6336409"),
        Address("192.0.2.7", 8080),
        id="socks4a",
    ),
]


@pytest.mark.parametrize(("url", "script", "second", "bound"), BINDS)
def test_a_bind_is_two_replies_of_the_upstream(
    url: str, script: Script, second: bytes, bound: Address
) -> None:
    def come(sock: gevent.socket.socket) -> None:
        sock.sendall(second + BEHIND)
        echo(sock, None)

    book = Book()
    fake = Fake(script, come)
    with (
        serving(fake) as (ip, port),
        through(url.format(f"{ip}:{port}"), book=book) as (server, witness),
    ):
        sock = greeted(server)
        sock.sendall(request(2, NAME, 21))
        assert read_reply(sock) == Reply(0, bound)
        assert read_reply(sock) == Reply(0, Address("198.51.100.9", 20))
        assert recv_exactly(sock, len(BEHIND)) == BEHIND
        sock.sendall(b"data")
        assert recv_exactly(sock, 4) == b"data"
        sock.close()
        closed = witness.wait(SessionClosed)
        assert (closed.upstream, closed.dialled) == ("u0", Address("198.51.100.9", 20))
    assert book.asked == []


@pytest.mark.parametrize(
    ("second", "code"),
    [
        (octets("05 06 00 01 00000000 0000"), Rep.TTL_EXPIRED),
        (octets("05 02 00 01 00000000 0000"), Rep.NOT_ALLOWED),
        (b"", Rep.GENERAL_FAILURE),
        (octets("05 00 00"), Rep.GENERAL_FAILURE),
        (octets("04 00 00 01 c6336409 0014"), Rep.GENERAL_FAILURE),
        (octets("05 00 00 03 01 61 0014"), Rep.NOT_ALLOWED),
    ],
    ids=["nobody-came", "refused", "closed", "cut", "garbage", "a-name-came"],
)
def test_a_bind_whose_second_reply_is_no(second: bytes, code: int) -> None:
    def say(sock: gevent.socket.socket) -> None:
        sock.sendall(second)
        sock.shutdown(gevent.socket.SHUT_WR)
        recv_all(sock)

    script = [*GREETING, (octets("05 02 00 01 c6336409 0015"), octets("05 00 00") + BOUND)]
    with serving(Fake(script, say)) as (ip, port), through(f"socks5://{ip}:{port}") as (server, _):
        sock = greeted(server)
        sock.sendall(request(2, "198.51.100.9", 21))
        assert read_reply(sock).rep == 0
        assert read_reply(sock).rep == code
        sock.close()


@pytest.mark.parametrize("expected", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_bind_through_geosocks(expected: str) -> None:
    with proxy() as (exit_, _):
        url = f"socks5://127.0.0.1:{exit_.addresses[0][1]}"
        with through(url) as (server, witness):
            sock = greeted(server)
            sock.sendall(request(2, expected, 21))
            first = read_reply(sock)
            assert first.rep == 0
            peer = gevent.socket.socket()
            peer.connect((str(first.bound.host), first.bound.port))
            second = read_reply(sock)
            assert second == Reply(0, Address(*peer.getsockname()))
            peer.sendall(b"from the peer")
            assert recv_exactly(sock, 13) == b"from the peer"
            sock.sendall(b"from the client")
            assert recv_exactly(peer, 15) == b"from the client"
            peer.close()
            sock.close()
            assert witness.wait(SessionClosed).upstream == "u0"


def test_who_comes_to_a_bind_for_anybody_is_judged_by_our_rules_too() -> None:
    rules = RuleSet.parse("allow to 10.0.0.0/8\n")
    with proxy() as (exit_, _):
        url = f"socks5://127.0.0.1:{exit_.addresses[0][1]}"
        with through(url, rules=rules) as (server, _):
            sock = greeted(server)
            sock.sendall(request(2, "0.0.0.0", 0))
            first = read_reply(sock)
            assert first.rep == 0
            peer = gevent.socket.socket()
            peer.connect((str(first.bound.host), first.bound.port))
            assert read_reply(sock).rep == Rep.NOT_ALLOWED
            sock.close()
            assert peer.recv(1) == b""
            peer.close()


def test_a_client_that_leaves_its_bind_takes_the_upstreams_with_it() -> None:
    with proxy() as (exit_, exit_saw):
        url = f"socks5://127.0.0.1:{exit_.addresses[0][1]}"
        with through(url) as (server, witness):
            sock = greeted(server)
            sock.sendall(request(2, "127.0.0.1", 21))
            assert read_reply(sock).rep == 0
            sock.close()
            assert witness.wait(SessionClosed).reason == "given_up"
            assert exit_saw.wait(SessionClosed).reason == "given_up"


# --- tickets ----------------------------------------------------------------------------------


def test_a_ticket_that_has_expired_is_told_with_its_cure_and_rests_nobody() -> None:
    class NoTicket:
        method = 0x01

        def present(self, stream: Stream) -> Grant:
            raise AuthFailed("ticket expired (run kinit)")

    greeting = [(octets("05 01 01"), octets("05 01"))]
    with serving(Fake(greeting)) as (ip, port):
        hop = SocksHop(Client((ip, port), [NoTicket()]))
        upstream = Upstream("gw", (hop,), Book(), DirectDialer())
        policy = Policy(rules=EVERYWHERE, dialers={"gw": upstream}, via=("gw",))
        with proxy(policy) as (server, witness):
            for _ in range(3):
                assert rep(server) == Rep.GENERAL_FAILURE
            [failed] = witness.of(UpstreamFailed)
            assert (failed.upstream, failed.rest_seconds) == ("gw", 0.0)
            assert "run kinit" in failed.reason
            assert all("run kinit" in event.reason for event in witness.of(RequestRefused))
            assert policy.health.order(policy.dialers) == ["gw"]


# --- one for another --------------------------------------------------------------------------


def test_the_first_that_answers_is_taken_and_the_failed_one_rests() -> None:
    url, _, script, _ = TRANSCRIPTS["socks5-name"]
    port = unused_port()
    with serving(Fake(script)) as (ip, good):
        urls = (f"socks5://127.0.0.1:{port}", url.format(f"{ip}:{good}"))
        with through(*urls) as (server, witness):
            for _ in range(3):
                assert rep(server) == 0
            witness.wait(SessionClosed, 3)
            assert [event.upstream for event in witness.of(SessionEstablished)] == ["u1"] * 3
            [failed] = witness.of(UpstreamFailed)
            assert (failed.upstream, failed.rest_seconds) == ("u0", 30.0)


def test_a_refusal_is_an_answer_and_the_next_is_not_asked() -> None:
    fake = Fake([*GREETING, (REQUEST, octets("05 05 00") + BOUND)], after=lambda sock: sock.close())
    other = Fake([])
    with serving(fake) as one, serving(other) as two:
        urls = [f"socks5://{ip}:{port}" for ip, port in (one, two)]
        with through(*urls) as (server, witness):
            assert rep(server) == Rep.CONNECTION_REFUSED
            assert not witness.of(UpstreamFailed)
    assert other.sessions == 0


def test_a_silent_one_leaves_time_for_the_next() -> None:
    url, _, script, _ = TRANSCRIPTS["socks5-name"]
    with serving(silent) as (_, dumb), serving(Fake(script)) as (ip, good):
        urls = (f"socks5://127.0.0.1:{dumb}", url.format(f"{ip}:{good}"))
        with through(*urls, timeouts=SOON) as (server, witness):
            assert rep(server) == 0
            assert "0.18 s" in witness.wait(UpstreamFailed).reason


def test_when_all_fail_the_reason_tells_of_each() -> None:
    ports = [unused_port(), unused_port()]
    with through(*(f"socks5://127.0.0.1:{port}" for port in ports)) as (server, witness):
        assert rep(server) == Rep.GENERAL_FAILURE
        reason = witness.wait(RequestRefused).reason
        assert all(str(port) in reason for port in ports)
        assert len(witness.wait(UpstreamFailed, 2).reason) < len(reason)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_rests_grow_to_five_minutes_and_end_with_an_answer() -> None:
    clock = Clock()
    health = Health(clock=clock)
    a, b = upstreams(a="http://a", b="http://b").values()
    both = {"a": a, "b": b}
    broken = UpstreamUnusable("broken")
    rests = []
    for _ in range(6):
        assert health.order(both) == ["a", "b"]
        fact = health.failed("a", a, broken)
        assert fact is not None
        rests.append(fact.rest_seconds)
        assert health.failed("a", a, broken) is None, "one that tried at the same time"
        clock.now += fact.rest_seconds - 0.5
        assert health.order(both) == ["b"]
        clock.now += 1.0
    assert rests == [30, 60, 120, 240, 300, 300]
    assert health.answered("a", a) == UpstreamRecovered("a")
    assert health.answered("a", a) is None
    fact = health.failed("a", a, broken)
    assert fact is not None
    assert fact.rest_seconds == 30


def test_when_all_rest_the_one_that_rests_least_is_tried() -> None:
    clock = Clock()
    health = Health(clock=clock)
    made = upstreams(a="http://a", b="http://b", c="http://c")
    for name in ("b", "a", "c"):
        assert health.failed(name, made[name], UpstreamUnusable("broken")) is not None
        clock.now += 1
    assert health.order(made) == ["b"]


def test_another_reason_is_told_and_one_that_rests_nobody_is_told_every_half_minute() -> None:
    clock = Clock()
    health = Health(clock=clock)
    [a] = upstreams(a="http://a").values()
    assert health.failed("a", a, UpstreamUnusable("one")) is not None
    fact = health.failed("a", a, UpstreamUnusable("other"))
    assert fact == UpstreamFailed("a", "other", 30.0)
    expired = UpstreamUnusable("expired", rests=False)
    assert health.failed("a", a, expired) == UpstreamFailed("a", "expired", 0.0)
    assert health.order({"a": a}) == ["a"]
    assert health.failed("a", a, expired) is None
    clock.now += 31
    assert health.failed("a", a, expired) is not None


def test_what_an_upstream_is_not_even_asked_says_nothing_of_its_health() -> None:
    port = unused_port()
    with through(f"socks5://127.0.0.1:{port}") as (server, witness):
        assert rep(server) == Rep.GENERAL_FAILURE
        hop = hop_of(f"http://127.0.0.1:{port}", Book())
        chain = Upstream("u0", (hop, hop), Book(), DirectDialer(), (f"socks5://127.0.0.1:{port}",))
        server.policy = server.policy.replace(dialers={"u0": chain})
        control, reply = associated(server)
        assert reply.rep == Rep.COMMAND_NOT_SUPPORTED
        control.close()
        assert not witness.of(UpstreamRecovered)


def test_an_upstream_that_comes_back_is_told() -> None:
    port = unused_port()
    _, _, script, _ = TRANSCRIPTS["socks5-name"]
    with through(f"socks5://127.0.0.1:{port}") as (server, witness):
        assert rep(server) == Rep.GENERAL_FAILURE
        listener = gevent.socket.socket()
        listener.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()

        def serve_one() -> None:
            sock, address = listener.accept()
            Fake(script)(sock, address)
            sock.close()

        serving_one = gevent.spawn(serve_one)
        assert rep(server) == 0
        assert witness.wait(UpstreamRecovered) == UpstreamRecovered("u0")
        serving_one.get()
        listener.close()


def test_health_outlives_a_reload_for_those_that_have_not_changed() -> None:
    def settings(*argv: str) -> Any:
        return load_settings(argv, {}).settings

    argv = ["--upstream=a=socks5://u:p@h1", "--upstream=b=http://h2", "--via=http://h3"]
    before = build_policy(settings(*argv))
    for name, dialer in before.dialers.items():
        before.health.failed(name, dialer, UpstreamUnusable("broken"))
    argv[0] = "--upstream=a=socks5://u:q@h1"
    after = build_policy(settings(*argv), before)
    assert after.health is before.health
    resting = {name for name in after.dialers if not _is_well(after, name)}
    assert resting == {"b", "default"}
    before.resolver.close()  # type: ignore[attr-defined]


def _is_well(policy: Policy, name: str) -> bool:
    return policy.health.order({name: policy.dialers[name], "fresh": DirectDialer()})[0] == name


def test_a_dialer_of_ones_own_is_an_upstream_too() -> None:
    class Own:
        def __init__(self, failure: RequestFailed | None = None) -> None:
            self.failure = failure
            self.asked: list[Address] = []

        def open_connection(self, to: Address, addresses: tuple[IPAddress, ...]) -> Stream:
            self.asked.append(to)
            if self.failure:
                raise self.failure
            return DirectDialer().open_connection(Address("127.0.0.1", port), (loopback,))

    loopback = ip_address("127.0.0.1")
    with serving(echo) as (_, port):
        dialers = {"a": Own(UpstreamUnusable("no")), "b": Own(), "c": Own(TargetRefused("c"))}
        policy = Policy(rules=EVERYWHERE, dialers=dialers, via=("a", "b"))
        with proxy(policy) as (server, witness):
            assert rep(server) == 0
            assert witness.wait(SessionEstablished).upstream == "b"
            assert witness.wait(UpstreamFailed).upstream == "a"
            server.policy = policy.replace(via=("c", "b"))
            assert rep(server) == Rep.CONNECTION_REFUSED
        assert dialers["b"].asked == [Address(NAME, 80)]


# --- against ourselves, and chains ------------------------------------------------------------


def test_through_geosocks_with_a_password_and_its_rules() -> None:
    gate = Policy(
        authenticators=(PasswordAuthenticator(lambda *given: given == (b"al", b"pw")),),
        rules=RuleSet.parse("deny port 81\nallow to loopback\n"),
        resolver=Book(www_corp_test="127.0.0.1"),
    )
    with serving(echo) as (_, port), proxy(gate) as (exit_, _):
        where = exit_.addresses[0]
        book = Book()
        url = f"socks5://al:PASS@127.0.0.1:{where[1]}"
        with through(url.replace("PASS", "pw"), book=book) as (server, witness):
            reply, sock = ask(server, NAME, port)
            assert reply.rep == 0
            assert reply.bound.host == ip_address("127.0.0.1")
            sock.sendall(b"x" * 100_000)
            assert recv_exactly(sock, 100_000) == b"x" * 100_000
            sock.close()
            assert rep(server, NAME, 81) == Rep.NOT_ALLOWED
            assert rep(server, "other.corp.test", port) == Rep.HOST_UNREACHABLE
            assert rep(server, NAME, unused_port()) == Rep.CONNECTION_REFUSED
            assert not witness.of(UpstreamFailed)
        with through(url.replace("PASS", "no"), book=book) as (server, witness):
            assert rep(server, NAME, port) == Rep.GENERAL_FAILURE
            assert "refused user name and password" in witness.wait(UpstreamFailed).reason
        assert book.asked == []


def test_a_chain_runs_each_handshake_inside_the_one_before() -> None:
    with_password = Policy(
        authenticators=(PasswordAuthenticator(lambda *given: given == (b"al", b"pw")),),
        rules=EVERYWHERE,
        resolver=Book(www_corp_test="127.0.0.1"),
    )
    http = Fake([])

    def tunnel(sock: gevent.socket.socket, _: object) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += sock.recv(1)
        http.met.append(head.split(b"\r\n")[0])
        to = head.split(b" ")[1].decode().rpartition(":")
        onward = gevent.socket.socket()
        onward.connect((to[0], int(to[2])))
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

        def back() -> None:
            with suppress(OSError):
                while data := onward.recv(65536):
                    sock.sendall(data)
                sock.shutdown(gevent.socket.SHUT_WR)

        backwards = gevent.spawn(back)
        with suppress(OSError):
            while data := sock.recv(65536):
                onward.sendall(data)
            onward.shutdown(gevent.socket.SHUT_WR)
        backwards.join()
        onward.close()

    with (
        serving(echo) as (_, port),
        serving(tunnel) as (_, http_port),
        proxy() as (middle, middle_saw),
        proxy(with_password) as (last, last_saw),
    ):
        book = Book()
        made = upstreams(
            book,
            first=f"http://127.0.0.1:{http_port}",
            second=f"socks5://127.0.0.1:{middle.addresses[0][1]}?via=first",
            last=f"socks5://al:pw@127.0.0.1:{last.addresses[0][1]}?via=second",
        )
        policy = Policy(rules=EVERYWHERE, resolver=book, dialers=made, via=("last",))
        with proxy(policy) as (server, witness):
            reply, sock = ask(server, NAME, port)
            assert reply.rep == 0
            sock.sendall(b"y" * 300_000)
            sock.shutdown(gevent.socket.SHUT_WR)
            assert recv_all(sock) == b"y" * 300_000
            sock.close()
            assert witness.wait(SessionClosed).upstream == "last"
            assert http.met == [b"CONNECT 127.0.0.1:%d HTTP/1.1" % middle.addresses[0][1]]
            assert middle_saw.wait(SessionEstablished).destination == Address(*last.addresses[0])
            assert last_saw.wait(SessionEstablished).destination == Address(NAME, port)
            # The middle one cannot reach the last: the chain has failed, not the target.
            last.close_listeners()
            assert rep(server, NAME, port) == Rep.GENERAL_FAILURE
            failed = witness.wait(UpstreamFailed)
            assert failed.upstream == "last"
            assert "X'05'" in failed.reason
    assert book.asked == []


def test_chains_are_read_from_urls() -> None:
    made = upstreams(c="http://c:3?via=b", a="http://a:1", b="socks4a://b:2?via=a")
    assert [str(hop.server) for hop in made["c"].hops] == ["a:1", "b:2", "c:3"]
    assert made["a"] == upstreams(a="http://a:1")["a"]
    assert made["b"] != upstreams(a="http://a:9", b="socks4a://b:2?via=a")["b"]
    assert split_via("http://h?via=a&password-file=f") == ("http://h?password-file=f", "a")


@pytest.mark.parametrize(
    ("urls", "complaint"),
    [
        ({"a": "http://h?via=a"}, "upstream a: its chain goes round: a via a"),
        ({"a": "http://h?via=b", "b": "http://h?via=a"}, "a via b via a"),
        ({"a": "http://h?via=x"}, "upstream a: via=x is no upstream; known: a"),
        ({"a": "http://h?via="}, "upstream a: proxy URL: via stands there once"),
        ({"a": "http://h?via=b&via=b", "b": "http://h"}, "via stands there once"),
        ({"a": "ftp://h"}, "write socks5://"),
        ({"a": "h:80"}, "write socks5://"),
        ({"a": "http://h?auth=gssapi"}, "http:// has no setting but via"),
        ({"a": "socks4a://h?password-file=f"}, "has no setting but via"),
        ({"a": "socks4://u:S3CRET@h"}, "a user, but no password"),
        ({"a": "http://u@h"}, "a user but no password"),
        ({"a": "http://u%3Av:S3CRET@h"}, "no colon"),
        ({"a": "socks5://u:S3CRET@h?x=1"}, "unknown setting 'x'"),
        ({"a": "http://u:S3CRET@h:x"}, "port"),
    ],
)
def test_urls_that_cannot_be_used(urls: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        upstreams(**urls)
    assert complaint in str(caught.value)
    assert "S3CRET" not in str(caught.value)


def test_no_repr_shows_a_password() -> None:
    made = upstreams(a="http://u:S3CRET@h", b="socks5://u:S3CRET@h?via=a")
    policy = Policy(dialers=made)
    assert "S3CRET" not in repr(made) + repr(policy) + repr(hop_of("http://u:S3CRET@h", Book()))
    argv = ("--via=socks5://u:S3CRET@h", "--upstream=a=http://u:S3CRET@h", "--print-config")
    loaded = load_settings(argv, {"GEOSOCKS_PROXY_PASSWORD": "S3CRET"})
    assert "S3CRET" not in repr(loaded) + shown(loaded) + repr(build_policy(loaded.settings))
    assert "via = socks5://u:***@h" in shown(loaded)
    assert "upstream = a=http://u:***@h" in shown(loaded)


# --- settings ---------------------------------------------------------------------------------


def policy_of(*argv: str, **variables: str) -> Policy:
    return build_policy(load_settings(argv, variables).settings)


def test_the_default_upstream_by_url_by_names_and_none() -> None:
    assert policy_of("--via=http://h").via == ("default",)
    both = policy_of("--upstream=a=http://h", "--upstream=b=socks5://h", "--via=b,a")
    assert both.via == ("b", "a")
    assert set(both.dialers) == {"a", "b"}
    assert policy_of("--via=direct").via == policy_of().via == ()
    chain = policy_of("--upstream=a=http://h", "--via=socks5://x?via=a").dialers["default"]
    assert isinstance(chain, Upstream)
    assert len(chain.hops) == 2


def test_the_password_of_the_default_upstream_may_stand_in_the_environment() -> None:
    policy = policy_of("--via=http://u@h", GEOSOCKS_PROXY_PASSWORD="pw")
    assert policy.dialers["default"].hops[0].authorization == "Basic dTpwdw=="  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="upstream default: proxy URL: a user but no password"):
        policy_of("--via=http://u@h")
    with pytest.raises(ConfigError, match="upstream a"):
        policy_of("--upstream=a=http://u@h", GEOSOCKS_PROXY_PASSWORD="pw")


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--via=a"], "--via: unknown upstream 'a'; name one"),
        (["--via=offise", "--upstream=office=http://h"], "did you mean office?"),
        (["--via=a,a", "--upstream=a=http://h"], "write a URL"),
        (["--via=a b"], "write a URL"),
        (["--upstream=http://u:S3CRET@h"], "write NAME=URL"),
        (["--upstream=a"], "write NAME=URL"),
        (["--upstream=a=S3CRET@h"], "write NAME=URL"),
        (["--upstream=direct=http://h"], "a word of the rules"),
        (["--upstream=to=http://h"], "a word of the rules"),
        (["--upstream=default=http://h"], "is what --via URL is called"),
        (["--upstream=a:b=http://h"], "a name has letters"),
        (["--upstream=a=http://h", "--upstream=a=http://i"], "a name stands twice"),
        (["http://u:S3CRET@h"], "unrecognized arguments"),
    ],
)
def test_settings_that_cannot_be_used(argv: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(argv, {})
    assert complaint in str(caught.value)
    assert "S3CRET" not in str(caught.value)


def test_a_line_of_a_file_that_is_wrong_shows_no_password(tmp_path: Any) -> None:
    path = tmp_path / "conf"
    path.write_text("via socks5://u:S3CRET@h\n")
    with pytest.raises(ConfigError, match=r"conf:1: .*no 'name = value'") as caught:
        load_settings([f"--config={path}"], {})
    assert "S3CRET" not in str(caught.value)


def test_rules_of_a_file_name_upstreams(tmp_path: Any) -> None:
    path = tmp_path / "rules"
    path.write_text("allow to *.corp via offise\n")
    with pytest.raises(ConfigError) as caught:
        policy_of(f"--rules={path}", "--upstream=office=http://h")
    assert str(caught.value) == f"{path}:1:21: unknown upstream 'offise'; did you mean office?"
    path.write_text("allow to *.corp via office,default\n")
    policy_of(f"--rules={path}", "--upstream=office=http://h", "--via=http://i")


def test_settings_that_are_printed_mean_the_same(tmp_path: Any) -> None:
    argv = ("--via=a,b", "--upstream=a=http://h?via=b", "--upstream=b=socks5://h?auth=gssapi")
    loaded = load_settings(argv, {})
    path = tmp_path / "conf"
    path.write_text(shown(loaded))
    assert load_settings([f"--config={path}"], {}).settings == replace(loaded.settings)


def test_a_denied_request_reaches_no_upstream() -> None:
    fake = Fake([])
    rules = RuleSet.parse("deny to *.corp.test\nallow to any\n")
    with serving(fake) as (ip, port), through(f"http://{ip}:{port}", rules=rules) as (server, _):
        assert rep(server) == Rep.NOT_ALLOWED
        assert rep(server, "127.0.0.1") == Rep.NOT_ALLOWED
        assert rep(server, "10.0.0.1") == Rep.NOT_ALLOWED
    assert fake.sessions == 0
    assert issubclass(RequestDenied, RequestFailed)
