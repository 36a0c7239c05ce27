"""Options, from flags, environment and file, to frozen settings; and back to a file."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from geosocks.codes import SOCKS_PORT
from geosocks.config.check import cross_check
from geosocks.config.listeners import ListenOption
from geosocks.config.parser import ENV_PREFIX, Parser
from geosocks.config.process import control_by_default, control_place
from geosocks.config.settings import Settings, default_methods
from geosocks.config.values import written
from geosocks.errors import ConfigError
from geosocks.listening import OWNER_ONLY, Listen


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
    parser = Parser()
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
    values["penalty_exempt"] = values["penalty_exempt"] or ()
    values["outgoing"] = values["outgoing"] or ()
    values["advertise"] = values["advertise"] or ()
    values["upstream"] = values["upstream"] or ()
    values["proxy_password"] = variables.get(f"{ENV_PREFIX}PROXY_PASSWORD")
    values["methods"] = values["methods"] or default_methods(values)
    values["control_mode"] = OWNER_ONLY
    values["control_named"] = values["control"] is not None
    if values["control"] is None:
        values["control"] = control_by_default(variables, os.geteuid())
    elif values["control"] == "off":
        values["control"] = None
    else:
        values["control"], values["control_mode"] = control_place(values["control"])
    origins = {}
    for dest in parser.dests:
        origin = parser.origin(dest)
        origins[dest] = (
            f"{parser.file.path}:{origin}" if isinstance(origin, int) else (origin or "default")
        )
    settings = Settings(**values)
    cross_check(settings, origins)
    return Loaded(settings, options.check_config, options.print_config, origins)


def shown(loaded: Loaded) -> str:
    """The settings in force as a config file, with where each came from."""
    lines = []
    for dest, origin in loaded.origins.items():
        name, value = dest.replace("_", "-"), _as_given(loaded.settings, dest)
        if dest in _LISTS and value:
            lines += [(f"{name} = {written(one)}", origin) for one in value]
        elif value is None or value == ():
            lines.append((f"# {name} =", origin))
        else:
            lines.append((f"{name} = {written(value)}", origin))
    return "".join(f"{line:<48} # {origin}\n" for line, origin in lines)


def _as_given(settings: Settings, dest: str) -> Any:
    """A setting's value as its option takes it."""
    value = getattr(settings, dest)
    if dest == "control":
        mode = f"?mode={settings.control_mode:03o}" if settings.control_mode != OWNER_ONLY else ""
        return (f"{value}{mode}" if value else "off") if settings.control_named else None
    if dest == "log_repeats":
        return value or "all"
    return f"unix:{value}" if dest == "admin" and isinstance(value, str) else value


_LISTS: Final = (
    *("listen", "dns_server", "outgoing", "advertise", "upstream", "gss_map", "penalty_exempt"),
)
