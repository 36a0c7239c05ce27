"""A gevent socket that connects through a SOCKS server, for programs that know sockets.

In place of ``gevent.socket.socket`` and ``gevent.socket.create_connection``::

    sock = socksocket(proxy="socks5://proxy.example.org")
    sock.connect(("www.example.org", 80))

Only TCP connections that we open go through the server.  For more there are ``Client.bind`` and
``Client.associate``.
"""

import errno
import os
import socket as stdlib_socket  # constants
from typing import Any, Final, cast

import gevent.socket

from geosocks.client import Client
from geosocks.client.address import SockAddr, destination
from geosocks.codes import Cmd, Rep
from geosocks.errors import GeosocksError, NegotiationTimeout, RequestFailed
from geosocks.stream import deadline
from geosocks.wire.socks5 import Address, Request

ERRNO: Final[dict[int, int]] = {
    Rep.NOT_ALLOWED: errno.EACCES,
    Rep.NETWORK_UNREACHABLE: errno.ENETUNREACH,
    Rep.HOST_UNREACHABLE: errno.EHOSTUNREACH,
    Rep.CONNECTION_REFUSED: errno.ECONNREFUSED,
    Rep.TTL_EXPIRED: errno.ETIMEDOUT,
    Rep.COMMAND_NOT_SUPPORTED: errno.EOPNOTSUPP,
    Rep.ADDRESS_TYPE_NOT_SUPPORTED: errno.EAFNOSUPPORT,
}
"""What ``connect_ex`` says of a REP; of any other ECONNABORTED."""


