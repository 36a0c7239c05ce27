"""The compiled form (setup.py): it does what the source does, and its lack harms nobody."""

import ast
import builtins
import json
import os
import re
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest

from geosocks import __version__
from tests.support import wheels
from tests.support.programs import Finished, run
from tests.support.proxy import ROOT, environment

SECONDS: Final = 1200.0
pytestmark = [pytest.mark.slow(seconds=SECONDS)]

COPIED: Final = ("geosocks", "etc", "scripts", "tests", "LICENSE", "README.md", "pyproject.toml")


def compiled_modules(named: str) -> list[Path]:
    """The sources that setup.py has compiled."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    [names] = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == named
    ]
    return [ROOT / name for name in names]


MODULES: Final = compiled_modules("COMPILED")
"""By mypyc."""

IN_C: Final = compiled_modules("IN_C")
"""By Cython."""

NAMES: Final = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (*MODULES, *IN_C)
]


def test_all_that_is_cython_s_is_compiled() -> None:
    assert set(IN_C) == {p for p in (ROOT / "geosocks/in_c").glob("*.py") if p.stem != "__init__"}


# --- what mypyc gets wrong, without a word ----------------------------------------------------


def classes(path: Path) -> Iterator[ast.ClassDef]:
    """Every class of a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            yield node


def name_of(base: ast.expr) -> str:
    """A class's name, less what stands in brackets."""
    return ast.unparse(base.value if isinstance(base, ast.Subscript) else base)


OURS: Final = {node.name for path in MODULES for node in classes(path)}
GOOD: Final = {"Enum", "Generic", "IntEnum", "NamedTuple", "Protocol", "dict"} | {
    name
    for name, thing in vars(builtins).items()
    if isinstance(thing, type) and issubclass(thing, BaseException)
}
PROTOCOLS: Final = {
    node.name
    for path in (ROOT / "geosocks").rglob("*.py")
    for node in classes(path)
    if any(name_of(base) == "Protocol" for base in node.bases)
}


def test_no_class_to_be_compiled_is_below_a_foreign_one() -> None:
    """Its objects would overlay those of the other: it crashes, sooner or later."""
    assert not [
        f"{path}:{node.lineno}: {node.name}"
        for path in MODULES
        for node in classes(path)
        if not {name_of(base) for base in node.bases} <= OURS | GOOD
    ]


def test_no_protocol_is_to_be_compiled() -> None:
    """Nobody's class could be below it."""
    names = {node.name for path in MODULES for node in classes(path)}
    assert not names & PROTOCOLS


def test_no_none_of_a_class_to_be_compiled_may_be_a_protocol_or_one_of_several() -> None:
    """Such a default is dropped: the attribute is not there."""
    bad = []
    for path in MODULES:
        for node in classes(path):
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and line.value is not None:
                    kinds = set(ast.unparse(line.annotation).split(" | ")) - {"None"}
                    if ast.unparse(line.value) == "None" and (len(kinds) > 1 or kinds & PROTOCOLS):
                        bad.append(f"{path}:{line.lineno}: {ast.unparse(line)}")
    assert not bad


def test_no_final_of_a_module_to_be_compiled_is_a_number_or_none() -> None:
    """Read again, such a number is another one."""
    bad = []
    for path in MODULES:
        for line in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(line, ast.AnnAssign):
                kinds = ast.unparse(line.annotation).removeprefix("Final[").removesuffix("]")
                if {"int", "None"} <= set(kinds.split(" | ")):
                    bad.append(f"{path}:{line.lineno}: {ast.unparse(line)}")
    assert not bad


# --- the compiled form ------------------------------------------------------------------------


