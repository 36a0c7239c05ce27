"""geosocks inside somebody else's gevent program: its hub, its rules, its methods, its end."""

import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import gevent
import gevent.event
import gevent.socket
import pytest

from geosocks import Address, Client, Policy, RuleSet, Server, Timeouts
from geosocks.auth import Credential, Grant
from geosocks.auth.userpass import Password, PasswordAuthenticator
from geosocks.codes import Cmd, Rep
from geosocks.errors import (
    AuthFailed,
    ConfigError,
    HostUnreachable,
    NoAcceptableMethod,
    RequestDenied,
    RequestFailed,
    TargetRefused,
)
from geosocks.events import (
    Authenticated,
    AuthenticationFailed,
    Draining,
    Event,
    Listening,
    RequestRefused,
    SessionClosed,
    SessionCrashed,
    SessionEstablished,
    SessionOpened,
    Stopped,
)
from geosocks.rules import Question, Verdict, parse_rules
from geosocks.stream import Stream, read_message
from geosocks.wire import need
from geosocks.wire.socks5 import IPAddress, Request
from tests.support.net import echo, recv_all, recv_exactly, serving, unused_port, wait_for

E = TypeVar("E", bound=Event)
ANY_PORT = ("127.0.0.1", 0)
NOBODY = Policy(rules=RuleSet.parse("deny\n"))


class Seen(list[Event]):
    """An observer that remembers."""

    __call__ = list.append

    def of(self, kind: type[E]) -> list[E]:
        """The events of one kind, in their order."""
        return [event for event in self if isinstance(event, kind)]

    def wait_for(self, kind: type[E], number: int = 1) -> list[E]:
        """Those of one kind, once there are ``number`` of them."""
        wait_for(lambda: len(self.of(kind)) >= number)
        return self.of(kind)


@contextmanager
def running(policy: Policy | None = None, **options: Any) -> Iterator[tuple[Server, Client]]:
    """A server in this hub, and a client of it that has nothing to show."""
    with Server([ANY_PORT], policy, **options) as server:
        yield server, Client(server.addresses[0], timeout=5.0)


@pytest.fixture
def target(no_leaks: None) -> Iterator[tuple[str, int]]:
    """The somebody else's server that lives in the same hub: it sends back what comes."""
    with serving(echo) as address:
        yield address


def assert_echoes(sock: Any, data: bytes = b"to and fro") -> None:
    """``sock`` leads to the echo, both ways."""
    sock.sendall(data)
    assert recv_exactly(sock, len(data)) == data


def visit(client: Client, to: tuple[str, int], data: bytes = b"to and fro") -> None:
    """Connect, exchange ``data``, and end in good order."""
    sock = client.connect(to)
    try:
        assert_echoes(sock, data)
        sock.shutdown(socket.SHUT_WR)
        assert recv_all(sock) == b""
    finally:
        sock.close()


# --- life in another's hub --------------------------------------------------------------------


def test_it_starts_beside_another_server_and_stops_without_it(target: tuple[str, int]) -> None:
    seen = Seen()
    with running(observers=[seen]) as (server, client):
        visit(client, target)
        [address] = server.addresses
    with pytest.raises(ConnectionRefusedError):
        client.connect(target)
    assert_echoes_directly(target)
    assert seen.of(Listening) == [Listening(f"127.0.0.1:{address[1]}")]
    assert seen.of(Stopped) == [Stopped(0)]


def assert_echoes_directly(target: tuple[str, int]) -> None:
    """The other server was left alone."""
    sock = gevent.socket.create_connection(target)
    assert_echoes(sock)
    sock.close()


def test_it_starts_again_after_it_was_stopped(target: tuple[str, int]) -> None:
    server = Server([ANY_PORT])
    for _ in range(3):
        server.start()
        visit(Client(server.addresses[0]), target)
        server.stop()
        assert server.addresses == []


def test_serve_forever_ends_when_another_greenlet_stops_it(target: tuple[str, int]) -> None:
    server = Server([ANY_PORT])
    serving_it = gevent.spawn(server.serve_forever)
    wait_for(lambda: server.addresses)
    visit(Client(server.addresses[0]), target)
    server.stop()
    serving_it.get(timeout=2)


