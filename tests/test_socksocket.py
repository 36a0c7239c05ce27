"""The socket for programs that know sockets, against transcripts and our own server."""

import errno
import http.client
import io
import os
import select
import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import gevent.ssl
import pytest

from geosocks.auth import Grant, NoAuth
from geosocks.auth.gss_stream import GssStream
from geosocks.client import Client, Socks4
from geosocks.client.socksocket import create_connection, socksocket
from geosocks.codes import ProtectionLevel
from geosocks.errors import (
    ConfigError,
    NegotiationTimeout,
    NoAcceptableMethod,
    TargetRefused,
)
from geosocks.policy import Policy
from geosocks.server import Server
from geosocks.stream import Connection, Stream
from geosocks.tls import accept, client_context, server_context, wrap_client
from geosocks.wire.socks5 import Address
from tests.support.certificates import Authority, Signed
from tests.support.fake_gss import FakeContext
from tests.support.net import echo, recv_all, recv_exactly, serving, unused_port, wait_for
from tests.support.servers import EVERYWHERE, Witness, proxy
from tests.support.web import PIECE, big_digest, web

pytestmark = pytest.mark.usefixtures("no_leaks")

OFFER, CHOICE = b"\x05\x01\x00", b"\x05\x00"
TARGET = ("a.test", 80)
REQUEST = b"\x05\x01\0\x03\x06a.test\0\x50"
GRANTED = bytes.fromhex("05 00 00 01 0a000001 04d2")


class Encapsulating:
    """A method that encapsulates from then on, with nothing to negotiate."""

    method = 0x80

    def _grant(self, stream: Stream) -> Grant:
        inside = GssStream(stream, FakeContext(), ProtectionLevel.CONFIDENTIALITY)
        return Grant(inside, "alice@EXAMPLE.ORG")

    def present(self, stream: Stream) -> Grant:
        return self._grant(stream)

    def authenticate(self, stream: Stream, peer: Address) -> Grant:
        return self._grant(stream)


@contextmanager
def through(method: Any) -> Iterator[tuple[Client, Server, Witness]]:
    """Our server, which takes ``method``, and a client of it."""
    policy = Policy(rules=EVERYWHERE, authenticators=(method,))
    with proxy(policy) as (server, witness):
        yield Client(server.addresses[0], [method]), server, witness


each_way = pytest.mark.parametrize(
    "method", [NoAuth(), Encapsulating()], ids=["plain", "encapsulated"]
)


@contextmanager
def talking(reply: bytes = GRANTED, then: str = "wait") -> Iterator[tuple[Any, list[bytes]]]:
    """A server that grants a CONNECT to TARGET; what it heard."""
    heard: list[bytes] = []

    def serve(sock: gevent.socket.socket, _: object) -> None:
        heard.append(recv_exactly(sock, 3))
        sock.sendall(CHOICE)
        heard.append(recv_exactly(sock, len(REQUEST)))
        sock.sendall(reply)
        heard.append(recv_all(sock))

    with serving(serve) as address:
        yield address, heard
        wait_for(lambda: len(heard) == 3)


# --- connecting -------------------------------------------------------------------------------


def test_connect_says_what_the_rfc_has() -> None:
    with talking(GRANTED + b"hello") as ((host, port), heard):
        sock = socksocket(proxy=f"socks5://{host}:{port}")
        sock.connect(TARGET)
        assert sock.destination == Address(*TARGET)
        assert sock.bound == Address("10.0.0.1", 1234)
        assert sock.getpeername() == (host, port)
        assert sock.recv(5) == b"hello"
        sock.sendall(b"payload")
        sock.close()
    assert heard == [OFFER, REQUEST, b"payload"]


def test_it_is_a_gevent_socket() -> None:
    with socksocket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        assert isinstance(sock, gevent.socket.socket)
        assert (sock.family, sock.type) == (socket.AF_INET, socket.SOCK_STREAM)


def test_without_a_proxy_it_goes_nowhere() -> None:
    with serving(echo) as target, socksocket() as sock, pytest.raises(ValueError, match="no proxy"):
        sock.connect(target)


def test_the_proxy_can_be_set_later() -> None:
    with talking() as ((host, port), _), socksocket() as sock:
        sock.set_proxy(f"socks5://{host}:{port}")
        sock.connect(TARGET)
    with socksocket() as sock, pytest.raises(ConfigError, match="scheme"):
        sock.set_proxy("ftp://h.test")


def test_socks4_too() -> None:
    asked = bytes.fromhex("04 01 0050 00000001 00") + b"a.test\0"

    def serve(sock: gevent.socket.socket, _: object) -> None:
        assert recv_exactly(sock, len(asked)) == asked
        sock.sendall(bytes.fromhex("00 5a 0000 00000000") + b"x")
        recv_all(sock)

    with serving(serve) as address, socksocket(proxy=Client(address, socks4=Socks4())) as sock:
        sock.connect(TARGET)
        assert sock.recv(1) == b"x"


