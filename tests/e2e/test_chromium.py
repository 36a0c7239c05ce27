"""A headless Chromium that gets a page and all that belongs to it through the proxy."""

from pathlib import Path

import pytest

from tests.support.programs import Finished, needed, run
from tests.support.proxy import Proxy, running
from tests.support.web import web

pytestmark = pytest.mark.e2e

PARTS = 12
PAGE = b"""<!doctype html>
<title>not yet</title>
<link rel="stylesheet" href="/style.css">
<p id="said">nothing</p>
%s
<script>
  fetch("/said.json")
    .then((answer) => answer.json())
    .then((answer) => { document.getElementById("said").textContent = answer.said; });
</script>
""" % b"\n".join(b'<script src="/part%d.js"></script>' % n for n in range(PARTS))

PAGES = {
    "/": PAGE,
    "/style.css": b"p { color: green }",
    "/said.json": b'{"said": "well fetched"}',
    **{f"/part{n}.js": b"document.title = 'part %d';" % n for n in range(PARTS)},
}


def chromium(folder: Path, proxy: Proxy, url: str) -> Finished:
    """The page as it stands once its scripts have run; nothing of the machine's profile."""
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
        "--disable-background-networking --disable-component-update --disable-sync "
        "--disable-dev-shm-usage --virtual-time-budget=10000 --dump-dom"
    )
    return run(
        (
            needed("chromium"),
            *flags.split(),
            f"--user-data-dir={folder / 'profile'}",
            f"--proxy-server=socks5://127.0.0.1:{proxy.port}",
            "--proxy-bypass-list=<-loopback>",  # it does not ask a proxy for this host, else
            url,
        ),
        seconds=90.0,
    )


def test_a_page_and_its_parts(tmp_path: Path) -> None:
    with web(PAGES) as site, running(tmp_path) as proxy:
        done = chromium(tmp_path, proxy, site.url("/", "localhost"))
        assert done.code == 0, done.err
        assert b"well fetched" in done.out, done.err
        assert b"<title>part %d</title>" % (PARTS - 1) in done.out
        assert set(site.asked) >= PAGES.keys()
        ours = [
            event
            for event in proxy.events("session_established")
            if event["destination"] == f"localhost:{site.port}"
        ]
        assert ours, "it did not go through the proxy"
        connected = {event["session"] for event in ours}
        proxy.wait_for(lambda: connected <= {e["session"] for e in proxy.events("session_closed")})
        octets = sum(e["down"] for e in proxy.events("session_closed") if "down" in e)
        assert octets > sum(map(len, PAGES.values()))


def test_a_page_that_a_rule_denies(tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text("deny to any\ndeny to loopback\n")
    with web(PAGES) as site, running(tmp_path, "--rules", rules) as proxy:
        done = chromium(tmp_path, proxy, site.url())
        assert "ERR_SOCKS_CONNECTION_FAILED" in done.err + done.out.decode()
        assert not site.asked
        assert proxy.wait_event("request_refused")["reply"] == "not_allowed"
