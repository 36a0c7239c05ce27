"""BIND, the server's side: who is let in, who is not, and how a wait ends (RFC 1928, section 6)."""

import errno
import os
import socket
from _socket import socket as RawSocket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from types import SimpleNamespace

import gevent
import gevent.socket
import pytest

from geosocks.auth import Grant
from geosocks.auth.gss_stream import GssStream
from geosocks.codes import Cmd, ProtectionLevel, Rep
from geosocks.errors import RequestFailed
from geosocks.events import (
    BindWaiting,
    RequestJudged,
    RequestRefused,
    SessionClosed,
    SessionEstablished,
    StrangersDropped,
)
from geosocks.policy import Policy, Timeouts
from geosocks.relay import listen
from geosocks.relay.listen import Admits, DirectBinder, PeerListener
from geosocks.rules import RuleSet
from geosocks.server import Server
from geosocks.session.bind import MAX_KEPT
from geosocks.stream import Connection, Stream, read_message
from geosocks.wire.socks5 import Address, IPAddress, MethodChoice, MethodOffer, Reply, Request
from tests.support.dns import dns
from tests.support.fake_gss import turned
from tests.support.net import recv_all, recv_exactly, reset, tcp_pair, unused_port
from tests.support.servers import EVERYWHERE, Witness, dial, greeted, proxy, read_reply, request

pytestmark = pytest.mark.usefixtures("no_leaks")

PEER, STRANGER = "127.0.0.2", "127.0.0.3"


def binding(
    server: Server, host: str = PEER, port: int = 0
) -> tuple[gevent.socket.socket, Address]:
    """A client whose BIND has had its first reply, and where that says to come."""
    sock = greeted(server)
    sock.sendall(request(Cmd.BIND, host, port))
    reply = read_reply(sock)
    assert reply.rep == Rep.SUCCEEDED
    return sock, reply.bound


def refused(server: Server, host: str = PEER, port: int = 0) -> int:
    """The REP of a BIND that fails at its first reply."""
    sock = greeted(server)
    sock.sendall(request(Cmd.BIND, host, port))
    reply = read_reply(sock)
    assert recv_all(sock) == b""
    sock.close()
    return reply.rep


def come(to: Address, source: str = PEER) -> gevent.socket.socket:
    """A peer that connects from ``source``."""
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    sock = gevent.socket.socket(family)
    try:
        sock.bind((source, 0))
        sock.connect((str(to.host), to.port))
    except BaseException:
        sock.close()
        raise
    return sock


def is_sent_away(sock: gevent.socket.socket) -> bool:
    """True when there was a reset at the other end, and not one octet."""
    try:
        sock.recv(1)
        return False
    except ConnectionResetError:
        return True
    finally:
        sock.close()


def turns_away(at: Address, source: str) -> bool:
    """True when somebody from ``source`` gets no further than the door, maybe not even that far."""
    try:
        return is_sent_away(come(at, source))
    except ConnectionResetError:
        return True


def listens(at: Address) -> bool:
    """True while somebody can connect ``at`` that place."""
    try:
        come(at, STRANGER).close()
    except ConnectionRefusedError:
        return False
    return True


def speak(one: gevent.socket.socket, other: gevent.socket.socket) -> None:
    """Octets pass both ways, and the ends of both."""
    one.sendall(b"to the other")
    assert recv_exactly(other, 12) == b"to the other"
    other.sendall(b"and back")
    assert recv_exactly(one, 8) == b"and back"
    other.shutdown(socket.SHUT_WR)
    assert recv_all(one) == b""
    one.shutdown(socket.SHUT_WR)
    assert recv_all(other) == b""
    one.close()
    other.close()


# --- the way it should go ---------------------------------------------------------------------


