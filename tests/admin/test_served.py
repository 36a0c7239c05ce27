"""The page of ``geosocks serve``, of one process and of several."""

import os
import re
import signal
import statistics
import sys
import time
from pathlib import Path

import gevent
import gevent.event
import gevent.socket
import pytest

pytest.importorskip("prometheus_client", reason="the extra metrics is not installed")

from geosocks import __version__
from tests.admin.http import Reply, get
from tests.support.net import echo, recv_exactly, serving
from tests.support.programs import run
from tests.support.proxy import COMMAND, Proxy, running
from tests.support.servers import read_reply, request
from tests.support.service import lives, service, session, until, worker_pids

ADMIN = "--admin=127.0.0.1:0"


def addresses(proxy: Proxy, number: int = 1) -> list[tuple[str, int]]:
    """Where the page is, once so many workers serve it."""

    def told() -> list[str]:
        listening = [str(event["address"]) for event in proxy.events("listening")]
        return [address for address in listening if address.startswith("http://")]

    proxy.wait_for(lambda: len(told()) >= number, 10.0)
    return [("127.0.0.1", int(address.rpartition(":")[2])) for address in told()]


def value(text: str, sample: str) -> float:
    """A sample's value; the sum where ``sample`` has no labels and there are some."""
    found = re.findall(rf"^{re.escape(sample)}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
    assert found, f"no {sample}"
    return sum(map(float, found))


def scraped(place: tuple[str, int], sample: str) -> float:
    """A sample of /metrics."""
    return value(get(place, "/metrics").text, sample)


def test_serve_offers_the_page(tmp_path: Path) -> None:
    with running(tmp_path, ADMIN, "--control=off") as proxy, serving(echo) as target:
        (place,) = addresses(proxy)
        sock = session(proxy, target)
        sock.sendall(b"x" * 1000)
        recv_exactly(sock, 1000)
        assert "All is well." in get(place).text
        assert scraped(place, 'geosocks_octets_total{direction="down"}') == 1000
        (one,) = get(place, "/sessions").json["sessions"]
        assert one["destination"] == f"127.0.0.1:{target[1]}"
        assert f'version="{__version__}"' in get(place, "/metrics").text


def test_a_reload_that_is_refused_shows(tmp_path: Path) -> None:
    rules = tmp_path / "rules.conf"
    rules.write_text("allow from loopback to everywhere\n")
    with running(tmp_path, ADMIN, "--control=off", f"--rules={rules}") as proxy:
        (place,) = addresses(proxy)
        assert scraped(place, "geosocks_config_last_reload_successful") == 1
        rules.write_text("alow everything\n")
        proxy.reload("reload_refused")
        assert scraped(place, "geosocks_config_last_reload_successful") == 0
        assert "The last reload was refused" in get(place).text
        assert "rules.conf:1:1" in get(place).text
        rules.write_text("allow from loopback to everywhere\n")
        proxy.reload()
        assert scraped(place, "geosocks_config_last_reload_successful") == 1
        assert "All is well." in get(place).text


def test_it_turns_when_the_server_drains_and_goes_with_it(tmp_path: Path) -> None:
    options = (ADMIN, "--control=off", "--drain=30", "--listen=127.0.0.1:0")
    with service(tmp_path, *options) as proxy, serving(echo) as target:
        (place,) = addresses(proxy)
        assert get(place, "/readyz").status == 200
        sock = session(proxy, target)
        proxy.signal(signal.SIGTERM)
        until(lambda: get(place, "/readyz").status == 503)
        assert get(place, "/healthz").status == 200
        assert "Draining" in get(place).text
        sock.close()
        assert proxy.wait() == 0
        with gevent.socket.socket() as late, pytest.raises(ConnectionRefusedError):
            late.connect(place)


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with running(tmp_path, f"--admin=unix:{path}", "--control=off") as proxy:
        proxy.wait_for(lambda: len(proxy.events("listening")) == 2)
        assert path.stat().st_mode & 0o777 == 0o600
        assert get(str(path), "/readyz").status == 200
    assert not path.exists()


def test_a_scrape_under_load_is_quick_and_stops_nobody(tmp_path: Path) -> None:
    with running(tmp_path, ADMIN, "--control=off") as proxy, serving(echo) as target:
        (place,) = addresses(proxy)
        socks = [session(proxy, target) for _ in range(300)]
        over = gevent.event.Event()

        def talk(sock: gevent.socket.socket) -> int:
            said = 0
            while not over.is_set():
                sock.sendall(b"x" * 1000)
                assert recv_exactly(sock, 1000) == b"x" * 1000
                said += 1
                gevent.sleep(0.02)
            return said

        talking = [gevent.spawn(talk, sock) for sock in socks[:50]]
        took = []
        for _ in range(15):
            began = time.monotonic()
            assert get(place, "/metrics").status == 200
            took.append(time.monotonic() - began)
            gevent.sleep(0.03)
        over.set()
        assert all(one.get(timeout=5.0) > 3 for one in talking)
        assert statistics.median(took) < 0.25
        assert all(map(lives, socks))
        assert scraped(place, "geosocks_sessions_active") == 300


# --- workers ----------------------------------------------------------------------------------


def everything(proxy: Proxy, path: str, place: tuple[str, int], workers: int = 2) -> list[Reply]:
    """What each worker answers: the kernel gives a connection to one or another."""
    return [get(place, path) for _ in range(8 * workers)]


def test_any_worker_tells_of_all(tmp_path: Path) -> None:
    control = tmp_path / "control.sock"
    options = (ADMIN, "--workers=2", f"--control={control}", "--listen=127.0.0.1:0")
    with service(tmp_path, *options, "--drain=0") as proxy, serving(echo) as target:
        place = addresses(proxy, 2)[0]
        proxy.wait_for(lambda: control.exists() and Path(f"{control}.1").exists())
        socks = [session(proxy, target) for _ in range(40)]
        for sock in socks:
            sock.sendall(b"x" * 100)
            recv_exactly(sock, 100)
        by_worker = {}
        for answer in everything(proxy, "/sessions", place):
            told = answer.json["sessions"]
            assert len(told) == 40
            assert len({one["session"] for one in told}) == 40
            by_worker = {one["worker"]: one for one in told}
        assert by_worker.keys() == {0, 1}
        until(lambda: scraped(place, "geosocks_sessions_active") == 40)
        until(lambda: scraped(place, 'geosocks_octets_total{direction="up"}') == 4000)
        for answer in everything(proxy, "/metrics", place):
            assert value(answer.text, "geosocks_worker_up") == 2
        for answer in everything(proxy, "/", place):
            assert "2 of 2 workers" in answer.text
            assert re.search(r"127\.0\.0\.1<svg.*?8\.0 kB</td><td class=\"n\">40<", answer.text)


def test_counts_outlive_a_worker_that_is_killed(tmp_path: Path) -> None:
    options = (ADMIN, "--workers=2", "--listen=127.0.0.1:0")
    with service(tmp_path, *options) as proxy, serving(echo) as target:
        place = addresses(proxy, 2)[0]
        for _ in range(20):
            session(proxy, target).close()
        name = "geosocks_sessions_total"
        until(lambda: scraped(place, name) == 20)
        killed = worker_pids(proxy)[0]
        os.kill(killed, signal.SIGKILL)
        proxy.wait_event("worker_started", 3)
        addresses(proxy, 3)
        until(lambda: scraped(place, "geosocks_worker_up") == 2)
        for answer in everything(proxy, "/metrics", place):
            assert value(answer.text, name) == 20
        session(proxy, target).close()
        until(lambda: scraped(place, name) == 21)
        until(lambda: scraped(place, "geosocks_sessions_active") == 0)


# --- refusals ---------------------------------------------------------------------------------


def refused(*options: object) -> str:
    """The one line that a refusal to start comes with; exit code 2."""
    done = run([*COMMAND, "--control=off", "--listen=127.0.0.1:0", *options])
    assert done.code == 2, done.err
    (line,) = done.err.splitlines()
    return line


def test_it_does_not_start_open_to_the_network(tmp_path: Path) -> None:
    assert "--admin off loopback needs --admin-token-file" in refused("--admin=0.0.0.0:0")
    token = tmp_path / "token"
    token.write_text("0123456789abcdef")
    token.chmod(0o644)
    for more in ((), ("--check-config",)):
        line = refused(ADMIN, f"--admin-token-file={token}", *more)
        assert line.endswith("open to others; mend with `chmod 640 token`")
    token.write_text("short")
    token.chmod(0o600)
    assert "16 to 512" in refused(ADMIN, f"--admin-token-file={token}")
    assert "short" not in refused(ADMIN, f"--admin-token-file={token}")
    assert "No such file" in refused(ADMIN, f"--admin-token-file={tmp_path / 'none'}")


def test_off_loopback_it_serves_those_who_show_the_token(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef\n")
    token.chmod(0o600)
    options = ("--admin=0.0.0.0:0", f"--admin-token-file={token}", "--control=off")
    with running(tmp_path, *options) as proxy:
        (place,) = addresses(proxy)
        assert get(place, "/metrics").status == 401
        shown = {"Authorization": "Bearer 0123456789abcdef"}
        assert get(place, "/metrics", headers=shown).status == 200
        assert "0123456789abcdef" not in proxy.text()
        assert "0123456789abcdef" not in Path(f"/proc/{proxy.pid}/cmdline").read_text()


def test_a_port_in_use_is_a_temporary_failure() -> None:
    with gevent.socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        done = run([*COMMAND, "--control=off", "--listen=127.0.0.1:0", f"--admin=127.0.0.1:{port}"])
    assert done.code == 75
    assert f"127.0.0.1:{port}: Address already in use" in done.err
    assert len(done.err.splitlines()) == 1


WITHOUT = """
import sys
sys.modules["prometheus_client"] = None
from geosocks.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_without_the_library_it_says_what_to_install() -> None:
    options = ["serve", "--control=off", "--listen=127.0.0.1:0", ADMIN]
    for more in ([], ["--check-config"]):
        done = run([sys.executable, "-c", WITHOUT, *options, *more])
        assert done.code == 2, done.err
        assert "pip install 'geosocks[metrics]'" in done.err
        assert len(done.err.splitlines()) == 1
    checked = run([sys.executable, "-c", WITHOUT, *options[:-1], "--check-config"])
    assert checked.code == 0, checked.err


def test_no_session_leads_to_the_page(tmp_path: Path) -> None:
    with running(tmp_path, ADMIN, "--control=off") as proxy:
        (place,) = addresses(proxy)
        sock = proxy.dial()
        sock.sendall(b"\x05\x01\x00" + request(1, *place))
        assert recv_exactly(sock, 2) == b"\x05\x00"
        assert read_reply(sock).rep == 2
