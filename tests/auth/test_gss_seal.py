"""Datagrams in GSSAPI messages (RFC 1961, section 5): lost, overtaken, doubled, forged."""

import gc
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import gevent.socket
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geosocks.auth import Grant, Seal
from geosocks.auth.gss import GssAuthenticator, GssCredential
from geosocks.auth.gss_loose import loosened
from geosocks.auth.gss_seal import GssSeal, ReplayWindow, sequence_number
from geosocks.auth.gss_stream import GssStream
from geosocks.codes import ProtectionLevel
from geosocks.errors import ProtocolError
from geosocks.events import UdpEnded
from geosocks.policy import Policy
from geosocks.server import Server
from geosocks.stream import Connection
from geosocks.wire.socks5 import Address
from tests.support.fake_gss import FakeContext
from tests.support.kdc import REALM, Realm
from tests.support.net import tcp_pair, wait_for
from tests.support.servers import EVERYWHERE, dial, proxy, read_reply, request
from tests.support.udp_client import UdpClient, answering, header, udp_socket

CLEAR, INTEGRITY, CONFIDENTIALITY, _ = ProtectionLevel
LEVELS = pytest.mark.parametrize(
    "level", [INTEGRITY, CONFIDENTIALITY], ids=lambda level: level.name
)
Seals = tuple[GssSeal, GssSeal]


# --- without Kerberos -------------------------------------------------------------------------


class Sized(FakeContext):
    """A fake whose tokens are two octets longer than what they hold."""

    def get_wrap_size_limit(self, desired_output_size: int, encrypted: bool = True) -> int:
        return max(0, desired_output_size - 2)


def sealed(level: ProtectionLevel = CONFIDENTIALITY, **options: Any) -> tuple[GssSeal, Sized]:
    """A seal over a fake context, and that."""
    context = Sized(**options)
    stream, _ = socket.socketpair()
    stream.close()
    _.close()
    return GssSeal(GssStream(stream, context, level)), context


@LEVELS
def test_a_datagram_is_one_message(level: ProtectionLevel) -> None:
    seal, _ = sealed(level)
    confidential = level == CONFIDENTIALITY
    body = b"\x95\x96" if confidential else b"ji"
    assert seal.wrap(b"ji") == b"\x01\x03\x00\x04\x00" + bytes((confidential,)) + body
    assert seal.unwrap(b"\x01\x03\x00\x04\x00" + bytes((confidential,)) + body) == b"ji"
    assert seal.unwrap(b"\x01\x03\x00\x02\x01" + bytes((confidential,))) == b""


@pytest.mark.parametrize(
    "octets",
    [
        "",
        "01",
        "01 03 00",
        "05 00 00 01 7f000001 0035",
        "00 00 00 01 7f000001 0035 6162",
        "01 02 0003 000161",
        "01 ff",
        "01 ff 0003 000161",
        "01 03 0003 0001",
        "01 03 0003 0001 6161",
        "01 03 0003 000161 01 03 0003 010161",
        "01 03 0000",
        "01 03 0005 0001bad1ee",
        "01 03 0003 050161",
    ],
)
def test_what_is_to_be_dropped(octets: str) -> None:
    seal, _ = sealed()
    with pytest.raises(ProtocolError):
        seal.unwrap(bytes.fromhex(octets))
    # And it is no end: what comes next is fine.
    assert seal.unwrap(bytes.fromhex("01 03 0003 0001 9e")) == b"a"


def test_a_message_not_encrypted_as_the_level_says_is_dropped_both_ways() -> None:
    seal, context = sealed(INTEGRITY)
    with pytest.raises(ProtocolError, match="is encrypted under integrity"):
        seal.unwrap(bytes.fromhex("01 03 0003 0001 9e"))
    context.wrap_as = lambda encrypt: not encrypt
    with pytest.raises(ProtocolError, match="does not give integrity"):
        seal.wrap(b"a")


def test_a_datagram_too_long_for_a_token_is_refused() -> None:
    seal, _ = sealed()
    assert len(seal.wrap(bytes(65_533))) == 65_539
    with pytest.raises(ProtocolError, match="65536 octets"):
        seal.wrap(bytes(65_534))


def test_room_is_what_fits_when_wrapped() -> None:
    seal, _ = sealed()
    assert [seal.room(size) for size in (0, 4, 5, 6, 7, 100)] == [0, 0, 0, 0, 1, 94]
    assert seal.room(70_000) == 65_533


# --- the window -------------------------------------------------------------------------------


