"""The client, against servers that play a transcript and against our own."""

import os
import re
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import gevent.ssl
import pytest

from geosocks.auth import Grant, NoAuth
from geosocks.auth.gss import GssCredential
from geosocks.auth.userpass import Password, PasswordAuthenticator
from geosocks.client import Client, destination, without_password
from geosocks.codes import Method
from geosocks.errors import (
    AddressTypeNotSupported,
    AuthFailed,
    CommandNotSupported,
    ConfigError,
    HostUnreachable,
    NegotiationTimeout,
    NetworkUnreachable,
    NoAcceptableMethod,
    ProtocolError,
    RequestDenied,
    RequestFailed,
    TargetRefused,
    TargetTimeout,
    Truncated,
)
from geosocks.policy import Policy
from geosocks.stream import Stream, deadline
from geosocks.wire.socks5 import Address
from tests.support.certificates import Authority
from tests.support.net import echo, recv_all, recv_exactly, reset, serving, tcp_pair, unused_port
from tests.support.servers import EVERYWHERE, proxy

TARGET = ("192.0.2.7", 443)
REQUEST = bytes.fromhex("05 01 00 01 c0 00 02 07 01 bb")
GRANTED = bytes.fromhex("05 00 00 01 0a 00 00 01 04 d2")
NONE = Method.NONE


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> None:
    """Look for leaks, which takes a while, after all but the many that only read a URL."""
    if "url" not in request.node.name:
        request.getfixturevalue("no_leaks")


class Transcript:
    """A server that expects and answers octets in turn, then waits for the client to close.

    ``heard`` is what came of the client; ``closed`` tells that it closed at the end, in order.
    """

    def __init__(self, *turns: tuple[bytes, bytes], then: str = "wait") -> None:
        self.turns = turns
        self.then = then
        self.heard = b""
        self.rest = b""
        self.closed = False
        self.ended = gevent.event.Event()

    def __call__(self, sock: gevent.socket.socket, _: object) -> None:
        try:
            for wanted, answer in self.turns:
                self.heard += recv_exactly(sock, len(wanted))
                if not self.heard.endswith(wanted):
                    return
                sock.sendall(answer)
            if self.then == "reset":
                reset(sock)
            elif self.then == "close":
                sock.shutdown(socket.SHUT_WR)
            if self.then != "reset":
                self.rest = recv_all(sock)
                self.closed = True
        except ConnectionResetError:
            self.closed = True
        finally:
            self.ended.set()

    @property
    def wanted(self) -> bytes:
        """All that the client should have sent."""
        return b"".join(wanted for wanted, _ in self.turns)


@contextmanager
def playing(script: Transcript, *credentials: object, timeout: float = 5.0) -> Iterator[Client]:
    """A client of a server that plays ``script``."""
    with serving(script) as address:
        yield Client(address, credentials or (NoAuth(),), timeout=timeout)  # type: ignore[arg-type]
        assert script.ended.wait(5)
        assert script.heard == script.wanted[: len(script.heard)]


def octets(text: str) -> bytes:
    return bytes.fromhex(text)


def no_auth(reply: bytes, then: str = "wait") -> Transcript:
    return Transcript((octets("05 01 00"), octets("05 00")), (REQUEST, reply), then=then)


# --- what works -------------------------------------------------------------------------------


def test_method_none_connects_with_octets_as_the_rfc_has_them() -> None:
    script = no_auth(GRANTED)
    with playing(script) as client:
        established = client.establish(TARGET)
        assert established.bound == Address("10.0.0.1", 1234)
        assert established.method == Method.NONE
        established.stream.sendall(b"payload")
        established.stream.close()
    assert script.heard == script.wanted
    assert script.rest == b"payload"


def test_password_goes_by_rfc_1929() -> None:
    script = Transcript(
        (octets("05 01 02"), octets("05 02")),
        (b"\x01\x05alice\x06wonder", octets("01 00")),
        (REQUEST, GRANTED),
    )
    with playing(script, Password("alice", "wonder")) as client:
        established = client.establish(TARGET)
        assert (established.method, established.grant.identity) == (Method.USERNAME, "alice")
        established.stream.close()
    assert script.heard == script.wanted


def test_server_selects_from_what_is_offered_in_our_order() -> None:
    script = Transcript((octets("05 02 02 00"), octets("05 00")), (REQUEST, GRANTED))
    with playing(script, Password("alice", "wonder"), NoAuth()) as client:
        established = client.establish(TARGET)
        assert established.method == Method.NONE
        established.stream.close()
    assert script.heard == script.wanted


