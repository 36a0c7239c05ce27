"""Options, from flags, environment and file, to a frozen ``Settings``; settings to a ``Policy``.

Settings flow one way: nothing below this module knows an option's name.  Flags win over the
environment, which wins over the file.  Every option is declared once, in ``_add_options``.
"""

import argparse
import difflib
import os
import re
import ssl
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, TextIO
from urllib.parse import quote, unquote

import configargparse

from geosocks.auth import Authenticator, NoAuth
from geosocks.auth.gss import GssAuthenticator
from geosocks.auth.htpasswd import UserFile
from geosocks.auth.principals import Mapping as PrincipalMapping
from geosocks.auth.principals import PrincipalMap
from geosocks.auth.private import is_reference, load_authenticator
from geosocks.auth.userpass import PasswordAuthenticator
from geosocks.client import without_password
from geosocks.codes import SOCKS_PORT, Method, ProtectionLevel, name_of
from geosocks.errors import ConfigError
from geosocks.logs import LEVELS, LOG_PLACES, SYSLOG_PORT, LogTo
from geosocks.policy import AtListener, Policy, Timeouts, Udp
from geosocks.relay.listen import DirectBinder
from geosocks.relay.target import AresResolver, Dialer, DirectDialer, Family, ThreadResolver
from geosocks.rules import DIRECT, LOCAL, Resolver, RuleSet
from geosocks.rules.language import WORDS_OF_A_RULE
from geosocks.server import OWNER_ONLY, Listen, is_loopback
from geosocks.tls import server_context
from geosocks.upstream import DEFAULT, Health, Upstream, build_upstreams
from geosocks.wire.socks5 import IPAddress

ENV_PREFIX: Final = "GEOSOCKS_"
OTHER_VARIABLES: Final = ("GEOSOCKS_PROXY_PASSWORD", "GEOSOCKS_CONFIG", "GEOSOCKS_SKIP_KERBEROS")
"""Variables that begin alike: the clients' password, --config, and one for the tests."""

