"""Log lines as they stand in the file, written by a thread that nothing waits for."""

import io
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from geosocks.config import load_settings
from geosocks.errors import ConfigError
from geosocks.events import LogObserver, SessionCrashed, SessionOpened
from geosocks.logs import LogTo
from geosocks.logs.handler import ThreadedHandler
from geosocks.logs.json_lines import JsonLines
from geosocks.logs.lines import TextLines
from geosocks.logs.places import FilePlace, Line, StreamPlace
from geosocks.logs.start import set_up
from geosocks.wire.socks5 import Address
from tests.support.net import wait_for

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
    assert first.endswith("debug: #3 session opened: client=192.0.2.1:5 listener=127.0.0.1:1080")
    assert second.endswith('error: #4 session crashed: error="a b" traceback=Trace\\nback')


def test_an_ordinary_record_is_written_too() -> None:
    out = io.StringIO()
    handler = ThreadedHandler(StreamPlace(out), JsonLines())
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
    handler = ThreadedHandler(StreamPlace(out), JsonLines(), most=3)
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

    handler = ThreadedHandler(StreamPlace(Full()), TextLines())
    handler.emit(logging.makeLogRecord({"msg": "x"}))
    handler.flush()
    handler.close()
    assert handler._dropped == 1


def test_a_place_that_is_stuck_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ThreadedHandler, "PATIENCE", 0.1)
    free = threading.Event()

    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            free.wait(10)
            return super().write(text)

    out = Stuck()
    handler = ThreadedHandler(StreamPlace(out), TextLines())
    handler.emit(logging.makeLogRecord({"msg": "x"}))
    began = time.monotonic()
    handler.close()
    assert time.monotonic() - began < 2
    free.set()
    assert handler._thread is not None
    handler._thread.join(5)
    assert "x" in out.getvalue()


def test_a_fault_in_writing_does_not_end_the_log() -> None:
    class Faulty(io.StringIO):
        def write(self, text: str) -> int:
            if "bad" in text:
                raise LookupError("a fault of ours")
            return super().write(text)

    out = Faulty()
    handler = ThreadedHandler(StreamPlace(out), TextLines())
    handler.emit(logging.makeLogRecord({"msg": "bad"}))
    wait_for(lambda: handler._dropped == 1)
    handler.emit(logging.makeLogRecord({"msg": "good"}))
    handler.close()
    assert "good" in out.getvalue()
    assert "log records dropped: records=1" in out.getvalue()


class Impatient:
    """A place that takes what it is told to take."""

    stamps = is_terminal = False

    def __init__(self, patient: bool) -> None:
        self.patient = patient
        self.takes = 0
        self.taken: list[str] = []

    def maker(self, line: Line) -> Line:
        return line

    def write(self, items: Sequence[str]) -> int:
        taken = items[: self.takes]
        self.taken += taken
        return len(taken)

    def reopen(self) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize("patient", [True, False])
def test_what_a_place_could_not_take_comes_later_or_is_counted(patient: bool) -> None:
    place = Impatient(patient)
    handler = ThreadedHandler(place, TextLines("none"), threaded=False)
    place.takes = 1
    handler.emit(logging.makeLogRecord({"msg": "first"}))
    place.takes = 0
    for text in ("second", "third"):
        handler.emit(logging.makeLogRecord({"msg": text}))
    place.takes = 10
    handler.emit(logging.makeLogRecord({"msg": "fourth"}))
    handler.close()
    if patient:
        assert place.taken == ["first", "second", "third", "fourth"]
    else:
        assert place.taken == ["first", "fourth", "log records dropped: records=2"]


def test_a_place_that_is_away_for_long_takes_no_more_memory() -> None:
    place = Impatient(patient=True)
    handler = ThreadedHandler(place, TextLines("none"), threaded=False, most=5)
    for number in range(50):
        handler.emit(logging.makeLogRecord({"msg": str(number)}))
    assert len(handler._waiting.items) == 5
    place.takes = 10
    handler.flush()
    assert place.taken == ["0", "1", "2", "3", "4", "log records dropped: records=45"]
    handler.close()
    assert len(place.taken) == 6