def why_not() -> str:
    """Why nothing can be compiled here; else nothing."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    if not shutil.which(compiler):
        return f"there is no C compiler {compiler} here"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "there is no Python.h here"
    lacking = [tool for tool in ("mypyc", "Cython") if not find_spec(tool)]
    return f"not here: {' '.join(lacking)} (pip install mypy Cython)" if lacking else ""


def copy_to(folder: Path) -> Path:
    """A copy of the checkout, without what was ever made in it."""
    folder.mkdir()
    for name in (*COPIED, "setup.py", "requirements.txt"):
        if (ROOT / name).is_dir():
            made = shutil.ignore_patterns("__pycache__", "*.so")
            shutil.copytree(ROOT / name, folder / name, ignore=made)
        else:
            shutil.copy(ROOT / name, folder)
    return folder


def within(
    folder: Path, *argv: object, seconds: float = SECONDS, python: object = None, **env: str
) -> Finished:
    """Run Python in a copy, with the copy's geosocks."""
    variables = environment(PYTHONPATH=str(folder), PYTHONDONTWRITEBYTECODE="1") | env
    words = ("env", "-C", folder, python or sys.executable, *argv)
    return run(words, seconds=seconds, env=variables)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, compiled in place, and a wheel of it in ``dist``."""
    why = why_not()
    if why:
        pytest.skip(why)
    folder = copy_to(tmp_path_factory.mktemp("compiled") / "checkout")
    for command in (("build_ext", "--inplace"), ("bdist_wheel",)):
        done = within(folder, "setup.py", "--quiet", *command)
        assert done.code == 0, done.err
        assert "not compiled" not in done.err, done.out.decode() + done.err
    return folder


PROBE: Final = """
import importlib, json, sys
files = {name: importlib.import_module(name).__file__ for name in sys.argv[1:]}
print(json.dumps([files, sorted(sys.modules)]))
"""


def test_every_module_is_compiled_and_needs_nothing_of_mypy_at_run_time(built: Path) -> None:
    done = within(built, "-c", PROBE, *NAMES)
    assert done.code == 0, done.err
    files, modules = json.loads(done.out)
    for source, name in zip((*MODULES, *IN_C), files, strict=True):
        place = built / source.relative_to(ROOT)
        assert files[name] == str(place.with_suffix(sysconfig.get_config_var("EXT_SUFFIX")))
    tools = {"Cython", "cython", "mypy", "mypyc", "mypy_extensions", "librt"}
    assert not tools & {m.split(".")[0] for m in modules}
    assert within(built, "-m", "geosocks", "--version").out == (
        f"geosocks {__version__} (compiled)\n".encode()
    )


PARTS: Final = {
    "sessions": "test_session test_socks4 test_bind test_associate test_upstream test_embedding",
    "relay": "relay test_calls test_stream test_deadlines test_greenlets test_hubs",
    "others": "test_events test_entrance test_entrance_server auth/test_htpasswd "
    "auth/test_userpass logs/test_access_line logs/test_logs logs/test_process "
    "test_private_methods test_rules_sessions test_rejudge test_scores test_session_figures "
    "wire/test_socks5",
}
"""Tests of this project that are run on the compiled form."""

LEFT_OUT: Final = (
    # It counts calls of a method that it replaces, and compiled ones cannot be.
    "test_limits_that_hold_share_a_timer",
    # They judge something that is not a session, and compiled code takes nothing else for one.
    "test_a_session_of_an_upstream_is_judged_by_its_name",
    "test_a_session_without_a_request_is_nobody_s_to_judge",
    # It counts calls of a function that compiled code does not look up again.
    "test_who_has_spoken_waits_for_the_answer_and_does_not_look_in_vain",
    # They replace constants and functions, or look into what has no ``__dict__`` when compiled.
    "test_a_file_too_large_is_refused",
    "test_no_more_is_remembered_than_the_bound_and_the_oldest_goes",
    "test_no_secret_is_kept",
    "test_no_thread_to_be_had_refuses",
    # It wants nobody to listen on hundreds of ports, and the KDC of the tests around this may.
    "test_a_socket_never_meets_itself",
)


@pytest.mark.parametrize("part", PARTS)
def test_the_tests_pass_on_the_compiled_form(built: Path, part: str) -> None:
    files = [
        f"tests/{name}" if (ROOT / "tests" / name).is_dir() else f"tests/{name}.py"
        for name in PARTS[part].split()
    ]
    wanted = " and ".join(f"not {name}" for name in LEFT_OUT)
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", "-k", wanted)
    done = within(built, *words, *files, GEOSOCKS_TEST_COMPILED="1")
    told = done.out.decode()
    print(told.splitlines()[-1])
    assert done.code == 0, told[-20_000:] + done.err
    passed = re.search(r"(\d+) passed", told)
    assert passed
    assert int(passed[1]) > 100


def test_pytest_does_not_start_beside_compiled_modules_that_it_was_not_asked_for(
    built: Path,
) -> None:
    done = within(built, "-m", "pytest", "-q", "tests/test_scores.py")
    assert done.code == 4
    assert "compiled modules are in the way of the source" in done.out.decode() + done.err


def test_pytest_does_not_take_the_source_for_the_compiled_form(tmp_path: Path) -> None:
    copy = copy_to(tmp_path / "checkout")
    done = within(copy, "-m", "pytest", "-q", "tests/test_scores.py", GEOSOCKS_TEST_COMPILED="1")
    assert done.code == 4
    assert "is not compiled, as it should be" in done.out.decode() + done.err


CRASH: Final = """
import gevent.socket
from geosocks import Policy, RuleSet, Server
from geosocks.events import SessionCrashed

