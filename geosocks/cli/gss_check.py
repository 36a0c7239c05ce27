"""``geosocks gss-check``: is Kerberos set up for a SOCKS server on this host?

Looks at each thing that a client's first connection would need, in that order, and ends with a
real handshake between this keytab and itself.  Every finding says what was seen, and where it is
not well, the likely cause and the cure.
"""

import argparse
import json
import os
import socket
import stat
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Literal

from geosocks.auth.gss import REQUESTED, SERVICE
from geosocks.auth.gss_context import (
    Acceptor,
    Context,
    ContextFlag,
    diagnose,
    initiate,
    load_gssapi,
    minor_of,
)
from geosocks.auth.keytab import CURE, WEAK, KeytabEntry, read_keytab
from geosocks.errors import ConfigError

State = Literal["ok", "warn", "fail", "skip"]

SYSTEM_KEYTAB: Final = "/etc/krb5.keytab"
MAX_LOGINS: Final = 5
"""Principals of the keytab that try to log in; a keytab may hold hundreds."""

CLOCK_FAIL: Final = 300
"""Seconds of difference from which tickets are refused (krb5.conf: clockskew)."""
CLOCK_WARN: Final = 60

_CLIENT_UNKNOWN: Final = 6
_KDC_UNREACHABLE: Final = frozenset((154, 156, 220))
_CLOCK_SKEW: Final = frozenset((37, 148))


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.  ``cure`` is empty where nothing needs one."""

    state: State
    what: str
    cause: str
    cure: str = ""


def main(argv: Sequence[str]) -> int:
    """Run the command; exit code 0 when all is well, 1 otherwise, 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="geosocks gss-check", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(argv))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--keytab", metavar="F", help="the server's keytab (default: the system's)")
    parser.add_argument(
        "--service",
        metavar="S",
        default=SERVICE,
        help="service name that clients ask for (default: %(default)s)",
    )
    parser.add_argument(
        "--hostname", metavar="H", help="host name that clients ask for (default: this host's)"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Check and print."""
    findings = check(args.keytab, args.service, args.hostname)
    well = all(finding.state in ("ok", "skip") for finding in findings)
    if args.json:
        print(json.dumps({"ok": well, "findings": [asdict(f) for f in findings]}, indent=2))
    else:
        for finding in findings:
            print(f"{finding.state:4}  {finding.what}: {finding.cause}")
            if finding.cure:
                print(f"      cure: {finding.cure}")
    return 0 if well else 1


def check(
    keytab: str | None = None, service: str = SERVICE, hostname: str | None = None
) -> list[Finding]:
    """Look at the package, krb5.conf, the keytab, the clock and a handshake.

    May wait for a KDC, for as long as the Kerberos library does.
    """
    hostname = (hostname or socket.getfqdn()).lower()
    try:
        gssapi = load_gssapi()
    except ConfigError as error:
        return [Finding("fail", "gssapi package", str(error))]
    findings = [_package(), _realm(gssapi)]
    path = keytab or os.environ.get("KRB5_KTNAME", SYSTEM_KEYTAB)
    path = path.removeprefix("FILE:")
    try:
        entries = read_keytab(path)
    except ConfigError as error:
        cause = f"{path}: {error.what.removesuffix('; ' + CURE)}"
        return [*findings, Finding("fail", "keytab", cause, CURE)]
    findings += [
        _permissions(path),
        *_keys(entries),
        _principal(entries, f"{service}/{hostname}"),
    ]
    findings += _handshake(gssapi, path, entries, service, hostname)
    return findings


def _package() -> Finding:
    try:
        return Finding("ok", "gssapi package", f"version {version('gssapi')}")
    except PackageNotFoundError:
        return Finding("ok", "gssapi package", "present")


def _realm(gssapi: Any) -> Finding:
    """The default realm, learnt as the library itself completes a name."""
    what = "default realm"
    try:
        name = gssapi.Name("x", gssapi.NameType.user).canonicalize(gssapi.MechType.kerberos)
    except gssapi.exceptions.GSSError as error:
        return Finding("fail", what, *diagnose(error))
    return Finding("ok", what, str(name).partition("@")[2])


def _permissions(path: str) -> Finding:
    """Who may read the keytab: whoever can, can be the server, and read its tickets."""
    mode = stat.S_IMODE(Path(path).stat().st_mode)
    seen = f"{path}, mode {mode:04o}"
    if mode & 0o007:
        return Finding("warn", "keytab", f"{seen}: open to everybody", f"chmod 0600 {path}")
    return Finding("ok", "keytab", seen)


def _keys(entries: Sequence[KeytabEntry]) -> Iterator[Finding]:
    """The keys: a finding for each principal and kvno."""
    keys: dict[tuple[str, int], list[KeytabEntry]] = {}
    for entry in entries:
        keys.setdefault((entry.principal, entry.kvno), []).append(entry)
    for (principal, kvno), found in keys.items():
        names = ", ".join(entry.enctype_name for entry in found)
        seen = f"{principal}, kvno {kvno}: {names}"
        if all(entry.enctype in WEAK for entry in found):
            yield Finding(
                "warn",
                "key",
                f"{seen}: deprecated (RFC 6649, RFC 8429), and off in present KDCs",
                "give the principal aes256 keys and write the keytab anew (kadmin ktadd)",
            )
        else:
            yield Finding("ok", "key", seen)


def _principal(entries: Sequence[KeytabEntry], wanted: str) -> Finding:
    """Whether there is a key for the name that clients will ask for."""
    if any(entry.principal.rpartition("@")[0] == wanted for entry in entries):
        return Finding("ok", "principal", wanted)
    return Finding(
        "warn",
        "principal",
        f"no key for {wanted}, which clients of this host ask for",
        f"kadmin addprinc -randkey {wanted}, then ktadd; or tell clients, and --service and "
        "--hostname here, the name that the keytab has",
    )


def _handshake(
    gssapi: Any, path: str, entries: Sequence[KeytabEntry], service: str, hostname: str
) -> Iterator[Finding]:
    """Log in with the keytab, then be a client of oneself; what that says of the clock first."""
    principals = tuple(dict.fromkeys(entry.principal for entry in entries))
    with tempfile.TemporaryDirectory(prefix="geosocks-") as folder:
        ccache = Path(folder, "ccache")
        store = {"client_keytab": path, "ccache": f"FILE:{ccache}"}
        try:
            principal, context = _log_in(
                gssapi, principals, _target(principals, service, hostname), store
            )
            yield judge_clock(clock_offset(ccache.read_bytes()))
            flags = _complete(context, Acceptor(path)())
        except gssapi.exceptions.GSSError as error:
            yield from _failed(error, principals)
        except ConfigError as error:
            yield Finding("fail", "handshake with itself", str(error))
        else:
            can = "confidentiality" if flags & ContextFlag.CONF else "integrity only"
            yield Finding("ok", "handshake with itself", f"as {principal}; {can}")


def _log_in(
    gssapi: Any, principals: Sequence[str], target: str, store: dict[str, str]
) -> tuple[str, Context]:
    """The first principal that the KDC lets in, and its context with ``target``.

    A name may be a service's only, which cannot log in (so it is in Active Directory, where the
    account's own name is in the keytab beside it).
    """
    for principal in principals[:MAX_LOGINS]:
        try:
            return principal, initiate(target, REQUESTED, principal, store)
        except gssapi.exceptions.GSSError as error:
            if minor_of(error) != _CLIENT_UNKNOWN:
                raise
            unknown = error
    raise unknown


def _target(principals: Sequence[str], service: str, hostname: str) -> str:
    """The name to ask for: the one that clients will, or else the first that the keytab has."""
    names = [principal.rpartition("@")[0] for principal in principals]
    if f"{service}/{hostname}" not in names:
        for name in names:
            first, slash, rest = name.partition("/")
            if slash:
                return f"{first}@{rest}"
    return f"{service}@{hostname}"


def _complete(initiator: Context, acceptor: Context) -> ContextFlag:
    """Let both ends talk until the context is complete; its flags."""
    token = initiator.step()
    while token:
        token = acceptor.step(token)
        if token:
            token = initiator.step(token)
    return ContextFlag(int(acceptor.actual_flags))


def _failed(error: Any, principals: Sequence[str]) -> Iterator[Finding]:
    """What a failed handshake says."""
    minor = minor_of(error)
    if minor in _KDC_UNREACHABLE:
        yield Finding("skip", "clock", "cannot be compared: no KDC answers")
    elif minor in _CLOCK_SKEW:
        yield Finding("fail", "clock", *diagnose(error))
    cause, cure = diagnose(error, principals)
    yield Finding("fail", "handshake with itself", cause, cure)


def judge_clock(offset: int | None) -> Finding:
    """What the KDC's clock says of ours."""
    if offset is None:
        return Finding("skip", "clock", "cannot be compared: the library did not note the KDC's")
    seen = f"{abs(offset)} s {'behind' if offset > 0 else 'ahead of'} the KDC's"
    if abs(offset) < CLOCK_WARN:
        return Finding("ok", "clock", seen if offset else "as the KDC's")
    cure = "set both clocks, for example by NTP"
    return Finding("fail" if abs(offset) >= CLOCK_FAIL else "warn", "clock", seen, cure)


def clock_offset(ccache: bytes) -> int | None:
    """Seconds by which the KDC's clock was ahead of ours, as a new ``ccache`` notes; None if not.

    MIT Kerberos, "Credential cache file format", version 4: 05 04, the header's length (2), then
    fields of tag (2), length (2) and value; tag 1 is the offset, seconds (4) and microseconds (4).
    """
    if ccache[:2] != b"\x05\x04":
        return None
    end = 4 + int.from_bytes(ccache[2:4], "big")
    at = 4
    while at + 4 <= min(end, len(ccache)):
        tag, size = ccache[at : at + 2], int.from_bytes(ccache[at + 2 : at + 4], "big")
        value = ccache[at + 4 : at + 4 + size]
        if tag == b"\x00\x01" and len(value) >= 4:
            return int.from_bytes(value[:4], "big", signed=True)
        at += 4 + size
    return None
