"""Ceilings on sessions at a time, in a server: who is refused, and that every place comes back."""

import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import gevent
import gevent.socket
import pytest

from geosocks.auth import Grant
from geosocks.codes import Cmd, Rep
from geosocks.errors import HostUnreachable
from geosocks.events import BindWaiting, LimitReached, RequestRefused, SessionClosed
from geosocks.limits import Limits, LocalStore
from geosocks.policy import Policy, Timeouts, Udp
from geosocks.rules import Effects, Question, RuleSet, Verdict
from geosocks.server import Server
from geosocks.stream import Stream
from geosocks.wire.socks5 import Address, IPAddress
from tests.support.net import echo, recv_all, recv_exactly, reset, serving, unused_port, wait_for
from tests.support.servers import EVERYWHERE, Witness, dial, proxy, read_reply, request
from tests.support.udp_client import UdpClient

pytestmark = pytest.mark.usefixtures("no_leaks")


class ByOctet:
    """A method whose clients send a letter, which is their name; ``-`` is nobody's."""

    method = 0x00

    def authenticate(self, stream: Stream, peer: Address) -> Grant:
        name = stream.recv(1).decode()
        return Grant(stream, None if name == "-" else name)


def policy(rules: str = "allow to everywhere", per_user: int | None = None) -> Policy:
    """Everybody may go everywhere, as the rules have it."""
    return Policy(
        authenticators=(ByOctet(),), rules=RuleSet.parse(rules), limits=Limits(per_user=per_user)
    )


def counts(server: Server) -> dict[str, int]:
    """What the store of the policy in force has."""
    store = server.policy.limits.store
    assert isinstance(store, LocalStore)
    return store.counts()


def ask(
    server: Server, to: tuple[str, int], who: str = "a", command: int = Cmd.CONNECT
) -> gevent.socket.socket:
    """A client that has sent a request."""
    sock = dial(server)
    sock.sendall(b"\x05\x01\x00")
    assert recv_exactly(sock, 2) == b"\x05\x00"
    sock.sendall(who.encode() + request(command, *to))
    return sock


def rep(server: Server, to: tuple[str, int], who: str = "a", command: int = Cmd.CONNECT) -> int:
    """What a request is answered, by a client that goes at once."""
    with closing(ask(server, to, who, command)) as sock:
        return read_reply(sock).rep


@contextmanager
def sessions(server: Server, to: tuple[str, int], *who: str) -> Iterator[None]:
    """Sessions that last for a block."""
    socks = [ask(server, to, name) for name in who]
    try:
        assert [read_reply(sock).rep for sock in socks] == [Rep.SUCCEEDED] * len(socks)
        yield
    finally:
        for sock in socks:
            sock.close()


# --- who is refused ---------------------------------------------------------------------------


def test_a_user_has_so_many_sessions_and_others_have_theirs() -> None:
    with serving(echo) as to, proxy(policy(per_user=2)) as (server, witness):
        with sessions(server, to, "a", "b", "a"):
            assert rep(server, to) == Rep.NOT_ALLOWED
            assert rep(server, to, "b") == Rep.SUCCEEDED
            assert witness.of(LimitReached) == [LimitReached("sessions_per_user", 2, "user a")]
            refused = witness.wait(RequestRefused)
            assert refused.reason == "limit reached: sessions_per_user 2"
            assert (refused.identity, refused.reply) == ("a", Rep.NOT_ALLOWED)
            assert refused.rule == "rules:1: allow to everywhere"
        wait_for(lambda: not counts(server))
        assert rep(server, to) == Rep.SUCCEEDED


def test_the_client_is_not_told_why() -> None:
    with serving(echo) as to, proxy(policy(per_user=1)) as (server, _), sessions(server, to, "a"):
        with closing(ask(server, to)) as sock:
            over = recv_all(sock)
        server.policy = policy("deny")
        with closing(ask(server, to)) as sock:
            assert recv_all(sock) == over


