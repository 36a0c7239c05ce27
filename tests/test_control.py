"""The control socket: who is let in, what it answers, and that no request can hurt the server."""

import gc
import json
import os
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent.server import StreamServer

from geosocks import control as control_module
from geosocks.auth.userpass import PasswordAuthenticator
from geosocks.control import Control, prepare_directory, start_control
from geosocks.control.following import MOST_WAITING
from geosocks.control.peers import Peer, peer_of
from geosocks.control_client import (
    MAX_REQUEST,
    Answer,
    ControlClient,
    ControlError,
    ask,
    ask_workers,
    default_path,
    likely_path,
    worker_path,
    worker_paths,
)
from geosocks.entrance import Entrance
from geosocks.events import (
    ControlCrashed,
    ControlRefused,
    ControlUsed,
    LogObserver,
    Reloaded,
    ReloadRefused,
    SessionClosed,
    SessionOpened,
)
from geosocks.limits import Limits
from geosocks.policy import Policy
from geosocks.rules import RuleSet
from geosocks.server import Server
from geosocks.wire.socks5 import Address
from tests.support.net import echo, recv_all, recv_exactly, serving, wait_for
from tests.support.programs import run
from tests.support.servers import EVERYWHERE, Witness, dial, greeted, proxy, read_reply, request

pytestmark = pytest.mark.usefixtures("no_leaks")


@contextmanager
def controlled(
    path: Path, policy: Policy | None = None, options: dict[str, Any] | None = None, **more: Any
) -> Iterator[tuple[Server, Witness]]:
    """A server that can be asked at ``path``; ``more`` is for its control socket."""
    with proxy(policy, **(options or {})) as (server, witness):
        control = start_control(server, str(path), version="9.9", **more)
        try:
            yield server, witness
        finally:
            control.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "control.sock"


def raw(path: Path) -> gevent.socket.socket:
    sock = gevent.socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    return sock


def said(sock: gevent.socket.socket) -> Any:
    """The next line, decoded."""
    line = bytearray()
    while not line.endswith(b"\n"):
        more = sock.recv(1)
        assert more, f"closed after {bytes(line)!r}"
        line += more
    return json.loads(line)


def opened(server: Server, to: tuple[str, int]) -> gevent.socket.socket:
    """A session to ``to`` that is relayed."""
    sock = greeted(server)
    sock.sendall(request(1, *to))
    assert read_reply(sock).rep == 0
    return sock


# --- the file ---------------------------------------------------------------------------------


def test_the_socket_is_for_its_owner_in_a_directory_for_its_owner(path: Path) -> None:
    with controlled(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.exists()


def test_a_group_that_may_ask_may_enter_the_directory(path: Path) -> None:
    with controlled(path, mode=0o660):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750


def test_a_directory_that_is_there_stays_as_it_is(path: Path) -> None:
    path.parent.mkdir(mode=0o755)
    prepare_directory(str(path), 0o600, (os.geteuid(), os.getegid()))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755


def test_the_file_that_a_dead_server_left_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with controlled(path):
        assert ask(str(path), "status").ok["version"] == "9.9"


def test_the_socket_of_a_living_server_is_left_alone(path: Path) -> None:
    with controlled(path), proxy() as (other, _):
        with pytest.raises(OSError, match="in use"):
            start_control(other, str(path), version="1")
        assert ask(str(path), "status").ok["version"] == "9.9"


def test_at_its_end_it_removes_only_its_own_file(path: Path) -> None:
    with controlled(path):
        path.unlink()
        path.write_text("somebody else's")
    assert path.read_text() == "somebody else's"


def test_its_end_is_the_end_of_those_connected(path: Path) -> None:
    with proxy() as (server, _):
        control: Control = start_control(server, str(path), version="1")
        observers = server.emit.observers
        with raw(path) as sock:
            sock.sendall(b'{"do": "events"}\n')
            wait_for(lambda: len(server.emit.observers) > len(observers))
            control.close()
            control.close()
            assert recv_all(sock) == b""
        assert len(server.emit.observers) == len(observers) - 1


@pytest.mark.parametrize(
    ("environ", "uid", "where"),
    [
        ({"RUNTIME_DIRECTORY": "/run/a:/run/b", "XDG_RUNTIME_DIR": "/x"}, 7, "/run/a/control.sock"),
        ({"XDG_RUNTIME_DIR": "/run/user/0"}, 0, "/run/geosocks/control.sock"),
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, 7, "/run/user/7/geosocks/control.sock"),
        ({}, 7, None),
    ],
)
def test_where_it_is_if_nobody_says(environ: dict[str, str], uid: int, where: str | None) -> None:
    assert default_path(environ, uid) == where


