"""Keytabs: read for their names, never for their keys."""

from contextlib import suppress
from itertools import product
from pathlib import Path

import pytest

from geosocks.auth.gss import GssAuthenticator
from geosocks.auth.keytab import decode_keytab, read_keytab
from geosocks.errors import ConfigError


def entry(principal: str, kvno: int, enctype: int, long_kvno: int | None = None) -> bytes:
    name, _, realm = principal.partition("@")
    components = name.split("/")
    body = len(components).to_bytes(2, "big")
    for text in (realm, *components):
        body += len(text).to_bytes(2, "big") + text.encode()
    body += bytes(8) + bytes((kvno,)) + enctype.to_bytes(2, "big") + b"\x00\x03key"
    if long_kvno is not None:
        body += long_kvno.to_bytes(4, "big")
    return len(body).to_bytes(4, "big") + body


HOLE = (-5).to_bytes(4, "big", signed=True) + b"xxxxx"
KEYTAB = (
    b"\x05\x02"
    + entry("rcmd/a@R", 3, 18)
    + HOLE
    + entry("b@R", 1, 23, 300)
    + entry("c@R", 2, 99, 0)
)


def test_a_keytab_is_read_without_its_keys() -> None:
    entries = decode_keytab(KEYTAB + bytes(4) + b"rubbish behind the end")
    seen = [(entry.principal, entry.kvno, entry.enctype_name) for entry in entries]
    assert seen == [
        ("rcmd/a@R", 3, "aes256-cts-hmac-sha1-96"),
        ("b@R", 300, "arcfour-hmac"),
        ("c@R", 2, "enctype 99"),
    ]
    assert "key" not in repr(entries)


def test_a_keytab_cut_anywhere_is_a_shorter_one_or_damaged() -> None:
    for cut in range(len(KEYTAB)):
        with suppress(ValueError):
            assert len(decode_keytab(KEYTAB[:cut])) < 3


def test_a_keytab_with_any_octet_changed_is_read_or_damaged() -> None:
    for at, octet in product(range(len(KEYTAB)), (0x00, 0x7F, 0x80, 0xFF)):
        changed = KEYTAB[:at] + bytes((octet,)) + KEYTAB[at + 1 :]
        with suppress(ValueError):
            decode_keytab(changed)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a keytab"),
        (b"rcmd", "not a keytab"),
        (b"\x05\x01", "version other than 2"),
        (b"\x05\x02", "holds no key"),
        (b"\x05\x02" + HOLE, "holds no key"),
        (KEYTAB[:20], "cut off in the entry at octet 2"),
        (b"\x05\x02\x00\x00\x00\x03\x00\x09\x00", "entry at octet 2 is damaged"),
        (bytes(1 << 21), "larger than any keytab"),
        (None, "Is a directory"),
    ],
)
def test_a_keytab_of_no_use_is_a_configuration_error(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "keytab"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    for name in (str(path), f"FILE:{path}"):
        with pytest.raises(ConfigError) as caught:
            GssAuthenticator(keytab=name)
        assert reason in str(caught.value)
        assert str(caught.value).startswith(f"{path}: ")
        assert "ktadd" in str(caught.value)


def test_a_missing_keytab_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        GssAuthenticator(keytab=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="null byte"):
        read_keytab("key\x00tab")


def test_a_host_name_without_a_service_is_a_configuration_error(tmp_path: Path) -> None:
    path = tmp_path / "keytab"
    path.write_bytes(KEYTAB)
    with pytest.raises(ConfigError, match="needs a service name"):
        GssAuthenticator(keytab=str(path), hostname="localhost")
