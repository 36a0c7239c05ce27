"""The client's BIND, against servers that play a transcript and against our own."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import gevent.socket
import pytest

from geosocks.auth import Grant
from geosocks.auth.gss_stream import GssStream
from geosocks.client import Bound, Client
from geosocks.codes import ProtectionLevel
from geosocks.errors import (
    AuthFailed,
    CommandNotSupported,
    NegotiationTimeout,
    ProtocolError,
    RequestDenied,
    RequestFailed,
    TargetTimeout,
    Truncated,
)
from geosocks.policy import Policy, Timeouts
from geosocks.rules import RuleSet
from geosocks.stream import Stream
from geosocks.wire.socks5 import Address
from tests.support.fake_gss import FakeContext, turned
from tests.support.net import recv_all, recv_exactly, reset, serving, wait_for
from tests.support.servers import EVERYWHERE, proxy

pytestmark = pytest.mark.usefixtures("no_leaks")

PEER = ("192.0.2.7", 0)
OFFER, CHOICE = bytes.fromhex("05 01 00"), bytes.fromhex("05 00")
REQUEST = bytes.fromhex("05 02 00 01 c0000207 0000")
FIRST = bytes.fromhex("05 00 00 01 c6336401 1388")  # 198.51.100.1:5000
SECOND = bytes.fromhex("05 00 00 01 c0000207 9c40")  # 192.0.2.7:40000


class Server:
    """Answers a BIND's request with ``first``, and more when the test says so."""

    def __init__(self, first: bytes = FIRST, request: bytes = REQUEST) -> None:
        self.first = first
        self.request = request
        self.sock: Any = None
        self.heard = b""
        self.rest: bytes | None = None

    def __call__(self, sock: gevent.socket.socket, _: object) -> None:
        self.sock = sock
        self.heard = recv_exactly(sock, len(OFFER))
        sock.sendall(CHOICE)
        self.heard += recv_exactly(sock, len(self.request))
        sock.sendall(self.first)
        try:
            self.rest = recv_all(sock)
        except OSError:
            self.rest = b""


@contextmanager
def bound(server: Server, **options: Any) -> Iterator[Bound]:
    """A client's BIND that ``server`` has granted."""
    with serving(server) as address:
        with Client(address).bind(PEER, **options) as listening:
            assert server.heard == OFFER + server.request
            yield listening
        wait_for(lambda: server.rest is not None)


# --- what works -------------------------------------------------------------------------------


def test_two_replies_with_octets_as_the_rfc_has_them() -> None:
    server = Server()
    with bound(server) as listening:
        assert listening.address == listening.told == Address("198.51.100.1", 5000)
        server.sock.sendall(SECOND + b"220 ready")
        stream, peer = listening.accept(timeout=5)
        assert peer == Address("192.0.2.7", 40000)
        assert stream.recv(100) == b"220 ready"
        stream.sendall(b"QUIT")
        listening.close()  # does nothing to the stream
        stream.shutdown(socket.SHUT_WR)
        wait_for(lambda: server.rest == b"QUIT")
        stream.close()


def test_replies_of_one_segment() -> None:
    server = Server(first=FIRST + SECOND + b"x")
    with bound(server) as listening:
        stream, peer = listening.accept()
        assert (peer.port, stream.recv(10)) == (40000, b"x")
        stream.close()


def test_anybody_is_all_zeros() -> None:
    server = Server(request=bytes.fromhex("05 02 00 01 00000000 0000"))
    with serving(server) as address:
        Client(address).bind().close()
    assert server.heard == OFFER + server.request


def test_a_peer_by_its_name_is_the_servers_to_look_up() -> None:
    server = Server(request=bytes.fromhex("05 02 00 03 08") + b"ftp.test" + bytes.fromhex("0014"))
    with serving(server) as address:
        Client(address).bind(("ftp.test", 20)).close()
    assert server.heard == OFFER + server.request


