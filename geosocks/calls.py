"""What a session asks of the kernel, in the shortest way there is.

That is ``in_c.calls`` where it has been compiled; else Python's own functions, and what is None has
to be done by a socket's methods.
"""

import os
from collections.abc import Callable
from socket import AF_INET, AF_INET6
from typing import Any, Final

from geosocks.in_c import compiled

_in_c: Any = compiled("calls")

read: Final[Callable[[int, int], bytes]] = _in_c.read if _in_c else os.read
"""read(2): a descriptor, and how many octets at most.

Raises:
    OSError: as it fails; BlockingIOError where there is nothing yet.
"""

write: Final[Callable[[int, bytes | memoryview], int]] = _in_c.write if _in_c else os.write
"""write(2); returns how many octets were taken.

Raises:
    OSError: as it fails; BlockingIOError where none can be taken yet.
"""

close: Final[Callable[[int], None]] = _in_c.close if _in_c else os.close
"""close(2)."""

shutdown: Final[Callable[[int, int], None] | None] = _in_c.shutdown if _in_c else None
"""shutdown(2): a descriptor, and how.

Raises:
    OSError: as it fails.
"""

send_at_once: Final[Callable[[int], None] | None] = _in_c.send_at_once if _in_c else None
"""Wait for no more octets before few are sent (TCP_NODELAY, tcp(7)).

Raises:
    OSError: it is no TCP socket.
"""

Connected = tuple[int, int, tuple[Any, ...] | None]

connect: Final[Callable[[bool, str, int], Connected] | None] = _in_c.connect if _in_c else None
"""A new TCP socket, which does not block, that connects: is it IPv4, to which host, which port?

Returns its descriptor; 0 where it is connected, or connect(2)'s errno, such as EINPROGRESS; and its
name, where it is connected.  One that the kernel has joined to itself is ECONNREFUSED: dialling a
port of this host from which outgoing connections are made can meet itself (simultaneous open).

Raises:
    OSError: there is no descriptor left.
"""


Taken = tuple[int, Any]


def accepting(sock: Any) -> Callable[[], Taken | None]:
    """What takes one connection of the listening ``sock``: its descriptor, and the peer's name.

    The descriptor does not block.  It is None where nobody waits to be taken; it raises OSError as
    accept(2) otherwise.
    """
    if _in_c and sock.family in (AF_INET, AF_INET6):
        taken: Callable[[], Taken | None] = _in_c.Accept(sock.fileno())
        return taken

    def accept() -> Taken | None:
        try:
            fd, name = sock._accept()
        except BlockingIOError:
            return None
        os.set_blocking(fd, False)
        return fd, name

    return accept
