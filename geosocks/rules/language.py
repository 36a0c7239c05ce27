"""The rule language: text to rules, or an error that says where and how to mend it.

``geosocks.rules`` describes it.  What a rule does with a question is in ``geosocks.rules.written``.
"""

import difflib
import fnmatch
import re
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network
from typing import Final, NamedTuple

from geosocks.codes import PRIVATE_METHODS, Cmd, Method
from geosocks.errors import ConfigError, HostUnreachable
from geosocks.guard import WORDS, IPNetwork, Names, Places, canonical_name
from geosocks.rules.question import DIRECT, Effects, Question
from geosocks.rules.written import Test, WrittenRule
from geosocks.wire.socks5 import literal

COMMANDS: Final = {"connect": Cmd.CONNECT, "bind": Cmd.BIND, "udp": Cmd.UDP_ASSOCIATE}
METHODS: Final = {"none": Method.NONE, "gssapi": Method.GSSAPI, "username": Method.USERNAME}
SERVICES: Final = {
    "domain": 53,
    "ftp": 21,
    "git": 9418,
    "http": 80,
    "https": 443,
    "imap": 143,
    "imaps": 993,
    "irc": 6667,
    "kerberos": 88,
    "ldap": 389,
    "ldaps": 636,
    "mysql": 3306,
    "ntp": 123,
    "pop3": 110,
    "pop3s": 995,
    "postgresql": 5432,
    "rdp": 3389,
    "redis": 6379,
    "rsync": 873,
    "sip": 5060,
    "sips": 5061,
    "smtp": 25,
    "socks": 1080,
    "ssh": 22,
    "submission": 587,
    "submissions": 465,
    "telnet": 23,
    "whois": 43,
    "xmpp": 5222,
}
"""Service names of ``port``: our own, so that a rule file means the same on every host."""

FROM_WORDS: Final = ("any", "loopback", "private", "linklocal")
TO_WORDS: Final = ("any", "everywhere", *WORDS)

VERBS: Final = ("allow", "deny", "group")
ALIASES: Final = {"cmd": "command"}
CONDITIONS: Final = ("listener", "command", "port", "method", "user", "from", "to")
"""The words of a rule, in the order in which they are tried: the cheap ones first."""

EFFECTS: Final = ("via", "sessions")
"""The words of an allow that say what comes of it."""

WORDS_OF_A_RULE: Final = (*CONDITIONS, *EFFECTS)

LATER: Final = frozenset(
    (
        *("asn", "category", "continent", "country", "time"),
        *("idle", "log", "methods", "outgoing", "quota", "rate"),
    )
)
"""Words of the language that this version does not know yet."""

V4_MAPPED: Final = IPv6Network("::ffff:0:0/96")

_TOKEN = re.compile(r",|[^\s,]+")
_COMMENT = re.compile(r"(?:^|(?<=\s))#.*")
_GROUP = re.compile(r"@[A-Za-z0-9_.-]{1,64}")
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


class _Token(NamedTuple):
    text: str
    column: int


class _Line:
    """The tokens of one line, and where it stands."""

    def __init__(self, raw: str, path: str, number: int) -> None:
        text = _COMMENT.sub("", raw)
        self.tokens = deque(_Token(m.group(), m.start() + 1) for m in _TOKEN.finditer(text))
        self.path = path
        self.number = number
        # It ends in logs and on terminals, which may not take octets that are no UTF-8.
        shown = f"{path}:{number}: {text.strip()}"
        self.text = shown.encode("utf-8", "backslashreplace").decode("utf-8")

    def error(self, token: _Token, what: str) -> ConfigError:
        return ConfigError(what, self.path, self.number, token.column)

    def unknown(
        self, token: _Token, kind: str, words: Collection[str], hint: str = ""
    ) -> ConfigError:
        if token.text in LATER:
            return self.error(token, f"{token.text!r} is not in this version")
        near = _nearest(token.text, words)
        choice = f"the words are {', '.join(words)}" if words else f"there is no {kind}"
        guess = f"did you mean {near}?" if near else choice
        return self.error(token, f"unknown {kind} {_shown(token)}; {guess}{hint}")

    def take_list(self, word: _Token) -> list[_Token]:
        """Take the list after ``word``: one value, or several with a comma between each two."""
        if not self.tokens or self.tokens[0].text in WORDS_OF_A_RULE:
            raise self.error(word, f"{word.text!r} needs a value, or several with commas between")
        values = []
        comma = word
        while self.tokens:
            value = self.tokens.popleft()
            if value.text == ",":
                raise self.error(value, "a comma with no value before it")
            if value.text in LATER and word.text in ("from", "to"):
                raise self.error(value, f"{value.text!r} is not in this version")
            values.append(value)
            if not self.tokens or self.tokens[0].text != ",":
                return values
            comma = self.tokens.popleft()
        raise self.error(comma, "a comma with no value after it")


