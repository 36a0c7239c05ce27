"""What a Client says to a server of SOCKS version 4 or 4A, in place of RFC 1928's messages."""

import socket as stdlib_socket  # constants
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Final

import gevent.socket

from geosocks.client.failures import socks4_failure_of
from geosocks.codes import Cmd, Rep, Socks4Cd
from geosocks.errors import AddressTypeNotSupported, CommandNotSupported, HostUnreachable
from geosocks.rules import Resolver
from geosocks.stream import Stream, read_message
from geosocks.wire import socks4
from geosocks.wire.socks5 import Address, IPAddress, Reply, Request

_CODES: Final[dict[int, Socks4Cd]] = {Cmd.CONNECT: Socks4Cd.CONNECT, Cmd.BIND: Socks4Cd.BIND}


@dataclass(frozen=True, slots=True)
class Socks4:
    """The dialect: who we say we are, which proves nothing, and who finds out about names.

    4A passes a name on; version 4 itself knows IPv4 addresses only, so with ``resolves`` a name is
    looked up on this host: by ``resolver``, or else the program's gevent resolver.
    """

    userid: bytes = b""
    resolves: bool = False
    resolver: Resolver | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if len(self.userid) > socks4.MAX_FIELD or b"\0" in self.userid:
            raise ValueError(f"USERID: up to {socks4.MAX_FIELD} octets, and none of them 0")

    def ask(self, stream: Stream, request: Request) -> None:
        """Send a request.

        Raises:
            CommandNotSupported: version 4 has no word for its CMD.
            HostUnreachable, AddressTypeNotSupported: DST has no IPv4 address, and is to have one.
        """
        code = _CODES.get(request.cmd)
        if code is None:
            raise CommandNotSupported("SOCKS4 knows CONNECT and BIND, and nothing else")
        to = request.destination
        if self.resolves:
            to = Address(self._ipv4(to), to.port)
        stream.sendall(socks4.Request(code, to, self.userid).encode())

    def read_reply(self, stream: Stream, to: Address | str) -> Reply:
        """Read the reply to a request about ``to``.

        Raises:
            RequestFailed: it is not 90; ``rep`` is what version 5 would have said.
        """
        reply = read_message(stream, socks4.Reply.decode)
        if reply.cd != Socks4Cd.GRANTED:
            raise socks4_failure_of(reply.cd, to)
        return Reply(Rep.SUCCEEDED, reply.bound)

    def _ipv4(self, to: Address) -> IPv4Address:
        host = to.host
        if isinstance(host, str):
            found = _looked_up(to) if self.resolver is None else self.resolver.resolve(host)
        else:
            found = (host,)
        for address in found:
            if isinstance(address, IPv4Address):
                return address
        raise AddressTypeNotSupported(f"{to}: SOCKS4 knows no IPv6; SOCKS4A may (socks4a://)")


def _looked_up(to: Address) -> tuple[IPAddress, ...]:
    try:
        found = gevent.socket.getaddrinfo(
            str(to.host), to.port, stdlib_socket.AF_INET, stdlib_socket.SOCK_STREAM
        )
    except (OSError, UnicodeError) as error:
        raise HostUnreachable(f"{to}: no IPv4 address found on this host: {error}") from error
    return tuple(IPv4Address(entry[4][0]) for entry in found)
