"""What a control socket can be asked to do, one function a verb; and the verbs that change things.

A verb takes its arguments before it does anything, and raises BadRequest where they are wrong.
"""

import logging
from collections.abc import Callable, Collection, Iterator
from typing import Final

import gevent.event

from geosocks.control.arguments import BadRequest, IPNetwork, needed
from geosocks.control.desk import Call, Work
from geosocks.control.following import events
from geosocks.control.looking import (
    explain,
    lately,
    limits,
    penalties,
    sessions,
    status,
    users,
)
from geosocks.control.selection import in_turns, wanted
from geosocks.control_client import LEVELS
from geosocks.entrance import source_of
from geosocks.errors import ConfigError
from geosocks.events import Event, LogObserver, Reloaded, ReloadRefused, escape

RELOAD_SECONDS: Final = 10.0
"""How long to wait for what comes of a reload."""


def kill(call: Call) -> Work:
    """End sessions: those with these ids, or of a user, or from a network."""
    arguments = call.arguments
    ids = arguments.sessions("sessions")
    user, source = arguments.text("user"), arguments.network("from")
    arguments.end()
    if not ids and user is None and source is None:
        raise BadRequest("kill whom? give session ids, a user or a network")
    server = call.desk.server
    if ids:
        found = [server.sessions[number] for number in ids if number in server.sessions]
    else:
        found = list(in_turns(server))
    meant = wanted(user=user, source=source)
    killed = [session for session in found if not session.cut and meant(session)]
    # Nothing between here and the last cut gives way to a session.
    if killed:
        call.note(f"kill {', '.join(_words_of_kill(ids, user, source))}: {len(killed)}")
    for session in killed:
        server.cut(session, "killed")
    gone = {session.id for session in killed}
    for number in ids:
        yield {"session": number, "killed": number in gone}
    return {"killed": len(killed)}


def pardon(call: Call) -> Work:
    """Forget that the source which an address belongs to has failed to authenticate."""
    source = source_of(needed(call.arguments.address("source"), "source"))
    call.arguments.end()
    yield from ()
    pardoned = call.desk.server.gate.pardon(source)
    if pardoned:
        call.note(f"pardon {source}")
    return {"source": source, "pardoned": pardoned}


def reload(call: Call) -> Work:
    """Read the settings anew, and tell what came of it."""
    call.arguments.end()
    desk = call.desk
    if desk.reload is None:
        raise BadRequest("this server has no settings to read anew")
    if desk.clock.draining:
        raise BadRequest("the server drains; it reads nothing any more")
    outcome = _Outcome()
    emit = desk.server.emit
    emit.add(outcome)
    try:
        call.note("reload")
        yield None
        desk.reload()
        event = outcome.wait(RELOAD_SECONDS)
    except ConfigError as error:
        raise BadRequest(f"not reloaded: {escape(str(error))}") from error
    finally:
        emit.remove(outcome)
    match event:
        case ReloadRefused(reason=reason):
            raise BadRequest(f"not reloaded: {escape(reason)}")
        case Reloaded(what=what):
            return {"reloaded": escape(what)}
    raise BadRequest("it was told to, but nothing came of it yet; the log will tell")


def drain(call: Call) -> Work:
    """Accept no more, let the sessions end, and end; as on TERM."""
    call.arguments.end()
    desk = call.desk
    if desk.drain is None:
        raise BadRequest("this server is not ours to end")
    call.note("drain")
    yield from ()
    was_draining, number = desk.clock.draining, len(desk.server.sessions)
    desk.drain()
    return {"sessions": number, "again": was_draining}


def log_level(call: Call) -> Work:
    """Log more, or less, until told otherwise or restarted."""
    level = needed(call.arguments.word("level", LEVELS), "level")
    call.arguments.end()
    yield from ()
    logger = LogObserver().logger
    before = logging.getLevelName(logger.getEffectiveLevel()).lower()
    becomes_quieter = LEVELS.index(level) > LEVELS.index(before)
    if becomes_quieter:  # told while it can be heard
        call.note(f"log-level {level}")
    logger.setLevel(level.upper())
    call.desk.server.emit.ask_again()
    if not becomes_quieter:
        call.note(f"log-level {level}")
    return {"level": level, "before": before}


VERBS: Final[dict[str, Callable[[Call], Work]]] = {
    "status": status,
    "sessions": sessions,
    "users": users,
    "limits": limits,
    "lately": lately,
    "penalties": penalties,
    "explain": explain,
    "events": events,
    "kill": kill,
    "pardon": pardon,
    "reload": reload,
    "drain": drain,
    "log-level": log_level,
}


def _words_of_kill(
    ids: Collection[int], user: str | None, source: IPNetwork | None
) -> Iterator[str]:
    yield from map(str, list(ids)[:20])
    if len(ids) > 20:
        yield f"and {len(ids) - 20} more"
    if user is not None:
        yield f"user {user}"
    if source is not None:
        yield f"from {source}"


class _Outcome:
    """An observer that waits for what comes of a reload."""

    def __init__(self) -> None:
        self._came = gevent.event.Event()
        self._event: Event | None = None

    def wants(self, kind: type[Event]) -> bool:
        """Only that."""
        return kind in (Reloaded, ReloadRefused)

    def __call__(self, event: Event) -> None:
        self._event = event
        self._came.set()

    def wait(self, seconds: float) -> Event | None:
        """The event; None when there is none after ``seconds``."""
        self._came.wait(seconds)
        return self._event
