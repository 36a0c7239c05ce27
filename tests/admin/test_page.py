"""What is served: the page, metrics, health, sessions."""

import re
import time
from html.parser import HTMLParser
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import gevent
import gevent.socket
import pytest

pytest.importorskip("prometheus_client", reason="the extra metrics is not installed")

from geosocks.admin import Admin, start_admin
from geosocks.admin.look import POLICY, STYLE
from geosocks.admin.recent import FAILURES, MOST, SHOWN, Top
from geosocks.auth.userpass import PasswordAuthenticator
from geosocks.events import (
    AcceptPaused,
    AdminCrashed,
    ReloadRefused,
    SessionCrashed,
    UpstreamFailed,
    UpstreamRecovered,
)
from geosocks.metrics import cells as c
from geosocks.metrics.cells import Cells
from geosocks.policy import Policy
from geosocks.rules import RuleSet
from geosocks.server import Server
from geosocks.shared import Layout
from geosocks.wire.socks5 import Address
from tests.admin.http import get, page
from tests.support.net import echo, recv_exactly, serving, unused_port, wait_for
from tests.support.servers import EVERYWHERE, greeted, proxy, read_reply, request

pytestmark = pytest.mark.usefixtures("no_leaks")

HOSTILE = "<script>alert(1)</script>\"'&\x1b[31m"


class Markup(HTMLParser):
    """Tags with their attributes, and the text that a person reads."""

    VOID = ("meta", "line", "rect", "circle", "path", "polyline")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == [], f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def seen(admin: Admin) -> Markup:
    shown = get(admin.address)
    assert shown.status == 200
    return Markup(shown.text)


def connected(server: Server, to: tuple[str, int]) -> Any:
    sock = greeted(server)
    sock.sendall(request(1, *to))
    assert read_reply(sock).rep == 0
    return sock


# --- the page ---------------------------------------------------------------------------------


def test_an_idle_server_is_well() -> None:
    with page() as (admin, server, _):
        shown = seen(admin)
        assert "All is well." in shown.text
        assert "1.2.3" in shown.text
        assert f"of {server.max_sessions:,}, 0 opening" in shown.text
        assert "Nobody in the last hour." in shown.text
        assert "None did." in shown.text


def test_it_tells_users_destinations_and_throughput() -> None:
    users = PasswordAuthenticator(check=lambda uname, passwd: passwd == b"wonder")
    policy = Policy(authenticators=(users,), rules=EVERYWHERE)
    with page(policy=policy) as (admin, server, _), serving(echo) as target:
        from tests.support.servers import dial as dial_proxy

        sock = dial_proxy(server)
        sock.sendall(b"\x05\x01\x02\x01\x05alice\x06wonder" + request(1, *target))
        assert recv_exactly(sock, 4) == b"\x05\x02\x01\x00"
        assert read_reply(sock).rep == 0
        sock.sendall(b"x" * 5000)
        recv_exactly(sock, 5000)
        shown = seen(admin).text
        assert "alice 10 kB 1" in shown
        assert f"127.0.0.1:{target[1]} 10 kB 1" in shown
        assert "Down" in shown
        assert "5.0 kB in all" in shown
        sock.close()
        wait_for(lambda: not server.sessions)
        assert "alice 10 kB 1" in seen(admin).text  # once, and not once more at its end
        bad = dial_proxy(server)
        bad.sendall(b"\x05\x01\x02\x01\x03eve\x03bad")
        assert recv_exactly(bad, 4) == b"\x05\x02\x01\x01"
        bad.close()
        shown = seen(admin).text
        assert "wrong password, ticket or the like 1 1" in shown
        assert "username: not let in: " in shown
        assert "eve from 127.0.0.1:" in shown
        for secret in ("wonder", "bad "):
            assert secret not in shown


def test_refusals_are_told_by_reason_and_in_words() -> None:
    policy = Policy(rules=RuleSet.parse("deny port 9\nallow to everywhere"))
    with page(policy=policy) as (admin, server, _):
        for host, port in (("127.0.0.1", 9), ("127.0.0.1", 9), ("127.0.0.1", unused_port())):
            sock = greeted(server)
            sock.sendall(request(1, host, port))
            assert read_reply(sock).rep != 0
            sock.close()
        shown = seen(admin).text
        assert "denied by a rule or a limit 2 2" in shown
        assert "target refused the connection 1 1" in shown
        assert "not allowed: 127.0.0.1:9 is denied by" in shown
        assert "deny port 9" in shown
        assert "2 times, last just now" in shown


