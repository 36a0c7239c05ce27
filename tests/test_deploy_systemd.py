"""scripts/deploy.py on a host with systemd: a real one, as process 1 of namespaces of its own."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import wheels
from tests.support.booted import Booted, booted
from tests.support.deployed import SCRIPT, quiet_port
from tests.support.programs import Finished
from tests.test_deploy import BROKEN

pytestmark = [pytest.mark.slow]

MOUNTED = ("python", "site", "src/geosocks")


@pytest.fixture(scope="module")
def machine(single_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    """A host that has nothing of geosocks, but for the script and the files to install from."""
    folder = tmp_path_factory.mktemp("host")
    late = wheels.variant(single_file, folder / "late.pyz", "9.0.0", BROKEN["it is slow to fail"])
    newer = wheels.variant(single_file, folder / "newer.pyz", "8.0.0")
    (folder / "machine").mkdir()
    with booted(folder / "machine") as machine:
        for place in MOUNTED:
            assert machine.run("umount", f"/opt/geosocks/{place}").code == 0
        assert machine.run("rm", "-r", "/opt/geosocks").code == 0
        assert machine.run("userdel", "geosocks").code == 0
        for path in (SCRIPT, single_file, late, newer):
            machine.write(f"/srv/{path.name}", path.read_bytes())
        there = machine.run("/usr/bin/python3", "-c", "import sys; print(*sys.version_info[:2])")
        if there.out.split() != [b"%d" % part for part in sys.version_info[:2]]:
            pytest.skip("the host's Python is of another version than the one that runs the tests")
        yield machine


def deploy(machine: Booted, command: str, *options: object, code: int = 0) -> str:
    """Run the script on the machine; what it said."""
    done: Finished = machine.run("/usr/bin/python3", "/srv/deploy.py", command, *options)
    said = done.out.decode() + done.err
    assert done.code == code, f"{done.code}: {said}{machine.tail()}"
    return said


def test_a_unit_is_installed_proven_kept_and_removed(machine: Booted) -> None:
    listen = f"127.0.0.1:{quiet_port()}"
    said = deploy(machine, "install", "--from", "/srv/geosocks.pyz", "--listen", listen)
    assert "restart the service (systemd)" in said
    assert said.count(f"proven   none at {listen}") == 2
    assert machine.property("geosocks.service", "ActiveState") == "active"
    assert machine.property("geosocks.service", "User") == "geosocks"
    assert machine.systemctl("is-enabled", "geosocks.service").strip() == "enabled"
    assert "runs as process" in deploy(machine, "status")

    said = deploy(machine, "upgrade", "--from", "/srv/late.pyz", code=1)
    assert "is in force again" in said
    assert "geosocks serve: broken in force" in said  # out of the journal
    deploy(machine, "upgrade", "--from", "/srv/newer.pyz")
    assert "version   8.0.0" in deploy(machine, "status")
    deploy(machine, "rollback")

    deploy(machine, "remove", "--purge")
    assert "could not be found" in machine.systemctl("status", "geosocks.service", code=4)
    assert not (machine.root / "opt/geosocks").exists()
    assert not (machine.root / "var/log/geosocks").exists()
    assert "geosocks" not in machine.read("/etc/passwd") + machine.read("/etc/group")


def test_the_socket_unit_is_used_where_the_configuration_says_systemd(machine: Booted) -> None:
    port = quiet_port()
    stream = f"[Socket]\nListenStream=\nListenStream=127.0.0.1:{port}\n"
    machine.write("/etc/systemd/system/geosocks.socket.d/port.conf", stream)
    machine.write("/srv/mine.conf", "listen = systemd\n")
    said = deploy(machine, "install", "--from", "/srv/geosocks.pyz", "--config", "/srv/mine.conf")
    assert said.count("proven   none at systemd") == 2
    assert machine.property("geosocks.socket", "ActiveState") == "active"
    deploy(machine, "upgrade", "--from", "/srv/newer.pyz")
    deploy(machine, "remove", "--purge")
    assert "could not be found" in machine.systemctl("status", "geosocks.service", code=4)


def test_a_unit_that_somebody_else_made_is_left_alone(machine: Booted) -> None:
    unit = "/etc/systemd/system/geosocks.service"
    machine.write(unit, "[Service]\nExecStart=/bin/sleep 60\n")
    options = ("--from", "/srv/geosocks.pyz", "--listen", f"127.0.0.1:{quiet_port()}")
    said = deploy(machine, "install", *options, code=2)
    assert f"there is a {unit} already, which this script has not made" in said
    deploy(machine, "remove", "--purge")
    assert "sleep 60" in machine.read(unit)
