"""Octet streams: what a session asks of one, the socket that is one, the one read loop, deadlines.

Everything above this module reads and writes through a ``Stream``; nothing here knows what the
octets mean.
"""

import errno
import os
from _socket import IPPROTO_TCP, SO_LINGER, SOL_SOCKET, TCP_NODELAY
from _socket import SHUT_WR as SHUT_WR
from _socket import socket as RawSocket
from collections.abc import Callable
from contextlib import suppress
from struct import pack
from typing import Any, Final, Self, TypeVar

import gevent.socket
from greenlet import getcurrent

from geosocks.calls import close, read, send_at_once, shutdown, write
from geosocks.deadlines import Deadline
from geosocks.errors import GeosocksError, Truncated
from geosocks.hubs import WRITE, OfHub, Wake, of_hub
from geosocks.octets import Stream as Stream
from geosocks.wire import NeedMore
from geosocks.wire.straight import Whole

M = TypeVar("M")

# As Final they need no look-up by name, which costs as much as a short function.
_read: Final = read
_write: Final = write
_close: Final = close
_shutdown: Final = shutdown
_send_at_once: Final = send_at_once
_getcurrent: Final = getcurrent

GREEDY: Final = 448
"""Octets a small read takes from the kernel: a whole handshake of a client that pipelines, and no
more than Python has at hand for an object of its own (512, less what makes them an object)."""

_GREEDY: Final[Any] = GREEDY  # as an object, which is not to be made of the number each time

_LINGER_RESET: Final = pack("ii", 1, 0)


