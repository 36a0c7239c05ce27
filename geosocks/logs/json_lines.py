"""Records as JSON, for programs."""

import logging
from enum import IntEnum
from functools import cache, lru_cache, partial
from json.encoder import encode_basestring_ascii
from typing import Any, Final

from pythonjsonlogger.json import JsonEncoder, JsonFormatter

from geosocks.codes import Cmd, Method
from geosocks.events import SessionClosed, escape
from geosocks.logs.lines import when
from geosocks.wire.socks5 import Address


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
        dialled, destination = event.dialled, event.destination
        return (
            f'{{"time": "{when(created)}", "level": "info", "event": "session_closed"'
            f', "session": {event.session}, "client": "{event.client.text}"'
            f"{_method(event.method)}{_fact('identity', event.identity)}{_command(event.command)}"
            f"{'' if destination is None else _address('destination', destination)}"
            f"{'' if dialled is None else _address('dialled', dialled)}"
            f"{_fact('rule', event.rule)}{_fact('reason', event.reason)}"
            f', "up": {event.up}, "down": {event.down}, "seconds": {event.seconds:.6f}'
            f"{_fact('claimed', event.claimed)}{_fact('upstream', event.upstream)}}}"
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


def _named(field: str, names: type[IntEnum], code: int | None) -> str:
    if code is None:
        return ""
    known = any(code == name for name in names)
    return f', "{field}": "{names(code).name.lower() if known else f"{code:#04x}"}"'


_method: Final = cache(partial(_named, "method", Method))
_command: Final = cache(partial(_named, "command", Cmd))
"""A field with its name, of codes that are one octet."""


@lru_cache(maxsize=4096)
def _fact(field: str, text: str | None) -> str:
    """A field with its name; users, rules and reasons come again and again."""
    return "" if text is None else f', "{field}": {encode_basestring_ascii(escape(text))}'


def _address(field: str, address: Address) -> str:
    return _fact(field, address.text) if address.is_name else f', "{field}": "{address.text}"'


_text: Final = lru_cache(maxsize=4096)(encode_basestring_ascii)
"""Hosts, rules and reasons come again and again."""


@lru_cache(maxsize=1024)
def _line(level: str, event: str, names: tuple[str, ...]) -> str:
    """A line with room for the time and the values of the facts so named."""
    texts = map(encode_basestring_ascii, (level.lower(), event, *names))
    level, event, *names_ = (text.replace("%", "%%") for text in texts)
    facts = "".join(f", {name}: %s" for name in names_)
    return f'{{"time": "%s", "level": {level}, "event": {event}{facts}}}'
