"""Active FTP by BIND: a server that comes back to the client, as vsftpd does when told PORT.

Dante's socksify puts ordinary FTP clients behind the proxy; what they listen on becomes a BIND.
"""

import os
import pwd
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import gevent
import gevent.event
import gevent.socket
import pytest

from tests.support.net import keep_port, serving, unused_port, wait_for
from tests.support.programs import Finished, needed, run
from tests.support.proxy import Event, Proxy, environment, running, users_file

pytestmark = pytest.mark.e2e

SERVER, STRANGER = "127.0.0.2", "127.0.0.3"
FILE = bytes(range(256)) * 2000


@dataclass(frozen=True)
class Ftp:
    """A running FTP server; ``folder`` is what it serves."""

    port: int
    folder: Path

    def url(self, name: str) -> str:
        """Where a file is."""
        return f"ftp://{SERVER}:{self.port}/{name}"


@contextmanager
def vsftpd(folder: Path) -> Iterator[Ftp]:
    """Serve FTP to anybody on loopback, in active mode only."""
    program = needed("vsftpd")
    files = folder / "files"
    files.mkdir()
    (files / "file").write_bytes(FILE)
    with keep_port() as keeper:
        port = keeper.getsockname()[1]
        settings = {
            "listen": "YES",
            "listen_ipv6": "NO",
            "listen_address": SERVER,
            "listen_port": port,
            "background": "NO",
            "run_as_launching_user": "YES",
            "seccomp_sandbox": "NO",
            "anonymous_enable": "YES",
            "no_anon_password": "YES",
            "ftp_username": pwd.getpwuid(os.getuid()).pw_name,
            "anon_root": files,
            "write_enable": "YES",
            "anon_upload_enable": "YES",
            "port_enable": "YES",
            "pasv_enable": "NO",
            "connect_from_port_20": "NO",
            "xferlog_enable": "NO",
        }
        conf = folder / "vsftpd.conf"
        conf.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        with (folder / "vsftpd.out").open("wb") as out:
            process = subprocess.Popen((program, conf), stdout=out, stderr=out)
        try:
            wait_for(lambda: answers((SERVER, port)))
            yield Ftp(port, files)
        finally:
            process.kill()
            process.wait()


def answers(address: tuple[str, int]) -> bool:
    """True when somebody listens there."""
    with gevent.socket.socket() as sock:
        code: int = sock.connect_ex(address)
        return code == 0


def socksify(
    folder: Path, proxy: Proxy, *argv: object, version: int = 5, **given: bytes
) -> Finished:
    """Run a program whose connections, both ways, go through ``proxy``."""
    settings = folder / "socks.conf"
    settings.write_text(
        "resolveprotocol: fake\n"
        "route {\n"
        f"    from: 0.0.0.0/0 to: 0.0.0.0/0 via: 127.0.0.1 port = {proxy.port}\n"
        "    protocol: tcp\n"
        "    command: connect bind\n"
        f"    proxyprotocol: socks_v{version}\n"
        f"    method: none {'username' if version == 5 else ''}\n"
        "}\n"
    )
    env = environment(
        SOCKS_CONF=str(settings),
        SOCKS_AUTOADD_LANROUTES="no",  # it reaches this host's networks directly, else
        SOCKS_USERNAME="alice",
        SOCKS_PASSWORD="wonder",
    )
    return run((needed("socksify"), *argv), env=env, **given)


def bound(proxy: Proxy) -> Event:
    """The end of the session that was a BIND, once there is one."""

    def binds() -> list[Event]:
        return [e for e in proxy.events("session_closed") if e.get("command") == "bind"]

    proxy.wait_for(binds)
    [event] = binds()
    return event


@pytest.fixture(scope="module")
def ftp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ftp]:
    with vsftpd(tmp_path_factory.mktemp("ftp")) as server:
        yield server


@pytest.mark.parametrize("version", [5, 4])
def test_curl_gets_a_file(tmp_path: Path, ftp: Ftp, version: int) -> None:
    words = ("curl", "-q", "-sS", "--max-time", 30, "--ftp-port", "-", ftp.url("file"))
    with running(tmp_path) as proxy:
        done = socksify(tmp_path, proxy, *words, version=version)
        assert (done.code, done.out) == (0, FILE), done.err
        event = bound(proxy)
        assert (event["down"], event["reason"]) == (len(FILE), "closed")
        assert event["dialled"].startswith(SERVER)
        assert event["destination"].startswith(SERVER)


