"""What the values behind a rule's words mean: the tests they end in, or an error that says why not.

What is read is a line's tokens (``geosocks.rules.lines``); a rule is made of it in
``geosocks.rules.language``.
"""

import fnmatch
import re
from collections.abc import Collection, Mapping
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network
from typing import Final

from geosocks.codes import PRIVATE_METHODS, Cmd, Method
from geosocks.errors import HostUnreachable
from geosocks.guard import WORDS, IPNetwork, Names, Places, canonical_name
from geosocks.rules.lines import Line, Token, nearest, quoted
from geosocks.rules.question import DIRECT, Question
from geosocks.rules.written import Test
from geosocks.wire.address import literal

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

V4_MAPPED: Final = IPv6Network("::ffff:0:0/96")

_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


# One function for each kind of value, and one for the test that it ends in.


def read_listeners(
    line: Line, values: list[Token], known: Collection[str] | None
) -> frozenset[str]:
    """Read the list of ``listener``; with None as ``known`` any name will do."""
    for value in values:
        if known is not None and value.text not in known:
            if not known:
                hint = "name it: --listen 'ADDR:PORT?name=NAME'"
                raise line.error(value, f"unknown listener {quoted(value)}; {hint}")
            raise line.unknown(value, "listener", known)
    return frozenset(value.text for value in values)


def listener_test(listeners: frozenset[str]) -> Test:
    """True of a client that comes in at one of them."""
    return lambda question: question.listener in listeners


def command_test(line: Line, values: list[Token]) -> Test:
    """Read the list of ``command``; true of a request with one of them."""
    commands = frozenset(_word(line, value, "command", COMMANDS) for value in values)
    return lambda question: question.command in commands


def _word(line: Line, token: Token, kind: str, words: Mapping[str, int]) -> int:
    if token.text not in words:
        raise line.unknown(token, kind, words)
    return words[token.text]


def read_method(line: Line, token: Token) -> int:
    """Read one METHOD, by its name or as a number."""
    if re.fullmatch("0x[0-9A-Fa-f]{1,2}", token.text):
        method = int(token.text, 16)
        if method in PRIVATE_METHODS or method in METHODS.values():
            return method
        raise line.error(token, f"method {token.text} is none of 0x00 to 0x02, 0x80 to 0xfe")
    return _word(line, token, "method", METHODS)


def method_test(methods: frozenset[int]) -> Test:
    """True of a client that was authenticated by one of them."""
    return lambda question: question.method in methods


def port_test(line: Line, values: list[Token]) -> Test:
    """Read the list of ``port``; true of a destination with one of them."""
    spans = [_ports(line, value) for value in values]
    single = frozenset(low for low, high in spans if low == high)
    ranges = tuple((low, high) for low, high in spans if low < high)

    def holds(question: Question) -> bool:
        port = question.destination.port
        return port in single or any(low <= port <= high for low, high in ranges)

    return holds


def _ports(line: Line, token: Token) -> tuple[int, int]:
    if not token.text[0].isdigit():
        port = _word(line, token, "service", SERVICES)
        return port, port
    written = _PORTS.fullmatch(token.text)
    if written is None:
        raise line.error(token, f"{quoted(token)} is not a port, such as 443 or 8000-8099")
    low, high = int(written[1]), int(written[2] or written[1])
    if high > 0xFFFF or low > 0xFFFF:
        raise line.error(token, f"port {token.text} is beyond 65535")
    if low > high:
        raise line.error(
            token, f"port range {token.text} runs backwards; did you mean {high}-{low}?"
        )
    return low, high


def read_users(
    line: Line, values: list[Token], groups: dict[str, frozenset[str]]
) -> frozenset[str]:
    """Read the list of ``user``, with the members in place of each group."""
    users: set[str] = set()
    for value in values:
        if not value.text.startswith("@"):
            users.add(value.text)
        elif value.text in groups:
            users |= groups[value.text]
        else:
            raise line.unknown(value, "group", groups)
    return frozenset(users)