class socksocket(gevent.socket.socket):
    """A TCP socket whose ``connect`` goes through ``proxy``, a Client or its URL.

    Without one it connects nowhere: what was to go through a proxy must not go without.  The server
    has to have an address of the socket's family; ``create_connection`` sees to that.  A name is
    resolved by the server.  ``settimeout`` bounds all of a ``connect``, by default it is the
    Client's limit.

    What the server encapsulates (GSSAPI, TLS) comes and goes in the clear through the usual calls.
    There is no descriptor to wait for, share or wrap then: ``fileno`` is -1, and calls that would
    pass the encapsulation by fail with EOPNOTSUPP.  ``geosocks.tls.wrap_client`` goes around it.
    """

    def __init__(
        self,
        family: int = -1,
        type: int = -1,
        proto: int = -1,
        fileno: int | None = None,
        *,
        proxy: Client | str | None = None,
    ) -> None:
        super().__init__(family, type, proto, fileno)
        self.proxy: Client | None = None
        self.destination: Address | None = None
        self.bound: Address | None = None
        self._inside: Any = None  # the encapsulated stream, if it is one
        if self.type != stdlib_socket.SOCK_STREAM:
            self.close()
            raise ValueError("only TCP goes this way; Client.associate is for datagrams")
        if proxy is not None:
            self.set_proxy(proxy)

    def set_proxy(self, proxy: Client | str) -> None:
        """Go through ``proxy`` from the next ``connect`` on.

        Raises:
            ConfigError: it is a URL that cannot be used as written.
        """
        self.proxy = proxy if isinstance(proxy, Client) else Client.from_url(proxy)

    def connect(self, address: Any) -> None:
        """Connect to ``(host, port)`` through the server; when that fails the socket is closed.

        Raises:
            OSError: as ``Client.connect``; EISCONN when it is connected already.
            ValueError: there is no proxy, or the address cannot be sent.
        """
        if self.proxy is None:
            raise ValueError("no proxy is set")
        if self.destination is not None:
            raise OSError(errno.EISCONN, os.strerror(errno.EISCONN))
        to = destination((address[0], address[1]))
        timeout = self.gettimeout()
        if timeout == 0:
            raise _unsupported("connecting through a proxy has to wait")
        seconds = self.proxy.timeout if timeout is None else timeout
        late = NegotiationTimeout(f"no connection to {to} within {seconds:g} s")
        self.settimeout(None)  # one limit for all of it, not one for each octet
        try:
            with deadline(seconds, late):
                self._connect(self.proxy, to)
        except BaseException:
            self.close()
            raise
        self.settimeout(timeout)
        self.destination = to

    def _connect(self, proxy: Client, to: Address) -> None:
        super().connect((str(proxy.server.host), proxy.server.port))
        self.setsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_NODELAY, 1)
        wire = _Wire(self)
        _, grant = proxy.negotiate(wire)
        self.bound = proxy.request(grant.stream, Request(Cmd.CONNECT, to)).bound
        if grant.stream is not wire:
            self._inside = grant.stream

    def connect_ex(self, address: Any) -> int:
        """As ``connect``, but 0 or an errno."""
        try:
            self.connect(address)
        except RequestFailed as failure:
            return ERRNO.get(failure.rep, errno.ECONNABORTED)
        except NegotiationTimeout:
            return errno.ETIMEDOUT
        except OSError as error:
            return error.errno or errno.ECONNABORTED
        return 0

    def recv(self, size: int, flags: int = 0) -> bytes:
        """As recv(2)."""
        if self._inside is None:
            return super().recv(size, flags)
        self._no(flags, "flags")
        data: bytes = self._inside.recv(size) if size else b""
        return data

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        """As recv(2), into ``buffer``."""
        if self._inside is None:
            return super().recv_into(buffer, size, flags)
        with memoryview(buffer).cast("B") as view:
            data = self.recv(size or len(view), flags)
            view[: len(data)] = data
        return len(data)

    def send(self, data: Any, flags: int = 0, *timeout: Any, **options: Any) -> int:
        """As send(2); all of it where it is encapsulated."""
        if self._inside is None:
            return super().send(data, flags, *timeout, **options)
        self._no(flags, "flags")
        with memoryview(data).cast("B") as view:
            self._inside.sendall(view)
            return len(view)

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send all of ``data``."""
        if self._inside is None:
            super().sendall(data, flags)
        else:
            self.send(data, flags)

    def shutdown(self, how: int) -> None:
        """Close one way or both."""
        if self._inside is None:
            super().shutdown(how)
        else:
            self._inside.shutdown(how)

    def fileno(self) -> int:
        """The descriptor; -1 when closed, and when what goes through it is encapsulated."""
        return super().fileno() if self._inside is None else -1

    def close(self) -> None:
        """Close it, once the files made of it are closed as well."""
        files = cast(Any, self)._io_refs
        if self._inside is not None and not files:
            self._inside.close()  # under TLS there is something left to say
        super().close()

    def _no(self, asked: object, what: str) -> None:
        if asked:
            raise _unsupported(f"{what}: what goes through this socket is encapsulated")


def _unsupported(what: str) -> OSError:
    return OSError(errno.EOPNOTSUPP, what)


def _guarded(name: str) -> Any:
    """The method ``name``, but where its octets would pass the encapsulation by."""
    method = getattr(gevent.socket.socket, name)

    def guarded(self: socksocket, *args: Any, **options: Any) -> Any:
        self._no(self._inside is not None, name)
        return method(self, *args, **options)

    guarded.__doc__ = f"As a socket's {name}; EOPNOTSUPP where octets are encapsulated."
    return guarded


for _name in (
    *("detach", "dup", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into"),
    *("sendto", "sendmsg"),
):
    if hasattr(gevent.socket.socket, _name):  # not all systems have all
        setattr(socksocket, _name, _guarded(_name))


class _Wire:
    """The socket itself as a Stream, below what its own methods do."""

    def __init__(self, sock: socksocket) -> None:
        self._sock = sock
        self._below: Any = super(socksocket, sock)

    def recv(self, size: int, /) -> bytes:
        data: bytes = self._below.recv(size)
        return data

    def sendall(self, data: Any, /) -> None:
        view = memoryview(data)
        while view:  # gevent's own sendall would go by the socket's send
            view = view[self._below.send(view) :]

    def shutdown(self, how: int, /) -> None:
        self._below.shutdown(how)

    def close(self) -> None:
        """Nothing: whoever has the socket closes it."""

    def fileno(self) -> int:
        number: int = self._below.fileno()
        return number

    def getsockname(self) -> Any:
        return self._below.getsockname()

    def getpeername(self) -> Any:
        return self._below.getpeername()


def create_connection(
    address: SockAddr,
    timeout: object = None,
    source_address: SockAddr | None = None,
    *,
    proxy: Client | str,
) -> socksocket:
    """Connect to ``(host, port)`` through ``proxy``, by the first of its families that works.

    A ``timeout`` that is no number, such as http.client's default, is none.

    Raises:
        as ``socksocket.connect``.
    """
    client = proxy if isinstance(proxy, Client) else Client.from_url(proxy)
    host, port = str(client.server.host), client.server.port
    found = gevent.socket.getaddrinfo(host, port, 0, stdlib_socket.SOCK_STREAM)
    failure = OSError(f"{host} has no address")
    for family in dict.fromkeys(entry[0] for entry in found):
        sock = socksocket(family, stdlib_socket.SOCK_STREAM, proxy=client)
        try:
            if isinstance(timeout, (int, float)):
                sock.settimeout(timeout)
            if source_address is not None:
                sock.bind(source_address)
            sock.connect(address)
            return sock
        except OSError as error:
            sock.close()
            if isinstance(error, GeosocksError):
                raise  # what the server says, another family of it will say again
            failure = error
        except BaseException:
            sock.close()
            raise
    raise failure