class Connection:
    """A connected non-blocking socket as a Stream, owned and read by one greenlet at a time.

    Cheaper than a gevent socket in what a session does most: it tries the call before it waits,
    and what it waits on (``OfHub.watch``) stays armed from one wait to the next.  It reads and
    writes the descriptor (read(2), write(2)), which spares a socket object's ways to the same.

    ``local`` and ``remote`` are the names of its ends, where somebody knows them already; ``here``
    is what belongs to its hub, which otherwise is that of the first to wait for it; ``peer`` is
    whoever it was made to reach, in the maker's own terms.

    A small read takes what has come (up to ``GREEDY`` octets) and keeps the rest for the next, so a
    handshake costs few system calls: ``rest``, which ``take_rest`` hands over.

    It is made of a socket object; or of a descriptor, with the ``kind`` of its socket (family, type
    and protocol), and then makes that object when first asked for it.
    """

    __slots__ = (
        "_fd",
        "_is_known",
        "_kind",
        "_sock",
        "_writer",
        "here",
        "hold_back",
        "local",
        "peer",
        "remote",
        "rest",
        "spoken",
    )

    def __init__(
        self,
        sock: RawSocket | None,
        fd: int = -1,
        kind: tuple[int, int, int] = (-1, -1, -1),
        here: OfHub | None = None,
    ) -> None:
        self._sock = sock
        self._fd = fd if sock is None else sock.fileno()
        self._kind = kind
        self.here = here
        self.local: tuple[Any, ...] | str | None = None
        self.remote: tuple[Any, ...] | str | None = None
        self.peer: object = None
        self._writer: Any = None
        self._is_known = False  # to those who tell of what there is to read
        self.rest = b""
        self.spoken = False
        """We were the last to say something, so there is most likely nothing to read yet."""

        self.hold_back = 0
        """Writes until ``hurry`` has done its work; 0 where there is none left."""

    @property
    def sock(self) -> RawSocket:
        """The socket, for what is not reading, writing and waiting; it stays the Connection's.

        Raises:
            OSError: it is closed.
        """
        if self._sock is None:
            if self._fd < 0:  # which the constructor would take for none given
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            family, type_, protocol = self._kind
            self._sock = RawSocket(family, type_, protocol, self._fd)
        return self._sock

    @classmethod
    def take(cls, sock: gevent.socket.socket) -> Self:
        """Take a gevent socket's descriptor over; ``sock`` is closed to its former owner."""
        raw = RawSocket(fileno=sock.detach())
        raw.setblocking(False)
        return cls(raw)

    def fileno(self) -> int:
        """The descriptor; -1 when closed."""
        return self._fd

    def getsockname(self) -> tuple[Any, ...] | str:
        """Our end's address (getsockname(2)); the path of a UNIX socket."""
        if self.local is None:
            self.local = self.sock.getsockname()
        return self.local

    def getpeername(self) -> tuple[Any, ...] | str:
        """The peer's address (getpeername(2))."""
        if self.remote is None:
            self.remote = self.sock.getpeername()
        return self.remote

    def recv(self, size: int, /) -> bytes:
        """Read up to ``size`` octets; b"" at the end of the stream.

        Raises:
            OSError: as recv(2).
        """
        rest = self.rest
        if rest:
            self.rest = rest[size:]
            return rest[:size]
        while True:
            try:
                if size >= GREEDY:
                    return _read(self._fd, size)
                data = _read(self._fd, _GREEDY)
            except BlockingIOError:
                self.wait_readable()
            else:
                self.rest = data[size:]
                return data[:size]

    def peek(self) -> bytes:
        """All that has come and nobody has read, which stays unread; b"" at the end of the stream.

        Waits until there is something.

        Raises:
            OSError: as recv(2).
        """
        while not self.rest:
            if self.spoken:  # to look in vain costs more than to wait
                self.spoken = False
                self.wait_readable()
            try:
                self.rest = _read(self._fd, _GREEDY)
                break
            except BlockingIOError:
                self.wait_readable()
        return self.rest

    def discard(self) -> None:
        """Read away what has come, or to close is to reset (RFC 1122, 4.2.2.13); up to 1 MiB."""
        self.rest = b""
        with suppress(OSError):  # BlockingIOError, once there is no more
            for _ in range(16):
                if not _read(self._fd, 65536):
                    break

    def take_rest(self) -> bytes:
        """What was read from the kernel and not yet by anybody; the caller has it now."""
        rest, self.rest = self.rest, b""
        return rest

    def sendall(self, data: bytes | memoryview, /) -> None:
        """Send all of ``data``, waiting for the peer to take it where need be.

        Raises:
            OSError: as send(2).
        """
        self.spoken = True
        if self.hold_back:
            self.hurry()
        try:
            sent = _write(self._fd, data)
        except BlockingIOError:
            sent = 0
        while sent < len(data):
            data = memoryview(data)[sent:]
            self.wait_writable()
            try:
                sent = _write(self._fd, data)
            except BlockingIOError:
                sent = 0

    def hurry(self) -> None:
        """Something is about to be sent: few octets are not to wait for others (TCP_NODELAY).

        The kernel holds back only what follows few octets that the peer has not confirmed yet, so
        nothing is to be done before the second write, which many a session never comes to.
        """
        self.hold_back -= 1
        if self.hold_back:
            return
        with suppress(OSError):  # it has gone, which the write will tell
            if _send_at_once is None:
                self.sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
            else:
                _send_at_once(self._fd)

    def _at_hub(self) -> OfHub:
        here = self.here
        if here is None:
            here = self.here = of_hub()
        return here

    def wait_readable(self) -> None:
        """Give way to others until there is something to read (or the end, or an error)."""
        self.watch(_getcurrent())
        try:
            self._at_hub().wait()
        except BaseException:
            self.unwatch()
            raise

    def watch(self, wake: Wake, keep: bool = False) -> None:
        """Have ``wake`` called in the hub, once, when there is something to read.

        To ``keep`` is to have it called each time, until ``unwatch``.
        """
        self._at_hub().watch(self._fd, wake, keep, not self._is_known)
        self._is_known = True

    def is_watched(self) -> bool:
        """Whether somebody is called each time there is something to read."""
        return self._is_known and self._at_hub().is_watched(self._fd)

    def unwatch(self) -> None:
        """Have nobody called."""
        if self._is_known:
            self._at_hub().unwatch(self._fd)

    def wait_writable(self) -> None:
        """Give way to others until some octets can be sent (or there is an error)."""
        here = self._at_hub()
        if self._writer is None:
            self._writer = here.loop.io(self._fd, WRITE)
        here.hub.wait(self._writer)

    def shutdown(self, how: int, /) -> None:
        """Close one way or both; a peer that has gone already is no error."""
        try:
            if _shutdown is None:
                self.sock.shutdown(how)
            else:
                _shutdown(self._fd, how)
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.ECONNRESET):
                raise

    def reset(self) -> None:
        """Close so that the peer sees a reset, not an end of stream (SO_LINGER of 0, socket(7))."""
        with suppress(OSError):  # closed already, or a socket that knows no linger
            self.sock.setsockopt(SOL_SOCKET, SO_LINGER, _LINGER_RESET)
        self.close()

    def close(self) -> None:
        """Wait for nothing any more, then close the descriptor; may be called again."""
        if self._is_known:
            self._is_known = False
            self._at_hub().forget(self._fd)
        if self._writer is not None:
            self._writer.close()  # which stops it
            self._writer = None
        fd, self._fd = self._fd, -1
        if self._sock is not None:
            self._sock.close()
        elif fd >= 0:
            _close(fd)


