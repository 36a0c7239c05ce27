"""``geosocks ctl``: what it prints, by what exit code, of servers that really run."""

import io
import json
import os
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import pytest

from geosocks import __version__
from geosocks.auth.userpass import Password
from geosocks.cli import ctl
from geosocks.client import Client
from geosocks.errors import AuthFailed
from tests.support.load import good_clients, obedient_target, percentile
from tests.support.net import echo, recv_all, serving, wait_for
from tests.support.programs import Popen, run
from tests.support.proxy import Proxy, environment, running, users_file

Target = tuple[str, int]


class Asked:
    """A server to be asked, and who asks."""

    def __init__(self, proxy: Proxy, path: Path) -> None:
        self.proxy = proxy
        self.path = path

    def says(self, *words: object, code: int = 0) -> str:
        """What ``geosocks ctl`` prints when it ends with ``code``, complaints last."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            ended = ctl.main(["--socket", str(self.path), *map(str, words)])
        assert ended == code, err.getvalue()
        return out.getvalue() + err.getvalue()

    def rows(self, *words: object) -> list[dict[str, Any]]:
        """What it prints with ``--json``."""
        return [json.loads(line) for line in self.says("--json", *words).splitlines()]

    def session(self, user: str, to: Target) -> Any:
        """One that is open."""
        return Client(self.proxy.address, [Password(user, "pw")]).connect(to)


@contextmanager
def asked(folder: Path, *options: object) -> Iterator[Asked]:
    path = folder / "control.sock"
    users = users_file(folder, alice="pw", bob="pw")
    with running(folder, "--control", path, "--users", users, *options) as proxy:
        proxy.wait_for(path.exists)
        yield Asked(proxy, path)
    assert not path.exists()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    """One for the tests that change nothing."""
    with asked(tmp_path_factory.mktemp("ctl")) as one:
        yield one


@pytest.fixture
def to() -> Iterator[Target]:
    with serving(echo) as address:
        yield address
        gevent.sleep(0.02)  # who was accepted just now gets a turn to see that it is over


# --- looking ----------------------------------------------------------------------------------


def test_status(server: Asked) -> None:
    lines = server.says("status").splitlines()
    assert lines[0].startswith(f"geosocks {__version__}, up ")
    assert lines[1] == f"listens on 127.0.0.1:{server.proxy.port}"
    head, cells = lines[3].split(), lines[4].split()
    told = dict(zip(head, cells, strict=True))
    assert told["WORKER"] == "0"
    assert told["PID"] == str(server.proxy.pid)
    assert (told["STATE"], told["LOG"]) == ("serving", "debug")
    (row,) = server.rows("status")
    assert (row["pid"], row["workers"]) == (server.proxy.pid, 1)


def test_sessions_and_users(server: Asked, to: Target) -> None:
    with server.session("alice", to) as one, server.session("bob", to) as other:
        one.sendall(b"x" * 1200)
        other.sendall(b"y")
        assert len(one.recv(1200)) + len(other.recv(1)) > 1
        wait_for(lambda: sum(row["down"] for row in server.rows("sessions")) == 1201)
        head, *lines = server.says("sessions", "--sort", "octets").splitlines()
        assert head.split() == [
            *("SESSION", "USER", "CLIENT", "COMMAND", "DESTINATION"),
            *("UP", "DOWN", "AGE", "IDLE"),
        ]
        first = dict(zip(head.split(), lines[0].split(), strict=True))
        assert (first["USER"], first["UP"], first["DOWN"]) == ("alice", "1.2k", "1.2k")
        assert first["DESTINATION"] == f"{to[0]}:{to[1]}"
        assert [row["identity"] for row in server.rows("sessions", "--user", "bob")] == ["bob"]
        assert len(server.rows("sessions", "--from", "127.0.0.0/8", "--to", "127.0.0.1")) == 2
        assert server.rows("sessions", "--to", "*.example.org") == []
        assert "default:1: allow from loopback" in server.says("sessions", "--wide")
        ids = [row["session"] for row in server.rows("sessions")]
        assert [row["session"] for row in server.rows("sessions", "--reverse")] == ids[::-1]
        for order in ctl.SORTS:
            assert len(server.rows("sessions", "--sort", order)) == 2
        users = server.says("users").splitlines()
        assert users[0].split() == ["USER", "SESSIONS", "UP", "DOWN"]
        assert {tuple(line.split()) for line in users[1:]} == {
            ("alice", "1", "1.2k", "1.2k"),
            ("bob", "1", "1", "1"),
        }


def test_limits(server: Asked) -> None:
    lines = server.says("limits").splitlines()
    assert lines[0].split() == ["LIMIT", "USED", "CEILING", "WHOSE"]
    assert lines[1].split()[0] == "sessions"
    rows = {row["limit"]: row for row in server.rows("limits")}
    assert rows["udp_associations"] == {
        "limit": "udp_associations",
        "key": None,
        "used": 0,
        "ceiling": 1000,
    }


def test_penalties_and_pardon(server: Asked) -> None:
    assert server.says("penalties").split() == ["SOURCE", "REFUSED", "FOR", "DELAY"]
    assert server.says("pardon", "192.0.2.7", code=1) == (
        "geosocks ctl: 192.0.2.7 has no penalty\n"
    )
    assert '"pardoned": false' in server.says("pardon", "--json", "2001:db8::7", code=1)
    assert "'a' is no address" in server.says("pardon", "a", code=1)


def test_a_source_that_fails_too_often_is_told_and_pardoned(tmp_path: Path, to: Target) -> None:
    with asked(tmp_path, "--penalty-exempt", "192.0.2.0/24") as server:
        for _ in range(12):
            with pytest.raises(AuthFailed):
                Client(server.proxy.address, [Password("alice", "no")]).connect(to)
        (row,) = server.rows("penalties")
        assert row["source"] == "127.0.0.1"
        assert row["delay"] > 0
        assert server.says("penalties").splitlines()[1].split()[:2] == ["127.0.0.1", "-"]
        assert server.says("pardon", "127.0.0.1") == "127.0.0.1 is pardoned\n"
        assert server.rows("penalties") == []
        server.session("alice", to).close()


def test_explain(server: Asked) -> None:
    assert server.says("explain", "--user", "alice", "connect", "192.0.2.7", 80) == (
        "connect to 192.0.2.7:80, asked by 'alice' with method username from 127.0.0.1\n"
        "allow  default:1: allow from loopback to everywhere\n"
        "       covers 192.0.2.7 (reserved)\n"
        "allowed, to 192.0.2.7, by default:1: allow from loopback to everywhere\n"
    )
    loop = server.says("explain", "--user", "a", "connect", "::1", server.proxy.port, code=1)
    assert "refused with X'02': this server itself is the destination" in loop
    denied = server.says("explain", "--from", "192.0.2.1", "udp", "192.0.2.7", 80, code=1)
    assert "refused with X'02': no rule allows" in denied
    assert "note: no listener takes method none" in denied
    (facts,) = server.rows("explain", "connect", "::1", 80)
    assert facts["addresses"] == ["::1"]


# --- mistakes ---------------------------------------------------------------------------------

WRONG = [
    (("sesions",), "invalid choice: 'sesions'"),
    ((), "required: VERB"),
    (("kill",), "kill whom?"),
    (("kill", "x"), "'x' is no session id"),
    (("kill", "0"), "'0' is no session id"),
    (("log-level",), "required: LEVEL"),
    (("log-level", "loud"), "invalid choice: 'loud'"),
    (("sessions", "--sort", "size"), "invalid choice: 'size'"),
    (("explain", "connect", "x" * 300, "80"), "argument HOST"),
    (("explain", "connect", "::1", "70000"), "no port from 0 to 65535"),
    (("top", "--sort", "x"), "invalid choice: 'x'"),
]


@pytest.mark.parametrize(("words", "says"), WRONG, ids=lambda value: str(value)[:40])
def test_mistakes_are_told(
    words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        ctl.main(["--socket", "/nowhere", *words])
    assert end.value.code == 2
    assert says in capsys.readouterr().err


REFUSED = [
    (("sessions", "--from", "here"), "from: 'here' is no address or network"),
    (("events", "--event", "session_close"), "did you mean session_closed?"),
    (("kill", "--from", "10.0.0.0/99"), "no address or network"),
]


@pytest.mark.parametrize(("words", "says"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_the_server_refuses_is_told_in_a_line(
    server: Asked, words: tuple[str, ...], says: str
) -> None:
    said = server.says(*words, code=1)
    assert said.startswith("geosocks ctl: ")
    assert says in said
    assert said.count("\n") == 1


VERBS = ("status", "sessions", "users", "limits", "reload", "drain", "events")


@pytest.mark.parametrize(
    "words", [*((verb,) for verb in VERBS), ("kill", "7"), ("log-level", "info"), ("top", "--once")]
)
def test_where_no_server_is_one_is_told_so(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "control.sock"
    assert ctl.main(["--socket", str(path), *words]) == 1
    said = capsys.readouterr().err
    assert said == f"geosocks ctl: no server runs that has its control socket at {path}\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_who_may_not_ask_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name) / "of-root"
        place.mkdir(mode=0o700)
        done: list[int] = []

        def as_nobody() -> None:  # Linux: seteuid of a thread of its own, by the raw call
            libc_setresuid(65534)
            done.append(ctl.main(["--socket", str(place / "control.sock"), "status"]))

        thread = threading.Thread(target=as_nobody)
        thread.start()
        thread.join()
        assert done == [1]
        assert "permission denied; it is for the server's own user and root" in (
            capsys.readouterr().err
        )


def libc_setresuid(uid: int) -> None:
    """Change this thread's user only; the C library's own call would change all threads'."""
    import ctypes

    setresuid = {"x86_64": 117, "aarch64": 147}.get(os.uname().machine)
    if setresuid is None:
        pytest.skip("the number of setresuid(2) is not known here")
    assert ctypes.CDLL(None, use_errno=True).syscall(setresuid, uid, uid, uid) == 0


