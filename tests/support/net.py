"""Loopback sockets for tests, and targets that behave in a known way."""

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import gevent
import gevent.socket
from gevent.pool import Pool
from gevent.server import StreamServer

from geosocks.stream import Connection

Handler = Callable[[gevent.socket.socket, tuple[str, int]], None]


def tcp_pair() -> tuple[gevent.socket.socket, gevent.socket.socket]:
    """Two ends of one TCP connection on loopback, as gevent sockets."""
    listener = gevent.socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    one = gevent.socket.create_connection(listener.getsockname())
    other, _ = listener.accept()
    listener.close()
    return one, other


def connection_pair() -> tuple[gevent.socket.socket, Connection]:
    """The far end as a gevent socket, the near end as a Connection."""
    far, near = tcp_pair()
    return far, Connection.take(near)


@contextmanager
def plain_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of one UNIX connection as plain sockets; the second does not block."""
    far, near = socket.socketpair()
    with far, near:
        near.setblocking(False)
        yield far, near


@contextmanager
def serving(handler: Handler, host: str = "127.0.0.1") -> Iterator[tuple[str, int]]:
    """A target that runs ``handler`` for each connection; gives its address."""
    with keep_port() as keeper:
        port = 0 if host == "127.0.0.1" else keeper.getsockname()[1]
        server = StreamServer((host, port), handler, spawn=Pool())
        server.start()
        try:
            yield (host, server.server_port)
        finally:
            server.stop(timeout=0)


def keep_port() -> socket.socket:
    """A socket on 127.0.0.1 for a target on another address of this host to have its port of.

    No server under test gets that meanwhile; it would refuse requests for such a target as leading
    back to itself.
    """
    keeper = socket.socket()
    keeper.bind(("127.0.0.1", 0))
    return keeper


def echo(sock: gevent.socket.socket, _: object) -> None:
    """Send back what comes, and end when the peer ends."""
    with suppress(OSError):
        while data := sock.recv(65536):
            sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)


def recv_exactly(sock: gevent.socket.socket, size: int) -> bytes:
    """Read ``size`` octets; fewer only at the end of the stream."""
    data = bytearray()
    while len(data) < size:
        chunk = sock.recv(size - len(data))
        if not chunk:
            break
        data += chunk
    return bytes(data)


def recv_all(sock: gevent.socket.socket) -> bytes:
    """Read to the end of the stream."""
    data = bytearray()
    while chunk := sock.recv(65536):
        data += chunk
    return bytes(data)


def reset(sock: gevent.socket.socket) -> None:
    """Close so that the peer gets a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def unused_port() -> int:
    """A port on which nobody listens, most likely."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def wait_for(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Let others run until ``condition`` holds."""
    with gevent.Timeout(seconds, AssertionError("it did not come to pass")):
        while not condition():
            gevent.sleep(0.005)


class SilentAddress:
    """An address that answers no SYN: its backlog of accepted-by-nobody is full."""

    def __init__(self) -> None:
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.3", 0))
        self.listener.listen(0)
        self.port: int = self.listener.getsockname()[1]
        self.fillers = []
        for _ in range(2):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.3", self.port))
            self.fillers.append(filler)
        gevent.sleep(0.05)

    def close(self) -> None:
        for sock in [self.listener, *self.fillers]:
            sock.close()
