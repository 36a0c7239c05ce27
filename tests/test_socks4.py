"""SOCKS4 and 4A, the server's side, octet by octet."""

import socket
from ipaddress import ip_address

import gevent
import gevent.socket
import pytest

from geosocks.auth import Grant, NoAuth
from geosocks.auth.userpass import PasswordAuthenticator
from geosocks.codes import Cmd, Method, Rep
from geosocks.errors import AuthFailed
from geosocks.events import (
    BindWaiting,
    NegotiationEnded,
    RequestRefused,
    SessionClosed,
    SessionCrashed,
    StrangersDropped,
)
from geosocks.policy import Policy, Timeouts
from geosocks.relay.listen import DirectBinder
from geosocks.rules import RuleSet
from geosocks.server import Server
from geosocks.session.socks4 import encode_reply
from geosocks.stream import Stream
from geosocks.wire.socks4 import Reply, Request
from geosocks.wire.socks5 import UNSPECIFIED, Address
from tests.support.dns import dns
from tests.support.net import echo, recv_all, recv_exactly, reset, serving, unused_port
from tests.support.servers import EVERYWHERE, dial, proxy

pytestmark = pytest.mark.usefixtures("no_leaks")

GRANTED, REJECTED = 90, 91
REFUSAL = b"\x00\x5b" + bytes(6)


def asking(
    server: Server, cd: int, host: str, port: int, userid: bytes = b""
) -> gevent.socket.socket:
    """A client that has sent its request."""
    sock = dial(server)
    sock.sendall(Request(cd, Address(host, port), userid).encode())
    return sock


def answer(sock: gevent.socket.socket) -> Reply:
    return Reply.decode(recv_exactly(sock, 8))


def is_refused(sock: gevent.socket.socket) -> bool:
    """True when the answer is 91 and nothing else comes, and it is closed in order."""
    try:
        return recv_all(sock) == REFUSAL
    finally:
        sock.close()


def greets(sock: gevent.socket.socket) -> bool:
    """True when there is an echo at the other end."""
    sock.sendall(b"hello")
    back = recv_exactly(sock, 5)
    sock.shutdown(socket.SHUT_WR)
    assert recv_all(sock) == b""
    sock.close()
    return back == b"hello"


# --- CONNECT ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("userid", "claimed"),
    [(b"", None), (b"alice", "alice"), (b"\xff\n", "\udcff\n"), (b"u" * 255, "u" * 255)],
)
def test_a_connect_and_who_the_client_claims_to_be(userid: bytes, claimed: str | None) -> None:
    with serving(echo) as (host, port), proxy() as (server, witness):
        sock = asking(server, 1, host, port, userid)
        assert answer(sock).cd == GRANTED
        assert greets(sock)
        closed = witness.wait(SessionClosed)
        assert (closed.up, closed.down, closed.reason) == (5, 5, "closed")
        assert (closed.identity, closed.claimed) == (None, claimed)
        assert (closed.method, closed.command) == (Method.NONE, Cmd.CONNECT)


def test_a_name_by_4a_is_looked_up_here_and_once() -> None:
    with serving(echo) as (_, port), dns({"name.test": ["127.0.0.1"]}) as names:
        resolver = names.resolver()
        with proxy(Policy(rules=EVERYWHERE, resolver=resolver)) as (server, witness):
            sock = asking(server, 1, "name.test", port)
            assert answer(sock).cd == GRANTED
            assert greets(sock)
            assert witness.wait(SessionClosed).destination == Address("name.test", port)
        assert names.asked["name.test"] == 2  # A and AAAA
        resolver.close()


@pytest.mark.parametrize("name", ["six.test", "::1"])
def test_a_name_by_4a_may_stand_for_an_ipv6_address(name: str) -> None:
    with serving(echo, "::1") as (_, port), dns({"six.test": ["::1"]}) as names:
        resolver = names.resolver()
        with proxy(Policy(rules=EVERYWHERE, resolver=resolver)) as (server, witness):
            sock = asking(server, 1, name, port)
            assert answer(sock).cd == GRANTED
            assert greets(sock)
            dialled = witness.wait(SessionClosed).dialled
            assert dialled is not None
            assert dialled.host == ip_address("::1")
        resolver.close()


