"""One way of a relay: from where it reads to where it writes, until it has ended.

Knows streams; knows no SOCKS.  A way between two ``Connection``s copies through one buffer that all
sessions share: nothing gives way to others between a read and its write, and only what the kernel
would not take is kept aside.  Once it proves to be bulk it moves its octets with splice(2) through
a pipe from a small pool and they no longer pass through this process at all; if it is a fast one,
many at a time.  A way with any other stream at an end (a GSSAPI wrapper, an embedder's own) is read
and written by its methods.
"""

import errno
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from greenlet import getcurrent, greenlet

from geosocks.calls import read, write
from geosocks.greenlets import GreenletPool, give_way
from geosocks.hubs import of_hub
from geosocks.relay.coalescing import Coalescer, Flow
from geosocks.relay.narrowing import Trial, trial_of
from geosocks.relay.pacing import unpace
from geosocks.relay.pipes import CAN_SPLICE, MAX_PIPES, SPLICE_FLAGS, Pipe, PipePool
from geosocks.stream import GREEDY, SHUT_WR, Connection, Stream

if TYPE_CHECKING:
    from geosocks.relay.volleys import Volleys

# As Final they need no look-up by name, which costs as much as a short function.
_read: Final = read
_readv: Final = os.readv
_write: Final = write
_getcurrent: Final = getcurrent
_SHUT_WR: Final[int] = SHUT_WR

CHUNK: Final = 64 * 1024
"""Octets read at a time; no more than that is kept for a slow reader."""

SMALL: Final = GREEDY
"""Octets that are read into an object of their own, which costs less than a slice of the buffer."""

_SMALL: Final[Any] = SMALL  # as an object, which is not to be made of the number each time

BULK_CHUNK: Final = 256 * 1024
"""Octets read at a time on a bulk way that cannot splice: calls cost more than octets."""

BULK_AFTER: Final = 4
"""Full reads in a row after which a way is bulk."""

PIPEFULS: Final = 4
"""Taken one after the other while a fast way is the only one; if there are more, one a turn."""

TURN: Final = 1024 * 1024
"""Octets after which a way that keeps a greenlet gives way to others, however much there is."""


class Meter:
    """Octets relayed so far.  Written by a session's two ways, read by whoever likes."""

    __slots__ = ("datagrams", "down", "half_closed", "up")

    def __init__(self) -> None:
        self.up = 0
        self.down = 0
        self.half_closed = False
        """One way has ended and the other goes on."""

        self.datagrams = 0
        """Relayed either way by a UDP association; those of no octets are activity, too."""


class Shared:
    """What the ways of one hub have in common: the buffer, the pipes, the greenlets."""

    def __init__(self, splice: bool = CAN_SPLICE, greenlets: GreenletPool | None = None) -> None:
        self.greenlets = greenlets or GreenletPool()
        self.here = of_hub()
        self.pipes = PipePool(MAX_PIPES if splice else 0, CHUNK)
        self.coalescer = Coalescer()
        self.buffer = memoryview(bytearray(BULK_CHUNK))
        self.small = self.buffer[:CHUNK]
        self.volleys: Volleys | None = None
        """Whoever passes on more than one short message at a time, where that can be had."""

        self.before_volley = 16
        """Short messages that go by before it is asked again."""

    def close(self) -> None:
        """Give the pooled pipes and greenlets back."""
        self.pipes.close()
        self.coalescer.close()
        self.greenlets.close()


class Waiter:
    """Who is told that a way has ended.  A method of its own to call, made for each, costs more."""

    def way_ended(self) -> None:
        """In the hub: one has."""
        raise NotImplementedError


class _Stopped(BaseException):
    """Thrown into the greenlet of a way when the relay is over."""


