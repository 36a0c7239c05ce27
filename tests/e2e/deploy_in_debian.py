"""Run as root inside a Debian root by test_deploy_debian.py: the whole life of a deployment.

    python3 deploy_in_debian.py SOURCES

SOURCES has the checkout, newer.pyz, early.pyz and late.pyz (broken), password, keytab and config.
Prints what it does; ends with 0 when all is as it should be.
"""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

SOURCES = Path(sys.argv[1])
SCRIPT = SOURCES / "checkout/scripts/deploy.py"
NOT_LOOKED_AT = ("/proc", "/sys", "/dev", "/srv", "/tmp", "/root", "/var/cache", "/var/lib/apt")
"""What is no part of the root, or of the package manager's own remembering."""

FOR_APT = ("/var/log/apt", "/var/log/dpkg", "/var/log/alternatives", "/var/lib/dpkg")
BACKUPS = tuple(f"/etc/{name}-" for name in ("passwd", "group", "shadow", "gshadow"))
"""Debian's own, which every change of a user leaves."""

ACCOUNTS = ("/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow", "/etc/subuid")


def listing() -> set[str]:
    """Every file, with mode, owner and target."""
    found = set()
    for folder, names, files in os.walk("/"):
        names[:] = [n for n in names if not os.path.join(folder, n).startswith(NOT_LOOKED_AT)]
        for name in names + files:
            path = os.path.join(folder, name)
            there = os.lstat(path)
            target = os.readlink(path) if os.path.islink(path) else ""
            found.add(f"{path} {there.st_mode:o} {there.st_uid}:{there.st_gid} {target}")
    return {one for one in found if not one.startswith((*BACKUPS, *FOR_APT))}


def accounts() -> list[str]:
    """Users and groups."""
    return [Path(path).read_text() for path in ACCOUNTS if Path(path).exists()]


def deploy(*words: str, code: int = 0) -> str:
    """Run the script, piped, as to a host that has no copy of it; what it said."""
    print("$ deploy.py", *words, flush=True)
    with SCRIPT.open("rb") as script:
        done = subprocess.run(
            ["/usr/bin/python3", "-", *words],
            stdin=script,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
    said = done.stdout.decode()
    print(said, flush=True)
    if done.returncode != code:
        sys.exit(f"WRONG: ended with {done.returncode}, not {code}")
    return said


def check(good: bool, what: str) -> None:
    """End here unless ``good``."""
    if not good:
        sys.exit(f"WRONG: {what}")
    print(f"as it should be: {what}", flush=True)


def echo() -> int:
    """Send back what comes, on a port of loopback."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve(sock: socket.socket) -> None:
        while data := sock.recv(4096):
            sock.sendall(data)

    def accept() -> None:
        while True:
            threading.Thread(target=serve, args=listening.accept()[:1], daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return int(listening.getsockname()[1])


def session(port: int) -> socket.socket:
    """A session through the proxy, with method none."""
    sock = socket.create_connection(("127.0.0.1", 1080), 10)
    sock.sendall(b"\x05\x01\x00")
    check(sock.recv(2) == b"\x05\x00", "method none is taken")
    sock.sendall(b"\x05\x01\x00\x01\x7f\0\0\x01" + port.to_bytes(2, "big"))
    check(sock.recv(10)[1] == 0, "CONNECT is granted")
    return sock


def lives(sock: socket.socket) -> bool:
    """True when the session relays."""
    sock.sendall(b"still here")
    return sock.recv(10) == b"still here"


def process() -> str:
    """The owner of the service's process."""
    pid = Path("/run/geosocks.pid").read_text().strip()
    return Path(f"/proc/{pid}").owner()


def main() -> None:
    """Install, use, upgrade, fail, roll back, remove."""
    before, users = listing(), accounts()
    checkout = str(SOURCES / "checkout")
    deploy("install", "--from", checkout, "--dry-run")
    check(listing() == before, "a dry run changes nothing")

    user = ("--add-user", "alice", "--password-file", str(SOURCES / "password"))
    files = ("--config", str(SOURCES / "config"), "--keytab", str(SOURCES / "keytab"))
    said = deploy("install", "--from", checkout, "--kerberos", *files, *user)
    for method in ("none", "username", "gssapi"):
        check(said.count(f"proven   {method} at 127.0.0.1:") == 2, f"{method} is proven")
    check(process() == "geosocks", "it runs as its own user")
    for path, mode in (("users", 0o640), ("krb5.keytab", 0o640), ("", 0o750)):
        there = Path("/etc/geosocks", path)
        check(there.stat().st_mode & 0o7777 == mode, f"{there} has mode {mode:o}")
        check(there.group() == "geosocks", f"{there} is for the service to read")

    port = echo()
    first = session(port)
    as_alice = ("--prove-as", "alice", "--password-file", str(SOURCES / "password"))
    early = deploy("upgrade", "--from", str(SOURCES / "early.pyz"), *as_alice, code=1)
    check("9.0.0 does not start" in early, "a version that does not start is not put in force")
    late = deploy("upgrade", "--from", str(SOURCES / "late.pyz"), *as_alice, code=1)
    check("is in force again" in late, "a version that fails in force is taken back")
    check("broken in force" in late, "and the end of its log is shown")
    check(lives(first), "the session of before goes on")

    deploy("upgrade", "--from", str(SOURCES / "newer.pyz"), *as_alice)
    check("version   8.0.0" in deploy("status"), "another version is in force")
    second = session(port)
    deploy("rollback", *as_alice)
    check("version   8.0.0" not in deploy("status"), "the one before is in force again")
    check(lives(second), "its sessions go on, too")
    second.close()
    first.close()

    deploy("remove")
    check(Path("/etc/geosocks/users").exists(), "remove keeps the configuration")
    deploy("remove", "--purge")
    after = listing()
    for one in sorted(before ^ after):
        print("differs:", one)
    check(before == after, "no file is left behind")
    check(accounts() == users, "no user and no group is left behind")


if __name__ == "__main__":
    main()
