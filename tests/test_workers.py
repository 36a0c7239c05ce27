"""``--workers``: several processes that serve as one, whatever happens to them."""

import os
import signal
import time
from pathlib import Path

import gevent
import gevent.socket
import pytest

from tests.support.load import good_clients, obedient_target
from tests.support.net import echo, recv_exactly, serving, unused_port
from tests.support.programs import run
from tests.support.proxy import COMMAND, Proxy, users_file
from tests.support.servers import read_reply, request
from tests.support.service import (
    all_ready,
    exists,
    lives,
    service,
    session,
    until,
    worker_pids,
)

TWO = "--workers=2"
ON_LOOPBACK = "--listen=127.0.0.1:0"


def sessions(proxy: Proxy, to: tuple[str, int], number: int) -> list[gevent.socket.socket]:
    """So many sessions at a time, each of which has had its reply."""
    waiting = [gevent.spawn(session, proxy, to) for _ in range(number)]
    return [one.get(timeout=15.0) for one in waiting]


def of_worker(proxy: Proxy, slot: int) -> set[int]:
    """Ids of the sessions that the worker in a slot (of two) has told of."""
    ids = {event["session"] for event in proxy.events() if "session" in event}
    return {number for number in ids if (number - 1) % 2 == slot}


def refused(proxy: Proxy) -> bool:
    """Whether nobody listens any more."""
    with gevent.socket.socket() as sock:
        return sock.connect_ex(proxy.address) != 0


@pytest.mark.parametrize("options", [(), ("--reuse-port",)], ids=["shared", "reuse-port"])
def test_two_workers_serve_as_one(tmp_path: Path, options: tuple[str, ...]) -> None:
    with (
        serving(echo) as to,
        service(tmp_path, ON_LOOPBACK, TWO, "--log-level=debug", *options) as proxy,
    ):
        pids = all_ready(proxy, 2)
        assert len(set(pids)) == 2
        assert proxy.pid not in pids
        assert len({event["address"] for event in proxy.events("listening")}) == 1
        running = sessions(proxy, to, 60)
        assert all(map(lives, running))
        # Each has some, and no number is of two sessions.
        proxy.wait_for(lambda: len(proxy.events("session_established")) == 60)
        ids = [event["session"] for event in proxy.events("session_established")]
        assert len(set(ids)) == 60
        assert {number % 2 for number in ids} == {0, 1}


def test_the_master_holds_no_session_and_no_thread(tmp_path: Path) -> None:
    with serving(echo) as to, service(tmp_path, ON_LOOPBACK, TWO) as proxy:
        pids = all_ready(proxy, 2)
        before = proxy.descriptors()
        running = sessions(proxy, to, 20)
        assert proxy.descriptors() == before
        proxy.signal(signal.SIGHUP)
        proxy.wait_for(lambda: len(proxy.events("reloaded")) == 3)
        assert os.listdir(f"/proc/{proxy.pid}/task") == [str(proxy.pid)]
        assert "anon_inode:[eventpoll]" in opened(pids[0])  # that is what a hub looks like
        assert "anon_inode:[eventpoll]" not in opened(proxy.pid)
        used = proxy.cpu_seconds()
        assert all(map(lives, running))
        assert proxy.cpu_seconds() - used < 0.1


def opened(pid: int) -> set[str]:
    """What a process has open."""
    folder = Path(f"/proc/{pid}/fd")
    return {os.readlink(folder / fd) for fd in os.listdir(folder)}


