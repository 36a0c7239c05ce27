"""``geosocks ctl top``: sessions, rates and users as a live table, by the package rich."""

import argparse
import json
import os
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import gevent.select
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from geosocks.cli.ctl.looking import SORTS, command_of
from geosocks.cli.tables import NOTHING, duration, octets, rate
from geosocks.control_client import Answer, ControlError, Row, ask_workers

REFRESH: Final = 1.0
"""Seconds between two frames."""

CALM: Final = 1000
"""Sessions above which frames are further apart: so many for each second."""

MOST_USERS: Final = 5
"""Lines for users."""

WIDTH_WITHOUT_TERMINAL: Final = 120

ORDERS: Final = ("rate", "octets", "age", "idle", "user", "destination", "id")
"""What the key s goes through."""


@dataclass(frozen=True, slots=True)
class Look:
    """What the workers told at one moment: ``when``, by the clock that only goes forward."""

    when: float
    status: tuple[Row, ...] = ()
    sessions: tuple[Row, ...] = ()
    trouble: str | None = None

    @classmethod
    def take(cls, path: str) -> "Look":
        """Ask them.  That no server is there is something to show, not an error."""
        status = ask_workers(path, "status")
        sessions = ask_workers(path, "sessions")
        troubles = [one for one in status.values() if isinstance(one, ControlError)]
        return cls(
            time.monotonic(),
            tuple(one.ok for one in status.values() if isinstance(one, Answer)),
            tuple(row for one in sessions.values() if isinstance(one, Answer) for row in one.rows),
            next((str(one) for one in troubles if not one.is_absent), None)
            or (str(troubles[0]) if len(troubles) == len(status) else None),
        )


@dataclass(frozen=True, slots=True)
class Frame:
    """Two looks, one after the other: what has moved between them is a rate."""

    look: Look
    sessions: tuple[Row, ...]
    """Those of the look, each with ``up_rate`` and ``down_rate`` in octets a second."""

    @classmethod
    def between(cls, before: Look, look: Look) -> "Frame":
        """What is shown of ``look``."""
        seconds = max(look.when - before.when, 0.001)
        known = {_key(row): row for row in before.sessions}
        sessions = (_with_rates(row, known.get(_key(row)), seconds) for row in look.sessions)
        return cls(look, tuple(sessions))

    def total(self, name: str) -> float:
        """The sum over all sessions."""
        return float(sum(row[name] for row in self.sessions))


def _key(row: Row) -> tuple[int, str]:
    # A server that was started anew begins to count anew.
    return row["session"], row["client"]


def _with_rates(row: Row, before: Row | None, seconds: float) -> Row:
    if before is None:  # it began since: all it has moved was moved since
        before, seconds = {"up": 0, "down": 0}, max(min(seconds, row["seconds"]), 0.001)
    return row | {
        "up_rate": max(0, row["up"] - before["up"]) / seconds,
        "down_rate": max(0, row["down"] - before["down"]) / seconds,
    }


def _by_rate(row: Row) -> tuple[float, int]:
    return -(row["up_rate"] + row["down_rate"]), row["session"]


# --- a frame as text --------------------------------------------------------------------------


def rendered(frame: Frame, order: str, width: int, height: int | None) -> Group:
    """The whole frame, for a terminal of that size; of any height where that is None."""
    users = _users(frame)
    head = [_head(frame), _totals(frame, order)]
    if frame.look.trouble is not None:
        head.append(Text(frame.look.trouble, style="bold red", overflow="ellipsis", no_wrap=True))
    shown_users = users[:MOST_USERS] if height is None or height >= 20 else users[:2]
    parts: list[Any] = [*head]
    if shown_users:
        parts += [Text(""), _users_table(shown_users)]
    used = len(head) + (len(shown_users) + 2 if shown_users else 0) + 3
    sessions = sorted(frame.sessions, key=_by_rate if order == "rate" else SORTS[order])
    room = len(sessions) if height is None else max(0, height - used)
    parts += [Text(""), _sessions_table(sessions[:room], width)]
    if len(sessions) > room:
        parts.append(Text(f"... and {len(sessions) - room} more", style="dim"))
    return Group(*parts)


def _head(frame: Frame) -> Text:
    status = frame.look.status
    if not status:
        return Text("geosocks: no server", style="bold")
    version, up = status[0]["version"], duration(max(row["seconds"] for row in status))
    text = Text(f"geosocks {version}", style="bold", no_wrap=True, overflow="ellipsis")
    most = sum(row["max_sessions"] for row in status)
    text.append(f"  up {up}  sessions {len(frame.sessions)} of {most}", style="not bold")
    if len(status) > 1:
        text.append(f"  workers {len(status)}", style="not bold")
    if any(row["draining"] for row in status):
        text.append("  draining", style="bold yellow")
    return text


def _totals(frame: Frame, order: str) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"traffic up {rate(frame.total('up_rate'))}, ")
    text.append(f"down {rate(frame.total('down_rate'))}  sorted by {order}")
    text.append("   q quit, s sort", style="dim")
    return text


