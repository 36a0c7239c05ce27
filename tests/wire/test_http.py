"""HTTP CONNECT: the request's octets, and heads of responses, cut anywhere and hostile."""

from itertools import repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geosocks.errors import ProtocolError, Truncated
from geosocks.stream import read_message
from geosocks.wire import NeedMore
from geosocks.wire.http import MAX_HEAD, ConnectRequest, ResponseHead, basic
from geosocks.wire.socks5 import Address
from tests.support.octets import (
    TRAILING,
    Pieces,
    assert_every_cut_needs_more,
    assert_every_split_reads_exactly,
)


@pytest.mark.parametrize(
    ("to", "octets"),
    [
        (
            Address("www.example.org", 443),
            b"CONNECT www.example.org:443 HTTP/1.1\r\nHost: www.example.org:443\r\n\r\n",
        ),
        (
            Address("192.0.2.7", 80),
            b"CONNECT 192.0.2.7:80 HTTP/1.1\r\nHost: 192.0.2.7:80\r\n\r\n",
        ),
        (
            Address("2001:db8::1", 80),
            b"CONNECT [2001:db8::1]:80 HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n",
        ),
    ],
)
def test_a_request(to: Address, octets: bytes) -> None:
    assert ConnectRequest(to).encode() == octets


def test_a_request_with_basic_credentials_which_its_repr_does_not_show() -> None:
    # The example of RFC 7617, section 2.
    request = ConnectRequest(Address("a.test", 1), basic(b"Aladdin", b"open sesame"))
    assert request.encode() == (
        b"CONNECT a.test:1 HTTP/1.1\r\nHost: a.test:1\r\n"
        b"Proxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n\r\n"
    )
    assert "QWxh" not in repr(request)


def test_a_colon_in_the_user_name_cannot_be_sent() -> None:
    with pytest.raises(ValueError, match="colon"):
        basic(b"a:b", b"c")
    assert basic(b"", b"a:b")


@pytest.mark.parametrize("host", ["a b", "a\r\nX: y", "a/b", "a@b", "a\udcff", "a%0d", "", "a:1"])
def test_a_host_that_would_be_more_than_a_host_is_not_sent(host: str) -> None:
    with pytest.raises(ValueError, match="host name"):
        ConnectRequest(Address(host, 80)).encode()


HEADS = [
    pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", ResponseHead(200, "OK"), id="short"),
    pytest.param(
        b"HTTP/1.0 200 Connection established\r\nVia: x\r\n\r\n",
        ResponseHead(200, "Connection established"),
        id="with-a-header",
    ),
    pytest.param(b"HTTP/1.1 200\n\n", ResponseHead(200), id="shortest"),
    pytest.param(b"HTTP/1.1 204 \r\n\r\n", ResponseHead(204), id="empty-reason"),
    pytest.param(b"HTTP/1.1 200 OK\nA: b\n\r\n", ResponseHead(200, "OK"), id="mixed-line-ends"),
    pytest.param(
        b"HTTP/1.1 407 Proxy Authentication Required\r\n"
        b"Proxy-Authenticate: Basic realm=x\r\nContent-Length: 5\r\n\r\n",
        ResponseHead(407, "Proxy Authentication Required"),
        id="refusal",
    ),
    pytest.param(
        b"HTTP/1.1 500 \x1b[31m\xe9vil\r\n\r\n", ResponseHead(500, "[31mvil"), id="odd-reason"
    ),
]


@pytest.mark.parametrize(("octets", "head"), HEADS)
def test_a_head_decodes_however_it_is_cut_and_never_overreads(
    octets: bytes, head: ResponseHead
) -> None:
    assert ResponseHead.decode(octets) == head
    assert ResponseHead.decode(octets + TRAILING) == head
    assert_every_cut_needs_more(ResponseHead.decode, octets)
    assert_every_split_reads_exactly(ResponseHead.decode, octets, head)


def test_octets_right_behind_the_head_stay_where_they_are() -> None:
    stream = Pieces(b"HTTP/1.1 200 OK\r\n\r\n\r\n\r\nSSH-2.0", repeat(1000))
    read_message(stream, ResponseHead.decode)
    assert stream.rest == b"\r\n\r\nSSH-2.0"


@pytest.mark.parametrize(
    "octets",
    [
        b"\x05\x00",
        b"X",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1 \xb2\xb2\xb2 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/1.x 200 OK\r\n\r\n",
        b"HTTP/1.1 200OK\r\n\r\n",
        b"http/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1\r\n\r\nxxxxxx",
    ],
)
def test_what_is_no_head(octets: bytes) -> None:
    with pytest.raises(ProtocolError):
        ResponseHead.decode(octets)


def test_a_head_has_a_bound_which_an_endless_one_meets() -> None:
    class Endless(Pieces):
        def recv(self, size: int, /) -> bytes:
            self.rest = b"a" * size
            return super().recv(size)

    start = b"HTTP/1.1 200 OK\r\nX: "
    with pytest.raises(ProtocolError, match="16384"):
        read_message(Endless(b"", repeat(1000)), ResponseHead.decode, start)
    filler = b"a" * (MAX_HEAD - len(start) - 4)
    assert ResponseHead.decode(start + filler + b"\r\n\r\n").status == 200
    with pytest.raises(ProtocolError):
        ResponseHead.decode(start + filler + b"a\r\n\r\n")


def test_an_end_within_the_head_is_a_truncated_message() -> None:
    with pytest.raises(Truncated):
        read_message(Pieces(b"HTTP/1.1 200 OK\r\n", repeat(9)), ResponseHead.decode)


@given(st.binary(max_size=60).map(lambda octets: b"HTTP/1." + octets) | st.binary(max_size=60))
def test_any_octets_are_a_head_a_beginning_or_an_error(octets: bytes) -> None:
    missing, complaint = 0, ""
    try:
        head = ResponseHead.decode(octets)
    except NeedMore as more:
        missing = more.missing
    except ProtocolError as error:
        complaint = str(error)
    else:
        assert 100 <= head.status <= 999
        assert head.reason.isprintable()
        return
    if complaint:
        assert complaint.isprintable()
        return
    assert missing >= 1
    with pytest.raises((NeedMore, ProtocolError)):
        ResponseHead.decode(octets + b"x" * (missing - 1))
