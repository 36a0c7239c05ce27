"""The servers that are compared, and how each is started: on loopback, with the least it needs.

Every server is used as it comes, but for the address, for names and passwords, and for one worker
where it would make several.  geosocks runs with its default options, which log every session; the
log goes to a file.
"""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchlib.processes import Failed, Programs, environment, free_port

ROOT = Path(__file__).resolve().parents[2]
Login = tuple[str, str]


@dataclass(frozen=True)
class Server:
    """A server that may be compared.  ``start`` raises Failed where it cannot be."""

    name: str
    program: str
    package: str  # Debian's, or where to have it from
    start: Callable[[Programs, int, Login | None], None]
    login: bool = True  # takes a name and a password of our choosing
    udp: bool = False

    def missing(self) -> str:
        """What is not here; nothing where it can be started."""
        if self.name == "geosocks":
            return "" if python() else "gevent, in this Python or in .venv"
        if self.name == "pproxy" and _module("pproxy"):
            return ""
        needed = [self.program, *(("sshd", "ssh-keygen") if self.name == "ssh" else ())]
        return ", ".join(name for name in needed if not _which(name))

    def version(self) -> str:
        """What Debian, or Python, calls the version here; nothing where neither knows."""
        if self.name == "geosocks":
            asking = "from importlib.metadata import version; print(version('geosocks'))"
            return _said(python(), "-c", asking)
        if self.name == "pproxy":
            return importlib.metadata.version("pproxy") if _module("pproxy") else ""
        path = os.path.realpath(_which(self.program))
        if not path.startswith("/usr/") or not _which("dpkg-query"):
            return ""
        return _said("dpkg-query", "-W", "-f", "${Version}", self.package.partition(",")[0])


def python() -> str:
    """The Python that geosocks runs in: this one, or that of .venv; nothing where neither can."""
    if _module("gevent"):
        return sys.executable
    other = ROOT / ".venv" / "bin" / "python"
    return str(other) if other.exists() else ""


def _said(*words: str) -> str:
    """What a command wrote; nothing where it failed."""
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), cwd=ROOT)
    return done.stdout.strip() if done.returncode == 0 else ""


def _which(name: str) -> str:
    return shutil.which(name, path=environment()["PATH"]) or ""


def _module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _write(programs: Programs, name: str, text: str) -> str:
    """Write a file that nobody else may read; returns its path."""
    path = programs.folder / name
    path.touch(0o600)
    path.write_text(text)
    return str(path)


# --- how each is started --------------------------------------------------------------------------


def _geosocks(programs: Programs, port: int, login: Login | None) -> None:
    # The control socket is not to get in the way of a server that this machine runs.
    own = {"RUNTIME_DIRECTORY": str(programs.folder), "PYTHONPATH": str(ROOT)}
    command = [python(), "-m", "geosocks"]
    words = ["--listen", f"127.0.0.1:{port}", "--log-file", str(programs.folder / "log")]
    if login:
        users = str(programs.folder / "users")
        made = subprocess.run(
            [*command, "passwd", users, login[0]],
            input=f"{login[1]}\n",
            text=True,
            capture_output=True,
            env=environment() | own,
        )
        if made.returncode:
            raise Failed(f"geosocks passwd: {made.stderr.strip()}")
        words += ["--users", users]
    programs.start([*command, "serve", *words], own)


def _microsocks(programs: Programs, port: int, login: Login | None) -> None:
    words = [_which("microsocks"), "-i", "127.0.0.1", "-p", str(port)]
    if login:
        words += ["-u", login[0], "-P", login[1]]
    programs.start(words)


DANTED = """\
logoutput: stderr
internal: 127.0.0.1 port = {port}
external: 127.0.0.1
clientmethod: none
socksmethod: none
client pass {{ from: 127.0.0.0/8 to: 127.0.0.0/8 }}
socks pass {{ from: 127.0.0.0/8 to: 0.0.0.0/0 command: connect udpassociate }}
socks pass {{ from: 127.0.0.0/8 to: 127.0.0.0/8 command: udpreply }}
"""


def _danted(programs: Programs, port: int, login: Login | None) -> None:
    conf = _write(programs, "danted.conf", DANTED.format(port=port))
    programs.start([_which("danted"), "-f", conf, "-p", str(programs.folder / "pid")])


def _3proxy(programs: Programs, port: int, login: Login | None) -> None:
    who = "auth none\n"
    if login:
        who = f"users {login[0]}:CL:{login[1]}\nauth strong\nallow {login[0]}\n"
    # Its own default is 500 sessions at a time.
    conf = f"maxconn 10000\n{who}socks -i127.0.0.1 -p{port}\n"
    programs.start([_which("3proxy"), _write(programs, "3proxy.cfg", conf)])


def _hev(programs: Programs, port: int, login: Login | None) -> None:
    conf = f"main:\n  workers: 1\n  port: {port}\n  listen-address: '127.0.0.1'\n"
    if login:
        conf += f"auth:\n  username: '{login[0]}'\n  password: '{login[1]}'\n"
    programs.start([_which("hev-socks5-server"), _write(programs, "hev.yml", conf)])


def _pproxy(programs: Programs, port: int, login: Login | None) -> None:
    found = _which("pproxy")
    words = [found] if found else [sys.executable, "-m", "pproxy"]
    who = f"#{login[0]}:{login[1]}" if login else ""
    programs.start([*words, "-l", f"socks5://127.0.0.1:{port}{who}"])


SSHD = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
"""


def _ssh(programs: Programs, port: int, login: Login | None) -> None:
    """An sshd of its own, and a client that forwards: what both cost is counted."""
    folder = programs.folder
    inner = next(other for other in iter(free_port, None) if other != port)
    for name in ("host_key", "key"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(words, check=True, stdin=subprocess.DEVNULL, env=environment())
    if os.geteuid() == 0 and not Path("/run/sshd").is_dir():
        raise Failed("Debian's sshd wants the folder /run/sshd: mkdir -m 755 /run/sshd")
    conf = _write(programs, "sshd.conf", SSHD.format(port=inner, folder=folder))
    programs.start([_which("sshd"), "-D", "-e", "-f", conf])
    programs.wait_for_port(inner)
    words = ["-F", "none", "-N", "-q", "-D", f"127.0.0.1:{port}", "-p", str(inner)]
    words += ["-i", str(folder / "key"), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"]
    words += ["-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={folder}/known"]
    words += ["-o", "ExitOnForwardFailure=yes", "127.0.0.1"]
    programs.start([_which("ssh"), *words])


GEOSOCKS = Server("geosocks", "geosocks", "this project", _geosocks, udp=True)
PEERS = (
    Server("microsocks", "microsocks", "microsocks", _microsocks),
    Server("danted", "danted", "dante-server", _danted, login=False, udp=True),
    Server("3proxy", "3proxy", "not in Debian 12: github.com/3proxy/3proxy", _3proxy, udp=True),
    Server(
        "hev",
        "hev-socks5-server",
        "not in Debian 12: github.com/heiher/hev-socks5-server",
        _hev,
        udp=True,
    ),
    Server("pproxy", "pproxy", "not in Debian 12: pip install pproxy", _pproxy),
    Server("ssh", "ssh", "openssh-client, openssh-server", _ssh, login=False),
)
