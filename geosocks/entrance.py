"""Connections that have not proven anything yet: how many there may be, and whose are turned away.

Three things, each of which an honest client meets at the cost of a comparison:

- Many slow handshakes at a time: from ``start`` on some new connections are closed at random, more
  of them the more there are, all at ``full``.  Whoever fills the server with half-open connections
  so shares it with everybody else instead of shutting them out.
- Many slow handshakes of one source.  Where there is no place left for anybody, those beyond the
  one number or the other are cut, the oldest first.
- Sources that fail to authenticate.  Ten failures are free; then a source waits before each
  attempt, 2 s at most; then its connections are closed for a while, 10 minutes at most.  It fades.

A handshake is slow when it has lasted for a second.  Those of honest clients take milliseconds, but
a thousand of them may well begin at once; so a burst of clients is not what is counted.

A source is an address of IPv4, or a network of 64 bits of IPv6, which is what one host has.
Sources in ``exempt`` are never turned away and gather no failures.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network
from math import ceil
from typing import Final

from geosocks.scores import FADE, SLOWEST, Scores, delay_after
from geosocks.wire.socks5 import IPAddress

IPNetwork = IPv4Network | IPv6Network

LOOPBACK: Final[tuple[IPNetwork, ...]] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))

SLOW_AFTER: Final = 1.0
"""Seconds after which a handshake is slow."""

LOOK_EVERY: Final = 0.1
"""Seconds for which a look at all handshakes is good."""

MOST_HANDSHAKES: Final = 20_000
"""``full`` where nothing else is said: with some 12 kB each, that is enough to lose."""

FIRST_REFUSAL: Final = 5.0
LONGEST_REFUSAL: Final = 600.0
"""Seconds for which a source is refused, once its delay is at the longest: twice as many after each
failure."""

WORST: Final = SLOWEST + 8
"""The score at which a refusal is at its longest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrance:
    """What a policy has to say about it.  None: by how many sessions the server can have."""

    start: int | None = None
    rate: float = 0.3
    """The part of new connections that is closed at ``start``, 0 to 1."""

    full: int | None = None
    per_source: int | None = None
    slow_after: float = SLOW_AFTER
    exempt: tuple[IPNetwork, ...] = LOOPBACK

    def is_exempt(self, host: IPAddress) -> bool:
        """Whether ``host`` is one that is never turned away."""
        return any(host in network for network in self.exempt)


def source_of(host: IPAddress) -> str:
    """The source that a client's address belongs to."""
    if isinstance(host, IPv6Address):
        return str(IPv6Network((int(host) >> 64 << 64, 64)))
    return str(host)


def refusal_after(score: float) -> float:
    """Seconds of refusal that a failure brings, by the score with it."""
    over = ceil(score) - SLOWEST
    if over <= 0:
        return 0.0
    return min(LONGEST_REFUSAL, FIRST_REFUSAL * 2.0 ** (over - 1))


Handshake = tuple[float, IPAddress, int]
"""One in progress: when it began, whose it is, the id of its session."""


def _began(handshake: Handshake) -> float:
    return handshake[0]


