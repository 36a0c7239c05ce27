"""The entrance of a server: floods are shared out, guessers are slowed and then shut out."""

import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from ipaddress import ip_address
from pathlib import Path

import gevent
import gevent.socket
import pytest

from geosocks.auth import Grant
from geosocks.auth.userpass import PasswordAuthenticator
from geosocks.codes import Method, Rep
from geosocks.entrance import LOOK_EVERY, SLOW_AFTER, Entrance
from geosocks.errors import AuthFailed
from geosocks.events import (
    AuthenticationFailed,
    ConnectionRefused,
    LimitReached,
    NegotiationEnded,
    SessionClosed,
    SourcePenalised,
)
from geosocks.policy import Policy, Timeouts
from geosocks.scores import FREE, SLOWEST
from geosocks.server import Server
from geosocks.stream import Stream
from geosocks.wire.socks5 import Address
from tests.support.net import echo, recv_all, recv_exactly, reset, serving, wait_for
from tests.support.proxy import running
from tests.support.servers import EVERYWHERE, dial, proxy, read_reply, request

pytestmark = pytest.mark.usefixtures("no_leaks")


def knows_alice(uname: bytes, passwd: bytes) -> bool:
    return (uname, passwd) == (b"alice", b"wonder")


def guarded(**entrance: object) -> Policy:
    """A policy with passwords, in which nobody is exempt."""
    return Policy(
        authenticators=(PasswordAuthenticator(knows_alice),),
        rules=EVERYWHERE,
        entrance=Entrance(exempt=(), **entrance),  # type: ignore[arg-type]
    )


def open_to(**entrance: object) -> Policy:
    """A policy without passwords, in which nobody is exempt, and every handshake is slow."""
    return Policy(
        rules=EVERYWHERE,
        entrance=Entrance(exempt=(), slow_after=0.0, **entrance),  # type: ignore[arg-type]
    )


def dial_from(server: Server, host: str) -> gevent.socket.socket:
    """A connection from another address of this host."""
    sock = gevent.socket.socket()
    sock.bind((host, 0))
    sock.connect(server.addresses[0])
    return sock


def is_turned_away(sock: gevent.socket.socket) -> bool:
    """True when it is closed before a word was said."""
    with closing(sock):
        return recv_all(sock) == b""


def is_served(sock: gevent.socket.socket, to: tuple[str, int]) -> bool:
    """True when a session without authentication comes about."""
    with closing(sock):
        sock.sendall(b"\x05\x01\x00")
        if recv_exactly(sock, 2) != b"\x05\x00":
            return False
        sock.sendall(request(1, *to))
        return read_reply(sock).rep == Rep.SUCCEEDED


def guess(sock: gevent.socket.socket, password: str = "wrong", user: str = "alice") -> bytes:
    """The answer to a password; none where nobody cares to answer."""
    with closing(sock), suppress(BrokenPipeError, ConnectionResetError):
        sock.sendall(b"\x05\x01\x02")
        if recv_exactly(sock, 2) != b"\x05\x02":
            return b""
        sock.sendall(bytes((1, len(user))) + user.encode())
        sock.sendall(bytes((len(password),)) + password.encode())
        return recv_exactly(sock, 2)
    return b""


# --- many handshakes --------------------------------------------------------------------------


def test_a_full_entrance_closes_new_connections_until_there_is_room() -> None:
    with (
        serving(echo) as to,
        proxy(open_to(start=5, full=5, per_source=9)) as (server, witness),
        ExitStack() as idle,
    ):
        going = idle.enter_context(closing(dial(server)))
        going.sendall(b"\x05\x01\x00" + request(1, *to))
        assert recv_exactly(going, 2) == b"\x05\x00"
        assert read_reply(going).rep == Rep.SUCCEEDED  # it is no handshake any more
        socks = [idle.enter_context(closing(dial(server))) for _ in range(5)]
        wait_for(lambda: server.gate.handshakes == 5)
        for _ in range(20):
            assert is_turned_away(dial(server))
        refused = witness.of(ConnectionRefused)
        assert [event.reason for event in refused] == ["handshakes"] * 20
        assert witness.of(LimitReached) == [LimitReached("handshakes", 5)]
        going.sendall(b"on and on")
        assert recv_exactly(going, 9) == b"on and on"
        socks[0].close()
        wait_for(lambda: server.gate.handshakes == 4)
        assert is_served(dial(server), to)


