"""The relay: two ways, each copied by a greenlet of its own until both have ended.

Knows streams; knows no SOCKS.  ``up`` is client to target and runs in the greenlet that calls
``Pump.relay``; ``down`` is the other way and runs in one more.

A way between two ``Connection``s copies through one buffer that all sessions share: nothing gives
way to others between a read and its write, and only what the kernel would not take is kept aside.
Once a way proves to be bulk it moves its octets with splice(2) through a pipe from a small pool and
they no longer pass through this process at all.  A way with any other stream at an end (a GSSAPI
wrapper, an embedder's own) is read and written by its methods.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

import gevent
from gevent import getcurrent
from gevent.hub import get_hub

from geosocks.errors import GeosocksError, ProtocolError
from geosocks.stream import SHUT_WR, Connection, Stream

CHUNK: Final = 64 * 1024
"""Octets read at a time; no more than that is kept for a slow reader."""

BULK_CHUNK: Final = 256 * 1024
"""Octets read at a time on a bulk way that cannot splice: calls cost more than octets."""

BULK_AFTER: Final = 4
"""Full reads in a row after which a way is bulk."""

TURN: Final = 1024 * 1024
"""Octets after which a way gives way to the other sessions, however much there is to read."""

PIPE_SIZE: Final = 512 * 1024
MAX_PIPES: Final = 32

CAN_SPLICE: Final = sys.platform == "linux"

if sys.platform == "linux":
    import fcntl


class End(Enum):
    """How a relay came to its end; the values stand in ``SessionClosed.reason``."""

    CLOSED = "closed"
    RESET_BY_CLIENT = "reset_by_client"
    RESET_BY_TARGET = "reset_by_target"
    BROKEN_BY_CLIENT = "broken_by_client"
    BROKEN_BY_TARGET = "broken_by_target"


@dataclass(slots=True)
class Meter:
    """Octets relayed so far.  Written by a session's two ways, read by whoever likes."""

    up: int = 0
    down: int = 0
    half_closed: bool = False
    """One way has ended and the other goes on."""


class _Broken(Exception):
    """A way cannot go on: ``at_source`` tells which of its ends broke, ``error`` how."""

    def __init__(self, at_source: bool, error: Exception) -> None:
        super().__init__(str(error))
        self.at_source = at_source
        self.error = error


class _OtherWayBroke(BaseException):
    """Thrown into the caller's greenlet while it copies up and the way down has broken."""


class Pump:
    """Relays any number of sessions of one hub; owns the shared buffer and the pipes."""

    def __init__(self, splice: bool = CAN_SPLICE) -> None:
        self._buffer = memoryview(bytearray(BULK_CHUNK))
        self._small = self._buffer[:CHUNK]
        self.pipes = PipePool(MAX_PIPES if splice else 0)

    def relay(self, client: Stream, target: Stream, meter: Meter) -> tuple[End, str | None]:
        """Copy both ways until both have ended or one has broken; returns how, and the error.

        The end of one way is passed on as a half-close, and the other way goes on.  A reset, or
        octets that its stream refuses, end both at once; ``abort`` is then the way to close.
        Closing the streams is the caller's.
        """
        way_down = _Way(self, target, client, meter, "down")
        way_up = _Way(self, client, target, meter, "up")
        caller = getcurrent()
        copying_up = True
        hub = get_hub()

        def down_broke() -> None:  # in the hub, so that the caller is where ``copying_up`` says
            if copying_up:
                caller.throw(_OtherWayBroke)

        def run_down() -> None:
            way_down.run()
            if way_down.broken is not None:
                hub.loop.run_callback(down_broke)

        down = gevent.spawn(run_down)
        try:
            way_up.run()
            copying_up = False
            if way_up.broken is None:
                down.join()
        except _OtherWayBroke:
            pass
        finally:
            copying_up = False
            down.kill()
        if way_up.broken is not None:
            return _end(way_up.broken, End.RESET_BY_CLIENT, End.RESET_BY_TARGET)
        if way_down.broken is not None:
            return _end(way_down.broken, End.RESET_BY_TARGET, End.RESET_BY_CLIENT)
        return End.CLOSED, None

    def close(self) -> None:
        """Give the pooled pipes back."""
        self.pipes.close()