class Ticket:
    """A private method: shows a ticket and goes on with the same stream."""

    method = 0x80

    def present(self, stream: Stream) -> Grant:
        stream.sendall(b"ticket")
        if stream.recv(2) != b"ok":
            raise AuthFailed("stale ticket")
        return Grant(stream)


def test_private_method() -> None:
    script = Transcript(
        (octets("05 01 80"), octets("05 80")), (b"ticket", b"ok"), (REQUEST, GRANTED)
    )
    with playing(script, Ticket()) as client:
        client.connect(TARGET).close()
    assert script.heard == script.wanted


@pytest.mark.parametrize(
    ("to", "encoded"),
    [
        pytest.param(("192.0.2.7", 80), "01 c0 00 02 07 00 50", id="ipv4"),
        pytest.param(("2001:db8::7", 80), "04 20010db8000000000000000000000007 00 50", id="ipv6"),
        pytest.param(("a.test", 80), "03 06 61 2e 74 65 73 74 00 50", id="name-unresolved"),
        pytest.param(
            ("bücher.test", 80), f"03 12 {b'xn--bcher-kva.test'.hex()} 00 50", id="name-in-idna"
        ),
        pytest.param(Address("a.test", 65535), "03 06 61 2e 74 65 73 74 ff ff", id="address"),
        pytest.param(("n" * 255, 1), "03 ff" + "6e" * 255 + "00 01", id="longest-name"),
    ],
)
def test_destination_goes_out_as_it_is(to: Address | tuple[str, int], encoded: str) -> None:
    request = octets("05 01 00") + octets(encoded)
    assert destination(to).encode() == octets(encoded)
    script = Transcript((octets("05 01 00"), octets("05 00")), (request, GRANTED))
    with playing(script) as client:
        client.connect(to).close()
    assert script.heard == script.wanted


@pytest.mark.parametrize(
    "to",
    [("", 80), ("n" * 256, 80), ("ü" * 64 + ".test", 80), ("a.test", -1), ("a.test", 65536)],
    ids=["no-name", "too-long", "label-too-long", "below", "beyond"],
)
def test_destination_that_cannot_be_sent_opens_no_connection(to: tuple[str, int]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Client(("127.0.0.1", unused_port())).connect(to)


def test_octets_behind_the_reply_are_the_targets() -> None:
    with playing(no_auth(GRANTED + b"SSH-2.0-x\r\n", then="close")) as client:
        sock = client.connect(TARGET)
        assert recv_all(sock) == b"SSH-2.0-x\r\n"
        sock.close()


@pytest.mark.parametrize("size", [1, 2, 63, 254, 255])
def test_reply_with_a_name_of_any_length(size: int) -> None:
    name = b"b" * size
    reply = octets("05 00 00 03") + bytes((size,)) + name + octets("04 d2")
    with playing(no_auth(reply + b"x")) as client:
        established = client.establish(TARGET)
        assert established.bound == Address(name.decode(), 1234)
        assert established.stream.recv(10) == b"x"
        established.stream.close()


def test_reply_with_an_ipv6_address() -> None:
    reply = octets("05 00 00 04 20010db8000000000000000000000001 04 d2")
    with playing(no_auth(reply)) as client:
        established = client.establish(TARGET)
        assert established.bound == Address(IPv6Address("2001:db8::1"), 1234)
        established.stream.close()


def test_answers_octet_by_octet() -> None:
    def trickle(sock: gevent.socket.socket, _: object) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for wanted, answer in (3, octets("05 00")), (len(REQUEST), GRANTED):
            recv_exactly(sock, wanted)
            for octet in answer:
                sock.sendall(bytes((octet,)))
                gevent.sleep(0.001)
        recv_all(sock)

    with serving(trickle) as address:
        Client(address).connect(TARGET).close()


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rep", "kind", "also"),
    [
        (1, RequestFailed, ConnectionError),
        (2, RequestDenied, ConnectionError),
        (3, NetworkUnreachable, ConnectionError),
        (4, HostUnreachable, ConnectionError),
        (5, TargetRefused, ConnectionRefusedError),
        (6, TargetTimeout, TimeoutError),
        (7, CommandNotSupported, ConnectionError),
        (8, AddressTypeNotSupported, ConnectionError),
        (9, RequestFailed, ConnectionError),
        (0x7F, RequestFailed, ConnectionError),
        (0xFF, RequestFailed, ConnectionError),
    ],
)
def test_each_rep_has_its_exception(
    rep: int, kind: type[RequestFailed], also: type[OSError]
) -> None:
    script = no_auth(bytes((5, rep)) + octets("00 01 00000000 0000"))
    with playing(script) as client, pytest.raises(RequestFailed, match=f"X'{rep:02X}'") as caught:
        client.connect(TARGET)
    assert type(caught.value) is kind
    assert isinstance(caught.value, also)
    assert caught.value.rep == rep
    assert "192.0.2.7:443" in str(caught.value)
    assert script.closed


