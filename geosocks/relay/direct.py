"""Dialling the target itself: addresses that the rules have judged, and no names."""

from collections.abc import Sequence
from ipaddress import IPv4Address
from itertools import chain, zip_longest
from typing import Final

import gevent
import gevent.queue

from geosocks.compiling import mypyc_attr
from geosocks.deadlines import Deadline
from geosocks.errors import AddressTypeNotSupported, RequestFailed
from geosocks.relay.dial import NoAnswer, dial
from geosocks.relay.target import Family, failure_of, most_telling, no_answer
from geosocks.stream import Connection
from geosocks.wire.socks5 import Address, IPAddress

_IPv4: Final = IPv4Address  # as Final it needs no look-up by name


@mypyc_attr(allow_interpreted_subclasses=True)
class DirectDialer:
    """Connects to the target itself, by Happy Eyeballs when it has several addresses (RFC 8305).

    ``outgoing`` are source addresses, at most one of each family; ``family`` leaves the addresses
    of the other family out.
    """

    STAGGER: Final = 0.25
    """Seconds until the next address is tried beside those under way (RFC 8305, section 5)."""

    def __init__(self, outgoing: Sequence[IPAddress] = (), family: Family = "any") -> None:
        self.family = family
        self.outgoing = {address.version: str(address) for address in outgoing}

    def open_connection(
        self, to: Address, addresses: tuple[IPAddress, ...], seconds: float | None = None
    ) -> Connection:
        """Connect to ``to`` at the first of its judged ``addresses`` that answers.

        Never looks a name up: a second look-up may answer otherwise than the one that was judged.
        How long it may take are ``seconds``, or the caller's to say with a deadline.

        Raises:
            RequestFailed: none could be reached; of several failures, the most telling.
            TargetTimeout: there was no answer within ``seconds``.
        """
        if len(addresses) == 1 and self.family == "any":
            return self._dial(addresses[0], to.port, to, seconds)
        if seconds is None:
            return self._choose(to, addresses)
        with Deadline(seconds, no_answer(to, seconds)):
            return self._choose(to, addresses)

    def _choose(self, to: Address, addresses: tuple[IPAddress, ...]) -> Connection:
        candidates = interleave(addresses)
        if self.family != "any":
            version = 4 if self.family == "ipv4" else 6
            candidates = [address for address in candidates if address.version == version]
            if not candidates:
                raise AddressTypeNotSupported(f"{to} has no address of family {self.family}")
        if len(candidates) == 1:
            return self._dial(candidates[0], to.port)
        return self._race(candidates, to.port)

    def _dial(
        self,
        host: IPAddress,
        port: int,
        to: Address | None = None,
        seconds: float | None = None,
    ) -> Connection:
        """Connect to one address, most often the very one that was asked for: ``to``."""
        is_asked = to is not None and to.host is host
        spelling = to.forms.spelling if to is not None and is_asked else str(host)
        source = self.outgoing.get(host.version) if self.outgoing else None
        try:
            connection = dial(isinstance(host, _IPv4), (spelling, port), source, seconds)
        except NoAnswer as late:
            raise no_answer(to or Address(host, port), late.seconds) from None
        except RequestFailed:
            raise
        except OSError as error:
            raise failure_of(error, Address(host, port)) from error
        if is_asked:
            connection.peer = to
        return connection

    def _race(self, candidates: list[IPAddress], port: int) -> Connection:
        """Try ``candidates`` one after the other, STAGGER apart; the first to answer wins."""
        outcomes: gevent.queue.SimpleQueue[Connection | RequestFailed] = gevent.queue.SimpleQueue()

        def attempt(host: IPAddress) -> None:
            try:
                outcome: Connection | RequestFailed = self._dial(host, port)
            except RequestFailed as failure:
                outcome = failure
            outcomes.put(outcome)

        attempts: list[gevent.Greenlet[[IPAddress], None]] = []
        failures: list[RequestFailed] = []
        waiting = iter(candidates)
        winner: Connection | None = None
        try:
            while len(failures) < len(candidates):
                following = next(waiting, None)
                if following is not None:
                    attempts.append(gevent.spawn(attempt, following))
                try:
                    outcome = outcomes.get(timeout=self.STAGGER if following else None)
                except gevent.queue.Empty:
                    continue  # it is the next one's turn
                if isinstance(outcome, Connection):
                    winner = outcome
                    return winner
                failures.append(outcome)
            raise most_telling(failures)
        finally:
            gevent.killall(attempts)
            while not outcomes.empty():
                loser = outcomes.get()
                if isinstance(loser, Connection) and loser is not winner:
                    loser.close()


def interleave(addresses: Sequence[IPAddress]) -> list[IPAddress]:
    """Order ``addresses`` for dialling: families in turn, each in its order (RFC 8305, 4)."""
    if len(addresses) < 3:
        return list(addresses)
    first = addresses[0].version
    ours = [address for address in addresses if address.version == first]
    others = [address for address in addresses if address.version != first]
    return [a for a in chain.from_iterable(zip_longest(ours, others)) if a is not None]