# --- changing ---------------------------------------------------------------------------------


def test_kill_ends_sessions(tmp_path: Path, to: Target) -> None:
    with asked(tmp_path) as server:
        one, other = server.session("alice", to), server.session("bob", to)
        ids = {row["identity"]: row["session"] for row in server.rows("sessions")}
        assert server.says("kill", ids["alice"]) == "1 session ended\n"
        assert recv_all(one) == b""
        closed = server.proxy.wait_event("session_closed")
        assert (closed["session"], closed["reason"]) == (ids["alice"], "killed")
        used = server.proxy.wait_event("control_used")
        assert (used["uid"], used["what"]) == (os.geteuid(), f"kill {ids['alice']}: 1")
        assert server.says("kill", ids["alice"], code=1) == (
            f"0 sessions ended\ngeosocks ctl: there is no session {ids['alice']}\n"
        )
        assert server.says("kill", "--user", "alice") == "0 sessions ended\n"
        assert server.rows("kill", "--from", "127.0.0.0/8") == [{"killed": 1, "missing": []}]
        assert recv_all(other) == b""
        one.close()
        other.close()


def test_reload_says_what_came_of_it(tmp_path: Path) -> None:
    rules = tmp_path / "rules.conf"
    rules.write_text("allow from loopback to loopback\n")
    with asked(tmp_path, "--rules", rules) as server:
        question = ("explain", "--user", "alice", "connect", "127.0.0.1", 80)
        assert "allowed" in server.says(*question)
        rules.write_text("deny port 80\n")
        assert "allowed" in server.says(*question)  # the policy in force, not the file
        assert server.says("reload") == "reloaded: policy\n"
        assert "rules.conf:1: deny port 80" in server.says(*question, code=1)
        rules.write_text("alow to any\n")
        said = server.says("reload", code=1)
        assert said.startswith(f"geosocks ctl: not reloaded: {rules}:1:1: ")
        assert "rules.conf:1: deny port 80" in server.says(*question, code=1)


