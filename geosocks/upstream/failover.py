"""One upstream for another: who rests, who is asked, and whose answer is the answer."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from geosocks.errors import CommandNotSupported, RequestFailed
from geosocks.events import Observer, UpstreamFailed, UpstreamRecovered
from geosocks.relay.target import Dialer
from geosocks.upstream.chain import UpstreamUnusable

T = TypeVar("T")

REST: Final = 30.0
"""Seconds that an upstream rests when it has failed; twice as many each time it fails again."""

LONGEST_REST: Final = 300.0
"""Seconds."""

SHARE: Final = 0.9
"""Of the time to connect, what reaching upstreams may take; the rest is the target's."""


@dataclass(slots=True)
class _Trouble:
    reason: str
    rest: float
    since: float
    until: float


class Health:
    """Which upstreams rest, and for how long.

    Owned by the process: a policy hands it on to the next.  Nothing here blocks.
    """

    def __init__(
        self,
        rest: float = REST,
        longest: float = LONGEST_REST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rest = rest
        self._longest = longest
        self._clock = clock
        self._troubles: dict[Dialer, _Trouble] = {}

    def order(self, dialers: Mapping[str, Dialer]) -> list[str]:
        """The names to try, in order: those that do not rest, or else the one that rests least."""
        now = self._clock()
        rests = {
            name: trouble.until - now
            for name, dialer in dialers.items()
            if (trouble := self._troubles.get(dialer)) is not None and trouble.until > now
        }
        well = [name for name in dialers if name not in rests]
        return well or [min(rests, key=lambda name: rests[name])]

    def failed(self, name: str, dialer: Dialer, failure: UpstreamUnusable) -> UpstreamFailed | None:
        """Note a failure; the fact to tell, unless it has been told lately."""
        now = self._clock()
        reason = str(failure)
        trouble = self._troubles.get(dialer)
        known = trouble is not None and trouble.reason == reason
        rest = 0.0
        if failure.rests:
            rest = self._rest
            if trouble is not None and trouble.rest:
                if trouble.until > now:  # one of several that tried it at the same time
                    if known:
                        return None
                    rest = trouble.rest
                else:
                    rest = min(2 * trouble.rest, self._longest)
        elif trouble is not None and known and now < trouble.since + self._rest:
            return None
        self._troubles[dialer] = _Trouble(reason, rest, now, now + rest)
        return UpstreamFailed(name, reason, rest)

    def answered(self, name: str, dialer: Dialer) -> UpstreamRecovered | None:
        """Note that it did its part; the fact to tell when it had failed before."""
        return UpstreamRecovered(name) if self._troubles.pop(dialer, None) else None

    def keep(self, dialers: Iterable[Dialer]) -> None:
        """Forget all but ``dialers``."""
        kept = set(dialers)
        for dialer in self._troubles.keys() - kept:
            del self._troubles[dialer]


def first_to_answer(
    via: Sequence[str],
    dialers: Mapping[str, Dialer],
    health: Health,
    ask: Callable[[Dialer, float], T],
    seconds: float,
    emit: Observer,
) -> tuple[str, T]:
    """Ask the upstreams of ``via`` until one does its part; which, and what it gave.

    ``seconds`` are those that all of it may take, which the caller sees to; ``ask`` is told how
    many of them an upstream has to be reached.

    Raises:
        UpstreamUnusable: none did.
        RequestFailed: the answer of the one that did.
    """
    unknown = [name for name in via if name not in dialers]
    if unknown:
        raise RequestFailed(f"there is no upstream {', '.join(unknown)}")
    failures: list[str] = []
    order = health.order({name: dialers[name] for name in via})
    for name in order:
        dialer = dialers[name]
        fact: UpstreamFailed | UpstreamRecovered | None = None
        try:
            answer = ask(dialer, seconds * SHARE / len(order))
        except UpstreamUnusable as failure:
            fact = health.failed(name, dialer, failure)
            failures.append(str(failure))
        except CommandNotSupported:
            raise  # perhaps without having asked
        except RequestFailed:
            fact = health.answered(name, dialer)
            raise
        else:
            fact = health.answered(name, dialer)
            return name, answer
        finally:
            if fact is not None:
                emit(fact)
    raise UpstreamUnusable("; ".join(failures))
