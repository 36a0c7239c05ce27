"""Who is at the other end of a UNIX socket, by the kernel's word, and who may give orders there.

unix(7): SO_PEERCRED are the credentials of the process that called connect(2), at that time.
"""

import socket as stdlib_socket  # constants
import struct
from dataclasses import dataclass
from typing import Any, Final

_SO_PEERGROUPS: Final = 59
"""Its supplementary groups, since Linux 4.13 (socket.h); Python has no name for it."""

_MOST_GROUPS: Final = 256
"""More than Python lets the kernel tell: of who is in more, only the first group counts."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A process, as it was when it connected."""

    pid: int
    uid: int
    groups: frozenset[int] = frozenset()
    """Its group and its supplementary ones."""

    def may_ask(self, owner: int, group: int | None) -> bool:
        """Whether it is root, ``owner`` themselves, or in ``group``, where a group may."""
        return self.uid in (0, owner) or group in self.groups


def peer_of(sock: Any) -> Peer:
    """Who has connected to ``sock``.

    Raises:
        OSError: the kernel does not tell.
    """
    size = struct.calcsize("3i")
    told = sock.getsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_PEERCRED, size)
    pid, uid, gid = struct.unpack("3i", told)
    try:
        more = sock.getsockopt(stdlib_socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MOST_GROUPS)
    except OSError:  # ERANGE, or an older kernel
        more = b""
    return Peer(pid, uid, frozenset((gid, *struct.unpack(f"{len(more) // 4}I", more))))
