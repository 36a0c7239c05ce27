"""The verbs that look: status, sessions, users, limits, penalties, explain."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from geosocks.cli.ctl.asking import anybody, everybody, rows_of, show
from geosocks.cli.explain import asked_by
from geosocks.cli.tables import duration, octets, table
from geosocks.control_client import Row
from geosocks.explaining import told

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
