"""RFC 1929 messages, octet by octet."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geosocks.errors import ProtocolError
from geosocks.wire import NeedMore
from geosocks.wire.userpass import UserPassReply, UserPassRequest
from tests.support.octets import assert_bears_garbage, assert_is_message, assert_reads_exactly

QUICK = settings(max_examples=200, deadline=None)
DECODERS = pytest.mark.parametrize("decode", [UserPassRequest.decode, UserPassReply.decode])

FIELDS = st.binary(max_size=255)
REQUESTS = st.builds(UserPassRequest, FIELDS, FIELDS)
SIZES = st.lists(st.integers(1, 600), max_size=20)


@pytest.mark.parametrize(
    ("octets", "request_"),
    [
        pytest.param("01 01 61 01 62", UserPassRequest(b"a", b"b"), id="shortest"),
        pytest.param(
            "01 05 616c696365 06 776f6e646572", UserPassRequest(b"alice", b"wonder"), id="alice"
        ),
        pytest.param("01 01 61 00", UserPassRequest(b"a", b""), id="no-password-as-curl-7.88"),
        pytest.param("01 00 01 62", UserPassRequest(b"", b"b"), id="no-user"),
        pytest.param("01 00 00", UserPassRequest(b"", b""), id="nothing"),
        pytest.param("01 03 00ff0a 02 0d00", UserPassRequest(b"\0\xff\n", b"\r\0"), id="raw"),
    ],
)
def test_request(octets: str, request_: UserPassRequest) -> None:
    assert_is_message(UserPassRequest.decode, bytes.fromhex(octets), request_)


@pytest.mark.parametrize("ulen", [1, 127, 128, 255])
@pytest.mark.parametrize("plen", [1, 127, 128, 255])
def test_lengths_about_the_sign_and_the_end(ulen: int, plen: int) -> None:
    message = UserPassRequest(b"u" * ulen, b"p" * plen)
    data = bytes((1, ulen)) + b"u" * ulen + bytes((plen,)) + b"p" * plen
    assert UserPassRequest.decode(data) == message
    assert message.encode() == data
    for sizes in ((), (2, ulen, 1, plen), (2 + ulen, 1 + plen)):
        assert_reads_exactly(UserPassRequest.decode, data, message, sizes)


@pytest.mark.parametrize(("uname", "passwd"), [(b"u" * 256, b"p"), (b"u", b"p" * 256)])
def test_a_field_too_long_is_refused_and_not_cut(uname: bytes, passwd: bytes) -> None:
    with pytest.raises(ValueError, match="1 to 255 octets"):
        UserPassRequest(uname, passwd).encode()


@pytest.mark.parametrize("status", [0, 1, 2, 0x7F, 0x80, 0xFF])
def test_reply(status: int) -> None:
    assert_is_message(UserPassReply.decode, bytes((1, status)), UserPassReply(status))


@DECODERS
@pytest.mark.parametrize("version", [0, 2, 4, 5, 0x81, 0xFF])
def test_another_version_is_refused_at_its_octet(
    decode: Callable[[bytes], object], version: int
) -> None:
    for rest in (b"", b"\x00", b"\x01a\x01b"):
        with pytest.raises(ProtocolError, match=f"VER is {version:#04x}, expected 0x01"):
            decode(bytes((version,)) + rest)


@DECODERS
def test_nothing_yet_asks_for_version_and_length(decode: Callable[[bytes], object]) -> None:
    with pytest.raises(NeedMore) as caught:
        decode(b"")
    assert caught.value.missing == 2


def test_a_password_is_not_shown() -> None:
    request = UserPassRequest(b"alice", b"wonder")
    assert repr(request) == str(request) == "UserPassRequest(uname=b'alice')"


@QUICK
@given(REQUESTS, SIZES)
def test_any_request_survives_any_pieces(message: UserPassRequest, sizes: list[int]) -> None:
    data = message.encode()
    assert UserPassRequest.decode(data) == message
    assert_reads_exactly(UserPassRequest.decode, data, message, sizes)


@DECODERS
@QUICK
@given(st.binary(max_size=600))
def test_garbage_is_borne(decode: Callable[[bytes], object], data: bytes) -> None:
    assert_bears_garbage(decode, data)
    assert_bears_garbage(decode, b"\x01" + data)
