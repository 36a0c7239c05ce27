"""Servers as processes: started, asked what they cost, and ended with all that they started."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")
PATIENCE = 15.0  # seconds for a server to listen
GRACE = 2.0  # seconds for a server to end by itself when told to


class Failed(Exception):
    """A server did not start, or ended, or did nothing."""


def environment() -> dict[str, str]:
    """What servers get: nothing of it sets up geosocks, and the folders of system programs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GEOSOCKS_")}
    kept["PATH"] = f"{kept.get('PATH', '')}:/usr/sbin:/sbin"
    return kept


def _stat(pid: int | str) -> list[str]:
    """The fields of /proc/PID/stat from the third on (proc(5)); none where it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


class Programs:
    """The programs of one server, in ``folder``; owned by who started them."""

    def __init__(self, folder: Path, cpus: frozenset[int]) -> None:
        self.folder = folder
        self.cpus = cpus
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, argv: Sequence[str], extra: Mapping[str, str] | None = None) -> None:
        """Start one on its cores, with its output in a file, in a session of its own (setsid(2)).

        So the terminal's ctrl-C does not reach it, and what it starts can be told by its session.
        """
        with (self.folder / "output").open("ab") as output:
            self.started.append(
                subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=self.folder,
                    env=environment() | dict(extra or {}),
                    start_new_session=True,
                    preexec_fn=lambda: os.sched_setaffinity(0, self.cpus),
                )
            )

    def wait_for_port(self, port: int) -> None:
        """Wait until it listens.

        Raises:
            Failed: it ended, or does not within 15 seconds.
        """
        end = time.monotonic() + PATIENCE
        while True:
            self.check()
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
                return
            if time.monotonic() > end:
                raise Failed(f"does not listen within {PATIENCE:g} s{self.complaint()}")
            time.sleep(0.02)

    def check(self) -> None:
        """Raise Failed where one has ended."""
        for process in self.started:
            code = process.poll()
            if code is not None:
                how = f"status {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
                raise Failed(f"ended with {how}{self.complaint()}")

    def complaint(self) -> str:
        """The last line that it wrote, after a colon."""
        try:
            lines = (self.folder / "output").read_text(errors="replace").split("\n")
        except OSError:
            lines = []
        said = [line.strip() for line in lines if line.strip()]
        return f": {said[-1][:200]}" if said else ""

    # --- what they cost ---------------------------------------------------------------------------

    def pids(self) -> list[int]:
        """All processes of it: those started here, what they started, and what these started.

        By descent, and by session where somebody in between has ended already.
        """
        ours = {process.pid for process in self.started}
        known = {
            int(entry): (int(stat[1]), int(stat[3]))
            for entry in os.listdir("/proc")
            if entry.isdigit() and (stat := _stat(entry))
        }
        found = {pid for pid, (_, session) in known.items() if pid in ours or session in ours}
        grown = True
        while grown:
            more = {pid for pid, (parent, _) in known.items() if parent in found} - found
            found |= more
            grown = bool(more)
        return sorted(found)

    def cpu_seconds(self) -> float:
        """User and system time of all, children that have ended included."""
        fields = [stat for pid in self.pids() if (stat := _stat(pid))]
        return sum(sum(map(int, stat[11:15])) for stat in fields) * TICK

    def memory(self) -> int:
        """Octets, what several share divided among these (PSS in smaps_rollup, proc(5)).

        Raises:
            Failed: the kernel does not tell.
        """
        total = 0
        for pid in self.pids():
            try:
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            except PermissionError as error:
                raise Failed("its memory cannot be read without root") from error
            total += sum(
                int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")
            )
        return total * 1024

    def descriptors(self) -> int:
        """How many it has open.

        Raises:
            Failed: the kernel does not tell.
        """
        total = 0
        for pid in self.pids():
            try:
                total += len(os.listdir(f"/proc/{pid}/fd"))
            except (FileNotFoundError, ProcessLookupError):
                continue
            except PermissionError as error:
                raise Failed("its descriptors cannot be counted without root") from error
        return total

    # --- their end --------------------------------------------------------------------------------

    def stop(self) -> None:
        """End all of it, by process id: TERM, and after two seconds KILL."""
        if not self.started:
            return
        pids = self.pids()
        self._signal(pids, signal.SIGTERM)
        if not self._wait(lambda: all(map(_ended, pids)), GRACE):
            self._signal(pids, signal.SIGKILL)
        self._signal(self.pids(), signal.SIGKILL)  # what came to be in between
        for process in self.started:
            process.wait()
        self._wait(lambda: all(map(_ended, pids)), GRACE)

    def _signal(self, pids: Sequence[int], number: signal.Signals) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _wait(self, done: Callable[[], bool], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not done():
            for process in self.started:
                process.poll()
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        return True


def _ended(pid: int) -> bool:
    """Whether there is no such process, or only what its parent has yet to collect."""
    stat = _stat(pid)
    return not stat or stat[0] in "ZX"


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def busy_seconds(cpus: frozenset[int]) -> float:
    """What these cores have worked so far, for anybody (/proc/stat, proc(5))."""
    total = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cpus:
            user, nice, system, _idle, _iowait, irq, softirq = map(int, fields[:7])
            total += user + nice + system + irq + softirq
    return total * TICK
