"""RFC 1928 messages, octet by octet."""

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from geosocks.errors import AddressTypeNotSupported, ProtocolError
from geosocks.stream import read_message
from geosocks.wire import NeedMore
from geosocks.wire.address import literal
from geosocks.wire.socks5 import (
    UNSPECIFIED,
    Address,
    MethodChoice,
    MethodOffer,
    Reply,
    Request,
)
from tests.support.octets import (
    TRAILING,
    Pieces,
    assert_bears_garbage,
    assert_every_cut_needs_more,
    assert_is_message,
    assert_reads_exactly,
)

Decode = Callable[[bytes], object]

QUICK = settings(max_examples=200, deadline=None)
DECODERS = pytest.mark.parametrize(
    "decode", [MethodOffer.decode, MethodChoice.decode, Request.decode, Reply.decode]
)

OCTET = st.integers(0, 255)
SIZES = st.lists(st.integers(1, 300), max_size=20)
NAMES = st.binary(min_size=1, max_size=255).map(lambda o: o.decode("ascii", "surrogateescape"))
HOSTS = (
    st.integers(0, 2**32 - 1).map(IPv4Address) | st.integers(0, 2**128 - 1).map(IPv6Address) | NAMES
)
ADDRESSES = st.builds(Address, HOSTS, st.integers(0, 0xFFFF))
MESSAGES = (
    st.builds(MethodOffer, st.binary(max_size=255))
    | st.builds(MethodChoice, OCTET)
    | st.builds(Request, OCTET, ADDRESSES)
    | st.builds(Reply, OCTET, ADDRESSES)
)

# --- section 3


@pytest.mark.parametrize(
    ("octets", "offer"),
    [
        pytest.param("05 01 00", MethodOffer(b"\x00"), id="no-auth"),
        pytest.param("05 02 02 80", MethodOffer(b"\x02\x80"), id="with-a-private-method"),
        pytest.param("05 03 00 01 02", MethodOffer(b"\x00\x01\x02"), id="as-curl"),
        pytest.param("05 04 00 00 ff ff", MethodOffer(b"\x00\x00\xff\xff"), id="twice-and-ff"),
        pytest.param("05 00", MethodOffer(b""), id="none"),
        pytest.param("05 ff" + "02" * 255, MethodOffer(b"\x02" * 255), id="all-of-255"),
        pytest.param("05 80" + "02" * 128, MethodOffer(b"\x02" * 128), id="of-128"),
    ],
)
def test_offer(octets: str, offer: MethodOffer) -> None:
    assert_is_message(MethodOffer.decode, bytes.fromhex(octets), offer)


@pytest.mark.parametrize("method", [0, 1, 2, 3, 0x80, 0xFE, 0xFF])
def test_choice(method: int) -> None:
    assert_is_message(MethodChoice.decode, bytes((5, method)), MethodChoice(method))


def test_an_offer_of_too_many_is_refused_and_not_cut() -> None:
    with pytest.raises(ValueError, match="range"):
        MethodOffer(bytes(256)).encode()


# --- sections 4 to 6

NAME = "0b 6578616d706c652e6f7267"
V6 = "20010db8 00000000 00000000 00000001"

REQUESTS = [
    pytest.param("05 01 00 01 c0000207 0050", 1, Address(IPv4Address("192.0.2.7"), 80), id="v4"),
    pytest.param(
        "05 02 00 04" + V6 + "01bb", 2, Address(IPv6Address("2001:db8::1"), 443), id="bind-v6"
    ),
    pytest.param("05 01 00 03" + NAME + "0050", 1, Address("example.org", 80), id="name"),
    pytest.param("05 03 00 01 00000000 0000", 3, UNSPECIFIED, id="udp-from-anywhere"),
    pytest.param("05 01 00 03 01 61 ffff", 1, Address("a", 65535), id="shortest-name"),
    pytest.param("05 7f 00 03 01 61 0001", 0x7F, Address("a", 1), id="a-cmd-nobody-knows"),
    pytest.param("05 01 00 03 03 61ff62 0050", 1, Address("a\udcffb", 80), id="name-beyond-ascii"),
    pytest.param("05 01 00 03 03 610062 0050", 1, Address("a\0b", 80), id="name-with-nul"),
]

