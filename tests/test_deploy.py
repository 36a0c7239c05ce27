"""scripts/deploy.py: install, upgrade, rollback, status, remove; and every way to fail."""

import ast
import fcntl
import os
import signal
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import gevent.socket
import pytest

from geosocks import __version__
from tests.support import wheels
from tests.support.certificates import Authority
from tests.support.deployed import SCRIPT, Deployed
from tests.support.kdc import Realm
from tests.support.net import echo, recv_exactly, serving, wait_for
from tests.support.programs import run
from tests.support.proxy import environment

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_leaks")]

PROVEN = "CONNECT, 16 octets there and back"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Deployed]:
    (tmp_path / "host").mkdir()
    host = Deployed(tmp_path / "host")
    yield host
    host.end()


@pytest.fixture(scope="module")
def source(single_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The single file without what extras need: it is installed faster."""
    folder = tmp_path_factory.mktemp("lean")
    return wheels.variant(single_file, folder / "lean.pyz", __version__, lean=True)


@pytest.fixture(scope="module")
def served(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """An installed one, for the tests that are to find it and leave it as it is."""
    host = Deployed(tmp_path_factory.mktemp("served"))
    host.install(source)
    yield host
    host.end()


@pytest.fixture(scope="module")
def newer(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a later version."""
    folder = tmp_path_factory.mktemp("newer")
    return wheels.variant(source, folder / "newer.pyz", "8.0.0")


def password_file(folder: Path, password: str = "wonder") -> Path:
    path = folder / "password"
    path.write_text(f"{password}\n")
    path.chmod(0o600)
    return path


# --- from nothing to a proven proxy, and back to nothing --------------------------------------


def test_install_proves_a_proxy_and_purge_leaves_no_trace(
    host: Deployed, single_file: Path
) -> None:
    before = host.listing()
    host.run("install", "--from", single_file, "--dry-run")
    assert host.listing() == before  # it only said what it would do

    piped = [sys.executable, "-", *host.words("install", "--from", single_file)[2:]]
    done = run([*piped, "--listen", host.address], given=SCRIPT.read_bytes(), env=environment())
    assert done.code == 0, done.err
    # Once in the trial, once at the service.
    assert done.out.decode().count(f"proven   none at {host.address}: {PROVEN}") == 2
    with serving(echo) as target, host.session(target) as sock:
        sock.sendall(b"hello")
        assert recv_exactly(sock, 5) == b"hello"
    assert "take connections" in host.run("status").out.decode()

    host.config.write_text(host.config.read_text() + "drain = 7\n")
    assert "is in force already and runs" in host.install(single_file)
    (running,) = host.pids()
    host.run("remove", "--dry-run", "--purge")
    assert host.pids() == [running]

    host.run("remove")
    assert not host.pids()
    assert not (host.root / "versions").exists()
    host.install(single_file)
    assert "drain = 7" in host.config.read_text()

    host.run("remove", "--purge")
    assert host.listing() == before
    assert not host.pids()
    assert "nothing to remove" in host.run("remove", "--purge").out.decode()
    assert "not installed" in host.run("status", code=4).out.decode()


def test_first_user_is_proven_by_a_session_of_his(
    host: Deployed, source: Path, tmp_path: Path
) -> None:
    secret = password_file(tmp_path)
    said = host.install(source, "--add-user", "alice", "--password-file", secret)
    assert said.count(f"proven   username at {host.address}: {PROVEN}") == 2
    users = host.prefix / "etc/geosocks/users"
    assert stat.S_IMODE(users.stat().st_mode) == 0o640
    assert users.read_text().startswith("alice:$2y$")
    # Without a password, what can be told is that the method works, and says no.
    said = host.run("install", "--from", source).out.decode()
    assert f"answers  username at {host.address}: refuses a made-up user" in said
    host.run("install", "--from", source, "--prove-as", "alice", "--password-file", secret)
    secret.write_text("wrong\n")
    wrong = host.run(
        *("install", "--from", source, "--prove-as", "alice", "--password-file", secret),
        code=1,
    )
    assert "user and password are refused" in wrong.err


def test_every_listener_is_proven_as_it_is(host: Deployed, source: Path, tmp_path: Path) -> None:
    other, third = Deployed(tmp_path), Deployed(tmp_path)
    signed = Authority(tmp_path).sign("proxy")
    path = tmp_path / "s"
    rules = tmp_path / "rules"
    rules.write_text("allow listener inside to loopback\nallow from loopback to any\n")
    config = tmp_path / "mine.conf"
    config.write_text(
        f"listen = {host.address}?name=inside&methods=none\n"
        f"listen = tls://{other.address}?tls-cert={signed.both}\n"
        f"listen = unix:{path}\n"
        f"listen = {third.address}?methods=username&users={host.prefix}/etc/geosocks/users\n"
        f"rules = {rules}\n"
    )
    secret = password_file(tmp_path)
    said = host.run(
        *("install", "--from", source, "--config", config, "--add-user", "bob"),
        *("--password-file", secret),
    ).out.decode()
    trial, service = said.split("prove the service at its listeners")
    assert trial.count(PROVEN) == 4
    assert f"proven   none at {host.address}: {PROVEN}" in service
    refused = "lets in; the rules refuse this host's loopback, so nothing was relayed"
    assert f"answers  none at tls://{other.address}: {refused}" in service
    assert f"answers  none at unix:{path}: {refused}" in service
    assert f"answers  username at {third.address}: {refused}" in service


@pytest.mark.kerberos
def test_kerberos_is_proven_with_a_ticket(host: Deployed, single_file: Path, realm: Realm) -> None:
    env = {"KRB5_CONFIG": realm.env["KRB5_CONFIG"]}
    said = host.install(single_file, "--keytab", realm.keytab, **env)
    assert said.count(f"gssapi at {host.address}: as rcmd/localhost@GEOSOCKS.TEST: {PROVEN}") == 2
    with realm.without_kdc():
        said = host.run("install", "--from", single_file, **env).out.decode()
    assert f"answers  gssapi at {host.address}: the method is selected; no ticket to show" in said
    keytab = host.prefix / "etc/geosocks/krb5.keytab"
    assert stat.S_IMODE(keytab.stat().st_mode) == 0o640


def test_a_wheel_is_installed_from_a_folder_of_packages(host: Deployed, tmp_path: Path) -> None:
    wheel = wheels.of_this_checkout(tmp_path)
    packages = wheels.of_installed(tmp_path / "wheels", wheel)
    host.install(wheel, "--wheels", packages)
    geosocks = host.prefix / "usr/local/bin/geosocks"
    assert b"usage: geosocks serve" in run([geosocks, "serve", "--help"]).out
    assert (host.root / "current/share/geosocks/deploy.py").exists()


# --- another version --------------------------------------------------------------------------


def test_upgrade_lets_sessions_go_on_and_rollback_goes_back(
    host: Deployed, source: Path, tmp_path: Path
) -> None:
    host.install(source)
    first = host.version
    for old in ("0.0.1", "0.0.2"):
        (host.root / "versions" / old).mkdir()
    mine = host.config.read_text() + "drain = 7\n"
    host.config.write_text(mine)
    sample = {"share/geosocks/etc/geosocks.conf": "# a new option\n"}
    newer = wheels.variant(source, tmp_path / "newer.pyz", "8.0.0", sample)
    with serving(echo) as target, host.session(target) as sock:
        host.run("upgrade", "--from", newer)
        assert host.version == "8.0.0"
        with host.session(target) as another:
            for one in (sock, another):
                one.sendall(b"on it goes")
                assert recv_exactly(one, 10) == b"on it goes"
    there = {path.name for path in (host.root / "versions").iterdir()}
    assert there >= {first, "8.0.0"}
    assert len(there) == 3  # the oldest is gone
    assert host.config.read_text() == mine
    beside = host.config.with_name("geosocks.conf.new")
    assert beside.read_text().endswith("# a new option\n")
    said = host.run("status").out.decode()
    assert first in said
    assert "geosocks.conf.new: a newer sample" in said
    beside.unlink()
    host.run("rollback", "--dry-run")
    host.run("rollback")
    assert host.version == first
    assert "is in force" in host.run("rollback", "--to", first, code=2).err
    assert "there is no version 9" in host.run("rollback", "--to", "9", code=2).err
    host.run("rollback")
    assert host.version == "8.0.0"
    assert not beside.exists()  # seen once is enough


def test_ctl_finds_the_new_one_and_the_page_is_handed_over(
    single_file: Path, tmp_path: Path
) -> None:
    newer = wheels.variant(single_file, tmp_path / "newer.pyz", "8.0.0")
    with tempfile.TemporaryDirectory(prefix="gs-") as short:  # as a UNIX socket's path has to be
        host, page = Deployed(Path(short)), Deployed(Path(short)).address
        try:
            host.install(single_file)
            host.config.write_text(f"{host.config.read_text()}admin = {page}\ndrain = 3\n")
            host.run("upgrade", "--from", newer)
            with serving(echo) as target, host.session(target):
                said = host.run("rollback").out.decode()
                assert "wait for the last sessions of the old one" in said
                ctl = (host.root / "current/bin/geosocks", "ctl", "--socket")
                done = run([*ctl, host.prefix / "run/geosocks/control.sock", "sessions"])
                assert done.code == 0, done.err
        finally:
            host.end()


SERVER = "geosocks/server/__init__.py"
BROKEN = {
    "it cannot be imported": {"geosocks/cli/__init__.py": "raise SystemExit('broken')"},
    "it takes no configuration": {"geosocks/cli/serve.py": "raise SystemExit('broken')"},
    "it does not start": {SERVER: "def no(self):\n raise OSError(5, 'broken')\nServer.start = no"},
    "it ends": {SERVER: "Server.start = lambda self: __import__('os')._exit(3)"},
    "it serves nobody": {"geosocks/wire/socks5.py": "CHOICES = (b'12',) * 256"},
    "it is slow to fail": {
        SERVER: """
def start(self, was=Server.start):
    import sys
    if not any("/trial/" in word for word in sys.argv):
        raise OSError(5, "broken in force")
    was(self)
Server.start = start
"""
    },
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_version_changes_nothing_and_cuts_no_session(
    how: str, served: Deployed, source: Path, tmp_path: Path
) -> None:
    was = served.version
    broken = wheels.variant(source, tmp_path / "broken.pyz", "9.0.0", BROKEN[how])
    with serving(echo) as target, served.session(target) as sock:
        said = served.run("upgrade", "--from", broken, code=1).err
        assert "9.0.0" in said
        assert served.version == was
        assert served.state["pending"] is None
        assert not (served.root / "versions/9.0.0").exists()
        sock.sendall(b"still here")
        assert recv_exactly(sock, 10) == b"still here"
        with served.session(target) as another:
            another.sendall(b"new one")
            assert recv_exactly(another, 7) == b"new one"
    if how == "it is slow to fail":
        assert f"9.0.0 failed, and {was} is in force again" in said
        assert "end of its log:" in said
        assert "geosocks serve: broken in force" in said
    elif how == "it serves nobody":
        assert f"FAILED   none at {served.address}" in said


def test_a_broken_first_version_leaves_no_service(
    host: Deployed, source: Path, tmp_path: Path
) -> None:
    how = BROKEN["it is slow to fail"]
    broken = wheels.variant(source, tmp_path / "broken.pyz", "9.0.0", how)
    said = host.run("install", "--from", broken, "--listen", host.address, code=1).err
    assert "nothing is installed now" in said
    assert not host.pids()
    assert not os.path.lexists(host.root / "current")
    assert "not installed" in host.run("status", code=4).out.decode()
    host.run("remove", "--purge")
    assert host.listing() == []


# --- interrupted ------------------------------------------------------------------------------

STEPS = ("make version", "prove 8.0.0 on ports", "point")


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_upgrade_is_mended_by_the_next(
    step: str, host: Deployed, source: Path, newer: Path
) -> None:
    host.install(source)
    host.kill_at(step, "upgrade", "--from", newer)
    said = host.run("upgrade", "--from", newer).out.decode()
    assert host.version == "8.0.0"
    if step == "point":
        assert "an earlier run was interrupted on its way to 8.0.0" in said
        assert "go back to" in said
    assert not (host.root / "trial").exists()
    assert len(host.pids()) == 1
    host.run("remove", "--purge")
    assert host.listing() == []


def test_a_killed_install_is_mended_by_the_next(host: Deployed, source: Path) -> None:
    host.kill_at("point", "install", "--from", source, "--listen", host.address)
    host.install(source)
    assert len(host.pids()) == 1
    host.run("remove", "--purge")
    assert host.listing() == []


def test_a_terminated_upgrade_goes_back_by_itself(served: Deployed, newer: Path) -> None:
    was = served.version
    process = served.start("upgrade", "--from", newer)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(b"prove the service"):
            process.terminate()
            break
    _, said = process.communicate()
    assert process.returncode == 1
    assert f"8.0.0 failed, and {was} is in force again: interrupted".encode() in said
    assert served.version == was
    wait_for(lambda: len(served.pids()) == 1)


# --- refusals ---------------------------------------------------------------------------------


def test_two_at_once(host: Deployed, source: Path) -> None:
    first = os.open(host.prefix, os.O_RDONLY)
    try:
        fcntl.flock(first, fcntl.LOCK_EX)
        for command in (("install", "--from", source), ("remove",), ("rollback",)):
            assert "another deploy is at work" in host.run(*command, code=75).err
    finally:
        os.close(first)
    assert host.listing() == []


def test_only_root_works_on_the_host_itself(source: Path) -> None:
    words = [sys.executable, "-", "install", "--from", source]
    if os.geteuid() == 0:
        nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3")
        words = [*nobody, "-", "status"]
        words[-1:] = ["remove"]
    done = run(words, given=SCRIPT.read_bytes())
    assert (done.code, done.out) == (2, b"")
    assert "only root can do this" in done.err
    assert "sudo" in done.err


def test_a_piped_script_has_to_be_told_what_to_install(tmp_path: Path) -> None:
    words = [sys.executable, "-", "install", "--prefix", tmp_path]
    done = run(words, given=SCRIPT.read_bytes(), env=environment())
    assert done.code == 2
    assert "what is to be installed?" in done.err
    assert "--from" in done.err


SOURCES = {
    "nowhere.whl": "there is no such file",
    "empty": "neither setup.py nor pyproject.toml",
    "damaged.whl": "is no wheel, or damaged",
    "text": "is neither a wheel nor geosocks as a single file",
    "geosocks-1": "for a package index write the version, too: geosocks==1.2.0",
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_that_is_none_is_refused(name: str, host: Deployed, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for file in ("damaged.whl", "text"):
        (tmp_path / file).write_text("no archive")
    done = run(
        host.words("install", "--from", name if name == "geosocks-1" else tmp_path / name),
        env=environment(),
    )
    assert done.code in (1, 2)
    assert SOURCES[name] in done.err
    assert not (host.root / "current").exists()


def test_nothing_there_and_another_version_there(
    host: Deployed, served: Deployed, newer: Path
) -> None:
    assert "begin with: install" in host.run("upgrade", "--from", newer, code=2).err
    assert "no version to go back to" in host.run("rollback", code=2).err
    assert "upgrade" in served.run("install", "--from", newer, code=2).err


def test_a_wrong_configuration_stops_an_upgrade_before_it_touches_anything(
    served: Deployed, newer: Path
) -> None:
    was, pids, text = served.version, served.pids(), served.config.read_text()
    served.config.write_text(f"{text}drian = 7\n")
    said = served.run("upgrade", "--from", newer, code=1).err
    served.config.write_text(text)
    assert "unknown option 'drian'; did you mean drain?" in said
    assert "geosocks.conf:" in said
    assert (served.version, served.pids()) == (was, pids)


def test_a_port_that_is_taken_stops_an_install(host: Deployed, source: Path) -> None:
    with gevent.socket.socket() as other:
        other.bind(("127.0.0.1", host.port))
        other.listen()
        said = host.run("install", "--from", source, "--listen", host.address, code=75).err
    assert f"another program listens on {host.address}" in said
    assert not host.pids()


def test_a_password_that_others_may_read_is_refused(
    host: Deployed, source: Path, tmp_path: Path
) -> None:
    secret = password_file(tmp_path)
    secret.chmod(0o644)
    options = ("--from", source, "--add-user", "alice")
    said = host.run("install", *options, "--password-file", secret, code=2).err
    assert f"chmod 600 {secret}" in said
    assert "there is no terminal to ask at" in host.run("install", *options, code=2).err
    assert host.listing() == []  # both were refused before anything was made


def test_a_python_that_is_too_old_is_refused(host: Deployed, source: Path) -> None:
    said = host.run("install", "--from", source, "--python", "/bin/false", code=1).err
    assert "--python /bin/false is not Python" in said


def test_a_service_that_died_is_told_and_mended(host: Deployed, source: Path) -> None:
    host.install(source)
    (pid,) = host.pids()
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not host.pids())
    said = host.run("status", code=3).out.decode()
    assert "does not run" in said
    assert '"event": "stopped"' in said  # the end of its log
    host.install(source)
    assert len(host.pids()) == 1


# --- the script itself ------------------------------------------------------------------------


def test_the_script_is_python_3_9_and_needs_the_standard_library_alone() -> None:
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 9))
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(str(node.module))
        assert not isinstance(node, ast.Match)
    assert {name.partition(".")[0] for name in modules} <= sys.stdlib_module_names
