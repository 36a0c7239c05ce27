"""The users file: htpasswd format with bcrypt hashes, and who is in it.

One user a line, ``name:hash``; empty lines and lines that begin with ``#`` say nothing.  Names and
passwords are octets: nothing is decoded, normalised or case-folded.

Hashing is meant to be slow, so it happens in threads beside the hub, two of them whatever the
number of sessions, and a password found right is remembered for a minute.

Knows neither sockets nor RFC 1929.
"""

import os
import re
import stat
import time
from collections import Counter
from collections.abc import Callable, Mapping
from hashlib import blake2s
from pathlib import Path
from typing import Final, Self

import bcrypt
import gevent
from gevent.hub import Hub, get_hub
from gevent.threadpool import ThreadPool

from geosocks.compiling import mypyc_attr
from geosocks.errors import AuthFailed, ConfigError

DEFAULT_COST: Final = 10
"""log2 of bcrypt's rounds where nobody asked: some 60 ms of one core in 2026."""

COSTS: Final = range(4, 18)
"""Costs we take, bcrypt's least to ``htpasswd``'s most; the last is some 8 s for one password."""

MAX_NAME: Final = 255
"""Octets of the longest user name that UNAME holds (RFC 1929, section 2)."""

MAX_PASSWORD: Final = 72
"""Octets of the longest password that bcrypt looks at."""

MAX_FILE: Final = 16 << 20
"""Octets of the largest file read: some 200,000 users."""

OPEN_TO_OTHERS: Final = 0o027
"""Mode bits a users file must not have.  The group may read, as in root:geosocks 0640."""

HASHING_THREADS: Final = 2
MAX_WAITING: Final = 64
"""Passwords that may wait for a thread; the next one is refused."""

CACHE_SECONDS: Final = 60.0
MAX_CACHED: Final = 4096

MEND: Final = "make it anew with `geosocks passwd` or `htpasswd -B`"

_BCRYPT = re.compile(rb"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
_SCHEMES = (
    (rb"\$apr1\$", "MD5 (apr1)"),
    (rb"\$1\$", "MD5 (md5crypt)"),
    (rb"\$5\$", "SHA-256 (sha256crypt)"),
    (rb"\$6\$", "SHA-512 (sha512crypt)"),
    (rb"\$y\$", "yescrypt"),
    (rb"\$argon2", "Argon2"),
    (rb"\{SHA\}", "SHA-1 ({SHA})"),
    (rb"\{SSHA\}", "salted SHA-1 ({SSHA})"),
    (rb"\$2[abxy]?\$", "a damaged or an obsolete bcrypt"),
    (rb"[./A-Za-z0-9]{13}\Z", "DES (crypt)"),
)


@mypyc_attr(allow_interpreted_subclasses=True)
class UserFile:
    """The users of one htpasswd file; ``check`` is for ``PasswordAuthenticator``.

    Live state, for the greenlets of one hub: a cache of verified passwords and the hashing under
    way.  A reload makes a new one, and so forgets what was verified.
    """

    def __init__(
        self,
        hashes: Mapping[bytes, bytes],
        *,
        cache_seconds: float = CACHE_SECONDS,
        checkpw: Callable[[bytes, bytes], bool] = bcrypt.checkpw,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hashes = dict(hashes)
        self._dummy = _dummy_hash(self._hashes)
        self._cache_seconds = cache_seconds
        self._checkpw = checkpw
        self._clock = clock
        self._key = os.urandom(16)
        self._verified: dict[bytes, float] = {}  # when each expires, oldest first
        self._under_way: dict[bytes, gevent.Greenlet[..., bool | Exception]] = {}

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, cache_seconds: float = CACHE_SECONDS) -> Self:
        """Read a users file; what was verified is believed for ``cache_seconds``.

        Raises:
            ConfigError: it cannot be read, is open to others, or a line is not of a user.
        """
        try:
            data, status = read_file(path)
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror}", str(path)) from error
        mode = stat.S_IMODE(status.st_mode)
        if mode & OPEN_TO_OTHERS:
            mend = f"mend with `chmod {mode & ~OPEN_TO_OTHERS:o} {Path(path).name}`"
            raise ConfigError(f"mode {mode:04o} is open to others; {mend}", str(path))
        return cls(parse_users(data, str(path)), cache_seconds=cache_seconds)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self._hashes)} users)"

    def check(self, uname: bytes, passwd: bytes) -> bool:
        """Tell whether ``passwd`` is that of the user ``uname``; waits while it is hashed.

        An unknown user, and a password that no user can have, cost as much time as a wrong one.

        Raises:
            AuthFailed: nobody knows: too many passwords wait, or there is no thread to be had.
        """
        # What BLAKE2 makes of a secret and something behind it tells nothing of either: unlike
        # SHA-2, it needs no HMAC for that.  In one piece, since most fit in one block of 64.
        digest = blake2s(self._key + len(uname).to_bytes(4, "big") + uname + passwd).digest()
        if self._verified.get(digest, 0.0) > self._clock():
            return True
        # Those who ask the same wait together: a browser opens dozens of connections at once.
        hashing = self._under_way.get(digest)
        if hashing is None:
            hashing = self._begin(digest, uname, passwd)
        outcome = hashing.get()
        if isinstance(outcome, Exception):
            what = type(outcome).__name__  # and not its text: it was near a password
            raise AuthFailed(f"the password could not be hashed: {what}") from outcome
        return outcome is True  # a greenlet that was killed answers with a GreenletExit

    def _begin(
        self, digest: bytes, uname: bytes, passwd: bytes
    ) -> "gevent.Greenlet[..., bool | Exception]":
        """Start hashing.

        In a greenlet of its own, which those who wait may leave at any time.
        """
        if len(self._under_way) >= HASHING_THREADS + MAX_WAITING:
            raise AuthFailed(f"busy: {MAX_WAITING} passwords wait to be hashed already")
        hashed = None if fault_of_password(passwd) else self._hashes.get(uname)
        hashing = gevent.spawn(self._verify, digest, passwd, hashed)
        self._under_way[digest] = hashing
        hashing.rawlink(lambda _: self._under_way.pop(digest, None))
        return hashing

    def _verify(self, digest: bytes, passwd: bytes, hashed: bytes | None) -> bool | Exception:
        """Hash; without ``hashed`` only to pass the time."""
        job = (passwd, hashed) if hashed is not None else (b"", self._dummy)
        try:
            outcome = _hashing_pool().spawn(_outcome, self._checkpw, *job).get()
        except Exception as error:
            return error
        if outcome is True and hashed is not None:
            self._remember(digest)
            return True
        return outcome if isinstance(outcome, Exception) else False

    def _remember(self, digest: bytes) -> None:
        """Believe it for a while, and forget what is no longer believed, or too much."""
        now = self._clock()
        verified = self._verified
        verified.pop(digest, None)  # to have it at the end again
        while verified:
            oldest = next(iter(verified))
            if verified[oldest] > now and len(verified) < MAX_CACHED:
                break
            del verified[oldest]
        verified[digest] = now + self._cache_seconds


