"""A client of UDP ASSOCIATE that writes its headers by hand, and targets for its datagrams."""

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import gevent
import gevent.socket

from geosocks.codes import Rep
from geosocks.server import Server
from tests.support.servers import greeted, read_reply, request

Target = tuple[str, int]


def header(host: str, port: int, frag: int = 0) -> bytes:
    """RSV, FRAG, ATYP, DST.ADDR, DST.PORT (RFC 1928, section 7)."""
    if ":" in host:
        address = b"\x04" + socket.inet_pton(socket.AF_INET6, host)
    elif host.replace(".", "").isdecimal():
        address = b"\x01" + socket.inet_aton(host)
    else:
        address = b"\x03" + bytes((len(host),)) + host.encode()
    return b"\0\0" + bytes((frag,)) + address + struct.pack("!H", port)


def opened(datagram: bytes) -> tuple[Target, bytes]:
    """Where a datagram from the relay says that it came from, and its DATA."""
    assert datagram[:3] == b"\0\0\0", datagram[:32]
    size = {1: 4, 4: 16}[datagram[3]]
    family = socket.AF_INET if size == 4 else socket.AF_INET6
    host = socket.inet_ntop(family, datagram[4 : 4 + size])
    return (host, *struct.unpack_from("!H", datagram, 4 + size)), datagram[6 + size :]


class UdpClient:
    """One association: its connection, ``control``, its own socket, and the relay's address."""

    def __init__(self, control: gevent.socket.socket, relay: Target, host: str) -> None:
        self.control = control
        self.relay = relay
        self.sock = udp_socket(host)

    @classmethod
    def associate(
        cls, server: Server, hint: Target = ("0.0.0.0", 0), host: str = "127.0.0.1"
    ) -> Self:
        """Ask for an association, with ``hint`` for DST; ``host`` is where we send from."""
        control = greeted(server)
        control.sendall(request(3, *hint))
        reply = read_reply(control)
        assert reply.rep == Rep.SUCCEEDED, reply
        return cls(control, (str(reply.bound.host), reply.bound.port), host)

    def send(self, data: bytes, to: Target, frag: int = 0) -> None:
        """Send DATA to a target."""
        self.send_raw(header(*to, frag) + data)

    def send_raw(self, datagram: bytes) -> None:
        """Send octets to the relay."""
        self.sock.sendto(datagram, self.relay)

    def receive(self, seconds: float = 3.0) -> tuple[Target, bytes]:
        """The next datagram: who it came from, and DATA."""
        with gevent.Timeout(seconds, AssertionError("no datagram came")):
            datagram, source = self.sock.recvfrom(65536)
        assert source[:2] == self.relay, f"from {source}, not from the relay"
        return opened(datagram)

    def ask(self, data: bytes, to: Target) -> bytes:
        """Send DATA, and wait for what ``to`` answers."""
        self.send(data, to)
        source, answer = self.receive()
        assert source == to, f"{source} answered for {to}"
        return answer

    def hears_nothing(self, seconds: float = 0.05) -> bool:
        """True when nothing comes for a while: for what must not come, there is no event."""
        with gevent.Timeout(seconds, False):
            self.sock.recvfrom(65536)
            return False
        return True

    def close(self) -> None:
        """End the association."""
        self.control.close()
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def udp_socket(host: str = "127.0.0.1") -> gevent.socket.socket:
    """A socket bound to any port of ``host``."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = gevent.socket.socket(family, socket.SOCK_DGRAM)
    sock.bind((host, 0))
    return sock


def address(sock: Any) -> Target:
    """A socket's own host and port."""
    host, port = sock.getsockname()[:2]
    return host, port


Answerer = Callable[[bytes], bytes | None]


@contextmanager
def answering(
    answer: Answerer = lambda data: data, host: str = "127.0.0.1"
) -> Iterator[tuple[Target, list[Target]]]:
    """A target that answers each datagram, with itself by default; gives its address and, as they
    come, its clients'."""
    sock = udp_socket(host)
    clients: list[Target] = []

    def serve() -> None:
        while True:
            data, client = sock.recvfrom(65536)
            if client[:2] not in clients:
                clients.append(client[:2])
            answered = answer(data)
            if answered is not None:
                sock.sendto(answered, client)

    greenlet = gevent.spawn(serve)
    try:
        yield address(sock), clients
    finally:
        greenlet.kill()
        sock.close()
