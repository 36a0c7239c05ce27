"""On whose account a session goes, and whether there is a place for it.

Asked once a rule has let the request through.  Over a ceiling the answer is X'02' and the reason
stays with us (RFC 1928 has no REP for it).
"""

from gevent import sleep

from geosocks.codes import Method
from geosocks.entrance import source_of
from geosocks.errors import Penalised
from geosocks.events import LimitReached, SourcePenalised
from geosocks.limits import Ceiling, CeilingMet
from geosocks.rules import Verdict
from geosocks.session.record import Session


def whose(session: Session) -> str:
    """The user's account, or the host's where nobody is named: ``user alice``, ``host 192.0.2.7``.

    A host of IPv6 has a network to itself, and counts as that.
    """
    if session.identity is not None:
        return f"user {session.identity}"
    host = session.peer.host
    return f"host {host if isinstance(host, str) else source_of(host)}"


def admit(session: Session, verdict: Verdict) -> None:
    """Take the session's places: its user's, and those that the rule leaves its user.

    They are given back by ``leave``.  Nothing between a look at a count and its change blocks.

    Raises:
        CeilingMet: there is none left.
    """
    limits, effects = session.policy.limits, verdict.effects
    account = whose(session)
    ceilings = []
    if limits.per_user is not None:
        ceilings.append(Ceiling("sessions_per_user", account, limits.per_user))
    if effects is not None and effects.sessions is not None:
        key = f"{account} by {effects.name or verdict.rule}"
        ceilings.append(Ceiling("sessions_of_rule", key, effects.sessions))
    try:
        session.places = limits.take(ceilings)
    except CeilingMet as met:
        met.rule = verdict.rule
        session.emit(LimitReached(met.ceiling.limit, met.ceiling.places, account))
        raise


def leave(session: Session) -> None:
    """Give back the session's places."""
    places, session.places = session.places, ()
    session.policy.limits.give_back(places)


# --- before anybody is admitted ---------------------------------------------------------------


def await_turn(session: Session) -> None:
    """Have a client wait whose source has failed to authenticate.

    Raises:
        Penalised: others of its source have used up its patience, or do so meanwhile.
    """
    gate, host = session.gate, session.peer.host
    if session.method == Method.GSSAPI or isinstance(host, str):
        return
    for delay in (gate.delay(host), 0.0):
        if gate.is_refused(host):
            raise Penalised(f"{source_of(host)} has failed to authenticate too often")
        if delay:
            sleep(delay)


def note_failure(session: Session) -> None:
    """Count a failed authentication against the client's source, and tell what comes of it."""
    host = session.peer.host
    penalty = None if isinstance(host, str) else session.gate.failed(host)
    if penalty is not None:
        session.emit(SourcePenalised(*penalty))
