"""Tables, sizes and durations as a person reads them."""

from collections.abc import Iterable, Iterator, Sequence

NOTHING = "-"
"""In a cell that has nothing to tell."""


def octets(number: float) -> str:
    """A number of octets in three digits: ``0``, ``999``, ``1.2k``, ``45M``, ``1.0G``; by 1000s."""
    if number < 1000:
        return f"{number:.0f}"
    for unit in "kMGTPE":
        number /= 1000
        if number < 9.95:
            return f"{number:.1f}{unit}"
        if number < 999.5:
            return f"{number:.0f}{unit}"
    return f"{number:.0f}E"


def rate(per_second: float) -> str:
    """Octets a second."""
    return f"{octets(per_second)}/s"


def duration(seconds: float | None) -> str:
    """``0.3s``, ``59s``, ``4m07s``, ``3h12m``, ``12d04h``."""
    if seconds is None:
        return NOTHING
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole // 60 % 60:02}m"
    return f"{whole // 86400}d{whole // 3600 % 24:02}h"


def cell(value: object) -> str:
    """A value as a cell shows it."""
    return NOTHING if value is None or value == "" else str(value)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """The lines of a table with aligned columns.

    A column whose title begins with ``>`` is for numbers: it is aligned at its right.
    """
    titles = [title.removeprefix(">") for title in head]
    lines = [titles, *([cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = [
            text.rjust(width) if title.startswith(">") else text.ljust(width)
            for title, text, width in zip(head, line, widths, strict=True)
        ]
        yield "  ".join(padded).rstrip()
