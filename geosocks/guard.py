"""What an address really is, and which of them nobody reaches by accident.

``any``, a name and a rule without ``to`` stand for the public internet.  Everything else is
*guarded*: a rule opens it only by writing its network, the word for it, or ``everywhere``.

==========  =====================================================================================
loopback    this host: 127.0.0.0/8, ::1, and 0.0.0.0 and ::, which connect(2) takes for the same
private     RFC 1918, RFC 6598 (carrier NAT), RFC 4193 (unique local), fec0::/10
linklocal   169.254.0.0/16, fe80::/10
metadata    where clouds hand out credentials: 169.254.169.254 and its like
multicast   224.0.0.0/4, ff00::/8
reserved    what else is not global unicast; of IPv6 all outside 2000::/3
==========  =====================================================================================

An IPv6 address may carry an IPv4 address for a translator or a tunnel to unpack.  Such an address
has several *faces*, itself and what it carries: an allow must open each of them, a deny need meet
only one.  A v4-mapped address (::ffff:0:0/96) has no face but the IPv4 one.

The table is our own: ``ipaddress.is_private`` and ``is_global`` differ between patch releases
(CVE-2024-4032) and do not look inside.  Knows neither
rules nor sockets.
"""

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final

from geosocks.errors import HostUnreachable
from geosocks.wire.socks5 import IPAddress

IPNetwork = IPv4Network | IPv6Network

Face = tuple[int, bool, tuple[str, ...]]
"""A number, whether it is an IPv4 address, and its words: none for a public one.

The first word is the one that opens it; the others are wider ranges that it also lies in.
"""

METADATA: Final = "metadata"
WORDS: Final = ("loopback", "private", "linklocal", METADATA, "multicast", "reserved")

METADATA_PREFIX: Final = (64, 24)
"""Shortest prefix, of IPv6 and of IPv4, of a written network that opens a metadata address."""

# Narrowest first wins.  No word: public.
_V4_ROWS: Final = (
    ("0.0.0.0/32", "loopback"),
    ("0.0.0.0/8", "reserved"),
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "private"),
    ("100.100.100.200/32", "metadata private"),  # Alibaba Cloud
    ("127.0.0.0/8", "loopback"),
    ("168.63.129.16/32", "metadata"),  # Azure's wire server
    ("169.254.0.0/16", "linklocal"),
    ("169.254.0.23/32", "metadata linklocal"),  # Tencent Cloud
    ("169.254.42.42/32", "metadata linklocal"),  # Scaleway
    ("169.254.169.0/24", "metadata linklocal"),  # .254: most clouds; .253, .123: AWS
    ("169.254.170.0/24", "metadata linklocal"),  # .2, .23: AWS containers
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "reserved"),
    ("192.0.0.192/32", "metadata reserved"),  # Oracle Cloud, the older one
    ("192.0.2.0/24", "reserved"),  # documentation, as the two below
    ("192.88.99.0/24", "reserved"),  # 6to4 relays (RFC 7526)
    ("192.168.0.0/16", "private"),
    ("198.18.0.0/15", "reserved"),  # benchmarks
    ("198.51.100.0/24", "reserved"),
    ("203.0.113.0/24", "reserved"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved"),
    ("0.0.0.0/0", ""),
)
_V6_ROWS: Final = (
    ("::/128", "loopback"),
    ("::1/128", "loopback"),
    ("64:ff9b::/96", ""),  # NAT64 (RFC 6052): as good as the IPv4 inside
    ("2000::/3", ""),
    ("2001::/23", "reserved"),  # IETF protocols; Teredo is 2001::/32
    ("2001:db8::/32", "reserved"),  # documentation
    ("3fff::/20", "reserved"),  # documentation
    ("fc00::/7", "private"),
    ("fd00:42::42/128", "metadata private"),  # Scaleway
    ("fd00:c1::a9fe:a9fe/128", "metadata private"),  # Oracle Cloud
    ("fd00:ec2::/64", "metadata private"),  # AWS: ::254, ::253, ::23
    ("fd20:ce::254/128", "metadata private"),  # Google Cloud
    ("fe80::/10", "linklocal"),
    ("fe80::a9fe:a9fe/128", "metadata linklocal"),  # OpenStack
    ("fec0::/10", "private"),
    ("ff00::/8", "multicast"),
    ("::/0", "reserved"),
)

