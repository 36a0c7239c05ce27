"""A real journal: what geosocks tells it, and what journalctl finds by the fields."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from geosocks.client import Client
from geosocks.errors import RequestFailed
from tests.support.booted import Booted
from tests.support.net import unused_port, wait_for

pytestmark = [pytest.mark.slow]


class Logging:
    """geosocks on a booted machine, logging where ``to`` says."""

    def __init__(self, machine: Booted, to: str) -> None:
        self.machine = machine
        self.unit = f"geosocks-to-{to}"
        self.port = unused_port()
        program = ("/opt/geosocks/current/bin/geosocks", "serve", "--control", "off")
        options = ("--listen", f"127.0.0.1:{self.port}", "--log-to", to, "--workers", "2")
        done = machine.run("systemd-run", f"--unit={self.unit}", *program, *options)
        assert done.code == 0, done.err

    def entries(self, *matches: str) -> list[dict[str, Any]]:
        """What journalctl finds."""
        done = self.machine.run("journalctl", "--output=json", "-u", self.unit, *matches)
        return [json.loads(line) for line in done.out.decode().splitlines()]

    def wait(self, *matches: str) -> dict[str, Any]:
        """The last entry that matches, once there is one."""
        wait_for(lambda: self.entries(*matches), 10)
        return self.entries(*matches)[-1]

    def refused(self) -> None:
        """Have a session refused."""
        with pytest.raises(RequestFailed):
            Client(("127.0.0.1", self.port)).connect(("127.0.0.1", 1))

    def stop(self) -> None:
        """End it."""
        self.machine.systemctl("stop", self.unit)


@pytest.fixture(params=["journald", "syslog"])
def logged(request: pytest.FixtureRequest, machine: Booted) -> Iterator[Logging]:
    """One that logs to the journal, and one to the journal's own /dev/log."""
    if request.param == "journald":
        pytest.importorskip("logging_journald", reason="pip install logging-journald")
    one = Logging(machine, request.param)
    try:
        one.wait("SYSLOG_IDENTIFIER=geosocks")
        yield one
    finally:
        one.stop()


def test_what_journalctl_finds(logged: Logging, request: pytest.FixtureRequest) -> None:
    by_fields = "journald" in request.node.name
    wait_for(lambda: any("listening" in one["MESSAGE"] for one in logged.entries()), 10)
    logged.refused()
    match = ("GEOSOCKS_EVENT=request_refused",) if by_fields else ("--grep=refused: ",)
    entry = logged.wait(*match)
    session = entry["MESSAGE"].split()[0].removeprefix("#")
    assert entry["MESSAGE"].startswith(f"#{session} refused: 127.0.0.1:")
    assert (entry["SYSLOG_IDENTIFIER"], entry["PRIORITY"], entry["SYSLOG_FACILITY"]) == (
        "geosocks",
        "6",
        "3",
    )
    if by_fields:
        assert entry["GEOSOCKS_SESSION"] == session
        assert entry["GEOSOCKS_DESTINATION"] == "127.0.0.1:1"
        assert entry["GEOSOCKS_REPLY"] == "connection_refused"
        assert logged.entries(f"GEOSOCKS_SESSION={session}")
        assert entry["_TRANSPORT"] == "journal"
    else:
        assert entry["_TRANSPORT"] == "syslog"
        assert entry["SYSLOG_PID"] == entry["_PID"]
