"""One address that a server listens on: connections are accepted in the hub, sixty-four at a time.

Knows sockets and who serves what comes of them; knows no session.
"""

from _socket import socket as RawSocket
from typing import Any, Final, Protocol

import gevent.socket
from gevent.server import StreamServer

from geosocks.calls import accepting
from geosocks.greenlets import GreenletPool
from geosocks.hubs import of_hub
from geosocks.listening import Opened
from geosocks.relay.listen import EXHAUSTED
from geosocks.server.accepting import Door, Reception, accept_waiting


class Serving(Protocol):
    """What a listener asks of its server."""

    reception: Reception

    def _is_full(self) -> bool: ...

    def _accept_failed(self, error: OSError, seconds: float) -> None: ...


class Listener(StreamServer):
    """gevent's StreamServer, taught to survive a lack of descriptors in silence.

    The stock one prints a traceback for every failed accept(2) and sleeps up to a second.
    """

    max_accept = 64
    PAUSE: Final = 0.1
    """Seconds without accepting once there are no descriptors."""

    def __init__(self, opened: Opened, server: Serving, greenlets: GreenletPool) -> None:
        sock = _of_this_hub(opened.sock)
        handle: Any = server.reception.serve  # which do_read calls otherwise than gevent would
        super().__init__(sock, handle=handle)
        self.server = server
        # True at the ceiling of sessions: further clients wait in the backlog.
        self.full = server._is_full  # type: ignore[method-assign]
        self._accept = accepting(sock)
        self._greenlets = greenlets
        self._here = of_hub()
        # Told to each connection, whose socket's constructor would ask the kernel for them.
        self._kind = int(sock.family), int(sock.type), sock.proto
        self._door = Door(opened.name, opened.listen.tls)
        self._file = opened.file

    def do_read(self) -> None:  # type: ignore[override]  # no gevent socket
        """Accept all who wait, up to ``max_accept``, and serve each in a greenlet of the pool."""
        error = accept_waiting(
            self._accept,
            self._kind,
            self.max_accept,
            self.full,
            self._greenlets,
            self.server.reception,
            self._door,
            self._here,
        )
        if error is None:
            return
        if error.errno in EXHAUSTED:
            self._pause()
            self.server._accept_failed(error, self.PAUSE)
        elif error.errno in self.fatal_errors:
            raise error

    def _pause(self) -> None:
        self.stop_accepting()
        self._timer = self.loop.timer(self.PAUSE)
        self._timer.start(self.resume)

    def resume(self) -> None:
        """Accept again, if this listener is not closed."""
        if self.started:
            self.start_accepting()

    def close(self) -> None:
        """Accept no more; the file of a UNIX socket goes, if it is still the one made here."""
        super().close()
        if self._file is not None:
            self._file.remove()
            self._file = None


def _of_this_hub(sock: gevent.socket.socket | RawSocket) -> gevent.socket.socket:
    """``sock`` as one of gevent's, which owns it from here on."""
    if isinstance(sock, gevent.socket.socket):
        return sock
    return gevent.socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach())