def test_a_bind_tells_its_story_in_order() -> None:
    with proxy() as (server, witness):
        sock, bound = binding(server, PEER, 21)
        assert bound.host == ip_address("127.0.0.1")  # where a connection to the peer leaves from
        waiting = witness.wait(BindWaiting)
        assert (waiting.destination, waiting.bound) == (Address(PEER, 21), bound)
        peer = come(bound)
        assert read_reply(sock) == Reply(Rep.SUCCEEDED, Address(*peer.getsockname()))
        came = Address(*peer.getsockname())
        speak(sock, peer)
        closed = witness.wait(SessionClosed)
        told = [type(event).__name__ for event in witness if hasattr(event, "session")][3:]
        assert told == [
            "RequestJudged",  # the request
            "BindWaiting",
            "RequestJudged",  # the peer
            "SessionEstablished",
            "SessionClosed",
        ]
        assert [event.destination for event in witness.of(RequestJudged)] == [
            Address(PEER, 21),
            came,
        ]
        assert (closed.destination, closed.dialled) == (Address(PEER, 21), came)
        assert (closed.up, closed.down, closed.reason) == (12, 8, "closed")
        assert closed.command == Cmd.BIND


def test_the_port_in_the_request_binds_nobody() -> None:
    with proxy() as (server, _):
        sock, bound = binding(server, PEER, 1)
        peer = come(bound)
        assert read_reply(sock).bound.port not in (0, 1)
        speak(sock, peer)


def test_a_bind_and_its_peer_over_ipv6() -> None:
    with proxy() as (server, _):
        sock, bound = binding(server, "::1")
        assert bound.host == ip_address("::1")
        peer = come(bound, "::1")
        assert read_reply(sock).bound == Address(*peer.getsockname()[:2])
        speak(sock, peer)


@pytest.mark.parametrize("nobody", ["0.0.0.0", "::", "::ffff:0.0.0.0"])
def test_a_bind_that_names_nobody_takes_who_comes(nobody: str) -> None:
    with proxy() as (server, _):
        sock, bound = binding(server, nobody)
        assert bound.host == ip_address("127.0.0.1")  # where the client reaches us
        peer = come(bound, STRANGER)
        assert read_reply(sock).bound == Address(*peer.getsockname())
        speak(sock, peer)


def test_nobody_is_let_in_after_the_first() -> None:
    with proxy() as (server, _):
        sock, bound = binding(server)
        peer = come(bound)
        assert read_reply(sock).rep == Rep.SUCCEEDED
        with pytest.raises(ConnectionRefusedError):
            come(bound)
        speak(sock, peer)


def test_who_comes_at_the_same_time_is_sent_away() -> None:
    with proxy() as (server, _):
        sock, bound = binding(server)
        peers = []
        for _ in range(5):
            with suppress(ConnectionError):
                peers.append(come(bound))
        came = read_reply(sock).bound
        [peer] = [peer for peer in peers if Address(*peer.getsockname()) == came]
        assert all(is_sent_away(other) for other in peers if other is not peer)
        speak(sock, peer)


# --- who is let in ----------------------------------------------------------------------------


def test_a_stranger_neither_gets_in_nor_ends_it() -> None:
    with proxy() as (server, witness):
        sock, bound = binding(server)
        for _ in range(3):
            assert turns_away(bound, STRANGER)
        peer = come(bound)
        assert read_reply(sock).bound == Address(*peer.getsockname())
        speak(sock, peer)
        dropped = witness.wait(StrangersDropped)
        assert (dropped.count, dropped.bound) == (3, bound)
        assert dropped.first.host == ip_address(STRANGER)
        assert dropped.reason.endswith("is not 127.0.0.2")
        assert len(witness.of(StrangersDropped)) == 1


def test_a_flood_of_strangers_holds_nobody_up() -> None:
    """The hub goes round, another session is served, and the peer still gets in."""
    with proxy() as (server, witness):
        sock, bound = binding(server)
        busy = True

        def flood() -> None:
            while busy:
                with suppress(OSError):
                    come(bound, STRANGER).close()
                gevent.sleep(0)

        floods = [gevent.spawn(flood) for _ in range(4)]
        gevent.sleep(0.1)
        other, there = binding(server)
        speak_after = come(there)
        assert read_reply(other).rep == Rep.SUCCEEDED
        speak(other, speak_after)
        peer = come(bound)
        assert read_reply(sock).bound == Address(*peer.getsockname())
        busy = False
        gevent.joinall(floods)
        speak(sock, peer)
        assert witness.wait(StrangersDropped).count > 10
        assert len(witness.of(StrangersDropped)) == 1