REPLIES = [
    pytest.param("05 00 00 01 00000000 0000", Reply(0), id="succeeded-from-nowhere"),
    pytest.param(
        "05 00 00 01 c0000207 c350", Reply(0, Address("192.0.2.7", 50000)), id="succeeded"
    ),
    pytest.param("05 05 00 04" + V6 + "0000", Reply(5, Address("2001:db8::1", 0)), id="refused-v6"),
    pytest.param("05 00 00 03" + NAME + "0050", Reply(0, Address("example.org", 80)), id="name"),
    pytest.param("05 ff 00 01 00000000 0000", Reply(0xFF), id="a-rep-nobody-knows"),
]


@pytest.mark.parametrize(("octets", "cmd", "destination"), REQUESTS)
def test_request(octets: str, cmd: int, destination: Address) -> None:
    assert_is_message(Request.decode, bytes.fromhex(octets), Request(cmd, destination))


@pytest.mark.parametrize(("octets", "reply"), REPLIES)
def test_reply(octets: str, reply: Reply) -> None:
    assert_is_message(Reply.decode, bytes.fromhex(octets), reply)


@pytest.mark.parametrize("size", [1, 127, 128, 253, 254, 255])
def test_names_about_the_sign_and_the_end(size: int) -> None:
    data = bytes((5, 1, 0, 3, size)) + b"n" * size + b"\x01\xbb"
    to = Address("n" * size, 443)
    assert_is_message(Request.decode, data, Request(1, to))
    assert_is_message(Reply.decode, data, Reply(1, to))
    with pytest.raises(NeedMore) as caught:
        Request.decode(data[:5])
    assert caught.value.missing == size + 2


@pytest.mark.parametrize("name", ["", "n" * 256, "n" * 511, "n" * 65536])
def test_a_name_that_does_not_fit_is_refused_and_not_cut(name: str) -> None:
    with pytest.raises(ValueError, match="DOMAINNAME holds 1 to 255"):
        Request(1, Address(name, 80)).encode()


def test_a_name_that_is_no_octets_is_refused() -> None:
    with pytest.raises(ValueError, match="ascii"):
        Address("z\u00fcrich.example", 80).encode()


@pytest.mark.parametrize("decode", [Request.decode, Reply.decode])
def test_a_name_of_no_octets_is_refused_at_its_length(decode: Decode) -> None:
    for rest in (b"", b"\x00\x50"):
        with pytest.raises(ProtocolError, match="DOMAINNAME of no octets"):
            decode(b"\x05\x01\x00\x03\x00" + rest)


@pytest.mark.parametrize("atyp", [0, 2, 5, 0x80, 0xFF])
def test_an_unknown_atyp_is_refused_at_its_octet(atyp: int) -> None:
    data = bytes((5, 1, 0, atyp))
    stream = Pieces(data + TRAILING)
    with pytest.raises(AddressTypeNotSupported, match=f"ATYP {atyp:#04x} is not known"):
        read_message(stream, Request.decode)
    assert stream.rest == TRAILING
    assert_every_cut_needs_more(Request.decode, data)
    # To a client it is no refusal that a server could send on.
    with pytest.raises(ProtocolError, match=f"reply with ATYP {atyp:#04x}"):
        Reply.decode(data)


@DECODERS
@pytest.mark.parametrize("version", [0, 1, 4, 6, 0x47, 0x85, 0xFF])
def test_another_version_is_refused_at_its_octet(decode: Decode, version: int) -> None:
    for rest in (b"", b"\x01", b"\x01\x00\x01"):
        with pytest.raises(ProtocolError, match=f"VER is {version:#04x}, expected 0x05"):
            decode(bytes((version,)) + rest)


@pytest.mark.parametrize("rsv", [1, 0x80, 0xFF])
def test_rsv_is_not_looked_at_and_sent_as_0(rsv: int) -> None:
    data = bytes((5, 1, rsv, 1, 192, 0, 2, 7, 0, 80))
    assert Request.decode(data).encode() == data[:2] + b"\0" + data[3:]
    assert Reply.decode(data).encode() == data[:2] + b"\0" + data[3:]


