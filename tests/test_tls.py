"""SOCKS inside TLS: listeners, client certificates, each way's end, and what goes wrong."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import pytest

from geosocks.auth.userpass import Password, PasswordAuthenticator
from geosocks.cli.check import main as check
from geosocks.client import Client
from geosocks.codes import Cmd
from geosocks.config import build_policy, load_settings
from geosocks.errors import ConfigError, ProtocolError, RelayBroken
from geosocks.events import Authenticated, NegotiationEnded, SessionClosed
from geosocks.policy import AtListener, Policy, Timeouts
from geosocks.rules import RuleSet
from geosocks.server import Listen, Server, refuse_open_proxy
from geosocks.stream import Connection
from geosocks.tls import TlsStream, accept, client_context, server_context, wrap_client
from geosocks.wire.socks5 import Address, Request
from geosocks.worker.reloading import reload
from tests.support.certificates import Authority, Signed, openssl
from tests.support.net import echo, recv_all, recv_exactly, serving, tcp_pair, wait_for
from tests.support.proxy import running
from tests.support.servers import EVERYWHERE, Witness, read_reply, request
from tests.support.udp_client import UdpClient, address, udp_socket

pytestmark = pytest.mark.usefixtures("no_leaks")


class Office:
    """An authority, and what it has signed."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder)
        self.stranger = Authority(folder, "stranger")
        sign = self.authority.sign
        self.server = sign("server", "/CN=server", "DNS:proxy.test,IP:127.0.0.1")
        self.alice = sign("alice", "/O=Office/CN=alice")
        self.bob = sign("bob", "/O=Office", "email:bob@office.test,DNS:bob.test")
        self.nobody = sign("nobody", "/O=Office")
        self.odd = sign("odd", "/CN=a\nb")
        self.mallory = self.stranger.sign("mallory", "/CN=alice")

    @property
    def ca(self) -> str:
        return self.authority.ca


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Office:
    return Office(tmp_path_factory.mktemp("office"))


@contextmanager
def secure_proxy(
    office: Office, client_ca: str | None = None, **changes: Any
) -> Iterator[tuple[Server, Witness]]:
    """A server whose one listener, ``safe``, speaks TLS."""
    context = server_context(office.server.cert, office.server.key, client_ca)
    policy = Policy(rules=EVERYWHERE, listeners={"safe": AtListener(tls=context)}, **changes)
    witness = Witness()
    listen = [Listen(("127.0.0.1", 0), "safe", tls=True)]
    with Server(listen, policy, observers=[witness]) as server:
        yield server, witness


def dial(server: Server) -> gevent.socket.socket:
    sock = gevent.socket.socket()
    sock.connect(server.addresses[0])
    return sock


def secure(server: Server, office: Office, who: Signed | None = None) -> TlsStream:
    """A connection inside TLS, as ``who``."""
    context = client_context(office.ca, *((who.cert, who.key) if who else ()))
    return wrap_client(dial(server), context, "127.0.0.1")


def exactly(stream: TlsStream, size: int) -> bytes:
    return recv_exactly(stream, size)  # type: ignore[arg-type]


def established(stream: TlsStream, host: str, port: int) -> None:
    """CONNECT by method X'00'."""
    stream.sendall(b"\x05\x01\x00" + request(1, host, port))
    assert exactly(stream, 2) == b"\x05\x00"
    assert read_reply(stream).rep == 0  # type: ignore[arg-type]


# --- a session inside -------------------------------------------------------------------------


def test_a_session_inside_tls(office: Office) -> None:
    with serving(echo) as target, secure_proxy(office) as (server, witness):
        stream = secure(server, office)
        assert stream.version == "TLSv1.3"
        established(stream, *target)
        stream.sendall(b"hello")
        assert exactly(stream, 5) == b"hello"
        stream.close()
        closed = witness.wait(SessionClosed)
        assert (closed.reason, closed.up, closed.down) == ("closed", 5, 5)
        assert closed.identity is None