def test_who_has_no_name_goes_by_the_address() -> None:
    with (
        serving(echo) as to,
        proxy(policy(per_user=1)) as (server, witness),
        sessions(server, to, "-", "a"),
    ):
        assert rep(server, to, "-") == Rep.NOT_ALLOWED
        assert witness.wait(LimitReached).whose == "host 127.0.0.1"
        with closing(gevent.socket.socket()) as other:
            other.bind(("127.0.0.2", 0))
            other.connect(server.addresses[0])
            other.sendall(b"\x05\x01\x00-" + request(Cmd.CONNECT, *to))
            assert recv_exactly(other, 2) == b"\x05\x00"
            assert read_reply(other).rep == Rep.SUCCEEDED


def test_every_command_is_a_session() -> None:
    nobody = ("127.0.0.9", 0)
    with serving(echo) as to, proxy(policy(per_user=1)) as (server, witness):
        for _ in range(2):
            with closing(ask(server, nobody, "a", Cmd.BIND)) as waiting:
                witness.wait(BindWaiting)
                assert rep(server, to) == Rep.NOT_ALLOWED
                assert rep(server, ("0.0.0.0", 0), "a", Cmd.BIND) == Rep.NOT_ALLOWED
                assert rep(server, ("0.0.0.0", 0), "a", Cmd.UDP_ASSOCIATE) == Rep.NOT_ALLOWED
                assert read_reply(waiting).rep == Rep.SUCCEEDED
            wait_for(lambda: not counts(server))
            with closing(ask(server, ("0.0.0.0", 0), "a", Cmd.UDP_ASSOCIATE)) as relayed:
                assert read_reply(relayed).rep == Rep.SUCCEEDED
                assert rep(server, to) == Rep.NOT_ALLOWED
                assert rep(server, ("0.0.0.0", 0), "a", Cmd.UDP_ASSOCIATE) == Rep.NOT_ALLOWED
            wait_for(lambda: not counts(server))
            with sessions(server, to, "a"):
                assert rep(server, nobody, "a", Cmd.BIND) == Rep.NOT_ALLOWED
            wait_for(lambda: not counts(server))


def test_socks4_counts_too() -> None:
    plain = Policy(rules=EVERYWHERE, limits=Limits(per_user=1))
    with serving(echo) as (host, port), proxy(plain) as (server, witness):
        asking = b"\x04\x01" + port.to_bytes(2) + socket.inet_aton(host) + b"me\0"
        with closing(dial(server)) as one, closing(dial(server)) as two:
            one.sendall(asking)
            assert recv_exactly(one, 8)[1] == 90
            two.sendall(asking)
            assert recv_exactly(two, 8)[1] == 91
        assert witness.wait(LimitReached).whose == "host 127.0.0.1"


def test_a_rule_leaves_each_of_its_users_so_many_and_the_whole_goes_on_top() -> None:
    rules = "allow user a,b to 127.0.0.1 sessions 1\nallow user a to 127.0.0.2\nallow to everywhere"
    with (
        serving(echo) as to,
        serving(echo, "127.0.0.2") as there,
        proxy(policy(rules, per_user=2)) as (server, witness),
        sessions(server, to, "a"),
    ):
        assert rep(server, to) == Rep.NOT_ALLOWED  # and the next rules are not asked
        assert witness.of(LimitReached) == [LimitReached("sessions_of_rule", 1, "user a")]
        assert witness.wait(RequestRefused).rule == (
            "rules:1: allow user a,b to 127.0.0.1 sessions 1"
        )
        with sessions(server, to, "b", "c", "c"), sessions(server, there, "a"):
            assert rep(server, to, "b") == Rep.NOT_ALLOWED
            assert rep(server, there, "a") == Rep.NOT_ALLOWED
            assert witness.wait(LimitReached, 3) == LimitReached("sessions_per_user", 2, "user a")
            assert counts(server) == {
                "user a": 2,
                "user a by user a,b to 127.0.0.1": 1,
                "user b": 1,
                "user b by user a,b to 127.0.0.1": 1,
                "user c": 2,
            }


