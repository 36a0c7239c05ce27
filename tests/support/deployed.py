"""scripts/deploy.py below a prefix of the test's own: no service manager, no user, no network."""

import json
import os
import random
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gevent.socket

from tests.support.net import recv_exactly, wait_for
from tests.support.programs import Finished, Popen, run
from tests.support.proxy import ROOT, environment

SCRIPT = ROOT / "scripts/deploy.py"


def quiet_port() -> int:
    """A port that nobody has, nor will get by chance: it is below those of outgoing connections."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)):
                return port


class Deployed:
    """What deploys below ``prefix`` make; ``port`` is free for a listener of theirs."""

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.root = prefix / "opt/geosocks"
        self.config = prefix / "etc/geosocks/geosocks.conf"
        self.port = quiet_port()

    @property
    def address(self) -> str:
        """For ``--listen``."""
        return f"127.0.0.1:{self.port}"

    def words(self, command: str, *options: object) -> list[str]:
        """The command line."""
        words = (sys.executable, SCRIPT, command, "--prefix", self.prefix, *options)
        return list(map(str, words))

    def run(self, command: str, *options: object, code: int = 0, **env: str) -> Finished:
        """Run the script to its end, which is to be ``code``."""
        done = run(self.words(command, *options), env=environment(**env))
        assert done.code == code, f"{done.code}: {done.out.decode()}{done.err}"
        return done

    def install(self, source: Path, *options: object, **env: str) -> str:
        """Install from ``source``; what was printed."""
        listen = ("--listen", self.address)
        return self.run("install", "--from", source, *listen, *options, **env).out.decode()

    def start(self, command: str, *options: object) -> Popen:
        """Start the script; its standard output is a pipe."""
        return Popen(self.words(command, *options), stdout=-1, stderr=-1, env=environment())

    def kill_at(self, line: str, command: str, *options: object) -> list[str]:
        """Kill the script once it has said a line that begins so; the lines it has said."""
        process = self.start(command, *options)
        assert process.stdout is not None
        assert process.stderr is not None
        lines = []
        while True:  # what it has said is in the pipe, or soon will be
            said = process.stdout.readline().decode()
            lines.append(said)
            assert said, f"it never said {line!r}: {lines} {process.stderr.read().decode()}"
            if said.startswith(line):
                break
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
        return lines

    @property
    def version(self) -> str:
        """The version in force."""
        return Path(os.readlink(self.root / "current")).name

    @property
    def state(self) -> dict[str, object]:
        """What the script has noted."""
        state: dict[str, object] = json.loads((self.root / "deploy.json").read_text())
        return state

    def pids(self) -> list[int]:
        """The processes of its versions."""
        return [
            int(entry)
            for entry in os.listdir("/proc")
            if entry.isdecimal() and self._is_ours(Path("/proc", entry))
        ]

    def _is_ours(self, process: Path) -> bool:
        try:
            first = (process / "cmdline").read_bytes().partition(b"\0")[0]
        except OSError:
            return False
        return first.startswith(f"{self.root}/versions/".encode())

    def end(self) -> None:
        """Kill whatever it has left running."""
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not self.pids())

    def listing(self) -> list[str]:
        """Everything below the prefix, with modes."""
        found = sorted(self.prefix.rglob("*"))
        return [f"{path} {path.lstat().st_mode:o}" for path in found]

    @contextmanager
    def session(self, target: tuple[str, int]) -> Iterator[gevent.socket.socket]:
        """A session through it, with method none."""
        with gevent.socket.create_connection(("127.0.0.1", self.port)) as sock:
            sock.sendall(b"\x05\x01\x00")
            assert recv_exactly(sock, 2) == b"\x05\x00"
            host = gevent.socket.inet_aton(target[0])
            sock.sendall(b"\x05\x01\x00\x01" + host + target[1].to_bytes(2, "big"))
            assert recv_exactly(sock, 10)[1] == 0
            yield sock
