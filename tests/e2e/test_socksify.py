"""Dante's socksify, which puts programs that know of no proxy behind one, as the client."""

import sys
from pathlib import Path

import pytest

from tests.support.dns import dns
from tests.support.net import echo, serving
from tests.support.programs import Finished, needed, run
from tests.support.proxy import Proxy, environment, running, users_file
from tests.support.web import web

pytestmark = pytest.mark.e2e

PAGE = bytes(range(256)) * 500


def socksify(folder: Path, proxy: Proxy, *argv: object, given: bytes = b"") -> Finished:
    """Run a program whose connections all go through ``proxy``, names unresolved."""
    settings = folder / "socks.conf"
    settings.write_text(
        "resolveprotocol: fake\n"
        "route {\n"
        f"    from: 0.0.0.0/0 to: 0.0.0.0/0 via: 127.0.0.1 port = {proxy.port}\n"
        "    protocol: tcp\n"
        "    command: connect\n"
        "    proxyprotocol: socks_v5\n"
        "    method: none username\n"
        "}\n"
    )
    env = environment(
        SOCKS_CONF=str(settings),
        SOCKS_AUTOADD_LANROUTES="no",  # it reaches this host's networks directly, else
        SOCKS_USERNAME="alice",
        SOCKS_PASSWORD="wonder",
    )
    return run((needed("socksify"), *argv), given=given, env=env)


def test_curl_that_knows_of_no_proxy(tmp_path: Path) -> None:
    needed("curl")
    with (
        dns({"name.test": ["127.0.0.1"]}) as names,
        web({"/page": PAGE}) as site,
        running(tmp_path, "--dns-server", f"127.0.0.1:{names.server.server_port}") as proxy,
    ):
        url = site.url("/page", "name.test")
        done = socksify(tmp_path, proxy, "curl", "-q", "-4", "-sS", url)
        assert (done.code, done.out) == (0, PAGE), done.err
        assert proxy.wait_event("session_closed")["destination"] == f"name.test:{site.port}"


def test_with_a_password(tmp_path: Path) -> None:
    needed("curl")
    users = users_file(tmp_path, alice="wonder")
    with web({"/page": PAGE}) as site, running(tmp_path, "--users", users) as proxy:
        done = socksify(tmp_path, proxy, "curl", "-q", "-4", "-sS", site.url("/page"))
        assert (done.code, done.out) == (0, PAGE), done.err
        assert proxy.wait_event("session_closed")["identity"] == "alice"


HALF_CLOSING = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as sock:
    sock.sendall(sys.stdin.buffer.read())
    sock.shutdown(socket.SHUT_WR)
    with sock.makefile("rb") as stream:
        sys.stdout.buffer.write(stream.read())
"""


def test_a_program_that_ends_its_way_and_reads_on(tmp_path: Path) -> None:
    with serving(echo) as (_, port), running(tmp_path) as proxy:
        program = (sys.executable, "-c", HALF_CLOSING, port)
        done = socksify(tmp_path, proxy, *program, given=PAGE)
        assert (done.code, done.out) == (0, PAGE), done.err
        closed = proxy.wait_event("session_closed")
        assert (closed["up"], closed["down"]) == (len(PAGE), len(PAGE))
        assert closed["reason"] == "closed"
