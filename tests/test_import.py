"""Importing geosocks does nothing to the program around it, in a fresh interpreter."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import geosocks

ROOT = Path(geosocks.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
PROCESS = ("cli", "daemon", "master", "worker", "__main__")
"""What belongs to a process of our own, which may have signals and may end."""

IN_C = [path for path in MODULES if path.parent.name == "in_c" and path.stem != "__init__"]
"""What is there only where it has been compiled."""


def name_of(path: Path) -> str:
    """The dotted name of a module."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


PROBE = '''
import importlib, logging, os, signal, sys, threading

import gevent
from gevent import config, monkey
from gevent._hub_local import get_hub_if_exists


def state():
    """What a library must leave as it is."""
    return {
        "patched": dict(monkey.saved),
        "hub": get_hub_if_exists(),
        "signals": {s: signal.getsignal(s) for s in signal.valid_signals()},
        "wakeup": signal.set_wakeup_fd(-1),
        "threads": threading.enumerate(),
        "logging": (list(logging.root.handlers), logging.root.level, logging.raiseExceptions),
        "geosocks logger": (
            list(logging.getLogger("geosocks").handlers),
            logging.getLogger("geosocks").level,
            logging.getLogger("geosocks").propagate,
        ),
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook),
        "environment": dict(os.environ),
        "descriptors": len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0,
        "gevent's resolver": config.resolver,
        "switch interval": sys.getswitchinterval(),
    }


before = state()
for name in sys.argv[1:]:
    importlib.import_module(name)
    after = state()
    changed = [key for key in before if before[key] != after[key]]
    if changed:
        sys.exit(f"importing {name} changed: {', '.join(changed)}")
assert not monkey.saved and get_hub_if_exists() is None
assert not any(monkey.is_module_patched(name) for name in ("socket", "threading", "time", "ssl"))
print("clean")
'''


def run_probe(*modules: str) -> subprocess.CompletedProcess[str]:
    """Import ``modules`` one after the other, and look after each."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", PROBE, *modules],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT.parent,
        check=False,
    )


def test_importing_every_module_leaves_the_interpreter_as_it_was() -> None:
    here = (path for path in MODULES if path.stem != "__main__" and path not in IN_C)
    done = run_probe(*map(name_of, here))
    assert (done.returncode, done.stdout, done.stderr) == (0, "clean\n", "")


@pytest.mark.parametrize("path", IN_C, ids=lambda path: path.stem)
def test_what_has_to_be_compiled_says_so(path: Path) -> None:
    done = run_probe(name_of(path))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "it has not been compiled" in last or "No module named 'cython'" in last


@pytest.mark.parametrize(
    ("code", "change"),
    [
        pytest.param("from gevent import monkey; monkey.patch_time()", "patched", id="patch"),
        pytest.param("import gevent; gevent.get_hub()", "hub", id="hub"),
        pytest.param("import signal; signal.signal(1, lambda *_: None)", "signals", id="signal"),
        pytest.param("import logging; logging.basicConfig()", "logging", id="logging"),
        pytest.param(
            "import threading as t; t.Thread(target=t.Event().wait, daemon=True).start()",
            "threads",
            id="thread",
        ),
    ],
)
def test_a_module_that_does_something_would_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, change: str
) -> None:
    (tmp_path / "culprit.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = run_probe("culprit")
    assert done.returncode == 1
    assert done.stderr.startswith("importing culprit changed: ")
    assert change in done.stderr


def test_the_public_names_are_there() -> None:
    assert set(geosocks.__all__) == {"Address", "Client", "Policy", "RuleSet", "Server", "Timeouts"}
    assert all(hasattr(geosocks, name) for name in geosocks.__all__)


# --- what the library never does, told from its text ------------------------------------------

LIBRARY = [
    path
    for path in MODULES
    if not set(path.relative_to(ROOT).with_suffix("").parts[:1]) & {*PROCESS}
]
LOG_SET_UP = ("addHandler", "basicConfig", "dictConfig", "fileConfig")


def liberties(path: Path) -> Iterator[str]:
    """Each thing in a module that only the program around it may do."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        match node:
            case ast.Attribute(value=ast.Name(id="sys"), attr="exit"):
                yield f"{place}: sys.exit"
            case ast.Attribute(value=ast.Name(id="os"), attr="_exit" | "abort" | "kill" as what):
                yield f"{place}: os.{what}"
            case ast.Name(id="SystemExit" | "KeyboardInterrupt" | "exit" | "quit" as what):
                yield f"{place}: {what}"
            case ast.Name(id="print" | "input" | "breakpoint" as what):
                yield f"{place}: {what}"
            case ast.Import(names=names) if any(name.name == "signal" for name in names):
                yield f"{place}: import signal"
            case ast.ImportFrom(module="signal" | "gevent.signal"):
                yield f"{place}: import signal"
            case ast.Attribute(attr="signal_handler"):
                yield f"{place}: gevent.signal_handler"
            case ast.Attribute(attr=attr) if attr in LOG_SET_UP:
                yield f"{place}: {attr}"


def test_the_library_never_exits_prints_takes_signals_or_sets_up_logging() -> None:
    assert not [liberty for path in LIBRARY for liberty in liberties(path)]


SETTING_UP = re.compile(
    r"(add|remove)Handler|basicConfig|\.handlers(\[[^]]*\])?\s*=[^=]|\.handlers\.\w"
)


@pytest.mark.parametrize(
    ("line", "sets_up"),
    [
        ("logger.addHandler(handler)", True),
        ("logger.handlers = [handler]", True),
        ("logger.handlers[:] = [handler]", True),
        ("logger.handlers.clear()", True),
        ("handlers = logger.handlers", False),
        ("if logger.handlers == [one]:", False),
    ],
)
def test_what_sets_logging_up_is_known(line: str, sets_up: bool) -> None:
    assert bool(SETTING_UP.search(line)) == sets_up


def test_only_the_module_made_for_it_changes_a_logger_s_handlers() -> None:
    """``logs`` is for processes; nothing that an embedder meets imports it."""
    importers = {
        name_of(path).split(".")[1]
        for path in MODULES
        if "from geosocks.logs" in path.read_text(encoding="utf-8")
    }
    assert importers <= {"cli", "config", "control", "logs", "worker"}
    assert not [
        path for path in LIBRARY if "logs" not in path.parts and SETTING_UP.search(path.read_text())
    ]


def test_nothing_names_gevent_s_monkey() -> None:
    assert not [path for path in MODULES if "monkey" in path.read_text(encoding="utf-8")]