def _shown(token: _Token) -> str:
    return ascii(token.text if len(token.text) <= 64 else f"{token.text[:64]}...")


def _nearest(text: str, words: Iterable[str], cutoff: float = 0.6) -> str | None:
    near = difflib.get_close_matches(text[:64].lower(), words, 1, cutoff)
    return near[0] if near else None


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
    rules: list[tuple[bool, _Line]] = []
    groups: dict[str, tuple[_Line, list[_Token]]] = {}
    for number, raw in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        line = _Line(raw, path, number)
        if not line.tokens:
            continue
        verb = line.tokens.popleft()
        if verb.text == "group":
            _add_group(groups, line, verb)
        elif verb.text in VERBS:
            rules.append((verb.text == "allow", line))
        else:
            raise line.unknown(verb, "verb", VERBS)
    members = {name: _members(groups, name) for name in groups}
    known = _Known(members, upstreams, listeners)
    return tuple(_compile(allow, line, known) for allow, line in rules)


def _add_group(groups: dict[str, tuple[_Line, list[_Token]]], line: _Line, verb: _Token) -> None:
    name, *users = line.tokens or (verb,)
    users = [token for token in users if token.text != ","]
    if not _GROUP.fullmatch(name.text):
        raise line.error(name, "a group is written: group @name alice bob")
    if name.text in groups:
        raise line.error(name, f"group {_shown(name)} stands on line {groups[name.text][0].number}")
    if not users:
        raise line.error(name, f"group {_shown(name)} has no members")
    groups[name.text] = line, users


def _members(groups: dict[str, tuple[_Line, list[_Token]]], name: str) -> frozenset[str]:
    """Collect the users of a group and of the groups in it."""
    users: set[str] = set()
    seen = {name}
    waiting = [name]
    while waiting:
        line, tokens = groups[waiting.pop()]
        for token in tokens:
            if not token.text.startswith("@"):
                users.add(token.text)
            elif token.text not in groups:
                raise line.unknown(token, "group", groups)
            elif token.text == name:
                raise line.error(token, f"group {_shown(token)} contains itself")
            elif token.text not in seen:
                seen.add(token.text)
                waiting.append(token.text)
    return frozenset(users)


class _Known(NamedTuple):
    """The names that a rule may use."""

    groups: dict[str, frozenset[str]]
    upstreams: Collection[str]
    listeners: Collection[str] | None


def _compile(allow: bool, line: _Line, known: _Known) -> WrittenRule:
    found: dict[str, list[_Token]] = {}
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
                listeners = _listeners(line, values, known.listeners)
                tests[key] = _listener_test(listeners)
            case "command":
                tests[key] = _command_test(line, values)
            case "port":
                tests[key] = _port_test(line, values)
            case "method":
                methods = frozenset(_method(line, value) for value in values)
                tests[key] = _method_test(methods)
                limits = limits or Method.NONE not in methods
            case "user":
                tests[key] = _user_test(_users(line, values, known.groups))
                limits = True
            case "from":
                sources, is_limit = _sources(line, values)
                limits = limits or is_limit
                if not sources.public:
                    tests[key] = _source_test(sources)
            case "to":
                places, names = _destinations(line, values)
            case "via":
                via = _via(line, values, known.upstreams)
            case "sessions":
                sessions = _sessions(line, values)
    ordered = [(key, tests[key]) for key in CONDITIONS if key in tests]
    effects = None if sessions is None else Effects(sessions, _name_of(found))
    return WrittenRule(allow, line.text, ordered, places, names, limits, via, listeners, effects)


def _name_of(found: Mapping[str, Iterable[_Token]]) -> str:
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


# One function for each kind of value, and one for the test that it ends in.


