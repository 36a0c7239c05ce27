"""``geosocks passwd``: what it says, and what it leaves on the disk."""

import fcntl
import os
import shutil
import stat
import subprocess
import sys
import termios
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from unittest.mock import patch

import bcrypt
import pytest

from geosocks.auth.htpasswd import UserFile, parse_users
from geosocks.cli.passwd import main

COMMAND = [
    sys.executable,
    "-c",
    "import geosocks.cli.passwd as p, sys; sys.exit(p.main(sys.argv[1:]))",
]
HASH = b"$2y$04$" + b"." * 53
ROOT = Path(__file__).parent.parent.parent

needs_htpasswd = pytest.mark.skipif(not shutil.which("htpasswd"), reason="needs Apache's htpasswd")


@dataclass
class Outcome:
    """How a run of the command ended."""

    code: int
    out: str
    err: str


def passwd(*argv: str | bytes | Path, given: bytes = b"wonder\n", cost: str = "4") -> Outcome:
    """Run the command with ``given`` on its standard input."""
    out, err = StringIO(), StringIO()
    arguments = [f"--cost={cost}", *map(os.fsdecode, argv)]
    with (
        TextIOWrapper(BytesIO(given)) as stdin,
        patch("sys.stdin", stdin),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            code = main(arguments)
        except SystemExit as leaving:
            code = int(str(leaving.code))
    return Outcome(code, out.getvalue(), err.getvalue())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "users"


def write(file: Path, data: bytes, mode: int = 0o600) -> None:
    file.write_bytes(data)
    file.chmod(mode)


def mode_of(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def assert_nothing_left_beside(file: Path) -> None:
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_add_change_delete(file: Path) -> None:
    ran = passwd(file, "alice")
    assert (ran.code, ran.out, ran.err) == (0, "added user alice\n", "")
    assert mode_of(file) == 0o600
    assert UserFile.load(file).check(b"alice", b"wonder")

    ran = passwd(file, "alice", given=b"looking glass\n")
    assert (ran.code, ran.out, ran.err) == (0, "changed user alice\n", "")
    assert UserFile.load(file).check(b"alice", b"looking glass")
    assert not UserFile.load(file).check(b"alice", b"wonder")

    ran = passwd(file, "alice", "--delete", given=b"")
    assert (ran.code, ran.out, ran.err) == (0, "deleted user alice\n", "")
    assert file.read_bytes() == b""
    assert_nothing_left_beside(file)


def test_the_cost_is_10_or_what_was_asked(file: Path) -> None:
    assert passwd(file, "alice").code == 0
    assert file.read_bytes().startswith(b"alice:$2y$04$")
    ran = subprocess.run([*COMMAND, file, "bob"], input=b"x\n", cwd=ROOT, capture_output=True)
    assert ran.returncode == 0
    assert b"\nbob:$2y$10$" in file.read_bytes()


@pytest.mark.parametrize("cost", ["3", "18", "-1", "many"])
def test_a_cost_that_cannot_be_is_a_usage_error(file: Path, cost: str) -> None:
    ran = passwd(file, "alice", cost=cost)
    assert ran.code == 2
    assert "--cost" in ran.err
    assert not file.exists()


def test_other_lines_stay_octet_for_octet(file: Path) -> None:
    others = b"# staff \xff\r\n\n bob:" + HASH + b"  \r\nold:$apr1$x$y\nal:" + HASH + b"\nno colon"
    write(file, others)
    assert passwd(file, "alice").code == 0
    data = file.read_bytes()
    assert data.startswith(others + b"\nalice:$2y$04$")
    assert data.endswith(b"\n")
    assert passwd(file, "alice", "--delete").code == 0
    assert file.read_bytes() == others + b"\n"


def test_a_changed_line_keeps_its_place_and_its_ending(file: Path) -> None:
    write(file, b"a:" + HASH + b"\r\nalice:old\r\nb:" + HASH)
    assert passwd(file, "alice").code == 0
    first, changed, last = file.read_bytes().split(b"\r\n")
    assert (first, last) == (b"a:" + HASH, b"b:" + HASH)
    assert bcrypt.checkpw(b"wonder", changed.removeprefix(b"alice:"))


def test_a_name_that_is_there_twice_is_there_once_afterwards(file: Path) -> None:
    write(file, b"alice:x\nbob:" + HASH + b"\nalice:y\n")
    assert passwd(file, "alice").code == 0
    assert list(parse_users(file.read_bytes())) == [b"alice", b"bob"]


def test_a_comment_is_no_user(file: Path) -> None:
    write(file, b" #alice:x\n")
    assert passwd(file, "alice").out == "added user alice\n"
    assert file.read_bytes().startswith(b" #alice:x\nalice:$2y$")


def test_names_are_octets(file: Path) -> None:
    ran = passwd(file, b"z\xfc rich")
    assert (ran.code, ran.out) == (0, "added user z\\xfc rich\n")
    assert UserFile.load(file).check(b"z\xfc rich", b"wonder")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (b"wonder", b"wonder"),
        (b"wonder\r\n", b"wonder"),
        (b" two words \nand a line\n", b" two words "),
        (b"\xff\xfe\n", b"\xff\xfe"),
        (b"p" * 72 + b"\n", b"p" * 72),
    ],
)
def test_the_password_is_one_line_of_octets(file: Path, given: bytes, kept: bytes) -> None:
    assert passwd(file, "alice", given=given).code == 0
    assert UserFile.load(file).check(b"alice", kept)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (b"", "an empty password"),
        (b"\n", "an empty password"),
        (b"wonder\0\n", "a NUL in a password"),
        (
            b"wonder" * 12 + b"w\n",
            "a password of 73 octets; bcrypt would look at the first 72 only",
        ),
        (b"w" * 100_000, "bcrypt would look at the first 72 only"),
    ],
)
def test_a_password_that_nobody_can_have_is_refused(file: Path, given: bytes, said: str) -> None:
    ran = passwd(file, "alice", given=given)
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert said in ran.err
    assert "wonder" not in ran.err
    assert not file.exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (b"", "a user name of no octets"),
        (b"al:ice", "a colon in a user name"),
        (b"al\nice", "a control character"),
        (b"al\x7fice", "a control character"),
        (b"#alice", "begins with #"),
        (b"  ", "is blank"),
        (b"x" * 256, "a user name of 256 octets; SOCKS holds up to 255"),
    ],
)
def test_a_name_that_nobody_can_have_is_refused(file: Path, name: bytes, said: str) -> None:
    ran = passwd(file, name)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert said in ran.err
    assert not file.exists()