class Way:
    """One direction of one session.

    It has a greenlet of the pool while it has to wait for its sink.  What is moved without waiting
    is moved by the hub, from the source's watcher, and a way that is silent holds none.  One with a
    stream that is no Connection keeps one all the time.
    """

    __slots__ = (
        "at_source",
        "bulk",
        "ended",
        "error",
        "flow",
        "greenlet",
        "has_passed",
        "held",
        "is_lively",
        "is_plain",
        "is_small",
        "is_up",
        "meter",
        "opposite",
        "pipe",
        "shared",
        "sink",
        "source",
        "waiter",
    )

    def __init__(
        self, shared: Shared, source: Stream, sink: Stream, meter: Meter, is_up: bool
    ) -> None:
        self.shared = shared
        self.source: Any = source
        self.sink: Any = sink
        self.meter = meter
        self.is_up = is_up
        self.is_plain = type(source) is Connection and type(sink) is Connection
        self.is_small = True
        """The next octets are expected to be few, as those before them were."""

        self.is_lively = False
        """One of its session whose short messages are looked for: ``volleys``."""

        self.has_passed = False
        """It has passed a short message on."""

        self.bulk = 0
        """How much it has earned to be spliced; 0 is a way that copies."""

        self.flow: Flow | None = None
        self.pipe: Pipe | None = None
        """What is ``held`` is in there; at any other time it is the pool's."""

        self.held = 0
        """Octets that the sink would not take yet."""

        self.ended = False
        self.error: Exception | None = None
        self.at_source = False
        """Whether ``error`` came from the source, not from the sink."""

        self.greenlet: greenlet | None = None
        self.opposite: Way | None = None
        self.waiter: Waiter | None = None

    # --- in the hub, and in greenlets of the pool ---------------------------------------------

    def start(self) -> None:
        """Copy whenever there is something to copy."""
        if self.is_plain:
            source: Connection = self.source
            if source.here is None:
                source.here = self.shared.here
            if not source.rest:
                source.watch(self, True)
                return
        self.shared.greenlets.spawn(self._go)

    def __call__(self) -> None:
        """In the hub, which cannot wait: there is something to read.

        What has to wait is for a greenlet.
        """
        left = b"" if self.bulk else self._step()
        if self.bulk:
            more = PIPEFULS if self.flow is not None and self.flow.is_alone() else 1
            while more and self._splice():
                more -= 1
        self.go_on(left)

    def go_on(self, left: bytes) -> None:
        """In the hub, after something has come: be told of more, if there is nothing else to do."""
        source: Connection = self.source
        if self.ended:
            source.unwatch()
            if self.waiter is not None:
                self.waiter.way_ended()
        elif left or self.held:
            source.unwatch()
            self.shared.greenlets.run(self._go, left)

    def _go(self, left: bytes = b"") -> None:
        """In a greenlet: do what has to wait, beginning with what the sink would not take."""
        if self.ended:
            return
        self.greenlet = _getcurrent()
        try:
            if not self.is_plain:
                self._copy()
            else:
                left = left or self.source.take_rest()
                if left:
                    self._send(left)
                if self.held:
                    self._splice_waiting()
        except _Stopped:
            self.ended = True
        finally:
            self.greenlet = None
        if not self.ended:
            self.source.watch(self, keep=True)
        elif self.waiter is not None:
            self.shared.here.loop.run_callback(self.waiter.way_ended)

    def stop(self) -> None:
        """End it, whatever it is at; ``ended`` tells when it has."""
        if self.ended:
            return
        if self.greenlet is None:
            self.ended = True
            if self.is_plain:
                self.source.unwatch()
        else:
            self.shared.here.loop.run_callback(self._throw)

    def _throw(self) -> None:
        if self.greenlet is not None:
            self.greenlet.throw(_Stopped)

    # --- copying ------------------------------------------------------------------------------

    def _end(self) -> None:
        """The source has ended: pass it on."""
        self.ended = True
        if not self.meter.half_closed:  # else all is over, and closing says so as well
            self.meter.half_closed = True
            try:
                self.sink.shutdown(_SHUT_WR)
            except Exception as error:
                self._break(False, error)

    def _break(self, at_source: bool, error: Exception) -> None:
        self.ended = True
        self.at_source = at_source
        self.error = error

    def count(self, octets: int) -> None:
        """So many octets have been passed on."""
        if self.is_up:
            self.meter.up += octets
        else:
            self.meter.down += octets

    def _copy(self) -> None:
        """Copy by the streams' own methods until it has ended."""
        source, sink = self.source, self.sink
        # What is sent in messages of its own fills them: a few octets more cost a message more.
        size: int = min(getattr(sink, "piece", CHUNK), CHUNK)
        turn = 0
        while True:
            try:
                data = source.recv(size)
            except Exception as error:
                return self._break(True, error)
            if not data:
                return self._end()
            try:
                sink.sendall(data)
            except Exception as error:
                return self._break(False, error)
            self.count(len(data))
            turn += len(data)
            if turn >= TURN:
                turn = 0
                give_way()

    def _send(self, data: bytes) -> None:
        """Send what the sink would not take at once, or was read behind the handshake."""
        try:
            self.sink.sendall(data)
        except OSError as error:
            return self._break(False, error)
        self.count(len(data))

    def _step(self) -> bytes:
        """Copy without waiting until the source is dry, the way is bulk or it is others' turn.

        Returns what the sink would not take, to be sent before anything else.
        """
        source: Connection = self.source
        sink: Connection = self.sink
        read_from, write_to = source.fileno(), sink.fileno()
        full = 0
        while True:
            data: bytes | memoryview
            try:
                if self.is_small:
                    data = self._read_small(read_from)
                    got, room = len(data), CHUNK
                else:
                    buffer = self.shared.small if full < BULK_AFTER else self.shared.buffer
                    room = len(buffer)
                    got = _readv(read_from, [buffer])
                    data = buffer if got == room else buffer[:got]
                    self.is_small = got < SMALL
            except BlockingIOError:
                return b""
            except OSError as error:
                self._break(True, error)
                return b""
            if not got:
                self._end()
                return b""
            if sink.hold_back:
                sink.hurry()
            # Nothing between the read and this write gives way to others: the buffer is shared.
            try:
                sent = _write(write_to, data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._break(False, error)
                return b""
            self.count(sent)
            if sent < got:
                return bytes(data[sent:])
            if got < room:  # most likely dry; if not, its watcher says so at once
                return self._passed() if self.is_small else b""
            full += 1
            if full == BULK_AFTER and self.shared.pipes.available():
                self.bulk = BULK_AFTER
                return b""
            if full >= 2 * BULK_AFTER:
                return b""

    def _passed(self) -> bytes:
        """A short message has been passed on whole; returns what the sink took of none after it."""
        shared = self.shared
        if shared.volleys is None:
            return b""
        if not self.is_lively:
            if not self.has_passed:  # many a session has but one each way
                self.has_passed = True
                return b""
            shared.volleys.join(self)
        if shared.before_volley:
            shared.before_volley -= 1
            return b""
        return shared.volleys.begin(self)

    def is_ready(self) -> bool:
        """Nothing is to be done but to pass on what comes next."""
        source: Connection = self.source
        return (
            self.is_plain
            and not (self.ended or self.bulk or self.held)
            and self.greenlet is None
            and source.is_watched()
        )

    def settle(self, got: int, sent: int, failure: int, rest: bytes) -> bytes:
        """Others have read and written for this way, and it was not as expected; ``_step`` knows.

        ``got`` and ``sent`` are what read(2) and write(2) returned, ``failure`` is errno.  Returns
        what the sink would not take, ``rest`` or nothing.
        """
        if not got:
            self._end()
        elif got < 0:
            self._break(True, OSError(failure, os.strerror(failure)))
        elif sent < 0 and failure != errno.EAGAIN:
            self._break(False, OSError(failure, os.strerror(failure)))
        else:
            return rest
        return b""

    def _read_small(self, read_from: int) -> bytes:
        """What has come, where little is expected; a message that is larger stays in one piece."""
        data = _read(read_from, _SMALL)
        if len(data) == SMALL:
            self.is_small = False
            with suppress(OSError):  # the next read says so again
                data += _read(read_from, CHUNK - SMALL)
        return data

    def _splice(self) -> bool:
        """As ``_step``, a pipeful; ``bulk`` falls to 0 when octets come in small pieces.

        EAGAIN of splice(2) does not tell which end is to blame, but the pipe is always emptied
        before more is moved into it: on the way in it is the source that is empty, on the way out
        the sink that is full.  No SPLICE_F_MORE: it holds the tail of a burst back.

        Returns whether there may be more, and the sink may take it: the pipe was full, and no
        longer is.
        """
        if sys.platform != "linux":
            return False
        pipes = self.shared.pipes
        pipe = pipes.take()
        if pipe is None:
            self.bulk = 0
            return False
        try:
            held = os.splice(self.source.fileno(), pipe.into, pipe.size, flags=SPLICE_FLAGS)
        except BlockingIOError:
            pipes.give_back(pipe, empty=True)
            return False
        except OSError as error:
            pipes.give_back(pipe, empty=True)
            self._break(True, error)
            return False
        if not held:
            pipes.give_back(pipe, empty=True)
            self._end()
            return False
        self.bulk = BULK_AFTER if held >= CHUNK else self.bulk - 1
        self.count(held)
        if self.flow is None:
            self.flow = Flow(self.shared.coalescer, self.source.sock, self._look, self._be_alone)
        self.flow.count(held)
        self.pipe = pipe
        self.held = held
        self._pour()
        return held == pipe.size and not (self.held or self.ended)

    def _be_alone(self) -> Trial | None:
        """It is the only fast one."""
        unpace(self.sink)
        return trial_of(self.source)

    def _pour(self) -> None:
        """Empty the pipe as far as the sink takes it; once empty it is given back."""
        if sys.platform != "linux" or self.pipe is None:
            return
        out_of, sink = self.pipe.out_of, self.sink.fileno()
        try:
            while self.held:
                self.held -= os.splice(out_of, sink, self.held, flags=SPLICE_FLAGS)
        except BlockingIOError:
            return
        except OSError as error:
            self._break(False, error)
        self._give_back()

    def _give_back(self) -> None:
        """A pipe with octets left in it, of no use to anybody, is closed."""
        pipe, held = self.pipe, self.held
        if pipe is not None:
            self.pipe = None
            self.held = 0
            self.shared.pipes.give_back(pipe, empty=not held)

    def _splice_waiting(self) -> None:
        """In a greenlet: for as long as it is the sink that is waited for."""
        try:
            while self.held:
                self.sink.wait_writable()
                self._pour()
                if self.bulk and not self.held and not self.ended:
                    self._splice()
        finally:
            self._give_back()

    def _look(self) -> None:
        """In the hub: few octets have come for some time."""
        if self.greenlet is None and not self.ended:
            self()