def test_tls_1_2_is_spoken_and_1_1_is_not(office: Office) -> None:
    with serving(echo) as target, secure_proxy(office) as (server, witness):
        old = client_context(office.ca)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        stream = wrap_client(dial(server), old, "127.0.0.1")
        assert stream.version == "TLSv1.2"
        established(stream, *target)
        stream.sendall(b"hello")
        assert exactly(stream, 5) == b"hello"
        stream.close()
        sock = dial(server)
        hello = bytes.fromhex("16 03 01 00 2f 01 00 00 2b 03 02") + bytes(32)
        sock.sendall(hello + bytes.fromhex("00 00 04 00 2f 00 35 01 00"))
        assert sock.recv(1) == b"\x15"  # alert
        sock.close()
        assert "speaks no version from 1.2 on" in witness.wait(NegotiationEnded).reason


def test_the_client_of_the_ssl_module(office: Office) -> None:
    """Not our own TLS at the other end: an ordinary blocking one, in a thread."""

    def use(address: tuple[str, int], target: tuple[str, int]) -> bytes:
        context = ssl.create_default_context(cafile=office.ca)
        with (
            socket.create_connection(address) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as sock,
        ):
            sock.sendall(b"\x05\x01\x00" + request(1, *target) + b"hello")
            got = b""
            while len(got) < 2 + 10 + 5:
                got += sock.recv(100)
            sock.unwrap()  # both ways close, each by its close_notify
            return got

    with serving(echo) as target, secure_proxy(office) as (server, witness):
        pool = gevent.get_hub().threadpool
        got = pool.apply(use, (server.addresses[0][:2], target))
        assert got[-5:] == b"hello"
        assert witness.wait(SessionClosed).reason == "closed"


def test_much_goes_both_ways_at_once(office: Office) -> None:
    data = bytes(range(256)) * 12_000
    with serving(echo) as target, secure_proxy(office) as (server, _):
        stream = secure(server, office)
        established(stream, *target)
        sender = gevent.spawn(stream.sendall, data)
        assert exactly(stream, len(data)) == data
        sender.get()
        stream.close()


def test_a_greeting_in_single_octets(office: Office) -> None:
    """TLS records in pieces, as a slow network delivers them."""
    with serving(echo) as target, secure_proxy(office) as (server, _):

        class Slowly:
            def __init__(self, sock: gevent.socket.socket) -> None:
                self.sock = sock
                self.recv, self.shutdown, self.close = sock.recv, sock.shutdown, sock.close

            def sendall(self, data: bytes, /) -> None:
                for octet in data:
                    self.sock.sendall(bytes((octet,)))

        stream = wrap_client(Slowly(dial(server)), client_context(office.ca), "127.0.0.1")
        established(stream, *target)
        stream.close()


def test_an_association_lives_as_long_as_its_connection_inside_tls(office: Office) -> None:
    with secure_proxy(office) as (server, witness):
        stream = secure(server, office)
        stream.sendall(b"\x05\x01\x00" + request(3, "0.0.0.0", 0))
        assert exactly(stream, 2) == b"\x05\x00"
        reply = read_reply(stream)  # type: ignore[arg-type]
        with (
            UdpClient(stream, (str(reply.bound.host), reply.bound.port), "127.0.0.1") as client,  # type: ignore[arg-type]
            udp_socket() as target,
        ):
            client.send(b"hello", address(target))
            datagram, source = target.recvfrom(100)
            assert datagram == b"hello"
            target.sendto(b"there", source)
            assert client.receive() == (address(target), b"there")
        assert witness.wait(SessionClosed).reason == "closed"


def test_bind_inside_tls(office: Office) -> None:
    with secure_proxy(office) as (server, witness):
        stream = secure(server, office)
        stream.sendall(b"\x05\x01\x00" + request(2, "127.0.0.1", 0))
        assert exactly(stream, 2) == b"\x05\x00"
        bound = read_reply(stream).bound  # type: ignore[arg-type]
        stream.sendall(b"ahead ")
        peer = gevent.socket.socket()
        peer.connect(("127.0.0.1", bound.port))
        assert read_reply(stream).rep == 0  # type: ignore[arg-type]
        stream.sendall(b"and after")
        assert recv_exactly(peer, 15) == b"ahead and after"
        stream.close()
        peer.close()
        assert witness.wait(SessionClosed).reason == "closed"


