"""etc/logrotate.d/geosocks: logrotate reads it, and rotates the log of a running service."""

import grp
import os
import pwd
from pathlib import Path

import pytest

from geosocks.client import Client
from geosocks.errors import RequestFailed
from tests.support.booted import Booted
from tests.support.net import unused_port, wait_for
from tests.support.programs import needed, run
from tests.support.proxy import ROOT
from tests.support.units import LOG, RULES, SERVICE, Service

CONFIG = ROOT / "etc" / "logrotate.d" / "geosocks"


def test_logrotate_reads_it(tmp_path: Path) -> None:
    me = f"{pwd.getpwuid(os.getuid()).pw_name} {grp.getgrgid(os.getgid()).gr_name}"
    text = CONFIG.read_text()
    assert text.count(" geosocks geosocks\n") == 2
    copy = tmp_path / "geosocks"
    copy.write_text(text.replace(" geosocks geosocks\n", f" {me}\n"))
    copy.chmod(0o644)
    done = run([needed("logrotate"), "--debug", f"--state={tmp_path / 'state'}", copy])
    assert done.code == 0
    assert "error" not in done.err
    assert "/var/log/geosocks/*.log" in done.err


@pytest.mark.slow
def test_the_log_of_the_service_is_rotated_and_goes_on(machine: Booted) -> None:
    needed("logrotate")
    machine.write("/etc/logrotate.d/geosocks", CONFIG.read_text())
    service = Service(machine)
    service.start(f"listen = 127.0.0.1:0\nrules = {RULES}\nlog-file = {LOG}\ndrain = 0\n")
    try:
        service.until(service.addresses)
        client = Client(service.addresses()[0])
        done = machine.run("logrotate", "--force", "/etc/logrotate.d/geosocks")
        assert (done.code, done.err) == (0, "")
        wait_for(lambda: "listening" in machine.read(f"{LOG}.1"))
        log = machine.root / LOG.lstrip("/")
        wait_for(log.exists)
        with pytest.raises(RequestFailed):
            client.connect(("127.0.0.1", unused_port()))
        service.wait_event("request_refused")
        assert log.stat().st_mode & 0o777 == 0o640
    finally:
        machine.systemctl("stop", SERVICE)
