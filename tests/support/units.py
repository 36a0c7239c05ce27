"""geosocks.service as tests run it: on a booted machine, its log as events."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.support.booted import Booted
from tests.support.net import wait_for
from tests.support.proxy import ROOT

UNITS: Final = ROOT / "etc" / "systemd"
SERVICE: Final = "geosocks.service"
CONF: Final = "/etc/geosocks/geosocks.conf"
RULES: Final = "/etc/geosocks/rules.conf"
LOG: Final = "/var/log/geosocks/geosocks.log"

Event = dict[str, Any]


def install(machine: Booted) -> None:
    """Put the units where an administrator would, with rules that allow all."""
    for unit in UNITS.iterdir():
        machine.write(f"/etc/systemd/system/{unit.name}", unit.read_text())
    machine.write(RULES, "allow to everywhere\n", 0o640)
    machine.systemctl("daemon-reload")


class Service:
    """geosocks.service on a booted machine."""

    def __init__(self, machine: Booted, workers: int = 1) -> None:
        self.machine = machine
        self.workers = workers
        self.port = 0
        """Where a .socket unit listens for it."""

    @property
    def pid(self) -> int:
        """The service's first process, as this process numbers it."""
        number = int(self.machine.property(SERVICE, "MainPID"))
        assert number, self.why()
        return next(pid for pid in inside(self.machine) if number_inside(pid) == number)

    def events(self, name: str) -> list[Event]:
        """What it has logged under ``name``."""
        lines = self.machine.read(LOG).splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def wait_event(self, name: str, number: int = 1) -> Event:
        """The ``number``-th event called ``name``."""
        wait_for(lambda: len(self.events(name)) >= number)
        return self.events(name)[number - 1]

    def start(self, options: str, verb: str = "restart") -> None:
        """Start it with these options; its log begins anew."""
        self.machine.write(CONF, options, 0o640)
        (self.machine.root / LOG.lstrip("/")).unlink(missing_ok=True)
        self.machine.systemctl("reset-failed", SERVICE, code=None)
        done = self.machine.run("systemctl", verb, SERVICE)
        assert done.code == 0, self.why()

    def addresses(self) -> list[tuple[str, int]]:
        """Where it takes clients by TCP, in the order of its options; every worker tells."""
        found = dict.fromkeys(event["address"] for event in self.events("listening"))
        parts = (one.rpartition(":") for one in found if "/" not in one)
        return [(host, int(port)) for host, _, port in parts]

    def reload(self) -> None:
        """Have it read its files again: each worker tells, and then the master that all have.

        Or twice, as systemd from 253 on sends HUP by itself.
        """
        before = len(self.events("reloaded"))
        self.machine.systemctl("reload", SERVICE)
        tellers = 1 if self.workers == 1 else self.workers + 1
        self.until(lambda: len(self.events("reloaded")) >= before + tellers)

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until ``condition`` holds."""
        try:
            wait_for(condition)
        except AssertionError:
            raise AssertionError(self.why()) from None

    def why(self) -> str:
        """What may tell why it does not run."""
        status = self.machine.systemctl("status", SERVICE, code=None)
        return f"{status}{self.machine.tail()}\n{self.machine.read(LOG)[-2000:]}"


def inside(machine: Booted) -> list[int]:
    """The processes of the machine, as this process numbers them."""
    space = Path(f"/proc/{machine.pid}/ns/pid").readlink()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "ns" / "pid").readlink() == space:
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def status(pid: int) -> dict[str, str]:
    """``/proc/PID/status``."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def number_inside(pid: int) -> int:
    """What a process of the machine is called in there."""
    return int(status(pid)["NSpid"].split()[-1])
