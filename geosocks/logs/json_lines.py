"""Records as JSON, for programs."""

import logging
from enum import IntEnum
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from typing import Any, Final

from pythonjsonlogger.json import JsonEncoder, JsonFormatter

from geosocks.codes import Cmd, Method
from geosocks.events import SessionClosed, escape
from geosocks.logs.lines import when


class JsonLines(JsonFormatter):
    """One JSON object a line: ``time``, ``level``, ``event``, then the event's fields.

    An event's record is plain values only, so it is laid out here and not searched for extras; a
    record of anybody else goes the library's way.
    """

    _encode = JsonEncoder().encode

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        event = record.__dict__.get("event")
        if event is None:
            return super().format(record)
        facts = record.__dict__["facts"]
        values = [
            _text(value)
            if type(value) is str
            else value
            if type(value) in _NUMBERS
            else self._encode(value)
            for value in facts.values()
        ]
        line = _line(record.levelname, event, tuple(facts))
        return line % (when(record.created), *values)

    def of_closed(self, event: SessionClosed, created: float) -> str:
        """The line of a session's end, as ``format`` would write it of its record.

        There is one for every session, so it is written straight down.
        """
        client, dialled, destination = event.client, event.dialled, event.destination
        return _CLOSED % (
            when(created),
            event.session,
            client.text,
            _METHODS[event.method],
            _IDENTITIES[event.identity],
            _COMMANDS[event.command],
            "" if destination is None else _DESTINATIONS[destination.text],
            "" if dialled is None else _DIALLED[dialled.text],
            _RULES[event.rule],
            _REASONS[event.reason],
            event.up,
            event.down,
            event.seconds,
            _CLAIMED[event.claimed],
            _UPSTREAMS[event.upstream],
        )

    def add_fields(
        self,
        log_data: dict[str, Any],
        record: logging.LogRecord,
        message_dict: dict[str, Any],
    ) -> None:
        """Lay a record out that is no event's."""
        log_data["time"] = when(record.created)
        log_data["level"] = record.levelname.lower()
        log_data["event"] = record.getMessage()
        for name in ("exc_info", "stack_info"):
            if message_dict.get(name):
                log_data[name] = message_dict[name]


_NUMBERS: Final = frozenset({int, float})
"""What ``%s`` writes as JSON does (a bool it does not)."""


_CLOSED: Final = (
    '{"time": "%s", "level": "info", "event": "session_closed", "session": %d, "client": "%s"'
    '%s%s%s%s%s%s%s, "up": %d, "down": %d, "seconds": %.6f%s%s}'
)


class _Codes(dict[int | None, str]):
    """A field with its name, of codes that are one octet; nothing for None."""

    def __init__(self, field: str, names: type[IntEnum]) -> None:
        super().__init__({None: ""})
        self._field = field
        self._names = {code.value: code.name.lower() for code in names}

    def __missing__(self, code: int | None) -> str:
        assert code is not None
        name = self._names.get(code) or f"{code:#04x}"
        text = self[code] = f', "{self._field}": "{name}"'
        return text


class _Texts(dict[str | None, str]):
    """A field with its name, of texts that come again and again; nothing for None."""

    MOST: Final = 4096

    def __init__(self, field: str) -> None:
        super().__init__()
        self._field = field

    def __missing__(self, text: str | None) -> str:
        if len(self) >= self.MOST:
            self.clear()
        field = ""
        if text is not None:
            field = f', "{self._field}": {encode_basestring_ascii(escape(text))}'
        self[text] = field
        return field


_METHODS: Final = _Codes("method", Method)
_COMMANDS: Final = _Codes("command", Cmd)
_IDENTITIES: Final = _Texts("identity")
_DESTINATIONS: Final = _Texts("destination")
_DIALLED: Final = _Texts("dialled")
_RULES: Final = _Texts("rule")
_REASONS: Final = _Texts("reason")
_CLAIMED: Final = _Texts("claimed")
_UPSTREAMS: Final = _Texts("upstream")


_text: Final = lru_cache(maxsize=4096)(encode_basestring_ascii)
"""Hosts, rules and reasons come again and again."""


@lru_cache(maxsize=1024)
def _line(level: str, event: str, names: tuple[str, ...]) -> str:
    """A line with room for the time and the values of the facts so named."""
    texts = map(encode_basestring_ascii, (level.lower(), event, *names))
    level, event, *names_ = (text.replace("%", "%%") for text in texts)
    facts = "".join(f", {name}: %s" for name in names_)
    return f'{{"time": "%s", "level": {level}, "event": {event}{facts}}}'
