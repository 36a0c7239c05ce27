"""``geosocks ctl``: ask a running server, or tell it what to do, through its control socket."""

import argparse
import importlib.util
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf
from typing import Any, Final

import gevent
import gevent.queue

from geosocks.cli.explain import add_question, asked_by
from geosocks.cli.tables import duration, octets, table
from geosocks.control_client import (
    LEVELS,
    PATIENCE,
    Answer,
    ControlClient,
    ControlError,
    Row,
    ask,
    ask_workers,
    likely_path,
    worker_paths,
)
from geosocks.explaining import told
from geosocks.logs import TextLines

SORTS: Final[dict[str, Callable[[Row], Any]]] = {
    "id": lambda row: row["session"],
    "user": lambda row: (row["identity"] is None, row["identity"], row["session"]),
    "octets": lambda row: -(row["up"] + row["down"]),
    "up": lambda row: -row["up"],
    "down": lambda row: -row["down"],
    "age": lambda row: -row["seconds"],
    "idle": lambda row: -(row["idle"] or 0.0),
    "destination": lambda row: (row["destination"] is None, row["destination"], row["session"]),
}
"""How sessions may stand, and the key to sort them by."""

RELOAD_PATIENCE: Final = 30.0
"""Seconds for a reload: a large rules file, and users, are read."""


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


def fail(what: str) -> int:
    """Complain; the exit code."""
    print(f"geosocks ctl: {what}", file=sys.stderr)
    return 1


# --- asking -----------------------------------------------------------------------------------


def everybody(
    options: argparse.Namespace, do: str, **arguments: Any
) -> tuple[dict[int, Answer], int]:
    """What each worker answers, and the exit code: 1 if one that runs does not.

    A worker that has ended has nothing to tell, and is left out.

    Raises:
        ControlError: none answers.
    """
    answers = ask_workers(options.socket, do, patience=PATIENCE, **arguments)
    good = {worker: one for worker, one in answers.items() if isinstance(one, Answer)}
    bad = {worker: one for worker, one in answers.items() if isinstance(one, ControlError)}
    if not good:
        raise next((one for one in bad.values() if not one.is_absent), bad[0])
    silent = [one for one in bad.values() if not one.is_absent]
    for error in silent:
        fail(str(error))
    return good, 1 if silent else 0


def anybody(
    options: argparse.Namespace, do: str, /, *, patience: float = PATIENCE, **arguments: Any
) -> Answer:
    """What the first worker that is there answers.

    Raises:
        ControlError: it refuses, or none is there.
    """
    first: ControlError | None = None
    for path in worker_paths(options.socket).values():
        try:
            return ask(path, do, patience=patience, **arguments)
        except ControlError as error:
            if not error.is_absent:
                raise
            first = first or error
    assert first is not None
    raise first


def rows_of(answers: Mapping[int, Answer]) -> list[Row]:
    """The rows of all workers."""
    return [row for answer in answers.values() for row in answer.rows]


def show(options: argparse.Namespace, rows: Sequence[Row], lines: Iterator[str]) -> None:
    """Print rows: as JSON, an object a line, or the ``lines`` for a person."""
    for line in map(json.dumps, rows) if options.json else lines:
        print(line)


# --- looking ----------------------------------------------------------------------------------


def status(options: argparse.Namespace) -> int:
    """How the server is."""
    answers, code = everybody(options, "status")
    found = [answer.ok for answer in answers.values()]
    show(options, found, _status_lines(found))
    return code


def _status_lines(found: Sequence[Row]) -> Iterator[str]:
    one = found[0]
    yield f"geosocks {one['version']}, up {duration(max(row['seconds'] for row in found))}"
    for listener in one["listeners"]:
        name = "" if listener["name"] == listener["address"] else f", name {listener['name']}"
        tls = ", TLS" if listener["tls"] else ""
        yield f"listens on {listener['address']}{name}{tls}"
    yield ""
    yield from table(
        ("WORKER", ">PID", ">UP", ">SESSIONS", ">OF", ">POLICY", "LOG", "STATE"),
        (
            (
                row["worker"],
                row["pid"],
                duration(row["seconds"]),
                row["sessions"],
                row["max_sessions"],
                duration(row["policy_seconds"]),
                row["log_level"],
                "draining" if row["draining"] else "serving",
            )
            for row in found
        ),
    )


def sessions(options: argparse.Namespace) -> int:
    """The live sessions."""
    answers, code = everybody(
        options,
        "sessions",
        user=options.user,
        to=options.to,
        listener=options.listener,
        **{"from": options.source},
    )
    rows = sorted(rows_of(answers), key=SORTS[options.sort], reverse=options.reverse)
    show(options, rows, _session_lines(rows, options.wide, len(answers) > 1))
    return code


