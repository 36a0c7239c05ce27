"""The relay over real sockets: every octet, every kind of end, both ways of copying."""

import gc
import hashlib
import os
import random
import socket
import sys
from collections.abc import Iterator

import gevent
import gevent.socket
import pytest

from geosocks.errors import ProtocolError
from geosocks.relay.pipes import MAX_PIPES, PipePool
from geosocks.relay.pump import End, Pump, abort
from geosocks.relay.way import CHUNK, SMALL, Meter
from geosocks.stream import Connection, Stream
from tests.support.net import connection_pair, recv_all, recv_exactly, reset, tcp_pair, wait_for

pytestmark = pytest.mark.usefixtures("no_leaks")


class Relayed:
    """A relay under way between two far ends that the test plays."""

    def __init__(self, pump: Pump, wrap: type | None = None) -> None:
        self.client, near_client = connection_pair()
        self.target, near_target = connection_pair()
        self.near: tuple[Stream, Stream] = (near_client, near_target)
        if wrap:
            self.near = (wrap(near_client), near_target)
        self.meter = Meter()
        self.relay = gevent.spawn(self._run, pump)
        gevent.sleep(0)

    def _run(self, pump: Pump) -> tuple[End, str | None]:
        """Relay, then close as a session does."""
        end, error = pump.relay(*self.near, self.meter)
        for near in self.near:
            near.close() if end is End.CLOSED else abort(near)
        return end, error

    def end(self) -> tuple[End, str | None]:
        """Wait for the relay to end."""
        return self.relay.get()

    def close(self) -> None:
        self.client.close()
        self.target.close()


class Opaque:
    """A Stream that is no Connection, as a GSSAPI wrapper is."""

    def __init__(self, inner: Connection) -> None:
        self.inner = inner
        self.recv, self.sendall = inner.recv, inner.sendall
        self.shutdown, self.close = inner.shutdown, inner.close


@pytest.fixture(params=["splice", "copy", "opaque"])
def relayed(request: pytest.FixtureRequest) -> Iterator[Relayed]:
    pump = Pump(splice=request.param != "copy")
    relayed = Relayed(pump, Opaque if request.param == "opaque" else None)
    yield relayed
    relayed.close()
    relayed.relay.kill()
    for near in relayed.near:
        near.close()
    pump.close()


def test_octets_go_both_ways_and_are_counted(relayed: Relayed) -> None:
    relayed.client.sendall(b"request")
    assert recv_exactly(relayed.target, 7) == b"request"
    relayed.target.sendall(b"an answer")
    assert recv_exactly(relayed.client, 9) == b"an answer"
    relayed.client.shutdown(socket.SHUT_WR)
    relayed.target.shutdown(socket.SHUT_WR)
    assert relayed.end() == (End.CLOSED, None)
    assert (relayed.meter.up, relayed.meter.down) == (7, 9)