# --- the end of each way ----------------------------------------------------------------------


def test_one_way_ends_and_the_other_goes_on(office: Office) -> None:
    def answer_at_the_end(sock: gevent.socket.socket, _: object) -> None:
        size = len(recv_all(sock))
        sock.sendall(b"%d octets, " % size)
        gevent.sleep(0.01)
        sock.sendall(b"and that is all")

    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        with serving(answer_at_the_end) as target, secure_proxy(office) as (server, witness):
            context = client_context(office.ca)
            context.minimum_version = context.maximum_version = version
            stream = wrap_client(dial(server), context, "127.0.0.1")
            established(stream, *target)
            stream.sendall(b"x" * 100_000)
            stream.shutdown(socket.SHUT_WR)
            assert recv_all(stream) == b"100000 octets, and that is all"  # type: ignore[arg-type]
            with pytest.raises(RelayBroken):
                stream.sendall(b"more")
            stream.close()
            assert witness.wait(SessionClosed).reason == "closed"


def test_the_targets_end_reaches_the_client_who_may_still_speak(office: Office) -> None:
    heard = []

    def speak_first(sock: gevent.socket.socket, _: object) -> None:
        sock.sendall(b"bye")
        sock.shutdown(socket.SHUT_WR)
        heard.append(recv_all(sock))

    with serving(speak_first) as target, secure_proxy(office) as (server, witness):
        stream = secure(server, office)
        established(stream, *target)
        assert recv_all(stream) == b"bye"  # type: ignore[arg-type]
        stream.sendall(b"one more thing")
        stream.close()
        wait_for(lambda: heard)
        assert heard == [b"one more thing"]
        assert witness.wait(SessionClosed).reason == "closed"


def pair(office: Office) -> tuple[TlsStream, TlsStream]:
    """Client's and server's end of one connection inside TLS."""
    far, near = tcp_pair()
    context = server_context(office.server.cert, office.server.key)
    accepting = gevent.spawn(accept, Connection.take(near), context)
    client = wrap_client(far, client_context(office.ca), "proxy.test")
    server = accepting.get()
    assert server is not None
    return client, server


def test_what_came_before_our_end_is_not_lost(office: Office) -> None:
    client, server = pair(office)
    client.sendall(b"early " * 10)
    assert server.recv(6) == b"early "
    client.sendall(b"and late")
    server.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    client.sendall(b" and later")
    client.shutdown(socket.SHUT_WR)
    assert recv_all(server) == b"early " * 9 + b"and late and later"  # type: ignore[arg-type]
    client.close()
    server.close()


def test_an_end_without_close_notify_is_a_fault(office: Office) -> None:
    client, server = pair(office)
    client.sendall(b"half of")
    assert server.recv(100) == b"half of"
    client.inner.shutdown(socket.SHUT_WR)
    for _ in range(2):
        with pytest.raises(ProtocolError, match="ended without close_notify"):
            server.recv(100)
    client.close()
    server.close()


def test_the_session_of_a_client_that_was_cut_is_broken(office: Office) -> None:
    with serving(echo) as target, secure_proxy(office) as (server, witness):
        stream = secure(server, office)
        established(stream, *target)
        stream.inner.shutdown(socket.SHUT_WR)
        assert "broken_by_client: TLS: the connection ended without" in (
            witness.wait(SessionClosed).reason
        )
        stream.reset()


def test_octets_that_are_no_record_are_a_fault(office: Office) -> None:
    client, server = pair(office)
    client.inner.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(ProtocolError, match="TLS: "):
        server.recv(100)
    client.close()
    server.close()


def test_closing_waits_for_nobody_long(office: Office) -> None:
    client, server = pair(office)
    sender = gevent.spawn(server.sendall, bytes(20_000_000))  # nobody reads that
    gevent.sleep(0.05)
    sender.kill()
    with gevent.Timeout(3.0, AssertionError("it waits")):
        server.close()
    client.reset()


