"""Clients by the thousand: how long good ones wait, and short sessions that end in every way."""

import json
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Final

import gevent
import gevent.socket

from geosocks.codes import Cmd
from tests.support.net import recv_all, recv_exactly, reset, serving
from tests.support.proxy import ROOT, Proxy, environment
from tests.support.servers import read_reply, request

OFFER: Final = b"\x05\x01\x00"
OCTETS: Final = random.Random(1928).randbytes(1 << 16)


def percentile(values: list[float], part: float) -> float:
    """The value below which ``part`` (0 to 1) of them lie."""
    assert values
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


# --- good clients -----------------------------------------------------------------------------


def one_session(proxy: Proxy | None, to: tuple[str, int]) -> None:
    """A good client: connects, through ``proxy`` if any, says something and hears it again."""
    sock = gevent.socket.socket()
    with sock:
        sock.connect(proxy.address if proxy else to)
        head = OFFER + request(Cmd.CONNECT, *to) if proxy else b""
        sock.sendall(head + b"E" + OCTETS[:100])
        if proxy:
            assert recv_exactly(sock, 2) == b"\x05\x00"
            assert read_reply(sock).rep == 0
        assert recv_exactly(sock, 100) == OCTETS[:100]


@contextmanager
def good_clients(
    proxy: Proxy | None, *targets: tuple[str, int], each_second: int = 200
) -> Iterator[list[float]]:
    """Meanwhile, good clients come at a steady rate; gives what each waited, in seconds.

    They come whether or not those before them were served, and their wait counts from when they
    were due: a server that stalls makes all of them wait who come in that time.  Those who come
    without a proxy wait for nothing but the machine.
    """
    waits: list[float] = []
    clients: list[gevent.Greenlet[..., None]] = []

    def visit(due: float, to: tuple[str, int]) -> None:
        one_session(proxy, to)
        waits.append(time.monotonic() - due)

    def come() -> None:
        began = time.monotonic()
        for number in count():
            due = began + number / each_second
            gevent.sleep(max(0.0, due - time.monotonic()))
            clients.append(gevent.spawn(visit, due, targets[number % len(targets)]))

    coming = gevent.spawn(come)
    try:
        yield waits
    finally:
        coming.kill()
        gevent.joinall(clients, timeout=5.0)
    assert len(waits) == len(clients), [client.exception for client in clients if client.exception]


# --- half-open ones ---------------------------------------------------------------------------


@contextmanager
def trickling(
    proxy: Proxy, clients: int, seconds: float, within: float = 1.0
) -> Iterator[dict[str, float]]:
    """Meanwhile, ``clients`` send an octet a second; ends when all are cut, or after ``seconds``.

    They come one by one ``within`` a second, and the block is entered once all are there.  What it
    is given says after its end how many were ``cut``, and the ``shortest`` and the ``longest`` life
    in seconds.
    """
    fate: dict[str, float] = {}
    command = (sys.executable, "-m", "tests.support.trickle", proxy.port, clients, seconds, within)
    with tempfile.NamedTemporaryFile() as told:
        process = subprocess.Popen(
            list(map(str, command)), cwd=ROOT, env=environment(), stdout=told
        )

        def line(number: int) -> str:
            while len(lines := Path(told.name).read_text().split("\n")) <= number:
                assert process.poll() in (None, 0)
                gevent.sleep(0.01)
            return lines[number - 1]

        try:
            assert line(1) == "open"
            yield fate
            fate.update(json.loads(line(2)))
        finally:
            process.kill()
            process.wait()


# --- short sessions of every ending -----------------------------------------------------------


def _obey(sock: gevent.socket.socket, _: object) -> None:
    """A target that does as the first octet says."""
    with suppress(OSError), sock:
        match sock.recv(1):
            case b"E":  # echo, and end when the client ends
                while data := sock.recv(65536):
                    sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
            case b"F":  # say something and end first
                sock.sendall(OCTETS[:5000])
                sock.shutdown(socket.SHUT_WR)
                recv_all(sock)
            case b"R":  # say something, hear something, reset
                sock.sendall(OCTETS[:5000])
                recv_exactly(sock, 100)
                reset(sock)
            case b"A":  # reset at once
                reset(sock)


@contextmanager
def obedient_target() -> Iterator[tuple[str, int]]:
    """A target for ``churn`` and ``good_clients``; gives its address."""
    with serving(_obey) as address:
        yield address


