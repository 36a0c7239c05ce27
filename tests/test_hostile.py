"""Clients that mean no good, and clients by the thousand: what they get, and what others notice.

The server is a process of its own here, measured from outside.  ``scripts/soak.py`` runs the same
with larger numbers.
"""

import random
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import gevent
import gevent.socket
import pytest

from geosocks.codes import Cmd
from tests.support.load import (
    ENDINGS,
    OCTETS,
    OFFER,
    churn,
    good_clients,
    obedient_target,
    percentile,
    trickling,
)
from tests.support.net import echo, recv_all, recv_exactly, serving
from tests.support.proxy import Proxy, running, users_file
from tests.support.servers import read_reply, request

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def target() -> Iterator[tuple[str, int]]:
    with serving(echo) as address:
        yield address


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, target: tuple[str, int]) -> Iterator[Proxy]:
    """A server whose clients can reach ``target`` and nothing else, and that asks no real DNS.

    One for all: whatever a test does to it, it has to serve the next.
    """
    folder = tmp_path_factory.mktemp("proxy")
    rules = folder / "rules"
    rules.write_text(f"allow to 127.0.0.1 port {target[1]}\n")
    with socket.socket(type=socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        dns = f"127.0.0.1:{nobody.getsockname()[1]}"
    with running(folder, "--rules", rules, "--dns-server", dns) as proxy:
        yield proxy


def answer(proxy: Proxy, *pieces: bytes, seconds: float = 5.0) -> bytes:
    """All that the server answers to ``pieces``, sent one by one, and no more behind them."""
    with proxy.dial() as sock, gevent.Timeout(seconds):
        for piece in pieces:
            sock.sendall(piece)
            gevent.sleep(0)
        sock.shutdown(socket.SHUT_WR)
        return recv_all(sock)


# --- how octets arrive ------------------------------------------------------------------------


def _without_bnd(octets: bytes, handshake: int) -> bytes:
    """An answer without the reply's BND.ADDR and BND.PORT, which nobody can foresee."""
    return octets[: handshake + 4] + octets[handshake + 10 :]


def test_octet_by_octet(proxy: Proxy, target: tuple[str, int]) -> None:
    octets = OFFER + request(Cmd.CONNECT, *target) + b"payload"
    got = answer(proxy, *(octets[i : i + 1] for i in range(len(octets))))
    assert _without_bnd(got, 2) == b"\x05\x00" + b"\x05\x00\x00\x01" + b"payload"


def test_all_in_one_segment(proxy: Proxy, target: tuple[str, int]) -> None:
    payload = OCTETS[:50_000]
    got = answer(proxy, OFFER + request(Cmd.CONNECT, *target) + payload)
    assert _without_bnd(got, 2) == b"\x05\x00" + b"\x05\x00\x00\x01" + payload


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_password_and_a_request_before_either_is_answered(
    tmp_path: Path, target: tuple[str, int], size: int
) -> None:
    login = b"\x01\x05alice\x06wonder"
    octets = b"\x05\x02\x00\x02" + login + request(Cmd.CONNECT, *target) + b"payload"
    with running(tmp_path, "--users", users_file(tmp_path, alice="wonder")) as proxy:
        got = answer(proxy, *(octets[i : i + size] for i in range(0, len(octets), size)))
        assert _without_bnd(got, 4) == b"\x05\x02" + b"\x01\x00" + b"\x05\x00\x00\x01" + b"payload"
        wrong = octets.replace(b"wonder", b"wander")
        got = answer(proxy, *(wrong[i : i + size] for i in range(0, len(wrong), size)))
        assert got[:3] == b"\x05\x02\x01"
        assert len(got) == 4
        assert got[3] != 0


# --- octets that no RFC allows ----------------------------------------------------------------

HTTP = b"HTTP/1.0 400 "
SOCKS4 = b"\x00"
"""The first octet of a reply of version 4, should noise begin with X'04'."""

TO_NOWHERE = b"\x01\x7f\x00\x00\x01\x00\x01"
REFUSED = bytes(6)
"""BND of a refusal: nothing."""


def _name(name: bytes) -> bytes:
    return b"\x03" + bytes((len(name),)) + name + b"\x00\x50"


ANSWERS = {
    "nothing": (b"", b""),
    "SOCKS 3": (b"\x03\x01\x00\x50\x7f\x00\x00\x01\x00", b""),
    "SOCKS 6": (b"\x06\x01\x00", b""),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b""),
    "HTTP": (b"GET / HTTP/1.1\r\nHost: here\r\n\r\n", HTTP),
    "HTTP CONNECT": (b"CONNECT example.org:443 HTTP/1.1\r\n\r\n", HTTP),
    "no methods": (b"\x05\x00", b"\x05\xff"),
    "a method we do not do": (b"\x05\x01\x80", b"\x05\xff"),
    "255 methods, not ours": (b"\x05\xff" + bytes(range(1, 256)), b"\x05\xff"),
    "255 methods, all ours": (b"\x05\xff" + bytes(255), b"\x05\x00"),
    "256 octets behind a refusal": (b"\x05\x01\x80" + bytes(256), b"\x05\xff"),
    "a password that nobody asked for": (OFFER + b"\x01\x01a\x01b", b"\x05\x00"),
    "request of version 4": (OFFER + b"\x04\x01\x00" + TO_NOWHERE, b"\x05\x00"),
    "unknown ATYP": (OFFER + b"\x05\x01\x00\x02", b"\x05\x00\x05\x08\x00\x01" + REFUSED),
    "ATYP 0": (OFFER + b"\x05\x01\x00\x00" + bytes(99), b"\x05\x00\x05\x08\x00\x01" + REFUSED),
    "ATYP 255": (OFFER + b"\x05\x01\x00\xff" + bytes(99), b"\x05\x00\x05\x08\x00\x01" + REFUSED),
    **{
        f"CMD {cmd}": (
            OFFER + bytes((5, cmd, 0)) + TO_NOWHERE,
            b"\x05\x00\x05\x07\x00\x01" + REFUSED,
        )
        for cmd in (0, 4, 0xF0, 0xF1, 0xFF)
    },
    "a name of no octets": (OFFER + b"\x05\x01\x00" + _name(b""), b"\x05\x00"),
    "a denied target": (
        OFFER + b"\x05\x01\x00" + TO_NOWHERE,
        b"\x05\x00\x05\x02\x00\x01" + REFUSED,
    ),
    "a denied target and more": (
        OFFER + b"\x05\x01\x00" + TO_NOWHERE + OCTETS[:60_000],
        b"\x05\x00\x05\x02\x00\x01" + REFUSED,
    ),
    "a request without its port": (OFFER + b"\x05\x01\x00\x01\x7f\x00\x00\x01", b"\x05\x00"),
}


