"""SOCKS4 and 4A messages, octet by octet."""

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geosocks.errors import ProtocolError
from geosocks.wire import NeedMore
from geosocks.wire.socks4 import Reply, Request
from geosocks.wire.socks5 import Address
from tests.support.octets import assert_bears_garbage, assert_is_message, assert_reads_exactly

QUICK = settings(max_examples=200, deadline=None)
SIZES = st.lists(st.integers(1, 600), max_size=20)

NAMES = st.text(st.characters(min_codepoint=1, max_codepoint=127), min_size=1, max_size=255)
HOSTS = st.ip_addresses() | NAMES
ADDRESSES = st.builds(Address, HOSTS, st.integers(0, 0xFFFF))
USERIDS = st.binary(max_size=255).map(lambda octets: octets.replace(b"\0", b"0"))
REQUESTS = st.builds(Request, st.integers(0, 255), ADDRESSES, USERIDS)
REPLIES = st.builds(
    Reply,
    st.integers(0, 255),
    st.builds(Address, st.ip_addresses(v=4), st.integers(0, 0xFFFF)),
)


@pytest.mark.parametrize(
    ("octets", "request_"),
    [
        pytest.param(
            "04 01 0050 c0000263 616c69636500",
            Request(1, Address("192.0.2.99", 80), b"alice"),
            id="connect-as-alice",
        ),
        pytest.param("04 01 0050 c0000201 00", Request(1, Address("192.0.2.1", 80)), id="nobody"),
        pytest.param(
            "04 02 0015 c0000201 61 00", Request(2, Address("192.0.2.1", 21), b"a"), id="bind"
        ),
        pytest.param(
            "04 02 0000 00000000 00", Request(2, Address("0.0.0.0", 0)), id="bind-for-any"
        ),
        pytest.param(
            "04 01 0050 00000001 00 61 00", Request(1, Address("a", 80)), id="shortest-4a"
        ),
        pytest.param(
            "04 01 01bb 00000001 6d6500 6578616d706c652e6f726700",
            Request(1, Address("example.org", 443), b"me"),
            id="4a-as-curl-sends-it",
        ),
        pytest.param(
            "04 01 0050 00000001 00 3a3a3100",
            Request(1, Address(IPv6Address("::1"), 80)),
            id="4a-v6",
        ),
        pytest.param(
            "04 01 0050 00000001 00 302e302e302e3700",
            Request(1, Address(IPv4Address("0.0.0.7"), 80)),
            id="4a-for-an-address-that-looks-like-4a",
        ),
        pytest.param(
            "04 7f 0050 c0000201 ff0a 00",
            Request(0x7F, Address("192.0.2.1", 80), b"\xff\n"),
            id="raw",
        ),
    ],
)
def test_request(octets: str, request_: Request) -> None:
    assert_is_message(Request.decode, bytes.fromhex(octets), request_)


@pytest.mark.parametrize("x", [1, 2, 127, 128, 255])
def test_any_0_0_0_x_is_the_sign_of_a_name(x: int) -> None:
    data = b"\x04\x01\x00\x50\x00\x00\x00" + bytes((x,)) + b"\x00name\x00"
    assert Request.decode(data).destination == Address("name", 80)


@pytest.mark.parametrize("name", ["192.0.2.7", "::1"])
def test_an_address_sent_as_a_name_is_an_address(name: str) -> None:
    data = b"\x04\x01\x00\x50\x00\x00\x00\x01\x00" + name.encode() + b"\x00"
    assert not Request.decode(data).destination.is_name


@pytest.mark.parametrize("userid", [0, 1, 254, 255])
@pytest.mark.parametrize("name", [1, 254, 255])
def test_lengths_up_to_the_end(userid: int, name: int) -> None:
    message = Request(1, Address("n" * name, 80), b"u" * userid)
    data = message.encode()
    assert data == b"\x04\x01\x00\x50\x00\x00\x00\x01" + b"u" * userid + b"\0" + b"n" * name + b"\0"
    for sizes in ((), (8, userid + 1, name + 1), (9,)):
        assert_reads_exactly(Request.decode, data, message, sizes)


