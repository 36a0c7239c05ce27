"""Taking connections from a listening socket; in the hub."""

from _socket import socket as RawSocket
from collections.abc import Callable
from typing import Any


def accept_waiting(
    accept: Callable[[], tuple[int, Any]],
    kind: tuple[int, int, int],
    most: int,
    is_full: Callable[[], bool],
    serve: Callable[[RawSocket, tuple[Any, Any]], object],
    listener: Any,
) -> OSError | None:
    """Accept up to ``most`` connections, as long as there are any, and have each served.

    ``kind`` are family, type and protocol of their sockets, which the constructor would else ask
    the kernel for.  ``serve`` gets the socket, and with it the peer's address and ``listener``.

    Returns accept(2)'s error, if it was one that ends this.  What is one client's trouble, such as
    a connection that was reset before we took it (ECONNABORTED), is nobody else's (accept(2),
    "Error handling"): it is returned, too, and the next event goes on from there.
    """
    family, type_, protocol = kind
    while True:
        try:
            fd, address = accept()
        except BlockingIOError:
            return None
        except OSError as error:
            return error
        sock = RawSocket(family, type_, protocol, fd)
        sock.setblocking(False)
        serve(sock, (address, listener))
        most -= 1
        if most <= 0 or is_full():
            return None
