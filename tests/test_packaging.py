"""requirements.txt against setup.py: whatever is installed by name has its version written down."""

import re
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REQUIREMENTS = Path(__file__).parent.parent / "requirements.txt"


def needs_of(name: str, extras: frozenset[str]) -> set[str]:
    """Name what ``name`` needs here, with these extras, and what that needs itself."""
    found: set[str] = set()
    for line in requires(name) or []:
        need = Requirement(line)
        marker = need.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in {"", *extras}):
            continue
        found.add(canonicalize_name(need.name))
        with suppress(PackageNotFoundError):  # gssapi, where it cannot be built
            found |= needs_of(need.name, frozenset(need.extras))
    return found


def test_everything_that_is_installed_is_pinned() -> None:
    lines = [line for line in REQUIREMENTS.read_text().splitlines() if line and line[0] != "#"]
    pins = {canonicalize_name(line.split("==")[0]) for line in lines}
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert len(pins) == len(lines)
    assert pins == needs_of("geosocks", frozenset({"gssapi", "dev"}))