METHODS: Final = ("gssapi", "username", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the options say; the meaning of each stands at its option."""

    listen: "tuple[ListenOption, ...]"
    methods: tuple[str, ...]
    users: str | None
    keytab: str | None
    gss_levels: tuple[ProtectionLevel, ...]
    gss_grant: Literal["clear"] | None
    gss_nec: bool
    gss_unsequenced: bool
    gss_map: tuple[PrincipalMapping, ...]
    tls_cert: str | None
    tls_key: str | None
    tls_client_ca: str | None
    rules: str | None
    max_sessions: int | None
    sessions_per_user: int | None
    timeout_handshake: float
    timeout_connect: float
    timeout_idle: float
    timeout_half_close: float
    timeout_bind: float
    timeout_udp: float
    drain: float
    resolver: Literal["ares", "thread"]
    dns_server: tuple[tuple[str, int], ...]
    outgoing: tuple[IPAddress, ...]
    family: Family
    via: "ProxyURL | tuple[str, ...] | None"
    upstream: "tuple[tuple[str, ProxyURL], ...]"
    bind_ports: range | None
    udp_ports: range | None
    advertise: tuple[IPAddress, ...]
    udp_replies: Literal["asked", "any"]
    udp_fragments: Literal["reassemble", "drop"]
    max_udp: int
    max_udp_per_user: int
    socks4: Literal["on", "off"]
    allow_open: bool
    rejudge: bool
    workers: int
    reuse_port: bool
    user: str | None
    group: str | None
    pidfile: str | None
    daemon: bool
    admin: tuple[str, int] | str | None
    """An address, or the path of a UNIX socket."""

    admin_token_file: str | None
    control: str | None
    """The path of ctl's UNIX socket; None for none."""

    log_format: Literal["json", "text"] | None
    log_level: str
    log_to: LogTo
    log_file: str | None
    control_named: bool = False
    """Whether somebody chose ``control``; otherwise it is by the process's runtime directory."""

    proxy_password: str | None = field(default=None, repr=False)
    """PROXY_PASSWORD of the environment: that of ``via``, where its URL has a user and none."""


NEEDS_RESTART: Final = (
    "listen",
    "workers",
    "reuse_port",
    "user",
    "group",
    "pidfile",
    "daemon",
    "admin",
    "admin_token_file",
    "control",
    "max_sessions",
    "allow_open",
    "log_format",
    "log_level",
    "log_to",
    "log_file",
)
"""Settings that belong to the process: a reload cannot change them."""


def of_the_process(settings: Settings, name: str) -> Any:
    """What of a setting in NEEDS_RESTART a reload cannot change."""
    if name == "listen":
        return tuple((one.listen, one.inherited) for one in settings.listen)
    return getattr(settings, name)


# --- values -----------------------------------------------------------------------------------


def listen_address(text: str) -> tuple[str, int]:
    """Read ``ADDR:PORT``, ``[ADDR6]:PORT``, ``ADDR`` or ``:PORT``."""
    return _address_and_port(text, SOCKS_PORT, "0.0.0.0")


@dataclass(frozen=True, slots=True)
class ListenOption:
    """One ``--listen``: where, and the settings that are different there."""

    listen: Listen
    own: tuple[tuple[str, Any], ...] = ()
    """Fields of ``Settings`` and their values for this listener."""

    inherited: str | None = None
    """For ``systemd[:NAME]``: NAME of the sockets in LISTEN_FDNAMES (sd_listen_fds(3)), "" for all.

    Its ``listen.where`` is only what it is called: nothing to listen at, and the program exchanges
    it for each of those sockets.
    """

    @property
    def port(self) -> int | None:
        """Its TCP port; None for a UNIX socket."""
        where = self.listen.where
        return where[1] if isinstance(where, tuple) else None

    @property
    def is_local(self) -> bool:
        """True when only programs on this host can reach it; who made the sockets may say where."""
        where = self.listen.where
        if isinstance(where, tuple):
            return is_loopback(where[0])
        return self.inherited is None

    def bare(self) -> "ListenOption":
        """The listener without settings of its own."""
        return ListenOption(replace(self.listen, tls=False), inherited=self.inherited)

    def over(self, settings: Settings) -> Settings:
        """The settings as they are at this listener."""
        changes = dict(self.own)
        if "methods" not in changes and {"users", "keytab"} & changes.keys():
            changes["methods"] = _default_methods({"users": None, "keytab": None} | changes)
        changed: Settings = replace(settings, **changes)
        return changed

    def __str__(self) -> str:
        where, own = self.listen.where, list(self.own)
        text = where if isinstance(where, str) else _written(where)
        text = f"unix:{text}" if isinstance(where, str) and self.inherited is None else text
        text = f"tls://{text}" if self.listen.tls else text
        pairs = []
        for name, value in own:
            each = value if name == "gss_map" else (value,)
            pairs += [(name.replace("_", "-"), _written(one)) for one in each]
        if self.listen.mode != OWNER_ONLY:
            pairs.insert(0, ("mode", f"{self.listen.mode:03o}"))
        if self.listen.name not in (None, self._called()):
            pairs.insert(0, ("name", str(self.listen.name)))
        query = "&".join(f"{name}={quote(value, safe=_PLAIN)}" for name, value in pairs)
        return f"{text}?{query}" if query else text

    def _called(self) -> str:
        return _address_name(self.listen.where)


_PLAIN: Final = "/:,@*=[]"
_LISTENER_NAME: Final = re.compile("[A-Za-z][A-Za-z0-9_.-]{0,63}")
_SUN_PATH: Final = 107
"""Octets that the path of a UNIX socket may have (unix(7))."""


def listen_option(text: str) -> ListenOption:
    """Read ``[tls://]ADDR:PORT``, ``unix:PATH`` or ``systemd[:NAME]``, and settings after it:
    ``?setting=value&...``."""
    place, question, query = text.partition("?")
    tls = place.startswith("tls://")
    place = place.removeprefix("tls://")
    where: tuple[str, int] | str
    inherited = None
    if place.startswith("unix:"):
        where = _socket_path(place.removeprefix("unix:"), "unix:/run/geosocks/socks")
    elif place.partition(":")[0] == "systemd":
        where, inherited = place, place.partition(":")[2]
        if place.endswith(":"):
            raise argparse.ArgumentTypeError(f"{text!r} has no name after systemd:")
    else:
        where = listen_address(place)
    name, mode, own = _own_settings(query) if question else (None, None, {})
    if mode is not None and not place.startswith("unix:"):
        raise argparse.ArgumentTypeError("mode is for unix:PATH listeners")
    if name is None and (own or tls):
        name = _address_name(where)
    listen = Listen(where, name, tls, OWNER_ONLY if mode is None else mode)
    return ListenOption(listen, tuple(own.items()), inherited)


def _socket_path(path: str, such_as: str, most: int = _SUN_PATH) -> str:
    if not path or "\0" in path or len(os.fsencode(path)) > most:
        raise argparse.ArgumentTypeError(
            f"{path!a} has no path of 1 to {most} octets, as in {such_as}"
        )
    return path


def _address_name(where: Any) -> str:
    return where if isinstance(where, str) else _written(where)


def _own_settings(query: str) -> tuple[str | None, int | None, dict[str, Any]]:
    """Read ``setting=value&...``; + is itself, as in a file's name."""
    name, mode, own = None, None, dict[str, Any]()
    seen = set()
    for pair in query.split("&"):
        key, equals, value = pair.partition("=")
        value = unquote(value, errors="surrogateescape")
        if not equals or not value:
            raise argparse.ArgumentTypeError(f"{pair!r} is no setting=value")
        if key in seen and key != "gss-map":
            raise argparse.ArgumentTypeError(f"{key} stands twice")
        seen.add(key)
        if key == "name":
            name = value
            if not _LISTENER_NAME.fullmatch(name):
                raise argparse.ArgumentTypeError(
                    f"{name!a}: a name begins with a letter, and has letters, digits, . - and _"
                )
            if name in WORDS_OF_A_RULE:
                raise argparse.ArgumentTypeError(f"{name!r} is a word of the rules")
        elif key == "mode":
            mode = _mode(value)
        elif key in _OF_A_LISTENER:
            read = _OF_A_LISTENER[key](value)
            field_ = key.replace("-", "_")
            own[field_] = (*own.get(field_, ()), read) if key == "gss-map" else read
        else:
            known = ("name", "mode", *_OF_A_LISTENER)
            near = _nearest(key, known) or f"; it has {', '.join(known)}"
            raise argparse.ArgumentTypeError(f"a listener has no setting {key!r}{near}")
    return name, mode, own


def _mode(text: str) -> int:
    if not re.fullmatch("0?[0-7]{3}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no file mode, such as 660")
    return int(text, 8)


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


def _workers(text: str) -> int:
    """Read a number of processes; ``auto`` is one for each core that this one may use."""
    if text == "auto":
        return len(os.sched_getaffinity(0))
    if not text.isdecimal() or not 1 <= int(text) <= MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor from 1 to {MAX_WORKERS}")
    return int(text)


MAX_WORKERS: Final = 512


def _account(text: str) -> str:
    """Read the name or the number of a user or a group; whether it exists is seen at start-up."""
    if not _ACCOUNT.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!a} is no name of a user or a group")
    return text


