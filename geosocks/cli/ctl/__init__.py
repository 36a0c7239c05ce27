"""``geosocks ctl``: ask a running server, or tell it what to do, through its control socket."""

import argparse
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any

from geosocks.cli.ctl.asking import fail
from geosocks.cli.ctl.changing import drain, kill, log_level, pardon, reload
from geosocks.cli.ctl.following import events
from geosocks.cli.ctl.looking import (
    SORTS,
    explain,
    limits,
    penalties,
    sessions,
    status,
    users,
)
from geosocks.cli.explain import add_question
from geosocks.control_client import LEVELS, ControlError, likely_path


def main(argv: Sequence[str]) -> int:
    """Run ``geosocks ctl``; the exit code: 0 done, 1 refused or nobody there, 2 usage."""
    options = _parser().parse_args(argv)
    if options.socket is None:
        options.socket = likely_path(os.environ, os.geteuid())
    try:
        code: int = options.run(options)
    except ControlError as error:
        return fail(str(error))
    return code


def top(options: argparse.Namespace) -> int:
    """A live table."""
    if importlib.util.find_spec("rich") is None:
        return fail("top needs the package rich: pip install 'geosocks[top]'")
    from geosocks.cli.ctl.live import run

    return run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="geosocks ctl",
        description="Ask a running server, or tell it what to do, through its control socket; all "
        "its workers, where it has several.",
        epilog="Exit code: 0 done, 1 refused or no server there, 2 not understood.",
        allow_abbrev=False,
    )
    _add_common(parser, None, False)
    # They may stand behind the verb, too; what stands before it must not be undone there.
    common = argparse.ArgumentParser(add_help=False)
    _add_common(common, argparse.SUPPRESS, argparse.SUPPRESS)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    def verb(name: str, run: Callable[[argparse.Namespace], int], what: str) -> Any:
        one = verbs.add_parser(
            name,
            help=what,
            description=f"{what[0].upper()}{what[1:]}.",
            allow_abbrev=False,
            parents=[common],
        )
        one.set_defaults(run=run, parser=one)
        return one

    verb("status", status, "how the server is")
    _add_choice(verb("sessions", sessions, "the sessions that are open"))
    verb("users", users, "who has how many sessions, and what these have moved")
    verb("limits", limits, "the ceilings, and what is used of them")
    verb("penalties", penalties, "sources that failed to authenticate too often")
    add_question(verb("explain", explain, "which rule decides a request, as the server has them"))
    _add_events(verb("events", events, "what happens, as it happens, until interrupted"))
    _add_top(verb("top", top, "a live table of sessions, rates and users"))
    one = verb("kill", kill, "end sessions: by id, of a user, or from a network")
    one.add_argument("sessions", nargs="*", type=_session, metavar="ID", help="session ids")
    one.add_argument("--user", metavar="U", help="all of this user")
    one.add_argument("--from", dest="source", metavar="CIDR", help="all from this network")
    one = verb("pardon", pardon, "let a source try to authenticate again")
    one.add_argument("source", metavar="ADDR", help="an address of it")
    verb("reload", reload, "read options, rules, users and keytab anew, as HUP does")
    verb("drain", drain, "accept no more, and end with the last session, as TERM does")
    one = verb("log-level", log_level, "log more or less, until it is restarted")
    one.add_argument("level", choices=LEVELS, metavar="LEVEL", help=", ".join(LEVELS))
    return parser


def _add_common(parser: argparse.ArgumentParser, socket: Any, as_json: Any) -> None:
    parser.add_argument(
        "--socket",
        metavar="PATH",
        default=socket,
        help="the server's --control (default: that of your own server, if one runs, or else "
        "/run/geosocks/control.sock)",
    )
    parser.add_argument(
        "--json", action="store_true", default=as_json, help="for scripts: an object a line"
    )


def _add_choice(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--user", metavar="U", help="only those of this user")
    add("--from", dest="source", metavar="CIDR", help="only those from this network")
    add(
        "--to",
        metavar="DEST",
        help="only those to this network, or to a name, in which * stands for any characters",
    )
    add("--listener", metavar="NAME", help="only those of this listener")
    add(
        "--sort",
        choices=SORTS,
        default="id",
        metavar="KEY",
        help=f"{', '.join(SORTS)} (default id)",
    )
    add("--reverse", action="store_true", help="the other way around")
    add("--wide", action="store_true", help="more columns: the rule, the address dialled, ...")


def _add_events(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--event", metavar="NAME", action="append", help="only this one; may be given again")
    add("--level", choices=LEVELS, metavar="LEVEL", help="least weight (default info)")
    add("--user", metavar="U", help="only what names this user")
    add(
        "--session",
        metavar="ID",
        type=_session,
        action="append",
        help="only of this session; may be given again",
    )


def _add_top(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--once", action="store_true", help="print one table, of a second, and end")
    add(
        "--sort",
        choices=("rate", *SORTS),
        default="rate",
        metavar="KEY",
        help=f"rate, {', '.join(SORTS)} (default rate)",
    )


def _session(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 1 << 62):
        raise argparse.ArgumentTypeError(f"{text!a} is no session id")
    return int(text)
