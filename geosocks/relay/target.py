"""Reaching the target: look-ups, dialling judged addresses, and what each failure answers.

Knows sockets and errno; knows no client and no rule.  A name is resolved by a resolver object of
the server's own, never by gevent's default one, whose ten threads a few silent DNS servers can
occupy, and never by the hub's setting, which belongs to the program around us.
"""

import errno
import socket as stdlib_socket  # constants, and gaierror
from _socket import getaddrinfo as system_getaddrinfo  # in a patched program, too
from _socket import socket as RawSocket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final, Literal, Protocol

from gevent.hub import get_hub
from gevent.resolver.ares import Resolver as CaresResolver
from gevent.threadpool import ThreadPool

from geosocks.errors import (
    AddressTypeNotSupported,
    HostUnreachable,
    NetworkUnreachable,
    RequestDenied,
    RequestFailed,
    TargetRefused,
    TargetTimeout,
)
from geosocks.stream import Stream, deadline
from geosocks.wire.socks5 import Address, IPAddress

# --- what a failure answers -------------------------------------------------------------------

FAILURES: Final[dict[int, type[RequestFailed]]] = {
    errno.ENETUNREACH: NetworkUnreachable,
    errno.ENETDOWN: NetworkUnreachable,
    errno.EHOSTUNREACH: HostUnreachable,
    errno.EHOSTDOWN: HostUnreachable,
    errno.ECONNREFUSED: TargetRefused,
    errno.ECONNRESET: TargetRefused,
    errno.ETIMEDOUT: TargetTimeout,
    errno.EAFNOSUPPORT: AddressTypeNotSupported,
    errno.EPROTONOSUPPORT: AddressTypeNotSupported,
    errno.EACCES: RequestDenied,
    errno.EPERM: RequestDenied,
}
"""errno of connect(2) to the failure that carries its REP; any other is X'01', general failure."""

_TELLING: Final = (TargetRefused, TargetTimeout, HostUnreachable, NetworkUnreachable)


def failure_of(error: OSError, to: Address) -> RequestFailed:
    """What to answer for an ``error`` met on the way to ``to``."""
    kind = FAILURES.get(error.errno or 0, RequestFailed)
    return kind(f"{to}: {error.strerror or error}")


def no_answer(to: Address | None, seconds: float) -> TargetTimeout:
    """The failure that there was none from ``to`` within ``seconds``."""
    return TargetTimeout(f"{to}: no answer within {seconds:g} s")


def most_telling(failures: Iterable[RequestFailed]) -> RequestFailed:
    """Of several addresses' failures the one that says most: refused, timed out, host, network."""
    return min(
        failures,
        key=lambda failure: next(
            (rank for rank, kind in enumerate(_TELLING) if isinstance(failure, kind)), len(_TELLING)
        ),
    )


# --- names ------------------------------------------------------------------------------------


@dataclass
class AresResolver:
    """Looks names up with c-ares on the hub itself: no threads, any number at a time.

    ``servers`` are the addresses of DNS servers, in place of resolv.conf's, and ``port`` is the one
    they all answer on; ``seconds`` bounds each look-up, however many servers and tries it takes.
    /etc/hosts is asked first.  Made in the hub that uses it, at first use.
    """

    servers: tuple[str, ...] = ()
    port: int = 53
    seconds: float = 5.0
    _ares: CaresResolver | None = field(default=None, compare=False, repr=False)

    def resolve(self, name: str) -> tuple[IPAddress, ...]:
        """All addresses of ``name``, in the order in which they are best tried (RFC 6724).

        Raises:
            HostUnreachable: it has none, or none came in time.
        """
        if self._ares is None:
            options: dict[str, Any] = {"timeout": 2.0, "tries": 3}
            if self.servers:
                options |= {"servers": list(self.servers)}
                options |= {"udp_port": self.port, "tcp_port": self.port}
            self._ares = CaresResolver(get_hub(), use_environ=False, **options)
        return _look_up(self._ares.getaddrinfo, name, self.seconds)

    def close(self) -> None:
        """Give its sockets back; look-ups under way fail."""
        if self._ares is not None:
            if self._ares.hub.loop is not None:  # else its sockets went with the loop
                self._ares.close()
            self._ares = None

    def __del__(self) -> None:
        self.close()  # a reload leaves the old one to the last session that knows it


@dataclass
class ThreadResolver:
    """Looks names up with the system's getaddrinfo(3), in a small thread pool of its own.

    For hosts whose names come from where c-ares does not look (NSS modules, mDNS).  At most
    ``threads`` look-ups run at a time; the others wait, and give up after ``seconds``.
    """

    threads: int = 16
    seconds: float = 5.0
    _pool: ThreadPool | None = field(default=None, compare=False, repr=False)

    def resolve(self, name: str) -> tuple[IPAddress, ...]:
        """As ``AresResolver.resolve``."""
        if self._pool is None:
            self._pool = ThreadPool(self.threads, hub=get_hub())
        return _look_up(self._in_thread, name, self.seconds)

    def _in_thread(self, *question: Any) -> object:
        assert self._pool is not None
        outcome = self._pool.spawn(_getaddrinfo, *question).get()
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    def close(self) -> None:
        """End its threads."""
        if self._pool is not None:
            self._pool.kill()
            self._pool = None

    def __del__(self) -> None:
        self.close()


def _getaddrinfo(*question: Any) -> object:
    # An error is returned, since gevent prints what a job of a pool raises.
    try:
        return system_getaddrinfo(*question)
    except OSError as error:
        return error


def _look_up(ask: Callable[..., Any], name: str, seconds: float) -> tuple[IPAddress, ...]:
    late = HostUnreachable(f"{name}: no answer from the DNS within {seconds:g} s")
    try:
        with deadline(seconds, late):
            found = ask(name, None, stdlib_socket.AF_UNSPEC, stdlib_socket.SOCK_STREAM)
    except HostUnreachable:
        raise
    except (OSError, UnicodeError) as error:  # gaierror and herror are OSErrors
        what = getattr(error, "strerror", None) or str(error)
        raise HostUnreachable(f"{name}: {what}") from error
    addresses = [ip_address(entry[4][0]) for entry in found]
    return tuple(dict.fromkeys(addresses))


# --- connections ------------------------------------------------------------------------------


class Dialer(Protocol):
    """Opens connections to targets: directly, through an upstream, or in your own way."""

    def open_connection(self, to: Address, addresses: tuple[IPAddress, ...]) -> Stream:
        """Connect to one of ``addresses``, which are ``to``'s; the caller closes the stream.

        Raises:
            RequestFailed: none could be reached; ``rep`` says why.
        """
        ...


Family = Literal["any", "ipv4", "ipv6"]


def is_own_address(address: IPAddress) -> bool:
    """True when ``address`` is one of this host's, found out by binding to it (bind(2))."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if address.is_unspecified or address.is_loopback:
        return True
    family = stdlib_socket.AF_INET if isinstance(address, IPv4Address) else stdlib_socket.AF_INET6
    probe = RawSocket(family, stdlib_socket.SOCK_DGRAM)
    try:
        probe.bind((str(address), 0))
    except OSError:
        return False
    finally:
        probe.close()
    return True
