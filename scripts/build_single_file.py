#!/usr/bin/env python3
"""Make dist/geosocks.pyz: one executable file with geosocks and all that it needs.

    .venv/bin/python scripts/build_single_file.py [--output FILE] [--wheels DIR] [--without EXTRA]

The packer is shiv: a zip file that Python runs as it is (PEP 441) and that unpacks itself once, to
the user's cache.  It holds compiled parts (gevent, bcrypt, gssapi; of geosocks, too, where a C
compiler is), so it runs with the Python version and on the kind of machine it was made with;
``__main__.py`` below says so to others.

The same sources, Python and versions of packages make the same file, octet by octet.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOT_INSIDE = ("dev",)
"""Extras that are for work on geosocks itself."""

EPOCH = "315532800"
"""1980-01-01, the first moment that a zip file can write down."""

VERSION = "%d.%d" % sys.version_info[:2]  # noqa: UP031  # as in MAIN, which is for any Python

MAIN = '''\
"""Start geosocks out of this file; say so where it cannot be.  For any Python, however old."""

import json
import os
import stat
import sys
import tempfile
import zipfile


def made_for():
    with zipfile.ZipFile(sys.argv[0]) as archive:
        return json.loads(archive.read("single-file.json").decode())


def fail(what):
    sys.stderr.write("geosocks: %s\\n" % what)
    sys.exit(2)


def check_interpreter(made):
    try:
        from importlib.machinery import EXTENSION_SUFFIXES
    except ImportError:
        EXTENSION_SUFFIXES = []
    if made["suffix"] in EXTENSION_SUFFIXES:
        return
    this = "%d.%d" % sys.version_info[:2]
    fail(
        "this file was made for Python %s (%s), and this is Python %s; start it with python%s, or "
        "make one for this Python: scripts/build_single_file.py"
        % (made["python"], made["suffix"].strip("."), this, made["python"])
    )


def is_ours(path):
    """Make the folder if it is not there.  True when we may write to it, and nobody else may."""
    try:
        os.makedirs(path, 0o700, exist_ok=True)
        there = os.lstat(path)
    except OSError:
        return False
    safe = stat.S_ISDIR(there.st_mode) and not there.st_mode & 0o022
    return safe and there.st_uid == os.geteuid() and os.access(path, os.W_OK | os.X_OK)


def cache():
    """Where to unpack: the user's cache, or else a folder of the user's among the temporary."""
    home = os.path.expanduser("~")
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")
    if os.path.isabs(caches) and os.path.isdir(home) and is_ours(os.path.join(caches, "geosocks")):
        return os.path.join(caches, "geosocks")
    temporary = os.path.join(tempfile.gettempdir(), "geosocks-%d" % os.geteuid())
    if is_ours(temporary):
        return temporary
    fail("no folder to unpack to; name one that only you can write to: SHIV_ROOT=DIR")


check_interpreter(made_for())
if not os.environ.get("SHIV_ROOT"):
    os.environ["SHIV_ROOT"] = cache()

from _bootstrap import bootstrap  # noqa: E402

bootstrap()
'''
"""In place of shiv's own, which unpacks to ~/.shiv alone: a service's user has no home."""


def main() -> int:
    """Build; returns the exit code."""
    parser = argparse.ArgumentParser(description="Make geosocks and all it needs one file.")
    parser.add_argument("--output", type=Path, default=ROOT / "dist" / "geosocks.pyz")
    parser.add_argument("--wheel", type=Path, help="a wheel of geosocks (default: this checkout's)")
    parser.add_argument("--wheels", type=Path, help="take all packages from this folder, offline")
    parser.add_argument(
        "--without", action="append", default=[], metavar="EXTRA", help="such as gssapi"
    )
    parser.add_argument("--only-wheel", type=Path, metavar="DIR", help="make the wheel, no more")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="geosocks-build-") as folder:
            if options.only_wheel:
                wheel = build_wheel(Path(folder), options.only_wheel)
                print(shutil.copy(wheel, options.only_wheel))
                return 0
            wheel = options.wheel or build_wheel(Path(folder), options.wheels)
            packed = pack(wheel, Path(folder), options.wheels, options.without)
            finish(packed, wheel, options.output)
    except subprocess.CalledProcessError as error:
        print(f"build_single_file: {error.cmd[2]} failed; see above", file=sys.stderr)
        return 1
    size = options.output.stat().st_size
    form = "not compiled" if wheel.stem.endswith("-none-any") else "compiled"
    print(f"{options.output}: {size / 1e6:.1f} MB, for Python {VERSION}, {form}")
    return 0


def build_wheel(folder: Path, wheels: Path | None) -> Path:
    """Make a wheel of this checkout, from a copy: setuptools leaves things where it builds."""
    copy = folder / "source"
    copy.mkdir()
    names = ["LICENSE", "README.md", "pyproject.toml", "setup.py", "etc", "geosocks", "scripts"]
    run("cp", "-r", *(str(ROOT / name) for name in names), str(copy))
    # Offline the builder, setuptools, is the one that is installed here.
    here = [] if wheels is None else ["--no-build-isolation"]
    python("pip", "wheel", *OFTEN, "--no-deps", *here, f"--wheel-dir={folder}", str(copy))
    return next(folder.glob("geosocks-*.whl"))


OFTEN = ("--quiet", "--disable-pip-version-check")


def places(wheels: Path | None) -> list[str]:
    """Tell pip where packages come from."""
    return [] if wheels is None else ["--no-index", f"--find-links={wheels.resolve()}"]


def extras_of(wheel: Path) -> tuple[str, list[str]]:
    """Read the version and the extras of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().partition("\n\n")[0].splitlines()
    fields = [line.partition(": ")[::2] for line in lines]
    version = next(value for field, value in fields if field == "Version")
    return version, [value for field, value in fields if field == "Provides-Extra"]


