"""Wheels out of the packages that are installed here, so that tests install without a network."""

import subprocess
import sys
import zipfile
from importlib.metadata import Distribution, PackageNotFoundError, PathDistribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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
    """A wheel of geosocks as it stands here."""
    program = (sys.executable, ROOT / "scripts/build_single_file.py", "--only-wheel", folder)
    subprocess.run(list(map(str, program)), check=True, env=environment(), timeout=120)
    return next(folder.glob("geosocks-*.whl"))
