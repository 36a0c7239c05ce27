"""``via``: who goes to which upstream, what is looked up for it, and what is not."""

from collections.abc import Mapping, Sequence
from ipaddress import ip_address

import pytest

from geosocks.codes import Cmd, Method
from geosocks.errors import ConfigError, HostUnreachable, RequestDenied, RequestFailed
from geosocks.rules import DIRECT, LOCAL, Question, RuleSet, Verdict
from geosocks.wire.socks5 import Address, IPAddress

PUBLIC = "93.184.215.14"
KNOWN = ("office", "backup", "default")


class Book:
    """A resolver that is a dict, and counts."""

    def __init__(self, entries: Mapping[str, Sequence[str]] | None = None) -> None:
        self.entries = {"www.example.org": [PUBLIC], "db.lan": ["10.0.0.5"], **(entries or {})}
        self.asked: list[str] = []

    def resolve(self, name: str) -> tuple[IPAddress, ...]:
        self.asked.append(name)
        if name not in self.entries:
            raise HostUnreachable(f"{name} does not exist")
        return tuple(map(ip_address, self.entries[name]))


def ask(
    host: str, book: Book | None = None, via: tuple[str, ...] = (), peer: str = "127.0.0.1"
) -> Question:
    to = Address(host, 443)
    return Question(Address(peer, 4), None, Method.NONE, Cmd.CONNECT, to, book or Book(), None, via)


def decided(rules: str, question: Question) -> str:
    """Judge; ``denied``, or where it goes."""
    try:
        verdict = RuleSet.parse(rules, upstreams=KNOWN).judge(question)
    except RequestDenied:
        return "denied"
    assert verdict.allowed
    words = [str(address) for address in verdict.addresses]
    return " ".join([*words, "via", ",".join(verdict.via)] if verdict.via else words)


@pytest.mark.parametrize(
    ("rules", "host", "outcome"),
    [
        ("allow to *.corp via office", "a.corp", "via office"),
        ("allow to *.corp via office", "www.example.org", "denied"),
        ("allow to any via office,backup", "a.corp", "via office,backup"),
        ("allow via office", "a.corp", "via office"),
        ("allow to everywhere via office", "a.corp", "via office"),
        # Literals are judged as ever.
        ("allow via office", PUBLIC, f"{PUBLIC} via office"),
        ("allow via office", "10.0.0.1", "denied"),
        ("allow to 10.0.0.0/8 via office", "10.0.0.1", "10.0.0.1 via office"),
        ("allow to private via office", "::ffff:10.0.0.1", "10.0.0.1 via office"),
        ("allow to everywhere via office", "127.0.0.1", "127.0.0.1 via office"),
        # A name that is passed on has no addresses: networks do not meet it.
        ("allow to 0.0.0.0/0,10.0.0.0/8 via office", "db.lan", "denied"),
        ("deny to private\nallow to any via office", "db.lan", "via office"),
        ("deny to *.lan\nallow to any via office", "db.lan", "denied"),
        ("deny to any\nallow to any via office", "a.corp", "denied"),
        ("deny user bob to any\nallow to any via office", "a.corp", "via office"),
    ],
)
def test_names_are_passed_on_without_a_look_up(rules: str, host: str, outcome: str) -> None:
    book = Book()
    assert decided(rules, ask(host, book)) == outcome
    assert book.asked == []


LAN_FIRST = "deny to 10.6.6.6\nallow to 10.0.0.0/8\nallow to any via office"


@pytest.mark.parametrize(
    ("rules", "host", "outcome"),
    [
        (LAN_FIRST, "db.lan", "10.0.0.5"),
        (LAN_FIRST, "www.example.org", "via office"),
        (LAN_FIRST, "only.over.there", "via office"),
        (LAN_FIRST, "evil.lan", "via office"),
        (LAN_FIRST, "half.evil.lan", "10.0.0.6"),
        ("deny to 10.0.0.0/8\nallow to *.org\nallow to x via office", "mixed.org", PUBLIC),
        ("deny to private\nallow to db.lan,10.0.0.0/8\nallow to x via office", "db.lan", "denied"),
        ("allow to 10.0.0.0/8\nallow to *.corp via office", "www.example.org", "denied"),
        ("allow to any\nallow to any via office", "www.example.org", PUBLIC),
        ("allow to any via direct\nallow to any via office", "www.example.org", PUBLIC),
    ],
)
def test_rules_that_dial_look_names_up_once_and_their_denies_hold(
    rules: str, host: str, outcome: str
) -> None:
    book = Book(
        {
            "evil.lan": ["10.6.6.6"],
            "half.evil.lan": ["10.6.6.6", "10.0.0.6"],
            "mixed.org": ["10.0.0.9", PUBLIC],
        }
    )
    assert decided(rules, ask(host, book)) == outcome
    assert book.asked == [host]


