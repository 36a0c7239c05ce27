"""Wheels out of the packages that are installed here, so that tests install without a network."""

import json
import re
import sys
import zipfile
from collections.abc import Mapping
from importlib.metadata import Distribution, PackageNotFoundError, PathDistribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from geosocks import __version__
from tests.support.programs import run
from tests.support.proxy import ROOT, environment

LEFT_OUT = ("INSTALLER", "REQUESTED", "direct_url.json")


def of_installed(folder: Path, wheel: Path) -> Path:
    """Pack all that ``wheel`` needs, with every extra but ``dev``, into wheels in ``folder``."""
    folder.mkdir(exist_ok=True)
    inside = zipfile.Path(wheel)
    info = next(path for path in inside.iterdir() if path.name.endswith(".dist-info"))
    ours = PathDistribution(info)  # type: ignore[arg-type]  # a path of another kind
    extras = frozenset(ours.metadata.get_all("Provides-Extra") or ()) - {"dev"}
    for found in needs_of(ours, extras).values():
        pack(found, folder)
    return folder


def needs_of(of: Distribution, extras: frozenset[str]) -> dict[str, Distribution]:
    """What a package needs, and what that needs itself."""
    found: dict[str, Distribution] = {}
    for line in of.requires or []:
        need = Requirement(line)
        if need.marker and not any(need.marker.evaluate({"extra": e}) for e in {"", *extras}):
            continue
        try:
            needed = distribution(need.name)
        except PackageNotFoundError:  # gssapi, where it cannot be built
            continue
        found |= {canonicalize_name(need.name): needed, **needs_of(needed, frozenset(need.extras))}
    return found


def pack(found: Distribution, folder: Path) -> Path:
    """Make the wheel again that a package was installed from, less its scripts."""
    tags = [line.partition(": ")[2] for line in (found.read_text("WHEEL") or "").splitlines()]
    parts = zip(*(tag.split("-") for tag in tags if tag.count("-") == 2), strict=True)
    tag = "-".join(".".join(dict.fromkeys(part)) for part in parts)
    files = found.files or []
    info = next(path.parts[0] for path in files if path.parts[0].endswith(".dist-info"))
    wheel = folder / f"{info.removesuffix('.dist-info')}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in files:
            if path.parts[0] == ".." or "__pycache__" in path.parts or path.name in LEFT_OUT:
                continue
            archive.write(found.locate_file(path), str(path))
    return wheel


def of_this_checkout(folder: Path) -> Path:
    """A wheel of geosocks as it stands here, not compiled: tests change what is inside."""
    program = (sys.executable, ROOT / "scripts/build_single_file.py", "--only-wheel", folder)
    done = run(program, env=environment(GEOSOCKS_COMPILE="0"))
    assert done.code == 0, done.out.decode() + done.err
    return next(folder.glob("geosocks-*.whl"))


@pytest.fixture(scope="session")
def single_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``geosocks.pyz``, made of this checkout and of the packages that are installed here."""
    folder = tmp_path_factory.mktemp("single-file")
    wheels = of_installed(folder / "wheels", of_this_checkout(folder))
    made = folder / "geosocks.pyz"
    program = (sys.executable, ROOT / "scripts/build_single_file.py", "--output", made)
    more = ("--wheel", next(folder.glob("*.whl")), "--wheels", wheels)
    done = run([*program, *more], env=environment())
    assert done.code == 0, done.out.decode() + done.err
    return made


OF_EXTRAS = re.compile(r"site-packages/(gssapi|rich|pygments|markdown_it|mdurl|prometheus_client)/")


def variant(
    of: Path, to: Path, version: str, added: Mapping[str, str] | None = None, lean: bool = False
) -> Path:
    """A single file like ``of``, of another version; ``added`` is text behind the ends of files.

    Not compressed: it is made faster.  A ``lean`` one is smaller by what extras need.
    """
    changes = {f"site-packages/{name}": text for name, text in (added or {}).items()}
    with zipfile.ZipFile(of) as old, zipfile.ZipFile(to, "w") as new:
        for info in old.infolist():
            if lean and OF_EXTRAS.match(info.filename):
                continue
            data = old.read(info)
            if info.filename == "single-file.json":
                data = json.dumps(json.loads(data) | {"version": version}).encode()
            elif info.filename == "site-packages/geosocks/__init__.py":
                was = f'__version__ = "{__version__}"'.encode()
                assert was in data
                data = data.replace(was, f'__version__ = "{version}"'.encode())
            data += changes.pop(info.filename, "").encode()
            new.writestr(info.filename, data)
    assert not changes, f"{of} has no {', '.join(changes)}"
    return to
