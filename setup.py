"""The name, the needs and the parts of geosocks; settings of tools are in pyproject.toml.

Where a C compiler is, the modules in COMPILED are compiled by mypyc, from the same source, and
IN_C by Cython.  Where there is none, or whatever goes wrong, they stay as they are, and do the same
somewhat slower.
"""

import os
import platform
import re
import shlex
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
README = ROOT / "README.md"

COMPILED = (
    "geosocks/auth/grant.py",
    "geosocks/auth/gss_seal.py",
    "geosocks/auth/gss_stream.py",
    "geosocks/auth/htpasswd.py",
    "geosocks/auth/none.py",
    "geosocks/auth/userpass.py",
    "geosocks/deadlines.py",
    "geosocks/entrance.py",
    "geosocks/events/fan_out.py",
    "geosocks/events/written.py",
    "geosocks/greenlets.py",
    "geosocks/guard.py",
    "geosocks/hubs.py",
    "geosocks/logs/closed.py",
    "geosocks/logs/stamps.py",
    "geosocks/logs/straight.py",
    "geosocks/relay/dial.py",
    "geosocks/relay/direct.py",
    "geosocks/relay/fragments.py",
    "geosocks/relay/pacing.py",
    "geosocks/relay/pipes.py",
    "geosocks/relay/pump.py",
    "geosocks/relay/udp/association.py",
    "geosocks/relay/udp/hosts.py",
    "geosocks/relay/udp/quick.py",
    "geosocks/relay/udp/routes.py",
    "geosocks/relay/udp/sockets.py",
    "geosocks/relay/udp/traffic.py",
    "geosocks/relay/volleys.py",
    "geosocks/relay/way.py",
    "geosocks/rules/meanings.py",
    "geosocks/rules/memory.py",
    "geosocks/scores.py",
    "geosocks/server/accepting.py",
    "geosocks/server/reaper.py",
    "geosocks/session/__init__.py",
    "geosocks/session/admission.py",
    "geosocks/session/again.py",
    "geosocks/session/associate.py",
    "geosocks/session/bind.py",
    "geosocks/session/connect.py",
    "geosocks/session/messages.py",
    "geosocks/session/record.py",
    "geosocks/session/socks4.py",
    "geosocks/session/standing.py",
    "geosocks/stream.py",
    "geosocks/wire/address.py",
    "geosocks/wire/straight.py",
)
"""What a session spends its time in.

Not to be compiled: dataclasses; protocols; and what has a class below one that is neither ours nor
Python's own: mypyc makes such ones that crash.  Classes that an embedder may subclass say so to
mypyc: ``geosocks.compiling``.
"""

IN_C = (
    "geosocks/in_c/calls.py",
    "geosocks/in_c/datagrams.py",
    "geosocks/in_c/exchange.py",
    "geosocks/in_c/polls.py",
    "geosocks/in_c/slots.py",
    "geosocks/in_c/table.py",
)
"""What goes without Python's own ways; where they are not compiled there are no such modules."""

TOOLS = {"mypyc": "mypy==2.4.*", "Cython": "Cython==3.3.*"}
"""The compilers' modules, and where they come from."""


