"""UDP ASSOCIATE, octet by octet, against real sockets (RFC 1928, sections 6 and 7)."""

import os
import socket
import struct
import time
import tracemalloc
from ipaddress import ip_address
from pathlib import Path

import gevent
import gevent.event
import gevent.socket
import pytest

from geosocks.auth import Grant, NoAuth
from geosocks.codes import Cmd, Rep
from geosocks.config import build_policy, load_settings
from geosocks.errors import HostUnreachable, ProtocolError
from geosocks.events import (
    DestinationRefused,
    LimitReached,
    RequestJudged,
    RequestRefused,
    SessionClosed,
    SessionCrashed,
    UdpAssociated,
    UdpEnded,
)
from geosocks.policy import Policy, Timeouts, Udp
from geosocks.relay.direct import DirectDialer
from geosocks.rules import Question, RuleSet, Verdict
from geosocks.server import Server
from geosocks.session.associate import Pinned, hinted_port
from geosocks.stream import Stream
from geosocks.wire.socks5 import Address, IPAddress
from tests.support.dns import dns
from tests.support.net import recv_all, recv_exactly, reset, unused_port, wait_for
from tests.support.servers import (
    EVERYWHERE,
    Witness,
    dial,
    greeted,
    proxy,
    read_reply,
    request,
)
from tests.support.udp_client import UdpClient, address, answering, header, udp_socket

pytestmark = pytest.mark.usefixtures("no_leaks")

BIGGEST = 65_497
"""Octets of DATA that an IPv4 header leaves of 65,507."""


def udp(**options: object) -> Policy:
    """A policy that lets everybody go everywhere, with UDP options."""
    return Policy(rules=EVERYWHERE, udp=Udp(**options))  # type: ignore[arg-type]


def rules(text: str) -> Policy:
    """A policy with rules."""
    return Policy(rules=RuleSet.parse(text))


def ended(witness: Witness) -> UdpEnded:
    """What came of the association."""
    return witness.wait(UdpEnded)


def refused(server: Server, hint: tuple[str, int] = ("0.0.0.0", 0)) -> int:
    """REP of an ASSOCIATE that is refused; its connection is closed after it."""
    sock = greeted(server)
    sock.sendall(request(3, *hint))
    reply = read_reply(sock)
    assert recv_all(sock) == b""
    sock.close()
    return reply.rep


# --- the way it should go ---------------------------------------------------------------------


def test_an_association_tells_its_story() -> None:
    with answering() as (target, clients), proxy() as (server, witness):
        with UdpClient.associate(server) as client:
            assert client.ask(b"hello", target) == b"hello"
            assert client.ask(b"", target) == b""
            # Targets are not written to from the socket that the client writes to.
            assert clients[0][1] != client.relay[1]
            mine = Address(*address(client.sock))
        closed = witness.wait(SessionClosed)
        associated, end = witness.wait(UdpAssociated), ended(witness)
        assert associated.relay == associated.bound == Address(*client.relay)
        assert (end.client, end.relay) == (mine, associated.relay)
        assert (end.datagrams_up, end.datagrams_down) == (2, 2)
        assert (closed.up, closed.down, closed.reason) == (5, 5, "closed")
        assert closed.command == Cmd.UDP_ASSOCIATE
        judged = [event.destination for event in witness.of(RequestJudged)]
        assert judged == [Address("0.0.0.0", 0), Address(*target)]
        dropped = ("strangers", "malformed", "fragments", "denied", "unresolved", "overflow")
        dropped += ("unasked", "too_long", "failed")
        assert [getattr(end, name) for name in dropped] == [0] * len(dropped)


@pytest.mark.parametrize("size", [0, 1, 512, 1472, 8192, 8193, 40_000, BIGGEST])
def test_datagrams_of_any_size_are_whole_both_ways(size: int) -> None:
    data = os.urandom(size)
    with answering() as (target, _), proxy() as (server, _), UdpClient.associate(server) as client:
        assert client.ask(data, target) == data


def test_a_reply_without_room_for_its_header_is_dropped_and_counted() -> None:
    with answering(lambda data: bytes(int(data))) as (target, _), proxy() as (server, witness):
        with UdpClient.associate(server) as client:
            assert len(client.ask(b"65497", target)) == BIGGEST
            for size in (b"65498", b"65507"):
                client.send(size, target)
            assert len(client.ask(b"65497", target)) == BIGGEST
        assert ended(witness).too_long == 2


