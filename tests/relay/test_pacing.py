"""Whoever is on this host is sent to without pacing."""

import os
import socket
import sys
from contextlib import closing
from typing import Any

import gevent
import gevent.socket
import pytest

from geosocks.listening import Listen, open_listener
from geosocks.relay.pacing import is_loopback, is_within_host, unpace
from geosocks.relay.pump import Pump
from geosocks.relay.way import Meter
from geosocks.stream import Connection
from tests.support.net import connection_pair, recv_all
from tests.support.programs import run

pytestmark = pytest.mark.usefixtures("no_leaks")


def algorithm(connection: Any) -> bytes:
    sock = getattr(connection, "sock", connection)
    name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    return name.rstrip(b"\0")


def choose(connection: Any, name: bytes) -> None:
    sock = getattr(connection, "sock", connection)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name)
    except OSError:
        pytest.skip(f"this kernel has no {name.decode()}")


def test_what_paces_gives_way_to_what_does_not(pair: tuple[Any, Connection]) -> None:
    choose(pair[1], b"bbr")
    unpace(pair[1])
    assert algorithm(pair[1]) == b"reno"


def test_what_does_not_pace_stays(pair: tuple[Any, Connection]) -> None:
    choose(pair[1], b"cubic")
    unpace(pair[1])
    assert algorithm(pair[1]) == b"cubic"


def test_one_that_is_closed_is_no_trouble(pair: tuple[Any, Connection]) -> None:
    pair[1].close()
    unpace(pair[1])


def test_a_unix_socket_is_no_trouble() -> None:
    ours, theirs = socket.socketpair()
    near = Connection(socket.SocketType(fileno=ours.detach()))
    unpace(near)
    near.close()
    theirs.close()


@pytest.mark.parametrize(("host", "name"), [("127.0.0.1", b"reno"), ("0.0.0.0", b"bbr")])
def test_what_listens_on_loopback_accepts_nothing_that_is_paced(host: str, name: bytes) -> None:
    sock = gevent.socket.socket()
    sock.bind((host, 0))
    sock.listen()
    choose(sock, b"bbr")
    listen = Listen(sock)
    with closing(open_listener(listen, [listen])) as opened:
        client = gevent.socket.create_connection(("127.0.0.1", opened.address[1]))
        gevent.socket.wait_read(opened.sock.fileno(), timeout=5)
        accepted, _ = opened.sock.accept()
        assert algorithm(accepted) == name
        accepted.close()
        client.close()


DIAL = """
import fcntl, socket, struct, sys
from pathlib import Path
default, host, source = sys.argv[1:]
family = socket.AF_INET6 if ":" in host else socket.AF_INET
with socket.socket() as sock:  # SIOCSIFFLAGS and IFF_UP (netdevice(7)): a new namespace's is down
    fcntl.ioctl(sock, 0x8914, struct.pack("16sh", b"lo", 1))
try:
    Path("/proc/sys/net/ipv4/tcp_congestion_control").write_text(default)
except OSError:
    sys.exit("not to be had")
from geosocks.relay.dial import dial
with socket.create_server((host, 0), family=family) as listener:
    for _ in range(2):
        near = dial(family == socket.AF_INET, (host, listener.getsockname()[1]), source or None)
        print(near.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(bytes(1)))
        near.close()
"""
"""Dial on loopback where a host's default is so."""


@pytest.mark.parametrize(
    ("default", "host", "source", "then"),
    [
        ("bbr", "127.0.0.1", "", b"reno"),
        ("bbr", "127.200.3.4", "", b"reno"),
        ("bbr", "::1", "", b"reno"),
        ("bbr", "127.0.0.1", "127.0.0.2", b"reno"),
        ("cubic", "127.0.0.1", "", b"cubic"),
        ("cubic", "::1", "", b"cubic"),
    ],
)
def test_a_target_on_loopback_is_dialled_without_pacing(
    default: str, host: str, source: str, then: bytes
) -> None:
    unshare = ("unshare", "--net")
    if run((*unshare, "true")).code:
        pytest.skip("this user may make no network namespace")
    done = run((*unshare, sys.executable, "-c", DIAL, default, host, source))
    if "not to be had" in done.err:
        pytest.skip(f"this kernel lets nobody have {default}")
    assert done.out.decode().splitlines() == [str(then)] * 2, done.err


@pytest.mark.parametrize(
    ("host", "is_it"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("12.7.0.1", False),
        ("128.0.0.1", False),
        ("::127.0.0.1", False),
        ("192.0.2.7", False),
    ],
)
def test_which_hosts_are_loopback(host: str, is_it: bool) -> None:
    assert is_loopback(host) is is_it


@pytest.mark.parametrize(
    ("ours", "theirs", "within"),
    [
        (("127.0.0.1", 1080), ("127.0.0.1", 4000), True),
        (("127.0.0.1", 1080), ("127.8.9.10", 4000), True),
        (("::1", 1080, 0, 0), ("::1", 4000, 0, 0), True),
        (("::ffff:127.0.0.1", 1080, 0, 0), ("::ffff:127.0.0.2", 4000, 0, 0), True),
        (("192.0.2.7", 1080), ("192.0.2.7", 4000), True),
        (("192.0.2.7", 1080), ("192.0.2.8", 4000), False),
        (("2001:db8::1", 1080, 0, 0), ("2001:db8::127.0.0.1", 4000, 0, 0), False),
        (("10.0.0.1", 1080), ("12.7.0.1", 4000), False),
        ("/run/geosocks/socks.sock", "", False),
    ],
)
def test_who_is_on_this_host(ours: Any, theirs: Any, within: bool) -> None:
    assert is_within_host(ours, theirs) is within


def test_one_fast_way_is_unpaced_and_little_is_left_as_it_is() -> None:
    pump = Pump()
    client, near_client = connection_pair()
    target, near_target = connection_pair()
    choose(near_client, b"bbr")
    choose(near_target, b"bbr")
    relay = gevent.spawn(pump.relay, near_client, near_target, Meter())
    reader = gevent.spawn(recv_all, client)
    client.sendall(b"a question")
    piece, sent = os.urandom(1 << 20), 0
    with gevent.Timeout(10):
        while algorithm(near_client) != b"reno":
            target.sendall(piece)
            sent += len(piece)
    target.shutdown(socket.SHUT_WR)
    assert len(reader.get(timeout=10)) == sent
    assert algorithm(near_target) == b"bbr"
    client.close()
    relay.get(timeout=10)
    target.close()
    near_client.close()
    near_target.close()
    pump.close()
