"""``geosocks ctl top``: its figures, and how it looks and listens at a real terminal."""

import fcntl
import json
import os
import pty
import struct
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import pytest

from geosocks.client import Client
from tests.support.net import echo, serving, wait_for
from tests.support.programs import Popen, run
from tests.support.proxy import Proxy, environment, running

pytest.importorskip("rich", reason="top needs the package rich")
pyte = pytest.importorskip("pyte", reason="a terminal to look at needs the package pyte")

from rich.console import Console  # noqa: E402  # where there is one

from geosocks.cli.ctl import live as top  # noqa: E402

# --- figures ----------------------------------------------------------------------------------


def row(session: int, up: int, down: int, **more: Any) -> dict[str, Any]:
    return {
        "session": session,
        "worker": 0,
        "state": "open",
        "client": "127.0.0.1:1",
        "identity": "alice",
        "command": "connect",
        "destination": "www.example.org:443",
        "up": up,
        "down": down,
        "seconds": 60.0,
        "idle": 0.0,
    } | more


STATUS = {"version": "9.9", "seconds": 60.0, "max_sessions": 100, "draining": False, "worker": 0}


def look(when: float, *rows: dict[str, Any], **more: Any) -> top.Look:
    return top.Look(when, (STATUS,), rows, **more)


def rates(frame: top.Frame) -> list[tuple[int, float, float]]:
    return [(one["session"], one["up_rate"], one["down_rate"]) for one in frame.sessions]


def test_a_rate_is_what_moved_between_two_looks() -> None:
    frame = top.Frame.between(look(10.0, row(1, 100, 1000)), look(12.0, row(1, 300, 1000)))
    assert rates(frame) == [(1, 100.0, 0.0)]
    assert frame.total("up_rate") == 100.0


def test_a_new_session_moved_all_of_it_since_it_began() -> None:
    new = look(12.0, row(2, 50, 500, seconds=0.5), row(3, 50, 0, seconds=99.0))
    assert rates(top.Frame.between(look(10.0), new)) == [(2, 100.0, 1000.0), (3, 25.0, 0.0)]


def test_a_server_that_began_anew_counts_anew() -> None:
    before, after = look(10.0, row(1, 9000, 0)), look(11.0, row(1, 10, 0))
    assert rates(top.Frame.between(before, after)) == [(1, 0, 0)]
    other = look(11.0, row(1, 10, 0, client="127.0.0.1:2"))
    assert rates(top.Frame.between(before, other)) == [(1, 10.0, 0.0)]


def test_many_sessions_are_looked_at_less_often() -> None:
    few, many = look(1.0, row(1, 0, 0)), look(1.0, *(row(n, 0, 0) for n in range(5000)))
    assert top.pause(top.Frame.between(few, few)) == 1.0
    assert top.pause(top.Frame.between(many, many)) == 5.0


def test_the_key_s_goes_through_all_orders_and_begins_again() -> None:
    seen = ["rate"]
    while (order := top.after(seen[-1])) != "rate":
        seen.append(order)
    assert seen == list(top.ORDERS)
    assert top.after("down") == "rate"  # one that only the command line has


# --- looks ------------------------------------------------------------------------------------


def shown(
    frame: top.Frame, order: str = "rate", width: int = 80, height: int | None = 24
) -> list[str]:
    console = Console(width=width, height=height or 200, highlight=False, color_system=None)
    with console.capture() as capture:
        console.print(top.rendered(frame, order, width, height))
    return [line.rstrip() for line in capture.get().rstrip("\n").split("\n")]


def still(*rows: dict[str, Any], **more: Any) -> top.Frame:
    one = look(1.0, *rows, **more)
    return top.Frame.between(one, one)


def test_a_frame_fits_a_plain_terminal() -> None:
    rows = [
        row(n, n * 10**6, 0, identity=f"user-{n % 9}-with-a-long-name@EXAMPLE.ORG" * 2)
        for n in range(300)
    ]
    for width, height in ((80, 24), (40, 10), (200, 60), (20, 5)):
        lines = shown(still(*rows), width=width, height=height)
        assert max(map(len, lines)) <= width
        assert len(lines) <= max(height, 9)
    lines = shown(still(*rows))
    assert lines[0].startswith("geosocks 9.9  up 1m00s  sessions 300 of 100")
    assert len(lines) == 24
    assert lines[-1] == "... and 288 more"


def test_what_a_client_calls_itself_is_no_markup() -> None:
    lines = shown(still(row(1, 0, 0, identity="[bold red]x[/]", destination="[link=a]b:1")))
    text = "\n".join(lines)
    assert "[bold red]x[/]" in text
    assert "[link=a]b:1" in text


def test_users_stand_above_with_what_is_theirs() -> None:
    rows = (row(1, 5, 0), row(2, 0, 0, identity=None, state="handshake", destination=None))
    text = shown(top.Frame.between(look(1.0), look(2.0, *rows)))
    head = next(number for number, line in enumerate(text) if line.startswith("USER "))
    assert text[head + 1].split() == ["alice", "1", "5/s", "0/s"]
    assert text[head + 2].split() == ["-", "1", "0/s", "0/s"]
    assert "(handshake)" in "\n".join(text)


