"""``sessions``: what a rule lets each of its users have at a time, as written and as answered."""

from ipaddress import ip_address

import pytest

from geosocks.codes import Cmd, Method
from geosocks.errors import ConfigError
from geosocks.rules import Effects, Question, RuleSet
from geosocks.wire.socks5 import Address, IPAddress

PUBLIC = "93.184.215.14"


class One:
    """A resolver that knows one address."""

    def resolve(self, name: str) -> tuple[IPAddress, ...]:
        return (ip_address(PUBLIC),)


def ask(host: str = PUBLIC, via: tuple[str, ...] = ()) -> Question:
    peer, to = Address("192.0.2.7", 4), Address(host, 443)
    return Question(peer, "alice", Method.USERNAME, Cmd.CONNECT, to, One(), via=via)


@pytest.mark.parametrize(
    ("text", "effects"),
    [
        ("allow", None),
        ("allow to any", None),
        ("allow sessions 1", Effects(1, "any")),
        ("allow sessions 20 to any", Effects(20, "to any")),
        ("allow to any sessions 999999999", Effects(999_999_999, "to any")),
        ("allow sessions 007", Effects(7, "any")),
        ("allow port 443,80 sessions 3 user bob,alice", Effects(3, "port 443,80 user alice,bob")),
        ("group @staff alice\nallow user @staff sessions 3", Effects(3, "user @staff")),
        ("deny port 1\nallow cmd connect sessions 3", Effects(3, "command connect")),
        ("allow user bob sessions 1\nallow sessions 2", Effects(2, "any")),
    ],
)
@pytest.mark.parametrize("host", [PUBLIC, "www.example.org"])
def test_a_verdict_has_the_effects_of_its_rule(
    text: str, effects: Effects | None, host: str
) -> None:
    assert RuleSet.parse(text).judge(ask(host)).effects == effects
    assert RuleSet.parse(text).may_use(ask(host)).effects == effects


def test_one_that_passes_a_name_on_has_them_too() -> None:
    rules = RuleSet.parse("allow via office sessions 4", upstreams=["office"])
    verdict = rules.judge(ask("a.corp"))
    assert (verdict.via, verdict.effects) == (("office",), Effects(4, "any"))
    rules = RuleSet.parse("allow sessions 4")
    assert rules.judge(ask("a.corp", via=("office",))).effects == Effects(4, "any")


@pytest.mark.parametrize(
    ("text", "column", "what"),
    [
        ("allow sessions", 7, "'sessions' needs a value, or several with commas between"),
        ("allow sessions to any", 7, "'sessions' needs a value, or several with commas between"),
        ("allow sessions 1,2", 18, "'sessions' takes one number"),
        ("allow sessions 0", 16, "0 sessions are a deny"),
        ("allow sessions -1", 16, "'-1' is not a number of sessions, such as 20"),
        ("allow sessions 1.5", 16, "'1.5' is not a number of sessions, such as 20"),
        ("allow sessions many", 16, "'many' is not a number of sessions, such as 20"),
        ("allow sessions 9999999999", 16, "'9999999999' is not a number of sessions, such as 20"),
        ("allow sessions ٣", 16, "'\\u0663' is not a number of sessions, such as 20"),
        (
            "allow sessions 1 sessions 2",
            18,
            "'sessions' stands twice: write one list, with commas",
        ),
        ("allow session 3", 7, "unknown word 'session'; did you mean sessions?"),
        ("deny sessions 3", 6, "'sessions' belongs to an allow"),
    ],
)
def test_an_error_says_where_and_how_to_mend_it(text: str, column: int, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RuleSet.parse(text, "rules.conf")
    assert str(caught.value) == f"rules.conf:1:{column}: {what}"
