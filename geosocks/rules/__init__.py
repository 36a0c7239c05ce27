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
listener     names of listeners: which of them the client came to
===========  ====================================================================================

An allow may also say ``via`` and the upstreams to pass the request on to, in the order to try them;
``via direct`` is none.  Without it the server's default upstream is taken, where it has one.
``sessions`` and a number are how many at a time this rule lets each user have, or each host where
nobody is named; what goes beyond is refused, and no later rule is asked.

Names are compared in lower case and cover no addresses: what has a name may be asked for by its
address, too.  A host whose name is one of our words is written with a dot, ``private.``.

A rule is asked about every address of the destination.  A name is resolved once, and not before a
rule cannot be decided without.  A deny takes away the addresses it covers; the first allow that
covers any of those left is the verdict, for just these.  None left is a refusal.

A name that goes to an upstream is not looked up here: what it stands for is found out, and has to
be judged, over there.  So an allow that passes it on must name it, or say ``any`` or
``everywhere``; networks after ``to`` do not meet it, in an allow or in a deny before it.

A rule may be any callable: ``RuleSet((office_hours, *parse_rules(text)))``.  Knows no sockets, no
files and no DNS.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Final, Self

from geosocks.codes import Cmd, name_of
from geosocks.errors import RequestDenied, RequestFailed
from geosocks.guard import canonical_name, classify
from geosocks.rules.language import parse_rules
from geosocks.rules.memory import Memory
from geosocks.rules.question import DIRECT, Effects, Question, Resolver, Rule, Verdict
from geosocks.rules.written import WrittenRule, passes_name, told
from geosocks.wire.socks5 import IPAddress