def test_it_takes_sockets_that_listen_already(target: tuple[str, int], tmp_path: Path) -> None:
    ours = gevent.socket.socket()
    ours.bind(ANY_PORT)
    ours.listen()
    theirs = socket.create_server(ANY_PORT)
    local = socket.socket(socket.AF_UNIX)
    local.bind(str(tmp_path / "socks"))
    local.listen()
    with Server([ours, theirs, local]) as server:
        first, second, path = server.addresses
        assert path == str(tmp_path / "socks")
        visit(Client(first), target)
        visit(Client(second), target)
        client = Client(("unused", 1))
        stream = gevent.socket.socket(socket.AF_UNIX)
        stream.connect(path)
        client.negotiate(stream)
        stream.close()


@pytest.mark.usefixtures("no_leaks")
def test_a_port_in_use_is_an_oserror_and_leaves_no_listener_behind() -> None:
    free = unused_port()
    with running() as (other, _), pytest.raises(OSError, match="in use") as caught:
        Server([("127.0.0.1", free), other.addresses[0]]).start()
    assert f"127.0.0.1:{other_port(caught.value)}" in str(caught.value)
    with socket.create_server(("127.0.0.1", free)):
        pass


def other_port(error: OSError) -> str:
    """The port that the error's text names."""
    return str(error.strerror).split(":")[1]


@pytest.mark.usefixtures("no_leaks")
def test_it_refuses_to_be_an_open_proxy_unless_told_to() -> None:
    everybody = Policy(rules=RuleSet.parse("allow to any\n"))
    with pytest.raises(ConfigError, match="open proxy"):
        Server([("0.0.0.0", 0)], everybody).start()
    passwords = PasswordAuthenticator(check=lambda *_: True)
    with_passwords = everybody.replace(authenticators=(passwords,))
    for server in (
        Server([("0.0.0.0", 0)], everybody, allow_open=True),
        Server([("0.0.0.0", 0)], with_passwords),
        Server([("0.0.0.0", 0)]),  # the default policy: clients from loopback only
    ):
        with server:
            assert server.addresses


def test_two_servers_in_one_hub_keep_apart(target: tuple[str, int]) -> None:
    one_saw, other_saw = Seen(), Seen()
    with (
        running(observers=[one_saw]) as (_, to_one),
        running(NOBODY, observers=[other_saw]) as (_, to_other),
    ):
        with pytest.raises(RequestDenied):
            to_other.connect(target)
        visit(to_one, target)
        [closed] = one_saw.wait_for(SessionClosed)
        assert closed.reason == "closed"
        assert len(other_saw.wait_for(RequestRefused)) == 1
    assert not one_saw.of(RequestRefused)


def test_one_server_can_be_the_target_of_another(target: tuple[str, int]) -> None:
    with running() as (inner, _), running() as (_, to_outer):
        through_outer = to_outer.connect(inner.addresses[0])
        to_inner = Client(inner.addresses[0])
        to_inner.negotiate(through_outer)
        to_inner.request(through_outer, connect_to(target))
        assert_echoes(through_outer)
        through_outer.close()


def connect_to(target: tuple[str, int]) -> Request:
    """A CONNECT request."""
    return Request(Cmd.CONNECT, Address(*target))


# --- drain ------------------------------------------------------------------------------------


def test_draining_refuses_the_new_and_lets_the_running_go_on(target: tuple[str, int]) -> None:
    seen = Seen()
    with running(observers=[seen]) as (server, client):
        session = client.connect(target)
        assert_echoes(session)
        draining = gevent.spawn(server.drain, timeout=10.0)
        seen.wait_for(Draining)
        with pytest.raises(ConnectionRefusedError):
            client.connect(target)
        assert_echoes(session, b"still here" * 1000)
        assert not draining.ready()
        session.close()
        assert draining.get(timeout=2) == 0
    assert seen.of(Draining)[0] == Draining(1, 10.0)
    assert seen.of(Stopped)[0] == Stopped(0)


