"""The rule language and its verdicts: tables of decisions, spellings, errors; look-ups counted."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geosocks.codes import Cmd, Method
from geosocks.errors import ConfigError, HostUnreachable, RequestDenied, RequestFailed
from geosocks.guard import classify
from geosocks.rules import (
    LOCAL,
    LOCAL_RULES,
    Question,
    Rule,
    RuleSet,
    Verdict,
    canonical_name,
    parse_rules,
)
from geosocks.wire.socks5 import Address, IPAddress

PUBLIC = "93.184.215.14"
PUBLIC6 = "2606:2800:220:1::1"


class Book:
    """A resolver that is a dict, and counts."""

    def __init__(self, entries: Mapping[str, Sequence[str | IPAddress]] | None = None) -> None:
        self.entries = {"www.example.org": [PUBLIC], **(entries or {})}
        self.asked: list[str] = []

    def resolve(self, name: str) -> tuple[IPAddress, ...]:
        self.asked.append(name)
        if name not in self.entries:
            raise HostUnreachable(f"{name} does not exist")
        return tuple(map(ip_address, self.entries[name]))


def ask(
    host: str = PUBLIC,
    port: int = 443,
    *,
    peer: str = "192.0.2.7",
    user: str | None = None,
    method: int = Method.NONE,
    command: int = Cmd.CONNECT,
    book: Book | None = None,
) -> Question:
    return Question(
        Address(peer, 40000), user, method, command, Address(host, port), book or Book()
    )


def dialled(rules: str, question: Question) -> list[str]:
    """Judge, and write the addresses to dial; none when denied."""
    try:
        verdict = RuleSet.parse(rules).judge(question)
    except RequestDenied:
        return []
    assert verdict.allowed
    assert verdict.addresses
    return [str(address) for address in verdict.addresses]


# Decisions.


class Asked(NamedTuple):
    method: int
    command: int
    source: str
    host: str
    port: int


CONDITIONS: list[tuple[str, Callable[[Asked], bool]]] = [
    # words of a rule, what it takes to meet them
    ("", lambda asked: True),
    ("method none", lambda asked: asked.method == Method.NONE),
    ("method gssapi,0x80", lambda asked: asked.method in (Method.GSSAPI, 0x80)),
    ("command bind,udp", lambda asked: asked.command in (Cmd.BIND, Cmd.UDP_ASSOCIATE)),
    ("cmd connect", lambda asked: asked.command == Cmd.CONNECT),
    ("user alice", lambda asked: asked.method != Method.NONE),
    ("user bob,carol", lambda asked: False),
    ("from 10.0.0.0/8", lambda asked: asked.source == "10.1.1.1"),
    ("from 10.0.0.0/8,2001:db8::1", lambda asked: asked.source != "192.0.2.7"),
    ("from any", lambda asked: True),
    ("to 93.184.215.0/24", lambda asked: asked.host != PUBLIC6),
    ("to www.example.org", lambda asked: asked.host == "www.example.org"),
    ("to *.example.org,2606::/16", lambda asked: asked.host != PUBLIC),
    ("port 443", lambda asked: asked.port == 443),
    ("port 8000-8099,http", lambda asked: asked.port in (80, 8050)),
    (
        "to any port 443 method gssapi from 10.1.1.1 command connect user *",
        lambda asked: asked._replace(host="") == (Method.GSSAPI, Cmd.CONNECT, "10.1.1.1", "", 443),
    ),
]
ASKED = list(
    itertools.starmap(
        Asked,
        itertools.product(
            (Method.NONE, Method.GSSAPI, Method.USERNAME, 0x80),
            (Cmd.CONNECT, Cmd.BIND, Cmd.UDP_ASSOCIATE, 0x09),
            ("10.1.1.1", "192.0.2.7", "2001:db8::1"),
            (PUBLIC, PUBLIC6, "www.example.org"),
            (80, 443, 8050, 0),
        ),
    )
)


@pytest.mark.parametrize(("words", "meets"), CONDITIONS, ids=[words for words, _ in CONDITIONS])
def test_every_kind_of_condition_decides_every_kind_of_question(
    words: str, meets: Callable[[Asked], bool]
) -> None:
    allow = RuleSet.parse(f"allow {words}")
    deny = RuleSet.parse(f"deny {words}\nallow")
    for asked in ASKED:
        question = ask(
            asked.host,
            asked.port,
            peer=asked.source,
            user=None if asked.method == Method.NONE else "alice",
            method=asked.method,
            command=asked.command,
        )
        for rules, allowed in ((allow, meets(asked)), (deny, not meets(asked))):
            explanation = rules.explain(question)
            assert explanation.verdict.allowed == allowed, (asked, explanation)
            if allowed:
                assert rules.judge(question) == explanation.verdict
            else:
                with pytest.raises(RequestDenied):
                    rules.judge(question)


DECISIONS = [
    # rules, question, the addresses dialled
    pytest.param("", ask(), [], id="nothing-written-denies"),
    pytest.param("# allow\n\n   # x\n", ask(), [], id="comments-are-no-rules"),
    pytest.param("allow", ask(), [PUBLIC], id="a-bare-allow"),
    pytest.param("deny\nallow", ask(), [], id="first-match-wins"),
    pytest.param("allow\ndeny", ask(), [PUBLIC], id="first-match-wins-2"),
    pytest.param("allow user *", ask(), [], id="user-needs-an-identity"),
    pytest.param("allow user *", ask(user="x"), [PUBLIC], id="any-user"),
    pytest.param("allow user Alice", ask(user="alice"), [], id="case-counts"),
    pytest.param("allow user *@R.ORG", ask(user="a/b@R.ORG"), [PUBLIC], id="glob"),
    pytest.param("allow user *@R.ORG", ask(user="a@R.ORG.evil"), [], id="glob-is-anchored"),
    pytest.param("allow user b?", ask(user="abc"), [], id="glob-is-anchored-2"),
    pytest.param("allow user *@R.ORG", ask(user="a@RxORG"), [], id="a-dot-is-a-dot"),
    pytest.param("allow user a?,[bc]d", ask(user="cd"), [PUBLIC], id="glob-class"),
    pytest.param("allow user caf\udce9", ask(user="caf\udce9"), [PUBLIC], id="octets-as-given"),
    pytest.param("allow user café", ask(user="cafe\u0301"), [], id="no-normalising"),
    pytest.param("allow user a#b # c", ask(user="a#b"), [PUBLIC], id="hash-within-a-word"),
    pytest.param(
        "allow user @all\ngroup @all @some, zoe\ngroup @some bob *@R",
        ask(user="x@R"),
        [PUBLIC],
        id="groups-in-groups",
    ),
    pytest.param("group @g @h\ngroup @h a\nallow user b,@g", ask(user="a"), [PUBLIC], id="group"),
    pytest.param(
        "deny to b , c,a.org # x\nallow", ask("b", book=Book({"b": [PUBLIC]})), [], id=","
    ),
    pytest.param("allow from 10.0.0.0/8", ask(peer="::ffff:10.1.2.3"), [PUBLIC], id="mapped-peer"),
    pytest.param("allow from ::ffff:10.0.0.0/104", ask(peer="10.1.2.3"), [PUBLIC], id="mapped-net"),
    pytest.param("allow from linklocal", ask(peer="fe80::1%lo"), [PUBLIC], id="peer-with-zone"),
    pytest.param("allow from fe80::/10", ask(peer="fe80::1%lo"), [PUBLIC], id="peer-with-zone-2"),
    pytest.param("allow from 0.0.0.0/0,::/0", ask(peer="/run/x"), [], id="peer-with-no-address"),
    pytest.param("allow from any", ask(peer="/run/x"), [PUBLIC], id="any-peer"),
    pytest.param("allow from private", ask(peer="100.64.0.1"), [PUBLIC], id="from-private"),
    pytest.param("allow from loopback", ask(peer="::1"), [PUBLIC], id="from-loopback"),
    pytest.param("allow from loopback", ask(peer="64:ff9b::7f00:1"), [], id="peer-in-disguise"),
    pytest.param("allow to example.org", ask("www.example.org"), [], id="exact-name"),
    pytest.param("allow to *.EXAMPLE.org", ask("WWW.example.ORG."), [PUBLIC], id="name-case-dot"),
    pytest.param(
        "allow to *.example.org",
        ask("example.org", book=Book({"example.org": [PUBLIC]})),
        [],
        id="star-is-not-the-apex",
    ),
    pytest.param(
        "allow to .example.org",
        ask("example.org", book=Book({"example.org": [PUBLIC]})),
        [PUBLIC],
        id="dot-is-the-apex-too",
    ),
    pytest.param("allow to .example.org", ask("www.example.org"), [PUBLIC], id="dot-and-below"),
    pytest.param("allow to *.example.org", ask(PUBLIC), [], id="a-name-covers-no-address"),
    pytest.param("allow to 93.184.215.14", ask("www.example.org"), [PUBLIC], id="as-resolved"),
    pytest.param(
        "deny to *.example.org\nallow", ask(PUBLIC), [PUBLIC], id="a-name-denies-no-address"
    ),
    pytest.param("allow to any", ask("127.0.0.1"), [], id="any-is-guarded"),
    pytest.param("allow to 0.0.0.0/0,::/0", ask("10.0.0.1"), [], id="zero-zero-is-any"),
    pytest.param("allow to 0.0.0.0/0", ask(PUBLIC), [PUBLIC], id="zero-zero-is-any-2"),
    pytest.param("allow to 10.0.0.0/8", ask("10.0.0.1"), ["10.0.0.1"], id="network-opens"),
    pytest.param("allow to private", ask("10.0.0.1"), ["10.0.0.1"], id="word-opens"),
    pytest.param("allow to everywhere", ask("127.0.0.1"), ["127.0.0.1"], id="everywhere-opens"),
    pytest.param("allow to 10.0.0.0/8", ask("::ffff:10.0.0.1"), ["10.0.0.1"], id="mapped-is-v4"),
    pytest.param("deny to 10.0.0.0/8\nallow to everywhere", ask("64:ff9b::a00:1"), [], id="nat64"),
    pytest.param("deny to any\nallow to everywhere", ask("127.0.0.1"), [], id="deny-any-is-all"),
    pytest.param("deny to everywhere\nallow", ask(), [], id="deny-everywhere-is-all"),
    pytest.param("deny to private\nallow to everywhere", ask(), [PUBLIC], id="deny-word"),
    pytest.param(LOCAL_RULES, ask("127.0.0.1", peer="127.0.0.1"), ["127.0.0.1"], id="local"),
    pytest.param(LOCAL_RULES, ask(peer="10.0.0.1"), [], id="local-is-loopback-only"),
]


@pytest.mark.parametrize(("rules", "question", "addresses"), DECISIONS)
def test_decisions(rules: str, question: Question, addresses: list[str]) -> None:
    assert dialled(rules, question) == addresses


def test_the_default_rules_are_ready_made() -> None:
    verdict = LOCAL.judge(ask("10.0.0.1", peer="127.0.0.1"))
    assert verdict.rule == "default:1: allow from loopback to everywhere"
    assert LOCAL.limits_who()


# Names of several addresses.

MIXED = {"rebind.test": [PUBLIC, "127.0.0.1", "10.0.0.1", PUBLIC6, "169.254.169.254"]}

REBINDING = [
    ("allow", [PUBLIC, PUBLIC6]),
    ("allow to any", [PUBLIC, PUBLIC6]),
    ("allow to rebind.test", [PUBLIC, PUBLIC6]),
    ("allow to *.test", [PUBLIC, PUBLIC6]),
    ("allow to 10.0.0.0/8", ["10.0.0.1"]),
    ("allow to *.test,10.0.0.0/8", [PUBLIC, "10.0.0.1", PUBLIC6]),
    ("allow to private, loopback", ["127.0.0.1", "10.0.0.1"]),
    ("allow to metadata", ["169.254.169.254"]),
    ("allow to everywhere", MIXED["rebind.test"]),
    ("deny to 93.184.0.0/16\nallow", [PUBLIC6]),
    ("deny to 0.0.0.0/0\nallow to everywhere", [PUBLIC6]),
    ("deny to 0.0.0.0/0\ndeny to ::/0\nallow to everywhere", []),
    ("deny to loopback, linklocal\nallow to everywhere", [PUBLIC, "10.0.0.1", PUBLIC6]),
    ("deny to 93.184.0.0/16\nallow to 93.184.0.0/16\nallow to 2606::/16", [PUBLIC6]),
    ("deny to 93.184.0.0/16\nallow to 93.184.0.0/16", []),
    ("deny to *.test\nallow to everywhere", []),
    ("allow to www.example.org, 192.0.2.0/24", []),
]


@pytest.mark.parametrize(("rules", "addresses"), REBINDING)
def test_only_covered_addresses_of_a_name_remain(rules: str, addresses: list[str]) -> None:
    book = Book(MIXED)
    assert dialled(rules, ask("Rebind.test.", book=book)) == addresses
    assert len(book.asked) <= 1


def test_a_name_of_guarded_addresses_alone_is_denied_and_says_so() -> None:
    book = Book({"inside.test": ["127.0.0.1", "::ffff:10.0.0.1", "fe80::1%eth0"]})
    with pytest.raises(RequestDenied) as caught:
        RuleSet.parse("allow").judge(ask("inside.test", 80, book=book))
    assert str(caught.value) == (
        "no rule allows inside.test:80; nor does one open 127.0.0.1 (loopback), 10.0.0.1 (private)"
    )
    assert caught.value.rule == "deny, as no rule allows it"


def test_the_rule_that_took_the_last_address_is_named() -> None:
    book = Book({"two.test": [PUBLIC, "8.8.8.8"]})
    rules = RuleSet.parse("deny to 93.184.0.0/16\ndeny to 8.0.0.0/8\ndeny", "r")
    with pytest.raises(RequestDenied) as caught:
        rules.judge(ask("two.test", book=book))
    assert caught.value.rule == "r:2: deny to 8.0.0.0/8"
    assert str(caught.value) == "two.test:443 is denied by r:2: deny to 8.0.0.0/8"


def test_an_address_with_a_zone_is_never_dialled() -> None:
    book = Book({"zone.test": ["fe80::1%eth0"]})
    with pytest.raises(HostUnreachable, match=r"zone\.test has no address"):
        RuleSet.parse("allow to everywhere").judge(ask("zone.test", book=book))


def test_an_address_is_dialled_once_however_often_it_is_found() -> None:
    book = Book({"twice.test": [PUBLIC, f"::ffff:{PUBLIC}", PUBLIC]})
    assert dialled("allow", ask("twice.test", book=book)) == [PUBLIC]


# Look-ups.

NO_LOOK_UP = [
    "deny",
    "deny to any",
    "deny to *.example.org",
    "deny to .example.org, 10.0.0.0/8",
    "deny to www.example.org\nallow",
    "allow user bob\nallow from 10.0.0.0/8\nallow port 80\nallow command bind\nallow method gssapi",
    "deny user bob to 10.0.0.0/8\nallow to *.example.com, other.test\ndeny to *.example.com",
    "allow to .com",
    "",
]


@pytest.mark.parametrize("rules", NO_LOOK_UP)
def test_what_can_be_decided_by_the_name_is_not_looked_up(rules: str) -> None:
    book = Book()
    assert dialled(rules, ask("www.example.org", book=book)) == []
    RuleSet.parse(rules).explain(ask("www.example.org", book=book))
    assert book.asked == []


@pytest.mark.parametrize("rules", ["allow", "allow to *.example.org", "deny to ::/0\nallow\ndeny"])
def test_a_name_is_looked_up_once_in_its_canonical_form(rules: str) -> None:
    book = Book()
    question = ask("WWW.Example.org.", book=book)
    assert not question.looked_up
    for _ in range(2):
        assert dialled(rules, question) == [PUBLIC]
        RuleSet.parse(rules).explain(question)
    assert book.asked == ["www.example.org"]


def test_a_failed_look_up_is_not_tried_again() -> None:
    book = Book()
    question = ask("nowhere.test", book=book)
    for _ in range(2):
        with pytest.raises(HostUnreachable, match=r"nowhere\.test does not exist"):
            RuleSet.parse("allow").judge(question)
    assert book.asked == ["nowhere.test"]


def test_no_address_at_all_is_host_unreachable() -> None:
    with pytest.raises(HostUnreachable, match=r"empty\.test has no address"):
        RuleSet.parse("allow").judge(ask("empty.test", book=Book({"empty.test": []})))


# Spellings of places that nobody reaches by accident, as a client may send them.

WRAPPINGS = (
    *(("", ""), ("", "."), (" ", ""), ("0", ""), ("", "\0"), ("", "\0.example.org")),
    *(("::ffff:", ""), ("::", ""), ("::ffff:0:", ""), ("::ffff:", "%lo"), ("[::ffff:", "]")),
    *(("64:ff9b::", ""), ("64:ff9b:1::", ""), ("2a00::5efe:", ""), ("2a00::200:5efe:", "")),
)
WRAPPED = "127.0.0.1 127.255.255.254 0.0.0.0 169.254.169.254 10.0.0.1 172.16.0.1"
ODD = """
    127.1 127.0.1 0x7f.1 0x7f.0.0.1 0177.1 0177.0.0.01 017700000001 2130706433 0 0x0 1 0x7F000001
    0X7f000001. 0x000000007f000001 0xa9fea9fe 0x0a000001 169.254.43518 169.16689662
    0xa9.0xfe.0xa9.0xfe 0251.0376.0251.0376 2852039166
    2002:7f00:1:: 2002:a9fe:a9fe::1 2002:a00:1::5 2001:0:808:808::80ff:fffe
    2001:0:808:808:0:0:5601:5601 2001:0:7f00:1:0:0:f7f7:f7f7 64:ff9b::7f00:1 64:ff9b:1::a9fe:a9fe
    :: ::1 ::1. ::1%lo ::1%1 [::1] 0:0:0:0:0:0:0:1 0000::0001 ::7f00:1 fe80::1 fe80::1%eth0 fec0::1
    fc00::1 fd00:ec2::254 ff02::1 ff01::1 100::1 2001:db8::1
    224.0.0.1 255.255.255.255 240.0.0.1 168.63.129.16 100.100.100.200 100.64.0.1 192.0.0.192
    198.18.0.1 192.0.2.1
    \uff11\uff12\uff17.0.0.1 127\u30020\u30020\u30021 \u2460\u2461\u2466.0.0.1 127.0.0.1\udcff
    localho\u017ft ::\uff11
