"""Who may import whom: parts of lower floors only, and always as ``from geosocks.x import y``."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import geosocks

ROOT = Path(geosocks.__file__).parent
FACADE = ("__init__", "__main__")
"""The package's public names and its one call: they may import anything."""

FLOORS = (  # lowest first; a subpackage counts as one part
    ("codes", "compiling", "in_c", "octets", "values"),
    ("calls", "errors", "hubs"),
    ("deadlines", "wire"),
    (
        "daemon",
        "events",
        "greenlets",
        "guard",
        "privileges",
        "scores",
        "shared",
        "stream",
        "systemd",
    ),
    ("auth", "control_client", "entrance", "limits", "relay", "rules", "tls"),
    ("client",),
    ("upstream",),
    ("policy",),
    ("session",),
    ("listening", "logs", "metrics"),
    ("server",),
    ("explaining", "rows"),
    ("admin", "config", "control"),
    ("master",),
    ("worker",),
    ("cli",),
)
FLOOR = {part: number for number, floor in enumerate(FLOORS) for part in floor}


def part_of(path: Path) -> str:
    """The first name below the package: ``wire`` for wire/socks5.py, ``codes`` for codes.py."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


MODULES = sorted(path for path in ROOT.rglob("*.py") if part_of(path) not in FACADE)


def faults(part: str, source: str) -> Iterator[str]:
    """Each import in a module of ``part`` that a reader would have to climb stairs for."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.ImportFrom(level=level) if level:
                yield f"line {node.lineno}: relative import"
            case ast.ImportFrom(module="geosocks") if part != "cli":
                yield f"line {node.lineno}: from geosocks import ..., which names no part"
            case ast.ImportFrom(module=str(module)) if module.startswith("geosocks."):
                other = module.split(".")[1]
                if other not in FLOOR:
                    yield f"line {node.lineno}: {module} is on no floor"
                elif other != part and FLOOR[other] >= FLOOR[part]:
                    yield f"line {node.lineno}: {module} is not below {part}"
            case ast.Import(names=names):
                for name in names:
                    if name.name.partition(".")[0] == "geosocks":
                        yield f"line {node.lineno}: write: from {name.name} import ..."


def test_each_part_has_one_floor_and_each_floor_only_parts_that_exist() -> None:
    written = [part for floor in FLOORS for part in floor]
    assert sorted(written) == sorted({part_of(path) for path in MODULES})


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    assert not list(faults(part_of(path), path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("part", "source"),
    [
        pytest.param("wire", "from geosocks.session import run", id="up"),
        pytest.param("auth", "from geosocks.relay.pump import Pump", id="sideways"),
        pytest.param(
            "wire", "def f():\n    from geosocks.server import Server", id="in-a-function"
        ),
        pytest.param("server", "from geosocks.no_such import x", id="a-part-on-no-floor"),
        pytest.param("server", "from geosocks import Policy", id="from-the-facade"),
        pytest.param("server", "import geosocks", id="the-facade"),
        pytest.param("server", "import geosocks.errors as errors", id="a-module-by-import"),
        pytest.param("server", "import os, geosocks.errors", id="among-others"),
        pytest.param("server", "from . import errors", id="relative-to-the-package"),
        pytest.param("wire", "from .socks5 import Address", id="relative-to-the-part"),
        pytest.param("cli", "from ..errors import ConfigError", id="relative-in-cli"),
    ],
)
def test_an_import_that_does_not_go_down_is_seen(part: str, source: str) -> None:
    assert len(list(faults(part, source))) == 1


@pytest.mark.parametrize(
    ("part", "source"),
    [
        pytest.param("server", "from geosocks.session import run", id="down"),
        pytest.param("wire", "from geosocks.wire.socks5 import Address", id="own-subpackage"),
        pytest.param("cli", "from geosocks import __version__", id="the-version-in-cli"),
        pytest.param("codes", "import enum\nfrom geosocksx import y", id="not-ours"),
    ],
)
def test_an_import_that_goes_down_is_none_of_its_business(part: str, source: str) -> None:
    assert not list(faults(part, source))