def test_a_name_and_an_address_sent_as_a_name() -> None:
    names = {"echo.test": ["127.0.0.1"]}
    with answering() as (target, _), dns(names) as server_of_names:
        resolver = server_of_names.resolver()
        with proxy(Policy(rules=EVERYWHERE, resolver=resolver)) as (server, witness):
            with UdpClient.associate(server) as client:
                for host in ("echo.test", "127.0.0.1"):
                    octets = b"\0\0\0\3" + bytes((len(host),)) + host.encode()
                    client.send_raw(octets + struct.pack("!H", target[1]) + b"hello")
                    # "real source": the address, for names as well
                    assert client.receive() == (target, b"hello")
            assert witness.of(RequestJudged)[1].destination == Address("echo.test", target[1])
        resolver.close()


def test_ipv6_targets_and_ipv6_clients() -> None:
    with answering(host="::1") as (target, _), answering() as (target_v4, _):
        with proxy() as (server, _), UdpClient.associate(server) as client:
            assert client.ask(b"four to six", target) == b"four to six"
            assert client.ask(b"four to four", target_v4) == b"four to four"
        policy = Policy(rules=EVERYWHERE)
        with Server([("::1", 0)], policy) as server:
            control = gevent.socket.socket(socket.AF_INET6)
            control.connect(server.addresses[0][:2])
            control.sendall(b"\x05\x01\x00" + request(3, "::", 0))
            assert recv_exactly(control, 2) == b"\x05\x00"
            bound = read_reply(control).bound
            assert bound.host == ip_address("::1")
            with UdpClient(control, (str(bound.host), bound.port), "::1") as client:
                assert client.ask(b"six to six", target) == b"six to six"
                assert client.ask(b"six to four", target_v4) == b"six to four"


def test_an_ipv4_client_of_a_dual_stack_listener_gets_an_ipv4_relay() -> None:
    with answering() as (target, _), Server([("::", 0)], udp(), allow_open=True) as server:
        control = gevent.socket.socket()
        control.connect(("127.0.0.1", server.addresses[0][1]))
        control.sendall(b"\x05\x01\x00" + request(3, "0.0.0.0", 0))
        assert recv_exactly(control, 2) == b"\x05\x00"
        bound = read_reply(control).bound
        assert bound.host == ip_address("127.0.0.1")
        with UdpClient(control, (str(bound.host), bound.port), "127.0.0.1") as client:
            assert client.ask(b"hello", target) == b"hello"


def test_a_client_of_a_unix_socket_gets_a_relay_on_loopback(tmp_path: Path) -> None:
    path = str(tmp_path / "socks")
    listening = gevent.socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    with answering() as (target, _), Server([listening], udp()) as server:
        control = gevent.socket.socket(socket.AF_UNIX)
        control.connect(path)
        control.sendall(b"\x05\x01\x00" + request(3, "0.0.0.0", 0))
        assert recv_exactly(control, 2) == b"\x05\x00"
        bound = read_reply(control).bound
        with UdpClient(control, (str(bound.host), bound.port), "127.0.0.1") as client:
            assert client.ask(b"hello", target) == b"hello"
        assert len(server.addresses) == 1


def test_the_relay_takes_a_port_of_the_range_and_tells_the_advertised_address() -> None:
    port = unused_port()
    policy = udp(ports=range(port, port + 1)).replace(advertise=(ip_address("192.0.2.7"),))
    with (
        answering() as (target, _),
        proxy(policy) as (server, witness),
        UdpClient.associate(server) as client,
    ):
        assert client.relay == ("192.0.2.7", port)
        associated = witness.wait(UdpAssociated)
        assert associated.relay == Address("127.0.0.1", port)
        client.relay = ("127.0.0.1", port)
        assert client.ask(b"hello", target) == b"hello"
        # One port, and it is taken.
        assert refused(server) == Rep.GENERAL_FAILURE
        reason = witness.wait(RequestRefused).reason
        assert f"the ports {port} to {port} cannot be had" in reason


def test_the_outgoing_address_is_the_source_of_datagrams() -> None:
    policy = udp().replace(dialer=DirectDialer((ip_address("127.0.0.9"),)))
    with answering() as (target, clients), proxy(policy) as (server, _):
        with UdpClient.associate(server) as client:
            assert client.ask(b"hello", target) == b"hello"
        assert clients[0][0] == "127.0.0.9"


