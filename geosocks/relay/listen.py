"""Letting one peer in: where to listen for it, on which port, and the wait (BIND).

Knows sockets; knows no client and no rule.  The counterpart of ``relay.target``, which goes out.
"""

import errno
import random
import socket as stdlib_socket  # constants
from _socket import socket as RawSocket
from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_address
from typing import Any, Final, Protocol

import gevent
from gevent.hub import get_hub

from geosocks.errors import RequestFailed
from geosocks.greenlets import give_way
from geosocks.relay.target import failure_of, most_telling
from geosocks.stream import Connection, Stream
from geosocks.wire.socks5 import Address, IPAddress

Admits = Callable[[Address], bool]
"""May this peer come in?  It may block."""

BACKLOG: Final = 64
"""Peers that the kernel keeps until we look at them: strangers must not fill it at once."""

PAUSE: Final = 0.1
"""Seconds to wait where no descriptor is left to accept with."""

EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""Of accept(2): there is nothing to accept with, and more of the same until something is freed."""
_OURS: Final = (errno.EBADF, errno.EFAULT, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP)


class Listener(Protocol):
    """What a BIND waits at."""

    @property
    def bound(self) -> Address:
        """Where it listens."""
        ...

    @property
    def dropped(self) -> int:
        """How many peers came and were not let in."""
        ...

    def accept(self, admits: Admits) -> tuple[Stream, Address]:
        """The first peer to come that ``admits`` lets in, and its address.

        All others are sent away and the wait goes on, however long it takes.  The caller closes
        the stream.

        Raises:
            RequestFailed: nobody can come any more; ``rep`` says why.
        """
        ...

    def close(self) -> None:
        """Listen no more."""
        ...


class Binder(Protocol):
    """Opens listeners for peers: on this host, on an upstream, or in your own way."""

    def open_listener(
        self, peer: Address, addresses: tuple[IPAddress, ...] | None, near: IPAddress
    ) -> Listener:
        """Listen where ``addresses``, which are ``peer``'s, can reach it; the caller closes it.

        None: anybody may come.  ``near`` is where the client reaches this host.

        Raises:
            RequestFailed: that cannot be; ``rep`` says why.
        """
        ...


class DirectBinder:
    """Listens on this host: on the address that a connection to the peer would leave from.

    ``ports`` are those to listen on, None for any; ``outgoing`` are source addresses of outgoing
    connections, at most one of each family.
    """

    def __init__(self, ports: range | None = None, outgoing: Sequence[IPAddress] = ()) -> None:
        self.ports = ports
        self.outgoing = {address.version: str(address) for address in outgoing}

    def open_listener(
        self, peer: Address, addresses: tuple[IPAddress, ...] | None, near: IPAddress
    ) -> "PeerListener":
        """As ``Binder.open_listener``; of several addresses the first that there is a way to."""
        local = near if addresses is None else self._towards(peer, addresses)
        return PeerListener(_listening_socket(local, self.ports))

    def _towards(self, peer: Address, addresses: Iterable[IPAddress]) -> IPAddress:
        """The address that a connection to ``peer`` would leave from."""
        failures = []
        for address in addresses:
            try:
                return self._source(address)
            except OSError as error:
                failures.append(failure_of(error, Address(address, peer.port)))
        raise most_telling(failures)

    def _source(self, to: IPAddress) -> IPAddress:
        """Which address is ours on the way to ``to``: connecting a UDP socket sends nothing."""
        probe = RawSocket(_family(to), stdlib_socket.SOCK_DGRAM)
        try:
            ours = self.outgoing.get(to.version)
            if ours is not None:
                probe.bind((ours, 0))
            probe.connect((str(to), 9))  # any port but 0
            return _host(probe.getsockname())
        finally:
            probe.close()


class PeerListener:
    """A listening socket of which one peer is taken; owned by the greenlet that waits."""

    def __init__(self, sock: RawSocket) -> None:
        self._sock = sock
        self._hub = get_hub()
        self._watcher: Any = self._hub.loop.io(sock.fileno(), 1)
        self.bound = _address(sock.getsockname())
        self.dropped = 0

    def accept(self, admits: Admits) -> tuple[Connection, Address]:
        """As ``Listener.accept``; who is not let in gets a reset."""
        while True:
            connection, address = self._next()
            try:
                if admits(address):
                    return connection, address
            except BaseException:
                connection.reset()
                raise
            connection.reset()
            self.dropped += 1
            give_way()  # strangers may come faster than they can be sent away

    def _next(self) -> tuple[Connection, Address]:
        """The next peer, whoever it is."""
        listening: Any = self._sock
        while True:
            try:
                fd, name = listening._accept()
            except BlockingIOError:
                self._hub.wait(self._watcher)
            except OSError as error:
                if error.errno in _OURS:
                    raise RequestFailed(f"accept on {self.bound}: {error.strerror}") from error
                # What else accept(2) tells is one peer's trouble: it was reset while it waited.
                gevent.sleep(PAUSE if error.errno in EXHAUSTED else 0)
            else:
                sock = RawSocket(self._sock.family, self._sock.type, self._sock.proto, fd)
                sock.setblocking(False)
                return Connection(sock), _address(name)

    def close(self) -> None:
        """Listen no more: who has come and was not looked at is reset by the kernel."""
        self._watcher.stop()
        self._watcher.close()
        self._sock.close()


def _listening_socket(local: IPAddress, ports: range | None) -> RawSocket:
    """A socket that listens on ``local``, at any of ``ports``.

    Raises:
        RequestFailed: X'01': none of them is free, or the address is not ours.
    """
    # In random order: a port that was told to one client is not soon told to another.
    candidates = [0] if ports is None else random.sample(ports, len(ports))
    for port in candidates:
        sock = RawSocket(_family(local), stdlib_socket.SOCK_STREAM)
        try:
            if port:  # else ended connections would keep a port busy for a minute
                sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_REUSEADDR, 1)
            sock.setsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_NODELAY, 1)
            sock.setblocking(False)
            sock.bind((str(local), port))
            sock.listen(BACKLOG)
            return sock
        except OSError as error:
            sock.close()
            if error.errno != errno.EADDRINUSE:
                what = f"cannot listen on {Address(local, port)}: {error.strerror}"
                raise RequestFailed(what) from error
    where = "every port" if ports is None else f"every port of {ports.start}-{ports.stop - 1}"
    raise RequestFailed(f"cannot listen on {local}: {where} is in use")


def _family(address: IPAddress) -> int:
    return stdlib_socket.AF_INET if address.version == 4 else stdlib_socket.AF_INET6


def _address(name: tuple[Any, ...]) -> Address:
    return Address(_host(name), name[1])


def _host(name: tuple[Any, ...]) -> IPAddress:
    return ip_address(name[0].partition("%")[0])
