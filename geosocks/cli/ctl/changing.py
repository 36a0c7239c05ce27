"""The verbs that change something: kill, pardon, reload, drain, log-level."""

import argparse
import json
from typing import Final

from geosocks.cli.ctl.asking import anybody, everybody, fail, rows_of, show

RELOAD_PATIENCE: Final = 30.0
"""Seconds for a reload: a large rules file, and users, are read."""


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
    goes = "session goes" if number == 1 else "sessions go"
    again = "; it drained already, so it ends now" if ok["again"] else ""
    show(options, [ok], iter((f"draining: {number} {goes} on{again}",)))
    return 0


def log_level(options: argparse.Namespace) -> int:
    """Have more logged, or less."""
    answers, code = everybody(options, "log-level", level=options.level)
    found = [answer.ok for answer in answers.values()]
    show(options, found[:1], iter((f"log level {options.level}, was {found[0]['before']}",)))
    return code
