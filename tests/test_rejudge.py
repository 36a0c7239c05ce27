"""``--rejudge``: what new rules would not let through ends at a reload, and nothing else does."""

from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import gevent
import gevent.event
import gevent.socket
import pytest

from geosocks.codes import Cmd, Method
from geosocks.events import SessionClosed
from geosocks.policy import Policy, Timeouts
from geosocks.relay.direct import DirectDialer
from geosocks.rules import RuleSet
from geosocks.server import Server
from geosocks.session.again import is_still_allowed
from geosocks.wire.socks5 import Address, IPAddress
from geosocks.worker.reloading import cut_no_longer_allowed
from tests.support.net import echo, recv_exactly, serving, wait_for
from tests.support.servers import EVERYWHERE, dial, greeted, proxy, read_reply, request

pytestmark = pytest.mark.usefixtures("no_leaks")


class Names:
    """A resolver that is a dict, and counts."""

    def __init__(self, **names: str) -> None:
        self.names = {name.replace("_", "."): ip_address(text) for name, text in names.items()}
        self.asked = 0

    def resolve(self, name: str) -> tuple[IPAddress, ...]:
        """Look ``name`` up."""
        self.asked += 1
        return (self.names[name],)


def open_session(server: Server, host: str, port: int, cmd: int = 1) -> gevent.socket.socket:
    """A session that has had its (first) reply."""
    sock = greeted(server)
    sock.sendall(request(cmd, host, port))
    assert read_reply(sock).rep == 0
    return sock


def put_in_force(server: Server, rules: str, **changes: Any) -> None:
    """What a reload with --rejudge does."""
    server.policy = server.policy.replace(rules=RuleSet.parse(rules), **changes)
    cut_no_longer_allowed(server)


def is_alive(sock: gevent.socket.socket) -> bool:
    """Whether its octets come back."""
    sock.sendall(b"hello")
    return recv_exactly(sock, 5) == b"hello"


REST = "allow to everywhere\n"

RULES = [
    pytest.param(REST, set(), id="nothing-denied"),
    pytest.param("deny to a.test\n" + REST, {"name"}, id="a-name"),
    pytest.param("deny to 127.0.0.1\n" + REST, {"name", "address"}, id="what-a-name-led-to"),
    pytest.param("deny command udp\n" + REST, {"udp"}, id="a-command"),
    pytest.param("deny command bind\n" + REST, {"bind"}, id="another-command"),
    pytest.param("allow command connect to 127.0.0.0/8\n", {"udp", "bind"}, id="only-connect"),
    pytest.param("deny from loopback\n", {"name", "address", "udp", "bind"}, id="the-client"),
    pytest.param("allow method gssapi to any\n", {"name", "address", "udp", "bind"}, id="method"),
]


@pytest.mark.parametrize(("rules", "cut"), RULES)
def test_what_is_no_longer_allowed_ends_and_nothing_else(rules: str, cut: set[str]) -> None:
    names = Names(a_test="127.0.0.1")
    policy = Policy(rules=EVERYWHERE, resolver=names)
    with serving(echo) as to, proxy(policy) as (server, witness):
        socks = {
            "address": open_session(server, *to),
            "name": open_session(server, "a.test", to[1]),
            "udp": open_session(server, "0.0.0.0", 0, Cmd.UDP_ASSOCIATE),
            "bind": open_session(server, "0.0.0.0", 0, Cmd.BIND),
        }
        number = dict(zip(socks, server.sessions, strict=True))
        assert names.asked == 1
        put_in_force(server, rules)
        wait_for(lambda: len(witness.of(SessionClosed)) == len(cut))
        gevent.sleep(0)
        closed = {event.session: event.reason for event in witness.of(SessionClosed)}
        assert closed == {number[kind]: "no_longer_allowed" for kind in cut}
        for kind in {"address", "name"} - cut:
            assert is_alive(socks[kind])
        assert names.asked == 1  # no name was looked up anew
        for sock in socks.values():
            sock.close()


def test_the_address_that_was_dialled_is_judged_not_where_the_name_leads_now() -> None:
    policy = Policy(rules=EVERYWHERE, resolver=Names(a_test="127.0.0.1"))
    with serving(echo) as to, proxy(policy) as (server, witness):
        sock = open_session(server, "a.test", to[1])
        put_in_force(server, "allow to 127.0.0.0/8\n", resolver=Names(a_test="192.0.2.1"))
        assert is_alive(sock)
        put_in_force(server, "allow to 192.0.2.0/24\n")
        assert witness.wait(SessionClosed).reason == "no_longer_allowed"
        sock.close()


