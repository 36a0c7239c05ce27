"""What systemd says in the environment, and what is said to it, octet for octet."""

import os
import socket
import sys
from collections.abc import Iterator

import gevent
import gevent.socket
import pytest

from geosocks.systemd import FIRST, Notifier, take_passed
from tests.support.programs import Popen
from tests.support.proxy import environment

PID = os.getpid()

NOTHING = [
    pytest.param({}, id="empty"),
    pytest.param({"LISTEN_FDS": "1"}, id="no-pid"),
    pytest.param({"LISTEN_PID": str(PID)}, id="no-number"),
    pytest.param({"LISTEN_PID": str(PID), "LISTEN_FDS": "0"}, id="none"),
    pytest.param({"LISTEN_PID": str(PID), "LISTEN_FDS": "-1"}, id="negative"),
    pytest.param({"LISTEN_PID": str(PID), "LISTEN_FDS": "two"}, id="a-word"),
    pytest.param({"LISTEN_PID": str(PID + 1), "LISTEN_FDS": "1"}, id="somebody-else-s"),
    pytest.param({"LISTEN_PID": "", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a"}, id="empty-pid"),
]


@pytest.mark.parametrize("environ", NOTHING)
def test_nothing_was_handed_over(environ: dict[str, str]) -> None:
    assert take_passed(environ | {"PATH": "/bin"}, PID) == ()
    left = environ | {"PATH": "/bin"}
    take_passed(left, PID)
    assert left == {"PATH": "/bin"}  # no child shall take them for its own


PROBE = """
import os, sys
from geosocks.systemd import take_passed
environ = {"LISTEN_PID": str(os.getpid())} | dict(pair.split("=") for pair in sys.argv[1:])
for one in take_passed(environ, os.getpid()):
    print(one.fd, one.name, one.address, os.get_inheritable(one.fd))
"""


def probe(socks: list[socket.socket], *variables: str) -> tuple[int, str]:
    """What a process finds that has been handed ``socks``."""
    process = Popen(
        [sys.executable, "-c", PROBE, *variables],
        stdout=-1,
        stderr=-2,
        env=environment(),
        pass_fds=tuple(range(FIRST, FIRST + len(socks))),
        preexec_fn=lambda: _put([sock.fileno() for sock in socks]),
    )
    out, _ = process.communicate()
    return process.wait(), out.decode()


def _put(descriptors: list[int]) -> None:
    high = [os.dup2(fd, 100 + number) for number, fd in enumerate(descriptors)]
    for number, fd in enumerate(high):
        os.dup2(fd, FIRST + number)


@pytest.fixture
def listening() -> Iterator[list[socket.socket]]:
    """Two sockets that listen, on IPv4 and on IPv6."""
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as two,
    ):
        yield [one, two]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (None, ("None", "None")),
        ("LISTEN_FDNAMES=inside:outside", ("inside", "outside")),
        ("LISTEN_FDNAMES=inside", ("inside", "None")),
        ("LISTEN_FDNAMES=unknown:a:b:c", ("None", "a")),
        ("LISTEN_FDNAMES=:a", ("None", "a")),
    ],
)
def test_sockets_and_their_names(
    listening: list[socket.socket], names: str | None, expected: tuple[str, str]
) -> None:
    code, out = probe(listening, "LISTEN_FDS=2", *([names] if names else []))
    assert code == 0, out
    addresses = [sock.getsockname() for sock in listening]
    assert out.splitlines() == [
        f"{FIRST + number} {name} {address} False"
        for number, (name, address) in enumerate(zip(expected, addresses, strict=True))
    ]


def test_what_is_no_socket_or_does_not_listen_is_refused(listening: list[socket.socket]) -> None:
    code, out = probe(listening, "LISTEN_FDS=3")  # 5 is not open
    assert code == 1
    assert "LISTEN_FDS: descriptor 5: Bad file descriptor" in out
    with socket.socket() as silent:
        code, out = probe([silent], "LISTEN_FDS=1")
        assert "descriptor 3 is no stream socket that listens" in out


# --- notes ------------------------------------------------------------------------------------


@pytest.fixture(params=["file", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: object) -> Iterator[tuple[str, object]]:
    """NOTIFY_SOCKET's value, and the socket that it leads to."""
    abstract = request.param == "abstract"
    name = f"geosocks-test-{PID}" if abstract else f"{tmp_path}/notify"
    with gevent.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name if abstract else name)
        yield ("@" + name if abstract else name), sock


def test_every_note_as_the_manual_has_it(manager: tuple[str, gevent.socket.socket]) -> None:
    address, sock = manager
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000", "PATH": "/bin"}
    notifier = Notifier.take(environ, PID)
    assert environ == {"PATH": "/bin"}
    assert notifier.watchdog == 30.0
    notifier.ready("serving")
    assert sock.recv(999) == b"READY=1\nSTATUS=serving"
    notifier.reloading()
    kind, clock = sock.recv(999).split(b"\n")
    assert kind == b"RELOADING=1"
    assert clock.startswith(b"MONOTONIC_USEC=")
    notifier.status("rules:1: bad\nREADY=1")
    assert sock.recv(999) == b"STATUS=rules:1: bad READY=1"
    notifier.feed()
    assert sock.recv(999) == b"WATCHDOG=1"
    notifier.stopping("draining")
    assert sock.recv(999) == b"STOPPING=1\nSTATUS=draining"
    notifier.close()
    notifier.feed()
    with pytest.raises(BlockingIOError):
        sock._sock.recv(999)


@pytest.mark.parametrize(
    ("environ", "watchdog"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "1000000"}, None),  # nobody to tell
        ({"NOTIFY_SOCKET": "/no/such"}, None),
        ({"NOTIFY_SOCKET": "/no/such", "WATCHDOG_USEC": "500000"}, 0.5),
        ({"NOTIFY_SOCKET": "/no/such", "WATCHDOG_USEC": "0"}, None),
        ({"NOTIFY_SOCKET": "/no/such", "WATCHDOG_USEC": "soon"}, None),
        (
            {"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(PID)},
            0.5,
        ),
        ({"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, None),
        ({"NOTIFY_SOCKET": "vsock:2:1", "WATCHDOG_USEC": "500000"}, None),
    ],
)
def test_what_the_watchdog_wants(environ: dict[str, str], watchdog: float | None) -> None:
    notifier = Notifier.take(dict(environ), PID)
    assert notifier.watchdog == watchdog
    notifier.ready("whoever there is")  # nobody listens, and that is no trouble
    notifier.close()