__all__ = [
    "DIRECT",
    "LOCAL",
    "LOCAL_RULES",
    "Effects",
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
        verdict = self.verdict
        end = str(self.failure) if self.failure else f"allowed: {told(verdict.addresses)}"
        if verdict.via:
            end += f"{' ' if verdict.addresses else ''}via {','.join(verdict.via)}"
        return "\n".join([*map(str, self.steps), end])


class RuleSet:
    """Rules in order; the first that matches wins, and the last word is deny.  Immutable."""

    __slots__ = ("_passes", "memory", "rules")

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self.rules = tuple(rules)
        # A rule in Python may say something else the next time.
        self.memory = Memory(all(isinstance(rule, WrittenRule) for rule in self.rules))
        """The verdicts of ``judge`` on addresses; of a name it would be wrong the next time."""

        self._passes = any(getattr(rule, "via", ()) not in ((), DIRECT) for rule in self.rules)

    @classmethod
    def parse(
        cls,
        text: str,
        path: str = "rules",
        upstreams: Collection[str] = (),
        listeners: Collection[str] | None = None,
    ) -> Self:
        """Read a rule file's text; ``upstreams`` are the names that ``via`` may have.

        ``listeners`` are those that ``listener`` may have; None: any.

        Raises:
            ConfigError: at ``path``, line and column.
        """
        return cls(parse_rules(text, path, upstreams, listeners))

    def limits_who(self, listener: str | None = None) -> bool:
        """True unless a written allow lets just anybody in, from anywhere.

        Asked about the clients of one ``listener``, it leaves out rules that are for others.

        What limits is ``user``, ``method`` without none, or a ``from`` that does not cover a whole
        address family.  A limit on ``to`` does not: that is an open proxy, if to few places.  Rules
        in Python are taken to limit.  Denies before an allow are not weighed.
        """
        return all(
            rule.limits_who
            or (
                listener is not None
                and rule.listeners is not None
                and listener not in rule.listeners
            )
            for rule in self.rules
            if isinstance(rule, WrittenRule)
        )

    def judge(self, question: Question) -> Verdict:
        """Decide ``question``: an allowed verdict, with the addresses to dial.

        Raises:
            RequestDenied: a rule said no, or none said yes.
            RequestFailed: HostUnreachable, when the name has no address.
        """
        return self._decide(question, None)

    def may_use(self, question: Question) -> Verdict:
        """Decide whether the client may do ``question.command`` at all, wherever that leads.

        For a request that names no destination: BIND or UDP ASSOCIATE with a DST of zeros, each of
        whose peers and datagrams is judged when it comes.  The first allow that holds but for its
        ``to`` and ``port`` says yes, a deny without either says no.  A rule in Python is asked
        about the question as it stands, and a deny that covers some addresses only is no answer.
        The verdict has no addresses.

        Raises:
            RequestDenied: it may not.
        """
        for rule in self.rules:
            wherever = rule.wherever if isinstance(rule, WrittenRule) else rule
            verdict = wherever(question)
            if verdict is None:
                continue
            if verdict.allowed:
                return _settled(verdict, (), question)
            if not verdict.addresses:
                raise _denied(question, verdict)
        command = name_of(Cmd, question.command)
        raise RequestDenied(f"no rule allows a {command}", "deny, as no rule allows it")

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
        if question.name is not None and (self._passes or question.via not in ((), DIRECT)):
            return self._decide_name(question, note)
        left: tuple[IPAddress, ...] | None = None  # None: all there are, perhaps not looked up
        for rule in self.rules:
            verdict = rule(question)
            if verdict is None:
                if note:
                    note(Step(_text(rule), "pass", _miss(rule, question)))
                continue
            if verdict.allowed:
                pool = question.addresses if left is None else left
                granted = _granted(verdict, pool, note)
                if granted:
                    return _settled(verdict, granted, question)
                continue
            covered = verdict.addresses
            # A deny of all there is needs no look-up.
            pool = (question.addresses if left is None else left) if covered else ()
            left = _without(pool, covered)
            if note:
                note(_taking(verdict.rule, _without(pool, left), left))
            if not left:
                raise _denied(question, verdict)
        raise RequestDenied(_nobody_allows(question, left), "deny, as no rule allows it")

    def _decide_name(self, question: Question, note: Callable[[Step], None] | None) -> Verdict:
        """``_decide`` for a name that may be passed on to an upstream, and then is not looked up.

        A deny that knows addresses only waits for the first allow that dials: there are none to
        judge before.
        """
        left: tuple[IPAddress, ...] | None = None
        waiting: list[Rule] = []
        failure: RequestFailed | None = None
        for rule in self.rules:
            by_address = isinstance(rule, WrittenRule) and rule.by_address(question)
            if isinstance(rule, WrittenRule) and rule.denies and by_address:
                waiting.append(rule)
                if note:
                    note(Step(rule.text, "pass", "judges addresses: it waits for one that dials"))
                continue
            try:
                verdict = rule(question)
            except RequestFailed as unresolved:
                if not by_address:
                    raise
                failure = unresolved  # a name of no address is in no network
                if note:
                    note(Step(_text(rule), "pass", str(unresolved)))
                continue
            if verdict is None:
                if note:
                    note(Step(_text(rule), "pass", _miss(rule, question)))
            elif not verdict.allowed and verdict.addresses:
                waiting.append(_saying(verdict))
            elif not verdict.allowed:
                if note:
                    note(_taking(verdict.rule, (), ()))
                raise _denied(question, verdict)
            elif passes_name(question, verdict.via):
                if note:
                    note(Step(verdict.rule, "allow", "passes the name on as it is"))
                return _settled(verdict, (), question)
            else:
                left = question.addresses if left is None else left
                left, denial = _taken_by(waiting, question, left, note)
                waiting.clear()
                failure = denial or failure
                granted = _granted(verdict, left, note)
                if granted:
                    return _settled(verdict, granted, question)
        if failure is not None:
            raise failure
        raise RequestDenied(_nobody_allows(question, left), "deny, as no rule allows it")


LOCAL: Final = RuleSet.parse(LOCAL_RULES, "default")
"""LOCAL_RULES, ready to judge."""


def _unguarded(addresses: tuple[IPAddress, ...]) -> tuple[IPAddress, ...]:
    return tuple([address for address in addresses if classify(address) is None])


def _without(
    addresses: tuple[IPAddress, ...], taken: tuple[IPAddress, ...]
) -> tuple[IPAddress, ...]:
    return tuple([address for address in addresses if address not in taken])


def _granted(
    verdict: Verdict, pool: tuple[IPAddress, ...], note: Callable[[Step], None] | None
) -> tuple[IPAddress, ...]:
    """Those of ``pool`` that an allow covers."""
    covered = verdict.addresses or _unguarded(pool)
    granted = tuple([address for address in pool if address in covered])
    if note:
        note(_granting(verdict.rule, pool, granted))
    return granted


def _settled(verdict: Verdict, addresses: tuple[IPAddress, ...], question: Question) -> Verdict:
    """An allow as ``judge`` returns it."""
    via = verdict.via or question.via
    if via == DIRECT:
        via = ()
    if addresses == verdict.addresses and via == verdict.via:
        return verdict
    return replace(verdict, addresses=addresses, via=via)


def _saying(verdict: Verdict) -> Rule:
    """A rule that has been asked already."""
    return lambda question: verdict


def _taken_by(
    denies: Iterable[Rule],
    question: Question,
    left: tuple[IPAddress, ...],
    note: Callable[[Step], None] | None,
) -> tuple[tuple[IPAddress, ...], RequestDenied | None]:
    """What ``denies`` leave of ``left``, and the refusal by the one that took the last of it."""
    denial = None
    for deny in denies:
        verdict = deny(question)
        if verdict is None:
            continue
        before, left = left, _without(left, verdict.addresses)
        if note:
            note(_taking(verdict.rule, _without(before, left), left))
        if before and not left:
            denial = _denied(question, verdict)
    return left, denial


def _denied(question: Question, verdict: Verdict) -> RequestDenied:
    return RequestDenied(f"{question} is denied by {verdict.rule}", verdict.rule)


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
