"""Flags, environment and file, read by one parser that knows where each value stands."""

import argparse
import sys
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, Final, NoReturn, TextIO

import configargparse

from geosocks.client import without_password
from geosocks.config.options import GROUPS
from geosocks.config.values import ON_OR_OFF, nearest
from geosocks.errors import ConfigError

ENV_PREFIX: Final = "GEOSOCKS_"
OTHER_VARIABLES: Final = (
    "GEOSOCKS_COMPILE",  # of setup.py
    "GEOSOCKS_CONFIG",
    "GEOSOCKS_PROXY_PASSWORD",
    "GEOSOCKS_SKIP_KERBEROS",
)
"""Variables that begin alike and are no options; the last is one for the tests."""


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
                near = nearest(name, self.known)
                raise ConfigError(f"unknown option {name!r}{near}", self.path, number)
            if name in self.lines and name not in self.lists:
                first = self.lines[name]
                raise ConfigError(f"{name} was set in line {first} already", self.path, number)
            if name in self.switches and value.lower() not in ON_OR_OFF:
                raise ConfigError(f"{name}: {value!r} is not true or false", self.path, number)
            self.lines[name] = number
            before = values.get(name)
            if before is None:
                values[name] = value
            else:
                values[name] = [*(before if isinstance(before, list) else [before]), value]
        return values


def _names_of(options: Iterable[argparse.Action], kind: type[argparse.Action]) -> frozenset[str]:
    """The names in a file of the options of a kind."""
    return frozenset(one.dest.replace("_", "-") for one in options if isinstance(one, kind))


class Parser(configargparse.ArgumentParser):  # type: ignore[misc]  # it has no types
    """Raises ConfigError where its parent exits, and knows where a value came from."""

    def __init__(self) -> None:
        super().__init__(
            prog="geosocks serve",
            usage="%(prog)s [--config FILE] [OPTION...]",
            description="Serve SOCKS5 (RFC 1928, 1929, 1961), SOCKS4 and 4A until told to stop.",
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
        options: list[argparse.Action] = []
        for title, declare in GROUPS:
            group = self.add_argument_group(title)
            declare(group.add_argument)
            options += group._group_actions
        self.file.known = _names_of(options, argparse.Action)
        self.file.lists = _names_of(options, argparse._AppendAction)
        self.file.switches = _names_of(options, argparse._StoreTrueAction)
        self.dests = tuple(option.dest for option in options)
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
                raise ConfigError(f"{name}: no such option{nearest(name, known)}")
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