def test_a_worker_that_is_killed_takes_no_other_with_it(tmp_path: Path) -> None:
    with (
        serving(echo) as to,
        service(tmp_path, ON_LOOPBACK, TWO, "--log-level=debug") as proxy,
    ):
        victim, other = all_ready(proxy, 2)
        running = sessions(proxy, to, 60)
        proxy.wait_for(lambda: len(proxy.events("session_established")) == 60)
        of_other = len(of_worker(proxy, 1))
        assert 0 < of_other < 60
        os.kill(victim, signal.SIGKILL)
        began = time.monotonic()
        ended = proxy.wait_event("worker_ended")
        assert (ended["worker"], ended["pid"], ended["reason"]) == (0, victim, "SIGKILL")
        proxy.wait_for(lambda: len(proxy.events("listening")) == 3)
        assert time.monotonic() - began < 1.0
        assert worker_pids(proxy)[0] not in (victim, other)
        assert sum(map(lives, running)) == of_other
        before = {event["session"] for event in proxy.events("session_opened")}
        assert all(map(lives, sessions(proxy, to, 40)))
        proxy.wait_for(lambda: len(proxy.events("session_opened")) == 100)
        after = {event["session"] for event in proxy.events("session_opened")[60:]}
        assert not before & after  # the new worker's numbers are not the old one's
        assert proxy.events("worker_ended") == [ended]
        proxy.signal(signal.SIGUSR2)
        proxy.wait_for(lambda: len(proxy.events("state_told")) == 3)
        told = {event.get("worker"): event.get("sessions") for event in proxy.events("state_told")}
        assert told[0] + told[1] == of_other + 40


def test_a_worker_that_keeps_dying_is_replaced_ever_later(tmp_path: Path) -> None:
    with service(tmp_path, ON_LOOPBACK, TWO) as proxy:
        all_ready(proxy, 2)
        for times in range(1, 4):
            os.kill(worker_pids(proxy)[0], signal.SIGKILL)
            proxy.wait_for(lambda times=times: len(proxy.events("worker_started")) == 2 + times)
        assert [event["pause"] for event in proxy.events("worker_ended")] == [0.1, 0.2, 0.4]


def test_workers_go_when_their_master_is_killed(tmp_path: Path) -> None:
    with (
        serving(echo) as to,
        service(tmp_path, ON_LOOPBACK, TWO, code=-signal.SIGKILL) as proxy,
    ):
        pids = all_ready(proxy, 2)
        session(proxy, to)
        proxy.signal(signal.SIGKILL)
        until(lambda: not any(map(exists, pids)))
        assert refused(proxy)


def test_reloads_lose_no_session_and_no_client(tmp_path: Path) -> None:
    with serving(echo) as to, service(tmp_path, ON_LOOPBACK, TWO) as proxy:
        all_ready(proxy, 2)
        running = sessions(proxy, to, 200)
        with obedient_target() as target, good_clients(proxy, target, each_second=50) as waits:
            for times in range(1, 4):
                proxy.signal(signal.SIGHUP)
                proxy.wait_for(lambda times=times: len(proxy.events("reloaded")) == 3 * times)
            for _ in range(20):
                proxy.signal(signal.SIGHUP)
            proxy.wait_for(lambda: len(proxy.events("reloaded")) >= 12)
            gevent.sleep(0.3)
        assert len(waits) > 10
        assert all(map(lives, running))
        # A burst is not done one by one.
        assert len(proxy.events("reloaded")) < 3 * (3 + 20)
        assert not proxy.events("reload_refused")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_reload_that_judges_again_ends_what_is_no_longer_allowed(
    tmp_path: Path, workers: int
) -> None:
    rules = tmp_path / "rules"
    rules.write_text("allow to everywhere\n")
    options = (f"--workers={workers}", f"--rules={rules}", "--rejudge")
    with (
        serving(echo) as good,
        serving(echo) as bad,
        service(tmp_path, ON_LOOPBACK, *options) as proxy,
    ):
        proxy.wait_for(lambda: len(proxy.events("listening")) == workers)
        kept, lost = sessions(proxy, good, 20), sessions(proxy, bad, 20)
        proxy.reload()  # the same rules
        assert all(map(lives, kept + lost))
        rules.write_text(f"deny to everywhere port {bad[1]}\nallow to everywhere\n")
        proxy.signal(signal.SIGHUP)
        proxy.wait_for(lambda: len(proxy.events("session_closed")) == 20)
        assert all(map(lives, kept))
        assert not any(map(lives, lost))
        told = {(event["reason"], event["destination"]) for event in proxy.events("session_closed")}
        assert told == {("no_longer_allowed", f"127.0.0.1:{bad[1]}")}