# --- who does not speak TLS, and who speaks it at the wrong door ------------------------------


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (b"\x05\x01\x00", "client speaks SOCKS5 without TLS, and this listener is tls://"),
        (b"\x04\x01\x00\x50", "client speaks SOCKS4 without TLS, and this listener is tls://"),
        (b"GET / HTTP/1.0\r\n\r\n", "first octet is 0x47, which is not TLS"),
        (b"\x16\x03\x01\x00\x05hello", "TLS: "),
    ],
)
def test_a_client_that_does_not_speak_tls(office: Office, octets: bytes, reason: str) -> None:
    with secure_proxy(office) as (server, witness):
        sock = dial(server)
        sock.sendall(octets)
        assert reason in witness.wait(NegotiationEnded).reason
        sock.close()


def test_a_client_that_speaks_tls_to_a_plain_listener(office: Office) -> None:
    witness = Witness()
    with Server([("127.0.0.1", 0)], observers=[witness]) as server:
        sock = dial(server)
        with pytest.raises(ProtocolError, match="TLS: "):
            wrap_client(sock, client_context(office.ca), "127.0.0.1")
        sock.close()
        assert "client speaks TLS, and this listener does not" in (
            witness.wait(NegotiationEnded).reason
        )


def test_a_client_that_says_nothing(office: Office) -> None:
    with secure_proxy(office) as (server, witness):
        dial(server).close()
        assert witness.wait(SessionClosed).reason == "nothing_said"


def test_a_client_that_leaves_in_the_middle_of_the_handshake(office: Office) -> None:
    with secure_proxy(office) as (server, witness):
        sock = dial(server)
        sock.sendall(b"\x16\x03\x01\x02\x00")
        sock.close()
        ended = witness.wait(NegotiationEnded)
        assert ended.reason == "TLS: the peer closed during the handshake"


def test_the_handshake_is_part_of_the_time_for_the_negotiation(office: Office) -> None:
    limit = Timeouts(negotiation=0.2)
    with secure_proxy(office, timeouts=limit) as (server, witness):
        sock = dial(server)
        sock.sendall(b"\x16\x03\x01\x02\x00")
        assert "was not done within 0.2 s" in witness.wait(NegotiationEnded).reason
        sock.close()
        stream = secure(server, office)  # and so is what comes after it
        stream.sendall(b"\x05")
        assert "was not done within 0.2 s" in witness.wait(NegotiationEnded, 2).reason
        stream.reset()


# --- certificates -----------------------------------------------------------------------------


@pytest.mark.parametrize(("who", "name"), [("alice", "alice"), ("bob", "bob@office.test")])
def test_the_certificate_names_the_user(office: Office, who: str, name: str) -> None:
    rules = RuleSet.parse(f"allow user {name} method none to everywhere")
    with (
        serving(echo) as target,
        secure_proxy(office, office.ca) as (server, witness),
    ):
        server.policy = server.policy.replace(rules=rules)
        stream = secure(server, office, getattr(office, who))
        established(stream, *target)
        stream.close()
        entered = witness.wait(Authenticated)
        assert (entered.method, entered.identity, entered.detail) == (0, name, "certificate")
        assert witness.wait(SessionClosed).identity == name


def test_a_socks4_client_has_its_certificates_name(office: Office) -> None:
    with serving(echo) as (host, port), secure_proxy(office, office.ca) as (server, witness):
        stream = secure(server, office, office.alice)
        octets = b"\x04\x01" + port.to_bytes(2, "big") + socket.inet_aton(host) + b"claim\x00"
        stream.sendall(octets)
        assert exactly(stream, 8)[1] == 90
        stream.close()
        closed = witness.wait(SessionClosed)
        assert (closed.identity, closed.claimed) == ("alice", "claim")


def test_a_method_that_names_somebody_says_who_it_is(office: Office) -> None:
    password = PasswordAuthenticator(check=lambda user, password: True)
    policy = {"authenticators": (password,)}
    with secure_proxy(office, office.ca, **policy) as (server, witness):
        stream = secure(server, office, office.alice)
        stream.sendall(b"\x05\x01\x02\x01\x05carol\x01x")
        assert exactly(stream, 4) == b"\x05\x02\x01\x00"
        stream.close()
        assert witness.wait(Authenticated).identity == "carol"


