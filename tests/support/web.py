"""A web server in the test's hub: pages from a dict, files from a folder, octets by the million."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

from gevent.pywsgi import WSGIServer

PIECE: Final = bytes(range(251)) * 1024
"""What big pages are made of; 251 is prime, so that no octet is mistaken for its neighbour."""


@cache
def big_digest(size: int) -> str:
    """The SHA-256 of ``/big/SIZE``."""
    digest = hashlib.sha256()
    for piece in _big(size):
        digest.update(piece)
    return digest.hexdigest()


def _big(size: int) -> Iterator[bytes]:
    while size > 0:
        yield PIECE[:size]
        size -= len(PIECE)


class Web:
    """Answers GET from ``pages``, from ``folder``, or ``/big/SIZE``; PUT with size and SHA-256."""

    def __init__(self, host: str, pages: Mapping[str, bytes], folder: Path | None) -> None:
        self.pages = pages
        self.folder = folder
        self.asked: list[str] = []
        self.server = WSGIServer((host, 0), self._answer, log=None)
        self.host = host

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server.server_port)

    def url(self, path: str = "/", host: str = "") -> str:
        """A page's URL; ``host`` where it is not to be the address."""
        host = host or (f"[{self.host}]" if ":" in self.host else self.host)
        return f"http://{host}:{self.port}{path}"

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        self.asked.append(path)
        status, body = "200 OK", self._body(path, environ)
        if body is None:
            status, body = "404 Not Found", [b"not here\n"]
        size = path.removeprefix("/big/") if path.startswith("/big/") else sum(map(len, body))
        kind = "text/html" if path.endswith((".html", "/")) else "application/octet-stream"
        start_response(status, [("Content-Type", kind), ("Content-Length", str(size))])
        return body

    def _body(self, path: str, environ: dict[str, Any]) -> Any:
        if environ["REQUEST_METHOD"] == "PUT":
            return [_received(environ["wsgi.input"])]
        if path.startswith("/big/"):
            return _big(int(path.removeprefix("/big/")))
        if path in self.pages:
            return [self.pages[path]]
        file = self.folder and self.folder / path.lstrip("/")
        return [file.read_bytes()] if file and file.is_file() else None


def _received(body: Any) -> bytes:
    digest, size = hashlib.sha256(), 0
    while piece := body.read(1 << 16):
        digest.update(piece)
        size += len(piece)
    return f"{size} {digest.hexdigest()}".encode()


@contextmanager
def web(
    pages: Mapping[str, bytes] | None = None, *, host: str = "127.0.0.1", folder: Path | None = None
) -> Iterator[Web]:
    """Serve on loopback."""
    site = Web(host, pages or {}, folder)
    site.server.start()
    try:
        yield site
    finally:
        site.server.stop(timeout=0)