def test_curl_puts_a_file_with_a_password_and_a_range_of_ports(tmp_path: Path, ftp: Ftp) -> None:
    file = tmp_path / "file"
    file.write_bytes(FILE[:-1])
    port = unused_port()
    words = ("curl", "-q", "-sS", "--max-time", 30, "--ftp-port", "-", "-T", file, ftp.url("put"))
    options = ("--users", users_file(tmp_path, alice="wonder"), "--bind-ports", f"{port}-{port}")
    with running(tmp_path, *options) as proxy:
        done = socksify(tmp_path, proxy, *words)
        assert done.code == 0, done.err
        wait_for(lambda: (ftp.folder / "put").read_bytes() == FILE[:-1])
        assert proxy.wait_event("bind_waiting")["bound"] == f"127.0.0.1:{port}"
        event = bound(proxy)
        assert (event["up"], event["identity"]) == (len(FILE) - 1, "alice")


@pytest.mark.parametrize("version", [5, 4])
def test_tnftp_gets_a_file(tmp_path: Path, ftp: Ftp, version: int) -> None:
    got = tmp_path / "got"
    lines = f"open {SERVER} {ftp.port}\nuser anonymous x\nbinary\nget file {got}\nbye\n"
    with running(tmp_path) as proxy:
        words = (needed("tnftp"), "-A", "-n", "-v")
        done = socksify(tmp_path, proxy, *words, version=version, given=lines.encode())
        assert got.exists(), (done.out, done.err)
        assert got.read_bytes() == FILE
        assert bound(proxy)["down"] == len(FILE)


def test_a_stranger_neither_gets_in_nor_ends_it(tmp_path: Path, ftp: Ftp) -> None:
    """Strangers come between PORT and RETR, which the way to the server holds back for them."""
    gone = gevent.event.Event()

    def hold_back(client: gevent.socket.socket, _: object) -> None:
        server = gevent.socket.socket()
        server.connect((SERVER, ftp.port))
        back = gevent.spawn(copy, server, client)
        while octets := client.recv(4096):
            if octets.startswith(b"RETR"):
                gone.wait()
            server.sendall(octets)
        server.shutdown(socket.SHUT_WR)
        back.join()
        server.close()

    with serving(hold_back, SERVER) as (_, port), running(tmp_path) as proxy:
        url = Ftp(port, ftp.folder).url("file")
        words = ("curl", "-q", "-sS", "--max-time", 30, "--ftp-port", "-", url)
        client = gevent.spawn(socksify, tmp_path, proxy, *words)
        host, _, bound_port = proxy.wait_event("bind_waiting")["bound"].rpartition(":")
        for _ in range(3):
            assert is_sent_away((host, int(bound_port)))
        gone.set()
        done = client.get()
        assert (done.code, done.out) == (0, FILE), done.err
        dropped = proxy.wait_event("strangers_dropped")
        assert dropped["count"] == 3
        assert dropped["first"].startswith(STRANGER)
        assert bound(proxy)["dialled"].startswith(SERVER)


def is_sent_away(address: tuple[str, int]) -> bool:
    """True when a stranger is reset, which may be as soon as it connects."""
    with gevent.socket.socket() as stranger:
        stranger.bind((STRANGER, 0))
        try:
            stranger.connect(address)
            stranger.recv(1)
        except ConnectionResetError:
            return True
        return False


def copy(source: gevent.socket.socket, sink: gevent.socket.socket) -> None:
    with suppress(OSError):
        while octets := source.recv(4096):
            sink.sendall(octets)


def test_rules_that_take_no_bind(tmp_path: Path, ftp: Ftp) -> None:
    rules = tmp_path / "rules"
    rules.write_text("deny command bind\nallow to everywhere\n")
    words = ("curl", "-q", "-sS", "--max-time", 30, "--ftp-port", "-", ftp.url("file"))
    with running(tmp_path, "--rules", rules) as proxy:
        done = socksify(tmp_path, proxy, *words)
        assert (done.code == 0, done.out) == (False, b"")
        refused = proxy.wait_event("request_refused")
        assert (refused["command"], refused["reply"]) == ("bind", "not_allowed")