def test_the_other_family_is_left_out_when_the_operator_says_so() -> None:
    policy = udp().replace(dialer=DirectDialer((), "ipv4"))
    with answering(host="::1") as (six, _), answering() as (four, _), proxy(policy) as (server, w):
        with UdpClient.associate(server) as client:
            client.send(b"hello", six)
            assert client.ask(b"hello", four) == b"hello"
        assert ended(w).unresolved == 1


# --- who the client is ------------------------------------------------------------------------


def test_a_stranger_is_counted_and_never_answered() -> None:
    heard: list[bytes] = []
    with answering(lambda data: heard.append(data) or data) as (target, _):
        with proxy() as (server, witness), UdpClient.associate(server) as client:
            # Another address, before and after the client has spoken; another port, after.
            elsewhere, next_door = udp_socket("127.0.0.2"), udp_socket()
            elsewhere.sendto(header(*target) + b"stolen", client.relay)
            assert client.ask(b"mine", target) == b"mine"
            for stranger in (elsewhere, next_door):
                stranger.sendto(header(*target) + b"stolen", client.relay)
            assert client.ask(b"still mine", target) == b"still mine"
            for stranger in (elsewhere, next_door):
                with pytest.raises(BlockingIOError):
                    stranger._sock.recvfrom(100, socket.MSG_DONTWAIT)
                stranger.close()
            client.close()
            assert ended(witness).strangers == 3
        assert heard == [b"mine", b"still mine"]


def test_octets_that_are_no_datagram_do_not_lock_the_port() -> None:
    with answering() as (target, _), proxy() as (server, witness):
        with UdpClient.associate(server) as client:
            first = udp_socket()
            for junk in (
                b"",
                b"\0\0\0",
                b"\0\0\0\1\x7f\0",
                b"\1\0" + header(*target)[2:],
                b"x" * 99,
            ):
                first.sendto(junk, client.relay)
            assert client.ask(b"mine", target) == b"mine"
            client.send_raw(header(*target)[:-1])
            assert client.ask(b"again", target) == b"again"
            first.close()
        end = ended(witness)
        assert (end.malformed, end.strangers) == (6, 0)


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
def test_a_claimed_port_is_the_only_one(host: str) -> None:
    with answering() as (target, _), proxy() as (server, witness):
        mine = udp_socket()
        with UdpClient.associate(server, (host, address(mine)[1])) as client:
            client.send(b"from another port", target)  # first, and still not the client
            client.sock.close()
            client.sock = mine
            assert client.ask(b"mine", target) == b"mine"
        assert ended(witness).strangers == 1


@pytest.mark.parametrize("hint", ["127.0.0.2", "198.51.100.7", "victim.test", "0", "::1"])
def test_a_wrong_hint_is_as_good_as_none_and_the_victim_hears_nothing(hint: str) -> None:
    with answering() as (target, _), proxy() as (server, _):
        victim = udp_socket("127.0.0.2")
        with UdpClient.associate(server, (hint, address(victim)[1])) as client:
            assert client.ask(b"hello", target) == b"hello"
            with pytest.raises(BlockingIOError):
                victim._sock.recvfrom(100, socket.MSG_DONTWAIT)
        victim.close()


def test_what_a_hint_is_worth() -> None:
    client = ip_address("192.0.2.7")
    for host, port in (("0.0.0.0", 9), ("::", 9), ("192.0.2.7", 9), ("::ffff:192.0.2.7", 9)):
        assert hinted_port(Address(host, port), client) == 9
    for host, port in (("192.0.2.8", 9), ("name.test", 9), ("192.0.2.7", 0), ("2001:db8::1", 9)):
        assert hinted_port(Address(host, port), client) == 0


# --- who may answer ---------------------------------------------------------------------------


def test_hosts_never_asked_get_nothing_through() -> None:
    with answering() as (target, clients), proxy() as (server, witness):
        with UdpClient.associate(server) as client:
            assert client.ask(b"hello", target) == b"hello"
            other_port, other_host = udp_socket(), udp_socket("127.0.0.2")
            other_host.sendto(b"unasked", ("127.0.0.1", clients[0][1]))
            assert client.ask(b"hello", target) == b"hello"
            # The same host from another port: STUN and DNS servers do so.
            other_port.sendto(b"from elsewhere", ("127.0.0.1", clients[0][1]))
            assert client.receive() == (address(other_port), b"from elsewhere")
            other_port.close()
            other_host.close()
        assert ended(witness).unasked == 1