@pytest.mark.parametrize(
    ("who", "reason"),
    [
        (None, "TLS: the client shows no certificate"),
        ("mallory", "TLS: the client's certificate is not good: "),
        ("nobody", "TLS: the client's certificate names nobody"),
        ("odd", "TLS: the client's certificate has a name that cannot be printed"),
    ],
)
def test_a_client_with_no_good_certificate(office: Office, who: str | None, reason: str) -> None:
    with secure_proxy(office, office.ca) as (server, witness):
        # Under TLS 1.3 a client learns of it when it reads.
        stream = secure(server, office, getattr(office, who) if who else None)
        with suppress(OSError):  # an alert, or a reset
            assert stream.recv(1) == b""
        stream.reset()
        assert witness.wait(NegotiationEnded).reason.startswith(reason)
        assert not witness.of(Authenticated)


def test_who_has_to_show_a_certificate_makes_no_open_proxy(office: Office) -> None:
    listen = [Listen(("192.0.2.1", 1080), "safe", tls=True)]
    cert, key = office.server.cert, office.server.key
    rules = RuleSet.parse("allow to any")
    anybody = AtListener(tls=server_context(cert, key))
    with pytest.raises(ConfigError, match="would be an open proxy"):
        refuse_open_proxy(listen, Policy(rules=rules, listeners={"safe": anybody}))
    known = AtListener(tls=server_context(cert, key, office.ca))
    refuse_open_proxy(listen, Policy(rules=rules, listeners={"safe": known}))


def test_a_listener_without_its_certificate_is_never_plain() -> None:
    listen = [Listen(("127.0.0.1", 0), "safe", tls=True)]
    with pytest.raises(ConfigError, match="listener safe: TLS, but the policy has no certificate"):
        Server(listen, Policy()).start()
    with pytest.raises(ConfigError, match="no certificate"):
        Server([Listen(("127.0.0.1", 0), tls=True)], Policy()).start()


def test_a_policy_that_lost_the_certificate_serves_nobody_there(office: Office) -> None:
    with secure_proxy(office) as (server, witness):
        server.policy = Policy(rules=EVERYWHERE)
        sock = dial(server)
        assert recv_all(sock) == b""
        sock.close()
        assert "no certificate for this listener" in witness.wait(NegotiationEnded).reason


# --- the client's half ------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "proxy.test"])
def test_the_server_has_to_be_who_it_should_be(office: Office, host: str) -> None:
    with secure_proxy(office) as (server, _):
        wrap_client(dial(server), client_context(office.ca), host).close()
        sock = dial(server)
        with pytest.raises(
            ProtocolError, match=r"the server's certificate is not good: .*mismatch"
        ):
            wrap_client(sock, client_context(office.ca), "other.test")
        sock.close()
        sock = dial(server)
        with pytest.raises(ProtocolError, match="the server's certificate is not good"):
            wrap_client(sock, client_context(office.stranger.ca), host)
        sock.close()


def test_a_server_that_does_not_speak_tls(office: Office) -> None:
    def old(sock: gevent.socket.socket, _: object) -> None:
        sock.recv(4096)
        sock.sendall(b"\x05\xff")
        recv_all(sock)

    with serving(old) as address:
        sock = gevent.socket.socket()
        sock.connect(address)
        with pytest.raises(ProtocolError, match="the server does not speak TLS on this port"):
            wrap_client(sock, client_context(office.ca), "127.0.0.1")
        sock.close()


def test_tls_around_a_connection_through_a_proxy(office: Office) -> None:
    """The stream inside is any stream: here a SOCKS session, to another server's TLS."""
    with (
        serving(echo) as target,
        secure_proxy(office) as (exit_, _),
        Server([("127.0.0.1", 0)], Policy(rules=EVERYWHERE)) as entry,
    ):
        sock = Client(entry.addresses[0][:2]).connect(exit_.addresses[0][:2])
        stream = wrap_client(sock, client_context(office.ca), "proxy.test")
        client = Client(exit_.addresses[0][:2])
        _, grant = client.negotiate(stream)
        client.request(grant.stream, Request(Cmd.CONNECT, Address(*target)))
        stream.sendall(b"hello")
        assert exactly(stream, 5) == b"hello"
        stream.close()


