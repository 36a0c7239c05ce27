"""The process above several workers, with workers that do little: it forks no test's hub."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gevent
import pytest

from geosocks.master.seats import IDS_OF_A_LIFE, Alone, Cells, Seat
from geosocks.shared import Layout
from geosocks.systemd import Notifier
from tests.support.proxy import ROOT, environment
from tests.support.service import end, exists, until

PRELUDE = """
import os, signal, sys, time
from geosocks.errors import ConfigError
from geosocks.events import event_name, plain
from geosocks.master import Cells, Master
from geosocks.shared import Layout
from geosocks.systemd import Notifier

folder = sys.argv[1]

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def observe(event):
    say(event_name(type(event)), *(f"{key}={value}" for key, value in plain(event).items()))

def until_told(seat):
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
    seat.overseer.ready()
    while True:
        signal.pause()

def check():
    pass

def work(seat):
    until_told(seat)

layout = Layout()
gauge, count = layout.cell("gauge", gauge=True), layout.cell("count")
cells = Cells.of(layout)
slab = layout.slab(2)
options = {}
"""

ENDING = """
code = Master(
    lambda seat: work(seat),
    slots=2, slab=slab, cells=cells, emit=observe, check=lambda: check(),
    stop_listening=lambda: say("closed"), reopen=lambda: say("reopened"),
    on_ready=lambda: say("ready"), notifier=Notifier(), **options,
).run()
say("end", code)
sys.exit(code)
"""


class Told:
    """A master at work, and the lines that it and its workers say."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path, err: Path) -> None:
        self.process = process
        self._out = out
        self._err = err

    def lines(self, beginning: str = "") -> list[str]:
        """Those so far."""
        lines = self._out.read_text().split("\n")[:-1]
        return [line for line in lines if line.startswith(beginning)]

    def errors(self) -> str:
        """What was written to standard error."""
        return self._err.read_text()

    def wait_line(self, beginning: str, number: int = 1) -> str:
        """The ``number``-th line that begins so."""
        until(lambda: len(self.lines(beginning)) >= number)
        return self.lines(beginning)[number - 1]

    def wait(self) -> int:
        """Its exit code."""
        until(lambda: self.process.poll() is not None)
        return int(self.process.returncode)


@contextmanager
def master(folder: Path, change: str = "") -> Iterator[Told]:
    """A master in a process of its own; ``change`` is code that says what is different."""
    out, err = folder / "out", folder / "err"
    program = PRELUDE + textwrap.dedent(change) + ENDING
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", program, folder],
            stdout=stdout,
            stderr=stderr,
            env=environment(),
            cwd=ROOT,
        )
    try:
        yield Told(process, out, err)
    finally:
        end(process)


def test_it_is_ready_when_all_are_and_ends_when_all_have(tmp_path: Path) -> None:
    with master(tmp_path) as told:
        told.wait_line("ready")
        assert len(told.lines("worker_started")) == 2
        told.process.send_signal(signal.SIGTERM)
        assert told.wait() == 0
        assert told.lines()[-2:] == ["closed", "end 0"]
        assert told.errors() == ""


def test_one_that_is_not_ready_holds_the_news_back(tmp_path: Path) -> None:
    change = """
        def work(seat):
            while seat.slot and not os.path.exists(f"{folder}/go"):
                time.sleep(0.01)
            until_told(seat)
    """
    with master(tmp_path, change) as told:
        told.wait_line("worker_started", 2)
        gevent.sleep(0.2)
        assert not told.lines("ready")
        (tmp_path / "go").touch()
        told.wait_line("ready")
        told.process.send_signal(signal.SIGTERM)
        assert told.wait() == 0


def test_a_term_before_they_are_ready_waits_for_them(tmp_path: Path) -> None:
    change = """
        def work(seat):
            time.sleep(0.3)
            until_told(seat)
    """
    with master(tmp_path, change) as told:
        told.wait_line("worker_started", 2)
        told.process.send_signal(signal.SIGTERM)
        assert told.wait() == 0
        assert not told.lines("ready")


def test_workers_of_a_wrong_configuration_end_it_with_their_code(tmp_path: Path) -> None:
    with master(tmp_path, "work = lambda seat: 2") as told:
        assert told.wait() == 2
        assert len(told.lines("worker_started")) == 2  # once is enough