@pytest.mark.parametrize(
    ("bnd", "address"),
    [
        ("01 00000000 1388", "127.0.0.1:5000"),
        ("04 00000000000000000000000000000000 1388", "127.0.0.1:5000"),
        ("04 00000000000000000000ffff00000000 1388", "127.0.0.1:5000"),
        # An inside address may be just what the peer can reach.
        ("01 0a000001 1388", "10.0.0.1:5000"),
        ("01 7f000009 1388", "127.0.0.9:5000"),
        ("03 06 612e74657374 1388", "a.test:5000"),
    ],
)
def test_zeros_in_bnd_are_the_servers_own_address(bnd: str, address: str) -> None:
    reply = bytes.fromhex("05 00 00") + bytes.fromhex(bnd)
    with bound(Server(first=reply)) as listening:
        assert str(listening.address) == address
        assert Address.decode(reply, 3) == listening.told


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rep", "kind"),
    [(1, RequestFailed), (2, RequestDenied), (7, CommandNotSupported), (0x55, RequestFailed)],
)
def test_a_first_reply_that_refuses(rep: int, kind: type[RequestFailed]) -> None:
    server = Server(first=bytes((5, rep)) + FIRST[2:])
    with serving(server) as address, pytest.raises(kind, match=r"192\.0\.2\.7:0") as caught:
        Client(address).bind(PEER)
    assert caught.value.rep == rep
    wait_for(lambda: server.rest == b"")


@pytest.mark.parametrize(
    ("rep", "kind"), [(1, RequestFailed), (2, RequestDenied), (6, TargetTimeout)]
)
def test_a_second_reply_that_refuses(rep: int, kind: type[RequestFailed]) -> None:
    server = Server(first=FIRST + bytes((5, rep)) + SECOND[2:])
    with bound(server) as listening:
        with pytest.raises(kind) as caught:
            listening.accept()
        assert caught.value.rep == rep
        with pytest.raises(OSError, match="Bad file"):
            listening.accept()


@pytest.mark.parametrize(
    ("octets", "how", "kind"),
    [
        (SECOND[:5], "close", Truncated),
        (b"", "close", Truncated),
        (b"", "reset", ConnectionResetError),
        (b"\x04" + SECOND[1:], "wait", ProtocolError),
        (SECOND[:3] + b"\x02" + SECOND[4:], "wait", ProtocolError),
    ],
    ids=["cut", "closed", "reset", "version", "atyp"],
)
def test_a_second_reply_that_is_none(octets: bytes, how: str, kind: type[OSError]) -> None:
    server = Server()
    with bound(server) as listening:
        server.sock.sendall(octets)
        if how == "close":
            server.sock.shutdown(socket.SHUT_WR)
        elif how == "reset":
            reset(server.sock)
        with pytest.raises(kind):
            listening.accept(timeout=5)


@pytest.mark.parametrize("start", [b"", SECOND[:5]], ids=["silence", "half-a-reply"])
def test_nobody_comes_in_time(start: bytes) -> None:
    server = Server(first=FIRST + start)
    with bound(server) as listening:
        with pytest.raises(TimeoutError, match=r"within 0\.05 s") as caught:
            listening.accept(timeout=0.05)
        assert not isinstance(caught.value, RequestFailed)
        with pytest.raises(OSError, match="Bad file"):
            listening.accept()
        wait_for(lambda: server.rest == b"")


def test_the_callers_own_timeout_passes_through() -> None:
    with bound(Server()) as listening, pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
        listening.accept(timeout=5)


def test_no_first_reply_in_time() -> None:
    server = Server(first=FIRST[:4])
    with serving(server) as address:
        with pytest.raises(NegotiationTimeout, match=r"listening for 192\.0\.2\.7:0 within 0\.1"):
            Client(address).bind(PEER, timeout=0.1)
        wait_for(lambda: server.rest == b"")


# --- inside GSSAPI ----------------------------------------------------------------------------


class FakeGss:
    """Both halves of a method that encapsulates at once, with nothing to negotiate."""

    method = 0x80

    def _grant(self, stream: Stream) -> Grant:
        inside = GssStream(stream, FakeContext(), ProtectionLevel.CONFIDENTIALITY)
        return Grant(inside, "alice@EXAMPLE.ORG", "confidentiality")

    def present(self, stream: Stream) -> Grant:
        return self._grant(stream)

    def authenticate(self, stream: Stream, peer: Address) -> Grant:
        return self._grant(stream)


def token(number: int, message: bytes) -> bytes:
    """An encapsulated message of the fake context's."""
    octets = bytes((number, 1)) + turned(message)
    return b"\x01\x03" + len(octets).to_bytes(2) + octets


