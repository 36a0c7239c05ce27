"""Other people's programs, run to their end while the test's own greenlets serve them."""

import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import gevent
import pytest

from tests.support.proxy import ROOT, environment

SYSTEM_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def needed(name: str) -> str:
    """Where the program ``name`` is; skips the test on a machine that lacks it."""
    found = shutil.which(name, path=SYSTEM_PATH)
    if found is None:
        pytest.skip(f"there is no program {name} here")
    return found


@dataclass(frozen=True)
class Finished:
    """What came of a program: its exit code and what it wrote."""

    code: int
    out: bytes
    err: str


def run(
    argv: Sequence[object],
    *,
    seconds: float = 60.0,
    given: bytes = b"",
    env: Mapping[str, str] | None = None,
) -> Finished:
    """Run a program to its end; ``given`` is its standard input.

    Not by gevent's subprocess module: once used, it collects the exit codes of every child of this
    process, those of other tests included.
    """
    with (
        tempfile.TemporaryFile() as stdin,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        stdin.write(given)
        stdin.seek(0)
        process = subprocess.Popen(
            list(map(str, argv)),
            cwd=ROOT,
            stdin=stdin,
            stdout=out,
            stderr=err,
            env=environment() if env is None else dict(env),
        )
        end = time.monotonic() + seconds
        try:
            while process.poll() is None:
                assert time.monotonic() < end, f"{argv[0]} took longer than {seconds:g} s"
                gevent.sleep(0.005)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        out.seek(0)
        err.seek(0)
        return Finished(process.returncode, out.read(), err.read().decode(errors="replace"))


class Popen(subprocess.Popen[bytes]):
    """The standard one; waiting for it lets the test's own greenlets run."""

    def wait(self, timeout: float | None = 60.0) -> int:
        """Its exit code, once it has ended."""
        if threading.current_thread() is not threading.main_thread():
            return super().wait(timeout)  # no hub is to be made there
        with gevent.Timeout(timeout, TimeoutError("the program goes on and on")):
            while (code := self.poll()) is None:
                gevent.sleep(0.005)
        return code

    def communicate(
        self, input: bytes | None = None, timeout: float | None = 60.0
    ) -> tuple[bytes, bytes]:
        """Give it ``input`` and read all that it writes, in a thread of no hub."""
        done: list[tuple[bytes, bytes]] = []
        call = super().communicate
        thread = threading.Thread(target=lambda: done.append(call(input, timeout)))
        thread.start()
        while thread.is_alive():
            gevent.sleep(0.005)
        for pipe in (self.stdin, self.stdout, self.stderr):
            if pipe is not None:
                pipe.close()
        return done[0]