def test_who_asks_looks_for_a_server_of_their_own_first(tmp_path: Path) -> None:
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    assert likely_path(environ, 7) == "/run/geosocks/control.sock"
    (tmp_path / "geosocks").mkdir()
    own = tmp_path / "geosocks" / "control.sock"
    own.touch()
    assert likely_path(environ, 7) == str(own)


# --- who may ask ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "group", "may"),
    [
        (Peer(1, 0), None, True),
        (Peer(1, 33), None, True),
        (Peer(1, 34), None, False),
        (Peer(1, 34, frozenset((5, 6))), None, False),
        (Peer(1, 34, frozenset((5, 6))), 6, True),
        (Peer(1, 34, frozenset((5, 6))), 7, False),
        (Peer(1, -1), None, False),
    ],
)
def test_root_the_owner_and_the_group_may_ask(peer: Peer, group: int | None, may: bool) -> None:
    assert peer.may_ask(33, group) is may


def test_the_kernel_tells_who_is_there() -> None:
    one, other = socket.socketpair()
    with one, other:
        peer = peer_of(one)
    assert (peer.pid, peer.uid) == (os.getpid(), os.geteuid())
    assert peer.groups == {os.getegid(), *os.getgroups()}


AS_NOBODY = """
import os, socket, sys
os.setgroups([int(group) for group in sys.argv[2:]])
os.setgid(65534)
os.setuid(65534)
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(sys.argv[1])
    sock.sendall(b'{"do": "status"}\\n')
    sys.stdout.write(sock.makefile().readline())
"""


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
GROUP = 4242


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter; what is made in it gets its group."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for above in folder.parents:
            if not above.stat().st_mode & 0o001:
                pytest.skip(f"not everybody may enter {above}; set TMPDIR to another place")
        os.chown(folder, -1, GROUP)
        folder.chmod(0o2755)
        yield folder


@needs_root
def test_another_user_is_refused_in_a_line_and_an_event(open_folder: Path) -> None:
    path = open_folder / "control.sock"
    with controlled(path, mode=0o666) as (_, witness):
        strange = run([sys.executable, "-c", AS_NOBODY, path])
        assert "user 65534 may not ask" in json.loads(strange.out)["error"], strange.err
        (refused,) = witness.of(ControlRefused)
        assert refused.uid == 65534
        assert refused.pid > 0
        member = run([sys.executable, "-c", AS_NOBODY, path, GROUP])
        assert json.loads(member.out)["ok"]["version"] == "9.9", member.err


@needs_root
def test_the_kernel_keeps_all_others_out_where_the_mode_says_so(open_folder: Path) -> None:
    path = open_folder / "control.sock"
    with controlled(path, mode=0o660):
        assert path.stat().st_gid == GROUP
        strange = run([sys.executable, "-c", AS_NOBODY, path])
        assert "Permission denied" in strange.err
        member = run([sys.executable, "-c", AS_NOBODY, path, GROUP])
        assert json.loads(member.out)["ok"]["version"] == "9.9", member.err
    with controlled(path, mode=0o600):
        member = run([sys.executable, "-c", AS_NOBODY, path, GROUP])
        assert "Permission denied" in member.err


# --- bad requests -----------------------------------------------------------------------------