@pytest.mark.parametrize("what", ANSWERS)
def test_octets_that_no_rfc_allows(proxy: Proxy, what: str) -> None:
    sent, expected = ANSWERS[what]
    got = answer(proxy, sent)
    assert got[: len(HTTP)] == HTTP if expected == HTTP else got == expected


NAMES = [
    b"n" * 255,
    b"127.0.0.1\x00.example.org",
    b"\x00",
    b"\x00" * 255,
    b"\xff" * 255,
    b".",
    b"..",
    b"a..b",
    b" ",
    b"%s%n",
    b"[::1]",
    b"::1%lo",
    b"localhost:80",
    b"http://localhost/",
    b"0x7f.1",
    b"2130706433",
    b"127.1",
    b"xn--" + b"a" * 60,
]


def test_names_that_are_none(proxy: Proxy) -> None:
    """Each is unreachable or denied: no odd spelling leads to what a rule names."""
    for name in NAMES:
        got = answer(proxy, OFFER + b"\x05\x01\x00" + _name(name), seconds=8.0)
        assert got[:3] == b"\x05\x00\x05", name
        assert got[3] in (2, 4), name
        assert got[4:] == b"\x00\x01" + REFUSED, name


def test_the_first_600_octets_are_anything(proxy: Proxy, target: tuple[str, int]) -> None:
    """Noise, and good handshakes with some octets changed, cut out or doubled."""
    proxy.wait_for(lambda: proxy.descriptors() < 20)
    before, chance = proxy.descriptors(), random.Random(1961)
    sessions = len(proxy.events("session_closed"))
    good = OFFER + request(Cmd.CONNECT, *target) + b"payload"
    cases = 1500

    def hostile() -> None:
        for _ in numbers:
            octets = _spoiled(good, chance) if chance.random() < 0.7 else _noise(chance)
            cut = chance.randrange(len(octets) + 1)
            try:
                got = answer(proxy, octets[:cut], octets[cut:])
            except OSError:
                continue  # it was cut before all of it was sent
            assert _is_possible(got), (octets, got)

    numbers = iter(range(cases))
    gevent.joinall([gevent.spawn(hostile) for _ in range(8)], raise_error=True)
    got = answer(proxy, good)
    assert got.endswith(b"payload"), "it serves no more"
    proxy.wait_for(lambda: proxy.descriptors() <= before, 2.0)
    proxy.wait_event("session_closed", sessions + cases + 1)


def _noise(chance: random.Random) -> bytes:
    start = chance.choice([b"", b"\x05", b"\x05\x01\x00", b"\x05\x01\x00\x05\x01\x00"])
    return start + chance.randbytes(chance.randrange(600))


def _spoiled(good: bytes, chance: random.Random) -> bytes:
    octets = bytearray(good)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(octets))
        match chance.randrange(4):
            case 0:
                octets[at] = chance.randrange(256)
            case 1:
                octets[at] ^= 1 << chance.randrange(8)
            case 2:
                del octets[at : at + chance.randrange(1, 5)]
            case 3:
                octets[at:at] = octets[at : at + chance.randrange(1, 20)]
        octets = octets or bytearray(b"\x05")
    return bytes(octets)


