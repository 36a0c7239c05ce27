"""The control socket: where ``geosocks ctl`` asks a running server, and tells it what to do.

A UNIX socket in the server's own hub.  Who connects is known by the kernel's word; what they may
say stands in ``verbs``, how it is said in ``geosocks.control_client``.
"""

import errno
import json
import os
import socket as stdlib_socket  # constants
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

import gevent
import gevent.socket

from geosocks.control.arguments import Arguments, BadRequest, nearest
from geosocks.control.desk import Call, Desk, Work
from geosocks.control.peers import Peer, peer_of
from geosocks.control.verbs import VERBS
from geosocks.control_client import MAX_REQUEST, Lines, LineTooLong, encode
from geosocks.events import ControlCrashed, ControlRefused
from geosocks.listening import OWNER_ONLY, Listen, Opened, open_listener
from geosocks.rows import Row
from geosocks.server import Server
from geosocks.stream import Connection, deadline, finish

__all__ = ["Control", "prepare_directory", "start_control"]

MOST: Final = 8
"""Connections at a time; one more is told so and closed."""

IDLE: Final = 60.0
"""Seconds for the next request to be whole."""

PATIENCE: Final = 30.0
"""Seconds for a request to be done, those that follow events apart."""

SENDING: Final = 10.0
"""Seconds for the other end to take what is sent to it."""

BATCH: Final = 32 * 1024
"""Octets of an answer that are sent at a time."""

PAUSE: Final = 0.1
"""Seconds without accepting once there are no descriptors."""


def start_control(
    server: Server,
    path: str,
    *,
    version: str,
    mode: int = OWNER_ONLY,
    worker: int = 0,
    workers: int = 1,
    reload: Callable[[], None] | None = None,
    drain: Callable[[], None] | None = None,
) -> "Control":
    """Let ``server`` be asked at ``path``, from the hub of this thread; returns at once.

    ``mode`` are the permissions of the socket's file.  Root and the user of this process may ask,
    and who is in the file's group where ``mode`` lets a group write.  ``worker`` is our number out
    of ``workers``; ``path`` is its own, by ``control_client.worker_path``.  ``reload`` and
    ``drain`` do what HUP and TERM do; they return at once.  ``reload`` may raise ConfigError.

    Raises:
        OSError: it cannot be listened on; EADDRINUSE when another server has its socket there.
    """
    prepare_directory(path, mode)
    opened = open_listener(Listen(path, mode=mode), ())
    return Control(opened, Desk(server, version, worker, workers, reload, drain))


def prepare_directory(path: str, mode: int, owner: tuple[int, int] | None = None) -> None:
    """Make the directory that a control socket at ``path`` is to be in, where there is none.

    It is for its owner only, or for the group, too, where the socket's ``mode`` lets that in.
    ``owner`` is the user and group to give it to, for a process that is root and will not stay so.

    Raises:
        OSError: it cannot be made.
    """
    directory = Path(path).parent
    directory.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700)
        if mode & 0o070:
            directory.chmod(0o750)
        if owner is not None:
            os.chown(directory, *owner)


