"""Listeners, the registry of sessions, idle limits, drain, and the refusal to be an open proxy."""

import errno
import socket

import gevent
import gevent.event
import gevent.socket
import pytest

from geosocks.auth.userpass import PasswordAuthenticator
from geosocks.errors import ConfigError
from geosocks.events import (
    AcceptPaused,
    Draining,
    Event,
    LimitReached,
    Listening,
    SessionClosed,
    Stopped,
)
from geosocks.policy import Policy, Timeouts
from geosocks.rules import RuleSet
from geosocks.server import (
    DESCRIPTORS_EACH,
    RESERVED_DESCRIPTORS,
    Server,
    descriptor_limit,
    max_sessions_for,
    refuse_open_proxy,
)
from tests.support.net import echo, recv_all, recv_exactly, serving, unused_port, wait_for
from tests.support.servers import EVERYWHERE, dial, greeted, proxy, read_reply, request

pytestmark = pytest.mark.usefixtures("no_leaks")


def connected(server: Server, host: str, port: int) -> gevent.socket.socket:
    sock = greeted(server)
    sock.sendall(request(1, host, port))
    assert read_reply(sock).rep == 0
    return sock


# --- listening --------------------------------------------------------------------------------


def test_it_listens_on_several_addresses_and_tells_where() -> None:
    with proxy() as (server, witness):
        assert [event.address for event in witness.of(Listening)] == [
            f"127.0.0.1:{server.addresses[0][1]}"
        ]
    server = Server([("127.0.0.1", 0), ("::1", 0)])
    with server:
        assert [address[0] for address in server.addresses] == ["127.0.0.1", "::1"]
        for address in server.addresses:
            sock = gevent.socket.create_connection(address[:2])
            sock.sendall(b"\x05\x01\x00")
            assert recv_exactly(sock, 2) == b"\x05\x00"
            sock.close()


def test_a_port_in_use_is_an_error_and_nothing_is_listened_on() -> None:
    with proxy() as (taken, _):
        port = unused_port()
        server = Server([("127.0.0.1", port), taken.addresses[0][:2]])
        with pytest.raises(OSError, match="in use") as caught:
            server.start()
        assert caught.value.errno == errno.EADDRINUSE
        assert str(taken.addresses[0][1]) in str(caught.value)
        with pytest.raises(ConnectionRefusedError):
            gevent.socket.create_connection(("127.0.0.1", port))


def test_both_wildcards_on_one_port_share_it() -> None:
    port = unused_port()
    policy = Policy(rules=RuleSet.parse("allow from loopback"))
    with Server([("0.0.0.0", port), ("::", port)], policy):
        for host in ("127.0.0.1", "::1"):
            gevent.socket.create_connection((host, port)).close()
    with Server([("::", port)], policy) as server:
        sock = gevent.socket.create_connection(("127.0.0.1", port))
        wait_for(lambda: server.sessions)
        assert str(next(iter(server.sessions.values())).peer.host) == "127.0.0.1"
        sock.close()


def test_a_socket_that_listens_already_can_be_given() -> None:
    for make in (socket.socket, gevent.socket.socket):
        sock = make()
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        name = sock.getsockname()
        with Server([sock]) as server:
            assert server.addresses == [name]
            client = dial(server)
            client.sendall(b"\x05\x01\x00")
            assert recv_exactly(client, 2) == b"\x05\x00"
            client.close()