def test_no_acceptable_method() -> None:
    script = Transcript((octets("05 01 00"), octets("05 ff")))
    with playing(script) as client, pytest.raises(NoAcceptableMethod, match="none"):
        client.connect(TARGET)
    assert script.closed


@pytest.mark.parametrize("method", [0x01, 0x02, 0x7F, 0x80, 0xFE])
def test_method_that_was_not_offered(method: int) -> None:
    script = Transcript((octets("05 01 00"), bytes((5, method))))
    with playing(script) as client, pytest.raises(ProtocolError, match="not offered"):
        client.connect(TARGET)
    assert script.closed


@pytest.mark.parametrize(
    "turns",
    [
        pytest.param([(octets("05 01 00"), octets("04 00"))], id="choice"),
        pytest.param([(octets("05 01 00"), b"HTTP/1.1 400 Bad Request\r\n\r\n")], id="http"),
        pytest.param(
            [(octets("05 01 00"), octets("05 00")), (REQUEST, octets("04") + GRANTED[1:])],
            id="reply",
        ),
        pytest.param(
            [(octets("05 01 00"), octets("05 00")), (REQUEST, octets("05 00 00 02 00 00"))],
            id="reply-with-an-unknown-atyp",
        ),
        pytest.param(
            [(octets("05 01 00"), octets("05 00")), (REQUEST, octets("05 00 00 03 00 00 00"))],
            id="reply-with-a-name-of-no-octets",
        ),
    ],
)
def test_octets_that_no_rfc_allows(turns: list[tuple[bytes, bytes]]) -> None:
    script = Transcript(*turns)
    with playing(script) as client, pytest.raises(ProtocolError) as caught:
        client.connect(TARGET)
    assert not isinstance(caught.value, Truncated)
    assert script.closed


def test_wrong_version_of_the_password_answer() -> None:
    script = Transcript((octets("05 01 02"), octets("05 02")), (b"\x01\x01a\x01b", octets("05 00")))
    with playing(script, Password("a", "b")) as client, pytest.raises(ProtocolError):
        client.connect(TARGET)


@pytest.mark.parametrize("status", [0x01, 0x05, 0xFF])
def test_refused_password_is_not_told_on(status: int) -> None:
    script = Transcript(
        (octets("05 01 02"), octets("05 02")),
        (b"\x01\x05alice\x06s3cr3t", bytes((1, status))),
    )
    with (
        playing(script, Password("alice", "s3cr3t")) as client,
        pytest.raises(AuthFailed) as caught,
    ):
        client.connect(TARGET)
    assert caught.value.identity == "alice"
    assert "s3cr3t" not in str(caught.value) + repr(caught.value)
    assert script.closed


@pytest.mark.parametrize("cut", range(len(GRANTED)))
def test_reply_cut_anywhere_is_truncated(cut: int) -> None:
    with playing(no_auth(GRANTED[:cut], then="close")) as client, pytest.raises(Truncated):
        client.connect(TARGET)


@pytest.mark.parametrize("then", ["close", "reset"])
@pytest.mark.parametrize(
    "turns",
    [
        pytest.param([], id="at-once"),
        pytest.param([(octets("05 01 02"), b"")], id="after-the-offer"),
        pytest.param([(octets("05 01 02"), octets("05"))], id="within-the-choice"),
        pytest.param([(octets("05 01 02"), octets("05 02"))], id="after-the-choice"),
        pytest.param(
            [(octets("05 01 02"), octets("05 02")), (b"\x01\x01a\x01b", b"")],
            id="after-the-password",
        ),
        pytest.param(
            [(octets("05 01 02"), octets("05 02")), (b"\x01\x01a\x01b", octets("01 00"))],
            id="before-the-request",
        ),
        pytest.param(
            [
                (octets("05 01 02"), octets("05 02")),
                (b"\x01\x01a\x01b", octets("01 00")),
                (REQUEST, b""),
            ],
            id="before-the-reply",
        ),
    ],
)
def test_server_that_goes_is_a_connection_error(
    turns: list[tuple[bytes, bytes]], then: str
) -> None:
    script = Transcript(*turns, then=then)
    with playing(script, Password("a", "b")) as client, pytest.raises(ConnectionError):
        client.connect(TARGET)


