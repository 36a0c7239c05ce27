"""Hosts and ports: ATYP, DST.ADDR and DST.PORT, or BND (RFC 1928, section 5)."""

from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final, Self

from geosocks.codes import Atyp
from geosocks.errors import AddressTypeNotSupported, ProtocolError
from geosocks.wire import need

IPAddress = IPv4Address | IPv6Address
_V6: Final = IPv6Address  # as Final it needs no look-up by name


def literal(name: str) -> IPAddress | None:
    """Read a strict IP address literal; None for anything else, odd spellings included."""
    try:
        if ":" in name:
            # A scope, "::1%lo", is any text at all, and would not compare equal to the address.
            return None if "%" in name else IPv6Address(name)
        # A host name's last label is never all digits, so only such names are worth a try.
        return IPv4Address(name) if name[-1:].isdecimal() else None
    except (AddressValueError, ValueError):
        return None


class Host:
    """One host in each of the forms that it is needed in.  Never changed."""

    __slots__ = ("address", "before_port", "octets", "spelling")

    def __init__(self, address: IPAddress | str) -> None:
        self.address: Final = address
        """An IP address, or a name that somebody still has to resolve."""

        self.spelling: Final = str(address)
        self.before_port: Final = f"[{self.spelling}]:" if type(address) is _V6 else f"{address}:"
        """What stands before the port in text, for all that come from here or go there."""

        self.octets: Final = b"" if isinstance(address, str) else _octets(address)
        """ATYP and ADDR, but for a name."""


def _octets(address: IPAddress) -> bytes:
    return (b"\x01" if isinstance(address, IPv4Address) else b"\x04") + address.packed


HOSTS: Final = 4096
"""That are known from their sockets' names."""

_hosts: Final[dict[str, Host]] = {}


def host_of(text: str) -> Host:
    """The host of a socket's name; an IPv4 peer of a dual-stack socket as IPv4.

    Reading an address costs more than all else here; few hosts have many sessions.
    """
    host = _hosts.get(text)
    if host is None:
        host = _read_host(text)
        if len(_hosts) >= HOSTS:
            _hosts.clear()
        _hosts[text] = host
    return host


def _read_host(text: str) -> Host:
    if ":" not in text:
        return Host(IPv4Address(text))
    address = IPv6Address(text.partition("%")[0])
    return Host(address.ipv4_mapped or address)


class Address:
    """A host, as an IP address or a name, and a port: DST or BND of RFC 1928.  Never changed.

    A name that spells an IP address becomes one, whoever made the Address: clients commonly send
    "192.0.2.7" as a DOMAINNAME, and a rule must see the address.  Octets of a name beyond ASCII
    are kept as ``surrogateescape`` keeps them, so that no name is lost or changed.

    Whoever has the host in all its forms (``host_of``) gives it as that.
    """

    __slots__ = ("_text", "forms", "host", "port")

    def __init__(self, host: IPAddress | str | Host, port: int) -> None:
        if isinstance(host, Host):
            forms = host
        else:
            forms = Host((literal(host) or host) if isinstance(host, str) else host)
        if not 0 <= port <= 0xFFFF:
            raise ValueError(f"port {port} is not within 0 to 65535")
        self.forms: Final = forms
        self.host: Final = forms.address
        self.port: Final = port
        self._text = ""

    @property
    def text(self) -> str:
        """Host and port as text."""
        if not self._text:  # that of a BND is never asked for
            self._text = self.forms.before_port + str(self.port)
        return self._text

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Address(host={self.host!r}, port={self.port})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Address):
            return NotImplemented
        return self.port == other.port and self.host == other.host

    def __hash__(self) -> int:
        return hash(self.text)

    def __reduce__(self) -> tuple[type["Address"], tuple[IPAddress | str, int]]:
        """How it is copied and pickled, compiled or not."""
        return Address, (self.host, self.port)

    @property
    def is_name(self) -> bool:
        """True when somebody still has to resolve it."""
        return isinstance(self.host, str)

    @classmethod
    def decode(cls, data: bytes, start: int) -> Self:
        """Read ATYP, ADDR and PORT from ``data[start:]`` (RFC 1928, section 5).

        Raises:
            NeedMore: a good beginning.
            AddressTypeNotSupported: ATYP is none of X'01', X'03', X'04'; how long the address is,
                nobody knows.
            ProtocolError: a name of no octets.
        """
        need(data, start + 1)
        atyp = data[start]
        if atyp == Atyp.IPV4:
            end = start + 5
            # One octet further on lies the port: ask for all of it at once.
            need(data, end + 2)
            host: IPAddress | str = IPv4Address(data[start + 1 : end])
        elif atyp == Atyp.DOMAINNAME:
            need(data, start + 2)
            if not data[start + 1]:
                raise ProtocolError("DOMAINNAME of no octets")
            end = start + 2 + data[start + 1]
            need(data, end + 2)
            host = data[start + 2 : end].decode("ascii", "surrogateescape")
        elif atyp == Atyp.IPV6:
            end = start + 17
            need(data, end + 2)
            host = IPv6Address(data[start + 1 : end])
        else:
            raise AddressTypeNotSupported(f"ATYP {atyp:#04x} is not known")
        return cls(host, data[end] << 8 | data[end + 1])

    def encode(self) -> bytes:
        """ATYP, ADDR and PORT.

        Raises:
            ValueError: a name of no octets, or of more than 255.
        """
        octets = self.forms.octets
        if not octets:
            name = str(self.host).encode("ascii", "surrogateescape")
            if not 1 <= len(name) <= 255:
                raise ValueError(f"a name of {len(name)} octets; DOMAINNAME holds 1 to 255")
            octets = bytes((Atyp.DOMAINNAME, len(name))) + name
        return octets + self.port.to_bytes(2, "big")
