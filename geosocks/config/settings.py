"""What the options say, frozen."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Self

from geosocks.auth.principals import Mapping as PrincipalMapping
from geosocks.codes import ProtectionLevel
from geosocks.config.listeners import ListenOption
from geosocks.config.values import EarlyDrop, ProxyURL
from geosocks.entrance import IPNetwork
from geosocks.listening import OWNER_ONLY
from geosocks.logs import LogTo
from geosocks.relay.target import Family
from geosocks.wire.socks5 import IPAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the options say; the meaning of each stands at its option."""

    listen: tuple[ListenOption, ...]
    methods: tuple[str, ...]
    users: str | None
    keytab: str | None
    gss_levels: tuple[ProtectionLevel, ...]
    gss_grant: Literal["clear"] | None
    gss_nec: bool
    gss_unsequenced: bool
    gss_map: tuple[PrincipalMapping, ...]
    max_handshakes: EarlyDrop | None
    max_handshakes_per_source: int | None
    penalty_exempt: tuple[IPNetwork, ...]
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
    via: ProxyURL | tuple[str, ...] | None
    upstream: tuple[tuple[str, ProxyURL], ...]
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
    log_repeats: int | None
    """None for all."""

    control_named: bool = False
    """Whether somebody chose ``control``; otherwise it is by the process's runtime directory."""

    control_mode: int = OWNER_ONLY
    """Who may open ctl's socket."""

    proxy_password: str | None = field(default=None, repr=False)
    """PROXY_PASSWORD of the environment: that of ``via``, where its URL has a user and none."""

    def at(self, listener: ListenOption) -> Self:
        """The settings as they are at a listener."""
        changes = dict(listener.own)
        if "methods" not in changes and {"users", "keytab"} & changes.keys():
            changes["methods"] = default_methods({"users": None, "keytab": None} | changes)
        return replace(self, **changes)


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
    "log_repeats",
)
"""Settings that belong to the process: a reload cannot change them."""


def of_the_process(settings: Settings, name: str) -> Any:
    """What of a setting in NEEDS_RESTART a reload cannot change."""
    if name == "listen":
        return tuple((one.listen, one.inherited) for one in settings.listen)
    if name == "control":
        return settings.control, settings.control_mode
    return getattr(settings, name)


def default_methods(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The methods that follow from there being a keytab, or a users file."""
    methods = []
    if values["keytab"]:
        methods.append("gssapi")
    if values["users"]:
        methods.append("username")
    return tuple(methods) or ("none",)