def test_datagrams_do_not_go_this_way() -> None:
    with pytest.raises(ValueError, match="associate"):
        socksocket(socket.AF_INET, socket.SOCK_DGRAM)


def test_it_connects_once() -> None:
    with talking() as (address, _), socksocket(proxy=Client(address)) as sock:
        sock.connect(TARGET)
        with pytest.raises(OSError, match="already connected") as caught:
            sock.connect(TARGET)
        assert caught.value.errno == errno.EISCONN


@pytest.mark.parametrize("to", [("", 80), ("a.test", 65536), ("n" * 256, 80)])
def test_an_address_that_cannot_be_sent_is_not_dialled(to: tuple[str, int]) -> None:
    with (
        socksocket(proxy=Client(("127.0.0.1", unused_port()))) as sock,
        pytest.raises(ValueError, match=r"."),
    ):
        sock.connect(to)


def test_a_sockaddr_of_ipv6_will_do() -> None:
    with (
        through(NoAuth()) as (client, *_),
        serving(echo, "::1") as (_, port),
        socksocket(proxy=client) as sock,
    ):
        sock.connect(("::1", port, 0, 0))
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"


def test_a_failure_closes_it_so_that_nobody_talks_to_the_proxy() -> None:
    with through(NoAuth()) as (client, *_), socksocket(proxy=client) as sock:
        with pytest.raises(TargetRefused):
            sock.connect(("127.0.0.1", unused_port()))
        assert sock.closed
        with pytest.raises(OSError, match="Bad file"):
            sock.send(b"x")


@pytest.mark.parametrize(
    ("rep", "code"),
    [
        (1, errno.ECONNABORTED),
        (2, errno.EACCES),
        (4, errno.EHOSTUNREACH),
        (5, errno.ECONNREFUSED),
        (6, errno.ETIMEDOUT),
        (0x77, errno.ECONNABORTED),
    ],
)
def test_connect_ex_gives_an_errno(rep: int, code: int) -> None:
    with talking(bytes((5, rep)) + GRANTED[2:]) as (address, _):
        assert socksocket(proxy=Client(address)).connect_ex(TARGET) == code


def test_connect_ex_of_what_is_no_reply() -> None:
    with talking() as (address, _), socksocket(proxy=Client(address)) as sock:
        assert sock.connect_ex(TARGET) == 0
    assert socksocket(proxy=Client(("127.0.0.1", unused_port()))).connect_ex(TARGET) == (
        errno.ECONNREFUSED
    )
    with serving(lambda sock, _: recv_exactly(sock, 3)) as address:
        assert socksocket(proxy=Client(address)).connect_ex(TARGET) == errno.ECONNABORTED


def test_its_timeout_bounds_all_of_a_connect_and_stays() -> None:
    def trickle(sock: gevent.socket.socket, _: object) -> None:
        try:
            for octet in CHOICE + GRANTED:
                sock.sendall(bytes((octet,)))
                gevent.sleep(0.03)
        except OSError:
            pass

    with serving(trickle) as address:
        sock = socksocket(proxy=Client(address))
        sock.settimeout(0.1)
        with pytest.raises(NegotiationTimeout):
            sock.connect(TARGET)
        slow = socksocket(proxy=Client(address, timeout=0.1))
        assert slow.connect_ex(TARGET) == errno.ETIMEDOUT
    with talking() as (address, _), socksocket(proxy=Client(address)) as sock:
        sock.settimeout(0.2)
        sock.connect(TARGET)
        assert sock.gettimeout() == 0.2
        with pytest.raises(TimeoutError):
            sock.recv(1)


def test_it_cannot_connect_without_waiting() -> None:
    with socksocket(proxy=Client(("127.0.0.1", 1))) as sock:
        sock.setblocking(False)
        with pytest.raises(OSError, match="has to wait") as caught:
            sock.connect(TARGET)
        assert caught.value.errno == errno.EOPNOTSUPP


def test_a_server_that_does_not_take_us() -> None:
    with through(Encapsulating()) as (client, *_):
        stranger = Client(client.server)
        with pytest.raises(NoAcceptableMethod):
            create_connection(TARGET, proxy=stranger)


# --- the usual calls --------------------------------------------------------------------------