@pytest.mark.parametrize("behind", [b"", b"u", b"\0", b"u" * 1000])
def test_an_endless_userid_is_not_read_to_its_end(behind: bytes) -> None:
    data = b"\x04\x01\x00\x50\xc0\x00\x02\x01" + b"u" * 256 + behind
    with pytest.raises(ProtocolError, match="USERID of more than 255 octets"):
        Request.decode(data)


@pytest.mark.parametrize("behind", [b"", b"n", b"\0", b"n" * 1000])
def test_an_endless_name_is_not_read_to_its_end(behind: bytes) -> None:
    data = b"\x04\x01\x00\x50\x00\x00\x00\x01me\0" + b"n" * 256 + behind
    with pytest.raises(ProtocolError, match="name of more than 255 octets"):
        Request.decode(data)


def test_a_name_of_no_octets() -> None:
    with pytest.raises(ProtocolError, match="name of no octets"):
        Request.decode(bytes.fromhex("04 01 0050 00000001 00 00"))


@pytest.mark.parametrize(
    ("octets", "reply"),
    [
        pytest.param("00 5a 0000 00000000", Reply(90), id="granted"),
        pytest.param("00 5b 0000 00000000", Reply(91), id="rejected"),
        pytest.param("00 5c 0000 00000000", Reply(92), id="no-identd"),
        pytest.param("00 5d 0000 00000000", Reply(93), id="another-identity"),
        pytest.param("00 5a 9c40 c0000207", Reply(90, Address("192.0.2.7", 40000)), id="bound"),
        pytest.param("00 00 0000 00000000", Reply(0), id="one-we-cannot-name"),
    ],
)
def test_reply(octets: str, reply: Reply) -> None:
    assert_is_message(Reply.decode, bytes.fromhex(octets), reply)


@pytest.mark.parametrize("version", [0, 1, 3, 5, 0x84, 0xFF])
def test_another_version_of_a_request_is_refused_at_its_octet(version: int) -> None:
    with pytest.raises(ProtocolError, match=f"VN is {version:#04x}, expected 0x04"):
        Request.decode(bytes((version,)))


@pytest.mark.parametrize("version", [1, 4, 5, 0xFF])
def test_another_version_of_a_reply_is_refused_at_its_octet(version: int) -> None:
    with pytest.raises(ProtocolError, match=f"VN is {version:#04x}, expected 0x00"):
        Reply.decode(bytes((version,)))


@pytest.mark.parametrize(
    ("decode", "missing"), [pytest.param(Request.decode, 9), pytest.param(Reply.decode, 8)]
)
def test_nothing_yet_asks_for_the_shortest(decode: Callable[[bytes], object], missing: int) -> None:
    with pytest.raises(NeedMore) as caught:
        decode(b"")
    assert caught.value.missing == missing


@pytest.mark.parametrize(
    "message",
    [
        Request(1, Address("192.0.2.1", 80), b"u" * 256),
        Request(1, Address("192.0.2.1", 80), b"u\0"),
        Request(1, Address("n" * 256, 80)),
        Request(1, Address("n\0n", 80)),
        Request(1, Address("", 80)),
        Reply(90, Address("::1", 80)),
        Reply(90, Address("name", 80)),
    ],
)
def test_what_cannot_be_sent_is_refused_and_not_cut(message: Request | Reply) -> None:
    with pytest.raises(ValueError, match=r"octets|IPv4"):
        message.encode()


@QUICK
@given(REQUESTS, SIZES)
def test_any_request_survives_any_pieces(message: Request, sizes: list[int]) -> None:
    data = message.encode()
    assert Request.decode(data) == message
    assert_reads_exactly(Request.decode, data, message, sizes)


@QUICK
@given(REPLIES, SIZES)
def test_any_reply_survives_any_pieces(message: Reply, sizes: list[int]) -> None:
    assert_reads_exactly(Reply.decode, message.encode(), message, sizes)


@pytest.mark.parametrize("start", [b"", b"\x04\x01\x00\x50", b"\x04\x01\x00\x50\x00\x00\x00\x01"])
@QUICK
@given(st.binary(max_size=600))
def test_garbage_is_borne(start: bytes, data: bytes) -> None:
    assert_bears_garbage(Request.decode, start + data)
    assert_bears_garbage(Reply.decode, data)
    assert_bears_garbage(Reply.decode, b"\0" + data)