def test_one_source_cannot_shut_out_another() -> None:
    with (
        serving(echo) as to,
        proxy(open_to(per_source=4)) as (server, witness),
        ExitStack() as idle,
    ):
        for _ in range(4):
            idle.enter_context(closing(dial_from(server, "127.0.0.2")))
        wait_for(lambda: server.gate.handshakes == 4)
        for _ in range(5):
            assert is_turned_away(dial_from(server, "127.0.0.2"))
            assert is_served(dial_from(server, "127.0.0.3"), to)
        assert witness.of(LimitReached) == [
            LimitReached("handshakes_of_source", 4, "host 127.0.0.2")
        ]
        idle.close()
        wait_for(lambda: server.gate.handshakes == 0)
        assert is_served(dial_from(server, "127.0.0.2"), to)


def test_a_burst_of_honest_clients_is_never_hurt() -> None:
    policy = Policy(rules=EVERYWHERE, entrance=Entrance(start=5, full=5, per_source=1, exempt=()))
    with serving(echo) as to, proxy(policy, max_sessions=500) as (server, witness):
        socks = [dial(server) for _ in range(400)]
        clients = [gevent.spawn(is_served, sock, to) for sock in socks]
        assert all(client.get(timeout=5.0) for client in clients)
        assert not witness.of(ConnectionRefused)


def test_who_fills_the_server_does_not_shut_others_out() -> None:
    policy = Policy(rules=EVERYWHERE, entrance=Entrance(exempt=(), slow_after=0.3))
    with (
        serving(echo) as to,
        proxy(policy, max_sessions=40) as (server, witness),
        ExitStack() as attack,
    ):
        for _ in range(120):  # three times as many as there are places: they fill the backlog, too
            attack.enter_context(closing(dial_from(server, "127.0.0.2")))
        wait_for(lambda: len(server.sessions) == 40)
        began = time.monotonic()
        assert is_served(dial_from(server, "127.0.0.3"), to)
        assert time.monotonic() - began < 2.0  # and not after 10 s, the time for a handshake
        assert witness.wait(SessionClosed).reason == "crowded_out"
        assert is_served(dial_from(server, "127.0.0.3"), to)


def test_a_full_server_cuts_nobody_who_is_at_work() -> None:
    policy = Policy(rules=EVERYWHERE, entrance=Entrance(exempt=(), slow_after=0.0))
    with (
        serving(echo) as to,
        proxy(policy, max_sessions=4) as (server, witness),
        ExitStack() as sessions,
    ):
        for _ in range(4):
            sock = sessions.enter_context(closing(dial(server)))
            sock.sendall(b"\x05\x01\x00" + request(1, *to))
            assert recv_exactly(sock, 2) == b"\x05\x00"
            assert read_reply(sock).rep == Rep.SUCCEEDED
        waiting = gevent.spawn(is_served, dial(server), to)
        gevent.sleep(3 * LOOK_EVERY)
        assert not witness.of(SessionClosed)
        sessions.close()
        assert waiting.get(timeout=5.0)


def test_this_host_is_never_turned_away() -> None:
    plain = Policy(rules=EVERYWHERE, entrance=Entrance(start=5, full=5, slow_after=0.0))
    with (
        serving(echo) as to,
        proxy(plain, max_sessions=500) as (server, witness),
        ExitStack() as idle,
    ):
        socks = [idle.enter_context(closing(dial(server))) for _ in range(499)]
        wait_for(lambda: server.gate.handshakes == 499)
        assert is_served(dial(server), to)
        assert all(is_served(sock, to) for sock in socks[:50])
        assert not witness.of(ConnectionRefused)


