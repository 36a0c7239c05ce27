"""The users file: what a line may hold, what a check costs, and what is remembered."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import get_ident

import bcrypt
import gevent
import pytest
from gevent import Timeout
from gevent.event import Event

from geosocks.auth import htpasswd
from geosocks.auth.htpasswd import MAX_CACHED, UserFile, parse_users
from geosocks.errors import AuthFailed, ConfigError

WONDER = bcrypt.hashpw(b"wonder", bcrypt.gensalt(4))
CHEAP = WONDER.decode()


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    with Timeout(10):
        yield


class Hashing:
    """Stands in for bcrypt.checkpw: counts, and can be made to wait or to fail."""

    def __init__(self, right: bytes = b"wonder") -> None:
        self.right = right
        self.calls: list[tuple[bytes, bytes]] = []
        self.threads: set[int] = set()
        self.error: Exception | None = None

    def __call__(self, passwd: bytes, hashed: bytes) -> bool:
        self.calls.append((passwd, hashed))
        self.threads.add(get_ident())
        if self.error:
            raise self.error
        return passwd == self.right


class Gate(Hashing):
    """Hashing that waits, in its thread, until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.reader, self.writer = os.pipe()

    def __call__(self, passwd: bytes, hashed: bytes) -> bool:
        os.read(self.reader, 1)
        return super().__call__(passwd, hashed)

    def let_go(self, count: int) -> None:
        os.write(self.writer, b"." * count)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.let_go(1000)  # so that no thread stays in it
    for pool in htpasswd._pools.values():
        pool.join()
    os.close(gate.reader)
    os.close(gate.writer)


