"""The client's SOCKS4 and 4A, against servers that play a transcript and against our own."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import gevent.socket
import pytest

from geosocks.auth.userpass import Password, PasswordAuthenticator
from geosocks.client import Client, Socks4
from geosocks.client.failures import IdentWanted
from geosocks.codes import Method
from geosocks.errors import (
    AddressTypeNotSupported,
    CommandNotSupported,
    ConfigError,
    HostUnreachable,
    NegotiationTimeout,
    ProtocolError,
    RequestFailed,
    Truncated,
)
from geosocks.policy import Policy
from geosocks.wire.socks5 import Address
from tests.support.dns import dns
from tests.support.net import echo, recv_all, recv_exactly, reset, serving, unused_port, wait_for
from tests.support.servers import EVERYWHERE, proxy

TARGET = ("192.0.2.7", 443)
REQUEST = bytes.fromhex("04 01 01bb c0000207 00")
GRANTED = bytes.fromhex("00 5a 0000 00000000")


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> None:
    if "url" not in request.node.name:
        request.getfixturevalue("no_leaks")


@contextmanager
def playing(
    wanted: bytes, answer: bytes, then: Callable[[Any], object] = recv_all
) -> Iterator[tuple[tuple[str, int], list[bytes]]]:
    """A server that expects one request; its address, and what it heard."""
    heard: list[bytes] = []

    def serve(sock: gevent.socket.socket, _: object) -> None:
        heard.append(recv_exactly(sock, len(wanted)))
        sock.sendall(answer)
        then(sock)

    with serving(serve) as address:
        yield address, heard
        wait_for(lambda: heard)
    assert heard == [wanted]


# --- CONNECT ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dialect", "to", "wanted"),
    [
        (Socks4(), TARGET, "04 01 01bb c0000207 00"),
        (Socks4(resolves=True), TARGET, "04 01 01bb c0000207 00"),
        (Socks4(b"alice"), TARGET, f"04 01 01bb c0000207 {b'alice'.hex()} 00"),
        (Socks4(), ("a.test", 80), f"04 01 0050 00000001 00 {b'a.test'.hex()} 00"),
        (
            Socks4(b"x"),
            ("bücher.test", 80),
            f"04 01 0050 00000001 78 00 {b'xn--bcher-kva.test'.hex()} 00",
        ),
        (Socks4(), ("2001:db8::7", 80), f"04 01 0050 00000001 00 {b'2001:db8::7'.hex()} 00"),
        (Socks4(resolves=True), ("localhost", 80), "04 01 0050 7f000001 00"),
    ],
    ids=["4a", "4", "userid", "name", "idna", "ipv6-as-a-name", "resolved-here"],
)
def test_a_request_with_octets_as_they_should_be(
    dialect: Socks4, to: tuple[str, int], wanted: str
) -> None:
    with playing(bytes.fromhex(wanted), GRANTED + b"hello") as (address, _):
        established = Client(address, socks4=dialect).establish(to)
        assert established.method == Method.NONE
        assert established.grant.identity is None
        assert established.stream.recv(10) == b"hello"
        established.stream.close()


@pytest.mark.parametrize(
    ("cd", "kind", "rep", "words"),
    [
        (91, RequestFailed, 1, "rejected or failed"),
        (92, IdentWanted, 2, "cannot reach an identd"),
        (93, IdentWanted, 2, "another user"),
        (0, RequestFailed, 1, "unassigned"),
        (255, RequestFailed, 1, "unassigned"),
    ],
)
def test_each_code_has_its_exception(
    cd: int, kind: type[RequestFailed], rep: int, words: str
) -> None:
    with playing(REQUEST, bytes((0, cd)) + bytes(6)) as (address, _):
        with pytest.raises(kind, match=rf"192\.0\.2\.7:443.*CD {cd}.*{words}") as caught:
            Client(address, socks4=Socks4()).connect(TARGET)
        assert type(caught.value) is kind
        assert caught.value.rep == rep
        assert isinstance(caught.value, ConnectionError)


@pytest.mark.parametrize("cut", range(8))
def test_a_reply_cut_anywhere_is_truncated(cut: int) -> None:
    def hang_up(sock: gevent.socket.socket) -> None:
        sock.shutdown(socket.SHUT_WR)
        recv_all(sock)

    with (
        playing(REQUEST, GRANTED[:cut], hang_up) as (address, _),
        pytest.raises(Truncated),
    ):
        Client(address, socks4=Socks4()).connect(TARGET)


@pytest.mark.parametrize("answer", [b"\x04" + GRANTED[1:], b"HTTP/1.1 400", b"\x05\xff"])
def test_a_reply_that_is_none(answer: bytes) -> None:
    with playing(REQUEST, answer) as (address, _), pytest.raises(ProtocolError):
        Client(address, socks4=Socks4()).connect(TARGET)


def test_a_server_that_resets() -> None:
    with playing(REQUEST, b"", reset) as (address, _), pytest.raises(ConnectionError):
        Client(address, socks4=Socks4()).connect(TARGET)


def test_silence_ends_with_the_limit() -> None:
    with playing(REQUEST, GRANTED[:3]) as (address, _), pytest.raises(NegotiationTimeout):
        Client(address, socks4=Socks4(), timeout=0.1).connect(TARGET)


@pytest.mark.parametrize(
    ("to", "kind"),
    [
        (("2001:db8::7", 80), AddressTypeNotSupported),
        (("no-such-host.invalid", 80), HostUnreachable),
        (("n" * 64 + ".test", 80), HostUnreachable),
    ],
)
def test_what_version_4_cannot_name_is_not_asked_for(
    to: tuple[str, int], kind: type[RequestFailed]
) -> None:
    with playing(b"", b"") as (address, _), pytest.raises(kind):
        Client(address, socks4=Socks4(resolves=True)).connect(to)


# --- BIND, UDP --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bnd", "expected"),
    [("1388 c6336401", "198.51.100.1:5000"), ("1388 00000000", "127.0.0.1:5000")],
)
def test_bind_has_two_replies(bnd: str, expected: str) -> None:
    first = bytes.fromhex("00 5a") + bytes.fromhex(bnd)
    second = bytes.fromhex("00 5a 9c40 c0000207") + b"220"
    asked = bytes.fromhex("04 02 0000 c0000207 00")
    with playing(asked, first + second) as (address, _):
        listening = Client(address, socks4=Socks4()).bind(("192.0.2.7", 0))
        assert str(listening.address) == expected
        stream, peer = listening.accept()
        assert peer == Address("192.0.2.7", 40000)
        assert stream.recv(10) == b"220"
        stream.close()


def test_a_bind_that_fails_later() -> None:
    asked = bytes.fromhex("04 02 0000 c0000207 00")
    with playing(asked, GRANTED + bytes.fromhex("00 5b 0000 00000000")) as (address, _):
        listening = Client(address, socks4=Socks4()).bind(("192.0.2.7", 0))
        with pytest.raises(RequestFailed, match="CD 91"):
            listening.accept()


def test_version_4_knows_no_udp_and_nobody_is_asked() -> None:
    client = Client(("127.0.0.1", unused_port()), socks4=Socks4())
    with pytest.raises(CommandNotSupported, match="no UDP"):
        client.associate()


# --- construction, URLs -----------------------------------------------------------------------


@pytest.mark.parametrize("userid", [b"a\0b", b"x" * 256])
def test_a_userid_that_cannot_be_sent(userid: bytes) -> None:
    with pytest.raises(ValueError, match="USERID"):
        Socks4(userid)


def test_there_is_no_way_to_show_a_password() -> None:
    with pytest.raises(ValueError, match="no way"):
        Client(("127.0.0.1", 1080), [Password("a", "b")], socks4=Socks4())
    with pytest.raises(ConfigError, match="no way"):
        Client.from_url("socks4a://h.test", credentials=[Password("a", "b")])


@pytest.mark.parametrize(
    ("url", "server", "dialect"),
    [
        ("socks4://h.test", "h.test:1080", Socks4(resolves=True)),
        ("socks4a://h.test:9", "h.test:9", Socks4()),
        ("SOCKS4A://[::1]:9/", "[::1]:9", Socks4()),
        ("socks4a://alice@h.test", "h.test:1080", Socks4(b"alice")),
        ("socks4a://j%C3%BC@h.test", "h.test:1080", Socks4("jü".encode())),
    ],
)
def test_url(url: str, server: str, dialect: Socks4) -> None:
    client = Client.from_url(url, password="unused")
    assert (str(client.server), client.socks4) == (server, dialect)
    assert repr(client) == f"Client({server!r}, {dialect})"


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("socks4a://alice:s3cr3t@h.test", "no password"),
        ("socks4a://h.test?auth=none", "no settings"),
        ("socks4://a%00b@h.test", "USERID"),
        ("socks4://" + "x" * 256 + "@h.test", "USERID"),
        ("socks4+tls://h.test", "scheme 'socks4+tls'"),
        ("socks4a://h.test:0", "port"),
        ("socks4a://", "no host"),
    ],
)
def test_url_that_cannot_be_used(url: str, what: str) -> None:
    with pytest.raises(ConfigError, match="proxy URL") as caught:
        Client.from_url(url)
    assert what in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


# --- against our own server -------------------------------------------------------------------


def test_through_our_server() -> None:
    with (
        serving(echo) as (_, port),
        dns({"echo.test": ["127.0.0.1"]}) as names,
        proxy(Policy(rules=EVERYWHERE, resolver=names.resolver())) as (server, _),
    ):
        for scheme, host in (
            ("socks4", "127.0.0.1"),
            ("socks4", "localhost"),
            ("socks4a", "echo.test"),
        ):
            url = f"{scheme}://alice@127.0.0.1:{server.addresses[0][1]}"
            stream = Client.from_url(url).connect((host, port))
            stream.sendall(b"x" * 100_000)
            stream.shutdown(socket.SHUT_WR)
            assert recv_all(stream) == b"x" * 100_000
            stream.close()
        server.policy.resolver.close()  # type: ignore[attr-defined]


def test_bind_through_our_server() -> None:
    with proxy() as (server, _):
        client = Client(server.addresses[0], socks4=Socks4())
        with client.bind(("127.0.0.2", 0)) as listening:
            peer = gevent.socket.socket()
            peer.bind(("127.0.0.2", 0))
            peer.connect((str(listening.address.host), listening.address.port))
            stream, who = listening.accept(timeout=5)
        assert who == Address(*peer.getsockname())
        stream.sendall(b"hello")
        assert peer.recv(10) == b"hello"
        stream.close()
        peer.close()


def test_our_server_refuses_where_it_wants_a_password() -> None:
    check = PasswordAuthenticator(check=lambda user, password: True)
    policy = Policy(rules=EVERYWHERE, authenticators=(check,))
    with proxy(policy) as (server, _), pytest.raises(RequestFailed, match="CD 91"):
        Client(server.addresses[0], socks4=Socks4(b"alice")).connect(TARGET)