def test_one_rule_for_bind_with_anybody_and_for_udp() -> None:
    rules = "allow command bind sessions 1\nallow command udp sessions 1"
    with proxy(policy(rules)) as (server, _):
        with (
            closing(ask(server, ("0.0.0.0", 0), "a", Cmd.BIND)) as waiting,
            closing(ask(server, ("0.0.0.0", 0), "a", Cmd.UDP_ASSOCIATE)) as relayed,
        ):
            assert [read_reply(sock).rep for sock in (waiting, relayed)] == [0, 0]
            assert rep(server, ("0.0.0.0", 0), "a", Cmd.BIND) == Rep.NOT_ALLOWED
            assert rep(server, ("0.0.0.0", 0), "a", Cmd.UDP_ASSOCIATE) == Rep.NOT_ALLOWED
        wait_for(lambda: not counts(server))


def test_a_rule_in_python_may_limit_too() -> None:
    def two(question: Question) -> Verdict:
        return Verdict(True, "two", question.addresses, effects=Effects(sessions=2))

    limited = Policy(authenticators=(ByOctet(),), rules=RuleSet([two]))
    with (
        serving(echo) as to,
        proxy(limited) as (server, _),
        sessions(server, to, "a", "a", "b"),
    ):
        assert counts(server) == {"user a by two": 2, "user b by two": 1}
        assert rep(server, to) == Rep.NOT_ALLOWED


def test_without_a_limit_nothing_is_counted() -> None:
    with serving(echo) as to, proxy(policy()) as (server, _), sessions(server, to, "a", "a"):
        assert not counts(server)


def test_a_reload_forgets_nobody() -> None:
    first = policy("allow to everywhere sessions 1")
    with serving(echo) as to, proxy(first) as (server, _):
        with sessions(server, to, "a"):
            before = counts(server)
            for text, outcome in (
                ("deny port 1\nallow sessions 1 to everywhere", Rep.NOT_ALLOWED),  # it has moved
                ("allow to everywhere sessions 2", Rep.SUCCEEDED),
                ("allow to everywhere", Rep.SUCCEEDED),
                ("allow to everywhere sessions 1", Rep.NOT_ALLOWED),
            ):
                server.policy = first.replace(rules=RuleSet.parse(text))
                assert rep(server, to) == outcome
                wait_for(lambda: counts(server) == before)
        wait_for(lambda: not counts(server))


# --- every place comes back -------------------------------------------------------------------


class Silent:
    """A dialer whose targets never answer."""

    def open_connection(self, to: Address, addresses: tuple[IPAddress, ...]) -> Stream:
        gevent.sleep(60)
        raise AssertionError


class Broken:
    """A dialer with a fault."""

    def open_connection(self, to: Address, addresses: tuple[IPAddress, ...]) -> Stream:
        raise ZeroDivisionError


class Unreachable:
    """A dialer that gets nowhere."""

    def open_connection(self, to: Address, addresses: tuple[IPAddress, ...]) -> Stream:
        raise HostUnreachable("test")


Ending = Callable[[Server, Witness, tuple[str, int]], None]


def closed_by_the_client(server: Server, witness: Witness, to: tuple[str, int]) -> None:
    with sessions(server, to, "a"):
        assert counts(server) == {"user a": 1}


def reset_by_the_client(server: Server, witness: Witness, to: tuple[str, int]) -> None:
    sock = ask(server, to)
    assert read_reply(sock).rep == Rep.SUCCEEDED
    reset(sock)


def gone_before_the_answer(server: Server, witness: Witness, to: tuple[str, int]) -> None:
    reset(ask(server, to))


