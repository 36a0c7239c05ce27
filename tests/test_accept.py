"""The accept loop when there is no more to accept with: no descriptors, or no place."""

import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import gevent.socket
import pytest

from geosocks.codes import Cmd
from tests.support.load import OFFER, one_session
from tests.support.net import echo, recv_exactly, serving, wait_for
from tests.support.proxy import Proxy, running
from tests.support.servers import read_reply, request

pytestmark = pytest.mark.skipif(
    not hasattr(resource, "prlimit"), reason="another process's limits cannot be set here"
)


@pytest.fixture
def target() -> Iterator[tuple[str, int]]:
    with serving(echo) as address:
        yield address


def session(proxy: Proxy, to: tuple[str, int]) -> gevent.socket.socket:
    """A client that is being served."""
    sock = proxy.dial()
    sock.sendall(OFFER + request(Cmd.CONNECT, *to))
    assert recv_exactly(sock, 2) == b"\x05\x00"
    assert read_reply(sock).rep == 0
    return sock


def leave_descriptors(proxy: Proxy, number: int) -> None:
    """Let the server open ``number`` more and then no more (prlimit(2))."""
    highest = max(int(path.name) for path in Path(f"/proc/{proxy.pid}/fd").iterdir())
    limit = highest + 1 + number
    resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (limit, limit))


def works(sock: gevent.socket.socket) -> bool:
    """Whether octets go to the target and come back."""
    sock.sendall(b"are you there")
    return recv_exactly(sock, 13) == b"are you there"


def seconds_until(what: Callable[[], object]) -> float:
    """How long ``what`` takes."""
    began = time.monotonic()
    what()
    return time.monotonic() - began


# --- no descriptors ---------------------------------------------------------------------------


@pytest.mark.slow
def test_without_descriptors_it_waits_in_silence(tmp_path: Path, target: tuple[str, int]) -> None:
    with running(tmp_path) as proxy:
        served = session(proxy, target)
        leave_descriptors(proxy, 20)
        idle = [proxy.dial() for _ in range(40)]  # half of them stay in the kernel's queue
        paused = proxy.wait_event("accept_paused")
        assert "open files" in paused["error"]
        assert paused["level"] == "error"

        spent, began = proxy.cpu_seconds(), time.monotonic()
        for _ in range(20):
            assert works(served)
            gevent.sleep(0.1)
        assert proxy.cpu_seconds() - spent < 0.1 * (time.monotonic() - began)
        assert len(proxy.events("accept_paused")) == 1
        assert len(proxy.events("session_opened")) < 1 + len(idle)

        for sock in idle:
            sock.close()
        assert seconds_until(lambda: session(proxy, target)) < 1.5
        assert works(served)
        assert len(proxy.events("accept_paused")) == 1


def test_a_target_that_there_is_no_descriptor_for_is_a_general_failure(
    tmp_path: Path, target: tuple[str, int]
) -> None:
    with running(tmp_path) as proxy:
        served, waiting = session(proxy, target), proxy.dial()
        waiting.sendall(OFFER)
        assert recv_exactly(waiting, 2) == b"\x05\x00"
        leave_descriptors(proxy, 0)
        waiting.sendall(request(Cmd.CONNECT, *target))
        assert read_reply(waiting).rep == 1
        assert "open files" in proxy.wait_event("request_refused")["reason"]
        assert works(served)


def test_a_low_limit_makes_a_low_ceiling(tmp_path: Path, target: tuple[str, int]) -> None:
    """Sessions are counted so that descriptors do not run out, though bulk ones need pipes, too."""
    with running(tmp_path, descriptors=164) as proxy:
        served = [session(proxy, target) for _ in range(12)]
        proxy.dial()
        ceiling = proxy.wait_event("limit_reached")["ceiling"]
        assert ceiling == 12
        payload = bytes(3_000_000)
        for sock in served:
            sender = gevent.spawn(sock.sendall, payload)
            assert recv_exactly(sock, len(payload)) == payload
            sender.get()
        assert not proxy.events("accept_paused")


# --- no place ---------------------------------------------------------------------------------


def test_at_the_ceiling_clients_wait_their_turn(tmp_path: Path, target: tuple[str, int]) -> None:
    with running(tmp_path, "--max-sessions", 3) as proxy:
        served = [session(proxy, target) for _ in range(3)]
        waiting = [gevent.spawn(session, proxy, target) for _ in range(4)]
        reached = proxy.wait_event("limit_reached")
        assert (reached["limit"], reached["ceiling"]) == ("sessions", 3)
        gevent.sleep(0.2)
        assert not any(client.ready() for client in waiting)
        assert all(map(works, served))
        for number, sock in enumerate(served, 1):
            sock.close()
            wait_for(lambda n=number: sum(client.ready() for client in waiting) == n, 1.0)  # type: ignore[misc]
        next(client for client in waiting if client.ready()).value.close()
        wait_for(lambda: all(client.ready() for client in waiting), 1.0)
        assert len(proxy.events("limit_reached")) == 1


@pytest.mark.slow
def test_a_crowd_at_the_ceiling_is_served_one_after_the_other(
    tmp_path: Path, target: tuple[str, int]
) -> None:
    with serving(_first_octet_is_an_order) as to, running(tmp_path, "--max-sessions", 4) as proxy:
        crowd = [gevent.spawn(one_session, proxy, to) for _ in range(400)]
        gevent.joinall(crowd, timeout=10.0, raise_error=True)
        assert all(client.successful() for client in crowd)
        assert len(proxy.events("limit_reached")) == 1
        proxy.wait_event("session_closed", 400)
        spent = proxy.cpu_seconds()
        full = [session(proxy, target) for _ in range(4)]
        outside = [proxy.dial() for _ in range(50)]
        gevent.sleep(1.0)
        assert proxy.cpu_seconds() - spent < 0.1
        assert all(map(works, full))
        assert len(outside) == 50


def _first_octet_is_an_order(sock: gevent.socket.socket, address: object) -> None:
    if sock.recv(1):
        echo(sock, address)
