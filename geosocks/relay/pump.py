"""The relay: two ways, each moved until both have ended.

Knows streams; knows no SOCKS.  ``up`` is client to target, ``down`` is the other way; the greenlet
that calls ``Pump.relay`` waits for them.
"""

from collections.abc import Callable
from enum import Enum
from typing import Final

from greenlet import getcurrent, greenlet

from geosocks.errors import GeosocksError
from geosocks.greenlets import GreenletPool
from geosocks.relay.pipes import CAN_SPLICE
from geosocks.relay.volleys import volleys_of
from geosocks.relay.way import Meter, Shared, Waiter, Way
from geosocks.stream import Stream

# As Final they need no look-up by name, which costs as much as a short function.
_getcurrent: Final = getcurrent
_switch: Final = greenlet.switch


class End(Enum):
    """How a relay came to its end; the values stand in ``SessionClosed.reason``."""

    CLOSED = "closed"
    RESET_BY_CLIENT = "reset_by_client"
    RESET_BY_TARGET = "reset_by_target"
    BROKEN_BY_CLIENT = "broken_by_client"
    BROKEN_BY_TARGET = "broken_by_target"


_CLOSED: Final = End.CLOSED


class Pump(Shared):
    """Relays any number of sessions of one hub; owns what their ways share."""

    def __init__(self, splice: bool = CAN_SPLICE, greenlets: GreenletPool | None = None) -> None:
        super().__init__(splice, greenlets)
        self.volleys = volleys_of(self)

    def relay(self, client: Stream, target: Stream, meter: Meter) -> tuple[End, str | None]:
        """Copy both ways until both have ended or one has broken; returns how, and the error.

        The end of one way is passed on as a half-close, and the other way goes on.  A reset, or
        octets that its stream refuses, end both at once; ``abort`` is then the way to close.
        Closing the streams is the caller's.
        """
        relay = _Relay(self, client, target, meter)
        relay.run()
        if relay.up.error is None and relay.down.error is None:
            return _CLOSED, None
        for way in (relay.up, relay.down):
            if way.error is not None:
                ends = (End.RESET_BY_CLIENT, End.RESET_BY_TARGET)
                if not isinstance(way.error, OSError) or isinstance(way.error, GeosocksError):
                    ends = (End.BROKEN_BY_CLIENT, End.BROKEN_BY_TARGET)
                return ends[way.is_up is not way.at_source], str(way.error)
        return _CLOSED, None


def abort(stream: Stream) -> None:
    """Close ``stream`` so that its peer sees a reset where the stream can do that."""
    reset: Callable[[], None] = getattr(stream, "reset", stream.close)
    reset()


class _Relay(Waiter):
    """One session's two ways; the greenlet that calls ``run`` waits for them."""

    __slots__ = ("_caller", "_here", "_pump", "_waiting", "down", "up")

    def __init__(self, pump: Pump, client: Stream, target: Stream, meter: Meter) -> None:
        self.up = Way(pump, client, target, meter, True)
        self.down = Way(pump, target, client, meter, False)
        self.up.waiter = self.down.waiter = self
        self.up.opposite, self.down.opposite = self.down, self.up
        self._pump = pump
        self._here = pump.here
        self._caller = _getcurrent()
        self._waiting = False

    def run(self) -> None:
        """Copy until both ways have ended or one has broken."""
        up, down = self.up, self.down
        try:
            down.start()
            up.start()
            while not self._is_over():
                self._wait()
        finally:
            up.stop()
            down.stop()
            self._wait_at_any_rate()
            if up.is_lively and self._pump.volleys is not None:
                self._pump.volleys.forget(up)
            up.waiter = down.waiter = None  # cycles less for the collector to find
            up.opposite = down.opposite = None
            up.flow = down.flow = None

    def _is_over(self) -> bool:
        up, down = self.up, self.down
        both = up.ended and down.ended
        return both or up.error is not None or down.error is not None

    def _wait(self) -> None:
        self._waiting = True
        try:
            self._here.wait()
        finally:
            self._waiting = False

    def _wait_at_any_rate(self) -> None:
        """Wait until both have ended, and only then give in to whoever wants this one to end."""
        demand: BaseException | None = None
        while not (self.up.ended and self.down.ended):
            try:
                self._wait()
            except BaseException as error:
                demand = error
        if demand is not None:
            raise demand

    def way_ended(self) -> None:
        """In the hub: one of the two has."""
        if self._waiting and self._is_over():
            _switch(self._caller)
