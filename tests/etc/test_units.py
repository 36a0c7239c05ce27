"""The units as systemd's own tools read them: the exposure that they leave, and no mistake."""

import configparser
import re
from pathlib import Path

from tests.support.programs import needed, run
from tests.support.proxy import ROOT

UNITS = ROOT / "etc" / "systemd"
MOST = 1.6
"""Exposure by systemd 252, from 0 (safe) to 10; Debian's sshd and danted are above 9."""


def test_exposure_is_small() -> None:
    done = run(
        [needed("systemd-analyze"), "security", "--offline=true", UNITS / "geosocks.service"]
    )
    found = re.search(r"Overall exposure level for geosocks.service: ([0-9.]+)", done.out.decode())
    assert found, done.err
    print(f"exposure of geosocks.service: {found[1]}")
    assert float(found[1]) <= MOST


def test_units_have_no_mistakes(tmp_path: Path) -> None:
    program = tmp_path / "geosocks"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("/opt/geosocks/current/bin/geosocks", str(program))
        (tmp_path / unit.name).write_text(text)
    units = [tmp_path / unit.name for unit in UNITS.iterdir()]
    done = run([needed("systemd-analyze"), "verify", "--man=no", *units])
    complaints = set(done.err.splitlines())
    # systemd before 253, which goes on with the line before.
    old = {line for line in complaints if line.endswith("service type, ignoring: notify-reload")}
    assert complaints == old
    assert done.code == 0


def section(unit: str, name: str) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS / unit)
    return parser[name]


def test_stopping_takes_the_drain_and_15_seconds_more() -> None:
    sample = (ROOT / "etc" / "geosocks.conf").read_text()
    drain = re.search(r"^#drain = ([0-9]+)$", sample, re.MULTILINE)
    assert drain
    assert int(section("geosocks.service", "Service")["TimeoutStopSec"]) == int(drain[1]) + 15


def test_the_socket_listens_where_serve_does_by_default() -> None:
    sample = (ROOT / "etc" / "geosocks.conf").read_text()
    where = section("geosocks.socket", "Socket")["ListenStream"]
    assert f"\n#listen = {where}\n" in sample