def test_a_unix_socket_can_be_given(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = str(tmp_path / "socks")
    sock = gevent.socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen()
    with serving(echo) as (host, port), Server([sock]):
        client = gevent.socket.socket(socket.AF_UNIX)
        client.connect(path)
        client.sendall(b"\x05\x01\x00" + request(1, host, port) + b"hello")
        assert recv_exactly(client, 12)[3] == 0
        assert recv_exactly(client, 5) == b"hello"
        client.close()


@pytest.mark.parametrize(
    ("host", "rules", "methods", "is_open"),
    [
        ("127.0.0.1", "allow", "none", False),
        ("::1", "allow", "none", False),
        ("0.0.0.0", "allow", "none", True),
        ("::", "allow", "none", True),
        ("192.0.2.1", "allow to any port 443", "none", True),
        ("0.0.0.0", "allow from 10.0.0.0/8", "none", False),
        ("0.0.0.0", "allow user alice", "none", False),
        ("0.0.0.0", "deny", "none", False),
        ("0.0.0.0", "allow", "username", False),
        ("0.0.0.0", "allow", "both", True),
    ],
)
def test_it_refuses_to_be_an_open_proxy(host: str, rules: str, methods: str, is_open: bool) -> None:
    password = PasswordAuthenticator(check=lambda u, p: False)
    policy = Policy(rules=RuleSet.parse(rules))
    if methods == "username":
        policy = policy.replace(authenticators=(password,))
    elif methods == "both":
        policy = policy.replace(authenticators=(password, *policy.authenticators))
    if is_open:
        with pytest.raises(ConfigError, match="open proxy"):
            refuse_open_proxy([(host, 1080)], policy)
    else:
        refuse_open_proxy([(host, 1080)], policy)


def test_an_open_proxy_does_not_start_unless_meant() -> None:
    policy = Policy(rules=RuleSet.parse("allow"))
    with pytest.raises(ConfigError):
        Server([("0.0.0.0", 0)], policy).start()
    Server([("0.0.0.0", 0)], policy, allow_open=True).start().stop()


# --- the ceiling ------------------------------------------------------------------------------


def test_at_the_ceiling_further_clients_wait_their_turn() -> None:
    with serving(echo) as (host, port), proxy(max_sessions=2) as (server, witness):
        first, second = connected(server, host, port), connected(server, host, port)
        third = dial(server)
        third.sendall(b"\x05\x01\x00")
        gevent.sleep(0.05)
        assert len(server.sessions) == 2
        assert witness.of(LimitReached) == [LimitReached("sessions", 2)]
        first.close()
        assert recv_exactly(third, 2) == b"\x05\x00"
        for sock in (second, third):
            sock.close()


def test_the_ceiling_comes_from_the_descriptors() -> None:
    assert max_sessions_for(RESERVED_DESCRIPTORS + 10 * DESCRIPTORS_EACH) == 10
    assert max_sessions_for(10) == 1
    assert Server([]).max_sessions == max_sessions_for(descriptor_limit())


def test_a_lack_of_descriptors_pauses_and_is_told_once() -> None:
    with proxy() as (server, witness):
        for _ in range(5):
            server._accept_failed(OSError(errno.EMFILE, "Too many open files"), 0.1)
        assert len(witness.of(AcceptPaused)) == 1
        assert "Too many" in witness.of(AcceptPaused)[0].error
        listener = server._listeners[0]
        listener._pause()
        sock = dial(server)
        sock.sendall(b"\x05\x01\x00")
        assert recv_exactly(sock, 2) == b"\x05\x00"  # it accepts again by itself
        sock.close()


# --- idle sessions ----------------------------------------------------------------------------


def test_a_silent_session_is_ended_and_a_busy_one_is_not() -> None:
    with (
        serving(echo) as (host, port),
        proxy(timeouts=Timeouts(idle=0.3)) as (server, witness),
    ):
        silent, busy = connected(server, host, port), connected(server, host, port)

        def chat() -> None:
            while True:
                busy.sendall(b"x")
                busy.recv(1)
                gevent.sleep(0.02)

        chatting = gevent.spawn(chat)
        assert recv_all(silent) == b""
        closed = witness.wait(SessionClosed)
        assert closed.reason == "idle"
        assert 0.29 < closed.seconds < 1.5
        assert not chatting.ready()
        chatting.kill()
        for sock in (silent, busy):
            sock.close()


def test_a_half_closed_session_has_a_limit_of_its_own() -> None:
    def hold(sock: gevent.socket.socket, _: object) -> None:
        gevent.sleep(10)

    with (
        serving(hold) as (host, port),
        proxy(timeouts=Timeouts(half_close=0.2)) as (server, witness),
    ):
        whole, half = connected(server, host, port), connected(server, host, port)
        half.shutdown(socket.SHUT_WR)
        assert witness.wait(SessionClosed).reason == "half_close_idle"
        gevent.sleep(0.1)
        assert len(witness.of(SessionClosed)) == 1
        for sock in (whole, half):
            sock.close()


def test_a_session_can_be_cut_by_whoever_owns_the_server() -> None:
    with serving(echo) as (host, port), proxy() as (server, witness):
        sock = connected(server, host, port)
        server.cut(next(iter(server.sessions.values())))
        assert recv_all(sock) == b""
        assert witness.wait(SessionClosed).reason == "killed"
        sock.close()


@pytest.mark.parametrize("size", range(0, 13, 3))
def test_cutting_in_mid_handshake_leaves_nothing(size: int) -> None:
    octets = b"\x05\x01\x00" + request(1, "127.0.0.1", 9)
    with proxy() as (server, witness):
        sock = dial(server)
        sock.sendall(octets[:size])
        wait_for(lambda: server.sessions)
        server.cut(next(iter(server.sessions.values())), "killed")
        assert witness.wait(SessionClosed).reason in ("killed", "refused")
        sock.close()


# --- drain ------------------------------------------------------------------------------------


def test_a_drain_lets_sessions_end_and_takes_no_new_ones() -> None:
    with serving(echo) as (host, port), proxy() as (server, witness):
        sock = connected(server, host, port)
        address = server.addresses[0]
        drained = gevent.spawn(server.drain, 5.0)
        witness.wait(Draining)
        with pytest.raises(ConnectionRefusedError):
            gevent.socket.create_connection(address)
        sock.sendall(b"still works")
        assert recv_exactly(sock, 11) == b"still works"
        sock.close()
        assert drained.get() == 0
        assert witness.wait(Stopped).sessions_cut == 0


def test_a_drain_cuts_what_is_left() -> None:
    with serving(echo) as (host, port), proxy() as (server, witness):
        sock = connected(server, host, port)
        assert server.drain(0.05) == 1
        assert recv_all(sock) == b""
        sock.close()
        assert witness.wait(SessionClosed).reason == "drained"
        assert not server.sessions


def test_it_can_be_started_again_after_a_stop() -> None:
    server = Server([("127.0.0.1", 0)])
    for _ in range(3):
        with server:
            dial(server).close()


def test_serve_forever_ends_when_another_greenlet_stops_it() -> None:
    server = Server([("127.0.0.1", 0)])
    serving_ = gevent.spawn(server.serve_forever)
    wait_for(lambda: server.addresses)
    server.stop()
    serving_.get()


# --- policy and observers ---------------------------------------------------------------------


def test_a_new_policy_is_for_new_sessions() -> None:
    with serving(echo) as (host, port), proxy() as (server, _):
        old = connected(server, host, port)
        server.policy = server.policy.replace(rules=RuleSet.parse("deny"))
        new = greeted(server)
        new.sendall(request(1, host, port))
        assert read_reply(new).rep == 2
        old.sendall(b"as before")
        assert recv_exactly(old, 9) == b"as before"
        for sock in (old, new):
            sock.close()


def test_an_observer_that_raises_harms_nobody() -> None:
    def broken(event: Event) -> None:
        raise RuntimeError("observer")

    seen: list[Event] = []
    server = Server([("127.0.0.1", 0)], Policy(rules=EVERYWHERE), observers=[broken, seen.append])
    with serving(echo) as (host, port), server:
        sock = connected(server, host, port)
        sock.close()
        wait_for(lambda: not server.sessions)
    assert server.emit.failures == len(seen) > 5


def test_many_sessions_at_once_leave_nothing() -> None:
    with serving(echo) as (host, port), proxy() as (server, witness):

        def session(number: int) -> None:
            sock = connected(server, host, port)
            sock.sendall(b"%d" % number)
            assert recv_exactly(sock, len(b"%d" % number)) == b"%d" % number
            sock.close()

        gevent.joinall([gevent.spawn(session, number) for number in range(200)], raise_error=True)
        witness.wait(SessionClosed, 200)
        assert not server.sessions
        assert len({event.session for event in witness.of(SessionClosed)}) == 200
