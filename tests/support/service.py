"""``geosocks serve`` as a service manager or an init script starts it, and its workers."""

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import gevent
import gevent.socket

from tests.support.net import recv_exactly
from tests.support.proxy import COMMAND, ROOT, Proxy, environment
from tests.support.servers import read_reply, request

BY_SYSTEMD = ("sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh")
"""Runs a program with LISTEN_PID as systemd sets it: the program's own."""


@contextmanager
def service(
    folder: Path,
    *options: object,
    passed: Sequence[socket.socket] = (),
    names: str | None = None,
    env: dict[str, str] | None = None,
    name: str = "service",
    code: int = 0,
) -> Iterator[Proxy]:
    """Serve until the block ends, with ``passed`` sockets handed over; it has to end with ``code``.

    Logs at level info to a file in ``folder``; ``port`` is that of the first listener.
    """
    log, errors = folder / f"{name}.log", folder / f"{name}.stderr"
    log.unlink(missing_ok=True)
    more = dict(env or {})
    if passed:
        more |= {"LISTEN_FDS": str(len(passed))} | ({"LISTEN_FDNAMES": names} if names else {})
    argv = ["--drain=0", "--control=off", "--log-format=json", "--log-repeats=all"]
    argv.append(f"--log-file={log}")
    with errors.open("wb") as stderr:
        process = subprocess.Popen(
            [*(BY_SYSTEMD if passed else ()), *COMMAND, *argv, *map(str, options)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stderr=stderr,
            env=environment(**more),
            pass_fds=tuple(range(3, 3 + len(passed))),
            preexec_fn=lambda: _hand_over([sock.fileno() for sock in passed]),
        )
    proxy = Proxy(process, log, errors)
    try:
        proxy.wait_for(lambda: log.exists() and proxy.events("listening"), 15.0)
        port = proxy.events("listening")[0]["address"].rpartition(":")[2]
        proxy.port = int(port) if port.isdecimal() else 0
        yield proxy
        if process.poll() is None:
            proxy.signal(15)
        assert proxy.wait() == code, proxy.complaint()
        assert proxy.complaint() == ""
        assert not proxy.events("session_crashed")
    finally:
        for sock in proxy.dialled:
            sock.close()
        end(process)


def _hand_over(descriptors: Sequence[int]) -> None:
    """In the child: have them be 3, 4, 5 and so on."""
    kept = [os.dup(fd) for fd in descriptors]
    high = [os.dup2(fd, 100 + number) for number, fd in enumerate(kept)]
    for number, fd in enumerate(high):
        os.dup2(fd, 3 + number)
        os.close(fd)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and wait for it."""
    if process.poll() is None:
        process.kill()
        process.wait()


def all_ready(proxy: Proxy, workers: int) -> list[int]:
    """The workers' process ids, by slot, once all of them listen."""
    proxy.wait_for(lambda: len(proxy.events("listening")) >= workers)
    return [pid for _, pid in sorted(worker_pids(proxy).items())]


def worker_pids(proxy: Proxy) -> dict[int, int]:
    """Slots and the process ids of those that have them now."""
    return {event["worker"]: event["pid"] for event in proxy.events("worker_started")}


def session(proxy: Proxy, to: tuple[str, int]) -> gevent.socket.socket:
    """A session through ``proxy`` that has had its reply."""
    sock = proxy.dial()
    sock.sendall(b"\x05\x01\x00" + request(1, *to))
    assert recv_exactly(sock, 2) == b"\x05\x00"
    assert read_reply(sock).rep == 0
    return sock


def lives(sock: gevent.socket.socket) -> bool:
    """Whether octets go to the echo and come back."""
    with gevent.Timeout(5.0), suppress(OSError):
        sock.sendall(b"are you there")
        return sock.recv(13) == b"are you there"
    return False


def exists(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def until(condition: object, seconds: float = 5.0) -> None:
    """Wait until the callable ``condition`` holds."""
    end_ = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end_
        gevent.sleep(0.01)


class Manager:
    """A service manager to be told things: the datagrams that came to its NOTIFY_SOCKET."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.path = f"{self._folder.name}/notify"
        self._socket = gevent.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self.told: list[tuple[float, dict[str, str]]] = []
        self._reader = gevent.spawn(self._read)

    def _read(self) -> None:
        while True:
            text = self._socket.recv(4096).decode()
            facts = dict(line.split("=", 1) for line in text.split("\n"))
            self.told.append((time.monotonic(), facts))

    def count(self, key: str) -> int:
        """How often ``key`` was told."""
        return sum(key in facts for _, facts in self.told)

    def wait(self, key: str, number: int = 1, seconds: float = 5.0) -> dict[str, str]:
        """The ``number``-th message with ``key`` in it."""
        until(lambda: self.count(key) >= number, seconds)
        return [facts for _, facts in self.told if key in facts][number - 1]

    def close(self) -> None:
        """Listen no more."""
        self._reader.kill()
        self._socket.close()
        self._folder.cleanup()