_ACCOUNT: Final = re.compile("[A-Za-z0-9_][A-Za-z0-9_.@-]*[$]?")


def _admin(text: str) -> tuple[str, int] | str:
    """Read ``ADDR:PORT``, with the port, or ``unix:PATH``."""
    if text.startswith("unix:"):
        return _socket_path(text.removeprefix("unix:"), "unix:/run/geosocks/admin.sock")
    host, port = _address_and_port(text, 0, "")
    if port == 0 and not text.endswith(":0"):
        raise argparse.ArgumentTypeError(f"{text!r} has no port, as in 127.0.0.1:9180")
    return host, port


def _control(text: str) -> str:
    """Read a path of at most 103 octets: other workers' sockets are called PATH.1, PATH.2, ..."""
    return _socket_path(text, "/run/geosocks/control.sock", _SUN_PATH - len(".511"))


def control_by_default(environ: Mapping[str, str], uid: int) -> str | None:
    """Where ctl's socket is when nobody says: in the directory that is made for a process's own
    such things (systemd.exec(5), RuntimeDirectory=; XDG Base Directory Specification)."""
    runtime = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if runtime:
        return f"{runtime}/control.sock"
    if uid == 0:
        return "/run/geosocks/control.sock"
    of_the_user = environ.get("XDG_RUNTIME_DIR")
    return f"{of_the_user}/geosocks/control.sock" if of_the_user else None


def _log_to(text: str) -> LogTo:
    """Read ``stdout``, ``stderr``, ``journald``, ``syslog`` or ``syslog:ADDR``."""
    kind, colon, where = text.partition(":")
    if kind == "syslog" and colon:
        return _syslog_at(where)
    if colon or kind not in LOG_PLACES:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not one of {', '.join(LOG_PLACES)}{_nearest(kind, LOG_PLACES)}"
        )
    return LogTo(kind)


def _syslog_at(where: str) -> LogTo:
    if where.startswith("/"):
        return LogTo("syslog", _socket_path(where, "syslog:/dev/log"))
    tcp = where.startswith("tcp://")
    return LogTo("syslog", _address_and_port(where.removeprefix("tcp://"), SYSLOG_PORT, ""), tcp)


def port_range(text: str) -> range:
    """Read ``A-B``, both included, or ``A``."""
    low, dash, high = text.partition("-")
    ports = low, high if dash else low
    if not all(port.isdecimal() and 1 <= int(port) <= 0xFFFF for port in ports):
        raise argparse.ArgumentTypeError(f"{text!r} is not a range of ports, such as 40000-40099")
    if int(ports[0]) > int(ports[1]):
        raise argparse.ArgumentTypeError(f"{text!r} runs backwards; did you mean {high}-{low}?")
    return range(int(ports[0]), int(ports[1]) + 1)