_Row = tuple[int, int, tuple[str, ...]]


def _by_first_octet(rows: Iterable[tuple[str, str]]) -> tuple[tuple[_Row, ...], ...]:
    """Sort rows into 256 short lists of (mask, value, words), the narrowest first."""
    table: list[list[_Row]] = [[] for _ in range(256)]
    for network, words in sorted(
        ((ip_network(text), tuple(words.split())) for text, words in rows),
        key=lambda row: -row[0].prefixlen,
    ):
        shift = network.max_prefixlen - 8
        value = int(network.network_address)
        for octet in range(value >> shift, (int(network.broadcast_address) >> shift) + 1):
            table[octet].append((int(network.netmask), value, words))
    return tuple(map(tuple, table))


_V4_TABLE: Final = _by_first_octet(_V4_ROWS)
_V6_TABLE: Final = _by_first_octet(_V6_ROWS)


def _face_v4(number: int) -> Face:
    for mask, value, words in _V4_TABLE[number >> 24]:
        if number & mask == value:
            return number, True, words
    raise AssertionError("the table ends in 0.0.0.0/0")


def _face_v6(number: int) -> Face:
    for mask, value, words in _V6_TABLE[number >> 120]:
        if number & mask == value:
            return number, False, words
    raise AssertionError("the table ends in ::/0")


def face(address: IPAddress) -> Face:
    """Tell what ``address`` is in itself, a v4-mapped one as its IPv4."""
    number = int(address)
    if isinstance(address, IPv4Address):
        return _face_v4(number)
    return _face_v4(number & 0xFFFFFFFF) if number >> 32 == 0xFFFF else _face_v6(number)


def faces(address: IPAddress) -> tuple[Face, ...]:
    """Tell what ``address`` is: itself first, then every IPv4 address hidden inside it."""
    own = face(address)
    if own[1]:
        return (own,)
    return (own, *map(_face_v4, _embedded(own[0])))


def _embedded(number: int) -> tuple[int, ...]:
    low = number & 0xFFFFFFFF
    match number >> 112:
        case 0x2002:  # 6to4 (RFC 3056)
            return (number >> 80 & 0xFFFFFFFF,)
        case 0x2001 if number >> 96 == 0x20010000:  # Teredo (RFC 4380): its server, its client
            return (number >> 64 & 0xFFFFFFFF, low ^ 0xFFFFFFFF)
        # NAT64, well-known (RFC 6052) and local-use (RFC 8215)
        case 0x0064 if number >> 32 == 0x64FF9B << 64 or number >> 80 == 0x64FF9B0001:
            return (low,)
        # v4-compatible (RFC 4291), but not :: and ::1; IPv4-translated (RFC 2765)
        case 0 if (number > 1 and number >> 32 == 0) or number >> 32 == 0xFFFF0000:
            return (low,)
    # ISATAP (RFC 5214) under any prefix; the bits u and g may be set.
    return (low,) if number >> 32 & 0xFCFFFFFF == 0x5EFE else ()


def classify(address: IPAddress) -> str | None:
    """Name the guard that ``address`` stands behind; None for a public one.

    Of an address with several faces it is what the hidden one says, if that is guarded.
    """
    for _, _, words in reversed(faces(address)):
        if words:
            return words[0]
    return None


def unmapped(address: IPAddress) -> IPAddress:
    """Turn a v4-mapped address into the IPv4 address that it is."""
    if isinstance(address, IPv6Address) and int(address) >> 32 == 0xFFFF:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


_HOST_NAME = re.compile(r"(?!.{254})(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}")
_ENDS_IN_A_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0[xX][0-9A-Fa-f]*)")


