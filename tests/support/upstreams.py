"""Proxies that play a transcript, and a server that goes through them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from typing import Any

import gevent.socket

from geosocks.errors import HostUnreachable
from geosocks.events import SessionCrashed
from geosocks.policy import Policy, Timeouts
from geosocks.relay.direct import DirectDialer
from geosocks.rules import RuleSet
from geosocks.server import Server
from geosocks.upstream import Health, Upstream, build_upstreams
from geosocks.wire.socks5 import IPAddress, Reply
from tests.support.net import echo, recv_all, recv_exactly
from tests.support.servers import EVERYWHERE, Witness, greeted, proxy, read_reply, request

NAME = "www.corp.test"


class Book:
    """A resolver that is a dict, and counts."""

    def __init__(self, **entries: str) -> None:
        self.entries = {name.replace("_", "."): found for name, found in entries.items()}
        self.asked: list[str] = []

    def resolve(self, name: str) -> tuple[IPAddress, ...]:
        self.asked.append(name)
        if name not in self.entries:
            raise HostUnreachable(f"{name} does not exist")
        return tuple(map(ip_address, self.entries[name].split()))


def upstreams(book: Book | None = None, **urls: str) -> dict[str, Upstream]:
    return build_upstreams(urls, book or Book(), DirectDialer())


@contextmanager
def through(
    *urls: str,
    book: Book | None = None,
    rules: RuleSet = EVERYWHERE,
    timeouts: Timeouts | None = None,
    health: Health | None = None,
) -> Iterator[tuple[Server, Witness]]:
    """A server that sends all through upstreams u0, u1 ..., one for another."""
    book = book or Book()
    made = upstreams(book, **{f"u{number}": url for number, url in enumerate(urls)})
    policy = Policy(
        rules=rules, resolver=book, dialers=made, via=tuple(made), health=health or Health()
    )
    with proxy(policy, timeouts=timeouts) as (server, witness):
        yield server, witness
        assert not witness.of(SessionCrashed)


def ask(server: Server, host: str = NAME, port: int = 80) -> tuple[Reply, Any]:
    """Ask for a CONNECT; the reply and the socket."""
    sock = greeted(server)
    sock.sendall(request(1, host, port))
    return read_reply(sock), sock


def rep(server: Server, host: str = NAME, port: int = 80) -> int:
    """The REP of a CONNECT; the server closes after one that is not X'00'."""
    reply, sock = ask(server, host, port)
    if reply.rep:
        assert recv_all(sock) == b""
    sock.close()
    return reply.rep


Script = Sequence[tuple[bytes, bytes]]


class Fake:
    """A proxy that expects octets and answers octets; then it echoes, or closes if told to."""

    def __init__(self, script: Script, after: Callable[[Any], None] | None = None) -> None:
        self.script = script
        self.after = after or (lambda sock: echo(sock, None))
        self.met: list[bytes] = []
        self.sessions = 0

    def __call__(self, sock: gevent.socket.socket, _: object) -> None:
        self.sessions += 1
        with suppress(OSError):
            for expected, answer in self.script:
                got = recv_exactly(sock, len(expected))
                self.met.append(got)
                if got != expected:
                    sock.close()
                    return
                sock.sendall(answer)
            self.after(sock)


def octets(text: str) -> bytes:
    return bytes.fromhex(text)


NAME_FIELD = bytes((len(NAME),)) + NAME.encode()
BOUND = octets("01 c0000207 1f90")
BEHIND = b"220 target speaks first\r\n"
GREETING = [(octets("05 01 00"), octets("05 00"))]


def associated(server: Server) -> tuple[Any, Reply]:
    sock = greeted(server)
    sock.sendall(request(3, "0.0.0.0", 0))
    return sock, read_reply(sock)
