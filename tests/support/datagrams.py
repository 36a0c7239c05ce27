"""What ``geosocks.in_c.datagrams`` does, said in Python: for tests of all that is around it."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from geosocks.errors import ProtocolError
from geosocks.relay.udp.association import BATCH
from geosocks.wire.socks5 import Address, Datagram, udp_header_size

Outcome = tuple[int, int, bool, list[tuple[bytes, tuple[Any, ...]]]]


@contextmanager
def borrowed(fd: int) -> Iterator[socket.socket]:
    """A socket object for a descriptor that stays open."""
    sock = socket.socket(fileno=fd)
    try:
        yield sock
    finally:
        sock.detach()


class Datagrams:
    """As the compiled one, with its arguments and results; it forgets nothing by itself."""

    def __init__(self, inside: int, client: tuple[Any, ...]) -> None:
        is_address(client[0])
        self._inside = inside
        self._client = client
        self._routes: dict[bytes, tuple[int, tuple[Any, ...]]] = {}
        self._hosts: dict[str, float] = {}

    def lead(self, destination: bytes, fd: int, to: tuple[Any, ...]) -> None:
        is_address(to[0])
        self._routes[destination] = fd, to

    def forget(self, destination: bytes) -> None:
        self._routes.pop(destination, None)

    def forget_all(self) -> None:
        self._routes.clear()

    def ask(self, host: str, now: float) -> None:
        is_address(host)
        self._hosts[host] = now

    def unask(self, host: str) -> None:
        is_address(host)
        self._hosts.pop(host, None)

    def up(self, since: float) -> Outcome:
        came, failed = receive(self._inside)
        done = octets = 0
        for datagram, source in came:
            try:
                size = udp_header_size(datagram)
            except ProtocolError:
                break
            fd, to = self._routes.get(datagram[3:size], (-1, ("", 0)))
            if source != self._client or datagram[2] or not self._is_asked(to[0], since):
                break
            if not send(fd, datagram[size:], to):
                break
            done += 1
            octets += len(datagram) - size
        return done, octets, failed, came[done:]

    def down(self, outside: int, since: float, from_any: bool) -> Outcome:
        came, failed = receive(outside)
        done = octets = 0
        for data, source in came:
            if not from_any and not self._is_asked(source[0], since):
                break
            header = Datagram(Address(source[0], source[1]), b"").encode()
            if not send(self._inside, header + data, self._client):
                break
            done += 1
            octets += len(data)
        return done, octets, failed, came[done:]

    def _is_asked(self, host: str, since: float) -> bool:
        return self._hosts.get(host, float("-inf")) >= since


def is_address(host: str) -> None:
    """Raise ValueError if it is none."""
    with suppress(OSError):
        socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
        return
    raise ValueError(f"{host} is no IP address")


def receive(fd: int) -> tuple[list[tuple[bytes, tuple[Any, ...]]], bool]:
    """What came, and whether nothing did by an error."""
    came: list[tuple[bytes, tuple[Any, ...]]] = []
    try:
        with borrowed(fd) as sock:
            while len(came) < BATCH:
                came.append(sock.recvfrom(1 << 16))
    except BlockingIOError:
        pass
    except OSError:
        return came, not came
    return came, False


def send(fd: int, data: bytes, to: tuple[Any, ...]) -> bool:
    """Whether it went out."""
    try:
        with borrowed(fd) as sock:
            sock.sendto(data, to)
    except OSError:
        return False
    return True