def canonical_name(name: str) -> str:
    """Write a host name the one way that rules compare: lower case, no dot at the end.

    Letters, digits, hyphen and underscore; labels of 1 to 63 octets, 253 in all (RFC 1123,
    section 2.1; the underscore is for names such as SRV owners).  A last label that is a number
    is somebody's spelling of an address (127.1, 0x7f.1), which no resolver of ours may ever see.

    Raises:
        HostUnreachable: anything else, zone ids, NUL and octets beyond ASCII among it.
    """
    bare = name.removesuffix(".")
    if not _HOST_NAME.fullmatch(bare):
        raise HostUnreachable(f"{name!a} is not a host name")
    if _ENDS_IN_A_NUMBER.fullmatch(bare):
        raise HostUnreachable(f"{name!a} is not a host name, but an odd address")
    return bare.lower()


class Networks:
    """A set of networks; the time grows with the prefix lengths in use, not with their number."""

    __slots__ = ("_v4", "_v6")

    def __init__(self, networks: Iterable[IPNetwork]) -> None:
        found: tuple[dict[int, set[int]], dict[int, set[int]]] = ({}, {})
        for network in networks:
            by_mask = found[network.version == 4]
            by_mask.setdefault(int(network.netmask), set()).add(int(network.network_address))
        self._v6, self._v4 = (tuple(by_mask.items()) for by_mask in found)

    def __bool__(self) -> bool:
        return bool(self._v4 or self._v6)

    def hold(self, number: int, is_v4: bool) -> bool:
        """True when the address of that number lies in one of them."""
        # A loop: a generator for any() costs three times as much, and this is every session's way.
        for mask, values in self._v4 if is_v4 else self._v6:  # noqa: SIM110
            if number & mask in values:
                return True
        return False


class Places:
    """The networks and words written after ``from`` or ``to``; false when there are none."""

    __slots__ = ("_all", "_metadata", "_opening", "_words", "everywhere", "public")

    def __init__(
        self,
        networks: Iterable[IPNetwork] = (),
        words: Iterable[str] = (),
        public: bool = False,
        everywhere: bool = False,
    ) -> None:
        """Make a list; ``public`` is the word ``any``, ``words`` are of WORDS."""
        written = tuple(networks)
        self.public = public
        self.everywhere = everywhere
        self._words = frozenset(words)
        self._all = Networks(written)
        # 0.0.0.0/0 and ::/0 are how other programs write "any": they open nothing guarded.
        self._opening = Networks(net for net in written if net.prefixlen)
        self._metadata = Networks(
            net for net in written if net.prefixlen >= METADATA_PREFIX[net.version == 4]
        )

    def __bool__(self) -> bool:
        return bool(self.public or self.everywhere or self._words or self._all)

    def meet(self, its_faces: tuple[Face, ...]) -> bool:
        """True when a network or a word covers one of an address's faces, guarded or not.

        ``any`` and ``everywhere`` are the caller's matter.
        """
        for number, is_v4, words in its_faces:
            if self._all.hold(number, is_v4) or not self._words.isdisjoint(words):
                return True
        return False

    def open(self, its_faces: tuple[Face, ...], named: bool) -> bool:
        """True when an allow with this list covers every one of an address's faces.

        ``named``: the address was found under a name that the rule covers, which is enough for a
        public face.
        """
        if self.everywhere:
            return True
        for number, is_v4, words in its_faces:
            if not words:
                opened = named or self.public or self._all.hold(number, is_v4)
            elif words[0] in self._words:
                opened = True
            else:
                networks = self._metadata if words[0] == METADATA else self._opening
                opened = networks.hold(number, is_v4)
            if not opened:
                return False
        return True


class Names:
    """The names and suffixes written after ``to``; the time does not grow with their number."""

    __slots__ = ("_exact", "_parents")

    def __init__(self, exact: Iterable[str] = (), parents: Iterable[str] = ()) -> None:
        """Make a list of canonical names: ``exact`` ones, and ``parents`` of what they cover."""
        self._exact = frozenset(exact)
        self._parents = frozenset(parents)

    def __bool__(self) -> bool:
        return bool(self._exact or self._parents)

    def __contains__(self, name: str) -> bool:
        if name in self._exact:
            return True
        if self._parents:
            while name := name.partition(".")[2]:
                if name in self._parents:
                    return True
        return False
