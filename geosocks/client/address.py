"""Addresses that a client sends, is told, and sees."""

from ipaddress import ip_address
from typing import Any, Final

from geosocks.guard import classify, unmapped
from geosocks.wire.socks5 import Address, IPAddress

SockAddr = tuple[Any, ...]

_NARROW: Final = {"private": 1, "linklocal": 2, "metadata": 2, "loopback": 3, "multicast": 4}
"""How few hosts an address of that kind can be reached from; any other is public: 0."""


def destination(to: Address | tuple[str, int]) -> Address:
    """Make an Address that can be sent: a name beyond ASCII in its IDNA form.

    Raises:
        ValueError: no DOMAINNAME can hold it.
    """
    address = to if isinstance(to, Address) else Address(*to)
    if isinstance(address.host, str) and not address.host.isascii():
        address = Address(address.host.encode("idna").decode("ascii"), address.port)
    address.encode()
    return address


def address_of(sockaddr: SockAddr) -> Address:
    """What a socket's name says, without a scope; a v4-mapped address is the IPv4 one."""
    host: IPAddress = ip_address(sockaddr[0].partition("%")[0])
    return Address(unmapped(host), sockaddr[1])


def is_unspecified(address: Address) -> bool:
    """True for 0.0.0.0 and ::, which a server tells that does not know its own address."""
    return not isinstance(address.host, str) and unmapped(address.host).is_unspecified


def is_reachable(told: Address, server: Address) -> bool:
    """True when who reaches ``server`` may reach ``told`` as well, for all that one can see.

    A server behind a NAT tells of its inside, and a careless one of 0.0.0.0 or loopback, which is
    the client's own host to the client.
    """
    if isinstance(told.host, str) or is_unspecified(told):
        return False
    return _narrowness(told) <= _narrowness(server)


def _narrowness(address: Address) -> int:
    kind = None if isinstance(address.host, str) else classify(address.host)
    return _NARROW.get(kind or "", 0)
