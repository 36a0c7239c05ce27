"""May a client use a command at all: what a request is asked that names no destination."""

import pytest

from geosocks.codes import Cmd, Method
from geosocks.errors import RequestDenied
from geosocks.rules import Question, RuleSet, Verdict
from geosocks.wire.socks5 import Address, IPAddress


class Nobody:
    """A resolver that nobody asks."""

    def resolve(self, name: str) -> tuple[IPAddress, ...]:
        raise AssertionError(f"looked {name} up")


def ask(command: int = Cmd.BIND, user: str | None = None, via: tuple[str, ...] = ()) -> Question:
    method = Method.NONE if user is None else Method.USERNAME
    peer, nowhere = Address("192.0.2.7", 40000), Address("0.0.0.0", 0)
    return Question(peer, user, method, command, nowhere, Nobody(), via=via)


@pytest.mark.parametrize(
    "rules",
    [
        "allow",
        "allow to any",
        "allow command bind",
        "allow to 203.0.113.0/24",
        "allow to private",
        "allow to ftp.example.org",
        "allow port 21",
        "allow from 192.0.2.0/24 command bind port 1024-65535 to *.example.org",
        "deny to private\nallow",
        "deny to 10.0.0.0/8,bad.example.org\nallow",
        "deny port 25\nallow",
        "deny command udp\nallow",
        "deny user alice\nallow",
        "deny from 10.0.0.0/8\nallow",
    ],
)
def test_it_may_if_it_might_find_an_allow(rules: str) -> None:
    verdict = RuleSet.parse(rules).may_use(ask())
    assert (verdict.allowed, verdict.addresses) == (True, ())
    assert verdict.rule.endswith(rules.rpartition("\n")[2])


@pytest.mark.parametrize(
    ("rules", "rule"),
    [
        ("", "deny, as no rule allows it"),
        ("deny to private", "deny, as no rule allows it"),
        ("allow command connect,udp", "deny, as no rule allows it"),
        ("allow user alice", "deny, as no rule allows it"),
        ("allow method gssapi,username", "deny, as no rule allows it"),
        ("allow from 10.0.0.0/8", "deny, as no rule allows it"),
        ("deny\nallow", "rules:1: deny"),
        ("deny to any\nallow", "rules:1: deny to any"),
        ("deny to everywhere\nallow", "rules:1: deny to everywhere"),
        ("deny command bind\nallow", "rules:1: deny command bind"),
        ("deny from 192.0.2.7\nallow", "rules:1: deny from 192.0.2.7"),
        ("allow command connect\ndeny\nallow", "rules:2: deny"),
    ],
)
def test_it_may_not_if_every_destination_is_denied(rules: str, rule: str) -> None:
    with pytest.raises(RequestDenied) as caught:
        RuleSet.parse(rules).may_use(ask())
    assert caught.value.rule == rule


def test_the_user_and_the_method_count() -> None:
    rules = RuleSet.parse("allow user alice method username\n")
    assert rules.may_use(ask(user="alice")).allowed
    with pytest.raises(RequestDenied, match="no rule allows a bind"):
        rules.may_use(ask(user="bob"))


def test_rules_in_python_are_asked_as_it_stands() -> None:
    asked: list[Question] = []

    def some(question: Question) -> Verdict:
        asked.append(question)
        return Verdict(False, "some", (question.addresses[0],))

    def nobody(question: Question) -> Verdict | None:
        return Verdict(False, "no binds") if question.command == Cmd.BIND else None

    everybody = RuleSet.parse("allow to everywhere\n").rules
    assert RuleSet((some, *everybody)).may_use(ask()).allowed
    assert str(asked[0].destination) == "0.0.0.0:0"
    rules = RuleSet((nobody, *everybody))
    assert rules.may_use(ask(Cmd.UDP_ASSOCIATE)).allowed
    with pytest.raises(RequestDenied, match="no binds"):
        rules.may_use(ask())
    assert RuleSet((lambda _: Verdict(True, "yes"),)).may_use(ask()).rule == "yes"


def test_the_upstream_of_the_rule_or_else_the_servers() -> None:
    rules = RuleSet.parse("allow user alice via up\nallow\n", upstreams=("up",))
    assert rules.may_use(ask(user="alice")).via == ("up",)
    assert rules.may_use(ask()).via == ()
    assert rules.may_use(ask(via=("other",))).via == ("other",)
