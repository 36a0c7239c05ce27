"""The end of sessions that nobody uses any more: one greenlet looks at them all.

Knows what a session has counted and for how long it may be silent; ends none itself.
"""

import time
from collections.abc import Callable, Mapping

import gevent

from geosocks.codes import Cmd
from geosocks.entrance import Gate
from geosocks.listening import keepalive
from geosocks.policy import Timeouts
from geosocks.session import Session


class Reaper:
    """Looks at ``sessions``, and has ``cut`` end who is silent, telling why.

    ``timeouts`` tells those of the policy in force; each session is held to its own policy's.
    The ``gate`` is swept at the same time.
    """

    def __init__(
        self,
        sessions: Mapping[int, Session],
        gate: Gate,
        timeouts: Callable[[], Timeouts],
        cut: Callable[[Session, str], None],
    ) -> None:
        self._sessions = sessions
        self._gate = gate
        self._timeouts = timeouts
        self._cut = cut
        self._seen: dict[int, tuple[int, float]] = {}  # octets, and since when
        self._greenlet: gevent.Greenlet[..., None] | None = None

    def start(self) -> None:
        """Look from now on, several times in the shortest of the timeouts."""
        self._greenlet = gevent.spawn(self._reap)

    def stop(self) -> None:
        """Look no more; may be called again."""
        if self._greenlet is not None:
            self._greenlet.kill()
            self._greenlet = None

    def silence(self, session: Session, now: float) -> float | None:
        """As ``Server.silence``."""
        known = self._seen.get(session.id)
        if known is None:
            return None
        meter = session.meter
        return now - known[1] if known[0] == meter.up + meter.down + meter.datagrams else 0.0

    def _reap(self) -> None:
        """Cut sessions that have been silent for too long.

        A session's octets, and a UDP association's datagrams, are counted anyway; whoever has the
        same count as when it was looked at ``idle`` seconds ago has been idle.  So a session pays
        for no timer and no clock.
        """
        while True:
            timeouts = self._timeouts()
            shortest = min(timeouts.idle, timeouts.half_close, timeouts.udp)
            gevent.sleep(max(0.02, min(5.0, shortest / 10)))
            self._gate.sweep()
            now = time.monotonic()
            before, seen = self._seen, dict[int, tuple[int, float]]()
            self._seen = seen
            for session in list(self._sessions.values()):
                if not session.replied:
                    continue
                meter, timeouts = session.meter, session.policy.timeouts
                octets = meter.up + meter.down + meter.datagrams
                known = before.get(session.id)
                if known is None:
                    keepalive(session.target)
                if known is None or known[0] != octets:
                    seen[session.id] = (octets, now)
                    continue
                seen[session.id] = known
                silence = now - known[1]
                if session.command == Cmd.UDP_ASSOCIATE:
                    if silence >= timeouts.udp:
                        self._cut(session, "udp_idle")
                elif silence >= timeouts.idle:
                    self._cut(session, "idle")
                elif meter.half_closed and silence >= timeouts.half_close:
                    self._cut(session, "half_close_idle")