class Dialer:
    def dial(self, *_, **__):
        raise RuntimeError("a fault of ours")
    def __getattr__(self, name):
        return self.dial

def observe(event):
    if isinstance(event, SessionCrashed):
        print(event.traceback)

policy = Policy(rules=RuleSet.parse("allow to everywhere"), dialer=Dialer())
server = Server([("127.0.0.1", 0)], policy, observers=[observe])
server.start()
client = gevent.socket.create_connection(server.addresses[0])
client.sendall(bytes.fromhex("050100 05010001 7f000001 0050"))
while client.recv(100):
    pass
"""


def test_a_crash_in_compiled_code_tells_file_and_line(built: Path) -> None:
    done = within(built, "-c", CRASH)
    told = done.out.decode()
    assert "RuntimeError: a fault of ours" in told, told + done.err
    assert re.search(r'File "geosocks/session/__init__\.py", line \d+, in serve\n', told)
    assert re.search(r'File "geosocks/session/connect\.py", line \d+, in ', told)


EMBEDDER: Final = """
import copy, pickle
from geosocks import Address
from geosocks.auth import Grant
from geosocks.stream import Stream

class Own(Stream):
    def recv(self, size, /):
        return b""

assert Grant(Own()).stream.recv(1) == b""
for address in Address("example.org", 80), Address("::1", 1080):
    assert copy.copy(address) == copy.deepcopy(address) == address
    assert pickle.loads(pickle.dumps(address)) == address
"""
"""What a program may do with the public names that are compiled."""

SUBCLASSES: Final = """
import gevent.socket
from geosocks import Policy, RuleSet, Server
from geosocks.auth import NoAuth
from geosocks.auth.htpasswd import UserFile
from geosocks.auth.userpass import Password, PasswordAuthenticator
from geosocks.relay.direct import DirectDialer

seen = []

class Private(NoAuth):
    method = 0x80
    def authenticate(self, stream, peer):
        seen.append("private")
        return super().authenticate(stream, peer)

class Users(UserFile):
    def check(self, uname, passwd):
        seen.append("users")
        return passwd == uname

class Passwords(PasswordAuthenticator):
    def __init__(self, users):
        super().__init__(users.check)
        self.users = users

class Dialer(DirectDialer):
    def open_connection(self, to, addresses):
        seen.append(f"to {to}")
        return super().open_connection(to, addresses)

    def _dial(self, host, *others):
        seen.append(f"dial {host}")
        return super()._dial(host, *others)

class Robot(Password):
    pass