def _is_possible(got: bytes) -> bool:
    """Whether a server that knows X'00' only can have answered so."""
    if not got or got.startswith((HTTP, SOCKS4)) or got in (b"\x05\xff", b"\x05\x00"):
        return True
    head, rep, bnd = got[:3], got[3:4], got[4:12]
    if head != b"\x05\x00\x05" or bnd[:2] != b"\x00\x01" or len(bnd) != 8:
        return False
    return rep == b"\x00" or (rep in b"\x01\x02\x03\x04\x05\x06\x07\x08" and len(got) == 12)


# --- numbers ----------------------------------------------------------------------------------


def unnoticed(waits: list[float], without: list[float], seconds: float) -> bool:
    """Whether 99 of 100 good clients waited less than ``seconds``.

    A machine that has other work makes everybody wait, also those ``without`` the proxy.
    """
    assert len(waits) > 100
    assert len(without) > 100
    return percentile(waits, 0.99) < max(seconds, 3 * percentile(without, 0.99))


@pytest.mark.slow
def test_half_open_handshakes_by_the_thousand(tmp_path: Path) -> None:
    """All are cut in time, none costs much, and nobody else notices."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 8192:
        pytest.skip("the limit of descriptors is too low for 2,000 sessions")
    clients, limit = 2000, 3.0
    options = ("--timeout-handshake", limit)
    with obedient_target() as target, running(tmp_path, *options, log_level="info") as proxy:
        churn(proxy, target, 300)
        proxy.wait_for(lambda: proxy.descriptors() < 20)
        descriptors, resident = proxy.descriptors(), proxy.resident()
        with (
            good_clients(proxy, target) as waits,
            good_clients(None, target) as without,
            trickling(proxy, clients, limit + 5.0) as fate,
        ):
            gevent.sleep(limit / 2)
            each = (proxy.resident() - resident) / clients
        assert fate["cut"] == clients
        # Timers are on time; how long 2,000 ends take to be told of is the machine's.
        assert limit - 0.1 < fate["shortest"] <= fate["longest"] < limit + 2.0
        assert unnoticed(waits, without, 0.250)
        assert each <= 16_000
        proxy.wait_for(lambda: proxy.descriptors() <= descriptors, 2.0)


@pytest.mark.slow
def test_a_silent_dns_server_delays_nobody_else(tmp_path: Path) -> None:
    silent = socket.socket(type=socket.SOCK_DGRAM)
    with silent, obedient_target() as target:
        silent.bind(("127.0.0.1", 0))
        dns = f"127.0.0.1:{silent.getsockname()[1]}"
        with running(tmp_path, "--dns-server", dns, log_level="info") as proxy:

            def look_up(number: int) -> tuple[bytes, float]:
                octets = OFFER + request(Cmd.CONNECT, f"host{number}.silent.test", 80)
                began = time.monotonic()
                got = answer(proxy, octets, seconds=15.0)
                return got, time.monotonic() - began

            others = target, ("localhost", target[1])
            with good_clients(proxy, *others) as waits, good_clients(None, target) as without:
                lookers = [gevent.spawn(look_up, number) for number in range(100)]
                gevent.joinall(lookers, raise_error=True)
            assert unnoticed(waits, without, 0.500)
            for got, seconds in (looker.value for looker in lookers):
                assert got == b"\x05\x00\x05\x04\x00\x01" + REFUSED
                assert seconds < 12.0


@pytest.mark.slow
def test_sessions_that_end_in_every_way_leave_nothing(tmp_path: Path) -> None:
    with obedient_target() as target, running(tmp_path, log_level="info") as proxy:
        churn(proxy, target, 1000)  # what it allocates once is not what leaks
        proxy.wait_for(lambda: proxy.descriptors() < 20)
        descriptors, resident = proxy.descriptors(), proxy.resident()
        tally = churn(proxy, target, 6000, seed=2)
        assert tally.wrong == []
        assert sum(tally.ended.values()) == 6000
        assert tally.ended.keys() == dict(ENDINGS).keys()
        proxy.wait_for(lambda: proxy.descriptors() <= descriptors, 2.0)
        assert proxy.resident() - resident < 4 * MEGABYTE


@pytest.mark.slow
def test_clients_that_do_not_read_cost_little(tmp_path: Path) -> None:
    """The target sends without end; what is kept for each client has a bound."""

    def flood(sock: gevent.socket.socket, _: object) -> None:
        with suppress(OSError), sock:
            while True:
                sock.sendall(OCTETS)

    clients = 50
    with serving(flood) as target, running(tmp_path, "--drain", 0) as proxy:
        resident = proxy.resident()
        for _ in range(clients):
            sock = proxy.dial()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.sendall(OFFER + request(Cmd.CONNECT, *target))
            assert recv_exactly(sock, 2) == b"\x05\x00"
            assert read_reply(sock).rep == 0
        idle = -1.0
        while proxy.cpu_seconds() > idle:  # until nothing moves any more
            idle = proxy.cpu_seconds()
            gevent.sleep(0.3)
        assert (proxy.resident() - resident) / clients < 160_000
        gevent.sleep(1.0)
        assert proxy.cpu_seconds() - idle < 0.05
        assert recv_exactly(proxy.dialled[0], 100_000) == (OCTETS * 2)[:100_000]
