"""``geosocks serve`` as a process of its own, its log as events, and what the kernel says of it.

For tests that need the whole program, or other people's programs at its other end.  Waiting lets
the test's own greenlets run, so clients and targets can live in the test's hub.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bcrypt
import gevent
import gevent.socket

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "geosocks", "serve")
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")

Event = dict[str, Any]


class Proxy:
    """A running server; ``log`` is the file of its events, ``port`` where it listens."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, errors: Path) -> None:
        self.process = process
        self.log = log
        self.errors = errors
        self.port = 0
        self.dialled: list[gevent.socket.socket] = []

    @property
    def pid(self) -> int:
        """The process's id."""
        return self.process.pid

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return "127.0.0.1", self.port

    def url(self, userinfo: str = "", scheme: str = "socks5h") -> str:
        """The proxy's URL; ``userinfo`` is ``user:password``."""
        return f"{scheme}://{userinfo and userinfo + '@'}127.0.0.1:{self.port}"

    def dial(self) -> gevent.socket.socket:
        """A TCP connection to it, closed at its end if not before."""
        sock = gevent.socket.socket()
        self.dialled.append(sock)
        sock.connect(self.address)  # no look-up, which create_connection would do in a thread
        return sock

    # --- its log ------------------------------------------------------------------------------

    def text(self) -> str:
        """All that it has logged."""
        return self.log.read_text("utf-8")

    def events(self, name: str = "") -> list[Event]:
        """The events so far; every line that is complete has to be one."""
        lines = self.text().split("\n")[:-1]
        events: list[Event] = [json.loads(line) for line in lines]
        return [event for event in events if name in ("", event["event"])]

    def wait_event(self, name: str, number: int = 1, seconds: float = 5.0) -> Event:
        """The ``number``-th event called ``name``, once it is there."""
        self.wait_for(lambda: len(self.events(name)) >= number, seconds)
        return self.events(name)[number - 1]

    def wait_for(self, condition: Callable[[], object], seconds: float = 5.0) -> None:
        """Wait until ``condition`` holds, and no longer than the process lives."""
        end = time.monotonic() + seconds
        while not condition():
            gone = self.process.poll() is not None and not condition()
            assert not gone, f"ended with {self.process.returncode}: {self.complaint()}"
            assert time.monotonic() < end, f"not within {seconds:g} s; log ends: {self._tail()}"
            gevent.sleep(0.01)

    def complaint(self) -> str:
        """What it wrote to standard error."""
        return self.errors.read_text()

    def _tail(self) -> str:
        return self.text()[-2000:] if self.log.exists() else "nowhere"

    # --- what the kernel says (proc(5)) -------------------------------------------------------

    def descriptors(self) -> int:
        """How many it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def resident(self) -> int:
        """Octets of memory that it occupies."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE

    def cpu_seconds(self) -> float:
        """What it has spent of the processor's time, its own and the kernel's on its behalf."""
        after_name = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(after_name[11]) + int(after_name[12])) / TICKS

    # --- its end ------------------------------------------------------------------------------

    def signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def reload(self, outcome: str = "reloaded") -> Event:
        """Have it read its files again, and wait until it says what came of it."""
        before = len(self.events(outcome))
        self.signal(signal.SIGHUP)
        return self.wait_event(outcome, before + 1)

    def wait(self, seconds: float = 10.0) -> int:
        """Its exit code, once it has ended."""
        end = time.monotonic() + seconds
        while (code := self.process.poll()) is None:
            assert time.monotonic() < end, f"still running after {seconds:g} s"
            gevent.sleep(0.005)
        return code


@contextmanager
def running(
    folder: Path,
    *options: object,
    descriptors: int | None = None,
    log_level: str = "debug",
    env: dict[str, str] | None = None,
) -> Iterator[Proxy]:
    """Serve on loopback, logging to a file in ``folder``, until the block ends.

    ``descriptors`` becomes its RLIMIT_NOFILE, soft and hard; ``env`` is added to its environment.
    Whatever happens to it, it has to end
    with exit code 0, to have written nothing to standard error and to have crashed no session.
    Sessions are not waited for at the end, unless ``options`` say ``--drain``.
    """
    log, errors = folder / "geosocks.log", folder / "geosocks.stderr"
    log.unlink(missing_ok=True)
    argv = ["--listen=127.0.0.1:0", "--drain=0", "--log-format=json", "--log-repeats=all"]
    argv.append(f"--log-level={log_level}")
    argv.append("--control=off")  # the place for one is the machine's, not the test's
    with errors.open("wb") as stderr:
        process = subprocess.Popen(
            [*COMMAND, *argv, f"--log-file={log}", *map(str, options)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stderr=stderr,
            env=environment(**(env or {})),
            preexec_fn=_limit_to(descriptors) if descriptors else None,
        )
    proxy = Proxy(process, log, errors)
    try:
        proxy.wait_for(lambda: log.exists() and proxy.events("listening"), 15.0)
        proxy.port = int(proxy.events("listening")[0]["address"].rpartition(":")[2])
        yield proxy
        if process.poll() is None:
            proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0, proxy.complaint()
        assert proxy.complaint() == ""
        assert not proxy.events("session_crashed")
    finally:
        for sock in proxy.dialled:
            sock.close()
        if process.poll() is None:
            process.kill()
            process.wait()


def users_file(folder: Path, **passwords: str) -> Path:
    """Write an htpasswd file of users and their passwords, hashed as cheaply as bcrypt can."""
    lines = [
        f"{user}:{bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()}\n"
        for user, password in passwords.items()
    ]
    path = folder / "users"
    path.write_text("".join(lines))
    path.chmod(0o600)
    return path


def environment(**more: str) -> dict[str, str]:
    """The environment without anything that would set this program up, or send others to it."""
    strange = ("GEOSOCKS_", "KRB5")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(strange) and not name.lower().endswith("_proxy")
    }
    return kept | more


def _limit_to(descriptors: int) -> Callable[[], None]:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    return limit
