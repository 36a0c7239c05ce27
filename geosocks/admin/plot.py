"""A line plot over time as HTML with inline SVG, drawn here: no script, no style attribute.

The drawing stretches to its place; the words around it are HTML and stay as large as others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH: Final = 720
HEIGHT: Final = 160
STEPS: Final = (1, 2, 5, 10)


@dataclass(frozen=True, slots=True)
class Series:
    """One line: its name, its look (a class of the style sheet), and values by moment."""

    name: str
    look: str
    points: Sequence[tuple[int, float]]
    """Moments, in their order, and values that are not negative."""


def ceiling(value: float, least: float = 1.0) -> float:
    """The first of ``least`` times 1, 2, 5, 10, 20, 50, ... that is not less than ``value``."""
    top = least
    while True:
        for step in STEPS:
            if top * step >= value:
                return top * step
        top *= 10


def plot(
    title: str,
    summary: str,
    lines: Sequence[Series],
    *,
    first: int,
    last: int,
    least: float,
    when: Sequence[str],
    written: Callable[[float], str],
) -> str:
    """Draw ``lines`` from moment ``first`` to ``last``.

    ``when`` are the words below: at the left, after each third, and at the right.  ``written``
    writes a value; ``summary`` says in words what there is to see.  At its top the plot is at least
    ``least``.
    """
    highest = max((value for line in lines for _, value in line.points), default=0.0)
    top = ceiling(highest, least)
    drawn = "".join(_draw(line, first, last, top, fill=len(lines) == 1) for line in lines)
    keys = "".join(
        f'<span class="key"><svg class="swatch {line.look}" viewBox="0 0 12 12" aria-hidden="true">'
        f'<rect width="12" height="12" rx="2"/></svg>{escape(line.name)}</span>'
        for line in lines
    )
    legend = f'<span class="keys">{keys}</span>' if len(lines) > 1 else ""
    heights = "".join(f"<span>{escape(written(value))}</span>" for value in (top, top / 2, 0))
    times = "".join(f"<span>{escape(word)}</span>" for word in when)
    grid = "".join(
        f'<line class="grid" x1="0" x2="{WIDTH}" y1="{y:g}" y2="{y:g}"/>'
        for y in (0.5, HEIGHT / 2, HEIGHT - 0.5)
    )
    empty = "" if drawn else '<p class="empty">Nothing yet: the first moments come soon.</p>'
    return (
        f'<figure class="plot"><figcaption><h2>{escape(title)}</h2>{legend}</figcaption>'
        f'<div class="heights" aria-hidden="true">{heights}</div>'
        f'<div class="drawing"><svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none"'
        f' role="img" aria-label="{escape(title)}: {escape(summary)}">{grid}{drawn}</svg>{empty}'
        f'</div><div class="times" aria-hidden="true">{times}</div>'
        f'<p class="summary">{escape(summary)}</p></figure>'
    )


def _draw(line: Series, first: int, last: int, top: float, *, fill: bool) -> str:
    """A line, and what is below it, in pieces where there is no moment for a while."""
    span = max(1, last - first)
    drawn = []
    for piece in _pieces([point for point in line.points if first <= point[0] <= last]):
        if len(piece) == 1:  # a dot, which would otherwise not be seen
            piece = [piece[0], (piece[0][0] + 0.5, piece[0][1])]
        places = [
            f"{(moment - first) / span * WIDTH:.1f},{HEIGHT - value / top * HEIGHT:.1f}"
            for moment, value in piece
        ]
        if fill:
            ends = [place.partition(",")[0] for place in (places[0], places[-1])]
            area = f"M{ends[0]},{HEIGHT}L{' '.join(places)}L{ends[1]},{HEIGHT}Z"
            drawn.append(f'<path class="area {line.look}" d="{area}"/>')
        drawn.append(f'<polyline class="line {line.look}" points="{" ".join(places)}"/>')
    return "".join(drawn)


def _pieces(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """Points that follow each other; two moments may be missing between them."""
    pieces: list[list[tuple[float, float]]] = []
    for point in points:
        if pieces and point[0] - pieces[-1][-1][0] <= 3:
            pieces[-1].append(point)
        else:
            pieces.append([point])
    return pieces