def test_a_bad_reload_reaches_no_worker(tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text("allow to everywhere\n")
    with serving(echo) as to, service(tmp_path, ON_LOOPBACK, TWO, f"--rules={rules}") as proxy:
        all_ready(proxy, 2)
        rules.write_text("alow to everywhere\n")
        refusal = proxy.reload("reload_refused")
        assert refusal["reason"].startswith(f"{rules}:1:1: unknown verb 'alow'")
        assert all(map(lives, sessions(proxy, to, 10)))
        rules.write_text("allow to everywhere\n")
        proxy.reload()
        proxy.wait_for(lambda: len(proxy.events("reloaded")) == 3)
        assert len(proxy.events("reload_refused")) == 1


def test_who_takes_a_dead_worker_s_place_has_the_settings_of_the_last_good_reload(
    tmp_path: Path,
) -> None:
    config, rules, other = (tmp_path / name for name in ("config", "rules", "other"))
    rules.write_text("deny from any\n")
    other.write_text("allow to everywhere\n")
    config.write_text(f"rules = {rules}\n")
    with serving(echo) as to, service(tmp_path, ON_LOOPBACK, TWO, f"--config={config}") as proxy:
        all_ready(proxy, 2)
        config.write_text(f"rules = {other}\n")
        proxy.signal(signal.SIGHUP)
        proxy.wait_for(lambda: len(proxy.events("reloaded")) == 3)
        config.write_text("rules = /no/such/file\n")  # nobody has asked for that one yet
        proxy.reload("reload_refused")
        for pid in worker_pids(proxy).values():
            os.kill(pid, signal.SIGKILL)
        proxy.wait_for(lambda: len(proxy.events("listening")) == 4)
        assert all(map(lives, sessions(proxy, to, 10)))


def test_a_drain_with_200_sessions(tmp_path: Path) -> None:
    with serving(echo) as to, service(tmp_path, ON_LOOPBACK, TWO, "--drain=30") as proxy:
        pids = all_ready(proxy, 2)
        running = sessions(proxy, to, 200)
        half_open = proxy.dial()
        half_open.sendall(b"\x05\x01\x00")
        assert recv_exactly(half_open, 2) == b"\x05\x00"
        proxy.signal(signal.SIGTERM)
        began = time.monotonic()
        until(lambda: refused(proxy))
        assert time.monotonic() - began < 1.0
        assert all(map(lives, running))
        assert all(map(exists, pids))
        half_open.sendall(request(1, *to))  # a handshake in progress is finished
        assert read_reply(half_open).rep == 0
        half_open.close()
        for sock in running:
            sock.close()
        began = time.monotonic()
        assert proxy.wait() == 0
        assert time.monotonic() - began < 1.0
        assert [event["sessions_cut"] for event in proxy.events("stopped")] == [0, 0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_second_signal_ends_it_at_once(tmp_path: Path, number: int) -> None:
    with serving(echo) as to, service(tmp_path, ON_LOOPBACK, TWO, "--drain=60") as proxy:
        all_ready(proxy, 2)
        running = sessions(proxy, to, 20)
        proxy.signal(signal.SIGTERM)
        until(lambda: refused(proxy))
        assert all(map(lives, running))
        proxy.signal(number)
        began = time.monotonic()
        assert proxy.wait() == 0
        assert time.monotonic() - began < 1.0
        assert sum(event["sessions_cut"] for event in proxy.events("stopped")) == 20


def test_a_signal_to_the_whole_group_is_no_second_one(tmp_path: Path) -> None:
    """Ctrl-C on a terminal, and systemd's KillMode=control-group."""
    with serving(echo) as to, service(tmp_path, ON_LOOPBACK, TWO, "--drain=30") as proxy:
        pids = all_ready(proxy, 2)
        sock = session(proxy, to)
        for number in (signal.SIGINT, signal.SIGTERM):
            for pid in pids:
                os.kill(pid, number)
        proxy.signal(signal.SIGTERM)
        until(lambda: refused(proxy))
        assert lives(sock)
        sock.close()
        assert proxy.wait() == 0, proxy.events()


def test_usr1_opens_the_log_anew_in_all_of_them(tmp_path: Path) -> None:
    with serving(echo) as to, service(tmp_path, ON_LOOPBACK, TWO, "--log-level=debug") as proxy:
        pids = all_ready(proxy, 2)
        moved = proxy.log.with_suffix(".1")
        proxy.log.rename(moved)
        proxy.signal(signal.SIGUSR1)
        proxy.wait_for(proxy.log.exists)
        held = [f"/proc/{pid}/fd" for pid in (proxy.pid, *pids)]
        proxy.wait_for(lambda: all(holds(place, proxy.log) for place in held))
        assert not any(holds(place, moved) for place in held)
        sessions(proxy, to, 30)
        proxy.wait_for(lambda: len(proxy.events("session_established")) == 30)


def holds(place: str, file: Path) -> bool:
    """Whether a process has ``file`` open."""
    wanted = file.stat()
    return any(
        os.path.samestat(os.stat(f"{place}/{fd}"), wanted)
        for fd in os.listdir(place)
        if os.path.exists(f"{place}/{fd}")
    )


def test_a_port_in_use_is_refused_with_reuse_port_too(tmp_path: Path) -> None:
    port = unused_port()
    options = (f"--listen=127.0.0.1:{port}", TWO, "--reuse-port", "--control=off")
    with service(tmp_path, *options) as proxy:
        all_ready(proxy, 2)
        done = run([*COMMAND, *options])
        assert done.code == 75
        assert done.err.startswith(f"geosocks serve: 127.0.0.1:{port}: Address already in use; ")


def test_passwords_are_checked_in_both(tmp_path: Path) -> None:
    users = users_file(tmp_path, alice="wonder")
    login = b"\x01\x05alice\x06wonder"
    with serving(echo) as to, service(tmp_path, ON_LOOPBACK, TWO, f"--users={users}") as proxy:
        all_ready(proxy, 2)
        for word, answer in ((login, b"\x01\x00"), (login[:-1] + b"x", b"\x01\x01")) * 8:
            with proxy.dial() as sock:
                sock.sendall(b"\x05\x01\x02" + word)
                assert recv_exactly(sock, 2) == b"\x05\x02"
                assert recv_exactly(sock, 2) == answer
                if answer[1] == 0:
                    sock.sendall(request(1, *to))
                    assert read_reply(sock).rep == 0


def test_a_ceiling_is_shared_out(tmp_path: Path) -> None:
    with service(tmp_path, ON_LOOPBACK, TWO, "--max-sessions=9") as proxy:
        all_ready(proxy, 2)
        proxy.signal(signal.SIGUSR2)
        proxy.wait_for(lambda: len(proxy.events("state_told")) == 3)
        told = [event.get("max_sessions") for event in proxy.events("state_told")]
        assert sorted(filter(None, told)) == [5, 5]


def test_a_limit_of_a_user_holds_over_both(tmp_path: Path) -> None:
    with (
        serving(echo) as to,
        service(tmp_path, ON_LOOPBACK, TWO, "--sessions-per-user=5") as proxy,
    ):
        all_ready(proxy, 2)
        # Their places come and go in both workers' rows: after 5 there is no 6th, in any of them.
        first = [asked(proxy, to) for _ in range(20)]
        assert sum(rep == 0 for _, rep in first) == 5
        for sock, _ in first:
            sock.close()
        proxy.wait_for(lambda: len(proxy.events("session_closed")) == 5)
        second = [asked(proxy, to) for _ in range(20)]
        assert sum(rep == 0 for _, rep in second) == 5


def asked(proxy: Proxy, to: tuple[str, int]) -> tuple[gevent.socket.socket, int]:
    """A session, if it comes to one, and the REP."""
    sock = proxy.dial()
    sock.sendall(b"\x05\x01\x00" + request(1, *to))
    assert recv_exactly(sock, 2) == b"\x05\x00"
    return sock, read_reply(sock).rep
