"""When short messages go to and fro, the hub stays with their sessions for as long as they do.

A turn of gevent's loop costs more than to read and write a short message.  So where such messages
have followed each other, ``exchange`` waits for the next ones on the epoll(7) descriptor of the
connections and passes them on, and all else has its turn when something else happens, or soon.

All that waits only for the clock may be late by that: eight milliseconds at most, three as a rule.
"""

from typing import Any, Final

from geosocks.in_c import compiled
from geosocks.relay.way import Shared, Way
from geosocks.stream import Connection

_exchange: Any = compiled("exchange")

WORTH: Final = 8
"""Messages that make a volley worth its while, and one more for so many ways in it."""

DOUBT: Final = 16
"""Short messages that go by as ever at first, and more after each volley that was not worth it."""

MOST_DOUBT: Final = 4096

LOOK: Final = 64
"""Volleys in which a session has to have had a message to stay one of them."""


class Volleys:
    """The lively sessions of one hub."""

    def __init__(self, shared: Shared, exchange: Any, most: int) -> None:
        self._shared = shared
        self._loop: Any = shared.here.loop
        self._watchers: Any = shared.here.watchers
        self._exchange = exchange
        self._most = most
        self._doubt = DOUBT
        self._until_look = LOOK
        self._lively: dict[Way, bool] = {}
        """The ways up of sessions with short messages, and whether any came in a volley lately."""

        self.messages = 0
        """Passed on so far."""

    def join(self, way: Way) -> None:
        """A short message has come on ``way``: its session may be one of those."""
        other = way.opposite
        if other is not None and len(self._lively) < self._most:
            way.is_lively = other.is_lively = True
            self._lively[way if way.is_up else other] = True

    def begin(self, way: Way) -> bytes:
        """In the hub, as a short message came on ``way``: pass more on, if it is time for that.

        Returns what the sink of ``way`` would not take; of all others it is seen to.
        """
        # Others wait, of whom that descriptor tells nothing.
        if self._loop.pendingcnt or self._loop._callbacks or self._shared.here.giving_way:
            return b""
        if self._watchers.left:
            return b""
        ways = self._ready()
        ends = [one.source.fileno() for one in ways]
        outcome: tuple[int, list[tuple[int, int]], int, int, int, int, bytes]
        watchers = self._watchers
        outcome = self._exchange.run(watchers.fileno(), ends, way.sink.fileno(), watchers.around())
        messages, moved, odd, got, sent, failure, rest = outcome
        for place, octets in moved:
            ways[place].count(octets)
            self._lively[ways[place & ~1]] = True
        self._judge(messages, len(ways))
        if odd < 0:
            return b""
        left: bytes = ways[odd].settle(got, sent, failure, rest)
        if ways[odd] is way:
            return left
        ways[odd].go_on(left)
        return b""

    def _ready(self) -> list[Way]:
        """Both ways of each lively session, if there is nothing but messages to wait for."""
        ways: list[Way] = []
        for up in list(self._lively):
            down = up.opposite
            if down is not None and up.is_ready() and down.is_ready():
                target: Connection = up.sink
                while target.hold_back:
                    target.hurry()
                ways.append(up)
                ways.append(down)
            else:
                self.forget(up)
        return ways

    def _judge(self, messages: int, ways: int) -> None:
        self.messages += messages
        if messages >= WORTH + ways // WORTH:
            self._doubt = 0
        else:
            self._doubt = min(2 * self._doubt + DOUBT, MOST_DOUBT)
        self._shared.before_volley = self._doubt
        self._until_look -= 1
        if self._doubt or not self._until_look:
            self._until_look = LOOK
            self._look()

    def _look(self) -> None:
        """Only who had a message since the last look is lively."""
        for up, is_lively in list(self._lively.items()):
            if is_lively:
                self._lively[up] = False
            else:
                self.forget(up)

    def forget(self, up: Way) -> None:
        """It is over, or silent, or there is more to do for it than to pass messages on."""
        up.is_lively = False
        if up.opposite is not None:
            up.opposite.is_lively = False
        self._lively.pop(up, None)


def volleys_of(shared: Shared) -> Volleys | None:
    """Those of a hub; None where ``exchange`` has not been compiled, or the loop is another one."""
    loop: Any = shared.here.loop
    if _exchange is None or type(loop).__module__ != "gevent.libev.corecext":
        return None  # of what the descriptor of another kind of loop tells, if it has one
    if loop.backend != "epoll" or not hasattr(loop, "_callbacks"):
        return None
    return Volleys(shared, _exchange.Exchange(), _exchange.MOST // 2)
