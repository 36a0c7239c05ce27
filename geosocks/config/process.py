"""Options of the process: workers, privileges, the status page, ctl, the log."""

import argparse
import os
import re
from collections.abc import Callable
from typing import Any, Final

from geosocks.config.values import (
    SUN_PATH,
    address_and_port,
    count,
    file_mode,
    nearest,
    socket_path,
)
from geosocks.control_client import default_path
from geosocks.listening import OWNER_ONLY
from geosocks.logs import LEVELS, LOG_PLACES, REPEATS, SYSLOG_PORT, LogTo
from geosocks.logs.journal import missing


def worker_count(text: str) -> int:
    """Read a number of processes; ``auto`` is one for each core that this one may use."""
    if text == "auto":
        return len(os.sched_getaffinity(0))
    if not text.isdecimal() or not 1 <= int(text) <= MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor from 1 to {MAX_WORKERS}")
    return int(text)


MAX_WORKERS: Final = 512


def account(text: str) -> str:
    """Read the name or the number of a user or a group; whether it exists is seen at start-up."""
    if not _ACCOUNT.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!a} is no name of a user or a group")
    return text


_ACCOUNT: Final = re.compile("[A-Za-z0-9_][A-Za-z0-9_.@-]*[$]?")


def admin_place(text: str) -> tuple[str, int] | str:
    """Read ``ADDR:PORT``, with the port, or ``unix:PATH``."""
    if text.startswith("unix:"):
        return socket_path(text.removeprefix("unix:"), "unix:/run/geosocks/admin.sock")
    host, port = address_and_port(text, 0, "")
    if port == 0 and not text.endswith(":0"):
        raise argparse.ArgumentTypeError(f"{text!r} has no port, as in 127.0.0.1:9180")
    return host, port


def control_path(text: str) -> str:
    """Read a path of at most 103 octets, with ``?mode=660`` behind it where a group may ask, too.

    Other workers' sockets are called PATH.1, PATH.2, ...
    """
    path, mode = control_place(text)
    socket_path(path, "/run/geosocks/control.sock", SUN_PATH - len(".511"))
    if not mode & 0o600 == 0o600:
        raise argparse.ArgumentTypeError(f"mode {mode:03o} keeps out whom the server runs as")
    return text


def control_place(text: str) -> tuple[str, int]:
    """A path and the mode behind it, or that of a socket for its owner only."""
    path, given, mode = text.partition("?mode=")
    return path, file_mode(mode) if given else OWNER_ONLY


control_by_default: Final = default_path
"""Where ctl's socket is when nobody says."""


def log_place(text: str) -> LogTo:
    """Read ``stdout``, ``stderr``, ``journald``, ``syslog`` or ``syslog:ADDR``."""
    kind, colon, where = text.partition(":")
    if kind == "syslog" and colon:
        return _syslog_at(where)
    if colon or kind not in LOG_PLACES:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not one of {', '.join(LOG_PLACES)}{nearest(kind, LOG_PLACES)}"
        )
    if kind == "journald" and (cure := missing()):
        raise argparse.ArgumentTypeError(f"{kind} {cure}")
    return LogTo(kind)


def repeats(text: str) -> int | None:
    """Read how many of a kind to write; None for ``all``."""
    return None if text == "all" else count(text)


def _syslog_at(where: str) -> LogTo:
    if where.startswith("/"):
        return LogTo("syslog", socket_path(where, "syslog:/dev/log"))
    tcp = where.startswith("tcp://")
    return LogTo("syslog", address_and_port(where.removeprefix("tcp://"), SYSLOG_PORT, ""), tcp)


Group = tuple[str, Callable[[Any], None]]


def _process(add: Any) -> None:
    add(
        "--workers",
        type=worker_count,
        default=1,
        metavar="N",
        help="processes that serve, or auto: one for each core (default 1)",
    )
    add(
        "--reuse-port",
        action="store_true",
        help="with several workers, a listening socket for each (SO_REUSEPORT) in place of one "
        "that all share",
    )
    add(
        "--user",
        type=account,
        metavar="USER",
        help="user to become, for good, once the sockets are open; needs root",
    )
    add(
        "--group",
        type=account,
        metavar="GROUP",
        help="group to become (default: that of --user)",
    )
    add("--pidfile", metavar="FILE", help="file to write the process's number to")
    add(
        "--daemon",
        action="store_true",
        help="serve in the background: the command ends once clients are served, or with an error "
        "if that fails; needs --log-file, or --log-to journald or syslog",
    )


def _looking(add: Any) -> None:
    add(
        "--admin",
        type=admin_place,
        metavar="ADDR:PORT",
        help="where to serve a status page, /metrics, /healthz, /readyz and /sessions by HTTP, or "
        "unix:PATH (default: nowhere)",
    )
    add(
        "--admin-token-file",
        metavar="FILE",
        help="token that those who ask there must show (Authorization: Bearer), in a file that "
        "others cannot read; needed where --admin is not a loopback address",
    )
    add(
        "--control",
        type=control_path,
        metavar="PATH",
        help="UNIX socket of 'geosocks ctl', or off (default: control.sock in $RUNTIME_DIRECTORY, "
        "for root in /run/geosocks, else in $XDG_RUNTIME_DIR/geosocks)",
    )


def _log(add: Any) -> None:
    add(
        "--log-format",
        choices=("json", "text"),
        help="one JSON object a line, or text for people (default: text on a terminal, to journald "
        "and to syslog; json elsewhere)",
    )
    add("--log-level", choices=LEVELS, default="info", help="least weight to log (default info)")
    add(
        "--log-to",
        type=log_place,
        default=LogTo("stdout"),
        metavar="PLACE",
        help="where to log: stdout, stderr, journald, syslog, or syslog:ADDR, where ADDR is the "
        "path of a UNIX socket, ADDR[:PORT] or tcp://ADDR[:PORT] (default stdout)",
    )
    add("--log-file", metavar="FILE", help="a file to log to, in place of --log-to")
    add(
        "--log-repeats",
        type=repeats,
        default=REPEATS,
        metavar="N",
        help="lines of one kind, with the same reason and from the same host, that are written in "
        "10 seconds; the others are counted and told in one; session_closed is always written; or "
        f"all (default {REPEATS})",
    )


PROCESS_GROUPS: Final[tuple[Group, ...]] = (
    ("the process", _process),
    ("looking at it, and talking to it", _looking),
    ("the log", _log),
)
