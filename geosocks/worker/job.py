"""What the workers of one server have in common: made before any hub, and before any fork."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from geosocks.admin import AdminPlace
from geosocks.config import ListenOption, Loaded, Settings, build_policy, load_settings
from geosocks.errors import ConfigError
from geosocks.limits import LimitCells
from geosocks.listening import Listen, Opened, refuse_bare_tls, refuse_open_proxy
from geosocks.logs.handler import ThreadedHandler
from geosocks.logs.start import set_up
from geosocks.metrics.cells import Cells as MetricCells
from geosocks.policy import Policy
from geosocks.shared import Layout
from geosocks.systemd import Passed


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a server was started with; the same for all its workers."""

    argv: tuple[str, ...]
    passed: tuple[Passed, ...]
    loaded: Loaded
    listening: tuple[tuple[Opened, ...], ...]
    """For each worker, or once for all of them."""

    admin: AdminPlace | None = None
    """Where the status page is to be."""

    version: str = ""
    """Ours, for those who ask."""

    def cells(self, layout: Layout) -> "SharedCells":
        """Take what each worker keeps in its row."""
        return SharedCells(limits=LimitCells.laid_out(layout), metrics=MetricCells.take(layout))

    def load(self) -> Loaded:
        """The settings as they now stand.

        Raises:
            ConfigError: they cannot be used.
        """
        return load(self.argv, self.passed)

    def check(self) -> "InForce":
        """What the settings as they now stand would put in force.

        Raises:
            ConfigError: they cannot be put in force.
        """
        listening = [one.as_listen() for one in self.listening[0]]
        settings = self.load().settings
        policy = new_policy(settings, listening, self.loaded.settings.allow_open)
        return InForce(policy, settings.drain)

    def listen(self, slot: int) -> tuple[Listen, ...]:
        """The sockets for the worker in ``slot``; those of others are closed here."""
        mine = self.listening[slot % len(self.listening)]
        for one in self._all():
            if one not in mine:
                one.sock.close()
        return tuple(replace(one.listen, where=one.sock) for one in mine)

    def stop_listening(self) -> None:
        """Close this process's copies of the sockets, and remove the files that go with them."""
        for one in self._all():
            one.close()

    def _all(self) -> list[Opened]:
        return [one for row in self.listening for one in row]


@dataclass(frozen=True, slots=True)
class InForce:
    """What a worker begins with, be it the first in its place or one that comes after a reload.

    It is made before the fork: files that were changed since then, and are wrong, hold nobody up.
    """

    policy: Policy
    drain: float
    """Seconds that sessions may go on after TERM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedCells:
    """Where in its row a worker keeps what."""

    limits: LimitCells
    metrics: MetricCells


# --- settings ---------------------------------------------------------------------------------


def load(argv: Sequence[str], passed: Sequence[Passed]) -> Loaded:
    """The settings, with the sockets that were handed over in the places of ``systemd``.

    Raises:
        ConfigError: something cannot be used as written.
    """
    loaded = load_settings(argv)
    listen = tuple(at for one in loaded.settings.listen for at in _exchanged(one, passed))
    names = Counter(one.listen.name for one in listen if isinstance(one.listen.where, Passed))
    for one in listen:
        passed_on = isinstance(one.listen.where, Passed)
        if not passed_on and one.listen.name is not None and one.listen.name in names:
            raise ConfigError(f"--listen: two have the name {one.listen.name}")
    return replace(loaded, settings=replace(loaded.settings, listen=listen))


def _exchanged(option: ListenOption, passed: Sequence[Passed]) -> list[ListenOption]:
    """``option`` for each socket that it stands for; as it is where there are none yet."""
    name = option.inherited
    if name is None:
        return [option]
    taken = [one for one in passed if name in ("", one.name)]
    return [
        replace(
            option, listen=replace(option.listen, where=one, name=option.listen.name or one.name)
        )
        for one in taken
    ] or [option]


def refuse_awaited(settings: Settings) -> None:
    """Raise ConfigError where a socket was to be handed over, and was not."""
    for one in settings.listen:
        if one.inherited is not None and not isinstance(one.listen.where, Passed):
            raise ConfigError(
                f"--listen {one}: no such socket was handed over (LISTEN_FDS); "
                "systemd does that where a .socket unit starts the service"
            )


def new_policy(
    settings: Settings,
    listening: Sequence[Listen],
    allow_open: bool,
    before: Policy | None = None,
) -> Policy:
    """The policy of ``settings``, fit for the sockets that listen.

    Raises:
        ConfigError: it cannot be made, or would do harm there.
    """
    policy = build_policy(settings, before)
    if not allow_open:
        refuse_open_proxy(listening, policy)
    refuse_bare_tls(listening, policy)
    return policy


def open_log(settings: Settings, threaded: bool = True) -> ThreadedHandler:
    """Begin to log where the settings say; by a thread, except where the process is to fork.

    Raises:
        ConfigError: there is no writing there.
    """
    path = Path(settings.log_file) if settings.log_file else None
    try:
        return set_up(
            settings.log_format,
            settings.log_level,
            path,
            to=settings.log_to,
            repeats=settings.log_repeats,
            threaded=threaded,
        )
    except OSError as error:
        if path is None:
            what = f"--log-to {settings.log_to}: {error.filename}: {error.strerror}"
            raise ConfigError(what) from error
        raise ConfigError(f"log file cannot be written: {error.strerror}", str(path)) from error


def share(settings: Settings) -> int | None:
    """How many of ``--max-sessions`` each worker may have."""
    most = settings.max_sessions
    return None if most is None else -(-most // settings.workers)
