"""gevent's WSGI server, with bounds: so many connections, so many seconds, so many octets.

One request a connection.  Nothing is written to standard error, whatever comes.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

import gevent.socket
from gevent.hub import get_hub
from gevent.pywsgi import WSGIHandler, WSGIServer

MOST: Final = 16
"""Connections at a time; further ones wait in the kernel."""

SECONDS: Final = 5.0
"""A connection's, from accept to close."""

MAX_REQUEST: Final = 16 * 1024
"""Octets of a request that are read."""

Environ = dict[str, Any]
Application = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

_BAD: Final = b"that is no request of HTTP\n"
_BAD_REQUEST: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_BAD), _BAD)
)


class _Bounded:
    """The octets of a request, of which there are no more than MAX_REQUEST."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = MAX_REQUEST

    @property
    def closed(self) -> bool:
        """Whether it can be read no more."""
        return bool(self._file.closed)

    def readline(self, size: int = -1) -> bytes:
        """As of a file."""
        return self._taken(self._file.readline(self._bound(size)))

    def read(self, size: int = -1) -> bytes:
        """As of a file."""
        return self._taken(self._file.read(self._bound(size)))

    def close(self) -> None:
        """As of a file."""
        self._file.close()

    def _bound(self, size: int) -> int:
        return self._left if size < 0 else min(size, self._left)

    def _taken(self, octets: bytes) -> bytes:
        self._left -= len(octets)
        return octets


class _Handler(WSGIHandler):
    """One connection."""

    def __init__(self, sock: gevent.socket.socket, address: Any, server: WSGIServer) -> None:
        super().__init__(sock, address, server)
        self.rfile: Any = _Bounded(self.rfile)

    def handle(self) -> None:
        """Answer one request, or none in time."""
        # Not a Timeout: pywsgi would tell standard error of it.  Whoever waits for the socket
        # then finds that it has ended.
        sock = self.socket
        timer = get_hub().loop.timer(SECONDS)
        timer.start(_hang_up, sock)
        try:
            with suppress(OSError):  # the client has gone, or was too slow
                super().handle()
        finally:
            timer.stop()
            timer.close()

    def read_request(self, raw_requestline: str) -> Any:
        """Read one; there is no second one on this connection."""
        good = super().read_request(raw_requestline)
        self.close_connection = True
        # Nothing here takes a body, and what is left of one goes with the connection.
        self.content_length: Any = None
        for name in ("content-length", "transfer-encoding", "expect"):
            del self.headers[name]
        return good

    def _handle_client_error(self, ex: BaseException) -> tuple[str, bytes]:
        return "400", _BAD_REQUEST

    def _log_error(self, t: Any, v: Any, tb: Any) -> None:
        pass  # faults of ours end in the application, which tells of them; these are the client's


class AdminServer(WSGIServer):
    """Serves on a socket that listens already, which may be ``shared`` with other processes."""

    def __init__(
        self, listening: gevent.socket.socket, application: Application, *, shared: bool
    ) -> None:
        super().__init__(
            listening,
            application,
            spawn=MOST,
            log=None,
            error_log=None,
            handler_class=_Handler,
            # Found out otherwise by a look-up of our own name.
            environ={
                "SERVER_NAME": "geosocks",
                "SERVER_PORT": "0",
                "wsgi.multiprocess": shared,  # then it takes one client at a time
            },
        )

    def close_now(self) -> None:
        """Listen no more, and hang up on everybody."""
        self.stop(timeout=0)


def _hang_up(sock: gevent.socket.socket) -> None:
    with suppress(OSError):  # it has ended by itself
        sock.shutdown(gevent.socket.SHUT_RDWR)