def test_what_does_not_end_in_time_is_cut_with_that_reason(target: tuple[str, int]) -> None:
    seen = Seen()
    with running(observers=[seen]) as (server, client):
        sessions = [client.connect(target) for _ in range(3)]
        assert server.drain(timeout=0.05) == 3
        assert [recv_all(session) for session in sessions] == [b""] * 3
        for session in sessions:
            session.close()
    assert [closed.reason for closed in seen.of(SessionClosed)] == ["drained"] * 3
    assert seen.of(Stopped)[0] == Stopped(3)


# --- the policy in force ----------------------------------------------------------------------


def test_a_new_policy_is_for_new_sessions_only(target: tuple[str, int]) -> None:
    with running() as (server, client):
        before = client.connect(target)
        server.policy = server.policy.replace(rules=NOBODY.rules)
        with pytest.raises(RequestDenied) as caught:
            client.connect(target)
        assert caught.value.rep == Rep.NOT_ALLOWED
        assert_echoes(before, b"the old policy is mine" * 500)
        before.close()
        server.policy = Policy()
        visit(client, target)


def test_a_session_that_was_accepted_before_the_swap_keeps_its_whole_policy(
    target: tuple[str, int],
) -> None:
    with running() as (server, client):
        stream = client.reach()
        wait_for(lambda: server.sessions)
        server.policy = NOBODY
        client.negotiate(stream)
        client.request(stream, connect_to(target))
        assert_echoes(stream)
        stream.close()


def test_a_policy_cannot_be_changed_in_place_or_given_what_it_has_not() -> None:
    policy = Policy(timeouts=Timeouts(negotiation=3.0))
    with pytest.raises(AttributeError):
        policy.rules = NOBODY.rules  # type: ignore[misc]
    with pytest.raises(TypeError):
        policy.replace(rulez=NOBODY.rules)
    assert policy.replace(rules=NOBODY.rules).timeouts is policy.timeouts


# --- own method X'80' -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ticket:
    """LEN, and as many octets: who the client is, if the office knows."""

    holder: bytes

    @classmethod
    def decode(cls, data: bytes) -> "Ticket":
        """Read a ticket."""
        need(data, 1)
        need(data, 1 + data[0])
        return cls(data[1 : 1 + data[0]])

    def encode(self) -> bytes:
        """LEN, HOLDER."""
        return bytes((len(self.holder),)) + self.holder


@dataclass
class TicketAuthenticator:
    """The server's half of a private method."""

    office: set[bytes]
    method: int = 0x80

    def authenticate(self, stream: Stream, peer: Address) -> Grant:
        """Take a ticket that the office knows."""
        ticket = read_message(stream, Ticket.decode)
        valid = ticket.holder in self.office
        stream.sendall(b"\x00" if valid else b"\x01")
        if not valid:
            raise AuthFailed("stale ticket", ticket.holder.decode())
        return Grant(stream, identity=ticket.holder.decode(), detail="window 3")


@dataclass
class TicketCredential:
    """The client's half."""

    ticket: Ticket
    method: int = 0x80

    def present(self, stream: Stream) -> Grant:
        """Show it."""
        stream.sendall(self.ticket.encode())
        if stream.recv(1) != b"\x00":
            raise AuthFailed("they do not like the ticket")
        return Grant(stream)


OFFICE = TicketAuthenticator({b"bob"})
TICKETS = Policy(
    authenticators=(OFFICE, PasswordAuthenticator(check=lambda *pair: pair == (b"al", b"pw"))),
    rules=RuleSet.parse("allow method 0x80 user bob to everywhere\n"),
)


def test_a_private_method_works_from_both_ends(target: tuple[str, int]) -> None:
    seen = Seen()
    with running(TICKETS, observers=[seen]) as (server, _):
        client = Client(server.addresses[0], [TicketCredential(Ticket(b"bob"))])
        established = client.establish(target)
        assert established.method == 0x80
        assert_echoes(established.stream)
        established.stream.close()
        [closed] = seen.wait_for(SessionClosed)
    assert (closed.method, closed.identity) == (0x80, "bob")
    [authenticated] = seen.of(Authenticated)
    assert (authenticated.identity, authenticated.detail) == ("bob", "window 3")


