#!/usr/bin/env python3
"""Put geosocks on this host as a service, and prove that it works: one file, nothing to install.

    deploy.py install --from geosocks.pyz
    ssh host python3 - install --from geosocks==1.2.0 < scripts/deploy.py

Python 3.9 and the standard library are enough for this script.  What it does, in this order: makes
a system user; builds a version in a folder of its own below /opt/geosocks/versions; lays down the
configuration, where there is none, and never writes over one; has the new version check the
configuration; proves the new version on sockets of its own, with the rules cut down to one target,
while what runs stays untouched; switches the link /opt/geosocks/current and restarts the service;
proves that, too; and goes back to the version before by itself when anything fails.

Whatever it makes it writes down in /opt/geosocks/deploy.json first, so that an interrupted run is
mended by the next one, and ``remove --purge`` finds everything.

No shell reads any word of this, and no secret stands in a command line.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import getpass
import grp
import hashlib
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

USER = "geosocks"
OLDEST_PYTHON = (3, 11)
"""The oldest that geosocks itself runs on."""

FAILED, USAGE, TEMPORARY = 1, 2, 75
NOT_RUNNING, NOT_INSTALLED = 3, 4
"""Exit codes of ``status``, as init scripts have them (LSB)."""

STARTING = 20.0
"""Seconds that a version gets until it listens."""

STEP = 10.0
"""Seconds that each exchange of a proof may take."""

KEPT = 3
"""Versions to keep, the current one included."""

LOG_LINES = 12

SUN_PATH = 107
"""Octets that the path of a UNIX socket may have (unix(7))."""


class DeployError(Exception):
    """Something is wrong; ``cure`` says how to mend it."""

    def __init__(self, what: str, cure: str = "", code: int = FAILED) -> None:
        super().__init__(what)
        self.cure = cure
        self.code = code


def say(what: str) -> None:
    print(what, flush=True)


def detail(what: str) -> None:
    for line in what.splitlines():
        print(f"    {line}", flush=True)


# --- the places -------------------------------------------------------------------------------


class Layout:
    """Where things are: below / or, for a trial without root, below another folder."""

    def __init__(self, prefix: str) -> None:
        self.prefix = Path(prefix).resolve()
        self.is_host = self.prefix == Path("/")
        self.root = self.prefix / "opt/geosocks"
        self.versions = self.root / "versions"
        self.current = self.root / "current"
        self.state = self.root / "deploy.json"
        self.trial = self.root / "trial"
        self.work = self.root / "work"
        self.etc = self.prefix / "etc/geosocks"
        self.config = self.etc / "geosocks.conf"
        self.users = self.etc / "users"
        self.rules = self.etc / "rules.conf"
        self.keytab = self.etc / "krb5.keytab"
        self.log = self.prefix / "var/log/geosocks"
        self.run = self.prefix / "run/geosocks"
        self.lib = self.prefix / "var/lib/geosocks"
        self.logrotate = self.prefix / "etc/logrotate.d/geosocks"
        self.command = self.prefix / "usr/local/bin/geosocks"
        self.share_local = self.prefix / "usr/local/share"

    def version(self, name: str) -> Path:
        """The folder of a version, whole or not."""
        return self.versions / name

    def share(self, name: str) -> Path:
        """What a version brought along: samples and service files."""
        return self.version(name) / "share/geosocks/etc"


# --- running programs -------------------------------------------------------------------------


def environment(**more: str) -> dict[str, str]:
    """A small environment: nothing of the caller's that would set up Python or geosocks."""
    names = ("LANG", "LC_ALL", "TZ", "KRB5_CONFIG")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {"PATH": path, "HOME": "/", **kept, **more}


def pip_environment() -> dict[str, str]:
    """The same, with what pip is told where packages are and how to get there."""
    names = r"PIP_\w+|\w+_proxy|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|GEOSOCKS_COMPILE"
    wanted = re.compile(names, re.IGNORECASE)
    kept = {name: value for name, value in os.environ.items() if wanted.fullmatch(name)}
    return environment(**{"HOME": os.path.expanduser("~"), **kept})