@dataclass
class Tally:
    """How many sessions ended in which way, and every surprise."""

    ended: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def churn(
    proxy: Proxy, target: tuple[str, int], sessions: int, *, clients: int = 16, seed: int = 1
) -> Tally:
    """Run short sessions, each ending in another way, ``clients`` at a time."""
    tally = Tally()
    chance = random.Random(seed)
    numbers = iter(range(sessions))

    def client() -> None:
        for number in numbers:
            name, way = ENDINGS[number % len(ENDINGS)]
            sock = gevent.socket.socket()
            try:
                with gevent.Timeout(10.0), sock:
                    sock.connect(proxy.address)
                    way(sock, target, chance)
            except (AssertionError, OSError, gevent.Timeout) as error:
                tally.wrong.append(f"session {number}, {name}: {error!r}")
            tally.ended[name] += 1

    gevent.joinall([gevent.spawn(client) for _ in range(clients)], raise_error=True)
    return tally


Ending = Callable[[gevent.socket.socket, tuple[str, int], random.Random], None]


def _begin(sock: gevent.socket.socket, to: tuple[str, int], order: bytes) -> None:
    sock.sendall(OFFER + request(Cmd.CONNECT, *to) + order)
    assert recv_exactly(sock, 2) == b"\x05\x00"
    assert read_reply(sock).rep == 0


def _client_ends_first(
    sock: gevent.socket.socket, to: tuple[str, int], chance: random.Random
) -> None:
    start, size = chance.randrange(5000), chance.randrange(50_000)
    octets = OCTETS[start : start + size]
    _begin(sock, to, b"E")
    sock.sendall(octets)
    sock.shutdown(socket.SHUT_WR)
    assert recv_all(sock) == octets


def _target_ends_first(
    sock: gevent.socket.socket, to: tuple[str, int], chance: random.Random
) -> None:
    _begin(sock, to, b"F")
    assert recv_all(sock) == OCTETS[:5000]
    sock.sendall(b"still heard")


def _client_resets(sock: gevent.socket.socket, to: tuple[str, int], chance: random.Random) -> None:
    _begin(sock, to, b"E")
    sock.sendall(OCTETS[: chance.randrange(1, 20_000)])
    assert recv_exactly(sock, 1) == OCTETS[:1]
    reset(sock)


def _target_resets(sock: gevent.socket.socket, to: tuple[str, int], chance: random.Random) -> None:
    _begin(sock, to, b"R")
    assert recv_exactly(sock, 5000) == OCTETS[:5000]
    sock.sendall(OCTETS[:100])
    _is_reset(sock)


def _target_resets_at_once(
    sock: gevent.socket.socket, to: tuple[str, int], chance: random.Random
) -> None:
    _begin(sock, to, b"A")
    _is_reset(sock)


def _is_reset(sock: gevent.socket.socket) -> None:
    try:
        data = sock.recv(1)
    except ConnectionResetError:
        return
    raise AssertionError(f"read {data!r} where a reset was to be passed on")


def _client_leaves(how: Callable[[gevent.socket.socket], None], cut: int) -> Ending:
    def leave(sock: gevent.socket.socket, to: tuple[str, int], chance: random.Random) -> None:
        sock.sendall((OFFER + request(Cmd.CONNECT, *to))[:cut])
        if cut >= len(OFFER) and chance.random() < 0.5:
            assert recv_exactly(sock, 2) == b"\x05\x00"
        how(sock)

    return leave


LEAVING: Final[dict[str, Ending]] = {
    f"client {verb} after {cut} octets": _client_leaves(how, cut)
    for cut in range(len(OFFER) + 11)
    for verb, how in (("leaves", gevent.socket.socket.close), ("resets", reset))
}
"""In the middle of the handshake's 13 octets, or just behind them."""

RELAYED: Final[dict[str, Ending]] = {
    "client ends first": _client_ends_first,
    "target ends first": _target_ends_first,
    "client resets": _client_resets,
    "target resets": _target_resets,
    "target resets at once": _target_resets_at_once,
}

ENDINGS: Final = [*LEAVING.items(), *(RELAYED.items()), *(RELAYED.items()), *(RELAYED.items())]
"""Every way of a short session to end; about a third of them have been relayed."""
