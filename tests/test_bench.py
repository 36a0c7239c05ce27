"""scripts/bench.py, on numbers too small to say much: real servers, real figures."""

import json
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Any

import gevent
import pytest

from tests.support.programs import Finished, Popen, needed, run
from tests.support.proxy import ROOT, environment

pytestmark = pytest.mark.slow

SCRIPT = (sys.executable, str(ROOT / "scripts" / "bench.py"))
TINY = ("--quick", "--seconds", 0.2, "--sessions", 20)
SCENARIOS = ["bulk-1", "bulk-4", "rate", "auth", "rtt", "idle", "udp"]


class Place:
    """A folder whose name is in the environment of whatever is started from here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scratch = folder / "scratch"
        self.programs = folder / "programs"
        self.scratch.mkdir()
        self.programs.mkdir()
        self.environment = {**environment(), "TMPDIR": str(self.scratch)}
        self.environment["PATH"] = f"{self.programs}:{os.environ.get('PATH', '')}"

    def program(self, name: str, *lines: str) -> None:
        """Put a Python program where it is found before any other of its name."""
        path, source = self.programs / name, self.programs / f"{name}.py"
        source.write_text("\n".join([*lines, ""]))
        # No "#!" of Python itself: the kernel takes a path with a space in it for two words.
        path.write_text(f'#!/bin/sh\nexec {quote(sys.executable)} {quote(str(source))} "$@"\n')
        path.chmod(0o755)

    def bench(self, *words: object) -> Finished:
        """Run the script to its end."""
        return run([*SCRIPT, *words], seconds=120.0, env=self.environment)

    def alive(self) -> list[int]:
        """Processes that were started from here."""
        found: list[int] = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):
                environ = Path(f"/proc/{entry}/environ").read_bytes()
                if f"TMPDIR={self.scratch}".encode() in environ.split(b"\0"):
                    found.append(int(entry))
        return found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """The folder; after the test nothing that was started from there is left, nor any file."""
    place = Place(tmp_path)
    yield place
    assert place.alive() == []
    assert list(place.scratch.iterdir()) == []


def servers(whole: dict[str, Any], scenario: str) -> dict[str, dict[str, Any]]:
    """What the JSON has of each server in a scenario."""
    found = next(each for each in whole["scenarios"] if each["scenario"] == scenario)
    return {each["server"]: each for each in found["servers"]}


def test_a_python_without_gevent_is_enough(place: Place) -> None:
    """Geosocks then runs in .venv, which scripts/run makes."""
    if not (ROOT / ".venv" / "bin" / "python").exists():
        pytest.skip("no .venv here: scripts/run or scripts/test makes it")
    # -S: no packages at all, wherever this Python has them.
    words = (sys.executable, "-S", *SCRIPT[1:], *TINY, "--peers", "", "--only", "auth")
    done = run(words, seconds=60.0, env=place.environment)
    assert done.code == 0, done.err + done.out.decode()
    assert done.out.count(b"geosocks") == 3


def test_geosocks_alone_has_figures_for_everything(place: Place) -> None:
    report = place.folder / "report.json"
    done = place.bench(*TINY, "--peers", "", "--json", report)
    assert done.code == 0, done.err + done.out.decode()
    text = done.out.decode()
    assert text.startswith("No other server to compare with")
    assert max(map(len, text.splitlines())) <= 100
    whole = json.loads(report.read_text())
    assert [each["scenario"] for each in whole["scenarios"]] == SCENARIOS
    for scenario in SCENARIOS:
        ours = servers(whole, scenario)["geosocks"]
        assert len(ours["rounds"]) == 1
        assert (ours["errors"], ours["failures"]) == (0, [])
        assert ours["least"] == ours["median"] == ours["rounds"][0]["cost"]
        assert ours["of_best_peer"] is None
    # Whatever the machine: between a hundredth and a hundred times of what was seen once.
    for scenario, seen in (("bulk-1", 0.2), ("rate", 110.0), ("rtt", 10.0), ("udp", 8.0)):
        assert seen / 100 < servers(whole, scenario)["geosocks"]["least"] < seen * 100
    assert servers(whole, "idle")["geosocks"]["speed"] == 2.0  # descriptors a session
    assert servers(whole, "rate")["no proxy"]["least"] is None
    assert servers(whole, "rate")["no proxy"]["speed"] > 0


def test_beside_microsocks_with_a_plot(place: Place) -> None:
    needed("microsocks")
    report, plot = place.folder / "report.json", place.folder / "plot.svg"
    words = ("--peers", "microsocks", "--only", "bulk-4,auth,idle", "--rounds", 2)
    done = place.bench(*TINY, *words, "--json", report, "--svg", plot)
    assert done.code == 0, done.err + done.out.decode()
    whole = json.loads(report.read_text())
    for scenario in ("bulk-4", "auth", "idle"):
        found = servers(whole, scenario)
        ours, theirs = found["geosocks"], found["microsocks"]
        assert theirs["of_best_peer"] == 1.0
        assert ours["of_best_peer"] == pytest.approx(ours["least"] / theirs["least"])
        assert len(theirs["rounds"]) == 2
        assert theirs["least"] == min(each["cost"] for each in theirs["rounds"])
        assert theirs["errors"] == 0
    picture = ET.parse(plot)
    words_in_it = [each.text for each in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"geosocks", "microsocks", "CPU s per GB", "KiB per session"} <= set(words_in_it)
    assert len(list(picture.iter("{http://www.w3.org/2000/svg}circle"))) >= 6


def test_a_server_that_ends_at_once_is_told_and_the_others_go_on(place: Place) -> None:
    place.program("microsocks", "import sys", "sys.exit('out of luck')")
    report = place.folder / "report.json"
    words = ("--peers", "microsocks", "--only", "rtt", "--rounds", 3, "--json", report)
    done = place.bench(*TINY, *words)
    assert done.code == 0, done.err
    assert b"microsocks: ended with status 1: out of luck" in done.out
    whole = json.loads(report.read_text())
    found = servers(whole, "rtt")
    assert len(found["geosocks"]["rounds"]) == 3
    assert found["microsocks"]["least"] is None
    assert len(found["microsocks"]["failures"]) == 2  # and was not tried a third time


CRASHES = """\
import os, socket, sys, time
port = int(sys.argv[sys.argv.index("-p") + 1])
with socket.create_server(("127.0.0.1", port)) as listener:
    listener.accept()[0].close()
    other = os.fork() or time.sleep(600)
    listener.accept()
    os.kill(os.getpid(), 11)
