"""The line of a session's end is the same whether it is made straight or of a record."""

import io
import json
import logging
import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from geosocks.codes import Cmd, Method, Rep
from geosocks.events import LogObserver, SessionClosed, SessionOpened
from geosocks.logs.handler import ThreadedHandler
from geosocks.logs.json_lines import JsonLines
from geosocks.logs.lines import TextLines
from geosocks.logs.places import StreamPlace
from geosocks.wire.socks5 import Address

CLOSED = SessionClosed(
    7,
    client=Address(IPv4Address("192.0.2.1"), 40112),
    method=Method.USERNAME,
    identity="alice",
    command=Cmd.CONNECT,
    destination=Address("www.example.org", 443),
    dialled=Address(IPv6Address("2001:db8::7"), 443),
    rule="rules.conf:4: allow",
    reason="closed",
    up=1234,
    down=56,
    seconds=3.25,
    reply=Rep.SUCCEEDED,
)


class Kept(logging.Handler):
    """A handler that wants records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def logger() -> logging.Logger:
    logger = logging.Logger("geosocks.of_a_test", logging.INFO)
    logger.propagate = False
    return logger


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": None, "identity": None, "command": None, "destination": None},
        {"method": 0x80, "command": 0x7F, "dialled": None, "rule": None},
        {"identity": 'quo"te \\ \x1b[31m \u202e and beyond', "reason": 'broken_by_target: "no"'},
        {"destination": Address("a\udcff\n.example", 1), "claimed": "bo b", "upstream": "far"},
        {"client": Address(IPv6Address("::1"), 5), "seconds": 0.0000004, "up": 1 << 70},
    ],
)
def test_it_is_the_same_as_by_a_record(logger: logging.Logger, changes: dict[str, Any]) -> None:
    event = replace(CLOSED, **changes)
    kept = Kept()
    logger.addHandler(kept)
    LogObserver(logger)(event)
    (record,) = kept.records
    lines = JsonLines()
    straight = lines.of_closed(event, record.created)
    assert json.loads(straight) == json.loads(lines.format(record))
    assert list(json.loads(straight)) == list(json.loads(lines.format(record)))  # their order
    assert straight.isascii()
    assert "\n" not in straight


@pytest.mark.parametrize("form", [JsonLines, TextLines])
def test_a_handler_writes_it_once(logger: logging.Logger, form: type[logging.Formatter]) -> None:
    out = io.StringIO()
    handler = ThreadedHandler(StreamPlace(out), form())
    logger.addHandler(handler)
    observe = LogObserver(logger)
    observe(CLOSED)
    observe(replace(CLOSED, reason="refused"))  # worth a debug line
    observe(SessionOpened(8, CLOSED.client, "here"))
    handler.close()
    assert len(out.getvalue().splitlines()) == 1
    assert "alice" in out.getvalue()


def test_only_the_one_handler_of_a_logger_is_asked(logger: logging.Logger) -> None:
    out, kept = io.StringIO(), Kept()
    handler = ThreadedHandler(StreamPlace(out), JsonLines())
    for one in (handler, kept):
        logger.addHandler(one)
    LogObserver(logger)(CLOSED)
    handler.close()
    assert len(kept.records) == len(out.getvalue().splitlines()) == 1


def test_filters_are_asked(logger: logging.Logger) -> None:
    out = io.StringIO()
    handler = ThreadedHandler(StreamPlace(out), JsonLines())
    logger.addHandler(handler)
    handler.addFilter(lambda record: record.__dict__["facts"]["identity"] != "alice")
    LogObserver(logger)(CLOSED)
    LogObserver(logger)(replace(CLOSED, identity="bob"))
    handler.close()
    assert [json.loads(line)["identity"] for line in out.getvalue().splitlines()] == ["bob"]


def test_what_does_not_fit_is_counted(logger: logging.Logger) -> None:
    out = io.StringIO()
    handler = ThreadedHandler(StreamPlace(out), JsonLines(), most=3)
    handler.LINGER = 10.0  # type: ignore[misc]  # until it is closed
    logger.addHandler(handler)
    observe = LogObserver(logger)
    before = time.time()
    for _ in range(5):
        observe(CLOSED)
    handler.close()
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    events = [line["event"] for line in lines]
    assert events == ["session_closed"] * 3 + ["log_records_dropped"]
    assert lines[3]["records"] == 2
    assert all(line["time"] >= time.strftime("%Y", time.gmtime(before)) for line in lines)