def test_a_name_without_an_address_is_x04_where_nobody_passes_it_on() -> None:
    rules = RuleSet.parse("allow to 10.0.0.0/8\nallow to *.corp via office", upstreams=KNOWN)
    with pytest.raises(HostUnreachable, match="does not exist"):
        rules.judge(ask("nowhere.test"))
    rules = RuleSet.parse("allow to *.test\nallow to any via office", upstreams=KNOWN)
    with pytest.raises(HostUnreachable):
        rules.judge(ask("nowhere.test"))


@pytest.mark.parametrize(
    ("rules", "host", "outcome"),
    [
        ("allow to any", "a.corp", "via default"),
        ("allow to any", PUBLIC, f"{PUBLIC} via default"),
        ("allow to any", "10.0.0.1", "denied"),
        ("allow to *.corp via office\nallow", "a.corp", "via office"),
        ("allow to *.corp via office\nallow", "b.test", "via default"),
        ("allow via direct", "www.example.org", PUBLIC),
        ("allow to 10.0.0.0/8 via direct\nallow", "db.lan", "10.0.0.5"),
        ("allow to 10.0.0.0/8 via direct\nallow", "a.corp", "via default"),
        ("deny to *.corp\nallow", "a.corp", "denied"),
    ],
)
def test_the_default_is_for_rules_that_say_nothing_else(
    rules: str, host: str, outcome: str
) -> None:
    assert decided(rules, ask(host, via=("default",))) == outcome


def test_the_rules_of_a_server_without_any_take_the_default_too() -> None:
    book = Book()
    assert LOCAL.judge(ask("a.corp", book, ("default",))).via == ("default",)
    assert LOCAL.judge(ask("127.0.0.1", book, ("default",))).via == ("default",)
    with pytest.raises(RequestDenied):
        LOCAL.judge(ask("a.corp", book, ("default",), peer="192.0.2.7"))
    assert book.asked == []


def test_rules_in_python_name_upstreams() -> None:
    def by_name(question: Question) -> Verdict | None:
        return Verdict(True, "mine", via=("office",)) if question.name == "a.corp" else None

    def directly(question: Question) -> Verdict | None:
        return Verdict(True, "plain", via=DIRECT)

    book = Book()
    rules = RuleSet((by_name, directly))
    assert rules.judge(ask("a.corp", book, ("default",))).via == ("office",)
    assert book.asked == []
    verdict = rules.judge(ask("www.example.org", book, ("default",)))
    assert (verdict.via, verdict.addresses) == ((), (ip_address(PUBLIC),))


def test_explain_tells_the_way_and_asks_nobody() -> None:
    book = Book()
    rules = RuleSet.parse("deny to 10.0.0.0/8\nallow to any via office,backup", upstreams=KNOWN)
    explanation = rules.explain(ask("a.corp", book))
    assert explanation.verdict.via == ("office", "backup")
    assert str(explanation).endswith("allowed: via office,backup")
    assert [step.outcome for step in explanation.steps] == ["pass", "allow"]
    assert str(rules.explain(ask(PUBLIC))).endswith(f"allowed: {PUBLIC} via office,backup")
    denied = rules.explain(ask("a.corp", book, peer="192.0.2.7"))
    assert denied.failure is None
    assert book.asked == []


def test_explain_tells_what_a_deny_took_that_had_to_wait() -> None:
    rules = RuleSet.parse(LAN_FIRST, upstreams=KNOWN)
    steps = rules.explain(ask("evil.lan", Book({"evil.lan": ["10.6.6.6"]}))).steps
    assert [step.outcome for step in steps] == ["pass", "deny", "pass", "allow"]
    only_lan = RuleSet.parse("deny to 10.6.6.6\nallow to 10.0.0.0/8", upstreams=KNOWN)
    failure = only_lan.explain(
        ask("evil.lan", Book({"evil.lan": ["10.6.6.6"]}), via=("x",))
    ).failure
    assert isinstance(failure, RequestFailed)


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        ("allow via offise", "1:11", "unknown upstream 'offise'; did you mean office?"),
        ("allow via", "1:7", "'via' needs a value, or several with commas between"),
        ("allow via office,", "1:17", "a comma with no value after it"),
        ("allow via office,office", "1:18", "'office' stands twice"),
        ("allow via office via backup", "1:18", "'via' stands twice: write one list, with commas"),
        (
            "allow via direct,office",
            "1:11",
            "'direct' stands alone: it looks names up, upstreams do not",
        ),
        ("deny to any via office", "1:13", "'via' belongs to an allow"),
        ("allow via dierct", "1:11", "unknown upstream 'dierct'; did you mean direct?"),
    ],
)
def test_an_error_says_where_and_how_to_mend_it(text: str, place: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RuleSet.parse(text, "rules.conf", KNOWN)
    assert str(caught.value) == f"rules.conf:{place}: {what}"


def test_without_upstreams_the_error_says_where_they_come_from() -> None:
    with pytest.raises(ConfigError) as caught:
        RuleSet.parse("allow via office", "rules.conf")
    assert str(caught.value).endswith("unknown upstream 'office'; name one: --upstream NAME=URL")
