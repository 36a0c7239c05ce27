"""curl at the client's end, speaking SOCKS4 and 4A."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dns import dns
from tests.support.net import unused_port
from tests.support.programs import Finished, needed, run
from tests.support.proxy import Proxy, running, users_file
from tests.support.web import Web, web

pytestmark = pytest.mark.e2e

PAGE = bytes(range(256)) * 77 + b"the end"
REFUSED_BY_PROXY = 97
"""Exit code of curl(1): "proxy handshake error"."""


def curl(proxy: Proxy, scheme: str, *words: object, userinfo: str = "") -> Finished:
    """Run curl through ``proxy``, with no settings of the machine's."""
    proxied = ("--proxy", proxy.url(userinfo, scheme))
    return run((needed("curl"), "-q", "-sS", "--max-time", 60, *proxied, *words))


@pytest.fixture(scope="module")
def site() -> Iterator[Web]:
    with web({"/page": PAGE}) as site:
        yield site


def test_a_page_by_address_and_who_curl_says_it_is(tmp_path: Path, site: Web) -> None:
    with running(tmp_path) as proxy:
        done = curl(proxy, "socks4", site.url("/page"), userinfo="alice:secret")
        assert (done.code, done.out) == (0, PAGE), done.err
        closed = proxy.wait_event("session_closed")
        assert closed["destination"] == f"127.0.0.1:{site.port}"
        assert closed["claimed"] == "alice"
        assert "identity" not in closed
        assert "secret" not in proxy.text()


def test_a_page_by_a_name_that_curl_looks_up(tmp_path: Path, site: Web) -> None:
    with running(tmp_path) as proxy:
        done = curl(proxy, "socks4", "-4", site.url("/page", "localhost"))
        assert (done.code, done.out) == (0, PAGE), done.err
        assert proxy.wait_event("session_closed")["destination"] == f"127.0.0.1:{site.port}"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_page_by_a_name_that_we_look_up(tmp_path: Path, host: str) -> None:
    with (
        dns({"name.test": [host]}) as names,
        web({"/page": PAGE}, host=host) as site,
        running(tmp_path, "--dns-server", f"127.0.0.1:{names.server.server_port}") as proxy,
    ):
        done = curl(proxy, "socks4a", site.url("/page", "name.test"))
        assert (done.code, done.out) == (0, PAGE), done.err
        closed = proxy.wait_event("session_closed")
        assert closed["destination"] == f"name.test:{site.port}"
        assert host in closed["dialled"]


@pytest.mark.parametrize("scheme", ["socks4", "socks4a"])
@pytest.mark.parametrize("userinfo", ["", "alice:wonder"])
def test_where_a_password_is_required(
    tmp_path: Path, site: Web, scheme: str, userinfo: str
) -> None:
    asked = len(site.asked)
    with running(tmp_path, "--users", users_file(tmp_path, alice="wonder")) as proxy:
        done = curl(proxy, scheme, site.url("/page"), userinfo=userinfo)
        assert done.code == REFUSED_BY_PROXY
        assert "(91)" in done.err
        refused = proxy.wait_event("request_refused")
        assert refused["reason"] == "SOCKS4 proves nobody's identity; we take username"
        assert len(site.asked) == asked


@pytest.mark.parametrize("scheme", ["socks4", "socks4a"])
def test_a_target_that_refuses(tmp_path: Path, scheme: str) -> None:
    with running(tmp_path) as proxy:
        done = curl(proxy, scheme, f"http://127.0.0.1:{unused_port()}/")
        assert done.code == REFUSED_BY_PROXY
        assert "(91)" in done.err
        assert proxy.wait_event("request_refused")["reply"] == "connection_refused"


@pytest.mark.parametrize("scheme", ["socks4", "socks4a"])
def test_where_it_is_switched_off(tmp_path: Path, site: Web, scheme: str) -> None:
    with running(tmp_path, "--socks4", "off") as proxy:
        done = curl(proxy, scheme, site.url("/page"))
        assert done.code == REFUSED_BY_PROXY
        assert "(91)" in done.err
        ended = proxy.wait_event("negotiation_ended")
        assert ended["reason"] == "client speaks SOCKS4, which is switched off"
        done = curl(proxy, "socks5h", site.url("/page"))
        assert (done.code, done.out) == (0, PAGE), done.err
