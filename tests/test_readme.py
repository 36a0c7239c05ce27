"""What README.md and etc/ tell is so: every snippet is run, every table compared with the code.

A snippet is run as it stands, in a folder of its section's own, but for ``Place.here``: addresses,
hosts and paths of the page become those of this test run.  A server is really started, on a free
port; ``www.example.org`` is a web server on loopback.  A language or a command that nobody here
knows how to run fails the test, so that nothing untested gets onto the page.  What needs root or
another host is looked at: whether the files, options and verbs that it names are there.
"""

import ast
import json
import logging
import os
import re
import shlex
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from argparse import ArgumentParser, ArgumentTypeError, _SubParsersAction
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from io import StringIO
from ipaddress import ip_address
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest

import geosocks
from geosocks import Address, Client, Policy, RuleSet, entrance, limits, master, scores
from geosocks import events as events_module
from geosocks.admin import access, app, http, page
from geosocks.admin.access import read_token
from geosocks.auth.gss import GssCredential
from geosocks.cli import COMMANDS
from geosocks.cli.ctl import live
from geosocks.codes import Cmd, Method
from geosocks.config import NEEDS_RESTART, Settings, listen_option, load_settings, shown
from geosocks.errors import AuthFailed, ConfigError, HostUnreachable, RequestDenied
from geosocks.events import Event, SessionEvent, event_name
from geosocks.guard import WORDS
from geosocks.logs.lines import told
from geosocks.metrics.cells import Cells
from geosocks.metrics.collector import SlabCollector
from geosocks.rules import Effects, Question, Verdict
from geosocks.rules.lines import CONDITIONS, EFFECTS
from geosocks.shared import Layout
from geosocks.upstream import SCHEMES
from geosocks.wire.socks5 import IPAddress
from tests.support.certificates import Authority
from tests.support.kdc import SYSTEM_PLACES, Realm
from tests.support.net import unused_port
from tests.test_layers import FLOORS

ROOT: Final = Path(geosocks.__file__).parent.parent
README: Final = (ROOT / "README.md").read_text(encoding="utf-8")
URL: Final = "http://www.example.org/"
PAGE: Final = "the page\n"
PASSWORD: Final = "wonder"
SECONDS: Final = 20.0


# --- the page ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Snippet:
    """A fenced block: its language, its text, the line it begins at, the section it stands in."""

    language: str
    text: str
    line: int
    section: str


def snippets_of(page: str) -> Iterator[Snippet]:
    """Every fenced block of a page."""
    section, language, begin = "", None, 0
    block: list[str] = []
    for number, line in enumerate(page.splitlines(), 1):
        if language is None and line.startswith("## "):
            section = line[3:]
        elif language is None and line.startswith("```"):
            language, begin, block = line[3:], number + 1, []
        elif line == "```":
            assert language is not None
            yield Snippet(language, "\n".join(block) + "\n", begin, section)
            language = None
        else:
            block.append(line)
    assert language is None, "a fence is not closed"


SNIPPETS: Final = list(snippets_of(README))
KERBEROS: Final = {"Kerberos", "Through another proxy"}
"""Sections that need a realm."""

SECTIONS: Final = [
    pytest.param(list(group), id=title, marks=[pytest.mark.kerberos] if title in KERBEROS else [])
    for title, group in groupby(SNIPPETS, lambda snippet: snippet.section)
]


