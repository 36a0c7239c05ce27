"""Sockets for datagrams, and how to wait for several at a time."""

import errno
import random
import socket as stdlib_socket  # constants
from _socket import socket as RawSocket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final, Literal

from gevent import getcurrent
from gevent.hub import get_hub

from geosocks.errors import RequestFailed
from geosocks.wire.socks5 import Address, IPAddress

PORT_TRIES: Final = 128
"""Ports of a range that are tried before it counts as used up."""

Version = Literal[4, 6]

SockAddr = tuple[Any, ...]

_READ, _WRITE = 1, 2
_NONBLOCK: Final = getattr(stdlib_socket, "SOCK_NONBLOCK", 0)  # 0 where there is none
NO_WAY: Final = frozenset(
    (
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.EADDRNOTAVAIL,
        errno.EAFNOSUPPORT,
        errno.EINVAL,  # from a loopback address to another host
    )
)
"""errno of sendto(2) after which another address of the same name may do."""


def open_inside(local: SockAddr, ports: range | None = None) -> RawSocket:
    """A socket bound to the IP address of ``local``, a name as getsockname(2) gives.

    ``ports`` are those to take, None for any.

    Raises:
        RequestFailed: none can be had.
    """
    host, rest = local[0], tuple(local[2:])
    mapped = IPv6Address(host.partition("%")[0]).ipv4_mapped if ":" in host else None
    if mapped is not None:
        host, rest = str(mapped), ()  # an IPv4 client of a dual-stack listener
    tries: Iterable[int] = (0,)
    if ports is not None:
        tries = random.sample(ports, min(len(ports), PORT_TRIES))
    try:
        sock = _socket(6 if ":" in host else 4)
        for port in tries:
            try:
                sock.bind((host, port, *rest))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    sock.close()
                    raise
            else:
                return sock
    except OSError as error:
        raise RequestFailed(f"no relay on {host}: {error.strerror or error}") from error
    sock.close()
    where = "any port" if ports is None else f"the ports {ports.start} to {ports.stop - 1}"
    raise RequestFailed(f"no relay on {host}: {where} cannot be had, being in use")


def open_outside(version: Version, source: str | None = None) -> RawSocket:
    """A socket towards targets, bound to the address ``source`` if there is one.

    Raises:
        OSError: as socket(2), bind(2).
    """
    sock = _socket(version)
    try:
        # Bound at once: it is watched before its first datagram.
        sock.bind((source or ("" if version == 4 else "::"), 0))
    except OSError:
        sock.close()
        raise
    return sock


def _socket(version: Version) -> RawSocket:
    family = stdlib_socket.AF_INET if version == 4 else stdlib_socket.AF_INET6
    sock = RawSocket(family, stdlib_socket.SOCK_DGRAM | _NONBLOCK)
    if not _NONBLOCK:
        sock.setblocking(False)
    if version == 6:
        sock.setsockopt(stdlib_socket.IPPROTO_IPV6, stdlib_socket.IPV6_V6ONLY, 1)
    return sock


def address_of(sock: RawSocket) -> Address:
    name = sock.getsockname()
    return Address(ip_address(name[0].partition("%")[0]), name[1])


def kernel_name(address: IPAddress) -> str:
    """``address`` as the kernel's names have it, so that the two can be compared."""
    if isinstance(address, IPv4Address):
        return str(address)
    return stdlib_socket.inet_ntop(stdlib_socket.AF_INET6, address.packed)


def wait_writable(sock: RawSocket) -> None:
    """Give way to others until something can be sent."""
    hub = get_hub()
    watcher: Any = hub.loop.io(sock.fileno(), _WRITE)
    try:
        hub.wait(watcher)
    finally:
        watcher.close()


class Inbox:
    """Wakes one greenlet when any of a few descriptors is readable.

    As with ``Connection``, a watcher stays armed from one wait to the next, and one that nobody
    waits for stops itself at its next event.
    """

    __slots__ = ("_events", "_hub", "_stopped", "_waiter", "_watchers")

    def __init__(self) -> None:
        self._hub = get_hub()
        self._watchers: list[tuple[Any, int]] = []
        self._stopped: list[tuple[Any, int]] = []
        self._waiter: Any = None
        self._events = 0

    def add(self, fd: int, event: int) -> None:
        """Watch ``fd`` too; ``wait`` then gives ``event``, one bit."""
        watcher = self._hub.loop.io(fd, _READ)
        self._watchers.append((watcher, event))
        watcher.start(self._readable, watcher, event)

    def wait(self) -> int:
        """The events that have come, once there are any."""
        for watcher, event in self._stopped:
            watcher.start(self._readable, watcher, event)
        self._stopped.clear()
        if self._events:
            return self._taken()
        self._waiter = getcurrent()
        try:
            self._hub.switch()
        finally:
            self._waiter = None
        return self._taken()

    def _taken(self) -> int:
        events, self._events = self._events, 0
        return events

    def wake(self, event: int) -> None:
        """End the wait with ``event``; from any greenlet."""
        self._hub.loop.run_callback(self._wake, event)

    def _readable(self, watcher: Any, event: int) -> None:
        if self._waiter is None:
            watcher.stop()
            self._stopped.append((watcher, event))
        else:
            self._wake(event)

    def _wake(self, event: int) -> None:
        self._events |= event
        if self._waiter is not None:
            self._waiter.switch()

    def close(self) -> None:
        """Stop and close the watchers; the descriptors are the caller's."""
        for watcher, _ in self._watchers:
            watcher.stop()
            watcher.close()
        self._watchers.clear()
        self._stopped.clear()
