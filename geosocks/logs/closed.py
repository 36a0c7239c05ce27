"""The JSON line of a session's end: there is one for every session, so it is written straight down.

Apart from ``JsonLines``, whose base is not ours: a class below such a one is not to be compiled.
"""

from enum import IntEnum
from json.encoder import encode_basestring_ascii
from typing import Final

from geosocks.codes import Cmd, Method
from geosocks.events import SessionClosed, escape
from geosocks.logs.lines import when


def closed_line(event: SessionClosed, created: float) -> str:
    """The line, as ``JsonLines`` would write it of a record."""
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