def test_the_number_of_a_token() -> None:
    token = bytes.fromhex("0504 06 ff 0000 0000 0000000000000102 aabb")
    assert sequence_number(token) == 0x102
    assert sequence_number(token[:15]) is None
    assert sequence_number(b"\x60" + token[1:]) is None


def test_numbers_are_new_once_and_not_when_they_are_too_old() -> None:
    window = ReplayWindow()
    asked = [(7, True), (7, False), (5, True), (5, False), (2000, True), (7, False), (977, True)]
    asked += [(976, False), (977, False), (2**64 - 1, True), (2000, False), (2**64 - 1024, True)]
    assert [(number, window.is_new(number)) for number, _ in asked] == asked


@given(st.lists(st.integers(0, 3000), max_size=300))
@settings(max_examples=100, deadline=None)
def test_no_number_is_ever_new_twice_and_the_latest_thousand_are_new_once(
    numbers: list[int],
) -> None:
    window, seen = ReplayWindow(), set()
    newest = -1
    for number in numbers:
        recent = number > newest - ReplayWindow.WIDTH
        assert window.is_new(number) == (recent and number not in seen)
        seen.add(number)
        newest = max(newest, number)


# --- with a KDC -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ccache(realm: Realm) -> str:
    """Alice's ticket."""
    return realm.ticket()


@contextmanager
def granted(realm: Realm, ccache: str, level: ProtectionLevel) -> Iterator[tuple[Grant, Grant]]:
    """What both ends of one sub-negotiation have."""
    near, far = tcp_pair()
    client, server = Connection.take(near), Connection.take(far)
    accepting = gevent.spawn(
        GssAuthenticator(keytab=realm.keytab, levels=(level,)).authenticate,
        server,
        Address("127.0.0.1", 1),
    )
    credential = GssCredential("localhost", ccache=ccache, level=level)
    try:
        yield credential.present(client), accepting.get()
    finally:
        client.close()
        server.close()


def seal_of(grant: Grant) -> Seal:
    assert grant.seal is not None
    return grant.seal


@pytest.mark.kerberos
@LEVELS
def test_lost_overtaken_and_doubled_datagrams(
    realm: Realm, ccache: str, level: ProtectionLevel
) -> None:
    with granted(realm, ccache, level) as (client, server):
        ours, theirs = seal_of(client), seal_of(server)
        sent = [ours.wrap(b"number %d" % number) for number in range(2000)]
        assert (b"number" in sent[0]) == (level == INTEGRITY)
        arrivals = [number for number in range(2000) if number % 3]  # a third is lost
        for start in range(0, len(arrivals), 50):  # and the rest overtake each other
            some = arrivals[start : start + 50]
            random.Random(start).shuffle(some)
            arrivals[start : start + 50] = some
        for number in arrivals:
            assert theirs.unwrap(sent[number]) == b"number %d" % number
        for number in (arrivals[-1], arrivals[0], 1000, 1499):
            with pytest.raises(ProtocolError):  # a replay, however old
                theirs.unwrap(sent[number])
        # Both ways, and not one's own.
        assert ours.unwrap(theirs.wrap(b"answer")) == b"answer"
        with pytest.raises(ProtocolError):
            ours.unwrap(ours.wrap(b"mirrored"))


@pytest.mark.kerberos
@LEVELS
def test_changed_datagrams_are_dropped(realm: Realm, ccache: str, level: ProtectionLevel) -> None:
    with granted(realm, ccache, level) as (client, server):
        ours, theirs = seal_of(client), seal_of(server)
        whole = ours.wrap(b"the datagram")
        for at in range(len(whole)):
            changed = bytearray(whole)
            changed[at] ^= 1
            # RRC says how far the token is rotated: it is not protected, and need not be.
            with pytest.raises(ProtocolError):
                theirs.unwrap(bytes(changed))
        assert theirs.unwrap(whole) == b"the datagram"


@pytest.mark.kerberos
def test_the_other_level_is_dropped(realm: Realm, ccache: str) -> None:
    with granted(realm, ccache, CONFIDENTIALITY) as (client, server):
        stream = client.stream
        assert isinstance(stream, GssStream)
        signed = stream.context.wrap(b"only signed", False).message
        with pytest.raises(ProtocolError, match="is not encrypted under confidentiality"):
            seal_of(server).unwrap(b"\1\3" + len(signed).to_bytes(2) + signed)


