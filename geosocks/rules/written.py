"""A line of a rule file, compiled: the conditions that a question must meet, and its ``to``.

Knows what is compared, not how it is written.
"""

from collections.abc import Callable, Iterable

from geosocks.codes import Cmd, Method, name_of
from geosocks.guard import Names, Places, classify
from geosocks.rules.question import Question, Verdict
from geosocks.wire.socks5 import IPAddress

Test = Callable[[Question], bool]


class WrittenRule:
    """One line of a rule file, ready to be asked.

    ``text`` is the line as written, with its place.  ``limits_who``: it is no allow that lets
    just anybody in.
    """

    __slots__ = ("_allow", "_conditions", "_names", "_places", "limits_who", "text")

    def __init__(
        self,
        allow: bool,
        text: str,
        conditions: Iterable[tuple[str, Test]],
        places: Places,
        names: Names,
        limits_who: bool,
    ) -> None:
        self._allow = allow
        self._conditions = tuple(conditions)
        self._places = places
        self._names = names
        self.limits_who = limits_who
        self.text = text

    def __call__(self, question: Question) -> Verdict | None:
        for _, holds in self._conditions:
            if not holds(question):
                return None
        named = question.name is not None and question.name in self._names
        if self._allow:
            covered = self._opened(question, named)
        elif named or self._places.public or self._places.everywhere:
            return Verdict(False, self.text)
        else:
            covered = self._met(question)
        return Verdict(self._allow, self.text, covered) if covered else None

    def _opened(self, question: Question, named: bool) -> tuple[IPAddress, ...]:
        places = self._places
        if not (named or places):
            return ()  # names only, and not this one: no look-up
        return tuple([address for address, its in question.weighed if places.open(its, named)])

    def _met(self, question: Question) -> tuple[IPAddress, ...]:
        places = self._places
        if not places:
            return ()
        return tuple([address for address, its in question.weighed if places.meet(its)])

    def miss(self, question: Question) -> str:
        """Say why it had no opinion on ``question``: by the first condition that does not hold."""
        for word, holds in self._conditions:
            if not holds(question):
                return f"{word} does not match {_asked(word, question)}"
        if not self._places:
            return f"to does not match {question}"
        return f"to does not cover {told(question.addresses)}"


def _asked(word: str, question: Question) -> str:
    match word:
        case "user":
            return "nobody" if question.identity is None else ascii(question.identity)
        case "method":
            return name_of(Method, question.method)
        case "command":
            return name_of(Cmd, question.command)
        case "port":
            return str(question.destination.port)
    return ascii(str(question.peer.host)).strip("'")


def told(addresses: Iterable[IPAddress]) -> str:
    """Write addresses, each with the guard it stands behind."""
    words = ((address, classify(address)) for address in addresses)
    return ", ".join(f"{address} ({word})" if word else f"{address}" for address, word in words)