"""
SPELLINGS = [
    *(f"{before}{v4}{after}" for v4 in WRAPPED.split() for before, after in WRAPPINGS),
    *ODD.split(),
]


def test_no_spelling_opens_a_guarded_place() -> None:
    assert len(SPELLINGS) >= 142
    for spelling in SPELLINGS:
        book = Book()
        for rules in ("allow", "allow to any", "allow to *.example.org,0.0.0.0/0,::/0"):
            with pytest.raises(RequestFailed) as caught:
                RuleSet.parse(rules).judge(ask(spelling, 80, book=book))
            assert isinstance(caught.value, RequestDenied | HostUnreachable), spelling
            assert str(caught.value).isprintable()
            assert str(caught.value).isascii()
        assert book.asked == [], spelling


@pytest.mark.parametrize("word", ["localhost", "inside.test"])
def test_a_name_for_a_guarded_place_does_not_open_it(word: str) -> None:
    book = Book({word: [s for s in SPELLINGS if is_address(s)]})
    assert dialled(f"allow to any, {word}", ask(word, book=book)) == []


def is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def test_an_ipv6_address_with_a_zone_is_refused() -> None:
    destination = Address(IPv6Address("fe80::1%eth0"), 80)
    with pytest.raises(HostUnreachable, match="zone id"):
        Question(Address("::1", 1), None, 0, Cmd.CONNECT, destination, Book())


# Rules in Python.


def test_rules_in_python_mix_with_written_ones() -> None:
    def office_hours(question: Question) -> Verdict | None:
        return None if question.identity == "alice" else Verdict(False, "office hours")

    rules = RuleSet((office_hours, *parse_rules("allow to .example.org")))
    assert (
        rules.judge(ask("www.example.org", user="alice")).rule == "rules:1: allow to .example.org"
    )
    with pytest.raises(RequestDenied) as caught:
        rules.judge(ask("www.example.org", user="bob"))
    assert caught.value.rule == "office hours"


@pytest.mark.parametrize(
    ("verdict", "addresses"),
    [
        (Verdict(True, "x"), [PUBLIC, PUBLIC6]),
        (Verdict(True, "x", (ip_address("10.0.0.1"),)), ["10.0.0.1"]),
        (Verdict(True, "x", (ip_address("8.8.8.8"),)), []),
        (Verdict(True, "x", (ip_address("8.8.8.8"), ip_address(PUBLIC))), [PUBLIC]),
        (Verdict(False, "x"), []),
        (Verdict(False, "x", (ip_address("8.8.8.8"),)), ["later"]),
        (Verdict(False, "x", (ip_address(PUBLIC),)), ["later"]),
        (None, ["later"]),
    ],
)
def test_what_a_verdict_in_python_covers(verdict: Verdict | None, addresses: list[str]) -> None:
    later: list[Rule] = []
    if addresses == ["later"]:
        later = list(parse_rules("allow to 10.0.0.0/8"))
        addresses = ["10.0.0.1"]
    question = ask("rebind.test", book=Book(MIXED))
    rules = RuleSet([lambda question: verdict, *later])
    explanation = rules.explain(question)
    assert [str(address) for address in explanation.verdict.addresses] == addresses
    assert explanation.verdict.allowed == bool(addresses)


def test_a_rule_in_python_may_see_and_end_it_all() -> None:
    def by_listener(question: Question) -> Verdict | None:
        assert question.name == "www.example.org"
        assert question.addresses == (IPv4Address(PUBLIC),)
        if question.listener == "inside":
            return Verdict(True, "inside", question.addresses)
        raise RequestDenied("come in by the other door", rule="door")

    rules = RuleSet([by_listener])
    places = Address("10.0.0.1", 1), None, 0, Cmd.CONNECT, Address("www.example.org", 80)
    assert rules.judge(Question(*places, Book(), listener="inside")).addresses
    with pytest.raises(RequestDenied, match="other door"):
        rules.judge(Question(*places, Book(), "outside"))
    assert rules.explain(Question(*places, Book())).verdict == Verdict(False, "door")


# Who is limited.


@pytest.mark.parametrize(
    ("rules", "limits"),
    [
        ("", True),
        ("deny", True),
        ("deny from any\ndeny user bob", True),
        ("allow", False),
        ("allow to any", False),
        ("allow to *.example.org port 443 command connect", False),
        ("allow user alice", True),
        ("allow user *", True),
        ("allow method gssapi,username", True),
        ("allow method none,gssapi", False),
        ("allow method 0x80", True),
        ("allow from any", False),
        ("allow from 10.0.0.0/8, any", False),
        ("allow from 10.0.0.0/8", True),
        ("allow from loopback,private", True),
        ("allow from 0.0.0.0/0", False),
        ("allow from ::/0", False),
        ("allow from ::ffff:0:0/96", False),
        ("allow from 0.0.0.0/1,128.0.0.0/1", False),
        ("allow from 0.0.0.0/0 user alice", True),
        ("allow user alice\nallow to www.example.org", False),
        ("deny\nallow", False),
    ],
)
def test_limits_who(rules: str, limits: bool) -> None:
    assert RuleSet.parse(rules).limits_who() == limits


def test_rules_in_python_count_as_limits() -> None:
    assert RuleSet([lambda question: Verdict(True, "all")]).limits_who()


# Errors.

ERRORS = [
    ("alow", "1:1", "unknown verb 'alow'; did you mean allow?"),
    ("xyzzy", "1:1", "unknown verb 'xyzzy'; the words are allow, deny, group"),
    ("ALLOW", "1:1", "unknown verb 'ALLOW'; did you mean allow?"),
    ("# x\n\n  allow usr bob", "3:9", "unknown word 'usr'; did you mean user?"),
    ("allow usr bob\r\n", "1:7", "unknown word 'usr'; did you mean user?"),
    (
        "allow user a b",
        "1:14",
        "unknown word 'b'; the words are listener, command, port, method, user, from, to, via,"
        " sessions (a list has commas between its values)",
    ),
    ("allow user", "1:7", "'user' needs a value, or several with commas between"),
    ("allow user to any", "1:7", "'user' needs a value, or several with commas between"),
    ("allow user a,", "1:13", "a comma with no value after it"),
    ("allow user a,,b", "1:14", "a comma with no value before it"),
    ("allow user , a", "1:12", "a comma with no value before it"),
    ("allow cmd udp command bind", "1:15", "'command' stands twice: write one list, with commas"),
    ("allow to a to b", "1:12", "'to' stands twice: write one list, with commas"),
    ("allow quota x", "1:7", "'quota' is not in this version"),
    ("deny to country KP,IR", "1:9", "'country' is not in this version"),
    ("allow user @staf\ngroup @staff a", "1:12", "unknown group '@staf'; did you mean @staff?"),
    ("allow user @staff", "1:12", "unknown group '@staff'; there is no group"),
    ("group @a b @c", "1:12", "unknown group '@c'; the words are @a"),
    ("group @a @b\ngroup @b @a", "2:10", "group '@a' contains itself"),
    ("group @a @a", "1:10", "group '@a' contains itself"),
    ("group @a b\ngroup @a c", "2:7", "group '@a' stands on line 1"),
    ("group @a", "1:7", "group '@a' has no members"),
    ("group", "1:1", "a group is written: group @name alice bob"),
    ("group staff alice", "1:7", "a group is written: group @name alice bob"),
    (
        "allow method kerberos",
        "1:14",
        "unknown method 'kerberos'; the words are none, gssapi, username",
    ),
    ("allow method 0x7f", "1:14", "method 0x7f is none of 0x00 to 0x02, 0x80 to 0xfe"),
    ("allow method 0xff", "1:14", "method 0xff is none of 0x00 to 0x02, 0x80 to 0xfe"),
    ("allow command conect", "1:15", "unknown command 'conect'; did you mean connect?"),
    ("allow port 70000", "1:12", "port 70000 is beyond 65535"),
    ("allow port 1-65536", "1:12", "port 1-65536 is beyond 65535"),
    ("allow port 9-1", "1:12", "port range 9-1 runs backwards; did you mean 1-9?"),
    ("allow port 1-", "1:12", "'1-' is not a port, such as 443 or 8000-8099"),
    ("allow port \u00b2", "1:12", "'\\xb2' is not a port, such as 443 or 8000-8099"),
    ("allow port htps", "1:12", "unknown service 'htps'; did you mean https?"),
    (
        "allow from example.org",
        "1:12",
        "unknown source 'example.org'; the words are any, loopback, private, linklocal; "
        "a client is known by its address, not by a name",
    ),
    (
        "allow to 10.1.2.3/8",
        "1:10",
        "10.1.2.3/8 has bits beyond its prefix; did you mean 10.0.0.0/8?",
    ),
    ("allow to fc00::1/7", "1:10", "fc00::1/7 has bits beyond its prefix; did you mean fc00::/7?"),
    ("allow to 10.0.0.0/33", "1:10", "the prefix of '10.0.0.0/33' is not within 0 to 32"),
    ("allow to ::/1e1", "1:10", "the prefix of '::/1e1' is not within 0 to 128"),
    ("allow to 10/8", "1:10", "'10/8' is not a network, such as 10.0.0.0/8 or fc00::/7"),
    ("allow to fe80::zz", "1:10", "'fe80::zz' is not a network, such as 10.0.0.0/8 or fc00::/7"),
    ("allow to fe80::1%eth0", "1:10", "'fe80::1%eth0': a zone id has no place in a rule"),
    ("allow to 127.1", "1:10", "'127.1' is neither an address nor a host name"),
    ("allow to a..b", "1:10", "'a..b' is neither an address nor a host name"),
    ("allow to *.", "1:10", "'*.' is neither an address nor a host name"),
    ("allow to *", "1:10", "'*' is not a name; 'any' is the word for all"),
    ("allow to w.*.org", "1:10", "'w.*.org' is not a name; * stands in front, as in *.example.org"),
    (
        "allow to a, privat",
        "1:13",
        "unknown destination 'privat'; did you mean private?"
        " (a host of that name is written privat.)",
    ),
    (
        "allow to *.b\u00fccher.example",
        "1:10",
        "'*.b\\xfccher.example' is not ASCII; its punycode form is xn--bcher-kva.example",
    ),
    (
        "allow to \x1b\u00a1",
        "1:10",
        "'\\x1b\\xa1' is not ASCII, nor can it be turned into a name that is",
    ),
    ("allow to \udcff", "1:10", "'\\udcff' is not ASCII, nor can it be turned into a name that is"),
]


@pytest.mark.parametrize(("text", "place", "what"), ERRORS, ids=[e[0][:24] for e in ERRORS])
def test_an_error_says_where_and_how_to_mend_it(text: str, place: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RuleSet.parse(text, "rules.conf")
    assert str(caught.value) == f"rules.conf:{place}: {what}"


def test_a_long_word_is_shown_in_part() -> None:
    with pytest.raises(ConfigError) as caught:
        RuleSet.parse("x" * 1_000_000)
    assert len(str(caught.value)) < 200


def test_rules_are_quoted_as_written_but_printable_anywhere() -> None:
    (rule,) = parse_rules("\ufeff  allow   user caf\udce9   # why\r\n", "r")
    assert rule.text == "r:1: allow   user caf\\udce9"


# Explanations.


def test_an_explanation_tells_what_came_of_each_rule() -> None:
    def silent(question: Question) -> Verdict | None:
        return None

    written = parse_rules(
        "deny user bob\n"
        "allow method gssapi\n"
        "deny cmd udp\n"
        "deny port 25\n"
        "allow from 10.0.0.0/8\n"
        "allow to *.example.com\n"
        "deny to 2606::/16, linklocal\n"
        "deny to 2606::/16\n"
        "deny to 8.0.0.0/8\n"
        "allow to metadata\n"
        "allow to any\n"
        "deny\n"
    )
    explanation = RuleSet((silent, *written)).explain(ask("rebind.test", book=Book(MIXED)))
    assert [(step.outcome, step.why) for step in explanation.steps] == [
        ("pass", "has no opinion"),
        ("pass", "user does not match nobody"),
        ("pass", "method does not match none"),
        ("pass", "command does not match connect"),
        ("pass", "port does not match 443"),
        ("pass", "from does not match 192.0.2.7"),
        ("pass", "to does not match rebind.test:443"),
        (
            "deny",
            f"takes {PUBLIC6}, 169.254.169.254 (metadata), "
            f"leaves {PUBLIC}, 127.0.0.1 (loopback), 10.0.0.1 (private)",
        ),
        ("pass", f"takes none of {PUBLIC}, 127.0.0.1 (loopback), 10.0.0.1 (private)"),
        (
            "pass",
            f"to does not cover {PUBLIC}, 127.0.0.1 (loopback), 10.0.0.1 (private), "
            f"{PUBLIC6}, 169.254.169.254 (metadata)",
        ),
        ("pass", f"does not cover {PUBLIC}, 127.0.0.1 (loopback), 10.0.0.1 (private)"),
        ("allow", f"covers {PUBLIC}, not 127.0.0.1 (loopback), 10.0.0.1 (private)"),
    ]
    assert explanation.failure is None
    assert explanation.verdict == Verdict(True, "rules:11: allow to any", (IPv4Address(PUBLIC),))
    assert str(explanation).splitlines()[-1] == f"allowed: {PUBLIC}"


def test_an_explanation_of_a_refusal_ends_in_it() -> None:
    explanation = RuleSet.parse("deny to *.org").explain(ask("www.example.org", user="a\x1bb"))
    assert str(explanation) == (
        "deny   rules:1: deny to *.org\n"
        "       takes all\n"
        "www.example.org:443 is denied by rules:1: deny to *.org"
    )
    assert isinstance(explanation.failure, RequestDenied)
    explanation = RuleSet.parse("allow").explain(ask("nowhere.test"))
    assert isinstance(explanation.failure, HostUnreachable)
    assert explanation.verdict == Verdict(False, "nowhere.test does not exist")
    assert "'a\\x1bb'" in str(RuleSet.parse("allow user b").explain(ask(user="a\x1bb")))


# Properties.

WORDS = """
    allow deny group user method from to port command cmd any everywhere loopback private metadata
    @g @h @g @h alice *@R , , 10.0.0.0/8 ::/0 127.0.0.1 2606::/16 *.test .org 443 1-99 https none
    gssapi 0x80 udp connect # [ ]* country via 10.0.0.1/8 1-0 x
