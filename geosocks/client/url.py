"""Proxy URLs: ``socks5://[user[:password]@]host[:port][?setting=value&...]`` and its like.

Knows which settings there are and what they make; nothing here connects.  No error quotes a
password, nor what might be part of one.
"""

import os
import re
import ssl
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, unquote, unquote_to_bytes, urlsplit

from geosocks.auth import Credential, NoAuth
from geosocks.auth.gss import SERVICE, GssCredential
from geosocks.auth.userpass import Password
from geosocks.client.address import destination
from geosocks.client.socks4 import Socks4
from geosocks.codes import SOCKS_PORT, ProtectionLevel
from geosocks.errors import ConfigError
from geosocks.tls import client_context
from geosocks.wire.socks5 import Address

_LEVELS: Final = {
    level.name.lower(): level
    for level in (ProtectionLevel.CONFIDENTIALITY, ProtectionLevel.INTEGRITY, ProtectionLevel.CLEAR)
}
_SETTINGS: Final = ("auth", "service", "level", "password-file")
_TLS: Final = "+tls"
_SOCKS4: Final = ("socks4", "socks4a")
_SCHEMES: Final = ("socks5", "socks5h", f"socks5{_TLS}", f"socks5h{_TLS}", *_SOCKS4)
_TLS_SETTINGS: Final = ("ca", "cert", "key")
_ENCODE: Final = "a character such as / ? # @ in user or password is written %2F %3F %23 %40"


def without_password(text: str) -> str:
    """Write ``text`` without what may be the user and password of a URL in it."""
    return re.sub("://.*@", "://***@", text, flags=re.DOTALL)


@dataclass(frozen=True, slots=True)
class ProxyUrl:
    """What a URL says: where the server is, and how to talk to it."""

    server: Address
    credentials: Sequence[Credential]
    tls: ssl.SSLContext | None = None
    socks4: Socks4 | None = None


def parse_url(url: str, password: str | None = None) -> ProxyUrl:
    """Read a proxy URL; ``password`` is for a user who has none in it.

    Raises:
        ConfigError: it cannot be used as written, or a file that it names cannot.
    """
    parts, port = _split(url)
    host = unquote(parts.hostname or "")
    try:
        server = destination((host, port or SOCKS_PORT))
    except ValueError:
        raise ConfigError("proxy URL: no host name; write socks5://host:port") from None
    if parts.scheme in _SOCKS4:
        return ProxyUrl(server, (NoAuth(),), socks4=_socks4(parts))
    inside_tls = parts.scheme.endswith(_TLS)
    settings = _settings(parts.query, (*_SETTINGS, *_TLS_SETTINGS) if inside_tls else _SETTINGS)
    has_user = parts.username is not None
    methods = settings.get("auth", "username" if has_user else "none").split(",")
    if len(set(methods)) < len(methods):
        raise ConfigError("proxy URL: auth names a method twice")
    if "key" in settings and "cert" not in settings:
        raise ConfigError("proxy URL: a key, but no cert")
    credentials = [_credential(method, methods, parts, settings, password) for method in methods]
    context = client_context(*map(settings.get, _TLS_SETTINGS)) if inside_tls else None
    return ProxyUrl(server, credentials, context)


def _socks4(parts: SplitResult) -> Socks4:
    if parts.password is not None:
        raise ConfigError(f"proxy URL: {parts.scheme}:// has a user, but no password")
    if parts.query:
        raise ConfigError(f"proxy URL: {parts.scheme}:// has no settings")
    try:
        return Socks4(unquote_to_bytes(parts.username or ""), resolves=parts.scheme == "socks4")
    except ValueError as error:
        raise ConfigError(f"proxy URL: {error}") from None


