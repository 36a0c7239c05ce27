"""What says the same over and over is counted; what is an access log, never."""

import io
import json
import logging
from typing import Any

import pytest

from geosocks.events import (
    AuthenticationFailed,
    Event,
    LimitReached,
    NegotiationEnded,
    SessionClosed,
    SessionCrashed,
    SessionOpened,
    SourcePenalised,
    event_name,
    plain,
)
from geosocks.logs.handler import ThreadedHandler
from geosocks.logs.json_lines import JsonLines
from geosocks.logs.lines import TextLines
from geosocks.logs.places import StreamPlace
from geosocks.logs.repeats import MOST_KEYS, WINDOW, Repeats
from geosocks.wire.socks5 import Address
from tests.support.net import wait_for


class Clock:
    """A number."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def record(event: Event) -> logging.LogRecord:
    name = event_name(type(event))
    told = {"levelno": event.level, "levelname": logging.getLevelName(event.level), "msg": name}
    return logging.makeLogRecord(told | {"event": name, "facts": plain(event)})


def failed(host: str = "192.0.2.1", reason: str = "wrong", port: int = 5) -> logging.LogRecord:
    return record(AuthenticationFailed(port, Address(host, port), 2, f"user{port}", reason))


def facts(records: Any) -> list[dict[str, Any]]:
    return [one.__dict__["facts"] for one in records]


def test_the_first_of_a_kind_are_written_and_the_others_told_once() -> None:
    clock = Clock()
    repeats = Repeats(3, clock=clock)
    assert [repeats.admits(failed(port=port)) for port in range(1, 9)] == [True] * 3 + [False] * 5
    assert repeats.left() == WINDOW
    assert not [*repeats.over()]
    clock.now += WINDOW
    assert repeats.left() == 0
    [told] = repeats.over()
    assert told.levelno == logging.WARNING
    assert told.__dict__["facts"] == {
        "of": "authentication_failed",
        "lines": 5,
        "seconds": WINDOW,
        "reason": "wrong",
        "client": "192.0.2.1",
    }
    assert TextLines("none").format(told) == (
        "5 more in 10 s: authentication failed, wrong, 192.0.2.1"
    )
    assert repeats.left() is None
    assert repeats.admits(failed())


def test_other_hosts_reasons_and_kinds_are_told_apart() -> None:
    repeats = Repeats(1, clock=Clock())
    assert repeats.admits(failed())
    assert not repeats.admits(failed(port=6))
    assert repeats.admits(failed(host="192.0.2.2"))
    assert repeats.admits(failed(host="2001:db8::1"))
    assert repeats.admits(failed(reason="other"))
    assert repeats.admits(record(NegotiationEnded(1, Address("192.0.2.1", 5), "wrong")))
    assert repeats.admits(record(SourcePenalised("192.0.2.0/24", 3, 60.0)))
    assert repeats.admits(record(SourcePenalised("198.51.100.0/24", 3, 60.0)))
    assert not repeats.admits(record(SourcePenalised("192.0.2.0/24", 4, 90.0)))
    assert repeats.admits(record(LimitReached("sessions", 3, "user alice")))
    assert repeats.admits(record(LimitReached("sessions", 3)))
    assert not repeats.admits(record(LimitReached("sessions", 3)))
    assert repeats.admits(record(SessionCrashed(1, "ValueError", "here")))
    assert not repeats.admits(record(SessionCrashed(2, "ValueError", "there")))


CLOSED = SessionClosed(1, Address("192.0.2.1", 5), 0, None, 1, None, None, None, "idle", 0, 0, 1.0)


@pytest.mark.parametrize(
    "one",
    [
        record(CLOSED),
        record(SessionOpened(1, Address("192.0.2.1", 5), "x")),
        logging.makeLogRecord({"levelno": logging.ERROR, "msg": "somebody else's"}),
    ],
)
def test_what_is_never_held_back(one: logging.LogRecord) -> None:
    repeats = Repeats(1, clock=Clock())
    assert all(repeats.admits(one) for _ in range(100))
    assert repeats.left() is None


def test_all_are_written_if_that_was_asked_for() -> None:
    repeats = Repeats(None, clock=Clock())
    assert all(repeats.admits(failed()) for _ in range(100))
    assert repeats.left() is None


def test_a_flood_from_everywhere_fills_no_memory_and_no_log() -> None:
    clock = Clock()
    repeats = Repeats(2, clock=clock)
    hosts = [f"2001:db8::{number:x}" for number in range(3 * MOST_KEYS)]
    written = sum(repeats.admits(failed(host=host)) for host in hosts)
    assert written == MOST_KEYS + 2
    assert len(repeats._seen) == MOST_KEYS + 1
    clock.now += WINDOW
    assert facts(repeats.over()) == [
        {"of": "authentication_failed", "lines": 2 * MOST_KEYS - 2, "seconds": WINDOW}
    ]


def test_the_thread_tells_it_by_itself_once_the_window_is_over() -> None:
    out, clock = io.StringIO(), Clock()
    handler = ThreadedHandler(StreamPlace(out), JsonLines())
    handler._repeats = Repeats(1, clock=clock)
    for _ in range(5):
        handler.emit(failed())
    wait_for(lambda: "authentication_failed" in out.getvalue())
    clock.now += WINDOW
    handler._work.set()  # the thread waits by the true clock
    wait_for(lambda: "lines_held_back" in out.getvalue())
    handler.close()
    first, second = map(json.loads, out.getvalue().splitlines())
    assert (first["event"], second["event"], second["lines"]) == (
        "authentication_failed",
        "lines_held_back",
        4,
    )


def test_the_end_of_the_process_is_the_end_of_the_window() -> None:
    out = io.StringIO()
    handler = ThreadedHandler(StreamPlace(out), JsonLines(), repeats=1)
    for _ in range(3):
        handler.emit(failed())
    handler.close()
    assert json.loads(out.getvalue().splitlines()[-1])["lines"] == 2