def test_255_octets_are_a_name(file: Path) -> None:
    assert passwd(file, b"x" * 255).code == 0
    assert UserFile.load(file).check(b"x" * 255, b"wonder")


def test_the_password_is_never_taken_from_the_command_line(file: Path) -> None:
    ran = passwd(file, "alice", "wonder")
    assert ran.code == 2
    assert not file.exists()


def test_deleting_who_is_not_there_fails_and_changes_nothing(file: Path) -> None:
    write(file, b"bob:" + HASH + b"\n")
    before = file.stat().st_ino
    ran = passwd(file, "alice", "--delete")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == f"geosocks passwd: {file}: there is no user 'alice' to delete\n"
    assert file.stat().st_ino == before
    file.unlink()
    assert passwd(file, "alice", "--delete").code == 1
    assert not file.exists()


@pytest.mark.parametrize(
    ("mode", "after"), [(0o600, 0o600), (0o640, 0o640), (0o644, 0o640), (0o666, 0o640)]
)
def test_the_mode_is_kept_unless_it_is_open_to_others(file: Path, mode: int, after: int) -> None:
    write(file, b"", mode)
    assert passwd(file, "alice").code == 0
    assert mode_of(file) == after
    UserFile.load(file)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_owner_is_kept(file: Path) -> None:
    write(file, b"", 0o640)
    os.chown(file, 12345, 23456)
    assert passwd(file, "alice").code == 0
    status = file.stat()
    assert (status.st_uid, status.st_gid, mode_of(file)) == (12345, 23456, 0o640)


