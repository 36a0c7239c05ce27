"""Fewer wake-ups for the fastest ways: the kernel tells of octets when many have come.

A server that is told of each 64 KiB of a fast stream spends more on being told than on moving them.
While a way is fast the kernel is asked to wait until there are more (SO_RCVLOWAT, socket(7)), as
many as come in half a tick of a clock; of the end of a stream, and of an error, it tells at once
all the same.

Nobody's octets may lie there for long: a way that has not moved any between two ticks is asked for
what there is and is as others from then on.  The clock runs while there are fast ways.

Knows sockets and the clock; what is moved, and how, is the pump's.
"""

from _socket import SO_RCVLOWAT, SOL_SOCKET
from _socket import socket as RawSocket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from gevent.hub import get_hub

from geosocks.relay.narrowing import Trial

TICK: Final = 0.004
"""Seconds between two looks at the fast ways: octets lie no longer than two of these."""

WINDOW: Final = 0.04
"""Seconds over which a way's speed is taken."""

LONGEST_WINDOW: Final = 0.64
"""It doubles up to this while a way falls silent soon after it was found fast: answers that wait
for the next question are as fast as a stream, and would be late by their tails each time."""

GRAIN: Final = 128 * 1024
"""A fast way waits for a multiple of so many octets; one with fewer in half a tick is slow."""

MOST_GRAINS: Final = 4
MOST_GRAINS_ALONE: Final = 8
"""Of one that is the only fast way."""

MOST: Final = 64
"""Fast ways at a time: each tick looks at all of them."""


class Flow:
    """What moves on one bulk way; ``late`` is called in the hub to have it look for octets.

    ``alone`` is called once it has stayed the only fast one for a while, if ever.  What it returns
    is told how fast the way is from then on.
    """

    __slots__ = (
        "_alone",
        "_coalescer",
        "_fast_since",
        "_grains",
        "_late",
        "_octets",
        "_since",
        "_sock",
        "_trial",
        "_window",
        "moved",
    )

    def __init__(
        self,
        coalescer: "Coalescer",
        sock: RawSocket,
        late: Callable[[], None],
        alone: Callable[[], Trial | None] | None = None,
    ) -> None:
        self._coalescer = coalescer
        self._alone = alone
        self._sock = sock
        self._late = late
        self._octets = 0
        self._since = coalescer.now()
        self._fast_since = 0.0
        self._window = WINDOW
        self._grains = 0
        """How much it waits for; 0 is a slow way."""

        self._trial: Trial | None = None
        self.moved = False

    def count(self, octets: int) -> None:
        """So many octets have been taken from the socket."""
        self.moved = True
        self._octets += octets
        seconds = self._coalescer.now() - self._since
        if seconds >= self._window:
            self._judge(seconds)

    def _judge(self, seconds: float) -> None:
        others = len(self._coalescer.fast) > (1 if self._grains else 0)
        most = MOST_GRAINS if others else MOST_GRAINS_ALONE
        speed = self._octets / seconds
        grains = min(int(speed * TICK / 2) // GRAIN, most)
        self._start_again()
        if self._alone is not None and self.is_alone():
            self._trial = self._alone()
            self._alone = None
        elif self._trial is not None:
            if self.is_alone():
                self._trial.note(speed)
            else:
                self._trial.break_off()
        if not grains or grains == self._grains:
            return  # a fast way that has become slow: the next tick may see that
        if not self._grains:
            if not self._coalescer.add(self):
                return
            self._fast_since = self._since
        self._grains = grains
        self._wait_for(grains * GRAIN)

    def is_alone(self) -> bool:
        """It is fast, and no other is."""
        return bool(self._grains) and len(self._coalescer.fast) == 1

    def _start_again(self) -> None:
        self._octets = 0
        self._since = self._coalescer.now()

    def _wait_for(self, octets: int) -> None:
        with suppress(OSError):  # closed meanwhile, or one that knows no such thing
            self._sock.setsockopt(SOL_SOCKET, SO_RCVLOWAT, octets)

    def slow_down(self) -> None:
        """In the hub: be told of every octet again, and take those that lie there."""
        self._grains = 0
        self._start_again()
        if self._trial is not None:
            self._trial.break_off()
        soon = self._since - self._fast_since < WINDOW
        self._window = min(2 * self._window, LONGEST_WINDOW) if soon else WINDOW
        self._wait_for(1)
        self._late()


class Coalescer:
    """The fast ways of a hub, at most ``most``, and their clock."""

    def __init__(self, most: int = MOST, now: Callable[[], float] | None = None) -> None:
        self.most = most
        self.now: Callable[[], float] = now or get_hub().loop.now
        self.fast: list[Flow] = []
        self._clock: Any = None

    def add(self, flow: Flow) -> bool:
        """Look after ``flow``, which is about to be fast; False when there are too many."""
        if len(self.fast) >= self.most:
            return False
        self.fast.append(flow)
        if self._clock is None:
            self._clock = get_hub().loop.timer(TICK, TICK)
            self._clock.start(self._tick)
        return True

    def _tick(self) -> None:
        fast = self.fast
        self.fast = [flow for flow in fast if flow.moved]
        if not self.fast:
            self._stop()
        run_callback = get_hub().loop.run_callback
        for flow in fast:
            if flow.moved:
                flow.moved = False
            else:
                run_callback(flow.slow_down)

    def _stop(self) -> None:
        self._clock.stop()
        self._clock.close()
        self._clock = None

    def close(self) -> None:
        """Let no more ways be fast; those that are become slow as they fall silent."""
        self.most = 0