@pytest.mark.parametrize("source", ["127.0.0.2", "127.0.0.4"])
def test_every_address_of_a_name_may_come_and_it_is_looked_up_once(source: str) -> None:
    with dns({"peer.test": ["127.0.0.2", "127.0.0.4"]}) as names:
        resolver = names.resolver()
        with proxy(Policy(rules=EVERYWHERE, resolver=resolver)) as (server, _):
            sock, bound = binding(server, "peer.test", 21)
            assert turns_away(bound, STRANGER)
            peer = come(bound, source)
            assert read_reply(sock).rep == Rep.SUCCEEDED
            speak(sock, peer)
        assert names.asked["peer.test"] == 2  # A and AAAA
        resolver.close()


def test_a_name_that_has_no_address() -> None:
    with dns({}) as names:
        resolver = names.resolver()
        with proxy(Policy(rules=EVERYWHERE, resolver=resolver)) as (server, _):
            assert refused(server, "peer.test") == Rep.HOST_UNREACHABLE
        resolver.close()


def test_a_peer_is_judged_in_its_own_right() -> None:
    rules = RuleSet.parse(f"deny command bind to {STRANGER}\nallow to everywhere\n")
    with proxy(Policy(rules=rules)) as (server, witness):
        sock, bound = binding(server, "0.0.0.0")
        assert turns_away(bound, STRANGER)
        peer = come(bound, "127.0.0.4")
        assert read_reply(sock).bound.host == ip_address("127.0.0.4")
        speak(sock, peer)
        assert f"deny command bind to {STRANGER}" in witness.wait(StrangersDropped).reason


def test_a_peer_is_judged_by_the_port_it_comes_from() -> None:
    rules = RuleSet.parse(f"allow to everywhere port 21\nallow to {STRANGER}\n")
    with proxy(Policy(rules=rules)) as (server, witness):
        sock, bound = binding(server, "0.0.0.0", 0)
        assert turns_away(bound, PEER)
        peer = come(bound, STRANGER)
        assert read_reply(sock).rep == Rep.SUCCEEDED
        speak(sock, peer)
        assert "no rule allows" in witness.wait(StrangersDropped).reason


def test_the_guard_is_in_force_for_peers_nobody_named() -> None:
    policy = Policy(rules=RuleSet.parse("allow to any\n"), timeouts=Timeouts(bind=0.3))
    with proxy(policy) as (server, witness):
        sock, bound = binding(server, "0.0.0.0")
        assert turns_away(bound, PEER)
        assert read_reply(sock).rep == Rep.TTL_EXPIRED
        sock.close()
        assert "127.0.0.2 (loopback)" in witness.wait(StrangersDropped).reason


class Guests:
    """A binder whose listeners are called at by peers from wherever one likes."""

    def __init__(self, *peers: str) -> None:
        self.peers = [Address(peer, 20) for peer in peers]
        self.bound = Address("192.0.2.7", 40000)
        self.dropped = 0
        self.asked: list[tuple[Address, tuple[IPAddress, ...] | None, IPAddress]] = []
        self.is_open = False
        self.far: gevent.socket.socket | None = None

    def open_listener(
        self, peer: Address, addresses: tuple[IPAddress, ...] | None, near: IPAddress
    ) -> "Guests":
        self.asked.append((peer, addresses, near))
        self.is_open = True
        return self

    def accept(self, admits: Admits) -> tuple[Stream, Address]:
        for peer in self.peers:
            if admits(peer):
                self.far, near = tcp_pair()
                return Connection.take(near), peer
            self.dropped += 1
        raise RequestFailed("nobody else comes")

    def close(self) -> None:
        self.is_open = False