BAD = [
    pytest.param(b"hello", "a JSON object in one line", id="no-json"),
    pytest.param(b"", "a JSON object", id="empty"),
    pytest.param(b"\xff\xfe", "a JSON object", id="no-utf-8"),
    pytest.param(b"[" * 16000, "a JSON object", id="deep"),
    pytest.param(b"[1]", "a JSON object", id="a-list"),
    pytest.param(b'"status"', "a JSON object", id="a-text"),
    pytest.param(b"{}", "there is no verb None", id="no-verb"),
    pytest.param(b'{"do": "sesions"}', "no verb 'sesions'", id="misspelt"),
    pytest.param(b'{"do": "sesions"}', "did you mean sessions?", id="misspelt-hint"),
    pytest.param(b'{"do": ["status"]}', "there is no verb ['status']", id="verb-is-a-list"),
    pytest.param(b'{"do": "status", "x": 1}', "there is no argument 'x' here", id="argument"),
    pytest.param(b'{"do": "sessions", "users": "a"}', "did you mean user?", id="near-argument"),
    pytest.param(b'{"do": "sessions", "user": 7}', "user is to be text", id="user-number"),
    pytest.param(b'{"do": "sessions", "from": "x"}', "no address or network", id="from"),
    pytest.param(b'{"do": "kill"}', "kill whom?", id="kill-nobody"),
    pytest.param(b'{"do": "kill", "sessions": 7}', "a list of session ids", id="kill-one"),
    pytest.param(b'{"do": "kill", "sessions": ["7"]}', "a list of session ids", id="kill-text"),
    pytest.param(b'{"do": "kill", "sessions": [true]}', "a list of session ids", id="kill-true"),
    pytest.param(b'{"do": "kill", "sessions": [-1]}', "a list of session ids", id="kill-minus"),
    pytest.param(b'{"do": "log-level"}', "level is missing", id="no-level"),
    pytest.param(b'{"do": "log-level", "level": "loud"}', "not one of debug, info", id="level"),
    pytest.param(b'{"do": "events", "event": "a"}', "event is to be a list", id="event-text"),
    pytest.param(b'{"do": "events", "event": ["a"]}', "there is no 'a'", id="event-unknown"),
    pytest.param(
        b'{"do": "events", "event": ["session_close"]}', "did you mean session_closed?", id="event"
    ),
    pytest.param(b'{"do": "reload"}', "no settings to read anew", id="reload"),
    pytest.param(b'{"do": "drain"}', "not ours to end", id="drain"),
    pytest.param(b'{"do": "pardon"}', "source is missing", id="pardon-nobody"),
    pytest.param(b'{"do": "pardon", "source": "a"}', "'a' is no address", id="pardon-name"),
    pytest.param(b'{"do": "explain"}', "host is missing", id="explain-nothing"),
    pytest.param(
        b'{"do":"explain","from":"::1","command":"dig","host":"a","port":1}', "'dig'", id="command"
    ),
    pytest.param(
        b'{"do":"explain","from":"::1","command":"udp","host":"a","port":70000}',
        "port is to be a whole number from 0 to 65535",
        id="explain-port",
    ),
    pytest.param(
        b'{"do":"explain","from":"me","command":"udp","host":"a","port":7}',
        "from: 'me' is no address",
        id="explain-from",
    ),
    pytest.param(
        json.dumps(
            {"do": "explain", "from": "::1", "command": "udp", "host": "a" * 300, "port": 7}
        ).encode(),
        "host: ",
        id="explain-host",
    ),
]


@pytest.mark.parametrize(("line", "says"), BAD)
def test_a_bad_request_is_told_why_and_the_next_is_answered(
    path: Path, line: bytes, says: str
) -> None:
    with controlled(path) as (_, witness), raw(path) as sock:
        sock.sendall(line + b'\n{"do": "status"}\n')
        answer = said(sock)
        assert list(answer) == ["error"]
        assert says in answer["error"]
        assert "\n" not in answer["error"]
        assert said(sock)["ok"]["version"] == "9.9"
        assert not witness.of(ControlCrashed)


def test_a_line_that_does_not_end_is_told_so_and_hung_up_on(path: Path) -> None:
    with controlled(path), raw(path) as sock:
        sock.sendall(b"x" * (MAX_REQUEST + 1))
        assert "more than" in said(sock)["error"]
        with suppress(ConnectionResetError):  # what it did not read any more
            assert sock.recv(1) == b""


def test_the_longest_line_is_read(path: Path) -> None:
    line = b'{"do": "status"' + b" " * (MAX_REQUEST - 17) + b"}\n"
    assert len(line) == MAX_REQUEST
    with controlled(path), raw(path) as sock:
        sock.sendall(line)
        assert said(sock)["ok"]["version"] == "9.9"
        sock.sendall(line.replace(b"}", b" }"))
        assert "more than" in said(sock)["error"]


