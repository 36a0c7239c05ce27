"""One proxy to go through: how we come to terms with it, and how it is asked.

Knows a stream to the proxy; knows not what is before it or behind it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from geosocks.auth import Grant
from geosocks.client import Client
from geosocks.client.failures import IdentWanted
from geosocks.codes import Cmd, Method
from geosocks.errors import (
    AuthFailed,
    CommandNotSupported,
    HostUnreachable,
    ProtocolError,
    RequestDenied,
    RequestFailed,
    TargetTimeout,
)
from geosocks.stream import Stream, read_message
from geosocks.wire.http import ConnectRequest, ResponseHead
from geosocks.wire.socks5 import UNSPECIFIED, Address, Request

MAX_INTERIM: Final = 4
"""1xx responses before the one that counts (RFC 9110, section 15.2)."""


class Hop(Protocol):
    """One proxy: how we come to terms with it, and how it is asked."""

    @property
    def server(self) -> Address:
        """Where it is."""
        ...

    @property
    def by_ticket(self) -> bool:
        """A refusal of our credentials can be over at any moment: somebody runs kinit."""
        ...

    @property
    def no_udp(self) -> str:
        """Why such a proxy relays no datagrams; empty for one that may."""
        ...

    def negotiate(self, stream: Stream, /) -> Grant:
        """Run the handshake; what to go on with.

        Raises:
            NegotiationFailed: it does not take us.
            ProtocolError: it does not speak its protocol.
        """
        ...

    def request(self, stream: Stream, to: Address, /) -> Address:
        """Ask for a connection to ``to``; where it was made from, as far as the proxy tells.

        Raises:
            RequestFailed: the proxy refuses, or could not reach ``to``.
            NegotiationFailed: it does not take us.
            ProtocolError: it does not speak its protocol.
            ValueError: ``to`` cannot be sent.
        """
        ...

    def listen(self, stream: Stream, peer: Address, /) -> Address:
        """Ask for a BIND for ``peer``; where the proxy listens, 0.0.0.0 for its own address.

        Raises:
            CommandNotSupported: such a proxy knows no BIND.
            and as ``request``.
        """
        ...

    def accept(self, stream: Stream, /) -> Address:
        """Wait for the peer of a BIND; who came.  Raises as ``request``."""
        ...

    def associate(self, stream: Stream, /) -> Address:
        """Ask for a UDP ASSOCIATE; where the relay is, 0.0.0.0 for the proxy's own address.

        Raises:
            CommandNotSupported: such a proxy relays no datagrams.
            and as ``request``.
        """
        ...


@dataclass(frozen=True, slots=True)
class SocksHop:
    """A SOCKS server: of version 5 (RFC 1928), by any of its methods; of version 4 or 4A."""

    client: Client

    @property
    def server(self) -> Address:
        return self.client.server

    @property
    def by_ticket(self) -> bool:
        return Method.GSSAPI in self.client.credentials

    @property
    def no_udp(self) -> str:
        return "" if self.client.socks4 is None else "SOCKS4 knows no UDP"

    def negotiate(self, stream: Stream, /) -> Grant:
        return self.client.negotiate(stream)[1]

    def request(self, stream: Stream, to: Address, /) -> Address:
        bound = self._ask(stream, Request(Cmd.CONNECT, to))
        return bound if self.client.socks4 is None else UNSPECIFIED  # which says nothing of value

    def listen(self, stream: Stream, peer: Address, /) -> Address:
        return self._ask(stream, Request(Cmd.BIND, peer))

    def accept(self, stream: Stream, /) -> Address:
        return self.client.read_reply(stream, "the peer of a BIND").bound

    def associate(self, stream: Stream, /) -> Address:
        return self._ask(stream, Request(Cmd.UDP_ASSOCIATE, UNSPECIFIED))

    def _ask(self, stream: Stream, request: Request) -> Address:
        try:
            return self.client.request(stream, request).bound
        except IdentWanted as error:  # it is about us and not about the target
            raise AuthFailed(str(error)) from error


HTTP_FAILURES: Final[Mapping[int, type[RequestFailed]]] = {
    403: RequestDenied,
    404: HostUnreachable,
    405: CommandNotSupported,
    408: TargetTimeout,
    451: RequestDenied,
    501: CommandNotSupported,
    502: HostUnreachable,
    503: HostUnreachable,
    504: TargetTimeout,
}
"""Status to the failure that carries its REP; any other is X'01', general failure."""


@dataclass(frozen=True, slots=True)
class HttpHop:
    """An HTTP proxy that does CONNECT; ``authorization`` is what to show it."""

    server: Address
    authorization: str | None = field(default=None, repr=False)
    by_ticket: bool = field(default=False, init=False, repr=False)
    no_udp: str = field(default="HTTP knows no UDP", init=False, repr=False)

    def negotiate(self, stream: Stream, /) -> Grant:
        return Grant(stream)

    def request(self, stream: Stream, to: Address, /) -> Address:
        stream.sendall(ConnectRequest(to, self.authorization).encode())
        head = read_message(stream, ResponseHead.decode)
        for _ in range(MAX_INTERIM):
            if head.status >= 200:
                break
            head = read_message(stream, ResponseHead.decode)
        words = f"the proxy answers {head.status} {head.reason}".rstrip()
        if 200 <= head.status < 300:
            return UNSPECIFIED
        if head.status < 200:
            raise ProtocolError(f"{words} again and again")
        if head.status == 407:
            raise AuthFailed(words)
        raise HTTP_FAILURES.get(head.status, RequestFailed)(f"{to}: {words}")

    def listen(self, stream: Stream, peer: Address, /) -> Address:
        raise CommandNotSupported("HTTP knows no BIND")

    def accept(self, stream: Stream, /) -> Address:
        raise CommandNotSupported("HTTP knows no BIND")

    def associate(self, stream: Stream, /) -> Address:
        raise CommandNotSupported(self.no_udp)