def read_file(path: str | os.PathLike[str]) -> tuple[bytes, os.stat_result]:
    """Read a users file whole, with its owner and mode.

    Raises:
        ConfigError: it is not a regular file, or too large.
        OSError: as the file system has it.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError("a users file must be a regular file", str(path))
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise ConfigError(f"larger than {MAX_FILE} octets", str(path))
    return data, status


def parse_users(data: bytes, path: str | None = None) -> dict[bytes, bytes]:
    """Read users and their hashes from the octets of a users file.

    Raises:
        ConfigError: at the first line that is not a user's.
    """
    users: dict[bytes, bytes] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        if is_remark(line):
            continue
        name, colon, hashed = line.rstrip().partition(b":")
        if not colon:
            raise ConfigError("no colon: a line is `name:hash`", path, number, len(name) + 1)
        fault = f"user {shown(name)} is here twice" if name in users else fault_of_name(name)
        if fault:
            raise ConfigError(fault, path, number, 1)
        fault = _fault_of_hash(hashed)
        if fault:
            what = f"the hash of user {shown(name)} {fault}; {MEND}"
            raise ConfigError(what, path, number, len(name) + 2)
        users[name] = hashed
    return users


def is_remark(line: bytes) -> bool:
    """True for a line without a user: empty, or a comment."""
    text = line.strip()
    return not text or text.startswith(b"#")


def fault_of_name(name: bytes) -> str | None:
    """Say why no user can have this name; None when one can."""
    if not name:
        return "a user name of no octets"
    if len(name) > MAX_NAME:
        return f"a user name of {len(name)} octets; SOCKS holds up to {MAX_NAME}"
    if b":" in name:
        return "a colon in a user name: it ends the name in the file"
    if any(octet < 0x20 or octet == 0x7F for octet in name):
        return "a control character in a user name"
    if is_remark(name):
        return "a user name that begins with # or is blank: the file would not show it"
    return None


def fault_of_password(password: bytes) -> str | None:
    """Say why no user can have this password; None when one can."""
    if not password:
        return "an empty password"
    if len(password) > MAX_PASSWORD:
        size = len(password)
        return f"a password of {size} octets; bcrypt would look at the first {MAX_PASSWORD} only"
    if b"\0" in password:
        return "a NUL in a password"
    return None


def shown(name: bytes) -> str:
    """Write a name in quotes, for people."""
    return ascii(name.decode("utf-8", "backslashreplace"))


def _fault_of_hash(hashed: bytes) -> str | None:
    match = _BCRYPT.fullmatch(hashed)
    if match:
        cost = int(match[1])
        if cost in COSTS:
            return None
        return f"has a cost of {cost}, which is outside {COSTS.start} to {COSTS.stop - 1}"
    for begin, scheme in _SCHEMES:
        if re.match(begin, hashed):
            return f"is {scheme}, not bcrypt"
    return "is not bcrypt but plain text, or nothing we know" if hashed else "is missing"


def _dummy_hash(hashes: Mapping[bytes, bytes]) -> bytes:
    """Make up a hash that costs what most of ``hashes`` do, and that no password has."""
    costs = Counter(hashed[4:6] for hashed in hashes.values())
    cost = max(costs, key=lambda cost: (costs[cost], cost), default=b"%02d" % DEFAULT_COST)
    return b"$2b$" + cost + b"$" + b"." * 53


def _open_at_once(path: str, flags: int) -> int:
    """Open, and not wait for ever for somebody to write into a fifo."""
    return os.open(path, flags | os.O_NONBLOCK)


_pools: dict[Hub, ThreadPool] = {}


def _hashing_pool() -> ThreadPool:
    """The threads of this hub that hash.

    Made at first use.  All user files share them, so a reload makes no more.
    """
    hub = get_hub()
    pool = _pools.get(hub)
    if pool is None:
        pool = _pools[hub] = ThreadPool(HASHING_THREADS, hub=hub)
    return pool


def _outcome(
    checkpw: Callable[[bytes, bytes], bool], passwd: bytes, hashed: bytes
) -> bool | Exception:
    """Run in a thread; an exception that leaves it would be printed by the hub."""
    try:
        return checkpw(passwd, hashed)
    except Exception as error:
        return error
