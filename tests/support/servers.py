"""A geosocks server in the test's own hub, and raw clients that speak to it in octets."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import gevent.socket

from geosocks.events import Event
from geosocks.policy import Policy, Timeouts
from geosocks.rules import RuleSet
from geosocks.server import Server
from geosocks.wire.socks5 import Address, Reply
from tests.support.net import recv_exactly, wait_for

E = TypeVar("E", bound=Event)

EVERYWHERE = RuleSet.parse("allow to everywhere\n")


class Witness(list[Event]):
    """An observer that remembers."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    def of(self, kind: type[E]) -> list[E]:
        """Those of one kind."""
        return [event for event in self if type(event) is kind]

    def wait(self, kind: type[E], number: int = 1) -> E:
        """The ``number``-th of a kind, once it has come."""
        wait_for(lambda: len(self.of(kind)) >= number)
        return self.of(kind)[number - 1]


@contextmanager
def proxy(
    policy: Policy | None = None, *, timeouts: Timeouts | None = None, **options: Any
) -> Iterator[tuple[Server, Witness]]:
    """A server on loopback that lets everybody go everywhere, unless ``policy`` says otherwise."""
    witness = Witness()
    policy = policy or Policy(rules=EVERYWHERE)
    if timeouts:
        policy = policy.replace(timeouts=timeouts)
    server = Server([("127.0.0.1", 0)], policy, observers=[witness], **options)
    server.start()
    try:
        yield server, witness
    finally:
        server.stop()


def dial(server: Server) -> gevent.socket.socket:
    """A TCP connection to ``server``."""
    sock = gevent.socket.socket()
    sock.connect(server.addresses[0])  # no look-up, which create_connection would do in a thread
    return sock


def greeted(server: Server) -> gevent.socket.socket:
    """A connection on which method X'00' was selected."""
    sock = dial(server)
    sock.sendall(b"\x05\x01\x00")
    assert recv_exactly(sock, 2) == b"\x05\x00"
    return sock


def request(cmd: int, host: str, port: int) -> bytes:
    """A request's octets."""
    return bytes((5, cmd, 0)) + Address(host, port).encode()


def read_reply(sock: gevent.socket.socket) -> Reply:
    """A reply with an IPv4 or IPv6 BND."""
    head = recv_exactly(sock, 4)
    assert len(head) == 4, f"closed after {head!r}"
    return Reply.decode(head + recv_exactly(sock, {1: 6, 4: 18}[head[3]]))
