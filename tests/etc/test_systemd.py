"""The units under a real systemd, as process 1: every feature works within the unit's walls."""

import hashlib
import json
import os
import random
import re
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import pytest

from geosocks.auth.gss import GssCredential
from geosocks.auth.userpass import Password
from geosocks.client import Client
from geosocks.errors import NegotiationFailed, RequestFailed
from tests.support.booted import Booted
from tests.support.certificates import Authority
from tests.support.dns import Dns, dns
from tests.support.kdc import Realm
from tests.support.net import echo, recv_exactly, serving, unused_port, wait_for
from tests.support.programs import needed, run
from tests.support.proxy import users_file
from tests.support.udp_client import answering
from tests.support.units import CONF, LOG, RULES, SERVICE, Service, inside, status

pytestmark = [pytest.mark.slow]

LISTENERS = ("plain", "password", "kerberos")


@pytest.fixture(scope="module")
def names() -> Iterator[Dns]:
    with dns({"echo.corp.test": ["127.0.0.1"]}) as server:
        yield server


ADMIN = unused_port()
OPTIONS = f"""
listen = 127.0.0.1:0?name=plain&methods=none
listen = 127.0.0.1:0?name=password&methods=username
listen = 127.0.0.1:0?name=kerberos&methods=gssapi
users = /etc/geosocks/users
keytab = /etc/geosocks/krb5.keytab
methods = gssapi,username
rules = {RULES}
log-file = {LOG}
log-level = debug
drain = 0
admin = 127.0.0.1:{ADMIN}
"""


@pytest.fixture(scope="module", params=[1, 2], ids=["alone", "two-workers"])
def service(
    request: pytest.FixtureRequest,
    machine: Booted,
    realm: Realm,
    names: Dns,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """The service with every method, as its unit starts it; by itself, and with workers."""
    users = users_file(tmp_path_factory.mktemp("users"), alice="wonder")
    machine.write("/etc/geosocks/users", users.read_bytes(), 0o640)
    machine.write("/etc/geosocks/krb5.keytab", Path(realm.keytab).read_bytes(), 0o640)
    machine.write("/etc/krb5.conf", Path(realm.env["KRB5_CONFIG"]).read_bytes())
    service = Service(machine, request.param)
    dns_server = f"dns-server = 127.0.0.1:{names.server.server_port}\n"
    service.start(f"{OPTIONS}workers = {service.workers}\n{dns_server}")
    service.until(lambda: len(service.addresses()) == len(LISTENERS))
    yield service
    machine.systemctl("stop", SERVICE)


@pytest.fixture
def clients(service: Service, realm: Realm) -> dict[str, Client]:
    """A client for each listener."""
    plain, password, kerberos = service.addresses()
    ticket = GssCredential("localhost", ccache=realm.ticket())
    return {
        "plain": Client(plain),
        "password": Client(password, [Password("alice", "wonder")]),
        "kerberos": Client(kerberos, [ticket]),
    }


@pytest.fixture(params=LISTENERS)
def client(request: pytest.FixtureRequest, clients: dict[str, Client]) -> Client:
    return clients[request.param]


@contextmanager
def closing(sock: Any) -> Iterator[Any]:
    try:
        yield sock
    finally:
        sock.close()


def test_the_walls_stand(service: Service) -> None:
    seen = status(service.pid)
    assert seen["NoNewPrivs"] == "1"
    assert seen["Seccomp"] == "2"
    assert {seen[name] for name in ("CapBnd", "CapPrm", "CapEff", "CapAmb")} == {f"{0:016x}"}
    assert set(seen["Uid"].split()) == {"987"}
    most = min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1])  # that of this process, too
    limits = Path(f"/proc/{service.pid}/limits").read_text()
    assert re.search(rf"^Max open files +{most} +{most} ", limits, re.MULTILINE)
    mounts = Path(f"/proc/{service.pid}/mountinfo").read_text()
    assert re.search(r" / / ro[, ]", mounts)


def test_connect(client: Client) -> None:
    with serving(echo) as target, closing(client.connect(target)) as sock:
        sock.sendall(b"hello")
        assert recv_exactly(sock, 5) == b"hello"


