"""Bounds of the page's own HTTP server, and what it does with bad requests."""

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import gevent
import gevent.socket
import pytest

pytest.importorskip("prometheus_client", reason="the extra metrics is not installed")

from geosocks.admin import http, open_admin, start_admin
from tests.admin.http import dial, get, page, parse, say
from tests.support.net import recv_all, wait_for
from tests.support.servers import proxy

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture(autouse=True)
def _silence(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Nothing that a client does is worth a word on standard error."""
    yield
    sys.stderr.flush()
    assert capfd.readouterr().err == ""


NO_REQUESTS = {
    "one word": b"nonsense\r\n\r\n",
    "a version in letters": b"GET / HTTP/x\r\n\r\n",
    "half a version": b"GET / HTTP/1\r\n\r\n",
    "version 2": b"GET / HTTP/2.0\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9 with another method": b"POST /\r\n\r\n",
    "SOCKS": b"\x05\x01\x00\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 101 + b"\r\n",
    "a length in letters": b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    "a negative length": b"GET / HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    "words for a logger": b"%s%n%d / HTTP/1.1\r\n\r\n %s",
}


def test_what_is_no_request_is_refused() -> None:
    with page() as (admin, _, _):
        for what, octets in NO_REQUESTS.items():
            assert say(admin.address, octets).startswith(b"HTTP/1.1 4"), what
        assert get(admin.address, "/healthz").status == 200


def test_what_is_too_long_is_not_read() -> None:
    with page() as (admin, _, _):
        for octets in (
            b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\na: " + b"x" * 70_000 + b"\r\n\r\n",
            b"GET / HTTP/1.1\r\n" + (b"a: " + b"x" * 1000 + b"\r\n") * 50 + b"\r\n",
            b"x" * 1_000_000,
        ):
            with suppress(ConnectionResetError, BrokenPipeError):
                answered = say(admin.address, octets)
                assert not answered or b"HTTP/1.1 200" not in answered
        assert get(admin.address, "/healthz").status == 200


def test_only_get_and_head() -> None:
    with page() as (admin, _, _):
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "X"):
            refused = get(admin.address, "/", method)
            assert (refused.status, refused.header("Allow")) == (405, "GET, HEAD")


def test_head_is_get_without_the_body() -> None:
    with page() as (admin, _, _):
        for path in ("/metrics", "/healthz", "/readyz", "/sessions", "/none"):
            one, other = get(admin.address, path), get(admin.address, path, "HEAD")
            assert (one.status, one.header("content-type")) == (
                other.status,
                other.header("content-type"),
            )
            assert other.body == b""


def test_a_body_is_not_waited_for() -> None:
    with page() as (admin, _, _):
        began = time.monotonic()
        for head in ("Content-Length: 1000000", "Transfer-Encoding: chunked"):
            octets = f"POST / HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n".encode()
            assert parse(say(admin.address, octets)).status == 405
        expecting = b"PUT / HTTP/1.1\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
        assert parse(say(admin.address, expecting)).status == 405
        assert time.monotonic() - began < 2.0


def test_one_request_a_connection() -> None:
    with page() as (admin, _, _):
        octets = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2
        answered = say(admin.address, octets)
        assert answered.count(b"HTTP/1.1 200") == 1
        assert parse(answered).header("Connection") == "close"


def test_who_says_nothing_is_cut_and_so_is_who_reads_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "SECONDS", 0.3)
    with page() as (admin, _, _):
        with dial(admin.address) as silent, dial(admin.address) as slow:
            slow.sendall(b"GET / HTTP/1.1\r\nHo")
            began = time.monotonic()
            assert recv_all(silent) == b""
            recv_all(slow)
            assert 0.2 < time.monotonic() - began < 2.0
        monkeypatch.setattr(
            admin, "metrics_text", lambda accept: ("text/plain", b"x" * 20_000_000), raising=True
        )
        with dial(admin.address) as deaf:
            deaf.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            wait_for(lambda: len(admin._http.pool) == 1)
            wait_for(lambda: len(admin._http.pool) == 0)


def test_no_more_connections_than_its_share_and_the_others_wait() -> None:
    with page() as (admin, server, _):
        idle = [dial(admin.address) for _ in range(http.MOST)]
        wait_for(lambda: len(admin._http.pool) == http.MOST)
        late = gevent.spawn(get, admin.address, "/healthz")
        gevent.sleep(0.1)
        assert not late.ready()
        assert server.accepting  # the proxy's own clients do not wait
        idle.pop().close()
        assert late.get(timeout=3).status == 200
        for sock in idle:
            sock.close()


def test_who_leaves_in_the_middle_is_no_trouble() -> None:
    with page() as (admin, _, _):
        for octets in (b"", b"GET", b"GET / HTTP/1.1\r\nHost: lo"):
            with dial(admin.address) as sock:
                sock.sendall(octets)
        for _ in range(5):
            with dial(admin.address) as sock:
                sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
                sock.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_LINGER, b"\1\0\0\0" * 2)
        wait_for(lambda: not len(admin._http.pool))
        assert get(admin.address, "/healthz").status == 200


def test_a_unix_socket_is_for_its_owner_and_goes_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with proxy() as (server, witness):
        place = open_admin(str(path))
        with start_admin(server, place) as admin:
            assert path.stat().st_mode & 0o777 == 0o600
            assert get(str(path), "/healthz", headers={"Host": "whatever"}).status == 200
            assert admin.address == str(path)
        assert path.exists()  # whoever opened it closes it
        place.close()
        assert not path.exists()
        with start_admin(server, str(path)):
            assert get(str(path), "/readyz").status == 200
        assert not path.exists()
    assert len(witness) == len([event for event in witness if "Crashed" not in repr(event)])


def test_closing_hangs_up_and_may_be_done_twice() -> None:
    with page() as (admin, server, _):
        before = len(server.emit.observers)
        with dial(admin.address) as sock:
            wait_for(lambda: len(admin._http.pool) == 1)
            admin.close()
            admin.close()
            assert recv_all(sock) == b""
        assert len(server.emit.observers) == before - 2
        with pytest.raises(ConnectionRefusedError):
            dial(admin.address)
