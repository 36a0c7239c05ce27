"""``geosocks serve``: the proxy as a process, with its signals, log and exit codes."""

import errno
import gc
import resource
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import gevent
import gevent.event

from geosocks.config import (
    NEEDS_RESTART,
    Loaded,
    build_policy,
    load_settings,
    of_the_process,
    shown,
)
from geosocks.errors import ConfigError
from geosocks.events import LogObserver, Reloaded, ReloadRefused
from geosocks.logs import ThreadedHandler, set_up
from geosocks.server import Server, max_sessions_for, refuse_bare_tls, refuse_open_proxy

USAGE: Final = 2
TEMPORARY: Final = 75
"""EX_TEMPFAIL of sysexits.h: try again later."""


def main(argv: Sequence[str]) -> int:
    """Serve until told to stop; returns the exit code."""
    try:
        loaded = load_settings(argv)
        settings = loaded.settings
        if loaded.print_config:
            print(shown(loaded), end="")
            return 0
        descriptors = raise_descriptor_limit()
        policy = build_policy(settings)
        if not settings.allow_open:
            refuse_open_proxy([one.listen for one in settings.listen], policy)
        if (settings.max_sessions or 0) > max_sessions_for(descriptors):
            raise ConfigError(
                f"--max-sessions {settings.max_sessions}: {descriptors} descriptors are enough for "
                f"{max_sessions_for(descriptors)}; raise the limit (ulimit -n, LimitNOFILE=)"
            )
        if loaded.check_config:
            print("configuration is good")
            return 0
        log = _open_log(loaded)
    except ConfigError as error:
        return _fail(str(error), USAGE)
    server = Server(
        [one.listen for one in settings.listen],
        policy,
        observers=[LogObserver()],
        max_sessions=settings.max_sessions,
        allow_open=settings.allow_open,
    )
    # What has been made so far stays; and sessions make much that is soon gone by itself, so the
    # collector of cycles need not look so often.
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    signals = _Signals()  # from here on a TERM is a drain, however early it comes
    try:
        try:
            server.start()
        except OSError as error:
            return _fail(*_why_not_listening(error))
        _live(server, argv, loaded, log, signals)
        return 0
    finally:
        signals.close()
        log.close()


def _fail(what: str, code: int) -> int:
    print(f"geosocks serve: {what}", file=sys.stderr)
    return code


def _why_not_listening(error: OSError) -> tuple[str, int]:
    match error.errno:
        case errno.EADDRINUSE:
            return f"{error.strerror}; end the other server, or --listen on another port", TEMPORARY
        case errno.EACCES:
            return f"{error.strerror}; ports below 1024 need root or CAP_NET_BIND_SERVICE", USAGE
        case errno.EADDRNOTAVAIL:
            return f"{error.strerror}; --listen on an address of this host", USAGE
        case _:
            return str(error.strerror or error), 1


def raise_descriptor_limit() -> int:
    """Raise the soft RLIMIT_NOFILE to the hard one; returns what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 1 << 20  # "unlimited" is no number to reckon with
    wanted = most if hard == resource.RLIM_INFINITY else min(hard, most)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft


def _open_log(loaded: Loaded) -> ThreadedHandler:
    settings = loaded.settings
    path = Path(settings.log_file) if settings.log_file else None
    on_terminal = path is None and sys.stdout.isatty()
    style = settings.log_format or ("text" if on_terminal else "json")
    try:
        return set_up(style, settings.log_level, path, sys.stdout)
    except OSError as error:
        raise ConfigError(f"log file cannot be written: {error.strerror}", str(path)) from error


class _Signals:
    """Notes the signals that arrive; whatever they ask for is done elsewhere."""

    def __init__(self) -> None:
        self.wake = gevent.event.Event()
        self._arrived: list[int] = []
        self._watchers = [
            gevent.signal_handler(number, self._note, number)
            for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        ]

    def _note(self, number: int) -> None:
        self._arrived.append(number)
        self.wake.set()

    def wait(self) -> list[int]:
        """Those that have arrived since the last call, once ``wake`` is set."""
        self.wake.wait()
        self.wake.clear()
        arrived, self._arrived = self._arrived, []
        return arrived

    def close(self) -> None:
        """Note no more."""
        for watcher in self._watchers:
            watcher.cancel()


def _live(
    server: Server, argv: Sequence[str], loaded: Loaded, log: ThreadedHandler, signals: _Signals
) -> None:
    """Serve, and do as the signals say, until the last session has ended."""
    draining: gevent.Greenlet[..., int] | None = None
    while True:
        arrived = signals.wait()
        if signal.SIGUSR1 in arrived:
            _reopen(log, server)
        if signal.SIGHUP in arrived and draining is None:
            reload(server, argv, loaded)
        ends = [number for number in arrived if number in (signal.SIGTERM, signal.SIGINT)]
        if ends and draining is None:
            draining = gevent.spawn(server.drain, loaded.settings.drain)
            draining.link(lambda _: signals.wake.set())
            ends.pop()
        if draining is not None and (ends or draining.ready()):
            if not draining.ready():
                draining.kill()
                server.stop()
            return


def _reopen(log: ThreadedHandler, server: Server) -> None:
    try:
        log.reopen()
    except OSError as error:
        server.emit(ReloadRefused(f"{log.path}: log file cannot be written: {error.strerror}"))


def reload(server: Server, argv: Sequence[str], loaded: Loaded) -> None:
    """Put the settings as they now stand in force, all at once or, if they are wrong, not at all.

    What belongs to the process stays as it is; a change there is reported.
    """
    try:
        fresh = load_settings(argv).settings
        policy = build_policy(fresh, server.policy)
        if not loaded.settings.allow_open:
            refuse_open_proxy(server.listening, policy)
        refuse_bare_tls(server.listening, policy)
    except ConfigError as error:
        server.emit(ReloadRefused(str(error)))
        return
    server.policy = policy
    changed = [
        name.replace("_", "-")
        for name in NEEDS_RESTART
        if of_the_process(fresh, name) != of_the_process(loaded.settings, name)
    ]
    note = f"; a change of {', '.join(changed)} needs a restart" if changed else ""
    server.emit(Reloaded("policy" + note))
