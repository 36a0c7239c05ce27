"""``geosocks connect``: both ways, whatever standard input and output are."""

import errno
import os
import pty
import signal
import socket
import subprocess
import sys
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import pytest

from geosocks.auth.gss import GssAuthenticator
from geosocks.auth.userpass import PasswordAuthenticator
from geosocks.cli import connect
from geosocks.cli.connect import main, relay
from geosocks.policy import Policy
from geosocks.stream import Connection
from tests.support.kdc import Realm
from tests.support.net import (
    echo,
    recv_all,
    recv_exactly,
    reset,
    serving,
    tcp_pair,
    unused_port,
    wait_for,
)
from tests.support.programs import Popen
from tests.support.servers import EVERYWHERE, proxy

BINARY = bytes(range(256)) * 40 + b"\r\n\x00\x04\x1a\xff"
LARGE = os.urandom(1 << 16) * 80


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> None:
    """Look for leaks; the threads that GSSAPI contexts are made in stay, and are none."""
    if not request.node.get_closest_marker("kerberos"):
        request.getfixturevalue("no_leaks")


class Ends(list[int]):
    """Descriptors to close when the test is over."""

    def pipe(self) -> tuple[int, int]:
        """A new pipe's ends to read from and to write to."""
        ends = os.pipe()
        self.extend(ends)
        return ends

    def open(self, path: str | Path, flags: int) -> int:
        """A file's descriptor."""
        self.append(os.open(path, flags))
        return self[-1]

    def take(self, sock: Any) -> int:
        """A socket's descriptor."""
        self.append(sock.detach())
        return self[-1]

    def close(self, descriptor: int) -> None:
        """Close one before."""
        self.remove(descriptor)
        os.close(descriptor)


@pytest.fixture
def ends(no_leaks: None) -> Iterator[Ends]:
    descriptors = Ends()
    yield descriptors
    for descriptor in descriptors:
        os.close(descriptor)


@pytest.fixture(autouse=True)
def _short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "LINGER", 0.15)


def read_some(descriptor: int, size: int = 65536) -> bytes:
    """Read a pipe, socket or terminal."""
    gevent.socket.wait_read(descriptor, timeout=10)
    return os.read(descriptor, size)


def read_all(descriptor: int) -> bytes:
    """Read a pipe or socket to its end."""
    return b"".join(iter(lambda: read_some(descriptor), b""))


class Running:
    """A relay in a greenlet of its own: ``far`` is the server's end of its stream."""

    def __init__(
        self, source: int, sink: int, as_stream: Callable[[Any], Any] = lambda sock: sock
    ) -> None:
        near, self.far = tcp_pair()
        self.near = as_stream(near)
        self.greenlet = gevent.spawn(self._run, source, sink)

    def _run(self, source: int, sink: int) -> bool | Exception:
        try:
            return relay(self.near, source, sink)
        except Exception as error:
            return error
        finally:
            self.near.close()

    def outcome(self) -> bool | Exception:
        result: bool | Exception = self.greenlet.get(timeout=5)
        self.far.close()
        return result


# --- kinds of descriptors ---------------------------------------------------------------------


def source_pipe(ends: Ends, path: Path) -> int:
    reader, writer = ends.pipe()
    os.write(writer, BINARY)  # which it holds
    ends.close(writer)
    return reader


def source_socket(ends: Ends, path: Path) -> int:
    one, other = socket.socketpair()
    other.sendall(BINARY)
    other.close()
    return ends.take(one)


def source_file(ends: Ends, path: Path) -> int:
    (path / "in").write_bytes(BINARY)
    return ends.open(path / "in", os.O_RDONLY)


@pytest.mark.parametrize("source", [source_pipe, source_socket, source_file])
def test_all_of_the_source_is_sent_then_the_end(
    source: Callable[..., int], ends: Ends, tmp_path: Path
) -> None:
    reader, writer = ends.pipe()
    running = Running(source(ends, tmp_path), writer)
    assert recv_all(running.far) == BINARY
    running.far.sendall(b"answer")  # half-closed: the way back is open
    running.far.shutdown(socket.SHUT_WR)
    assert running.outcome() is True
    assert os.read(reader, 100) == b"answer"


@pytest.mark.parametrize("kind", ["pipe", "socket", "file"])
def test_all_of_the_stream_is_written_then_the_end(kind: str, ends: Ends, tmp_path: Path) -> None:
    if kind == "pipe":
        reader, sink = ends.pipe()
    elif kind == "socket":
        reader, sink = map(ends.take, socket.socketpair())
    else:
        sink = ends.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    running = Running(ends.open(os.devnull, os.O_RDONLY), sink)
    running.far.sendall(BINARY)
    running.far.shutdown(socket.SHUT_WR)
    if kind != "file":
        assert read_all(reader) == BINARY  # to its end, although sink's number is still open
    assert running.outcome() is True
    os.fstat(sink)
    if kind == "file":
        assert (tmp_path / "out").read_bytes() == BINARY


