"""The line of a session's end is the same whether it is made straight or of a record."""

import io
import json
import logging
import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geosocks.codes import Cmd, Method, Rep
from geosocks.events import LogObserver, SessionClosed, SessionOpened
from geosocks.events.written import LOOK_EVERY
from geosocks.logs.closed import closed_line, in_python
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


# --- where it is compiled, C writes it, and Python what C does not know -------------------------

NOW = 1_790_000_000.0

TEXTS = st.one_of(
    st.none(),
    st.text(max_size=600),
    st.text(st.characters(min_codepoint=0x1F, max_codepoint=0x7F), max_size=40),
    st.text(" !plain", min_size=505, max_size=520),
)
NUMBERS = st.one_of(st.integers(0, 1 << 65), st.integers(0, 20))
NAMES = st.text(st.characters(max_codepoint=0xFF), min_size=1, max_size=255)
PORTS = st.integers(0, 65535)
CLIENTS = st.builds(Address, st.ip_addresses(), PORTS)
ADDRESSES = st.one_of(CLIENTS, st.builds(Address, NAMES, PORTS))


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "session": NUMBERS,
            "client": CLIENTS,
            "method": st.one_of(st.none(), st.integers(0, 255), st.sampled_from(Method)),
            "identity": TEXTS,
            "command": st.one_of(st.none(), st.integers(0, 255), st.sampled_from(Cmd)),
            "destination": st.one_of(st.none(), ADDRESSES),
            "dialled": st.one_of(st.none(), ADDRESSES),
            "rule": TEXTS,
            "reason": TEXTS.filter(bool),
            "up": NUMBERS,
            "down": NUMBERS,
            "seconds": st.floats(0, 1e15),
            "claimed": TEXTS,
            "upstream": TEXTS,
        },
    ),
    st.floats(0, 4e9),
)
def test_both_write_the_same(changes: dict[str, Any], created: float) -> None:
    event = replace(CLOSED, **changes)
    assert closed_line(event, created) == in_python(event, created)


@pytest.mark.parametrize("place", range(18))
@pytest.mark.parametrize("odd", ["\x00", "\x1f", " ", '"', "\\", "~", "\x7f", "\x80", "\u0100"])
def test_what_does_not_stand_for_itself_is_seen_wherever_it_is(place: int, odd: str) -> None:
    text = "x" * place + odd + "x" * (17 - place)
    event = replace(CLOSED, identity=text, rule=odd * 18)
    assert closed_line(event, NOW) == in_python(event, NOW)
    assert json.loads(closed_line(event, NOW))["reason"] == "closed"


@pytest.mark.parametrize(
    "changes",
    [
        {"up": True},
        {"up": -5},
        {"session": 10**30},
        {"seconds": 3},
        {"seconds": 1e300},
        {"method": 1 << 70},
        {"command": 256},
        {"identity": type("Name", (str,), {})("alice")},
        dict.fromkeys(("identity", "rule", "reason", "claimed", "upstream"), "\u202e" * 512),
    ],
)
def test_what_no_session_tells_is_written_all_the_same(changes: dict[str, Any]) -> None:
    event = replace(CLOSED, **changes)
    assert closed_line(event, NOW) == in_python(event, NOW)


def test_what_cannot_be_written_raises() -> None:
    for wrong in {"seconds": float("nan")}, {"seconds": "soon"}, {"client": "me"}:
        with pytest.raises((AttributeError, TypeError, ValueError)):
            closed_line(replace(CLOSED, **wrong), NOW)


def test_seconds_come_and_go_and_come_back() -> None:
    for created in (NOW, NOW + 0.9994, NOW + 0.9996, NOW + 1, NOW - 86400.001, NOW, 0.0, 5e11):
        assert closed_line(CLOSED, created) == in_python(CLOSED, created)


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


def test_what_is_changed_holds_at_once_for_one_that_is_asked_again() -> None:
    logger = logging.getLogger("geosocks.of_this_test_too")  # setLevel is for those that are known
    logger.propagate = False
    logger.setLevel(logging.INFO)
    out = io.StringIO()
    handler = ThreadedHandler(StreamPlace(out), JsonLines())
    logger.addHandler(handler)
    observe = LogObserver(logger)
    observe(CLOSED)
    logger.setLevel(logging.WARNING)
    assert not observe.wants(SessionClosed)
    observe(CLOSED)
    handler.close()
    assert len(out.getvalue().splitlines()) == 1


def test_none_is_lost_while_one_handler_takes_the_place_of_another(logger: logging.Logger) -> None:
    outs = [io.StringIO(), io.StringIO()]
    first, second = (ThreadedHandler(StreamPlace(out), JsonLines()) for out in outs)
    observe = LogObserver(logger)
    logger.addHandler(first)
    observe(CLOSED)
    logger.handlers[:] = [second]
    first.close()
    observe(CLOSED)
    second.close()
    assert [len(out.getvalue().splitlines()) for out in outs] == [1, 1]


def test_whatever_is_changed_meanwhile_holds_a_moment_later() -> None:
    logger = logging.getLogger("geosocks.of_this_test")  # setLevel is for those that are known
    logger.propagate = False
    logger.setLevel(logging.INFO)
    out, kept = io.StringIO(), Kept()
    handler, other = (ThreadedHandler(StreamPlace(out), JsonLines()) for _ in range(2))
    observe = LogObserver(logger)
    logger.addHandler(handler)
    told = 0

    def lines() -> int:
        """How many came of one more event."""
        nonlocal told
        time.sleep(LOOK_EVERY)
        observe(CLOSED)
        handler.flush()
        other.flush()
        before, told = told, len(out.getvalue().splitlines())
        return told - before

    assert lines() == 1
    logger.setLevel(logging.WARNING)
    assert lines() == 0
    logger.setLevel(logging.INFO)
    logger.disabled = True
    assert lines() == 0
    logger.disabled = False
    handler.setLevel(logging.WARNING)
    assert lines() == 0
    handler.setLevel(logging.INFO)
    no = logging.Filter("somebody else")
    for who in handler, logger:
        who.addFilter(no)
        assert lines() == 0
        who.removeFilter(no)
    logger.addHandler(other)
    assert lines() == 2
    logger.removeHandler(handler)
    assert lines() == 1
    logger.addHandler(kept)
    assert lines() == len(kept.records) == 1
    logger.removeHandler(other)
    assert lines() == 0
    logger.removeHandler(kept)
    logger.addHandler(handler)
    assert lines() == 1
    logger.propagate, logger.parent = True, logging.Logger("above")
    logger.parent.addHandler(other)
    assert lines() == 2
    for one in handler, other:
        one.close()


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
