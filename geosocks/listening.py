"""Where a server listens: the sockets, the files of those that have one, and what not to open.

Makes plain sockets and needs no hub, so that a process may open them and then fork.
"""

import errno
import os
import socket  # constants
import ssl
import stat
from _socket import socket as RawSocket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any, Final, Self

import gevent.socket

from geosocks.codes import Method
from geosocks.errors import ConfigError
from geosocks.policy import Policy
from geosocks.relay.pacing import do_not_pace
from geosocks.session.record import address_of
from geosocks.systemd import Passed

BACKLOG: Final = 4096
"""Connections that the kernel keeps until we accept them (listen(2); capped at somaxconn)."""

KEEPALIVE: Final = (
    (60, "TCP_KEEPIDLE"),  # seconds
    (15, "TCP_KEEPINTVL"),  # seconds
    (4, "TCP_KEEPCNT"),
    (120_000, "TCP_USER_TIMEOUT"),  # milliseconds
)
"""A peer that has vanished is noticed after 2 minutes, silent or not (tcp(7))."""

Where = tuple[str, int] | str | Passed | gevent.socket.socket | RawSocket
"""An address to listen on, the path of a UNIX socket, one that was handed over, or a socket that
listens already (``socket.socket`` is a RawSocket)."""

OWNER_ONLY: Final = 0o600


@dataclass(frozen=True, slots=True)
class Listen:
    """One place to listen, and what is special about it.

    ``name`` is what rules, events and ``Policy.listeners`` call it; its address when it has none.
    ``tls``: its clients speak TLS, by the context that ``Policy.listeners`` has for that name.
    ``mode`` are the permissions of a UNIX socket's file: who may connect.
    """

    where: Where
    name: str | None = None
    tls: bool = False
    mode: int = OWNER_ONLY

    @property
    def address(self) -> Any:
        """``(host, port, ...)``, or a path."""
        if isinstance(self.where, Passed):
            return self.where.address
        return self.where if isinstance(self.where, tuple | str) else self.where.getsockname()


@dataclass(slots=True)
class _File:
    """A UNIX socket's file that we have made."""

    path: str
    device: int
    inode: int
    removed: bool = False

    @classmethod
    def of(cls, path: str) -> Self:
        found = os.lstat(path)
        return cls(os.path.abspath(path), found.st_dev, found.st_ino)

    def remove(self) -> None:
        """Unlink it, unless somebody else's is in its place by now.

        Once only: the file of who comes after us may have the same number.
        """
        if self.removed:
            return
        self.removed = True
        with suppress(OSError):
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == (self.device, self.inode):
                os.unlink(self.path)


@dataclass(frozen=True, slots=True)
class Opened:
    """A socket that listens, what it is for, and the file that goes with it."""

    sock: gevent.socket.socket | RawSocket
    listen: Listen
    address: Any
    """``(host, port, ...)`` as the kernel tells, or a UNIX socket's path."""

    file: _File | None = None

    @property
    def spelt(self) -> str:
        """The address in a word."""
        address = self.address
        return str(address_of(address)) if isinstance(address, tuple) else str(address)

    @property
    def name(self) -> str:
        """What rules and events call it."""
        return self.listen.name or self.spelt

    def as_listen(self) -> Listen:
        """What it is for, with the address that it has come to."""
        return replace(self.listen, where=self.address, name=self.name)

    def close(self) -> None:
        """Listen no more."""
        self.sock.close()
        if self.file is not None:
            self.file.remove()


def open_listener(
    listen: Listen, all_of_them: Sequence[Listen], reuse_port: bool = False
) -> Opened:
    """Listen, with the options that accepted sockets inherit (tcp(7)).

    ``reuse_port`` lets others of this user listen on the same TCP port, each of whom the kernel
    then sends a part of the clients.

    Raises:
        OSError: that cannot be listened on; its ``strerror`` names the address.
    """
    where, file = listen.where, None
    sock: gevent.socket.socket | RawSocket
    if isinstance(where, str):
        sock, file = _listen_unix(where, listen.mode)
    elif isinstance(where, tuple):
        # [::] takes IPv4 clients too, unless 0.0.0.0 is listened on for them.
        only_v6 = ("0.0.0.0", where[1]) in [one.where for one in all_of_them]
        sock = _listen_tcp(where, only_v6, reuse_port)
    elif isinstance(where, Passed):
        sock = RawSocket(fileno=where.fd)
    else:
        sock = where
    sock.setblocking(False)
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keepalive(sock)
        if is_loopback(sock.getsockname()[0]):
            do_not_pace(sock)
    return Opened(sock, listen, sock.getsockname(), file)