def test_terminal_both_ways(ends: Ends) -> None:
    master, terminal = pty.openpty()
    sink = os.dup(terminal)
    ends += [master, terminal, sink]
    tty.setraw(terminal)
    running = Running(terminal, sink)
    os.write(master, b"typed")
    assert recv_exactly(running.far, 5) == b"typed"
    assert os.get_blocking(terminal)
    running.far.sendall(b"shown")
    assert read_some(master) == b"shown"
    start = time.monotonic()
    running.far.close()  # who sits at it should not have to type once more
    assert running.outcome() is True
    assert time.monotonic() - start < 0.5
    assert os.get_blocking(terminal)


def test_end_typed_at_a_terminal(ends: Ends) -> None:
    master, terminal = pty.openpty()
    sink = os.dup(terminal)
    ends += [master, terminal, sink]
    running = Running(terminal, sink)
    os.write(master, b"line\n\x04")
    assert recv_all(running.far) == b"line\n"
    running.far.close()
    assert running.outcome() is True


def test_one_socket_as_both(ends: Ends) -> None:
    # So does ssh start its ProxyCommand.
    ours, theirs = gevent.socket.socketpair()
    source = os.dup(theirs.fileno())
    ends.append(source)
    running = Running(source, ends.take(theirs))
    ours.sendall(b"hello")
    assert recv_exactly(running.far, 5) == b"hello"
    running.far.sendall(b"bye")
    running.far.shutdown(socket.SHUT_WR)
    assert recv_all(ours) == b"bye"
    ours.close()
    assert running.outcome() is True


def test_non_blocking_descriptors_stay_so_and_work(ends: Ends) -> None:
    source, feed = ends.pipe()
    reader, sink = ends.pipe()
    os.set_blocking(source, False)
    os.set_blocking(sink, False)
    running = Running(source, sink)
    reading = gevent.spawn(read_all, reader)
    running.far.sendall(LARGE)  # more than the pipe holds
    running.far.shutdown(socket.SHUT_WR)
    assert reading.get() == LARGE
    os.write(feed, b"up")
    ends.close(feed)
    assert recv_all(running.far) == b"up"
    assert running.outcome() is True
    assert not os.get_blocking(source)


# --- ends -------------------------------------------------------------------------------------


def test_what_comes_after_the_targets_end_is_passed_on(ends: Ends) -> None:
    source, feed = ends.pipe()
    reader, sink = ends.pipe()
    running = Running(source, sink)
    running.far.shutdown(socket.SHUT_WR)
    assert read_all(reader) == b""
    for _ in range(4):
        gevent.sleep(0.08)
        os.write(feed, b"late ")
    ends.close(feed)
    assert recv_all(running.far) == b"late " * 4
    assert running.outcome() is True


def test_silent_source_is_not_waited_for_once_the_target_has_closed(ends: Ends) -> None:
    source, _ = ends.pipe()
    _, sink = ends.pipe()
    running = Running(source, sink)
    running.far.close()
    start = time.monotonic()
    assert running.outcome() is True
    assert 0.1 < time.monotonic() - start < 2


def test_source_that_goes_on_does_not_hold_up_who_was_closed_on(ends: Ends) -> None:
    source, feed = ends.pipe()
    _, sink = ends.pipe()
    running = Running(source, sink)
    running.far.close()
    for _ in range(50):
        if running.greenlet.ready():
            break
        os.write(feed, b"more")
        gevent.sleep(0.02)
    assert running.outcome() is True


def test_target_that_resets_is_an_error(ends: Ends) -> None:
    source, _ = ends.pipe()
    _, sink = ends.pipe()
    running = Running(source, sink)
    reset(running.far)
    assert isinstance(running.outcome(), ConnectionResetError)


class Deaf(Connection):
    """A stream that can be read, and no more be written."""

    def sendall(self, data: bytes | memoryview, /) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class DeafSocket(gevent.socket.socket):
    """The same as a gevent socket."""

    sendall = Deaf.sendall  # type: ignore[assignment]


@pytest.mark.parametrize("take", [Deaf.take, lambda sock: DeafSocket(fileno=sock.detach())])
def test_what_broke_before_the_targets_end_is_told_after_what_had_come(
    take: Callable[[Any], Any], ends: Ends
) -> None:
    source, feed = ends.pipe()
    reader, sink = ends.pipe()
    running = Running(source, sink, take)
    running.far.sendall(b"first")
    os.write(feed, b"lost")
    assert read_all(reader) == b"first"
    assert isinstance(running.outcome(), BrokenPipeError)