def run(
    argv: Sequence[object],
    *,
    given: bytes = b"",
    env: dict[str, str] | None = None,
    seconds: float = 600.0,
    who: Who | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end.

    Raises:
        DeployError: it cannot be run, or takes too long.
    """
    try:
        return subprocess.run(
            [str(word) for word in argv],
            input=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment() if env is None else env,
            cwd="/",
            timeout=seconds,
            check=False,
            **(who or Who()).as_popen(),
        )
    except subprocess.TimeoutExpired:
        raise DeployError(f"{argv[0]} takes longer than {seconds:g} s") from None
    except OSError as error:
        raise DeployError(f"cannot run {argv[0]}: {error.strerror}") from None


def must(argv: Sequence[object], what: str, cure: str = "", **how: Any) -> str:
    """Run a program that has to succeed; its output.

    Raises:
        DeployError: it failed; says what failed, and its last words.
    """
    done = run(argv, **how)
    output = done.stdout.decode(errors="replace")
    if done.returncode:
        raise DeployError(f"{what} failed (exit code {done.returncode})\n{tail(output)}", cure)
    return output


def tail(text: str, lines: int = LOG_LINES) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])


@dataclass(frozen=True)
class Who:
    """As whom to run a program; nobody else, where there is no user of our own."""

    uid: int | None = None
    gid: int | None = None

    def as_popen(self) -> dict[str, Any]:
        """Arguments of subprocess.Popen."""
        if self.uid is None:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": ()}

    def own(self, path: Path) -> None:
        """Give it the file."""
        if self.uid is not None:
            os.chown(path, self.uid, -1 if self.gid is None else self.gid)


# --- what has been made -----------------------------------------------------------------------


class State:
    """What this script has made here, written down before it is made; one JSON file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.current: str | None = None
        self.previous: str | None = None
        self.pending: dict[str, str | None] | None = None
        """``from`` and ``to``, while the service is being switched."""

        self.service: str | None = None
        self.kerberos = False
        self.made: list[str] = []
        """Files and folders of ours, in order; folders end with a slash."""

        self.user_made = False
        self.group_made = False
        self.packages: list[str] = []
        """Debian packages that were installed for us, what they need included."""

        self.samples: dict[str, str] = {}
        """Digests of the samples that the configuration was last compared with."""

        if path.exists():
            try:
                vars(self).update(json.loads(path.read_text()))
            except ValueError:
                raise DeployError(f"{path} is damaged", "restore it from a backup") from None
        self.path = path

    @property
    def is_installed(self) -> bool:
        return self.current is not None

    def save(self) -> None:
        """Write the file anew, all or nothing."""
        for place in missing(self.path.parent):
            self.made.append(f"{place}/")
            place.mkdir()
        values = {name: value for name, value in vars(self).items() if name != "path"}
        write(self.path, json.dumps(values, indent=1).encode() + b"\n", 0o644)

    def note(self, path: Path, folder: bool = False) -> None:
        """Write down that ``path`` is about to be made, unless it is there or is known."""
        text = f"{path}/" if folder else str(path)
        if text not in self.made and not os.path.lexists(path):
            self.made.append(text)
            self.save()


def missing(path: Path) -> list[Path]:
    """The folders that are not there, the outermost first."""
    found: list[Path] = []
    while not path.exists():
        found.insert(0, path)
        path = path.parent
    return found


def write(path: Path, data: bytes, mode: int, who: Who | None = None) -> None:
    """Put a file in its place, all or nothing."""
    handle, fresh = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".deploy", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(handle)
        (who or Who()).own(Path(fresh))
        os.chmod(fresh, mode)
        os.replace(fresh, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(fresh)
        raise


def link(path: Path, target: Path) -> None:
    """Have ``path`` point to ``target``, from one moment to the next."""
    fresh = path.with_name(f".{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    fresh.symlink_to(target)
    os.replace(fresh, path)


# --- sources: from what a version is made -----------------------------------------------------


class Source:
    """Something to install: a wheel, a folder, name==version of an index, or the single file."""

    def __init__(self, text: str, options: argparse.Namespace) -> None:
        self.text = text
        self.options = options
        self.path = Path(text).absolute()
        self.kind = self._kind()

    def _kind(self) -> str:
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+_-]+", self.text):
            return "index"
        if self.path.is_dir():
            if (self.path / "setup.py").exists() or (self.path / "pyproject.toml").exists():
                return "folder"
            raise DeployError(
                f"{self.path} has neither setup.py nor pyproject.toml",
                "name a checkout of geosocks, a wheel, geosocks.pyz or name==version",
                USAGE,
            )
        if not self.path.is_file():
            raise DeployError(
                f"--from {self.text}: there is no such file or folder",
                "for a package index write the version, too: geosocks==1.2.0",
                USAGE,
            )
        if self.path.suffix == ".whl":
            return "wheel"
        if zipfile.is_zipfile(self.path) and self._made_for():
            return "single file"
        raise DeployError(
            f"{self.path} is neither a wheel nor geosocks as a single file",
            "scripts/build_single_file.py makes one",
            USAGE,
        )

    def _made_for(self) -> dict[str, str] | None:
        with zipfile.ZipFile(self.path) as archive:
            if "single-file.json" not in archive.namelist():
                return None
            made: dict[str, str] = json.loads(archive.read("single-file.json"))
        return made

    def __str__(self) -> str:
        return f"{self.kind} {self.text if self.kind == 'index' else self.path}"

    def python(self) -> str:
        """The interpreter to make the version with.

        Raises:
            DeployError: there is none that will do.
        """
        made = self._made_for() if self.kind == "single file" else None
        if made is None:
            wanted, named = "3.11 or newer", [f"python3.{minor}" for minor in range(11, 20)]
        else:
            wanted, named = made["python"], [f"python{made['python']}"]
        given = [self.options.python] if self.options.python else []
        probe = "import json, sys, sysconfig; print(json.dumps([sys.version_info[:2], "
        probe += "sysconfig.get_config_var('EXT_SUFFIX'), sys.executable]))"
        for name in given or [sys.executable, "python3", *named]:
            found = shutil.which(name) if name else None
            if found is None:
                continue
            answer = run([found, "-c", probe])
            if answer.returncode:
                continue
            version, suffix, executable = json.loads(answer.stdout)
            if suffix == made["suffix"] if made else tuple(version) >= OLDEST_PYTHON:
                return str(executable)
        raise DeployError(
            f"geosocks needs Python {wanted}, and there is none here"
            if not given
            else f"--python {given[0]} is not Python {wanted}",
            "install it (Debian: apt-get install python3), or name one: --python PATH",
        )

    def guess(self) -> str | None:
        """The version, as far as it can be told without building anything."""
        if self.kind == "single file":
            return (self._made_for() or {}).get("version")
        if self.kind == "wheel":
            return metadata_of(self.path)[0]
        if self.kind == "index":
            return self.text.partition("==")[2]
        with contextlib.suppress(OSError):
            text = (self.path / "geosocks/__init__.py").read_text()
            found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
            return found[1] if found else None
        return None

    def packed(self, folder: Path, python: str) -> tuple[Path, str]:
        """One file to install from, and its version; builds or fetches it where it must.

        ``python`` is one that has pip.
        """
        if self.kind == "single file":
            made = self._made_for() or {}
            return self.path, made["version"]
        if self.kind == "wheel":
            return self.path, metadata_of(self.path)[0]
        if self.kind == "folder":
            copy = folder / "source"
            made = ("*.egg-info", "*.so", "__pycache__", "build")
            skip = shutil.ignore_patterns(".git", ".venv", *made)
            shutil.copytree(self.path, copy, ignore=skip, symlinks=True)
            what: Sequence[object] = [copy]
        else:
            what = [self.text]
        words = [*self.pip(python, "wheel"), "--no-deps", "--wheel-dir", folder, *what]
        env = pip_environment()
        if run(words, env=env).returncode:
            # Where a C compiler is, pip looks for what geosocks is compiled with; it does without.
            must(
                words,
                f"making a wheel of {self.text}",
                "is the package index to be reached? --wheels DIR takes packages from a folder",
                env={**env, "GEOSOCKS_COMPILE": "0"},
            )
        wheels = list(folder.glob("*.whl"))
        if len(wheels) != 1:
            raise DeployError(f"{self} gave {len(wheels)} wheels, not one")
        return wheels[0], metadata_of(wheels[0])[0]

    def pip(self, python: object, what: str) -> list[object]:
        """The beginning of a pip command."""
        command: list[object] = [python, "-m", "pip", what, "--quiet", "--no-input"]
        command.append("--disable-pip-version-check")
        if self.options.wheels:
            folder = Path(self.options.wheels).absolute()
            command += ["--no-index", "--find-links", folder]
        return command

    def constraints(self) -> list[str]:
        """The versions to take of what geosocks needs: those that it was tested with."""
        given = self.options.constraints
        if given is None and self.kind == "folder":
            beside = self.path / "requirements.txt"
            given = str(beside) if beside.exists() else None
        return [] if given is None else ["--constraint", str(Path(given).absolute())]


def metadata_of(wheel: Path) -> tuple[str, list[str]]:
    """The version and the extras that a wheel's metadata tell.

    Raises:
        DeployError: it is no wheel, or damaged.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            broken = archive.testzip()
            names = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
            text = archive.read(names[0]).decode() if names and broken is None else ""
    except (OSError, zipfile.BadZipFile) as error:
        raise DeployError(f"{wheel} is no wheel, or damaged: {error}", "fetch it again") from None
    fields = [line.partition(": ")[::2] for line in text.partition("\n\n")[0].splitlines()]
    version = dict(fields).get("Version", "")
    if not re.fullmatch(r"[A-Za-z0-9.!+_-]+", version):
        raise DeployError(f"{wheel} is no wheel, or damaged", "fetch it again")
    return version, [value for name, value in fields if name == "Provides-Extra"]


def digest_of(packed: Path) -> str:
    """What is in an archive, whenever it was packed."""
    with zipfile.ZipFile(packed) as archive:
        content = sorted((info.filename, info.CRC, info.file_size) for info in archive.infolist())
    return hashlib.sha256(repr(content).encode()).hexdigest()


# --- the configuration, as far as a deploy has to know it -------------------------------------


def pairs_of(text: str) -> list[tuple[str, str]]:
    """The ``name = value`` lines."""
    pairs = []
    for line in text.splitlines():
        line = line.partition(" #")[0].strip()
        name, equals, value = (part.strip() for part in line.partition("="))
        if equals and not line.startswith("#"):
            pairs.append((name, value))
    return pairs


def with_option(text: str, name: str, values: Sequence[str]) -> str:
    """Set an option where the sample has its line."""
    lines = "".join(f"{name} = {value}\n" for value in values)
    found = re.compile(rf"^#?{re.escape(name)} = .*\n", re.MULTILINE)
    if found.search(text):
        return found.sub(lambda _: lines, text, count=1)
    return f"{text.rstrip()}\n\n{lines}"


@dataclass(frozen=True)
class Listener:
    """One ``listen`` line."""

    text: str
    methods: tuple[str, ...]

    @property
    def place(self) -> str:
        return self.text.partition("?")[0].replace("tls://", "", 1)

    @property
    def is_handed_over(self) -> bool:
        """True when systemd's socket unit has the socket."""
        return self.place.partition(":")[0] == "systemd"

    @property
    def is_tls(self) -> bool:
        return self.text.startswith("tls://")

    @property
    def settings(self) -> list[tuple[str, str]]:
        query = self.text.partition("?")[2]
        return [(a, c) for a, _, c in (pair.partition("=") for pair in query.split("&")) if a]

    def address(self) -> tuple[int, Any]:
        """Family and address to connect to."""
        if self.place.startswith("unix:"):
            return socket.AF_UNIX, self.place[len("unix:") :]
        host, _, port = self.place.rpartition(":")
        host = host.strip("[]")
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "localhost": "127.0.0.1"}.get(host, host)
        return (socket.AF_INET6 if ":" in host else socket.AF_INET), (host, int(port))


class Config:
    """What a version makes of the configuration file."""

    def __init__(self, geosocks: Path, path: Path, who: Who) -> None:
        output = must(
            [geosocks, "serve", "--config", path, "--print-config"],
            "reading the configuration",
            f"mend {path}",
            who=who,
        )
        self.path = path
        self.known = set(re.findall(r"^(?:# )?([a-z0-9-]+) =", output, re.MULTILINE))
        """The options that this version has."""

        self.values: dict[str, list[str]] = {}
        for line in output.splitlines():
            name, equals, value = line.rpartition(" # ")[0].partition(" = ")
            if equals and not name.startswith("#"):
                self.values.setdefault(name.strip(), []).append(value.strip())
        self.listeners = [
            Listener(text, self._methods_at(text)) for text in self.values.get("listen", [])
        ]

    def one(self, name: str) -> str | None:
        """The value of an option, None where it has none."""
        return self.values.get(name, [None])[0]

    def _methods_at(self, listen: str) -> tuple[str, ...]:
        own = dict(Listener(listen, ()).settings)
        if "methods" in own:
            text = own["methods"]
        elif "users" in own or "keytab" in own:
            names = ("keytab" in own and "gssapi", "users" in own and "username")
            return tuple(name for name in names if name)
        else:
            text = self.one("methods") or "none"
        return tuple(word.strip() for word in text.split(","))

    def of(self, listener: Listener, name: str) -> str | None:
        """The value of an option at a listener."""
        return dict(listener.settings).get(name) or self.one(name)


# --- proofs: a client of our own --------------------------------------------------------------

NONE, GSSAPI, USERNAME = 0, 1, 2
METHODS = {"none": NONE, "gssapi": GSSAPI, "username": USERNAME}
NOT_ALLOWED = 2

PROVEN, ANSWERS, BROKEN = "proven", "answers", "FAILED"
RELAYED = "CONNECT, 16 octets there and back"
DENIED = "the rules refuse this host's loopback, so nothing was relayed"


@dataclass(frozen=True)
class Proof:
    """What came of one method at one listener.

    PROVEN is octets there and back; ANSWERS is less, and ``text`` says how much; BROKEN is neither.
    """

    result: str
    where: str
    method: str
    text: str

    def __str__(self) -> str:
        return f"{self.result:<8} {self.method} at {self.where}: {self.text}"


class Broken(Exception):
    """An exchange did not go as RFC 1928 has it."""


class Echo:
    """A target on loopback that sends back what it gets, for as long as the block lasts."""

    def __init__(self, family: int) -> None:
        self._listening = socket.socket(family)
        self._listening.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        self._listening.listen(8)
        self.address: tuple[str, int] = self._listening.getsockname()[:2]

    def __enter__(self) -> Echo:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listening.accept()
                with peer, contextlib.suppress(OSError):
                    peer.settimeout(STEP)
                    while data := peer.recv(4096):
                        peer.sendall(data)


def exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise Broken(f"closed after {len(data)} of {size} octets")
        data += more
    return data


def connect(listener: Listener, at: tuple[int, Any]) -> socket.socket:
    """A connection to a listener, inside TLS where it wants that; the certificate is not judged."""
    sock = socket.socket(at[0])
    try:
        sock.settimeout(STEP)
        sock.connect(at[1])
        if listener.is_tls:
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            return context.wrap_socket(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def session(
    sock: socket.socket, method: int, user: bytes, password: bytes, target: tuple[str, int]
) -> tuple[str, str]:
    """One session with one method (RFC 1928, RFC 1929); what it proves."""
    sock.sendall(bytes((5, 1, method)))
    version, chosen = exactly(sock, 2)
    if version != 5 or chosen != method:
        raise Broken(f"X'{chosen:02X}' selected")
    if method == USERNAME:
        sock.sendall(b"\x01" + bytes((len(user),)) + user + bytes((len(password),)) + password)
        if exactly(sock, 2)[1] != 0:
            raise PermissionError("user and password are refused")
    host = socket.inet_pton(socket.AF_INET6 if ":" in target[0] else socket.AF_INET, target[0])
    atyp = 4 if len(host) == 16 else 1
    sock.sendall(bytes((5, 1, 0, atyp)) + host + target[1].to_bytes(2, "big"))
    _, rep, _, atyp = exactly(sock, 4)
    exactly(sock, {1: 4, 4: 16}.get(atyp) or exactly(sock, 1)[0])
    exactly(sock, 2)
    if rep == NOT_ALLOWED:
        return ANSWERS, f"lets in; {DENIED}"
    if rep != 0:
        raise Broken(f"X'{rep:02X}' in reply to CONNECT")
    token = secrets.token_bytes(16)
    sock.sendall(token)
    if exactly(sock, len(token)) != token:
        raise Broken("other octets came back")
    return PROVEN, RELAYED


GSSAPI_CLIENT = """
import json, sys
from contextlib import closing
from geosocks import Client
from geosocks.auth.gss import REQUESTED, GssCredential
from geosocks.auth.gss_context import initiate
from geosocks.auth.keytab import read_keytab
from geosocks.codes import ProtectionLevel
from geosocks.errors import RequestDenied

def finish(result, text):
    print(json.dumps([result, text]))
    sys.exit()

asked = json.load(sys.stdin)
store = {"client_keytab": asked["keytab"], "ccache": "MEMORY:deploy"}
failed = "the keytab has no service"
principals = dict.fromkeys(entry.principal for entry in read_keytab(asked["keytab"]))
for principal in sorted(principals, key=lambda name: not name.startswith("rcmd/"))[:5]:
    service, slash, host = principal.rpartition("@")[0].partition("/")
    if not slash:
        continue
    try:
        initiate(f"{service}@{host}", REQUESTED, principal, store).step()
    except Exception as error:
        failed = f"{principal}: {error}"
        continue
    level = ProtectionLevel[asked["level"]]
    credential = GssCredential(host, service=service, level=level, principal=principal, **store)
    client, token, data = Client(tuple(asked["server"]), [credential]), b"sixteen octets..", b""
    try:
        with closing(client.connect(tuple(asked["target"]))) as stream:
            stream.sendall(token)
            while len(data) < len(token) and (more := stream.recv(len(token) - len(data))):
                data += more
    except RequestDenied:
        finish("answers", f"lets {principal} in; " + asked["denied"])
    except Exception as error:
        finish("FAILED", f"as {principal}: {error}")
    if data != token:
        finish("FAILED", f"as {principal}: other octets came back")
    finish("proven", f"as {principal}: " + asked["proven"])
finish("none", failed)
"""
"""Run by the Python of the version itself, which has the GSSAPI client: gets a ticket for the
service with the service's own key, and is its own client."""


@dataclass(frozen=True)
class Prover:
    """Proves each method of each listener."""

    config: Config
    geosocks: Path
    who: Who
    user: str = ""
    password: bytes = b""

    @property
    def family(self) -> int:
        """The family that the server reaches targets by."""
        return socket.AF_INET6 if self.config.one("family") == "ipv6" else socket.AF_INET

    def run(self, at: Sequence[tuple[Listener, tuple[int, Any]]], echo: Echo) -> list[Proof]:
        """Prove, and say what came of it."""
        proofs = []
        for listener, address in at:
            for method in listener.methods:
                result, text = self._prove(listener, address, method, echo.address)
                proofs.append(Proof(result, listener.text.partition("?")[0], method, text))
                detail(str(proofs[-1]))
        return proofs

    def _prove(
        self, listener: Listener, at: tuple[int, Any], method: str, target: tuple[str, int]
    ) -> tuple[str, str]:
        try:
            if listener.is_tls and self.config.of(listener, "tls-client-ca"):
                socket.create_connection(at[1], STEP).close()
                return ANSWERS, "takes connections; it demands a client certificate, we have none"
            if method == "gssapi":
                return self._gssapi(listener, at, target)
            if method not in METHODS:
                return ANSWERS, "a method of your own, which this script does not speak"
            user, password = self.user.encode(), self.password
            made_up = method == "username" and not user
            if made_up:
                user, password = b"deploy-" + secrets.token_hex(4).encode(), b"made up"
            try:
                with connect(listener, at) as sock:
                    return session(sock, METHODS[method], user, password, target)
            except PermissionError as error:
                if made_up:
                    return (
                        ANSWERS,
                        "refuses a made-up user, as it must (--prove-as USER)",
                    )
                return BROKEN, f"{error} (--prove-as {self.user})"
        except (OSError, Broken) as error:
            return BROKEN, str(error)

    def _gssapi(
        self, listener: Listener, at: tuple[int, Any], target: tuple[str, int]
    ) -> tuple[str, str]:
        if at[0] == socket.AF_UNIX or listener.is_tls:
            self._offer_gssapi(listener, at)
            return ANSWERS, "the method is selected; a ticket is shown at plain TCP listeners only"
        levels = self.config.of(listener, "gss-levels") or "confidentiality"
        asked = {
            "keytab": self.config.of(listener, "keytab") or "/etc/krb5.keytab",
            "level": "CLEAR" if self.config.of(listener, "gss-grant") else levels.split(",")[0],
            "server": at[1],
            "target": target,
            "denied": DENIED,
            "proven": RELAYED,
        }
        asked["level"] = asked["level"].upper()
        python = self.geosocks.with_name("python")
        done = run(
            [python, "-I", "-c", GSSAPI_CLIENT],
            given=json.dumps(asked).encode(),
            seconds=30.0,
            who=self.who,
        )
        try:
            result, text = json.loads(done.stdout.decode().splitlines()[-1])
        except (ValueError, IndexError):
            return BROKEN, tail(done.stdout.decode(errors="replace"), 1)
        if result == "none":
            self._offer_gssapi(listener, at)
            return ANSWERS, f"the method is selected; no ticket to show: {text}"
        return result, text

    def _offer_gssapi(self, listener: Listener, at: tuple[int, Any]) -> None:
        with connect(listener, at) as sock:
            sock.sendall(bytes((5, 1, GSSAPI)))
            if exactly(sock, 2) != bytes((5, GSSAPI)):
                raise Broken("method gssapi is not selected")


def broken(proofs: Sequence[Proof]) -> list[Proof]:
    return [proof for proof in proofs if proof.result == BROKEN]


# --- what keeps the service running -----------------------------------------------------------


class Service:
    """What this host has to run services with."""

    name = ""

    def __init__(self, layout: Layout, state: State, who: Who) -> None:
        self.layout = layout
        self.state = state
        self.who = who

    def files(self, version: str) -> list[tuple[Path, Path, int]]:
        """Of a version's files the service's own: from where, to where, with which mode."""
        return []

    def is_ours(self, place: Path) -> bool:
        """True for a file that is there, and that this script has made."""
        return place.exists() and str(place) in self.state.made

    def refuse_others(self, version: str) -> None:
        """See that no service file is in the way that somebody else has made."""
        for _, place, _ in self.files(version):
            if os.path.lexists(place) and not self.is_ours(place):
                raise DeployError(
                    f"there is a {place} already, which this script has not made",
                    "stop that service and move the file away, or: --service none",
                    USAGE,
                )

    def lay(self, version: str, config: Config | None) -> None:
        """Put the service files of a version in their places."""
        for source, place, mode in self.files(version):
            if not source.exists():
                raise DeployError(
                    f"{version} brings no {source.name}", "--service none does without"
                )
            self.state.note(place)
            place.parent.mkdir(parents=True, exist_ok=True)
            text = self.placed(source.read_text())
            if not place.exists() or place.read_text() != text:
                write(place, text.encode(), mode)

    def placed(self, text: str) -> str:
        """The text with paths as they are below the prefix."""
        if self.layout.is_host:
            return text
        below = ("/opt/geosocks", "/etc/geosocks", "/var/log/geosocks", "/run/geosocks")
        return re.sub("|".join(below), lambda found: f"{self.layout.prefix}{found[0]}", text)

    def restart(self, config: Config) -> None:
        """End what runs and start what ``current`` points to."""
        raise NotImplementedError

    def stop(self) -> None:
        """End what runs; its sessions get the time that it is set to give them."""
        raise NotImplementedError

    def pid(self) -> int | None:
        """The process that takes the signals, if it runs."""
        raise NotImplementedError

    def _step_aside(self, pidfile: Path, config: Config) -> None:
        """Have what runs give up its ports; the sessions that it has go on beside the new one.

        A status page on a port is given up at the very end only: then the new one has to wait.
        """
        pid = pid_in(pidfile, self.layout.root)
        if pid is None:
            return
        os.kill(pid, signal.SIGTERM)
        for path in (pidfile, *self._sockets(config)):
            with contextlib.suppress(OSError):
                path.unlink()

        def free() -> bool:
            with contextlib.suppress(DeployError):
                refuse_taken_ports(config)
                return True
            return not alive(pid)

        if not wait_until(free, 1.0):
            say("wait for the last sessions of the old one, whose status page is in the way")
            wait_until(free, float(config.one("drain") or 30) + STARTING)

    def _sockets(self, config: Config) -> list[Path]:
        """The UNIX sockets of ctl and status page: names that can be had at once."""
        control = config.one("control") or str(self.layout.run / "control.sock")
        admin = config.one("admin") or ""
        page = [admin[len("unix:") :]] if admin.startswith("unix:") else []
        workers = Path(control).parent.glob(f"{Path(control).name}.*")
        return [Path(control), *workers, *map(Path, page)]

    def forget(self) -> None:
        """Have the host know nothing of the service any more."""

    def is_over(self) -> bool:
        """True when what was started last has ended, and will not be started again by itself."""
        return False

    def last_words(self) -> str:
        """The end of its log."""
        logs = sorted(self.layout.log.glob("*.log"), key=lambda path: path.stat().st_mtime)
        return tail(logs[-1].read_text(errors="replace")) if logs else ""


def alive(pid: int | None) -> bool:
    """True when there is such a process, and it has not ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def command_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []


def pid_in(path: Path, about: Path) -> int | None:
    """The process that a pidfile names, if it lives and is one of ours: it mentions ``about``."""
    try:
        pid = int(path.read_text())
    except (OSError, ValueError):
        return None
    ours = any(word.startswith(f"{about}/") for word in command_of(pid))
    return pid if ours and alive(pid) else None


def end_all(about: Path) -> None:
    """End every process of ours that is left, such as one that waits for its last sessions."""

    def left() -> list[int]:
        pids = [int(entry) for entry in os.listdir("/proc") if entry.isdecimal()]
        own = (os.getpid(), os.getppid())
        return [
            pid
            for pid in pids
            if pid not in own
            and alive(pid)
            and "".join(command_of(pid)[:1]).startswith(f"{about}/versions/")
        ]

    for number, seconds in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        for pid in left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if wait_until(lambda: not left(), seconds):
            return


def wait_until(condition: Callable[[], object], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


class Process(Service):
    """Nothing: this script starts the server itself, with a pidfile."""

    name = "none"
    _child: subprocess.Popen[bytes] | None = None

    @property
    def pidfile(self) -> Path:
        return self.layout.run / "deploy.pid"

    def restart(self, config: Config) -> None:
        self._step_aside(self.pidfile, config)
        folder(self.layout.run, 0o755, self.state, self.who)
        folder(self.layout.log, 0o750, self.state, self.who)
        program, config_file = self.layout.current / "bin/geosocks", self.layout.config
        words = [str(program), "serve", "--config", str(config_file)]
        fits = len(os.fsencode(self.layout.run)) < SUN_PATH - len("/control.sock.10")
        if "control" in config.known and not fits and not config.one("control"):
            words += ["--control", "off"]
        with open(self.layout.log / "geosocks.log", "ab") as log:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=environment(RUNTIME_DIRECTORY=str(self.layout.run)),
                start_new_session=True,
                **self.who.as_popen(),
            )
        self.who.own(self.layout.log / "geosocks.log")
        write(self.pidfile, f"{process.pid}\n".encode(), 0o644)
        self._child = process

    def stop(self) -> None:
        pid = self.pid()
        if pid is None:
            return
        os.kill(pid, signal.SIGTERM)
        if not wait_until(lambda: self.pid() is None, 60.0):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(FileNotFoundError):
            self.pidfile.unlink()

    def pid(self) -> int | None:
        if self._child is not None:
            self._child.poll()
        return pid_in(self.pidfile, self.layout.root)

    def is_over(self) -> bool:
        return self.pid() is None


class InitScript(Service):
    """An LSB init script."""

    name = "init.d"

    @property
    def script(self) -> Path:
        return self.layout.prefix / "etc/init.d/geosocks"

    def files(self, version: str) -> list[tuple[Path, Path, int]]:
        return [(self.layout.share(version) / "init.d/geosocks", self.script, 0o755)]

    def lay(self, version: str, config: Config | None) -> None:
        super().lay(version, config)
        if self.layout.is_host and shutil.which("update-rc.d"):
            must(["update-rc.d", "geosocks", "defaults"], "enabling the init script")

    @property
    def pidfile(self) -> Path:
        return self.layout.prefix / "run/geosocks.pid"

    def restart(self, config: Config) -> None:
        # Not the script's own restart, which waits for the end of all sessions, and serves nobody
        # meanwhile.
        self._step_aside(self.pidfile, config)
        must([self.script, "start"], f"{self.script} start", seconds=120.0)

    def stop(self) -> None:
        if self.is_ours(self.script):
            must([self.script, "stop"], f"{self.script} stop", seconds=120.0)

    def pid(self) -> int | None:
        return pid_in(self.pidfile, self.layout.root)

    def forget(self) -> None:
        if not self.is_ours(self.script):
            return
        self.script.unlink()
        if self.layout.is_host and shutil.which("update-rc.d"):
            must(["update-rc.d", "geosocks", "remove"], "disabling the init script")


class Systemd(Service):
    """systemd, with the unit and, for ``listen = systemd``, its socket."""

    name = "systemd"
    UNITS = ("geosocks.service", "geosocks.socket")

    def files(self, version: str) -> list[tuple[Path, Path, int]]:
        source = self.layout.share(version) / "systemd"
        return [(source / name, self._place(name), 0o644) for name in self.UNITS]

    def _place(self, unit: str) -> Path:
        return self.layout.prefix / "etc/systemd/system" / unit

    def lay(self, version: str, config: Config | None) -> None:
        super().lay(version, config)
        self._ctl("daemon-reload")
        self._ctl("enable", "geosocks.service")
        if config is not None and any(one.is_handed_over for one in config.listeners):
            if run(["systemctl", "is-active", "geosocks.socket"]).returncode:
                self._ctl("stop", "geosocks.service")  # it has the port that the socket is to take
            self._ctl("enable", "--now", "geosocks.socket")

    def restart(self, config: Config) -> None:
        self._ctl("restart", "geosocks.service")

    def stop(self) -> None:
        for unit in reversed(self.UNITS):
            if self.is_ours(self._place(unit)):
                self._ctl("stop", unit)

    def pid(self) -> int | None:
        done = run(["systemctl", "show", "--property=MainPID", "--value", "geosocks.service"])
        text = done.stdout.decode(errors="replace").strip()
        return int(text) if text.isdecimal() and text != "0" else None

    def forget(self) -> None:
        for unit in self.UNITS:
            if self.is_ours(self._place(unit)):
                self._ctl("disable", unit)
                self._place(unit).unlink()
        self._ctl("daemon-reload")
        run(["systemctl", "reset-failed", *self.UNITS])

    def last_words(self) -> str:
        done = run(
            ["journalctl", "--no-pager", "--output=cat", f"--lines={LOG_LINES}", "-ugeosocks"]
        )
        return tail(done.stdout.decode(errors="replace"))

    def _ctl(self, *words: str) -> None:
        must(["systemctl", *words], f"systemctl {' '.join(words)}", seconds=120.0)


SERVICES = {kind.name: kind for kind in (Systemd, InitScript, Process)}


def service_here(layout: Layout) -> str:
    """What this host has."""
    if not layout.is_host:
        return Process.name
    if Path("/run/systemd/system").is_dir():
        return Systemd.name
    return InitScript.name if Path("/etc/init.d").is_dir() else Process.name


def folder(path: Path, mode: int, state: State, who: Who | None = None) -> None:
    """Make a folder of ours, and those above it that are missing."""
    is_new = not path.exists()
    for one in missing(path):
        state.note(one, folder=True)
        one.mkdir(0o755, exist_ok=True)  # the state itself may have made it
    if is_new:
        (who or Who()).own(path)
        path.chmod(mode)


# --- a trial: the new version beside the one that runs ----------------------------------------

NOT_IN_TRIAL = frozenset(
    (
        *("listen", "rules", "users", "methods", "tls-client-ca", "allow-open", "drain"),
        *("user", "group", "pidfile", "daemon", "workers", "reuse-port", "control"),
        *("admin", "admin-token-file", "log-to", "log-file", "log-format", "log-level"),
    )
)


class Trial:
    """A server of a version with the configuration there is, on free ports of loopback.

    Its rules allow one target, the echo of the proof; its users are those there are and one more,
    made for the occasion.  What runs already is not touched.
    """

    def __init__(self, layout: Layout, version: str, config: Config, who: Who) -> None:
        self.layout = layout
        self.version = version
        self.geosocks = layout.version(version) / "bin/geosocks"
        self.config = config
        self.who = who
        self.folder = layout.trial
        self.log = self.folder / "log"
        self.user = f"deploy-{secrets.token_hex(4)}"
        self.password = secrets.token_hex(16).encode()

    def run(self) -> list[Proof]:
        """Start it, prove it, end it.

        Raises:
            DeployError: it does not start.
        """
        clear_trial(self.layout)
        self.folder.mkdir(0o700)
        self.who.own(self.folder)
        family = socket.AF_INET6 if self.config.one("family") == "ipv6" else socket.AF_INET
        try:
            with Echo(family) as echo:
                path = self._write_config(echo.address)
                process = self._start(path)
                try:
                    at = self._wait(process)
                    prover = Prover(
                        *(self.config, self.geosocks, self.who),
                        *(self.user, self.password),
                    )
                    return prover.run(at, echo)
                finally:
                    process.terminate()
                    if not wait_until(lambda: process.poll() is not None, 5.0):
                        process.kill()
                        process.wait()
        finally:
            clear_trial(self.layout)

    def _write_config(self, target: tuple[str, int]) -> Path:
        rules = self.folder / "rules.conf"
        via = " via direct" if self.config.one("via") or self.config.one("upstream") else ""
        to = f"allow to {target[0]} port {target[1]}{via}\n"
        write(rules, to.encode(), 0o600, self.who)
        lines = [
            line
            for line in self.layout.config.read_text().splitlines()
            if not {name for name, _ in pairs_of(line)} & NOT_IN_TRIAL
        ]
        pairs = [("log-format", "json"), ("rules", str(rules)), ("allow-open", "true")]
        pairs.append(("drain", "0"))
        if "control" in self.config.known:
            pairs.append(("control", "off"))
        pairs.append(("methods", self.config.one("methods") or "none"))
        if self.config.one("users"):
            pairs.append(("users", str(self._users(self.config.one("users") or "", "users"))))
        for number, one in enumerate(self.config.listeners):
            pairs.append(("listen", self._listen(one, number)))
        text = "\n".join([*lines, *(f"{name} = {value}" for name, value in pairs), ""])
        path = self.folder / "geosocks.conf"
        write(path, text.encode(), 0o600, self.who)
        return path

    def _listen(self, listener: Listener, number: int) -> str:
        settings = [("name", f"trial{number}")]
        for name, value in listener.settings:
            if name == "users":
                value = str(self._users(value, f"users{number}"))
            if name not in ("name", "mode", "tls-client-ca"):
                settings.append((name, value))
        query = "&".join("=".join(pair) for pair in settings)
        return f"{'tls://' if listener.is_tls else ''}127.0.0.1:0?{query}"

    def _users(self, path: str, name: str) -> Path:
        """The users there are, and one of ours."""
        copy = self.folder / name
        write(copy, Path(path).read_bytes(), 0o600, self.who)
        must(
            [self.geosocks, "passwd", copy, self.user],
            "making a user for the trial",
            given=self.password + b"\n",
            who=self.who,
        )
        return copy

    def _start(self, config: Path) -> subprocess.Popen[bytes]:
        with open(self.log, "wb") as log:
            process = subprocess.Popen(
                [self.geosocks, "serve", "--config", config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=environment(),
                start_new_session=True,
                **self.who.as_popen(),
            )
        (self.folder / "pid").write_text(str(process.pid))
        return process

    def _wait(self, process: subprocess.Popen[bytes]) -> list[tuple[Listener, tuple[int, Any]]]:
        """Until all its listeners take connections; each of ours, and where it is for the trial."""

        def ready() -> bool:
            return process.poll() is not None or len(self._ports()) == len(self.config.listeners)

        in_time = wait_until(ready, STARTING)
        if process.poll() is not None or not in_time:
            ended = f"ended with {process.poll()}" if process.poll() is not None else "not ready"
            words = tail(self.log.read_text(errors="replace"))
            raise DeployError(f"{self.version} does not start: {ended}\n{words}")
        return [
            (listener, (socket.AF_INET, ("127.0.0.1", port)))
            for listener, port in zip(self.config.listeners, self._ports())
        ]

    def _ports(self) -> list[int]:
        ports = {}
        for line in self.log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError, AttributeError):
                event = json.loads(line)
                if event.get("event") == "listening":
                    ports[event.get("name")] = int(event["address"].rpartition(":")[2])
        names = (f"trial{number}" for number in range(len(self.config.listeners)))
        return [ports[name] for name in names if name in ports]


def clear_trial(layout: Layout) -> None:
    """End a trial that an interrupted run has left."""
    pid = pid_in(layout.trial / "pid", layout.root)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(layout.trial, ignore_errors=True)


# --- the deploy -------------------------------------------------------------------------------


class Deploy:
    """One run of this script."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.layout = Layout(options.prefix)
        self.state = State(self.layout.state)
        self.who = Who()
        if self.layout.is_host:
            with contextlib.suppress(KeyError):
                self._know_user()
        self.service = self._service(options.service)

    def _know_user(self) -> None:
        entry = pwd.getpwnam(USER)
        self.who = Who(entry.pw_uid, entry.pw_gid)
        if hasattr(self, "service"):
            self.service.who = self.who

    def _service(self, asked: str) -> Service:
        name = self.state.service if asked == "auto" else asked
        return SERVICES[name or service_here(self.layout)](self.layout, self.state, self.who)

    # --- steps ---

    def step(self, what: str, action: Callable[[], Any] | None = None) -> Any:
        """Say what is being done, and do it; with --dry-run only say it."""
        if self.options.dry_run:
            say(f"would {what}")
            return None
        say(what)
        return action() if action else None

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep a second deploy out while this one runs; and mend what an interrupted one left."""
        if self.layout.is_host and os.geteuid() != 0 and not self.options.dry_run:
            raise DeployError(
                "only root can do this",
                "use sudo, or try it without root below a folder of yours: --prefix DIR",
                USAGE,
            )
        if self.options.dry_run:
            yield
            return
        self.layout.prefix.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.layout.prefix, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DeployError(
                    f"another deploy is at work in {self.layout.prefix}",
                    "wait for its end",
                    TEMPORARY,
                ) from None
            self.state = State(self.layout.state)
            self.service.state = self.state
            self._recover()
            yield
        finally:
            os.close(lock)

    def _recover(self) -> None:
        for pattern in (".*.deploy", "*/.unfinished"):
            for path in [*self.layout.etc.glob(pattern), *self.layout.versions.glob(pattern)]:
                if path.name == ".unfinished":
                    say(
                        f"removing {path.parent.name}, which an interrupted run has left unfinished"
                    )
                    shutil.rmtree(path.parent)
                else:
                    path.unlink()
        for path in self.layout.root.glob(".*.deploy"):
            path.unlink()
        shutil.rmtree(self.layout.work, ignore_errors=True)
        if self.layout.trial.exists():
            clear_trial(self.layout)
        pending = self.state.pending
        if pending is not None:
            to, back = pending["to"], pending["from"]
            say(f"an earlier run was interrupted on its way to {to}")
            self._go_back(back)

    # --- install and upgrade ---

    def install(self) -> None:
        """From nothing to a proven proxy."""
        with self.alone():
            source = self._source()
            if self.state.is_installed and not self._is_same(source):
                raise DeployError(
                    f"{self.state.current} is installed", "to change it: upgrade", USAGE
                )
            self._check_files()
            self._deploy(source)

    def upgrade(self) -> None:
        """Another version in the place of the one that runs."""
        with self.alone():
            if not self.state.is_installed:
                raise DeployError("nothing is installed here", "begin with: install", USAGE)
            self._deploy(self._source())

    def _source(self) -> Source:
        text = self.options.source
        if text is None:
            here = Path(globals().get("__file__", "")).resolve().parent.parent
            if not (here / "geosocks/__init__.py").exists():
                raise DeployError(
                    "what is to be installed?",
                    "--from a wheel, a checkout, geosocks.pyz, or name==version of a package index",
                    USAGE,
                )
            text = str(here)
        return Source(text, self.options)

    def _is_same(self, source: Source) -> bool:
        """True when what is installed may well be of that source; building it will tell."""
        version = source.guess()
        return version is None or (self.state.current or "").partition("-")[0] == version

    def _deploy(self, source: Source) -> None:
        python = source.python()
        self.step(f"install from the {source}, with {python}, below {self.layout.root}")
        if not self.options.dry_run:
            folder(self.layout.versions, 0o755, self.state)
        self._make_user()
        version, is_new = self._build(source, python)
        self._lay_configuration(version)
        if self.options.dry_run:
            for what in (
                f"check {self.layout.config} with the new version",
                "start the new version on free loopback ports and prove each method there",
                f"point {self.layout.current} to it, lay down the files of service manager "
                f"'{self.service.name}', restart the service",
                "prove each method at each listener; on any failure go back to "
                f"{self.state.current or 'nothing'}",
                f"remove all but the last {KEPT} versions",
            ):
                self.step(what)
            return
        if version == self.state.current and self._runs(version):
            say(f"{version} is in force already and runs")
            self._prove_listeners(version)
            return
        try:
            self._switch(version)
        except DeployError:
            if is_new:
                remove_tree(self.layout.version(version))
            raise
        self._remove_old_versions()

    def _runs(self, version: str) -> bool:
        pid = self.service.pid()
        return pid is not None and self._version_of(pid) in (version, None)

    def _version_of(self, pid: int) -> str | None:
        """The version that a process is of, by its command; None if that does not tell."""
        for word in command_of(pid):
            if word.startswith(f"{self.layout.versions}/"):
                return Path(word).relative_to(self.layout.versions).parts[0]
        return None

    def _make_user(self) -> None:
        if not self.layout.is_host:
            return
        try:
            grp.getgrnam(USER)
        except KeyError:
            self.step(f"make the system group {USER}", self._add_group)
        try:
            pwd.getpwnam(USER)
        except KeyError:
            self.step(f"make the system user {USER}", self._add_user)
        if not self.options.dry_run:
            self._know_user()

    def _add_group(self) -> None:
        self.state.group_made = True
        self.state.save()
        must(["groupadd", "--system", USER], "groupadd", "make the group by hand")

    def _add_user(self) -> None:
        self.state.user_made = True
        self.state.save()
        must(
            [
                *("useradd", "--system", "--gid", USER, "--no-create-home"),
                *("--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", USER),
            ],
            "useradd",
            "make the user by hand",
        )

    # --- a version ---

    def _build(self, source: Source, python: str) -> tuple[str, bool]:
        """Make a version of its own; its name, and whether it is new."""
        kerberos = self.options.kerberos or self.state.kerberos
        if source.kind != "single file":
            self._need_packages(source, python, kerberos)
        if self.options.dry_run:
            version = source.guess() or "the version"
            self.step(f"make a virtual environment in {self.layout.version(version)}")
            self.step("install geosocks and what it needs there")
            return version, True
        with self._workshop() as work:
            builder = python
            if source.kind in ("folder", "index"):
                self.step("make a wheel", lambda: must_make_venv(python, work / "pip", True))
                builder = str(work / "pip/bin/python")
            packed, version = source.packed(work, builder)
            digest = digest_of(packed) + ("+gssapi" if kerberos else "")
            version, is_new = self._named(version, digest)
            if not is_new:
                say(f"{version} is built already")
                return version, False
            place = self.layout.version(version)
            folder(place, 0o755, self.state)
            (place / ".unfinished").touch()
            try:
                self._fill(place, source, packed, python, kerberos)
            except BaseException:
                shutil.rmtree(place)
                raise
        (place / ".digest").write_text(digest)
        self.state.kerberos = kerberos
        self.state.save()
        (place / ".unfinished").unlink()
        return version, True

    @contextlib.contextmanager
    def _workshop(self) -> Iterator[Path]:
        """A folder that is gone at the end; what a killed run leaves is in a known place."""
        shutil.rmtree(self.layout.work, ignore_errors=True)
        self.layout.work.mkdir(0o700)
        try:
            yield self.layout.work
        finally:
            shutil.rmtree(self.layout.work, ignore_errors=True)

    def _fill(self, place: Path, source: Source, packed: Path, python: str, kerberos: bool) -> None:
        """Install into a folder, and see that it starts."""
        self.step(f"make version {place.name} in {place}")
        if source.kind == "single file":
            unpack(packed, place, python)
        else:
            must_make_venv(python, place, True)
            unwanted = {"dev"} if kerberos else {"dev", "gssapi"}
            extras = ",".join(sorted({*metadata_of(packed)[1]} - unwanted))
            what = f"{packed}[{extras}]" if extras else packed
            must(
                [*source.pip(place / "bin/python", "install"), *source.constraints(), what],
                "installing geosocks and what it needs",
                "is the package index to be reached? --wheels DIR takes packages from a folder",
                env=pip_environment(),
            )
        command = place / "bin/geosocks"
        said = must([command, "--version"], f"the first start of {place.name}", who=self.who)
        detail(said.strip())

    def _named(self, version: str, digest: str) -> tuple[str, bool]:
        """The folder's name for this content, and whether it has to be made yet.

        Two builds of one version (of a checkout, say) are told apart by a number behind it.
        """
        for number in range(1, 1000):
            name = version if number == 1 else f"{version}-{number}"
            place = self.layout.version(name)
            if not place.exists():
                return name, True
            with contextlib.suppress(OSError):
                if (place / ".digest").read_text() == digest:
                    return name, False
        raise DeployError(f"there are too many builds of {version}")

    def _need_packages(self, source: Source, python: str, kerberos: bool) -> None:
        missing = []
        if run([python, "-c", "import ensurepip, venv"]).returncode:
            missing.append("python3-venv")
        if kerberos and not self.options.wheels:
            header = run([python, "-c", "import sysconfig; print(sysconfig.get_path('include'))"])
            missing += [] if shutil.which("gcc") else ["gcc", "libc6-dev"]
            missing += [] if shutil.which("krb5-config") else ["libkrb5-dev"]
            if not Path(header.stdout.decode().strip(), "Python.h").exists():
                missing.append("python3-dev")
        if not missing:
            return
        names = " ".join(missing)
        apt = shutil.which("apt-get")
        if apt is None or not self.layout.is_host or self.options.no_packages:
            raise DeployError(
                f"needed, and not here: what Debian calls {names}",
                f"apt-get install {names}; or --from geosocks.pyz, which has all inside",
            )
        self.step(f"install the Debian packages {names}", lambda: self._apt(apt, missing))

    def _apt(self, apt: str, packages: Sequence[str]) -> None:
        before = installed_packages()
        words = [apt, *APT]
        try:
            if run([*words, "install", *packages], env=apt_environment()).returncode:
                run([*words, "update"], env=apt_environment())
                must([*words, "install", *packages], "apt-get install", env=apt_environment())
        finally:
            new = installed_packages() - before - {*self.state.packages}
            self.state.packages += sorted(new)
            self.state.save()

    # --- the configuration ---

    def _check_files(self) -> None:
        """Refuse, before anything is changed, what cannot be done."""
        options = self.options
        for name in ("config", "rules", "users", "keytab"):
            given = getattr(options, name)
            if given and not os.access(given, os.R_OK):
                raise DeployError(f"--{name} {given}: cannot be read", code=USAGE)
        if self.layout.config.exists():
            return
        if options.add_user:
            self._password(f"a password for the new user {options.add_user}")

    def _lay_configuration(self, version: str) -> None:
        """Make the configuration where there is none; what is there stays as it is."""
        options, layout = self.options, self.layout
        gid = self.who.gid
        if not options.dry_run:
            folder(layout.etc, 0o750, self.state, Who(0, gid) if gid is not None else None)
        secret = ((options.users, layout.users), (options.keytab, layout.keytab))
        for given, place in (*secret, (options.rules, layout.rules)):
            if given:
                self._place(place, Path(given).read_bytes())
        if options.add_user:
            self._add_first_user(version)
        if options.dry_run:
            if not layout.config.exists():
                self.step(f"write {layout.config}")
            return
        if not options.rules:
            self._sample(version, "rules.conf", layout.rules, lambda text: text)
        self._sample(version, "geosocks.conf", layout.config, self._fresh_config)

    def _place(self, place: Path, data: bytes) -> None:
        """Put a file of the operator's in its place, unless another one is there."""
        if place.exists():
            if place.read_bytes() != data:
                say(f"{place} is kept as it is; the new one is beside it, {place.name}.new")
                self._write(place.with_name(f"{place.name}.new"), data)
            return
        self.step(f"write {place}", lambda: self._write(place, data))

    def _write(self, place: Path, data: bytes) -> None:
        self.state.note(place)
        who = Who(0, self.who.gid) if self.who.gid is not None else None
        write(place, data, 0o640, who)

    def _add_first_user(self, version: str) -> None:
        name, place = self.options.add_user, self.layout.users
        if place.exists() and re.search(rf"^{re.escape(name)}:", place.read_text(), re.MULTILINE):
            say(f"{place} has a user {name} already, who keeps the password")
            return

        def add() -> None:
            password = self._password(f"a password for the new user {name}")
            if not place.exists():
                self._write(place, b"")
            must(
                [self.layout.version(version) / "bin/geosocks", "passwd", place, name],
                f"adding the user {name}",
                given=password + b"\n",
            )

        self.step(f"add the user {name} to {place}", add)

    def _password(self, what: str) -> bytes:
        """From a file that others cannot read, or from the terminal; never from an argument."""
        path = self.options.password_file
        if path is None:
            if not sys.stderr.isatty():
                raise DeployError(
                    f"{what} is needed, and there is no terminal to ask at",
                    "--password-file FILE, which only you can read",
                    USAGE,
                )
            return getpass.getpass(f"{what}: ").encode()
        try:
            mode = os.stat(path).st_mode
            first = Path(path).read_bytes().partition(b"\n")[0].rstrip(b"\r")
        except OSError as error:
            raise DeployError(f"{path}: {error.strerror}", code=USAGE) from None
        if stat.S_IMODE(mode) & 0o077:
            raise DeployError(f"others may read {path}", f"chmod 600 {path}", USAGE)
        return first

    def _fresh_config(self, text: str) -> str:
        """The sample with what was asked for."""
        options, layout = self.options, self.layout
        if options.config:
            return Path(options.config).read_text()
        if options.listen:
            text = with_option(text, "listen", options.listen)
        if options.users or options.add_user:
            text = with_option(text, "users", [str(layout.users)])
        if options.keytab:
            text = with_option(text, "keytab", [str(layout.keytab)])
        if options.rules:
            text = with_option(text, "rules", [str(layout.rules)])
        return text

    def _sample(self, version: str, name: str, place: Path, made: Callable[[str], str]) -> None:
        """Lay down a sample, or a new one beside a file that was made of an older one."""
        source = self.layout.share(version) / name
        if not source.exists():
            return
        text = source.read_text()
        digest = hashlib.sha256(text.encode()).hexdigest()
        if not place.exists():
            self.step(f"write {place}", lambda: self._write(place, made(text).encode()))
        elif self.state.samples.get(name) != digest and place.read_text() != text:
            beside = place.with_name(f"{name}.new")
            say(f"{place} is kept as it is; this version's sample is beside it, {beside.name}")
            self._write(beside, text.encode())
        self.state.samples[name] = digest
        self.state.save()
        self._warn_of_ignored()

    def _warn_of_ignored(self) -> None:
        if self.options.listen and self.layout.config.exists():
            there = [v for n, v in pairs_of(self.layout.config.read_text()) if n == "listen"]
            if there != self.options.listen:
                detail(f"--listen is not applied: {self.layout.config} is yours to change")

    # --- the switch ---

    def _read(self, version: str) -> Config:
        """What a version makes of the configuration.

        Raises:
            DeployError: it does not take it.
        """
        geosocks = self.layout.version(version) / "bin/geosocks"
        config = self.layout.config
        command = [geosocks, "serve", "--config", config, "--check-config"]
        done = run(command, who=self.who, seconds=60.0)
        words = tail(done.stdout.decode(errors="replace"))
        if done.returncode == USAGE:
            cure = f"mend {config}"
            if os.strerror(errno.EACCES) in words:
                cure = f"let the service read it: chgrp {USER} FILE, chmod 640 FILE"
            raise DeployError(f"{version} does not take the configuration\n{words}", cure)
        if done.returncode:
            raise DeployError(f"{version} is broken: it cannot check a configuration\n{words}")
        return Config(geosocks, config, self.who)

    def _switch(self, version: str) -> None:
        """Put a version in force, or leave all as it was."""
        layout, before = self.layout, self.state.current
        say(f"check {layout.config} with {version}")
        config = self._read(version)
        say(f"prove {version} on ports of its own; what runs is not touched")
        self.service.refuse_others(version)
        failed = broken(Trial(layout, version, config, self.who).run())
        if failed:
            raise DeployError(f"{version} is no good, and not in force\n{lines_of(failed)}")
        if self.service.pid() is None:
            refuse_taken_ports(config)
        self.state.pending = {"from": before, "to": version}
        self.state.service = self.service.name
        self.state.save()
        try:
            self._put_in_force(version, config)
        except (DeployError, OSError, KeyboardInterrupt) as error:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)  # the way back is not to be interrupted
            words = self.service.last_words()
            why = str(error) or "interrupted"
            say(f"{version} failed: {why}")
            self._go_back(before)
            now = f"{before} is in force again" if before else "nothing is installed now"
            raise DeployError(
                f"{version} failed, and {now}: {why}\nend of its log:\n{words}"
            ) from None
        if before != version:
            self.state.previous = before
        self.state.current, self.state.pending = version, None
        self.state.save()
        say(f"{version} is in force, and proven")

    def _put_in_force(self, version: str, config: Config) -> None:
        layout = self.layout
        say(f"point {layout.current} to {version}, and restart the service ({self.service.name})")
        self.state.note(layout.current)
        link(layout.current, layout.version(version))
        self._lay_extras(version)
        self.service.lay(version, config)
        self.service.restart(config)
        self._prove_listeners(version, config)

    def _prove_listeners(self, version: str, config: Config | None = None) -> None:
        """Prove each method at each listener of the service.

        Raises:
            DeployError: one of them fails.
        """
        config = config or self._read(version)
        at = [(one, address_at(one, self.layout)) for one in config.listeners]
        say("prove the service at its listeners")
        if not wait_until(lambda: self._takes(at), STARTING):
            raise DeployError(f"it does not listen within {STARTING:g} s")
        user = self.options.prove_as or self.options.add_user or ""
        password = self._password(f"the password of {user}") if user else b""
        prover = Prover(
            *(config, self.layout.current / "bin/geosocks", self.who),
            *(user, password),
        )
        with Echo(prover.family) as echo:
            failed = broken(prover.run(at, echo))
        if failed:
            raise DeployError(lines_of(failed))
        pid = self.service.pid()
        if pid is None:
            raise DeployError("it does not run any more")
        if self._version_of(pid) not in (version, None):
            raise DeployError(f"process {pid} is not of {version}")

    def _takes(self, at: Sequence[tuple[Listener, tuple[int, Any]]]) -> bool:
        pid = self.service.pid()
        for _, (family, address) in at:
            with socket.socket(family) as sock:
                sock.settimeout(STEP)
                if sock.connect_ex(address):
                    if pid is None and self.service.is_over():
                        raise DeployError("it ended at once")
                    return False
        return True

    def _go_back(self, version: str | None) -> None:
        """Put the version before in force again; None: there was none."""
        layout = self.layout
        if version is None:
            say("go back: stop the service")
            with contextlib.suppress(DeployError):
                self.service.stop()
            with contextlib.suppress(DeployError):
                self.service.forget()
            with contextlib.suppress(FileNotFoundError):
                layout.current.unlink()
        else:
            say(f"go back to {version}")
            link(layout.current, layout.version(version))
            if not self._runs_untouched(version):
                config = self._read(version)
                self._lay_extras(version)
                self.service.lay(version, config)
                self.service.restart(config)
                self._prove_listeners(version, config)
        self.state.current, self.state.pending = version, None
        self.state.save()

    def _runs_untouched(self, version: str) -> bool:
        pid = self.service.pid()
        return pid is not None and self._version_of(pid) == version

    def _lay_extras(self, version: str) -> None:
        """The command, manual pages, completion and logrotate's file."""
        layout, share = self.layout, self.layout.share(version)
        links = {layout.command: layout.current / "bin/geosocks"}
        below = layout.current / "share/geosocks/etc"
        pages = [f"man/{page.name}" for page in sorted(share.glob("man/*.[1-8]"))]
        for where, name in (
            *((f"man/man{page[-1]}", page) for page in pages),
            ("bash-completion/completions", "completion/bash/geosocks"),
            ("zsh/site-functions", "completion/zsh/_geosocks"),
            ("fish/vendor_completions.d", "completion/fish/geosocks.fish"),
        ):
            if (share / name).exists():
                links[layout.share_local / where / Path(name).name] = below / name
        for place, target in links.items():
            if os.path.lexists(place) and str(place) not in self.state.made:
                detail(f"{place} is not ours, and stays")
                continue
            folder(place.parent, 0o755, self.state)
            self.state.note(place)
            link(place, target)
        rotate = share / "logrotate.d/geosocks"
        theirs = layout.logrotate.exists() and str(layout.logrotate) not in self.state.made
        if rotate.exists() and not theirs:
            folder(layout.logrotate.parent, 0o755, self.state)
            self.state.note(layout.logrotate)
            text = self.service.placed(rotate.read_text())
            write(layout.logrotate, text.encode(), 0o644)

    def _remove_old_versions(self) -> None:
        used = {self.state.current, self.state.previous}
        places = [p for p in self.layout.versions.iterdir() if p.is_dir() and p.name not in used]
        places.sort(key=lambda path: path.stat().st_mtime)
        for place in places[: max(0, len(places) + len(used - {None}) - KEPT)]:
            say(f"remove the old version {place.name}")
            (place / ".unfinished").touch()
            shutil.rmtree(place)

    # --- the other commands ---

    def rollback(self) -> None:
        """Put the version before, or another that is there, in force."""
        with self.alone():
            version = self.options.to or self.state.previous
            there = sorted(p.name for p in self.layout.versions.glob("*") if p.is_dir())
            if not self.state.is_installed or version is None:
                raise DeployError("there is no version to go back to", code=USAGE)
            if version not in there:
                known = ", ".join(there)
                raise DeployError(f"there is no version {version}; there are {known}", code=USAGE)
            if version == self.state.current:
                raise DeployError(f"{version} is in force", code=USAGE)
            if self.options.dry_run:
                self.step(f"put {version} in force in place of {self.state.current}, and prove it")
                return
            self._switch(version)

    def status(self) -> int:
        """Say what is installed and how it is; the exit code."""
        state, layout = self.state, self.layout
        if not state.is_installed:
            say("geosocks is not installed here")
            return NOT_INSTALLED
        others = [p.name for p in sorted(layout.versions.glob("*")) if p.name != state.current]
        say(f"version   {state.current}" + (f" (also: {', '.join(others)})" if others else ""))
        if state.pending:
            say("          a deploy was interrupted; the next one, or rollback, mends that")
        say(f"config    {layout.config}")
        for beside in sorted(layout.etc.glob("*.new")):
            say(f"          {beside.name}: a newer sample, to compare")
        say(f"service   {self.service.name}")
        pid = self.service.pid()
        if pid is None:
            say("state     does not run")
            detail(self.service.last_words())
            return NOT_RUNNING
        version = self._version_of(pid) or "?"
        say(
            f"state     runs as process {pid}"
            + ("" if version == state.current else f" ({version})")
        )
        try:
            listeners = self._read(state.current or "").listeners
            good = self._takes([(one, address_at(one, layout)) for one in listeners])
        except DeployError as error:
            say(f"          {error}")
            return FAILED
        for one in listeners:
            say(f"listener  {one.text.partition('?')[0]}: {', '.join(one.methods)}")
        say(f"          {'take' if good else 'do not all take'} connections")
        return 0 if good else FAILED

    def remove(self) -> None:
        """Take the service away; with --purge all that was ever made here, too."""
        with self.alone():
            state, layout = self.state, self.layout
            if not state.made:
                say("there is nothing to remove")
                return
            self.step(f"stop the service ({self.service.name})", self._stop)
            self.step("have the host forget the service", self.service.forget)
            kept = (layout.etc, layout.log, layout.lib, layout.state)
            files = [Path(text) for text in state.made if not text.endswith("/")]
            for path in [layout.versions, *(p for p in files if layout.etc not in p.parents)]:
                if os.path.lexists(path):
                    self.step(f"remove {path}", partial(remove_tree, path))
            if self.options.purge:
                self._purge()
                return
            say(f"{', '.join(str(path) for path in kept if path.exists())} and the user stay;")
            say("remove --purge takes them, too")
            if not self.options.dry_run:
                self._remove_empty()
                state.made = [text for text in state.made if os.path.lexists(text)]
                state.current = state.previous = None
                state.save()

    def _stop(self) -> None:
        self.service.stop()
        end_all(self.layout.root)

    def _purge(self) -> None:
        state, layout = self.state, self.layout
        # What the service manager makes for the service is ours as well.
        theirs = (layout.log, layout.run, layout.lib)
        for path in (layout.etc, *theirs, layout.root):
            if path.exists() and (path in theirs or f"{path}/" in state.made):
                self.step(f"remove {path}", partial(remove_tree, path))
        if not self.options.dry_run:
            self._remove_empty()
        self._remove_packages()
        # Kerberos keeps its replay cache there (MIT: "replay cache file types").
        replays = Path(f"/var/tmp/krb5_{self.who.uid}.rcache2")
        if state.user_made and replays.exists():
            self.step(f"remove {replays}", replays.unlink)
        if state.user_made:
            self.step(f"remove the user {USER}", lambda: run(["userdel", USER]))
        if state.group_made:
            # userdel has taken it along, where it was the user's own.
            self.step(f"remove the group {USER}", lambda: run(["groupdel", USER]))

    def _remove_packages(self) -> None:
        """Remove the packages that came for us, unless others have come to need them."""
        names = sorted({*self.state.packages} & installed_packages())
        if not names:
            return
        words = ["apt-get", *APT, "purge", *names]
        simulated = run([*words, "--simulate"], env=apt_environment()).stdout.decode()
        gone = {*re.findall(r"^(?:Remv|Purg) (\S+)", simulated, re.MULTILINE)}
        if gone != {*names}:
            say(f"other packages need some of {' '.join(names)}, which stay")
            return
        self.step(
            f"remove the Debian packages {' '.join(names)}",
            lambda: must(words, "apt-get purge", env=apt_environment()),
        )

    def _remove_empty(self) -> None:
        for text in reversed(self.state.made):
            if text.endswith("/"):
                with contextlib.suppress(OSError):  # there are other things in it by now
                    os.rmdir(text)


APT = ("-qq", "--yes", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120")


def apt_environment() -> dict[str, str]:
    """For apt-get: it shall ask nothing."""
    return {**pip_environment(), "DEBIAN_FRONTEND": "noninteractive"}


def installed_packages() -> set[str]:
    """The names of the Debian packages that are there."""
    if shutil.which("dpkg-query") is None:
        return set()
    done = run(["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n"])
    lines = [line.split() for line in done.stdout.decode(errors="replace").splitlines()]
    return {words[0] for words in lines if words[1:] == ["installed"]}


def remove_tree(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
        return
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def lines_of(proofs: Sequence[Proof]) -> str:
    return "\n".join(str(proof) for proof in proofs)


def address_at(listener: Listener, layout: Layout) -> tuple[int, Any]:
    """Where a listener of the service is; systemd's is where its socket unit has it."""
    if not listener.is_handed_over:
        return listener.address()
    unit = layout.prefix / "etc/systemd/system/geosocks.socket"
    texts = [unit, *sorted(unit.with_name(f"{unit.name}.d").glob("*.conf"))]
    found = re.findall(
        r"^ListenStream=(.+)$", "\n".join(p.read_text() for p in texts), re.MULTILINE
    )
    if not found:
        raise DeployError(f"{unit} has no ListenStream")
    text = found[-1] if not found[-1].startswith("/") else f"unix:{found[-1]}"
    text = f"0.0.0.0:{text}" if text.isdecimal() else text
    return Listener(text, ()).address()


def refuse_taken_ports(config: Config) -> None:
    """See that nobody else has what the service is to listen on."""
    page = config.one("admin")
    for listener in (*config.listeners, *([Listener(page, ())] if page else [])):
        if listener.is_handed_over:
            continue
        family, address = listener.address()
        if family == socket.AF_UNIX:
            continue
        with socket.socket(family) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(address)
                sock.listen(1)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise DeployError(
                        f"another program listens on {listener.place}",
                        f"end it, or change the configuration, {config.path}",
                        TEMPORARY,
                    ) from None


def must_make_venv(python: str, place: Path, pip: bool) -> None:
    how = [] if pip else ["--without-pip"]
    must([python, "-m", "venv", *how, place], "making a virtual environment")


def unpack(packed: Path, place: Path, python: str) -> None:
    """Make a version out of the single file: needs neither pip nor a network."""
    must_make_venv(python, place, False)
    packages = next(place.glob("lib/python*/site-packages"))
    with zipfile.ZipFile(packed) as archive:
        for info in archive.infolist():
            folder, _, name = info.filename.partition("/")
            if folder != "site-packages" or info.is_dir():
                continue
            parts = Path(name).parts
            if ".." in parts or not parts:
                raise DeployError(f"{packed} has a strange file inside: {info.filename}")
            target = place.joinpath(*parts) if parts[0] == "share" else packages.joinpath(*parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(info))
    script = place / "bin/geosocks"
    lines = (
        f"#!{place}/bin/python",
        "import sys",
        "from geosocks.cli import main",
        "sys.exit(main())",
    )
    script.write_text("\n".join((*lines, "")))
    script.chmod(0o755)


# --- the command line -------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    every = argparse.ArgumentParser(add_help=False)
    every.add_argument(
        "--prefix",
        "--root",
        default="/",
        metavar="DIR",
        help="work below this folder, to try it out",
    )
    every.add_argument("--service", choices=("auto", *SERVICES), default="auto")
    every.add_argument("--dry-run", action="store_true", help="say each step, and change nothing")
    fresh = argparse.ArgumentParser(add_help=False)
    add = fresh.add_argument
    add(
        "--from",
        dest="source",
        metavar="SOURCE",
        help="wheel, checkout, geosocks.pyz, name==version",
    )
    add("--wheels", metavar="DIR", help="take packages from this folder, not from an index")
    add("--constraints", metavar="FILE", help="versions of packages to take (pip's format)")
    add("--python", metavar="PATH", help="the interpreter to make the version with")
    add("--kerberos", action="store_true", help="with GSSAPI, which is built here (Debian: by apt)")
    add("--no-packages", action="store_true", help="install no Debian packages")
    proofs = argparse.ArgumentParser(add_help=False)
    proofs.add_argument("--prove-as", metavar="USER", help="prove method username as this user")
    proofs.add_argument("--password-file", metavar="FILE", help="the user's password; mode 0600")
    top = argparse.ArgumentParser(prog="deploy.py", description=(__doc__ or "").partition("\n")[0])
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    install = commands.add_parser(
        "install", parents=[every, fresh, proofs], help=Deploy.install.__doc__
    )
    add = install.add_argument
    add("--listen", action="append", metavar="ADDR:PORT", help="for a fresh configuration")
    add("--config", metavar="FILE", help="a configuration to begin with")
    add("--rules", metavar="FILE", help="rules to begin with")
    add("--users", metavar="FILE", help="a users file to begin with")
    add("--keytab", metavar="FILE", help="a keytab to begin with")
    add(
        "--add-user", metavar="NAME", help="a first user; asks for the password, or --password-file"
    )
    commands.add_parser("upgrade", parents=[every, fresh, proofs], help=Deploy.upgrade.__doc__)
    back = commands.add_parser("rollback", parents=[every, proofs], help=Deploy.rollback.__doc__)
    back.add_argument("--to", metavar="VERSION", help="(default: the one before)")
    commands.add_parser("status", parents=[every], help=Deploy.status.__doc__)
    remove = commands.add_parser("remove", parents=[every], help=Deploy.remove.__doc__)
    remove.add_argument("--purge", action="store_true", help="configuration, logs and user, too")
    top.set_defaults(**dict.fromkeys(("add_user", "listen", "config", "rules", "users", "keytab")))
    top.set_defaults(prove_as=None, password_file=None)
    return top


def interrupted(number: int, frame: object) -> None:
    """TERM and HUP end a deploy as Ctrl-C does: it goes back first."""
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0, 1 failed, 2 usage, 75 another deploy is at work."""
    options = parser().parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    os.umask(0o022)
    try:
        return getattr(Deploy(options), options.command)() or 0
    except DeployError as error:
        print(f"deploy.py: {error}", file=sys.stderr)
        if error.cure:
            print(f"deploy.py: {error.cure}", file=sys.stderr)
        return error.code
    except OSError as error:
        print(f"deploy.py: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("deploy.py: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
