"""curl at the client's end: what it fetches, and what it says when it is refused."""

import hashlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dns import dns
from tests.support.net import unused_port
from tests.support.programs import Finished, needed, run
from tests.support.proxy import Event, Proxy, running, users_file
from tests.support.web import Web, big_digest, web

pytestmark = pytest.mark.e2e

PAGE = bytes(range(256)) * 77 + b"the end"
BIG = 100_000_000
PASSWORD = "w0nderland&pr1vate"

FAILED, COULD_NOT_RESOLVE, REFUSED_BY_PROXY = 7, 6, 97
"""Exit codes of curl(1); 97 is "proxy handshake error"."""


def curl(proxy: Proxy, *words: object, userinfo: str = "", scheme: str = "socks5h") -> Finished:
    """Run curl through ``proxy``, with no settings of the machine's."""
    proxied = ("--proxy", proxy.url(userinfo, scheme))
    return run((needed("curl"), "-q", "-sS", "--max-time", 60, *proxied, *words))


def told(proxy: Proxy, sessions: int = 1) -> list[Event]:
    """The lines of ordinary weight about ``sessions`` sessions that have ended."""
    proxy.wait_event("session_closed", sessions)
    return [e for e in proxy.events() if e["level"] != "debug" and "session" in e]


@pytest.fixture(scope="module")
def site() -> Iterator[Web]:
    with web({"/page": PAGE}) as site:
        yield site


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    with running(tmp_path) as proxy:
        yield proxy


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Proxy]:
    """A proxy that asks for a password."""
    with running(tmp_path, "--users", users_file(tmp_path, alice=PASSWORD)) as proxy:
        yield proxy


# --- what it fetches --------------------------------------------------------------------------


def test_a_page_by_name_byte_for_byte(proxy: Proxy, site: Web) -> None:
    done = curl(proxy, site.url("/page", "localhost"))
    assert (done.code, done.out) == (0, PAGE), done.err
    [line] = told(proxy)
    assert line["event"] == "session_closed"
    assert line["destination"] == f"localhost:{site.port}"
    assert line["dialled"] == f"127.0.0.1:{site.port}"
    assert line["reason"] == "closed"
    assert line["down"] > len(PAGE)


def test_a_page_whose_name_curl_looks_up(proxy: Proxy, site: Web) -> None:
    done = curl(proxy, "-4", site.url("/page", "localhost"), scheme="socks5")
    assert (done.code, done.out) == (0, PAGE), done.err
    assert told(proxy)[0]["destination"] == f"127.0.0.1:{site.port}"


@pytest.mark.parametrize("scheme", ["socks5h", "socks5"])
def test_a_page_over_ipv6(proxy: Proxy, scheme: str) -> None:
    with web({"/page": PAGE}, host="::1") as site:
        done = curl(proxy, site.url("/page"), scheme=scheme)
        assert (done.code, done.out) == (0, PAGE), done.err
        assert told(proxy)[0]["dialled"] == f"[::1]:{site.port}"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_name_of_both_families_is_reached_where_somebody_listens(
    tmp_path: Path, host: str
) -> None:
    with (
        dns({"both.test": ["::1", "127.0.0.1"]}) as names,
        web({"/page": PAGE}, host=host) as site,
        running(tmp_path, "--dns-server", f"127.0.0.1:{names.server.server_port}") as proxy,
    ):
        done = curl(proxy, site.url("/page", "both.test"))
        assert (done.code, done.out) == (0, PAGE), done.err
        assert host in told(proxy)[0]["dialled"]


@pytest.mark.parametrize(("flag", "host"), [("-4", "127.0.0.1"), ("-6", "::1")])
def test_one_family_all_the_way(flag: str, host: str, tmp_path: Path) -> None:
    """curl's flag is for the way to the proxy, and for the look-up that it does itself."""
    with running(tmp_path, "--listen", "[::1]:0") as proxy, web({"/page": PAGE}, host=host) as site:
        proxy.wait_event("listening", 2)
        via = next(e["address"] for e in proxy.events("listening") if host in e["address"])
        known = f"name.test:{site.port}:{host}"
        words = ("-q", "-sS", flag, "-x", f"socks5://{via}", "--resolve", known)
        done = run((needed("curl"), *words, site.url("/page", "name.test")))
        assert (done.code, done.out) == (0, PAGE), done.err
        assert host in told(proxy)[0]["destination"]


def test_a_hundred_megabytes_down(proxy: Proxy, site: Web, tmp_path: Path) -> None:
    file = tmp_path / "big"
    done = curl(proxy, "-o", file, site.url(f"/big/{BIG}"))
    assert done.code == 0, done.err
    with file.open("rb") as octets:
        assert hashlib.file_digest(octets, "sha256").hexdigest() == big_digest(BIG)
    assert told(proxy)[0]["down"] > BIG


def test_a_hundred_megabytes_up(proxy: Proxy, site: Web, tmp_path: Path) -> None:
    file = tmp_path / "big"
    file.write_bytes(octets := os.urandom(1_000_000) * 100)
    done = curl(proxy, "-T", file, site.url("/kept"))
    assert done.code == 0, done.err
    assert done.out.decode() == f"{len(octets)} {hashlib.sha256(octets).hexdigest()}"
    assert told(proxy)[0]["up"] > len(octets)


