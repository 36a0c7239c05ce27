"""``geosocks connect``: standard input and output through a proxy, for ssh's ProxyCommand.

The ends are kept apart as far as they go: the end of standard input half-closes the connection,
and the target's end closes standard output.
"""

import argparse
import os
import select
import signal
import stat
import sys
from _socket import SHUT_RD, SHUT_WR
from _socket import socket as RawSocket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, NoReturn, TypeVar, cast

import gevent
from gevent.hub import get_hub
from gevent.threadpool import ThreadPool

from geosocks.auth import Credential
from geosocks.auth.private import load_credential
from geosocks.client import Client, without_password
from geosocks.errors import ConfigError, GeosocksError
from geosocks.stream import Stream, deadline

T = TypeVar("T")

PASSWORD: Final = "GEOSOCKS_PROXY_PASSWORD"
"""Environment variable for the password, so that it need not stand in a process list."""

STDIN, STDOUT, STDERR = 0, 1, 2

CHUNK: Final = 1 << 18
"""Octets of the largest read."""

LINGER: Final = 2.0
"""Seconds of silence on standard input after which we end, once the target has.

A target may end its way first and still read, so what comes is passed on; but whether it reads or
has gone the proxy cannot say, and who waits for us to end may never close our standard input.
"""


def main(argv: Sequence[str]) -> int:
    """Run ``geosocks connect``; the exit code: 0 both ways ended, 1 failed, 2 not understood."""
    options = _parser().parse_args(argv)
    _open_missing()
    with dying_of_interrupt():
        return _connect(options)


def _connect(options: argparse.Namespace) -> int:
    try:
        client = Client.from_url(
            options.url,
            password=os.environ.get(PASSWORD),
            timeout=options.timeout,
            credentials=options.credential,
        )
        stream = client.connect((options.host, options.port))
    except (ConfigError, ValueError) as error:
        return _complain(str(error), 2)
    except (GeosocksError, OSError) as error:
        return _complain(f"{client.server}: {words_of(error)}", 1)
    try:
        # Whoever read our output and has gone wants to hear no more, not even why.
        return 0 if relay(stream, STDIN, STDOUT) else 1
    except (GeosocksError, OSError) as error:
        return _complain(words_of(error), 1)
    finally:
        stream.close()


def _parser() -> "UrlParser":
    parser = UrlParser(
        prog="geosocks connect",
        description="Connect standard input and output to HOST:PORT through a SOCKS5 proxy.",
        epilog="For ssh: -o ProxyCommand='geosocks connect socks5://proxy %h %p'.  The password "
        f"may stand in {PASSWORD}, or in a file: ?password-file=F.",
    )
    parser.add_argument("host", metavar="HOST", type=_host, help="resolved by the proxy")
    parser.add_argument("port", metavar="PORT", type=_port, help="1 to 65535")
    parser.add_timeout(30.0, "seconds until the connection must stand")
    return parser