def _session_lines(rows: Sequence[Row], wide: bool, workers: bool) -> Iterator[str]:
    columns: list[tuple[str, Callable[[Row], object]]] = [
        (">SESSION", lambda row: row["session"]),
        ("USER", lambda row: row["identity"]),
        ("CLIENT", lambda row: row["client"]),
        ("COMMAND", command_of),
        ("DESTINATION", lambda row: row["destination"]),
        (">UP", lambda row: octets(row["up"])),
        (">DOWN", lambda row: octets(row["down"])),
        (">AGE", lambda row: duration(row["seconds"])),
        (">IDLE", lambda row: duration(row["idle"])),
    ]
    if workers or wide:
        columns.append((">WORKER", lambda row: row["worker"]))
    if wide:
        columns += [
            ("DIALLED", lambda row: row["dialled"]),
            ("UPSTREAM", lambda row: row["upstream"]),
            ("METHOD", lambda row: row["method"]),
            ("LISTENER", lambda row: row["listener"]),
            ("RULE", lambda row: row["rule"]),
        ]
    yield from table(
        [title for title, _ in columns], ([value(row) for _, value in columns] for row in rows)
    )


def command_of(row: Row) -> str:
    """The command, and what else there is to say of it."""
    if row["state"] == "handshake":
        return "(handshake)"
    name = {"udp_associate": "udp"}.get(row["command"], str(row["command"]))
    return name if row["state"] == "open" else f"{name} (opening)"


def users(options: argparse.Namespace) -> int:
    """Who has how many sessions."""
    answers, code = everybody(options, "users")
    rows = merged(rows_of(answers), "user", ("sessions", "up", "down"))
    rows.sort(key=lambda row: (-row["sessions"], -row["up"] - row["down"]))
    cells = ((row["user"], row["sessions"], octets(row["up"]), octets(row["down"])) for row in rows)
    show(options, rows, table(("USER", ">SESSIONS", ">UP", ">DOWN"), cells))
    return code


def merged(rows: Sequence[Row], key: str, sums: Sequence[str]) -> list[Row]:
    """One row for all that have the same ``key``, with the ``sums`` of theirs."""
    found: dict[Any, Row] = {}
    for row in rows:
        one = found.setdefault(row[key], {key: row[key], **dict.fromkeys(sums, 0)})
        for name in sums:
            one[name] += row[name]
    return list(found.values())


def limits(options: argparse.Namespace) -> int:
    """The ceilings, and what is used of them."""
    answers, code = everybody(options, "limits")
    found: dict[tuple[str, str | None], Row] = {}
    for row in rows_of(answers):
        one = found.setdefault((row["limit"], row["key"]), row | {"used": None, "ceiling": 0})
        if row["used"] is not None:
            one["used"] = (one["used"] or 0) + row["used"]
        one["ceiling"] = row["ceiling"] + (one["ceiling"] if row["over"] == "worker" else 0)
    rows = [
        {name: value for name, value in row.items() if name != "over"} for row in found.values()
    ]
    show(
        options,
        rows,
        table(
            ("LIMIT", ">USED", ">CEILING", "WHOSE"),
            (
                (row["limit"].replace("_", " "), row["used"], row["ceiling"], row["key"])
                for row in rows
            ),
        ),
    )
    return code


def penalties(options: argparse.Namespace) -> int:
    """Who is turned away."""
    answers, code = everybody(options, "penalties")
    found: dict[str, Row] = {}
    for row in rows_of(answers):
        one = found.setdefault(row["source"], row)
        for name in ("delay", "refused"):
            one[name] = max(one[name], row[name])
    rows = sorted(found.values(), key=lambda row: (-row["refused"], -row["delay"]))
    cells = (
        (
            row["source"],
            duration(row["refused"] or None),
            duration(row["delay"] or None),
        )
        for row in rows
    )
    show(options, rows, table(("SOURCE", ">REFUSED FOR", ">DELAY"), cells))
    return code


def explain(options: argparse.Namespace) -> int:
    """Which rule of the policy in force decides a request."""
    asked = asked_by(options)
    arguments: dict[str, Any] = {
        "command": asked.command,
        "host": str(asked.destination.host),
        "port": asked.destination.port,
        "user": asked.user,
        "method": int(asked.method),
        "listener": asked.listener,
        "from": str(asked.source),
    }
    facts = anybody(options, "explain", **arguments).ok
    show(options, [facts], _explain_lines(facts))
    return 0 if facts["allowed"] else 1