def test_nobody_reads_the_sink(ends: Ends) -> None:
    source, _ = ends.pipe()
    reader, sink = ends.pipe()
    ends.close(reader)
    running = Running(source, sink)
    running.far.sendall(b"for nobody")
    assert running.outcome() is False


def test_sink_that_cannot_be_written(ends: Ends) -> None:
    source, _ = ends.pipe()
    running = Running(source, ends.open("/dev/full", os.O_WRONLY))
    running.far.sendall(b"x")
    outcome = running.outcome()
    assert isinstance(outcome, OSError)
    assert outcome.errno == errno.ENOSPC


def test_source_that_cannot_be_read(ends: Ends, tmp_path: Path) -> None:
    _, sink = ends.pipe()
    running = Running(ends.open(tmp_path, os.O_RDONLY), sink)
    assert isinstance(running.outcome(), IsADirectoryError)


def test_idle_relay_uses_no_cpu(ends: Ends) -> None:
    source, feed = ends.pipe()
    _, sink = ends.pipe()
    running = Running(source, sink)
    gevent.sleep(0.05)
    used = time.process_time()
    gevent.sleep(0.3)
    assert time.process_time() - used < 0.1
    ends.close(feed)
    assert recv_all(running.far) == b""
    used = time.process_time()
    gevent.sleep(0.3)  # at its end, a pipe is readable for ever
    assert time.process_time() - used < 0.1
    running.far.close()
    assert running.outcome() is True


# --- the command ------------------------------------------------------------------------------


class Command:
    """The command as a process of its own."""

    def __init__(self, *argv: object, stdin: Any = subprocess.PIPE, **options: Any) -> None:
        self.process = Popen(
            [sys.executable, "-m", "geosocks", "connect", *map(str, argv)],
            stdin=stdin,
            stdout=options.pop("stdout", subprocess.PIPE),
            stderr=subprocess.PIPE,
            **options,
        )

    def run(self, given: bytes | None = None) -> tuple[int, bytes, str]:
        """Its exit code and what it wrote, once it has ended."""
        out, err = self.process.communicate(given, timeout=15)
        return self.process.returncode, out, err.decode()


def url_of(server: Any, userinfo: str = "") -> str:
    host, port = server.addresses[0]
    return f"socks5://{userinfo}{host}:{port}"


def test_large_data_both_ways() -> None:
    with serving(echo) as target, proxy() as (server, _):
        assert Command(url_of(server), *target).run(LARGE) == (0, LARGE, "")


def test_brackets_around_an_address() -> None:
    with serving(echo) as (host, port), proxy() as (server, _):
        assert Command(url_of(server), f"[{host}]", port).run(b"x") == (0, b"x", "")


