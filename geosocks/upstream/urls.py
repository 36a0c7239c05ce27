"""Upstreams from URLs: ``socks5://[user[:password]@]host[:port][?via=NAME&...]`` and its kin."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from geosocks.auth.userpass import Password
from geosocks.client import Client
from geosocks.codes import Method
from geosocks.errors import ConfigError
from geosocks.relay.target import Dialer
from geosocks.rules import Resolver
from geosocks.upstream.chain import Upstream
from geosocks.upstream.hops import Hop, HttpHop, SocksHop
from geosocks.wire.http import basic

DEFAULT: Final = "default"
"""What the default upstream is called."""

SCHEMES: Final = ("socks5", "socks5h", "socks5+tls", "socks5h+tls", "socks4", "socks4a", "http")


def build_upstreams(
    urls: Mapping[str, str],
    resolver: Resolver,
    dialer: Dialer,
    *,
    password: str | None = None,
    own_ports: Iterable[int] = (),
) -> dict[str, Upstream]:
    """Make upstreams of URLs by name; ``?via=NAME`` in one says through which other it is reached.

    ``password`` is that of ``DEFAULT`` when its URL has a user and none.

    Raises:
        ConfigError: a URL cannot be used as written, or chains go round; no password is quoted.
    """
    hops: dict[str, Hop] = {}
    before: dict[str, str | None] = {}
    for name, url in urls.items():
        try:
            bare, before[name] = split_via(url)
            hops[name] = hop_of(bare, resolver, password if name == DEFAULT else None)
        except ConfigError as error:
            what = f"upstream {name}: {error.what}"
            raise ConfigError(what, error.path, error.line, error.column) from None
    made = {}
    for name in urls:
        chain = _chain(name, before)
        made[name] = Upstream(
            name,
            tuple(hops[link] for link in chain),
            resolver,
            dialer,
            tuple(urls[link] for link in chain),
            frozenset(own_ports),
        )
    return made


def _chain(name: str, before: Mapping[str, str | None]) -> list[str]:
    """The names of a chain, first hop first."""
    chain = [name]
    while (via := before[chain[0]]) is not None:
        if via not in before:
            known = ", ".join(before)
            raise ConfigError(f"upstream {chain[0]}: via={via} is no upstream; known: {known}")
        if via in chain:
            circle = " via ".join((*reversed(chain), via))
            raise ConfigError(f"upstream {name}: its chain goes round: {circle}")
        chain.insert(0, via)
    return chain


def split_via(url: str) -> tuple[str, str | None]:
    """A proxy URL without its ``via``, and that."""
    base, _, query = url.partition("?")
    pairs = query.split("&") if query else []
    via = [pair.removeprefix("via=") for pair in pairs if pair.startswith("via=")]
    if len(via) > 1 or via == [""]:
        raise ConfigError("proxy URL: via stands there once, with an upstream's name")
    rest = "&".join(pair for pair in pairs if not pair.startswith("via="))
    return (f"{base}?{rest}" if rest else base), (via[0] if via else None)


def hop_of(url: str, resolver: Resolver, password: str | None = None) -> Hop:
    """Make a hop of a URL; ``resolver`` finds what plain SOCKS4 cannot leave to the server.

    Raises:
        ConfigError: it cannot be used as written; no password is quoted.
    """
    scheme, colon, rest = url.partition("://")
    scheme = scheme.lower()
    if not colon or scheme not in SCHEMES:
        raise ConfigError(f"proxy URL: write {'://, '.join(SCHEMES)}:// and host:port")
    if scheme == "http":
        return _http_hop(rest, password)
    if scheme not in ("socks4", "socks4a"):
        return SocksHop(Client.from_url(url, password=password))
    if "?" in rest:
        raise ConfigError(f"proxy URL: {scheme}:// has no setting but via")
    client = Client.from_url(f"{scheme}://{rest}")
    assert client.socks4 is not None
    return SocksHop(Client(client.server, socks4=replace(client.socks4, resolver=resolver)))


def _http_hop(rest: str, password: str | None) -> HttpHop:
    """A hop that shares no more than the URL's form with SOCKS5."""
    for pair in filter(None, rest.partition("?")[2].split("&")):
        if pair.partition("=")[0] != "password-file":
            raise ConfigError("proxy URL: http:// has no setting but via")
    client = Client.from_url(f"socks5://{rest}", password=password)
    return HttpHop(client.server, _basic(client))


def _basic(client: Client) -> str | None:
    shown = client.credentials.get(Method.USERNAME)
    if not isinstance(shown, Password):
        return None
    try:
        return basic(shown.uname, shown.passwd)
    except ValueError as error:
        raise ConfigError(f"proxy URL: {error}") from None