@each_way
def test_the_usual_calls(method: Any) -> None:
    with through(method) as (client, *_), serving(echo) as target:
        sock = socksocket(proxy=client)
        sock.settimeout(5)
        sock.connect(target)
        assert sock.send(b"one") == 3
        assert recv_exactly(sock, 3) == b"one"
        sock.sendall(memoryview(struct.pack("2I", 1, 2)).cast("I"))
        buffer = bytearray(10)
        assert sock.recv_into(buffer, 3) == 3
        assert sock.recv_into(memoryview(buffer)[3:]) == 5
        assert bytes(buffer) == struct.pack("2I", 1, 2) + b"\0\0"
        assert sock.recv(0) == b""
        sock.sendall(b"x" * 300_000)
        assert recv_exactly(sock, 300_000) == b"x" * 300_000
        sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.settimeout(5)
        sock.sendall(b"still in step")
        assert recv_exactly(sock, 13) == b"still in step"
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
        assert sock.getsockname()[0] == "127.0.0.1"
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        sock.close()
        sock.close()
        assert sock.fileno() == -1


@each_way
def test_files_of_it_outlive_it(method: Any) -> None:
    with through(method) as (client, *_), serving(echo) as target:
        sock = create_connection(target, proxy=client)
        with sock.makefile("rwb") as file:
            sock.close()
            file.write(b"first\nsecond\n")
            file.flush()
            assert [file.readline(), file.readline()] == [b"first\n", b"second\n"]
        with pytest.raises((OSError, ValueError)):
            sock.send(b"x")
        with create_connection(target, proxy=client) as other:
            text = other.makefile("w", encoding="utf-8")
            text.write("grüße")
            text.close()
            assert recv_exactly(other, 7) == "grüße".encode()
            other.sendfile(io.BytesIO(b"as a file"))
            assert recv_exactly(other, 9) == b"as a file"


@each_way
def test_http_client_through_it(method: Any) -> None:
    with through(method) as (client, *_), web({"/": b"hello\n"}) as site:
        connection = http.client.HTTPConnection(site.host, site.port)
        connection._create_connection = partial(create_connection, proxy=client)  # type: ignore[attr-defined]
        for _ in range(2):
            connection.request("GET", "/")
            assert connection.getresponse().read() == b"hello\n"
        connection.request("GET", "/big/1000000", headers={"Connection": "close"})
        response = connection.getresponse()
        body = response.read()
        assert len(body) == 1_000_000
        assert body.startswith(PIECE[:1000])
        assert big_digest(1_000_000)
        connection.close()


def test_http_client_inside_tls(authority: Authority, certificate: Signed) -> None:
    """README: the connection's own socket gives way to ours, with TLS around it."""

    def page(sock: Any, _: object) -> None:
        connection = Connection.take(sock)
        stream = accept(connection, server_context(certificate.cert, certificate.key))
        assert stream is not None
        asked = b""
        while not asked.endswith(b"\r\n\r\n"):
            asked += stream.recv(4096)
        stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n")
        stream.close()
        connection.close()

    with through(NoAuth()) as (client, *_), serving(page) as (host, port):
        context = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(authority.ca)
        connection = http.client.HTTPConnection("secure.test", port)
        connection.sock = context.wrap_socket(
            create_connection((host, port), proxy=client), server_hostname="secure.test"
        )
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"hello\n"
        connection.close()


def test_two_greenlets_one_for_each_way() -> None:
    with through(Encapsulating()) as (client, *_), serving(echo) as target:
        sock = create_connection(target, proxy=client)
        data = os.urandom(3_000_000)
        sending = gevent.spawn(sock.sendall, data)
        assert recv_exactly(sock, len(data)) == data
        sending.get()
        sock.close()


# --- what would pass the encapsulation by -----------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("detach", ()),
        ("dup", ()),
        ("recvfrom", (10,)),
        ("recvfrom_into", (bytearray(10),)),
        ("recvmsg", (10,)),
        ("recvmsg_into", ([bytearray(10)],)),
        ("sendmsg", ([b"clear"],)),
        ("sendto", (b"clear", ("127.0.0.1", 9))),
        ("recv", (10, socket.MSG_PEEK)),
        ("recv_into", (bytearray(10), 5, socket.MSG_PEEK)),
        ("send", (b"clear", socket.MSG_OOB)),
        ("sendall", (b"clear", socket.MSG_OOB)),
    ],
)
def test_nothing_passes_the_encapsulation_by(name: str, arguments: tuple[Any, ...]) -> None:
    with (
        through(Encapsulating()) as (client, *_),
        serving(echo) as target,
        create_connection(target, proxy=client) as sock,
    ):
        with pytest.raises(OSError, match=r".") as caught:
            getattr(sock, name)(*arguments)
        assert caught.value.errno == errno.EOPNOTSUPP
        sock.sendall(b"still in step")
        assert recv_exactly(sock, 13) == b"still in step"


