"""The threads of GSSAPI steps, and the words for what goes wrong in them."""

import threading

import gevent
import gevent.event
import pytest
from gevent import Timeout
from gssapi.exceptions import GSSError

from geosocks.auth.gss_context import ContextPool, explain, in_thread
from geosocks.errors import AuthFailed
from tests.support.fake_gss import FakeContext, UnspeakableName


def test_a_failure_in_a_thread_is_raised_and_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ZeroDivisionError("in a thread")

    with pytest.raises(ZeroDivisionError):
        in_thread("accept", fail)
    with pytest.raises(AuthFailed, match="Invalid token"):
        in_thread("accept", FakeContext(b"x", expects=(b"y",)).step, b"n")
    assert capfd.readouterr() == ("", "")


def test_a_name_that_is_not_utf8_in_an_error_is_a_refusal() -> None:
    with pytest.raises(AuthFailed, match="not UTF-8"):
        in_thread("accept", str, UnspeakableName())


def test_who_stops_waiting_leaves_nothing_behind(capfd: pytest.CaptureFixture[str]) -> None:
    may_end, did_end = threading.Event(), gevent.get_hub().loop.async_()
    ended = gevent.event.Event()
    did_end.start(ended.set)

    def work() -> Exception | None:
        may_end.wait()
        did_end.send()
        return ZeroDivisionError("too late")

    pool = ContextPool(threads=1, waiting=0)
    with Timeout(0.01, False):
        pool.run(work)
        pytest.fail("it did not wait")
    may_end.set()
    ended.wait()
    assert pool.run(lambda: None) is None  # its thread and its place are free again
    did_end.close()
    assert capfd.readouterr() == ("", "")


def test_too_many_that_wait_are_refused_at_once() -> None:
    may_end = threading.Event()
    pool = ContextPool(threads=1, waiting=1)

    def work() -> None:
        may_end.wait()

    waiting = [gevent.spawn(pool.run, work) for _ in range(2)]
    gevent.sleep(0)
    with pytest.raises(AuthFailed, match="busy"):
        pool.run(work)
    may_end.set()
    gevent.joinall(waiting, raise_error=True)
    assert pool.run(lambda: None) is None


def test_explaining_is_one_line_of_bounded_length() -> None:
    class Wordy(GSSError):  # type: ignore[misc]
        def get_all_statuses(self, code: int, is_maj: bool) -> list[str]:
            return ["ticket for \x1b[31m\n" + "x" * 5000]

    text = explain(Wordy(0xD0000, 0x96C73A00 + 35), ["rcmd/a@R", "rcmd/b@R"])
    assert text.startswith("wrong principal in ticket: ticket for \\x1b[31m\\x0ax")
    assert "the keytab has rcmd/a@R, rcmd/b@R (" in text
    assert text.isprintable()
    assert len(text) < 700