def test_a_reload_brings_other_numbers() -> None:
    plain = Policy(rules=EVERYWHERE)
    with serving(echo) as to, proxy(plain) as (server, _), closing(dial(server)):
        wait_for(lambda: server.gate.handshakes == 1)
        assert is_served(dial(server), to)
        server.policy = open_to(start=1, full=1)
        assert is_turned_away(dial(server))
        server.policy = plain
        assert is_served(dial(server), to)


# --- every handshake is counted off -----------------------------------------------------------


def says(octets: bytes) -> Callable[[Server], None]:
    def ending(server: Server) -> None:
        with closing(dial(server)) as sock:
            sock.sendall(octets)
            recv_all(sock)

    return ending


def leaves(server: Server) -> None:
    dial(server).close()


def leaves_in_the_middle(server: Server) -> None:
    sock = dial(server)
    sock.sendall(b"\x05\x02\x02")
    reset(sock)


def is_killed(server: Server) -> None:
    with closing(dial(server)):
        before = len(server.sessions)
        wait_for(lambda: len(server.sessions) > before)
        server.cut(server.sessions[max(server.sessions)])
        wait_for(lambda: len(server.sessions) == before)


def is_late(server: Server) -> None:
    patient = server.policy
    server.policy = patient.replace(timeouts=Timeouts(negotiation=0.02))
    with closing(dial(server)) as sock:
        assert recv_all(sock) == b""
    server.policy = patient


def is_refused(server: Server) -> None:
    assert guess(dial(server)) == b"\x01\x01"


def asks(server: Server) -> None:
    with closing(dial(server)) as sock:
        sock.sendall(b"\x05\x01\x02\x01\x05alice\x06wonder" + request(1, "127.0.0.1", 1))
        assert recv_exactly(sock, 5)[:4] == b"\x05\x02\x01\x00"