def test_octet_by_octet_and_half_a_request(path: Path) -> None:
    with controlled(path):
        with raw(path) as sock:
            for octet in b'{"do": "status"}\n':
                sock.sendall(bytes((octet,)))
            assert "ok" in said(sock)
        with raw(path) as sock:
            sock.sendall(b'{"do": "status"')
            sock.shutdown(socket.SHUT_WR)
            assert recv_all(sock) == b""


def test_who_says_nothing_is_hung_up_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_module, "IDLE", 0.05)
    with controlled(path), raw(path) as sock:
        assert sock.recv(1) == b""


def test_who_takes_nothing_is_hung_up_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_module, "SENDING", 0.05)
    with controlled(path) as (server, _), raw(path) as sock:
        observers = len(server.emit.observers)
        sock.sendall(b'{"do": "events", "level": "debug"}\n')
        wait_for(lambda: len(server.emit.observers) > observers)
        with gevent.Timeout(10):
            while len(server.emit.observers) > observers:
                for _ in range(200):
                    server.emit(Reloaded("x" * 400))
                gevent.sleep(0.01)


def test_there_are_so_many_connections_and_no_more(path: Path) -> None:
    with controlled(path) as (_, witness):
        socks = [raw(path) for _ in range(control_module.MOST)]
        for sock in socks:
            sock.sendall(b'{"do": "status"}\n')
            assert "ok" in said(sock)
        with raw(path) as one_more:
            assert "8 others are connected" in said(one_more)["error"]
        assert witness.of(ControlRefused)[0].uid == os.geteuid()
        socks.pop().close()
        wait_for(lambda: _status_or_none(path))
        for sock in socks:
            sock.close()


def _status_or_none(path: Path) -> Any:
    with suppress(ControlError):
        return ask(str(path), "status").ok
    return None


def test_a_fault_of_ours_is_told_in_the_log_and_not_to_the_client(path: Path) -> None:
    with controlled(path) as (server, witness), raw(path) as sock:
        server.max_sessions = object()  # type: ignore[assignment]  # nothing that JSON can carry
        sock.sendall(b'{"do": "status"}\n')
        assert said(sock) == {"error": "a fault in the server; its log tells more"}
        assert "TypeError" in witness.of(ControlCrashed)[0].traceback
        server.max_sessions = 7
        sock.sendall(b'{"do": "status"}\n')
        assert said(sock)["ok"]["max_sessions"] == 7


# --- looking ----------------------------------------------------------------------------------


def test_status_tells_how_the_server_is(path: Path) -> None:
    with controlled(path, worker=2, workers=4, options={"max_sessions": 9}) as (server, _):
        status = ask(str(path), "status").ok
        address = f"127.0.0.1:{server.addresses[0][1]}"
        assert status["listeners"] == [{"address": address, "name": address, "tls": False}]
        assert (status["version"], status["pid"]) == ("9.9", os.getpid())
        assert (status["worker"], status["workers"]) == (2, 4)
        assert (status["sessions"], status["max_sessions"]) == (0, 9)
        assert status["draining"] is False
        assert 0 <= status["policy_seconds"] <= status["seconds"] < 10
        with dial(server):
            wait_for(lambda: server.sessions)
            assert ask(str(path), "status").ok["sessions"] == 1


def test_a_policy_is_as_old_as_its_last_change(path: Path) -> None:
    with controlled(path) as (server, _):
        gevent.sleep(0.05)
        assert ask(str(path), "status").ok["policy_seconds"] >= 0.05
        server.policy = server.policy.replace(socks4=False)
        server.emit(Reloaded("policy"))
        assert ask(str(path), "status").ok["policy_seconds"] < 0.05
        gevent.sleep(0.05)
        assert ask(str(path), "status").ok["policy_seconds"] >= 0.05
        server.policy = server.policy.replace(socks4=True)  # an embedder's way: without a word
        assert ask(str(path), "status").ok["policy_seconds"] < 0.05


def test_a_server_that_drains_says_so(path: Path) -> None:
    with controlled(path) as (server, _), dial(server):
        wait_for(lambda: server.sessions)
        draining = gevent.spawn(server.drain, 5.0)
        wait_for(lambda: ask(str(path), "status").ok["draining"])
        server.stop()
        draining.join()


def passwords() -> PasswordAuthenticator:
    return PasswordAuthenticator(check=lambda user, password: password == b"pw")


