"""The read loop, deadlines, the last words, and Connection against real sockets."""

import os
import socket

import gevent
import gevent.socket
import pytest

from geosocks.errors import NegotiationTimeout, Truncated
from geosocks.stream import GREEDY, Connection, deadline, finish, read_message
from geosocks.wire.socks5 import Address, MethodOffer, Request
from tests.support.net import connection_pair, recv_all, recv_exactly, reset, tcp_pair

pytestmark = pytest.mark.usefixtures("no_leaks")


def test_a_message_is_read_octet_by_octet_and_nothing_behind_it() -> None:
    far, near = connection_pair()
    octets = MethodOffer(b"\x00\x02").encode()

    def trickle() -> None:
        for octet in octets + b"rest":
            far.sendall(bytes((octet,)))
            gevent.sleep(0)

    writer = gevent.spawn(trickle)
    assert read_message(near, MethodOffer.decode) == MethodOffer(b"\x00\x02")
    writer.join()
    assert near.recv(4)[:1] == b"r"
    far.close()
    near.close()


def test_messages_in_one_segment_are_read_one_by_one_and_the_rest_is_kept() -> None:
    far, near = connection_pair()
    request = Request(1, Address("example.org", 80))
    far.sendall(MethodOffer(b"\x00").encode() + request.encode() + b"GET /")
    assert read_message(near, MethodOffer.decode) == MethodOffer(b"\x00")
    assert read_message(near, Request.decode) == request
    assert near.take_rest() == b"GET /"
    assert near.take_rest() == b""
    far.close()
    near.close()


def test_a_message_cut_short_is_truncated() -> None:
    far, near = connection_pair()
    far.sendall(b"\x05\x03\x00")
    far.close()
    with pytest.raises(Truncated, match="after 3 octets"):
        read_message(near, MethodOffer.decode)
    near.close()