def test_a_rule_for_a_name_lets_the_peer_of_that_name_in() -> None:
    class Here:
        def resolve(self, name: str) -> tuple[IPAddress, ...]:
            return (ip_address("198.20.0.1"),)

    guests = Guests("198.20.0.2", "198.20.0.1")
    rules = RuleSet.parse("allow command bind to ftp.example.org\n")
    with proxy(Policy(rules=rules, resolver=Here(), binder=guests)) as (server, witness):
        sock, bound = binding(server, "FTP.example.org", 21)
        assert bound == guests.bound
        assert read_reply(sock) == Reply(Rep.SUCCEEDED, Address("198.20.0.1", 20))
        assert not guests.is_open
        assert guests.asked[0][1:] == ((ip_address("198.20.0.1"),), ip_address("127.0.0.1"))
        assert witness.wait(SessionEstablished).dialled == Address("198.20.0.1", 20)
        assert guests.far is not None
        speak(sock, guests.far)
        assert witness.wait(SessionClosed).rule == "rules:1: allow command bind to ftp.example.org"


def test_a_binder_that_gives_up() -> None:
    guests = Guests("198.20.0.2")
    with proxy(Policy(rules=EVERYWHERE, binder=guests)) as (server, witness):
        sock, _ = binding(server, "198.20.0.1", 21)
        assert read_reply(sock).rep == Rep.GENERAL_FAILURE
        assert recv_all(sock) == b""
        sock.close()
        assert "nobody else" in witness.wait(RequestRefused).reason
        assert not guests.is_open


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("host", [PEER, "0.0.0.0", "::"])
@pytest.mark.parametrize(
    "rules",
    [
        "deny command bind\nallow to everywhere",
        "allow command connect,udp to everywhere",
        "allow user alice to everywhere",
        "allow from 192.0.2.0/24 to everywhere",
        "",
    ],
)
def test_a_bind_that_no_rule_allows(rules: str, host: str) -> None:
    with proxy(Policy(rules=RuleSet.parse(rules))) as (server, witness):
        assert refused(server, host) == Rep.NOT_ALLOWED
        told = witness.wait(RequestRefused)
        assert told.rule is not None
        assert not witness.of(BindWaiting)


def test_a_bind_for_this_server_itself_is_refused() -> None:
    with proxy() as (server, witness):
        assert refused(server, "127.0.0.1", server.addresses[0][1]) == Rep.NOT_ALLOWED
        assert witness.wait(RequestRefused).rule == "loop"


def test_an_address_that_is_not_ours_to_listen_on() -> None:
    binder = DirectBinder(outgoing=[ip_address("192.0.2.1")])
    with proxy(Policy(rules=EVERYWHERE, binder=binder)) as (server, _):
        assert refused(server) == Rep.GENERAL_FAILURE


class Elsewhere:
    """A dialer that leads somewhere else."""

    def open_connection(self, to: Address, addresses: tuple[IPAddress, ...]) -> Stream:
        raise AssertionError("nobody asked for a CONNECT")


@pytest.mark.parametrize("host", [PEER, "0.0.0.0"])
def test_an_upstream_or_an_embedders_dialer_is_not_passed_by(host: str) -> None:
    elsewhere = Policy(rules=EVERYWHERE, dialer=Elsewhere())
    upstream = Policy(rules=EVERYWHERE, dialers={"up": Elsewhere()}, via=("up",))
    for policy in (elsewhere, upstream):
        with proxy(policy) as (server, _):
            assert refused(server, host) == Rep.COMMAND_NOT_SUPPORTED
    guests = Guests(PEER)
    with proxy(elsewhere.replace(binder=guests)) as (server, _):
        sock, _ = binding(server)
        assert read_reply(sock).rep == Rep.SUCCEEDED
        assert guests.far is not None
        speak(sock, guests.far)


def test_a_peer_who_is_only_to_be_reached_through_an_upstream_is_a_stranger() -> None:
    rules = RuleSet.parse(f"allow to {STRANGER} via up\nallow to everywhere\n", upstreams=("up",))
    with proxy(Policy(rules=rules, dialers={"up": Elsewhere()})) as (server, witness):
        sock, bound = binding(server, "0.0.0.0")
        assert turns_away(bound, STRANGER)
        peer = come(bound)
        assert read_reply(sock).rep == Rep.SUCCEEDED
        speak(sock, peer)
        assert "is to be reached" in witness.wait(StrangersDropped).reason


# --- how a wait ends --------------------------------------------------------------------------


