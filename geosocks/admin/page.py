"""The status page as HTML.  Whatever comes from a client, or from a file, is escaped here."""

import time
from collections.abc import Callable, Iterable, Sequence
from html import escape
from itertools import pairwise
from typing import Any, Final

from geosocks.admin.health import Level, Overview, Worker, judge
from geosocks.admin.look import STYLE
from geosocks.admin.plot import Series, plot
from geosocks.admin.words import REASONS as WORDS
from geosocks.admin.words import ago, duration, number, octets, rate, roughly
from geosocks.metrics.cells import EVERY, MOMENTS, REASONS
from geosocks.metrics.history import Moment

REFRESH: Final = 10
"""Seconds after which a browser asks for it again."""

FAILURES: Final = 12
NONE: Final = "&ndash;"

_SIGNS: Final[dict[Level, str]] = {
    "well": '<circle cx="13" cy="13" r="11"/><path d="M8 13.5l3.5 3.5 6.5-7.5"/>',
    "warn": '<path d="M13 3L24 23H2z"/><path d="M13 10.5v5.5M13 19.6v.1"/>',
    "bad": '<circle cx="13" cy="13" r="11"/><path d="M9 9l8 8M17 9l-8 8"/>',
}
_LEVELS: Final[dict[Level, str]] = {"well": "Well", "warn": "Attention", "bad": "Trouble"}


def page(seen: Overview, refresh: bool = True) -> str:
    """The whole page."""
    level, sentences = judge(seen)
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seen.at))
    again = f'<meta http-equiv="refresh" content="{REFRESH}">' if refresh else ""
    hint = (
        f'renewed every {REFRESH} s (<a href="?refresh=off">stop</a>)'
        if refresh
        else '<a href="/">renew by itself</a>'
    )
    body = "".join(
        (
            _state(level, sentences, seen),
            _tiles(seen),
            _sessions_plot(seen),
            _throughput_plot(seen),
            _top("Users with the most traffic", "User or client", seen.recent["users"]),
            _top("Destinations with the most traffic", "Destination", seen.recent["destinations"]),
            _refusals(seen),
            _failures(seen),
            _workers(seen),
        )
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"{again}<title>{_LEVELS[level]}: geosocks</title><style>{STYLE}</style></head><body>"
        f"<header><h1>geosocks</h1><p>{escape(seen.version)} &middot; {at} UTC, {hint}</p></header>"
        f"<main>{body}</main>"
        '<footer><a href="/metrics">/metrics</a><a href="/sessions">/sessions</a>'
        '<a href="/readyz">/readyz</a><a href="/healthz">/healthz</a></footer></body></html>\n'
    )


def _state(level: Level, sentences: Sequence[str], seen: Overview) -> str:
    first, rest = sentences[0], sentences[1:]
    more = f"<ul>{''.join(f'<li>{escape(one)}</li>' for one in rest)}</ul>" if rest else ""
    return (
        f'<section class="wide state {level}"><svg viewBox="0 0 26 26" role="img"'
        f' aria-label="{_LEVELS[level]}">{_SIGNS[level]}</svg>'
        f"<div><strong>{escape(first)}</strong>{more}<p>{escape(_in_short(seen))}</p></div></section>"
    )


def _in_short(seen: Overview) -> str:
    up = [worker for worker in seen.workers if worker.up]
    workers = "1 worker" if len(seen.workers) == 1 else f"{len(up)} of {len(seen.workers)} workers"
    if not up:
        return f"{workers}."
    loaded = max(worker.config_loaded for worker in up)
    started = min(worker.started for worker in up)
    settings = f"settings read {ago(seen.at - loaded)}"
    return f"{workers}, up for {duration(seen.at - started)}, {settings}.{_who_is_missing(seen)}"


def _tiles(seen: Overview) -> str:
    before = seen.an_hour_ago or seen.now
    rates = seen.rates
    handshakes = sum(worker.handshakes for worker in seen.workers)
    since = f"in the last {_covered(seen)}"
    tiles = (
        (
            "Sessions now",
            number(seen.now.active),
            f"of {number(seen.ceiling)}, {handshakes} opening",
        ),
        ("Down", rate(rates[1]) if rates else NONE, f"{octets(seen.now.down)} in all"),
        ("Up", rate(rates[0]) if rates else NONE, f"{octets(seen.now.up)} in all"),
        ("Sessions ended", number(seen.now.ended - before.ended), since),
        ("Came to nothing", number(seen.now.refused - before.refused), since),
    )
    return (
        '<dl class="wide">'
        + "".join(
            f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>"
            for name, value, note in tiles
        )
        + "</dl>"
    )


def _covered(seen: Overview) -> str:
    """What time the history covers, in words."""
    if not seen.moments:
        return "moment"
    seconds = seen.at - seen.moments[0].number * EVERY
    return "hour" if seconds >= 3500 else roughly(max(1.0, seconds))


_WHEN: Final = ("1 h ago", "40 min", "20 min", "now")


def _sessions_plot(seen: Overview) -> str:
    points = [(moment.number, float(moment.active)) for moment in seen.moments]
    at_least = 0.0
    if points and points[-1][0] >= seen.now.number:
        at_least = points.pop()[1]  # in this same moment there may have been more
    points.append((seen.now.number, max(at_least, float(seen.now.active))))
    most, when = max((value, moment) for moment, value in points)
    at = ago((seen.now.number - when) * EVERY)
    summary = f"{number(seen.now.active)} now; most {number(most)}, {at}"
    return _plot("Sessions", summary, (Series("sessions", "one", points),), seen, 10, number)