def _explain_lines(facts: Row) -> Iterator[str]:
    yield facts["question"]
    yield from told(facts)
    for note in facts["notes"]:
        yield f"note: {note}"


def events(options: argparse.Namespace) -> int:
    """What happens, from now on, in all workers."""
    clients = []
    try:
        for path in worker_paths(options.socket).values():
            try:
                clients.append(ControlClient(path))
            except ControlError as error:
                if not error.is_absent:
                    raise
                absent = error
        if not clients:
            raise absent
        _follow(options, clients)
    finally:
        for client in clients:
            client.close()
    return fail("the server has ended")


def _follow(options: argparse.Namespace, clients: Sequence[ControlClient]) -> None:
    """Print what happens in each of the workers until all have ended."""
    rows: gevent.queue.Queue[Row | ControlError] = gevent.queue.Queue(100)

    def listen(client: ControlClient) -> None:
        try:
            for row in client.follow(
                "events",
                patience=inf,
                event=options.event,
                level=options.level,
                user=options.user,
                session=options.session,
            ):
                rows.put(row)
        except ControlError as error:
            rows.put(error)

    listening = [gevent.spawn(listen, client) for client in clients]
    try:
        left = len(listening)
        while left:
            row = rows.get()
            if isinstance(row, ControlError):
                if not row.has_hung_up:
                    raise row
                left -= 1
            else:
                print(json.dumps(row) if options.json else _event_line(row), flush=True)
    finally:
        gevent.killall(listening)


def _event_line(row: Row) -> str:
    facts = dict(row)
    when, level = facts.pop("time", time.time()), facts.pop("level", "warning")
    if not facts.get("worker"):
        facts.pop("worker", None)
    record = logging.makeLogRecord(
        {
            "created": when,
            "levelno": logging.getLevelNamesMapping()[level.upper()],
            "levelname": level.upper(),
            "msg": facts.pop("event"),
            "facts": facts,
        }
    )
    return TextLines().format(record)


# --- changing ---------------------------------------------------------------------------------


def kill(options: argparse.Namespace) -> int:
    """End sessions."""
    given = (bool(options.sessions), options.user is not None, options.source is not None)
    if not any(given):
        options.parser.error("kill whom? give session ids, --user or --from")
    answers, code = everybody(
        options,
        "kill",
        sessions=options.sessions or None,
        user=options.user,
        **{"from": options.source},
    )
    killed = sum(answer.ok["killed"] for answer in answers.values())
    gone = {row["session"] for row in rows_of(answers) if row["killed"]}
    missing = [number for number in options.sessions if number not in gone]
    if options.json:
        print(json.dumps({"killed": killed, "missing": missing}))
    else:
        print(f"{killed} session{'' if killed == 1 else 's'} ended")
        for number in missing:
            fail(f"there is no session {number}" + (" of those" if any(given[1:]) else ""))
    return 1 if missing else code


def pardon(options: argparse.Namespace) -> int:
    """Forget what a source has failed."""
    answers, code = everybody(options, "pardon", source=options.source)
    found = [answer.ok for answer in answers.values()]
    source, pardoned = found[0]["source"], any(row["pardoned"] for row in found)
    if options.json:
        print(json.dumps({"source": source, "pardoned": pardoned}))
    elif pardoned:
        print(f"{source} is pardoned")
    if not pardoned:
        return fail(f"{source} has no penalty")
    return code


def reload(options: argparse.Namespace) -> int:
    """Have the settings read anew."""
    ok = anybody(options, "reload", patience=RELOAD_PATIENCE).ok
    show(options, [ok], iter((f"reloaded: {ok['reloaded']}",)))
    return 0


def drain(options: argparse.Namespace) -> int:
    """Have the server accept no more, and end with its last session."""
    answers, _ = everybody(options, "status")
    number = sum(answer.ok["sessions"] for answer in answers.values())
    ok = anybody(options, "drain").ok | {"sessions": number}
    again = "; it drained already, so it ends now" if ok["again"] else ""
    show(options, [ok], iter((f"draining: {number} sessions go on{again}",)))
    return 0


def log_level(options: argparse.Namespace) -> int:
    """Have more logged, or less."""
    answers, code = everybody(options, "log-level", level=options.level)
    found = [answer.ok for answer in answers.values()]
    show(options, found[:1], iter((f"log level {options.level}, was {found[0]['before']}",)))
    return code


def top(options: argparse.Namespace) -> int:
    """A live table."""
    if importlib.util.find_spec("rich") is None:
        return fail("top needs the package rich: pip install 'geosocks[top]'")
    from geosocks.cli.top import run

    return run(options)


# --- the command line -------------------------------------------------------------------------


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
