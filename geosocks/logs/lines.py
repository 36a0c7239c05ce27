"""Records as text, for people: what happened to whom, in the order that one asks.

    11:02:11 #7 closed: alice at 192.0.2.1:40112, connect to www.example.org:443 (192.0.2.7:443),
    1.8 kB up, 52.3 kB down, 3.2 s, rules.conf:4

(in one line).  What a client sent is escaped in the record already; a word with a space in it
stands between quotes.
"""

import logging
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Final, Literal

Facts = dict[str, Any]


@lru_cache(maxsize=4)
def local(seconds: int, how: str) -> str:
    """Local time, as strftime(3) is told."""
    return time.strftime(how, time.localtime(seconds))


_STAMPS: Final = {"time": "%H:%M:%S ", "date": "%Y-%m-%d %H:%M:%S%z ", "none": ""}


class TextLines(logging.Formatter):
    """For people: local time, the level where it is not plain information, #session, the story.

    ``stamp`` is how much of the time a line tells: with ``none`` neither time nor level, for a log
    that notes both by itself.
    """

    def __init__(self, stamp: Literal["time", "date", "none"] = "time") -> None:
        super().__init__()
        self._stamp = _STAMPS[stamp]

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        begin = ""
        if self._stamp:
            begin = local(int(record.created), self._stamp)
            if record.levelno != logging.INFO:
                begin += f"{record.levelname.lower()}: "
        facts = record.__dict__.get("facts")
        if facts is None:
            return begin + _ordinary(record, self.formatException)
        return begin + told(record.msg, facts)


def _ordinary(record: logging.LogRecord, exception: Callable[[Any], str]) -> str:
    words = [_one_line(record.getMessage())]
    if record.exc_info:
        words.append(ascii(exception(record.exc_info)))
    return " ".join(words)


def told(event: str, facts: Facts) -> str:
    """An event in words, without time and level.

    Texts among ``facts`` are escaped (``events.escape``), but for a traceback.
    """
    session = facts.get("session")
    begin = "" if session is None else f"#{session} "
    story = _STORIES.get(event)
    if story is None:
        return begin + f"{event.replace('_', ' ')}: {_pairs(facts)}".removesuffix(": ")
    head, parts = story(facts)
    text = ", ".join([part for part in parts if part])
    return begin + (f"{head}: {text}" if text else head)


def _pairs(facts: Facts) -> str:
    return " ".join(
        f"{name}={_quoted(value)}" for name, value in facts.items() if name != "session"
    )


# --- the events that there are many of --------------------------------------------------------

_Story = tuple[str, Iterator[str]]
"""What it was, and the parts of the line, of which some may be empty."""


def _closed(facts: Facts) -> _Story:
    reason = facts["reason"]
    head = "closed" if reason == "closed" else f"closed ({reason.replace('_', ' ')})"

    def parts() -> Iterator[str]:
        yield _who(facts)
        yield _request(facts)
        yield f"{_octets(facts['up'])} up"
        yield f"{_octets(facts['down'])} down"
        yield f"{facts['seconds']:.3g} s"
        yield _rule(facts)

    return head, parts()


def _refused(facts: Facts) -> _Story:
    def parts() -> Iterator[str]:
        yield _who(facts)
        yield _request(facts)
        reason, reply = facts["reason"], facts["reply"].replace("_", " ")
        yield reason if reply in reason.lower() else f"{reason} ({reply})"
        yield _rule(facts)

    return "refused", parts()


def _failed(facts: Facts) -> _Story:
    def parts() -> Iterator[str]:
        yield _who(facts)
        yield facts["reason"]

    return f"authentication failed ({facts['method']})", parts()


def _ended(facts: Facts) -> _Story:
    return "no request", iter((facts["client"], facts["reason"]))


def _held_back(facts: Facts) -> _Story:
    head = f"{facts['lines']} more in {facts['seconds']:g} s"
    more = [str(value) for name, value in facts.items() if name not in _OF_HELD_BACK]
    return head, iter((facts["of"].replace("_", " "), *more))


_OF_HELD_BACK: Final = ("of", "lines", "seconds")


_STORIES: Final[dict[str, Callable[[Facts], _Story]]] = {
    "session_closed": _closed,
    "request_refused": _refused,
    "authentication_failed": _failed,
    "negotiation_ended": _ended,
    "lines_held_back": _held_back,
}


def _who(facts: Facts) -> str:
    claimed = facts.get("claimed")
    user = facts.get("identity") or (f"{claimed}(?)" if claimed else None)
    return f"{_quoted(user)} at {facts['client']}" if user else str(facts["client"])


def _request(facts: Facts) -> str:
    command, destination = facts.get("command"), facts.get("destination")
    if command is None:
        return ""
    words = [str(command).replace("_", " ")]
    if destination is not None:
        words.append(f"to {_quoted(destination)}")
    dialled = facts.get("dialled")
    reached = [] if dialled in (None, destination) else [str(dialled)]
    if facts.get("upstream"):
        reached.append(f"via {facts['upstream']}")
    if reached:
        words.append(f"({' '.join(reached)})")
    return " ".join(words)


def _rule(facts: Facts) -> str:
    """Where the rule stands; all of it, where it is no line of a file."""
    rule = facts.get("rule")
    return "" if rule is None else rule.partition(": ")[0]


def _octets(count: int) -> str:
    if count < 1000:
        return f"{count} B"
    size = float(count)
    for unit in ("kB", "MB"):
        size /= 1000
        if size < 999.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} GB"


def _one_line(text: str) -> str:
    return text.encode("unicode_escape").decode() if "\n" in text or "\r" in text else text


def _quoted(value: Any) -> str:
    text = _one_line(str(value))
    if text and " " not in text and '"' not in text:
        return text
    return '"' + text.replace('"', '\\"') + '"'