def test_a_bind_is_judged_by_the_peer_that_came() -> None:
    with proxy() as (server, witness):
        sock = greeted(server)
        sock.sendall(request(Cmd.BIND, "0.0.0.0", 0))
        bound = read_reply(sock).bound
        with gevent.socket.socket() as peer:
            peer.connect(("127.0.0.1", bound.port))
            assert read_reply(sock).rep == 0
            put_in_force(server, "allow command bind to 127.0.0.0/8\n")
            peer.sendall(b"hello")
            assert recv_exactly(sock, 5) == b"hello"
            put_in_force(server, "allow command bind to 192.0.2.0/24\n")
            assert witness.wait(SessionClosed).reason == "no_longer_allowed"
        sock.close()


def test_a_bind_that_waits_is_for_the_new_rules_to_judge() -> None:
    with proxy() as (server, witness):
        sock = greeted(server)
        sock.sendall(request(Cmd.BIND, "0.0.0.0", 0))
        bound = read_reply(sock).bound
        put_in_force(server, "allow command bind to 192.0.2.0/24\n")
        with gevent.socket.socket() as peer:
            peer.connect(("127.0.0.1", bound.port))
            with pytest.raises(ConnectionResetError):
                peer.recv(1)  # a stranger now
        sock.close()
        assert witness.wait(SessionClosed).reason == "given_up"


def test_who_has_asked_for_nothing_yet_is_judged_by_the_new_rules() -> None:
    with serving(echo) as to, proxy() as (server, witness):
        silent, polite = dial(server), greeted(server)
        wait_for(lambda: len(server.sessions) == 2)
        put_in_force(server, "deny from any\n")
        silent.sendall(b"\x05\x01\x00")
        assert recv_exactly(silent, 2) == b"\x05\x00"
        for sock in (silent, polite):
            sock.sendall(request(1, *to))
            assert read_reply(sock).rep == 2
            sock.close()
        wait_for(lambda: len(witness.of(SessionClosed)) == 2)


class SlowDialer(DirectDialer):
    """Dials once it may."""

    may: gevent.event.Event

    def open_connection(self, to: Address, addresses: tuple[IPAddress, ...]) -> Any:
        """As the direct one, later."""
        SlowDialer.may.wait()
        return super().open_connection(to, addresses)


def test_who_is_on_the_way_is_judged_when_it_is_there() -> None:
    SlowDialer.may = gevent.event.Event()
    policy = Policy(
        rules=EVERYWHERE,
        resolver=Names(a_test="127.0.0.1"),
        dialer=SlowDialer(),
        timeouts=Timeouts(connect=0.3),
    )
    with serving(echo) as to, proxy(policy) as (server, witness):
        sock = greeted(server)
        sock.sendall(request(1, "a.test", to[1]))
        wait_for(lambda: [one.destination for one in server.sessions.values()] != [None])
        gevent.sleep(0)
        put_in_force(server, "allow to 192.0.2.0/24\n")
        SlowDialer.may.set()
        assert read_reply(sock).rep == 0  # where a.test leads was nobody's knowledge yet
        assert witness.wait(SessionClosed).reason == "no_longer_allowed"
        sock.close()


# --- without a server -------------------------------------------------------------------------


def through_upstream(**changes: Any) -> Any:
    """A session that an upstream has taken to a name."""
    facts = {
        "command": Cmd.CONNECT,
        "destination": Address("www.example.org", 443),
        "dialled": Address(ip_address("10.0.0.1"), 1080),
        "upstream": "office",
        "target": object(),
        "peer": Address(ip_address("127.0.0.1"), 4711),
        "identity": "alice",
        "method": Method.USERNAME,
        "listener": "inside",
    }
    return SimpleNamespace(**(facts | changes))


@pytest.mark.parametrize(
    ("rules", "allowed"),
    [
        pytest.param("allow user alice to *.example.org via office\n", True, id="as-before"),
        pytest.param("allow user alice to *.example.com via office\n", False, id="another-name"),
        pytest.param("allow user bob to any via office\n", False, id="another-user"),
        pytest.param("deny listener inside\nallow to any via office\n", False, id="listener"),
        # The upstream's own address is not what the client asked for.
        pytest.param("deny to 10.0.0.0/8\nallow to any via office\n", True, id="not-the-upstream"),
        # Where the name leads is known to the upstream only: not known is not denied.
        pytest.param("allow to 192.0.2.0/24\n", True, id="unknowable"),
    ],
)
def test_a_session_of_an_upstream_is_judged_by_its_name(rules: str, allowed: bool) -> None:
    policy = Policy(rules=RuleSet.parse(rules, upstreams=["office"]))
    assert is_still_allowed(through_upstream(), policy) is allowed


def test_a_session_without_a_request_is_nobody_s_to_judge() -> None:
    policy = Policy(rules=RuleSet.parse("deny from any\n"))
    assert is_still_allowed(through_upstream(command=None, destination=None), policy)