assert Robot("a", "b").method == Passwords.method == NoAuth.method + 2
policy = Policy(
    authenticators=(Private(), Passwords(Users({}))),
    rules=RuleSet.parse("allow to everywhere"),
    dialer=Dialer(),
)
target = gevent.socket.socket()
target.bind(("127.0.0.1", 0))
target.listen()
port = target.getsockname()[1]
request = bytes.fromhex("05010001 7f000001") + port.to_bytes(2, "big")
dialled = [f"to 127.0.0.1:{port}", "dial 127.0.0.1"]
with Server([("127.0.0.1", 0)], policy) as server:
    for method, words in (0x80, b""), (2, bytes.fromhex("01 0161 0161")):
        client = gevent.socket.create_connection(server.addresses[0])
        client.sendall(bytes((5, 1, method)))
        assert client.recv(2) == bytes((5, method))
        if words:
            client.sendall(words)
            assert client.recv(2) == bytes((1, 0))
        client.sendall(request)
        assert client.recv(2) == bytes((5, 0))
        client.close()
assert seen == ["private", *dialled, "users", *dialled], seen
"""


def test_what_a_program_does_with_public_names_is_as_good_as_ever(built: Path) -> None:
    done = within(built, "-c", EMBEDDER)
    assert done.code == 0, done.err


def test_what_may_be_subclassed_is_open_to_it(built: Path) -> None:
    done = within(built, "-c", SUBCLASSES)
    assert done.code == 0, done.err


def test_a_single_file_of_a_compiled_wheel_is_compiled(built: Path, tmp_path: Path) -> None:
    (wheel,) = (built / "dist").glob("geosocks-*.whl")
    assert not wheel.name.endswith("-none-any.whl")
    needed = wheels.of_installed(tmp_path / "wheels", wheel)
    made = tmp_path / "geosocks.pyz"
    words = ("--wheel", wheel, "--wheels", needed, "--output", made)
    done = within(built, "scripts/build_single_file.py", *words)
    assert done.code == 0, done.err
    env = environment(HOME=str(tmp_path), PATH=f"{Path(sys.executable).parent}:/usr/bin:/bin")
    assert run([sys.executable, made, "--version"], env=env).out == (
        f"geosocks {__version__} (compiled)\n".encode()
    )


# --- without ----------------------------------------------------------------------------------

NOT_HAD: Final = "import sys; sys.modules[{!r}] = None\n"
SAYS_NO: Final = '\n\ndef wrong() -> int:\n    return "no number"\n'


@pytest.mark.parametrize(
    ("lacking", "why"),
    [
        ("wish", "GEOSOCKS_COMPILE is 0"),
        ("compiler", "there is no C compiler (no-such-gcc)"),
        ("a compiler that works", "that failed, see above (CompileError)"),
        ("mypyc", "that failed, see above (ModuleNotFoundError)"),
        ("Cython", "that failed, see above (ModuleNotFoundError)"),
        ("a source that mypyc takes", "that failed, see above (SystemExit)"),
    ],
)
def test_whatever_is_lacking_it_installs_as_it_is(tmp_path: Path, lacking: str, why: str) -> None:
    if lacking not in ("wish", "compiler") and why_not():
        pytest.skip(why_not())
    folder = copy_to(tmp_path / "checkout")
    env = {
        "wish": {"GEOSOCKS_COMPILE": "0"},
        "compiler": {"CC": "no-such-gcc"},
        "a compiler that works": {"CC": "false"},
    }.get(lacking, {})
    if lacking in ("mypyc", "Cython"):
        (folder / "sitecustomize.py").write_text(NOT_HAD.format(lacking))
    if lacking == "a source that mypyc takes":
        with (folder / "geosocks/deadlines.py").open("a") as source:
            source.write(SAYS_NO)
    done = within(folder, "setup.py", "--quiet", "bdist_wheel", **env)
    assert done.code == 0, done.err
    assert f"geosocks: not compiled: {why}; everything works, somewhat slower\n" in done.err
    (wheel,) = (folder / "dist").iterdir()
    assert wheel.name == f"geosocks-{__version__}-py3-none-any.whl"
    assert not [path for path in folder.rglob("*.so") if "build" not in path.parts]
    assert within(folder, "-m", "geosocks", "--version").out == f"geosocks {__version__}\n".encode()
