"""``geosocks gss-check``: what it finds, and what it says about it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from geosocks.cli.gss_check import Finding, check, clock_offset, judge_clock, main
from tests.support.kdc import REALM, SERVICE, Realm, environment


def found(findings: list[Finding], what: str) -> Finding:
    """The one finding about ``what``."""
    (finding,) = [finding for finding in findings if finding.what == what]
    return finding


@pytest.mark.kerberos
def test_all_is_well(realm: Realm, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--keytab", realm.keytab, "--hostname", "localhost"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"ok    default realm: {REALM}",
        f"ok    keytab: {realm.keytab}, mode 0600",
        f"ok    key: {SERVICE}@{REALM}, kvno 1: aes256-cts-hmac-sha1-96, aes128-cts-hmac-sha1-96",
        f"ok    principal: {SERVICE}",
        "ok    clock: as the KDC's",
        f"ok    handshake with itself: as {SERVICE}@{REALM}; confidentiality",
    ]


@pytest.mark.kerberos
def test_findings_as_json(realm: Realm, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--keytab", realm.keytab, "--hostname", "Localhost", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert {finding["state"] for finding in report["findings"]} == {"ok"}
    assert set(report["findings"][0]) == {"state", "what", "cause", "cure"}


@pytest.mark.kerberos
def test_the_system_keytab_is_the_default(realm: Realm) -> None:
    with environment(KRB5_KTNAME=f"FILE:{realm.keytab}"):
        assert found(check(hostname="localhost"), "keytab").state == "ok"


@pytest.mark.kerberos
def test_a_keytab_that_is_not_there(realm: Realm, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(realm.path / "none")
    assert main(["--keytab", path]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[-2] == f"fail  keytab: {path}: the keytab cannot be read: No such file or directory"
    )
    assert lines[-1].startswith("      cure: write one on the KDC")


@pytest.mark.kerberos
def test_a_keytab_that_everybody_may_read(realm: Realm, tmp_path: Path) -> None:
    keytab = tmp_path / "keytab"
    keytab.write_bytes(Path(realm.keytab).read_bytes())
    keytab.chmod(0o644)
    finding = found(check(str(keytab), hostname="localhost"), "keytab")
    assert (finding.state, finding.cure) == ("warn", f"chmod 0600 {keytab}")


@pytest.mark.kerberos
def test_a_keytab_for_another_name(realm: Realm) -> None:
    findings = check(realm.keytab, hostname="proxy.example.org")
    assert found(findings, "principal").state == "warn"
    assert "no key for rcmd/proxy.example.org" in found(findings, "principal").cause
    assert found(findings, "handshake with itself").state == "ok"


@pytest.mark.kerberos
def test_a_keytab_with_an_old_key(realm: Realm) -> None:
    realm.add_principal("old/localhost")
    keytab = realm.key_table("old/localhost")
    realm.change_key("old/localhost")
    finding = found(check(keytab, "old", "localhost"), "handshake with itself")
    assert finding.state == "fail"
    assert "different keys" in finding.cause
    assert "ktadd" in finding.cure


@pytest.mark.kerberos
def test_a_keytab_with_a_service_that_cannot_log_in(realm: Realm, tmp_path: Path) -> None:
    """A name the KDC does not know comes first, as in Active Directory's keytabs."""
    data = Path(realm.keytab).read_bytes()
    keytab = tmp_path / "keytab"
    keytab.write_bytes(data.replace(b"rcmd", b"nope") + data[2:])
    keytab.chmod(0o600)
    finding = found(check(str(keytab), hostname="localhost"), "handshake with itself")
    assert (finding.state, finding.cause) == ("ok", f"as {SERVICE}@{REALM}; confidentiality")
    keytab.write_bytes(data.replace(b"rcmd", b"nope"))
    finding = found(check(str(keytab), "nope", "localhost"), "handshake with itself")
    assert finding.state == "fail"
    assert "the KDC does not know the client" in finding.cause


@pytest.mark.kerberos
def test_a_keytab_with_weak_keys_only(realm: Realm, tmp_path: Path) -> None:
    keytab = tmp_path / "keytab"
    entry = b"\x00\x01\x00\x01R\x00\x01s" + bytes(8) + b"\x01\x00\x17\x00\x01k"
    keytab.write_bytes(b"\x05\x02" + len(entry).to_bytes(4, "big") + entry)
    finding = found(check(str(keytab)), "key")
    assert finding.state == "warn"
    assert "arcfour-hmac: deprecated" in finding.cause


@pytest.mark.kerberos
def test_no_kdc(realm: Realm) -> None:
    with realm.without_kdc():
        findings = check(realm.keytab, hostname="localhost")
    assert found(findings, "clock").state == "skip"
    assert "no KDC answers" in found(findings, "handshake with itself").cause


@pytest.mark.kerberos
def test_no_krb5_conf(realm: Realm) -> None:
    with environment(KRB5_CONFIG=str(realm.path / "none")):
        findings = check(realm.keytab, hostname="localhost")
    assert found(findings, "default realm").state == "fail"
    assert "default_realm" in found(findings, "default realm").cure
    assert found(findings, "handshake with itself").state == "fail"


HEADER = bytes.fromhex("0504 000c 0001 0008")
CCACHES = [
    (HEADER + bytes(8), 0),
    (HEADER + bytes.fromhex("0000 0190 0000 0000") + b"more", 400),
    (HEADER + bytes.fromhex("ffff ff38 0000 0000"), -200),
    (bytes.fromhex("0504 0013 0007 0003 78797a 0001 0008 0000 0005 0000 0000"), 5),
    (bytes.fromhex("0504 0000"), None),
    (bytes.fromhex("0504 000c 0001 0008 00"), None),
    (bytes.fromhex("0503 000c 0001 0008") + bytes(8), None),
    (b"", None),
]


@pytest.mark.parametrize(("ccache", "offset"), CCACHES)
def test_the_clock_is_what_the_cache_notes(ccache: bytes, offset: int | None) -> None:
    assert clock_offset(ccache) == offset


@pytest.mark.parametrize(
    ("offset", "state", "cause"),
    [
        (0, "ok", "as the KDC's"),
        (-5, "ok", "5 s ahead of the KDC's"),
        (90, "warn", "90 s behind the KDC's"),
        (-300, "fail", "300 s ahead of the KDC's"),
        (None, "skip", "cannot be compared: the library did not note the KDC's"),
    ],
)
def test_what_the_clock_means(offset: int | None, state: str, cause: str) -> None:
    finding = judge_clock(offset)
    assert (finding.state, finding.cause) == (state, cause)
    assert bool(finding.cure) == (state in ("warn", "fail"))


def test_without_the_package_it_says_what_to_install() -> None:
    program = """
import sys
sys.modules["gssapi"] = None
from geosocks.cli.gss_check import main
sys.exit(main(["--hostname", "localhost"]))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (1, "")
    assert "pip install 'geosocks[gssapi]'" in run.stdout


def test_wrong_usage_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--no-such-option"])
    assert caught.value.code == 2
    assert "geosocks gss-check" in capsys.readouterr().err
