"""Scores that fade: how much somebody has failed of late, for a bounded number of somebodies.

Whoever has one waits before the next attempt; what else comes of it is another's matter.
"""

from collections.abc import Hashable
from math import ceil
from typing import Final

FADE: Final = 30.0
"""Seconds after which a failure is forgiven."""

FREE: Final = 10
"""Failures that have no consequence."""

FIRST_DELAY: Final = 0.125
LONGEST_DELAY: Final = 2.0
"""Seconds to wait before an attempt: twice as many after each failure."""

SLOWEST: Final = FREE + 5
"""The score at which that is at its longest."""

MOST: Final = 16_384
"""Keys of a table; beyond, the one that has failed longest ago goes."""


class Scores:
    """One more for each failure, one less for every ``fade`` seconds.  False when it is empty.

    ``ceiling`` is the most that a score can be, so that what is bad enough is forgotten in a known
    time.  Times are those of any clock that does not go back, in seconds.
    """

    def __init__(self, fade: float, ceiling: float, most: int = MOST) -> None:
        self.fade = fade
        self.ceiling = ceiling
        self.most = most
        self._scores: dict[Hashable, tuple[float, float]] = {}  # as it was, and when

    def __bool__(self) -> bool:
        return bool(self._scores)

    def __len__(self) -> int:
        return len(self._scores)

    def add(self, key: Hashable, now: float) -> float:
        """Count a failure; the score with it."""
        score = min(self.ceiling, self.of(key, now) + 1)
        # Anew at the end: the first is the one that has failed longest ago.
        self._scores.pop(key, None)
        self._scores[key] = score, now
        if len(self._scores) > self.most:
            del self._scores[next(iter(self._scores))]
        return score

    def of(self, key: Hashable, now: float) -> float:
        """The score as it is by now; whoever has none is forgotten."""
        known = self._scores.get(key)
        if known is None:
            return 0.0
        score = known[0] - (now - known[1]) / self.fade
        if score <= 0:
            del self._scores[key]
            return 0.0
        return score

    def keys(self) -> list[Hashable]:
        """All that were known when they were last looked at; some may have faded since."""
        return list(self._scores)

    def forget(self, key: Hashable) -> None:
        """Forgive all at once."""
        self._scores.pop(key, None)

    def sweep(self, now: float) -> None:
        """Forget those at the beginning who have no score any more."""
        while self._scores:
            key = next(iter(self._scores))
            if self.of(key, now) > 0:
                return


def delay_after(score: float) -> float:
    """Seconds to wait before an attempt, by the score of failures."""
    over = ceil(score) - FREE
    if over <= 0:
        return 0.0
    return min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** (over - 1))