def test_drain_ends_the_server_with_its_last_session(tmp_path: Path, to: Target) -> None:
    with asked(tmp_path, "--drain", 60) as server:
        session = server.session("alice", to)
        assert server.says("drain") == "draining: 1 session goes on\n"
        server.proxy.wait_event("draining")
        assert server.says("status").split()[-1] == "draining"
        assert "the server drains" in server.says("reload", code=1)
        session.close()
        assert server.proxy.wait() == 0


def test_drain_again_ends_it_now(tmp_path: Path, to: Target) -> None:
    with asked(tmp_path, "--drain", 60) as server:
        session = server.session("alice", to)
        server.says("drain")
        server.proxy.wait_event("draining")
        assert "it drained already, so it ends now" in server.says("drain")
        assert server.proxy.wait() == 0
        session.close()


def test_log_level_changes_what_is_logged(tmp_path: Path, to: Target) -> None:
    with asked(tmp_path) as server:
        assert server.says("log-level", "warning") == "log level warning, was debug\n"
        server.session("alice", to).close()
        wait_for(lambda: not server.rows("sessions"))
        assert server.says("log-level", "debug") == "log level debug, was warning\n"
        server.session("bob", to).close()
        closed = server.proxy.wait_event("session_closed")
        assert closed["identity"] == "bob"
        assert len(server.proxy.events("session_opened")) == 1
        assert len(server.proxy.events("control_used")) == 2


