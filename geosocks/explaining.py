"""What the rules say to a request, and why, as a session would hear it; in plain values.

For ``geosocks explain``, which asks the files, and ``geosocks ctl explain``, which asks a server.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from geosocks.codes import Cmd, Method, name_of
from geosocks.errors import HostUnreachable, RequestDenied, RequestFailed
from geosocks.policy import Policy
from geosocks.rules import Explanation, Question, Step, Verdict
from geosocks.session.connect import LOOP, leads_back
from geosocks.wire.socks5 import Address, IPAddress

COMMANDS: Final = {"connect": Cmd.CONNECT, "bind": Cmd.BIND, "udp": Cmd.UDP_ASSOCIATE}
METHODS: Final = {"none": Method.NONE, "username": Method.USERNAME, "gssapi": Method.GSSAPI}

Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that somebody might make; ``command`` is a word of COMMANDS."""

    command: str
    destination: Address
    user: str | None
    method: int
    source: IPAddress
    listener: str | None = None

    def __str__(self) -> str:
        who = "anybody" if self.user is None else ascii(self.user)
        method = name_of(Method, self.method)
        to = ascii(str(self.destination)).strip("'")
        return f"{self.command} to {to}, asked by {who} with method {method} from {self.source}"


def method_of(user: str | None) -> Method:
    """The method by which a user of that name most likely came in."""
    if user is None:
        return Method.NONE
    return Method.GSSAPI if "@" in user else Method.USERNAME


def explain(asked: Asked, policy: Policy, own_ports: Collection[int]) -> Facts:
    """What becomes of a request by ``policy``, of a server that listens on ``own_ports``.

    ``steps`` are the rules that were asked, each with ``outcome``, ``rule`` and ``why``.  If it is
    ``allowed``, ``addresses`` are those to dial, none for a name that goes to an upstream of
    ``via``, and ``limits`` are the ceilings on sessions at a time that hold for such a client, by
    what the log calls them.  If not, ``reply`` is the REP and ``reason`` the words for it.
    ``resolved`` are the addresses of a name, where it had to be looked up.
    """
    facts: Facts = {"question": str(asked), "steps": [], "name": None, "resolved": []}
    try:
        question = Question(
            peer=Address(asked.source, 0),
            identity=asked.user,
            method=asked.method,
            command=COMMANDS[asked.command],
            destination=asked.destination,
            resolver=policy.resolver,
            listener=asked.listener,
            via=policy.via,
        )
    except HostUnreachable as failure:  # such a name cannot be
        return facts | _refused(failure)
    explanation = judge(question, policy, own_ports)
    facts["steps"] = list(map(_step, explanation.steps))
    if question.name is not None and question.looked_up:
        facts |= {"name": question.name, "resolved": list(map(str, question.addresses))}
    if explanation.failure is not None:
        return facts | _refused(explanation.failure)
    verdict = explanation.verdict
    return facts | {
        "allowed": True,
        "addresses": list(map(str, verdict.addresses)),
        "via": list(verdict.via),
        "rule": verdict.rule,
        "limits": _limits(verdict, policy),
    }


def judge(question: Question, policy: Policy, own_ports: Collection[int]) -> Explanation:
    """Decide as a session does: by the rules, and no CONNECT may lead back to the server."""
    explanation = policy.rules.explain(question)
    if question.command == Cmd.CONNECT and leads_back(
        explanation.verdict, question.destination.port, own_ports
    ):
        return replace(explanation, failure=RequestDenied(LOOP, rule="loop"))
    return explanation


def told(facts: Facts) -> Iterator[str]:
    """The lines that a person reads; the question is not among them."""
    if facts["resolved"]:
        yield f"{facts['name']} has {', '.join(facts['resolved'])}"
    for step in facts["steps"]:
        yield f"{step['outcome']:<5}  {step['rule']}"
        yield f"       {step['why']}"
    if facts["allowed"]:
        yield f"allowed, {_way(facts)}, by {facts['rule']}"
        for limit, ceiling in facts["limits"].items():
            yield f"       limit: {ceiling} {_LIMITS[limit]}"
    else:
        yield f"refused with X'{facts['reply']:02X}': {facts['reason']}"


def _way(facts: Facts) -> str:
    to = f"to {', '.join(facts['addresses'])}" if facts["addresses"] else "by name"
    return f"{to} via upstream {','.join(facts['via'])}" if facts["via"] else to


_LIMITS: Final = {
    "sessions_of_rule": "sessions at a time of this user by this rule",
    "sessions_per_user": "sessions at a time of this user in all",
}


def _limits(verdict: Verdict, policy: Policy) -> dict[str, int]:
    of_rule = None if verdict.effects is None else verdict.effects.sessions
    ceilings = {"sessions_of_rule": of_rule, "sessions_per_user": policy.limits.per_user}
    return {limit: ceiling for limit, ceiling in ceilings.items() if ceiling is not None}


def _step(step: Step) -> Facts:
    return {"outcome": step.outcome, "rule": step.rule, "why": step.why}


def _refused(failure: RequestFailed) -> Facts:
    rule = failure.rule if isinstance(failure, RequestDenied) else None
    return {"allowed": False, "reply": int(failure.rep), "rule": rule, "reason": str(failure)}