def _listen_tcp(address: tuple[str, int], only_v6: bool, reuse_port: bool) -> RawSocket:
    is_v6 = ":" in address[0]
    family = socket.AF_INET6 if is_v6 else socket.AF_INET
    sock = RawSocket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if is_v6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_v6)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _named(error, spelt(address)) from None
    return sock


def _listen_unix(path: str, mode: int) -> tuple[RawSocket, _File]:
    """Make a UNIX socket's file; one that a server has left behind is replaced (unix(7))."""
    sock = RawSocket(socket.AF_UNIX, socket.SOCK_STREAM)
    file = None
    try:
        _clear_away(path)
        sock.bind(path)
        file = _File.of(path)
        os.chmod(path, mode)  # nobody can connect before it listens
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if file is not None:
            file.remove()
        raise _named(error, path) from None
    return sock, file


def _clear_away(path: str) -> None:
    """Remove the file of a UNIX socket on which nobody listens any more.

    Raises:
        OSError: EADDRINUSE, when somebody does, or it is something else.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EADDRINUSE, "there is a file of that name, and it is no socket")
    probe = RawSocket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.setblocking(False)
        probe.connect(path)
    except ConnectionRefusedError:
        os.unlink(path)
        return
    except BlockingIOError:
        pass  # its backlog is full: somebody listens
    finally:
        probe.close()
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _named(error: OSError, place: str) -> OSError:
    """``error``, with the place that it is about."""
    error.strerror = f"{place}: {error.strerror or error}"
    error.args = (error.errno, error.strerror)
    return error


def keepalive(stream: Any) -> None:
    """Have the kernel notice a peer that has vanished (tcp(7))."""
    with suppress(OSError):  # it has just been closed, or is no TCP socket
        sock = getattr(stream, "sock", stream)
        set_option: Callable[[int, int, int], None] | None = getattr(sock, "setsockopt", None)
        if set_option is None:
            return
        set_option(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for value, name in KEEPALIVE:
            if hasattr(socket, name):
                set_option(socket.IPPROTO_TCP, getattr(socket, name), value)


def refuse_open_proxy(listen: Sequence[Where | Listen], policy: Policy) -> None:
    """Raise ConfigError when anybody on the network could use a server so set up.

    That is: it listens off loopback, takes clients there without authentication (by a method, or
    by a certificate), and no rule limits who of that listener's clients may do anything.
    """
    for one in map(as_listen, listen):
        address = one.address
        if not isinstance(address, tuple) or is_loopback(address[0]):
            continue
        name = one.name or spelt(address)
        tls = policy.tls_at(name) if one.tls else None
        if (
            all(method.method != Method.NONE for method in policy.authenticators_at(name))
            or (tls is not None and tls.verify_mode is ssl.CERT_REQUIRED)
            or policy.rules.limits_who(name)
        ):
            continue
        raise ConfigError(
            f"{spelt(address)} would be an open proxy: it is not a loopback address, "
            "method none asks for no authentication, and no rule limits who may use it; "
            "demand a method (--methods username, gssapi), or write a rule with 'from' or "
            "'user', or say --allow-open if you mean it"
        )


def refuse_bare_tls(listen: Sequence[Listen], policy: Policy) -> None:
    """Raise ConfigError when a listener for TLS has no certificate to show."""
    for one in listen:
        if one.tls and policy.tls_at(one.name or "") is None:
            raise ConfigError(f"listener {one.name}: TLS, but the policy has no certificate for it")


def is_loopback(host: str) -> bool:
    """True for a listening address that only programs on this host can reach."""
    return host == "localhost" or ip_address(host.partition("%")[0]).is_loopback


def spelt(address: tuple[Any, ...]) -> str:
    """An address as ``--listen`` takes it."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def as_listen(where: Where | Listen) -> Listen:
    """A place to listen as a ``Listen``."""
    return where if isinstance(where, Listen) else Listen(where)
