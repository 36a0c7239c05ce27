"""Dante 1.4.2 with GSSAPI, as transcripts: its client to our server, our client to its server.

The order of messages, where one send of Dante's ends, every length, and every octet that no key
makes are as a recording between the real ones showed them, at integrity and confidentiality; what
keys make is filled in by a context that only pretends.  Ports are the test's own.

What is Dante's own: it offers X'01' alone; its client sends the level message in two pieces; it
keeps a whole message, header and all, under 65,536 octets; its server never says 01 FF, but hangs
up; and a failure's BND is the destination.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import gevent
import gevent.event
import gevent.socket
import pytest
from gevent.socket import SHUT_WR

from geosocks.auth.gss import GssAuthenticator, GssCredential
from geosocks.auth.gss_context import ContextFlag
from geosocks.client import Client
from geosocks.codes import ProtectionLevel
from geosocks.errors import RequestDenied, TargetRefused, Truncated
from geosocks.events import AuthenticationFailed, UdpEnded
from geosocks.policy import Policy
from geosocks.rules import RuleSet
from tests.support.fake_gss import ALL, UNSEQUENCED, KerberosShaped, shaped, start_threads
from tests.support.net import echo, recv_all, recv_exactly, serving, unused_port, wait_for
from tests.support.servers import EVERYWHERE, Witness, dial, proxy
from tests.support.udp_client import address, answering, udp_socket


@pytest.fixture(scope="module")
def threads() -> None:
    """The threads for context steps stay, and are no leak."""
    start_threads()


pytestmark = pytest.mark.usefixtures("threads", "no_leaks")

INTEGRITY, CONFIDENTIALITY = ProtectionLevel.INTEGRITY, ProtectionLevel.CONFIDENTIALITY
LEVELS = pytest.mark.parametrize("level", [INTEGRITY, CONFIDENTIALITY])

AP_REQ: Final = bytes.fromhex("608202d006092a864886f712010202 0100 6e8202bf").ljust(724, b"\xc5")
AP_REP: Final = bytes.fromhex("60819906092a864886f712010202 0200 6f8189").ljust(156, b"\xc5")
HELLO: Final = bytes.fromhex("01 01 02 d4") + AP_REQ
WELCOME: Final = bytes.fromhex("01 01 00 9c") + AP_REP
UP, DOWN = 0x0F776ADD, 0x00C3F9F3
"""The first sequence numbers, as recorded; TCP's messages and datagrams go on counting together."""
DANTES_ROOM: Final = 65_531
"""Octets of Dante's longest token."""


def port(number: int) -> str:
    return f"{number:04x}"


def up(count: int, text: str | bytes, level: int, mtyp: int = 3) -> bytes:
    """The client's message number ``count``, the level message being number 0."""
    return message(mtyp, UP + count, text, level, acceptor=False)


def down(count: int, text: str | bytes, level: int, mtyp: int = 3) -> bytes:
    """The server's message number ``count``, the level message being number 0."""
    return message(mtyp, DOWN + count, text, level, acceptor=True)


def message(mtyp: int, number: int, text: str | bytes, level: int, acceptor: bool) -> bytes:
    data = bytes.fromhex(text) if isinstance(text, str) else text
    token = shaped(number, data, level == CONFIDENTIALITY, acceptor)
    return bytes((1, mtyp)) + len(token).to_bytes(2, "big") + token


def asks_for(level: int) -> bytes:
    return up(0, bytes((level,)), INTEGRITY, mtyp=2)


def grants(level: int) -> bytes:
    return down(0, bytes((level,)), INTEGRITY, mtyp=2)


def test_the_transcripts_are_those_that_were_recorded() -> None:
    recorded = (
        "01 03 00 26 05 04 04 ff 00 0c 00 00 00 00 00 00 0f 77 6a de 05 01 00 01 7f 00 00 01 9e 79"
        "c5 c5 c5 c5 c5 c5 c5 c5 c5 c5 c5 c5"
    )
    assert up(1, "05 01 00 01 7f000001 9e79", INTEGRITY) == bytes.fromhex(recorded)
    recorded = (
        "01 02 00 1d 05 04 05 ff 00 0c 00 00 00 00 00 00 00 c3 f9 f3 01"
        "c5 c5 c5 c5 c5 c5 c5 c5 c5 c5 c5 c5"
    )
    assert grants(1) == bytes.fromhex(recorded)
    sealed = up(1, "05 01 00 01 7f000001 9e79", CONFIDENTIALITY)
    assert sealed.startswith(bytes.fromhex("01 03 00 46 05 04 06 ff 00 00 00 00 00 00"))
    assert len(sealed) == 74
    assert (len(HELLO), len(WELCOME)) == (728, 160)
    assert (len(up(2, b"hello", INTEGRITY)), len(up(2, b"hello", CONFIDENTIALITY))) == (37, 69)


