"""Sessions as rows of plain values: what ``geosocks ctl``, the status page and /sessions show.

A field that ``session_closed`` has too bears the same name, and its value is written as there.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from geosocks.codes import Cmd, Method, name_of
from geosocks.events import escape
from geosocks.greenlets import give_way
from geosocks.server import Server
from geosocks.session import Session

Row = dict[str, Any]
"""Numbers, text and None, by name: JSON can carry it."""

TURN: Final = 50
"""Rows made before others get a turn: about a millisecond's work."""


def session_row(session: Session, now: float, *, idle: float | None = None, worker: int = 0) -> Row:
    """What there is to tell of a live session, None for what is not known (yet).

    ``now`` is the time by ``time.monotonic``.  ``idle`` is how many seconds no octet has passed.
    ``state`` is ``handshake`` until the request is whole, ``opening`` until it is granted or
    refused, then ``open``.  ``up`` and ``down`` are octets so far, ``seconds`` those since accept.
    """
    meter, command, method = session.meter, session.command, session.method
    return {
        "session": session.id,
        "worker": worker,
        "state": _state(session),
        "client": escape(str(session.peer)),
        "listener": escape(session.listener),
        "version": session.version,
        "method": None if method is None else name_of(Method, method),
        "identity": _text(session.identity),
        "claimed": _text(session.claimed),
        "command": None if command is None else name_of(Cmd, command),
        "destination": _text(session.destination),
        "dialled": _text(session.dialled),
        "rule": _text(session.rule),
        "upstream": _text(session.upstream),
        "up": meter.up,
        "down": meter.down,
        "datagrams": meter.datagrams,
        "seconds": round(now - session.opened, 3),
        "idle": None if idle is None else round(idle, 3),
    }


def session_rows(
    server: Server, worker: int = 0, wanted: Callable[[Session], bool] = lambda _: True
) -> Iterator[Row]:
    """The rows of a server's sessions, by id; of those that are ``wanted``.

    Gives way to other greenlets every ``TURN`` sessions, and leaves out who has ended meanwhile.
    """
    for number, session in enumerate(sorted(server.sessions.values(), key=lambda one: one.id), 1):
        if number % TURN == 0:
            give_way()
        if session.id in server.sessions and wanted(session):
            now = time.monotonic()
            yield session_row(session, now, idle=server.silence(session, now), worker=worker)


def _state(session: Session) -> str:
    if session.replied:
        return "open"
    return "handshake" if session.command is None else "opening"


def _text(value: object) -> str | None:
    return None if value is None else escape(str(value))