"""
TEXTS = st.lists(
    st.sampled_from([*WORDS.split(), "\n", "\n"]) | st.text(max_size=5), max_size=40
).map(" ".join)


@given(TEXTS)
def test_garbage_raises_nothing_but_a_config_error_with_its_place(text: str) -> None:
    try:
        RuleSet.parse(text, "r").limits_who()
        return
    except ConfigError as caught:
        error = caught
    lines = text.split("\n")
    assert error.line is not None
    assert 1 <= error.line <= len(lines)
    assert error.column is not None
    assert 1 <= error.column <= len(lines[error.line - 1])
    assert str(error).isprintable()


LISTS = {
    "user": st.sampled_from(["*", "alice", "*@R", "@g"]),
    "method": st.sampled_from(["none", "gssapi,username", "0x80"]),
    "from": st.sampled_from(["any", "10.0.0.0/8", "loopback,private", "::/0"]),
    "to": st.sampled_from(
        [
            *("any", "everywhere", "loopback", "private", "linklocal,metadata"),
            *("reserved,multicast", "10.0.0.0/8", "127.0.0.0/8,64:ff9b::/96"),
            *("0.0.0.0/0", "::/0", "*.test", ".org, private"),
        ]
    ),
    "port": st.sampled_from(["443", "1-1023", "https"]),
    "command": st.sampled_from(["connect", "bind,udp"]),
}
RULES = st.lists(
    st.builds(
        lambda verb, words: " ".join([verb, *(f"{word} {text}" for word, text in words.items())]),
        st.sampled_from(["allow", "allow", "deny"]),
        st.fixed_dictionaries({"to": LISTS["to"]}) | st.fixed_dictionaries({}, optional=LISTS),
    ),
    max_size=6,
).map(lambda lines: "\n".join(["group @g alice bob", *lines]))
ADDRESSES = st.ip_addresses() | st.sampled_from(
    [ip_address(text) for text in SPELLINGS if is_address(text)] + [ip_address(PUBLIC)]
)


@given(
    RULES,
    st.builds(
        dict,
        host=st.sampled_from(["www.test", "a.org", "b"]) | ADDRESSES.map(str),
        port=st.sampled_from([443, 80, 0]) | st.integers(0, 65535),
        peer=ADDRESSES.map(str) | st.just("127.0.0.1"),
        user=st.none() | st.sampled_from(["alice", "x@R"]) | st.text(),
        method=st.sampled_from([0, 1, 2, 0x80]),
        command=st.integers(0, 255),
    ),
    st.lists(ADDRESSES, min_size=1, max_size=6),
)
def test_a_verdict_covers_found_addresses_that_no_guard_holds_back(
    text: str, fields: dict[str, object], found: list[IPAddress]
) -> None:
    book = Book(dict.fromkeys(("www.test", "a.org", "b"), found))
    rules = RuleSet.parse(text)
    try:
        question = ask(**fields, book=book)  # type: ignore[arg-type]
        explanation = rules.explain(question)
        verdict = rules.judge(question)
    except (RequestDenied, HostUnreachable):
        assert len(book.asked) <= 1
        return
    assert len(book.asked) <= 1
    assert verdict == explanation.verdict
    assert verdict.allowed
    assert verdict.addresses
    assert set(verdict.addresses) <= set(question.addresses)
    opening = text.split("\n")[int(verdict.rule.split(":")[1]) - 1]
    assert opening.startswith("allow")
    for address in verdict.addresses:
        if classify(address) is not None:
            _, _, places = opening.partition(" to ")
            assert any(word in places for word in GUARD_WORDS), (opening, address)


GUARD_WORDS = (
    *("everywhere", "loopback", "private", "linklocal", "reserved"),
    *("10.0.0.0/8", "127.0.0.0/8"),
)


@given(st.text(st.characters(max_codepoint=0x7F)) | st.text())
def test_a_question_has_a_canonical_name_or_is_unreachable(host: str) -> None:
    try:
        question = ask(host)
    except HostUnreachable:
        return
    if question.name is None:
        assert question.looked_up
    else:
        assert question.name == canonical_name(host)
