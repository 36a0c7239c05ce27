"""Verdicts that are the same the next time.

Apart from ``RuleSet``: this is what most sessions ask of it, and all that.
"""

from collections.abc import Hashable
from typing import Any, Final

REMEMBERED: Final = 4096
"""Verdicts at a time."""


class Memory:
    """Verdicts by all that the rules could see; ``keeps`` is False where they may see more."""

    __slots__ = ("_verdicts", "keeps")

    def __init__(self, keeps: bool) -> None:
        self.keeps = keeps
        self._verdicts: dict[Hashable, Any] = {}

    def recall(self, asked: Hashable) -> Any:
        """The verdict that was noted, or None."""
        return self._verdicts.get(asked)

    def note(self, asked: Hashable, verdict: Any) -> None:
        """Keep ``verdict``; where there are too many, all others are forgotten."""
        if not self.keeps:
            return
        if len(self._verdicts) >= REMEMBERED:
            self._verdicts.clear()
        self._verdicts[asked] = verdict