"""


def test_one_that_crashes_leaves_no_child_behind(place: Place) -> None:
    place.program("microsocks", CRASHES)
    done = place.bench(*TINY, "--peers", "microsocks", "--only", "rtt")
    assert done.code == 0, done.err
    assert b"microsocks: ended with signal SIGSEGV" in done.out


REFUSES = """\
import socket, sys
port = int(sys.argv[sys.argv.index("-p") + 1])
with socket.create_server(("127.0.0.1", port), backlog=200) as listener:
    while True:
        client = listener.accept()[0]
        if client.recv(3):
            client.sendall(bytes([5, 255]))
        client.close()
"""


def test_refusals_are_told(place: Place) -> None:
    place.program("microsocks", REFUSES)
    done = place.bench(*TINY, "--peers", "microsocks", "--only", "rtt,bulk-4")
    assert done.code == 0, done.err
    told = "microsocks: nothing came through: answered 05 ff to the offer of method 00"
    assert done.out.decode().count(told) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_ends_what_it_started_and_shows_what_there_is(
    place: Place, number: signal.Signals
) -> None:
    words = ("--peers", "", "--only", "rtt,idle", "--seconds", "60", "--rounds", "1")
    process = Popen(
        [*SCRIPT, *words],
        env=place.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    with gevent.Timeout(20.0):
        while len(place.alive()) < 3:  # itself, the server, the load
            gevent.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=10.0)
    assert process.returncode == 130
    assert b"Interrupted" in err
    assert out.startswith(b"No other server")
    assert b"Traceback" not in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--only", "bulk-7"), "no bulk-7 here; there are bulk-1, bulk-4, rate"),
        (("--peers", "squid"), "no squid here; there are microsocks, danted"),
        (("--rounds", "0"), "0 is no number from 1 to 100"),
        (("--seconds", "nan"), "nan is no number from 0.1 to 60"),
        (("--json", "/nowhere/at/all.json"), "no folder /nowhere/at to write all.json to"),
    ],
)
def test_usage(place: Place, words: tuple[str, ...], told: str) -> None:
    done = place.bench(*words)
    assert done.code == 2
    assert told in done.err


def test_the_list_names_what_is_missing_and_where_to_have_it(place: Place) -> None:
    place.program("microsocks", "pass")
    place.environment["PATH"] = str(place.programs)
    done = place.bench("--list")
    lines = {line.split()[0]: line for line in done.out.decode().splitlines()}
    assert done.code == 0
    assert list(lines)[:3] == ["geosocks", "microsocks", "danted"]
    assert "missing" not in lines["geosocks"] + lines["microsocks"]
    if "missing" in lines["danted"]:
        assert lines["danted"].endswith("missing: danted (Debian: dante-server)")