def test_whatever_clients_say_stays_text() -> None:
    with page() as (admin, server, _):
        sock = greeted(server)
        sock.sendall(request(1, HOSTILE, 80))
        assert read_reply(sock).rep != 0
        sock.close()
        server.emit(UpstreamFailed("office", HOSTILE, 30.0))
        server.emit(ReloadRefused(HOSTILE))
        admin.recent.users.add(HOSTILE, 10, 1)
        admin.recent.destinations.add(HOSTILE, 10, 1)
        html = get(admin.address).text
        assert "<script" not in html
        assert "\x1b" not in html
        shown = Markup(html)
        assert shown.text.count("<script>alert(1)</script>") >= 5
        assert {tag for tag, _ in shown.tags} <= {
            *("html", "head", "meta", "title", "style", "body", "header", "main", "footer"),
            *("section", "figure", "figcaption", "div", "p", "h1", "h2", "a", "strong", "span"),
            *("ul", "ol", "li", "dl", "dt", "dd", "small", "table", "thead", "tbody", "tr"),
            *("th", "td", "svg", "path", "circle", "rect", "line", "polyline"),
        }


def test_it_needs_nothing_from_anywhere_and_runs_nothing() -> None:
    with page() as (admin, _, _):
        shown = seen(admin)
        for tag, attributes in shown.tags:
            assert "style" not in attributes
            assert not [name for name in attributes if name.startswith("on")]
            assert tag not in ("script", "link", "img", "iframe", "form", "object")
            if "href" in attributes:
                assert tag == "a"
                assert re.fullmatch(r"/\w*|\?refresh=off", str(attributes["href"]))
        assert "url(" not in STYLE
        assert "@import" not in STYLE


def test_every_answer_has_the_headers_that_keep_browsers_in_check() -> None:
    with page() as (admin, _, _):
        for path in ("/", "/metrics", "/healthz", "/readyz", "/sessions", "/none"):
            answer = get(admin.address, path)
            assert answer.header("Content-Security-Policy") == POLICY
            assert answer.header("X-Content-Type-Options") == "nosniff"
            assert answer.header("Referrer-Policy") == "no-referrer"
            assert answer.header("Cache-Control") == "no-store"
            assert not answer.header("Access-Control-Allow-Origin")
            assert "gevent" not in answer.header("Server")
    assert POLICY.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in POLICY


def test_it_renews_itself_unless_asked_not_to() -> None:
    with page() as (admin, _, _):
        assert 'http-equiv="refresh"' in get(admin.address).text
        assert 'http-equiv="refresh"' not in get(admin.address, "/?refresh=off").text


# --- is it well -------------------------------------------------------------------------------


def test_what_is_wrong_is_said() -> None:
    with page(max_sessions=1) as (admin, server, _), serving(echo) as target:
        server.emit(AcceptPaused("Too many open files", 3, 0.1))
        server.emit(ReloadRefused("rules.conf:3: unknown word"))
        server.emit(UpstreamFailed("office", "connection refused", 30.0))
        server.emit(SessionCrashed(1, "ZeroDivisionError()", "secret traceback"))
        with connected(server, target):
            shown = seen(admin)
            said = shown.text
        assert "Full: there are 1 sessions, and further clients wait." in said
        assert "Clients had to wait: Too many open files." in said
        assert "settings before it are in force: rules.conf:3: unknown word." in said
        assert "Upstream office fails: connection refused." in said
        assert "A fault of this program" in said
        assert "secret traceback" not in said
        assert "Trouble: geosocks" in said
        server.emit(UpstreamRecovered("office"))
        assert "Upstream office fails" not in seen(admin).text


def test_a_worker_that_is_down_is_trouble() -> None:
    layout = Layout()
    cells = Cells.take(layout)
    slab = layout.slab(3)
    with (
        proxy() as (server, _),
        start_admin(server, ("127.0.0.1", 0), cells=cells, slab=slab, slot=1) as admin,
    ):
        slab.row(0)[cells.one(c.UP)] = 1
        said = seen(admin).text
        assert "1 of 3 workers is down: worker 2." in said
        assert "2 of 3 workers, up for" in said
        assert "failures of worker 0 are not on this page" in said


