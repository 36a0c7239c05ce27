"""The guard: what an address really is, which of them a written list opens, what is a name."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geosocks.errors import HostUnreachable
from geosocks.guard import (
    WORDS,
    IPNetwork,
    Names,
    Networks,
    Places,
    canonical_name,
    classify,
    face,
    faces,
    unmapped,
)
from geosocks.wire.socks5 import Address, IPAddress

PUBLIC = (
    "1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 "
    "168.63.129.15 169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 192.0.1.0 192.0.3.0 "
    "192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0 223.255.255.255 "
    "2000:: 2001:200:: 2001:db7:ffff:: 2606:4700::1111 2a00:1450:4001:81b::200e 3ffe::1 "
    "64:ff9b::8.8.8.8 2002:808:808:: 2a00::5efe:8.8.8.8 ::ffff:8.8.8.8"
)

GUARDED = {
    "loopback": (
        "127.0.0.0 127.0.0.1 127.255.255.255 0.0.0.0 ::1 :: "
        # hidden: v4-mapped, v4-compatible, IPv4-translated, NAT64 (two), 6to4, ISATAP
        "::ffff:127.0.0.1 ::ffff:7f00:1 ::127.0.0.1 ::ffff:0:127.0.0.1 64:ff9b::127.0.0.1 "
        "64:ff9b:1::127.0.0.1 2002:7f00:1:: 2a00::5efe:127.0.0.1 2a00::200:5efe:127.0.0.1 "
        "::ffff:0.0.0.0 64:ff9b::0.0.0.0 "
        # Teredo: the client's IPv4 stands inverted
        "2001:0:808:808:0:0:80ff:fffe"
    ),
    "private": (
        "10.0.0.0 10.255.255.255 100.64.0.0 100.127.255.255 172.16.0.0 172.31.255.255 192.168.0.0 "
        "192.168.255.255 fc00:: fdff:ffff::1 fec0:: feff::1 ::ffff:10.1.2.3 64:ff9b::192.168.1.1 "
        "2002:a00:1:: fd00::5efe:8.8.8.8"
    ),
    "linklocal": "169.254.0.0 169.254.255.255 fe80::1 febf::1 fe80::1%eth0 ::ffff:169.254.1.1",
    "metadata": (
        "169.254.169.254 169.254.170.2 169.254.0.23 169.254.42.42 100.100.100.200 168.63.129.16 "
        "192.0.0.192 fd00:ec2::254 fd20:ce::254 fd00:c1::a9fe:a9fe fd00:42::42 fe80::a9fe:a9fe "
        "::ffff:169.254.169.254 ::169.254.169.254 64:ff9b::a9fe:a9fe 2002:a9fe:a9fe:: "
        "2001:0:a9fe:a9fe:0:0:f7f7:f7f7"
    ),
    "multicast": "224.0.0.1 239.255.255.255 ff02::1 ff00:: ::ffff:224.0.0.1",
    "reserved": (
        "0.0.0.1 0.255.255.255 192.0.0.1 192.0.2.1 192.88.99.1 198.18.0.0 198.19.255.255 "
        "198.51.100.1 203.0.113.1 240.0.0.0 255.255.255.255 ::2 ::8.8.8.8 100::1 "
        "64:ff9b:1::8.8.8.8 64:ff9c::1 200::1 4000::1 5f00::1 2001:db8::1 2001:2::1 "
        "2001:1ff:ffff::1 3fff::1 "
        "2001:0:808:808:0:0:f7f7:f7f7 ::ffff:0:8.8.8.8"
    ),
}


@pytest.mark.parametrize("address", PUBLIC.split())
def test_public_addresses_have_no_word(address: str) -> None:
    assert classify(ip_address(address)) is None


@pytest.mark.parametrize(
    ("address", "word"),
    [(address, word) for word, addresses in GUARDED.items() for address in addresses.split()],
)
def test_guarded_addresses_have_their_word(address: str, word: str) -> None:
    assert classify(ip_address(address)) == word


def test_no_word_is_without_a_case() -> None:
    assert set(GUARDED) == set(WORDS)


@given(st.ip_addresses())
def test_every_address_has_a_face_of_its_own_and_words_we_know(address: IPAddress) -> None:
    own, *hidden = faces(address)
    assert own == face(address)
    assert own[:2] == (int(unmapped(address)), unmapped(address).version == 4)
    assert all(is_v4 for _, is_v4, _ in hidden)
    assert all(set(words) <= set(WORDS) for _, _, words in (own, *hidden))


@given(st.ip_addresses(v=4))
def test_each_way_to_hide_an_ipv4_address_is_seen_through(v4: IPv4Address) -> None:
    number = int(v4)
    ways = (
        ip_address("64:ff9b::"),
        ip_address("64:ff9b:1::"),
        ip_address("::ffff:0:0:0"),
        ip_address("2a00::5efe:0:0"),
        ip_address("::ffff:0:0"),
    )
    wrapped = [IPv6Address(int(way) + number) for way in ways]
    wrapped.append(IPv6Address(0x2002 << 112 | number << 80))
    wrapped.append(IPv6Address(0x20010000 << 96 | (number ^ 0xFFFFFFFF)))
    wrapped.append(IPv6Address(0x20010000 << 96 | number << 64))
    for address in wrapped:
        assert face(v4) in faces(address)
        if classify(v4) is not None:
            assert classify(address) is not None


def test_a_mapped_address_has_no_other_face() -> None:
    assert faces(ip_address("::ffff:10.0.0.1")) == faces(ip_address("10.0.0.1"))
    assert unmapped(ip_address("::ffff:10.0.0.1")) == ip_address("10.0.0.1")
    assert unmapped(ip_address("::fffe:10.0.0.1")) == ip_address("::fffe:10.0.0.1")


NAMES = [
    ("example.org", "example.org"),
    ("EXAMPLE.Org.", "example.org"),
    ("localhost", "localhost"),
    ("_sip._tcp.example.org", "_sip._tcp.example.org"),
    ("xn--bcher-kva.example", "xn--bcher-kva.example"),
    ("127.0.0.1.nip.example", "127.0.0.1.nip.example"),
    ("0xfg.0xg", "0xfg.0xg"),
    ("4you", "4you"),
    ("a" * 63 + ".org", "a" * 63 + ".org"),
    (".".join(["a" * 49] * 5) + ".org.", ".".join(["a" * 49] * 5) + ".org"),
]


@pytest.mark.parametrize(("name", "canonical"), NAMES)
def test_host_names_are_written_one_way(name: str, canonical: str) -> None:
    assert canonical_name(name) == canonical
    assert canonical_name(canonical) == canonical


ODD_NAMES = [
    # what inet_aton(3) and browsers take for an address
    *("127.1", "127.0.1", "0", "1", "2130706433", "017700000001", "0177.0.0.1", "0x7f000001"),
    *(
        "0x7f.1",
        "0X7F.0.0.1",
        "127.0.0.0x1",
        "0x",
        "127.0.0.1.",
        "127.0.0.01",
        "127.0.0.256",
        "1.2.3.4.5",
    ),
    *("169.254.43518", "0xa9.254.0251.0376", "2852039166", "example.1", "example.0x1"),
    # IPv6 in disguise
    *("::1", "[::1]", "::1%lo", "fe80::1%eth0", "::ffff:127.0.0.1%1", "0:0:0:0:0:0:0:1."),
    # not letters, digits, hyphens, underscores
    *("", ".", "..", "a..b", ".a", "a.org..", "a b", " a", "a ", "a\n", "\ta", "a\0.org", "a\x7f"),
    *("127.0.0.1\0.example.org", "a/b", "a@b", "a:80", "a%2eb", "*", "*.example.org", "\\", "a,b"),
    # beyond ASCII, as octets and as letters that fold to ASCII
    *(
        "\uff11\uff12\uff17.0.0.1",
        "127\u30020\u30020\u30021",
        "localho\u017ft",
        "\u212aelvin.org",
        "\u24dbocalhost",
        "bücher.example",
    ),
    *("\udcff", "a\udc80.org", "a\u200b.org", "\u2460"),
    # too long
    *("a" * 64, "b." + "a" * 64 + ".org", ".".join(["a" * 50] * 5)),
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_what_is_no_host_name_is_refused_in_plain_ascii(name: str) -> None:
    with pytest.raises(HostUnreachable) as caught:
        canonical_name(name)
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()


@given(st.text())
def test_a_name_is_canonical_or_refused(name: str) -> None:
    try:
        canonical = canonical_name(name)
    except HostUnreachable:
        return
    assert canonical == name.lower().removesuffix(".")
    assert canonical.isascii()
    assert isinstance(Address(canonical, 0).host, str)


def networks(text: str) -> list[IPNetwork]:
    return [ip_network(each) for each in text.split()]


@given(st.lists(st.ip_addresses(), min_size=1), st.integers(0, 128), st.ip_addresses())
def test_networks_hold_what_ipaddress_says(
    bases: list[IPAddress], prefix: int, address: IPAddress
) -> None:
    written = [
        ip_network(f"{base}/{min(prefix, base.max_prefixlen)}", strict=False) for base in bases
    ]
    held = Networks(written)
    for asked in (address, *bases):
        expected = any(asked in net for net in written if net.version == asked.version)
        assert held.hold(int(asked), asked.version == 4) == expected


OPENED = [
    # places, address, without a name, under a covered name
    (Places(public=True), "8.8.8.8", True, True),
    (Places(public=True), "127.0.0.1", False, False),
    (Places(), "8.8.8.8", False, True),
    (Places(), "10.0.0.1", False, False),
    (Places(everywhere=True), "169.254.169.254", True, True),
    (Places(words=["loopback"]), "127.0.0.1", True, True),
    (Places(words=["loopback"]), "0.0.0.0", True, True),
    (Places(words=["loopback"]), "10.0.0.1", False, False),
    (Places(words=["loopback"]), "8.8.8.8", False, True),
    (Places(words=["loopback"]), "::127.0.0.1", False, False),
    (Places(words=["loopback", "reserved"]), "::127.0.0.1", True, True),
    (Places(words=["loopback"]), "64:ff9b::127.0.0.1", False, True),
    (Places(words=["loopback"], public=True), "64:ff9b::127.0.0.1", True, True),
    (Places(words=["linklocal"]), "169.254.1.1", True, True),
    (Places(words=["linklocal"]), "169.254.169.254", False, False),
    (Places(words=["private"]), "fd00:ec2::254", False, False),
    (Places(words=["private"]), "100.100.100.200", False, False),
    (Places(words=["metadata"]), "169.254.169.254", True, True),
    (Places(networks("10.0.0.0/8")), "10.0.0.1", True, True),
    (Places(networks("10.0.0.0/8")), "::ffff:10.0.0.1", True, True),
    (Places(networks("10.0.0.0/8")), "64:ff9b::10.0.0.1", False, True),
    (Places(networks("10.0.0.0/8 64:ff9b::/96")), "64:ff9b::10.0.0.1", True, True),
    (Places(networks("64:ff9b::/96")), "64:ff9b::10.0.0.1", False, False),
    (Places(networks("64:ff9b::/96"), public=True), "64:ff9b::10.0.0.1", False, False),
    (Places(networks("2002::/16")), "2002:7f00:1::", False, False),
    (Places(networks("0.0.0.0/0")), "8.8.8.8", True, True),
    (Places(networks("0.0.0.0/0")), "10.0.0.1", False, False),
    (Places(networks("::/0")), "::1", False, False),
    (Places(networks("169.254.0.0/16")), "169.254.1.1", True, True),
    (Places(networks("169.254.0.0/16")), "169.254.169.254", False, False),
    (Places(networks("169.254.169.0/24")), "169.254.169.254", True, True),
    (Places(networks("fd00::/8")), "fd00:ec2::254", False, False),
    (Places(networks("fd00:ec2::/64")), "fd00:ec2::254", True, True),
]


@pytest.mark.parametrize(("places", "address", "alone", "named"), OPENED)
def test_places_open(places: Places, address: str, alone: bool, named: bool) -> None:
    its = faces(ip_address(address))
    assert places.open(its, named=False) == alone
    assert places.open(its, named=True) == named


MET = [
    (Places(networks("10.0.0.0/8")), "10.0.0.1", True),
    (Places(networks("10.0.0.0/8")), "11.0.0.1", False),
    (Places(networks("10.0.0.0/8")), "64:ff9b::10.0.0.1", True),
    (Places(networks("8.0.0.0/8")), "2002:808:808::", True),
    (Places(networks("64:ff9b::/96")), "64:ff9b::10.0.0.1", True),
    (Places(networks("0.0.0.0/0")), "127.0.0.1", True),
    (Places(networks("0.0.0.0/0")), "2a00::1", False),
    (Places(networks("2001:db8::/32")), "2001:db8::1", True),
    (Places(words=["linklocal"]), "169.254.169.254", True),
    (Places(words=["metadata"]), "169.254.169.254", True),
    (Places(words=["metadata"]), "169.254.1.1", False),
    (Places(words=["private"]), "fd00:ec2::254", True),
    (Places(words=["loopback"]), "::127.0.0.1", True),
    (Places(words=["reserved"]), "::127.0.0.1", True),
]


@pytest.mark.parametrize(("places", "address", "met"), MET)
def test_places_meet(places: Places, address: str, met: bool) -> None:
    assert places.meet(faces(ip_address(address))) == met


def test_places_and_names_are_false_when_nothing_is_written() -> None:
    assert not any([Places(), Names()])
    assert all([Places(public=True), Places(everywhere=True), Places(words=["private"])])
    assert all([Places(networks("::/0")), Names(["a"]), Names(parents=["a"])])


def test_names_cover_themselves_and_what_is_below_parents() -> None:
    names = Names(["www.example.org"], ["example.com"])
    assert "www.example.org" in names
    assert "a.www.example.org" not in names
    assert "example.com" not in names
    assert "a.example.com" in names
    assert "b.a.example.com" in names
    assert "badexample.com" not in names
    assert "com" not in names