class Clock:
    """A number that a test turns forward."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def users(hashing: Callable[[bytes, bytes], bool], **options: object) -> UserFile:
    return UserFile({b"alice": WONDER}, checkpw=hashing, **options)


def written(path: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    return path


# --- the file


def test_a_file_with_everything_that_may_be_in_it(tmp_path: Path) -> None:
    a, y = CHEAP.replace("$2b$", "$2a$"), CHEAP.replace("$2b$", "$2y$")
    text = f"# staff\n\nalice:{CHEAP}\r\n  \n  # more\nbob:{a}  \nZ\u00fcrich user:{y}\nAlice:{a}"
    path = written(tmp_path / "users", text.encode("latin-1"))
    users = UserFile.load(path)
    for name in (b"alice", b"bob", b"Z\xfcrich user", b"Alice"):
        assert users.check(name, b"wonder")
        assert not users.check(name, b"Wonder")
    assert not users.check(b"ALICE", b"wonder")
    assert not users.check("Z\u00fcrich user".encode(), b"wonder")
    assert not users.check(b"# staff", b"wonder")
    assert repr(users) == str(users) == "UserFile(4 users)"


def test_a_file_without_users_lets_nobody_in(tmp_path: Path) -> None:
    users = UserFile.load(written(tmp_path / "users", ""))
    assert not users.check(b"alice", b"wonder")


@pytest.mark.parametrize(
    ("hashed", "said"),
    [
        ("$apr1$abcdefgh$0123456789012345678901", "is MD5 (apr1), not bcrypt"),
        ("$1$abcdefgh$0123456789012345678901", "is MD5 (md5crypt), not bcrypt"),
        ("$5$salt$hash", "is SHA-256 (sha256crypt), not bcrypt"),
        ("$6$salt$hash", "is SHA-512 (sha512crypt), not bcrypt"),
        ("$y$j9T$salt$hash", "is yescrypt, not bcrypt"),
        ("$argon2id$v=19$m=1$x$y", "is Argon2, not bcrypt"),
        ("{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=", "is SHA-1 ({SHA}), not bcrypt"),
        ("{SSHA}5en6G6MezRroT3XKqkdPOmY/BfQ=", "is salted SHA-1 ({SSHA}), not bcrypt"),
        ("rqXexS6ZhobKA", "is DES (crypt), not bcrypt"),
        ("wonder", "is not bcrypt but plain text"),
        ("", "is missing"),
        (CHEAP[:-1], "is a damaged or an obsolete bcrypt"),
        (CHEAP + "x", "is a damaged or an obsolete bcrypt"),
        (CHEAP + ":Alice Liddell", "is a damaged or an obsolete bcrypt"),
        (CHEAP.replace("$2b$", "$2x$"), "is a damaged or an obsolete bcrypt"),
        (CHEAP[:28] + "z" + CHEAP[29:], "is a damaged or an obsolete bcrypt"),
        (CHEAP.replace("$04$", "$03$"), "has a cost of 3, which is outside 4 to 17"),
        (CHEAP.replace("$04$", "$18$"), "has a cost of 18, which is outside 4 to 17"),
    ],
)
def test_a_hash_that_is_not_bcrypt_says_what_it_is(hashed: str, said: str) -> None:
    data = f"bob:{CHEAP}\nalice:{hashed}\n".encode()
    with pytest.raises(ConfigError) as caught:
        parse_users(data, "users")
    text = str(caught.value)
    assert text.startswith("users:2:7: the hash of user 'alice' ")
    assert said in text
    assert text.endswith("make it anew with `geosocks passwd` or `htpasswd -B`")
    assert len(hashed) < 6 or hashed not in text


@pytest.mark.parametrize(
    ("line", "column", "said"),
    [
        (b"wonder", 7, "no colon"),
        (b":" + WONDER, 1, "no octets"),
        (b"bob:" + WONDER, 1, "user 'bob' is here twice"),
        (b"x" * 256 + b":" + WONDER, 1, "256 octets"),
        (b"a\x00b:" + WONDER, 1, "control character"),
        (b"a\x7f:" + WONDER, 1, "control character"),
        (b"a\rb:" + WONDER, 1, "control character"),
    ],
)
def test_a_bad_line_is_named_and_not_shown(line: bytes, column: int, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_users(b"bob:" + WONDER + b"\n" + line + b"\n", "users")
    error = caught.value
    assert (error.path, error.line, error.column) == ("users", 2, column)
    assert said in str(error)
    assert "wonder" not in str(error)
    assert str(error).isprintable()


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o601, 0o620, 0o660, 0o644, 0o666])
def test_a_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path / "users", f"alice:{CHEAP}\n", mode)
    with pytest.raises(ConfigError, match=rf"mode 0{mode:o} is open to others") as caught:
        UserFile.load(path)
    mend = str(caught.value).rpartition("chmod ")[2].split()[0]
    path.chmod(int(mend, 8))
    UserFile.load(path)


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o440, 0o640])
def test_the_group_may_read(tmp_path: Path, mode: int) -> None:
    UserFile.load(written(tmp_path / "users", f"alice:{CHEAP}\n", mode))


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    for path, said in (
        (fifo, "must be a regular file"),
        (tmp_path, "cannot be read: Is a directory"),
        (tmp_path / "none", "cannot be read: No such file"),
    ):
        with pytest.raises(ConfigError, match=said) as caught:
            UserFile.load(path)
        assert str(caught.value).startswith(str(path))
    assert os.listdir("/proc/self/fd") == before


def test_a_file_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "users", f"alice:{CHEAP}\n")
    monkeypatch.setattr(htpasswd, "MAX_FILE", path.stat().st_size)
    UserFile.load(path)
    monkeypatch.setattr(htpasswd, "MAX_FILE", path.stat().st_size - 1)
    with pytest.raises(ConfigError, match="larger than"):
        UserFile.load(path)


@pytest.mark.skipif(not shutil.which("htpasswd"), reason="needs Apache's htpasswd")
def test_a_file_of_apaches_htpasswd_works(tmp_path: Path) -> None:
    path = written(tmp_path / "users", "")
    for name, password in (("alice", "wonder"), ("bob", "p" * 72)):
        command = ["htpasswd", "-iB", "-C", "4", str(path), name]
        subprocess.run(command, input=password.encode(), check=True, capture_output=True)
    users = UserFile.load(path)
    assert users.check(b"alice", b"wonder")
    assert users.check(b"bob", b"p" * 72)
    assert not users.check(b"bob", b"p" * 71)


# --- what a refusal costs


@pytest.mark.parametrize(
    ("uname", "passwd"),
    [
        pytest.param(b"mallory", b"wonder", id="unknown-user"),
        pytest.param(b"", b"wonder", id="no-user"),
        pytest.param(b"\0", b"wonder", id="nul-for-a-user"),
        pytest.param(b"alice\0", b"wonder", id="nul-after-a-user"),
        pytest.param(b"alice", b"", id="no-password"),
        pytest.param(b"alice", b"wonder\0", id="nul-in-a-password"),
        pytest.param(b"alice", b"w" * 73, id="73-octets"),
        pytest.param(b"alice", b"w" * 255, id="255-octets"),
        pytest.param(b"alice", b"wunder", id="wrong"),
    ],
)
def test_every_refusal_costs_one_hash_of_the_same_cost(uname: bytes, passwd: bytes) -> None:
    hashing = Hashing()
    assert not users(hashing).check(uname, passwd)
    [(hashed_password, hashed)] = hashing.calls
    assert hashed[4:6] == b"04"
    assert bcrypt.checkpw(hashed_password, hashed) is False  # and bcrypt would take both


def test_what_no_user_can_have_is_refused_even_if_the_hash_said_yes() -> None:
    def yes(passwd: bytes, hashed: bytes) -> bool:
        return True

    users = UserFile({b"alice": WONDER}, checkpw=yes)
    for _ in range(2):
        assert not users.check(b"mallory", b"wonder")
        assert not users.check(b"alice", b"")
        assert not users.check(b"alice", b"a\0b")
        assert not users.check(b"alice", b"x" * 73)


def test_72_octets_are_the_most() -> None:
    longest = b"p" * 72
    users = UserFile({b"alice": bcrypt.hashpw(longest, bcrypt.gensalt(4))})
    assert users.check(b"alice", longest)
    assert not users.check(b"alice", longest + b"p")


def test_the_dummy_costs_what_most_users_do() -> None:
    def cost_of(*costs: str) -> bytes:
        hashing = Hashing()
        hashes = {b"%d" % n: CHEAP.replace("$04$", f"${c}$").encode() for n, c in enumerate(costs)}
        UserFile(hashes, checkpw=hashing).check(b"mallory", b"x")
        return hashing.calls[0][1][4:6]

    assert cost_of("05", "05", "12") == b"05"
    assert cost_of("05", "12") == b"12"
    assert cost_of() == b"10"


def test_hashing_happens_in_other_threads_and_no_more_than_two() -> None:
    hashing = Hashing()
    some = users(hashing)
    gevent.joinall([gevent.spawn(some.check, b"alice", b"%d" % n) for n in range(20)])
    UserFile({b"bob": WONDER}, checkpw=hashing).check(b"bob", b"x")  # as after a reload
    assert len(hashing.calls) == 21
    assert get_ident() not in hashing.threads
    assert len(hashing.threads) <= 2


# --- what is remembered


def test_a_right_password_is_hashed_once_a_minute() -> None:
    hashing, clock = Hashing(), Clock()
    some = users(hashing, clock=clock)
    for now in (1000.0, 1030.0, 1059.9):
        clock.now = now
        assert some.check(b"alice", b"wonder")
    assert len(hashing.calls) == 1
    clock.now = 1060.0
    assert some.check(b"alice", b"wonder")
    assert len(hashing.calls) == 2


def test_a_wrong_password_is_hashed_each_time() -> None:
    hashing = Hashing()
    some = users(hashing)
    for _ in range(3):
        assert not some.check(b"alice", b"wunder")
        assert not some.check(b"mallory", b"wonder")
    assert len(hashing.calls) == 6


def test_nothing_is_remembered_for_no_time() -> None:
    hashing = Hashing()
    some = users(hashing, cache_seconds=0)
    assert some.check(b"alice", b"wonder")
    assert some.check(b"alice", b"wonder")
    assert len(hashing.calls) == 2


def test_where_the_name_ends_matters() -> None:
    hashing = Hashing()
    some = UserFile({b"al": WONDER, b"alice": WONDER}, checkpw=hashing)
    hashing.right = b"icewonder"
    assert some.check(b"al", b"icewonder")
    assert not some.check(b"alice", b"wonder")


def test_a_reload_forgets() -> None:
    hashing = Hashing()
    assert users(hashing).check(b"alice", b"wonder")
    hashing.right = b"changed"
    assert not users(hashing).check(b"alice", b"wonder")


def test_no_more_is_remembered_than_the_bound_and_the_oldest_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert MAX_CACHED == 4096
    monkeypatch.setattr(htpasswd, "MAX_CACHED", 2)
    hashing = Hashing()
    some = UserFile(dict.fromkeys((b"a", b"b", b"c"), WONDER), checkpw=hashing)
    for name in (b"a", b"b", b"c", b"b", b"c"):
        assert some.check(name, b"wonder")
    assert len(some._verified) == 2
    assert len(hashing.calls) == 3
    assert some.check(b"a", b"wonder")
    assert len(hashing.calls) == 4


def test_what_has_expired_is_dropped() -> None:
    clock = Clock()
    some = UserFile(dict.fromkeys((b"a", b"b", b"c"), WONDER), checkpw=Hashing(), clock=clock)
    for name in (b"a", b"b"):
        assert some.check(name, b"wonder")
    clock.now += 60
    assert some.check(b"c", b"wonder")
    assert len(some._verified) == 1


def test_no_secret_is_kept() -> None:
    some = users(Hashing())
    assert some.check(b"alice", b"wonder")
    assert b"wonder" not in b"".join(some._verified)
    assert "wonder" not in repr(vars(some))


# --- many at once


def test_those_who_ask_the_same_share_one_hash(gate: Gate) -> None:
    some = users(gate)
    asking = [gevent.spawn(some.check, b"alice", b"wonder") for _ in range(50)]
    asking += [gevent.spawn(some.check, b"alice", b"wunder") for _ in range(50)]
    gevent.sleep(0)
    gate.let_go(2)
    assert [greenlet.get() for greenlet in asking] == [True] * 50 + [False] * 50
    assert len(gate.calls) == 2
    assert not some._under_way


def test_too_many_waiting_is_busy_and_not_for_ever(gate: Gate) -> None:
    some = users(gate)
    waiting = [gevent.spawn(some.check, b"alice", b"%d" % n) for n in range(66)]
    gevent.sleep(0)
    with pytest.raises(AuthFailed, match=r"^busy"):
        some.check(b"alice", b"one more")
    joined = gevent.spawn(some.check, b"alice", b"65")  # asks what is asked already
    gate.let_go(66)
    assert not any(greenlet.get() for greenlet in [*waiting, joined])
    gate.let_go(1)
    assert not some.check(b"alice", b"one more")


def test_who_is_remembered_passes_when_it_is_busy(gate: Gate) -> None:
    some = users(gate)
    gate.let_go(1)
    assert some.check(b"alice", b"wonder")
    waiting = [gevent.spawn(some.check, b"alice", b"%d" % n) for n in range(66)]
    gevent.sleep(0)
    assert some.check(b"alice", b"wonder")
    gate.let_go(66)
    gevent.joinall(waiting)


def test_who_runs_out_of_time_leaves_and_the_others_stay(
    gate: Gate, capfd: pytest.CaptureFixture[str]
) -> None:
    some = users(gate)
    staying = gevent.spawn(some.check, b"alice", b"wonder")
    fillers = [gevent.spawn(some.check, b"alice", b"%d" % n) for n in range(5)]
    gevent.sleep(0)
    for passwd in (b"wonder", b"4", b"of its own"):  # hashed now, waiting, and started by it
        with pytest.raises(TimeoutError, match="too slow"), Timeout(0.01, TimeoutError("too slow")):
            some.check(b"alice", passwd)
    gate.let_go(7)
    assert staying.get() is True
    gevent.joinall(fillers)
    gate.let_go(1)
    assert some.check(b"alice", b"of its own") is False
    assert not some._under_way
    assert capfd.readouterr() == ("", "")


def test_a_killed_hashing_lets_nobody_in_and_locks_nobody_out(gate: Gate) -> None:
    some = users(gate)
    asking = gevent.spawn(some.check, b"alice", b"wonder")
    gevent.sleep(0)
    gevent.killall(list(some._under_way.values()))
    assert asking.get() is False
    asking = gevent.spawn(some.check, b"alice", b"wonder")
    gevent.sleep(0)
    gate.let_go(2)
    assert asking.get() is True


def test_hashing_that_fails_refuses_without_a_word_of_its_own(
    capfd: pytest.CaptureFixture[str],
) -> None:
    hashing = Hashing()
    hashing.error = ValueError("cannot hash wonder")
    some = users(hashing)
    with pytest.raises(AuthFailed, match=r"^the password could not be hashed: ValueError$"):
        some.check(b"alice", b"wonder")
    hashing.error = None
    assert some.check(b"alice", b"wonder")
    assert capfd.readouterr() == ("", "")


def test_no_thread_to_be_had_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left() -> None:
        raise RuntimeError("can't start new thread")

    some = users(Hashing())
    with monkeypatch.context() as patched:
        patched.setattr(htpasswd, "_hashing_pool", none_left)
        with pytest.raises(AuthFailed, match="could not be hashed: RuntimeError"):
            some.check(b"alice", b"wonder")
    assert some.check(b"alice", b"wonder")


def test_the_hub_runs_on_while_bcrypt_works() -> None:
    some = UserFile({b"alice": bcrypt.hashpw(b"wonder", bcrypt.gensalt(10))})
    turns = 0
    done = Event()

    def turn() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            gevent.sleep(0.001)

    turning = gevent.spawn(turn)
    assert some.check(b"alice", b"wonder")
    done.set()
    turning.join()
    assert turns >= 5
