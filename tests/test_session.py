"""The server's half of RFC 1928, octet by octet, against real clients and targets."""

import socket
from contextlib import closing, suppress
from ipaddress import ip_address

import gevent
import gevent.socket
import pytest

from geosocks.auth import Grant, NoAuth
from geosocks.auth.userpass import PasswordAuthenticator
from geosocks.codes import Rep
from geosocks.errors import AuthFailed, HostUnreachable, TargetTimeout
from geosocks.events import (
    Authenticated,
    AuthenticationFailed,
    MethodSelected,
    NegotiationEnded,
    RequestJudged,
    RequestRefused,
    SessionClosed,
    SessionCrashed,
    SessionEstablished,
    SessionOpened,
)
from geosocks.policy import Policy, Timeouts
from geosocks.rules import RuleSet
from geosocks.session import address_of
from geosocks.stream import Stream, read_message
from geosocks.wire.socks5 import Address, IPAddress, MethodOffer
from tests.support.net import (
    SilentAddress,
    echo,
    recv_all,
    recv_exactly,
    reset,
    serving,
    unused_port,
)
from tests.support.servers import EVERYWHERE, dial, greeted, proxy, read_reply, request

pytestmark = pytest.mark.usefixtures("no_leaks")


# --- the way it should go ---------------------------------------------------------------------


def test_a_connect_tells_its_story_in_order() -> None:
    with serving(echo) as (host, port), proxy() as (server, witness):
        sock = greeted(server)
        sock.sendall(request(1, host, port))
        reply = read_reply(sock)
        assert reply.rep == Rep.SUCCEEDED
        sock.sendall(b"hello")
        assert recv_exactly(sock, 5) == b"hello"
        sock.shutdown(socket.SHUT_WR)
        assert recv_all(sock) == b""
        closed = witness.wait(SessionClosed)
        sock.close()
        told = [type(event) for event in witness if hasattr(event, "session")]
        assert told == [
            SessionOpened,
            MethodSelected,
            Authenticated,
            RequestJudged,
            SessionEstablished,
            SessionClosed,
        ]
        assert (closed.up, closed.down, closed.reason) == (5, 5, "closed")
        assert closed.destination == closed.dialled == Address(host, port)
        assert 0 < closed.seconds < 5
        assert not server.sessions


def test_bnd_is_the_outgoing_address() -> None:
    seen = []

    def tell(sock: gevent.socket.socket, address: tuple[str, int]) -> None:
        seen.append(address)

    with serving(tell) as (host, port), proxy() as (server, _):
        sock = greeted(server)
        sock.sendall(request(1, host, port))
        assert read_reply(sock).bound == Address(*read_all_of(seen))
        sock.close()


def read_all_of(seen: list[tuple[str, int]]) -> tuple[str, int]:
    while not seen:
        gevent.sleep(0.001)
    return seen[0]


def test_octet_by_octet_works_as_well_as_all_in_one_segment() -> None:
    with serving(echo) as (_, port), proxy() as (server, _):
        octets = b"\x05\x02\x00\x02" + request(1, "localhost", port) + b"early"
        for pieces in ([octets], [octets[at : at + 1] for at in range(len(octets))]):
            sock = dial(server)
            for piece in pieces:
                sock.sendall(piece)
                gevent.sleep(0)
            assert recv_exactly(sock, 2) == b"\x05\x00"
            assert read_reply(sock).rep == Rep.SUCCEEDED
            assert recv_exactly(sock, 5) == b"early"
            sock.close()


@pytest.mark.parametrize("cut", range(2, 14))
def test_a_handshake_cut_in_two_segments_anywhere(cut: int) -> None:
    with serving(echo) as (host, port), proxy() as (server, _):
        octets = b"\x05\x01\x00" + request(1, host, port) + b"x"
        sock = dial(server)
        sock.sendall(octets[:cut])
        gevent.sleep(0.002)
        sock.sendall(octets[cut:])
        assert recv_exactly(sock, 12)[:4] == b"\x05\x00\x05\x00"
        assert recv_exactly(sock, 1) == b"x"
        sock.close()


