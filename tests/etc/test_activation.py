"""geosocks.socket holds the port: while the service is restarted, nobody is refused."""

import time
from collections import Counter
from collections.abc import Iterator

import gevent
import gevent.event
import gevent.socket
import pytest

from geosocks.client import Client
from tests.support.booted import Booted
from tests.support.net import echo, recv_exactly, serving, unused_port
from tests.support.units import CONF, LOG, RULES, SERVICE, Service

pytestmark = pytest.mark.slow

SOCKET = "geosocks.socket"
EVERY = 0.01


@pytest.fixture(params=[1, 2], ids=["alone", "two-workers"])
def service(request: pytest.FixtureRequest, machine: Booted) -> Iterator[Service]:
    """The service, not started yet, behind a socket that listens on ``service.port``."""
    service = Service(machine, request.param)
    service.port = unused_port()
    machine.write(
        f"/etc/systemd/system/{SOCKET}.d/port.conf",
        f"[Socket]\nListenStream=\nListenStream=127.0.0.1:{service.port}\n",
    )
    lines = (
        f"workers = {service.workers}",
        "drain = 10",
        f"rules = {RULES}",
        f"log-file = {LOG}",
        "log-level = debug",
    )
    machine.write(CONF, "\n".join(("listen = systemd", *lines, "")), 0o640)
    (machine.root / LOG.lstrip("/")).unlink(missing_ok=True)
    machine.systemctl("daemon-reload")
    machine.systemctl("reset-failed", SERVICE, code=None)
    machine.systemctl("start", SOCKET)
    yield service
    machine.systemctl("stop", SOCKET, SERVICE)


def session(port: int, target: tuple[str, int]) -> str:
    """What comes of a session in which five octets go there and back."""
    try:
        sock = Client(("127.0.0.1", port)).connect(target, timeout=10.0)
    except ConnectionRefusedError:
        return "refused"
    except OSError as error:
        return repr(error)
    try:
        sock.sendall(b"hello")
        return "served" if recv_exactly(sock, 5) == b"hello" else "cut"
    finally:
        sock.close()


def test_the_first_client_starts_the_service(service: Service) -> None:
    assert service.machine.property(SERVICE, "ActiveState") == "inactive"
    with serving(echo) as target:
        assert session(service.port, target) == "served"
    service.until(lambda: service.machine.property(SERVICE, "ActiveState") == "active")
    service.until(lambda: service.addresses() == [("127.0.0.1", service.port)])
    # The name is that of the socket unit, FileDescriptorName=.
    assert service.wait_event("session_opened")["listener"] == "socks"


def test_restarts_refuse_no_client(service: Service) -> None:
    outcomes: Counter[str] = Counter()
    waits: list[float] = []
    end = gevent.event.Event()

    def client(target: tuple[str, int]) -> str:
        begun = time.monotonic()
        try:
            return session(service.port, target)
        finally:
            waits.append(time.monotonic() - begun)

    def clients(target: tuple[str, int]) -> None:
        running = []
        while not end.wait(EVERY):
            running.append(gevent.spawn(client, target))
        for one in gevent.joinall(running, timeout=20):
            outcomes[str(one.value)] += 1
        assert len(running) == outcomes.total()

    with serving(echo) as target:
        assert session(service.port, target) == "served"
        pids = {service.pid}
        greenlet = gevent.spawn(clients, target)
        for verb in ("restart", "reload", "restart"):
            gevent.sleep(0.3)
            service.machine.systemctl(verb, SERVICE)
            pids.add(service.pid)
        gevent.sleep(0.3)
        end.set()
        greenlet.get()
    assert len(pids) == 3
    print(f"two restarts: {dict(outcomes)}, the longest in {max(waits):.2f} s")
    assert outcomes["refused"] == 0
    assert outcomes == {"served": outcomes.total()}