# --- Dante's client, our server ---------------------------------------------------------------


def authenticator(flags: ContextFlag, **options: Any) -> GssAuthenticator:
    def new_context() -> KerberosShaped:
        how: Any = {"expects": (AP_REQ,), "flags": flags, "acceptor": True}
        return KerberosShaped(AP_REP, sends_from=DOWN, receives_from=UP, **how)

    return GssAuthenticator(new_context=new_context, **options)


@contextmanager
def dantes_client(
    level: int,
    answer: Callable[[int], bytes] = grants,
    flags: ContextFlag = ALL,
    rules: RuleSet = EVERYWHERE,
    **options: Any,
) -> Iterator[tuple[gevent.socket.socket, Witness]]:
    """Dante's client with our server, up to the level, whose answer must be ``answer``."""
    policy = Policy(rules=rules, authenticators=(authenticator(flags, **options),))
    with proxy(policy) as (server, witness):
        sock = dial(server)
        sock.sendall(b"\x05\x01\x01")
        assert recv_exactly(sock, 2) == b"\x05\x01"
        sock.sendall(HELLO)
        assert recv_exactly(sock, 160) == WELCOME
        asked = asks_for(level)
        sock.sendall(asked[:4])
        sock.sendall(asked[4:])
        expected = answer(level)
        assert recv_exactly(sock, len(expected)) == expected
        yield sock, witness
        sock.close()


def pieces(data: bytes, level: int) -> list[bytes]:
    """``data`` as Dante cuts it: 100,000 octets make 65,535 and 34,529 or 34,593 on the wire."""
    room = DANTES_ROOM - (60 if level == CONFIDENTIALITY else 28)
    return [data[start : start + room] for start in range(0, len(data), room)]


def read_messages(
    sock: gevent.socket.socket, count: int, size: int, level: int, made: Callable[..., bytes]
) -> bytes:
    """``size`` octets of data in messages from number ``count`` on, each octet for octet right."""
    data = b""
    overhead = 60 if level == CONFIDENTIALITY else 28
    while len(data) < size:
        head = recv_exactly(sock, 4)
        token = recv_exactly(sock, int.from_bytes(head[2:], "big"))
        piece = bytes(len(token) - overhead)  # an echo of zeros
        assert head + token == made(count, piece, level)
        data += piece
        count += 1
    return data


@LEVELS
def test_its_client_connects(level: int) -> None:
    came_from: list[int] = []

    def target(sock: gevent.socket.socket, peer: tuple[str, int]) -> None:
        came_from.append(peer[1])
        echo(sock, peer)

    with serving(target) as (_, at), dantes_client(level) as (sock, _):
        sock.sendall(up(1, f"05 01 00 01 7f000001 {port(at)}", level))
        got = recv_exactly(sock, 74 if level == CONFIDENTIALITY else 42)
        wait_for(lambda: came_from)
        assert got == down(1, f"05 00 00 01 7f000001 {port(came_from[0])}", level)
        sock.sendall(up(2, b"hello", level))
        expected = down(2, b"hello", level)
        assert recv_exactly(sock, len(expected)) == expected
        sent = [up(3 + n, piece, level) for n, piece in enumerate(pieces(bytes(100_000), level))]
        assert [*map(len, sent)] == [65_535, 34_593 if level == CONFIDENTIALITY else 34_529]
        sending = gevent.spawn(lambda: [sock.sendall(piece) for piece in sent])
        assert len(read_messages(sock, 3, 100_000, level, down)) == 100_000
        sending.get()
        sock.shutdown(SHUT_WR)
        assert recv_all(sock) == b""