@pytest.mark.parametrize(
    ("order", "ids"), [("rate", [2, 1, 3]), ("id", [1, 2, 3]), ("octets", [3, 2, 1])]
)
def test_sessions_stand_in_the_order_that_was_asked_for(order: str, ids: list[int]) -> None:
    before = look(1.0, row(1, 0, 0), row(2, 0, 0), row(3, 999, 0))
    frame = top.Frame.between(before, look(2.0, row(1, 5, 0), row(2, 50, 0), row(3, 999, 0)))
    lines = shown(frame, order)
    begin = next(number for number, line in enumerate(lines) if line.startswith("SESSION"))
    assert [int(line.split()[0]) for line in lines[begin + 1 :]] == ids


def test_a_server_that_has_gone_or_drains_is_told() -> None:
    gone = top.Look(1.0, (), (), "no server runs that ...")
    lines = shown(top.Frame.between(gone, gone))
    assert lines[0] == "geosocks: no server"
    assert "no server runs that ..." in lines
    draining = top.Look(1.0, (STATUS | {"draining": True},))
    assert shown(top.Frame.between(draining, draining))[0].endswith("draining")


# --- at a terminal ----------------------------------------------------------------------------


class Terminal:
    """A terminal with a program in it."""

    def __init__(self, *words: object, columns: int = 80, lines: int = 24) -> None:
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self._fd, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.before = termios.tcgetattr(inside)
        self._inside = inside
        self.process = Popen(
            list(map(str, words)),
            stdin=inside,
            stdout=inside,
            stderr=inside,
            env=environment(TERM="xterm-256color"),
            start_new_session=True,
            preexec_fn=_takes_the_terminal,
        )
        self._reader = gevent.spawn(self._read)

    def _read(self) -> None:
        while True:
            gevent.socket.wait_read(self._fd)
            self._stream.feed(os.read(self._fd, 65536))

    def text(self) -> str:
        """What it shows."""
        return "\n".join(line.rstrip() for line in self.screen.display)

    def wait(self, text: str, seconds: float = 10.0) -> None:
        """Until it shows ``text``."""
        try:
            wait_for(lambda: text in self.text(), seconds)
        except AssertionError:
            pytest.fail(f"no {text!r} in:\n{self.text()}")

    def press(self, key: str) -> None:
        """Press a key."""
        os.write(self._fd, key.encode())

    def restored(self) -> bool:
        """Whether it is in the mode that it was in at first."""
        return termios.tcgetattr(self._inside) == self.before

    def close(self) -> None:
        """End the program, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.kill()
        os.close(self._inside)
        os.close(self._fd)


def _takes_the_terminal() -> None:
    """As a shell has it: what is typed as an interrupt becomes one (tty_ioctl(4), TIOCSCTTY)."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextmanager
def at_terminal(*words: object, **size: int) -> Iterator[Terminal]:
    terminal = Terminal(sys.executable, "-m", "geosocks", "ctl", *words, **size)
    try:
        yield terminal
    finally:
        terminal.close()


@contextmanager
def server(path: Path) -> Iterator[Proxy]:
    with running(path.parent, "--control", path) as proxy:
        proxy.wait_for(path.exists)
        yield proxy


def test_it_shows_sessions_sorts_them_and_outlives_the_server(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with (
        serving(echo) as to,
        at_terminal("--socket", path, "top") as terminal,
    ):
        terminal.wait("geosocks: no server")
        with server(path) as proxy:
            session = Client(proxy.address).connect(to)
            session.sendall(b"x" * 123_000)
            terminal.wait("sessions 1 of")
            terminal.wait(f"{to[0]}:{to[1]}")
            assert not terminal.restored()
            terminal.press("s")
            terminal.wait("sorted by octets")
            terminal.press("x")
            session.close()
            terminal.wait("sessions 0 of")
        terminal.wait("geosocks: no server")
        with server(path):
            terminal.wait("sessions 0 of")
        terminal.press("q")
        assert terminal.process.wait() == 0
        assert terminal.restored()
        assert terminal.screen.cursor.hidden is False


def test_an_interrupt_and_a_small_terminal_are_no_trouble(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with server(path), at_terminal("--socket", path, "top", columns=30, lines=8) as terminal:
        terminal.wait("geosocks ")
        terminal.press("\x03")
        assert terminal.process.wait() == 130
        assert terminal.restored()
        assert "Traceback" not in terminal.text()


def test_where_there_is_no_terminal_it_prints_one_frame(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    command = (sys.executable, "-m", "geosocks", "ctl", "--socket", path, "top")
    with serving(echo) as to, server(path) as proxy, Client(proxy.address).connect(to):
        done = run(command)
        assert done.code == 0, done.err
        lines = done.out.decode().splitlines()
        assert "sessions 1 of" in lines[0]
        assert f"{to[0]}:{to[1]}" in lines[-1]
        assert "\x1b" not in done.out.decode()
        (told,) = map(json.loads, run((*command, "--json")).out.splitlines())
        assert told["destination"] == f"{to[0]}:{to[1]}"
        assert told["up_rate"] == 0


def test_without_its_package_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from geosocks.cli import ctl

    monkeypatch.setattr(ctl.importlib.util, "find_spec", lambda name: None)
    assert ctl.main(["--socket", str(tmp_path / "x"), "top"]) == 1
    assert "pip install 'geosocks[top]'" in capsys.readouterr().err