def test_nobody_comes_in_time() -> None:
    with proxy(timeouts=Timeouts(bind=0.1)) as (server, witness):
        sock, bound = binding(server)
        assert read_reply(sock) == Reply(Rep.TTL_EXPIRED)
        assert not listens(bound)
        assert recv_all(sock) == b""
        sock.close()
        told = witness.wait(RequestRefused)
        assert (told.reply, told.command) == (Rep.TTL_EXPIRED, Cmd.BIND)
        assert told.reason == "127.0.0.2:0: no peer came within 0.1 s"
        assert witness.wait(SessionClosed).reason == "refused"


def test_strangers_do_not_make_the_wait_longer() -> None:
    with proxy(timeouts=Timeouts(bind=0.2)) as (server, witness):
        sock, bound = binding(server)
        reply = gevent.spawn(read_reply, sock)
        while not reply.ready():
            with suppress(ConnectionError):
                come(bound, STRANGER).close()
            gevent.sleep(0.01)
        assert reply.get().rep == Rep.TTL_EXPIRED
        sock.close()
        assert witness.wait(StrangersDropped).count > 1


@pytest.mark.parametrize("how", ["closed", "half-closed", "reset"])
def test_a_wait_ends_with_the_control_connection(how: str) -> None:
    with proxy() as (server, witness):
        sock, bound = binding(server)
        witness.wait(BindWaiting)
        if how == "reset":
            reset(sock)
        elif how == "closed":
            sock.close()
        else:
            sock.shutdown(socket.SHUT_WR)
            assert recv_all(sock) == b""
            sock.close()
        closed = witness.wait(SessionClosed)
        assert closed.reason == ("reset_by_client" if how == "reset" else "given_up")
        assert not listens(bound)
        assert not server.sessions


def test_a_client_that_leaves_before_the_first_reply() -> None:
    with proxy() as (server, witness):
        sock = greeted(server)
        sock.sendall(request(Cmd.BIND, PEER, 0))
        reset(sock)
        closed = witness.wait(SessionClosed)
        assert closed.reason == "reset_by_client" or not witness.of(BindWaiting)
        assert not server.sessions


def test_a_server_that_stops() -> None:
    with proxy() as (server, witness):
        sock, bound = binding(server)
        server.stop()
        assert not listens(bound)
        assert recv_all(sock) == b""
        sock.close()
        assert witness.wait(SessionClosed).reason == "drained"


def test_a_wait_is_not_idleness_but_a_relay_may_be_idle() -> None:
    with proxy(timeouts=Timeouts(idle=0.1, half_close=0.1)) as (server, witness):
        sock, bound = binding(server)
        gevent.sleep(0.4)
        peer = come(bound)
        assert read_reply(sock).rep == Rep.SUCCEEDED
        assert witness.wait(SessionClosed).reason == "idle"
        sock.close()
        peer.close()


# --- octets ahead of the peer -----------------------------------------------------------------


def test_what_a_client_sends_ahead_is_kept_for_the_peer() -> None:
    with proxy() as (server, witness):
        sock = greeted(server)
        sock.sendall(request(Cmd.BIND, PEER, 0) + b"one ")
        bound = read_reply(sock).bound
        sock.sendall(b"two ")
        witness.wait(BindWaiting)
        gevent.sleep(0.02)
        peer = come(bound)
        assert read_reply(sock).rep == Rep.SUCCEEDED
        sock.sendall(b"three")
        sock.shutdown(socket.SHUT_WR)
        assert recv_all(peer) == b"one two three"
        peer.sendall(b"thanks")
        peer.close()
        assert recv_all(sock) == b"thanks"
        sock.close()
        closed = witness.wait(SessionClosed)
        assert (closed.up, closed.down, closed.reason) == (13, 6, "closed")


def test_no_more_than_so_much_is_kept_and_nothing_is_lost() -> None:
    sent = os.urandom(MAX_KEPT * 60)
    with proxy() as (server, _):
        sock, bound = binding(server)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        done = gevent.event.Event()

        def send() -> None:
            sock.sendall(sent)
            done.set()

        sender = gevent.spawn(send)
        assert not done.wait(0.2)  # it is held up: what is not kept stays where it is
        peer = come(bound)
        got = gevent.spawn(recv_exactly, peer, len(sent))
        assert read_reply(sock).rep == Rep.SUCCEEDED
        sender.join()
        assert got.get() == sent
        speak(sock, peer)