ENDINGS = {
    "no-method": says(b"\x05\x01\x00"),
    "http": says(b"GET / HTTP/1.0\r\n\r\n"),
    "no-offer": says(b"\x07\x07"),
    "socks4": says(b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00"),
    "bad-userpass": says(b"\x05\x01\x02\x09\x09"),
    "bad-request": says(b"\x05\x01\x02\x01\x05alice\x06wonder\x09\x09\x09\x09\x09\x09\x09\x09"),
    "leaves": leaves,
    "leaves-in-the-middle": leaves_in_the_middle,
    "is-killed": is_killed,
    "is-late": is_late,
    "is-refused": is_refused,
    "asks": asks,
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_handshake_is_counted_off_however_it_ends(ending: str) -> None:
    with proxy(guarded()) as (server, witness):
        for number in (1, 2):
            ENDINGS[ending](server)
            witness.wait(SessionClosed, number)
            assert server.gate.handshakes == 0
        assert not witness.of(ConnectionRefused)


# --- who guesses ------------------------------------------------------------------------------


def test_a_guesser_is_told_the_same_and_then_nothing_and_others_are_served() -> None:
    with proxy(guarded()) as (server, witness):
        for _ in range(FREE):
            assert guess(dial_from(server, "127.0.0.2"), user="eve") == b"\x01\x01"
        assert not witness.of(SourcePenalised)
        assert guess(dial_from(server, "127.0.0.2"), user="bob") == b"\x01\x01"
        assert witness.of(SourcePenalised) == [SourcePenalised("127.0.0.2", 0.125, 0)]
        began = time.monotonic()
        assert guess(dial_from(server, "127.0.0.2"), user="bob") == b"\x01\x01"
        assert time.monotonic() - began >= 0.125
        for _ in range(SLOWEST - FREE):  # what others of its connections do meanwhile
            server.gate.failed(ip_address("127.0.0.2"))
        assert is_turned_away(dial_from(server, "127.0.0.2"))
        assert witness.wait(ConnectionRefused).reason == "penalised"
        assert guess(dial_from(server, "127.0.0.3"), "wonder") == b"\x01\x00"
        assert len(witness.of(AuthenticationFailed)) == FREE + 2


def test_connections_that_were_there_before_get_no_further_attempts() -> None:
    with proxy(guarded()) as (server, witness):
        early = [dial_from(server, "127.0.0.2") for _ in range(5)]
        wait_for(lambda: server.gate.handshakes == 5)
        penalise(server, "127.0.0.2")
        assert [guess(sock, "wonder") for sock in early] == [b""] * 5
        ended = witness.of(NegotiationEnded)
        assert [event.kind for event in ended] == ["penalised"] * 5
        assert ended[0].reason == "127.0.0.2 has failed to authenticate too often"


def penalise(server: Server, host: str) -> None:
    """Have a source fail until it is refused."""
    for _ in range(SLOWEST + 1):
        server.gate.failed(ip_address(host))
    assert server.gate.is_refused(ip_address(host))


def test_this_host_may_fail_as_often_as_it_likes() -> None:
    policy = guarded().replace(
        entrance=Entrance(), authenticators=(PasswordAuthenticator(knows_alice),)
    )
    with proxy(policy) as (server, witness):
        for number in range(FREE * 3):
            assert guess(dial(server), user=f"user {number}") == b"\x01\x01"
        assert guess(dial(server), "wonder") == b"\x01\x00"
        assert not witness.of(SourcePenalised)


class Clockwork:
    """A stand-in for GSSAPI on a day when the clocks are wrong."""

    method = Method.GSSAPI

    def authenticate(self, stream: Stream, peer: Address) -> Grant:
        raise AuthFailed("clock skew too great")


def test_a_wrong_clock_locks_nobody_out() -> None:
    policy = guarded().replace(
        authenticators=(Clockwork(), PasswordAuthenticator(knows_alice)),
    )
    with proxy(policy) as (server, witness):
        for _ in range(FREE * 3):
            with closing(dial(server)) as sock:
                sock.sendall(b"\x05\x01\x01")
                assert recv_all(sock) == b"\x05\x01"
        assert guess(dial(server), "wonder") == b"\x01\x00"
        assert not witness.of(SourcePenalised)


def test_a_name_that_many_have_guessed_at_is_slow_and_never_shut_out() -> None:
    policy = guarded()
    with proxy(policy) as (server, witness):
        for number in range(FREE + 2):  # each from another place
            assert guess(dial_from(server, f"127.0.1.{number + 1}")) == b"\x01\x01"
        assert not witness.of(SourcePenalised)
        began = time.monotonic()
        assert guess(dial_from(server, "127.0.0.3"), "wonder") == b"\x01\x00"
        assert 0.25 <= time.monotonic() - began < 2.0
        began = time.monotonic()
        assert guess(dial_from(server, "127.0.0.3"), user="bob") == b"\x01\x01"
        assert time.monotonic() - began < 0.24


def test_options_of_the_whole_program(tmp_path: Path) -> None:
    options = ("--max-handshakes=3:100:3", "--max-handshakes-per-source=9")
    exempt = "--penalty-exempt=192.0.2.0/24"
    with serving(echo) as to, running(tmp_path, *options, exempt) as process, ExitStack() as idle:
        for _ in range(3):
            sock = idle.enter_context(closing(process.dial()))
            sock.sendall(b"\x05\x01\x00")
            assert recv_exactly(sock, 2) == b"\x05\x00"
        assert is_served(process.dial(), to)  # they may be quick yet
        gevent.sleep(SLOW_AFTER + LOOK_EVERY)
        assert is_turned_away(process.dial())
        assert process.wait_event("connection_refused")["reason"] == "handshakes"
        told = process.wait_event("limit_reached")
        assert (told["limit"], told["ceiling"], told["level"]) == ("handshakes", 3, "warning")
        idle.close()
        process.wait_for(lambda: len(process.events("session_closed")) == 4)
        assert is_served(process.dial(), to)