def as_user(server: Server, user: str, to: tuple[str, int]) -> gevent.socket.socket:
    sock = dial(server)
    name = user.encode()
    sock.sendall(b"\x05\x01\x02" + b"\x01" + bytes((len(name),)) + name + b"\x02pw")
    assert recv_exactly(sock, 4) == b"\x05\x02\x01\x00"
    sock.sendall(request(1, *to))
    assert read_reply(sock).rep == 0
    return sock


USERS = Policy(authenticators=(passwords(),), rules=EVERYWHERE)


def test_sessions_and_users_are_listed_and_chosen(path: Path) -> None:
    with serving(echo) as to, controlled(path, USERS, worker=1) as (server, _):
        socks = [as_user(server, name, to) for name in ("alice", "bob", "alice")]
        socks[0].sendall(b"12345")
        assert recv_exactly(socks[0], 5) == b"12345"
        socks.append(dial(server))
        wait_for(lambda: len(server.sessions) == 4)

        def ids(**chosen: str) -> list[int]:
            return [row["session"] for row in ask(str(path), "sessions", **chosen).rows]

        rows = ask(str(path), "sessions").rows
        assert [row["identity"] for row in rows] == ["alice", "bob", "alice", None]
        assert {row["worker"] for row in rows} == {1}
        first, second, third, fourth = (row["session"] for row in rows)
        assert ids(user="alice") == [first, third]
        assert ids(user="ALICE") == []
        assert ids(to=to[0]) == ids(to="127.0.0.0/8") == ids(to="127.*") == [first, second, third]
        assert ids(to="10.0.0.0/8") == ids(to="*.example.org") == []
        assert ids(**{"from": "127.0.0.1"}) == [first, second, third, fourth]
        assert ids(**{"from": "::1"}) == []
        assert ids(listener=rows[0]["listener"], user="bob") == [second]
        assert ids(listener="elsewhere") == []
        assert ask(str(path), "users").rows == [
            {"user": "alice", "sessions": 2, "clients": 1, "up": 5, "down": 5},
            {"user": "bob", "sessions": 1, "clients": 1, "up": 0, "down": 0},
            {"user": None, "sessions": 1, "clients": 1, "up": 0, "down": 0},
        ]
        for sock in socks:
            sock.close()


def test_limits_tell_the_ceilings_and_what_is_used(path: Path) -> None:
    rules = RuleSet.parse("allow user alice to everywhere sessions 5\nallow to everywhere\n")
    policy = USERS.replace(rules=rules, limits=Limits(per_user=20))
    options = {"max_sessions": 100}
    with serving(echo) as to, controlled(path, policy, options) as (server, _):
        socks = [as_user(server, name, to) for name in ("alice", "bob", "alice")]
        rows = ask(str(path), "limits").rows
        assert rows[0] == {
            "limit": "sessions",
            "key": None,
            "used": 3,
            "ceiling": 100,
            "over": "worker",
        }
        used = [(row["limit"], row["key"], row["used"], row["ceiling"]) for row in rows]
        assert ("sessions_per_user", None, None, 20) in used
        assert ("sessions_per_user", "user alice", 2, 20) in used
        assert ("sessions_per_user", "user bob", 1, 20) in used
        ((key, ceiling),) = [
            (key, ceiling)
            for limit, key, number, ceiling in used
            if limit == "sessions_of_rule" and number == 2
        ]
        assert key.startswith("user alice by ")
        assert ceiling == 5
        for sock in socks:
            sock.close()


def test_sources_that_fail_are_told_and_pardoned(path: Path) -> None:
    policy = USERS.replace(entrance=Entrance(exempt=()))
    with controlled(path, policy) as (server, witness):
        host = ip_address("2001:db8::7")
        assert ask(str(path), "penalties").rows == []
        while not server.gate.is_refused(host):
            server.gate.failed(host)
        server.gate.failed(ip_address("192.0.2.1"))  # one has no consequence
        (row,) = ask(str(path), "penalties").rows
        assert row["source"] == "2001:db8::/64"
        assert (row["delay"], row["refused"] > 0) == (2.0, True)
        assert ask(str(path), "pardon", source="2001:db8::99").ok == {
            "source": "2001:db8::/64",
            "pardoned": True,
        }
        assert witness.of(ControlUsed)[0].what == "pardon 2001:db8::/64"
        assert not server.gate.is_refused(host)
        assert server.gate.delay(host) == 0
        assert not server.gate.alert
        assert ask(str(path), "penalties").rows == []
        assert ask(str(path), "pardon", source="192.0.2.1").ok["pardoned"] is False
        assert len(witness.of(ControlUsed)) == 1