def test_a_reply_needs_4_octets_then_the_rest() -> None:
    asked = []

    def noting(data: bytes) -> Reply:
        try:
            return Reply.decode(data)
        except NeedMore as more:
            asked.append(more.missing)
            raise

    data = bytes.fromhex("05 00 00 01 c0000207 c350")
    read_message(Pieces(data, (4, 6)), noting)
    assert asked == [4, 6]


# --- addresses


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("192.0.2.7", IPv4Address("192.0.2.7")),
        ("0.0.0.0", IPv4Address(0)),
        ("2001:DB8:0::1", IPv6Address("2001:db8::1")),
        ("::", IPv6Address(0)),
        ("::ffff:127.0.0.1", IPv6Address("::ffff:127.0.0.1")),
    ],
)
def test_a_name_that_spells_an_address_is_one(name: str, host: object) -> None:
    octets = name.encode()
    data = bytes((5, 1, 0, 3, len(octets))) + octets + b"\x00\x50"
    destination = Request.decode(data).destination
    assert destination == Address(name, 80)
    assert destination.host == host
    assert not destination.is_name


@pytest.mark.parametrize(
    "name",
    [
        "127.1",
        "2130706433",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "127.0.0.01",
        "127.0.0.1.",
        "127.0.0.1 ",
        " 127.0.0.1",
        "127.0.0.1\0",
        "127.0.0.256",
        "127.0.0.1/8",
        "\uff11\uff12\uff17.0.0.1",
        "[::1]",
        "::1%lo",
        "::1%",
        "fe80::1%\udcff",
        "::1/128",
        ":",
        ":::",
        "1:2",
        "12345::",
        "",
        "1",
        "a",
    ],
)
def test_an_odd_spelling_stays_a_name(name: str) -> None:
    assert literal(name) is None
    assert Address(name, 80).is_name
    assert Address(name, 80).host == name


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_is_of_16_bits(port: int) -> None:
    with pytest.raises(ValueError, match="not within 0 to 65535"):
        Address("a", port)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (Address("192.0.2.7", 80), "192.0.2.7:80"),
        (Address("2001:db8::1", 443), "[2001:db8::1]:443"),
        (Address("example.org", 0), "example.org:0"),
    ],
)
def test_an_address_as_people_write_it(address: Address, text: str) -> None:
    assert str(address) == text


# --- anything


@QUICK
@given(MESSAGES, SIZES)
def test_any_message_survives_any_pieces(
    message: MethodOffer | MethodChoice | Request | Reply, sizes: list[int]
) -> None:
    data = message.encode()
    assert type(message).decode(data) == message
    assert_reads_exactly(type(message).decode, data, message, sizes)


@QUICK
@given(MESSAGES)
def test_any_message_cut_anywhere_needs_more(
    message: MethodOffer | MethodChoice | Request | Reply,
) -> None:
    assert_every_cut_needs_more(type(message).decode, message.encode())


@QUICK
@given(st.binary(min_size=1, max_size=255), st.integers(0, 0xFFFF))
def test_any_octets_of_a_name_come_back(octets: bytes, port: int) -> None:
    wire = bytes((3, len(octets))) + octets + port.to_bytes(2)
    address = Address.decode(wire, 0)
    assume(address.is_name)
    assert address.encode() == wire


@DECODERS
@QUICK
@given(st.binary(max_size=600))
def test_garbage_is_borne(decode: Decode, data: bytes) -> None:
    for start in (b"", b"\x05", b"\x05\x01\x00", b"\x05\x01\x00\x03", b"\x05\x00\x00\x04"):
        assert_bears_garbage(decode, start + data)


@QUICK
@given(st.text("0123456789abcdefx.:%/[] \udcff", min_size=1, max_size=40))
def test_what_looks_like_an_address_is_borne(name: str) -> None:
    octets = name.encode("ascii", "surrogateescape")
    assert_bears_garbage(Request.decode, bytes((5, 1, 0, 3, len(octets))) + octets + b"\x00\x50")