def test_a_link_is_followed_and_stays(file: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "users"
    file.symlink_to(target)
    for done in ("added", "changed"):
        assert passwd(file, "alice").out == f"{done} user alice\n"
        assert file.is_symlink()
        assert UserFile.load(target).check(b"alice", b"wonder")
        assert_nothing_left_beside(target)


def test_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, said in (
        (fifo, "must be a regular file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "none" / "users", "No such file or directory"),
    ):
        ran = passwd(path, "alice")
        assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
        assert said in ran.err
        assert str(tmp_path) in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["fifo"]


def test_a_write_that_fails_leaves_the_old_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(file, b"alice:" + HASH + b"\n")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    ran = passwd(file, "alice")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == f"geosocks passwd: {file}: No space left on device\n"
    assert file.read_bytes() == b"alice:" + HASH + b"\n"
    assert_nothing_left_beside(file)


def test_runs_at_the_same_time_lose_no_user(file: Path) -> None:
    running = [
        subprocess.Popen(
            [*COMMAND, "--cost=4", str(file), f"user{n}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd=ROOT,
        )
        for n in range(6)
    ]
    for process in running:
        process.communicate(b"wonder\n", timeout=20)
        assert process.returncode == 0
    assert sorted(parse_users(file.read_bytes())) == [b"user%d" % n for n in range(6)]


def on_a_terminal(file: Path, *typed: bytes) -> tuple[int, str]:
    """Run the command on a terminal of its own, give answers; exit code and all it showed."""
    master, slave = os.openpty()

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [*COMMAND, "--cost=4", str(file), "alice"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        preexec_fn=take_terminal,
        cwd=ROOT,
    )
    os.close(slave)
    shown = b""
    answers = list(typed)
    try:
        while True:
            shown += os.read(master, 1024)
            if answers and shown.endswith(b": "):
                os.write(master, answers.pop(0))
    except OSError:  # EIO: the other end has closed
        pass
    finally:
        os.close(master)
    return process.wait(20), shown.decode().replace("\r\n", "\n")


def test_a_terminal_is_asked_twice_and_shows_no_password(file: Path) -> None:
    code, shown = on_a_terminal(file, b"wonder\n", b"wonder\n")
    assert code == 0
    assert shown == "New password: \nThe same again: \nadded user alice\n"
    assert UserFile.load(file).check(b"alice", b"wonder")


def test_two_different_passwords_change_nothing(file: Path) -> None:
    code, shown = on_a_terminal(file, b"wonder\n", b"wunder\n")
    assert code == 1
    assert shown.endswith("geosocks passwd: the two passwords differ; nothing was changed\n")
    assert "nder" not in shown
    assert not file.exists()


@pytest.mark.parametrize("key", [b"\x04", b"\x03"], ids=["end-of-file", "interrupt"])
def test_giving_up_at_the_terminal_changes_nothing(file: Path, key: bytes) -> None:
    code, shown = on_a_terminal(file, key)
    assert code == 1
    assert shown.endswith("nothing was changed\n")
    assert "Traceback" not in shown
    assert not file.exists()


@needs_htpasswd
def test_apaches_htpasswd_takes_our_files_and_we_take_its(file: Path) -> None:
    assert passwd(file, "alice").code == 0
    for password, code in ((b"wonder", 0), (b"wunder", 3)):
        command = ["htpasswd", "-iv", str(file), "alice"]
        assert subprocess.run(command, input=password, capture_output=True).returncode == code
    command = ["htpasswd", "-iB", "-C", "4", str(file), "bob"]
    subprocess.run(command, input=b"builder", check=True, capture_output=True)
    file.chmod(0o600)
    assert passwd(file, "alice", given=b"looking glass\n").out == "changed user alice\n"
    users = UserFile.load(file)
    assert users.check(b"alice", b"looking glass")
    assert users.check(b"bob", b"builder")