class Gate:
    """Decides who is let in to begin a handshake.  Live state of a server, in its hub's thread.

    The server counts in ``handshakes`` all that are in progress, and asks ``refuses`` about a new
    one only when there are ``watch`` of them, or on ``alert``.  ``all_handshakes`` tells of each
    when it began, whose it is and its session's id; it is asked ten times a second at most.
    """

    def __init__(
        self,
        max_sessions: int,
        all_handshakes: Callable[[], Iterable[Handshake]],
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.handshakes = 0
        self.alert = False
        """Whether some source is refused."""

        self.failures = Scores(FADE, WORST)
        """Of sources, by their names; false while nobody has failed of late."""

        self._refused: dict[str, float] = {}  # until when
        self._slow: Counter[str] = Counter()  # handshakes, when last looked at
        self._looked = float("-inf")
        self._max_sessions = max_sessions
        self._all = all_handshakes
        self._clock = clock
        self._chance = chance
        self.adopt(Entrance())

    def adopt(self, entrance: Entrance) -> None:
        """Go by ``entrance`` from now on."""
        self.entrance = entrance
        default = max(2, min(self._max_sessions // 2, MOST_HANDSHAKES))
        self.full = entrance.full or max(default, entrance.start or 0)
        self.start = entrance.start or max(1, self.full // 2)
        # By default no source makes it that far alone that others are turned away.
        self.per_source = entrance.per_source or max(1, self.start // 2)
        self.watch = min(self.start, self.per_source)
        """Handshakes at a time from which on somebody may have to be turned away."""

        self._looked = float("-inf")

    def refuses(self, host: IPAddress) -> str | None:
        """Why a new connection of ``host`` is to be closed: one of REASONS; None lets it in."""
        if self.entrance.is_exempt(host):
            return None
        source = source_of(host)
        if self._refused and self.refused_for(source) > 0:
            return PENALISED
        if self.handshakes < self.watch:
            return None
        slow = self._slow_ones()
        if slow.total() >= self.start and self._chance() < self._share(slow.total()):
            return HANDSHAKES
        if slow[source] >= self.per_source:
            return OF_SOURCE
        return None

    def _share(self, slow: int) -> float:
        """The part of new connections to close."""
        if slow >= self.full:
            return 1.0
        rate = self.entrance.rate
        return rate + (1 - rate) * (slow - self.start) / (self.full - self.start)

    def _slow_ones(self) -> Counter[str]:
        """The slow handshakes of each source."""
        now = self._clock()
        if now - self._looked >= LOOK_EVERY:
            self._looked = now
            hosts = Counter(host for _, host, _ in self._all_slow(now))
            self._slow.clear()
            for host, count in hosts.items():  # few hosts, many handshakes
                self._slow[source_of(host)] += count
        return self._slow

    def _all_slow(self, now: float) -> list[Handshake]:
        since = now - self.entrance.slow_after
        return [handshake for handshake in self._all() if handshake[0] <= since]

    def crowding(self) -> list[int]:
        """Ids of the sessions to cut where there is no place left for anybody.

        Those are slow, and oldest: beyond ``per_source`` of one source, or beyond ``start`` of all.
        """
        of_source: Counter[str] = Counter()
        kept, crowding = 0, []
        for _, host, session in sorted(self._all_slow(self._clock()), reverse=True, key=_began):
            if self.entrance.is_exempt(host):
                continue
            source = source_of(host)
            of_source[source] += 1
            if of_source[source] > self.per_source or kept >= self.start:
                crowding.append(session)
            else:
                kept += 1
        return crowding

    # --- failures -----------------------------------------------------------------------------

    def failed(self, host: IPAddress) -> tuple[str, float, float] | None:
        """Count a failed authentication of ``host``; None while that has no consequence.

        Otherwise the source, the seconds of delay before each of its next attempts, and those for
        which it is refused from now on.
        """
        if self.entrance.is_exempt(host):
            return None
        source, now = source_of(host), self._clock()
        score = self.failures.add(source, now)
        refusal = refusal_after(score)
        if refusal:
            self._refused.pop(source, None)
            self._refused[source] = now + refusal
            if len(self._refused) > self.failures.most:
                del self._refused[next(iter(self._refused))]
            self.alert = True
        delay = delay_after(score)
        return (source, delay, refusal) if delay else None

    def delay(self, host: IPAddress) -> float:
        """Seconds that ``host`` has to wait before it may try to authenticate."""
        if self.entrance.is_exempt(host):
            return 0.0
        return delay_after(self.failures.of(source_of(host), self._clock()))

    def is_refused(self, host: IPAddress) -> bool:
        """Whether ``host`` is not to try at all for now."""
        return bool(self._refused) and self.refused_for(source_of(host)) > 0

    def refused_for(self, source: str) -> float:
        """Seconds for which a source is refused still; 0 where it is not."""
        until = self._refused.get(source)
        if until is None:
            return 0.0
        left = until - self._clock()
        if left <= 0:
            del self._refused[source]
            self.alert = bool(self._refused)
            return 0.0
        return left

    def penalty(self, source: str) -> tuple[float, float]:
        """Seconds that a source waits before each attempt, and for which it is refused still."""
        score = self.failures.of(source, self._clock())
        return delay_after(score), self.refused_for(source)

    def pardon(self, source: str) -> bool:
        """Forget that a source has failed; whether that had a consequence for it."""
        had = any(self.penalty(source))
        self.failures.forget(source)
        self._refused.pop(source, None)
        self.alert = bool(self._refused)
        return had

    def sweep(self) -> None:
        """Forget what has faded, so that nobody is asked about it."""
        self.failures.sweep(self._clock())
        for source in list(self._refused):
            self.refused_for(source)


PENALISED: Final = "penalised"
HANDSHAKES: Final = "handshakes"
OF_SOURCE: Final = "handshakes_of_source"
REASONS: Final = (HANDSHAKES, OF_SOURCE, PENALISED)
"""Why a connection is closed before a word is said."""