def test_both_replies_and_the_data_are_encapsulated() -> None:
    def serve(sock: gevent.socket.socket, _: object) -> None:
        assert recv_exactly(sock, 3) == b"\x05\x01\x80"
        sock.sendall(b"\x05\x80")
        asked = token(0, REQUEST)
        assert recv_exactly(sock, len(asked)) == asked
        sock.sendall(token(0, FIRST) + token(1, SECOND + b"da") + token(2, b"ta"))
        heard.append(recv_all(sock))

    heard: list[bytes] = []
    with serving(serve) as address:
        with Client(address, [FakeGss()]).bind(PEER) as listening:
            assert listening.grant.identity == "alice@EXAMPLE.ORG"
            stream, peer = listening.accept(timeout=5)
            assert peer.port == 40000
            assert stream.recv(10) + stream.recv(10) == b"data"
            stream.sendall(b"thanks")
            stream.close()
        wait_for(lambda: heard == [token(1, b"thanks")])


def test_a_clear_second_reply_is_none() -> None:
    def serve(sock: gevent.socket.socket, _: object) -> None:
        recv_exactly(sock, 3)
        sock.sendall(b"\x05\x80")
        recv_exactly(sock, len(token(0, REQUEST)))
        sock.sendall(token(0, FIRST) + SECOND)
        recv_all(sock)

    with (
        serving(serve) as address,
        Client(address, [FakeGss()]).bind(PEER) as listening,
        pytest.raises(ProtocolError),
    ):
        listening.accept(timeout=5)


# --- against our own server -------------------------------------------------------------------


def come(to: Address) -> gevent.socket.socket:
    """A peer that comes from 127.0.0.2."""
    sock = gevent.socket.socket()
    try:
        sock.bind(("127.0.0.2", 0))
        sock.connect((str(to.host), to.port))
    except BaseException:
        sock.close()
        raise
    return sock


@pytest.mark.parametrize("encapsulated", [False, True], ids=["plain", "encapsulated"])
@pytest.mark.parametrize("named", ["127.0.0.2", "0.0.0.0"])
def test_through_our_server(named: str, encapsulated: bool) -> None:
    policy = Policy(rules=EVERYWHERE)
    credentials: dict[str, Any] = {}
    if encapsulated:
        policy = policy.replace(authenticators=(FakeGss(),))
        credentials = {"credentials": [FakeGss()]}
    with proxy(policy) as (server, _):
        client = Client(server.addresses[0], **credentials)
        with client.bind((named, 0)) as listening:
            peer = come(listening.address)
            stream, who = listening.accept(timeout=5)
        assert who == Address(*peer.getsockname())
        peer.sendall(b"x" * 200_000)
        peer.shutdown(socket.SHUT_WR)
        assert recv_all(stream) == b"x" * 200_000
        stream.sendall(b"thanks")
        stream.close()
        assert recv_all(peer) == b"thanks"
        peer.close()


def test_our_server_refuses_by_rule_and_by_time() -> None:
    rules = RuleSet.parse("allow command connect to everywhere\n")
    with proxy(Policy(rules=rules)) as (server, _), pytest.raises(RequestDenied):
        Client(server.addresses[0]).bind(("127.0.0.2", 0))
    with proxy(timeouts=Timeouts(bind=0.1)) as (server, _):
        with (
            Client(server.addresses[0]).bind(("127.0.0.2", 0)) as listening,
            pytest.raises(TargetTimeout) as caught,
        ):
            listening.accept(timeout=5)
        assert caught.value.rep == 6


def test_our_server_hears_that_we_give_up() -> None:
    with proxy() as (server, _):
        listening = Client(server.addresses[0]).bind(("127.0.0.2", 0))
        to = listening.address
        listening.close()
        listening.close()

        def is_gone() -> bool:
            try:
                come(to).close()
            except ConnectionRefusedError:
                return True
            return False

        wait_for(is_gone)


def test_who_is_not_let_in_opens_no_bind() -> None:
    class Refusing:
        method = 0x81

        def present(self, stream: Stream) -> Grant:
            raise AuthFailed("no ticket")

    def serve(sock: gevent.socket.socket, _: object) -> None:
        recv_exactly(sock, 3)
        sock.sendall(b"\x05\x81")
        recv_all(sock)

    with serving(serve) as address, pytest.raises(AuthFailed):
        Client(address, [Refusing()]).bind(PEER)