def test_octet_by_octet_works_as_well_as_all_in_one_segment() -> None:
    with serving(echo) as (_, port), proxy() as (server, _):
        octets = Request(1, Address("localhost", port), b"alice").encode() + b"early"
        for pieces in ([octets], [octets[at : at + 1] for at in range(len(octets))]):
            sock = dial(server)
            for piece in pieces:
                sock.sendall(piece)
                gevent.sleep(0)
            assert answer(sock).cd == GRANTED
            assert recv_exactly(sock, 5) == b"early"
            sock.close()


def test_a_request_cut_in_two_segments_anywhere() -> None:
    with serving(echo) as (_, port), proxy() as (server, _):
        octets = Request(1, Address("localhost", port), b"alice").encode() + b"x"
        for cut in range(1, len(octets)):
            sock = dial(server)
            sock.sendall(octets[:cut])
            gevent.sleep(0.002)
            sock.sendall(octets[cut:])
            assert answer(sock).cd == GRANTED
            assert recv_exactly(sock, 1) == b"x"
            sock.close()


# --- refusals ---------------------------------------------------------------------------------


def test_a_target_that_refuses_is_91_whatever_the_reason() -> None:
    with proxy() as (server, witness):
        assert is_refused(asking(server, 1, "127.0.0.1", unused_port(), b"alice"))
        told = witness.wait(RequestRefused)
        assert (told.reply, told.claimed) == (Rep.CONNECTION_REFUSED, "alice")


def test_a_name_that_nobody_knows() -> None:
    with dns({}) as names:
        resolver = names.resolver()
        with proxy(Policy(rules=EVERYWHERE, resolver=resolver)) as (server, _):
            assert is_refused(asking(server, 1, "nowhere.test", 80))
        resolver.close()


@pytest.mark.parametrize("cd", [1, 2])
@pytest.mark.parametrize("userid", [b"", b"alice"])
def test_a_claim_is_no_authentication(cd: int, userid: bytes) -> None:
    policy = Policy(
        rules=EVERYWHERE, authenticators=(PasswordAuthenticator(check=lambda *_: True),)
    )
    with proxy(policy) as (server, witness):
        assert is_refused(asking(server, cd, "127.0.0.1", 80, userid))
        told = witness.wait(RequestRefused)
        assert told.reason == "SOCKS4 proves nobody's identity; we take username"
        assert (told.reply, told.identity) == (Rep.NOT_ALLOWED, None)


@pytest.mark.parametrize(
    "rules",
    [
        "allow user alice to everywhere",
        "allow user * to everywhere",
        "allow method username,gssapi to everywhere",
        "deny method none\nallow to everywhere",
        "allow from 192.0.2.0/24 to everywhere",
        "",
    ],
)
@pytest.mark.parametrize(("cd", "host"), [(1, "127.0.0.1"), (2, "127.0.0.1"), (2, "0.0.0.0")])
def test_rules_that_want_more_than_a_claim(rules: str, cd: int, host: str) -> None:
    policy = Policy(
        rules=RuleSet.parse(rules),
        authenticators=(NoAuth(), PasswordAuthenticator(check=lambda *_: True)),
    )
    with proxy(policy) as (server, witness):
        assert is_refused(asking(server, cd, host, 80, b"alice"))
        assert witness.wait(RequestRefused).reply == Rep.NOT_ALLOWED


class Choosy:
    """A method X'00' of an embedder's own, which knows its clients by where they come from."""

    method = Method.NONE

    def __init__(self, identity: str | None) -> None:
        self.identity = identity

    def authenticate(self, stream: Stream, peer: Address) -> Grant:
        if self.identity is None:
            raise AuthFailed("not from there")
        return Grant(stream, self.identity)


