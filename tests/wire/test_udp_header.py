"""The UDP request header, octet by octet (RFC 1928, section 7)."""

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geosocks.errors import ProtocolError
from geosocks.wire.socks5 import (
    MAX_DATAGRAM,
    MAX_UDP_HEADER,
    Address,
    Datagram,
    udp_header_size,
)

QUICK = settings(max_examples=200, deadline=None)
NAMES = st.binary(min_size=1, max_size=255).map(lambda o: o.decode("ascii", "surrogateescape"))
HOSTS = (
    st.integers(0, 2**32 - 1).map(IPv4Address) | st.integers(0, 2**128 - 1).map(IPv6Address) | NAMES
)
ADDRESSES = st.builds(Address, HOSTS, st.integers(0, 0xFFFF))
DATAGRAMS = st.builds(Datagram, ADDRESSES, st.binary(max_size=300), st.integers(0, 255))

V6 = "20010db8000000000000000000000001"


@pytest.mark.parametrize(
    ("octets", "datagram"),
    [
        pytest.param(
            "0000 00 01 c0000201 0035 6162", Datagram(Address("192.0.2.1", 53), b"ab"), id="ipv4"
        ),
        pytest.param(
            f"0000 00 04 {V6} 0035 6162", Datagram(Address("2001:db8::1", 53), b"ab"), id="ipv6"
        ),
        pytest.param(
            "0000 00 03 03 6e7374 0035 6162", Datagram(Address("nst", 53), b"ab"), id="name"
        ),
        pytest.param(
            "0000 00 03 01 2e 0035", Datagram(Address(".", 53), b""), id="shortest-and-no-data"
        ),
        pytest.param(
            "0000 01 01 c0000201 0035 61", Datagram(Address("192.0.2.1", 53), b"a", 1), id="first"
        ),
        pytest.param(
            "0000 ff 01 c0000201 0035", Datagram(Address("192.0.2.1", 53), b"", 0xFF), id="last"
        ),
        pytest.param(
            f"0000 00 03 ff {'78' * 255} ffff 00",
            Datagram(Address("x" * 255, 0xFFFF), b"\0"),
            id="longest-name",
        ),
    ],
)
def test_datagram(octets: str, datagram: Datagram) -> None:
    data = bytes.fromhex(octets)
    assert Datagram.decode(data) == datagram
    assert datagram.encode() == data
    size = len(data) - len(datagram.data)
    assert udp_header_size(data) == size <= MAX_UDP_HEADER
    for cut in range(size):
        with pytest.raises(ProtocolError):
            Datagram.decode(data[:cut])
        with pytest.raises(ProtocolError):
            udp_header_size(data[:cut])


def test_an_address_written_as_a_name_is_an_address() -> None:
    octets = b"\0\0\0\3\x09192.0.2.1\0\x35"
    assert Datagram.decode(octets).destination == Address("192.0.2.1", 53)


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        ("", "0 octets that begin no"),
        ("0000 00 01 c000", "6 octets that begin no"),
        ("0001 00 01 c0000201 0035 61", "begin no UDP request header"),
        ("0100 00 01 c0000201 0035 61", "begin no UDP request header"),
        ("0503 00 01 c0000201 0035 61", "begin no UDP request header"),
        ("0000 00 00 c0000201 0035 61", "ATYP 0x00"),
        ("0000 00 02 c0000201 0035 61", "ATYP 0x02"),
        ("0000 00 ff c0000201 0035 61", "ATYP 0xff"),
        ("0000 00 03 00 0035 6161", "name of no octets"),
        ("0000 00 03 ff 6161 0035 6161", "cut after 11 of 262 octets"),
        ("0000 00 04 c0000201 0035 61", "cut after 11 of 22 octets"),
    ],
)
def test_what_is_no_datagram_is_told_from_one_that_is(octets: str, why: str) -> None:
    for read in (udp_header_size, Datagram.decode):
        with pytest.raises(ProtocolError, match=why):
            read(bytes.fromhex(octets))


def test_the_longest_data_that_fits() -> None:
    data = bytes(65_497)
    datagram = Datagram(Address("192.0.2.1", 53), data)
    assert len(datagram.encode()) == MAX_DATAGRAM
    assert Datagram.decode(datagram.encode()).data == data


@pytest.mark.parametrize("host", ["", "x" * 256])
def test_a_name_that_does_not_fit_is_refused_and_not_cut(host: str) -> None:
    with pytest.raises(ValueError, match="DOMAINNAME holds 1 to 255"):
        Datagram(Address(host, 53), b"").encode()


@given(DATAGRAMS)
@QUICK
def test_what_is_encoded_is_decoded(datagram: Datagram) -> None:
    octets = datagram.encode()
    assert Datagram.decode(octets) == datagram
    assert octets[udp_header_size(octets) :] == datagram.data


@given(st.binary(max_size=400) | st.binary(max_size=300).map(lambda o: b"\0\0\0" + o))
@QUICK
def test_garbage_is_read_or_refused(octets: bytes) -> None:
    try:
        size = udp_header_size(octets)
    except ProtocolError:
        with pytest.raises(ProtocolError):
            Datagram.decode(octets)
    else:
        datagram = Datagram.decode(octets)
        assert datagram.data == octets[size:]
        # An address may have come as a name, and goes as an address.
        assert Datagram.decode(datagram.encode()) == datagram
