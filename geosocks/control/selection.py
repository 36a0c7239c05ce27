"""Which sessions a request is about."""

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from ipaddress import ip_network

from geosocks.control.arguments import Arguments, IPNetwork
from geosocks.greenlets import give_way
from geosocks.rows import TURN
from geosocks.server import Server
from geosocks.session import Session
from geosocks.wire.address import literal


def chosen(arguments: Arguments) -> Callable[[Session], bool]:
    """The test that the arguments user, from, to and listener ask for."""
    return wanted(
        user=arguments.text("user"),
        source=arguments.network("from"),
        to=arguments.text("to"),
        listener=arguments.text("listener"),
    )


def wanted(
    user: str | None = None,
    source: IPNetwork | None = None,
    to: str | None = None,
    listener: str | None = None,
) -> Callable[[Session], bool]:
    """A test that all conditions given hold.

    ``to`` is a network, which the destination is in as asked or as dialled, or a name with globs.
    """
    tests: list[Callable[[Session], bool]] = []
    if user is not None:
        tests.append(lambda session: session.identity == user)
    if source is not None:
        tests.append(lambda session: _is_in(session.peer.host, source))
    if listener is not None:
        tests.append(lambda session: session.listener == listener)
    if to is not None:
        tests.append(_leads(to))
    return lambda session: all(test(session) for test in tests)


def _leads(to: str) -> Callable[[Session], bool]:
    try:
        network = ip_network(to, strict=False)
    except ValueError:
        pattern = to.lower().rstrip(".")
        return lambda session: (
            session.destination is not None
            and fnmatchcase(str(session.destination.host).lower().rstrip("."), pattern)
        )
    return lambda session: any(
        _is_in(end.host, network)
        for end in (session.destination, session.dialled)
        if end is not None
    )


def _is_in(host: object, network: IPNetwork) -> bool:
    address = literal(host.partition("%")[0]) if isinstance(host, str) else host
    return address is not None and address in network


def in_turns(server: Server) -> Iterator[Session]:
    """The sessions alive, with a turn for others now and then."""
    for number, session in enumerate(list(server.sessions.values()), 1):
        if number % (10 * TURN) == 0:
            give_way()
        if session.id in server.sessions:
            yield session