def test_nobody_listens() -> None:
    with pytest.raises(ConnectionRefusedError):
        Client(("127.0.0.1", unused_port())).connect(TARGET)


def test_each_address_of_the_server_is_tried() -> None:
    # localhost is ::1 and 127.0.0.1, or 127.0.0.1 alone; we listen on this one.
    with serving(no_auth(GRANTED)) as (_, port):
        Client(("localhost", port)).connect(TARGET).close()


@pytest.mark.parametrize("host", ["n" * 64 + ".test", "no-such-host.invalid", "ü" * 64])
def test_name_of_no_server(host: str) -> None:
    with pytest.raises(OSError, match=r"."):
        Client((host, 1080), timeout=10).connect(TARGET)


# --- time -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "turns",
    [
        pytest.param([], id="before-the-choice"),
        pytest.param([(octets("05 01 02"), octets("05"))], id="within-the-choice"),
        pytest.param([(octets("05 01 02"), octets("05 02"))], id="before-the-status"),
        pytest.param(
            [
                (octets("05 01 02"), octets("05 02")),
                (b"\x01\x01a\x01b", octets("01 00")),
                (REQUEST, octets("05 00 00 01")),
            ],
            id="within-the-reply",
        ),
    ],
)
def test_silence_ends_with_the_limit(turns: list[tuple[bytes, bytes]]) -> None:
    script = Transcript(*turns)
    with playing(script, Password("a", "b"), timeout=0.1) as client:
        start = time.monotonic()
        with pytest.raises(NegotiationTimeout, match=r"192\.0\.2\.7:443 within 0\.1 s"):
            client.connect(TARGET)
        assert 0.09 < time.monotonic() - start < 2
    assert script.closed


def test_limit_is_on_all_of_it_not_on_each_octet() -> None:
    def trickle(sock: gevent.socket.socket, _: object) -> None:
        with suppress(OSError):
            for octet in octets("05 00") + GRANTED:
                sock.sendall(bytes((octet,)))
                gevent.sleep(0.05)

    with serving(trickle) as address, pytest.raises(NegotiationTimeout):
        Client(address).connect(TARGET, timeout=0.2)


class ClientOfMany(Client):
    """One whose server's name has three addresses; they are all the same."""

    def _addresses(self) -> list[tuple[int, Any]]:
        return [(socket.AF_INET, ("127.0.0.1", self.server.port))] * 3


def test_limit_holds_while_several_addresses_are_tried() -> None:
    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    waiting = [socket.socket() for _ in range(3)]
    for sock in waiting:  # the backlog is full after these: a further SYN is not answered
        sock.setblocking(False)
        sock.connect_ex(full.getsockname())
    client = ClientOfMany(("server.test", full.getsockname()[1]), timeout=0.2)
    start = time.monotonic()
    with pytest.raises(NegotiationTimeout):
        client.connect(TARGET)
    with pytest.raises(NegotiationTimeout), deadline(0.2, NegotiationTimeout("ours")):
        client.reach()
    assert time.monotonic() - start < 1
    for sock in [full, *waiting]:
        sock.close()


def test_callers_own_timeout_passes_through() -> None:
    script = Transcript()
    with playing(script) as client, pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
        client.connect(TARGET)
    assert script.closed


# --- construction -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "credentials",
    [(), (NoAuth(), NoAuth()), (Password("a", "b"), Password("c", "d"))],
    ids=["none", "two-alike", "two-passwords"],
)
def test_credentials_that_cannot_be_offered(credentials: tuple[NoAuth, ...]) -> None:
    with pytest.raises(ValueError, match="credentials"):
        Client(("127.0.0.1", 1080), credentials)


