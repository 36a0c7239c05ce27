"""Encapsulation octet by octet, with a context that only pretends."""

from collections.abc import Callable, Iterator
from itertools import chain, repeat
from typing import Any
from weakref import ref

import gevent
import pytest
from gevent.socket import SHUT_WR, socket, socketpair
from gssapi.exceptions import ExpiredContextError
from hypothesis import given
from hypothesis import strategies as st

from geosocks.auth.gss_stream import TURN, GssStream
from geosocks.codes import ProtectionLevel
from geosocks.errors import ProtocolError, RelayBroken, Truncated
from geosocks.stream import Stream
from geosocks.wire import NeedMore
from geosocks.wire.gss import encapsulated_size
from tests.support.fake_gss import FakeContext, octets, read_all, turned
from tests.support.octets import Pieces

INTEGRITY, CONFIDENTIALITY = ProtectionLevel.INTEGRITY, ProtectionLevel.CONFIDENTIALITY


@pytest.fixture
def ends() -> Iterator[tuple[socket, socket]]:
    one, two = socketpair()
    with one, two:
        yield one, two


def stream_of(sock: Stream, level: ProtectionLevel = CONFIDENTIALITY, **options: Any) -> GssStream:
    return GssStream(sock, FakeContext(b"", **options), level)


@pytest.mark.parametrize(
    ("level", "wire"),
    [(INTEGRITY, "01 03 00 04 00 00 68 69"), (CONFIDENTIALITY, "0103000400019796")],
)
def test_a_message_on_the_wire(
    ends: tuple[socket, socket], level: ProtectionLevel, wire: str
) -> None:
    stream_of(ends[0], level).sendall(b"hi")
    ends[0].shutdown(SHUT_WR)
    assert read_all(ends[1]) == octets(wire)
    ends[1].sendall(octets(wire))
    assert stream_of(ends[0], level).recv(100) == b"hi"


def test_data_is_cut_to_the_size_that_the_context_allows(ends: tuple[socket, socket]) -> None:
    stream = stream_of(ends[0], INTEGRITY, limit=4)
    stream.sendall(b"0123456789")
    stream.sendall(b"")
    assert stream.send(memoryview(b"abcd")) == 4
    ends[0].shutdown(SHUT_WR)
    assert read_all(ends[1]) == (
        octets("01030006 0000") + b"0123" + octets("01030006 0100") + b"4567"
        + octets("01030004 0200") + b"89" + octets("01030006 0300") + b"abcd"
    )  # fmt: skip


def test_two_messages_in_a_segment_and_one_in_many(ends: tuple[socket, socket]) -> None:
    ends[1].sendall(octets("0103 0004 0000 6f6e 0103 0004 0100 6521 0103"))
    stream = stream_of(ends[0], INTEGRITY)
    assert stream.recv(100) == b"on"
    assert stream.recv(1) == b"e"
    assert stream.recv(100) == b"!"
    reading = gevent.spawn(stream.recv, 100)
    for octet in octets("0004 0200 7477"):
        gevent.sleep(0)
        assert not reading.ready()
        ends[1].sendall(bytes((octet,)))
    assert reading.get() == b"tw"


@given(
    pieces=st.lists(st.binary(max_size=40), max_size=6),
    arrives=st.lists(st.integers(1, 60)),
    reads=st.lists(st.integers(1, 60), min_size=1),
)
def test_how_octets_arrive_and_are_read_does_not_matter(
    pieces: list[bytes], arrives: list[int], reads: list[int]
) -> None:
    sealing = FakeContext(b"")
    wire = b""
    for piece in pieces:
        token = sealing.wrap(piece, True).message
        wire += octets("01 03") + len(token).to_bytes(2, "big") + token
    stream = stream_of(Pieces(wire, arrives))
    got = b""
    for size in chain(reads, repeat(7)):
        chunk = stream.recv(size)
        assert len(chunk) <= size
        if not chunk:
            break
        got += chunk
    assert got == b"".join(pieces)


def test_empty_messages_are_no_end(ends: tuple[socket, socket]) -> None:
    empties = b"".join(octets("0103 0002") + bytes((n % 256, 1)) for n in range(300))
    ends[1].sendall(empties + octets("0103 0003 2c01") + turned(b"!"))
    ends[1].shutdown(SHUT_WR)
    stream = stream_of(ends[0])
    assert stream.recv(10) == b"!"
    assert stream.recv(10) == b""
    assert stream.recv(10) == b""


class Endless:
    """A peer that sends without a pause, whatever ``wire`` says."""

    def __init__(self, wire: Callable[[], bytes]) -> None:
        self.wire = wire

    def recv(self, size: int, /) -> bytes:
        return self.wire()

    def sendall(self, data: bytes, /) -> None: ...

    def shutdown(self, how: int, /) -> None: ...

    def close(self) -> None: ...