def _credential(text: str) -> Credential:
    try:
        return load_credential(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


class UrlParser(argparse.ArgumentParser):
    """Takes a proxy URL, and never quotes its password."""

    def __init__(self, prog: str, description: str, epilog: str) -> None:
        super().__init__(prog, description=description, epilog=epilog, allow_abbrev=False)
        self.add_argument(
            "url",
            metavar="URL",
            help="socks5://[user[:password]@]host[:port][?auth=gssapi&service=rcmd&"
            "level=confidentiality&password-file=F], socks5+tls://...[&ca=F&cert=F&key=F], or "
            "socks4a:// (socks4:// to look names up here) with [user@]host[:port]",
        )
        self.add_argument(
            "--credential",
            action="append",
            default=[],
            type=_credential,
            metavar="MODULE:NAME",
            help="a private method's client half, by import path, to offer in place of what the "
            "URL says; may be given again",
        )

    def add_timeout(self, seconds: float, meaning: str) -> None:
        """Take ``--timeout``, by default ``seconds``."""
        self.add_argument(
            "--timeout",
            type=_seconds,
            default=seconds,
            metavar="S",
            help=f"{meaning} (default {seconds:g})",
        )

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and exit with 2."""
        super().error(without_password(message))


def _host(text: str) -> str:
    host = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not host:
        raise argparse.ArgumentTypeError("is empty")
    return host


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= 0xFFFF):
        raise argparse.ArgumentTypeError(f"{text!a} is no port from 1 to 65535")
    return int(text)


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 < (seconds := float(text)) < 1e9:
            return seconds
    raise argparse.ArgumentTypeError(f"{text!a} is not a number of seconds above 0")


def _complain(what: str, code: int) -> int:
    print(f"geosocks connect: {what}", file=sys.stderr)
    return code


def words_of(error: Exception) -> str:
    """Write an error in one line; that of a system call without its number."""
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


@contextmanager
def dying_of_interrupt() -> Iterator[None]:
    """Let SIGINT end the process as it ends cat(1): gevent's hub would print a line first."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is not signal.default_int_handler:  # ignored, or somebody's who embeds us
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _open_missing() -> None:
    """Open what of 0, 1 and 2 we were started without, or a socket would get its number."""
    for descriptor in (STDIN, STDOUT, STDERR):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one


# --- both ways --------------------------------------------------------------------------------


def relay(stream: Stream, source: int, sink: int) -> bool:
    """Copy from ``source`` to ``stream``, and from it to ``sink``, until both ways have ended.

    False when nobody reads ``sink`` any more.

    ``source`` and ``sink`` may be pipes, sockets, terminals or files.  They are read and written in
    threads, as they are: a file is never ready for epoll(7), and O_NONBLOCK would be set for
    whoever shares the terminal with us, too.  ``sink`` is closed to its reader at the end of
    ``stream``; its number stays open.  The caller closes ``stream``.

    Raises:
        OSError, GeosocksError: a way broke before it had ended.
    """
    stopped, stop = os.pipe()
    threads = Threads()
    upward = Upward(stream, source, stopped, threads)
    try:
        for data in _received(stream, upward):
            if not threads.run(_write, sink, data):
                return False
        _end(sink)
        # What broke before the target's end may have cost us octets of it.
        if upward.failure is not None:
            raise upward.failure
        if not os.isatty(source):
            upward.linger()
        return True
    finally:
        upward.greenlet.kill()
        os.close(stop)
        threads.end()
        os.close(stopped)


def _received(stream: Stream, upward: "Upward") -> Iterator[bytes]:
    """All that comes of ``stream``."""
    interrupted = False
    while True:
        try:
            data = stream.recv(CHUNK)
        except OSError:
            if interrupted or upward.failure is None:
                raise
            # gevent tells a reader so when another greenlet shuts its socket; what had come until
            # then can still be read.
            interrupted = True
            continue
        if not data:
            return
        yield data


class Upward:
    """The way from a descriptor to a stream, in a greenlet of its own.

    ``stopped`` becomes readable when the wait for ``source`` is to end.
    """

    def __init__(self, stream: Stream, source: int, stopped: int, threads: "Threads") -> None:
        self.failure: Exception | None = None
        """Why it ended, unless at the end of ``source``."""

        self._stream = stream
        self._octets = 0
        self.greenlet = gevent.spawn(self._copy, source, stopped, threads)

    def linger(self) -> None:
        """Wait for its end, or until nothing has come for ``LINGER`` seconds."""
        octets = -1
        while self._octets > octets and not self.greenlet.ready():
            octets = self._octets
            self.greenlet.join(LINGER)

    def _copy(self, source: int, stopped: int, threads: "Threads") -> None:
        try:
            while data := threads.run(_read, source, stopped):
                self._stream.sendall(data)
                self._octets += len(data)
            self._stream.shutdown(SHUT_WR)
        except (OSError, GeosocksError) as error:
            self.failure = error
            with suppress(OSError):  # the other way ends once it has read what has come
                self._stream.shutdown(SHUT_RD)


class Threads:
    """Two threads, one to read in and one to write in."""

    def __init__(self) -> None:
        self._pool = ThreadPool(2, get_hub())

    def run(self, job: Callable[..., T], *args: object) -> T:
        """Run ``job(*args)`` in a thread, which may raise OSError."""
        outcome = self._pool.spawn(_outcome, job, *args).get()
        if isinstance(outcome, OSError):
            raise outcome
        return cast(T, outcome)

    def end(self) -> None:
        """End them; one that is stuck in a write (we were interrupted) ends with the process."""
        with suppress(TimeoutError), deadline(0.5, TimeoutError()):
            self._pool.kill()


def _outcome(job: Callable[..., T], *args: object) -> T | OSError:
    # An error is returned, since gevent prints what a job of a pool raises.
    try:
        return job(*args)
    except OSError as error:
        return error


def _read(source: int, stopped: int) -> bytes:
    """What ``source`` has, once it has something; b"" at its end, or when ``stopped``."""
    poll = select.poll()
    poll.register(source, select.POLLIN)
    poll.register(stopped, select.POLLIN)
    while True:
        ready = dict(poll.poll())
        if stopped in ready:
            return b""
        with suppress(BlockingIOError):  # somebody else had it, and made it non-blocking
            return os.read(source, CHUNK)


def _write(sink: int, data: bytes) -> bool:
    """Write all of ``data``; False when nobody reads it."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(sink, view) :]
        except BlockingIOError:  # made so by somebody who shares it
            poll = select.poll()
            poll.register(sink, select.POLLOUT)
            poll.poll()
        except BrokenPipeError:
            return False
    return True


def _end(sink: int) -> None:
    """Let the reader of ``sink`` see its end."""
    if stat.S_ISSOCK(os.fstat(sink).st_mode):
        # It may be standard input as well: closing this one of two descriptors would tell nobody.
        sock = RawSocket(fileno=os.dup(sink))
        with suppress(OSError):
            sock.shutdown(SHUT_WR)
        sock.close()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sink)
    os.close(null)