def test_an_ipv6_target_and_an_address_sent_as_a_name() -> None:
    with serving(echo, "::1") as (_, port), proxy() as (server, witness):
        sock = greeted(server)
        sock.sendall(request(1, "::1", port))
        assert read_reply(sock).bound.host == ip_address("::1")
        sock.close()
        sock = greeted(server)
        sock.sendall(b"\x05\x01\x00\x03\x03::1" + port.to_bytes(2))
        assert read_reply(sock).rep == Rep.SUCCEEDED
        sock.close()
        assert witness.wait(SessionEstablished, 2).destination == Address("::1", port)


def test_rsv_is_not_looked_at() -> None:
    with serving(echo) as (host, port), proxy() as (server, _):
        sock = greeted(server)
        octets = bytearray(request(1, host, port))
        octets[2] = 0x7F
        sock.sendall(octets)
        assert read_reply(sock).rep == Rep.SUCCEEDED
        sock.close()


# --- methods ----------------------------------------------------------------------------------


class Ticket:
    """A private method of one octet."""

    method = 0x80

    def authenticate(self, stream: Stream, peer: Address) -> Grant:
        ticket = stream.recv(1)
        stream.sendall(b"\x00" if ticket == b"\x07" else b"\x01")
        if ticket != b"\x07":
            raise AuthFailed("stale ticket", "somebody")
        return Grant(stream, "holder of 7", "by ticket")


MANY = Policy(
    authenticators=(Ticket(), PasswordAuthenticator(check=lambda u, p: p == b"pw"), NoAuth()),
    rules=EVERYWHERE,
)


@pytest.mark.parametrize(
    ("offer", "choice"),
    [
        (b"\x00", 0),
        (b"\x00\x02", 2),
        (b"\x00\x02\x80", 0x80),
        (b"\x80\x02\x00", 0x80),
        (b"\x02\x00", 2),
        (b"\x01", 0xFF),
        (b"\x7f\x81\xfe", 0xFF),
        (b"\xff", 0xFF),
        (b"", 0xFF),
        (bytes(range(0x03, 0x80)), 0xFF),
        (bytes(range(1, 256)), 0x80),
    ],
)
def test_the_servers_order_decides_among_what_is_offered(offer: bytes, choice: int) -> None:
    with proxy(MANY) as (server, witness):
        sock = dial(server)
        sock.sendall(MethodOffer(offer).encode())
        assert recv_exactly(sock, 2) == bytes((5, choice))
        if choice == 0xFF:
            assert sock.recv(1) == b""  # closed in order, not reset
            assert "no acceptable method" in witness.wait(NegotiationEnded).reason
        sock.close()


def test_ff_reaches_a_client_that_goes_on_talking() -> None:
    with proxy(Policy(authenticators=(Ticket(),), rules=EVERYWHERE)) as (server, _):
        for _ in range(20):
            sock = dial(server)
            sock.sendall(b"\x05\x01\x00" + b"and a request" * 50)
            assert recv_all(sock) == b"\x05\xff"
            sock.close()


def test_a_private_method_gives_an_identity() -> None:
    with serving(echo) as (host, port), proxy(MANY) as (server, witness):
        sock = dial(server)
        sock.sendall(b"\x05\x01\x80\x07" + request(1, host, port))
        assert recv_exactly(sock, 3) == b"\x05\x80\x00"
        assert read_reply(sock).rep == Rep.SUCCEEDED
        sock.close()
        done = witness.wait(Authenticated)
        assert (done.method, done.identity, done.detail) == (0x80, "holder of 7", "by ticket")
        assert witness.wait(SessionClosed).identity == "holder of 7"


def test_a_refused_client_is_told_and_its_pipelined_request_not_looked_at() -> None:
    with serving(echo) as (host, port), proxy(MANY) as (server, witness):
        sock = dial(server)
        sock.sendall(b"\x05\x01\x80\x08" + request(1, host, port))
        assert recv_all(sock) == b"\x05\x80\x01"
        sock.close()
        failed = witness.wait(AuthenticationFailed)
        assert (failed.reason, failed.identity) == ("stale ticket", "somebody")
        assert witness.wait(SessionClosed).reason == "refused"
        assert not witness.of(RequestJudged)