@pytest.mark.kerberos
@LEVELS
def test_room_is_exact(realm: Realm, ccache: str, level: ProtectionLevel) -> None:
    with granted(realm, ccache, level) as (client, server):
        seal = seal_of(client)
        for size in (100, 1400, 65_507):
            room = seal.room(size)
            assert size - 100 < room < size
            wrapped = seal.wrap(bytes(room))
            assert len(wrapped) <= size
            assert seal_of(server).unwrap(wrapped) == bytes(room)


@pytest.mark.kerberos
def test_the_stream_goes_on_in_step(realm: Realm, ccache: str) -> None:
    with granted(realm, ccache, CONFIDENTIALITY) as (client, server):
        ours, theirs = seal_of(client), seal_of(server)
        assert theirs.unwrap(ours.wrap(b"datagram")) == b"datagram"
        client.stream.sendall(b"stream")
        assert server.stream.recv(100) == b"stream"
        server.stream.sendall(b"and back")
        assert client.stream.recv(100) == b"and back"
        ours.wrap(b"lost")
        client.stream.sendall(b"a gap")
        with pytest.raises(ProtocolError, match="does not unwrap"):
            server.stream.recv(100)


@pytest.mark.kerberos
def test_a_moved_context_leaves_nothing_behind(realm: Realm, ccache: str) -> None:
    def use() -> None:
        with granted(realm, ccache, CONFIDENTIALITY) as (client, server):
            wrapped = [seal_of(client).wrap(bytes(60_000)) for _ in range(20)]
            for octets in (*wrapped[::-1], *wrapped):  # overtaken, then replayed
                try:
                    seal_of(server).unwrap(octets)
                except ProtocolError:
                    continue

    def resident() -> int:
        gc.collect()
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    for _ in range(5):
        use()
    before = resident()
    for _ in range(20):
        use()
    # Each leaks 2.4 MB where the library's buffers are not given back.
    assert resident() - before < 12_000_000


@pytest.mark.kerberos
def test_a_context_that_cannot_be_moved_is_used_as_it_is() -> None:
    context = FakeContext()
    loose = loosened(context)
    assert loose.wrap(b"a", True).message == b"\0\1\x9e"
    assert loose.unwrap_in_any_order(b"\0\1\x9e").message == b"a"
    assert loose.unwrap(b"\1\1\x9e").message == b"a"


# --- an association ---------------------------------------------------------------------------


@contextmanager
def associated(
    server: Server, ccache: str, level: ProtectionLevel
) -> Iterator[tuple[UdpClient, Seal]]:
    """An association of alice's, and the seal for its datagrams."""
    control = dial(server)
    control.sendall(b"\x05\x01\x01")
    assert control.recv(2) == b"\x05\x01"
    grant = GssCredential("localhost", ccache=ccache, level=level).present(control)
    grant.stream.sendall(request(3, "0.0.0.0", 0))
    bound = read_reply(grant.stream).bound  # type: ignore[arg-type]  # it needs recv only
    with UdpClient(control, (str(bound.host), bound.port), "127.0.0.1") as client:
        yield client, seal_of(grant)


@pytest.mark.kerberos
@pytest.mark.usefixtures("no_leaks")
@LEVELS
def test_an_association_under_gssapi(realm: Realm, ccache: str, level: ProtectionLevel) -> None:
    policy = Policy(
        rules=EVERYWHERE, authenticators=(GssAuthenticator(keytab=realm.keytab, levels=(level,)),)
    )
    with answering() as (target, _), proxy(policy) as (server, witness):
        with associated(server, ccache, level) as (client, seal):
            start = header(*target)
            stranger = udp_socket()  # in the clear, and first: it locks nothing
            stranger.sendto(start + b"clear", client.relay)
            sizes = [0, 1, 1400, 60_000, seal.room(65_507) - len(start)]
            for size in sizes:
                client.send_raw(seal.wrap(start + bytes(size)))
                datagram, _ = client.sock.recvfrom(65_536)
                assert seal.unwrap(datagram) == start + bytes(size)
            one, two, three = (seal.wrap(start + word) for word in (b"one", b"two", b"three"))
            seal.wrap(start + b"lost")
            for octets in (three, one, three, one, two, b"junk"):
                client.send_raw(octets)
            came = [seal.unwrap(client.sock.recvfrom(65_536)[0])[10:] for _ in range(3)]
            assert came == [b"three", b"one", b"two"]
            stranger.close()
            session = next(iter(server.sessions.values()))
            wait_for(lambda: session.meter.up == session.meter.down)
        end = witness.wait(UdpEnded)
        assert end.identity == f"alice@{REALM}"
        assert (end.malformed, end.datagrams_up, end.datagrams_down) == (4, 8, 8)