def version() -> str:
    """Read ``__version__`` without importing the package, whose needs are not installed yet."""
    text = (ROOT / "geosocks" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if not found:
        raise SystemExit('geosocks/__init__.py has no line __version__ = "..."')
    return found[1]


def data_files() -> list[tuple[str, list[str]]]:
    """What goes beside the package, into share/geosocks of the environment.

    All of etc/ (samples, service files), and the script that puts these in their places.
    """
    found = {"share/geosocks": ["scripts/deploy.py"]}
    for path in sorted((ROOT / "etc").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            place = Path("share/geosocks", path.parent.relative_to(ROOT))
            found.setdefault(str(place), []).append(str(path.relative_to(ROOT)))
    return list(found.items())


def why_not() -> str:
    """Why nothing can be compiled here, as far as it is seen at a glance; else nothing."""
    if os.environ.get("GEOSOCKS_COMPILE") == "0":
        return "GEOSOCKS_COMPILE is 0"
    if sys.platform != "linux" or sys.implementation.name != "cpython":
        return "it is done for CPython on Linux only"
    if platform.machine() not in ("x86_64", "aarch64"):  # mypy is there for these
        return f"it is not done for {platform.machine()}"
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    if not shutil.which(compiler):
        return f"there is no C compiler ({compiler})"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "there is no Python.h (Debian: python3-dev)"
    return ""


def go_on_without(why: str) -> None:
    """Say so."""
    print(f"geosocks: not compiled: {why}; everything works, somewhat slower", file=sys.stderr)


class BuildCompiled(build_ext):
    """Compiles, or goes on without; mypyc runs when something is built, and not before."""

    def run(self) -> None:
        """Do it."""
        if self.extensions:
            in_place = self.inplace
            try:
                self.distribution.ext_modules = compiled(Path(self.build_temp))
                self.swig_opts = None  # a list by now, which the next line does not take
                self.finalize_options()
                super().run()
            except (Exception, SystemExit) as error:  # the latter is how mypyc says no
                self.inplace = in_place
                self.take_back()
                go_on_without(f"that failed, see above ({type(error).__name__})")

    def take_back(self) -> None:
        """Half of it is worse than none."""
        for extension in self.extensions:
            Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
        self.extensions = []
        self.distribution.ext_modules = None
        self.distribution.get_command_obj("bdist_wheel").root_is_pure = True


def compiled(folder: Path) -> list[Extension]:
    """Have C made of the modules, in ``folder``; what has to be compiled."""
    from Cython.Build import cythonize
    from mypyc.build import mypycify

    # Nothing that happens to be installed, or set up for a developer, makes another C of them.
    # What cannot be imported is Any then, and no class may be below that.
    options = ["--config-file=", "--no-site-packages", "--follow-imports=silent"]
    options += ["--ignore-missing-imports", "--disallow-subclassing-any"]
    extensions = mypycify(
        [*options, *COMPILED],
        opt_level="2",
        debug_level="0",
        group_name="geosocks",
        target_dir=str(folder),
    )
    extensions += cythonize(list(IN_C), language_level=3, build_dir=str(folder), quiet=True)
    for extension in extensions:  # a later compiler may warn of what this one does not
        extension.extra_compile_args = [*extension.extra_compile_args, "-Wno-error"]
    return extensions


def parts_to_compile() -> dict[str, object]:
    """The arguments of ``setup()`` that compiling takes."""
    found: dict[str, object] = {"cmdclass": {"build_ext": BuildCompiled}}
    why = why_not()
    if why:
        go_on_without(why)
        return found
    # All of the code is in this one, to which the others only refer; they are known when mypyc has
    # run.  It is no part of the package, or mypyc would take their folder for another one.
    found["ext_modules"] = [Extension("geosocks__mypyc", [])]
    lacking = [tool for module, tool in TOOLS.items() if not find_spec(module)]
    if lacking:
        # Asks pip to have them for the build, here only: others need not download them.
        found["setup_requires"] = lacking
    return found


setup(
    name="geosocks",
    version=version(),
    description="A SOCKS5 server and client on gevent, with Kerberos (RFC 1928, 1929, 1961)",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["geosocks", "geosocks.*"]),
    # As said here, an editable install finds whatever is in this folder, geosocks__mypyc too.
    package_dir={"": "."},
    package_data={"geosocks": ["py.typed", "in_c/*.pxd"]},
    data_files=data_files(),
    **parts_to_compile(),
    entry_points={"console_scripts": ["geosocks = geosocks.cli:main"]},
    # The oldest versions that should do; requirements.txt has the ones that are tested.
    install_requires=[
        "bcrypt>=4.0",
        "configargparse>=1.7.1",
        "gevent>=24.2",
        "python-json-logger>=3.1",
    ],
    extras_require={
        # Built from source on Linux: needs a C compiler and the headers of MIT Kerberos.
        "gssapi": ["gssapi>=1.8.1"],
        # --log-to journald.
        "journald": ["logging-journald>=0.6.12"],
        # The status page and /metrics.
        "metrics": ["prometheus_client>=0.20"],
        # The live table of `geosocks ctl top`.
        "top": ["rich>=13.7"],
        "dev": [
            "Cython>=3.3",
            "hypothesis>=6.100",
            "k5test>=0.10.4",
            "logging-journald>=0.6.12",
            "mypy>=1.10",
            "prometheus_client>=0.20",
            "pyte>=0.8.2",
            "PySocks>=1.7.1",
            "pytest>=8.0",
            "pytest-cov>=5.0",
            "rich>=13.7",
            "ruff>=0.9",
            "shiv>=1.0.8",
            "shtab>=1.8",
            "types-gevent>=24.2",
        ],
    },
    classifiers=[
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Topic :: Internet :: Proxy Servers",
        "Typing :: Typed",
    ],
)