QUESTION = {"command": "connect", "from": "127.0.0.1", "host": "127.0.0.9", "port": 80}


def test_explain_asks_the_policy_in_force(path: Path) -> None:
    with controlled(path) as (server, _):
        allowed = ask(str(path), "explain", **QUESTION).ok
        assert allowed["allowed"] is True
        assert allowed["addresses"] == ["127.0.0.9"]
        assert allowed["steps"][0]["outcome"] == "allow"
        server.policy = server.policy.replace(rules=RuleSet.parse("deny port 80\n"))
        denied = ask(str(path), "explain", **QUESTION).ok
        assert (denied["allowed"], denied["reply"]) == (False, 2)
        assert denied["rule"] == "rules:1: deny port 80"


def test_explain_knows_the_way_back_to_the_server_and_who_gets_in(path: Path) -> None:
    with controlled(path, USERS) as (server, _):
        to_itself = QUESTION | {"port": server.addresses[0][1]}
        loop = ask(str(path), "explain", **to_itself).ok
        assert (loop["allowed"], loop["rule"]) == (False, "loop")
        (note,) = ask(str(path), "explain", **QUESTION).ok["notes"]
        assert "no listener takes method none" in note
        assert not ask(str(path), "explain", user="alice", **QUESTION).ok["notes"]
        (note,) = ask(str(path), "explain", listener="cellar", **QUESTION).ok["notes"]
        assert note == "no listener is called 'cellar'"


# --- following --------------------------------------------------------------------------------


def test_events_come_as_they_happen_and_as_they_are_wanted(path: Path) -> None:
    with controlled(path) as (server, _), ControlClient(str(path)) as client:
        observers = len(server.emit.observers)
        following = client.follow("events", event=["session_opened", "session_closed"])
        asked = gevent.spawn(next, following)
        wait_for(lambda: len(server.emit.observers) > observers)
        with dial(server) as sock:
            row = asked.get()
            assert row["event"] == "session_opened"
            assert row["level"] == "debug"
            assert row["client"] == ":".join(map(str, sock.getsockname()))
        row = next(following)
        assert (row["event"], row["reason"]) == ("session_closed", "nothing_said")
        assert row["worker"] == 0
        assert row["time"] > 1e9
        client.close()
        wait_for(lambda: len(server.emit.observers) == observers)


@pytest.mark.parametrize(
    ("chosen", "those"),
    [
        ({}, ["reload_refused"]),
        ({"level": "debug"}, ["session_opened", "reload_refused", "session_closed"]),
        ({"level": "debug", "session": [7]}, ["session_opened", "session_closed"]),
        ({"level": "debug", "session": [8]}, []),
        ({"level": "debug", "user": "eve"}, ["session_closed"]),
        ({"user": "alice"}, []),
        ({"event": ["session_opened"]}, ["session_opened"]),
    ],
)
def test_events_are_chosen(path: Path, chosen: dict[str, Any], those: list[str]) -> None:
    client = Address("192.0.2.1", 1)
    closed = SessionClosed(
        7, client, 0, "eve", None, None, None, None, reason="refused", up=0, down=0, seconds=1.0
    )
    with controlled(path) as (server, _), raw(path) as sock:
        observers = len(server.emit.observers)
        sock.sendall(json.dumps({"do": "events"} | chosen).encode() + b"\n")
        wait_for(lambda: len(server.emit.observers) > observers)
        for event in (SessionOpened(7, client, "here"), ReloadRefused("why"), closed):
            server.emit(event)
        assert [said(sock)["row"]["event"] for _ in those] == those
        with gevent.Timeout(0.05, False):
            pytest.fail(f"and then {said(sock)}")


def test_events_that_find_no_room_are_counted(path: Path) -> None:
    with controlled(path) as (server, _), raw(path) as sock:
        observers = len(server.emit.observers)
        sock.sendall(b'{"do": "events"}\n')
        wait_for(lambda: len(server.emit.observers) > observers)
        for _ in range(MOST_WAITING + 5):  # without a turn for anybody
            server.emit(ReloadRefused("why"))
        for _ in range(MOST_WAITING):
            assert said(sock)["row"]["event"] == "reload_refused"
        assert said(sock)["row"] == {"event": "events_dropped", "events": 5}
        server.emit(ReloadRefused("again"))
        assert said(sock)["row"]["reason"] == "again"