def test_a_wrong_password_is_refused_in_order() -> None:
    with proxy(MANY) as (server, witness):
        sock = dial(server)
        sock.sendall(b"\x05\x01\x02\x01\x05alice\x05wrong")
        assert recv_all(sock) == b"\x05\x02\x01\x01"
        sock.close()
        assert witness.wait(AuthenticationFailed).identity == "alice"
        assert "wrong" not in repr(witness).replace("wrong user name or password", "")


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cmd", [0, 4, 0x7F, 0xFF])
def test_a_command_that_we_do_not_do(cmd: int) -> None:
    with proxy() as (server, witness):
        sock = greeted(server)
        sock.sendall(request(cmd, "192.0.2.1", 80) + b"and more")
        assert read_reply(sock).rep == Rep.COMMAND_NOT_SUPPORTED
        assert recv_all(sock) == b""
        sock.close()
        assert witness.wait(RequestRefused).reply == Rep.COMMAND_NOT_SUPPORTED


@pytest.mark.parametrize("atyp", [0, 2, 5, 0x7F, 0xFF])
def test_an_address_type_that_nobody_knows(atyp: int) -> None:
    with proxy() as (server, witness):
        sock = greeted(server)
        sock.sendall(bytes((5, 1, 0, atyp)) + b"who knows how long this is")
        assert read_reply(sock).rep == Rep.ADDRESS_TYPE_NOT_SUPPORTED
        assert recv_all(sock) == b""
        sock.close()
        assert witness.wait(RequestRefused).destination is None


def test_a_refused_connection_is_answered_with_its_reason() -> None:
    with proxy() as (server, witness):
        sock = greeted(server)
        sock.sendall(request(1, "127.0.0.1", unused_port()))
        assert read_reply(sock).rep == Rep.CONNECTION_REFUSED
        assert recv_all(sock) == b""
        sock.close()
        assert "refused" in witness.wait(RequestRefused).reason.lower()


@pytest.mark.parametrize(
    "name",
    [b"127.1", b"0x7f.1", b"a\x00b", b"a b", b"\xff\xfe", b"-", b"x" * 255, b"a..b", b"::1%1"],
)
def test_what_is_no_host_name_is_unreachable(name: bytes) -> None:
    with proxy() as (server, witness):
        sock = greeted(server)
        sock.sendall(b"\x05\x01\x00\x03" + bytes((len(name),)) + name + b"\x00\x50")
        assert read_reply(sock).rep == Rep.HOST_UNREACHABLE
        assert recv_all(sock) == b""
        sock.close()
        witness.wait(RequestRefused)


def test_what_a_rule_denies_is_answered_before_any_look_up() -> None:
    class NoLookUps:
        def resolve(self, name: str) -> tuple[IPAddress, ...]:
            raise AssertionError(name)

    policy = Policy(rules=RuleSet.parse("deny to *.example.org\nallow"), resolver=NoLookUps())
    with proxy(policy, allow_open=True) as (server, witness):
        sock = greeted(server)
        sock.sendall(request(1, "www.example.org", 80))
        assert read_reply(sock).rep == Rep.NOT_ALLOWED
        sock.close()
        assert "deny to *.example.org" in str(witness.wait(RequestRefused).rule)


