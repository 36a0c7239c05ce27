"""UDP ASSOCIATE with an upstream: our socket to its relay, and what keeps it alive."""

import socket as stdlib_socket  # constants
from _socket import socket as RawSocket

from geosocks.auth import Grant
from geosocks.errors import GeosocksError
from geosocks.relay.udp import MAX_STRAY
from geosocks.rules import Resolver
from geosocks.stream import Stream
from geosocks.wire.socks5 import Address


class UpstreamAssociation:
    """A UDP ASSOCIATE of ours with an upstream; a ``relay.udp.Onward``."""

    def __init__(self, name: str, grant: Grant, sock: RawSocket) -> None:
        self.sock = sock
        self.seal = grant.seal
        self._name = name
        self._control = grant.stream

    def wait(self) -> str:
        """Return when the upstream has ended it: how."""
        left = MAX_STRAY
        try:
            while data := self._control.recv(4096):
                left -= len(data)
                if left < 0:
                    return f"upstream {self._name}: it keeps sending on an association"
        except (GeosocksError, OSError) as error:
            return f"upstream {self._name}: {error}"
        return f"upstream {self._name} ended the association"

    def close(self) -> None:
        """End it."""
        self._control.close()
        self.sock.close()


def socket_to(relay: Address, control: Stream, resolver: Resolver) -> RawSocket:
    """A socket for datagrams to an upstream's ``relay``, from where ``control`` comes from."""
    near, far = (getattr(control, which)() for which in ("getsockname", "getpeername"))
    host = relay.host
    if isinstance(host, str):
        host = resolver.resolve(host)[0]
    to = far[0] if host.is_unspecified else str(host)
    family = stdlib_socket.AF_INET6 if ":" in to else stdlib_socket.AF_INET
    sock = RawSocket(family, stdlib_socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if (":" in near[0]) == (":" in to):
            sock.bind((near[0], 0))
        sock.connect((to, relay.port))
    except BaseException:
        sock.close()
        raise
    return sock
