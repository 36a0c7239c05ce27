"""The control socket's line protocol, and the end that asks: ``geosocks ctl``, and other workers.

One JSON object a line, in UTF-8.  A request says what to ``do``, and its arguments::

    {"do": "sessions", "user": "alice"}

It is answered by any number of rows, each ``{"row": {...}}``, and one line that ends the answer:
``{"ok": {...}}`` or ``{"error": "why not"}``.  Then the next request may come.

Knows no server.  Each worker has a socket of its own: worker 0 the path that was asked for, worker
N that path with ``.N`` behind it.
"""

import glob
import json
import os
import socket as stdlib_socket  # constants
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, Final, Self

import gevent
import gevent.socket

from geosocks.errors import GeosocksError
from geosocks.stream import Stream

MAX_REQUEST: Final = 16 * 1024
"""Octets that a request may have, its line's end included."""

MAX_ANSWER: Final = 1024 * 1024
"""Octets that one line of an answer may have."""

PATIENCE: Final = 10.0
"""Seconds for an answer's next line."""

SYSTEM_PATH: Final = "/run/geosocks/control.sock"
NAME: Final = "control.sock"

LEVELS: Final = ("debug", "info", "warning", "error")
"""Weights of events, as a request names them."""

Row = dict[str, Any]


class ControlError(GeosocksError):
    """A control socket gave no answer, or one that says no; ``str()`` is a line for a person."""

    is_absent = False
    """Nobody listens there: no such server, or a worker that has ended."""

    has_hung_up = False
    """The server closed the connection, most likely at its end."""


class LineTooLong(GeosocksError):
    """A line has more octets than anybody has to say."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a request: ``rows``, and what there is to say of the whole."""

    rows: list[Row]
    ok: Row


# --- where it is ------------------------------------------------------------------------------


def default_path(environ: Mapping[str, str], uid: int) -> str | None:
    """Where a server run by ``uid`` has its control socket if not told; None for nowhere.

    In the directory that systemd made for it (systemd.exec(5), RuntimeDirectory=); for root in
    /run; for others in the directory that pam_systemd(8) or the like made for the user.
    """
    of_the_unit = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if of_the_unit:
        return f"{of_the_unit}/{NAME}"
    if uid == 0:
        return SYSTEM_PATH
    of_the_user = environ.get("XDG_RUNTIME_DIR", "")
    return f"{of_the_user}/geosocks/{NAME}" if of_the_user else None


def likely_path(environ: Mapping[str, str], uid: int) -> str:
    """Where to look for a server: the user's own, if it is there, or else the system's."""
    own = default_path(environ, uid)
    return own if own is not None and os.path.exists(own) else SYSTEM_PATH


def worker_path(path: str, worker: int) -> str:
    """The control socket of a worker."""
    return path if worker == 0 else f"{path}.{worker}"


def worker_paths(path: str) -> dict[int, str]:
    """The control sockets that are there by worker; that of worker 0 in any case."""
    found = {0: path}
    for other in glob.glob(glob.escape(path) + ".*"):
        number = other.removeprefix(path + ".")
        if number.isascii() and number.isdecimal() and number[0] != "0":
            found[int(number)] = other
    return dict(sorted(found.items()))


# --- lines ------------------------------------------------------------------------------------


class Lines:
    """The lines of a stream, of at most ``most`` octets each."""

    def __init__(self, stream: Stream, most: int) -> None:
        self._stream = stream
        self._most = most
        self._rest = bytearray()

    def read(self) -> bytes | None:
        """The next line without its end; None once there are no more.

        Raises:
            LineTooLong: it has more than ``most`` octets.
            OSError: as recv(2).
        """
        seen = 0
        while True:
            end = self._rest.find(b"\n", seen)
            if end >= self._most or (end < 0 and len(self._rest) >= self._most):
                raise LineTooLong(f"a line has more than {self._most} octets")
            if end >= 0:
                line = bytes(self._rest[:end])
                del self._rest[: end + 1]
                return line
            seen = len(self._rest)
            more = self._stream.recv(65536)
            if not more:
                return None
            self._rest += more


