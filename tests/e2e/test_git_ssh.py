"""git over HTTP and ssh with ``geosocks connect``, through a server of their own."""

import hashlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import gevent
import gevent.socket
import pytest

from tests.support.net import unused_port
from tests.support.programs import Finished, needed, run
from tests.support.proxy import Proxy, environment, running, users_file
from tests.support.web import web

pytestmark = pytest.mark.e2e

CONNECT = f"{shlex.quote(sys.executable)} -m geosocks connect"


# --- git --------------------------------------------------------------------------------------


def git(*words: object, folder: Path) -> Finished:
    """Run git with no settings of the machine's or the person's."""
    env = environment(
        GIT_CONFIG_GLOBAL=os.devnull,
        GIT_CONFIG_NOSYSTEM="1",
        GIT_TERMINAL_PROMPT="0",
        GIT_AUTHOR_NAME="x",
        GIT_AUTHOR_EMAIL="x@example.org",
        GIT_COMMITTER_NAME="x",
        GIT_COMMITTER_EMAIL="x@example.org",
    )
    done = run((needed("git"), "-C", folder, *words), env=env)
    assert done.code == 0, done.err
    return done


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder with ``project.git``, made ready for a server that knows nothing but files."""
    work, folder = tmp_path / "work", tmp_path / "published"
    work.mkdir()
    folder.mkdir()
    git("init", "-q", "-b", "main", folder=work)
    (work / "octets").write_bytes(os.urandom(1_000_000))
    for number in range(5):
        (work / f"file{number}").write_text(f"{number}\n")
        git("add", ".", folder=work)
        git("commit", "-q", "-m", f"change {number}", folder=work)
    git("clone", "-q", "--bare", work, folder / "project.git", folder=tmp_path)
    git("update-server-info", folder=folder / "project.git")
    return folder


def test_git_clones_through_it(published: Path, tmp_path: Path) -> None:
    with web(folder=published) as site, running(tmp_path) as proxy:
        setting = f"http.proxy={proxy.url()}"
        url = site.url("/project.git", "localhost")
        git("-c", setting, "clone", "-q", url, "copy", folder=tmp_path)
        proxy.wait_event("session_closed")
        assert {e["destination"] for e in proxy.events("session_closed")} == {
            f"localhost:{site.port}"
        }
    head = git("rev-parse", "HEAD", folder=published / "project.git").out
    assert git("rev-parse", "HEAD", folder=tmp_path / "copy").out == head
    git("fsck", "--strict", folder=tmp_path / "copy")
    octets = (tmp_path / "copy" / "octets").read_bytes()
    assert octets == (tmp_path / "work" / "octets").read_bytes()


# --- ssh --------------------------------------------------------------------------------------


class Sshd:
    """A throw-away ssh server on loopback, and the files its one client needs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = unused_port()
        for name in ("host_key", "id"):
            run((needed("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", folder / name))
        (folder / "authorized_keys").write_bytes((folder / "id.pub").read_bytes())
        host_key = (folder / "host_key.pub").read_text()
        (folder / "known_hosts").write_text(f"[localhost]:{self.port} {host_key}")
        (folder / "sshd_config").write_text(
            f"Port {self.port}\n"
            "ListenAddress 127.0.0.1\n"
            f"HostKey {folder}/host_key\n"
            f"AuthorizedKeysFile {folder}/authorized_keys\n"
            "StrictModes no\n"
            "PermitRootLogin prohibit-password\n"
            "PasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\n"
            "UsePAM no\n"
            "PidFile none\n"
        )

    def ssh(self, proxy_command: str, *words: str, given: bytes = b"", **env: str) -> Finished:
        """Run a command over there, with no settings of the machine's or the person's."""
        options = {
            "ProxyCommand": proxy_command,
            "UserKnownHostsFile": self.folder / "known_hosts",
            "GlobalKnownHostsFile": os.devnull,
            "IdentityFile": self.folder / "id",
            "IdentitiesOnly": "yes",
            "BatchMode": "yes",
            "ConnectTimeout": 20,
        }
        settings = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        argv = (needed("ssh"), "-F", os.devnull, *settings, "-p", self.port, "localhost", *words)
        return run(argv, given=given, env=environment(**env))


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    program = needed("sshd")
    if os.geteuid() != 0:
        pytest.skip("sshd asks for root, to become the user who logs in")
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # Debian's privilege separation directory
    server = Sshd(tmp_path_factory.mktemp("sshd"))
    said = server.folder / "said"
    with said.open("wb") as log:
        process = subprocess.Popen(
            (program, "-D", "-e", "-f", str(server.folder / "sshd_config")),
            stdin=subprocess.DEVNULL,
            stderr=log,
        )
    try:
        end = time.monotonic() + 10
        while b"Server listening" not in said.read_bytes():
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < end, said.read_text()
            gevent.sleep(0.02)
        yield server
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Proxy]:
    with running(tmp_path, "--users", users_file(tmp_path, alice="wonder")) as proxy:
        yield proxy


def test_ssh_runs_a_command_over_there(sshd: Sshd, guarded: Proxy) -> None:
    command = f"{CONNECT} {guarded.url('alice:wonder')} %h %p"
    done = sshd.ssh(command, "cat; exit 3", given=b"to and fro\n")
    assert (done.code, done.out) == (3, b"to and fro\n"), done.err
    closed = guarded.wait_event("session_closed")
    assert (closed["destination"], closed["identity"]) == (f"localhost:{sshd.port}", "alice")


def test_ten_megabytes_each_way(sshd: Sshd, guarded: Proxy) -> None:
    octets = os.urandom(10_000_000)
    command = f"{CONNECT} {guarded.url('alice')} %h %p"
    file = sshd.folder / "sent"
    done = sshd.ssh(
        command, f"cat > {file}; cat {file}", given=octets, GEOSOCKS_PROXY_PASSWORD="wonder"
    )
    assert done.code == 0, done.err
    assert hashlib.sha256(file.read_bytes()).digest() == hashlib.sha256(octets).digest()
    assert hashlib.sha256(done.out).digest() == hashlib.sha256(octets).digest()


def test_a_refusal_reaches_the_person_who_typed_ssh(sshd: Sshd, guarded: Proxy) -> None:
    done = sshd.ssh(f"{CONNECT} {guarded.url('alice:wrong')} %h %p", "true")
    assert done.code == 255
    assert "geosocks connect: " in done.err
    assert "wrong" not in done.err
    assert guarded.wait_event("authentication_failed")["identity"] == "alice"
