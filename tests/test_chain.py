"""Three servers in a row, each a process of its own: laptop agent, gateway with GSSAPI, exit."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gevent.socket
import pytest

from geosocks.client import Client
from geosocks.codes import Rep
from geosocks.errors import RequestFailed, TargetRefused
from geosocks.stream import read_message
from geosocks.wire.socks5 import Address, Datagram, Reply, Request
from tests.support.dns import Dns, dns
from tests.support.kdc import Realm
from tests.support.net import echo, recv_exactly, serving, unused_port, wait_for
from tests.support.programs import Finished, needed, run
from tests.support.proxy import Proxy, running
from tests.support.web import Web, big_digest, web

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.kerberos,
    pytest.mark.usefixtures("no_leaks"),
]

NAME = "www.corp.test"
SIZE = 5_000_000


def folder(parent: Path, name: str) -> Path:
    """A folder for one server's files."""
    made = parent / name
    made.mkdir(exist_ok=True)
    return made


@dataclass
class Chain:
    """The three servers, and the DNS servers that they ask: only the exit's knows a name."""

    agent: Proxy
    gateway: Proxy
    exit: Proxy
    ignorant: Dns
    knowing: Dns
    start_gateway: Callable[[], Proxy]

    def kill_gateway(self) -> None:
        """Kill it as a crash would."""
        self.gateway.process.kill()
        self.gateway.process.wait()
        self.gateway.process.returncode = 0  # it is no failure of the test's

    def connect(self, host: str, port: int) -> Any:
        """Connect through all of them."""
        return Client(self.agent.address).connect((host, port), timeout=15.0)


def ask_only(server: Dns) -> str:
    """The option that makes ``server`` the one to ask."""
    return f"--dns-server=127.0.0.1:{server.server.server_port}"


@contextmanager
def three(tmp_path: Path, realm: Realm, *, nested: bool) -> Iterator[Chain]:
    """Start them.

    ``nested``: the agent runs all handshakes, that with the exit inside that with the gateway;
    otherwise the gateway has the exit for its own upstream.
    """
    kerberos = {"KRB5_CONFIG": realm.env["KRB5_CONFIG"]}
    gssapi = ("--methods=gssapi", f"--keytab={realm.keytab}")
    with ExitStack() as stack:
        use = stack.enter_context
        ignorant, knowing = use(dns({})), use(dns({NAME: ["127.0.0.1"]}))
        exit_options = [ask_only(knowing), *(gssapi if nested else ())]
        exit_ = use(running(folder(tmp_path, "exit"), *exit_options, env=kerberos))
        fixed = unused_port()

        def start_gateway() -> Proxy:
            options = [f"--listen=127.0.0.1:{fixed}", *gssapi, ask_only(ignorant)]
            if not nested:
                options.append(f"--via=socks5://127.0.0.1:{exit_.port}")
            return use(running(folder(tmp_path, "gateway"), *options, env=kerberos))

        gateway = start_gateway()
        to_gateway = f"socks5://localhost:{fixed}?auth=gssapi"
        options = [f"--via={to_gateway}"]
        if nested:
            options = [
                f"--upstream=gateway={to_gateway}",
                f"--via=socks5://localhost:{exit_.port}?auth=gssapi&via=gateway",
            ]
        ticket = kerberos | {"KRB5CCNAME": realm.ticket()}
        agent = use(running(folder(tmp_path, "agent"), ask_only(ignorant), *options, env=ticket))
        yield Chain(agent, gateway, exit_, ignorant, knowing, start_gateway)


def curl(chain: Chain, site: Web, path: str) -> Finished:
    """Get a page by its name, which the proxy is to resolve."""
    proxy = f"socks5h://127.0.0.1:{chain.agent.port}"
    return run((needed("curl"), "-sS", "--proxy", proxy, site.url(path, NAME)))


@pytest.mark.parametrize("nested", [False, True], ids=["each-has-the-next", "gssapi-in-gssapi"])
def test_http_by_curl_and_the_name_is_resolved_at_the_exit_only(
    tmp_path: Path, realm: Realm, nested: bool
) -> None:
    with web() as site, three(tmp_path, realm, nested=nested) as chain:
        done = curl(chain, site, f"/big/{SIZE}")
        assert (done.code, done.err) == (0, "")
        assert hashlib.sha256(done.out).hexdigest() == big_digest(SIZE)
        assert not chain.ignorant.asked
        assert set(chain.knowing.asked) == {NAME}
        where = f"{NAME}:{site.port}"
        for server, upstream in ((chain.agent, "default"), (chain.exit, None)):
            closed = server.wait_event("session_closed")
            assert (closed["destination"], closed.get("upstream")) == (where, upstream)
            assert closed["down"] > SIZE
            assert closed["reason"] == "closed"
        of_gateway = chain.gateway.wait_event("session_closed")
        assert of_gateway["identity"] == f"alice@{realm.name}"
        assert of_gateway["destination"] == (f"localhost:{chain.exit.port}" if nested else where)