@dataclass(frozen=True, slots=True)
class ProxyURL:
    """An upstream's URL.  It may hold a password, so no way of writing it shows that."""

    text: str = field(repr=False)

    def __str__(self) -> str:
        return re.sub("://([^:@]*):.*@", r"://\1:***@", self.text, flags=re.DOTALL)


def _via(text: str) -> ProxyURL | tuple[str, ...]:
    """Read a URL, or names of upstreams with commas between."""
    if "://" in text:
        return ProxyURL(text)
    names = tuple(name.strip() for name in text.split(","))
    if not all(map(_UPSTREAM_NAME.fullmatch, names)) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(
            "write a URL, such as socks5://host:port, or names of --upstream with commas between"
        )
    return names


def _upstream(text: str) -> tuple[str, ProxyURL]:
    """Read NAME=URL."""
    name, equals, url = (part.strip() for part in text.partition("="))
    if not equals or "://" in name or "://" not in url:
        raise argparse.ArgumentTypeError("write NAME=URL, such as office=socks5://host:port")
    if not _UPSTREAM_NAME.fullmatch(name):
        raise argparse.ArgumentTypeError(f"{name!a}: a name has letters, digits, . - and _")
    if name == DEFAULT:
        raise argparse.ArgumentTypeError(f"{name!r} is what --via URL is called")
    if name in (*DIRECT, *WORDS_OF_A_RULE):
        raise argparse.ArgumentTypeError(f"{name!r} is a word of the rules; take another name")
    return name, ProxyURL(url)


