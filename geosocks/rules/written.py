"""A line of a rule file, compiled: the conditions that a question must meet, and its ``to``.

Knows what is compared, not how it is written.
"""

from collections.abc import Callable, Iterable

from geosocks.codes import Cmd, Method, name_of
from geosocks.guard import Names, Places, classify
from geosocks.rules.question import DIRECT, Effects, Question, Verdict
from geosocks.wire.socks5 import IPAddress

Test = Callable[[Question], bool]


class WrittenRule:
    """One line of a rule file, ready to be asked.

    ``text`` is the line as written, with its place.  ``limits_who``: it is no allow that lets
    just anybody in.  ``via`` and ``effects`` are as in a verdict.  ``listeners`` are those that it
    is for, None for all.
    """

    __slots__ = (
        "_allow",
        "_conditions",
        "_names",
        "_places",
        "effects",
        "limits_who",
        "listeners",
        "text",
        "via",
    )

    def __init__(
        self,
        allow: bool,
        text: str,
        conditions: Iterable[tuple[str, Test]],
        places: Places,
        names: Names,
        limits_who: bool,
        via: tuple[str, ...] = (),
        listeners: frozenset[str] | None = None,
        effects: Effects | None = None,
    ) -> None:
        self._allow = allow
        self._conditions = tuple(conditions)
        self._places = places
        self._names = names
        self.limits_who = limits_who
        self.text = text
        self.via = via
        self.listeners = listeners
        self.effects = effects

    def __call__(self, question: Question) -> Verdict | None:
        for _, holds in self._conditions:
            if not holds(question):
                return None
        named = question.name is not None and question.name in self._names
        whole = named or self._places.public or self._places.everywhere
        if self._allow:
            if passes_name(question, self.via):
                return Verdict(True, self.text, (), self.via, self.effects) if whole else None
            covered = self._opened(question, named)
        elif whole:
            return Verdict(False, self.text)
        else:
            covered = self._met(question)
        if not covered:
            return None
        return Verdict(self._allow, self.text, covered, self.via, self.effects)

    def wherever(self, question: Question) -> Verdict | None:
        """Its opinion where the destination is not known yet: an allow of some, a deny of all."""
        for word, holds in self._conditions:
            if word != "port" and not holds(question):
                return None
        if self._allow:
            return Verdict(True, self.text, (), self.via, self.effects)
        whole = self._places.public or self._places.everywhere
        some = not whole or any(word == "port" for word, _ in self._conditions)
        return None if some else Verdict(False, self.text)

    def by_address(self, question: Question) -> bool:
        """True when its ``to`` says nothing about the question's name: only addresses can tell."""
        places, name = self._places, question.name
        named = name is not None and name in self._names
        return not (named or places.public or places.everywhere)

    @property
    def denies(self) -> bool:
        """It is no allow."""
        return not self._allow

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
        if not self._places or (self._allow and passes_name(question, self.via)):
            return f"to does not match {question}"
        return f"to does not cover {told(question.addresses)}"


def passes_name(question: Question, via: tuple[str, ...]) -> bool:
    """True when the question is about a name, and an allow with ``via`` passes it on unresolved."""
    return question.name is not None and (via or question.via) not in ((), DIRECT)


def _asked(word: str, question: Question) -> str:
    match word:
        case "listener":
            return "none in particular" if question.listener is None else ascii(question.listener)
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
