"""Ceilings on sessions over the workers of one server: real processes, one of which is killed."""

import os
import signal
from pathlib import Path

import gevent
import gevent.socket
import pytest

from tests.support.net import echo, recv_exactly, serving
from tests.support.proxy import Proxy, users_file
from tests.support.servers import read_reply, request
from tests.support.service import all_ready, lives, service

OPTIONS = ("--listen=127.0.0.1:0", "--workers=2", "--reuse-port", "--log-level=debug")
"""Each worker has a socket of its own, so that the kernel deals clients out to both."""


def ask(proxy: Proxy, to: tuple[str, int], user: str = "alice") -> tuple[gevent.socket.socket, int]:
    """A request of a user's, and the REP."""
    sock = proxy.dial()
    sock.sendall(b"\x05\x01\x02")
    assert recv_exactly(sock, 2) == b"\x05\x02"
    sock.sendall(bytes((1, len(user))) + user.encode() + b"\x06wonder")
    assert recv_exactly(sock, 2) == b"\x01\x00"
    sock.sendall(request(1, *to))
    return sock, read_reply(sock).rep


def workers_of(proxy: Proxy, name: str) -> set[int]:
    """Slots (of two) of the workers that have told an event."""
    return {(event["session"] - 1) % 2 for event in proxy.events(name)}


@pytest.fixture
def users(tmp_path: Path) -> Path:
    return users_file(tmp_path, alice="wonder", bob="wonder")


def test_a_users_ceiling_is_one_and_each_place_is_given_back(tmp_path: Path, users: Path) -> None:
    rules = tmp_path / "rules.conf"
    rules.write_text("allow user bob to everywhere sessions 2\nallow to everywhere\n")
    options = (*OPTIONS, f"--users={users}", f"--rules={rules}", "--sessions-per-user=6")
    with serving(echo) as to, service(tmp_path, *options) as proxy:
        all_ready(proxy, 2)
        closed = 0
        for _ in range(4):
            asked = [ask(proxy, to) for _ in range(16)]
            assert sorted(rep for _, rep in asked) == [0] * 6 + [2] * 10
            bobs = [ask(proxy, to, "bob") for _ in range(5)]
            assert sorted(rep for _, rep in bobs) == [0] * 2 + [2] * 3
            assert all(lives(sock) for sock, rep in asked + bobs if rep == 0)
            for sock, _ in asked + bobs:
                sock.close()
            closed += len(asked + bobs)
            proxy.wait_for(lambda n=closed: len(proxy.events("session_closed")) == n)
        assert workers_of(proxy, "session_established") == {0, 1}
        assert workers_of(proxy, "request_refused") == {0, 1}
        told = {(e["limit"], e["ceiling"], e["whose"]) for e in proxy.events("limit_reached")}
        assert told == {
            ("sessions_per_user", 6, "user alice"),
            ("sessions_of_rule", 2, "user bob"),
        }


def test_the_places_of_a_killed_worker_are_free_and_those_of_the_other_are_not(
    tmp_path: Path, users: Path
) -> None:
    options = (*OPTIONS, f"--users={users}", "--sessions-per-user=30")
    rules = tmp_path / "rules.conf"
    rules.write_text("allow to everywhere\n")
    with serving(echo) as to, service(tmp_path, *options, f"--rules={rules}") as proxy:
        victim, _ = all_ready(proxy, 2)
        running = [ask(proxy, to) for _ in range(30)]
        assert {rep for _, rep in running} == {0}
        assert ask(proxy, to)[1] == 2
        os.kill(victim, signal.SIGKILL)
        proxy.wait_for(lambda: len(proxy.events("listening")) == 3)
        left = sum(lives(sock) for sock, _ in running)
        assert 0 < left < 30
        again = [ask(proxy, to)[1] for _ in range(40)]
        assert again.count(0) == 30 - left


def test_a_reload_forgets_nobody(tmp_path: Path, users: Path) -> None:
    rules = tmp_path / "rules.conf"
    rules.write_text("allow to everywhere sessions 4\n")
    options = (*OPTIONS, f"--users={users}", f"--rules={rules}")
    with serving(echo) as to, service(tmp_path, *options) as proxy:
        all_ready(proxy, 2)
        assert [ask(proxy, to)[1] for _ in range(6)].count(0) == 4
        rules.write_text("deny port 1\nallow to everywhere sessions 7\n")
        proxy.reload()
        proxy.wait_for(lambda: len(proxy.events("reloaded")) == 3)
        assert [ask(proxy, to)[1] for _ in range(6)].count(0) == 3


def test_a_burst_passes_a_ceiling_by_one_at_most(tmp_path: Path, users: Path) -> None:
    options = (*OPTIONS, f"--users={users}", "--sessions-per-user=5")
    rules = tmp_path / "rules.conf"
    rules.write_text("allow to everywhere\n")
    with serving(echo) as to, service(tmp_path, *options, f"--rules={rules}") as proxy:
        all_ready(proxy, 2)
        closed = 0
        for _ in range(5):
            burst = [gevent.spawn(ask, proxy, to) for _ in range(60)]
            asked = [one.get(timeout=15.0) for one in burst]
            assert 5 <= sum(rep == 0 for _, rep in asked) <= 6
            for sock, _ in asked:
                sock.close()
            closed += 60
            proxy.wait_for(lambda n=closed: len(proxy.events("session_closed")) == n)