# --- inside an encapsulation ------------------------------------------------------------------


class Context:
    """As much of a GSSAPI context as a stream needs; its encryption turns octets over."""

    def wrap(self, message: bytes, encrypt: bool) -> SimpleNamespace:
        return SimpleNamespace(message=turned(message), encrypted=encrypt)

    def unwrap(self, message: bytes) -> SimpleNamespace:
        return SimpleNamespace(message=turned(message), encrypted=True)

    def get_wrap_size_limit(self, desired_output_size: int, encrypted: bool = True) -> int:
        return 60_000


class Wrapped:
    """A method that encapsulates what follows, as GSSAPI does."""

    method = 0x80

    def authenticate(self, stream: Stream, peer: Address) -> Grant:
        return Grant(GssStream(stream, Context(), ProtectionLevel.CONFIDENTIALITY), "alice")


@contextmanager
def wrapped(timeouts: Timeouts | None = None) -> Iterator[tuple[Stream, Address, Witness]]:
    """A client inside the encapsulation, whose BIND has had its first reply."""
    policy = Policy(rules=EVERYWHERE, authenticators=(Wrapped(),))
    with proxy(policy, timeouts=timeouts) as (server, witness):
        sock = dial(server)
        sock.sendall(MethodOffer(b"\x80").encode())
        read_message(sock, MethodChoice.decode)
        inside = GssStream(sock, Context(), ProtectionLevel.CONFIDENTIALITY)
        inside.sendall(Request(Cmd.BIND, Address(PEER, 0)).encode() + b"ahead, ")
        reply = read_message(inside, Reply.decode)
        assert reply.rep == Rep.SUCCEEDED
        try:
            yield inside, reply.bound, witness
        finally:
            sock.close()


def test_both_replies_and_the_data_are_encapsulated() -> None:
    with wrapped() as (client, bound, witness):
        client.sendall(b"and ")
        gevent.sleep(0.02)
        assert turns_away(bound, STRANGER)
        peer = come(bound)
        reply = read_message(client, Reply.decode)
        assert reply == Reply(Rep.SUCCEEDED, Address(*peer.getsockname()))
        client.sendall(b"after")
        assert recv_exactly(peer, 16) == b"ahead, and after"
        peer.sendall(b"thanks")
        assert client.recv(100) == b"thanks"
        peer.close()
        assert client.recv(1) == b""
        client.close()
        assert witness.wait(SessionClosed).identity == "alice"


def test_a_refusal_is_encapsulated_too() -> None:
    with wrapped(Timeouts(bind=0.1)) as (client, _, _):
        assert read_message(client, Reply.decode).rep == Rep.TTL_EXPIRED
        assert client.recv(1) == b""


def test_clear_octets_while_it_waits_end_it() -> None:
    with wrapped() as (client, bound, witness):
        assert isinstance(client, GssStream)
        client._inner.sendall(b"\x05\x01\x00 in clear")
        assert witness.wait(SessionClosed).reason.startswith("broken_by_client: ")
        assert not listens(bound)


# --- where it listens -------------------------------------------------------------------------


def test_the_address_to_advertise_stands_in_both_families_replies() -> None:
    policy = Policy(
        rules=EVERYWHERE, advertise=(ip_address("192.0.2.7"), ip_address("2001:db8::7"))
    )
    with proxy(policy) as (server, witness):
        sock, told = binding(server)
        assert told.host == ip_address("192.0.2.7")
        peer = come(Address("127.0.0.1", told.port))
        assert read_reply(sock).bound == Address(*peer.getsockname())  # the peer's own, untouched
        speak(sock, peer)
        assert witness.wait(BindWaiting).bound == told
        sock, told = binding(server, "::1")
        assert told.host == ip_address("2001:db8::7")
        sock.close()


