"""One ``--listen``: where, and the settings that are different there."""

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import quote, unquote

from geosocks.config.values import (
    file_mode,
    granted_level,
    level_list,
    listen_address,
    method_list,
    nearest,
    principal_mapping,
    socket_path,
    switch,
    written,
)
from geosocks.listening import OWNER_ONLY, Listen, is_loopback
from geosocks.rules.lines import WORDS_OF_A_RULE


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
        address = self.listen.address
        return address[1] if isinstance(address, tuple) else None

    @property
    def is_local(self) -> bool:
        """True when only programs on this host can reach it; who made the sockets may say where."""
        address = self.listen.address
        if isinstance(address, tuple):
            return is_loopback(address[0])
        return not isinstance(self.listen.where, str) or self.inherited is None

    def bare(self) -> "ListenOption":
        """The listener without settings of its own."""
        return ListenOption(replace(self.listen, tls=False), inherited=self.inherited)

    def __str__(self) -> str:
        where, own = self.listen.where, list(self.own)
        if self.inherited is not None:
            text = f"systemd:{self.inherited}" if self.inherited else "systemd"
        else:
            text = f"unix:{where}" if isinstance(where, str) else written(where)
        text = f"tls://{text}" if self.listen.tls else text
        pairs = []
        for name, value in own:
            each = value if name == "gss_map" else (value,)
            pairs += [(name.replace("_", "-"), written(one)) for one in each]
        if self.listen.mode != OWNER_ONLY:
            pairs.insert(0, ("mode", f"{self.listen.mode:03o}"))
        if self.listen.name not in (None, self._called()):
            pairs.insert(0, ("name", str(self.listen.name)))
        query = "&".join(f"{name}={quote(value, safe=_PLAIN)}" for name, value in pairs)
        return f"{text}?{query}" if query else text

    def _called(self) -> str:
        return self.inherited or _address_name(self.listen.where)


_PLAIN: Final = "/:,@*=[]"
_LISTENER_NAME: Final = re.compile("[A-Za-z][A-Za-z0-9_.-]{0,63}")


def listen_option(text: str) -> ListenOption:
    """Read ``[tls://]ADDR:PORT``, ``unix:PATH`` or ``systemd[:NAME]``, and settings after it:
    ``?setting=value&...``."""
    place, question, query = text.partition("?")
    tls = place.startswith("tls://")
    place = place.removeprefix("tls://")
    where: tuple[str, int] | str
    inherited = None
    if place.startswith("unix:"):
        where = socket_path(place.removeprefix("unix:"), "unix:/run/geosocks/socks")
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
        name = inherited or _address_name(where)
    listen = Listen(where, name, tls, OWNER_ONLY if mode is None else mode)
    return ListenOption(listen, tuple(own.items()), inherited)


def _address_name(where: Any) -> str:
    return where if isinstance(where, str) else written(where)


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
            mode = file_mode(value)
        elif key in OF_A_LISTENER:
            read = OF_A_LISTENER[key](value)
            field_ = key.replace("-", "_")
            own[field_] = (*own.get(field_, ()), read) if key == "gss-map" else read
        else:
            known = ("name", "mode", *OF_A_LISTENER)
            near = nearest(key, known) or f"; it has {', '.join(known)}"
            raise argparse.ArgumentTypeError(f"a listener has no setting {key!r}{near}")
    return name, mode, own


OF_A_LISTENER: Final[dict[str, Callable[[str], Any]]] = {
    "methods": method_list,
    "users": str,
    "keytab": str,
    "gss-levels": level_list,
    "gss-grant": granted_level,
    "gss-nec": switch,
    "gss-unsequenced": switch,
    "gss-map": principal_mapping,
    "tls-cert": str,
    "tls-key": str,
    "tls-client-ca": str,
}
"""The options that a listener may have otherwise, and how their values are read."""