def pack(wheel: Path, folder: Path, wheels: Path | None, without: list[str]) -> Path:
    """Have shiv install the wheel and what it needs into a file."""
    version, extras = extras_of(wheel)
    wanted = ",".join(extra for extra in extras if extra not in (*NOT_INSIDE, *without))
    packed = folder / "packed.pyz"
    # By name and version, not by path, which pip would write down in the package.
    python(
        *("shiv.cli", "--output-file", str(packed), "--entry-point", "geosocks.cli:main"),
        *("--python", f"/usr/bin/env python{VERSION}", "--reproducible", "--"),
        *(*OFTEN, *places(wheels), f"--find-links={wheel.parent.resolve()}"),
        *(f"--constraint={ROOT / 'requirements.txt'}", "--no-compile"),
        f"geosocks[{wanted}]=={version}",
    )
    return packed


def finish(packed: Path, wheel: Path, output: Path) -> None:
    """Write the file anew: our ``__main__.py``, no scripts of the builder's, a name for it all."""
    made = {
        "name": "geosocks",
        "version": extras_of(wheel)[0],
        "python": VERSION,
        "suffix": sysconfig.get_config_var("EXT_SUFFIX"),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    fresh = output.with_name(f".{output.name}.new")
    content = compiled(packed)
    with fresh.open("wb") as file:
        content["__main__.py"] = (0o100644 << 16, MAIN.encode())
        content["single-file.json"] = (0o100644 << 16, json.dumps(made).encode())
        environment = json.loads(content["environment.json"][1])
        environment |= {"build_id": digest(content), "built_at": ""}
        content["environment.json"] = (0o100644 << 16, json.dumps(environment).encode())
        file.write(f"#!/usr/bin/env python{VERSION}\n".encode())
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, (mode, data) in sorted(content.items()):
                entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
                entry.external_attr = mode
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, data)
    fresh.chmod(0o755)
    fresh.replace(output)


LEFT_OUT = re.compile(r"site-packages/(bin/|.*/tests?/)")
"""Scripts that name the builder's Python, and other people's tests."""


def compiled(packed: Path) -> dict[str, tuple[int, bytes]]:
    """What is in the file, each with its mode, and Python's modules as bytecode, too.

    Bytecode is good as long as its source is the same, whatever the time of either (PEP 552): so
    the first start is as fast as the next, and users who may not write beside it have it, too.
    """
    with (
        tempfile.TemporaryDirectory(prefix="geosocks-build-") as name,
        zipfile.ZipFile(packed) as z,
    ):
        folder = Path(name)
        wanted = [i for i in z.infolist() if not i.is_dir() and not LEFT_OUT.match(i.filename)]
        z.extractall(folder, [info.filename for info in wanted])
        modes = {info.filename: info.external_attr for info in wanted}
        python(
            *(
                "compileall",
                "-q",
                "-j0",
                "--invalidation-mode=checked-hash",
                "-s",
                name,
                "-x",
                "/share/",
            ),
            str(folder / "site-packages"),
        )
        files = (path for path in folder.rglob("*") if path.is_file())
        names = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    return {name: (modes.get(name, 0o100644 << 16), data) for name, data in names.items()}


def digest(content: dict[str, tuple[int, bytes]]) -> str:
    """Name the content, so that no cache of another build is taken for this one's."""
    whole = hashlib.sha256()
    for name, (_, data) in sorted(content.items()):
        if name != "environment.json":
            whole.update(name.encode() + b"\0" + hashlib.sha256(data).digest())
    return whole.hexdigest()


def python(*argv: str) -> None:
    """Run a module of this Python's."""
    run(sys.executable, "-m", *argv)


def run(*argv: str) -> None:
    """Run a program; its complaints are for the caller's terminal."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": EPOCH}
    subprocess.run(argv, check=True, stdout=sys.stderr, env=environment)


if __name__ == "__main__":
    sys.exit(main())
