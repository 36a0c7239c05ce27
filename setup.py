"""The name, the needs and the parts of geosocks; settings of tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
README = ROOT / "README.md"


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


setup(
    name="geosocks",
    version=version(),
    description="A SOCKS5 server and client on gevent, with Kerberos (RFC 1928, 1929, 1961)",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["geosocks", "geosocks.*"]),
    package_data={"geosocks": ["py.typed"]},
    data_files=data_files(),
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