def test_tls_of_its_own_does_not_pass_by_either() -> None:
    with (
        through(Encapsulating()) as (client, *_),
        serving(echo) as target,
        create_connection(target, proxy=client) as sock,
    ):
        assert sock.fileno() == -1
        for kind in (ssl.SSLContext, gevent.ssl.SSLContext):
            context = kind(ssl.PROTOCOL_TLS_CLIENT)
            with pytest.raises(ValueError, match="file"):
                context.wrap_socket(sock, server_hostname="a.test")
        with pytest.raises(ValueError, match="file"):
            select.select([sock], [], [], 0)
        sock.sendall(b"still in step")
        assert recv_exactly(sock, 13) == b"still in step"


def test_a_plain_one_can_be_detached_and_copied() -> None:
    with through(NoAuth()) as (client, *_), serving(echo) as target:
        sock = create_connection(target, proxy=client)
        with sock.dup() as other:
            other.sendall(b"x")
            assert sock.recv(10, socket.MSG_PEEK) == b"x"
            assert sock.recvfrom(10)[0] == b"x"
        with gevent.socket.socket(fileno=sock.detach()) as other:
            other.sendall(b"y")
            assert other.recv(1) == b"y"


# --- TLS --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Signed:
    return authority.sign("server", alternative="DNS:secure.test,IP:127.0.0.1,DNS:localhost")


@contextmanager
def secure_echo(certificate: Signed) -> Iterator[tuple[str, int]]:
    """A target that speaks TLS."""
    context = server_context(certificate.cert, certificate.key)

    def serve(sock: gevent.socket.socket, _: object) -> None:
        connection = Connection.take(sock)
        try:
            stream = accept(connection, context)
            if stream is not None:
                echo(stream, None)  # type: ignore[arg-type]
                stream.close()
        finally:
            connection.close()

    with serving(serve) as address:
        yield address


def test_tls_with_the_target_when_it_is_plain(authority: Authority, certificate: Signed) -> None:
    with through(NoAuth()) as (client, *_), secure_echo(certificate) as target:
        context = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(authority.ca)
        sock = create_connection(target, proxy=client)
        with context.wrap_socket(sock, server_hostname="secure.test") as inside:
            inside.sendall(b"secret")
            assert recv_exactly(inside, 6) == b"secret"


def test_tls_with_the_target_when_it_is_encapsulated(
    authority: Authority, certificate: Signed
) -> None:
    with through(Encapsulating()) as (client, *_), secure_echo(certificate) as target:
        sock = create_connection(target, proxy=client)
        inside = wrap_client(sock, client_context(authority.ca), "secure.test")
        inside.sendall(b"secret")
        assert inside.recv(6) == b"secret"
        inside.close()


def test_tls_with_the_proxy(authority: Authority, certificate: Signed, tmp_path: Path) -> None:
    context = server_context(certificate.cert, certificate.key)
    heard: list[bytes] = []

    def serve(sock: gevent.socket.socket, _: object) -> None:
        connection = Connection.take(sock)
        try:
            stream = accept(connection, context)
            assert stream is not None
            heard.append(recv_exactly(stream, 3))  # type: ignore[arg-type]
            stream.sendall(CHOICE)
            heard.append(recv_exactly(stream, len(REQUEST)))  # type: ignore[arg-type]
            stream.sendall(GRANTED)
            heard.append(recv_all(stream))  # type: ignore[arg-type]
            stream.close()
        finally:
            connection.close()

    with serving(serve) as (_, port):
        url = f"socks5+tls://127.0.0.1:{port}?ca={authority.ca}"
        sock = create_connection(TARGET, timeout=5, proxy=url)
        sock.sendall(b"payload")
        sock.close()  # says goodbye, or the server's recv_all would fail
        wait_for(lambda: heard == [OFFER, REQUEST, b"payload"])


# --- create_connection ------------------------------------------------------------------------


def test_create_connection_takes_the_family_that_answers() -> None:
    with serving(echo) as target, proxy() as (server, _):
        port = server.addresses[0][1]
        # localhost is ::1 and 127.0.0.1, or 127.0.0.1 alone; we listen on this one.
        with create_connection(target, 5, ("127.0.0.1", 0), proxy=Client(("127.0.0.1", port))) as s:
            assert s.gettimeout() == 5
        with create_connection(target, object(), proxy=f"socks5://localhost:{port}") as sock:
            assert sock.gettimeout() is None
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"


def test_create_connection_over_ipv6() -> None:
    heard = []

    def serve(sock: gevent.socket.socket, _: object) -> None:
        heard.append(recv_exactly(sock, 3))

    with serving(serve, "::1") as (_, port), pytest.raises(ConnectionError):
        create_connection(TARGET, proxy=f"socks5://[::1]:{port}")
    assert heard == [OFFER]


def test_create_connection_to_nobody() -> None:
    with pytest.raises(ConnectionRefusedError):
        create_connection(TARGET, proxy=Client(("localhost", unused_port())))
    with pytest.raises(OSError, match=r"."):
        create_connection(TARGET, proxy="socks5://no-such-host.invalid")
