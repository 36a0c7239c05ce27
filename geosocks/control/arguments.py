"""The arguments of a request: taken one by one, each once, and none is left over."""

import difflib
from collections.abc import Collection, Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, Final

from geosocks.errors import GeosocksError
from geosocks.wire.socks5 import IPAddress

IPNetwork = IPv4Network | IPv6Network

_MOST_SESSIONS: Final = 1 << 62


class BadRequest(GeosocksError):
    """The request cannot be done as it is written; ``str()`` says why, in one line."""


class Arguments:
    """What a request has besides the verb.

    Each of the methods raises BadRequest where the argument is not what its name promises.
    """

    def __init__(self, given: dict[str, Any]) -> None:
        self._given = given
        self._known: list[str] = []

    def text(self, name: str) -> str | None:
        """Some characters; None when it was not given."""
        value = self._take(name)
        if value is None:
            return None
        if not isinstance(value, str) or not value:
            raise BadRequest(f"{name} is to be text")
        return value

    def word(self, name: str, known: Collection[str]) -> str | None:
        """One of the words ``known``."""
        value = self.text(name)
        if value is not None and value not in known:
            raise BadRequest(f"{value!a} is not one of {', '.join(known)}{nearest(value, known)}")
        return value

    def words(self, name: str, known: Collection[str]) -> frozenset[str]:
        """Some of the words ``known``; none when it was not given."""
        values = self._take(name)
        if values is None:
            return frozenset()
        if not isinstance(values, list):
            raise BadRequest(f"{name} is to be a list")
        for value in values:
            if not isinstance(value, str) or value not in known:
                raise BadRequest(f"{name}: there is no {value!a}{nearest(str(value), known)}")
        return frozenset(values)

    def sessions(self, name: str) -> tuple[int, ...]:
        """Session ids; none when it was not given."""
        values = self._take(name)
        if values is None:
            return ()
        if not isinstance(values, list) or not all(map(_is_session, values)):
            raise BadRequest(f"{name} is to be a list of session ids")
        return tuple(values)

    def number(self, name: str, least: int, most: int) -> int | None:
        """A whole number in that range."""
        value = self._take(name)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise BadRequest(f"{name} is to be a whole number from {least} to {most}")
        return value

    def network(self, name: str) -> IPNetwork | None:
        """An address or a network."""
        value = self.text(name)
        if value is None:
            return None
        try:
            return ip_network(value, strict=False)
        except ValueError:
            raise BadRequest(f"{name}: {value!a} is no address or network") from None

    def address(self, name: str) -> IPAddress | None:
        """An address."""
        value = self.text(name)
        if value is None:
            return None
        try:
            return ip_address(value)
        except ValueError:
            raise BadRequest(f"{name}: {value!a} is no address") from None

    def end(self) -> None:
        """Raise BadRequest when some argument is left that nobody asked for."""
        for name in self._given:
            raise BadRequest(f"there is no argument {name!a} here{nearest(name, self._known)}")

    def _take(self, name: str) -> Any:
        self._known.append(name)
        return self._given.pop(name, None)


def needed(value: Any, name: str) -> Any:
    """``value``, which may not be missing."""
    if value is None:
        raise BadRequest(f"{name} is missing")
    return value


def nearest(word: str, known: Iterable[str]) -> str:
    """What might have been meant, for the end of a complaint."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _is_session(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < _MOST_SESSIONS