@pytest.mark.parametrize("at_once", [True, False])
def test_who_has_spoken_waits_for_the_answer_and_does_not_look_in_vain(
    at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    far, near = connection_pair()
    asked: list[int] = []

    def counted(fd: int, size: int) -> bytes:
        asked.append(fd)
        return os.read(fd, size)

    monkeypatch.setattr("geosocks.stream._read", counted)
    near.sendall(b"question")
    if at_once:
        far.sendall(b"answer")
    else:
        gevent.spawn_later(0.02, far.sendall, b"answer")
    with deadline(5, TimeoutError):
        assert near.peek() == b"answer"
    assert asked == [near.fileno()]
    near.take_rest()
    near.sendall(b"thanks")
    far.shutdown(socket.SHUT_WR)
    with deadline(5, TimeoutError):
        assert near.peek() == b""
    near.close()
    assert recv_all(far) == b"questionthanks"
    far.close()


def test_one_of_a_descriptor_makes_its_socket_when_asked() -> None:
    far, gevents = tcp_pair()
    kind = int(gevents.family), int(gevents.type), gevents.proto
    fd = gevents.detach()
    os.set_blocking(fd, False)
    near = Connection(None, fd, kind)
    far.sendall(b"hello")
    assert near.recv(5) == b"hello"
    assert near.getpeername() == far.getsockname()
    assert near.sock.fileno() == near.fileno() == fd
    assert near.sock is near.sock
    near.shutdown(socket.SHUT_WR)
    assert recv_all(far) == b""
    near.close()
    assert near.fileno() == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        near.recv(1)
    near.close()  # may be called again
    far.close()


def test_one_of_a_descriptor_is_closed_without_ever_making_a_socket() -> None:
    far, gevents = tcp_pair()
    near = Connection(None, gevents.detach(), (socket.AF_INET, socket.SOCK_STREAM, 0))
    near.close()
    assert recv_all(far) == b""
    with pytest.raises(OSError, match="Bad file descriptor"):
        _ = near.sock
    with pytest.raises(OSError, match="Bad file descriptor"):
        near.sendall(b"x")
    far.close()


def test_a_gevent_socket_is_a_stream_too() -> None:
    far, near = tcp_pair()
    far.sendall(b"\x05\x01\x00tail")
    assert read_message(near, MethodOffer.decode) == MethodOffer(b"\x00")
    assert near.recv(10) == b"tail"
    far.close()
    near.close()


def test_a_large_read_does_not_stop_at_the_greedy_size() -> None:
    far, near = connection_pair()
    far.sendall(b"x" * (GREEDY * 3))
    gevent.sleep(0.01)
    assert len(near.recv(GREEDY * 3)) == GREEDY * 3
    far.close()
    near.close()


def test_sendall_waits_for_a_slow_reader_and_loses_nothing() -> None:
    far, near = connection_pair()
    payload = bytes(range(256)) * 40_000
    writer = gevent.spawn(near.sendall, payload)
    gevent.sleep(0.01)
    assert not writer.ready()
    assert recv_exactly(far, len(payload)) == payload
    writer.get()
    far.close()
    near.close()


def test_one_greenlet_reads_while_another_writes() -> None:
    far, near = connection_pair()
    reader = gevent.spawn(near.recv, 5)
    gevent.sleep(0)
    near.sendall(b"out")
    assert far.recv(3) == b"out"
    far.sendall(b"in")
    assert reader.get() == b"in"
    far.close()
    near.close()


def test_an_armed_watcher_nobody_waits_for_does_not_spin() -> None:
    far, near = connection_pair()
    reader = gevent.spawn(near.recv, 1)
    gevent.sleep(0)
    far.sendall(b"12345")
    assert reader.get() == b"1"
    near.take_rest()
    far.sendall(b"more")  # nobody reads it
    gevent.sleep(0.02)
    assert near.recv(4) == b"more"
    far.close()
    near.close()


def test_a_deadline_bounds_all_the_reads_inside_it() -> None:
    far, near = connection_pair()

    def trickle() -> None:
        for _ in range(50):
            far.sendall(b"\x05\xff" if _ == 0 else b"\x00")
            gevent.sleep(0.01)

    writer = gevent.spawn(trickle)
    with pytest.raises(NegotiationTimeout), deadline(0.1, NegotiationTimeout("late")):
        read_message(near, MethodOffer.decode)
    # Afterwards the connection is as usable as before.
    near.sendall(b"still here")
    assert far.recv(10) == b"still here"
    writer.kill()
    far.close()
    near.close()


def test_a_reset_is_seen_as_one() -> None:
    far, near = connection_pair()
    near.reset()
    with pytest.raises(ConnectionResetError):
        far.recv(1)
    far.close()


def test_a_reset_of_the_peer_is_an_error_not_an_end() -> None:
    far, near = connection_pair()
    reset(far)
    with pytest.raises(ConnectionResetError):
        near.recv(1)
    near.close()
    near.close()  # again is no error


def test_shutdown_tells_the_peer_and_a_vanished_peer_is_no_error() -> None:
    far, near = connection_pair()
    near.shutdown(socket.SHUT_WR)
    assert far.recv(1) == b""
    reset(far)
    gevent.sleep(0.01)
    near.shutdown(socket.SHUT_RDWR)
    near.close()


def test_last_words_reach_a_peer_that_still_talks() -> None:
    for _ in range(20):
        far, near = connection_pair()
        far.sendall(b"more to say " * 1000)
        near.recv(1)
        near.sendall(b"no")
        writer = gevent.spawn(far.sendall, b"and on " * 1000)
        closer = gevent.spawn(finish, near)
        assert recv_all(far) == b"no"
        writer.join()
        far.close()
        closer.get()
        near.close()


def test_finish_waits_neither_for_ever_nor_for_endless_octets() -> None:
    far, near = connection_pair()
    with gevent.Timeout(1.0):
        finish(near, seconds=0.05)
    near.close()
    far.close()
    far, near = connection_pair()
    writer = gevent.spawn(far.sendall, b"x" * 10_000_000)
    with gevent.Timeout(2.0):
        finish(near, seconds=60.0, octets=65536)
    near.close()
    writer.kill()
    far.close()


def test_taking_a_gevent_socket_leaves_it_closed_to_its_former_owner() -> None:
    far, near = tcp_pair()
    connection = Connection.take(near)
    assert near.fileno() == -1
    far.sendall(b"hello")
    assert connection.recv(5) == b"hello"
    assert connection.getsockname() == far.getpeername()
    assert connection.getpeername() == far.getsockname()
    connection.close()
    assert connection.fileno() == -1
    far.close()
