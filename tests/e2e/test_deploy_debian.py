"""scripts/deploy.py from nothing to nothing in a Debian root, with init script, apt and pip.

Off by default, for it takes minutes and a network.  To run it, as root:

    debootstrap --variant=minbase --include=python3,ca-certificates bookworm /tmp/debian
    DEBIAN_ROOT=/tmp/debian scripts/test tests/e2e/test_deploy_debian.py -s

The root is not changed: everything happens in an overlay that is gone at the end.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import wheels
from tests.support.kdc import Realm
from tests.support.programs import Popen, needed
from tests.support.proxy import ROOT

SERVER = "geosocks/server/__init__.py"
INNER = Path(__file__).parent / "deploy_in_debian.py"
MINUTES = 15

BOOT = """
set -eu
root=$1 work=$2 sources=$3
mount -t tmpfs tmpfs "$work"
mkdir "$work/upper" "$work/work" "$work/root"
mount -t overlay overlay -o "lowerdir=$root,upperdir=$work/upper,workdir=$work/work" "$work/root"
cd "$work/root"
mount -t proc proc proc
mount --rbind /dev dev
mkdir -p srv/sources
mount --bind "$sources" srv/sources
cat /etc/resolv.conf >etc/resolv.conf
cat "$sources/krb5.conf" >etc/krb5.conf
exec chroot . /usr/bin/python3 /srv/sources/inner.py /srv/sources
"""
"""Runs in a mount namespace of its own, as process 1 of a pid namespace."""

LATE = """
def start(self, was=Server.start):
    import sys
    if not any("/trial/" in word for word in sys.argv):
        raise OSError(5, "broken in force")
    was(self)
Server.start = start
"""
EARLY = "def no(self):\n raise OSError(5, 'broken')\nServer.start = no"

CONFIG = """
listen = 127.0.0.1:1080?methods=none
listen = 127.0.0.1:1081?methods=username
listen = 127.0.0.1:1082?methods=gssapi
users = /etc/geosocks/users
keytab = /etc/geosocks/krb5.keytab
methods = username,gssapi
"""


def environment() -> dict[str, str]:
    """What apt and pip need to reach packages, and no more."""
    wanted = ("http_proxy", "https_proxy", "no_proxy", "pip_", "ssl_cert_")
    kept = {name: value for name, value in os.environ.items() if name.lower().startswith(wanted)}
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return kept | {"PATH": path, "HOME": "/root", "LANG": "C.UTF-8"}


@pytest.mark.slow
@pytest.mark.kerberos
@pytest.mark.skipif("DEBIAN_ROOT" not in os.environ, reason="takes minutes: see DEBIAN_ROOT in it")
def test_a_whole_life_in_debian(single_file: Path, realm: Realm, tmp_path: Path) -> None:
    unshare = needed("unshare")
    sources, work = tmp_path / "sources", tmp_path / "work"
    work.mkdir()
    skip = shutil.ignore_patterns(".git", ".venv", "*cache*", "dist", "build")
    shutil.copytree(ROOT, sources / "checkout", ignore=skip)
    shutil.copy(INNER, sources / "inner.py")
    shutil.copy(realm.keytab, sources / "keytab")
    shutil.copy(realm.env["KRB5_CONFIG"], sources / "krb5.conf")
    (sources / "config").write_text(CONFIG)
    (sources / "password").touch(0o600)
    (sources / "password").write_text("wonder\n")
    wheels.variant(single_file, sources / "newer.pyz", "8.0.0")
    wheels.variant(single_file, sources / "early.pyz", "9.0.0", {SERVER: EARLY})
    wheels.variant(single_file, sources / "late.pyz", "9.1.0", {SERVER: LATE})
    namespaces = ("--mount", "--pid", "--fork", "--kill-child", "--propagation=private")
    words = [unshare, *namespaces, "sh", "-c", BOOT, "boot"]
    words += [os.environ["DEBIAN_ROOT"], str(work), str(sources)]
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = Popen(words, env=environment(), stdin=-3, stdout=out, stderr=-2)
    # Without the hub, which would end the test after a few minutes.
    code = subprocess.Popen.wait(process, 60.0 * MINUTES)
    said = log.read_text(errors="replace")
    print(said)
    assert code == 0, said[-3000:]