def test_who_follows_nothing_and_hangs_up_is_forgotten(path: Path) -> None:
    with controlled(path) as (server, _):
        observers = len(server.emit.observers)
        with raw(path) as sock:
            sock.sendall(b'{"do": "events"}\n')
            wait_for(lambda: len(server.emit.observers) > observers)
        wait_for(lambda: len(server.emit.observers) == observers)


# --- changing ---------------------------------------------------------------------------------


def test_kill_ends_sessions_by_id_and_tells_who_was_not_there(path: Path) -> None:
    with serving(echo) as to, controlled(path) as (server, witness):
        victim, other = opened(server, to), opened(server, to)
        first, second = sorted(server.sessions)
        answer = ask(str(path), "kill", sessions=[first, 999999])
        assert answer == Answer(
            [{"session": first, "killed": True}, {"session": 999999, "killed": False}],
            {"killed": 1},
        )
        assert recv_all(victim) == b""
        assert witness.wait(SessionClosed).reason == "killed"
        assert list(server.sessions) == [second]
        (used,) = witness.of(ControlUsed)
        assert (used.uid, used.what) == (os.geteuid(), f"kill {first}, 999999: 1")
        assert ask(str(path), "kill", sessions=[first]).ok == {"killed": 0}
        victim.close()
        other.close()


def test_kill_ends_the_sessions_of_a_user_or_a_network(path: Path) -> None:
    with serving(echo) as to, controlled(path, USERS) as (server, witness):
        socks = [as_user(server, name, to) for name in ("alice", "bob", "alice")]
        assert ask(str(path), "kill", user="alice", **{"from": "10.0.0.0/8"}).ok == {"killed": 0}
        assert ask(str(path), "kill", user="alice").ok == {"killed": 2}
        wait_for(lambda: len(server.sessions) == 1)
        assert ask(str(path), "kill", **{"from": "127.0.0.0/8"}).ok == {"killed": 1}
        wait_for(lambda: not server.sessions)
        assert {event.reason for event in witness.of(SessionClosed)} == {"killed"}
        for sock in socks:
            sock.close()


def test_reload_tells_what_came_of_it(path: Path) -> None:
    outcome: list[Any] = []

    def reload() -> None:
        gevent.spawn(lambda: server.emit(outcome.pop()))

    with controlled(path, reload=reload) as (server, witness):
        outcome.append(Reloaded("policy"))
        assert ask(str(path), "reload").ok == {"reloaded": "policy"}
        outcome.append(ReloadRefused("rules.conf:1: no"))
        with pytest.raises(ControlError, match=r"not reloaded: rules.conf:1: no"):
            ask(str(path), "reload")
        assert [event.what for event in witness.of(ControlUsed)] == ["reload", "reload"]
        assert not outcome


