"""Records as JSON, for programs."""

import logging
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from typing import Any, Final

from pythonjsonlogger.json import JsonEncoder, JsonFormatter

from geosocks.logs.closed import closed_line
from geosocks.logs.stamps import when


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

    of_closed = staticmethod(closed_line)
    """The line of a session's end, as ``format`` would write it of its record."""

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


_text: Final = lru_cache(maxsize=4096)(encode_basestring_ascii)
"""Hosts, rules and reasons come again and again."""


@lru_cache(maxsize=1024)
def _line(level: str, event: str, names: tuple[str, ...]) -> str:
    """A line with room for the time and the values of the facts so named."""
    texts = map(encode_basestring_ascii, (level.lower(), event, *names))
    level, event, *names_ = (text.replace("%", "%%") for text in texts)
    facts = "".join(f", {name}: %s" for name in names_)
    return f'{{"time": "%s", "level": {level}, "event": {event}{facts}}}'
