"""Who may ask for what: the rule language, and the rule set that judges a request.

One rule a line, in order; the first that matches wins, and the last word is deny::

    allow user @staff from 10.0.0.0/8 to *.example.org port 443,8443-8450   # a comment
    deny  command bind,udp
    allow method gssapi user *@EXAMPLE.ORG to 192.168.7.0/24
    group @staff alice bob carol@EXAMPLE.ORG

A verb, then conditions in any order, each a word and a list with commas between its values; an
absent one holds for everybody.  ``#`` at the start of a word begins a comment.

===========  ====================================================================================
user         identities, octet for octet; globs (``*``, ``?``, ``[]``); groups, ``@name``
method       none, gssapi, username, 0x80
from         the client: address, network, any, loopback, private, linklocal
to           address, network, name, ``*.suffix``, ``.suffix`` (itself too), any, everywhere, and
             the words of ``geosocks.guard``, which tells what ``any`` and names do not open
port         of the destination: 443, 8000-8099, https
command      connect, bind, udp; also written cmd
===========  ====================================================================================

Names are compared in lower case and cover no addresses: what has a name may be asked for by its
address, too.  A host whose name is one of our words is written with a dot, ``private.``.

A rule is asked about every address of the destination.  A name is resolved once, and not before a
rule cannot be decided without.  A deny takes away the addresses it covers; the first allow that
covers any of those left is the verdict, for just these.  None left is a refusal.

A rule may be any callable: ``RuleSet((office_hours, *parse_rules(text)))``.  Knows no sockets, no
files and no DNS.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final, Self

from geosocks.errors import RequestDenied, RequestFailed
from geosocks.guard import canonical_name, classify
from geosocks.rules.language import parse_rules
from geosocks.rules.question import Question, Resolver, Rule, Verdict
from geosocks.rules.written import WrittenRule, told
from geosocks.wire.socks5 import IPAddress

__all__ = [
    "LOCAL",
    "LOCAL_RULES",
    "Explanation",
    "Question",
    "Resolver",
    "Rule",
    "RuleSet",
    "Step",
    "Verdict",
    "WrittenRule",
    "canonical_name",
    "parse_rules",
]

LOCAL_RULES: Final = "allow from loopback to everywhere\n"
"""With no rule file and only loopback listeners: clients on this host may go anywhere."""


@dataclass(frozen=True, slots=True)
class Step:
    """What came of asking one rule: ``outcome`` is allow, deny or pass, ``why`` the reason.

    ``addresses`` are those that it allowed, or took away.
    """

    rule: str
    outcome: str
    why: str
    addresses: tuple[IPAddress, ...] = ()

    def __str__(self) -> str:
        return f"{self.outcome:<5}  {self.rule}\n       {self.why}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a rule set came to its verdict: every rule that was asked, and what came of it.

    ``failure`` is what ``judge`` raises, None when the request is allowed.
    """

    steps: tuple[Step, ...]
    verdict: Verdict
    failure: RequestFailed | None

    def __str__(self) -> str:
        end = str(self.failure) if self.failure else f"allowed: {told(self.verdict.addresses)}"
        return "\n".join([*map(str, self.steps), end])