def test_an_option_lets_any_host_write() -> None:
    with answering() as (target, clients), proxy(udp(from_any=True)) as (server, witness):
        with UdpClient.associate(server) as client:
            assert client.ask(b"hello", target) == b"hello"
            other = udp_socket("127.0.0.2")
            other.sendto(b"hello you", ("127.0.0.1", clients[0][1]))
            assert client.receive() == (address(other), b"hello you")
            other.close()
        assert ended(witness).unasked == 0


# --- rules and the guard ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "deny command udp\nallow to everywhere\n",
        "allow command connect,bind to everywhere\n",
        "allow from 192.0.2.0/24 to everywhere\n",
        "allow user alice to everywhere\n",
        "",
    ],
)
def test_a_client_without_any_right_to_udp_is_refused_at_the_request(text: str) -> None:
    with proxy(rules(text)) as (server, witness):
        assert refused(server) == Rep.NOT_ALLOWED
        event = witness.wait(RequestRefused)
        assert event.rule
        assert not witness.of(UdpAssociated)


def test_each_datagrams_destination_is_judged() -> None:
    with answering() as (target, _), answering() as (other, _):
        text = f"deny command udp port {other[1]}\nallow command udp to loopback\n"
        with proxy(rules(text)) as (server, witness):
            with UdpClient.associate(server) as client:
                for _ in range(3):
                    client.send(b"denied", other)
                assert client.ask(b"allowed", target) == b"allowed"
                client.send(b"denied", ("192.0.2.1", 53))
                assert client.ask(b"allowed", target) == b"allowed"
            assert ended(witness).denied == 4
            told = witness.of(DestinationRefused)
            assert [event.destination for event in told] == [
                Address(*other),
                Address("192.0.2.1", 53),
            ]
            assert told[0].rule == f"rules:1: deny command udp port {other[1]}"


GUARDED = [
    "127.0.0.1",
    "10.0.0.1",
    "169.254.169.254",
    "224.0.0.251",
    "255.255.255.255",
    "0.0.0.0",
    "::1",
    "::ffff:127.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "fe80::1",
    "ff02::1",
]


def test_the_guard_is_in_force_for_datagrams() -> None:
    heard: list[bytes] = []
    with answering(lambda data: heard.append(data)) as (target, _):
        names = {"inside.test": ["127.0.0.1"]}
        with dns(names) as server_of_names:
            resolver = server_of_names.resolver()
            policy = rules("allow to any\n").replace(resolver=resolver)
            with proxy(policy) as (server, witness):
                with UdpClient.associate(server) as client:
                    for host in (*GUARDED, "inside.test"):
                        client.send(b"let me in", (host, target[1]))
                    wait_for(lambda: len(witness.of(DestinationRefused)) == len(GUARDED) + 1)
                assert ended(witness).denied == len(GUARDED) + 1
            resolver.close()
        assert heard == []


def test_a_name_is_resolved_once_and_what_it_stood_for_is_pinned() -> None:
    answers = [("127.0.0.1",), ("127.0.0.2",)]

    class Rebinding:
        asked = 0

        def resolve(self, name: str) -> tuple[IPAddress, ...]:
            self.asked += 1
            return tuple(map(ip_address, answers[min(self.asked, len(answers)) - 1]))

    resolver = Rebinding()
    with answering() as (target, _):
        policy = Policy(rules=EVERYWHERE, resolver=resolver)
        with proxy(policy) as (server, _), UdpClient.associate(server) as client:
            for _ in range(3):
                client.send(b"hello", ("rebound.test", target[1]))
                assert client.receive() == (target, b"hello")
            client.send(b"hello", ("rebound.test", target[1] ^ 1))
            client.send(b"hello", ("REBOUND.test", target[1]))
            assert client.receive() == (target, b"hello")
        assert resolver.asked == 1


def test_pinned_names_are_bounded_and_failures_are_not_kept() -> None:
    class Names:
        def __init__(self) -> None:
            self.asked: list[str] = []

        def resolve(self, name: str) -> tuple[IPAddress, ...]:
            self.asked.append(name)
            if len(self.asked) == 1:
                raise HostUnreachable("not yet")
            return (ip_address("192.0.2.1"),)

    names = Names()
    pinned = Pinned(names)
    with pytest.raises(HostUnreachable):
        pinned.resolve("a")
    for name in ("a", "a", *map(str, range(300)), "299", "a"):
        assert pinned.resolve(name) == (ip_address("192.0.2.1"),)
    assert names.asked.count("a") == 3
    assert names.asked.count("299") == 1