def test_workers_that_never_live_to_serve_end_it(tmp_path: Path) -> None:
    with master(tmp_path, "work = lambda seat: 1 / 0") as told:
        assert told.wait() == 70
        complaint = "geosocks serve: 5 workers in a row ended before they served, the last one with"
        assert complaint in told.errors()
        assert "ZeroDivisionError" in told.errors()
        assert 5 <= len(told.lines("worker_started")) <= 6


def test_workers_that_are_killed_at_once_end_it_too(tmp_path: Path) -> None:
    with master(tmp_path, "work = lambda seat: os.kill(os.getpid(), signal.SIGKILL)") as told:
        assert told.wait() == 1
        assert told.errors().endswith("the last one with SIGKILL\n")


def test_as_long_as_one_serves_there_is_hope(tmp_path: Path) -> None:
    change = """
        def work(seat):
            if seat.slot == 1 and not os.path.exists(f"{folder}/good"):
                return 70
            until_told(seat)
    """
    with master(tmp_path, change) as told:
        told.wait_line("worker_ended", 4)
        pauses = [line.rpartition("pause=")[2] for line in told.lines("worker_ended")[:4]]
        assert pauses == ["0.1", "0.2", "0.4", "0.8"]
        assert not told.lines("ready")
        (tmp_path / "good").touch()
        told.wait_line("ready")
        told.process.send_signal(signal.SIGTERM)
        assert told.wait() == 0
        assert told.errors() == ""


def test_who_has_lived_for_a_good_while_is_replaced_soon(tmp_path: Path) -> None:
    with master(tmp_path, "options['good_while'] = 0.0") as told:
        for number in range(3):
            told.wait_line("worker_started", 2 + number)
            worker = told.lines("worker_started")[-1]
            os.kill(int(worker.rpartition("pid=")[2]), signal.SIGKILL)
            assert told.wait_line("worker_ended", number + 1).endswith("pause=0.1")
        told.wait_line("worker_started", 5)
        told.process.send_signal(signal.SIGTERM)
        assert told.wait() == 0


def test_counts_outlive_a_worker_and_gauges_do_not(tmp_path: Path) -> None:
    change = """
        def work(seat):
            row = seat.slab.row(seat.slot)
            say("found", seat.slot, seat.life, row[gauge], row[count])
            row[gauge] = 7
            row[count] += 5
            until_told(seat)
    """
    with master(tmp_path, change) as told:
        told.wait_line("ready")
        assert sorted(told.lines("found")) == ["found 0 0 0 0", "found 1 0 0 0"]
        os.kill(int(told.lines("worker_started worker=0")[0].rpartition("pid=")[2]), 9)
        assert told.wait_line("found 0 1") == "found 0 1 0 5"
        told.process.send_signal(signal.SIGTERM)
        assert told.wait() == 0


def test_a_check_that_fails_is_told_and_nobody_reloads(tmp_path: Path) -> None:
    change = """
        def check():
            raise ConfigError("rules:1: nonsense")

        def work(seat):
            signal.signal(signal.SIGHUP, lambda *_: say("reload"))
            until_told(seat)
    """
    with master(tmp_path, change) as told:
        told.wait_line("ready")
        told.process.send_signal(signal.SIGHUP)
        assert told.wait_line("reload_refused") == "reload_refused reason=rules:1: nonsense"
        told.process.send_signal(signal.SIGUSR1)
        told.wait_line("reopened")
        assert "reload" not in told.lines()


def test_workers_know_when_their_master_is_gone(tmp_path: Path) -> None:
    with master(tmp_path) as told:
        told.wait_line("ready")
        pids = [int(line.rpartition("pid=")[2]) for line in told.lines("worker_started")]
        told.process.kill()
        told.process.wait()
        until(lambda: not any(map(exists, pids)))


# --- seats ------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_no_number_is_of_two_sessions(slots: int) -> None:
    layout = Layout()
    cells = Cells.of(layout)
    slab = layout.slab(slots)
    overseer = Alone(Notifier(), lambda: None)
    assert cells.beat != cells.reloaded
    seen: set[int] = set()
    for slot in range(slots):
        for life in range(3):
            seat = Seat(overseer=overseer, slab=slab, slot=slot, slots=slots, life=life)
            numbers = set(range(seat.first_id, seat.first_id + 100 * slots, slots))
            assert not numbers & seen
            last = seat.first_id + (IDS_OF_A_LIFE - 1) * slots
            assert (
                last
                < Seat(overseer=overseer, slab=slab, slot=slot, slots=slots, life=life + 1).first_id
            )
            seen |= numbers