class RuleSet:
    """Rules in order; the first that matches wins, and the last word is deny.  Immutable."""

    __slots__ = ("rules",)

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self.rules = tuple(rules)

    @classmethod
    def parse(cls, text: str, path: str = "rules") -> Self:
        """Read a rule file's text.

        Raises:
            ConfigError: at ``path``, line and column.
        """
        return cls(parse_rules(text, path))

    def limits_who(self) -> bool:
        """True unless a written allow lets just anybody in, from anywhere.

        What limits is ``user``, ``method`` without none, or a ``from`` that does not cover a whole
        address family.  A limit on ``to`` does not: that is an open proxy, if to few places.  Rules
        in Python are taken to limit.  Denies before an allow are not weighed.
        """
        return all(rule.limits_who for rule in self.rules if isinstance(rule, WrittenRule))

    def judge(self, question: Question) -> Verdict:
        """Decide ``question``: an allowed verdict, with the addresses to dial.

        Raises:
            RequestDenied: a rule said no, or none said yes.
            RequestFailed: HostUnreachable, when the name has no address.
        """
        return self._decide(question, None)

    def explain(self, question: Question) -> Explanation:
        """Decide ``question`` as ``judge`` does, and tell how."""
        steps: list[Step] = []
        try:
            verdict = self._decide(question, steps.append)
        except RequestFailed as failure:
            rule = failure.rule if isinstance(failure, RequestDenied) else None
            return Explanation(tuple(steps), Verdict(False, rule or str(failure)), failure)
        return Explanation(tuple(steps), verdict, None)

    def _decide(self, question: Question, note: Callable[[Step], None] | None) -> Verdict:
        left: tuple[IPAddress, ...] | None = None  # None: all there are, perhaps not looked up
        for rule in self.rules:
            verdict = rule(question)
            if verdict is None:
                if note:
                    note(Step(_text(rule), "pass", _miss(rule, question)))
                continue
            covered = verdict.addresses
            if verdict.allowed:
                pool = question.addresses if left is None else left
                covered = covered or _unguarded(pool)
                granted = tuple([address for address in pool if address in covered])
                if note:
                    note(_granting(verdict.rule, pool, granted))
                if granted:
                    same = granted == verdict.addresses
                    return verdict if same else replace(verdict, addresses=granted)
                continue
            # A deny of all there is needs no look-up.
            pool = (question.addresses if left is None else left) if covered else ()
            left = _without(pool, covered)
            if note:
                note(_taking(verdict.rule, _without(pool, left), left))
            if not left:
                raise RequestDenied(f"{question} is denied by {verdict.rule}", verdict.rule)
        raise RequestDenied(_nobody_allows(question, left), "deny, as no rule allows it")


LOCAL: Final = RuleSet.parse(LOCAL_RULES, "default")
"""LOCAL_RULES, ready to judge."""


def _unguarded(addresses: tuple[IPAddress, ...]) -> tuple[IPAddress, ...]:
    return tuple([address for address in addresses if classify(address) is None])


def _without(
    addresses: tuple[IPAddress, ...], taken: tuple[IPAddress, ...]
) -> tuple[IPAddress, ...]:
    return tuple([address for address in addresses if address not in taken])


def _text(rule: Rule) -> str:
    """Name a rule: by its line, or by the name of a Python function."""
    if isinstance(rule, WrittenRule):
        return rule.text
    return getattr(rule, "__qualname__", None) or type(rule).__qualname__


def _miss(rule: Rule, question: Question) -> str:
    return rule.miss(question) if isinstance(rule, WrittenRule) else "has no opinion"


def _granting(text: str, pool: tuple[IPAddress, ...], granted: tuple[IPAddress, ...]) -> Step:
    held_back = told(_without(pool, granted))
    if not granted:
        return Step(text, "pass", f"does not cover {held_back}")
    why = f"covers {told(granted)}" + (f", not {held_back}" if held_back else "")
    return Step(text, "allow", why, granted)


def _taking(text: str, taken: tuple[IPAddress, ...], left: tuple[IPAddress, ...]) -> Step:
    if left and not taken:
        return Step(text, "pass", f"takes none of {told(left)}")
    why = f"takes {told(taken)}" if taken else "takes all"
    return Step(text, "deny", why + (f", leaves {told(left)}" if left else ""), taken)


def _nobody_allows(question: Question, left: tuple[IPAddress, ...] | None) -> str:
    reason = f"no rule allows {question}"
    if left is None and question.looked_up:
        left = question.addresses
    guarded = [address for address in left or () if classify(address)]
    return f"{reason}; nor does one open {told(guarded)}" if guarded else reason
