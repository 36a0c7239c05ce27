"""The journal's native protocol, read back by a journal of our own."""

import array
import logging
import mmap
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from geosocks.events import AuthenticationFailed, LogObserver, SessionCrashed, Stopped
from geosocks.logs import LogTo
from geosocks.logs.start import set_up
from geosocks.wire.socks5 import Address

pytest.importorskip("logging_journald", reason="pip install logging-journald")


class Journal:
    """A datagram socket that understands what comes (systemd.io/JOURNAL_NATIVE_PROTOCOL)."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(5)
        self.socket.bind(self.path)

    def read(self) -> dict[str, str]:
        """The next record."""
        data, ancillary, *_ = self.socket.recvmsg(1 << 18, socket.CMSG_SPACE(4))
        for level, kind, octets in ancillary:
            assert (level, kind, data) == (socket.SOL_SOCKET, socket.SCM_RIGHTS, b"")
            [fd] = array.array("i", octets)
            with os.fdopen(fd, "rb") as file, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as memory:
                assert file.readable()
                data = memory[:]
        return dict(fields(data))

    def close(self) -> None:
        """Go away, as a journal does that is stopped."""
        self.socket.close()
        os.unlink(self.path)


def fields(data: bytes) -> Iterator[tuple[str, str]]:
    """What a datagram holds: NAME=value lines, or NAME, length and octets."""
    while data:
        line, _, data = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack_from("<Q", data)
            value, end, data = (
                data[8 : 8 + length],
                data[8 + length : 9 + length],
                data[9 + length :],
            )
            assert end == b"\n"
        yield name.decode(), value.decode()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    one = Journal(tmp_path / "journal")
    yield one
    if one.socket.fileno() >= 0:
        one.close()


@pytest.fixture(autouse=True)
def _logger_as_it_was() -> Iterator[None]:
    logger = logging.getLogger("geosocks")
    before = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate = before[:2]
    logger.setLevel(before[2])


FAILED = AuthenticationFailed(8, Address("192.0.2.1", 5), 2, "alice\nx", "wrong password")


def test_every_fact_is_a_field_and_the_message_is_for_people(journal: Journal) -> None:
    handler = set_up(None, "info", to=LogTo("journald", journal.path))
    LogObserver()(FAILED)
    handler.close()
    assert journal.read() == {
        "MESSAGE": r"#8 authentication failed (username): alice\x0ax at 192.0.2.1:5, "
        "wrong password",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "geosocks",
        "SYSLOG_FACILITY": "3",
        "GEOSOCKS_EVENT": "authentication_failed",
        "GEOSOCKS_SESSION": "8",
        "GEOSOCKS_CLIENT": "192.0.2.1:5",
        "GEOSOCKS_METHOD": "username",
        "GEOSOCKS_IDENTITY": r"alice\x0ax",
        "GEOSOCKS_REASON": "wrong password",
    }


def test_the_message_is_json_if_that_was_asked_for(journal: Journal) -> None:
    handler = set_up("json", "info", to=LogTo("journald", journal.path))
    LogObserver()(FAILED)
    handler.close()
    assert journal.read()["MESSAGE"].startswith('{"time": ')


def test_what_has_several_lines_is_one_field(journal: Journal) -> None:
    handler = set_up(None, "info", to=LogTo("journald", journal.path))
    LogObserver()(SessionCrashed(4, "ValueError", "Traceback:\n  é line \udcff\n"))
    logging.getLogger("geosocks").info("of somebody else: %d", 7)
    handler.close()
    crashed, other = journal.read(), journal.read()
    assert crashed["GEOSOCKS_TRACEBACK"] == "Traceback:\n  é line \\udcff\n"
    assert crashed["PRIORITY"] == "3"
    assert "GEOSOCKS_EVENT" not in other
    assert other["MESSAGE"] == "of somebody else: 7"
    assert other["PRIORITY"] == "6"


def test_what_is_too_big_for_a_datagram_comes_in_a_file_in_memory(journal: Journal) -> None:
    handler = set_up(None, "info", to=LogTo("journald", journal.path))
    text = "x\n" * 300_000
    logging.getLogger("geosocks").info(text)
    handler.close()
    assert journal.read()["MESSAGE"].count("x") == 300_000


def test_a_journal_that_comes_back_gets_what_it_missed(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = set_up(None, "info", to=LogTo("journald", journal.path))
    monkeypatch.setattr(handler, "RETRY", 0.05)
    LogObserver()(Stopped(1))
    assert journal.read()["GEOSOCKS_SESSIONS_CUT"] == "1"
    journal.close()
    LogObserver()(Stopped(2))
    handler.flush()
    again = Journal(Path(journal.path))
    LogObserver()(Stopped(3))
    assert [again.read()["GEOSOCKS_SESSIONS_CUT"] for _ in range(2)] == ["2", "3"]
    handler.close()
    again.close()
