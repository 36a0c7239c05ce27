"""The local agent: programs that know plain SOCKS only, and a gateway that wants Kerberos."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gevent
import pytest

from geosocks.client import Client
from geosocks.codes import Rep
from geosocks.errors import RequestFailed
from tests.support.kdc import Realm
from tests.support.net import echo, recv_exactly, serving
from tests.support.programs import needed, run
from tests.support.proxy import Proxy, running
from tests.support.web import big_digest, web

pytestmark = [pytest.mark.e2e, pytest.mark.kerberos]

PARTS = 100
SCRIPTS = b"\n".join(b'<script src="/part%d.js"></script>' % n for n in range(PARTS))
PAGES = {
    "/": b"<!doctype html><title>not yet</title><p id=count>0</p>\n"
    + SCRIPTS
    + b"<script>document.title = 'got ' + document.getElementById('count').textContent</script>",
    **{
        f"/part{n}.js": b"const c%d = document.getElementById('count');"
        b"c%d.textContent = Number(c%d.textContent) + 1;" % (n, n, n)
        for n in range(PARTS)
    },
}


@dataclass
class Agent:
    """The agent and its gateway; ``ccache`` is where the agent finds the user's tickets."""

    proxy: Proxy
    gateway: Proxy
    realm: Realm
    ccache: Path

    def kinit(self, lifetime: str | None = None) -> None:
        """Get the user a ticket, as kinit does it: the cache is another file all at once."""
        fresh = self.realm.ticket(lifetime=lifetime)
        aside = self.ccache.with_suffix(".new")
        shutil.copy(fresh.removeprefix("FILE:"), aside)
        os.replace(aside, self.ccache)


@contextmanager
def agent(tmp_path: Path, realm: Realm, *, lifetime: str | None = None) -> Iterator[Agent]:
    """An agent with a ticket, or with none when ``lifetime`` is empty."""
    krb5 = {"KRB5_CONFIG": realm.env["KRB5_CONFIG"]}
    ccache = tmp_path / "ccache"
    for name in ("agent", "gateway"):
        (tmp_path / name).mkdir()
    options = ["--methods=gssapi", f"--keytab={realm.keytab}"]
    with running(tmp_path / "gateway", *options, env=krb5) as gateway:
        env = krb5 | {"KRB5CCNAME": f"FILE:{ccache}"}
        via = f"--via=socks5://localhost:{gateway.port}?auth=gssapi"
        with running(tmp_path / "agent", via, env=env) as proxy:
            made = Agent(proxy, gateway, realm, ccache)
            if lifetime != "":
                made.kinit(lifetime)
            yield made


@pytest.fixture
def laptop(realm: Realm, tmp_path: Path) -> Iterator[Agent]:
    """An agent with a good ticket."""
    with agent(tmp_path, realm) as made:
        yield made


def test_curl_that_knows_no_kerberos_gets_through_encrypted(laptop: Agent) -> None:
    size = 20_000_000
    with web() as site:
        url = site.url(f"/big/{size}", "localhost")
        done = run((needed("curl"), "-sS", "--proxy", laptop.proxy.url(), url))
        assert (done.code, done.err) == (0, "")
        assert hashlib.sha256(done.out).hexdigest() == big_digest(size)
        closed = laptop.gateway.wait_event("session_closed")
        assert closed["identity"] == f"alice@{laptop.realm.name}"
        assert closed["destination"] == f"localhost:{site.port}"
        assert laptop.gateway.events("authenticated")[0]["detail"] == "confidentiality"
        assert laptop.proxy.wait_event("session_closed")["upstream"] == "default"


def test_chromium_loads_a_page_of_a_hundred_resources(laptop: Agent, tmp_path: Path) -> None:
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
        "--disable-background-networking --disable-component-update --disable-sync "
        "--disable-dev-shm-usage --virtual-time-budget=20000 --dump-dom"
    )
    with web(PAGES) as site:
        done = run(
            (
                needed("chromium"),
                *flags.split(),
                f"--user-data-dir={tmp_path / 'profile'}",
                f"--proxy-server=socks5://127.0.0.1:{laptop.proxy.port}",
                "--proxy-bypass-list=<-loopback>",  # it does not ask a proxy for this host, else
                site.url("/", "localhost"),
            ),
            seconds=90.0,
        )
        assert done.code == 0, done.err
        assert b"<title>got %d</title>" % PARTS in done.out, done.err
        assert PAGES.keys() <= set(site.asked)
        where = f"localhost:{site.port}"
        ours = [
            event
            for event in laptop.gateway.events("session_established")
            if event["destination"] == where
        ]
        assert len(ours) > 1, "it did not go through the gateway"
        assert {event["identity"] for event in ours} == {f"alice@{laptop.realm.name}"}
        assert not laptop.proxy.events("upstream_failed")


def refused(client: Client, target: tuple[str, int]) -> None:
    """Be refused with X'01'."""
    with pytest.raises(RequestFailed) as caught:
        client.connect(target)
    assert caught.value.rep == Rep.GENERAL_FAILURE


def visit(client: Client, target: tuple[str, int]) -> None:
    """Be let through."""
    sock = client.connect(target)
    sock.sendall(b"hello")
    assert recv_exactly(sock, 5) == b"hello"
    sock.close()


def test_a_ticket_that_runs_out_and_is_renewed_while_it_runs(realm: Realm, tmp_path: Path) -> None:
    with serving(echo) as target, agent(tmp_path, realm, lifetime="4s") as laptop:
        client = Client(laptop.proxy.address)
        held = client.connect(target)
        visit(client, target)
        gevent.sleep(5.1)  # the ticket's life, which no event ends
        held.sendall(b"a session outlives its ticket")
        assert recv_exactly(held, 29) == b"a session outlives its ticket"
        held.close()
        for _ in range(3):
            refused(client, target)
        laptop.proxy.wait_event("request_refused", 3)
        for event in laptop.proxy.events("request_refused"):
            assert "ticket" in event["reason"]
            assert "run kinit" in event["reason"]
        [failed] = laptop.proxy.events("upstream_failed")
        assert (failed["upstream"], failed["rest_seconds"]) == ("default", 0.0)
        assert "run kinit" in failed["reason"]
        laptop.kinit()
        visit(client, target)
        assert laptop.proxy.wait_event("upstream_recovered")["upstream"] == "default"


def test_no_ticket_at_first(realm: Realm, tmp_path: Path) -> None:
    with serving(echo) as target, agent(tmp_path, realm, lifetime="") as laptop:
        client = Client(laptop.proxy.address)
        refused(client, target)
        failed = laptop.proxy.wait_event("upstream_failed")
        assert "no Kerberos ticket" in failed["reason"]
        assert "run kinit" in failed["reason"]
        laptop.kinit()
        visit(client, target)


def test_a_kdc_that_is_down_costs_only_new_sessions(laptop: Agent) -> None:
    with serving(echo) as target:
        client = Client(laptop.proxy.address)
        visit(client, target)
        with laptop.realm.without_kdc():
            visit(client, target)  # the service's ticket is in the cache
            laptop.ccache.unlink()
            refused(client, target)
        laptop.kinit()
        visit(client, target)