def test_a_method_none_that_does_not_want_everybody_is_not_passed_by() -> None:
    with serving(echo) as (host, port):
        with proxy(Policy(rules=EVERYWHERE, authenticators=(Choosy(None),))) as (server, witness):
            assert is_refused(asking(server, 1, host, port, b"alice"))
            assert witness.wait(RequestRefused).reason == "not from there"
        with proxy(Policy(rules=EVERYWHERE, authenticators=(Choosy("desk7"),))) as (
            server,
            witness,
        ):
            sock = asking(server, 1, host, port, b"alice")
            assert answer(sock).cd == GRANTED
            assert greets(sock)
            closed = witness.wait(SessionClosed)
            assert (closed.identity, closed.claimed) == ("desk7", "alice")


@pytest.mark.parametrize("cd", [0, 3, 4, 90, 0xFF])
def test_a_command_that_there_is_not(cd: int) -> None:
    with proxy() as (server, witness):
        assert is_refused(asking(server, cd, "127.0.0.1", 80))
        told = witness.wait(RequestRefused)
        assert (told.reply, told.command) == (Rep.COMMAND_NOT_SUPPORTED, None)


def test_a_refusal_is_read_even_by_a_client_with_more_to_say() -> None:
    with proxy(Policy(rules=RuleSet())) as (server, _):
        sock = asking(server, 1, "127.0.0.1", 80)
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n" * 100)
        assert is_refused(sock)


def test_switched_off() -> None:
    with (
        serving(echo) as (host, port),
        proxy(Policy(rules=EVERYWHERE, socks4=False)) as (s, witness),
    ):
        assert is_refused(asking(s, 1, host, port, b"alice"))
        told = witness.wait(NegotiationEnded)
        assert told.reason == "client speaks SOCKS4, which is switched off"
        assert witness.wait(SessionClosed).reason == "refused"
        assert not witness.of(RequestRefused)


# --- bad octets -------------------------------------------------------------------------------

HEAD = b"\x04\x01\x00\x50"


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (HEAD + b"\x00\x00\x00\x01\x00\x00", "name of no octets"),
        (HEAD + b"\x7f\x00\x00\x01" + b"u" * 256, "USERID of more than 255 octets"),
        (HEAD + b"\x00\x00\x00\x01u\x00" + b"n" * 256, "name of more than 255 octets"),
    ],
)
def test_octets_that_are_no_request(octets: bytes, reason: str) -> None:
    with proxy() as (server, witness):
        sock = dial(server)
        sock.sendall(octets)
        assert reason in witness.wait(NegotiationEnded).reason
        assert recv_all(sock) == b""
        sock.close()


@pytest.mark.parametrize(
    "octets", [HEAD[:1], HEAD, HEAD + b"\x00\x00\x00\x01u", HEAD + b"\x7f\0\0\1u"]
)
def test_a_client_that_leaves_in_the_middle_or_takes_too_long(octets: bytes) -> None:
    with proxy(timeouts=Timeouts(negotiation=0.1)) as (server, witness):
        for number, leave in enumerate((gevent.socket.socket.close, reset, lambda _: None), 1):
            sock = dial(server)
            sock.sendall(octets)
            gevent.sleep(0.01)
            leave(sock)
            ended = witness.wait(NegotiationEnded, number)
            sock.close()
        assert ended.reason == "the handshake was not done within 0.1 s"
        assert not witness.of(SessionCrashed)


def test_one_octet_at_a_time_for_ever_is_cut_off() -> None:
    with proxy(timeouts=Timeouts(negotiation=0.2)) as (server, witness):
        sock = dial(server)
        sock.sendall(HEAD + b"\x7f\x00\x00\x01")
        while not witness.of(NegotiationEnded):
            sock.sendall(b"u")
            gevent.sleep(0.02)
        assert "0.2 s" in witness.wait(NegotiationEnded).reason
        sock.close()


# --- BIND -------------------------------------------------------------------------------------


def come(to: Address, source: str) -> gevent.socket.socket:
    sock = gevent.socket.socket()
    sock.bind((source, 0))
    sock.connect((str(to.host), to.port))
    return sock