def test_ports_of_the_range_and_no_other() -> None:
    low = unused_port()
    policy = Policy(rules=EVERYWHERE, binder=DirectBinder(range(low, low + 1)))
    with proxy(policy) as (server, witness):
        sock, bound = binding(server)
        assert bound.port == low
        assert refused(server) == Rep.GENERAL_FAILURE
        assert f"every port of {low}-{low} is in use" in witness.wait(RequestRefused).reason
        peer = come(bound)
        assert read_reply(sock).rep == Rep.SUCCEEDED
        # It is free again as soon as the peer has come, and after the session, too.
        second, again = binding(server)
        assert again == bound
        second.close()
        speak(sock, peer)
        witness.wait(SessionClosed, 3)
        third, again = binding(server)
        assert again == bound
        third.close()


def test_ports_are_tried_in_random_order() -> None:
    binder = DirectBinder(range(40000, 60000))
    seen = []
    for _ in range(8):
        listener = binder.open_listener(Address(PEER, 0), (ip_address(PEER),), ip_address(PEER))
        seen.append(listener.bound.port)
        listener.close()
    assert len(set(seen)) > 1
    assert seen != sorted(seen)
    assert all(40000 <= port < 60000 for port in seen)


def test_the_source_address_of_outgoing_connections_is_where_it_listens() -> None:
    binder = DirectBinder(outgoing=[ip_address("127.0.0.9")])
    listener = binder.open_listener(Address(PEER, 0), (ip_address(PEER),), ip_address("127.0.0.1"))
    assert listener.bound.host == ip_address("127.0.0.9")
    listener.close()


def test_the_first_address_that_there_is_a_way_to() -> None:
    there_is_none = ip_address("255.255.255.255")  # connect(2): EACCES
    for addresses in ((there_is_none, ip_address(PEER)), (ip_address(PEER), there_is_none)):
        listener = DirectBinder().open_listener(
            Address("name.test", 0), addresses, ip_address("::1")
        )
        assert listener.bound.host == ip_address("127.0.0.1")
        listener.close()
    with pytest.raises(RequestFailed, match="255"):
        DirectBinder().open_listener(Address("n", 0), (there_is_none,), ip_address("::1"))


# --- accept(2) --------------------------------------------------------------------------------


class Troubled(RawSocket):
    """A listening socket whose next connections are trouble."""

    troubles: list[int]

    def _accept(self) -> tuple[int, tuple[str, int]]:
        if self.troubles:
            code = self.troubles.pop(0)
            raise OSError(code, os.strerror(code))
        return super()._accept()  # type: ignore[misc]


def troubled(*codes: int) -> PeerListener:
    sock = Troubled(socket.AF_INET, socket.SOCK_STREAM)
    sock.troubles = list(codes)
    sock.setblocking(False)
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return PeerListener(sock)


@pytest.mark.parametrize(
    "code", [errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.EPERM, errno.EMFILE]
)
def test_one_peers_trouble_or_a_lack_of_descriptors_does_not_end_a_wait(code: int) -> None:
    listener = troubled(code, code, code)
    peer = come(listener.bound)
    connection, address = listener.accept(lambda _: True)
    assert address == Address(*peer.getsockname())
    assert listener.dropped == 0
    for thing in (connection, peer, listener):
        thing.close()


def test_a_lack_of_descriptors_does_not_spin() -> None:
    listener = troubled(*[errno.EMFILE] * 1000)
    with gevent.Timeout(3 * listen.PAUSE, False):
        listener.accept(lambda _: True)
    assert len(listener._sock.troubles) > 990  # type: ignore[attr-defined]
    listener.close()


def test_a_listening_socket_that_is_none_any_more_ends_a_wait() -> None:
    listener = troubled(errno.EINVAL)
    with pytest.raises(RequestFailed, match="accept on 127"):
        listener.accept(lambda _: True)
    listener.close()


def test_who_was_being_judged_when_the_wait_ended_is_sent_away() -> None:
    listener = troubled()
    peer = come(listener.bound)

    def ponder(_: Address) -> bool:
        gevent.sleep(10)
        return True

    with gevent.Timeout(0.05, False):
        listener.accept(ponder)
    assert is_sent_away(peer)
    listener.close()