_BROKEN: Final = {
    End.RESET_BY_CLIENT: End.BROKEN_BY_CLIENT,
    End.RESET_BY_TARGET: End.BROKEN_BY_TARGET,
}


def _end(broken: _Broken, source: End, sink: End) -> tuple[End, str]:
    end = source if broken.at_source else sink
    if isinstance(broken.error, GeosocksError):
        end = _BROKEN[end]
    return end, str(broken.error)


def abort(stream: Stream) -> None:
    """Close ``stream`` so that its peer sees a reset where the stream can do that."""
    reset: Callable[[], None] = getattr(stream, "reset", stream.close)
    reset()


class _Way:
    """One direction of one session."""

    __slots__ = ("broken", "direction", "meter", "pump", "sink", "source")

    def __init__(
        self, pump: Pump, source: Stream, sink: Stream, meter: Meter, direction: str
    ) -> None:
        self.pump = pump
        self.source = source
        self.sink = sink
        self.meter = meter
        self.direction = direction
        self.broken: _Broken | None = None

    def run(self) -> None:
        """Copy until the source ends or either end breaks, which ``broken`` then tells."""
        source, sink, meter = self.source, self.sink, self.meter
        try:
            if type(source) is Connection and type(sink) is Connection:
                self._copy_plain(source, sink)
            else:
                self._copy(source, sink)
            try:
                if not meter.half_closed:  # else all is over, and closing says so as well
                    meter.half_closed = True
                    sink.shutdown(SHUT_WR)
            except OSError as error:
                raise _Broken(False, error) from error
        except _Broken as broken:
            self.broken = broken

    def _count(self, octets: int) -> None:
        if self.direction == "up":
            self.meter.up += octets
        else:
            self.meter.down += octets

    def _copy(self, source: Stream, sink: Stream) -> None:
        """Copy by the streams' own methods."""
        turn = 0
        while True:
            try:
                data = source.recv(CHUNK)
            except (OSError, ProtocolError) as error:
                raise _Broken(True, error) from error
            if not data:
                return
            try:
                sink.sendall(data)
            except (OSError, ProtocolError) as error:
                raise _Broken(False, error) from error
            self._count(len(data))
            turn += len(data)
            if turn >= TURN:
                turn = 0
                gevent.sleep(0)

    def _copy_plain(self, source: Connection, sink: Connection) -> None:
        """Copy through the shared buffer, and by splice(2) while there is much to copy."""
        rest = source.take_rest()
        if rest:
            _send(sink, rest)
            self._count(len(rest))
        pipes = self.pump.pipes
        buffer = self.pump._small
        recv_into, send = source.sock.recv_into, sink.sock.send
        full = turn = 0
        while True:
            try:
                got = recv_into(buffer)
            except BlockingIOError:
                turn = 0
                source.wait_readable()
                continue
            except OSError as error:
                raise _Broken(True, error) from error
            if not got:
                return
            # Nothing between the read and this write gives way to others: the buffer is shared.
            try:
                sent = send(buffer[:got])
            except BlockingIOError:
                sent = 0
            except OSError as error:
                raise _Broken(False, error) from error
            if sent < got:
                _send(sink, bytes(buffer[sent:got]))
                buffer, full = self.pump._small, 0
                self._count(got)
                continue
            self._count(got)
            if got < len(buffer):
                # The socket is most likely empty: wait at once instead of asking it.
                full = turn = 0
                buffer = self.pump._small
                source.wait_readable()
                continue
            full += 1
            turn += got
            if full >= BULK_AFTER:
                if pipes.available() and not self._splice(source, sink):
                    return
                buffer = self.pump._buffer if not pipes.available() else self.pump._small
                full = turn = 0
            if turn >= TURN:
                turn = 0
                source.wait_readable()

    def _splice(self, source: Connection, sink: Connection) -> bool:
        """Move octets through a pipe while they come in bulk.

        Returns False at the end of the source, True when it is better to copy again: no pipe is to
        be had, or the octets come in small pieces.

        EAGAIN of splice(2) does not tell which end is to blame, but the pipe is always emptied
        before more is moved into it: on the way in it is the source that is empty, on the way out
        the sink that is full.  No SPLICE_F_MORE: it holds the tail of a burst back.
        """
        if sys.platform != "linux":
            return True
        source_fd, sink_fd = source.fileno(), sink.fileno()
        pipes = self.pump.pipes
        turn = small = 0
        while small < BULK_AFTER:
            pipe = pipes.take()
            if pipe is None:
                return True
            held = 0
            try:
                try:
                    held = os.splice(source_fd, pipe.into, pipe.size, flags=_SPLICE_FLAGS)
                except BlockingIOError:
                    held = -1
                except OSError as error:
                    raise _Broken(True, error) from error
                if held == 0:
                    return False
                if held > 0:
                    moved = held
                    while True:
                        try:
                            held -= os.splice(pipe.out_of, sink_fd, held, flags=_SPLICE_FLAGS)
                        except BlockingIOError:
                            sink.wait_writable()
                        except OSError as error:
                            raise _Broken(False, error) from error
                        if not held:
                            break
                    self._count(moved)
            finally:
                # A pipe is given back before every wait for the source, so a session that falls
                # silent keeps none; one with octets left in it is of no use to anybody.
                pipes.give_back(pipe, empty=held <= 0)
            if held < 0:
                turn = 0
                source.wait_readable()
                continue
            small = small + 1 if moved < CHUNK else 0
            turn += moved
            if turn >= TURN:
                turn = 0
                source.wait_readable()
        return True


