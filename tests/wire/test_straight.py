"""Messages that are read from the octets that they are, and known again."""

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geosocks.wire.socks5 import Address, MethodOffer, Request, whole_offer, whole_request
from geosocks.wire.straight import Familiar, UnameAndPasswd, uname_and_passwd


def test_a_message_is_decoded_once_and_what_is_none_is_not_kept() -> None:
    asked = list[bytes]()

    def decode(octets: bytes) -> MethodOffer | None:
        asked.append(octets)
        return whole_offer(octets)

    messages = Familiar(decode, 8)
    for _ in range(3):
        assert messages.read(b"\5\2\0\1") == MethodOffer(b"\0\1")
        for odd in b"", b"\5", b"\5\2\0", b"\5\1\0\5", b"\4\1\0":
            assert messages.read(odd) is None
    assert asked.count(b"\5\2\0\1") == 1
    assert len(asked) == 1 + 3 * 5


def test_no_more_are_known_than_the_bound() -> None:
    asked = list[bytes]()

    def decode(octets: bytes) -> bytes | None:
        asked.append(octets)
        return octets or None

    messages = Familiar(decode, 3)
    for octets in b"a", b"b", b"c", b"a", b"d":  # that is one too many: all others are forgotten
        assert messages.read(octets) == octets
    assert asked == [b"a", b"b", b"c", b"d"]
    assert messages.read(b"d") == b"d"
    assert messages.read(b"a") == b"a"
    assert asked == [b"a", b"b", b"c", b"d", b"a"]


def test_no_password_is_known_again() -> None:
    fields = UnameAndPasswd()
    assert fields.read(b"\1\5alice\6wonder") == (b"alice", b"wonder")
    assert fields.read(b"\1\5alice\6wonde") is None
    assert not isinstance(fields, Familiar)


@given(st.binary(max_size=270))
def test_an_offer_is_whole_where_it_is_written_so(octets: bytes) -> None:
    offer = whole_offer(octets)
    assert offer is None or offer.encode() == octets
    size = min(len(octets), 255)
    assert whole_offer(bytes((5, size)) + octets[:size]) == MethodOffer(octets[:size])


def test_fields_that_come_whole_are_read_whole() -> None:
    octets = bytes.fromhex("01 05") + b"alice" + b"\x06wonder"
    assert uname_and_passwd(octets) == (b"alice", b"wonder")


NONE: dict[Callable[[bytes], object], tuple[bytes, ...]] = {
    whole_offer: (
        b"",
        b"\5",
        b"\5\1",
        b"\5\1\0\0",
        b"\4\1\0",
        b"\5\1\2\1\5alice\6wonder",
    ),
    whole_request: (
        b"",
        b"\5\1\0\1",
        b"\5\1\0\1\x7f\0\0\1\0",
        b"\5\1\0\1\x7f\0\0\1\0\x50GET",
        b"\5\1\1\1\x7f\0\0\1\0\x50",  # RSV is not what we would write
        b"\5\1\0\3\0\0\x50\0",
        b"\5\1\0\3\11127.0.0.1\0\x50",  # an address as a name
        b"\5\1\0\2\x7f\0\0\1\0\x50",
        b"\4\1\0\x50\x7f\0\0\1\0\0",
    ),
    uname_and_passwd: (
        b"",
        b"\1",
        b"\1\5ali",
        b"\1\5alice\6wonde",
        b"\1\1a\1b\5",
        b"\5\1\0",
    ),
}


@pytest.mark.parametrize(("whole", "octets"), [(w, o) for w, all_ in NONE.items() for o in all_])
def test_what_is_no_message_or_more_than_one_is_left_to_be_read_by_pieces(
    whole: Callable[[bytes], object], octets: bytes
) -> None:
    assert whole(octets) is None


@pytest.mark.parametrize(
    "request_",
    [
        Request(1, Address(IPv4Address("192.0.2.1"), 80)),
        Request(3, Address(IPv6Address("2001:db8::1"), 0)),
        Request(9, Address("www.example.org", 65535)),
    ],
)
def test_a_request_is_whole_where_it_is_written_so(request_: Request) -> None:
    octets = request_.encode()
    assert whole_request(octets) == request_
    assert whole_request(octets + b"x") is None
    assert whole_request(octets[:-1]) is None
