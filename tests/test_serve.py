"""``geosocks serve`` as a program: its exit codes, its signals, its log."""

import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen

import gevent
import gevent.socket
import pytest

from geosocks.cli import main
from geosocks.codes import Cmd
from tests.support.net import echo, recv_all, recv_exactly, serving, unused_port
from tests.support.programs import run
from tests.support.proxy import COMMAND, ROOT, Proxy, environment, running, users_file
from tests.support.servers import read_reply, request

SECRET = "w0nder\u00e9"
ON_LOOPBACK = "--listen=127.0.0.1:0"


def connect(proxy: Proxy, to: tuple[str, int]) -> gevent.socket.socket:
    """A session through ``proxy`` that has had its reply."""
    sock = proxy.dial()
    sock.sendall(b"\x05\x01\x00" + request(Cmd.CONNECT, *to))
    assert recv_exactly(sock, 2) == b"\x05\x00"
    assert read_reply(sock).rep == 0
    return sock


def reply_to(proxy: Proxy, octets: bytes) -> bytes:
    """All that the server answers to ``octets``."""
    with proxy.dial() as sock:
        sock.sendall(octets)
        sock.shutdown(socket.SHUT_WR)
        return recv_all(sock)


def still_works(sock: gevent.socket.socket) -> bool:
    """Whether octets go to the echo and come back."""
    sock.sendall(b"are you there")
    return recv_exactly(sock, 13) == b"are you there"


# --- what it does not start with --------------------------------------------------------------