def test_only_judged_addresses_are_dialled() -> None:
    class Rebinding:
        def __init__(self) -> None:
            self.asked = 0

        def resolve(self, name: str) -> tuple[IPAddress, ...]:
            self.asked += 1
            return (ip_address("192.0.2.1"), ip_address("127.0.0.1"))

    class Dialer:
        def __init__(self) -> None:
            self.dialled: list[tuple[IPAddress, ...]] = []

        def open_connection(self, to: Address, addresses: tuple[IPAddress, ...]) -> Stream:
            self.dialled.append(addresses)
            raise HostUnreachable("test")

    resolver, dialer = Rebinding(), Dialer()
    policy = Policy(
        rules=RuleSet.parse("allow to any, 192.0.2.0/24"), resolver=resolver, dialer=dialer
    )
    with proxy(policy, allow_open=True) as (server, _):
        sock = greeted(server)
        sock.sendall(request(1, "rebind.example", 80))
        assert read_reply(sock).rep == Rep.HOST_UNREACHABLE
        sock.close()
    assert dialer.dialled == [(ip_address("192.0.2.1"),)]
    assert resolver.asked == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "0.0.0.0", "::ffff:127.0.0.1"])
def test_a_session_is_not_led_back_to_the_server_itself(host: str) -> None:
    with proxy() as (server, witness):
        sock = greeted(server)
        sock.sendall(request(1, host, server.addresses[0][1]))
        assert read_reply(sock).rep == Rep.NOT_ALLOWED
        sock.close()
        assert "itself" in witness.wait(RequestRefused).reason


def test_a_target_that_does_not_answer_in_time() -> None:
    class Slow:
        def open_connection(self, to: Address, addresses: tuple[IPAddress, ...]) -> Stream:
            gevent.sleep(10)
            raise AssertionError

    policy = Policy(rules=EVERYWHERE, dialer=Slow(), timeouts=Timeouts(connect=0.05))
    with proxy(policy) as (server, witness):
        sock = greeted(server)
        sock.sendall(request(1, "127.0.0.1", 9))
        assert read_reply(sock).rep == Rep.TTL_EXPIRED
        sock.close()
        assert witness.wait(RequestRefused).reply == TargetTimeout.rep


def test_a_silent_target_does_not_answer_in_time() -> None:
    silent = SilentAddress()
    policy = Policy(rules=EVERYWHERE, timeouts=Timeouts(connect=0.1))
    with closing(silent), proxy(policy) as (server, witness):
        sock = greeted(server)
        sock.sendall(request(1, "127.0.0.3", silent.port))
        assert read_reply(sock).rep == Rep.TTL_EXPIRED
        sock.close()
        reason = witness.wait(RequestRefused).reason
        assert reason == f"127.0.0.3:{silent.port}: no answer within 0.1 s"


# --- bad octets -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (b"\x06", "first octet is 0x06"),
        (b"\x16\x03\x01", "client speaks TLS, and this listener does not"),
        (b"\x05\x01\x00\x04\x01\x00\x01", "request VER is 0x04"),
        (b"\x05\x01\x00\x05\x01\x00\x03\x00\x00\x50", "DOMAINNAME of no octets"),
    ],
)
def test_octets_that_no_rfc_allows_here(octets: bytes, reason: str) -> None:
    with proxy() as (server, witness):
        sock = dial(server)
        sock.sendall(octets)
        assert reason in witness.wait(NegotiationEnded).reason
        with gevent.Timeout(2), suppress(ConnectionResetError):
            recv_all(sock)
        sock.close()
        witness.wait(SessionClosed)


@pytest.mark.parametrize("verb", [b"GET / HTTP/1.0\r\n\r\n", b"CONNECT a:443 HTTP/1.1\r\n\r\n"])
def test_a_web_browser_is_told_what_this_is(verb: bytes) -> None:
    with proxy() as (server, witness):
        sock = dial(server)
        sock.sendall(verb)
        answer = recv_all(sock)
        assert answer.startswith(b"HTTP/1.0 400 ")
        assert b"SOCKS5 proxy" in answer
        sock.close()
        assert witness.wait(NegotiationEnded).reason == "client speaks HTTP"


@pytest.mark.parametrize("size", range(1, 13))
def test_a_client_that_leaves_in_mid_handshake(size: int) -> None:
    octets = b"\x05\x01\x00" + request(1, "127.0.0.1", 9)
    for leave in (gevent.socket.socket.close, reset):
        with proxy() as (server, witness):
            sock = dial(server)
            sock.sendall(octets[:size])
            gevent.sleep(0.002)
            leave(sock)
            assert witness.wait(SessionClosed).reason == "refused"
            assert len(witness.of(NegotiationEnded)) == 1