def encode(message: Row) -> bytes:
    """A message's line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


# --- asking -----------------------------------------------------------------------------------


class ControlClient:
    """A connection to one worker's control socket, for one request after another.

    Needs a gevent hub, and waits in it.
    """

    def __init__(self, path: str, patience: float = PATIENCE) -> None:
        """Connect.

        Raises:
            ControlError: nobody is there, or we are not let in.
        """
        self.path = path
        self.patience = patience
        self._sock = gevent.socket.socket(stdlib_socket.AF_UNIX, stdlib_socket.SOCK_STREAM)
        self._lines = Lines(self._sock, MAX_ANSWER)
        try:
            with gevent.Timeout(patience, TimeoutError(f"no answer within {patience:g} s")):
                self._sock.connect(path)
        except OSError as error:
            self._sock.close()
            raise _not_connected(path, error) from error

    def ask(self, do: str, /, **arguments: Any) -> Answer:
        """What it answers to ``do``.

        Raises:
            ControlError: it refuses, or does not answer.
        """
        rows: list[Row] = []
        asked = self.follow(do, **arguments)
        while True:
            try:
                rows.append(next(asked))
            except StopIteration as end:
                return Answer(rows, end.value)

    def follow(
        self, do: str, /, *, patience: float | None = None, **arguments: Any
    ) -> Generator[Row, None, Row]:
        """Each row of the answer to ``do`` as it comes; the generator returns what is ``ok``.

        ``patience`` is how many seconds the next one may take, in place of the client's own;
        ``math.inf`` for any.

        Raises:
            ControlError: it refuses, or does not answer.
        """
        patience = self.patience if patience is None else patience
        given = {name: value for name, value in arguments.items() if value is not None}
        line = encode({"do": do} | given)
        if len(line) > MAX_REQUEST:
            raise ControlError(f"the request has more than {MAX_REQUEST} octets")
        try:
            self._sock.sendall(line)
        except BrokenPipeError:
            pass  # it has said why, and closed
        except OSError as error:
            raise ControlError(f"{self.path}: {error.strerror or error}") from error
        while True:
            answer = self._read(patience)
            match answer:
                case {"row": dict(row)}:
                    yield row
                case {"ok": dict(ok)}:
                    return ok
                case {"error": str(why)}:
                    raise ControlError(why)
                case _:
                    raise ControlError(f"{self.path}: that is no answer of geosocks")

    def _read(self, patience: float) -> object:
        late = TimeoutError(f"no answer within {patience:g} s")
        try:
            with gevent.Timeout(None if patience == inf else patience, late):
                line = self._lines.read()
        except ConnectionResetError:
            line = None
        except OSError as error:
            raise ControlError(f"{self.path}: {error.strerror or error}") from error
        except LineTooLong as error:
            raise ControlError(f"{self.path}: {error}") from error
        if line is None:
            hung_up = ControlError(f"{self.path}: the server has closed the connection")
            hung_up.has_hung_up = True
            raise hung_up
        try:
            return json.loads(line)
        except ValueError as error:
            raise ControlError(f"{self.path}: that is no answer of geosocks") from error

    def close(self) -> None:
        """Hang up; may be called again."""
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ask(path: str, do: str, /, *, patience: float = PATIENCE, **arguments: Any) -> Answer:
    """Ask one worker, at the path of its own socket, one thing.

    Raises:
        ControlError: it refuses, or does not answer.
    """
    with ControlClient(path, patience) as client:
        return client.ask(do, **arguments)


def ask_workers(
    path: str,
    do: str,
    /,
    *,
    besides: int | None = None,
    patience: float = PATIENCE,
    **arguments: Any,
) -> dict[int, Answer | ControlError]:
    """Ask all workers of a server at once; what each answers, by its number.

    ``path`` is that of worker 0.  ``besides`` is a worker not to ask: the one that asks the others.
    """

    def one(worker: str) -> Answer | ControlError:
        try:
            return ask(worker, do, patience=patience, **arguments)
        except ControlError as error:
            return error

    paths = {number: place for number, place in worker_paths(path).items() if number != besides}
    asked = {number: gevent.spawn(one, place) for number, place in paths.items()}
    try:
        gevent.joinall(list(asked.values()))
        return {number: greenlet.get() for number, greenlet in asked.items()}
    finally:
        gevent.killall(list(asked.values()))


def _not_connected(path: str, error: OSError) -> ControlError:
    match error:
        case FileNotFoundError() | ConnectionRefusedError():
            absent = ControlError(f"no server runs that has its control socket at {path}")
            absent.is_absent = True
            return absent
        case PermissionError():
            why = "permission denied; it is for the server's own user and root"
        case BlockingIOError() | TimeoutError():
            why = "the server does not answer"
        case _:
            why = str(error.strerror or error)
    return ControlError(f"{path}: {why}")


def rows_of(answers: Mapping[int, Answer | ControlError]) -> Iterator[Row]:
    """The rows of all workers that answered."""
    for answer in answers.values():
        if isinstance(answer, Answer):
            yield from answer.rows