def rows_under(heading: str, head: str = "") -> list[list[str]]:
    """The cells of the first table after ``heading``, without its head; back-quotes removed.

    ``head`` is what the table's head begins with, where it is not the first.
    """
    lines = README.partition(f"\n{heading}\n")[2].splitlines()
    begins = (number for number, line in enumerate(lines) if line.startswith(f"| {head}"))
    begin = next(begins)
    table = []
    for line in lines[begin + 2 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
    return table


# --- where snippets run -----------------------------------------------------------------------


def load_script(name: str) -> ModuleType:
    """A program of scripts/, as a module."""
    spec = spec_from_file_location(f"readme_{name}", ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


DEPLOY: Final = load_script("deploy")


class Page(BaseHTTPRequestHandler):
    """A web server with one page."""

    def handle(self) -> None:
        """Serve a client, which may go away without a word."""
        with suppress(ConnectionResetError):
            super().handle()

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(PAGE.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def web_port() -> Iterator[int]:
    """The port of that web server, in a real thread: here one often waits for subprocesses."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


@dataclass
class Place:
    """A folder to run a section's snippets in, and the server that they talk to."""

    folder: Path
    web_port: int
    realm: Realm | None = None
    port: int = field(default_factory=unused_port)
    host: str = "127.0.0.1"
    server: subprocess.Popen[bytes] | None = None
    udp_port: int = field(default_factory=unused_port)
    gateway_port: int = field(default_factory=unused_port)
    page_port: int = field(default_factory=unused_port)
    gateway: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        commands = self.folder / "bin"
        commands.mkdir()
        script = commands / "geosocks"
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m geosocks "$@"\n')
        script.chmod(0o755)
        self.env = {
            **{name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
            "PATH": f"{commands}:{os.environ['PATH']}:{SYSTEM_PLACES}",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": str(self.folder),
            "RUNTIME_DIRECTORY": str(self.folder),
        }
        if self.realm is not None:
            self.env |= {**self.realm.env, "KRB5CCNAME": self.realm.ticket()}

    def here(self, text: str) -> str:
        """``text`` with what is true of the page's world made true of this one."""
        for there, here in (
            (URL, f"http://localhost:{self.web_port}/"),
            ("www.example.org:80", f"localhost:{self.web_port}"),
            ('"www.example.org", 80', f'"localhost", {self.web_port}'),
            ('"ftp.example.org", 21', '"localhost", 21'),
            ('"192.0.2.9", 7', f'"127.0.0.1", {self.udp_port}'),
            ("192.0.2.9:7", f"127.0.0.1:{self.udp_port}"),
            ("everywhere port http,https", f"everywhere port {self.web_port}"),
            ("0.0.0.0:1080", f"127.0.0.1:{self.port}"),
            ("127.0.0.1:1080", f"127.0.0.1:{self.port}"),
            ("127.0.0.1:9180", f"127.0.0.1:{self.page_port}"),
            ('"127.0.0.1", 1080', f'"127.0.0.1", {self.port}'),
            ("proxy.example.org:1080", f"{self.host}:{self.port}"),
            ("proxy.example.org", self.host),
            ("gw.example.org", f"localhost:{self.gateway_port}"),
            ("http://intranet.corp.example/", f"http://localhost:{self.web_port}/"),
            ("/etc/geosocks.keytab", str(self.folder / "keytab")),
            ("/etc/geosocks/backup.password", str(self.folder / "backup.password")),
            ("/run/geosocks/socks", str(self.folder / "socks")),
            ("~/geosocks-env/bin/geosocks", "geosocks"),
            ("gevent.sleep(60)", "gevent.sleep(0.05)"),
        ):
            text = text.replace(there, here)
        return text

    def run(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a program here."""
        return subprocess.run(
            words,
            cwd=self.folder,
            env=self.env,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def serve(self, *options: str) -> None:
        """Have ``geosocks serve`` run, on the free port where no option says otherwise."""
        self.stop()
        listen = f"127.0.0.1:{self.port}"
        self.server = self.start(listen, "log", options)
        if "--listen" in options:
            listen = options[options.index("--listen") + 1]
        self.wait_for_server(self.server, listen)

    def start(self, listen: str, log: str, options: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start ``geosocks serve``."""
        env = {"GEOSOCKS_LISTEN": listen, "GEOSOCKS_LOG_FILE": log, **self.env}
        words = [sys.executable, "-m", "geosocks", "serve", *options]
        return subprocess.Popen(words, cwd=self.folder, env=env)

    def wait_for_server(self, process: subprocess.Popen[bytes], listen: str) -> None:
        """Wait until it answers an offer of methods, whatever it answers."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and process.poll() is None:
            with (
                suppress(ConnectionRefusedError, FileNotFoundError),
                closing(self.dial(listen)) as client,
            ):
                client.sendall(b"\x05\x01\x00")
                assert client.recv(2)[:1] == b"\x05"
                return
            time.sleep(0.02)
        raise AssertionError(f"it does not serve; exit code {process.poll()}")

    def dial(self, listen: str) -> socket.socket:
        """Connect to a listener, written as ``--listen`` has it."""
        if listen.startswith("unix:"):
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(SECONDS)
            try:
                client.connect(listen.removeprefix("unix:"))
            except OSError:
                client.close()
                raise
            return client
        host, _, port = listen.removeprefix("tls://").rpartition(":")
        client = socket.create_connection((host, int(port)), timeout=SECONDS)
        if not listen.startswith("tls://"):
            return client
        context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        context.load_cert_chain(self.folder / "alice.pem")
        return context.wrap_socket(client, server_hostname=host)

    def need_server(self) -> None:
        """Some server is there: the last one begun, or one without options."""
        if self.server is None:
            self.serve()

    def need_gateway(self) -> None:
        """The company's gateway is there, which wants Kerberos."""
        if self.gateway is None:
            assert self.realm is not None
            listen = f"127.0.0.1:{self.gateway_port}"
            self.gateway = self.start(listen, "gateway.log", ["--keytab", self.realm.keytab])
            self.wait_for_server(self.gateway, listen)

    def stop(self) -> None:
        """End the server, as it ends when all is well."""
        if self.server is not None:
            server, self.server = self.server, None
            self.end(server, "log")

    def stop_all(self) -> None:
        """End the server, and the gateway."""
        self.stop()
        if self.gateway is not None:
            gateway, self.gateway = self.gateway, None
            self.end(gateway, "gateway.log")
            assert self.realm is not None
            closed = [line for line in self.log("gateway.log") if line["event"] == "session_closed"]
            assert f"alice@{self.realm.name}" in {line.get("identity") for line in closed}

    def end(self, server: subprocess.Popen[bytes], log: str) -> None:
        """End one, and see that its log has no errors."""
        server.terminate()
        assert server.wait(SECONDS) == 0
        for line in self.log(log):
            assert line["level"] in ("info", "warning"), line

    def log(self, name: str) -> list[dict[str, Any]]:
        """What it has logged."""
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, web_port: int) -> Iterator[Place]:
    """A new place; with a realm where the test is marked so."""
    with_realm = request.node.get_closest_marker("kerberos") is not None
    place = Place(tmp_path, web_port, request.getfixturevalue("realm") if with_realm else None)
    try:
        yield place
        place.stop_all()
    finally:
        for server in filter(None, (place.server, place.gateway)):
            server.kill()
            server.wait()


# --- files that a page takes to be there ------------------------------------------------------


def make_certificates(place: Place) -> None:
    """Those of an office: the proxy's, and a user's."""
    folder = place.folder / "office"
    folder.mkdir()
    authority = Authority(folder)
    shutil.copy(authority.ca, place.folder / "ca.pem")
    proxy = authority.sign("proxy", "/CN=proxy", f"IP:{place.host}")
    for name, signed in (("proxy", proxy), ("alice", authority.sign("alice", "/CN=alice"))):
        shutil.copy(signed.both, place.folder / f"{name}.pem")


def make_ticket(place: Place) -> None:
    """A key for the example in etc/examples, and a ticket for a year."""
    key = "a key of our office"
    program = (
        "import time; from pathlib import Path; from ticket_method import Ticket\n"
        f"ticket = Ticket.issue('alice', int(time.time()) + 31_536_000, {key.encode()})\n"
        "Path('alice.ticket').write_bytes(ticket.encode())\n"
    )
    place.env["PYTHONPATH"] = f"{ROOT / 'etc/examples'}:{ROOT}"
    (place.folder / "ticket.key").write_text(key + "\n")
    done = place.run(sys.executable, "-c", program)
    assert done.returncode == 0, done.stdout


def make_password(place: Place) -> None:
    """A file with a password."""
    path = place.folder / "backup.password"
    path.touch(0o600)
    path.write_text(PASSWORD + "\n")


FILES: Final[dict[str, Callable[[Place], None]]] = {
    "ca.pem": make_certificates,
    "alice.ticket": make_ticket,
    "ticket.key": make_ticket,
    "backup.password": make_password,
}


def make_files(place: Place, text: str) -> None:
    """Make those that ``text`` names."""
    for name, make in FILES.items():
        if name in text and not (place.folder / name).exists():
            make(place)


# --- languages --------------------------------------------------------------------------------


def run_sh(place: Place, text: str) -> None:
    """Run each line, those that a backslash joins as one."""
    make_files(place, text)
    if "gw.example.org" in text:
        place.need_gateway()
    for line in place.here(text).replace("\\\n", " ").splitlines():
        words = shlex.split(line)
        env = place.env
        while re.match("[A-Z_]+=", words[0]):
            name, _, value = words.pop(0).partition("=")
            place.env = {**place.env, name: value.replace("etc/examples", f"{ROOT}/etc/examples")}
            if name == "PYTHONPATH":
                place.env[name] += f":{ROOT}"
        assert words[0] in SHELL, f"nobody knows how to test {words[0]!r}"
        SHELL[words[0]](place, words)
        place.env = env


def run_console(place: Place, text: str) -> None:
    """Run each line after a ``$``, and compare what it prints."""
    _, *parts = re.split(r"^\$ ", place.here(text), flags=re.MULTILINE)
    assert parts
    for part in parts:
        line, _, printed = part.partition("\n")
        assert place.run("bash", "-c", line).stdout == printed


def run_python(place: Place, text: str) -> None:
    """Run a program: to its end, or if it serves for ever, until it has served a page."""
    words = (sys.executable, "-W", "error", "-c", place.here(text))
    if "serve_forever()" in text:
        place.stop()
        with subprocess.Popen(words, cwd=place.folder, env=place.env) as program:
            try:
                place.wait_for_server(program, f"127.0.0.1:{place.port}")
                get_page(place, "-x", f"socks5h://127.0.0.1:{place.port}", place.here(URL))
            finally:
                program.kill()
        return
    if "Server([" in text:
        place.stop()
    else:
        place.need_server()
    if "bound.accept(" in text:
        come_to_a_bind(place, words)
        return
    with udp_echo(place.udp_port) if ".associate(" in text else nullcontext():
        done = place.run(*words)
    assert done.returncode == 0, done.stdout
    assert bool(done.stdout) == ("print" in text), done.stdout
    assert "Traceback" not in done.stdout


def come_to_a_bind(place: Place, words: Sequence[str]) -> None:
    """Run a program that prints where its peer shall come to, and come."""
    with subprocess.Popen(
        words, cwd=place.folder, env=place.env, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        try:
            host, _, port = program.stdout.readline().rpartition(":")
            with socket.create_connection((host, int(port)), timeout=SECONDS) as peer:
                peer.sendall(b"220 at your service")
                assert "220 at your service" in program.stdout.read()
            assert program.wait(SECONDS) == 0
        finally:
            program.kill()


@contextmanager
def udp_echo(port: int) -> Iterator[None]:
    """Somebody sends a datagram back."""
    with socket.socket(type=socket.SOCK_DGRAM) as echo:
        echo.bind(("127.0.0.1", port))
        echo.settimeout(SECONDS)
        thread = threading.Thread(target=lambda: echo.sendto(*echo.recvfrom(100)))
        thread.start()
        yield
        thread.join()


def read_rules(place: Place, text: str) -> None:
    """Read rules, and save them as the page says; they name upstreams that the page has."""
    upstreams = re.findall(r"--upstream '(\w+)=", README)
    assert RuleSet.parse(text, "rules.conf", upstreams).rules
    (place.folder / "rules.conf").write_text(text)


def read_conf(place: Place, text: str) -> None:
    """Read a config file."""
    path = place.folder / "page.conf"
    path.write_text(text)
    loaded = load_settings(["--config", str(path)], {})
    assert sum(origin.startswith(str(path)) for origin in loaded.origins.values()) >= 1


def read_json(place: Place, text: str) -> None:
    """Compare log lines with the events that they tell of."""
    for line in text.splitlines():
        record = json.loads(line)
        kind = EVENTS[record["event"]]
        assert {*record} <= {"time", "level", "event", *kind.__dataclass_fields__}
        assert record["level"] == level_of(kind)


def read_log(place: Place, text: str) -> None:
    """Compare log lines for people with what the page's JSON lines are as such."""
    lines = set()
    for snippet in SNIPPETS:
        for line in snippet.text.splitlines() if snippet.language == "json" else ():
            facts = json.loads(line)
            level = "" if facts["level"] == "info" else f"{facts['level']}: "
            event = facts.pop("event")
            del facts["time"], facts["level"]
            lines.add(f"{level}{told(event, facts)}")
    for line in text.splitlines():
        stamp = re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d{4} ", line)
        assert stamp is not None
        assert line[stamp.end() :] in lines


def read_text(place: Place, text: str) -> None:
    """Compare lines of a proof with what scripts/deploy.py makes of them."""
    source = (ROOT / "scripts" / "deploy.py").read_text()
    for line in text.splitlines():
        result, method, where, said = re.fullmatch(  # type: ignore[union-attr]
            r" {4}(\w+) +(\w+) at ([\d.:]+): (.+)", line
        ).groups()
        assert str(DEPLOY.Proof(result, where, method, said)) == line.strip()
        assert result in (DEPLOY.PROVEN, DEPLOY.ANSWERS, DEPLOY.BROKEN)
        for phrase in re.split(r"(?<=\w)[:;] |X'|as rcmd/\S+: |FF' ", said):
            assert phrase.strip() in source, phrase


LANGUAGES: Final[dict[str, Callable[[Place, str], None]]] = {
    "sh": run_sh,
    "console": run_console,
    "python": run_python,
    "rules": read_rules,
    "conf": read_conf,
    "json": read_json,
    "log": read_log,
    "text": read_text,
}


# --- commands ---------------------------------------------------------------------------------


def a_script(place: Place, words: list[str]) -> None:
    """It is there; what it ends in is run, without the set-up, which scripts have tests for."""
    script = ROOT / words[0]
    assert os.access(script, os.X_OK)
    if words[0] == "scripts/run":
        assert 'geosocks" serve "$@"' in script.read_text()
        place.serve(*words[1:])


def a_bench(place: Place, words: list[str]) -> None:
    """It knows these options; tests/test_bench.py has it measure."""
    assert os.access(ROOT / words[0], os.X_OK)
    done = place.run(sys.executable, str(ROOT / words[0]), *words[1:], "--list")
    assert done.returncode == 0, done.stdout


def fetch(place: Place, words: list[str]) -> None:
    """curl gets the page."""
    place.need_server()
    get_page(place, *words[1:])


def get_page(place: Place, *options: str) -> None:
    """Run curl, without the settings of whoever runs this."""
    curl = shutil.which("curl")
    assert curl is not None, "apt-get install curl"
    done = place.run(curl, "-q", "-sS", "--max-time", "10", *options)
    assert (done.returncode, done.stdout) == (0, PAGE)


def a_browser(place: Place, words: list[str]) -> None:
    """The address that a browser is given is the server's; tests/e2e has real browsers."""
    place.need_server()
    option, _, url = words[1].partition("=")
    assert (option, len(words)) == ("--proxy-server", 2)
    assert Client.from_url(url).server == Address("127.0.0.1", place.port)


def make_venv(place: Place, words: list[str]) -> None:
    """Make the virtual environment, without pip for speed."""
    assert words[1:3] == ["-m", "venv"]
    words[-1] = words[-1].replace("~", str(place.folder))
    done = place.run(sys.executable, "-m", "venv", "--without-pip", *words[3:])
    assert done.returncode == 0, done.stdout


def pip(place: Place, words: list[str]) -> None:
    """What it would install is this project."""
    assert words[1:] == ["install", "."]
    assert (ROOT / "setup.py").is_file()


def our_command(place: Place, words: list[str]) -> None:
    """Serve, set a password, or run to a good end."""
    if words[1] == "serve":
        if "users" in words and not (place.folder / "users").exists():
            place.run(words[0], "passwd", "users", "alice", stdin=PASSWORD + "\n")
        place.serve(*words[2:])
        return
    if words[1] in ("check", "connect", "ctl"):
        place.need_server()
    with udp_echo(place.udp_port) if "--udp" in words else nullcontext():
        done = place.run(*words, stdin=PASSWORD + "\n" if words[1] == "passwd" else "")
    assert done.returncode == 0, done.stdout
    assert done.stdout


def kadmin(place: Place, words: list[str]) -> None:
    """Ask the realm's own KDC."""
    done = place.run("kadmin.local", *words[1:])
    assert done.returncode == 0, done.stdout
    assert "created" in done.stdout or "added to keytab" in done.stdout


def kinit(place: Place, words: list[str]) -> None:
    """Get a ticket in the realm that there is, with a file of its own to keep it in."""
    assert words == ["kinit", "alice@EXAMPLE.ORG"]
    assert place.realm is not None
    place.env["KRB5CCNAME"] = f"FILE:{place.folder / 'ccache'}"
    done = place.run("kinit", f"alice@{place.realm.name}", stdin=place.realm.password + "\n")
    assert done.returncode == 0, done.stdout


def deploy(place: Place, words: list[str]) -> None:
    """The script understands this; tests/test_deploy.py and others run it."""
    assert os.access(ROOT / words[0], os.X_OK)
    DEPLOY.parser().parse_args(words[1:])


def as_root(place: Place, words: list[str]) -> None:
    """Not here: what is to be run is looked at."""
    assert words[1] == "scripts/deploy.py"
    deploy(place, words[1:])


def our_python(place: Place, words: list[str]) -> None:
    """A script that tests of its own run."""
    done = place.run(sys.executable, str(ROOT / words[1]), *words[2:], "--help")
    assert done.returncode == 0, done.stdout


def single_file(place: Place, words: list[str]) -> None:
    """As the command itself, which tests/test_single_file.py runs out of the file."""
    assert "dist/geosocks.pyz" in (ROOT / "scripts" / "build_single_file.py").read_text()
    our_command(place, ["geosocks", *words[1:]])


UNITS: Final = ROOT / "etc" / "systemd"


def systemctl(place: Place, words: list[str]) -> None:
    """The unit is there, and is one to be enabled; tests/etc has a systemd that does it."""
    match words[1:]:
        case ["daemon-reload"]:
            pass
        case ["enable", "--now", unit]:
            assert "\n[Install]\nWantedBy=" in (UNITS / unit).read_text()
        case _:
            raise AssertionError(f"nobody knows how to test {words}")


def copy(place: Place, words: list[str]) -> None:
    """What is to be copied is there, and units go where systemd looks for them."""
    *sources, target = words[1:]
    assert target == "/etc/systemd/system/"
    assert {ROOT / source for source in sources} == {*UNITS.iterdir()}


def a_program(place: Place, words: list[str]) -> None:
    """Run it here, what it prints going to a file where the page has it so."""
    name = words[0]
    assert shutil.which(name) is not None, f"apt-get install {name}"
    *words, arrow, target = words if ">" in words else [*words, ">", os.devnull]
    assert arrow == ">"
    done = place.run(*words)
    assert done.returncode == 0, done.stdout
    if target != os.devnull:
        (place.folder / target).write_text(done.stdout)
    if words[0] == "chmod":
        assert read_token(place.folder / words[-1])


def read_manual(place: Place, words: list[str]) -> None:
    """The page is there; tests/etc/test_manual.py reads all of them."""
    assert words[1] == "-l"
    assert (ROOT / words[2]).read_text().startswith(".")


def load_completion(place: Place, words: list[str]) -> None:
    """bash takes it, and then knows how to complete our command."""
    done = place.run("bash", "-c", f"source '{ROOT / words[1]}' && complete -p geosocks")
    assert done.returncode == 0, done.stdout


def ssh(place: Place, words: list[str]) -> None:
    """ssh understands its options, and the ProxyCommand leads where ssh wants to go."""
    if words[2:4] == ["python3", "-"]:
        assert words[-2] == "<"
        deploy(place, [words[-1], *words[4:-2]])
        return
    place.need_server()
    program = shutil.which("ssh")
    assert program is not None, "apt-get install openssh-client"
    options = dict(
        line.split(" ", 1) for line in place.run(program, "-G", *words[1:]).stdout.splitlines()
    )
    assert options["user"] == "alice"
    command = options["proxycommand"].replace("%h", "localhost").replace("%p", str(place.web_port))
    done = place.run("bash", "-c", f"exec {command}", stdin="GET / HTTP/1.0\r\n\r\n")
    assert done.stdout.endswith(PAGE)


SHELL: Final[dict[str, Callable[[Place, list[str]], None]]] = {
    "scripts/run": a_script,
    "scripts/test": a_script,
    "scripts/bench.py": a_bench,
    "curl": fetch,
    "chromium": a_browser,
    "python3": make_venv,
    "sudo": as_root,
    ".venv/bin/python": our_python,
    "dist/geosocks.pyz": single_file,
    "systemctl": systemctl,
    "cp": copy,
    "openssl": a_program,
    "chmod": a_program,
    "man": read_manual,
    "source": load_completion,
    "~/geosocks-env/bin/pip": pip,
    "geosocks": our_command,
    "kadmin": kadmin,
    "kinit": kinit,
    "ssh": ssh,
}


@pytest.mark.parametrize("snippets", SECTIONS)
def test_every_snippet_of_a_section_runs(place: Place, snippets: list[Snippet]) -> None:
    for snippet in snippets:
        where = f"README.md:{snippet.line}"
        assert snippet.language in LANGUAGES, f"{where}: nobody runs {snippet.language!r}"
        try:
            LANGUAGES[snippet.language](place, snippet.text)
        except Exception as error:
            error.add_note(where)
            raise


def test_a_snippet_that_nobody_can_run_would_fail(place: Place) -> None:
    [snippet] = snippets_of("## There\n```ruby\nputs 1\n```\n")
    with pytest.raises(AssertionError, match="nobody runs 'ruby'"):
        test_every_snippet_of_a_section_runs(place, [snippet])
    with pytest.raises(AssertionError, match="nobody knows how to test 'rm'"):
        run_sh(place, "rm -r .\n")


@pytest.mark.kerberos
def test_our_client_refuses_a_server_that_grants_clear_as_the_page_says(
    place: Place, realm: Realm
) -> None:
    options = [line for line in README.splitlines() if "--gss-grant clear" in line]
    _, _, *words = shlex.split(options[0].replace("/etc/geosocks.keytab", realm.keytab))
    place.serve(*words)
    credential = GssCredential("localhost", ccache=realm.ticket())
    with pytest.raises(AuthFailed, match="clear only"):
        Client(("localhost", place.port), [credential]).connect(("localhost", place.web_port))


# --- what the page says beside its snippets ---------------------------------------------------


EVENTS: Final[dict[str, type[Event]]] = {
    event_name(kind): kind
    for kind in vars(events_module).values()
    if isinstance(kind, type) and issubclass(kind, Event) and kind not in (Event, SessionEvent)
}


def level_of(kind: type[Event]) -> str:
    """As a log line has it."""
    return logging.getLevelName(kind.level).lower()


def test_the_events_are_those_that_are_told_with_their_levels() -> None:
    written = {name: level for name, level, _ in rows_under("### Log")}
    assert written == {name: level_of(kind) for name, kind in EVENTS.items()}


def test_the_commands_are_those_that_there_are() -> None:
    assert [row[0].split()[1] for row in rows_under("## Install")] == list(COMMANDS)


@cache
def options_of(command: str) -> frozenset[str]:
    """The options that a command's help names, and the help of each of its verbs, if it has any."""
    text = help_of(command)
    verbs = re.findall(r"^    ([a-z-]+) +", text.partition("\nverbs:\n")[2], re.MULTILINE)
    text += "".join(help_of(command, verb) for verb in verbs)
    return frozenset(re.findall(r"--[a-z][a-z-]*", text))


def help_of(command: str, *verb: str) -> str:
    """What it prints for ``--help``."""
    printed = StringIO()
    with redirect_stdout(printed), pytest.raises(SystemExit) as end:
        import_module("geosocks.cli." + command.replace("-", "_")).main([*verb, "--help"])
    assert end.value.code == 0
    return printed.getvalue()


OTHERS: Final = frozenset({"--ftp-port", "--now", "--proxy", "--proxy-server", "--socks4a"})
"""Options of other people's programs."""


def options_to_deploy() -> frozenset[str]:
    """The options that scripts/deploy.py has."""
    return frozenset().union(
        *(command._option_string_actions for command in deploy_commands().values())
    )


def deploy_commands() -> dict[str, ArgumentParser]:
    """The commands that scripts/deploy.py has."""
    [commands] = [a for a in DEPLOY.parser()._actions if isinstance(a, _SubParsersAction)]
    return dict(commands.choices)


def test_every_option_on_the_page_exists() -> None:
    bench_has = re.findall(r'"(--[a-z]+)"', (ROOT / "scripts" / "bench.py").read_text())
    ours = options_to_deploy().union(bench_has, *(options_of(command) for command in COMMANDS))
    unknown = {*re.findall(r"(?<![\w-])--[a-z][a-z-]*", README)} - ours - OTHERS
    assert not unknown


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_on_the_page_is_of_the_command_beside_it(command: str) -> None:
    for line in re.findall(rf"geosocks {command} ([^`\n]*)", README):
        assert {*re.findall(r"(?<![\w-])--[a-z][a-z-]*", line)} <= options_of(command)


def test_the_defaults_on_the_page_are_the_true_ones() -> None:
    defaults = shown_defaults()
    rows = rows_under("### Options")
    assert len(rows) > 20
    for option, default, _ in rows:
        name = option.split()[0].removeprefix("--")
        assert name in defaults
        if default.split() == [default]:  # a value, not words about one
            assert defaults[name] == (None if default == "any" and name == "outgoing" else default)
        else:
            assert defaults[name] is None or name == "methods"


def test_the_settings_of_a_listener_are_those_that_there_are() -> None:
    sentence = README.partition("in place of the options:")[2].partition(".")[0]
    told = re.findall(r"`([a-z-]+)`", sentence)
    for setting in told:
        listen_option(f"127.0.0.1:1080?{setting}={EXAMPLES.get(setting, 'x')}")
    with pytest.raises(ArgumentTypeError) as refused:
        listen_option("127.0.0.1:1080?colour=red")
    known = str(refused.value).partition("it has ")[2].split(", ")
    assert {*told, "name", "mode"} == {*known}


EXAMPLES: Final = {
    "methods": "none",
    "gss-levels": "integrity",
    "gss-grant": "clear",
    "gss-nec": "true",
    "gss-unsequenced": "true",
    "gss-map": "strip:EXAMPLE.ORG",
}


def test_the_kinds_of_upstream_are_those_that_there_are() -> None:
    told = {kind for kind, _ in rows_under("## Through another proxy")}
    schemes = {scheme for kind in told for scheme in re.findall(r"([a-z0-9+]+)://", kind)}
    assert schemes | {"socks5h+tls"} == {*SCHEMES}


def test_the_commands_to_deploy_are_those_that_there_are() -> None:
    commands = deploy_commands()
    rows = [row[0] for row in rows_under("### From nothing to a service")]
    for row in rows:
        DEPLOY.parser().parse_args(shlex.split(re.sub(r"[\[\]]", "", row))[1:])
    assert {row.split()[1] for row in rows} == {*commands}


def test_the_verbs_of_ctl_are_those_that_there_are_with_their_options() -> None:
    rows = rows_under("### Asking a running server")
    verbs = re.findall(r"^    ([a-z-]+) +", help_of("ctl").partition("\nverbs:\n")[2], re.MULTILINE)
    assert [verb for verb, _ in rows] == verbs
    for verb, text in rows:
        printed = help_of("ctl", verb)
        assert all(option in printed for option in re.findall(r"--[a-z]+", text))


def test_the_metrics_are_those_that_there_are() -> None:
    layout = Layout()
    collector = SlabCollector(Cells.take(layout), layout.slab(1), "")
    there = {}
    for metric in collector.collect():
        suffix = {"counter": "_total", "info": "_info"}.get(metric.type, "")
        names = {*metric.samples[0].labels} - {"worker", "le"}
        there[metric.name.removeprefix("geosocks_") + suffix] = (
            ",".join(sorted(names)) if metric.type == "counter" else ""
        )
    cells = [row[0] for row in rows_under("### Status page and metrics", "Metric")]
    pairs = re.findall(r"(\w+)(?:\{([\w,]+)\})?(?:, |$)", "\n".join(cells), re.MULTILINE)
    told = {name: ",".join(sorted(filter(None, labels.split(",")))) for name, labels in pairs}
    assert told == there


def test_the_paths_of_the_status_page_are_those_that_there_are() -> None:
    [known] = re.findall(r'there are ([^"]+)"', (ROOT / "geosocks/admin/app.py").read_text())
    told = [row[0].partition("?")[0] for row in rows_under("### Status page and metrics")]
    assert re.split(", | and ", known) == told


@pytest.mark.parametrize(
    ("sentence", "figures"),
    [
        ("page needs no script", f"every {page.REFRESH} s"),
        ("The status page** shows", f"{http.MOST} connections of {http.SECONDS:g} s"),
        ("Elsewhere it needs a token", f"of {access.LEAST} or more characters"),
        ("/sessions?limit=N", f"{app.SESSIONS} if not told"),
        ("slow when the request is not there", {1.0: "a second"}[entrance.SLOW_AFTER]),
        ("failures to authenticate are free", f"every {scores.FADE:g} seconds"),
        ("failures to authenticate are free", f"waits, {scores.LONGEST_DELAY:g} seconds"),
        (
            "failures to authenticate are free",
            f"{entrance.FIRST_REFUSAL:g} seconds, {2 * entrance.FIRST_REFUSAL:g}, 20, "
            f"up to {entrance.LONGEST_REFUSAL / 60:g} minutes",
        ),
        ("Ten failures", {10: "Ten"}[scores.FREE]),
        ("keeps dying is replaced", f"up to {master.LONGEST_PAUSE:g} seconds"),
        ("in a row do not live to serve", {5: "five"}[master.HOPELESS]),
        ("than once a second at more than", {1000: "a thousand sessions"}[live.CALM]),
        ("the last three are kept", {3: "three"}[DEPLOY.KEPT]),
    ],
)
def test_the_figures_on_the_page_are_those_of_the_code(sentence: str, figures: str) -> None:
    text = " ".join(README.split())
    begin = text.index(sentence)
    assert figures in text[max(0, begin - 40) : begin + 500]


def test_the_limits_of_an_embedder_are_made_as_the_page_says() -> None:
    known = {"Policy": Policy, "Limits": limits.Limits, "Entrance": entrance.Entrance}
    known |= {"Verdict": Verdict, "Effects": Effects, "addresses": ()}
    [part] = re.findall(r"^And limits: .+?\n\n", README, re.MULTILINE | re.DOTALL)
    policy, verdict = (
        eval(text, known)  # the page's own words
        for text in re.findall(r"`((?:Policy|Verdict)\([^`]+)`", part)
    )
    assert (policy.limits.per_user, policy.entrance.start, policy.entrance.full) == (50, 500, 1000)
    assert verdict.effects.sessions == 3
    assert {*re.findall(r"`(\w+)`", part)} == {"LimitStore", "take", "give_back"}
    assert {"take", "give_back"} < {*vars(limits.LimitStore)}


def test_what_the_page_says_of_units_is_in_them() -> None:
    text = "".join(path.read_text() for path in UNITS.iterdir())
    part = README.partition("### As a service, by hand")[2].partition("### Several")[0]
    for setting in re.findall(r"`([A-Z][A-Za-z]+=[^`]*)`", part):
        assert setting in text, setting
    assert "WatchdogSec=30\n" in text
    assert "/opt/geosocks/current/" in text
    assert "\nUser=geosocks\n" in text
    assert "\nListenStream=127.0.0.1:1080\n" in text
    assert "\nFileDescriptorName=socks\n" in text
    assert f"\nTimeoutStopSec={int(load_settings([], {}).settings.drain) + 15}\n" in text


def test_what_the_page_says_of_the_init_script_is_in_it() -> None:
    text = (ROOT / "etc/init.d/geosocks").read_text()
    [verbs] = re.findall(r"It takes (.+?), with the exit codes", README, re.DOTALL)
    known = {
        word
        for words in re.findall(r"^    ([a-z| -]+)\)$", text, re.MULTILINE)
        for word in words.split(" | ")
    }
    assert {*re.findall("`([a-z-]+)`", verbs)} | {"condrestart"} == known
    assert "/etc/default/geosocks" in text
    assert "LOG_FILE=/var/log/geosocks/geosocks.log\n" in text


def test_the_last_line_of_the_figures_is_what_the_others_make_it() -> None:
    rows = rows_under("## How fast it is")
    [ours, *others, told] = [row[1:] for row in rows]
    for number, cell in enumerate(told):
        known = [row[number].split()[0] for row in others if row[number][:1].isdigit()]
        least = min(map(float, known))
        ratio = float(ours[number].strip("*")) / least
        assert abs(float(cell) - ratio) < 0.03  # of figures that are rounded, as ours is


def test_the_variables_on_the_page_exist() -> None:
    names = {f"GEOSOCKS_{dest.upper()}" for dest in Settings.__dataclass_fields__}
    connect = (ROOT / "geosocks/cli/connect.py").read_text()
    facts = {fact for kind in EVENTS.values() for fact in kind.__dataclass_fields__}
    names |= {f"GEOSOCKS_{fact.upper()}" for fact in ("event", *facts)}  # in the journal
    names |= set(re.findall(r'"(GEOSOCKS_\w+)"', (ROOT / "setup.py").read_text()))
    for variable in re.findall(r"GEOSOCKS_[A-Z_]+", README):
        assert variable in names or variable == "GEOSOCKS_NAME" or f'"{variable}"' in connect


def test_the_floors_on_the_page_are_the_true_ones() -> None:
    for floors, parts, _ in rows_under("## Development"):
        first, *last = map(int, re.findall(r"\d+", floors))
        span = FLOORS[first : (last[0] if last else first) + 1]
        assert {part.strip(" /") for part in parts.split(",")} == {
            part for floor in span for part in floor
        }


def test_links_lead_somewhere_and_the_version_has_its_changes() -> None:
    headings = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in headings}
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.removeprefix("#") in anchors or (ROOT / target).exists()
    assert f"\n### {geosocks.__version__}\n" in README.partition("\n## Changes\n")[2]


def test_what_pip_brings_is_what_the_page_says() -> None:
    setup = (ROOT / "setup.py").read_text()
    tree = ast.parse(setup)
    [needs] = [
        ast.literal_eval(keyword.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "install_requires"
    ]
    sentence = README.partition("This brings ")[2].partition(".")[0].lower()
    named = set(re.split(r", | and ", sentence))
    assert named == {re.split("[<>=]", need)[0] for need in needs}
    extras = {extra for extra, _ in rows_under("## Install", "Extra")}
    assert {*re.findall(r'^ +"(\w+)": \[', setup, re.MULTILINE)} == extras | {"dev"}
    [some] = re.findall(r"'\.\[([\w,]+)\]'", README)
    assert {*some.split(",")} <= extras


# --- etc/geosocks.conf ------------------------------------------------------------------------

CONF: Final = ROOT / "etc" / "geosocks.conf"


def shown_defaults() -> dict[str, str | None]:
    """Each option and its default as a config file writes it, None where there is none."""
    values: dict[str, str | None] = {}
    for line in shown(load_settings([], {})).splitlines():
        name, value = re.match(r"(?:# )?([a-z0-9-]+) =(.*)# default$", line).groups()  # type: ignore[union-attr]
        values[name] = None if line.startswith("#") else value.strip()
    return values


def sample() -> dict[str, tuple[str, str]]:
    """Each option in the sample file: its value there, and the comment above it."""
    found: dict[str, tuple[str, str]] = {}
    above: list[str] = []
    for line in CONF.read_text(encoding="utf-8").splitlines():
        option = re.fullmatch(r"#([a-z0-9-]+) = (.+)", line)
        if option:
            assert option[1] not in found, f"{option[1]} stands twice"
            found[option[1]] = option[2], " ".join(above)
        above = [*above, line[2:]] if line.startswith("# ") else []
    return found


def test_every_option_stands_in_the_sample_file_with_help_and_its_true_default() -> None:
    options, defaults = sample(), shown_defaults()
    assert {*options} == {*defaults}
    for name, (value, words) in options.items():
        assert len(words.split()) > 4, f"{name} has no line of help"
        if defaults[name] is None:
            assert "None by default" in words, name
        else:
            assert "None by default" not in words, name
            assert value == defaults[name], name


def test_the_sample_file_is_accepted_and_sets_nothing(place: Place) -> None:
    done = place.run("geosocks", "serve", "--config", str(CONF), "--check-config")
    assert (done.returncode, done.stdout) == (0, "configuration is good\n")
    loaded = load_settings(["--config", str(CONF)], {})
    assert set(loaded.origins.values()) == {"default"}


@pytest.mark.parametrize("name", sample())
def test_each_line_of_the_sample_file_can_be_put_in_force(name: str, tmp_path: Path) -> None:
    path = tmp_path / "one.conf"
    value, _ = sample()[name]
    more = {
        "gss-grant": "gss-levels = confidentiality,integrity,clear\n",
        "admin-token-file": "admin = 127.0.0.1:9180\n",
        "tls-cert": "listen = tls://127.0.0.1:1080\n",
        "tls-key": "listen = tls://127.0.0.1:1080\ntls-cert = x\n",
        "tls-client-ca": "listen = tls://127.0.0.1:1080\ntls-cert = x\n",
    }.get(name, "")
    path.write_text(f"{name} = {value}\n{more}")
    assert load_settings(["--config", str(path)], {}).origins[name.replace("-", "_")] == f"{path}:1"


def test_what_the_sample_file_says_of_reloads_is_so() -> None:
    said = re.sub(r"\n# ?", " ", CONF.read_text()).partition("except ")[2].partition(":")[0]
    named, rest = said.split(" and ")
    assert rest == "the log options"
    log_options = [name for name in Settings.__dataclass_fields__ if name.startswith("log_")]
    assert {*NEEDS_RESTART} == {*named.replace("-", "_").split(", "), *log_options}


# --- etc/rules.conf ---------------------------------------------------------------------------

RULES: Final = ROOT / "etc" / "rules.conf"
PUBLIC: Final = "93.184.215.14"
BOOK: Final = {
    "www.example.org": PUBLIC,
    "example.org": PUBLIC,
    "notexample.org": PUBLIC,
    "wiki.intranet.example": "10.1.2.3",
    "odd.intranet.example": "172.16.0.1",
    "trap.example.org": "169.254.169.254",
}


class Book:
    """A resolver that knows a few names."""

    def resolve(self, name: str) -> tuple[IPAddress, ...]:
        """Look it up."""
        if name not in BOOK:
            raise HostUnreachable(name)
        return (ip_address(BOOK[name]),)


def judge(rules: RuleSet, source: str, to: str, port: int, user: str = "") -> bool:
    """Whether a request is allowed; a user with a realm has come by GSSAPI."""
    method = (Method.GSSAPI if "@" in user else Method.USERNAME) if user else Method.NONE
    destination = Address(to, port)
    question = Question(
        Address(source, 40000), user or None, method, Cmd.CONNECT, destination, Book()
    )
    try:
        return rules.judge(question).allowed
    except RequestDenied:
        return False


@pytest.mark.parametrize(
    ("source", "to", "port", "allowed"),
    [
        ("127.0.0.1", PUBLIC, 443, True),
        ("::1", "www.example.org", 80, True),
        ("127.0.0.1", PUBLIC, 25, False),
        ("127.0.0.1", PUBLIC, 465, False),
        ("127.0.0.1", PUBLIC, 587, False),
        ("127.0.0.1", "127.0.0.1", 80, False),
        ("127.0.0.1", "192.168.1.1", 80, False),
        ("127.0.0.1", "169.254.169.254", 80, False),
        ("127.0.0.1", "trap.example.org", 80, False),
        ("192.168.1.9", PUBLIC, 443, False),
    ],
)
def test_the_rules_as_shipped(source: str, to: str, port: int, allowed: bool) -> None:
    assert judge(RuleSet.parse(RULES.read_text()), source, to, port) is allowed


def all_rules() -> RuleSet:
    """The rules with those that stand there to be taken in."""
    text = re.sub(r"^#(?=group |allow |deny )", "", RULES.read_text(), flags=re.MULTILINE)
    assert text != RULES.read_text()
    return RuleSet.parse(text, "rules.conf")


@pytest.mark.parametrize(
    ("source", "to", "port", "user", "allowed"),
    [
        ("198.51.100.7", PUBLIC, 443, "alice", True),
        ("198.51.100.7", PUBLIC, 22, "alice", False),
        ("198.51.100.7", PUBLIC, 443, "mallory", False),
        ("198.51.100.7", PUBLIC, 25, "alice", False),
        ("198.51.100.7", "wiki.intranet.example", 22, "bob", True),
        ("198.51.100.7", "odd.intranet.example", 22, "bob", False),
        ("198.51.100.7", "10.9.9.9", 22, "carol@EXAMPLE.ORG", True),
        ("198.51.100.7", "192.168.7.9", 22, "dave@EXAMPLE.ORG", True),
        ("198.51.100.7", "192.168.7.9", 23, "dave@EXAMPLE.ORG", False),
        ("198.51.100.7", "192.168.7.9", 22, "dave", False),
        ("192.168.7.5", "example.org", 22, "", True),
        ("192.168.7.5", "www.example.org", 22, "", True),
        ("192.168.7.5", "notexample.org", 22, "", False),
        ("192.168.7.5", "trap.example.org", 80, "", False),
        ("192.168.8.5", "example.org", 22, "", False),
    ],
)
def test_the_rules_to_begin_with(source: str, to: str, port: int, user: str, allowed: bool) -> None:
    assert judge(all_rules(), source, to, port, user) is allowed


def test_the_effects_of_a_rule_are_those_that_there_are() -> None:
    written = [row[0].split() for row in rows_under("## Rules")]
    assert [word for word, _ in written] == list(EFFECTS)
    assert RuleSet.parse("allow sessions 3\n").rules
    text = RULES.read_text()
    assert all(f'"{word}' in text for word in EFFECTS)


def test_the_words_that_the_rule_file_explains_are_those_of_the_language() -> None:
    text = RULES.read_text()
    explained = re.findall(r"^#   ([a-z]+) {2,}", text, re.MULTILINE)
    assert sorted(explained) == sorted(CONDITIONS)
    [words] = re.findall(r"the words ([a-z, ]+), or by everywhere", text.replace("\n#", ""))
    assert words.split(", ") == list(WORDS)
    for condition in ("method none,username,gssapi,0x80", "port 443,8000-8099,https"):
        assert RuleSet.parse(f"allow {condition}\n").rules
    with pytest.raises(ConfigError):
        RuleSet.parse("allow port 443 8000-8099\n")
