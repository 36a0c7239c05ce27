"""The values of options: a text becomes what it stands for, or an error says what is wrong.

Knows no settings.  Those who read a value's text are named after what it is.
"""

import argparse
import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any, Final

from geosocks.auth.principals import Mapping as PrincipalMapping
from geosocks.auth.private import is_reference
from geosocks.codes import SOCKS_PORT, ProtectionLevel
from geosocks.entrance import IPNetwork
from geosocks.rules import DIRECT
from geosocks.rules.lines import WORDS_OF_A_RULE
from geosocks.upstream import DEFAULT
from geosocks.wire.socks5 import IPAddress

METHODS: Final = ("gssapi", "username", "none")
SUN_PATH: Final = 107
"""Octets that the path of a UNIX socket may have (unix(7))."""


def listen_address(text: str) -> tuple[str, int]:
    """Read ``ADDR:PORT``, ``[ADDR6]:PORT``, ``ADDR`` or ``:PORT``."""
    return address_and_port(text, SOCKS_PORT, "0.0.0.0")


def dns_address(text: str) -> tuple[str, int]:
    """Read ``ADDR`` or ``ADDR:PORT``."""
    return address_and_port(text, 53, "")


def address_and_port(text: str, port_otherwise: int, host_otherwise: str) -> tuple[str, int]:
    """Read an IP address or localhost, and a port."""
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


def socket_path(path: str, such_as: str, most: int = SUN_PATH) -> str:
    """Read the path of a UNIX socket."""
    if not path or "\0" in path or len(os.fsencode(path)) > most:
        raise argparse.ArgumentTypeError(
            f"{path!a} has no path of 1 to {most} octets, as in {such_as}"
        )
    return path


def file_mode(text: str) -> int:
    """Read three octal digits."""
    if not re.fullmatch("0?[0-7]{3}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no file mode, such as 660")
    return int(text, 8)


def seconds(text: str) -> float:
    """Read a duration above zero."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def drain_seconds(text: str) -> float:
    """Read a duration, which may be none."""
    return 0.0 if text.strip() in ("0", "0.0") else seconds(text)


def count(text: str) -> int:
    """Read a whole number above zero."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


@dataclass(frozen=True, slots=True)
class EarlyDrop:
    """From ``start`` handshakes on ``percent`` of new connections are closed, at ``full`` all."""

    start: int
    percent: int
    full: int

    def __str__(self) -> str:
        return f"{self.start}:{self.percent}:{self.full}"


def early_drop(text: str) -> EarlyDrop:
    """Read START:RATE:FULL."""
    parts = text.split(":")
    if len(parts) != 3 or not all(part.isascii() and part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not START:RATE:FULL, such as 500:30:1000")
    start, percent, full = map(int, parts)
    if not (1 <= start <= full and percent <= 100):
        raise argparse.ArgumentTypeError(
            f"{text!r}: START is at least 1 and at most FULL, RATE is percent, 0 to 100"
        )
    return EarlyDrop(start, percent, full)


def network(text: str) -> IPNetwork:
    """Read an address or a network."""
    try:
        return ip_network(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an address or a network, such as 10.0.0.0/8"
        ) from None


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


def proxy_or_names(text: str) -> ProxyURL | tuple[str, ...]:
    """Read a URL, or names of upstreams with commas between."""
    if "://" in text:
        return ProxyURL(text)
    names = tuple(name.strip() for name in text.split(","))
    if not all(map(_UPSTREAM_NAME.fullmatch, names)) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(
            "write a URL, such as socks5://host:port, or names of --upstream with commas between"
        )
    return names


def named_proxy(text: str) -> tuple[str, ProxyURL]:
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


def words_of(text: str, known: Iterable[str]) -> tuple[str, ...]:
    """Read words with commas between, each of them known, none twice."""
    known = tuple(known)
    words = tuple(word.strip() for word in text.split(","))
    for word in words:
        if word not in known:
            raise argparse.ArgumentTypeError(
                f"{word!r} is not one of {', '.join(known)}{nearest(word, known)}"
            )
    if len(set(words)) != len(words):
        raise argparse.ArgumentTypeError(f"{text!r} names one twice")
    return words


def method_list(text: str) -> tuple[str, ...]:
    """Read methods by name or by import path."""
    words = [word.strip() for word in text.split(",")]
    return words_of(text, (*METHODS, *filter(is_reference, words)))


def principal_mapping(text: str) -> PrincipalMapping:
    """Read ``strip:REALM`` or ``PRINCIPAL=USER``."""
    try:
        return PrincipalMapping.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def granted_level(text: str) -> str:
    """Read the one level that may be granted unasked."""
    return words_of(text, ("clear",))[0]


def switch(text: str) -> bool:
    """Read a word of ON_OR_OFF."""
    if text.lower() not in ON_OR_OFF:
        raise argparse.ArgumentTypeError(f"{text!r} is not true or false")
    return text.lower() in ON_OR_OFF[: len(ON_OR_OFF) // 2]


ON_OR_OFF: Final = ("true", "yes", "on", "1", "false", "no", "off", "0")
"""The words for true, then as many for false."""

_LEVELS: Final = {
    level.name.lower(): level
    for level in (ProtectionLevel.CONFIDENTIALITY, ProtectionLevel.INTEGRITY, ProtectionLevel.CLEAR)
}


def level_list(text: str) -> tuple[ProtectionLevel, ...]:
    """Read protection levels by name."""
    return tuple(_LEVELS[word] for word in words_of(text, _LEVELS))


def ip(text: str) -> IPAddress:
    """Read an IP address."""
    try:
        return ip_address(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an IP address") from None


def nearest(word: str, known: Iterable[str]) -> str:
    """What a person may have meant, to end a complaint with."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def written(value: Any) -> str:
    """A value as text that means it."""
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
