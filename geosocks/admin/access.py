"""Who may see the status page: those on this host, or who shows the token.

A token may be shown as a bearer's (RFC 6750, section 2.1), as programs do, or as the password of
HTTP's Basic authentication with any user name (RFC 7617), which a browser asks its user for.
"""

import base64
import binascii
import os
import stat
from hmac import compare_digest
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from geosocks.errors import ConfigError

OPEN_TO_OTHERS: Final = 0o037
"""Permissions that a token's file may not have: a group may read it, and that is all."""

LEAST: Final = 16
MOST: Final = 512
"""Characters of a token."""

CHALLENGES: Final = (
    'Bearer realm="geosocks"',
    'Basic realm="geosocks, with the token for a password", charset="UTF-8"',
)


def read_token(path: str | os.PathLike[str]) -> bytes:
    """Read the file that holds the token, and nothing else but space around it.

    Raises:
        ConfigError: it cannot be read, is open to others, or holds no good token.
    """
    name = str(path)
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError("the token must be in a regular file", name)
            token = file.read(MOST + 3).strip()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", name) from error
    mode = stat.S_IMODE(status.st_mode)
    if mode & OPEN_TO_OTHERS:
        mend = f"mend with `chmod {mode & ~OPEN_TO_OTHERS:o} {Path(path).name}`"
        raise ConfigError(f"mode {mode:04o} is open to others; {mend}", name)
    if not LEAST <= len(token) <= MOST or not all(0x20 < octet < 0x7F for octet in token):
        raise ConfigError(
            f"a token is one line of {LEAST} to {MOST} letters, digits and signs; "
            "make one with `openssl rand -hex 32`",
            name,
        )
    return token


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a FIFO would wait for a writer


def shows_token(authorization: str, token: bytes) -> bool:
    """Whether an Authorization header shows ``token``."""
    scheme, _, rest = authorization.strip().partition(" ")
    shown = rest.strip().encode("utf-8", "surrogateescape")
    if scheme.lower() == "basic":
        try:
            shown = base64.b64decode(shown, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return False
    elif scheme.lower() != "bearer":
        return False
    return compare_digest(shown, token)


def is_this_host(host: str) -> bool:
    """Whether a Host header names this machine in a way that no web page can have arranged.

    A page of evil.example can have that name resolve to 127.0.0.1 and then ask us, in the user's
    browser, as its own host (DNS rebinding).  The header still says evil.example; an address, or
    ``localhost``, it can never say.
    """
    name = host.strip().lower()
    if name.startswith("["):
        name, bracket, rest = name[1:].partition("]")
        if not bracket or rest.strip(":0123456789"):
            return False
    else:
        name = name.partition(":")[0]
    if name in ("", "localhost"):  # programs that speak HTTP/1.0 need not say; browsers do
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