def test_ready_until_it_drains() -> None:
    with page() as (admin, server, _), serving(echo) as target:
        assert (get(admin.address, "/readyz").status, get(admin.address, "/healthz").status) == (
            200,
            200,
        )
        sock = connected(server, target)
        drain = gevent.spawn(server.drain, 5.0)
        wait_for(lambda: not server.accepting)
        refused = get(admin.address, "/readyz")
        assert (refused.status, refused.text) == (503, "draining: no more connections are taken\n")
        assert get(admin.address, "/healthz").status == 200
        assert "Draining: no more connections are taken" in seen(admin).text
        sock.close()
        drain.get(timeout=5)


def test_not_ready_while_full() -> None:
    with page(max_sessions=1) as (admin, server, _), serving(echo) as target:
        with connected(server, target):
            assert get(admin.address, "/readyz").status == 503
        wait_for(lambda: not server.sessions)
        assert get(admin.address, "/readyz").status == 200


def test_no_session_leads_to_the_page() -> None:
    with page() as (admin, server, _):
        for host in ("127.0.0.1", "127.0.0.2", "localhost"):
            sock = greeted(server)
            sock.sendall(request(1, host, admin.address[1]))
            assert read_reply(sock).rep == 2
            sock.close()


# --- metrics ----------------------------------------------------------------------------------


def value(text: str, sample: str) -> float:
    found = re.search(rf"^{re.escape(sample)} (\S+)$", text, re.MULTILINE)
    assert found, f"no {sample}"
    return float(found[1])


def test_metrics_count_what_happens_and_what_runs() -> None:
    with page() as (admin, server, _), serving(echo) as target:
        sock = connected(server, target)
        sock.sendall(b"x" * 100)
        recv_exactly(sock, 100)
        text = get(admin.address, "/metrics").text
        assert value(text, 'geosocks_octets_total{direction="up"}') == 100
        assert value(text, 'geosocks_sessions_active{worker="0"}') == 1
        assert value(text, 'geosocks_worker_up{worker="0"}') == 1
        sock.close()
        wait_for(lambda: not server.sessions)
        text = get(admin.address, "/metrics").text
        name = 'geosocks_sessions_total{command="connect",reply="succeeded"}'
        assert value(text, name) == 1
        assert value(text, 'geosocks_octets_total{direction="up"}') == 100
        assert value(text, "geosocks_connect_seconds_count") == 1
        assert "127.0.0.1" not in text


def test_openmetrics_for_who_asks() -> None:
    with page() as (admin, _, _):
        asked = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
        answer = get(admin.address, "/metrics", headers=asked)
        assert answer.header("Content-Type").startswith("application/openmetrics-text")
        assert answer.text.endswith("# EOF\n")
        assert get(admin.address, "/metrics").header("Content-Type").startswith("text/plain")


def test_a_fault_of_ours_is_an_event_and_tells_the_client_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with page() as (admin, _, witness):
        monkeypatch.setattr(admin, "metrics_text", lambda accept: 1 / 0)
        answer = get(admin.address, "/metrics")
        assert answer.status == 500
        assert "ZeroDivision" not in answer.text
        assert "ZeroDivisionError" in witness.wait(AdminCrashed).traceback
    assert capfd.readouterr().err == ""


# --- sessions ---------------------------------------------------------------------------------


def test_sessions_as_json() -> None:
    with page() as (admin, server, _), serving(echo) as target:
        with connected(server, target) as sock, greeted(server):
            sock.sendall(b"abc")
            recv_exactly(sock, 3)
            wait_for(lambda: len(server.sessions) == 2)
            told = get(admin.address, "/sessions").json
        one, other = told["sessions"]
        assert told["active"] == 2
        assert (one["command"], one["up"], one["down"], one["state"]) == ("connect", 3, 3, "open")
        assert one["destination"] == f"127.0.0.1:{target[1]}"
        assert (other["state"], other["command"]) == ("handshake", None)


def test_as_many_sessions_as_asked_for() -> None:
    with page() as (admin, server, _):
        socks = [greeted(server) for _ in range(3)]
        for limit, rows in (("1", 1), ("2", 2), ("99", 3), ("0", 0), ("999999999", 3)):
            assert len(get(admin.address, f"/sessions?limit={limit}").json["sessions"]) == rows
        for sock in socks:
            sock.close()