def test_method_that_cannot_be_offered() -> None:
    ticket = Ticket()
    ticket.method = 0xFF
    with pytest.raises(ValueError, match="METHOD"):
        Client(("127.0.0.1", 1080), (ticket,))


# --- proxy URLs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "server", "methods"),
    [
        ("socks5://h.test", "h.test:1080", [0]),
        ("socks5h://h.test:1", "h.test:1", [0]),
        ("SOCKS5://h.test:65535/", "h.test:65535", [0]),
        ("socks5://192.0.2.1:9", "192.0.2.1:9", [0]),
        ("socks5://[2001:db8::1]", "[2001:db8::1]:1080", [0]),
        ("socks5://[::1]:9", "[::1]:9", [0]),
        ("socks5://bücher.test", "xn--bcher-kva.test:1080", [0]),
        ("socks5://a:b@h.test", "h.test:1080", [2]),
        ("socks5://a:b@[::1]:9", "[::1]:9", [2]),
        ("socks5://a:b@h.test?auth=none", "h.test:1080", [0]),
        ("socks5://a:b@h.test?auth=username,none", "h.test:1080", [2, 0]),
        ("socks5://h.test?auth=gssapi", "h.test:1080", [1]),
        ("socks5://a:b@h.test/?auth=gssapi,username", "h.test:1080", [1, 2]),
        ("socks5://h.test?auth=gssapi&service=socks&level=integrity", "h.test:1080", [1]),
        ("socks5://h.test?auth=gssapi%2Cnone", "h.test:1080", [1, 0]),
        ("socks5://h.test?", "h.test:1080", [0]),
    ],
)
def test_url(url: str, server: str, methods: list[int]) -> None:
    client = Client.from_url(url, timeout=7)
    assert str(client.server) == server
    assert list(client.credentials) == methods
    assert client.timeout == 7


def sent_by(client: Client) -> bytes:
    """What the client's password credential sends."""
    near, far = tcp_pair()
    with near, far:
        far.sendall(b"\x01\x00")
        client.credentials[Method.USERNAME].present(near)
        near.shutdown(socket.SHUT_WR)
        return recv_all(far)


@pytest.mark.parametrize(
    ("userinfo", "user", "password"),
    [
        ("alice:wonder", b"alice", b"wonder"),
        ("a%40b:c%3Ad", b"a@b", b"c:d"),
        ("a:b:c", b"a", b"b:c"),
        ("a:%2F%3F%23%5B%5D%25", b"a", b"/?#[]%"),
        ("a:b%20c", b"a", b"b c"),
        ("a:b+c", b"a", b"b+c"),
        ("j%C3%BCrgen:%FF%00", "jürgen".encode(), b"\xff\x00"),
        ("jürgen:ü", "jürgen".encode(), "ü".encode()),
        ("a:" + "x" * 255, b"a", b"x" * 255),
    ],
)
def test_user_and_password_of_a_url(userinfo: str, user: bytes, password: bytes) -> None:
    client = Client.from_url(f"socks5://{userinfo}@h.test", password="not this one")
    size = bytes((len(user),)), bytes((len(password),))
    assert sent_by(client) == b"\x01" + size[0] + user + size[1] + password


def test_password_beside_the_url() -> None:
    client = Client.from_url("socks5://alice@h.test", password="w\udcff")
    assert sent_by(client) == b"\x01\x05alice\x02w\xff"


@pytest.mark.parametrize("content", [b"wonder", b"wonder\n", b"wonder\r\n", b"wonder\nsecond\n"])
def test_password_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pass+word"
    path.write_bytes(content)
    path.chmod(0o600)
    client = Client.from_url(f"socks5://alice@h.test?password-file={path}", password="other")
    assert sent_by(client) == b"\x01\x05alice\x06wonder"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o602])
def test_password_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "password"
    path.write_bytes(b"s3cr3t\n")
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600") as caught:
        Client.from_url(f"socks5://alice@h.test?password-file={path}")
    assert str(path) in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


