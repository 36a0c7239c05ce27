"""A Kerberos realm to throw away: a real KDC on loopback, for the tests that carry `kerberos`.

Needs Debian's krb5-kdc, krb5-admin-server and krb5-user, and the k5test package.  Where they are
missing the tests fail and say so, unless ``GEOSOCKS_SKIP_KERBEROS=1`` asks to leave them out.

The conftest says ``from tests.support.kdc import realm``, so that a run makes one realm for all.
"""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

REALM: Final = "GEOSOCKS.TEST"
SERVICE: Final = "rcmd/localhost"
"""The server's principal: what a client of ``localhost`` asks for by default."""
USER: Final = "alice"

PROGRAMS: Final = ("krb5kdc", "kadmin.local", "kdb5_util", "kinit", "klist")
SYSTEM_PLACES: Final = "/usr/sbin:/usr/local/sbin:/sbin"
SKIP: Final = "GEOSOCKS_SKIP_KERBEROS"


def what_is_missing() -> str | None:
    """What a realm lacks here, with the cure; None when it can be made."""
    places = os.environ.get("PATH", os.defpath) + ":" + SYSTEM_PLACES
    absent = [program for program in PROGRAMS if shutil.which(program, path=places) is None]
    if absent:
        return f"no {', '.join(absent)}: apt-get install krb5-kdc krb5-admin-server krb5-user"
    try:
        import gssapi  # noqa: F401
        import k5test  # noqa: F401
    except ImportError as error:
        return f"{error}: pip install gssapi k5test"
    return None


class Realm:
    """The running realm.  ``alice`` is a user, ``rcmd/localhost`` the service in ``keytab``."""

    def __init__(self) -> None:
        from k5test.realm import MITRealm

        class LoopbackRealm(MITRealm):
            hostname = "localhost"  # k5test asks DNS for this machine's name

        port = _free_port()
        here = f"127.0.0.1:{port}"
        self._krb5_conf: dict[str, dict[str, object]] = {
            "libdefaults": {
                "dns_lookup_realm": "false",
                "dns_canonicalize_hostname": "false",
                "dns_uri_lookup": "false",
                "rdns": "false",
                "default_ccache_name": "FILE:$tmpdir/ccache",
            },
            "realms": {"$realm": {"kdc": here}},
            "domain_realm": {"localhost": "$realm"},
        }
        self._k5 = LoopbackRealm(
            realm=REALM,
            portbase=port,
            krb5_conf=self._krb5_conf,
            kdc_conf={"realms": {"$realm": {"kdc_listen": here, "kdc_tcp_listen": here}}},
            create_user=False,
            create_host=False,
            get_creds=False,
        )
        self.name = REALM
        self.path = Path(self._k5.tmpdir)
        self.env: dict[str, str] = dict(self._k5.env)
        self.password = self._k5.password(USER)
        self.add_principal(USER, self.password)
        self.add_principal(SERVICE)
        self.keytab = self.key_table(SERVICE)

    def add_principal(self, principal: str, password: str | None = None) -> None:
        """Make ``principal``; a random key unless it has a password."""
        self._k5.addprinc(f"{principal}@{REALM}", password)

    def change_key(self, principal: str) -> None:
        """Give ``principal`` a new random key under the next kvno."""
        self._k5.change_password(f"{principal}@{REALM}")

    def key_table(self, *principals: str) -> str:
        """Write a keytab with the present keys of ``principals``; its path."""
        path = self._new("keytab")
        for principal in principals:
            self._k5.extract_keytab(f"{principal}@{REALM}", path)
        return path

    def ticket(self, user: str = USER, *, lifetime: str | None = None) -> str:
        """Get ``user`` a ticket-granting ticket (kinit); the path of its credential cache."""
        path = self._new("ccache")
        options = ["-c", path]
        if lifetime is not None:
            options += ["-l", lifetime]
        self._k5.kinit(f"{user}@{REALM}", self.password, flags=options)
        return path

    def config(self, name: str, **libdefaults: str) -> str:
        """Write a krb5.conf like the realm's but for ``libdefaults``; its path."""
        conf = self._krb5_conf | {"libdefaults": self._krb5_conf["libdefaults"] | libdefaults}
        return str(self._k5.special_env(name, False, krb5_conf=conf)["KRB5_CONFIG"])

    @contextmanager
    def without_kdc(self) -> Iterator[None]:
        """Stop the KDC, and start it again after."""
        self._k5.stop_kdc()
        try:
            yield
        finally:
            self._k5.start_kdc()

    def _new(self, kind: str) -> str:
        number = len(list(self.path.glob(f"{kind}-*")))
        return str(self.path / f"{kind}-{number}")

    def stop(self) -> None:
        """Stop the KDC and remove every file."""
        self._k5.stop()


def _free_port() -> int:
    """A port of 127.0.0.1 that is free for both TCP and UDP, as the KDC wants it."""
    for _ in range(100):
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port = int(tcp.getsockname()[1])
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no port of 127.0.0.1 is free for both TCP and UDP")


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set variables of this process, which libkrb5 reads at each call; put them back after."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def throwaway_realm() -> Iterator[Realm]:
    """A running realm, which this process's libkrb5 uses for the time being."""
    realm = Realm()
    try:
        with environment(**realm.env):
            yield realm
    finally:
        realm.stop()


@pytest.fixture(scope="session")
def realm() -> Iterator[Realm]:
    """The realm of this test run, made when the first test asks for it."""
    missing = what_is_missing()
    if missing is not None:
        if os.environ.get(SKIP) == "1":
            pytest.skip(missing)
        pytest.fail(f"Kerberos tests need a KDC: {missing} (or set {SKIP}=1 to leave them out)")
    with throwaway_realm() as made:
        yield made