def _send(sink: Connection, data: bytes) -> None:
    try:
        sink.sendall(data)
    except OSError as error:
        raise _Broken(False, error) from error


if sys.platform == "linux":
    _SPLICE_FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


@dataclass(frozen=True, slots=True)
class Pipe:
    """A pipe(7): octets go ``into`` it and come ``out_of`` it; it holds ``size`` of them."""

    into: int
    out_of: int
    size: int

    def close(self) -> None:
        """Give both descriptors back."""
        os.close(self.into)
        os.close(self.out_of)


class PipePool:
    """At most ``most`` pipes, made when first needed and used again.

    A pipe that the kernel grants only a small size (an unprivileged user's pipes shrink beyond
    ``/proc/sys/fs/pipe-user-pages-soft``, see pipe(7)) is worth less than copying: then, and when
    no descriptor is left, the pool stops growing.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._made = 0
        self._free: list[Pipe] = []

    def available(self) -> bool:
        """True when ``take`` would most likely give one."""
        return bool(self._free) or self._made < self.most

    def take(self) -> Pipe | None:
        """A pipe that is empty, or None; the caller gives it back."""
        if self._free:
            return self._free.pop()
        if sys.platform != "linux" or self._made >= self.most:
            return None
        try:
            out_of, into = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            self.most = self._made
            return None
        try:
            size = fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        except OSError:
            size = fcntl.fcntl(into, fcntl.F_GETPIPE_SZ)
        pipe = Pipe(into, out_of, size)
        if size < CHUNK:
            pipe.close()
            self.most = self._made
            return None
        self._made += 1
        return pipe

    def give_back(self, pipe: Pipe, empty: bool) -> None:
        """Take ``pipe`` in again; one that is not ``empty`` is closed."""
        if empty and self._made <= self.most:
            self._free.append(pipe)
        else:
            self._made -= 1
            pipe.close()

    def close(self) -> None:
        """Close the pipes that nobody uses, and those in use when they come back."""
        self.most = 0
        for pipe in self._free:
            pipe.close()
        self._made -= len(self._free)
        self._free.clear()
