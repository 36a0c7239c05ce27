"""Verdicts that are the same the next time.

Apart from ``RuleSet``: this is what most sessions ask of it, and all that.
"""

from collections.abc import Hashable
from typing import Final

from geosocks.rules.question import Effects, Verdict
from geosocks.wire.address import IPAddress

REMEMBERED: Final = 4096
"""Verdicts at a time."""


class Noted:
    """A verdict, and what every session asks of it where it is found at once."""

    __slots__ = ("addresses", "effects", "rule", "verdict", "via")

    def __init__(self, verdict: Verdict) -> None:
        self.verdict: Final = verdict
        self.rule: Final[str] = verdict.rule
        self.addresses: Final[tuple[IPAddress, ...]] = verdict.addresses
        self.via: Final[tuple[str, ...]] = verdict.via
        self.effects: Final[Effects | None] = verdict.effects


class Memory:
    """Verdicts by all that the rules could see; ``keeps`` is False where they may see more."""

    __slots__ = ("_verdicts", "keeps")

    def __init__(self, keeps: bool) -> None:
        self.keeps = keeps
        self._verdicts: dict[Hashable, Noted] = {}

    def recall(self, asked: Hashable) -> Noted | None:
        """The verdict that was noted, or None."""
        return self._verdicts.get(asked)

    def note(self, asked: Hashable, verdict: Noted) -> None:
        """Keep ``verdict``; where there are too many, all others are forgotten."""
        if not self.keeps:
            return
        if len(self._verdicts) >= REMEMBERED:
            self._verdicts.clear()
        self._verdicts[asked] = verdict