def read_message(
    stream: Stream, decode: Callable[[bytes], M], start: bytes = b"", least: int = 0
) -> M:
    """Receive exactly one message and return it decoded.

    Asks for no octet beyond those that the message is known to need, so what follows it stays in
    ``stream``.  ``least`` is how many octets any such message has: a hint that saves asking twice.

    Raises:
        Truncated: the peer closed before the message was whole.
        ProtocolError: as ``decode`` declares.
    """
    data = start
    if len(data) < least:
        data += stream.recv(least - len(data))
    while True:
        try:
            return decode(data)
        except NeedMore as more:
            missing = more.missing
        chunk = stream.recv(missing)
        if not chunk:
            where = f"after {len(data)} octets of a message" if data else "before its next message"
            raise Truncated(f"peer closed {where}")
        data += chunk


def at_once(stream: Stream, whole: Whole[M]) -> M | None:
    """The message that has come in one piece with nothing behind it; otherwise None.

    Saves nearly every message the way through ``read_message``, where nothing is taken then.

    Raises:
        OSError: as the stream's.
    """
    if type(stream) is not Connection:
        return None
    message = whole.read(stream.peek())
    if message is not None:
        stream.take_rest()
    return message


def send(stream: Stream, octets: bytes) -> None:
    """Send all of ``octets``: ``sendall``, which costs less of a stream of a kind that is known.

    Raises:
        OSError: as the stream's.
    """
    if type(stream) is Connection:
        stream.sendall(octets)
    else:
        stream.sendall(octets)


deadline = Deadline
"""A ``with`` block of this raises an error inside when it lasts longer than so many seconds.

One of these bounds a whole phase, however many octets it takes: a time limit on each read would let
a peer live for ever on one octet a minute.
"""


def finish(stream: Stream, seconds: float = 10.0, octets: int = 65536) -> None:
    """Make sure that the peer can read our last words before the stream is closed.

    Half-closes, then reads away what the peer still sends until it closes as well, for at most
    ``seconds`` and ``octets``: closing a socket with unread octets makes the kernel send a reset,
    and the peer then loses what it had not read yet.  The default is the RFC's limit, "no more than
    10 seconds after detecting the condition that caused a failure" (RFC 1928, section 6).
    """
    # Any error means that it has gone: nobody is left to read anything.
    with suppress(OSError, GeosocksError), deadline(seconds, TimeoutError()):
        stream.shutdown(SHUT_WR)
        while octets > 0:
            data = stream.recv(16384)
            if not data:
                return
            octets -= len(data)
