"""Asking the workers of a server, and showing what they answer."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from geosocks.control_client import (
    PATIENCE,
    Answer,
    ControlError,
    Row,
    ask,
    ask_workers,
    worker_paths,
)


def fail(what: str) -> int:
    """Complain; the exit code."""
    print(f"geosocks ctl: {what}", file=sys.stderr)
    return 1


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
