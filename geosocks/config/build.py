"""From settings to what a session may ask: a ``Policy``."""

import ssl
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from geosocks.auth import Authenticator, NoAuth
from geosocks.auth.gss import GssAuthenticator
from geosocks.auth.htpasswd import UserFile
from geosocks.auth.principals import PrincipalMap
from geosocks.auth.private import is_reference, load_authenticator
from geosocks.auth.userpass import PasswordAuthenticator
from geosocks.codes import Method, name_of
from geosocks.config.listeners import OF_A_LISTENER
from geosocks.config.settings import Settings
from geosocks.config.values import ProxyURL
from geosocks.entrance import LOOPBACK, Entrance
from geosocks.errors import ConfigError
from geosocks.limits import Limits
from geosocks.policy import AtListener, Policy, Timeouts, Udp
from geosocks.relay.direct import DirectDialer
from geosocks.relay.listen import DirectBinder
from geosocks.relay.target import AresResolver, Dialer, ThreadResolver
from geosocks.rules import DIRECT, LOCAL, Resolver, RuleSet
from geosocks.tls import server_context
from geosocks.upstream import DEFAULT, Health, Upstream, build_upstreams


def build_policy(settings: Settings, before: Policy | None = None) -> Policy:
    """Make what a session may ask out of ``settings``; reads users, rules and keytab.

    ``before`` is the policy in force at a reload: its resolver is kept if nothing of it changed,
    and so are the places taken of its limits, and what is known of each upstream's health.

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
        limits=replace(
            Limits() if before is None else before.limits, per_user=settings.sessions_per_user
        ),
        entrance=_entrance(settings),
        timeouts=Timeouts(
            negotiation=settings.timeout_handshake,
            connect=settings.timeout_connect,
            idle=settings.timeout_idle,
            half_close=settings.timeout_half_close,
            bind=settings.timeout_bind,
            udp=settings.timeout_udp,
        ),
    )


def _entrance(settings: Settings) -> Entrance:
    """How many handshakes there may be, and whose are never too many."""
    exempt, drop = settings.penalty_exempt or LOOPBACK, settings.max_handshakes
    per_source = settings.max_handshakes_per_source
    if drop is None:
        return Entrance(per_source=per_source, exempt=exempt)
    return Entrance(
        start=drop.start,
        rate=drop.percent / 100,
        full=drop.full,
        per_source=per_source,
        exempt=exempt,
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
        there = settings.at(one)
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
    name.replace("-", "_") for name in OF_A_LISTENER if not name.startswith("tls-")
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
        assert settings.users is not None  # cross_check saw to it
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
    inherited = [one.listen.where for one in settings.listen if one.inherited is not None]
    known = None if any(isinstance(where, str) for where in inherited) else names
    return RuleSet.parse(text, path, upstreams, known)


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
