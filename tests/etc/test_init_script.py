"""etc/init.d/geosocks: plain sh, LSB exit codes, a service that it starts, reloads and stops."""

import re
import shutil
from collections.abc import Iterator

import pytest

from tests.support.booted import Booted
from tests.support.net import unused_port, wait_for
from tests.support.programs import needed, run
from tests.support.proxy import ROOT
from tests.support.units import CONF, LOG, RULES, Service

SCRIPT = ROOT / "etc" / "init.d" / "geosocks"
PIDFILE = "/run/geosocks.pid"


def test_shellcheck_has_nothing_to_say() -> None:
    done = run([needed("shellcheck"), "--shell=sh", SCRIPT])
    assert (done.code, done.out) == (0, b"")


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_other_shells_can_read_it(shell: str) -> None:
    done = run([needed(shell), "-n", SCRIPT])
    assert (done.code, done.err) == (0, "")


def test_it_is_executable_and_tells_when_to_start_it() -> None:
    assert shutil.which(str(SCRIPT))
    header = re.search(r"### BEGIN INIT INFO\n(.*)### END INIT INFO", SCRIPT.read_text(), re.DOTALL)
    assert header
    assert set(re.findall(r"^# ([A-Z][A-Za-z-]+):", header[1], re.MULTILINE)) >= {
        *("Provides", "Required-Start", "Required-Stop"),
        *("Default-Start", "Default-Stop", "Short-Description", "Description"),
    }


@pytest.mark.parametrize("words", [[], ["begin"]])
def test_usage(words: list[str]) -> None:
    done = run(["/bin/sh", SCRIPT, *words])
    assert done.code == 2
    for action in ("start", "stop", "restart", "reload", "force-reload", "status"):
        assert f"{action}|" in f"{done.err.strip()}|"


class Script:
    """The script on a machine, as ``service geosocks ACTION`` runs it."""

    def __init__(self, machine: Booted) -> None:
        self.machine = machine
        self.service = Service(machine)
        self.port = unused_port()

    def __call__(self, action: str, code: int = 0) -> str:
        done = self.machine.run("/bin/sh", "/etc/init.d/geosocks", action)
        said = done.out.decode() + done.err
        assert done.code == code, f"{action}: {done.code}: {said}{self.machine.read(LOG)}"
        return said

    def conf(self, text: str = f"rules = {RULES}\n") -> None:
        self.machine.write(CONF, f"listen = 127.0.0.1:{self.port}\ndrain = 0\n{text}", 0o640)


@pytest.fixture
def script(machine: Booted) -> Iterator[Script]:
    machine.write("/etc/init.d/geosocks", SCRIPT.read_text(), 0o755)
    (machine.root / LOG.lstrip("/")).unlink(missing_ok=True)
    script = Script(machine)
    script.conf()
    yield script
    script("stop")


@pytest.mark.slow
def test_start_reload_restart_stop(script: Script) -> None:
    script("status", 3)
    script("stop")  # there is nothing to do
    script("reload", 7)
    script("try-restart")
    script("status", 3)
    assert "started" in script("start")
    first = script.machine.read(PIDFILE).strip()
    assert f"process {first}" in script("status")
    assert "runs already" in script("start")
    assert script.machine.read(PIDFILE).strip() == first
    process = script.machine.root / "proc" / first / "status"
    assert re.search(r"^Uid:\s+987\s+987\s+987\s+987$", process.read_text(), re.MULTILINE)
    for number, action in enumerate(("reload", "force-reload"), 1):
        script(action)
        script.service.wait_event("reloaded", number)
    script("restart")
    second = script.machine.read(PIDFILE).strip()
    assert second != first
    assert not process.exists()
    script("try-restart")
    assert script.machine.read(PIDFILE).strip() != second
    assert "stopped" in script("stop")
    script("status", 3)
    assert len(script.service.events("stopped")) == 3


@pytest.mark.slow
def test_a_mistake_in_the_configuration_ends_nothing(script: Script) -> None:
    script("start")
    script.conf("timeout-idle = soon\n")
    for action in ("reload", "restart"):
        assert f"{CONF}:3: " in script(action, 6)
        script("status")
    script("stop")
    assert f"{CONF}:3: " in script("start", 1)
    script("status", 3)


@pytest.mark.slow
@pytest.mark.parametrize("pid", ["1", "", "soon", "999999999"])
def test_a_pidfile_of_another_process_is_not_believed(script: Script, pid: str) -> None:
    script.machine.write(PIDFILE, f"{pid}\n")
    script("status", 1)
    script("reload", 7)
    script("start")
    script("status")
    wait_for(lambda: script.machine.read(PIDFILE).strip() not in ("", pid))


@pytest.mark.slow
def test_what_is_missing_is_told(script: Script) -> None:
    conf = script.machine.root / CONF.lstrip("/")
    conf.unlink()
    assert CONF in script("start", 6)
    script.conf()
    script.machine.write("/etc/default/geosocks", "DAEMON=/nowhere/geosocks\n")
    try:
        assert "/nowhere/geosocks" in script("start", 5)
        script.machine.write("/etc/default/geosocks", "RUN_AS=nobody-there\n")
        assert "nobody-there" in script("start", 6)
    finally:
        (script.machine.root / "etc/default/geosocks").unlink()
