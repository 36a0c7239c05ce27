"""On whose account a session goes, and whether there is a place for it.

Asked once a rule has let the request through.  Over a ceiling the answer is X'02' and the reason
stays with us (RFC 1928 has no REP for it).
"""

from ipaddress import IPv6Address, ip_network

from geosocks.events import LimitReached
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
    if isinstance(host, IPv6Address):
        return f"host {ip_network((int(host) >> 64 << 64, 64))}"
    return f"host {host}"


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