def test_a_stale_ticket_is_refused_with_one_event(target: tuple[str, int]) -> None:
    seen = Seen()
    with running(TICKETS, observers=[seen]) as (server, _):
        client = Client(server.addresses[0], [TicketCredential(Ticket(b"eve"))])
        with pytest.raises(AuthFailed, match="do not like"):
            client.connect(target)
        seen.wait_for(SessionClosed)
    [failed] = seen.of(AuthenticationFailed)
    assert (failed.method, failed.identity, failed.reason) == (0x80, "eve", "stale ticket")
    assert not seen.of(RequestRefused)


def test_the_server_prefers_by_its_own_order_and_rules_can_ask_for_the_method(
    target: tuple[str, int],
) -> None:
    with running(TICKETS) as (server, nothing_to_show):
        both: list[Credential] = [Password("al", "pw"), TicketCredential(Ticket(b"bob"))]
        visit(Client(server.addresses[0], both), target)
        with pytest.raises(RequestDenied):
            Client(server.addresses[0], both[:1]).connect(target)
        with pytest.raises(NoAcceptableMethod):
            nothing_to_show.connect(target)


# --- own rules --------------------------------------------------------------------------------


@dataclass
class OfficeHours:
    """A rule in Python: from six in the evening on, nobody."""

    hour: int

    def __call__(self, question: Question) -> Verdict | None:
        """Judge."""
        return None if self.hour < 18 else Verdict(False, "office hours")


def test_rules_in_python_and_in_text_mix(target: tuple[str, int]) -> None:
    hours = OfficeHours(9)
    seen = Seen()
    text = "allow from loopback to loopback\n"
    policy = Policy(rules=RuleSet((hours, *parse_rules(text))))
    with running(policy, observers=[seen]) as (_, client):
        visit(client, target)
        hours.hour = 20
        with pytest.raises(RequestDenied):
            client.connect(target)
        [refused] = seen.wait_for(RequestRefused)
    assert refused.rule == "office hours"


def test_a_rule_in_python_opens_what_it_names_and_nothing_guarded_by_accident(
    target: tuple[str, int],
) -> None:
    def by_port(question: Question) -> Verdict | None:
        if question.destination.port == target[1]:
            return Verdict(True, "by port")
        return None

    def by_address(question: Question) -> Verdict | None:
        return Verdict(True, "by address", question.addresses)

    with running(Policy(rules=RuleSet((by_port,)))) as (server, client):
        with pytest.raises(RequestDenied):
            client.connect(target)  # loopback is guarded
        server.policy = Policy(rules=RuleSet((by_address,)))
        visit(client, target)


def test_a_rule_may_end_the_matter_in_its_own_words(target: tuple[str, int]) -> None:
    def never(question: Question) -> Verdict | None:
        raise RequestDenied(f"not to {question}", rule="never")

    seen = Seen()
    with running(Policy(rules=RuleSet((never,))), observers=[seen]) as (_, client):
        with pytest.raises(RequestDenied):
            client.connect(target)
        [refused] = seen.wait_for(RequestRefused)
    assert (refused.rule, refused.reason) == ("never", f"not to 127.0.0.1:{target[1]}")


def test_a_rule_with_a_fault_fails_closed_and_harms_no_other_session(
    target: tuple[str, int],
) -> None:
    def faulty(question: Question) -> Verdict | None:
        raise ZeroDivisionError("mine")

    seen = Seen()
    with running(observers=[seen]) as (server, client):
        running_on = client.connect(target)
        server.policy = Policy(rules=RuleSet((faulty,)))
        with pytest.raises(RequestFailed) as caught:
            client.connect(target)
        assert caught.value.rep == Rep.GENERAL_FAILURE
        [crashed] = seen.wait_for(SessionCrashed)
        assert "mine" in crashed.error
        assert "faulty" in crashed.traceback
        assert_echoes(running_on)
        running_on.close()


# --- own dialer, own resolver -----------------------------------------------------------------


@dataclass
class Detour:
    """A dialer that leads everything to one place, by a gevent socket."""

    target: tuple[str, int]
    asked: list[tuple[Address, tuple[IPAddress, ...]]] = field(default_factory=list)

    def open_connection(self, to: Address, addresses: tuple[IPAddress, ...]) -> Stream:
        """Remember what was asked for."""
        self.asked.append((to, addresses))
        return gevent.socket.create_connection(self.target)


