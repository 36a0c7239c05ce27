"""Log lines as they stand in the file, written by a thread that nothing waits for."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from geosocks.events import LogObserver, SessionCrashed, SessionOpened
from geosocks.logs import JsonLines, TextLines, ThreadedHandler, set_up
from geosocks.wire.socks5 import Address

OPENED = SessionOpened(3, Address("192.0.2.1", 5), "127.0.0.1:1080")


@pytest.fixture(autouse=True)
def _logger_as_it_was() -> Iterator[None]:
    logger = logging.getLogger("geosocks")
    before = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate = before[:2]
    logger.setLevel(before[2])


def test_json_is_one_object_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    handler = set_up("json", "debug", path)
    observer = LogObserver()
    for _ in range(100):
        observer(OPENED)
    observer(SessionCrashed(4, 'a "quoted" error', "Traceback:\n  line\n"))
    handler.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 101
    assert lines[0]["event"] == "session_opened"
    assert lines[0]["level"] == "debug"
    assert lines[0]["session"] == 3
    assert lines[0]["client"] == "192.0.2.1:5"
    assert lines[0]["time"].endswith("Z")
    assert lines[100]["traceback"] == "Traceback:\n  line\n"
    assert list(lines[0])[:3] == ["time", "level", "event"]


def test_text_is_one_line_for_people(tmp_path: Path) -> None:
    out = io.StringIO()
    handler = set_up("text", "debug", stream=out)
    LogObserver()(OPENED)
    LogObserver()(SessionCrashed(4, "a b", "Trace\nback"))
    handler.close()
    first, second = out.getvalue().splitlines()
    assert first.endswith("debug session opened: session=3 client=192.0.2.1:5 "
                          "listener=127.0.0.1:1080")  # fmt: skip
    assert second.endswith('error session crashed: session=4 error="a b" traceback=Trace\\nback')


def test_an_ordinary_record_is_written_too() -> None:
    out = io.StringIO()
    handler = ThreadedHandler(stream=out)
    handler.setFormatter(JsonLines())
    try:
        raise ValueError("x")
    except ValueError:
        record = logging.LogRecord("geosocks", 40, "f", 1, "it %s", ("broke",), None)
        record.exc_info = __import__("sys").exc_info()
    handler.emit(record)
    handler.close()
    line = json.loads(out.getvalue())
    assert line["event"] == "it broke"
    assert "ValueError" in line["exc_info"]
    assert "ValueError" in TextLines().format(record)


def test_the_level_holds(tmp_path: Path) -> None:
    path = tmp_path / "log"
    handler = set_up("json", "warning", path)
    LogObserver()(OPENED)
    handler.close()
    assert path.read_text() == ""


def test_a_file_that_was_moved_away_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "log"
    handler = set_up("json", "debug", path)
    LogObserver()(OPENED)
    handler.flush()
    path.rename(tmp_path / "log.1")
    LogObserver()(OPENED)
    handler.reopen()
    LogObserver()(OPENED)
    handler.close()
    written = (tmp_path / "log.1").read_text() + path.read_text()
    assert len(written.splitlines()) == 3
    assert path.read_text()


def test_what_does_not_fit_is_counted_and_told() -> None:
    out = io.StringIO()
    handler = ThreadedHandler(stream=out, most=3)
    handler.setFormatter(JsonLines())
    with handler._writing:  # the disk is slow
        for number in range(10):
            handler.emit(logging.makeLogRecord({"msg": f"{number}", "levelname": "INFO"}))
    handler.close()
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    dropped = [line["records"] for line in lines if line["event"] == "log_records_dropped"]
    assert len(lines) - len(dropped) + sum(dropped) == 10
    assert dropped


def test_a_full_disk_stops_nobody() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    handler = ThreadedHandler(stream=Full())
    handler.setFormatter(TextLines())
    handler.emit(logging.makeLogRecord({"msg": "x"}))
    handler.flush()
    handler.close()
    assert handler._dropped == 1


def test_a_file_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="directory"):
        set_up("json", "info", tmp_path)
