"""A narrow receive window, where a way is not slower with one.

A peer on this very host that may have but little under way is faster by a fifth where its own
processor is what there is too little of, and slower by a third where it has time to spare (by
measurement; README).  So it is tried, and tried again later.

Knows sockets; which way is alone, and how fast it is, is known by ``coalescing``.
"""

import socket
from _socket import socket as RawSocket
from contextlib import suppress
from typing import Final

from geosocks.relay.pacing import has_peer_within_host
from geosocks.stream import Connection

_IPPROTO_TCP: Final = int(socket.IPPROTO_TCP)
_WINDOW_CLAMP: Final[int] = getattr(socket, "TCP_WINDOW_CLAMP", 0)  # tcp(7), Linux only

NARROW: Final = 192 * 1024
"""Octets of a narrow window."""

STEPS: Final = 5
"""Speeds that are taken with a wide window, and as many with a narrow one."""

SETTLE: Final = 1
"""Speeds that are of no account after it has been changed."""

SLOWER: Final = 0.95
"""A way is slower if it has less than this part of its speed; so much it varies by itself."""

AGAIN: Final = 750
"""Speeds after which it is tried again; one is taken each ``coalescing.WINDOW``: 30 seconds."""


class ReceiveWindow:
    """How many octets a peer may have under way (TCP_WINDOW_CLAMP, tcp(7)).

    What it has been promised already may still come: nothing is dropped.  The kernel makes it wide
    by itself when it finds that the buffer is to grow.
    """

    def __init__(self, sock: RawSocket) -> None:
        self._sock = sock
        self._clamp = 0
        """What it was before it was made narrow."""

    @property
    def is_narrow(self) -> bool:
        """It has been made so."""
        return self._clamp > 0

    def narrow(self) -> None:
        """Let the peer have no more than ``NARROW`` under way, if it may have more."""
        with suppress(OSError):  # it has gone
            clamp = self._sock.getsockopt(_IPPROTO_TCP, _WINDOW_CLAMP)
            if clamp > NARROW:
                self._sock.setsockopt(_IPPROTO_TCP, _WINDOW_CLAMP, NARROW)
                self._clamp = clamp

    def widen(self) -> None:
        """Let it have as much as before, if the kernel does not already."""
        with suppress(OSError):  # it has gone
            if self.is_narrow and self._sock.getsockopt(_IPPROTO_TCP, _WINDOW_CLAMP) == NARROW:
                self._sock.setsockopt(_IPPROTO_TCP, _WINDOW_CLAMP, self._clamp)
        self._clamp = 0


class Trial:
    """Whether a way is slower with a narrow window: then it has a wide one again."""

    def __init__(self, window: ReceiveWindow) -> None:
        self._window = window
        self._wide: list[float] = []
        self._narrow: list[float] = []
        self._rests = 0
        """So many speeds more are of no account."""

    def note(self, speed: float) -> None:
        """The way was as fast as that, and the only fast one."""
        if self._rests:
            self._rests -= 1
        elif not self._wide and self._window.is_narrow:
            self._window.widen()
            self._rests = SETTLE
        elif len(self._wide) < STEPS:
            self._wide.append(speed)
            if len(self._wide) == STEPS:
                self._window.narrow()
                self._rests = SETTLE
        else:
            self._narrow.append(speed)
            if len(self._narrow) == STEPS:
                self._decide()

    def _decide(self) -> None:
        if sum(self._narrow) < sum(self._wide) * SLOWER:
            self._window.widen()
        self._forget()
        self._rests = AGAIN

    def break_off(self) -> None:
        """The way has fallen silent, or is not alone: what was measured so far is worth nothing.

        What was decided before stays as it is.
        """
        if self._wide:
            self._window.widen()
            self._rests = SETTLE
            self._forget()

    def _forget(self) -> None:
        self._wide.clear()
        self._narrow.clear()


def trial_of(connection: Connection) -> Trial | None:
    """One of a connection from a peer on this host; None of any other."""
    if not _WINDOW_CLAMP or not has_peer_within_host(connection):
        return None
    return Trial(ReceiveWindow(connection.sock))
