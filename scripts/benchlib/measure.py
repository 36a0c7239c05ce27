"""Scenarios, and one measurement: a fresh server, a fresh load, and what the server spent on it."""

import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchlib.load import Running, Work
from benchlib.processes import Failed, Programs, busy_seconds, free_port
from benchlib.servers import Server

WARM = 0.2  # seconds that all clients run before anything is counted
READY = 20.0  # seconds for all of them to get there
SETTLE = 1.0  # seconds after which idle sessions are looked at


@dataclass(frozen=True)
class Scenario:
    """What is done, and the two figures that come of it."""

    name: str
    title: str
    mode: str
    sessions: int
    cost: str  # what the first figure is, less is better
    speed: str  # what the second one is
    login: bool = False
    size: int = 64

    def suits(self, server: Server | None) -> bool:
        """Whether the server can do it; None is no server at all."""
        if server is None:
            return self.mode != "idle" and not self.login
        return (server.login or not self.login) and (server.udp or self.mode != "udp")


CPU = "CPU ms per 1,000"
SCENARIOS = (
    Scenario("bulk-1", "one stream", "bulk", 1, "CPU s per GB", "Gbit/s"),
    Scenario("bulk-4", "four streams", "bulk", 4, "CPU s per GB", "Gbit/s"),
    Scenario("rate", "short sessions, 32 at a time", "rate", 32, f"{CPU} sessions", "sessions/s"),
    Scenario(
        "auth",
        "the same, with name and password",
        "rate",
        32,
        f"{CPU} sessions",
        "sessions/s",
        login=True,
    ),
    Scenario("rtt", "64 octets to and fro in 100 sessions", "rtt", 100, f"{CPU} messages", "msg/s"),
    Scenario("idle", "open, silent sessions", "idle", 1000, "KiB per session", "descriptors"),
    Scenario(
        "udp",
        "512 octets to and fro by UDP ASSOCIATE",
        "udp",
        1,
        f"{CPU} datagrams",
        "datagrams/s",
        size=512,
    ),
)


@dataclass(frozen=True)
class Machine:
    """Which cores are for whom: the same for every server."""

    server: frozenset[int]
    load: frozenset[int]
    spin: bool

    @classmethod
    def of_this_process(cls) -> "Machine":
        """The first usable core for the server, the second one for the load, which polls there."""
        usable = sorted(os.sched_getaffinity(0))
        if len(usable) < 2:
            return cls(frozenset(usable), frozenset(usable), False)
        return cls(frozenset(usable[:1]), frozenset(usable[1:2]), True)


@dataclass(frozen=True)
class Round:
    """What one round came to.  Without a server there is no cost."""

    cost: float | None
    speed: float
    errors: int = 0
    lost: int = 0  # datagrams
    others: float = 0.0  # cores that anybody else used, of those of server and load
    idle_cpu: float | None = None  # percent of a core, while nothing happened
    fault: str = ""


def measure(scenario: Scenario, server: Server | None, seconds: float, machine: Machine) -> Round:
    """Run ``scenario`` once, for ``seconds``.

    Raises:
        Failed: the server did not start, ended, or let nothing through.
    """
    login = ("bench", secrets.token_hex(8)) if scenario.login else None
    with _started(server, login, machine) as (programs, port):
        work = Work(
            scenario.mode,
            scenario.sessions,
            ("127.0.0.1", port) if server else None,
            login,
            scenario.size,
            machine.spin,
        )
        before = _size(programs) if scenario.mode == "idle" else (0, 0)
        with Running(work, machine.load, READY + seconds + 20) as load:
            _get_ready(load, programs, scenario)
            if scenario.mode == "idle":
                return _idle(load, programs, scenario, seconds, before)
            return _busy(load, programs, scenario, seconds, machine)


@contextmanager
def _started(
    server: Server | None, login: tuple[str, str] | None, machine: Machine
) -> Iterator[tuple[Programs, int]]:
    """A server of its own in a folder of its own, both gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="geosocks-bench-") as folder:
        programs = Programs(Path(folder), machine.server)
        port = free_port()
        try:
            if server:
                server.start(programs, port, login)
                programs.wait_for_port(port)
            yield programs, port
        finally:
            programs.stop()


def _get_ready(load: Running, programs: Programs, scenario: Scenario) -> None:
    """Wait until all clients have done something once, and a little more."""
    counters = load.counters

    def why() -> str:
        return f": {counters.said}" if counters.said else ""

    end = time.monotonic() + READY
    while counters.ready < scenario.sessions:
        programs.check()
        if not load.alive():
            raise Failed(f"the load ended{why()}")
        # A server may refuse a few; one that refuses them all is not measured.
        if scenario.mode != "rate" and counters.ready + counters.errors >= scenario.sessions:
            break
        if time.monotonic() > end or counters.errors > 10 * scenario.sessions:
            break
        time.sleep(0.01)
    if not counters.ready:
        raise Failed(f"nothing came through{why()}")
    time.sleep(WARM)


def _busy(
    load: Running, programs: Programs, scenario: Scenario, seconds: float, machine: Machine
) -> Round:
    """Count what is done while the load goes on."""
    counters = load.counters
    cores = machine.server | machine.load
    counters.mark()
    began, octets, done = time.monotonic(), counters.octets, counters.done
    lost, cpu = counters.lost, programs.cpu_seconds()
    busy = busy_seconds(cores)
    time.sleep(seconds)
    cpu, octets, done = programs.cpu_seconds() - cpu, counters.octets - octets, counters.done - done
    took = time.monotonic() - began
    # What is not the server's is the load's, which takes all of its core where it polls.
    others = max(0.0, (busy_seconds(cores) - busy - cpu) / took - 1) if machine.spin else 0.0
    programs.check()
    if not load.alive():
        raise Failed(f"the load ended: {counters.said}")
    _wait(lambda: not counters.stalled, 2.0)
    errors = counters.errors + counters.stalled
    fault = counters.said or ("a session came to a halt" if counters.stalled else "")
    units = octets / 1e9 if scenario.mode == "bulk" else done / 1000
    if not units:
        raise Failed(f"nothing came through{': ' if fault else ''}{fault}")
    cost = cpu / units if scenario.mode == "bulk" else 1000 * cpu / units
    speed = 8 * octets / 1e9 if scenario.mode == "bulk" else done
    return Round(
        cost if programs.started else None,
        speed / took,
        errors,
        counters.lost - lost,
        others,
        fault=fault if errors else "",
    )


def _idle(
    load: Running,
    programs: Programs,
    scenario: Scenario,
    seconds: float,
    before: tuple[int, int],
) -> Round:
    """Look at the server while its sessions are open and silent."""
    counters = load.counters
    time.sleep(SETTLE)
    began, cpu = time.monotonic(), programs.cpu_seconds()
    time.sleep(seconds)
    spent = (programs.cpu_seconds() - cpu) / (time.monotonic() - began)
    after = _size(programs)
    programs.check()
    opened = counters.ready
    return Round(
        (after[0] - before[0]) / 1024 / opened,
        (after[1] - before[1]) / opened,
        max(counters.errors, scenario.sessions - opened),
        idle_cpu=100 * spent,
        fault=counters.said,
    )


def _size(programs: Programs) -> tuple[int, int]:
    """Memory and descriptors, once they have come to rest after a first connection."""
    time.sleep(WARM)
    return programs.memory(), programs.descriptors()


def _wait(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)


def smaller(scenario: Scenario, sessions: int) -> Scenario:
    """The same with so many idle sessions."""
    if scenario.mode != "idle":
        return scenario
    return replace(scenario, sessions=sessions, title=f"{sessions:,} {scenario.title}")
