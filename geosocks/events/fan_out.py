"""One observer that tells many."""

from collections.abc import Iterable
from typing import Final

from geosocks.events.event import Event, Observer
from geosocks.events.session import (
    Authenticated,
    MethodSelected,
    RequestJudged,
    SessionEstablished,
    SessionOpened,
)

DETAILS: Final = (
    SessionOpened,
    MethodSelected,
    Authenticated,
    RequestJudged,
    SessionEstablished,
)


class FanOut:
    """One observer that tells many.  One that raises is counted, and harms nobody.

    An observer may have a method ``wants(kind)``; it then says, once for each kind of event,
    whether it wants to be told.  ``wants`` of all of them together saves making an event that
    nobody would see.
    """

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self.observers = tuple(observers)
        self.failures = 0
        """How often an observer raised."""

        self._details = -1
        self.audience = _Audience(self)
        """Who is to be told of each kind of event; nobody (false) saves making it."""

    def add(self, observer: Observer) -> None:
        """Tell ``observer`` too, from the next event on."""
        self.observers = (*self.observers, observer)
        self.ask_again()

    def remove(self, observer: Observer) -> None:
        """Tell ``observer`` no more."""
        self.observers = tuple(one for one in self.observers if one is not observer)
        self.ask_again()

    def ask_again(self) -> None:
        """Forget what the observers want: one of them has changed its mind."""
        self.audience.clear()
        self._details = -1

    def details(self) -> bool:
        """Whether anybody wants to be told of what a session meets before its end.

        Where nobody does, which is most servers, it saves asking about each kind.
        """
        if self._details < 0:
            self._details = int(any(map(self.wants, DETAILS)))
        return self._details == 1

    def wants(self, kind: type[Event]) -> bool:
        """Whether anybody wants to be told of events of ``kind``."""
        return bool(self.audience[kind])

    def __call__(self, event: Event) -> None:
        self.tell(event)

    def tell(self, event: Event) -> None:
        """The same, for whoever knows that this is one: it costs less."""
        for observer in self.audience[type(event)]:
            try:
                observer(event)
            except Exception:
                self.failures += 1


class _Audience(dict[type[Event], tuple[Observer, ...]]):
    """Who is told of each kind of event, found out when it is first asked for."""

    def __init__(self, of: FanOut) -> None:
        super().__init__()
        self._of = of

    def __missing__(self, kind: type[Event]) -> tuple[Observer, ...]:
        audience = self[kind] = tuple(
            observer
            for observer in self._of.observers
            if getattr(observer, "wants", lambda _: True)(kind)
        )
        return audience
