"""A reload: settings and log as they now stand; sessions that are no longer allowed."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import gevent

from geosocks.codes import Cmd
from geosocks.config import NEEDS_RESTART, Loaded, Settings, of_the_process
from geosocks.errors import ConfigError
from geosocks.events import Observer, Reloaded, ReloadRefused
from geosocks.logs.handler import ThreadedHandler
from geosocks.server import Server
from geosocks.session import Session
from geosocks.session.again import is_still_allowed
from geosocks.systemd import Passed
from geosocks.worker.job import load, new_policy


def reopen(log: ThreadedHandler, emit: Observer) -> None:
    """Open the log anew; where that cannot be, the old one goes on."""
    try:
        log.reopen()
    except OSError as error:
        emit(ReloadRefused(f"{log.path}: log file cannot be written: {error.strerror}"))


class Outcome(NamedTuple):
    """What came of a reload, as an event has told; and the settings, if they are now in force."""

    told: str
    settings: Settings | None


def reload(
    server: Server, argv: Sequence[str], loaded: Loaded, passed: Sequence[Passed] = ()
) -> Outcome:
    """Put the settings as they now stand in force, all at once or, if they are wrong, not at all.

    What belongs to the process stays as it is; a change there is reported.
    """
    try:
        fresh = load(argv, passed).settings
        policy = new_policy(fresh, server.listening, loaded.settings.allow_open, server.policy)
    except ConfigError as error:
        server.emit(ReloadRefused(str(error)))
        return Outcome(f"reload refused: {error}", None)
    server.policy = policy
    changed = [
        name.replace("_", "-")
        for name in NEEDS_RESTART
        if of_the_process(fresh, name) != of_the_process(loaded.settings, name)
    ]
    note = f"; a change of {', '.join(changed)} needs a restart" if changed else ""
    server.emit(Reloaded("policy" + note))
    if fresh.rejudge:
        cut_no_longer_allowed(server)
    return Outcome("reloaded" + note, fresh)


def cut_no_longer_allowed(server: Server) -> None:
    """End the sessions that the policy in force would not let through now; leave the others be."""
    dialling = []
    for session in list(server.sessions.values()):
        if not is_still_allowed(session, server.policy):
            server.cut(session, "no_longer_allowed")
        elif session.command is None or session.command in _JUDGED_AS_THEY_GO:
            session.policy = server.policy
        elif session.dialled is None:
            dialling.append(session)
    if dialling:  # where a name leads is not known before it is there
        gevent.spawn_later(server.policy.timeouts.connect + 1.0, _cut_of, server, dialling)


_JUDGED_AS_THEY_GO: Final = (Cmd.BIND, Cmd.UDP_ASSOCIATE)
"""What is still to come of them, each peer and each destination, is for the new rules."""


def _cut_of(server: Server, sessions: Sequence[Session]) -> None:
    for session in sessions:
        alive = server.sessions.get(session.id) is session
        if alive and not is_still_allowed(session, server.policy):
            server.cut(session, "no_longer_allowed")
