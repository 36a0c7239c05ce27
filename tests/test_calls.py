"""What a session asks of the kernel: the same by Python's own functions and compiled."""

import errno
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from geosocks import calls
from geosocks.hubs import of_hub
from geosocks.relay.dial import dial
from geosocks.stream import Connection
from tests.support.net import plain_pair

pytestmark = pytest.mark.usefixtures("no_leaks")

needs_compiled = pytest.mark.skipif(calls.connect is None, reason="it is not compiled")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends that do not block."""
    with plain_pair() as (theirs, ours):
        yield ours, theirs


def listening(host: str = "127.0.0.1") -> socket.socket:
    """A socket that listens there, on any port."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.bind((host, 0))
    sock.listen()
    sock.setblocking(False)
    return sock


@pytest.mark.parametrize("size", [1, 447, 448, 449, 65536])
def test_it_reads_what_has_come_and_no_more_than_was_asked_for(
    pair: tuple[socket.socket, socket.socket], size: int
) -> None:
    ours, theirs = pair
    octets = bytes(i & 0xFF for i in range(1000))
    theirs.sendall(octets)
    assert calls.read(ours.fileno(), size) == octets[:size]
    theirs.close()
    while rest := calls.read(ours.fileno(), size):
        assert octets.endswith(rest) or size < 1000
    assert rest == b""


def test_nothing_to_read_and_no_room_to_write_block_nobody(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, _ = pair
    with pytest.raises(BlockingIOError):
        calls.read(ours.fileno(), 448)
    with pytest.raises(BlockingIOError):  # noqa: PT012
        while True:
            assert calls.write(ours.fileno(), bytes(65536)) > 0


@pytest.mark.parametrize("octets", [b"", b"\0", b"some octets", memoryview(b"a view")])
def test_it_writes_octets_and_says_how_many(
    pair: tuple[socket.socket, socket.socket], octets: bytes | memoryview
) -> None:
    ours, theirs = pair
    assert calls.write(ours.fileno(), octets) == len(octets)
    ours.close()
    assert theirs.recv(100) == octets


def test_a_descriptor_that_is_none_is_an_error_with_its_number() -> None:
    attempts: list[Any] = [
        lambda: calls.read(-1, 448),
        lambda: calls.write(-1, b"octets"),
        lambda: calls.close(-1),
    ]
    if calls.shutdown is not None and calls.send_at_once is not None:
        shutdown, send_at_once = calls.shutdown, calls.send_at_once
        attempts += [lambda: shutdown(-1, 1), lambda: send_at_once(-1)]
    for attempt in attempts:
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            attempt()
        assert caught.value.errno == errno.EBADF


def test_a_peer_that_has_gone_is_an_error_of_its_kind(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    theirs.close()
    with pytest.raises(BrokenPipeError):
        calls.write(ours.fileno(), b"octets")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.255.10.109", "::1"])
def test_what_is_accepted_does_not_block_and_has_the_peers_name(host: str) -> None:
    with listening(host) as sock, socket.socket(sock.family) as client:
        accept = calls.accepting(sock)
        assert accept() is None
        client.bind((host, 0))
        client.connect(sock.getsockname())
        taken = accept()
        assert taken is not None
        fd, name = taken
        try:
            assert name == client.getsockname()
            assert not os.get_blocking(fd)
            assert not os.get_inheritable(fd)
        finally:
            os.close(fd)


def test_a_client_of_a_unix_socket_has_no_name(tmp_path: Any) -> None:
    with socket.socket(socket.AF_UNIX) as sock, socket.socket(socket.AF_UNIX) as client:
        sock.bind(str(tmp_path / "socks"))
        sock.listen()
        client.connect(str(tmp_path / "socks"))
        taken = calls.accepting(sock)()
        assert taken is not None
        fd, name = taken
        assert name == ""
        assert not os.get_blocking(fd)
        os.close(fd)


@needs_compiled
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_target_on_this_host_is_connected_to_at_once(host: str) -> None:
    assert calls.connect is not None
    with listening(host) as sock:
        fd, code, name = calls.connect(":" not in host, host, sock.getsockname()[1])
        with socket.socket(fileno=fd) as made:
            assert (code, name) == (0, made.getsockname())
            assert made.getpeername() == sock.getsockname()
            assert not os.get_blocking(fd)
            assert not os.get_inheritable(fd)


@needs_compiled
def test_a_refusal_is_a_number_and_a_bad_address_an_error() -> None:
    assert calls.connect is not None
    with listening() as sock:
        port = sock.getsockname()[1]
    fd, code, name = calls.connect(True, "127.0.0.1", port)
    os.close(fd)
    assert (code, name) == (errno.ECONNREFUSED, None)
    for is_v4, host in (True, "::1"), (False, "127.0.0.1"), (True, "localhost"), (True, ""):
        with pytest.raises(ValueError, match="no address of that family"):
            calls.connect(is_v4, host, port)


@needs_compiled
def test_a_target_that_does_not_answer_yet_is_in_progress() -> None:
    assert calls.connect is not None
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        port = sock.getsockname()[1]
        made = [calls.connect(True, "127.0.0.1", port) for _ in range(3)]
        assert made[-1][1] in (errno.EINPROGRESS, errno.EALREADY)
        assert made[-1][2] is None
        for fd, _, _ in made:
            os.close(fd)


@needs_compiled
def test_no_descriptor_left_is_an_error() -> None:
    import resource

    assert calls.connect is not None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    of_hub()
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            calls.connect(True, "127.0.0.1", 9)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def nodelay(connection: Connection) -> bool:
    """Whether few octets wait for no others."""
    return bool(connection.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))


@pytest.mark.skipif(os.uname().sysname != "Linux", reason="others hold back the first, too")
def test_only_a_second_write_has_to_see_that_few_octets_do_not_wait() -> None:
    with listening() as sock:
        connection = dial(True, sock.getsockname(), None)
        assert not nodelay(connection)
        connection.sendall(b"a question")
        assert not nodelay(connection)
        connection.sendall(b"another")
        assert nodelay(connection)
        connection.sendall(b"one more")
        connection.close()


def test_a_connection_from_a_source_of_ours_hurries_as_well() -> None:
    with listening() as sock:
        connection = dial(True, sock.getsockname(), "127.0.0.9")
        assert connection.getsockname()[0] == "127.0.0.9"
        for _ in range(2):
            connection.sendall(b"few octets")
        assert nodelay(connection)
        connection.close()


def test_to_hurry_for_a_connection_that_has_gone_is_no_error() -> None:
    with listening() as sock:
        connection = dial(True, sock.getsockname(), None)
        connection.close()
        for _ in range(2):
            connection.hurry()
