"""The costs as an SVG: a panel for each scenario, a bar for each server, a dot for each round."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from benchlib.measure import Scenario
from benchlib.report import SUBJECT, Result, by_scenario, figure

WIDTH, MARGIN, GAP = 960, 24, 40
PANEL = (WIDTH - 2 * MARGIN - GAP) / 2
NAMES = 84  # for the servers' names, left of the bars
FIGURES = 52  # for the figures, right of them
ROW, BAR = 24, 14
HEAD, TITLE, AXIS = 76, 30, 44

# No CSS variables: some viewers (librsvg) do not know them.
STYLE = """
text { font: 13px system-ui, 'DejaVu Sans', sans-serif; fill: #1f2328; }
.page { fill: #ffffff; }
.head { font-size: 18px; font-weight: 600; }
.title, .strong { font-weight: 600; }
.soft { fill: #59636e; font-size: 12px; }
.right { text-anchor: end; }
.middle { text-anchor: middle; }
.grid { stroke: #d8dee4; stroke-width: 1; }
.ours { fill: #0a69c9; }
.theirs { fill: #9aa4b0; }
.dot { fill: none; stroke: #1f2328; stroke-width: 1; opacity: 0.7; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .page { fill: #0d1117; }
  .soft { fill: #9aa4b0; }
  .grid { stroke: #30363d; }
  .ours { fill: #58a6ff; }
  .theirs { fill: #5a6572; }
  .dot { stroke: #e6edf3; }
}
"""


def svg(results: Sequence[Result], about: dict[str, Any]) -> str:
    """Draw the costs of all servers that have any."""
    panels = [
        (scenario, shown)
        for scenario, found in by_scenario(results)
        if (shown := [one for one in found if one.least is not None])
    ]
    parts: list[str] = []
    top = float(HEAD)
    for first in range(0, len(panels), 2):
        pair = panels[first : first + 2]
        for column, (scenario, shown) in enumerate(pair):
            parts += _panel(scenario, shown, MARGIN + column * (PANEL + GAP), top)
        top += max(_height(shown) for _, shown in pair)
    height = top + MARGIN / 2
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" '
            f'width="{WIDTH}" height="{height:g}" role="img">',
            "<title>What geosocks and other SOCKS5 servers cost</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="page" width="{WIDTH}" height="{height:g}"/>',
            _text(MARGIN, 32, "What a SOCKS5 server costs: less is better", "head"),
            _text(MARGIN, 54, _explained(about), "soft"),
            *parts,
            "</svg>\n",
        ]
    )


def _explained(about: dict[str, Any]) -> str:
    rounds, cores = about["rounds"], about["cores"]
    return (
        f"Bar and figure: the least of {rounds} round{'s' if rounds > 1 else ''}; circles: each. "
        f"{about['date'][:10]}, {cores} core{'s' if cores > 1 else ''}, Linux {about['kernel']}"
    )


def _height(shown: Sequence[Result]) -> float:
    return TITLE + ROW * len(shown) + AXIS


def _panel(scenario: Scenario, shown: Sequence[Result], left: float, top: float) -> list[str]:
    """Title, grid, axis with its title, and the bars."""
    start, room = left + NAMES, PANEL - NAMES - FIGURES
    # A round that went astray is cut off rather than squeeze all others.
    step, most = _ticks(1.02 * max(one.median or 0.0 for one in shown))
    bottom = top + TITLE + ROW * len(shown)
    parts = [_text(left, top + 14, f"{scenario.name}: {scenario.title}", "title")]
    for number in range(round(most / step) + 1):
        at = start + room * number * step / most
        parts.append(
            f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{top + TITLE - 4:g}" '
            f'y2="{bottom:g}"/>'
        )
        parts.append(_text(at, bottom + 15, f"{number * step:g}", "soft middle"))
    parts.append(_text(start + room / 2, bottom + 31, scenario.cost, "soft middle"))
    for row, one in enumerate(shown):
        parts += _bar(one, start, top + TITLE + ROW * row, room / most, start + room)
    return parts


def _bar(one: Result, start: float, top: float, scale: float, end: float) -> list[str]:
    """One server: its name, its least, a circle for each round."""
    ours = one.server == SUBJECT
    middle = top + ROW / 2 - 2
    least = one.least or 0.0
    parts = [
        _text(start - 8, middle + 4.5, one.server, "right strong" if ours else "right"),
        f'<rect class="{"ours" if ours else "theirs"}" x="{start:g}" y="{middle - BAR / 2:g}" '
        f'width="{max(least * scale, 1):.1f}" height="{BAR}" rx="2"/>',
    ]
    parts += [
        f'<circle class="dot" cx="{start + cost * scale:.1f}" cy="{middle:g}" r="2.5"/>'
        for cost in one.costs
        if start + cost * scale <= end
    ]
    parts.append(_text(end + 8, middle + 4.5, figure(least), "strong" if ours else ""))
    return parts


def _ticks(most: float) -> tuple[float, float]:
    """The distance of about four ticks, a round number, and where the last one is."""
    rough = max(most, 1e-9) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    return step, step * math.ceil(most / step)


def _text(x: float, y: float, what: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(what)}</text>'