def closed_by_the_target(server: Server, witness: Witness, to: tuple[str, int]) -> None:
    with serving(lambda sock, _: None) as brief, closing(ask(server, brief)) as sock:
        assert read_reply(sock).rep == Rep.SUCCEEDED
        assert recv_all(sock) == b""


def refused_by_the_target(server: Server, witness: Witness, to: tuple[str, int]) -> None:
    assert rep(server, ("127.0.0.1", unused_port())) == Rep.CONNECTION_REFUSED


def killed(server: Server, witness: Witness, to: tuple[str, int]) -> None:
    with sessions(server, to, "a"):
        for session in server.sessions.values():
            server.cut(session)
        witness.wait(SessionClosed)


def silent_for_too_long(server: Server, witness: Witness, to: tuple[str, int]) -> None:
    server.policy = server.policy.replace(timeouts=Timeouts(idle=0.05))
    with sessions(server, to, "a"):
        assert witness.wait(SessionClosed).reason == "idle"


def target_silent(server: Server, witness: Witness, to: tuple[str, int]) -> None:
    server.policy = server.policy.replace(dialer=Silent(), timeouts=Timeouts(connect=0.05))
    assert rep(server, to) == Rep.TTL_EXPIRED


def target_unreachable(server: Server, witness: Witness, to: tuple[str, int]) -> None:
    server.policy = server.policy.replace(dialer=Unreachable())
    assert rep(server, to) == Rep.HOST_UNREACHABLE


def killed_while_dialling(server: Server, witness: Witness, to: tuple[str, int]) -> None:
    server.policy = server.policy.replace(dialer=Silent())
    with closing(ask(server, to)):
        wait_for(lambda: counts(server))
        for session in server.sessions.values():
            server.cut(session)
        witness.wait(SessionClosed)


def crashed(server: Server, witness: Witness, to: tuple[str, int]) -> None:
    server.policy = server.policy.replace(dialer=Broken())
    assert rep(server, to) == Rep.GENERAL_FAILURE
    assert witness.wait(SessionClosed).reason == "crashed"


def bind_given_up(server: Server, witness: Witness, to: tuple[str, int]) -> None:
    with closing(ask(server, ("127.0.0.9", 0), "a", Cmd.BIND)):
        witness.wait(BindWaiting)
        assert counts(server) == {"user a": 1}


def bind_waited_in_vain(server: Server, witness: Witness, to: tuple[str, int]) -> None:
    server.policy = server.policy.replace(timeouts=Timeouts(bind=0.05))
    with closing(ask(server, ("127.0.0.9", 0), "a", Cmd.BIND)) as sock:
        assert read_reply(sock).rep == Rep.SUCCEEDED
        assert read_reply(sock).rep == Rep.TTL_EXPIRED


def bind_came_to_be(server: Server, witness: Witness, to: tuple[str, int]) -> None:
    with closing(ask(server, ("127.0.0.1", 0), "a", Cmd.BIND)) as sock:
        bound = read_reply(sock).bound
        with closing(gevent.socket.socket()) as peer:
            peer.connect((str(bound.host), bound.port))
            assert read_reply(sock).rep == Rep.SUCCEEDED
            assert counts(server) == {"user a": 1}


def bind_refused(server: Server, witness: Witness, to: tuple[str, int]) -> None:
    server.policy = server.policy.replace(dialer=Unreachable())
    assert rep(server, ("127.0.0.9", 0), "a", Cmd.BIND) == Rep.COMMAND_NOT_SUPPORTED


def udp_closed(server: Server, witness: Witness, to: tuple[str, int]) -> None:
    with closing(ask(server, ("0.0.0.0", 0), "a", Cmd.UDP_ASSOCIATE)) as sock:
        assert read_reply(sock).rep == Rep.SUCCEEDED
        assert counts(server) == {"user a": 1}


def udp_silent(server: Server, witness: Witness, to: tuple[str, int]) -> None:
    server.policy = server.policy.replace(timeouts=Timeouts(udp=0.05))
    with closing(ask(server, ("0.0.0.0", 0), "a", Cmd.UDP_ASSOCIATE)):
        assert witness.wait(SessionClosed).reason == "udp_idle"