_UPSTREAM_NAME: Final = re.compile("[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


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
    words = [word.strip() for word in text.split(",")]
    return _words(text, (*METHODS, *filter(is_reference, words)))


def _gss_map(text: str) -> PrincipalMapping:
    try:
        return PrincipalMapping.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _gss_grant(text: str) -> str:
    return _words(text, ("clear",))[0]


def _switch(text: str) -> bool:
    if text.lower() not in _ON_OR_OFF:
        raise argparse.ArgumentTypeError(f"{text!r} is not true or false")
    return text.lower() in _ON_OR_OFF[: len(_ON_OR_OFF) // 2]


_LEVELS: Final = {
    level.name.lower(): level
    for level in (ProtectionLevel.CONFIDENTIALITY, ProtectionLevel.INTEGRITY, ProtectionLevel.CLEAR)
}


def _gss_levels(text: str) -> tuple[ProtectionLevel, ...]:
    return tuple(_LEVELS[word] for word in _words(text, _LEVELS))


_ON_OR_OFF: Final = ("true", "yes", "on", "1", "false", "no", "off", "0")

_OF_A_LISTENER: Final[dict[str, Callable[[str], Any]]] = {
    "methods": _methods,
    "users": str,
    "keytab": str,
    "gss-levels": _gss_levels,
    "gss-grant": _gss_grant,
    "gss-nec": _switch,
    "gss-unsequenced": _switch,
    "gss-map": _gss_map,
    "tls-cert": str,
    "tls-key": str,
    "tls-client-ca": str,
}
"""The options that a listener may have otherwise, and how their values are read."""


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
        type=listen_option,
        metavar="ADDR:PORT",
        help="address to listen on, or tls://ADDR:PORT, or unix:PATH, or systemd[:NAME] for "
        "sockets that a service manager hands over; with settings of its own "
        "after a ?, as in ADDR:PORT?name=inside&methods=gssapi; may be given again "
        "(default 127.0.0.1:1080)",
    )
    add(
        "--methods",
        type=_methods,
        metavar="LIST",
        help="authentication methods, in the server's order of preference: gssapi, username, none, "
        "or one of your own by import path, MODULE:NAME "
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
        "--gss-unsequenced",
        action="store_true",
        help="grant integrity and confidentiality also to clients whose context does not detect "
        "messages out of sequence, as Dante's with UDP; somebody on the way could then drop or "
        "move messages of theirs unnoticed",
    )
    add(
        "--gss-map",
        action="append",
        type=_gss_map,
        metavar="MAP",
        help="what a Kerberos principal is called by rules and log: strip:REALM, or "
        "PRINCIPAL=USER, with one * on the left and on the right; may be given again, the first "
        "that matches wins (default: the principal)",
    )
    add(
        "--tls-cert",
        metavar="FILE",
        help="certificate and its chain (PEM), for listeners written tls://ADDR:PORT",
    )
    add("--tls-key", metavar="FILE", help="its key (default: in the same file)")
    add(
        "--tls-client-ca",
        metavar="FILE",
        help="demand a certificate of clients, signed by one of these authorities (PEM); it names "
        "the user where method none is used",
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
        "--sessions-per-user",
        type=_count,
        metavar="N",
        help="sessions at a time of one user, over all workers; the next one is refused; 'sessions "
        "N' in a rule says otherwise (default: any number)",
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
        "--timeout-bind",
        type=seconds,
        default=60.0,
        metavar="S",
        help="seconds that a BIND waits for its peer (default 60)",
    )
    add(
        "--timeout-udp",
        type=seconds,
        default=120.0,
        metavar="S",
        help="seconds without a datagram after which a UDP association is closed (default 120)",
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
        "--via",
        type=_via,
        metavar="URL",
        help="send sessions through this proxy unless a rule says otherwise: socks5://, "
        "socks5+tls://, socks4a://, socks4:// or http://, as "
        "[user[:password]@]host[:port][?auth=gssapi&...]; or names of --upstream, the first that "
        "answers (default: direct)",
    )
    add(
        "--upstream",
        action="append",
        type=_upstream,
        metavar="NAME=URL",
        help="a proxy that rules may name (via NAME), may be given again; ?via=OTHER reaches it "
        "through another one",
    )
    add(
        "--bind-ports",
        type=port_range,
        metavar="A-B",
        help="ports that BIND listens on, for a firewall to let in (default: any)",
    )
    add(
        "--udp-ports",
        type=port_range,
        metavar="A-B",
        help="ports that clients send their UDP datagrams to, for a firewall to let in "
        "(default: any)",
    )
    add(
        "--udp-replies",
        choices=("asked", "any"),
        default="asked",
        help="pass on to a client the datagrams of hosts that it wrote to in the last 2 minutes, "
        "or of any (default asked)",
    )
    add(
        "--udp-fragments",
        choices=("reassemble", "drop"),
        default="reassemble",
        help="what becomes of datagrams that a client sends in fragments (default reassemble)",
    )
    add(
        "--max-udp",
        type=_count,
        default=1000,
        metavar="N",
        help="UDP associations at a time (default 1000)",
    )
    add(
        "--max-udp-per-user",
        type=_count,
        default=64,
        metavar="N",
        help="the same of one user, or of one client host where there are no users (default 64)",
    )
    add(
        "--advertise",
        action="append",
        type=_address,
        metavar="ADDR",
        help="address that peers reach this host at, where a NAT hides its own; may be given once "
        "for each family",
    )
    add(
        "--socks4",
        choices=("on", "off"),
        default="on",
        help="serve SOCKS4 and 4A on the same port, where method none is taken (default on)",
    )
    add(
        "--allow-open",
        action="store_true",
        help="start even where anybody on the network could use the proxy",
    )
    add(
        "--rejudge",
        action="store_true",
        help="at a reload, close the sessions that the new rules would not let through (default: "
        "what was allowed goes on)",
    )
    add(
        "--workers",
        type=_workers,
        default=1,
        metavar="N",
        help="processes that serve, or auto: one for each core (default 1)",
    )
    add(
        "--reuse-port",
        action="store_true",
        help="with several workers, a listening socket for each (SO_REUSEPORT) in place of one "
        "that all share",
    )
    add(
        "--user",
        type=_account,
        metavar="USER",
        help="user to become, for good, once the sockets are open; needs root",
    )
    add(
        "--group",
        type=_account,
        metavar="GROUP",
        help="group to become (default: that of --user)",
    )
    add("--pidfile", metavar="FILE", help="file to write the process's number to")
    add(
        "--daemon",
        action="store_true",
        help="serve in the background: the command ends once clients are served, or with an error "
        "if that fails; needs --log-file, or --log-to journald or syslog",
    )
    add(
        "--admin",
        type=_admin,
        metavar="ADDR:PORT",
        help="where to serve a status page, /metrics, /healthz, /readyz and /sessions by HTTP, or "
        "unix:PATH (default: nowhere)",
    )
    add(
        "--admin-token-file",
        metavar="FILE",
        help="token that those who ask there must show (Authorization: Bearer), in a file that "
        "others cannot read; needed where --admin is not a loopback address",
    )
    add(
        "--control",
        type=_control,
        metavar="PATH",
        help="UNIX socket of 'geosocks ctl', or off (default: control.sock in $RUNTIME_DIRECTORY, "
        "for root in /run/geosocks, else in $XDG_RUNTIME_DIR/geosocks)",
    )
    add(
        "--log-format",
        choices=("json", "text"),
        help="one JSON object a line, or text for people (default: text on a terminal, else json)",
    )
    add("--log-level", choices=LEVELS, default="info", help="least weight to log (default info)")
    add(
        "--log-to",
        type=_log_to,
        default=LogTo("stdout"),
        metavar="PLACE",
        help="where to log: stdout, stderr, journald, syslog, or syslog:ADDR, where ADDR is the "
        "path of a UNIX socket, ADDR[:PORT] or tcp://ADDR[:PORT] (default stdout)",
    )
    add("--log-file", metavar="FILE", help="a file to log to, in place of --log-to")


class ConfigFile(configargparse.ConfigFileParser):  # type: ignore[misc]  # it has no types
    """``name = value`` lines; ``#`` begins a comment; a name may be given again for a list."""

    def __init__(self) -> None:
        self.known: frozenset[str] = frozenset()
        self.lists: frozenset[str] = frozenset()
        """Of those, the names that may be given again."""

        self.switches: frozenset[str] = frozenset()
        """And those that are on or off."""

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
            if not equals or not value:
                shown = without_password(text)
                raise ConfigError(f"{shown!r} is no 'name = value'", self.path, number)
            if name not in self.known:
                near = _nearest(name, self.known)
                raise ConfigError(f"unknown option {name!r}{near}", self.path, number)
            if name in self.lines and name not in self.lists:
                first = self.lines[name]
                raise ConfigError(f"{name} was set in line {first} already", self.path, number)
            if name in self.switches and value.lower() not in _ON_OR_OFF:
                raise ConfigError(f"{name}: {value!r} is not true or false", self.path, number)
            self.lines[name] = number
            before = values.get(name)
            if before is None:
                values[name] = value
            else:
                values[name] = [*(before if isinstance(before, list) else [before]), value]
        return values


def _names_of(group: Any, kind: type[argparse.Action]) -> Iterable[str]:
    """The names in a file of the options of a kind."""
    return (a.dest.replace("_", "-") for a in group._group_actions if isinstance(a, kind))


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
        self.file.known = frozenset(_names_of(group, argparse.Action))
        self.file.lists = frozenset(_names_of(group, argparse._AppendAction))
        self.file.switches = frozenset(_names_of(group, argparse._StoreTrueAction))
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

    def check_names(self, environ: Mapping[str, str]) -> None:
        """Raise ConfigError for a variable that looks like an option's and is none, or is empty."""
        known = {ENV_PREFIX + name.replace("-", "_").upper() for name in self.file.known}
        for name, value in environ.items():
            if not name.startswith(ENV_PREFIX) or name in OTHER_VARIABLES:
                continue
            if name not in known:
                raise ConfigError(f"{name}: no such option{_nearest(name, known)}")
            if not value:
                raise ConfigError(f"{name}: is empty; unset it, or give it a value")

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and where it stands."""
        unreadable = sys.exception()
        if isinstance(unreadable, OSError):  # the --config file itself
            raise ConfigError(f"cannot be read: {unreadable.strerror}", unreadable.filename)
        what = without_password(message.removeprefix("argument "))
        option, colon, rest = what.partition(": ")
        name = option.rsplit("/", 1)[-1].removeprefix("--")
        origin = self.origin(name.replace("-", "_")) if colon and what != message else None
        if isinstance(origin, int):
            raise ConfigError(f"{name}: {rest}", self.file.path, origin)
        if origin and origin.startswith(ENV_PREFIX):
            raise ConfigError(f"{origin}: {rest}")
        raise ConfigError(what)

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
    variables = dict(os.environ if environ is None else environ)
    parser.check_names(variables)
    try:
        options = parser.parse_args(list(argv), env_vars=variables)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", error.filename) from error
    values: dict[str, Any] = {}
    for one in fields(Settings):
        value = getattr(options, one.name, None)
        values[one.name] = tuple(value) if isinstance(value, list) else value
    values["listen"] = values["listen"] or (ListenOption(Listen(("127.0.0.1", SOCKS_PORT))),)
    values["gss_map"] = values["gss_map"] or ()
    values["dns_server"] = values["dns_server"] or ()
    values["outgoing"] = values["outgoing"] or ()
    values["advertise"] = values["advertise"] or ()
    values["upstream"] = values["upstream"] or ()
    values["proxy_password"] = variables.get(f"{ENV_PREFIX}PROXY_PASSWORD")
    values["methods"] = values["methods"] or _default_methods(values)
    values["control_named"] = values["control"] is not None
    if values["control"] is None:
        values["control"] = control_by_default(variables, os.geteuid())
    elif values["control"] == "off":
        values["control"] = None
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

    _check_methods(settings, (), complain)
    for one in settings.listen:
        _check_methods(one.over(settings), dict(one.own), partial(_complain_of, complain, one))
    everywhere = [settings, *(one.over(settings) for one in settings.listen)]
    if settings.users and not any("username" in some.methods for some in everywhere):
        complain("methods", "--users is given, but --methods leaves username out")
    if settings.keytab and not any("gssapi" in some.methods for some in everywhere):
        complain("methods", "--keytab is given, but --methods leaves gssapi out")
    _check_listen(settings, complain)
    if settings.dns_server and settings.resolver != "ares":
        complain("dns_server", "--dns-server works with --resolver ares only")
    if len({port for _, port in settings.dns_server}) > 1:
        complain("dns_server", "all --dns-server must have the same port")
    if len({address.version for address in settings.outgoing}) < len(settings.outgoing):
        complain("outgoing", "--outgoing takes at most one address of each family")
    if len({address.version for address in settings.advertise}) < len(settings.advertise):
        complain("advertise", "--advertise takes at most one address of each family")
    _check_process(settings, complain)
    names = [name for name, _ in settings.upstream]
    if len(set(names)) < len(names):
        complain("upstream", "--upstream: a name stands twice")
    for name in settings.via if isinstance(settings.via, tuple) else ():
        if name not in names and settings.via != DIRECT:
            near = _nearest(name, names) or "; name one: --upstream NAME=URL"
            complain("via", f"--via: unknown upstream {name!r}{near}")


Complain = Callable[[str, str], NoReturn]


def _complain_of(complain: Complain, listener: ListenOption, _: str, what: str) -> NoReturn:
    complain("listen", f"listener {listener.listen.name or listener}: {what}")


def _check_methods(settings: Settings, own: Collection[str], complain: Complain) -> None:
    """See that the settings of the server, or of one listener, go together."""
    if "username" in settings.methods and not settings.users:
        complain("methods", "method username needs --users FILE; make one with 'geosocks passwd'")
    if "users" in own and "username" not in settings.methods:
        complain("methods", "users is given, but methods leaves username out")
    if "keytab" in own and "gssapi" not in settings.methods:
        complain("methods", "keytab is given, but methods leaves gssapi out")
    if settings.gss_grant and ProtectionLevel.CLEAR not in settings.gss_levels:
        complain("gss_grant", "--gss-grant clear needs clear among --gss-levels")


def _check_listen(settings: Settings, complain: Complain) -> None:
    names = Counter(one.listen.name for one in settings.listen if one.listen.name is not None)
    for name, times in names.items():
        if times > 1:
            complain("listen", f"--listen: two have the name {name}")
    secure = [one for one in settings.listen if one.listen.tls]
    for one in settings.listen:
        given = [name for name, _ in one.own if name.startswith("tls_")]
        if given and not one.listen.tls:
            option = given[0].replace("_", "-")
            complain("listen", f"--listen {one}: {option} is for a listener written tls://")
        if one.listen.tls and not one.over(settings).tls_cert:
            complain("listen", f"--listen {one}: needs --tls-cert FILE")
    for dest in ("tls_cert", "tls_key", "tls_client_ca"):
        if getattr(settings, dest) and not secure:
            option = dest.replace("_", "-")
            complain(dest, f"--{option} is given, but no --listen is written tls://ADDR:PORT")


def _check_process(settings: Settings, complain: Complain) -> None:
    """See that what belongs to the process goes together."""
    admin = settings.admin
    if isinstance(admin, tuple) and not is_loopback(admin[0]) and not settings.admin_token_file:
        complain("admin", "--admin off loopback needs --admin-token-file FILE")
    if settings.admin_token_file and admin is None:
        complain("admin_token_file", "--admin-token-file is given, but no --admin ADDR:PORT")
    if settings.daemon and not settings.log_file and settings.log_to.kind in ("stdout", "stderr"):
        complain(
            "daemon",
            "--daemon needs --log-file FILE, or --log-to journald or syslog: it has no "
            "standard output",
        )
    if (
        sum(one.inherited == "" for one in settings.listen)
        and sum(one.inherited is not None for one in settings.listen) > 1
    ):
        complain("listen", "--listen systemd takes all sockets; call each: systemd:NAME")


def shown(loaded: Loaded) -> str:
    """The settings in force as a config file, with where each came from."""
    lines = []
    for dest, origin in loaded.origins.items():
        name, value = dest.replace("_", "-"), _as_given(loaded.settings, dest)
        if dest in _LISTS and value:
            lines += [(f"{name} = {_written(one)}", origin) for one in value]
        elif value is None or value == ():
            lines.append((f"# {name} =", origin))
        else:
            lines.append((f"{name} = {_written(value)}", origin))
    return "".join(f"{line:<48} # {origin}\n" for line, origin in lines)


def _as_given(settings: Settings, dest: str) -> Any:
    """A setting's value as its option takes it."""
    value = getattr(settings, dest)
    if dest == "control":
        return (value or "off") if settings.control_named else None
    return f"unix:{value}" if dest == "admin" and isinstance(value, str) else value


_LISTS: Final = ("listen", "dns_server", "outgoing", "advertise", "upstream", "gss_map")


def _written(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case float():
            return f"{value:g}"
        case range():
            return f"{value.start}-{value.stop - 1}"
        case (str(name), ProxyURL()):
            return f"{name}={value[1]}"
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

    ``before`` is the policy in force at a reload: its resolver is kept if nothing of it changed,
    and so is what is known of each upstream's health.

    Raises:
        ConfigError: a file cannot be used; says where and how to mend it.
    """
    resolver = _resolver(settings, before)
    dialer = DirectDialer(settings.outgoing, settings.family)
    dialers = _upstreams(settings, resolver, dialer)
    rules = _rules(settings, dialers)
    health = Health() if before is None else before.health
    health.keep(dialers.values())
    return Policy(
        authenticators=_authenticators(settings),
        listeners=_listeners(settings, before),
        rules=rules,
        resolver=resolver,
        dialer=dialer,
        dialers=dialers,
        via=_default_via(settings),
        health=health,
        binder=DirectBinder(settings.bind_ports, settings.outgoing),
        advertise=settings.advertise,
        socks4=settings.socks4 == "on",
        udp=Udp(
            ports=settings.udp_ports,
            from_any=settings.udp_replies == "any",
            reassemble=settings.udp_fragments == "reassemble",
            max_associations=settings.max_udp,
            max_per_user=settings.max_udp_per_user,
        ),
        timeouts=Timeouts(
            negotiation=settings.timeout_handshake,
            connect=settings.timeout_connect,
            idle=settings.timeout_idle,
            half_close=settings.timeout_half_close,
            bind=settings.timeout_bind,
            udp=settings.timeout_udp,
        ),
    )


def _listeners(settings: Settings, before: Policy | None) -> dict[str, AtListener]:
    """What is different at each listener.

    One that is gone from the settings listens until the restart, and as it was: never by what holds
    for the others.
    """
    names = {one.listen.name for one in settings.listen}
    was = {} if before is None else before.listeners
    listeners = {name: at for name, at in was.items() if name not in names}
    for one in settings.listen:
        if one.listen.name is None or not (one.own or one.listen.tls):
            continue
        there = one.over(settings)
        try:
            listeners[one.listen.name] = AtListener(
                authenticators=_authenticators(there)
                if _METHOD_SETTINGS & {*dict(one.own)}
                else None,
                tls=_tls(there) if one.listen.tls else None,
            )
        except ConfigError as error:
            if error.path is None:
                raise ConfigError(f"listener {one.listen.name}: {error.what}") from error
            raise
    return listeners


_METHOD_SETTINGS: Final = frozenset(
    name.replace("-", "_") for name in _OF_A_LISTENER if not name.startswith("tls-")
)


def _tls(settings: Settings) -> ssl.SSLContext:
    assert settings.tls_cert is not None  # _check_listen saw to it
    return server_context(settings.tls_cert, settings.tls_key, settings.tls_client_ca)


def _authenticators(settings: Settings) -> tuple[Authenticator, ...]:
    found: dict[int, str] = {}
    authenticators = []
    for name in settings.methods:
        authenticator = _authenticator(name, settings)
        other = found.setdefault(authenticator.method, name)
        if other != name:
            number = f"{name_of(Method, authenticator.method)} ({authenticator.method:#04x})"
            raise ConfigError(f"--methods: {other} and {name} are both method {number}")
        authenticators.append(authenticator)
    return tuple(authenticators)


def _authenticator(method: str, settings: Settings) -> Authenticator:
    if is_reference(method):
        try:
            return load_authenticator(method)
        except ConfigError as error:
            if error.path is None:
                raise ConfigError(f"--methods {error.what}") from error
            raise
    if method == "gssapi":
        return GssAuthenticator(
            keytab=settings.keytab,
            levels=settings.gss_levels,
            grant_clear=settings.gss_grant == "clear",
            nec=settings.gss_nec,
            unsequenced=settings.gss_unsequenced,
            user_of=PrincipalMap(settings.gss_map) if settings.gss_map else None,
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


def _upstreams(settings: Settings, resolver: Resolver, dialer: Dialer) -> dict[str, Upstream]:
    urls = {name: url.text for name, url in settings.upstream}
    if isinstance(settings.via, ProxyURL):
        urls[DEFAULT] = settings.via.text
    own_ports = [one.port for one in settings.listen if one.port is not None]
    password = settings.proxy_password
    return build_upstreams(urls, resolver, dialer, password=password, own_ports=own_ports)


def _default_via(settings: Settings) -> tuple[str, ...]:
    if isinstance(settings.via, ProxyURL):
        return (DEFAULT,)
    return () if settings.via in (None, DIRECT) else settings.via


def _rules(settings: Settings, upstreams: Collection[str]) -> RuleSet:
    path = settings.rules
    if path is None:
        local = all(one.is_local for one in settings.listen)
        return LOCAL if local else RuleSet.parse(OPEN_RULES, "default rules")
    try:
        text = Path(path).read_bytes().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", path) from error
    names = [one.listen.name for one in settings.listen if one.listen.name is not None]
    return RuleSet.parse(text, path, upstreams, names)


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