def test_the_server_and_its_relays_are_no_destination() -> None:
    with (
        answering() as (target, _),
        proxy() as (server, witness),
        UdpClient.associate(server) as client,
        UdpClient.associate(server) as other,
    ):
        client.send(b"loop", server.addresses[0])
        client.send(header(*target) + b"loop", other.relay)
        assert client.ask(b"hello", target) == b"hello"
        told = witness.of(DestinationRefused)
        assert [event.rule for event in told] == ["loop", "loop"]
        # The other association was not locked by ours.
        assert other.ask(b"hello", target) == b"hello"


def test_refused_destinations_have_an_event_each_up_to_a_bound() -> None:
    with (
        answering() as (target, _),
        proxy(rules(f"allow to loopback port {target[1]}\n")) as (server, witness),
    ):
        with UdpClient.associate(server) as client:
            for port in range(1, 41):
                client.send(b"no", ("192.0.2.1", port))
            assert client.ask(b"hello", target) == b"hello"
        assert ended(witness).denied == 40
        assert len(witness.of(DestinationRefused)) == 16


def test_a_rule_in_python_that_fails_ends_the_session_and_says_so() -> None:
    def faulty(question: Question) -> Verdict:
        if question.destination.port == 99:
            raise ZeroDivisionError("a bug in a rule")
        return Verdict(True, "python", question.addresses)

    for destination in (("127.0.0.1", 99), ("localhost", 99)):
        with (
            proxy(Policy(rules=RuleSet([faulty]))) as (server, witness),
            UdpClient.associate(server) as client,
        ):
            client.send(b"hello", destination)
            assert "a bug in a rule" in witness.wait(SessionCrashed).error
            assert witness.wait(SessionClosed).reason == "crashed"


def test_another_dialer_is_not_passed_by() -> None:
    class Detour:
        def open_connection(self, to: Address, addresses: tuple[IPAddress, ...]) -> Stream:
            raise HostUnreachable("nowhere")

    with proxy(Policy(rules=EVERYWHERE, dialer=Detour())) as (server, _):
        assert refused(server) == Rep.COMMAND_NOT_SUPPORTED


def test_datagrams_never_pass_an_upstream_by() -> None:
    detour = {"office": DirectDialer()}
    with answering() as (target, _):
        policy = Policy(rules=EVERYWHERE, dialers=detour, via=("office",))
        with proxy(policy) as (server, _):
            assert refused(server) == Rep.COMMAND_NOT_SUPPORTED
        text = f"allow to loopback port {target[1]}\nallow to everywhere via office\n"
        policy = Policy(rules=RuleSet.parse(text, upstreams=("office",)), dialers=detour)
        with answering() as (other, _), proxy(policy) as (server, witness):
            with UdpClient.associate(server) as client:
                client.send(b"no", other)
                client.send(b"no", ("passed.test", 9))
                assert client.ask(b"hello", target) == b"hello"
                wait_for(lambda: len(witness.of(DestinationRefused)) == 2)
            assert ended(witness).denied == 2


# --- names that take their time ---------------------------------------------------------------


