"""Key tables as values, without their keys (MIT Kerberos, "Keytab file format", version 2).

A file is 05 02, then records: a signed length of four octets, and as many octets of entry; a
negative length is a hole, zero the end.  Every number is big-endian::

    count of components (2), realm, component, ...: each a length (2) and its octets
    name type (4), timestamp (4), kvno (1), enctype (2), key: a length (2) and its octets
    kvno (4), which replaces the short one; absent in old files

It tells an operator what libgssapi keeps to itself: whom a keytab is for, and how old it is.
"""

from dataclasses import dataclass
from typing import Final

from geosocks.errors import ConfigError

MAX_SIZE: Final = 1 << 20
"""Octets of the largest keytab that we read; a busy server's has some thousands."""

CURE: Final = "write one on the KDC: kadmin ktadd -k FILE rcmd/HOST"

ENCTYPES: Final = {
    1: "des-cbc-crc",
    2: "des-cbc-md4",
    3: "des-cbc-md5",
    16: "des3-cbc-sha1",
    17: "aes128-cts-hmac-sha1-96",
    18: "aes256-cts-hmac-sha1-96",
    19: "aes128-cts-hmac-sha256-128",
    20: "aes256-cts-hmac-sha384-192",
    23: "arcfour-hmac",
    24: "arcfour-hmac-exp",
    25: "camellia128-cts-cmac",
    26: "camellia256-cts-cmac",
}
"""Names by number (IANA registry "Kerberos Encryption Type Numbers")."""

WEAK: Final = frozenset((1, 2, 3, 16, 23, 24))
"""DES (RFC 6649), triple DES and RC4 (RFC 8429): deprecated, and off in present KDCs."""


@dataclass(frozen=True, slots=True)
class KeytabEntry:
    """One key of a keytab, without the key."""

    principal: str
    kvno: int
    enctype: int

    @property
    def enctype_name(self) -> str:
        """The enctype as klist writes it, or its number."""
        return ENCTYPES.get(self.enctype, f"enctype {self.enctype}")


def read_keytab(path: str) -> tuple[KeytabEntry, ...]:
    """Read the keytab in the file ``path``; never empty.

    Raises:
        ConfigError: it cannot be read, is no keytab, is damaged or holds no key.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_SIZE + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with NUL in it
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"the keytab cannot be read: {reason}; {CURE}", path) from error
    try:
        entries = decode_keytab(data)
    except ValueError as error:
        raise ConfigError(f"{error}; {CURE}", path) from error
    if not entries:
        raise ConfigError(f"the keytab holds no key; {CURE}", path)
    return entries


def decode_keytab(data: bytes) -> tuple[KeytabEntry, ...]:
    """The entries of the keytab ``data``, in its order.

    Raises:
        ValueError: it is no keytab of version 2, or is damaged.
    """
    if len(data) > MAX_SIZE:
        raise ValueError(f"larger than any keytab: over {MAX_SIZE} octets")
    if data[:1] != b"\x05":
        raise ValueError("not a keytab: it does not begin with 05")
    if data[1:2] != b"\x02":
        raise ValueError("a keytab of a version other than 2")
    entries = []
    at = 2
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big", signed=True)
        start, at = at, at + 4 + abs(size)
        if at > len(data):
            raise ValueError(f"the keytab is cut off in the entry at octet {start}")
        if size == 0:
            break
        if size > 0:
            try:
                entries.append(_Reader(data[start + 4 : at]).entry())
            except IndexError:
                raise ValueError(f"the keytab's entry at octet {start} is damaged") from None
    return tuple(entries)


class _Reader:
    """Reads one entry from its start; IndexError where it ends too early."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def entry(self) -> KeytabEntry:
        count = self._number(2)
        realm = self._text()
        components = [self._text() for _ in range(count)]
        self._take(4 + 4)  # name type, timestamp
        kvno = self._number(1)
        enctype = self._number(2)
        self._take(self._number(2))  # the key: read over, never kept
        if len(self._data) - self._at >= 4:
            kvno = self._number(4) or kvno
        return KeytabEntry(f"{'/'.join(components)}@{realm}", kvno, enctype)

    def _text(self) -> str:
        return self._take(self._number(2)).decode("utf-8", "backslashreplace")

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "big")

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise IndexError(end)
        taken = self._data[self._at : end]
        self._at = end
        return taken
