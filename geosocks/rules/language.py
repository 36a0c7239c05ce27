"""The rule language: text to rules, or an error that says where and how to mend it.

``geosocks.rules`` describes it.  What a rule does with a question is in ``geosocks.rules.written``.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from geosocks.codes import Method
from geosocks.guard import Names, Places
from geosocks.rules.lines import (
    ALIASES,
    CONDITIONS,
    EFFECTS,
    VERBS,
    WORDS_OF_A_RULE,
    Line,
    Token,
    add_group,
    members_of,
)
from geosocks.rules.meanings import (
    command_test,
    listener_test,
    method_test,
    port_test,
    read_destinations,
    read_listeners,
    read_method,
    read_sessions,
    read_sources,
    read_users,
    read_via,
    source_test,
    user_test,
)
from geosocks.rules.question import Effects
from geosocks.rules.written import Test, WrittenRule


def parse_rules(
    text: str,
    path: str = "rules",
    upstreams: Collection[str] = (),
    listeners: Collection[str] | None = None,
) -> tuple[WrittenRule, ...]:
    """Read a rule file's text; groups may stand anywhere in it.

    ``upstreams`` are the names that may follow ``via``, ``listeners`` those that may follow
    ``listener``; None: any.

    Raises:
        ConfigError: at ``path``, line and column.
    """
    rules: list[tuple[bool, Line]] = []
    groups: dict[str, tuple[Line, list[Token]]] = {}
    for number, raw in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        line = Line(raw, path, number)
        if not line.tokens:
            continue
        verb = line.tokens.popleft()
        if verb.text == "group":
            add_group(groups, line, verb)
        elif verb.text in VERBS:
            rules.append((verb.text == "allow", line))
        else:
            raise line.unknown(verb, "verb", VERBS)
    members = {name: members_of(groups, name) for name in groups}
    known = _Known(members, upstreams, listeners)
    return tuple(_compile(allow, line, known) for allow, line in rules)


class _Known(NamedTuple):
    """The names that a rule may use."""

    groups: dict[str, frozenset[str]]
    upstreams: Collection[str]
    listeners: Collection[str] | None


def _compile(allow: bool, line: Line, known: _Known) -> WrittenRule:
    found: dict[str, list[Token]] = {}
    while line.tokens:
        word = line.tokens.popleft()
        key = ALIASES.get(word.text, word.text)
        if key not in WORDS_OF_A_RULE:
            hint = " (a list has commas between its values)" if found else ""
            raise line.unknown(word, "word", WORDS_OF_A_RULE, hint)
        if key in EFFECTS and not allow:
            raise line.error(word, f"{word.text!r} belongs to an allow")
        if key in found:
            raise line.error(word, f"{word.text!r} stands twice: write one list, with commas")
        found[key] = line.take_list(word)
    tests: dict[str, Test] = {}
    places, names, limits = Places(public=True), Names(), not allow
    via: tuple[str, ...] = ()
    listeners: frozenset[str] | None = None
    sessions: int | None = None
    for key, values in found.items():
        match key:
            case "listener":
                listeners = read_listeners(line, values, known.listeners)
                tests[key] = listener_test(listeners)
            case "command":
                tests[key] = command_test(line, values)
            case "port":
                tests[key] = port_test(line, values)
            case "method":
                methods = frozenset(read_method(line, value) for value in values)
                tests[key] = method_test(methods)
                limits = limits or Method.NONE not in methods
            case "user":
                tests[key] = user_test(read_users(line, values, known.groups))
                limits = True
            case "from":
                sources, is_limit = read_sources(line, values)
                limits = limits or is_limit
                if not sources.public:
                    tests[key] = source_test(sources)
            case "to":
                places, names = read_destinations(line, values)
            case "via":
                via = read_via(line, values, known.upstreams)
            case "sessions":
                sessions = read_sessions(line, values)
    ordered = [(key, tests[key]) for key in CONDITIONS if key in tests]
    effects = None if sessions is None else Effects(sessions, _name_of(found))
    return WrittenRule(allow, line.text, ordered, places, names, limits, via, listeners, effects)


def _name_of(found: Mapping[str, Iterable[Token]]) -> str:
    """What a rule's counts are kept under: its conditions, wherever it stands in the file.

    So a reload that moves a rule, or changes what comes of it, takes its counts along.
    """
    return (
        " ".join(
            f"{key} {','.join(sorted(value.text for value in found[key]))}"
            for key in CONDITIONS
            if key in found
        )
        or "any"
    )
