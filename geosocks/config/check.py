"""Whether settings go together; each complaint names where the setting stands."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import NoReturn

from geosocks.codes import ProtectionLevel
from geosocks.config.listeners import ListenOption
from geosocks.config.settings import Settings
from geosocks.config.values import nearest
from geosocks.errors import ConfigError
from geosocks.listening import is_loopback
from geosocks.rules import DIRECT


def cross_check(settings: Settings, origins: Mapping[str, str]) -> None:
    """Raise ConfigError for the first setting that goes not with another."""

    def complain(dest: str, what: str) -> NoReturn:
        path, _, line = origins[dest].rpartition(":")
        raise ConfigError(what, path or None, int(line) if path else None)

    _check_methods(settings, (), complain)
    for one in settings.listen:
        _check_methods(settings.at(one), dict(one.own), partial(_complain_of, complain, one))
    everywhere = [settings, *(settings.at(one) for one in settings.listen)]
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
            near = nearest(name, names) or "; name one: --upstream NAME=URL"
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
        if one.listen.tls and not settings.at(one).tls_cert:
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
