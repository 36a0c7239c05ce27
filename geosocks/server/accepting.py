"""Taking connections from a listening socket; in the hub."""

from collections.abc import Callable
from typing import Any

from geosocks.calls import close
from geosocks.greenlets import GreenletPool
from geosocks.hubs import OfHub
from geosocks.stream import Connection


def accept_waiting(
    accept: Callable[[], tuple[int, Any]],
    kind: tuple[int, int, int],
    most: int,
    is_full: Callable[[], bool],
    greenlets: GreenletPool,
    serve: Callable[[Connection, Any, Any], object],
    listener: Any,
    here: OfHub,
) -> OSError | None:
    """Accept up to ``most`` connections, as long as there are any, and have each served.

    ``accept`` is as ``geosocks.calls.accepting`` makes it, and ``kind`` are family, type and
    protocol of the sockets.  ``serve`` gets the connection, the peer's address and ``listener``,
    in a greenlet of its own.

    Returns accept(2)'s error, if it was one that ends this.  What is one client's trouble, such as
    a connection that was reset before we took it (ECONNABORTED), is nobody else's (accept(2),
    "Error handling"): it is returned, too, and the next event goes on from there.
    """
    while True:
        try:
            fd, address = accept()
        except BlockingIOError:
            return None
        except OSError as error:
            return error
        try:
            connection = Connection(None, fd, kind, here)
        except BaseException:
            close(fd)
            raise
        greenlets.run(serve, connection, address, listener)
        most -= 1
        if most <= 0 or is_full():
            return None