def test_a_health_check_makes_no_noise() -> None:
    with proxy() as (server, witness):
        dial(server).close()
        assert witness.wait(SessionClosed).reason == "nothing_said"
        assert not witness.of(NegotiationEnded)


def test_the_handshake_limit_is_one_for_all_of_it() -> None:
    with proxy(timeouts=Timeouts(negotiation=0.2)) as (server, witness):
        sock = dial(server)

        def trickle() -> None:
            for octet in b"\x05\xff" + bytes(255):
                sock.sendall(bytes((octet,)))
                gevent.sleep(0.03)

        writer = gevent.spawn(trickle)
        closed = witness.wait(SessionClosed)
        assert 0.19 < closed.seconds < 1.5
        assert "0.2 s" in witness.of(NegotiationEnded)[0].reason
        writer.kill()
        sock.close()


# --- faults -----------------------------------------------------------------------------------


def test_a_fault_of_ours_ends_one_session_and_is_told() -> None:
    class Broken:
        def open_connection(self, to: Address, addresses: tuple[IPAddress, ...]) -> Stream:
            raise ZeroDivisionError("oops")

    with proxy(Policy(rules=EVERYWHERE, dialer=Broken())) as (server, witness):
        sock = greeted(server)
        sock.sendall(request(1, "127.0.0.1", 9))
        assert read_reply(sock).rep == Rep.GENERAL_FAILURE
        sock.close()
        crash = witness.wait(SessionCrashed)
        assert "oops" in crash.error
        assert "open_connection" in crash.traceback
        assert witness.wait(SessionClosed).reason == "crashed"
        greeted(server).close()  # the next one is served


def test_a_fault_in_an_authenticator_ends_its_session_only() -> None:
    class Broken(Ticket):
        def authenticate(self, stream: Stream, peer: Address) -> Grant:
            raise KeyError("oops")

    with proxy(Policy(authenticators=(Broken(),), rules=EVERYWHERE)) as (server, witness):
        sock = dial(server)
        sock.sendall(b"\x05\x01\x80")
        assert recv_exactly(sock, 2) == b"\x05\x80"
        with pytest.raises(ConnectionResetError):
            recv_all(sock)
        sock.close()
        assert "KeyError" in witness.wait(SessionCrashed).error


def test_a_client_that_has_gone_when_the_target_answers() -> None:
    class Waiting:
        def open_connection(self, to: Address, addresses: tuple[IPAddress, ...]) -> Stream:
            gevent.sleep(0.05)
            return gevent.socket.create_connection((str(to.host), to.port))

    with (
        serving(echo) as (host, port),
        proxy(Policy(rules=EVERYWHERE, dialer=Waiting())) as (server, witness),
    ):
        sock = greeted(server)
        sock.sendall(request(1, host, port))
        gevent.sleep(0.01)
        reset(sock)
        assert witness.wait(SessionClosed).reason == "reset_by_client"


@pytest.mark.parametrize(
    ("name", "address"),
    [
        (("127.0.0.1", 5), Address("127.0.0.1", 5)),
        (("::1", 5, 0, 0), Address("::1", 5)),
        (("::ffff:192.0.2.1", 5, 0, 0), Address("192.0.2.1", 5)),
        (("fe80::1%lo", 5, 0, 1), Address("fe80::1", 5)),
        ("/run/socket", Address("127.0.0.1", 0)),
        ("", Address("127.0.0.1", 0)),
    ],
)
def test_a_sockets_name_as_an_address(name: object, address: Address) -> None:
    assert address_of(name) == address


def test_a_message_reader_reads_nothing_behind_the_offer() -> None:
    near, far = gevent.socket.socketpair()
    far.sendall(b"\x05\x01\x00tail")
    read_message(near, MethodOffer.decode)
    assert near.recv(9) == b"tail"
    near.close()
    far.close()
