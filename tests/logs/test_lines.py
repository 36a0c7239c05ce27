"""What a person reads: each of the lines that there are many of."""

import logging
import re
from typing import Any

import pytest

from geosocks.codes import Cmd, Method, Rep
from geosocks.events import (
    AuthenticationFailed,
    Event,
    Listening,
    LogObserver,
    NegotiationEnded,
    RequestRefused,
    SessionClosed,
    Stopped,
)
from geosocks.logs.lines import TextLines, told
from geosocks.wire.socks5 import Address

CLIENT = Address("192.0.2.1", 40112)
CLOSED = SessionClosed(
    session=7,
    client=CLIENT,
    method=Method.USERNAME,
    identity="alice",
    command=Cmd.CONNECT,
    destination=Address("www.example.org", 443),
    dialled=Address("192.0.2.7", 443),
    rule="rules.conf:4: allow user @staff to *.example.org port https",
    reason="closed",
    up=1845,
    down=52310,
    seconds=3.214007,
)


def line(event: Event, **how: Any) -> str:
    """The line of an event."""
    logger = logging.Logger("lines")
    records: list[logging.LogRecord] = []
    logger.addFilter(lambda record: records.append(record) or True)  # type: ignore[func-returns-value]
    logger.setLevel("DEBUG")
    LogObserver(logger)(event)
    return TextLines(how.get("stamp", "none")).format(records[0])


LINES = [
    (
        CLOSED,
        "#7 closed: alice at 192.0.2.1:40112, connect to www.example.org:443 (192.0.2.7:443), "
        "1.8 kB up, 52.3 kB down, 3.21 s, rules.conf:4",
    ),
    (
        SessionClosed(
            session=8,
            client=CLIENT,
            method=None,
            identity=None,
            command=None,
            destination=None,
            dialled=None,
            rule=None,
            reason="half_close_idle",
            up=0,
            down=999,
            seconds=0.0001,
        ),
        "#8 closed (half close idle): 192.0.2.1:40112, 0 B up, 999 B down, 0.0001 s",
    ),
    (
        SessionClosed(
            session=9,
            client=CLIENT,
            method=0,
            identity=None,
            command=Cmd.BIND,
            destination=Address("192.0.2.7", 443),
            dialled=Address("192.0.2.7", 443),
            rule="loop",
            reason="killed",
            up=999_950,
            down=7_000_000_000_000,
            seconds=86400.0,
            claimed="bob",
            upstream="office",
        ),
        "#9 closed (killed): bob(?) at 192.0.2.1:40112, bind to 192.0.2.7:443 (via office), "
        "1.0 MB up, 7000.0 GB down, 8.64e+04 s, loop",
    ),
    (
        RequestRefused(
            session=1,
            client=CLIENT,
            method=0,
            identity=None,
            command=Cmd.UDP_ASSOCIATE,
            destination=Address("127.0.0.1", 1),
            reply=Rep.NOT_ALLOWED,
            rule="rules.conf:9: deny to loopback",
            reason="a rule says no",
        ),
        "#1 refused: 192.0.2.1:40112, udp associate to 127.0.0.1:1, a rule says no (not allowed), "
        "rules.conf:9",
    ),
    (
        AuthenticationFailed(2, CLIENT, Method.USERNAME, "alice b", "wrong user name or password"),
        '#2 authentication failed (username): "alice b" at 192.0.2.1:40112, '
        "wrong user name or password",
    ),
    (
        RequestRefused(
            session=1,
            client=CLIENT,
            method=0,
            identity="alice",
            command=Cmd.CONNECT,
            destination=Address("www.example.org", 1),
            reply=Rep.CONNECTION_REFUSED,
            rule=None,
            reason="192.0.2.7:1: Connection refused",
        ),
        "#1 refused: alice at 192.0.2.1:40112, connect to www.example.org:1, "
        "192.0.2.7:1: Connection refused",
    ),
    (NegotiationEnded(3, CLIENT, "too slow"), "#3 no request: 192.0.2.1:40112, too slow"),
    (Listening("127.0.0.1:1080"), "listening: address=127.0.0.1:1080"),
]


@pytest.mark.parametrize(("event", "text"), LINES, ids=lambda value: type(value).__name__)
def test_lines_for_people(event: Event, text: str) -> None:
    assert line(event) == text


def test_a_name_cannot_pretend_to_be_more_than_a_name() -> None:
    event = AuthenticationFailed(2, CLIENT, 2, 'root" at 10.0.0.1:1, "x\n#9 closed', "no")
    assert line(event) == (
        r'#2 authentication failed (username): "root\" at 10.0.0.1:1, \"x\\x0a#9 closed" '
        "at 192.0.2.1:40112, no"
    ).replace(r"\\x0a", r"\x0a")


def test_a_line_begins_with_the_time_and_with_its_level_if_that_says_something() -> None:
    assert re.match(r"\d\d:\d\d:\d\d #7 closed", line(CLOSED, stamp="time"))
    failed = AuthenticationFailed(2, CLIENT, 2, "alice", "no")
    assert re.match(r"\d\d:\d\d:\d\d warning: #2 auth", line(failed, stamp="time"))
    dated = line(CLOSED, stamp="date")
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d{4} #7 closed", dated)


def test_an_event_with_one_fact_or_none_is_a_line() -> None:
    assert line(Stopped(0)) == "stopped: sessions_cut=0"
    assert told("stopped", {}) == "stopped"
    assert told("stopped", {"session": 3}) == "#3 stopped"