def test_an_own_dialer_may_return_a_gevent_socket(target: tuple[str, int]) -> None:
    detour = Detour(target)
    seen = Seen()
    data = os.urandom(3_000_000)
    with running(Policy(dialer=detour), observers=[seen]) as (_, client):
        established = client.establish(("192.0.2.7", 443))
        sock: Any = established.stream
        sending = gevent.spawn(sock.sendall, data)
        assert recv_exactly(sock, len(data)) == data
        sending.get()
        sock.shutdown(socket.SHUT_WR)
        assert recv_all(sock) == b""
        sock.close()
        [closed] = seen.wait_for(SessionClosed)
    [(to, addresses)] = detour.asked
    assert (str(to), [str(address) for address in addresses]) == ("192.0.2.7:443", ["192.0.2.7"])
    assert (closed.reason, closed.up, closed.down) == ("closed", len(data), len(data))
    assert str(closed.dialled) == f"127.0.0.1:{target[1]}"
    assert str(established.bound).startswith("127.0.0.1:")


@pytest.mark.usefixtures("no_leaks")
def test_an_own_dialer_s_refusal_is_the_client_s_reply() -> None:
    class Nowhere:
        def open_connection(self, to: Address, addresses: tuple[IPAddress, ...]) -> Stream:
            raise TargetRefused(f"{to}: not today")

    with running(Policy(dialer=Nowhere())) as (_, client):
        with pytest.raises(TargetRefused) as caught:
            client.connect(("192.0.2.7", 443))
        assert isinstance(caught.value, ConnectionRefusedError)
        assert caught.value.rep == Rep.CONNECTION_REFUSED


def test_a_client_makes_a_dialer_of_an_upstream(target: tuple[str, int]) -> None:
    @dataclass
    class Upstream:
        client: Client

        def open_connection(self, to: Address, addresses: tuple[IPAddress, ...]) -> Stream:
            stream: Stream = self.client.connect(to)
            return stream

    with (
        running() as (inner, to_inner),
        running(Policy(dialer=Upstream(to_inner))) as (_, to_outer),
    ):
        visit(to_outer, target)
        inner.policy = NOBODY
        with pytest.raises(RequestDenied):
            to_outer.connect(target)


def test_a_resolver_can_be_a_dict_and_is_asked_once(target: tuple[str, int]) -> None:
    asked: Counter[str] = Counter()

    class Book(dict[str, tuple[IPAddress, ...]]):
        def resolve(self, name: str) -> tuple[IPAddress, ...]:
            asked[name] += 1
            if name not in self:
                raise HostUnreachable(f"{name}: not in the book")
            return self[name]

    here = Address(*target).host
    assert not isinstance(here, str)
    book = Book({"home.example": (here,)})
    with running(Policy(resolver=book)) as (_, client):
        visit(client, ("Home.Example.", target[1]))
        with pytest.raises(HostUnreachable):
            client.connect(("away.example", target[1]))
    assert asked == {"home.example": 1, "away.example": 1}


# --- observers --------------------------------------------------------------------------------


def test_an_observer_counts_the_octets_of_each_identity(target: tuple[str, int]) -> None:
    invoices: Counter[str] = Counter()

    def bill(event: Event) -> None:
        match event:
            case SessionClosed(identity=str(who), up=up, down=down):
                invoices[who] += up + down

    seen = Seen()
    policy = Policy(
        authenticators=(PasswordAuthenticator(check=lambda name, pw: pw == name[::-1]),)
    )
    with running(policy, observers=[bill, seen]) as (server, _):
        for name, octets in (("anna", 10), ("otto", 3000), ("anna", 200_000)):
            client = Client(server.addresses[0], [Password(name, name[::-1])])
            visit(client, target, b"x" * octets)
        seen.wait_for(SessionClosed, 3)
    assert invoices == {"anna": 2 * 200_010, "otto": 2 * 3000}


def test_an_observer_that_raises_is_counted_and_harms_nobody(target: tuple[str, int]) -> None:
    def spoilsport(event: Event) -> None:
        raise RuntimeError("I do not want to know")

    seen = Seen()
    with running(observers=[spoilsport, seen]) as (server, client):
        visit(client, target)
        seen.wait_for(SessionClosed)
        assert server.emit.failures == len(seen)
    assert {type(event) for event in seen} >= {SessionOpened, SessionEstablished, SessionClosed}