def test_what_the_exit_answers_comes_through_to_the_client(tmp_path: Path, realm: Realm) -> None:
    with three(tmp_path, realm, nested=False) as chain:
        with pytest.raises(TargetRefused):
            chain.connect(NAME, unused_port())
        with pytest.raises(RequestFailed) as caught:
            chain.connect("nowhere.test", 80)
        assert caught.value.rep == Rep.HOST_UNREACHABLE
        assert not chain.agent.events("upstream_failed")
        assert not chain.gateway.events("upstream_failed")
        assert not chain.ignorant.asked


@pytest.mark.parametrize("nested", [False, True], ids=["each-has-the-next", "gssapi-in-gssapi"])
def test_datagrams_go_all_the_way_and_names_are_resolved_at_the_exit_only(
    tmp_path: Path, realm: Realm, nested: bool
) -> None:
    with three(tmp_path, realm, nested=nested) as chain:
        target = udp_socket()
        control, relay = asked(chain, 3, "0.0.0.0", 0)
        client = udp_socket()
        client.connect((str(relay.host), relay.port))
        _, port = target.getsockname()
        for size in (0, 1, 1400, 60_000):
            client.send(Datagram(Address(NAME, port), b"?" * size).encode())
            data, source = target.recvfrom(65536)
            assert data == b"?" * size
            target.sendto(b"!" * size, source)
            answer = Datagram.decode(client.recv(65536))
            assert answer == Datagram(Address("127.0.0.1", port), b"!" * size)
        control.close()
        for server in (chain.agent, chain.gateway, chain.exit):
            assert server.wait_event("session_closed")["reason"] == "closed"
        assert chain.agent.events("session_closed")[0]["upstream"] == "default"
        assert not chain.ignorant.asked
        assert set(chain.knowing.asked) == {NAME}
        client.close()
        target.close()


@pytest.mark.parametrize("nested", [False, True], ids=["each-has-the-next", "gssapi-in-gssapi"])
def test_an_association_ends_with_the_middle_one(
    tmp_path: Path, realm: Realm, nested: bool
) -> None:
    with three(tmp_path, realm, nested=nested) as chain:
        control, _ = asked(chain, 3, "0.0.0.0", 0)
        chain.kill_gateway()
        with suppress(ConnectionResetError):
            assert control.recv(1) == b""
        assert "upstream default" in chain.agent.wait_event("session_closed")["reason"]
        assert chain.exit.wait_event("session_closed")["reason"] == "closed"
        control.close()


@pytest.mark.parametrize("nested", [False, True], ids=["each-has-the-next", "gssapi-in-gssapi"])
def test_a_peer_comes_by_bind_to_the_exit(tmp_path: Path, realm: Realm, nested: bool) -> None:
    with three(tmp_path, realm, nested=nested) as chain:
        control, bound = asked(chain, 2, NAME, 21)
        peer = gevent.socket.socket()
        peer.connect((str(bound.host), bound.port))
        assert read_message(control, Reply.decode) == Reply(0, Address(*peer.getsockname()))
        peer.sendall(b"x" * 300_000)
        assert recv_exactly(control, 300_000) == b"x" * 300_000
        control.sendall(b"thanks")
        assert recv_exactly(peer, 6) == b"thanks"
        peer.close()
        control.close()
        closed = chain.agent.wait_event("session_closed")
        assert (closed["upstream"], closed["down"], closed["up"]) == ("default", 300_000, 6)
        assert not chain.ignorant.asked


def asked(chain: Chain, command: int, host: str, port: int) -> tuple[Any, Address]:
    """Ask the agent; the connection, and BND of the (first) reply."""
    client = Client(chain.agent.address)
    stream = client.reach()
    client.negotiate(stream)
    return stream, client.request(stream, Request(command, Address(host, port))).bound


def udp_socket() -> gevent.socket.socket:
    """A socket for datagrams that does not wait for ever."""
    sock = gevent.socket.socket(gevent.socket.AF_INET, gevent.socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.settimeout(5)
    return sock


@pytest.mark.parametrize("nested", [False, True], ids=["each-has-the-next", "gssapi-in-gssapi"])
def test_the_middle_one_killed_and_restarted(tmp_path: Path, realm: Realm, nested: bool) -> None:
    with serving(echo) as (_, port), three(tmp_path, realm, nested=nested) as chain:
        running_one = chain.connect(NAME, port)
        running_one.sendall(b"hello")
        assert recv_exactly(running_one, 5) == b"hello"
        chain.kill_gateway()
        with suppress(ConnectionResetError):
            assert running_one.recv(1) == b""
        running_one.close()
        closed = chain.agent.wait_event("session_closed")
        assert closed["upstream"] == "default"
        for number in range(3):
            with pytest.raises(RequestFailed) as caught:
                chain.connect(NAME, port)
            assert caught.value.rep == Rep.GENERAL_FAILURE
            refused = chain.agent.wait_event("request_refused", number + 1)
            assert "Connection refused" in refused["reason"]
        [failed] = chain.agent.events("upstream_failed")
        assert (failed["upstream"], failed["rest_seconds"]) == ("default", 30.0)
        chain.start_gateway()
        later = chain.connect(NAME, port)
        later.sendall(b"again")
        assert recv_exactly(later, 5) == b"again"
        later.close()
        assert chain.agent.wait_event("upstream_recovered")["upstream"] == "default"
        wait_for(lambda: len(chain.agent.events("session_closed")) == 5)
        assert not chain.ignorant.asked