@LEVELS
def test_its_client_is_told_of_a_failure_inside_the_encapsulation(level: int) -> None:
    with dantes_client(level) as (sock, _):
        sock.sendall(up(1, f"05 01 00 01 7f000001 {port(unused_port())}", level))
        assert recv_all(sock) == down(1, "05 05 00 01 00000000 0000", level)
    with dantes_client(level, rules=RuleSet.parse("deny to any\n")) as (sock, _):
        sock.sendall(up(1, "05 01 00 01 7f000002 0050", level))
        assert recv_all(sock) == down(1, "05 02 00 01 00000000 0000", level)


def test_its_client_in_clear_is_refused_or_served_by_option() -> None:
    with dantes_client(0, lambda _: b"\x01\xff") as (sock, witness):
        assert recv_all(sock) == b""
        assert "asks for clear" in witness.wait(AuthenticationFailed).reason
    with (
        serving(echo) as (_, at),
        dantes_client(0, levels=[ProtectionLevel.CLEAR]) as (sock, _),
    ):
        sock.sendall(bytes.fromhex(f"05 01 00 01 7f000001 {port(at)}"))
        assert recv_exactly(sock, 8) == bytes.fromhex("05 00 00 01 7f000001")


@LEVELS
def test_its_client_with_udp_is_refused_by_default(level: int) -> None:
    """It does not ask for SEQUENCE then."""
    with dantes_client(level, lambda _: b"\x01\xff", UNSEQUENCED) as (sock, witness):
        assert recv_all(sock) == b""
        assert len(witness.of(AuthenticationFailed)) == 1
        assert "--gss-unsequenced" in witness.wait(AuthenticationFailed).reason


@LEVELS
def test_its_client_with_udp(level: int) -> None:
    """Its ASSOCIATE claims its own port; datagrams count on from the request."""
    with (
        answering() as (target, _),
        udp_socket() as own,
        dantes_client(level, flags=UNSEQUENCED, unsequenced=True) as (sock, witness),
    ):
        to = f"0000 00 01 7f000001 {port(target[1])}"
        sock.sendall(up(1, f"05 03 00 01 7f000001 {port(address(own)[1])}", level))
        got = recv_exactly(sock, 74 if level == CONFIDENTIALITY else 42)
        relay = ("127.0.0.1", relay_port(got, level))
        assert got == down(1, f"05 00 00 01 7f000001 {port(relay[1])}", level)
        for count, data in enumerate((b"u", b"uuuuu", b"u" * 500), start=2):
            own.sendto(up(count, bytes.fromhex(to) + data, level), relay)
            assert received(own, relay) == down(count, bytes.fromhex(to) + data, level)
        # Not encapsulated, and at the other level: nobody hears of them.
        other = INTEGRITY if level == CONFIDENTIALITY else CONFIDENTIALITY
        own.sendto(bytes.fromhex(to) + b"plain", relay)
        own.sendto(up(5, bytes.fromhex(to) + b"other level", other), relay)
        own.sendto(up(6, bytes.fromhex(to) + b"next", level), relay)
        assert received(own, relay) == down(5, bytes.fromhex(to) + b"next", level)
        sock.close()
        ended = witness.wait(UdpEnded)
        assert (ended.datagrams_up, ended.datagrams_down, ended.malformed) == (4, 4, 2)


def relay_port(reply: bytes, level: int) -> int:
    """BND.PORT out of a reply: its last two octets before what the key makes."""
    if level == CONFIDENTIALITY:
        return int.from_bytes(bytes(octet ^ 0xFF for octet in reply[-30:-28]), "big")
    return int.from_bytes(reply[-14:-12], "big")


def received(sock: gevent.socket.socket, source: tuple[str, int]) -> bytes:
    with gevent.Timeout(3, AssertionError("no datagram came")):
        datagram, sender = sock.recvfrom(65536)
    assert sender == source
    return bytes(datagram)


# --- our client, Dante's server ---------------------------------------------------------------

Scene = Callable[[gevent.socket.socket], None]


def credential(level: ProtectionLevel) -> GssCredential:
    def new_context() -> KerberosShaped:
        how: Any = {"expects": (None, AP_REP), "acceptor": False}
        return KerberosShaped(AP_REQ, None, sends_from=UP, receives_from=DOWN, **how)

    return GssCredential("localhost", level=level, new_context=new_context)