def test_from_a_file_to_a_file(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(BINARY)
    with (
        serving(echo) as target,
        proxy() as (server, _),
        open(tmp_path / "in", "rb") as source,
        open(tmp_path / "out", "wb") as sink,
    ):
        command = Command(url_of(server), *target, stdin=source, stdout=sink)
        assert command.run() == (0, None, "")
    assert (tmp_path / "out").read_bytes() == BINARY


@pytest.mark.parametrize("missing", ["<&-", ">&-", "<&- >&-", "<&- >&- 2>&-"])
def test_descriptors_it_was_started_without(missing: str) -> None:
    with serving(echo) as (host, port), proxy() as (server, _):
        line = f'exec "$0" -m geosocks connect {url_of(server)} {host} {port} {missing}'
        process = Popen(
            ["sh", "-c", line, sys.executable],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = process.communicate(timeout=15)
        assert (process.returncode, out, err) == (0, b"", b"")


def test_ends_when_the_target_does_though_its_input_is_open() -> None:
    def greet(sock: gevent.socket.socket, _: object) -> None:
        sock.sendall(b"220 bye\r\n")

    with serving(greet) as target, proxy() as (server, _):
        command = Command(url_of(server), *target)
        assert read_all(command.process.stdout.fileno()) == b"220 bye\r\n"
        assert command.process.wait(10) == 0
        command.run()


def test_interrupt_ends_it_in_silence() -> None:
    with serving(echo) as target, proxy() as (server, _):
        command = Command(url_of(server), *target)
        command.process.stdin.write(b"x")
        command.process.stdin.flush()
        assert read_some(command.process.stdout.fileno()) == b"x"
        command.process.send_signal(signal.SIGINT)
        assert command.process.wait(10) == -signal.SIGINT
        assert command.run() == (-signal.SIGINT, b"", "")
        wait_for(lambda: not server.sessions)


def test_interrupt_while_nobody_takes_its_output() -> None:
    def pour(sock: gevent.socket.socket, _: object) -> None:
        try:
            while True:
                sock.sendall(LARGE)
        except OSError:
            pass

    with serving(pour) as target, proxy() as (server, _):
        command = Command(url_of(server), *target)
        read_some(command.process.stdout.fileno(), 1)
        gevent.sleep(0.3)  # until the pipe is full
        command.process.send_signal(signal.SIGINT)
        assert command.process.wait(10) == -signal.SIGINT
        command.run()


def test_reader_that_has_gone_is_left_in_silence() -> None:
    with serving(echo) as target, proxy() as (server, _):
        command = Command(url_of(server), *target)
        command.process.stdout.close()
        command.process.stdin.write(b"x")
        command.process.stdin.flush()
        assert command.process.wait(10) == 1
        assert command.process.stderr.read() == b""
        command.process.stdin.close()
        command.process.stderr.close()


def test_password_from_the_environment() -> None:
    check = PasswordAuthenticator(check=lambda user, password: (user, password) == (b"a", b"s3cr"))
    policy = Policy(rules=EVERYWHERE, authenticators=(check,))
    with serving(echo) as target, proxy(policy) as (server, _):
        url = url_of(server, "a@")
        for password, code in (b"s3cr", 0), (b"wr0ng", 1):
            environment = os.environb | {b"GEOSOCKS_PROXY_PASSWORD": password}
            found = Command(url, *target, env=environment).run(b"x")
            assert (found[0], found[1]) == (code, b"x" if code == 0 else b"")
            assert password.decode() not in found[2]
            assert found[2].count("\n") == code


@pytest.mark.kerberos
@pytest.mark.parametrize("level", ["confidentiality", "integrity"])
def test_encapsulated_data_both_ways(level: str, realm: Realm) -> None:
    policy = Policy(rules=EVERYWHERE, authenticators=(GssAuthenticator(keytab=realm.keytab),))
    with serving(echo) as target, proxy(policy) as (server, _):
        url = f"socks5://localhost:{server.addresses[0][1]}?auth=gssapi&level={level}"
        command = Command(url, *target, env=os.environ | {"KRB5CCNAME": realm.ticket()})
        assert command.run(LARGE) == (0, LARGE, "")


# --- what it says -----------------------------------------------------------------------------


def test_target_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    port = unused_port()
    with proxy() as (server, _):
        url = url_of(server)
        assert main([url, "127.0.0.1", str(port)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"geosocks connect: {url.removeprefix('socks5://')}: 127.0.0.1:{port}: "
        "the server answers X'05', connection refused\n"
    )


def test_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    port = unused_port()
    assert main([f"socks5://a:s3cr3t@127.0.0.1:{port}", "h.test", "22"]) == 1
    assert capsys.readouterr().err == f"geosocks connect: 127.0.0.1:{port}: Connection refused\n"


def test_silent_server_within_the_timeout(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lambda sock, _: recv_all(sock) and None) as (host, port):
        start = time.monotonic()
        assert main(["--timeout", "0.1", f"socks5://{host}:{port}", "h.test", "22"]) == 1
        assert time.monotonic() - start < 2
    err = capsys.readouterr().err
    assert err == f"geosocks connect: {host}:{port}: no connection to h.test:22 within 0.1 s\n"


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["http://h.test", "h.test", "22"], "scheme 'http'"),
        (["socks5://a:s3cr3t", "h.test", "22"], "port"),
        (["socks5://a@h.test", "h.test", "22"], "no password"),
        (["socks5://h.test", "n" * 256, "22"], "256 octets"),
        (["socks5://h.test", "", "22"], "HOST: is empty"),
        (["socks5://h.test", "h.test", "0"], "'0' is no port"),
        (["socks5://h.test", "h.test", "65536"], "'65536' is no port"),
        (["socks5://h.test", "h.test", "ssh"], "'ssh' is no port"),
        (["socks5://h.test", "h.test", "²"], "is no port"),
        (["--timeout", "0", "socks5://h.test", "h.test", "22"], "seconds above 0"),
        (["--timeout", "nan", "socks5://h.test", "h.test", "22"], "seconds above 0"),
        (["--timeout", "socks5://a:s3cr3t@h.test", "h.test", "22"], "://***@h.test"),
        (["socks5://h.test", "h.test", "22", "socks5://a:s3cr3t@h.test"], "unrecognized"),
        (["socks5://h.test", "h.test"], "PORT"),
        ([], "URL"),
    ],
)
def test_what_is_not_understood(
    argv: list[str], what: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GEOSOCKS_PROXY_PASSWORD", raising=False)
    try:
        code = main(argv)
    except SystemExit as leaving:
        code = int(str(leaving.code))
    assert code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert what in err
    assert "s3cr3t" not in err
    assert err.splitlines()[-1].startswith("geosocks connect: ")


def test_help_shows_the_line_for_ssh(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "ProxyCommand='geosocks connect socks5://proxy %h %p'" in capsys.readouterr().out