def test_a_limit_that_is_no_number() -> None:
    with page() as (admin, _, _):
        for limit in ("x", "-1", "1e9", "1.5", "%31%30x", "9999999999", "\xb2"):
            answer = get(admin.address, f"/sessions?limit={limit}")
            assert (answer.status, answer.text) == (400, "limit is to be a whole number\n")
        assert get(admin.address, "/sessions?a&b&limit=1&c").status == 200
        assert get(admin.address, "/sessions?" + "x=1&" * 99).status == 400


def test_what_is_not_there() -> None:
    with page() as (admin, _, _):
        for path in ("//", "/metrics/", "/Metrics", "/../etc/passwd", "*", "/%00"):
            assert get(admin.address, path).status == 404


# --- bounds -----------------------------------------------------------------------------------


def test_tables_stay_small_and_keep_who_has_the_most() -> None:
    top = Top()
    top.add("whale", 10**9, 1)
    for number in range(10 * MOST):
        top.add(f"name {number}", number % 100, 1)
    assert len(top._parts[-1]) <= 2 * MOST
    first, *others = top.rows(SHOWN)
    assert (first["name"], len(others)) == ("whale", SHOWN - 1)


def test_tables_forget_after_an_hour() -> None:
    top, now = Top(), time.monotonic()
    top.add("alice", 5, 1)
    top.turn(now + 1800)
    top.add("alice", 7, 1)
    assert top.rows(1) == [{"name": "alice", "octets": 12, "sessions": 2}]
    top.turn(now + 3700)
    assert top.rows(1) == [{"name": "alice", "octets": 7, "sessions": 1}]
    top.turn(now + 1_000_000)
    assert top.rows(1) == []


def test_failures_are_a_few() -> None:
    with page() as (admin, server, _):
        for number in range(10 * FAILURES):
            server.emit(UpstreamFailed(f"upstream-{number}", "no", 30.0))
        assert len(admin.recent.failures) == FAILURES
        assert len(admin.recent.upstreams) < 100
        assert len(get(admin.address).body) < 100_000


def crowd(ids: range) -> dict[int, Any]:
    """Sessions that look alive."""
    here = Address(ip_address("127.0.0.1"), 4711)
    same = {"identity": None, "listener": "here", "version": 5, "method": 0, "claimed": None}
    same |= {"command": 1, "dialled": here, "rule": "allow", "upstream": None, "replied": True}
    return {
        one: SimpleNamespace(
            **same,
            id=one,
            peer=Address(ip_address("10.0.0.0") + one, 4711),
            destination=Address(f"host-{one}.example", 443),
            meter=SimpleNamespace(up=one, down=one, datagrams=0),
            opened=0.0,
            requested=1.0,
        )
        for one in ids
    }


def echoes(sock: gevent.socket.socket, waits: list[float]) -> None:
    """Have something sent back, time and again, and note how long each takes."""
    while True:
        began = time.monotonic()
        sock.sendall(b"x")
        recv_exactly(sock, 1)
        waits.append(time.monotonic() - began)


def test_five_thousand_sessions_are_shown_and_stop_nobody() -> None:
    with page(max_sessions=6000) as (admin, server, _), serving(echo) as target:
        with connected(server, target) as sock:
            real = dict(server.sessions)
            server.sessions.update(crowd(range(1001, 6001)))
            try:
                waits: list[float] = []
                took: list[float] = []
                other = gevent.spawn(echoes, sock, waits)
                for path in ("/metrics", "/", "/sessions?limit=9999", "/metrics", "/"):
                    began = time.monotonic()
                    answer = get(admin.address, path)
                    took.append(time.monotonic() - began)
                    assert answer.status == 200
                    assert len(answer.body) < (4_000_000 if "sess" in path else 60_000)
                    if path.startswith("/sessions"):
                        assert len(answer.json["sessions"]) == 5001
                    if path == "/":
                        assert "Sessions now 5,001" in Markup(answer.text).text
                other.kill()
                assert waits
                # No answer is made in one go, however slow the machine is.
                assert max(waits) < max(0.25, max(took) / 2), "a session had to wait"
            finally:
                server.sessions.clear()
                server.sessions.update(real)
        assert len(admin.recent.users._parts[-1]) <= 2 * MOST
