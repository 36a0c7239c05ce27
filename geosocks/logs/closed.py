"""The JSON line of a session's end: there is one for every session, so it is written straight down.

Apart from ``JsonLines``, whose base is not ours: a class below such a one is not to be compiled.

Where ``in_c`` is compiled, that writes the line, in two fifths of the time: it finds fields by
their place, and makes no text of each number.  What is too rare for it is written here.
"""

from collections.abc import Callable
from enum import IntEnum
from json.encoder import encode_basestring_ascii
from typing import Final

from geosocks.codes import Cmd, Method
from geosocks.events import SessionClosed, escape
from geosocks.in_c import compiled
from geosocks.logs.stamps import when

_Story = tuple[
    int | None,
    str | None,
    int | None,
    str | None,
    str | None,
    str | None,
    str | None,
    str | None,
    str | None,
]
"""What is told in words: method, identity, command, destination, dialled, rule, reason, claimed,
upstream.  It comes again and again."""

MOST: Final = 4096
"""Stories that are kept in writing."""

_written: Final[dict[_Story, tuple[str, str]]] = {}


def closed_line(event: SessionClosed, created: float) -> str:
    """The line, as ``JsonLines`` would write it of a record."""
    if _in_c is not None:
        line = _in_c(event, created)
        if line is not None:
            return line
    return in_python(event, created)


def in_python(event: SessionClosed, created: float) -> str:
    """The same, whatever there is in the event."""
    destination, dialled = event.destination, event.dialled
    story: _Story = (
        event.method,
        event.identity,
        event.command,
        None if destination is None else destination.text,
        None if dialled is None else dialled.text,
        event.rule,
        event.reason,
        event.claimed,
        event.upstream,
    )
    written = _written.get(story)
    if written is None:
        written = _write(story)
    head, tail = written
    microseconds = int(event.seconds * 1_000_000 + 0.5)
    whole, fraction = str(microseconds // 1_000_000), str(1_000_000 + microseconds % 1_000_000)
    time, client = when(created), event.client.text
    session, up, down = str(event.session), str(event.up), str(event.down)
    return (
        f'{{"time": "{time}", "level": "info", "event": "session_closed", "session": {session}'
        f', "client": "{client}{head}{up}, "down": {down}, "seconds": {whole}.{fraction[1:]}{tail}'
    )


def _write(story: _Story) -> tuple[str, str]:
    """What stands before and behind the numbers."""
    method, identity, command, destination, dialled, rule, reason, claimed, upstream = story
    head = (
        _named("method", method, Method),
        _told("identity", identity),
        _named("command", command, Cmd),
        _told("destination", destination),
        _told("dialled", dialled),
        _told("rule", rule),
        _told("reason", reason),
    )
    tail = _told("claimed", claimed) + _told("upstream", upstream)
    if len(_written) >= MOST:
        _written.clear()
    written = _written[story] = '"' + "".join(head) + ', "up": ', tail + "}"
    return written


def _named(field: str, code: int | None, names: type[IntEnum]) -> str:
    """A field that is a code of one octet; nothing for None."""
    return "" if code is None else _told(field, _name(code, names))


def _name(code: int, names: type[IntEnum]) -> str:
    known = [one.name.lower() for one in names if one.value == code]
    return known[0] if known else f"{code:#04x}"


def _told(field: str, text: str | None) -> str:
    """A field that is text; nothing for None."""
    return "" if text is None else f', "{field}": {_quoted(text)}'


def _quoted(text: str) -> str:
    return encode_basestring_ascii(escape(text))


def _by_fields() -> Callable[[SessionClosed, float], str | None] | None:
    """What writes the line, or says None to what is rare; None itself where it is not compiled."""
    slots = compiled("slots")
    if slots is None:
        return None

    def table(names: type[IntEnum]) -> tuple[str, ...]:
        return tuple([_quoted(_name(code, names)) for code in range(256)])

    fields = (
        ("session", "number"),
        ("client", "peer"),
        ("method", table(Method)),
        ("identity", "text"),
        ("command", table(Cmd)),
        ("destination", "address"),
        ("dialled", "address"),
        ("rule", "text"),
        ("reason", "text"),
        ("up", "number"),
        ("down", "number"),
        ("seconds", "seconds"),
        ("claimed", "text"),
        ("upstream", "text"),
    )
    begin = '"level": "info", "event": "session_closed"'
    write: Callable[[SessionClosed, float], str | None] = slots.Line(
        SessionClosed, begin, fields, when, _quoted
    ).write
    return write


_in_c: Final = _by_fields()