def data_segments(sock: gevent.socket.socket) -> int:
    """How many segments with data have come: ``tcpi_data_segs_in`` of linux/tcp.h."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
    return int.from_bytes(info[152:156], sys.byteorder)


@pytest.mark.skipif(sys.platform != "linux", reason="it is Linux that counts them")
def test_a_message_is_passed_on_in_one_piece_whatever_its_size(relayed: Relayed) -> None:
    sizes = (1, SMALL - 1, SMALL, SMALL + 1, 600, 3_000, 1, SMALL, CHUNK // 2, 5, SMALL - 1)
    for number, size in enumerate(sizes, 1):
        message = os.urandom(size)
        relayed.client.sendall(message)
        assert recv_exactly(relayed.target, size) == message
        assert data_segments(relayed.target) == number
    assert relayed.meter.up == sum(sizes)


def test_from_the_second_message_on_few_octets_wait_for_no_others(relayed: Relayed) -> None:
    target = relayed.near[1]
    assert isinstance(target, Connection)
    target.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    target.hold_back = 2  # as ``dial`` leaves it
    for expected in (0, 1, 1):
        relayed.client.sendall(b"question")
        assert recv_exactly(relayed.target, 8) == b"question"
        assert bool(target.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) == expected


def test_what_is_sent_in_messages_fills_them() -> None:
    class InMessages(Opaque):
        """A sink that cuts at a thousand octets, as GSSAPI does at some 65,000."""

        piece = 1000

        def __init__(self, inner: Connection) -> None:
            super().__init__(inner)
            self.sizes: list[int] = []
            self.sendall = self.note  # type: ignore[method-assign]

        def note(self, data: bytes) -> None:
            self.sizes.append(len(data))
            self.inner.sendall(data)

    pump = Pump()
    relayed = Relayed(pump, InMessages)
    octets = os.urandom(200_000)
    sending = gevent.spawn(relayed.target.sendall, octets)
    assert recv_exactly(relayed.client, len(octets)) == octets
    sending.get()
    near = relayed.near[0]
    assert isinstance(near, InMessages)
    assert max(near.sizes) == 1000
    assert len(near.sizes) < 250
    relayed.client.close()
    relayed.target.close()
    relayed.end()
    pump.close()


def test_bulk_both_ways_at_once_arrives_whole(relayed: Relayed) -> None:
    size = 24_000_003
    up, down = os.urandom(1 << 16) * (size >> 16), os.urandom(1 << 16) * (size >> 16)

    def send(sock: gevent.socket.socket, data: bytes) -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    senders = [
        gevent.spawn(send, relayed.client, up),
        gevent.spawn(send, relayed.target, down),
    ]
    readers = [gevent.spawn(recv_all, relayed.target), gevent.spawn(recv_all, relayed.client)]
    gevent.joinall(senders + readers, raise_error=True)
    assert hashlib.sha256(readers[0].get()).digest() == hashlib.sha256(up).digest()
    assert hashlib.sha256(readers[1].get()).digest() == hashlib.sha256(down).digest()
    assert relayed.end() == (End.CLOSED, None)
    assert (relayed.meter.up, relayed.meter.down) == (len(up), len(down))


def test_random_pieces_with_pauses_arrive_in_order(relayed: Relayed) -> None:
    chance = random.Random(7)
    payload = chance.randbytes(6_000_000)

    def send() -> None:
        at = 0
        while at < len(payload):
            size = chance.choice((1, 100, 5_000, 70_000, 900_000))
            relayed.target.sendall(payload[at : at + size])
            at += size
            if chance.random() < 0.3:
                gevent.sleep(0.001)
        relayed.target.shutdown(socket.SHUT_WR)

    sender = gevent.spawn(send)
    assert recv_all(relayed.client) == payload
    sender.get()
    relayed.client.close()
    assert relayed.end()[0] is End.CLOSED


@pytest.mark.parametrize("first", ["client", "target"])
def test_a_half_close_is_passed_on_and_the_other_way_goes_on(relayed: Relayed, first: str) -> None:
    one, other = relayed.client, relayed.target
    if first == "target":
        one, other = other, one
    one.sendall(b"the question")
    one.shutdown(socket.SHUT_WR)
    assert recv_all(other) == b"the question"
    assert relayed.meter.half_closed
    assert not relayed.relay.ready()
    other.sendall(b"the answer" * 100_000)
    other.shutdown(socket.SHUT_WR)
    assert recv_all(one) == b"the answer" * 100_000
    assert relayed.end() == (End.CLOSED, None)


@pytest.mark.parametrize(
    ("who", "end"), [("client", End.RESET_BY_CLIENT), ("target", End.RESET_BY_TARGET)]
)
def test_a_reset_is_passed_on_as_a_reset(relayed: Relayed, who: str, end: End) -> None:
    one, other = relayed.client, relayed.target
    if who == "target":
        one, other = other, one
    one.sendall(b"x")
    assert other.recv(1) == b"x"
    reset(one)
    assert relayed.end()[0] is end
    if not isinstance(relayed.near[0], Opaque):
        with pytest.raises(ConnectionResetError):
            other.recv(1)


@pytest.mark.parametrize("who", ["client", "target"])
def test_a_reset_is_noticed_while_the_other_way_is_stuck(relayed: Relayed, who: str) -> None:
    one, other = relayed.client, relayed.target
    if who == "target":
        one, other = other, one
    # ``other`` reads nothing, so the way to it is stuck; and then it resets.
    sender = gevent.spawn(one.sendall, b"z" * 30_000_000)
    wait_for(lambda: relayed.meter.up + relayed.meter.down > 0)
    gevent.sleep(0.05)
    reset(other)
    end, _ = relayed.end()
    assert end in (End.RESET_BY_CLIENT, End.RESET_BY_TARGET)
    sender.join()
    assert sender.exception is not None


def test_a_slow_reader_costs_bounded_memory(relayed: Relayed) -> None:
    sender = gevent.spawn(relayed.target.sendall, b"s" * 50_000_000)
    before = -1
    while before != relayed.meter.down:
        before = relayed.meter.down
        gevent.sleep(0.1)
    held = sum(len(thing) for thing in gc.get_objects() if isinstance(thing, bytearray))
    assert held <= 1 << 20
    # A few megabytes sit in the kernel's buffers; the rest is still with the sender.
    assert relayed.meter.down < 40_000_000
    assert not sender.ready()
    assert len(recv_exactly(relayed.client, 50_000_000)) == 50_000_000
    sender.get()
    relayed.client.close()
    relayed.target.close()
    relayed.end()


def test_what_was_read_behind_the_request_is_relayed_first() -> None:
    client, near_client = connection_pair()
    target, near_target = connection_pair()
    client.sendall(b"!early")
    assert near_client.recv(1) == b"!"
    pump = Pump()
    relay = gevent.spawn(pump.relay, near_client, near_target, Meter())
    assert recv_exactly(target, 5) == b"early"
    client.close()
    target.close()
    relay.get()
    near_client.close()
    near_target.close()
    pump.close()


def test_a_stream_that_refuses_octets_breaks_both_ways() -> None:
    class Tampered(Opaque):
        def __init__(self, inner: Connection) -> None:
            super().__init__(inner)
            self.recv = self._recv

        def _recv(self, size: int, /) -> bytes:
            self.inner.recv(size)
            raise ProtocolError("bad token")

    pump = Pump()
    relayed = Relayed(pump, Tampered)
    relayed.client.sendall(b"x")
    assert relayed.end() == (End.BROKEN_BY_CLIENT, "bad token")
    with pytest.raises(ConnectionResetError):
        relayed.target.recv(1)
    relayed.close()
    pump.close()


def test_killing_the_relay_ends_both_ways(relayed: Relayed) -> None:
    relayed.client.sendall(b"x")
    assert relayed.target.recv(1) == b"x"
    relayed.relay.kill()
    for near in relayed.near:
        near.close()
    assert relayed.client.recv(1) == b""
    assert relayed.target.recv(1) == b""


def test_bulk_sessions_share_few_pipes_and_silent_ones_hold_none() -> None:
    pump = Pump(splice=True)
    sessions = [Relayed(pump) for _ in range(8)]
    size = CHUNK * 40
    for session in sessions:
        gevent.spawn(session.client.sendall, b"b" * size)
    for session in sessions:
        assert len(recv_exactly(session.target, size)) == size
    assert 0 < pump.pipes._made <= 8
    wait_for(lambda: len(pump.pipes._free) == pump.pipes._made)
    for session in sessions:
        session.close()
        session.end()
    pump.close()
    assert pump.pipes._made == 0


def test_a_pipe_with_octets_left_in_it_is_never_used_again() -> None:
    pump = Pump(splice=True)
    session = Relayed(pump)
    sender = gevent.spawn(session.client.sendall, b"b" * 50_000_000)
    before = -1
    while before != session.meter.up:
        before = session.meter.up
        gevent.sleep(0.1)
    session.relay.kill()
    assert pump.pipes._made == len(pump.pipes._free)
    for near in session.near:
        near.close()
    session.close()
    sender.join()
    pump.close()


def test_a_pool_gives_no_more_pipes_than_it_may_and_takes_them_back() -> None:
    pool = PipePool(2, CHUNK)
    one, two = pool.take(), pool.take()
    assert one is not None
    assert two is not None
    assert pool.take() is None
    assert not pool.available()
    pool.give_back(one, empty=True)
    assert pool.take() is one
    pool.give_back(one, empty=False)
    fresh = pool.take()
    assert fresh is not None
    assert fresh is not one
    pool.close()
    for pipe in (fresh, two):
        pool.give_back(pipe, empty=True)
    assert pool.take() is None
    assert MAX_PIPES >= 8


def test_fairness_a_chatty_session_is_served_beside_bulk() -> None:
    pump = Pump()
    bulk = [Relayed(pump) for _ in range(4)]
    chat = Relayed(pump)

    def flood(sock: gevent.socket.socket) -> None:
        data = b"f" * 262_144
        while True:
            sock.sendall(data)

    def sink(sock: gevent.socket.socket) -> None:
        while sock.recv(262_144):
            pass

    greenlets = [gevent.spawn(flood, session.client) for session in bulk]
    greenlets += [gevent.spawn(sink, session.target) for session in bulk]
    gevent.sleep(0.1)
    for _ in range(20):
        with gevent.Timeout(1.0):
            chat.client.sendall(b"ping")
            assert recv_exactly(chat.target, 4) == b"ping"
    gevent.killall(greenlets)
    for session in [*bulk, chat]:
        session.relay.kill()
        session.close()
        for near in session.near:
            near.close()
    pump.close()


def test_a_dead_connection_pair_from_the_start() -> None:
    far, near = tcp_pair()
    other, near_other = connection_pair()
    reset(far)
    pump = Pump()
    dead = Connection.take(near)
    end, error = pump.relay(dead, near_other, Meter())
    assert end is End.RESET_BY_CLIENT
    assert error
    dead.close()
    near_other.close()
    other.close()
    gc.collect()