# --- files ------------------------------------------------------------------------------------


def test_files_that_cannot_be_used(office: Office, tmp_path: Path) -> None:
    cert, key = office.server.cert, office.server.key
    junk = tmp_path / "junk"
    junk.write_text("junk")
    junk.chmod(0o600)
    cases = [
        ((cert, str(tmp_path / "absent")), "absent: cannot be read: No such file"),
        ((cert, office.alice.key), "certificate and key do not belong together"),
        ((str(junk), key), "no certificate with its key can be read from it"),
        ((cert, str(junk)), "no certificate with its key can be read from it"),
        ((cert, key, str(junk)), "junk: no certificates can be read from it"),
        ((cert, key, str(tmp_path / "absent")), "absent: cannot be read"),
    ]
    for files, complaint in cases:
        with pytest.raises(ConfigError, match=complaint):
            server_context(*files)
    with pytest.raises(ConfigError, match="junk: no certificates"):
        client_context(str(junk))
    server_context(office.server.both)


def test_a_key_that_everybody_may_read_and_one_that_is_encrypted(
    office: Office, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_bytes(Path(office.server.key).read_bytes())
    key.chmod(0o644)
    with pytest.raises(ConfigError, match="key: everybody may read this key; chmod o= it"):
        server_context(office.server.cert, str(key))
    locked = tmp_path / "locked"
    locked.touch(0o600)
    openssl("ec", "-in", office.server.key, "-aes128", "-passout", "pass:x", "-out", locked)
    with pytest.raises(ConfigError, match="locked: the key is encrypted"):
        server_context(office.server.cert, str(locked))


# --- options, reload, the program -------------------------------------------------------------


def test_options_make_a_context_for_each_listener(office: Office) -> None:
    argv = [f"--tls-cert={office.server.cert}", f"--tls-key={office.server.key}"]
    argv += ["--listen=tls://127.0.0.1:1", "--listen=127.0.0.1:2"]
    argv += [f"--listen=tls://127.0.0.1:3?name=staff&tls-client-ca={office.ca}"]
    policy = build_policy(load_settings(argv, {}).settings)
    anybody, staff = policy.tls_at("127.0.0.1:1"), policy.tls_at("staff")
    assert anybody is not None
    assert anybody.verify_mode is ssl.CERT_NONE
    assert staff is not None
    assert staff.verify_mode is ssl.CERT_REQUIRED
    assert policy.tls_at("127.0.0.1:2") is None
    with pytest.raises(ConfigError, match="no --listen is written tls://"):
        load_settings(argv[:1], {})


def test_a_reload_takes_the_new_certificate(office: Office, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert", tmp_path / "key"

    def install(signed: Signed) -> None:
        cert.write_bytes(Path(signed.cert).read_bytes())
        key.touch(0o600)
        key.write_bytes(Path(signed.key).read_bytes())

    argv = ["--listen=tls://127.0.0.1:0", f"--tls-cert={cert}", f"--tls-key={key}"]
    install(office.server)
    loaded = load_settings(argv, {})
    witness = Witness()
    listen = [one.listen for one in loaded.settings.listen]
    with Server(listen, build_policy(loaded.settings), observers=[witness]) as server:
        wrap_client(dial(server), client_context(office.ca), "proxy.test").close()
        install(office.authority.sign("renewed", "/CN=renewed", "DNS:new.test"))
        reload(server, argv, loaded)
        wrap_client(dial(server), client_context(office.ca), "new.test").close()
        key.write_text("junk")
        before = server.policy
        reload(server, argv, loaded)
        assert server.policy is before


def test_the_program_with_client_certificates(office: Office, tmp_path: Path) -> None:
    options = [f"--tls-cert={office.server.both}", f"--tls-client-ca={office.ca}"]
    with (
        serving(echo) as target,
        running(tmp_path, *options, "--listen=tls://127.0.0.1:0?name=staff") as server,
    ):
        server.wait_for(lambda: len(server.events("listening")) == 2)
        port = int(server.events("listening")[1]["address"].rpartition(":")[2])
        sock = gevent.socket.socket()
        sock.connect(("127.0.0.1", port))
        context = client_context(office.ca, office.alice.cert, office.alice.key)
        stream = wrap_client(sock, context, "proxy.test")
        established(stream, *target)
        stream.sendall(b"hello")
        assert exactly(stream, 5) == b"hello"
        stream.close()
        closed = server.wait_event("session_closed")
        assert (closed["identity"], closed["method"]) == ("alice", "none")


def test_a_password_inside_tls(office: Office) -> None:
    password = PasswordAuthenticator(check=lambda user, password: password == b"wonder")
    with (
        serving(echo) as target,
        secure_proxy(office, authenticators=(password,)) as (server, _),
    ):
        stream = secure(server, office)
        client = Client(server.addresses[0][:2], [Password("alice", "wonder")])
        assert client.negotiate(stream)[0] == 2
        client.request(stream, Request(Cmd.CONNECT, Address(*target)))
        stream.sendall(b"hello")
        assert exactly(stream, 5) == b"hello"
        stream.close()


# --- by URL -----------------------------------------------------------------------------------


def url_of(server: Server, **settings: str) -> str:
    query = "&".join(f"{name}={value}" for name, value in settings.items())
    return f"socks5+tls://127.0.0.1:{server.addresses[0][1]}?{query}"


def test_a_client_by_its_url(office: Office) -> None:
    alice = {"cert": office.alice.cert, "key": office.alice.key}
    with serving(echo) as target, secure_proxy(office, office.ca) as (server, witness):
        sock = Client.from_url(url_of(server, ca=office.ca, **alice)).connect(target)
        sock.sendall(b"hello")
        assert recv_exactly(sock, 5) == b"hello"
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
        sock.close()
        assert witness.wait(SessionClosed).identity == "alice"
        with pytest.raises(ProtocolError, match="the server's certificate is not good"):
            Client.from_url(url_of(server, ca=office.stranger.ca)).connect(target)
        with pytest.raises((ProtocolError, OSError)):  # no certificate of ours
            Client.from_url(url_of(server, ca=office.ca)).connect(target)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("socks5://h?ca=/x", "unknown setting 'ca'"),
        ("socks5+tls://h?ca=/absent", "/absent: cannot be read"),
        ("socks5+tls://h?key=/absent", "a key, but no cert"),
        ("socks4+tls://h", "scheme 'socks4\\+tls'"),
        ("http+tls://h", "scheme 'http\\+tls'"),
    ],
)
def test_a_url_that_cannot_be_used(url: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Client.from_url(url)


def test_an_upstream_inside_tls(office: Office) -> None:
    with serving(echo) as target, secure_proxy(office) as (far, _):
        argv = [f"--via={url_of(far, ca=office.ca)}"]
        policy = build_policy(load_settings(argv, {}).settings)
        with Server([("127.0.0.1", 0)], policy) as near:
            sock = Client(near.addresses[0][:2]).connect(target)
            sock.sendall(b"hello")
            sock.shutdown(socket.SHUT_WR)
            assert recv_all(sock) == b"hello"
            sock.close()


def test_a_chain_into_tls(office: Office) -> None:
    """The second hop's TLS is inside the session through the first."""
    with (
        serving(echo) as target,
        secure_proxy(office) as (exit_, _),
        Server([("127.0.0.1", 0)], Policy(rules=EVERYWHERE)) as middle,
    ):
        port = middle.addresses[0][1]
        argv = [f"--upstream=middle=socks5://127.0.0.1:{port}", "--via=exit"]
        argv.append(f"--upstream=exit={url_of(exit_, ca=office.ca)}&via=middle")
        policy = build_policy(load_settings(argv, {}).settings)
        with Server([("127.0.0.1", 0)], policy) as near:
            sock = Client(near.addresses[0][:2]).connect(target)
            sock.sendall(b"hello")
            assert recv_exactly(sock, 5) == b"hello"
            sock.close()


def test_a_check_of_a_server_inside_tls(office: Office, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(echo) as (host, port), secure_proxy(office) as (server, _):
        assert check([url_of(server, ca=office.ca), "--to", f"{host}:{port}"]) == 0
    assert "FAIL" not in capsys.readouterr().out
