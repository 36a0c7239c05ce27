"""``geosocks explain``: what the rules say to a request, and why.

Asks them as the server does, with the settings that ``geosocks serve`` would have.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address

from geosocks.client import destination
from geosocks.codes import Method, name_of
from geosocks.config import Settings, build_policy, load_settings
from geosocks.errors import ConfigError
from geosocks.explaining import COMMANDS, METHODS, Asked, explain, method_of, told
from geosocks.policy import Policy
from geosocks.session import COMMANDS as SERVED
from geosocks.wire.socks5 import Address, IPAddress


def main(argv: Sequence[str]) -> int:
    """Run ``geosocks explain``; the exit code: 0 allowed, 1 denied, 2 not understood."""
    options = _parser().parse_args(argv)
    try:
        settings = load_settings(_options_of_serve(options)).settings
        policy = _policy(settings)
    except ConfigError as error:
        print(f"geosocks explain: {error}", file=sys.stderr)
        return 2
    asked = asked_by(options)
    print(asked)
    facts = explain(asked, policy, {one.port for one in settings.listen if one.port is not None})
    for line in told(facts):
        print(line)
    for remark in _remarks(options, asked, settings):
        print(f"note: {remark}")
    return 0 if facts["allowed"] else 1


def asked_by(options: argparse.Namespace) -> Asked:
    """The request that the options of ``add_question`` speak of."""
    return Asked(
        options.command,
        Address(options.host, options.port),
        options.user,
        method_of(options.user) if options.method is None else options.method,
        options.peer,
        options.listener,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="geosocks explain",
        description="Tell which rule decides a request and why those before it do not, and what "
        "its name resolves to; with the settings that 'geosocks serve' would have with the same "
        "--config, --rules and environment.",
        epilog="Exit code: 0 allowed, 1 denied, 2 not understood.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", metavar="FILE", help="the server's options, a line each")
    add(
        "--rules",
        metavar="FILE",
        help="the rules (default: those of --config; without any, clients of this host may go "
        "anywhere)",
    )
    add_question(parser)
    add(
        "--resolver",
        metavar="KIND",
        help="how names are looked up: ares or thread (default: that of --config)",
    )
    add(
        "--dns-server",
        metavar="ADDR[:PORT]",
        action="append",
        default=[],
        help="DNS server to ask, may be given again (default: those of --config)",
    )
    return parser


def add_question(parser: argparse.ArgumentParser) -> None:
    """Add the options and words that say who asks for what."""
    add = parser.add_argument
    add("--user", metavar="U", type=_user, help="who asks (default: nobody known)")
    add(
        "--method",
        metavar="M",
        type=_method,
        help="how the client authenticated: none, username, gssapi, or a number such as 0x80 "
        "(default: gssapi for a --user with an @, username for another, none without)",
    )
    add(
        "--listener",
        metavar="NAME",
        help="which listener the client came to (default: none that has a name)",
    )
    add(
        "--from",
        dest="peer",
        metavar="ADDR",
        type=_address,
        default=ip_address("127.0.0.1"),
        help="where the client is (default %(default)s)",
    )
    add("command", choices=COMMANDS, metavar="connect|bind|udp", help="what is asked for")
    add("host", metavar="HOST", type=_host, help="name or address of the destination")
    add("port", metavar="PORT", type=_port, help="0 to 65535")


def _user(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return text


def _method(text: str) -> int:
    if text in METHODS:
        return METHODS[text]
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if not Method.NONE <= number < Method.NO_ACCEPTABLE:
        raise argparse.ArgumentTypeError(f"{text!a} is not none, username, gssapi or 0x00 to 0xfe")
    return number


def _address(text: str) -> IPAddress:
    try:
        return ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!a} is not an IP address") from None


def _host(text: str) -> IPAddress | str:
    try:
        return destination((text.removeprefix("[").removesuffix("]"), 0)).host
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!a}: {error}") from None


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= 0xFFFF):
        raise argparse.ArgumentTypeError(f"{text!a} is no port from 0 to 65535")
    return int(text)


def _options_of_serve(options: argparse.Namespace) -> list[str]:
    words = []
    for name in ("config", "rules", "resolver"):
        value = getattr(options, name)
        if value is not None:
            words.append(f"--{name}={value}")
    return words + [f"--dns-server={server}" for server in options.dns_server]


def _policy(settings: Settings) -> Policy:
    """The rules and the resolver; whom the server lets in is not asked.

    Its users and keys may be none of ours to read.
    """
    listen = tuple(one.bare() for one in settings.listen)
    return build_policy(
        replace(settings, methods=("none",), users=None, keytab=None, listen=listen)
    )


def _remarks(options: argparse.Namespace, asked: Asked, settings: Settings) -> Iterator[str]:
    """What the rules cannot know, and would stop the request before they are asked."""
    if COMMANDS[asked.command] not in SERVED:
        yield f"this version does not do {asked.command}: it answers X'07'"
    method, taken = name_of(Method, asked.method), settings.methods
    if asked.listener is not None:
        named = [one for one in settings.listen if one.listen.name == asked.listener]
        if named:
            taken = settings.at(named[0]).methods
        else:
            yield f"no listener is called {asked.listener!a}"
    if options.config is not None and method in METHODS and method not in taken:
        yield f"--methods is {','.join(taken)}: nobody gets in with method {method}"