def user_test(users: frozenset[str]) -> Test:
    """True of a client that is one of them, or matches one."""
    globs = sorted(user for user in users if re.search(r"[*?[]", user))
    exact = users.difference(globs)
    pattern = re.compile("|".join(map(fnmatch.translate, globs)))

    def holds(question: Question) -> bool:
        identity = question.identity
        if identity is None:
            return False
        return identity in exact or (bool(globs) and pattern.match(identity) is not None)

    return holds


def read_sources(line: Line, values: list[Token]) -> tuple[Places, bool]:
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


def source_test(sources: Places) -> Test:
    """True of a client that comes from one of them."""

    def holds(question: Question) -> bool:
        return sources.meet(question.source)

    return holds


def read_destinations(line: Line, values: list[Token]) -> tuple[Places, Names]:
    """Read the list of ``to``: addresses, and names."""
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


def read_via(line: Line, values: list[Token], upstreams: Collection[str]) -> tuple[str, ...]:
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
                    value, f"unknown upstream {quoted(value)}; name one: --upstream NAME=URL"
                )
            raise line.unknown(value, "upstream", (*upstreams, *DIRECT))
        if value.text in via:
            raise line.error(value, f"{quoted(value)} stands twice")
        via.append(value.text)
    return tuple(via)


def read_sessions(line: Line, values: list[Token]) -> int:
    """Read the number after ``sessions``."""
    number, *more = values
    if more:
        raise line.error(more[0], "'sessions' takes one number")
    if not re.fullmatch("[0-9]{1,9}", number.text):
        raise line.error(number, f"{quoted(number)} is not a number of sessions, such as 20")
    if int(number.text) == 0:
        raise line.error(number, "0 sessions are a deny")
    return int(number.text)


def _network(line: Line, token: Token) -> IPNetwork | None:
    """Read an address or a network; None when it is neither, nor meant to be."""
    written, slash, prefix = token.text.partition("/")
    address = literal(written)
    if address is None:
        if "%" in written:
            raise line.error(token, f"{quoted(token)}: a zone id has no place in a rule")
        if slash or ":" in written:
            raise line.error(
                token, f"{quoted(token)} is not a network, such as 10.0.0.0/8 or fc00::/7"
            )
        return None
    bits = address.max_prefixlen
    if slash and not (re.fullmatch("[0-9]{1,3}", prefix) and int(prefix) <= bits):
        raise line.error(token, f"the prefix of {quoted(token)} is not within 0 to {bits}")
    network = ip_network(f"{address}/{prefix if slash else bits}", strict=False)
    if network.network_address != address:
        raise line.error(token, f"{token.text} has bits beyond its prefix; did you mean {network}?")
    if isinstance(network, IPv6Network) and network.subnet_of(V4_MAPPED):
        # Such an address is judged as the IPv4 address that it is.
        v4 = int(network.network_address) & 0xFFFFFFFF
        return IPv4Network((v4, network.prefixlen - V4_MAPPED.prefixlen))
    return network


def _name(line: Line, token: Token, written: str) -> str:
    """Read a host name, or what follows the dot of a suffix."""
    if not written.isascii():
        raise line.error(token, f"{quoted(token)} is not ASCII{_punycode(written)}")
    if "*" in written:
        hint = (
            "'any' is the word for all"
            if written == "*"
            else "* stands in front, as in *.example.org"
        )
        raise line.error(token, f"{quoted(token)} is not a name; {hint}")
    try:
        name = canonical_name(written)
    except HostUnreachable:
        raise line.error(token, f"{quoted(token)} is neither an address nor a host name") from None
    near = nearest(name, TO_WORDS, cutoff=0.8) if "." not in token.text else None
    if near:
        what = f"unknown destination {quoted(token)}; did you mean {near}?"
        raise line.error(token, f"{what} (a host of that name is written {name}.)")
    return name


def _punycode(name: str) -> str:
    try:
        return f"; its punycode form is {canonical_name(name.encode('idna').decode('ascii'))}"
    except (UnicodeError, HostUnreachable):
        return ", nor can it be turned into a name that is"