def _split(url: str) -> tuple[SplitResult, int | None]:
    """Take a URL to pieces; whatever its errors quote, it is no part of it but the scheme."""
    if not url.isprintable() or " " in url:
        raise ConfigError("proxy URL: a blank or control character in it; write it as %20 or such")
    try:
        # ValueError's own words may quote the password.
        parts = urlsplit(url)
    except ValueError:
        raise ConfigError(f"proxy URL: no host can be read from it; {_ENCODE}") from None
    if parts.scheme not in _SCHEMES or "://" not in url:
        known = f"scheme {parts.scheme!r}" if url.startswith(f"{parts.scheme}://") else "no scheme"
        raise ConfigError(f"proxy URL: {known}; write socks5://host:port")
    if "@" in parts.path + parts.query + parts.fragment:
        raise ConfigError(f"proxy URL: an @ behind the host; {_ENCODE}")
    if parts.path not in ("", "/") or parts.fragment:
        raise ConfigError("proxy URL: more behind the host than :port and ?settings")
    if not parts.hostname:
        raise ConfigError("proxy URL: no host; write socks5://host:port")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise ConfigError(f"proxy URL: the port is no number from 1 to 65535; {_ENCODE}")
    return parts, port


def _settings(query: str, allowed: Sequence[str]) -> dict[str, str]:
    """Read ``setting=value&...``; + is itself, as in a file's name."""
    settings: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        name, _, value = pair.partition("=")
        if name not in allowed:
            known = ", ".join(allowed)
            raise ConfigError(f"proxy URL: unknown setting {name!a}; known: {known}")
        if name in settings:
            raise ConfigError(f"proxy URL: {name} stands there twice")
        if not value:
            raise ConfigError(f"proxy URL: {name} has no value")
        settings[name] = unquote(value)
    return settings


def _credential(
    method: str,
    methods: Sequence[str],
    parts: SplitResult,
    settings: dict[str, str],
    password: str | None,
) -> Credential:
    user = parts.username
    match method:
        case "none":
            return NoAuth()
        case "username" if user is not None:
            secret = _password(parts, settings, password)
            try:
                return Password(unquote_to_bytes(user), secret)
            except ValueError as error:
                raise ConfigError(f"proxy URL: {error}") from None
        case "username":
            raise ConfigError("proxy URL: method username, but no user; write socks5://user@host")
        case "gssapi":
            level = settings.get("level", "confidentiality")
            if level not in _LEVELS:
                raise ConfigError(f"proxy URL: level {level!a}; known: {', '.join(_LEVELS)}")
            # A name that is the user's with method username may be unknown to Kerberos.
            principal = unquote(user) if user and "username" not in methods else None
            return GssCredential(
                unquote(parts.hostname or ""),
                service=settings.get("service", SERVICE),
                level=_LEVELS[level],
                principal=principal,
            )
    raise ConfigError(f"proxy URL: auth {method!a}; known: none, username, gssapi")


def _password(parts: SplitResult, settings: dict[str, str], password: str | None) -> bytes:
    path = settings.get("password-file")
    if parts.password is not None:
        if path is not None:
            raise ConfigError("proxy URL: both a password and a password-file")
        return unquote_to_bytes(parts.password)
    if path is not None:
        return _password_in(path)
    if password is None:
        raise ConfigError(
            "proxy URL: a user but no password; name a file, ?password-file=F, which holds it"
        )
    return os.fsencode(password)


def _password_in(path: str) -> bytes:
    """The first line of a file that only its owner may read."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigError("is no file", path)
            if stat.S_IMODE(mode) & 0o077:
                raise ConfigError("others may read or change it; chmod 600 it", path)
            secret = file.readline(4096).rstrip(b"\r\n")
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", path) from error
    except ConfigError:
        raise
    except ValueError:  # a NUL in it
        raise ConfigError("proxy URL: password-file is no file's name") from None
    if not secret:
        raise ConfigError("its first line, which is the password, is empty", path)
    return secret


def _without_waiting(path: str, flags: int) -> int:
    """Open a file, and a pipe or device at once, too: it is refused then."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