def test_live_sessions_can_be_looked_at_and_cut(target: tuple[str, int]) -> None:
    seen = Seen()
    with running(observers=[seen]) as (server, client):
        sock = client.connect(target)
        assert_echoes(sock, b"12345")
        [session] = server.sessions.values()
        assert session.destination == Address(*target)
        assert (session.meter.up, session.meter.down) == (5, 5)
        server.cut(session, "we close")
        assert recv_all(sock) == b""
        sock.close()
        [closed] = seen.wait_for(SessionClosed)
        assert (closed.session, closed.reason) == (session.id, "we close")
        assert server.sessions == {}


# --- threads, and programs of other kinds -----------------------------------------------------


def in_thread(work: Callable[[], None]) -> threading.Thread:
    """Run ``work`` in a real thread, with a hub of its own that is gone afterwards."""

    def run() -> None:
        try:
            work()
        finally:
            gevent.get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


# No look for leaks here: gevent keeps two greenlets of each hub that has ever been.


def test_a_server_lives_in_a_second_thread_with_a_hub_of_its_own() -> None:
    started, enough = threading.Event(), gevent.event.Event()
    addresses: list[Any] = []
    hubs: set[int] = {id(gevent.get_hub())}

    def serve() -> None:
        with Server([ANY_PORT]) as server:
            addresses.extend(server.addresses)
            hubs.add(id(gevent.get_hub()))
            started.set()
            enough.wait()

    thread = in_thread(serve)
    assert started.wait(5)
    with serving(echo) as target, running() as (_, here):
        there = Client(addresses[0])
        for _ in range(3):
            visit(there, ("localhost", target[1]))  # each server asks its own resolver
            visit(here, ("localhost", target[1]))
    enough.set()
    wait_for(lambda: not thread.is_alive())
    assert len(hubs) == 2


def test_the_client_works_in_ordinary_threads() -> None:
    done: list[bytes] = []

    with serving(echo) as target, running() as (server, _):
        address = server.addresses[0]

        def work() -> None:
            sock = Client(address).connect(target)
            sock.sendall(b"plain and blocking")
            done.append(recv_exactly(sock, 18))
            sock.close()

        threads = [in_thread(work) for _ in range(3)]
        wait_for(lambda: not any(thread.is_alive() for thread in threads))
    assert done == [b"plain and blocking"] * 3


PATCHED = """
from gevent import monkey
monkey.patch_all()

import socket, threading
from urllib.request import urlopen
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from geosocks import Client, Policy, RuleSet, Server
from geosocks.auth.htpasswd import UserFile
from geosocks.auth.userpass import Password, PasswordAuthenticator
from geosocks.errors import AuthFailed

PAGE = bytes(range(256)) * 4000


class Page(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *args):
        pass


web = ThreadingHTTPServer(("127.0.0.1", 0), Page)
threading.Thread(target=web.serve_forever, daemon=True).start()

import bcrypt

users = UserFile({b"alice": bcrypt.hashpw(b"wonder", bcrypt.gensalt(4))})
policy = Policy(authenticators=(PasswordAuthenticator(check=users.check),))
with Server([("127.0.0.1", 0)], policy) as server:

    def fetch(results):
        client = Client(server.addresses[0], [Password("alice", "wonder")])
        sock = client.connect(("localhost", web.server_port))
        sock.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        with sock.makefile("rb") as answer:
            results.append(answer.read().partition(b"\\r\\n\\r\\n")[2] == PAGE)
        sock.close()

    results = []
    threads = [threading.Thread(target=fetch, args=(results,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 8, results
    assert urlopen(f"http://127.0.0.1:{web.server_port}/").read() == PAGE
    try:
        Client(server.addresses[0], [Password("alice", "wrong")]).connect(("localhost", 1))
    except AuthFailed:
        print("fetched and refused")
web.shutdown()
web.server_close()
"""


def test_both_ends_work_in_a_program_that_has_patched_everything() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PATCHED],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "fetched and refused\n", "")
