"""A client of the status page that says exactly what it is told to."""

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gevent.socket

from geosocks.admin import Admin, start_admin
from geosocks.server import Server
from tests.support.net import recv_all
from tests.support.servers import Witness, proxy


@dataclass(frozen=True)
class Reply:
    """A whole answer."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str:
        """The header, all of them with commas between; empty where there is none."""
        return ", ".join(value for found, value in self.headers if found.lower() == name.lower())

    @property
    def text(self) -> str:
        """The body."""
        return self.body.decode()

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


def dial(address: Any) -> gevent.socket.socket:
    """A connection to the page."""
    is_path = isinstance(address, str)
    sock = gevent.socket.socket(socket.AF_UNIX if is_path else socket.AF_INET)
    try:
        sock.connect(address)
    except OSError:
        sock.close()
        raise
    return sock


def parse(octets: bytes) -> Reply:
    """Read an answer; its body has to have the length that it promises."""
    head, blank, body = octets.partition(b"\r\n\r\n")
    assert blank, f"no answer: {octets!r}"
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = tuple((name, value.strip()) for name, _, value in (x.partition(":") for x in lines))
    reply = Reply(int(first.split()[1]), headers, body)
    return reply


def say(address: Any, octets: bytes) -> bytes:
    """Say it, and read to the end."""
    with dial(address) as sock:
        sock.sendall(octets)
        return recv_all(sock)


def get(
    address: Any, path: str = "/", method: str = "GET", headers: Mapping[str, str] | None = None
) -> Reply:
    """Ask for ``path``."""
    lines = {"Host": "127.0.0.1"} | dict(headers or {})
    words = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
    reply = parse(say(address, f"{method} {path} HTTP/1.1\r\n{words}\r\n".encode("latin-1")))
    length = int(reply.header("content-length"))
    assert len(reply.body) == (0 if method == "HEAD" else length)
    return reply


@contextmanager
def page(**options: Any) -> Iterator[tuple[Admin, Server, Witness]]:
    """A server with its status page on loopback."""
    with (
        proxy(**options) as (server, witness),
        start_admin(server, ("127.0.0.1", 0), version="1.2.3") as admin,
    ):
        yield admin, server, witness