def test_bind(client: Client) -> None:
    with client.bind(("127.0.0.1", 0)) as bound:
        peer = gevent.socket.create_connection((str(bound.address.host), bound.address.port))
        with closing(peer), closing(bound.accept(timeout=5)[0]) as sock:
            peer.sendall(b"hello")
            assert recv_exactly(sock, 5) == b"hello"


def test_udp(client: Client) -> None:
    with answering() as (target, _), client.associate() as association:
        association.settimeout(5)
        association.sendto(b"hello", target)
        assert association.recvfrom()[0] == b"hello"


def test_wrong_passwords_and_refused_requests_are_told(
    service: Service, clients: dict[str, Client]
) -> None:
    stranger = Client(service.addresses()[1], [Password("alice", "wander")])
    with pytest.raises(NegotiationFailed):
        stranger.connect(("127.0.0.1", 9))
    with pytest.raises(RequestFailed, match="refused"):
        clients["plain"].connect(("127.0.0.1", unused_port()))


@pytest.mark.parametrize("name", ["echo.corp.test", "localhost"])
def test_names_by_dns_and_by_the_hosts_file(name: str, clients: dict[str, Client]) -> None:
    with serving(echo) as (_, port), closing(clients["plain"].connect((name, port))) as sock:
        sock.sendall(b"hello")
        assert recv_exactly(sock, 5) == b"hello"


def test_much_data_is_spliced_within_the_kernel(
    service: Service, clients: dict[str, Client]
) -> None:
    data = random.Random(1).randbytes(1 << 20)
    times = 64
    pipes = set()

    def send(sock: gevent.socket.socket, _: object) -> None:
        for _ in range(times):
            sock.sendall(data)

    read = hashlib.sha256()
    with serving(send) as target, closing(clients["plain"].connect(target)) as sock:
        while chunk := sock.recv(1 << 20):
            read.update(chunk)
            for pid in inside(service.machine):
                pipes |= {link for link in _descriptors(pid) if link.startswith("pipe:")}
    assert read.hexdigest() == hashlib.sha256(data * times).hexdigest()
    assert pipes


def _descriptors(pid: int) -> list[str]:
    found = []
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            found.append(str(link.readlink()))
        except OSError:
            continue
    return found


def test_the_log_file_is_opened_anew(service: Service, clients: dict[str, Client]) -> None:
    log = service.machine.root / LOG.lstrip("/")
    old = log.rename(log.with_suffix(".1"))
    service.machine.systemctl("kill", "--kill-who=main", "--signal=USR1", SERVICE)
    wait_for(log.exists)
    with pytest.raises(RequestFailed):
        clients["plain"].connect(("127.0.0.1", unused_port()))
    service.wait_event("request_refused")
    log.write_text(old.read_text() + log.read_text())
    old.unlink()


def test_a_reload_takes_effect_and_a_wrong_one_says_why(
    service: Service, clients: dict[str, Client]
) -> None:
    machine = service.machine

    def refuses(target: tuple[str, int]) -> None:
        with pytest.raises(RequestFailed, match="rule"):
            clients["plain"].connect(target)

    with serving(echo) as target:
        try:
            machine.write(RULES, "deny to loopback\n", 0o640)
            service.reload()
            refuses(target)
            machine.write(RULES, "allow form any\n", 0o640)
            machine.systemctl("reload", SERVICE, code=1)
            refuses(target)
        finally:
            machine.write(RULES, "allow to everywhere\n", 0o640)
            service.reload()
        clients["plain"].connect(target).close()
    assert machine.property(SERVICE, "NRestarts") == "0"


def test_the_status_page_and_the_control_socket(service: Service) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/sessions", "/"):
        done = run([needed("curl"), "--silent", "--fail", f"http://127.0.0.1:{ADMIN}{path}"])
        assert done.code == 0, path
        assert done.out
    told = service.machine.run("/opt/geosocks/current/bin/geosocks", "ctl", "status")
    assert told.code == 0, told.err


def test_a_stop_is_clean(service: Service) -> None:
    machine = service.machine
    machine.systemctl("stop", SERVICE)
    assert machine.property(SERVICE, "Result") == "success"
    assert machine.property(SERVICE, "ExecMainStatus") == "0"
    assert service.events("stopped")
    assert not (machine.root / "run/geosocks").exists()
    machine.systemctl("start", SERVICE)