@pytest.fixture
def complaint_of(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    """Runs ``geosocks serve`` with options it cannot start with; its exit code and its one line."""
    for name in [name for name in os.environ if name.startswith("GEOSOCKS_")]:
        monkeypatch.delenv(name)

    def complaint(*options: object) -> tuple[int, str]:
        code = main(["serve", *map(str, options)])
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("geosocks serve: ")
        assert err.endswith("\n")
        assert err.count("\n") == 1, err
        return code, err.removeprefix("geosocks serve: ").removesuffix("\n")

    return complaint


FILES = {
    "unknown.conf": "# ours\nlisten = 127.0.0.1:0\ntimeout-idel = 3\n",
    "value.conf": "\nlog-level = loud\n",
    "form.conf": "listen 127.0.0.1:0\n",
    "twice.conf": "drain = 1\ndrain = 2\n",
    "rules": "allow to any\n\nallow to any prot 80\n",
    "verb": "  alow to any\n",
    "name.users": "nonsense\n",
    "hash.users": "# ours\nalice:$apr1$abc$def\n",
    "a.keytab": "no keys in here",
}

BAD = [
    (("--config", "none.conf"), "none.conf: cannot be read: No such file or directory"),
    (("--config", "unknown.conf"), "unknown.conf:3: unknown option 'timeout-idel'; did you mean "),
    (("--config", "value.conf"), "value.conf:2: log-level: invalid choice: 'loud'"),
    (("--config", "form.conf"), "form.conf:1: "),
    (("--config", "twice.conf"), "twice.conf:2: drain was set in line 1"),
    ((ON_LOOPBACK, "--rules", "rules"), "rules:3:14: unknown word 'prot'; did you mean port?"),
    ((ON_LOOPBACK, "--rules", "verb"), "verb:1:3: unknown verb 'alow'; did you mean allow?"),
    ((ON_LOOPBACK, "--rules", "none"), "none: cannot be read: No such file or directory"),
    ((ON_LOOPBACK, "--users", "name.users"), "name.users:1:"),
    ((ON_LOOPBACK, "--users", "hash.users"), "hash.users:2:7: the hash of user 'alice'"),
    ((ON_LOOPBACK, "--users", "none"), "none: cannot be read: No such file or directory"),
    ((ON_LOOPBACK, "--keytab", "none"), "none: the keytab cannot be read: No such file"),
    ((ON_LOOPBACK, "--keytab", "a.keytab"), "a.keytab: not a keytab"),
    ((ON_LOOPBACK, "--methods", "username"), "method username needs --users FILE"),
    ((ON_LOOPBACK, "--log-file", "none/log"), "none/log: log file cannot be written: No such file"),
    ((ON_LOOPBACK, "--max-sessions", 10**8), "--max-sessions 100000000: "),
    ((ON_LOOPBACK, "--timeout-idle", "soon"), "--timeout-idle: 'soon' is not a number of seconds"),
    ((ON_LOOPBACK, "--methods", "gssapy"), "--methods: 'gssapy' is not one of gssapi, username"),
    ((ON_LOOPBACK, "--timeout-idel", 3), "unrecognized arguments: --timeout-idel"),
    ((ON_LOOPBACK, "more"), "unrecognized arguments: more"),
    (("--listen", "127.0.0.1:70000"), "--listen: '127.0.0.1:70000' has no port from 0 to 65535"),
    (("--listen", "0.0.0.0:0"), "0.0.0.0:0 would be an open proxy: "),
    (("--listen", "[::]:0"), "[::]:0 would be an open proxy: "),
]


@pytest.mark.parametrize(("options", "says"), BAD, ids=lambda value: str(value)[:50])
def test_what_is_wrong_is_told_in_one_line(
    complaint_of: Callable[..., tuple[int, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[object, ...],
    says: str,
) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    monkeypatch.chdir(tmp_path)
    code, complaint = complaint_of(*options)
    assert code == 2
    assert complaint.startswith(says)


def test_a_users_file_that_others_may_read(
    complaint_of: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    path = users_file(tmp_path, alice=SECRET)
    path.chmod(0o644)
    code, complaint = complaint_of(ON_LOOPBACK, "--users", path)
    assert code == 2
    assert complaint == f"{path}: mode 0644 is open to others; mend with `chmod 640 users`"


def test_a_variable_that_is_wrong_is_named(
    complaint_of: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEOSOCKS_DRAIN", "soon")
    assert complaint_of() == (2, "GEOSOCKS_DRAIN: 'soon' is not a number of seconds above 0")


@pytest.mark.parametrize(
    ("listen", "code", "says"),
    [
        ("127.0.0.1:{taken}", 75, "127.0.0.1:{taken}: Address already in use; end the other"),
        ("192.0.2.1:1080", 2, "192.0.2.1:1080: Cannot assign requested address; --listen on an"),
        ("[2001:db8::1]:1080", 2, "[2001:db8::1]:1080: Cannot assign requested address; "),
    ],
)
def test_an_address_that_cannot_be_listened_on(listen: str, code: int, says: str) -> None:
    """After one that can: nothing is left half done, and nothing is logged."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        words = ("--listen", listen.format(taken=taken), "--allow-open", "--log-level", "debug")
        done = run((*COMMAND, ON_LOOPBACK, *words))
    assert done.code == code
    assert done.out == b""
    assert done.err.startswith("geosocks serve: " + says.format(taken=taken))
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("flag", ["-V", "--check-config", "--print-config", "--help"])
def test_what_only_looks_and_ends(flag: str, capfd: pytest.CaptureFixture[str]) -> None:
    try:
        code: object = main(["serve", "--listen=127.0.0.1:1", flag])
    except SystemExit as end:
        code = end.code
    out, err = capfd.readouterr()
    assert (code, err) == (0, "")
    assert out


# --- HUP --------------------------------------------------------------------------------------


def test_a_good_reload_is_for_new_sessions(tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text("allow to everywhere\n")
    with serving(echo) as target, running(tmp_path, "--rules", rules) as proxy:
        before = connect(proxy, target)
        rules.write_text("deny to everywhere\n")
        assert proxy.reload()["what"] == "policy"
        answer = reply_to(proxy, b"\x05\x01\x00" + request(Cmd.CONNECT, *target))
        assert answer[:4] == b"\x05\x00\x05\x02"
        assert still_works(before)
        rules.write_text("allow to everywhere\n")
        proxy.reload()
        assert still_works(connect(proxy, target))
        before.close()


RELOADS: list[tuple[str, str, str]] = [
    ("conf", "lisen = 127.0.0.1:0\n", "conf:1: unknown option 'lisen'; did you mean listen?"),
    ("conf", "timeout-idle = soon\n", "conf:1: timeout-idle: 'soon' is not a number of seconds"),
    ("rules", "allow to everywhere\nalow to any\n", "rules:2:1: unknown verb 'alow'"),
    ("users", "nonsense\n", "users:1:"),
    ("users", "0644", "users: mode 0644 is open to others; mend with `chmod 640 users`"),
    ("keytab", "no keys in here", "keytab: not a keytab"),
    ("conf", "", "conf: cannot be read: No such file or directory"),
    ("rules", "", "rules: cannot be read: No such file or directory"),
    ("users", "", "users: cannot be read: No such file or directory"),
    ("keytab", "", "keytab: the keytab cannot be read: No such file or directory"),
]


@pytest.mark.parametrize(("name", "text", "says"), RELOADS, ids=lambda value: value[:20])
def test_a_bad_reload_changes_nothing(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / "rules").write_text("allow to everywhere\n")
    users_file(tmp_path, alice=SECRET)
    (tmp_path / "keytab").write_bytes(A_KEYTAB)
    conf = tmp_path / "conf"
    conf.write_text(
        f"rules = {tmp_path}/rules\nusers = {tmp_path}/users\nkeytab = {tmp_path}/keytab\n"
    )
    with serving(echo) as target, running(tmp_path, "--config", conf) as proxy:
        assert _password_lets_in(proxy, SECRET, target)
        path = tmp_path / name
        if text.isdecimal():
            path.chmod(int(text, 8))
        elif text:
            path.write_text(text)
        else:
            path.unlink()
        refused = proxy.reload("reload_refused")
        assert refused["reason"].startswith(f"{tmp_path}/{says}")
        assert refused["level"] == "error"
        assert _password_lets_in(proxy, SECRET, target)
        assert not proxy.events("reloaded")


A_KEYTAB = bytes.fromhex(
    "0502 00000039 0002 000b 4558414d504c452e4f5247 0004 726d6364 0001 61"
    "00000001 00000000 01 0012 0010 00000000000000000000000000000000 00000001".replace(" ", "")
)


def _password_lets_in(proxy: Proxy, password: str, target: tuple[str, int]) -> bool:
    secret = password.encode()
    with proxy.dial() as sock:
        sock.sendall(b"\x05\x01\x02\x01\x05alice" + bytes((len(secret),)) + secret)
        sock.sendall(request(Cmd.CONNECT, *target))
        assert recv_exactly(sock, 3) == b"\x05\x02\x01"
        if recv_exactly(sock, 1) != b"\0":
            assert recv_all(sock) == b""
            return False
        return read_reply(sock).rep == 0


def test_a_password_that_was_changed_is_forgotten(tmp_path: Path) -> None:
    """Once verified it is remembered for some minutes, but not beyond a reload."""
    users = users_file(tmp_path, alice=SECRET)
    with serving(echo) as target, running(tmp_path, "--users", users) as proxy:
        assert _password_lets_in(proxy, SECRET, target)
        assert _password_lets_in(proxy, SECRET, target)
        users_file(tmp_path, alice="new")
        proxy.reload()
        assert not _password_lets_in(proxy, SECRET, target)
        assert _password_lets_in(proxy, "new", target)
        users.write_text("")
        proxy.reload()
        assert not _password_lets_in(proxy, "new", target)
        assert SECRET not in proxy.text()


def test_what_needs_a_restart_is_said_and_not_half_done(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    conf.write_text("max-sessions = 5\n")
    with running(tmp_path, "--config", conf) as proxy:
        conf.write_text("max-sessions = 6\nallow-open = true\ntimeout-idle = 7\n")
        what = proxy.reload()["what"]
        assert what == "policy; a change of max-sessions, allow-open needs a restart"


def test_a_reload_does_not_open_the_proxy_to_everybody(tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text("allow from loopback to everywhere\n")
    with running(tmp_path, "--listen", "0.0.0.0:0", "--rules", rules) as proxy:
        rules.write_text("allow to everywhere\n")
        assert "would be an open proxy" in proxy.reload("reload_refused")["reason"]


def test_a_burst_of_reloads_while_clients_come_and_go(tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text("allow to everywhere\n")
    with serving(echo) as target, running(tmp_path, "--rules", rules) as proxy:
        connect(proxy, target).close()
        proxy.wait_event("session_closed")
        before = proxy.descriptors()
        for _ in range(100):
            proxy.signal(signal.SIGHUP)
            with connect(proxy, target) as sock:
                assert still_works(sock)
        proxy.reload()
        proxy.wait_event("session_closed", 101)
        proxy.wait_for(lambda: proxy.descriptors() <= before, 2.0)


# --- TERM, INT, USR1 --------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_waits_for_sessions_and_takes_no_new_ones(tmp_path: Path, number: int) -> None:
    with serving(echo) as target, running(tmp_path, "--drain", 30) as proxy:
        session = connect(proxy, target)
        began = time.monotonic()
        proxy.signal(number)
        assert proxy.wait_event("draining")["sessions"] == 1
        with pytest.raises(ConnectionRefusedError):
            proxy.dial()
        assert time.monotonic() - began < 2.0
        gevent.sleep(0.3)
        assert still_works(session)
        assert proxy.process.poll() is None
        session.close()
        began = time.monotonic()
        assert proxy.wait() == 0
        assert time.monotonic() - began < 1.0
        assert proxy.events("session_closed")[0]["reason"] == "closed"
        assert proxy.events("stopped")[0]["sessions_cut"] == 0


def test_a_handshake_does_not_hold_a_drain_up_for_ever(tmp_path: Path) -> None:
    options = ("--drain", 30, "--timeout-handshake", 1)
    with running(tmp_path, *options) as proxy, proxy.dial() as sock:
        sock.sendall(b"\x05")
        proxy.wait_event("session_opened")
        proxy.signal(signal.SIGTERM)
        assert proxy.wait(3.0) == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_term_is_a_drain_from_the_first_client_on(workers: int) -> None:
    port = unused_port()
    options = (f"--listen=127.0.0.1:{port}", "--control=off", f"--workers={workers}")
    process = Popen(
        [*COMMAND, *options],
        cwd=ROOT,
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=PIPE,
        env=environment(),
    )
    try:
        with gevent.Timeout(10):
            while True:
                with suppress(ConnectionRefusedError), gevent.socket.socket() as sock:
                    sock.connect(("127.0.0.1", port))
                    break
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=10)
        assert (process.returncode, errors) == (0, b"")
    finally:
        process.kill()
        process.wait()


def test_a_second_term_ends_it_at_once(tmp_path: Path) -> None:
    with serving(echo) as target, running(tmp_path, "--drain", 30) as proxy:
        session = connect(proxy, target)
        proxy.signal(signal.SIGTERM)
        proxy.wait_event("draining")
        began = time.monotonic()
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
        assert time.monotonic() - began < 1.0
        assert proxy.events("session_closed")[0]["reason"] == "drained"
        assert recv_all(session) == b""


def test_a_reload_changes_how_long_a_drain_may_take(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("drain = 60\n")
    port = unused_port()
    argv = [*COMMAND, f"--listen=127.0.0.1:{port}", f"--config={config}", "--control=off"]
    log = tmp_path / "log"
    process = Popen([*argv, f"--log-file={log}", "--log-format=json"])
    proxy = Proxy(process, log, log)
    proxy.port = port
    try:
        with serving(echo) as target:
            proxy.wait_for(lambda: log.exists() and proxy.events("listening"))
            with connect(proxy, target):
                config.write_text("drain = 0.2\n")
                proxy.reload()
                proxy.signal(signal.SIGTERM)
                assert proxy.wait(5.0) == 0
    finally:
        process.kill()
        process.wait()


def test_quit_waits_for_nobody(tmp_path: Path) -> None:
    with serving(echo) as target, running(tmp_path, "--drain=60") as proxy:
        sock = connect(proxy, target)
        proxy.signal(signal.SIGQUIT)
        began = time.monotonic()
        assert proxy.wait() == 0
        assert time.monotonic() - began < 1.0
        assert recv_all(sock) == b""
        assert proxy.events("session_closed")[0]["reason"] == "drained"


def test_usr2_tells_how_it_is(tmp_path: Path) -> None:
    with serving(echo) as target, running(tmp_path, "--max-sessions=9") as proxy:
        connect(proxy, target)
        half_open = proxy.dial()
        half_open.sendall(b"\x05\x01\x00")
        assert recv_exactly(half_open, 2) == b"\x05\x00"
        proxy.signal(signal.SIGUSR2)
        told = proxy.wait_event("state_told")
        assert (told["sessions"], told["handshakes"], told["max_sessions"]) == (2, 1, 9)
        assert told["draining"] is False
        assert "worker" not in told


def test_a_drain_has_an_end(tmp_path: Path) -> None:
    with serving(echo) as target, running(tmp_path, "--drain", 1) as proxy:
        connect(proxy, target)
        began = time.monotonic()
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
        assert 0.9 < time.monotonic() - began < 2.0
        assert proxy.events("stopped")[0]["sessions_cut"] == 1


def test_reload_while_draining_is_not_heeded(tmp_path: Path) -> None:
    with serving(echo) as target, running(tmp_path, "--drain", 30) as proxy:
        session = connect(proxy, target)
        proxy.signal(signal.SIGTERM)
        proxy.wait_event("draining")
        proxy.signal(signal.SIGHUP)
        assert still_works(session)
        session.close()
        assert proxy.wait() == 0


def test_usr1_opens_the_log_anew(tmp_path: Path) -> None:
    with running(tmp_path) as proxy:
        old = tmp_path / "geosocks.log.1"
        proxy.log.rename(old)
        proxy.signal(signal.SIGUSR1)
        proxy.wait_for(proxy.log.exists)
        reply_to(proxy, b"\x05\x01\x02")
        assert "no acceptable method" in proxy.wait_event("negotiation_ended")["reason"]
        assert "negotiation_ended" not in old.read_text()


def test_a_log_that_cannot_be_opened_anew_ends_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as proxy:
        proxy.log.rename(tmp_path / "moved")
        proxy.log.mkdir()
        proxy.log = tmp_path / "moved"
        proxy.signal(signal.SIGUSR1)
        refused = proxy.wait_event("reload_refused")
        assert refused["reason"].endswith("log file cannot be written: Is a directory")
        assert reply_to(proxy, b"\x05\x01\x02") == b"\x05\xff"
        assert proxy.wait_event("negotiation_ended")


# --- what stands in the log -------------------------------------------------------------------

HOSTILE = [
    b"a\nb.test",
    b'{"event": "forged"}\n{"event": "forged"}',
    b"\x1b[2J\x1b]0;title\x07",
    b"\xff\xfe\x80\x81",
    "\u202eg.live\u2066 \u200b\ufeff\u2028".encode(),
    b"\\u0041\\x41\\",
    b"\x7f\x80\x9b31m",
    b"\0" * 255,
    bytes(range(1, 256)),
    "\u00e9".encode() * 127,
]


def test_hostile_names_stay_one_harmless_line_each(tmp_path: Path) -> None:
    with running(tmp_path, "--users", users_file(tmp_path, alice=SECRET)) as proxy:
        for name in HOSTILE:
            field = bytes((len(name),)) + name
            refused = reply_to(proxy, b"\x05\x01\x02\x01" + field + b"\x05guess")
            assert refused[:3] == b"\x05\x02\x01"
            assert refused[3:] not in (b"", b"\0")
            secret = SECRET.encode()
            hello = b"\x05\x01\x02\x01\x05alice" + bytes((len(secret),)) + secret
            answer = reply_to(proxy, hello + b"\x05\x01\0\x03" + field + b"\0\x50")
            assert answer[4:6] == b"\x05\x04"
        proxy.wait_event("session_closed", 2 * len(HOSTILE))
        text = proxy.text()
        assert text.isascii()
        assert all(line.isprintable() for line in text.split("\n"))
        assert not proxy.events("forged")
        assert len(proxy.events("authentication_failed")) == len(HOSTILE)
        assert len(proxy.events("request_refused")) == len(HOSTILE)
        for event in proxy.events():
            assert all(
                value.isascii() and value.isprintable()
                for value in event.values()
                if isinstance(value, str)
            )
        assert SECRET not in json.dumps(proxy.events(), ensure_ascii=False)
        assert "wonder" not in text
        assert "guess" not in text


# --- the same in this process, for the debugger and the meter of coverage ---------------------


@pytest.fixture
def logger_left_as_it_was() -> Iterator[None]:
    logger = logging.getLogger("geosocks")
    before = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate = before[:2]
    logger.setLevel(before[2])


@pytest.mark.usefixtures("logger_left_as_it_was")
def test_all_of_a_life(tmp_path: Path) -> None:
    """Start, reload well and badly, reopen the log, drain, end at once."""
    assert threading.current_thread() is threading.main_thread()
    log, rules = tmp_path / "log", tmp_path / "rules"
    rules.write_text("allow to everywhere\n")
    argv = ("serve", ON_LOOPBACK, "--rules", str(rules), "--log-file", str(log))
    serving_one = gevent.spawn(main, argv)

    def logged(event: str) -> None:
        with gevent.Timeout(5.0, AssertionError(f"no {event}")):
            while not log.exists() or f'"{event}"' not in log.read_text():
                gevent.sleep(0.01)

    def tell(number: int, event: str) -> None:
        os.kill(os.getpid(), number)
        logged(event)

    logged("listening")
    address = json.loads(log.read_text().splitlines()[0])["address"]
    host, _, port = address.rpartition(":")
    tell(signal.SIGHUP, "reloaded")
    rules.write_text("nonsense\n")
    tell(signal.SIGHUP, "reload_refused")
    log.unlink()
    os.kill(os.getpid(), signal.SIGUSR1)
    with gevent.socket.socket() as sock:
        sock.connect((host, int(port)))
        sock.sendall(b"\x05")
        tell(signal.SIGTERM, "draining")
        tell(signal.SIGTERM, "stopped")
    assert serving_one.get(timeout=5.0) == 0
