"""Judge a session again, by another policy than the one it was accepted with.

No name is looked up anew: what is judged is the address that was dialled, or the peer that came.
"""

from collections.abc import Callable

from geosocks.codes import Cmd, Method
from geosocks.errors import HostUnreachable, RequestDenied, RequestFailed
from geosocks.guard import unmapped
from geosocks.policy import Policy
from geosocks.rules import Question, RuleSet, Verdict
from geosocks.session.record import Session
from geosocks.wire.socks5 import UNSPECIFIED, Address, IPAddress

Judge = Callable[[RuleSet, Question], Verdict]


class _Known:
    """A resolver that knows what a session's name stood for, if anybody here does."""

    def __init__(self, session: Session) -> None:
        known = None if session.upstream or session.dialled is None else session.dialled.host
        self._host = known

    def resolve(self, name: str) -> tuple[IPAddress, ...]:
        """The address that was dialled.

        Raises:
            HostUnreachable: none was, from here.
        """
        if self._host is None or isinstance(self._host, str):
            raise HostUnreachable(f"{name} is not looked up anew")
        return (self._host,)


def is_still_allowed(session: Session, policy: Policy) -> bool:
    """Whether ``policy`` would let ``session`` have what it has asked for.

    A UDP association is judged as a whole, and so is a BIND for anybody whom nobody has come to:
    whether the client may have one.  Yes, too, where all hangs on an address that is not known
    here, as of a name that an upstream has looked up.
    """
    if session.command is None or session.destination is None:
        return True
    judge, destination = _matter(session, session.destination)
    try:
        question = Question(
            peer=session.peer,
            identity=session.identity,
            method=session.method or Method.NONE,
            command=session.command,
            destination=destination,
            resolver=_Known(session),
            listener=session.listener,
            via=policy.via,
        )
        judge(policy.rules, question)
    except RequestDenied:
        return False
    except RequestFailed:
        return True
    return True


def _matter(session: Session, asked: Address) -> tuple[Judge, Address]:
    """What the rules are asked about, and how."""
    if session.command == Cmd.UDP_ASSOCIATE:
        return RuleSet.may_use, UNSPECIFIED
    if session.command == Cmd.BIND and session.target is not None and session.dialled is not None:
        peer = session.dialled
        return RuleSet.judge, Address(asked.host if asked.is_name else peer.host, peer.port)
    if session.command == Cmd.BIND and not isinstance(asked.host, str):
        anybody = unmapped(asked.host).is_unspecified
        return RuleSet.may_use if anybody else RuleSet.judge, asked
    return RuleSet.judge, asked