class Slow:
    """A resolver that answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.go = gevent.event.Event()

    def resolve(self, name: str) -> tuple[IPAddress, ...]:
        self.asked.append(name)
        self.go.wait()
        if name.startswith("no"):
            raise HostUnreachable(f"{name} has no address")
        return (ip_address("127.0.0.1"),)


def test_a_look_up_holds_up_nothing_but_its_own_datagrams_and_their_order_stays() -> None:
    slow = Slow()
    with answering() as (target, _), proxy(Policy(rules=EVERYWHERE, resolver=slow)) as (server, w):
        with UdpClient.associate(server) as client, UdpClient.associate(server) as other:
            for number in range(20):  # of which 16 may wait
                client.send(b"%d" % number, ("slow.test", target[1]))
            assert client.ask(b"meanwhile", target) == b"meanwhile"
            assert other.ask(b"meanwhile", target) == b"meanwhile"
            slow.go.set()
            assert [client.receive()[1] for _ in range(16)] == [b"%d" % n for n in range(16)]
            other.close()
            client.close()
            w.wait(UdpEnded, 2)
        assert sum(event.overflow for event in w.of(UdpEnded)) == 4
        assert slow.asked == ["slow.test"]


def test_look_ups_of_an_association_are_bounded_in_number_and_octets() -> None:
    slow = Slow()
    with answering() as (target, _), proxy(Policy(rules=EVERYWHERE, resolver=slow)) as (server, w):
        with UdpClient.associate(server) as client:
            for number in range(20):
                client.send(b"x", (f"name-{number}.test", target[1]))
            assert client.ask(b"meanwhile", target) == b"meanwhile"
            assert len(slow.asked) == 8
            for _ in range(3):  # 131,072 octets may wait in all
                client.send(bytes(60_000), ("name-0.test", target[1]))
                assert client.ask(b"meanwhile", target) == b"meanwhile"
        # It ends with look-ups under way, and the fixture sees nothing left of them.
        assert ended(w).overflow == 12 + 1
        slow.go.set()


def test_a_name_without_an_address_is_asked_for_anew_only_after_a_while() -> None:
    slow = Slow()
    slow.go.set()
    with answering() as (target, _), proxy(Policy(rules=EVERYWHERE, resolver=slow)) as (server, w):
        with UdpClient.associate(server) as client:
            for _ in range(3):
                client.send(b"x", ("no.test", target[1]))
                assert client.ask(b"meanwhile", target) == b"meanwhile"
        assert ended(w).unresolved == 3
        assert slow.asked == ["no.test"]


# --- fragments --------------------------------------------------------------------------------


def test_fragments_in_order_become_one_datagram() -> None:
    with answering() as (target, _), proxy() as (server, witness):
        with UdpClient.associate(server) as client:
            for frag, data in ((1, b"one "), (2, b"two "), (0x83, b"three")):
                client.send(data, target, frag)
            assert client.receive() == (target, b"one two three")
            client.send(b"alone", target, 0x81)
            assert client.receive() == (target, b"alone")
        end = ended(witness)
        assert (end.fragments, end.datagrams_up) == (0, 2)


def test_fragments_out_of_order_are_dropped_and_what_follows_is_whole() -> None:
    with answering() as (target, _), proxy() as (server, witness):
        with UdpClient.associate(server) as client:
            for frag in (1, 3, 2, 0x84):  # out of order
                client.send(b"x", target, frag)
            client.send(b"x", target, 1)  # abandoned for the datagram that follows
            assert client.ask(b"whole", target) == b"whole"
            client.send(b"x", target, 0x82)
            assert client.ask(b"whole", target) == b"whole"
        assert ended(witness).fragments == 6


def test_fragments_are_dropped_when_the_operator_says_so() -> None:
    with answering() as (target, _), proxy(udp(reassemble=False)) as (server, witness):
        with UdpClient.associate(server) as client:
            for frag in (1, 0x82, 0x81):
                client.send(b"x", target, frag)
            assert client.ask(b"whole", target) == b"whole"
        assert ended(witness).fragments == 3


# --- its life ---------------------------------------------------------------------------------


def test_it_ends_with_its_connection_however_that_ends() -> None:
    with answering() as (target, _), proxy() as (server, witness):
        for number, end in enumerate((gevent.socket.socket.close, reset), 1):
            client = UdpClient.associate(server)
            assert client.ask(b"hello", target) == b"hello"
            end(client.control)
            closed = witness.wait(SessionClosed, number)
            assert closed.reason == ("closed", "reset_by_client")[number - 1]
            udp_socket_at(client.relay).close()  # the port is free again
            client.close()
        half = UdpClient.associate(server)
        half.control.shutdown(socket.SHUT_WR)
        assert recv_all(half.control) == b""
        half.close()


def udp_socket_at(where: tuple[str, int]) -> gevent.socket.socket:
    """A socket bound to an address and a port."""
    sock = gevent.socket.socket(type=socket.SOCK_DGRAM)
    sock.bind(where)
    return sock


def test_octets_on_the_connection_are_ignored_up_to_a_bound() -> None:
    with (
        answering() as (target, _),
        proxy() as (server, witness),
        UdpClient.associate(server) as client,
    ):
        client.control.sendall(b"are you there?" * 100)
        assert client.ask(b"hello", target) == b"hello"
        with gevent.Timeout(5, False):
            try:
                while True:
                    client.control.sendall(bytes(16384))
            except OSError:
                pass
        assert witness.wait(SessionClosed).reason.startswith("broken_by_client: it keeps")


def test_it_ends_when_no_datagram_passes_and_not_while_any_does() -> None:
    timeouts = Timeouts(udp=0.3, idle=0.1, half_close=0.1)
    with answering() as (target, _), proxy(timeouts=timeouts) as (server, witness):
        with UdpClient.associate(server) as client:
            began = time.monotonic()
            while time.monotonic() - began < 0.6:
                assert client.ask(b"", target) == b""  # no octets, and still a sign of life
                gevent.sleep(0.05)
            assert not witness.of(SessionClosed)
            quiet = time.monotonic()
            stranger = udp_socket()
            while not witness.of(SessionClosed):
                stranger.sendto(header(*target), client.relay)  # these are none
                gevent.sleep(0.02)
            assert 0.25 < time.monotonic() - quiet < 1.0
            assert recv_all(client.control) == b""
            stranger.close()
        assert witness.wait(SessionClosed).reason == "udp_idle"


def test_a_cut_ends_it_at_once_whatever_it_does() -> None:
    slow = Slow()
    with answering() as (target, _), proxy(Policy(rules=EVERYWHERE, resolver=slow)) as (server, w):
        busy, silent = UdpClient.associate(server), UdpClient.associate(server)
        assert busy.ask(b"hello", target) == b"hello"
        busy.send(b"x", ("slow.test", 9))
        wait_for(lambda: slow.asked)
        for session in list(server.sessions.values()):
            server.cut(session)
        assert {w.wait(SessionClosed, n).reason for n in (1, 2)} == {"killed"}
        assert len(w.of(UdpEnded)) == 2
        assert recv_all(busy.control) == recv_all(silent.control) == b""
        busy.close()
        silent.close()


def test_a_client_that_leaves_before_the_reply() -> None:
    with proxy() as (server, witness):
        for _ in range(20):
            sock = dial(server)
            sock.sendall(b"\x05\x01\x00" + request(3, "0.0.0.0", 0))
            reset(sock)
        wait_for(lambda: len(witness.of(SessionClosed)) == 20)
        assert not witness.of(SessionCrashed)


# --- ceilings ---------------------------------------------------------------------------------


def test_ceilings_of_all_and_of_one_user_outlive_a_reload() -> None:
    policy = udp(max_associations=3, max_per_user=2)
    with proxy(policy) as (server, witness):
        mine = [UdpClient.associate(server) for _ in range(2)]
        assert refused(server) == Rep.GENERAL_FAILURE
        assert witness.wait(LimitReached) == LimitReached(
            "udp_associations_per_user", 2, "host 127.0.0.1"
        )
        server.policy = udp(max_associations=2, max_per_user=9)
        assert refused(server) == Rep.GENERAL_FAILURE
        assert witness.wait(LimitReached, 2) == LimitReached("udp_associations", 2)
        mine.pop().close()
        witness.wait(UdpEnded)
        mine.append(UdpClient.associate(server))
        for client in mine:
            client.close()


def test_users_are_counted_by_their_names_where_they_have_any() -> None:
    class Claims:
        method = 0x80

        def authenticate(self, stream: Stream, peer: Address) -> Grant:
            return Grant(stream, stream.recv(1).decode())

    policy = udp(max_per_user=1).replace(authenticators=(Claims(), NoAuth()))
    with proxy(policy) as (server, _):
        held = []
        for name, rep in (("a", 0), ("b", 0), ("a", 1), ("", 0), ("", 1)):
            sock = dial(server)
            if name:
                sock.sendall(b"\x05\x01\x80" + name.encode())
            else:
                sock.sendall(b"\x05\x01\x00")
            sock.sendall(request(3, "0.0.0.0", 0))
            assert recv_exactly(sock, 2) == (b"\x05\x80" if name else b"\x05\x00")
            assert read_reply(sock).rep == rep
            held.append(sock)
        for sock in held:
            sock.close()


def test_options_become_what_the_policy_says_of_udp() -> None:
    assert build_policy(load_settings([], {}).settings).udp == Udp()
    options = "--udp-ports=41000-41999 --udp-replies=any --udp-fragments=drop --timeout-udp=60"
    options += " --max-udp=5 --max-udp-per-user=2"
    policy = build_policy(load_settings(options.split(), {}).settings)
    assert policy.timeouts.udp == 60
    assert policy.udp == Udp(
        ports=range(41000, 42000),
        from_any=True,
        reassemble=False,
        max_associations=5,
        max_per_user=2,
    )


# --- a method that encapsulates ---------------------------------------------------------------


class Turning:
    """A seal that turns every octet over and adds a mark."""

    def wrap(self, datagram: bytes, /) -> bytes:
        if len(datagram) > 1000:
            raise ProtocolError("too long")
        return b"\xaa" + bytes(octet ^ 0xFF for octet in datagram)

    def unwrap(self, datagram: bytes, /) -> bytes:
        if datagram[:1] != b"\xaa":
            raise ProtocolError("not sealed")
        return bytes(octet ^ 0xFF for octet in datagram[1:])

    def room(self, size: int, /) -> int:
        return min(size - 1, 1000)


def test_datagrams_are_encapsulated_where_the_method_does() -> None:
    seal = Turning()

    class Sealing:
        method = 0x80

        def authenticate(self, stream: Stream, peer: Address) -> Grant:
            return Grant(stream, "alice", seal=seal)

    policy = Policy(rules=EVERYWHERE, authenticators=(Sealing(),))
    with answering(lambda data: data * 2) as (target, _), proxy(policy) as (server, witness):
        control = dial(server)
        control.sendall(b"\x05\x01\x80" + request(3, "0.0.0.0", 0))
        assert recv_exactly(control, 2) == b"\x05\x80"
        bound = read_reply(control).bound
        with UdpClient(control, (str(bound.host), bound.port), "127.0.0.1") as client:
            first = udp_socket()  # it has the right address, and not the key
            first.sendto(header(*target) + b"in the clear", client.relay)
            client.send_raw(seal.wrap(header(*target) + b"sealed"))
            client.send_raw(seal.wrap(header(*target) + bytes(900)))  # doubled, it is too long
            datagram, _ = client.sock.recvfrom(65536)
            assert seal.unwrap(datagram) == header(*target) + b"sealedsealed"
            first.close()
            wait_for(lambda: next(iter(server.sessions.values())).meter.up == 906)
        end = ended(witness)
        assert (end.malformed, end.strangers, end.too_long) == (1, 0, 1)


# --- many, and floods -------------------------------------------------------------------------


def test_ten_thousand_datagrams_paced_by_a_window_all_come_back() -> None:
    total, window = 10_000, 32
    with answering() as (target, _), proxy() as (server, _), UdpClient.associate(server) as client:
        start = header(*target)
        came = bytearray(total)
        send, receive = client.sock.sendto, client.sock.recvfrom
        for number in range(total + window):
            if number < total:
                send(start + number.to_bytes(4), client.relay)
            if number >= window:
                datagram, _ = receive(100)
                came[int.from_bytes(datagram[-4:])] += 1
        assert came == b"\1" * total


def test_a_flood_of_destinations_and_strangers_leaves_memory_bounded() -> None:
    def flood(numbers: range) -> None:
        for number in numbers:
            client.send(b"", (f"127.1.{number >> 8}.{number & 255}", 1))
            stranger.sendto(header(*target), client.relay)
            if not number % 16:
                gevent.sleep(0.0005)  # sleep(0) would not let sockets have their turn
        assert client.ask(b"hello", target) == b"hello"

    policy = rules("allow to 127.0.0.0/8\n")
    with answering() as (target, _), proxy(policy) as (server, witness):
        witness.clear = witness.append = lambda *_: None  # type: ignore[method-assign]
        with UdpClient.associate(server) as client:
            assert client.ask(b"hello", target) == b"hello"
            stranger = udp_socket()
            flood(range(1500))
            tracemalloc.start()
            try:
                before, _ = tracemalloc.get_traced_memory()
                flood(range(1500, 9500))
                after, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            stranger.close()
        # Remembered without a bound, 8,000 destinations take some 4 MB.
        assert after - before < 500_000


def test_others_are_served_while_one_floods() -> None:
    with (
        answering() as (target, _),
        proxy() as (server, _),
        UdpClient.associate(server) as noisy,
        UdpClient.associate(server) as client,
    ):
        sink = udp_socket()
        flood = header(*address(sink)) + b"x" * 100

        def pour() -> None:
            while True:
                for _ in range(100):
                    noisy.sock.sendto(flood, noisy.relay)
                gevent.sleep(0.001)

        pouring = gevent.spawn(pour)
        waits = []
        for _ in range(100):
            began = time.monotonic()
            assert client.ask(b"ping", target) == b"ping"
            waits.append(time.monotonic() - began)
        pouring.kill()
        sink.close()
        assert sorted(waits)[98] < 0.5