def _throughput_plot(seen: Overview) -> str:
    ways = {"down": list(_rates(seen.moments, "down")), "up": list(_rates(seen.moments, "up"))}
    said = [
        f"most {name} {rate(max(value for _, value in points))}"
        for name, points in ways.items()
        if points
    ]
    lines = (
        Series("down, to clients", "one", ways["down"]),
        Series("up, from clients", "two", ways["up"]),
    )
    return _plot("Throughput", "; ".join(said), lines, seen, 1000, rate)


def _plot(
    title: str,
    summary: str,
    lines: Sequence[Series],
    seen: Overview,
    least: float,
    written: Callable[[float], str],
) -> str:
    last = seen.now.number
    first = last - MOMENTS
    return plot(
        title, summary, lines, first=first, last=last, least=least, when=_WHEN, written=written
    )


def _rates(moments: Sequence[Moment], way: str) -> Iterable[tuple[int, float]]:
    for before, after in pairwise(moments):
        octets_ = getattr(after, way) - getattr(before, way)
        yield after.number, max(0.0, octets_ / (after.number - before.number) / EVERY)


def _top(title: str, what: str, rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return _section(title, '<p class="note">Nobody in the last hour.</p>')
    most = max(row["octets"] for row in rows) or 1
    return _section(
        title,
        _table(
            (what, "Octets", "Sessions"),
            (
                (
                    escape(row["name"]) + _bar(row["octets"] / most),
                    octets(row["octets"]),
                    number(row["sessions"]),
                )
                for row in rows
            ),
        ),
        "In the last hour.",
    )


def _bar(part: float) -> str:
    return (
        '<svg class="share" viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect width="{max(0.5, part * 100):.1f}" height="4" rx="1"/></svg>'
    )


def _refusals(seen: Overview) -> str:
    before = seen.an_hour_ago or seen.now
    counts = [
        (WORDS[reason], all_ - earlier, all_)
        for reason, all_, earlier in zip(REASONS, seen.now.reasons, before.reasons, strict=True)
        if all_
    ]
    together: dict[str, list[int]] = {}
    for words, lately, all_ in counts:
        entry = together.setdefault(words, [0, 0])
        entry[0] += lately
        entry[1] += all_
    rows = sorted(together.items(), key=lambda item: item[1], reverse=True)
    if not rows:
        return _section("Why connections came to nothing", '<p class="note">None did.</p>')
    return _section(
        "Why connections came to nothing",
        _table(
            ("Reason", f"Last {_covered(seen)}", "In all"),
            ((escape(words), number(lately), number(all_)) for words, (lately, all_) in rows),
        ),
    )


def _failures(seen: Overview) -> str:
    failures = _folded(seen.recent["failures"][::-1])[:FAILURES]
    if not failures:
        return _section("Recent failures", '<p class="note">None that this server knows of.</p>')
    items = []
    for one, times in failures:
        parts = [one["identity"], one["client"] and f"from {one['client']}"]
        who = " ".join(filter(None, parts))
        where = f" to {one['destination']}" if one["destination"] else ""
        when = ago(seen.at - one["when"])
        often = f"{times} times, last {when}" if times > 1 else when
        line = ", ".join(filter(None, (often, who + where)))
        items.append(
            f"<li><p>{escape(one['what'])}: {escape(one['why'])}</p>"
            f'<p class="who">{escape(line)}</p></li>'
        )
    return _section("Recent failures", f"<ol>{''.join(items)}</ol>")


def _folded(failures: Iterable[dict[str, Any]]) -> list[tuple[dict[str, Any], int]]:
    """The first of each that are alike, and how many there are."""
    alike: dict[tuple[str, str], tuple[dict[str, Any], int]] = {}
    for one in failures:
        key = one["what"], one["why"]
        first, times = alike.get(key, (one, 0))
        alike[key] = first, times + 1
    return list(alike.values())


def _who_is_missing(seen: Overview) -> str:
    if not seen.unheard:
        return ""
    which = ", ".join(map(str, seen.unheard))
    return f" Users, destinations and failures of worker {which} are not on this page."


def _workers(seen: Overview) -> str:
    rows = (
        (
            str(one.slot),
            _word(one),
            number(one.active),
            number(one.handshakes),
            f"{one.cpu:,.1f} s",
            octets(one.memory),
            f"{number(one.descriptors)} of {number(one.max_descriptors)}",
            duration(seen.at - one.started) if one.up else NONE,
            duration(seen.at - one.config_loaded) if one.up else NONE,
        )
        for one in seen.workers
    )
    heads = ("Worker", "State", "Sessions", "Opening", "Processor", "Memory", "Descriptors")
    table = _table((*heads, "Up for", "Settings' age"), rows)
    return (
        f'<section class="wide"><h2>Workers</h2><div class="scroll" tabindex="0">{table}</div>'
        "</section>"
    )


def _word(worker: Worker) -> str:
    level, word = ("well", "up") if worker.up else ("bad", "down")
    if worker.up and worker.draining:
        level, word = "warn", "draining"
    return f'<span class="level {level}">{word}</span>'


def _section(title: str, body: str, note: str = "") -> str:
    noted = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{noted}{body}</section>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers; cells are HTML."""
    first, *others = heads
    head = f"<th>{escape(first)}</th>" + "".join(
        f'<th class="n">{escape(one)}</th>' for one in others
    )
    body = "".join(
        f"<tr><td>{row[0]}</td>" + "".join(f'<td class="n">{one}</td>' for one in row[1:]) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