def _listeners(line: _Line, values: list[_Token], known: Collection[str] | None) -> frozenset[str]:
    for value in values:
        if known is not None and value.text not in known:
            if not known:
                hint = "name it: --listen 'ADDR:PORT?name=NAME'"
                raise line.error(value, f"unknown listener {_shown(value)}; {hint}")
            raise line.unknown(value, "listener", known)
    return frozenset(value.text for value in values)


def _listener_test(listeners: frozenset[str]) -> Test:
    return lambda question: question.listener in listeners


def _command_test(line: _Line, values: list[_Token]) -> Test:
    commands = frozenset(_word(line, value, "command", COMMANDS) for value in values)
    return lambda question: question.command in commands


def _word(line: _Line, token: _Token, kind: str, words: Mapping[str, int]) -> int:
    if token.text not in words:
        raise line.unknown(token, kind, words)
    return words[token.text]


def _method(line: _Line, token: _Token) -> int:
    if re.fullmatch("0x[0-9A-Fa-f]{1,2}", token.text):
        method = int(token.text, 16)
        if method in PRIVATE_METHODS or method in METHODS.values():
            return method
        raise line.error(token, f"method {token.text} is none of 0x00 to 0x02, 0x80 to 0xfe")
    return _word(line, token, "method", METHODS)


def _method_test(methods: frozenset[int]) -> Test:
    return lambda question: question.method in methods


def _port_test(line: _Line, values: list[_Token]) -> Test:
    spans = [_ports(line, value) for value in values]
    single = frozenset(low for low, high in spans if low == high)
    ranges = tuple((low, high) for low, high in spans if low < high)

    def holds(question: Question) -> bool:
        port = question.destination.port
        return port in single or any(low <= port <= high for low, high in ranges)

    return holds


def _ports(line: _Line, token: _Token) -> tuple[int, int]:
    if not token.text[0].isdigit():
        port = _word(line, token, "service", SERVICES)
        return port, port
    written = _PORTS.fullmatch(token.text)
    if written is None:
        raise line.error(token, f"{_shown(token)} is not a port, such as 443 or 8000-8099")
    low, high = int(written[1]), int(written[2] or written[1])
    if high > 0xFFFF or low > 0xFFFF:
        raise line.error(token, f"port {token.text} is beyond 65535")
    if low > high:
        raise line.error(
            token, f"port range {token.text} runs backwards; did you mean {high}-{low}?"
        )
    return low, high


def _users(line: _Line, values: list[_Token], groups: dict[str, frozenset[str]]) -> frozenset[str]:
    users: set[str] = set()
    for value in values:
        if not value.text.startswith("@"):
            users.add(value.text)
        elif value.text in groups:
            users |= groups[value.text]
        else:
            raise line.unknown(value, "group", groups)
    return frozenset(users)


def _user_test(users: frozenset[str]) -> Test:
    globs = sorted(user for user in users if re.search(r"[*?[]", user))
    exact = users.difference(globs)
    pattern = re.compile("|".join(map(fnmatch.translate, globs)))

    def holds(question: Question) -> bool:
        identity = question.identity
        if identity is None:
            return False
        return identity in exact or (bool(globs) and pattern.match(identity) is not None)

    return holds


def _sources(line: _Line, values: list[_Token]) -> tuple[Places, bool]:
    """Read the list of ``from``, and tell whether it limits anybody."""
    networks, words = [], []
    for value in values:
        network = _network(line, value)
        if network is not None:
            networks.append(network)
        elif value.text in FROM_WORDS:
            words.append(value.text)
        else:
            hint = "; a client is known by its address, not by a name"
            raise line.unknown(value, "source", FROM_WORDS, hint)
    # 0.0.0.0/1,128.0.0.0/1 is everybody, too.
    v4 = collapse_addresses(net for net in networks if isinstance(net, IPv4Network))
    v6 = collapse_addresses(net for net in networks if isinstance(net, IPv6Network))
    whole = [net for family in (v4, v6) for net in family if not net.prefixlen]
    is_limit = "any" not in words and not whole
    return Places(networks, set(words) - {"any"}, public="any" in words), is_limit


def _source_test(sources: Places) -> Test:
    def holds(question: Question) -> bool:
        return sources.meet(question.source)

    return holds