def test_a_patient_place_is_tried_again_though_nothing_new_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ThreadedHandler, "RETRY", 0.05)
    place = Impatient(patient=True)
    handler = ThreadedHandler(place, TextLines("none"))
    handler.emit(logging.makeLogRecord({"msg": "x"}))
    wait_for(lambda: not handler._work.is_set())
    place.takes = 1
    wait_for(lambda: place.taken == ["x"])
    handler.close()


def test_a_process_that_is_to_fork_logs_without_a_thread() -> None:
    out = io.StringIO()
    threads = threading.active_count()
    handler = set_up("json", "debug", stream=out, threaded=False)
    LogObserver()(OPENED)
    assert json.loads(out.getvalue())["event"] == "session_opened"
    assert threading.active_count() == threads
    handler.close()


def test_several_processes_do_not_tear_each_other_s_lines_in_a_pipe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pipe keeps together what is written at once, up to 4096 octets (pipe(7))."""
    reading, writing = os.pipe()
    sizes = []

    def write(fd: int, data: bytes) -> int:
        sizes.append(len(data))
        assert data.endswith(b"\n")
        return len(data)

    monkeypatch.setattr(os, "write", write)
    with open(writing, "w", encoding="utf-8") as stream:
        place = StreamPlace(stream)
        assert place.write(["x" * 300] * 100 + ["y" * 5000] + ["z"]) == 102
    os.close(reading)
    assert sum(sizes) == 100 * 301 + 5001 + 2
    assert sorted(sizes)[-1] == 5001
    assert sorted(sizes)[-2] <= 4096


def test_a_line_that_a_full_disk_tore_spoils_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, write = FilePlace(tmp_path / "log"), os.write
    room = [3]

    def until_full(fd: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        written = write(fd, data[: room[0]])
        room[0] -= written
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", until_full)
        assert place.write(["torn apart"]) == 0
        assert place.write(["never"]) == 0
    assert place.write(["whole", "too"]) == 2
    assert place.write(["and on"]) == 1
    place.close()
    assert (tmp_path / "log").read_text() == "tor\nwhole\ntoo\nand on\n"


def test_a_pipe_that_does_not_block_is_waited_for() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    read = bytearray()

    def reader() -> None:
        while octets := os.read(reading, 1 << 14):
            read.extend(octets)

    thread = threading.Thread(target=reader)
    with open(writing, "w", encoding="utf-8") as stream:
        place = StreamPlace(stream)
        thread.start()
        assert place.write(["x" * 4000] * 100) == 100
    thread.join()
    os.close(reading)
    assert len(read) == 100 * 4001


def test_a_place_that_is_chosen_by_its_name(capfd: pytest.CaptureFixture[str]) -> None:
    for kind in ("stdout", "stderr"):
        handler = set_up("text", "debug", to=LogTo(kind))  # type: ignore[arg-type]
        LogObserver()(OPENED)
        handler.close()
        out, err = capfd.readouterr()
        told, silent = (out, err) if kind == "stdout" else (err, out)
        assert "#3 session opened" in told
        assert not silent


def test_a_file_wins_over_a_place_by_name(tmp_path: Path) -> None:
    handler = set_up("text", "debug", tmp_path / "log", to=LogTo("syslog", "/nonexistent"))
    assert isinstance(handler.place, FilePlace)
    assert handler.path == tmp_path / "log"
    handler.close()


def test_without_a_format_a_stream_gets_json() -> None:
    out = io.StringIO()
    handler = set_up(None, "debug", stream=out)
    LogObserver()(OPENED)
    handler.close()
    assert json.loads(out.getvalue())


@pytest.mark.parametrize("kind", ["journald", "syslog"])
def test_a_system_s_log_that_is_not_there_is_an_error(tmp_path: Path, kind: str) -> None:
    with pytest.raises(OSError, match="No such file") as caught:
        set_up(None, "info", to=LogTo(kind, str(tmp_path / "none")))  # type: ignore[arg-type]
    assert caught.value.filename == str(tmp_path / "none")


def test_journald_without_its_package_is_refused_where_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "logging_journald", None)
    path = tmp_path / "conf"
    path.write_text("drain = 1\nlog-to = journald\n")
    with pytest.raises(ConfigError, match=r"pip install 'geosocks\[journald\]'") as caught:
        load_settings(["--config", str(path)], {})
    assert str(caught.value).startswith(f"{path}:2: ")


def test_a_file_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="directory"):
        set_up("json", "info", tmp_path)