def test_a_taken_path_is_an_error_if_it_was_asked_for(tmp_path: Path) -> None:
    with asked(tmp_path) as server:
        words = ("serve", "--listen", "127.0.0.1:0", "--control", server.path)
        second = run([sys.executable, "-m", "geosocks", *words])
        assert second.code == 75
        assert "another path" in second.err
        assert f"--control {server.path}: Address already in use" in second.err
        assert server.rows("status")[0]["pid"] == server.proxy.pid


def test_a_taken_path_is_told_if_nobody_asked_for_it(tmp_path: Path) -> None:
    with asked(tmp_path) as server:
        other = tmp_path / "other"
        other.mkdir()
        argv = ("--listen=127.0.0.1:0", "--log-format=json", f"--log-file={other / 'log'}")
        process = Popen(
            [sys.executable, "-m", "geosocks", "serve", *argv],
            env=environment(RUNTIME_DIRECTORY=str(tmp_path)),
        )
        try:
            second = Proxy(process, other / "log", other / "errors")
            second.wait_for((other / "log").exists)
            event = second.wait_event("control_unavailable")
            assert event["path"] == str(server.path)
            assert "in use" in event["reason"]
        finally:
            process.terminate()
            assert process.wait() == 0
        assert server.rows("status")[0]["pid"] == server.proxy.pid


def test_a_group_may_be_let_in(tmp_path: Path) -> None:
    path = tmp_path / "place" / "control.sock"
    with running(tmp_path, "--control", f"{path}?mode=660", "--workers", 2) as proxy:
        for one in (path, Path(f"{path}.1")):
            proxy.wait_for(one.exists)
            proxy.wait_for(lambda one=one: stat.S_IMODE(one.stat().st_mode) == 0o660)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750


# --- following --------------------------------------------------------------------------------


def test_events_are_shown_until_the_server_ends(tmp_path: Path, to: Target) -> None:
    with asked(tmp_path) as server:
        words = ("--socket", server.path, "events", "--event", "session_closed")
        with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
            process = Popen(
                list(map(str, (sys.executable, "-m", "geosocks", "ctl", *words))),
                stdout=out,
                stderr=err,
                env=environment(),
            )
        said = tmp_path / "out"
        with gevent.Timeout(10):
            while "closed: alice" not in said.read_text():
                server.session("alice", to).close()
                gevent.sleep(0.1)
        server.proxy.signal(15)
        assert process.wait() == 1
        assert (tmp_path / "err").read_text() == "geosocks ctl: the server has ended\n"