def _destinations(line: _Line, values: list[_Token]) -> tuple[Places, Names]:
    networks, words = [], []
    exact, parents = [], []
    for value in values:
        network = _network(line, value)
        if network is not None:
            networks.append(network)
        elif value.text in TO_WORDS:
            words.append(value.text)
        elif value.text.startswith("*."):
            parents.append(_name(line, value, value.text[2:]))
        elif value.text.startswith("."):
            name = _name(line, value, value.text[1:])
            exact.append(name)
            parents.append(name)
        else:
            exact.append(_name(line, value, value.text))
    places = Places(
        networks, set(words) & set(WORDS), public="any" in words, everywhere="everywhere" in words
    )
    return places, Names(exact, parents)


def _via(line: _Line, values: list[_Token], upstreams: Collection[str]) -> tuple[str, ...]:
    """Read the list of ``via``: upstreams in the order to try them, or the word direct."""
    via: list[str] = []
    for value in values:
        if value.text == DIRECT[0]:
            if len(values) > 1:
                raise line.error(
                    value, "'direct' stands alone: it looks names up, upstreams do not"
                )
        elif value.text not in upstreams:
            if not upstreams:
                raise line.error(
                    value, f"unknown upstream {_shown(value)}; name one: --upstream NAME=URL"
                )
            raise line.unknown(value, "upstream", (*upstreams, *DIRECT))
        if value.text in via:
            raise line.error(value, f"{_shown(value)} stands twice")
        via.append(value.text)
    return tuple(via)


def _sessions(line: _Line, values: list[_Token]) -> int:
    """Read the number after ``sessions``."""
    number, *more = values
    if more:
        raise line.error(more[0], "'sessions' takes one number")
    if not re.fullmatch("[0-9]{1,9}", number.text):
        raise line.error(number, f"{_shown(number)} is not a number of sessions, such as 20")
    if int(number.text) == 0:
        raise line.error(number, "0 sessions are a deny")
    return int(number.text)


def _network(line: _Line, token: _Token) -> IPNetwork | None:
    """Read an address or a network; None when it is neither, nor meant to be."""
    written, slash, prefix = token.text.partition("/")
    address = literal(written)
    if address is None:
        if "%" in written:
            raise line.error(token, f"{_shown(token)}: a zone id has no place in a rule")
        if slash or ":" in written:
            raise line.error(
                token, f"{_shown(token)} is not a network, such as 10.0.0.0/8 or fc00::/7"
            )
        return None
    bits = address.max_prefixlen
    if slash and not (re.fullmatch("[0-9]{1,3}", prefix) and int(prefix) <= bits):
        raise line.error(token, f"the prefix of {_shown(token)} is not within 0 to {bits}")
    network = ip_network(f"{address}/{prefix if slash else bits}", strict=False)
    if network.network_address != address:
        raise line.error(token, f"{token.text} has bits beyond its prefix; did you mean {network}?")
    if isinstance(network, IPv6Network) and network.subnet_of(V4_MAPPED):
        # Such an address is judged as the IPv4 address that it is.
        v4 = int(network.network_address) & 0xFFFFFFFF
        return IPv4Network((v4, network.prefixlen - V4_MAPPED.prefixlen))
    return network


def _name(line: _Line, token: _Token, written: str) -> str:
    """Read a host name, or what follows the dot of a suffix."""
    if not written.isascii():
        raise line.error(token, f"{_shown(token)} is not ASCII{_punycode(written)}")
    if "*" in written:
        hint = (
            "'any' is the word for all"
            if written == "*"
            else "* stands in front, as in *.example.org"
        )
        raise line.error(token, f"{_shown(token)} is not a name; {hint}")
    try:
        name = canonical_name(written)
    except HostUnreachable:
        raise line.error(token, f"{_shown(token)} is neither an address nor a host name") from None
    near = _nearest(name, TO_WORDS, cutoff=0.8) if "." not in token.text else None
    if near:
        what = f"unknown destination {_shown(token)}; did you mean {near}?"
        raise line.error(token, f"{what} (a host of that name is written {name}.)")
    return name


def _punycode(name: str) -> str:
    try:
        return f"; its punycode form is {canonical_name(name.encode('idna').decode('ascii'))}"
    except (UnicodeError, HostUnreachable):
        return ", nor can it be turned into a name that is"