def is_sent_away(source: str, at: Address) -> bool:
    """True when somebody from ``source`` is reset, which may be as soon as it connects."""
    with gevent.socket.socket() as sock:
        sock.bind((source, 0))
        try:
            sock.connect((str(at.host), at.port))
            sock.recv(1)
        except ConnectionResetError:
            return True
        return False


@pytest.mark.parametrize("who", ["127.0.0.2", "0.0.0.0", "peer.test"])
def test_a_bind_has_two_answers(who: str) -> None:
    with dns({"peer.test": ["::1", "127.0.0.2"]}) as names:
        resolver = names.resolver()
        with proxy(Policy(rules=EVERYWHERE, resolver=resolver)) as (server, witness):
            sock = asking(server, 2, who, 21, b"alice")
            first = answer(sock)
            assert first == Reply(GRANTED, witness.wait(BindWaiting).bound)
            assert first.bound.host == ip_address("127.0.0.1")
            peer = come(first.bound, "127.0.0.2")
            assert answer(sock) == Reply(GRANTED, Address(*peer.getsockname()))
            peer.sendall(b"hello")
            peer.close()
            assert recv_all(sock) == b"hello"
            sock.close()
            assert witness.wait(SessionClosed).claimed == "alice"
        resolver.close()


def test_a_stranger_neither_gets_in_nor_ends_it() -> None:
    with proxy() as (server, witness):
        sock = asking(server, 2, "127.0.0.2", 21)
        bound = answer(sock).bound
        assert is_sent_away("127.0.0.3", bound)
        peer = come(bound, "127.0.0.2")
        assert answer(sock) == Reply(GRANTED, Address(*peer.getsockname()))
        peer.close()
        sock.close()
        assert witness.wait(StrangersDropped).count == 1


def test_nobody_comes_in_time() -> None:
    with proxy(timeouts=Timeouts(bind=0.1)) as (server, _):
        sock = asking(server, 2, "127.0.0.2", 21)
        assert answer(sock).cd == GRANTED
        assert is_refused(sock)


@pytest.mark.parametrize("host", ["::1", "six.test"])
def test_a_peer_whose_address_no_answer_can_hold(host: str) -> None:
    with dns({"six.test": ["::1"]}) as names:
        resolver = names.resolver()
        with proxy(Policy(rules=EVERYWHERE, resolver=resolver)) as (server, witness):
            assert is_refused(asking(server, 2, host, 21))
            assert witness.wait(RequestRefused).reply == Rep.ADDRESS_TYPE_NOT_SUPPORTED
            assert not witness.of(BindWaiting)
        resolver.close()


def test_a_client_over_ipv6_cannot_be_told_where_anybody_may_come() -> None:
    server = Server([("::1", 0)], Policy(rules=EVERYWHERE))
    with server:
        sock = gevent.socket.socket(socket.AF_INET6)
        sock.connect(server.addresses[0][:2])
        sock.sendall(Request(2, Address("0.0.0.0", 0)).encode())
        assert is_refused(sock)


def test_no_port_is_free() -> None:
    port = unused_port()
    policy = Policy(rules=EVERYWHERE, binder=DirectBinder(range(port, port + 1)))
    with proxy(policy) as (server, _):
        sock = asking(server, 2, "127.0.0.2", 21)
        assert answer(sock).bound.port == port
        assert is_refused(asking(server, 2, "127.0.0.2", 21))
        sock.close()


# --- answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rep", [*Rep, 0x55])
def test_every_rep_but_success_is_91(rep: int) -> None:
    cd = GRANTED if rep == Rep.SUCCEEDED else REJECTED
    assert encode_reply(rep, UNSPECIFIED) == bytes((0, cd)) + bytes(6)


@pytest.mark.parametrize("host", ["2001:db8::1", "name.test"])
def test_what_an_answer_cannot_hold_becomes_zeros(host: str) -> None:
    assert encode_reply(0, Address(host, 80)) == b"\x00\x5a\x00\x50\x00\x00\x00\x00"