def test_a_peer_without_a_pause_does_not_starve_others() -> None:
    sealing = FakeContext(b"", limit=60000)

    def empties() -> bytes:
        return b"".join(octets("0103 0002") + sealing.wrap(b"", True).message for _ in range(100))

    reading = gevent.spawn(GssStream(Endless(empties), FakeContext(b""), CONFIDENTIALITY).recv, 1)
    gevent.sleep(0)
    assert reading.started  # it never ends, and still this line is reached
    reading.kill()
    turns = []
    sending = GssStream(Endless(bytes), FakeContext(b"", limit=60000), CONFIDENTIALITY)
    other = gevent.spawn(lambda: [turns.append(gevent.sleep(0)) for _ in range(1000)])
    for _ in range(4):
        sending.sendall(bytes(TURN))
    assert len(turns) >= 2
    other.kill()


BROKEN = [
    pytest.param("05 01 00 01", "VER is 0x05 where an encapsulated message", id="clear-request"),
    pytest.param("47 45 54", "VER is 0x47", id="clear-data"),
    pytest.param("01 01 00 00", "MTYP is 0x01 where encapsulated", id="context-token"),
    pytest.param("01 02 00 01 02", "MTYP is 0x02", id="level"),
    pytest.param("01 ff", "aborted", id="abort"),
    pytest.param("01 03 00 03 00 00 68", "not encrypted under confidentiality", id="only-signed"),
    pytest.param("01 03 00 05 00 01 ba d1 ee", "Message Integrity Check", id="bad-mic"),
    pytest.param("01 03 00 03 01 01 97", "expected per-message token", id="gap"),
    pytest.param("01 03 00 00", "does not unwrap", id="no-token"),
    pytest.param("01 03 00 01 00", "does not unwrap", id="no-message"),
]


@pytest.mark.parametrize(("wire", "reason"), BROKEN)
def test_what_is_no_good_message_ends_the_stream(
    ends: tuple[socket, socket], wire: str, reason: str
) -> None:
    ends[1].sendall(octets(wire) + octets("01 03 00 03 00 01 97"))
    stream = stream_of(ends[0])
    for _ in range(2):  # a caller that tries again gets no later data
        with pytest.raises(ProtocolError, match=reason):
            stream.recv(100)


def test_a_repeated_message_ends_the_stream(ends: tuple[socket, socket]) -> None:
    ends[1].sendall(octets("01 03 00 03 00 01 97") * 2)
    stream = stream_of(ends[0])
    assert stream.recv(100) == b"h"
    with pytest.raises(ProtocolError, match="duplicate"):
        stream.recv(100)


def test_encrypted_data_under_integrity_is_not_what_was_agreed(ends: tuple[socket, socket]) -> None:
    ends[1].sendall(octets("01 03 00 03 00 01 97"))
    with pytest.raises(ProtocolError, match="is encrypted under integrity"):
        stream_of(ends[0], INTEGRITY).recv(100)


def test_an_end_inside_a_message_is_an_abort(ends: tuple[socket, socket]) -> None:
    whole = octets("01 03 00 03 00 01 97")
    for cut in range(1, len(whole)):
        one, two = socketpair()
        with one, two:
            two.sendall(whole[:cut])
            two.shutdown(SHUT_WR)
            with pytest.raises(Truncated, match=f"after {cut} octets"):
                stream_of(one).recv(100)


def test_the_largest_message_both_ways(ends: tuple[socket, socket]) -> None:
    sending, reading = stream_of(ends[0], limit=65533), stream_of(ends[1], limit=65533)
    data = bytes(range(256)) * 1024
    writer = gevent.spawn(lambda: (sending.sendall(data), sending.shutdown(SHUT_WR)))
    assert read_all(reading) == data
    writer.get()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ({"overhead": bytes(65536)}, "LEN cannot say it"),
        ({"wrap_as": lambda encrypt: False}, "does not give confidentiality"),
        ({"fault": ExpiredContextError(0xC0000, 0)}, "expired"),
    ],
)
def test_what_cannot_be_wrapped_is_not_sent(
    ends: tuple[socket, socket], spoil: dict[str, Any], reason: str
) -> None:
    context = FakeContext(b"")
    vars(context).update(spoil)
    with pytest.raises(RelayBroken, match=reason):
        GssStream(ends[0], context, CONFIDENTIALITY).sendall(b"secret")
    ends[0].shutdown(SHUT_WR)
    assert read_all(ends[1]) == b""


def test_a_context_without_room_is_refused(ends: tuple[socket, socket]) -> None:
    with pytest.raises(ProtocolError, match="no room"):
        stream_of(ends[0], limit=0)


def test_a_stream_can_be_asked_what_a_socket_can(ends: tuple[socket, socket]) -> None:
    stream = stream_of(ends[0])
    assert stream.fileno() == ends[0].fileno()
    assert stream.getpeername() == ends[0].getpeername()
    assert stream.getsockname() == ends[0].getsockname()
    stream.close()
    assert ends[0].fileno() == -1


def test_the_context_goes_with_the_stream(ends: tuple[socket, socket]) -> None:
    context = FakeContext(b"")
    stream = GssStream(ends[0], context, CONFIDENTIALITY)
    alive = ref(context)
    del context
    assert alive() is not None
    stream.close()
    del stream
    assert alive() is None


def test_the_header_alone_tells_the_size() -> None:
    assert encapsulated_size(bytearray(octets("01 03 ff ff 00"))) == 65539
    for cut in range(4):
        with pytest.raises(NeedMore) as caught:
            encapsulated_size(octets("01 03 00 00")[:cut])
        assert caught.value.missing == 4 - cut