def test_password_file_that_is_none(tmp_path: Path) -> None:
    empty, pipe = tmp_path / "empty", tmp_path / "pipe"
    empty.touch(0o600)
    os.mkfifo(pipe, 0o600)
    for path, what in [
        (empty, "empty"),
        (pipe, "no file"),
        (tmp_path, "directory"),
        (tmp_path / "no", "No such"),
        ("%00", "no file's name"),
    ]:
        with pytest.raises(ConfigError, match=what):
            Client.from_url(f"socks5://alice@h.test?password-file={path}")


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("", "no scheme"),
        ("h.test", "no scheme"),
        ("h.test:1080", "no scheme"),
        ("http://h.test", "scheme 'http'"),
        ("socks6://h.test", "scheme 'socks6'"),
        ("socks5:h.test", "no scheme"),
        ("socks5://", "no host"),
        ("socks5://:1080", "no host"),
        ("socks5://alice:s3cr3t@", "no host"),
        ("socks5://" + "n" * 256, "no host"),
        ("socks5://h.test:0", "port"),
        ("socks5://h.test:65536", "port"),
        ("socks5://h.test:-1", "port"),
        ("socks5://h.test:http", "port"),
        ("socks5://[::1", "no host"),
        ("socks5://[s3cr3t]", "no host"),
        ("socks5://alice:s3cr3t", "port"),
        ("socks5://alice:s3c/r3t@h.test", "%2F"),
        ("socks5://alice:s3c?r3t@h.test", "%3F"),
        ("socks5://alice:s3c#r3t@h.test", "%23"),
        ("socks5://alice:1?s3cr3t@h.test", "%40"),
        ("socks5://alice:s3c\u2100r3t@h.test", "no host"),
        ("socks5://alice:s3cr3t@h.test/path", "more behind the host"),
        ("socks5://alice:s3cr3t@h.test#x", "more behind the host"),
        ("socks5://alice:s3c r3t@h.test", "blank"),
        ("socks5://alice:s3c\tr3t@h.test", "blank or control"),
        ("socks5://alice:s3cr3t@h.test\n", "blank or control"),
        ("socks5://alice@h.test", "no password"),
        ("socks5://alice:@h.test", "1 to 255"),
        ("socks5://:s3cr3t@h.test", "1 to 255"),
        ("socks5://alice:" + "s3cr3t" * 43 + "@h.test", "1 to 255"),
        ("socks5://h.test?auth=username", "no user"),
        ("socks5://h.test?auth=kerberos", "known: none, username, gssapi"),
        ("socks5://h.test?auth=none,none", "twice"),
        ("socks5://h.test?auth=none&auth=gssapi", "twice"),
        ("socks5://h.test?auth=", "no value"),
        ("socks5://h.test?auth", "no value"),
        ("socks5://h.test?colour=red", "unknown setting 'colour'"),
        ("socks5://h.test?auth=gssapi&level=selective", "level 'selective'"),
        ("socks5://h.test?auth=gssapi&level=3", "level '3'"),
        ("socks5://alice:s3cr3t@h.test?password-file=f", "both"),
    ],
)
def test_url_that_cannot_be_used(url: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Client.from_url(url)
    text = str(caught.value)
    assert what in text
    assert "\n" not in text
    for secret in ("s3c", "r3t"):
        assert secret not in text + repr(caught.value)


def test_gssapi_of_a_url() -> None:
    def credential(url: str) -> GssCredential:
        found = Client.from_url(url).credentials[Method.GSSAPI]
        assert isinstance(found, GssCredential)
        return found

    plain = credential("socks5://h.test?auth=gssapi")
    assert repr(plain) == "GssCredential('rcmd@h.test', level=CONFIDENTIALITY)"
    other = credential("socks5://h.test?auth=gssapi&service=socks%2Bx&level=clear")
    assert repr(other) == "GssCredential('socks+x@h.test', level=CLEAR)"
    assert plain._principal is None
    assert credential("socks5://a%40R@h.test?auth=gssapi")._principal == "a@R"
    assert credential("socks5://a:b@h.test?auth=gssapi,username")._principal is None


def test_client_keeps_its_password_to_itself() -> None:
    client = Client.from_url("socks5://alice:s3cr3t@h.test:9")
    assert repr(client) == "Client('h.test:9', username)"
    assert "s3cr3t" not in f"{client} {client!r} {client.credentials}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("x socks5://a:b@h:1 y", "x socks5://***@h:1 y"),
        ("socks5://a:b@c@h", "socks5://***@h"),
        ("socks5://a:b\nc@h", "socks5://***@h"),
        ("socks5://h:1", "socks5://h:1"),
    ],
)
def test_text_without_password(text: str, shown: str) -> None:
    assert without_password(text) == shown


# --- against our own server -------------------------------------------------------------------