def test_fifty_transfers_at_once(proxy: Proxy, site: Web, tmp_path: Path) -> None:
    size = 100_000
    names = [f"{site.url()}big/{size + n}" for n in range(50)]
    words = [w for n, url in enumerate(names) for w in ("-o", tmp_path / f"got{n}", url)]
    done = curl(proxy, "--parallel", "--parallel-immediate", "--parallel-max", 50, *words)
    assert done.code == 0, done.err
    for n in range(50):
        octets = (tmp_path / f"got{n}").read_bytes()
        assert hashlib.sha256(octets).hexdigest() == big_digest(size + n)
    assert len(told(proxy, 50)) == 50


# --- who may enter ----------------------------------------------------------------------------


def test_the_right_password(guarded: Proxy, site: Web) -> None:
    done = curl(guarded, site.url("/page"), userinfo=f"alice:{PASSWORD}")
    assert (done.code, done.out) == (0, PAGE), done.err
    [line] = told(guarded)
    assert line["event"] == "session_closed"
    assert (line["identity"], line["method"]) == ("alice", "username")
    assert PASSWORD not in guarded.text()


@pytest.mark.parametrize(
    ("userinfo", "secret"),
    [
        ("alice:wr0ngsecret", "wr0ngsecret"),
        ("mallory:" + PASSWORD, PASSWORD),
        ("alice:" + PASSWORD + "x" * 72, PASSWORD),  # bcrypt itself would not see the end
        ("alice:", "\0"),
    ],
)
def test_a_wrong_password_in_curls_own_words(
    guarded: Proxy, site: Web, userinfo: str, secret: str
) -> None:
    asked = len(site.asked)
    done = curl(guarded, site.url("/page"), userinfo=userinfo)
    assert done.code == REFUSED_BY_PROXY
    assert "User was rejected by the SOCKS5 server (1 " in done.err
    assert done.out == b""
    assert len(site.asked) == asked
    [line] = told(guarded)
    assert line["event"] == "authentication_failed"
    assert line["identity"] == userinfo.partition(":")[0]
    assert secret not in guarded.text()


def test_no_password_at_all(guarded: Proxy, site: Web) -> None:
    done = curl(guarded, site.url("/page"))
    assert done.code == REFUSED_BY_PROXY
    assert "No authentication method was acceptable" in done.err
    [line] = told(guarded)
    assert line["event"] == "negotiation_ended"
    assert "we take username" in line["reason"]


# --- what cannot be done ----------------------------------------------------------------------


def test_a_target_that_refuses(proxy: Proxy) -> None:
    done = curl(proxy, f"http://127.0.0.1:{unused_port()}/")
    assert done.code == REFUSED_BY_PROXY
    assert done.err.rstrip().endswith("(5)"), done.err
    [line] = told(proxy)
    assert (line["event"], line["reply"]) == ("request_refused", "connection_refused")


def test_a_name_that_nobody_knows(tmp_path: Path) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        closed = nobody.getsockname()[1]
    with running(tmp_path, "--dns-server", f"127.0.0.1:{closed}") as proxy:
        done = curl(proxy, "http://nowhere.invalid/")
        assert done.code == REFUSED_BY_PROXY
        assert done.err.rstrip().endswith("(4)"), done.err
        [line] = told(proxy)
        assert (line["event"], line["reply"]) == ("request_refused", "host_unreachable")


def test_a_target_that_a_rule_denies(tmp_path: Path, site: Web) -> None:
    rules = tmp_path / "rules"
    rules.write_text("deny to loopback\nallow to any\n")
    with running(tmp_path, "--rules", rules) as proxy:
        done = curl(proxy, site.url("/page"))
        assert done.code == REFUSED_BY_PROXY
        assert done.err.rstrip().endswith("(2)"), done.err
        [line] = told(proxy)
        assert (line["event"], line["reply"]) == ("request_refused", "not_allowed")
        assert line["rule"] == f"{rules}:1: deny to loopback"


@pytest.mark.parametrize("words", [(), ("-X", "POST", "-d", "x" * 100_000)])
def test_http_straight_to_the_port_is_told_what_this_is(
    proxy: Proxy, words: tuple[str, ...]
) -> None:
    to = f"http://127.0.0.1:{proxy.port}/"
    done = run((needed("curl"), "-q", "-sS", "-w", "%{http_code}", *words, to))
    assert done.code == 0, done.err
    assert done.out.endswith(b"400")
    assert b"This is a SOCKS5 proxy" in done.out
    [line] = told(proxy)
    assert (line["event"], line["reason"]) == ("negotiation_ended", "client speaks HTTP")


def test_an_http_proxy_is_what_it_is_not(proxy: Proxy, site: Web) -> None:
    done = curl(proxy, site.url("/page"), scheme="http")
    assert (done.code, b"socks5h://" in done.out) == (0, True)
    done = curl(proxy, "-p", site.url("/page"), scheme="http")
    assert "400" in done.err


def test_every_line_of_a_log_is_a_json_object_in_ascii(guarded: Proxy, site: Web) -> None:
    curl(guarded, "--proxy-user", "ali\nce\x1b[31m\u202e:x", site.url("/page"))
    assert told(guarded)[0]["identity"] == r"ali\x0ace\x1b[31m\u202e"
    assert guarded.text().isascii()
    for line in guarded.text().splitlines():
        assert isinstance(json.loads(line), dict)
