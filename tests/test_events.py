"""What is told, how it is written down, and that nothing harmful gets into a line."""

import copy
import gc
import logging
import pickle
import sys
from dataclasses import astuple, fields, replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geosocks.events import (
    AuthenticationFailed,
    Event,
    FanOut,
    LogObserver,
    RequestRefused,
    SessionClosed,
    SessionCrashed,
    escape,
    event_name,
    plain,
)
from geosocks.events.session import make_closed
from geosocks.wire.socks5 import Address

CLIENT = Address("192.0.2.1", 4711)


def refused(destination: Address | None = None, identity: str | None = None) -> RequestRefused:
    return RequestRefused(
        7,
        client=CLIENT,
        method=2,
        identity=identity,
        command=1,
        destination=destination,
        reply=5,
        rule=None,
        reason="why",
    )


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("plain text", "plain text"),
        ("a\nb", "a\\x0ab"),
        ("a\\b", "a\\x5cb"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\x7f\x9b", "\\x7f\\x9b"),
        ("\u202egnp", "\\u202egnp"),
        ("\u2028", "\\u2028"),
        ("\udcff\udc80", "\\xff\\x80"),
        ("ü", "\\xfc"),
        ("🙂", "\\U0001f642"),
        ("x" * 600, "x" * 512 + "..."),
    ],
)
def test_what_a_client_sent_is_written_harmlessly(text: str, written: str) -> None:
    assert escape(text) == written


@given(st.text())
def test_whatever_it_is_it_becomes_one_printable_ascii_line(text: str) -> None:
    written = escape(text)
    assert written.isascii()
    assert written.isprintable()


@given(st.binary(min_size=1, max_size=255))
def test_no_octets_of_a_name_get_into_a_line_as_they_are(name: bytes) -> None:
    facts = plain(refused(Address(name.decode("ascii", "surrogateescape"), 1)))
    assert facts["destination"].isprintable()
    assert facts["destination"].isascii()


def test_names_are_snake_case() -> None:
    assert event_name(SessionClosed) == "session_closed"
    assert event_name(AuthenticationFailed) == "authentication_failed"


def test_codes_have_names_and_what_is_not_there_is_left_out() -> None:
    assert plain(refused(Address(ip_address("::1"), 443))) == {
        "session": 7,
        "client": "192.0.2.1:4711",
        "method": "username",
        "command": "connect",
        "destination": "[::1]:443",
        "reply": "connection_refused",
        "reason": "why",
    }


def test_a_traceback_keeps_its_lines_and_its_end() -> None:
    facts = plain(SessionCrashed(1, "boom", "line\n" * 2000 + "the end"))
    assert facts["traceback"].endswith("line\nthe end")
    assert len(facts["traceback"]) == 4096


def test_observers_come_and_go_and_change_their_minds() -> None:
    told: list[tuple[str, Event]] = []
    fan = FanOut([lambda event: told.append(("first", event))])

    class Choosy:
        kinds: tuple[type[Event], ...] = ()

        def wants(self, kind: type[Event]) -> bool:
            return kind in self.kinds

        def __call__(self, event: Event) -> None:
            told.append(("choosy", event))

    choosy = Choosy()
    fan.add(choosy)
    fan(refused())
    choosy.kinds = (RequestRefused,)
    fan(refused())  # it was asked once
    assert [who for who, _ in told] == ["first", "first"]
    fan.ask_again()
    fan(refused())
    assert [who for who, _ in told[2:]] == ["first", "choosy"]
    fan.remove(choosy)
    fan(refused())
    assert [who for who, _ in told[4:]] == ["first"]


def closed(reason: str) -> SessionClosed:
    return SessionClosed(
        1,
        client=CLIENT,
        method=0,
        identity=None,
        command=1,
        destination=None,
        dialled=None,
        rule=None,
        reason=reason,
        up=1,
        down=2,
        seconds=0.123456789,
    )


@pytest.mark.parametrize(
    ("event", "level"),
    [
        (closed("closed"), logging.INFO),
        (closed("reset_by_client"), logging.INFO),
        (closed("refused"), logging.DEBUG),
        (closed("nothing_said"), logging.DEBUG),
        (AuthenticationFailed(1, CLIENT, 2, "alice", "no"), logging.WARNING),
        (refused(), logging.INFO),
        (SessionCrashed(1, "a", "b"), logging.ERROR),
    ],
)
def test_one_line_a_session_stands_out(
    event: Event, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "geosocks"):
        LogObserver()(event)
    (record,) = caplog.records
    assert record.levelno == level
    assert record.event == event_name(type(event))  # type: ignore[attr-defined]


def test_an_observer_that_raises_is_counted_and_the_others_are_told() -> None:
    told: list[Event] = []

    def broken(event: Event) -> None:
        raise ValueError

    fan_out = FanOut([broken, told.append])
    fan_out(refused())
    assert told == [refused()]
    assert fan_out.failures == 1


def test_the_end_of_a_session_is_the_same_however_it_is_made() -> None:
    plainly = replace(closed("closed"), identity="alice", reply=0, handshake=0.5, connect=0.25)
    made = make_closed(*(getattr(plainly, one.name) for one in fields(SessionClosed)))
    assert type(made) is SessionClosed
    assert made == plainly
    assert hash(made) == hash(plainly)
    assert repr(made) == repr(plainly)
    assert plain(made) == plain(plainly)
    assert replace(made, up=5) == replace(plainly, up=5)
    assert copy.deepcopy(made) == pickle.loads(pickle.dumps(made)) == made
    match made:
        case SessionClosed(identity=str(who), up=up):
            assert (who, up) == ("alice", 1)
    made.up = 7
    assert made != plainly
    assert gc.is_tracked(made)
    with pytest.raises(TypeError):
        make_closed(*astuple(plainly), 1)


def test_it_holds_what_it_is_made_of_no_longer_than_it_lives() -> None:
    parts = [object() for _ in fields(SessionClosed)]
    before = [sys.getrefcount(part) for part in parts]
    for _ in range(100):
        made = make_closed(*parts)
    assert [sys.getrefcount(part) for part in parts] == [count + 1 for count in before]
    del made
    assert [sys.getrefcount(part) for part in parts] == before