def test_through_our_server() -> None:
    with serving(echo) as target, proxy() as (server, _):
        client = Client(server.addresses[0])
        established = client.establish(target)
        with established.stream as sock:
            assert established.bound.port
            sock.sendall(b"x" * 300_000)
            sock.shutdown(socket.SHUT_WR)
            assert recv_all(sock) == b"x" * 300_000


def test_our_server_lets_the_right_password_in() -> None:
    check = PasswordAuthenticator(check=lambda user, password: (user, password) == (b"a", b"b"))
    policy = Policy(rules=EVERYWHERE, authenticators=(check,))
    with serving(echo) as target, proxy(policy) as (server, _):
        address = server.addresses[0]
        Client(address, [Password("a", "b")]).connect(target).close()
        with pytest.raises(AuthFailed):
            Client(address, [Password("a", "c")]).connect(target)
        with pytest.raises(NoAcceptableMethod):
            Client(address).connect(target)


def test_our_server_tells_why_it_does_not_connect() -> None:
    with proxy() as (server, _):
        client = Client(server.addresses[0])
        with pytest.raises(TargetRefused):
            client.connect(("127.0.0.1", unused_port()))
        with pytest.raises(HostUnreachable):
            client.connect(("a..b", 80))


# --- in an ordinary program -------------------------------------------------------------------

ORDINARY = """
import os, socket, sys, threading

from geosocks import Client
from geosocks.errors import TargetRefused

def serve(listener):
    while True:
        sock, _ = listener.accept()
        sock.recv(3)
        sock.sendall(bytes.fromhex("05 00"))
        request = sock.recv(100)
        rep = b"\\0" if request[-1] == 80 else b"\\5"
        sock.sendall(b"\\5" + rep + bytes.fromhex("00 01 00000000 0000"))
        while rep == b"\\0" and (data := sock.recv(100)):
            sock.sendall(data.upper())
        sock.close()

def use(address):
    stream = Client(address).connect(("a.test", 80))
    stream.sendall(b"first ")
    assert stream.recv(100) == b"FIRST "
    sock = stream.ordinary()
    assert sock.gettimeout() is None and os.get_blocking(sock.fileno())
    sock.sendall(b"second")
    assert sock.recv(100) == b"SECOND"  # it waits for it
    sock.settimeout(0.05)
    try:
        sock.recv(100)
    except TimeoutError:
        pass
    sock.close()
    try:
        Client(address).connect(("a.test", 81))
    except TargetRefused as refused:
        assert refused.rep == 5

listener = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=serve, args=(listener,), daemon=True).start()
"""


def run(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ORDINARY + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_in_an_ordinary_program() -> None:
    run("use(listener.getsockname())")


def test_in_a_thread_of_an_ordinary_program() -> None:
    run(
        """
        import gevent

        done = []

        def work():
            use(listener.getsockname())
            gevent.get_hub().destroy(destroy_loop=True)
            done.append(True)

        def one():
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            return len(os.listdir("/proc/self/fd"))

        before = one()
        assert [one() for _ in range(3)] == [before] * 3
        assert len(done) == 4
        """
    )


def test_its_socket_goes_on_as_a_gevent_socket_too() -> None:
    with serving(echo) as target, proxy() as (server, _):
        stream = Client(server.addresses[0]).connect(target)
        sock = gevent.socket.socket(fileno=stream.detach())
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        sock.close()


def test_docstring_names_the_settings_that_there_are() -> None:
    text = Client.from_url.__doc__ or ""
    for name in ("auth", "service", "level", "password-file"):
        assert re.search(f"``{name}``", text)


def test_gevents_tls_goes_around_its_socket(tmp_path: Path) -> None:
    """``gevent.ssl`` detaches what it wraps: the descriptor has to stay one that never blocks."""
    authority = Authority(tmp_path)
    signed = authority.sign("target", alternative="DNS:localhost")
    context = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(signed.cert, signed.key)

    def secret_echo(sock: gevent.socket.socket, _: object) -> None:
        with context.wrap_socket(sock, server_side=True) as inside:
            inside.sendall(inside.recv(100))

    trusting = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_CLIENT)
    trusting.load_verify_locations(authority.ca)
    with serving(secret_echo) as (host, port), proxy() as (server, _):
        stream = Client(server.addresses[0]).connect((host, port))
        with trusting.wrap_socket(stream, server_hostname="localhost") as inside:
            inside.sendall(b"hello")
            assert inside.recv(100) == b"hello"
