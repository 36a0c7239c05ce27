"""Records as JSON, for programs."""

import logging
from collections.abc import Callable
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from typing import Any, Final

from pythonjsonlogger.json import JsonEncoder, JsonFormatter

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
        line = f'{{"time": "{when(record.created)}{_what(event, record.levelname)}'
        for name, value in record.__dict__["facts"].items():
            encode = _VALUES.get(type(value)) or self._encode
            line += f"{_key(name)}{encode(value)}"
        return line + "}"

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


_VALUES: Final[dict[type, Callable[[Any], str]]] = {
    str: encode_basestring_ascii,
    int: int.__repr__,
    float: float.__repr__,
}
"""The kinds of value that nearly all are; the encoder has a way for each kind there is."""


@lru_cache(maxsize=1024)
def _what(event: str, level: str) -> str:
    return f'", "level": "{level.lower()}", "event": {encode_basestring_ascii(event)}'


@lru_cache(maxsize=1024)
def _key(name: str) -> str:
    return f", {encode_basestring_ascii(name)}: "