def test_a_reload_without_an_outcome_is_told_so(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geosocks.control.verbs.RELOAD_SECONDS", 0.05)
    with (
        controlled(path, reload=lambda: None),
        pytest.raises(ControlError, match="nothing came of it yet"),
    ):
        ask(str(path), "reload")


def test_drain_does_what_it_was_given(path: Path) -> None:
    drained: list[str] = []
    with controlled(path, drain=lambda: drained.append("now")) as (server, _), dial(server):
        wait_for(lambda: server.sessions)
        assert ask(str(path), "drain").ok == {"sessions": 1, "again": False}
    assert drained == ["now"]


def test_the_log_becomes_talkative_and_quiet_again(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "geosocks")
    caplog.handler.setLevel("DEBUG")
    with controlled(path) as (server, witness):
        server.emit.add(LogObserver())
        assert ask(str(path), "log-level", level="debug").ok == {
            "level": "debug",
            "before": "info",
        }
        with dial(server):
            wait_for(lambda: "session_opened" in caplog.messages)
        assert ask(str(path), "log-level", level="error").ok["before"] == "debug"
        assert ask(str(path), "status").ok["log_level"] == "error"
        assert caplog.messages.count("control_used") == 2
        assert len(witness.of(ControlUsed)) == 2


# --- many -------------------------------------------------------------------------------------


def test_a_thousand_sessions_are_listed_and_nobody_waits_for_it(path: Path) -> None:
    longest = 0.0

    def watch() -> None:
        nonlocal longest
        while True:
            began = time.monotonic()
            gevent.sleep(0.001)
            longest = max(longest, time.monotonic() - began)

    with serving(echo) as to, controlled(path, options={"max_sessions": 2000}) as (server, _):
        socks = [opened(server, to) for _ in range(1000)]
        gc.collect()
        watching = gevent.spawn(watch)
        gevent.sleep(0.01)
        answer = run([sys.executable, "-c", LIST, path])
        watching.kill()
        rows = [json.loads(line) for line in answer.out.splitlines()]
        assert len(rows) == 1001
        assert "ok" in rows[-1]
        assert len({row["row"]["session"] for row in rows[:-1]}) == 1000
        assert longest < 0.25
        assert ask(str(path), "users").rows[0]["sessions"] == 1000
        assert ask(str(path), "kill", **{"from": "127.0.0.1"}).ok == {"killed": 1000}
        wait_for(lambda: not server.sessions)
        for sock in socks:
            sock.close()


LIST = """
import socket, sys
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(sys.argv[1])
    sock.sendall(b'{"do": "sessions"}\\n')
    sock.shutdown(socket.SHUT_WR)
    sys.stdout.write(sock.makefile().read())
"""


# --- the asking end ---------------------------------------------------------------------------


def test_workers_are_asked_all_at_once_and_their_answers_kept_apart(path: Path) -> None:
    places = [worker_path(str(path), worker) for worker in range(3)]
    assert places == [str(path), f"{path}.1", f"{path}.2"]
    with proxy() as (server, _):
        controls = [
            start_control(server, place, version="1", worker=number, workers=3)
            for number, place in enumerate(places)
        ]
        Path(f"{path}.old").touch()
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(f"{path}.7")
        answers = ask_workers(str(path), "status")
        assert list(answers) == [0, 1, 2, 7]
        assert [answers[worker].ok["worker"] for worker in range(3)] == [0, 1, 2]  # type: ignore[union-attr]
        assert isinstance(answers[7], ControlError)
        assert list(ask_workers(str(path), "status", besides=1)) == [0, 2, 7]
        controls[0].close()
        assert isinstance(ask_workers(str(path), "status")[0], ControlError)
        assert worker_paths(str(path))[0] == str(path)
        for control in controls:
            control.close()


def test_where_no_server_is_one_is_told_so(path: Path) -> None:
    with pytest.raises(ControlError, match="no server runs that has its control socket at"):
        ask(str(path), "status")
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(ControlError, match="no server runs that has its control socket at"):
        ask(str(path), "status")
    with pytest.raises(ControlError, match="too long"):
        ask("/" + "x" * 200, "status")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"", "the server has closed the connection"),
        (b"220 hello\r\n", "that is no answer of geosocks"),
        (b"[]\n", "that is no answer of geosocks"),
        (b'{"ok": 1}\n', "that is no answer of geosocks"),
        (b'{"error": "not today"}\n', "not today"),
        (b"x" * (1 << 20), "more than 1048576 octets"),
    ],
)
def test_what_is_no_answer_is_told_so(path: Path, answer: bytes, says: str) -> None:
    path.parent.mkdir()

    def talk(sock: gevent.socket.socket, _: object) -> None:
        with suppress(OSError):
            sock.recv(100)
            sock.sendall(answer)

    with _listening(path) as listener:
        server = StreamServer(listener, talk)
        server.start()
        with pytest.raises(ControlError, match=says):
            ask(str(path), "status")
        server.stop()


def test_a_server_that_does_not_answer_is_not_waited_for(path: Path) -> None:
    path.parent.mkdir()
    with _listening(path), pytest.raises(ControlError, match=r"no answer within 0.05 s"):
        ask(str(path), "status", patience=0.05)


def test_what_nobody_would_read_is_not_sent(path: Path) -> None:
    with controlled(path), pytest.raises(ControlError, match="the request has more than"):
        ask(str(path), "sessions", user="x" * MAX_REQUEST)


@contextmanager
def _listening(path: Path) -> Iterator[gevent.socket.socket]:
    with gevent.socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        yield listener