def _users(frame: Frame) -> list[tuple[str, int, float, float]]:
    """Who has how many sessions and what rates, the busiest first."""
    found: dict[str | None, list[Row]] = {}
    for row in frame.sessions:
        found.setdefault(row["identity"], []).append(row)
    users = [
        (
            NOTHING if user is None else user,
            len(rows),
            sum(row["up_rate"] for row in rows),
            sum(row["down_rate"] for row in rows),
        )
        for user, rows in found.items()
    ]
    return sorted(users, key=lambda user: (-user[2] - user[3], -user[1], user[0]))


def _users_table(users: Sequence[tuple[str, int, float, float]]) -> Table:
    table = _table()
    table.add_column("USER", overflow="ellipsis", no_wrap=True, max_width=40)
    for title in ("SESSIONS", "UP", "DOWN"):
        table.add_column(title, justify="right", no_wrap=True)
    for user, number, up, down in users:
        table.add_row(Text(user), str(number), rate(up), rate(down))
    return table


_COLUMNS: Final[tuple[tuple[str, str, int, Callable[[Row], str]], ...]] = (
    # Title, alignment, the width of terminal from which on it is shown, the text.
    ("SESSION", "right", 0, lambda row: str(row["session"])),
    ("USER", "left", 0, lambda row: row["identity"] or NOTHING),
    ("CLIENT", "left", 100, lambda row: row["client"]),
    ("COMMAND", "left", 110, command_of),
    ("DESTINATION", "left", 0, lambda row: row["destination"] or f"({row['state']})"),
    ("UP", "right", 0, lambda row: rate(row["up_rate"])),
    ("DOWN", "right", 0, lambda row: rate(row["down_rate"])),
    ("OCTETS", "right", 70, lambda row: octets(row["up"] + row["down"])),
    ("AGE", "right", 0, lambda row: duration(row["seconds"])),
    ("IDLE", "right", 90, lambda row: duration(row["idle"])),
)


def _sessions_table(rows: Sequence[Row], width: int) -> Table:
    table = _table()
    columns = [column for column in _COLUMNS if column[2] <= width]
    for title, justify, _, _ in columns:
        flexible = justify == "left"
        table.add_column(
            title,
            justify="right" if justify == "right" else "left",
            overflow="ellipsis",
            no_wrap=True,
            ratio={"DESTINATION": 3, "USER": 2, "CLIENT": 2}.get(title) if flexible else None,
        )
    table.expand = True
    for row in rows:
        # Text, or rich would take brackets in it for markup.
        table.add_row(*(Text(text(row)) for _, _, _, text in columns))
    return table


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold reverse")


# --- keys and time ----------------------------------------------------------------------------


@dataclass(slots=True)
class Keys:
    """What is typed at a terminal; where there is none, nothing is."""

    fd: int

    def wait(self, seconds: float) -> str:
        """The next key; empty when none comes within ``seconds``."""
        ready, _, _ = gevent.select.select([self.fd], [], [], seconds)
        if not ready:
            return ""
        typed = os.read(self.fd, 64)
        return typed[:1].decode("ascii", "replace") if typed else "q"


@contextmanager
def keys_of(fd: int) -> Iterator[Keys]:
    """The keys of a terminal as they are pressed, without showing them; as before at the end."""
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield Keys(fd)
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def run(options: argparse.Namespace) -> int:
    """Show frame after frame until q is pressed; one where there is no terminal."""
    if options.once or options.json or not (sys.stdout.isatty() and sys.stdin.isatty()):
        return _once(options)
    console = Console(highlight=False)
    try:
        with (
            keys_of(sys.stdin.fileno()) as keys,
            Live(console=console, screen=True, auto_refresh=False) as live,
        ):
            _watch(options, console, keys, live)
    except (OSError, termios.error):  # the terminal was closed
        return 1
    return 0


def _watch(options: argparse.Namespace, console: Console, keys: Keys, live: Live) -> None:
    """Until q is pressed."""
    order, before = options.sort, Look.take(options.socket)
    frame = Frame.between(before, before)
    due = time.monotonic() + 0.3  # the first rates are not waited for
    while True:
        size = console.size
        live.update(rendered(frame, order, size.width, size.height), refresh=True)
        key = keys.wait(max(0.0, due - time.monotonic()))
        if key in ("q", "Q"):
            return
        if key in ("s", "S"):
            order = after(order)
        if time.monotonic() >= due:
            look = Look.take(options.socket)
            frame, before = Frame.between(before, look), look
            due = time.monotonic() + pause(frame)


def after(order: str) -> str:
    """The order that comes next."""
    return ORDERS[(ORDERS.index(order) + 1) % len(ORDERS)] if order in ORDERS else ORDERS[0]


def pause(frame: Frame) -> float:
    """Seconds until the next frame: a server with many sessions is asked less often."""
    return max(REFRESH, len(frame.sessions) / CALM)


def _once(options: argparse.Namespace) -> int:
    before = Look.take(options.socket)
    if not before.status:
        raise ControlError(before.trouble or "no server answers")
    gevent.sleep(REFRESH)
    frame = Frame.between(before, Look.take(options.socket))
    if options.json:
        for row in frame.sessions:
            print(json.dumps(row))
        return 0
    width = os.get_terminal_size().columns if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL
    console = Console(highlight=False, width=width)
    console.print(rendered(frame, options.sort, width, None))
    return 0
