"""``geosocks passwd``: add, change or delete one user of a users file.

The password is asked twice on a terminal, else read from standard input; never from the command
line, which any user of the host can read.
"""

import argparse
import fcntl
import os
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from getpass import getpass
from io import BytesIO

import bcrypt

from geosocks.auth.htpasswd import (
    COSTS,
    DEFAULT_COST,
    OPEN_TO_OTHERS,
    fault_of_name,
    fault_of_password,
    is_remark,
    read_file,
    shown,
)
from geosocks.errors import ConfigError


def main(argv: Sequence[str]) -> int:
    """Run ``geosocks passwd``; the exit code: 0 done, 1 failed, 2 not understood."""
    options = _parser().parse_args(argv)
    name = os.fsencode(options.user)
    fault = fault_of_name(name)
    if fault:
        return _complain(fault, 2)
    try:
        password = None if options.delete else _ask()
        did = change(options.file, name, password, options.cost)
    except ConfigError as error:
        return _complain(str(error), 1)
    except OSError as error:
        return _complain(f"{options.file}: {error.strerror}", 1)
    except KeyboardInterrupt:
        return _complain("nothing was changed", 1)
    print(f"{did} user {_plain(name)}")
    return 0


def change(path: str, name: bytes, password: bytes | None, cost: int = DEFAULT_COST) -> str:
    """Set the password of a user, or delete the user when it is None; returns what was done.

    Replaces the file in one step: a reader sees the old one or the new.  A link is followed.

    Raises:
        ConfigError: no such user to delete, or it is no file that we would write.
        OSError: as the file system has it.
    """
    hashed = None if password is None else _hash(password, cost)
    path = os.path.realpath(path)
    with _alone(os.path.dirname(path)):
        old, status = _read(path)
        lines, was_there = _edit(old, name, hashed)
        if hashed is None and not was_there:
            raise ConfigError(f"there is no user {shown(name)} to delete", path)
        _replace(path, b"".join(lines), status)
    if hashed is None:
        return "deleted"
    return "changed" if was_there else "added"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="geosocks passwd",
        description="Add or change a user of a users file (htpasswd format, bcrypt).  The password "
        "is asked twice on a terminal, else read from standard input as one line.",
    )
    parser.add_argument("file", metavar="FILE", help="the users file; made when there is none")
    parser.add_argument("user", metavar="USER", help="the user's name, as the client sends it")
    parser.add_argument("--delete", action="store_true", help="delete the user")
    parser.add_argument(
        "--cost",
        type=int,
        choices=COSTS,
        default=DEFAULT_COST,
        metavar="N",
        help=f"log2 of bcrypt's rounds, {COSTS.start} to {COSTS.stop - 1}; one more doubles the "
        "time that each new password costs the server (default: %(default)s)",
    )
    return parser


def _complain(what: str, code: int) -> int:
    print(f"geosocks passwd: {what}", file=sys.stderr)
    return code


def _plain(name: bytes) -> str:
    """Write a name for a terminal, which is not to see control characters."""
    text = name.decode("utf-8", "backslashreplace")
    return text if text.isprintable() and text.isascii() else ascii(text)


def _ask() -> bytes:
    """Ask for the new password.

    Raises:
        ConfigError: none was given, or none that a user can have.
    """
    if sys.stdin.isatty():
        try:
            password = _as_octets(getpass("New password: "))
            if password != _as_octets(getpass("The same again: ")):
                raise ConfigError("the two passwords differ; nothing was changed")
        except EOFError:
            password = b""
    else:
        password = sys.stdin.buffer.readline(65536).rstrip(b"\r\n")
    fault = fault_of_password(password)
    if fault:
        raise ConfigError(f"{fault}; nothing was changed")
    return password


def _as_octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _hash(password: bytes, cost: int) -> bytes:
    # $2y$ is Apache's name for it: some of its versions know no $2b$.
    return b"$2y$" + bcrypt.hashpw(password, bcrypt.gensalt(cost)).removeprefix(b"$2b$")


def _edit(old: bytes, name: bytes, hashed: bytes | None) -> tuple[list[bytes], bool]:
    """Give the lines anew, and whether the user was there; other lines stay as they are.

    Lines that no server would take stay too: this command may be on its way to mend them.
    """
    lines: list[bytes] = []
    new = [] if hashed is None else [name + b":" + hashed]
    was_there = False
    for line in BytesIO(old):  # ends a line at LF alone, as the server does
        if is_remark(line) or not line.startswith(name + b":"):
            lines.append(line)
            continue
        ending = line[len(line.rstrip(b"\r\n")) :]
        lines += [text + ending for text in new]
        new = []  # a second line of the same user goes
        was_there = True
    if new:
        if lines and not lines[-1].endswith(b"\n"):
            lines[-1] += b"\n"
        lines += [text + b"\n" for text in new]
    return lines, was_there


@contextmanager
def _alone(directory: str) -> Iterator[None]:
    """Keep other runs of this command out, which would write over what we write.

    The lock is on the directory, because the file itself is replaced.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(path: str) -> tuple[bytes, os.stat_result | None]:
    """Read the file as it is, and its owner and mode; nothing and None when there is none."""
    try:
        return read_file(path)
    except FileNotFoundError:
        return b"", None


def _replace(path: str, data: bytes, status: os.stat_result | None) -> None:
    """Write a new file beside the old one, then put it in its place."""
    directory = os.path.dirname(path)
    descriptor, temporary = tempfile.mkstemp(prefix=".geosocks-passwd-", dir=directory)  # mode 0600
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            if status is not None:
                os.fchown(descriptor, status.st_uid, status.st_gid)
                # fchown may clear bits, so the mode comes after it.
                os.fchmod(descriptor, stat.S_IMODE(status.st_mode) & ~OPEN_TO_OTHERS)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    _sync(directory)


def _sync(directory: str) -> None:
    """Have the new name on the disk too."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