# --- under load -------------------------------------------------------------------------------


def test_a_server_under_load_is_asked_and_told(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with (
        obedient_target() as to,
        running(tmp_path, "--control", path, log_level="info") as proxy,
    ):
        proxy.wait_for(path.exists)
        server = Asked(proxy, path)
        victim = Client(proxy.address).connect(to)
        victim.sendall(b"E")
        with good_clients(proxy, to, each_second=50) as waits:
            wait_for(lambda: len(waits) > 20)
            row = server.rows("sessions", "--sort", "age")[0]
            assert (
                server.says("explain", "connect", to[0], to[1])
                .splitlines()[-1]
                .startswith("allowed, to 127.0.0.1")
            )
            assert "sessions" in server.says("top", "--once").splitlines()[0]
            assert server.says("kill", row["session"]) == "1 session ended\n"
            assert recv_all(victim) == b""
            wait_for(lambda: len(waits) > 60)
        assert percentile(waits, 0.9) < 1.0
        proxy.wait_for(
            lambda: "killed" in [one["reason"] for one in proxy.events("session_closed")]
        )
        victim.close()


# --- several workers --------------------------------------------------------------------------


def test_all_workers_are_asked_and_told(tmp_path: Path, to: Target) -> None:
    rules = tmp_path / "rules.conf"
    rules.write_text("allow to everywhere\n")
    with asked(tmp_path, "--workers", 2, "--drain", 60, "--rules", rules) as server:
        server.proxy.wait_for(Path(f"{server.path}.1").exists)
        wait_for(lambda: len(server.rows("status")) == 2)
        assert [row["worker"] for row in server.rows("status")] == [0, 1]
        assert server.proxy.pid not in [row["pid"] for row in server.rows("status")]
        sessions = [server.session("alice", to) for _ in range(12)]
        rows = server.rows("sessions")
        assert len({row["session"] for row in rows}) == 12
        assert "WORKER" in server.says("sessions").splitlines()[0]
        assert server.rows("users") == [{"user": "alice", "sessions": 12, "up": 0, "down": 0}]
        ids = [row["session"] for row in rows]
        assert server.says("kill", *ids[:11]) == "11 sessions ended\n"
        assert server.says("kill", ids[0], ids[11], code=1).startswith("1 session ended\n")
        assert server.says("reload").startswith("reloaded: ")
        rules.write_text("alow to any\n")
        assert server.says("reload", code=1).startswith(f"geosocks ctl: not reloaded: {rules}:1:1")
        server.proxy.wait_event("reload_refused")
        assert {row["log_level"] for row in server.rows("status")} == {"debug"}
        server.says("log-level", "error")
        assert {row["log_level"] for row in server.rows("status")} == {"error"}
        sessions.append(server.session("alice", to))
        assert server.says("drain").startswith("draining: 1 session goes on")
        wait_for(lambda: {row["draining"] for row in server.rows("status")} == {True})
        for session in sessions:
            session.close()
        assert server.proxy.wait() == 0


def test_a_worker_that_has_gone_has_nothing_to_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with asked(tmp_path) as server:
        with gevent.socket.socket(gevent.socket.AF_UNIX) as dead:
            dead.bind(f"{server.path}.1")
        assert [row["worker"] for row in server.rows("status")] == [0]
        with gevent.socket.socket(gevent.socket.AF_UNIX) as mute:
            mute.bind(f"{server.path}.2")
            mute.listen(1)
            monkeypatch.setattr("geosocks.cli.ctl.asking.PATIENCE", 0.2)
            said = server.says("--json", "sessions", code=1)
            assert said == f"geosocks ctl: {server.path}.2: no answer within 0.2 s\n"
        for number in (1, 2):
            Path(f"{server.path}.{number}").unlink()
