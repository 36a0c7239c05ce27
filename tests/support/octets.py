"""What every message in ``geosocks.wire`` has to stand, and a stream that is exact about sizes."""

from collections.abc import Callable, Iterable
from itertools import chain, repeat
from typing import Protocol, TypeVar

import pytest

from geosocks.errors import AddressTypeNotSupported, ProtocolError, Truncated
from geosocks.stream import read_message
from geosocks.wire import NeedMore

M = TypeVar("M")
Decode = Callable[[bytes], M]

TRAILING = b"\x05\x01\x00 what follows a message is nobody's but the next reader's"
FILLERS = (b"\x00", b"\x01", b"\x03", b"\x05", b"\xff")


class Message(Protocol):
    """Any message class's instance."""

    def encode(self) -> bytes: ...


class Pieces:
    """A stream that hands its octets out in pieces, never more than was asked for."""

    def __init__(self, data: bytes, sizes: Iterable[int] = ()) -> None:
        self.rest = data
        self._sizes = chain(sizes, repeat(1))

    def recv(self, size: int, /) -> bytes:
        assert size >= 1, "asked for no octet: b'' would look like the end"
        taken = min(size, next(self._sizes))
        data, self.rest = self.rest[:taken], self.rest[taken:]
        return data

    def sendall(self, data: bytes, /) -> None:
        raise AssertionError("reading a message sends nothing")

    def shutdown(self, how: int, /) -> None: ...

    def close(self) -> None: ...


def assert_every_cut_needs_more(decode: Decode[M], data: bytes) -> None:
    """Each beginning of ``data`` is a good one, and never asks for more than the rest of it."""
    for cut in range(len(data)):
        with pytest.raises(NeedMore) as caught:
            decode(data[:cut])
        assert 1 <= caught.value.missing <= len(data) - cut


def assert_reads_exactly(decode: Decode[M], data: bytes, message: M, sizes: Iterable[int]) -> None:
    """However it is cut into pieces, ``message`` is read, and nothing behind it."""
    stream = Pieces(data + TRAILING, sizes)
    assert read_message(stream, decode) == message
    assert stream.rest == TRAILING


def assert_every_split_reads_exactly(decode: Decode[M], data: bytes, message: M) -> None:
    """Cut into two anywhere, whole, or octet by octet; a part of it is a truncated message."""
    for cut in range(1, len(data)):
        assert_reads_exactly(decode, data, message, (cut, len(data)))
        with pytest.raises(Truncated):
            read_message(Pieces(data[:cut], repeat(len(data))), decode)
    assert_reads_exactly(decode, data, message, ())
    assert_reads_exactly(decode, data, message, repeat(len(data) + len(TRAILING)))


def assert_is_message(decode: Decode[M], data: bytes, message: M) -> None:
    """``data`` decodes to ``message``, also with octets behind it, and every part of it needs more.

    And ``message`` encodes to ``data``.
    """
    assert decode(data) == message
    assert decode(data + TRAILING) == message
    assert message.encode() == data
    assert_every_cut_needs_more(decode, data)
    assert_every_split_reads_exactly(decode, data, message)


def assert_bears_garbage(decode: Decode[M], data: bytes) -> None:
    """Any octets are a message, the beginning of one, or a declared error.

    What is read can be written and read again; what needs more needs no less than it says.
    """
    missing = 0
    try:
        message = decode(data)
    except NeedMore as more:
        missing = more.missing
    except (ProtocolError, AddressTypeNotSupported) as error:
        complaint = str(error)
        if not complaint.isprintable():
            pytest.fail(f"not for a log: {complaint!r}")
        return
    else:
        assert decode(message.encode()) == message
        return
    assert missing >= 1
    for filler in FILLERS:
        with pytest.raises((NeedMore, ProtocolError, AddressTypeNotSupported)):
            decode(data + filler * (missing - 1))