@contextmanager
def dantes_server(level: ProtectionLevel, scene: Scene) -> Iterator[Client]:
    """Our client of Dante's server, which goes on with ``scene`` after the level."""
    faults: list[BaseException] = []

    def dante(sock: gevent.socket.socket, _: object) -> None:
        try:
            assert recv_exactly(sock, 3) == b"\x05\x01\x01"
            sock.sendall(b"\x05\x01")
            assert recv_exactly(sock, len(HELLO)) == HELLO
            sock.sendall(WELCOME)
            asked = asks_for(level)
            assert recv_exactly(sock, len(asked)) == asked
            scene(sock)
        except BaseException as error:
            faults.append(error)

    with serving(dante) as at:
        yield Client(at, [credential(level)])
    assert not faults, faults


@LEVELS
def test_we_connect_through_its_server(level: ProtectionLevel) -> None:
    done = gevent.event.Event()

    def scene(sock: gevent.socket.socket) -> None:
        sock.sendall(grants(level))
        asked = up(1, "05 01 00 01 c0000207 0050", level)
        assert recv_exactly(sock, len(asked)) == asked
        sock.sendall(down(1, "05 00 00 01 7f000001 cd45", level))
        expected = up(2, b"hello", level)
        assert recv_exactly(sock, len(expected)) == expected
        sock.sendall(down(2, b"hello", level))
        assert len(read_messages(sock, 3, 100_000, level, up)) == 100_000
        for count, piece in enumerate(pieces(bytes(100_000), level), start=3):
            sock.sendall(down(count, piece, level))
        assert recv_all(sock) == b""
        done.set()

    with dantes_server(level, scene) as client:
        sock = client.connect(("192.0.2.7", 80))
        sock.sendall(b"hello")
        assert recv_exactly(sock, 5) == b"hello"
        sock.sendall(bytes(100_000))
        assert recv_exactly(sock, 100_000) == bytes(100_000)
        sock.shutdown(SHUT_WR)
        assert sock.recv(1) == b""
        sock.close()
        assert done.wait(5)


@pytest.mark.parametrize(
    ("rep", "error"), [("05", TargetRefused), ("02", RequestDenied)], ids=["refused", "blocked"]
)
@LEVELS
def test_its_server_refuses_inside_the_encapsulation(
    level: ProtectionLevel, rep: str, error: type[Exception]
) -> None:
    def scene(sock: gevent.socket.socket) -> None:
        sock.sendall(grants(level))
        asked = up(1, "05 01 00 01 7f000002 0050", level)
        assert recv_exactly(sock, len(asked)) == asked
        sock.sendall(down(1, f"05 {rep} 00 01 7f000002 0050", level))

    with dantes_server(level, scene) as client, pytest.raises(error):
        client.connect(("127.0.0.2", 80))


@LEVELS
def test_its_server_hangs_up_over_a_level_that_it_does_not_have(level: ProtectionLevel) -> None:
    with dantes_server(level, lambda sock: None) as client, pytest.raises(Truncated):
        client.connect(("127.0.0.2", 80))


@LEVELS
def test_our_datagrams_through_its_server(level: ProtectionLevel) -> None:
    header = bytes.fromhex("0000 00 01 c0000207 0035")
    ended = gevent.event.Event()
    with udp_socket() as relay:

        def scene(sock: gevent.socket.socket) -> None:
            sock.sendall(grants(level))
            asked = up(1, "05 03 00 01 00000000 0000", level)
            assert recv_exactly(sock, len(asked)) == asked
            sock.sendall(down(1, f"05 00 00 01 7f000001 {port(address(relay)[1])}", level))
            assert recv_all(sock) == b""
            ended.set()

        with dantes_server(level, scene) as client, client.associate() as association:
            association.settimeout(3)
            for count, data in enumerate((b"u", b"uuuuu", b"u" * 500), start=2):
                association.sendto(data, ("192.0.2.7", 53))
                datagram, sender = relay.recvfrom(65536)
                assert datagram == up(count, header + data, level)
                relay.sendto(down(count, header + data, level), sender)
                answer, source = association.recvfrom(65536)
                assert answer == data
                assert (str(source.host), source.port) == ("192.0.2.7", 53)
            association.close()
            assert ended.wait(3)
