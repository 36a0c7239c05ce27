"""What the rounds came to: figures for each server, the table, and the JSON."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchlib.measure import Round, Scenario

DIRECT = "no proxy"
SUBJECT = "geosocks"


@dataclass
class Result:
    """The rounds of one server in one scenario; owned by the loop that measures."""

    scenario: Scenario
    server: str
    rounds: list[Round] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def costs(self) -> list[float]:
        """Of the rounds that succeeded."""
        return [one.cost for one in self.rounds if one.cost is not None]

    @property
    def least(self) -> float | None:
        """The truest cost: what else the machine does can only add to it."""
        return min(self.costs, default=None)

    @property
    def median(self) -> float | None:
        """The cost in the middle."""
        return statistics.median(self.costs) if self.costs else None

    @property
    def speed(self) -> float | None:
        """The best round's; of descriptors the median."""
        speeds = [one.speed for one in self.rounds]
        if not speeds:
            return None
        return statistics.median(speeds) if self.scenario.mode == "idle" else max(speeds)

    @property
    def errors(self) -> int:
        """Sessions that failed, and datagrams that did not come back, in all rounds."""
        return sum(one.errors + one.lost for one in self.rounds)

    @property
    def fault(self) -> str:
        """What went wrong first, if anything did."""
        return next(iter([*self.failures, *filter(None, (one.fault for one in self.rounds))]), "")


def best_peer(results: Iterable[Result]) -> float | None:
    """The least cost of any server but geosocks."""
    costs = [one.least for one in results if one.server != SUBJECT and one.least is not None]
    return min(costs, default=None)


def ratio(result: Result, best: float | None) -> float | None:
    """Its cost as a part of the best peer's."""
    return result.least / best if best and result.least is not None else None


def by_scenario(results: Sequence[Result]) -> list[tuple[Scenario, list[Result]]]:
    """The results in the order they are shown in; the scenarios nobody got to are left out."""
    scenarios = list(dict.fromkeys(one.scenario for one in results))
    groups = [(each, [one for one in results if one.scenario == each]) for each in scenarios]
    return [(each, found) for each, found in groups if any(_tried(one) for one in found)]


def _tried(result: Result) -> bool:
    return bool(result.rounds or result.failures)


# --- the table ------------------------------------------------------------------------------------


def figure(value: float | None) -> str:
    """Three digits that count, and no more decimals than help."""
    if value is None:
        return "-"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(results: Sequence[Result]) -> str:
    """A part for each scenario, at most 100 columns wide."""
    parts: list[str] = []
    for scenario, found in by_scenario(results):
        best = best_peer(found)
        # A loss of datagrams is told with the errors.
        lines = [
            f"{scenario.name}: {scenario.title}; {scenario.cost}",
            f"  {'':<12}{'least':>9}{'median':>9}{'of best peer':>15}"
            f"{scenario.speed:>16}{'rounds':>9}{'errors':>9}",
        ]
        for one in filter(_tried, found):
            times = ratio(one, best)
            lines.append(
                f"  {one.server:<12}{figure(one.least):>9}{figure(one.median):>9}"
                f"{'-' if times is None else f'{times:.2f}':>15}"
                f"{figure(one.speed):>16}{len(one.rounds):>9}{one.errors:>9}"
            )
        lines += [f"  {one.server}: {one.fault}"[:100] for one in found if one.fault]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


# --- JSON -----------------------------------------------------------------------------------------


def as_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The scenarios, each with its servers, each with its rounds."""
    return [
        {
            "scenario": scenario.name,
            "title": scenario.title,
            "cost": scenario.cost,
            "speed": scenario.speed,
            "sessions": scenario.sessions,
            "servers": [
                {
                    "server": one.server,
                    "least": one.least,
                    "median": one.median,
                    "of_best_peer": ratio(one, best_peer(found)),
                    "speed": one.speed,
                    "errors": one.errors,
                    "failures": one.failures,
                    "rounds": [asdict(each) for each in one.rounds],
                }
                for one in filter(_tried, found)
            ],
        }
        for scenario, found in by_scenario(results)
    ]
