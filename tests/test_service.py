"""What service managers and init scripts ask of ``geosocks serve``: real processes and sockets."""

import os
import pwd
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import gevent
import gevent.socket
import pytest

from tests.support.net import echo, recv_exactly, serving, unused_port
from tests.support.programs import Finished, Popen, run
from tests.support.proxy import COMMAND, environment, users_file
from tests.support.servers import read_reply, request
from tests.support.service import (
    BY_SYSTEMD,
    Manager,
    all_ready,
    exists,
    lives,
    service,
    session,
    until,
)

ON_LOOPBACK = "--listen=127.0.0.1:0"
NOBODY = pwd.getpwnam("nobody")


def is_root(test: Callable[..., None]) -> Callable[..., None]:
    """A test that becomes somebody else, which only root can."""
    mark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
    return mark(pytest.mark.usefixtures("unmeasured")(test))


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coverage is written to a directory where nobody may not write."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


@pytest.fixture
def manager() -> Iterator[Manager]:
    """A service manager that listens."""
    manager = Manager()
    yield manager
    manager.close()


def listening(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """A socket as a .socket unit makes it."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    sock.listen(1024)
    return sock


# --- sockets handed over ----------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_it_serves_on_a_socket_that_it_is_handed(tmp_path: Path, workers: int) -> None:
    options = ("--listen=systemd", f"--workers={workers}")
    with (
        listening() as sock,
        serving(echo) as to,
        service(tmp_path, *options, passed=[sock], names="geosocks.socket") as proxy,
    ):
        assert proxy.port == sock.getsockname()[1]
        assert proxy.events("listening")[0]["name"] == "geosocks.socket"
        assert lives(session(proxy, to))


def test_sockets_of_several_names_and_one_of_its_own(tmp_path: Path) -> None:
    users = users_file(tmp_path, alice="secret")
    rules = tmp_path / "rules"
    rules.write_text("allow listener inside to everywhere\nallow listener outside to 192.0.2.1\n")
    path = tmp_path / "own"
    with listening() as one, listening("::1") as two, serving(echo) as to:
        options = (
            "--listen=systemd:inside",
            f"--listen=systemd:outside?methods=username&users={users}",
            f"--listen=unix:{path}",
            f"--rules={rules}",
        )
        with service(tmp_path, *options, passed=[one, two], names="inside:outside") as proxy:
            proxy.wait_for(lambda: len(proxy.events("listening")) == 3)
            names = [event.get("name") for event in proxy.events("listening")]
            assert names == ["inside", "outside", None]
            assert lives(session(proxy, to))
            with gevent.socket.socket(socket.AF_INET6) as sock:
                sock.connect(two.getsockname())
                sock.sendall(b"\x05\x02\x00\x02")
                assert recv_exactly(sock, 2) == b"\x05\x02"
            with gevent.socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
                sock.sendall(b"\x05\x01\x00")
                assert recv_exactly(sock, 2) == b"\x05\x00"


def complaint(*options: object, passed: list[socket.socket], **env: str) -> Finished:
    """What is said where it cannot start with these."""
    fds = {"LISTEN_FDS": str(len(passed))} if passed else {}
    process = Popen(
        [*(BY_SYSTEMD if passed else ()), *COMMAND, "--control=off", *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=tuple(range(3, 3 + len(passed))),
        preexec_fn=lambda: [os.dup2(sock.fileno(), 3 + n) for n, sock in enumerate(passed)],
        env=environment(**fds, **env),
    )
    out, err = process.communicate()
    return Finished(process.wait(), out, err.decode())


def test_without_a_socket_it_says_who_would_hand_one_over() -> None:
    done = complaint("--listen=systemd", passed=[])
    assert (done.code, done.out) == (2, b"")
    assert done.err.startswith("geosocks serve: --listen systemd: no such socket was handed over")
    with listening() as sock:
        done = complaint("--listen=systemd:other", passed=[sock], LISTEN_FDNAMES="inside")
        assert done.code == 2
        assert "--listen systemd:other: no such socket" in done.err


def test_sockets_of_another_process_are_not_taken() -> None:
    done = complaint("--listen=systemd", passed=[], LISTEN_PID="1", LISTEN_FDS="1")
    assert done.code == 2
    assert "no such socket was handed over" in done.err


def test_a_socket_that_does_not_listen_is_refused() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        done = complaint("--listen=systemd", passed=[sock])
    assert done.code == 2
    assert "LISTEN_FDS: descriptor 3 is no stream socket that listens" in done.err


def test_one_name_for_two_listeners_is_refused() -> None:
    with listening() as sock:
        options = ("--listen=systemd", "--listen=127.0.0.1:0?name=inside")
        done = complaint(*options, passed=[sock], LISTEN_FDNAMES="inside")
    assert done.code == 2
    assert "--listen: two have the name inside" in done.err


def test_a_socket_off_loopback_does_not_open_the_proxy_to_everybody() -> None:
    with listening("0.0.0.0") as sock:
        done = complaint("--listen=systemd", passed=[sock])
    assert done.code == 2
    assert "would be an open proxy" in done.err


def test_the_configuration_is_checked_without_sockets() -> None:
    done = run([*COMMAND, "--listen=systemd", "--check-config"])
    assert (done.code, done.out) == (0, b"configuration is good\n")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_restart_refuses_nobody(tmp_path: Path, workers: int) -> None:
    """A client every 10 ms, while one service ends and the next begins on the same socket."""
    options = ("--listen=systemd", f"--workers={workers}", "--drain=10")
    served: list[float] = []
    ending = False

    def client(address: tuple[str, int], to: tuple[str, int]) -> None:
        with gevent.socket.socket() as sock:
            sock.connect(address)
            sock.sendall(b"\x05\x01\x00" + request(1, *to))
            assert recv_exactly(sock, 2) == b"\x05\x00"
            assert read_reply(sock).rep == 0
            assert lives(sock)
        served.append(time.monotonic())

    def come(address: tuple[str, int], to: tuple[str, int]) -> list[gevent.Greenlet]:
        clients = []
        while not ending:
            clients.append(gevent.spawn(client, address, to))
            gevent.sleep(0.01)
        return clients

    with listening() as sock, serving(echo) as to:
        with service(tmp_path, *options, passed=[sock], name="one") as proxy:
            coming = gevent.spawn(come, proxy.address, to)
            until(lambda: len(served) >= 20)
            proxy.signal(signal.SIGTERM)
            assert proxy.wait() == 0
        with service(tmp_path, *options, passed=[sock], name="two"):
            so_far = len(served)
            until(lambda: len(served) >= so_far + 30)
            ending = True
            clients = coming.get()
            gevent.joinall(clients, raise_error=True, timeout=10.0)
            assert len(served) == len(clients)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_drain_leaves_the_socket_s_file_to_who_comes_next(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "socks"
    options = (f"--listen=unix:{path}", f"--workers={workers}", "--drain=30")

    def client(to: tuple[str, int]) -> gevent.socket.socket:
        sock = gevent.socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        sock.sendall(b"\x05\x01\x00" + request(1, *to))
        assert recv_exactly(sock, 2) == b"\x05\x00"
        assert read_reply(sock).rep == 0
        return sock

    with serving(echo) as to, service(tmp_path, *options, name="one") as first:
        old = client(to)
        first.signal(signal.SIGTERM)
        until(lambda: not path.exists())
        with service(tmp_path, *options, name="two"):
            new = client(to)
            assert lives(old)
            old.close()
            assert first.wait() == 0
            assert path.exists()
            with client(to) as another:
                assert lives(another)
            assert lives(new)
            new.close()
        assert not path.exists()


# --- what the service manager is told ---------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_it_tells_how_it_is(tmp_path: Path, manager: Manager, workers: int) -> None:
    rules = tmp_path / "rules"
    rules.write_text("allow to everywhere\n")
    options = (ON_LOOPBACK, f"--workers={workers}", f"--rules={rules}", "--drain=10")
    env = {"NOTIFY_SOCKET": manager.path}
    with serving(echo) as to, service(tmp_path, *options, env=env) as proxy:
        manager.wait("READY")
        assert len(all_ready(proxy, workers)) in (0, workers)
        sock = session(proxy, to)
        now = time.monotonic_ns() // 1000
        proxy.signal(signal.SIGHUP)
        assert 0 <= int(manager.wait("RELOADING")["MONOTONIC_USEC"]) - now < 5_000_000
        manager.wait("READY", 2)
        rules.write_text("nonsense\n")
        proxy.signal(signal.SIGHUP)
        told = manager.wait("READY", 3)
        assert "reload refused" in told["STATUS"]
        assert manager.count("STOPPING") == 0
        proxy.signal(signal.SIGTERM)
        manager.wait("STOPPING")
        assert lives(sock)
        sock.close()
        assert proxy.wait() == 0
    assert manager.count("WATCHDOG") == 0  # nobody asked for it
    order = [key for _, facts in manager.told for key in facts if key in ("READY", "RELOADING")]
    assert order == ["READY", "RELOADING", "READY", "RELOADING", "READY"]


def test_the_hub_feeds_the_watchdog(tmp_path: Path, manager: Manager) -> None:
    env = {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "800000"}
    with service(tmp_path, ON_LOOPBACK, env=env) as proxy:
        manager.wait("WATCHDOG", 5)
        fed = [when for when, facts in manager.told if "WATCHDOG" in facts]
        assert max(b - a for a, b in pairwise(fed)) < 0.7
        proxy.signal(signal.SIGSTOP)  # as a hub that is stuck: no greenlet gets its turn
        gevent.sleep(0.05)
        so_far = manager.count("WATCHDOG")
        gevent.sleep(0.9)
        assert manager.count("WATCHDOG") == so_far
        proxy.signal(signal.SIGCONT)
        manager.wait("WATCHDOG", so_far + 2)


def test_one_worker_that_is_stuck_is_replaced_before_the_watchdog_bites(
    tmp_path: Path, manager: Manager
) -> None:
    env = {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "2000000"}
    with (
        serving(echo) as to,
        service(tmp_path, ON_LOOPBACK, "--workers=2", env=env) as proxy,
    ):
        pids = all_ready(proxy, 2)
        manager.wait("WATCHDOG", 2)
        os.kill(pids[1], signal.SIGSTOP)
        ended = proxy.wait_event("worker_ended", seconds=10.0)
        assert (ended["pid"], ended["reason"]) == (pids[1], "it stood still: SIGKILL")
        so_far = manager.count("WATCHDOG")
        manager.wait("WATCHDOG", so_far + 2)
        fed = [when for when, facts in manager.told if "WATCHDOG" in facts]
        gaps = [b - a for a, b in pairwise(fed)]
        assert 0.8 < max(gaps) < 2.0  # it went hungry, and was fed in time
        assert lives(session(proxy, to))
        assert len(proxy.events("worker_ended")) == 1


def test_nobody_to_tell_is_no_trouble(tmp_path: Path) -> None:
    env = {"NOTIFY_SOCKET": str(tmp_path / "none"), "WATCHDOG_USEC": "100000"}
    with serving(echo) as to, service(tmp_path, ON_LOOPBACK, env=env) as proxy:
        assert lives(session(proxy, to))


# --- privileges -------------------------------------------------------------------------------


def low_port() -> int:
    """A port below 1024 that nobody uses on loopback."""
    for port in range(1023, 600, -1):
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)):
                return port
    pytest.skip("no port below 1024 is free")


def status(pid: int) -> dict[str, str]:
    """What the kernel says of a process (proc(5))."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A directory of nobody's; pytest's own are beyond everybody's reach."""
    with tempfile.TemporaryDirectory() as name:
        os.chown(name, NOBODY.pw_uid, NOBODY.pw_gid)
        yield Path(name)


@is_root
@pytest.mark.parametrize("workers", [1, 2])
def test_it_binds_as_root_and_then_is_nobody_for_good(shared_folder: Path, workers: int) -> None:
    port = low_port()
    path = shared_folder / "socks"
    pidfile = shared_folder / "pid"
    options = (
        f"--listen=127.0.0.1:{port}",
        f"--listen=unix:{path}",
        "--user=nobody",
        f"--workers={workers}",
        f"--pidfile={pidfile}",
    )
    with serving(echo) as to, service(shared_folder, *options) as proxy:
        pids = [proxy.pid] + (all_ready(proxy, 2) if workers == 2 else [])
        assert lives(session(proxy, to))
        for pid in pids:
            told = status(pid)
            assert told["Uid"].split() == [str(NOBODY.pw_uid)] * 4
            assert told["Gid"].split() == [str(NOBODY.pw_gid)] * 4
            assert told["Groups"].split() in ([], [str(NOBODY.pw_gid)])
            assert told["NoNewPrivs"] == "1"
            assert {int(told[name], 16) for name in ("CapEff", "CapPrm", "CapAmb")} == {0}
            # Its memory, and what it has open, is for root's eyes only (PR_SET_DUMPABLE).
            assert os.stat(f"/proc/{pid}/mem").st_uid == 0
        assert path.stat().st_uid == NOBODY.pw_uid
        proxy.reload()
        assert lives(session(proxy, to))
    assert not path.exists()


@is_root
def test_what_it_cannot_read_afterwards_stops_it_at_the_start(shared_folder: Path) -> None:
    """Not at the first reload, in the middle of the night."""
    users = users_file(shared_folder, alice="secret")  # root's, 0600
    done = run([*COMMAND, ON_LOOPBACK, "--user=nobody", f"--users={users}", "--control=off"])
    assert done.code == 2
    assert done.err == f"geosocks serve: {users}: cannot be read: Permission denied\n"


@is_root
def test_a_pidfile_in_roots_own_directory_is_emptied(shared_folder: Path, tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    options = (ON_LOOPBACK, "--user=nobody", f"--pidfile={pidfile}")
    for name in ("one", "two"):
        with service(shared_folder, *options, name=name) as proxy:
            proxy.wait_for(lambda proxy=proxy: pidfile.read_text() == f"{proxy.pid}\n")
            assert pidfile.stat().st_uid == 0  # as start-stop-daemon(8) wants it
        assert pidfile.read_text() == ""


@is_root
def test_a_group_of_its_own_choice(shared_folder: Path) -> None:
    with service(shared_folder, ON_LOOPBACK, "--user=nobody", "--group=1") as proxy:
        assert status(proxy.pid)["Gid"].split() == ["1"] * 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--user=no-such-user",), "--user: there is no user 'no-such-user'"),
        (("--group=no-such-group",), "--group: there is no group 'no-such-group'"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_who_does_not_exist_is_not_become(options: tuple[str, ...], says: str) -> None:
    done = run([*COMMAND, ON_LOOPBACK, "--control=off", *options])
    assert done.code == 2
    assert done.err.startswith(f"geosocks serve: {says}")


@is_root
def test_only_root_becomes_another() -> None:
    as_nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    done = run([*as_nobody, *COMMAND, ON_LOOPBACK, "--control=off", "--user=root"])
    if "Permission denied" in done.err or "No module named" in done.err:
        pytest.skip("nobody may not read this interpreter, or this checkout")
    assert done.code == 2
    assert done.err == "geosocks serve: --user, --group: only root can become root\n"


# --- pidfile and daemon -----------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_the_pidfile_names_who_takes_the_signals(tmp_path: Path, workers: int) -> None:
    pidfile = tmp_path / "pid"
    pidfile.write_text("999999\n")  # a crash has left it behind
    options = (ON_LOOPBACK, f"--pidfile={pidfile}", f"--workers={workers}")
    with service(tmp_path, *options) as proxy:
        proxy.wait_for(lambda: pidfile.read_text() == f"{proxy.pid}\n")
        done = run([*COMMAND, ON_LOOPBACK, f"--pidfile={pidfile}", "--control=off"])
        assert done.code == 75
        told = f"{pidfile}: a server runs already, with process id {proxy.pid}"
        assert done.err == f"geosocks serve: {told}\n"
        assert pidfile.read_text() == f"{proxy.pid}\n"
    assert not pidfile.exists()


def test_a_pidfile_that_cannot_be_written(tmp_path: Path) -> None:
    done = run([*COMMAND, ON_LOOPBACK, f"--pidfile={tmp_path}/none/pid", "--control=off"])
    assert done.code == 2
    assert "none/pid: pidfile cannot be written: No such file" in done.err


def test_a_killed_master_s_pidfile_is_free_again(tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    options = (ON_LOOPBACK, f"--pidfile={pidfile}", "--workers=2")
    with service(tmp_path, *options, code=-signal.SIGKILL) as proxy:
        pids = all_ready(proxy, 2)
        proxy.wait_for(lambda: pidfile.read_text() != "")
        proxy.signal(signal.SIGKILL)
        proxy.wait()
        until(lambda: not any(map(exists, pids)))
    with service(tmp_path, *options, name="next") as proxy:
        proxy.wait_for(lambda: pidfile.read_text() == f"{proxy.pid}\n")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Path]:
    """Where a daemon is to write its pidfile; it is killed at the end if it still lives."""
    pidfile = tmp_path / "pid"
    yield pidfile
    text = pidfile.read_text() if pidfile.exists() else ""
    if text and exists(int(text)):
        os.kill(int(text), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_daemon_serves_when_its_command_ends(tmp_path: Path, daemon: Path, workers: int) -> None:
    port = unused_port()
    log = tmp_path / "log"
    done = run(
        [
            *(*COMMAND, f"--listen=127.0.0.1:{port}", "--daemon", f"--workers={workers}"),
            *(f"--pidfile={daemon}", f"--log-file={log}", "--control=off", "--drain=0"),
        ]
    )
    assert (done.code, done.out, done.err) == (0, b"", "")
    pid = int(daemon.read_text())  # it is there already, and so is the listener
    with serving(echo) as to, gevent.socket.socket() as sock:
        sock.connect(("127.0.0.1", port))
        sock.sendall(b"\x05\x01\x00" + request(1, *to))
        assert recv_exactly(sock, 2) == b"\x05\x00"
        assert read_reply(sock).rep == 0
    assert os.getsid(pid) not in (pid, os.getsid(0))  # on no terminal, and with no way to one
    for fd in range(3):
        assert os.readlink(f"/proc/{pid}/fd/{fd}") == os.devnull
    os.kill(pid, signal.SIGTERM)
    until(lambda: not exists(pid))
    assert not daemon.exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_daemon_that_cannot_start_says_so_where_it_was_called(
    tmp_path: Path, daemon: Path, workers: int
) -> None:
    log = tmp_path / "log"
    options = ("--daemon", f"--workers={workers}", f"--pidfile={daemon}", "--control=off")
    with listening() as taken:
        port = taken.getsockname()[1]
        done = run([*COMMAND, f"--listen=127.0.0.1:{port}", *options, f"--log-file={log}"])
        assert done.code == 75
        assert done.err.startswith(f"geosocks serve: 127.0.0.1:{port}: Address already in use")
    assert not daemon.exists()
    done = run([*COMMAND, ON_LOOPBACK, *options, f"--log-file={tmp_path}/none/log"])
    assert done.code == 2
    assert "log file cannot be written" in done.err
    done = run([*COMMAND, ON_LOOPBACK, *options, f"--log-file={log}", "--rules=/no/such/file"])
    assert done.code == 2
    assert done.err == "geosocks serve: /no/such/file: cannot be read: No such file or directory\n"