class Control:
    """A control socket.  ``path`` is where it is; ``close`` ends it and all who are connected."""

    def __init__(self, opened: Opened, desk: Desk) -> None:
        self.path = str(opened.address)
        self._opened = opened
        self._listening = gevent.socket.socket(fileno=opened.sock.detach())
        found = os.lstat(self.path)
        self._group = found.st_gid if found.st_mode & 0o020 else None
        self._desk = desk
        self._emit = desk.server.emit
        self._emit.add(desk.clock)
        self._talking = 0
        self._guests: set[gevent.Greenlet[..., None]] = set()
        self._accepting: gevent.Greenlet[..., None] | None = gevent.spawn(self._accept)

    def close(self) -> None:
        """Hang up on everybody; remove the file if it is still this one.  May be called again."""
        if self._accepting is None:
            return
        self._accepting.kill()
        self._accepting = None
        gevent.killall(list(self._guests))
        self._emit.remove(self._desk.clock)
        self._listening.close()
        self._opened.close()

    def tell_lately(self, lately: Callable[[], Row]) -> None:
        """Let other workers ask what happened ``lately``."""
        self._desk.lately = lately

    # --- connections --------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError as error:
                if error.errno == errno.EBADF:
                    return
                gevent.sleep(PAUSE)  # no descriptors; or the one who came has gone
                continue
            guest = gevent.Greenlet(self._receive, sock)
            self._guests.add(guest)
            guest.link(self._guests.discard)
            guest.start()

    def _receive(self, sock: gevent.socket.socket) -> None:
        """Serve one connection; in its own greenlet.  Raises nothing."""
        stream = Connection.take(sock)
        try:
            peer = peer_of(stream.sock)
            why_not = self._why_not(peer)
            if why_not is not None:
                self._emit(ControlRefused(peer.uid, peer.pid, why_not))
                _say_no(stream, why_not)
                return
            self._talking += 1
            try:
                self._converse(stream, peer)
            finally:
                self._talking -= 1
        except OSError:
            pass  # it has gone, or does not take what it asked for
        finally:
            stream.close()

    def _why_not(self, peer: Peer) -> str | None:
        if not peer.may_ask(os.geteuid(), self._group):
            return f"user {peer.uid} may not ask this server: its own user and root may"
        if self._talking >= MOST:
            return f"{MOST} others are connected, which is as many as there may be"
        return None

    def _converse(self, stream: Connection, peer: Peer) -> None:
        """Answer one request after another, until there are no more or one is no request."""
        lines = Lines(stream, MAX_REQUEST)
        while True:
            try:
                with deadline(IDLE, TimeoutError()):
                    line = lines.read()
            except LineTooLong as error:
                _say_no(stream, str(error))
                return
            if line is None:
                return
            pending = bytearray()
            with closing(self._answers(line, peer)) as answers:
                for message in answers:
                    if message is not None:
                        pending += message
                    elif not pending and _has_hung_up(stream):
                        return
                    if message is None or len(pending) >= BATCH:
                        _send(stream, pending)
            _send(stream, pending)

    # --- requests -----------------------------------------------------------------------------

    def _answers(self, line: bytes, peer: Peer) -> Generator[bytes | None]:
        """The lines that answer the request ``line``; None: send those so far."""
        try:
            verb, arguments = _read(line)
            with closing(VERBS[verb](Call(self._desk, peer, arguments))) as work:
                yield from _messages(work)
        except BadRequest as error:
            yield encode({"error": str(error)})
        except OSError:
            raise
        except Exception as fault:
            self._emit(ControlCrashed(repr(fault), traceback.format_exc()))
            yield encode({"error": "a fault in the server; its log tells more"})


def _messages(work: Work) -> Iterator[bytes | None]:
    """What a verb has to say, each part within ``PATIENCE``."""
    while True:
        try:
            with deadline(PATIENCE, BadRequest(f"not done within {PATIENCE:g} s")):
                row = next(work)
        except StopIteration as end:
            yield encode({"ok": end.value})
            return
        yield None if row is None else encode({"row": row})


def _read(line: bytes) -> tuple[str, Arguments]:
    """A request's verb and arguments.

    Raises:
        BadRequest: it is none.
    """
    try:
        given: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise BadRequest("a request is a JSON object in one line") from None
    if not isinstance(given, dict):
        raise BadRequest("a request is a JSON object in one line")
    verb = given.pop("do", None)
    if not isinstance(verb, str) or verb not in VERBS:
        known = ", ".join(VERBS)
        close = nearest(verb, VERBS) if isinstance(verb, str) else ""
        raise BadRequest(f"there is no verb {verb!a:.60}; there are {known}{close}")
    return verb, Arguments(given)


def _send(stream: Connection, pending: bytearray) -> None:
    """Send what is ``pending``, which is then empty.

    Raises:
        OSError: the other end has gone, or takes nothing.
    """
    with deadline(SENDING, TimeoutError()):
        stream.sendall(bytes(pending))
    pending.clear()


def _say_no(stream: Connection, why: str) -> None:
    """The last words to somebody, who may not have finished theirs."""
    _send(stream, bytearray(encode({"error": why})))
    finish(stream, 1.0)


def _has_hung_up(stream: Connection) -> bool:
    try:
        return stream.sock.recv(1, stdlib_socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
