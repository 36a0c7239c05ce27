"""Rule files as lines of words: tokens, lists, groups, and errors that say where.

Knows which words there are, not what a rule makes of their values: ``geosocks.rules.meanings``.
"""

import difflib
import re
from collections import deque
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

from geosocks.errors import ConfigError

VERBS: Final = ("allow", "deny", "group")
ALIASES: Final = {"cmd": "command"}
CONDITIONS: Final = ("listener", "command", "port", "method", "user", "from", "to")
"""The words of a rule, in the order in which they are tried: the cheap ones first."""

EFFECTS: Final = ("via", "sessions")
"""The words of an allow that say what comes of it."""

WORDS_OF_A_RULE: Final = (*CONDITIONS, *EFFECTS)

LATER: Final = frozenset(
    (
        *("asn", "category", "continent", "country", "time"),
        *("idle", "log", "methods", "outgoing", "quota", "rate"),
    )
)
"""Words of the language that this version does not know yet."""

_TOKEN = re.compile(r",|[^\s,]+")
_COMMENT = re.compile(r"(?:^|(?<=\s))#.*")
_GROUP = re.compile(r"@[A-Za-z0-9_.-]{1,64}")


class Token(NamedTuple):
    """A word or a comma, and the column that it begins in, from 1."""

    text: str
    column: int


class Line:
    """The tokens of one line, and where it stands."""

    def __init__(self, raw: str, path: str, number: int) -> None:
        text = _COMMENT.sub("", raw)
        self.tokens = deque(Token(m.group(), m.start() + 1) for m in _TOKEN.finditer(text))
        self.path = path
        self.number = number
        # It ends in logs and on terminals, which may not take octets that are no UTF-8.
        shown = f"{path}:{number}: {text.strip()}"
        self.text = shown.encode("utf-8", "backslashreplace").decode("utf-8")

    def error(self, token: Token, what: str) -> ConfigError:
        """An error at ``token``."""
        return ConfigError(what, self.path, self.number, token.column)

    def unknown(
        self, token: Token, kind: str, words: Collection[str], hint: str = ""
    ) -> ConfigError:
        """An error that tells which ``words`` there are, or the one most likely meant."""
        if token.text in LATER:
            return self.error(token, f"{token.text!r} is not in this version")
        near = nearest(token.text, words)
        choice = f"the words are {', '.join(words)}" if words else f"there is no {kind}"
        guess = f"did you mean {near}?" if near else choice
        return self.error(token, f"unknown {kind} {quoted(token)}; {guess}{hint}")

    def take_list(self, word: Token) -> list[Token]:
        """Take the list after ``word``: one value, or several with a comma between each two."""
        if not self.tokens or self.tokens[0].text in WORDS_OF_A_RULE:
            raise self.error(word, f"{word.text!r} needs a value, or several with commas between")
        values = []
        comma = word
        while self.tokens:
            value = self.tokens.popleft()
            if value.text == ",":
                raise self.error(value, "a comma with no value before it")
            if value.text in LATER and word.text in ("from", "to"):
                raise self.error(value, f"{value.text!r} is not in this version")
            values.append(value)
            if not self.tokens or self.tokens[0].text != ",":
                return values
            comma = self.tokens.popleft()
        raise self.error(comma, "a comma with no value after it")


def quoted(token: Token) -> str:
    """A token as errors show it, which may come from anybody."""
    return ascii(token.text if len(token.text) <= 64 else f"{token.text[:64]}...")


def nearest(text: str, words: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The one of ``words`` that ``text`` is most likely meant for, if any is."""
    near = difflib.get_close_matches(text[:64].lower(), words, 1, cutoff)
    return near[0] if near else None


def add_group(groups: dict[str, tuple[Line, list[Token]]], line: Line, verb: Token) -> None:
    """Take in a line that begins with ``group``."""
    name, *users = line.tokens or (verb,)
    users = [token for token in users if token.text != ","]
    if not _GROUP.fullmatch(name.text):
        raise line.error(name, "a group is written: group @name alice bob")
    if name.text in groups:
        raise line.error(name, f"group {quoted(name)} stands on line {groups[name.text][0].number}")
    if not users:
        raise line.error(name, f"group {quoted(name)} has no members")
    groups[name.text] = line, users


def members_of(groups: dict[str, tuple[Line, list[Token]]], name: str) -> frozenset[str]:
    """Collect the users of a group and of the groups in it."""
    users: set[str] = set()
    seen = {name}
    waiting = [name]
    while waiting:
        line, tokens = groups[waiting.pop()]
        for token in tokens:
            if not token.text.startswith("@"):
                users.add(token.text)
            elif token.text not in groups:
                raise line.unknown(token, "group", groups)
            elif token.text == name:
                raise line.error(token, f"group {quoted(token)} contains itself")
            elif token.text not in seen:
                seen.add(token.text)
                waiting.append(token.text)
    return frozenset(users)