def test_a_hub_that_stands_still_is_replaced(service: Service) -> None:
    machine = service.machine
    limit = "/run/systemd/system/geosocks.service.d/watchdog.conf"
    machine.write(limit, "[Service]\nWatchdogSec=1\nRestartSec=0\n")
    machine.systemctl("daemon-reload")
    machine.systemctl("restart", SERVICE)
    try:
        gevent.sleep(1.5)  # fed in time
        before = int(machine.property(SERVICE, "MainPID"))
        assert machine.property(SERVICE, "NRestarts") == "0"
        hub = _children(service.pid)[0] if service.workers > 1 else service.pid
        os.kill(hub, signal.SIGSTOP)
        if service.workers > 1:  # its master does that, and the other worker goes on
            wait_for(lambda: hub not in (now := _children(service.pid)) and len(now) == 2, 10.0)
            gevent.sleep(1.0)
            assert int(machine.property(SERVICE, "MainPID")) == before
            assert machine.property(SERVICE, "NRestarts") == "0"
            return
        wait_for(lambda: int(machine.property(SERVICE, "MainPID")) not in (0, before), 10.0)
        wait_for(lambda: machine.property(SERVICE, "ActiveState") == "active", 10.0)
        assert machine.property(SERVICE, "NRestarts") == "1"
    finally:
        (machine.root / limit.lstrip("/")).unlink()
        machine.systemctl("daemon-reload")
        machine.systemctl("restart", SERVICE)


def _children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_logs_to_the_journal(service: Service) -> None:
    machine = service.machine
    before = machine.read(CONF)
    machine.write(CONF, before.replace(f"log-file = {LOG}", "log-to = journald"), 0o640)
    machine.systemctl("restart", SERVICE)
    try:
        fields = ("--unit", SERVICE, "--output=json", "--since=-1min")

        def told() -> list[dict[str, Any]]:
            lines = map(json.loads, machine.journal(*fields).splitlines())
            return [line for line in lines if line["_TRANSPORT"] == "journal"]

        wait_for(lambda: any(line.get("GEOSOCKS_EVENT") == "listening" for line in told()))
    finally:
        machine.write(CONF, before, 0o640)
        machine.systemctl("restart", SERVICE)


def test_tls_unix_sockets_and_the_systems_own_resolver(machine: Booted, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    signed = authority.sign("proxy", "/CN=localhost", "IP:127.0.0.1")
    machine.write("/etc/geosocks/proxy.pem", Path(signed.both).read_bytes(), 0o640)
    service = Service(machine)
    service.start(f"""
listen = tls://127.0.0.1:0
listen = unix:/run/geosocks/socks?mode=666
tls-cert = /etc/geosocks/proxy.pem
resolver = thread
rules = {RULES}
log-file = {LOG}
drain = 0
""")
    try:
        service.until(lambda: len(service.events("listening")) == 2)
        (_, port) = service.addresses()[0]
        secure = Client.from_url(f"socks5+tls://127.0.0.1:{port}?ca={authority.ca}")
        with serving(echo) as (_, target), closing(secure.connect(("localhost", target))) as sock:
            sock.sendall(b"hello")
            assert recv_exactly(sock, 5) == b"hello"
        near = gevent.socket.socket(gevent.socket.AF_UNIX)
        near.connect(str(machine.root / "run/geosocks/socks"))
        with closing(near):
            near.sendall(b"\x05\x01\x00")
            assert recv_exactly(near, 2) == b"\x05\x00"
    finally:
        machine.systemctl("stop", SERVICE)


def test_a_wrong_configuration_is_told_and_not_tried_again(machine: Booted) -> None:
    machine.systemctl("stop", SERVICE)
    machine.write(CONF, "timeout-idle = soon\n", 0o640)
    machine.systemctl("start", SERVICE, code=1)
    assert machine.property(SERVICE, "ActiveState") == "failed"
    assert machine.property(SERVICE, "NRestarts") == "0"
    assert machine.property(SERVICE, "ExecMainStatus") == "2"
    assert f"{CONF}:1: " in machine.journal("--unit", SERVICE, "--lines=20")
