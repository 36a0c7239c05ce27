"""``geosocks serve`` with its log in each of the places that one can name."""

import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from geosocks.cli import main
from tests.support.net import unused_port
from tests.support.proxy import COMMAND, ROOT, environment
from tests.support.service import end

NOWHERE = b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x01"
"""A method offer and a request for port 1 of loopback, where nobody listens."""


@contextmanager
def logging_to(*options: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Serve with these options until the block ends; with its port."""
    port = unused_port()
    argv = [f"--listen=127.0.0.1:{port}", "--control=off", "--drain=0", *options]
    process = subprocess.Popen(
        [*COMMAND, *argv],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    try:
        yield process, port
    finally:
        end(process)
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def refused(port: int) -> None:
    """A session that the target refuses."""
    with socket.create_connection(("127.0.0.1", port), 5) as sock:
        sock.sendall(NOWHERE)
        answer = b""
        while len(answer) < 12:
            octets = sock.recv(12 - len(answer))
            assert octets
            answer += octets
        assert answer[:4] == b"\x05\x00\x05\x05"


def stopped(process: subprocess.Popen[bytes]) -> tuple[str, str]:
    """End it as a service manager does; what it wrote."""
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=15)
    assert process.returncode == 0, err
    return out.decode(), err.decode()


def first_line(process: subprocess.Popen[bytes], name: str) -> str:
    """Wait for the first line that it writes there."""
    stream = getattr(process, name)
    return str(stream.readline().decode())


def test_the_host_s_syslog(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.settimeout(15)
        syslog.bind(str(tmp_path / "log"))
        with logging_to(f"--log-to=syslog:{tmp_path}/log") as (process, port):
            assert syslog.recv(9999).decode().endswith(f": listening: address=127.0.0.1:{port}")
            refused(port)
            line = syslog.recv(9999).decode()
            assert f"geosocks[{process.pid}]: #1 refused: 127.0.0.1:" in line
            assert stopped(process) == ("", "")


def test_a_syslog_server_that_is_away_keeps_nobody_from_starting() -> None:
    with logging_to(f"--log-to=syslog:tcp://127.0.0.1:{unused_port()}") as (process, port):
        for _ in range(300):
            with suppress(ConnectionRefusedError):
                refused(port)
                break
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        assert stopped(process) == ("", "")


def test_text_on_standard_error() -> None:
    with logging_to("--log-to=stderr", "--log-format=text") as (process, port):
        assert first_line(process, "stderr").endswith(f" listening: address=127.0.0.1:{port}\n")
        refused(port)
        out, err = stopped(process)
        assert out == ""
        [line] = [line for line in err.splitlines() if "refused" in line]
        assert re.fullmatch(
            r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d{4} #1 refused: 127\.0\.0\.1:\d+, "
            r"connect to 127\.0\.0\.1:1, 127\.0\.0\.1:1: Connection refused",
            line,
        )


def test_what_says_the_same_is_told_in_one_line() -> None:
    with logging_to("--log-repeats=3") as (process, port):
        first_line(process, "stdout")
        for _ in range(10):
            refused(port)
        out, _ = stopped(process)
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["event"] for event in events].count("request_refused") == 3
    [held] = [event for event in events if event["event"] == "lines_held_back"]
    assert (held["of"], held["lines"], held["client"]) == ("request_refused", 7, "127.0.0.1")


def test_workers_that_share_a_pipe_leave_each_other_s_lines_whole() -> None:
    options = ("--workers=2", "--log-level=debug", "--log-repeats=all")
    with logging_to(*options) as (process, port):
        first_line(process, "stdout")

        def many() -> None:
            for _ in range(150):
                refused(port)

        threads = [threading.Thread(target=many) for _ in range(4)]
        for thread in threads:
            thread.start()
        reading, out = process.stdout, b""
        assert reading is not None
        while any(thread.is_alive() for thread in threads):
            out += os.read(reading.fileno(), 1 << 16)
        for thread in threads:
            thread.join()
        rest, _ = stopped(process)
    events = [json.loads(line) for line in (out.decode() + rest).splitlines()]
    sessions = [one["session"] for one in events if one["event"] == "request_refused"]
    assert len(sessions) == len(set(sessions)) == 600


def test_a_pipe_that_nobody_reads_stops_no_session_and_no_end() -> None:
    with logging_to("--log-level=debug", "--log-repeats=all") as (process, port):
        first_line(process, "stdout")
        for _ in range(300):
            refused(port)
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.stdout is not None
        assert len(process.stdout.read()) > 50_000


@pytest.mark.parametrize(
    ("to", "says"),
    [
        ("syslog:/nonexistent/log", "--log-to syslog:/nonexistent/log: /nonexistent/log: No such"),
        ("journal", "is not one of stdout, stderr, journald, syslog; did you mean journald?"),
    ],
)
def test_a_place_that_is_none(to: str, says: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--listen=127.0.0.1:0", "--control=off", f"--log-to={to}"]) == 2
    assert says in capfd.readouterr().err