def udp_one_too_many(server: Server, witness: Witness, to: tuple[str, int]) -> None:
    server.policy = server.policy.replace(udp=Udp(max_per_user=0))
    assert rep(server, ("0.0.0.0", 0), "a", Cmd.UDP_ASSOCIATE) == Rep.GENERAL_FAILURE


def denied(server: Server, witness: Witness, to: tuple[str, int]) -> None:
    server.policy = server.policy.replace(rules=RuleSet.parse("deny"))
    assert rep(server, to) == Rep.NOT_ALLOWED


def the_server_itself(server: Server, witness: Witness, to: tuple[str, int]) -> None:
    assert rep(server, server.addresses[0]) == Rep.NOT_ALLOWED


def no_such_command(server: Server, witness: Witness, to: tuple[str, int]) -> None:
    assert rep(server, to, "a", 9) == Rep.COMMAND_NOT_SUPPORTED


def no_request(server: Server, witness: Witness, to: tuple[str, int]) -> None:
    with closing(dial(server)) as sock:
        sock.sendall(b"\x05\x01\x00")
        assert recv_exactly(sock, 2) == b"\x05\x00"


ENDINGS = [
    closed_by_the_client,
    reset_by_the_client,
    gone_before_the_answer,
    closed_by_the_target,
    refused_by_the_target,
    killed,
    silent_for_too_long,
    target_silent,
    target_unreachable,
    killed_while_dialling,
    crashed,
    bind_given_up,
    bind_waited_in_vain,
    bind_came_to_be,
    bind_refused,
    udp_closed,
    udp_silent,
    udp_one_too_many,
    denied,
    the_server_itself,
    no_such_command,
    no_request,
]


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.__name__)
def test_the_place_comes_back_however_it_ends(ending: Ending) -> None:
    only_one = policy(per_user=1)
    with serving(echo) as to, proxy(only_one) as (server, witness):
        ending(server, witness, to)
        witness.wait(SessionClosed)
        assert not counts(server)
        server.policy = only_one
        with sessions(server, to, "a"):
            assert counts(server) == {"user a": 1}


def test_a_drain_gives_everything_back() -> None:
    with (
        serving(echo) as to,
        proxy(policy(per_user=3)) as (server, _),
        sessions(server, to, "a", "a", "b"),
    ):
        assert server.drain(0.0) == 3
        assert not counts(server)


def test_a_refused_clients_place_is_free_while_it_lingers() -> None:
    with (
        proxy(policy(per_user=1)) as (server, witness),
        closing(ask(server, ("127.0.0.1", unused_port()))) as sock,
    ):
        assert read_reply(sock).rep == Rep.CONNECTION_REFUSED
        assert not witness.of(SessionClosed)
        assert not counts(server)


def test_a_client_that_comes_back_at_once_finds_its_place() -> None:
    with serving(lambda sock, _: None) as to, proxy(policy(per_user=1)) as (server, witness):
        for _ in range(100):
            with closing(ask(server, to)) as sock:
                assert read_reply(sock).rep == Rep.SUCCEEDED
                sock.shutdown(socket.SHUT_WR)
                assert recv_all(sock) == b""
        assert not witness.of(LimitReached)


def test_udp_clients_are_counted_by_the_same_names() -> None:
    with proxy(Policy(rules=EVERYWHERE, limits=Limits(per_user=1))) as (server, witness):
        with UdpClient.associate(server), closing(dial(server)) as sock:
            sock.sendall(b"\x05\x01\x00" + request(Cmd.UDP_ASSOCIATE, "0.0.0.0", 0))
            assert recv_exactly(sock, 2) == b"\x05\x00"
            assert read_reply(sock).rep == Rep.NOT_ALLOWED
        assert witness.wait(LimitReached).whose == "host 127.0.0.1"
