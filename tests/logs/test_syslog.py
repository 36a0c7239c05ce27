"""What a syslog gets, by each way to it."""

import logging
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from geosocks.events import AuthenticationFailed, LogObserver, Stopped
from geosocks.logs import LogTo
from geosocks.logs import syslog as syslog_module
from geosocks.logs.handler import ThreadedHandler
from geosocks.logs.start import set_up
from geosocks.logs.syslog import MAX_OCTETS, severity
from geosocks.wire.socks5 import Address

FAILED = AuthenticationFailed(8, Address("192.0.2.1", 5), 2, "alice", "wrong password")
TOLD = "#8 authentication failed (username): alice at 192.0.2.1:5, wrong password"
OLD = rf"<28>[A-Z][a-z]{{2}} [ \d]\d \d\d:\d\d:\d\d geosocks\[{os.getpid()}\]: "
NEW = rf"<28>1 \d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{{3}}Z \S+ geosocks {os.getpid()} "


@pytest.fixture(autouse=True)
def _logger_as_it_was() -> Iterator[None]:
    logger = logging.getLogger("geosocks")
    before = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate = before[:2]
    logger.setLevel(before[2])


def server(family: int, kind: int, address: tuple[str, int] | str) -> socket.socket:
    """A socket for a syslog to listen on."""
    sock = socket.socket(family, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.settimeout(5)
    sock.bind(address)
    if kind == socket.SOCK_STREAM:
        sock.listen()
    return sock


def read_counted(sock: socket.socket) -> bytes:
    """One message with its count of octets before it."""
    count = b""
    while not count.endswith(b" "):
        octet = sock.recv(1)
        assert octet
        count += octet
    data = b""
    while len(data) < int(count):
        data += sock.recv(int(count) - len(data))
    return data


def test_the_host_s_own(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    with server(socket.AF_UNIX, socket.SOCK_DGRAM, path) as syslog:
        handler = set_up(None, "info", to=LogTo("syslog", path))
        LogObserver()(FAILED)
        handler.close()
        assert re.fullmatch(OLD + re.escape(TOLD), syslog.recv(9999).decode())


def test_the_host_s_own_by_a_stream(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    with server(socket.AF_UNIX, socket.SOCK_STREAM, path) as syslog:
        handler = set_up(None, "info", to=LogTo("syslog", path))
        LogObserver()(FAILED)
        handler.close()
        with syslog.accept()[0] as connection:
            assert re.fullmatch(OLD + re.escape(TOLD) + "\0", connection.recv(9999).decode())


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_server_by_udp(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with server(family, socket.SOCK_DGRAM, (host, 0)) as syslog:
        handler = set_up(None, "info", to=LogTo("syslog", syslog.getsockname()[:2]))
        LogObserver()(FAILED)
        logging.getLogger("geosocks").warning("of somebody else")
        handler.close()
        told = syslog.recv(9999).decode()
        assert re.fullmatch(NEW + "authentication_failed - " + re.escape(TOLD), told)
        assert re.fullmatch(NEW + "- - of somebody else", syslog.recv(9999).decode())


def test_a_server_by_tcp_and_json() -> None:
    with server(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)) as syslog:
        handler = set_up("json", "info", to=LogTo("syslog", syslog.getsockname(), tcp=True))
        for _ in range(3):
            LogObserver()(FAILED)
        with syslog.accept()[0] as connection:
            connection.settimeout(5)
            lines = [read_counted(connection).decode() for _ in range(3)]
            handler.close()
        assert all(re.match(NEW + r"authentication_failed - \{\"time\": ", line) for line in lines)


def test_a_server_that_is_away_stops_nothing_and_gets_all_when_it_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(syslog_module, "PAUSES", (0.05,))
    monkeypatch.setattr(ThreadedHandler, "RETRY", 0.05)
    with server(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)) as syslog:
        address = syslog.getsockname()
    handler = set_up(None, "info", to=LogTo("syslog", address, tcp=True))
    LogObserver()(Stopped(1))
    handler.flush()
    with server(socket.AF_INET, socket.SOCK_STREAM, address) as syslog:
        LogObserver()(Stopped(2))
        with syslog.accept()[0] as connection:
            connection.settimeout(5)
            told = [read_counted(connection)[-1:] for _ in range(2)]
            assert told == [b"1", b"2"]
        # And it goes away once more: its end of stream is seen before anything is lost to it.
        LogObserver()(Stopped(3))
        with syslog.accept()[0] as connection:
            connection.settimeout(5)
            assert read_counted(connection)[-1:] == b"3"
            handler.close()


def test_a_syslog_that_was_restarted_gets_what_it_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syslog_module, "PAUSES", (0.05,))
    monkeypatch.setattr(ThreadedHandler, "RETRY", 0.05)
    path = str(tmp_path / "log")
    with server(socket.AF_UNIX, socket.SOCK_DGRAM, path):
        handler = set_up(None, "info", to=LogTo("syslog", path))
    os.unlink(path)
    LogObserver()(Stopped(1))
    handler.flush()
    with server(socket.AF_UNIX, socket.SOCK_DGRAM, path) as syslog:
        assert syslog.recv(9999).endswith(b"=1")
        handler.close()


def test_a_message_is_cut_where_receivers_stop_reading() -> None:
    with server(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)) as syslog:
        handler = set_up(None, "info", to=LogTo("syslog", syslog.getsockname()))
        logging.getLogger("geosocks").info("x" * 20_000)
        handler.close()
        assert len(syslog.recv(99_999)) == MAX_OCTETS


def test_severities() -> None:
    assert [severity(level) for level in (10, 20, 25, 30, 40, 50)] == [7, 6, 6, 4, 3, 2]
