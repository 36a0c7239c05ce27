"""The verb that follows what happens: events."""

import argparse
import json
import logging
import time
from collections.abc import Sequence
from math import inf

import gevent
import gevent.queue

from geosocks.cli.ctl.asking import fail
from geosocks.control_client import ControlClient, ControlError, Row, worker_paths
from geosocks.logs import TextLines


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
