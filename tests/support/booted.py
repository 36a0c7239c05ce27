"""The systemd of this host as process 1 of namespaces of its own, to run our units as they are.

Needs root, unshare(1), overlayfs and a cgroup2 hierarchy; where one is missing the tests skip, and
say which.  The network is the host's, so clients, targets and a KDC on loopback can be reached.
"""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import gevent
import pytest

import geosocks
from tests.support.programs import SYSTEM_PATH, Finished, needed, run

BOOT: Final = Path(__file__).parent / "boot"
SYSTEMD: Final = Path("/lib/systemd/systemd")
CGROUPS: Final = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
USER: Final = 987
"""Number of the user and the group geosocks in there, as ``boot`` makes them."""


class Booted:
    """A running systemd; ``root`` is its file system as this process sees it."""

    def __init__(self, pid: int, said: Path) -> None:
        self.pid = pid
        self.said = said
        self.root = Path(f"/proc/{pid}/root")

    def run(self, *argv: object, seconds: float = 60.0) -> Finished:
        """Run a program in there, as root, to its end."""
        where = ("--target", self.pid, "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--root")
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0"}
        return run([needed("nsenter"), *where, *argv], seconds=seconds, env=env)

    def systemctl(self, *words: object, code: int | None = 0) -> str:
        """Run systemctl; returns what it printed, once it ended with ``code`` (None: any)."""
        done = self.run("systemctl", "--no-pager", *words)
        said = done.out.decode() + done.err
        assert code in (None, done.code), f"systemctl {words}: {done.code}: {said}{self.tail()}"
        return said

    def property(self, unit: str, name: str) -> str:
        """One property of a unit (systemctl show)."""
        return self.systemctl("show", "--value", f"--property={name}", unit).strip()

    def write(self, path: str, text: str | bytes, mode: int = 0o644) -> None:
        """Write a file that belongs to root and the group geosocks."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        os.chown(file, 0, USER)
        file.chmod(mode)

    def read(self, path: str) -> str:
        """What a file has; nothing while there is none."""
        file = self.root / path.lstrip("/")
        return file.read_text() if file.exists() else ""

    def journal(self, *words: object) -> str:
        """What the journal has."""
        return self.run("journalctl", "--no-pager", "--output=short", *words).out.decode()

    def tail(self) -> str:
        """The end of what systemd and its services wrote."""
        early = self.said.read_text(errors="replace")[-1000:]
        return f"\nsystemd: {early}\n{self.journal()[-3000:]}"


def _cgroup2() -> Path:
    for place in CGROUPS:
        if (place / "cgroup.procs").exists() and (place / "cgroup.controllers").exists():
            return place
    pytest.skip("there is no cgroup2 hierarchy here")


def _host_of(pid: int) -> int | None:
    """The child of ``unshare``: process 1 in there."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return None
    return int(children[0]) if children else None


@contextmanager
def booted(folder: Path) -> Iterator[Booted]:
    """Boot; ends with everything in there killed.  ``folder`` is for its files, and empty."""
    if os.geteuid() != 0:
        pytest.skip("booting a systemd needs root")
    if not SYSTEMD.exists():
        pytest.skip(f"there is no {SYSTEMD} here")
    unshare = needed("unshare")
    group = _cgroup2() / f"geosocks-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error.strerror}")
    mounts = folder / "mounts"
    mounts.mkdir()
    said = folder / "systemd.log"
    package = Path(geosocks.__file__).parent
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = sysconfig.get_path("purelib")
    namespaces = ("--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--cgroup")
    argv = [unshare, *namespaces, "--propagation=private"]
    argv += map(str, (BOOT, mounts, sys.base_prefix, python, packages, package))

    def join() -> None:
        (group / "cgroup.procs").write_text("0")

    with said.open("wb") as out:
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={"PATH": SYSTEM_PATH},
                preexec_fn=join,
            )
        except subprocess.SubprocessError:
            group.rmdir()
            pytest.skip("no process can be put into a cgroup here")
    try:
        yield _ready(process, said)
    finally:
        first = _host_of(process.pid)
        if first is not None:
            os.kill(first, signal.SIGKILL)  # and with process 1 everything in there
        process.kill()
        process.wait()
        _remove(group)
        shutil.rmtree(mounts, ignore_errors=True)


def _ready(process: "subprocess.Popen[bytes]", said: Path) -> Booted:
    end = time.monotonic() + 15.0
    while time.monotonic() < end:
        if process.poll() is not None:
            pytest.skip(f"no systemd can be booted here: {said.read_text(errors='replace')[-300:]}")
        first = _host_of(process.pid)
        if first is not None and Path("/proc", str(first), "root/run/systemd/private").exists():
            machine = Booted(first, said)
            if machine.run("systemctl", "is-system-running").out.strip() == b"running":
                return machine
        gevent.sleep(0.05)
    pytest.skip(f"systemd does not come up here: {said.read_text(errors='replace')[-300:]}")


def _remove(group: Path) -> None:
    """Remove a cgroup and those in it, once the last process has left them."""
    end = time.monotonic() + 5.0
    while group.exists() and time.monotonic() < end:
        for inner in sorted(group.rglob("*"), reverse=True):
            if inner.is_dir():
                _try_rmdir(inner)
        _try_rmdir(group)
        gevent.sleep(0.02)


def _try_rmdir(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
