"""What is told now and then, however often it happens."""

import time


class Seldom:
    """Says yes at most once in ``seconds``, and counts how often it was asked."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._last = float("-inf")
        self._asked = 0

    def now(self) -> bool:
        """Whether it is time again."""
        self._asked += 1
        if time.monotonic() - self._last < self.seconds:
            return False
        self._last = time.monotonic()
        return True

    def taken(self) -> int:
        """How often it was asked since this was last called."""
        asked, self._asked = self._asked, 0
        return asked
