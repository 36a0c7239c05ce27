"""Options, from flags, environment and file, to a frozen ``Settings``; settings to a ``Policy``.

Settings flow one way: nothing below this module knows an option's name.  Flags win over the
environment, which wins over the file.  Every option is declared once, in ``_add_options``.
"""

import argparse
import difflib
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, TextIO

import configargparse

from geosocks.auth import Authenticator, NoAuth
from geosocks.auth.gss import GssAuthenticator
from geosocks.auth.htpasswd import UserFile
from geosocks.auth.userpass import PasswordAuthenticator
from geosocks.codes import SOCKS_PORT, ProtectionLevel
from geosocks.errors import ConfigError
from geosocks.logs import LEVELS
from geosocks.policy import Policy, Timeouts
from geosocks.relay.target import AresResolver, DirectDialer, Family, ThreadResolver
from geosocks.rules import LOCAL, Resolver, RuleSet
from geosocks.wire.socks5 import IPAddress

ENV_PREFIX: Final = "GEOSOCKS_"
METHODS: Final = ("gssapi", "username", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the options say; the meaning of each stands at its option."""

    listen: tuple[tuple[str, int], ...]
    methods: tuple[str, ...]
    users: str | None
    keytab: str | None
    gss_levels: tuple[ProtectionLevel, ...]
    gss_grant: Literal["clear"] | None
    gss_nec: bool
    rules: str | None
    max_sessions: int | None
    timeout_handshake: float
    timeout_connect: float
    timeout_idle: float
    timeout_half_close: float
    drain: float
    resolver: Literal["ares", "thread"]
    dns_server: tuple[tuple[str, int], ...]
    outgoing: tuple[IPAddress, ...]
    family: Family
    allow_open: bool
    log_format: Literal["json", "text"] | None
    log_level: str
    log_file: str | None


NEEDS_RESTART: Final = (
    "listen",
    "max_sessions",
    "allow_open",
    "log_format",
    "log_level",
    "log_file",
)
"""Settings that belong to the process: a reload cannot change them."""


# --- values -----------------------------------------------------------------------------------


def listen_address(text: str) -> tuple[str, int]:
    """Read ``ADDR:PORT``, ``[ADDR6]:PORT``, ``ADDR`` or ``:PORT``."""
    return _address_and_port(text, SOCKS_PORT, "0.0.0.0")


def dns_address(text: str) -> tuple[str, int]:
    """Read ``ADDR`` or ``ADDR:PORT``."""
    return _address_and_port(text, 53, "")


def _address_and_port(text: str, port_otherwise: int, host_otherwise: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]") or text.count(":") > 1 > text.count("["):
        host, port = text, str(port_otherwise)
    host = host.removeprefix("[").removesuffix("]") or host_otherwise
    if host != "localhost":
        try:
            ip_address(host)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not ADDRESS:PORT, such as 127.0.0.1:{port_otherwise} or "
                f"[::1]:{port_otherwise}"
            ) from None
    if not port.isdecimal() or int(port) > 0xFFFF:
        raise argparse.ArgumentTypeError(f"{text!r} has no port from 0 to 65535")
    return host, int(port)


def seconds(text: str) -> float:
    """Read a duration above zero."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def _drain_seconds(text: str) -> float:
    return 0.0 if text.strip() in ("0", "0.0") else seconds(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _words(text: str, known: Iterable[str]) -> tuple[str, ...]:
    known = tuple(known)
    words = tuple(word.strip() for word in text.split(","))
    for word in words:
        if word not in known:
            raise argparse.ArgumentTypeError(
                f"{word!r} is not one of {', '.join(known)}{_nearest(word, known)}"
            )
    if len(set(words)) != len(words):
        raise argparse.ArgumentTypeError(f"{text!r} names one twice")
    return words


def _methods(text: str) -> tuple[str, ...]:
    return _words(text, METHODS)


_LEVELS: Final = {
    level.name.lower(): level
    for level in (ProtectionLevel.CONFIDENTIALITY, ProtectionLevel.INTEGRITY, ProtectionLevel.CLEAR)
}


def _gss_levels(text: str) -> tuple[ProtectionLevel, ...]:
    return tuple(_LEVELS[word] for word in _words(text, _LEVELS))


def _address(text: str) -> IPAddress:
    try:
        return ip_address(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an IP address") from None


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


# --- options ----------------------------------------------------------------------------------


def _add_options(add: Any) -> None:
    """Declare every option of ``geosocks serve``."""
    add(
        "--listen",
        action="append",
        type=listen_address,
        metavar="ADDR:PORT",
        help="address to listen on, may be given again (default 127.0.0.1:1080)",
    )
    add(
        "--methods",
        type=_methods,
        metavar="LIST",
        help="authentication methods, in the server's order of preference: gssapi, username, none "
        "(default: gssapi with --keytab, username with --users, none with neither)",
    )
    add(
        "--users",
        metavar="FILE",
        help="htpasswd file with bcrypt hashes, as 'geosocks passwd' and 'htpasswd -B' write it",
    )
    add(
        "--keytab",
        metavar="FILE",
        help="the server's Kerberos keys (default: the system's keytab)",
    )
    add(
        "--gss-levels",
        type=_gss_levels,
        default=(ProtectionLevel.CONFIDENTIALITY, ProtectionLevel.INTEGRITY),
        metavar="LIST",
        help="GSSAPI protection levels that may be granted: confidentiality, integrity, clear "
        "(default confidentiality,integrity)",
    )
    add(
        "--gss-grant",
        choices=("clear",),
        help="answer level 'clear' to clients that ask for more, as curl from 8.17 on needs; "
        "their data then travels unprotected",
    )
    add(
        "--gss-nec",
        action="store_true",
        help="take the protection level unwrapped from clients that send it so (NEC's SOCKS)",
    )
    add(
        "--rules",
        metavar="FILE",
        help="who may go where (default: on loopback listeners, clients of this host may go "
        "anywhere; on others, who may enter may go to any but guarded addresses)",
    )
    add(
        "--max-sessions",
        type=_count,
        metavar="N",
        help="sessions at a time; further clients wait (default: what the descriptors allow)",
    )
    add(
        "--timeout-handshake",
        type=seconds,
        default=10.0,
        metavar="S",
        help="seconds from connection to complete request, all of it (default 10)",
    )
    add(
        "--timeout-connect",
        type=seconds,
        default=10.0,
        metavar="S",
        help="seconds to reach the target, all its addresses together (default 10)",
    )
    add(
        "--timeout-idle",
        type=seconds,
        default=3600.0,
        metavar="S",
        help="seconds without an octet after which a session is closed (default 3600)",
    )
    add(
        "--timeout-half-close",
        type=seconds,
        default=300.0,
        metavar="S",
        help="the same once one side has ended its way (default 300)",
    )
    add(
        "--drain",
        type=_drain_seconds,
        default=30.0,
        metavar="S",
        help="seconds that sessions may go on after TERM (default 30)",
    )
    add(
        "--resolver",
        choices=("ares", "thread"),
        default="ares",
        help="how names are looked up: c-ares, or the system's resolver in threads (default ares)",
    )
    add(
        "--dns-server",
        action="append",
        type=dns_address,
        metavar="ADDR[:PORT]",
        help="DNS server to ask instead of the system's, may be given again (c-ares only)",
    )
    add(
        "--outgoing",
        action="append",
        type=_address,
        metavar="ADDR",
        help="source address of outgoing connections, may be given once for each family",
    )
    add(
        "--family",
        choices=("any", "ipv4", "ipv6"),
        default="any",
        help="address family of outgoing connections (default any)",
    )
    add(
        "--allow-open",
        action="store_true",
        help="start even where anybody on the network could use the proxy",
    )
    add(
        "--log-format",
        choices=("json", "text"),
        help="one JSON object a line, or text for people (default: text on a terminal, else json)",
    )
    add("--log-level", choices=LEVELS, default="info", help="least weight to log (default info)")
    add("--log-file", metavar="FILE", help="where to log (default: standard output)")


class ConfigFile(configargparse.ConfigFileParser):  # type: ignore[misc]  # it has no types
    """``name = value`` lines; ``#`` begins a comment; a name may be given again for a list."""

    def __init__(self) -> None:
        self.known: frozenset[str] = frozenset()
        self.path = "config"
        self.lines: dict[str, int] = {}
        """Where each name was set last."""

    def get_syntax_description(self) -> str:
        """Say what a file looks like."""
        return "A file holds lines 'name = value', names as here without the dashes."

    def parse(self, stream: TextIO) -> OrderedDict[str, str | list[str]]:
        """Read a file.

        Raises:
            ConfigError: a line is no ``name = value``, or its name is no option's.
        """
        self.path = getattr(stream, "name", "config")
        values: OrderedDict[str, str | list[str]] = OrderedDict()
        try:
            lines = stream.readlines()
        except UnicodeDecodeError as error:
            raise ConfigError(f"is not UTF-8 text: {error.reason}", self.path) from None
        for number, line in enumerate(lines, 1):
            text = line.partition(" #")[0].strip()
            if not text or text.startswith("#"):
                continue
            name, equals, value = (part.strip() for part in text.partition("="))
            if not equals:
                raise ConfigError(f"{text!r} is no 'name = value'", self.path, number)
            if name not in self.known:
                near = _nearest(name, self.known)
                raise ConfigError(f"unknown option {name!r}{near}", self.path, number)
            self.lines[name] = number
            before = values.get(name)
            if before is None:
                values[name] = value
            else:
                values[name] = [*(before if isinstance(before, list) else [before]), value]
        return values


class _Parser(configargparse.ArgumentParser):  # type: ignore[misc]  # it has no types
    """Raises ConfigError where its parent exits, and knows where a value came from."""

    def __init__(self) -> None:
        super().__init__(
            prog="geosocks serve",
            description="Serve SOCKS5 (RFC 1928) until told to stop.",
            epilog="Every option works as 'name = value' in the --config file and as GEOSOCKS_NAME "
            "in the environment, too; flags win over environment over file.",
            add_config_file_help=False,
            add_env_var_help=False,
            auto_env_var_prefix=ENV_PREFIX,
            config_file_parser_class=ConfigFile,
            allow_abbrev=False,
        )
        self.file: ConfigFile = self._config_file_parser
        self.add_argument(
            "--config", is_config_file=True, metavar="FILE", help="options, a line each"
        )
        group = self.add_argument_group("options")
        _add_options(group.add_argument)
        names = {action.dest.replace("_", "-") for action in group._group_actions}
        self.file.known = frozenset(names)
        self.dests = tuple(action.dest for action in group._group_actions)
        self.add_argument(
            "-V",
            "--check-config",
            action="store_true",
            help="read everything, say what is wrong with it, and end",
        )
        self.add_argument(
            "--print-config",
            action="store_true",
            help="print the settings in force and where each comes from, and end",
        )

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and where it stands."""
        words = message.split()
        option = words[1].rstrip(":") if words[:1] == ["argument"] and len(words) > 1 else ""
        origin = self.origin(option.rsplit("/", 1)[-1].removeprefix("--").replace("-", "_"))
        if isinstance(origin, int):
            raise ConfigError(message.removeprefix("argument --"), self.file.path, origin)
        if origin and origin.startswith(ENV_PREFIX):
            raise ConfigError(f"{origin}: {message}")
        raise ConfigError(message)

    def origin(self, dest: str) -> int | str | None:
        """Where an option's value came from: a line of the file, a variable, "flag" or None."""
        sources: Mapping[str, Mapping[str, tuple[Any, Any]]] = self.get_source_to_settings_dict()
        for source, settings in sources.items():
            for name, (action, _) in settings.items():
                if getattr(action, "dest", None) != dest:
                    continue
                if source.startswith("config_file"):
                    return self.file.lines[name]
                if source == "environment_variables":
                    return name
        given = sources.get("command_line", {}).get("", (None, []))[1]
        flag = "--" + dest.replace("_", "-")
        return "flag" if any(word.partition("=")[0] == flag for word in given) else None


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, what else was asked for, and where each setting came from."""

    settings: Settings
    check_config: bool
    print_config: bool
    origins: Mapping[str, str]
    """Setting to ``flag``, ``GEOSOCKS_NAME``, ``file:line`` or ``default``."""


def load_settings(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> Loaded:
    """Read flags, environment and file.

    Raises:
        ConfigError: something cannot be used as written; says where it stands.
        SystemExit: ``--help`` was asked for, and printed.
    """
    parser = _Parser()
    try:
        options = parser.parse_args(
            list(argv), env_vars=dict(os.environ if environ is None else environ)
        )
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", error.filename) from error
    values: dict[str, Any] = {}
    for field in fields(Settings):
        value = getattr(options, field.name)
        values[field.name] = tuple(value) if isinstance(value, list) else value
    values["listen"] = values["listen"] or (("127.0.0.1", SOCKS_PORT),)
    values["dns_server"] = values["dns_server"] or ()
    values["outgoing"] = values["outgoing"] or ()
    values["methods"] = values["methods"] or _default_methods(values)
    origins = {}
    for dest in parser.dests:
        origin = parser.origin(dest)
        origins[dest] = (
            f"{parser.file.path}:{origin}" if isinstance(origin, int) else (origin or "default")
        )
    settings = Settings(**values)
    _cross_check(settings, origins)
    return Loaded(settings, options.check_config, options.print_config, origins)


def _default_methods(values: Mapping[str, Any]) -> tuple[str, ...]:
    methods = []
    if values["keytab"]:
        methods.append("gssapi")
    if values["users"]:
        methods.append("username")
    return tuple(methods) or ("none",)


def _cross_check(settings: Settings, origins: Mapping[str, str]) -> None:
    def complain(dest: str, what: str) -> NoReturn:
        path, _, line = origins[dest].rpartition(":")
        raise ConfigError(what, path or None, int(line) if path else None)

    if "username" in settings.methods and not settings.users:
        complain("methods", "method username needs --users FILE; make one with 'geosocks passwd'")
    if settings.users and "username" not in settings.methods:
        complain("methods", "--users is given, but --methods leaves username out")
    if settings.keytab and "gssapi" not in settings.methods:
        complain("methods", "--keytab is given, but --methods leaves gssapi out")
    if settings.gss_grant and ProtectionLevel.CLEAR not in settings.gss_levels:
        complain("gss_grant", "--gss-grant clear needs clear among --gss-levels")
    if settings.dns_server and settings.resolver != "ares":
        complain("dns_server", "--dns-server works with --resolver ares only")
    if len({port for _, port in settings.dns_server}) > 1:
        complain("dns_server", "all --dns-server must have the same port")
    if len({address.version for address in settings.outgoing}) < len(settings.outgoing):
        complain("outgoing", "--outgoing takes at most one address of each family")


def shown(loaded: Loaded) -> str:
    """The settings in force as a config file, with where each came from."""
    lines = []
    for dest, origin in loaded.origins.items():
        name, value = dest.replace("_", "-"), getattr(loaded.settings, dest)
        if dest in ("listen", "dns_server", "outgoing") and value:
            lines += [(f"{name} = {_written(one)}", origin) for one in value]
        elif value is None or value == ():
            lines.append((f"# {name} =", origin))
        else:
            lines.append((f"{name} = {_written(value)}", origin))
    return "".join(f"{line:<48} # {origin}\n" for line, origin in lines)


def _written(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case float():
            return f"{value:g}"
        case (str(host), int(port)):
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        case tuple():
            names = (v.name.lower() if isinstance(v, ProtectionLevel) else str(v) for v in value)
            return ",".join(names)
        case _:
            return str(value)


# --- from settings to a policy ----------------------------------------------------------------


def build_policy(settings: Settings, before: Policy | None = None) -> Policy:
    """Make what a session may ask out of ``settings``; reads users, rules and keytab.

    ``before`` is the policy in force at a reload: its resolver is kept if nothing of it changed.

    Raises:
        ConfigError: a file cannot be used; says where and how to mend it.
    """
    return Policy(
        authenticators=tuple(_authenticator(method, settings) for method in settings.methods),
        rules=_rules(settings),
        resolver=_resolver(settings, before),
        dialer=DirectDialer(settings.outgoing, settings.family),
        timeouts=Timeouts(
            negotiation=settings.timeout_handshake,
            connect=settings.timeout_connect,
            idle=settings.timeout_idle,
            half_close=settings.timeout_half_close,
        ),
    )


def _authenticator(method: str, settings: Settings) -> Authenticator:
    if method == "gssapi":
        return GssAuthenticator(
            keytab=settings.keytab,
            levels=settings.gss_levels,
            grant_clear=settings.gss_grant == "clear",
            nec=settings.gss_nec,
        )
    if method == "username":
        assert settings.users is not None  # _cross_check saw to it
        return PasswordAuthenticator(check=UserFile.load(Path(settings.users)).check)
    return NoAuth()


OPEN_RULES: Final = "allow to any\n"
"""The rules of a server that listens off loopback and was given none: who may enter may go on.

Guarded destinations stay closed, and ``server.refuse_open_proxy`` sees to it that not anybody may
enter.
"""


def _rules(settings: Settings) -> RuleSet:
    path = settings.rules
    if path is None:
        local = all(_is_loopback(host) for host, _ in settings.listen)
        return LOCAL if local else RuleSet.parse(OPEN_RULES, "default rules")
    try:
        text = Path(path).read_bytes().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", path) from error
    return RuleSet.parse(text, path)


def _is_loopback(host: str) -> bool:
    return host == "localhost" or ip_address(host).is_loopback


def _resolver(settings: Settings, before: Policy | None) -> Resolver:
    new: AresResolver | ThreadResolver = (
        ThreadResolver() if settings.resolver == "thread" else _ares(settings.dns_server)
    )
    if before is not None and before.resolver == new:
        return before.resolver
    return new


def _ares(servers: Sequence[tuple[str, int]]) -> AresResolver:
    if not servers:
        return AresResolver()
    return AresResolver(tuple(host for host, _ in servers), port=servers[0][1])
