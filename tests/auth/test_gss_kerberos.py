"""Method X'01' with a real KDC: own client and own server, and what comes between them."""

import itertools
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent.socket import SHUT_WR

from geosocks.auth import Grant
from geosocks.auth.gss import REQUESTED, GssAuthenticator, GssCredential
from geosocks.auth.gss_context import Acceptor, ContextFlag, in_thread, initiate, step
from geosocks.auth.gss_stream import GssStream
from geosocks.auth.keytab import read_keytab
from geosocks.codes import Mtyp, ProtectionLevel
from geosocks.errors import AuthFailed, ConfigError, NegotiationTimeout, ProtocolError, Truncated
from geosocks.stream import Connection, Stream, deadline, read_message
from geosocks.wire.gss import Frame
from geosocks.wire.socks5 import Address
from tests.support.fake_gss import read_all, start_threads
from tests.support.kdc import REALM, SERVICE, Realm, environment
from tests.support.net import tcp_pair

pytestmark = pytest.mark.kerberos

CLEAR, INTEGRITY, CONFIDENTIALITY, _ = ProtectionLevel
PEER = Address("127.0.0.1", 40000)
Outcome = Grant | Exception
ALICE = f"alice@{REALM}"


@pytest.fixture(scope="module")
def ccache(realm: Realm) -> str:
    """Alice's ticket."""
    return realm.ticket()


@pytest.fixture(scope="module")
def threads() -> None:
    """The threads for context steps stay, and are no leak."""
    start_threads()


@dataclass
class Tap:
    """Copies between a client's and a server's connection, keeps what passed, and may change it."""

    edit: Callable[[bytes, str, int], bytes] = lambda data, way, offset: data
    seen: dict[str, bytearray] = field(
        default_factory=lambda: {"up": bytearray(), "down": bytearray()}
    )

    def copy(self, source: gevent.socket.socket, to: gevent.socket.socket, way: str) -> None:
        try:
            while data := source.recv(65536):
                offset = len(self.seen[way])
                self.seen[way] += data
                to.sendall(self.edit(data, way, offset))
            to.shutdown(SHUT_WR)
        except OSError:
            source.close()
            to.close()


@contextmanager
def connected(tap: Tap | None = None) -> Iterator[tuple[gevent.socket.socket, Connection]]:
    """A client's end and a server's of one TCP connection, through ``tap`` if there is one."""
    client, server = tcp_pair()
    copying = []
    between: tuple[gevent.socket.socket, ...] = ()
    if tap is not None:
        inner, last = tcp_pair()
        between = (server, inner)
        copying = [
            gevent.spawn(tap.copy, server, inner, "up"),
            gevent.spawn(tap.copy, inner, server, "down"),
        ]
        server = last
    near = Connection.take(server)
    try:
        yield client, near
    finally:
        client.close()
        near.close()
        gevent.joinall(copying, timeout=5, raise_error=True)
        for sock in between:
            sock.close()


def attempt(call: Callable[[], Grant], stream: Stream) -> Outcome:
    """The outcome of a half; one that fails closes, as both sides of a session would."""
    try:
        return call()
    except (AuthFailed, ProtocolError) as error:
        stream.shutdown(SHUT_WR)
        return error


def negotiate(
    authenticator: GssAuthenticator,
    credential: GssCredential,
    client: gevent.socket.socket,
    server: Connection,
) -> tuple[Outcome, Outcome]:
    """Run both halves; the client's outcome and the server's."""
    serving = gevent.spawn(attempt, lambda: authenticator.authenticate(server, PEER), server)
    return attempt(lambda: credential.present(client), client), serving.get()


def outcomes(
    authenticator: GssAuthenticator, credential: GssCredential, tap: Tap | None = None
) -> tuple[str, str]:
    """What each side says of a sub-negotiation that must fail: the client, and the server."""
    with connected(tap) as (client, server):
        up, down = negotiate(authenticator, credential, client, server)
    assert isinstance(up, AuthFailed | ProtocolError), up
    assert isinstance(down, AuthFailed | ProtocolError), down
    return str(up), str(down)


def established(
    authenticator: GssAuthenticator,
    credential: GssCredential,
    client: gevent.socket.socket,
    server: Connection,
) -> tuple[Grant, Grant]:
    up, down = negotiate(authenticator, credential, client, server)
    assert isinstance(up, Grant), up
    assert isinstance(down, Grant), down
    return up, down


def pour(stream: Stream, block: bytes, times: int) -> None:
    for _ in range(times):
        stream.sendall(block)
    stream.shutdown(SHUT_WR)


def digest(stream: Stream) -> tuple[int, str]:
    size, sha = 0, sha256()
    while data := stream.recv(65536):
        size += len(data)
        sha.update(data)
    return size, sha.hexdigest()


BLOCK = b"plain to be seen " * 8192
TIMES = 90
WHOLE = (len(BLOCK) * TIMES, sha256(BLOCK * TIMES).hexdigest())
AGREED = [
    pytest.param(CONFIDENTIALITY, {}, {}, "confidentiality", id="2"),
    pytest.param(INTEGRITY, {}, {}, "integrity", id="1"),
    pytest.param(INTEGRITY, {"levels": [CONFIDENTIALITY]}, {}, "confidentiality", id="2-for-1"),
    pytest.param(CLEAR, {"levels": [CLEAR]}, {}, "clear", id="0"),
    pytest.param(CLEAR, {"grant_clear": True}, {}, "clear", id="0-granted-to-all"),
    pytest.param(CONFIDENTIALITY, {"nec": True}, {"nec": True}, "confidentiality", id="nec-2"),
    pytest.param(CONFIDENTIALITY, {"nec": True}, {}, "confidentiality", id="nec-offered"),
]


@pytest.mark.parametrize(("level", "serving", "presenting", "detail"), AGREED)
@pytest.mark.usefixtures("threads", "no_leaks")
def test_twelve_megabytes_both_ways_at_once(
    realm: Realm,
    ccache: str,
    level: ProtectionLevel,
    serving: dict[str, Any],
    presenting: dict[str, Any],
    detail: str,
) -> None:
    tap = Tap()
    authenticator = GssAuthenticator(keytab=realm.keytab, **serving)
    credential = GssCredential("localhost", level=level, ccache=ccache, **presenting)
    assert WHOLE[0] > 12_000_000
    with connected(tap) as (client, server):
        up, down = established(authenticator, credential, client, server)
        assert (down.identity, down.detail, up.detail) == (ALICE, detail, detail)
        greenlets = [gevent.spawn(pour, grant.stream, BLOCK, TIMES) for grant in (up, down)]
        greenlets += [gevent.spawn(digest, grant.stream) for grant in (up, down)]
        gevent.joinall(greenlets, raise_error=True)
    assert [greenlet.value for greenlet in greenlets[2:]] == [WHOLE, WHOLE]
    for octets in tap.seen.values():
        assert (b"plain to be seen" in octets) == (detail != "confidentiality")


def test_half_close_leaves_the_other_way_open(realm: Realm, ccache: str) -> None:
    authenticator = GssAuthenticator(keytab=realm.keytab)
    with connected() as (client, server):
        up, down = established(
            authenticator, GssCredential("localhost", ccache=ccache), client, server
        )
        up.stream.sendall(b"question")
        up.stream.shutdown(SHUT_WR)
        assert digest(down.stream)[0] == 8
        down.stream.sendall(b"answer")
        assert up.stream.recv(100) == b"answer"
        down.stream.close()
        assert up.stream.recv(100) == b""


@pytest.mark.parametrize(
    "options", [{"service": "rcmd"}, {"service": "rcmd", "hostname": "localhost"}]
)
def test_the_server_may_accept_one_service_only(
    realm: Realm, ccache: str, options: dict[str, str]
) -> None:
    authenticator = GssAuthenticator(keytab=realm.keytab, **options)
    with connected() as (client, server):
        established(authenticator, GssCredential("localhost", ccache=ccache), client, server)


def test_a_client_may_use_a_keytab_in_place_of_kinit(realm: Realm) -> None:
    credential = GssCredential(
        "localhost", client_keytab=realm.keytab, ccache="MEMORY:keytab", principal=SERVICE
    )
    with connected() as (client, server):
        _, down = established(GssAuthenticator(keytab=realm.keytab), credential, client, server)
        assert down.identity == f"{SERVICE}@{REALM}"


def test_without_options_the_environment_says_where_things_are(realm: Realm, ccache: str) -> None:
    with (
        environment(KRB5_KTNAME=realm.keytab, KRB5CCNAME=ccache),
        connected() as (client, server),
    ):
        _, down = established(GssAuthenticator(), GssCredential("localhost"), client, server)
        assert down.identity == ALICE


# Refusals, as both sides tell them

REFUSED = "refused our GSSAPI context (01 FF)"


def test_no_ticket(realm: Realm) -> None:
    credential = GssCredential("localhost", ccache=str(realm.path / "no-such-cache"))
    client, server = outcomes(GssAuthenticator(keytab=realm.keytab), credential)
    assert "no Kerberos ticket" in client
    assert "run kinit" in client
    assert "closed without a token" in server


def test_a_service_that_the_kdc_does_not_know(realm: Realm, ccache: str) -> None:
    credential = GssCredential("localhost", service="nobody", ccache=ccache)
    client, server = outcomes(GssAuthenticator(keytab=realm.keytab), credential)
    assert f"the KDC knows no such service: Server nobody/localhost@{REALM} not found" in client
    assert "closed without a token" in server


def test_a_service_that_is_not_in_the_keytab(realm: Realm, ccache: str) -> None:
    realm.add_principal("http/localhost")
    credential = GssCredential("localhost", service="http", ccache=ccache)
    client, server = outcomes(GssAuthenticator(keytab=realm.keytab), credential)
    assert REFUSED in client
    assert "wrong principal in ticket" in server
    assert f"http/localhost@{REALM} not found in keytab" in server
    assert f"the keytab has {SERVICE}@{REALM}" in server


def test_a_service_name_that_is_no_text(realm: Realm, ccache: str) -> None:
    realm.add_principal("imap/localhost")
    token = initiate("imap@localhost", REQUESTED, store={"ccache": ccache}).step()
    assert token is not None
    assert token.count(b"imap") == 1  # the ticket's own name is clear, and nobody vouches for it
    acceptor = Acceptor(realm.keytab)
    with pytest.raises(AuthFailed) as caught:
        step("accept", acceptor(), token.replace(b"imap", b"\xff\x0a\x00\x1b"))
    assert str(caught.value).isprintable()


def test_a_keytab_with_an_old_key(realm: Realm, ccache: str) -> None:
    realm.add_principal("stale/localhost")
    keytab = realm.key_table("stale/localhost")
    realm.change_key("stale/localhost")
    credential = GssCredential("localhost", service="stale", ccache=ccache)
    client, server = outcomes(GssAuthenticator(keytab=keytab), credential)
    assert REFUSED in client
    assert "newer key than the keytab has" in server
    assert "kvno 2 not found in keytab" in server
    assert "ktadd" in server


def test_a_keytab_with_a_wrong_key(realm: Realm, ccache: str, tmp_path: Path) -> None:
    keytab = tmp_path / "keytab"
    keytab.write_bytes(with_wrong_keys(Path(realm.keytab).read_bytes()))
    assert read_keytab(str(keytab)) == read_keytab(realm.keytab)
    client, server = outcomes(
        GssAuthenticator(keytab=str(keytab)), GssCredential("localhost", ccache=ccache)
    )
    assert REFUSED in client
    assert "keytab and KDC have different keys" in server


def with_wrong_keys(keytab: bytes) -> bytes:
    """A keytab as ``keytab``, but for the last octet of each key, four before the entry's end."""
    changed, at = bytearray(keytab), 2
    while at < len(changed):
        at += 4 + int.from_bytes(changed[at : at + 4], "big")
        changed[at - 5] ^= 1
    return bytes(changed)


def test_a_keytab_that_goes_while_running(realm: Realm, ccache: str, tmp_path: Path) -> None:
    keytab = tmp_path / "keytab"
    keytab.write_bytes(Path(realm.keytab).read_bytes())
    authenticator = GssAuthenticator(keytab=str(keytab))
    keytab.unlink()
    client, server = outcomes(authenticator, GssCredential("localhost", ccache=ccache))
    assert REFUSED in client
    assert f"no key for the ticket: Key table file '{keytab}' not found" in server


def test_a_keytab_without_the_service_is_a_configuration_error(realm: Realm) -> None:
    with pytest.raises(ConfigError, match="No key table entry found matching socks/localhost"):
        GssAuthenticator(keytab=realm.keytab, service="socks", hostname="localhost")


def test_a_missing_system_keytab_is_a_configuration_error(realm: Realm, tmp_path: Path) -> None:
    with (
        environment(KRB5_KTNAME=str(tmp_path / "none")),
        pytest.raises(ConfigError, match=r"no usable keytab: .*none is nonexistent or empty"),
    ):
        GssAuthenticator()


def test_a_principal_that_is_not_in_the_cache(realm: Realm, ccache: str) -> None:
    credential = GssCredential("localhost", principal="bob", ccache=ccache)
    client, _ = outcomes(GssAuthenticator(keytab=realm.keytab), credential)
    assert "does not match desired name" in client


def test_no_kdc(realm: Realm) -> None:
    fresh = realm.ticket()
    with realm.without_kdc():
        client, _ = outcomes(
            GssAuthenticator(keytab=realm.keytab), GssCredential("localhost", ccache=fresh)
        )
    assert "no KDC answers" in client


def test_a_token_seen_before(realm: Realm, ccache: str) -> None:
    acceptor = Acceptor(realm.keytab)
    token = initiate("rcmd@localhost", REQUESTED, store={"ccache": ccache}).step()
    step("accept", acceptor(), token)
    with pytest.raises(AuthFailed, match="seen before: a replay"):
        step("accept", acceptor(), token)
    without = Acceptor(realm.keytab, rcache="none:")
    assert step("accept", without(), token)


def test_a_server_that_is_not_who_was_asked_for(realm: Realm, ccache: str) -> None:
    """A server without the key cannot answer; made-up and foreign answers do not pass."""
    acceptor = Acceptor(realm.keytab)
    one, other = (initiate("rcmd@localhost", REQUESTED, store={"ccache": ccache}) for _ in range(2))
    other.step()
    answer = step("accept", acceptor(), one.step())
    for made_up in (b"trust me", answer):
        with pytest.raises(AuthFailed):
            step("initiate", other, made_up)


# Time

LIFE = 3  # seconds
SKEW = 1


@dataclass
class Aged:
    """What was good some seconds ago."""

    ccache: str
    prolonged: str
    token: bytes
    stream: tuple[Any, Any]


@pytest.fixture(scope="module")
def aged(realm: Realm, ccache: str) -> Aged:
    """A ticket, a token and a context of a few seconds' age: the ticket has expired."""
    short = realm.ticket(lifetime=f"{LIFE}s")
    token = initiate("rcmd@localhost", REQUESTED, store={"ccache": ccache}).step()
    initiator = initiate("rcmd@localhost", REQUESTED, store={"ccache": short})
    acceptor = Acceptor(realm.keytab)()
    initiator.step(acceptor.step(initiator.step()))
    gevent.sleep(LIFE + SKEW + 1.2)  # the tickets' clock is the machine's; nothing else can wait
    prolonged = str(realm.path / "ccache-prolonged")
    Path(prolonged).write_bytes(with_later_end(Path(short).read_bytes()))
    assert token is not None
    return Aged(short, prolonged, token, (initiator, acceptor))


def with_later_end(ccache: bytes) -> bytes:
    """A credential cache as ``ccache`` that claims its tickets are good for an hour more.

    A ticket's times lie in a row: the first authentication, its start, its end. A service ticket
    starts when it was asked for, so the second may be later than the first.
    """
    now, changes = int(time.time()), 0
    for first in range(now - 60, now):
        for start in range(first, first + LIFE + 1):
            for until in range(start + 1, first + LIFE + 2):
                times = struct.pack(">III", first, start, until)
                changes += ccache.count(times)
                ccache = ccache.replace(times, struct.pack(">III", first, start, until + 3600))
    assert changes == 2, "not one ticket for tickets and one for the service"
    return ccache


def test_an_expired_ticket(realm: Realm, aged: Aged) -> None:
    client, server = outcomes(
        GssAuthenticator(keytab=realm.keytab), GssCredential("localhost", ccache=aged.ccache)
    )
    assert client == "ticket expired: Ticket expired (run kinit)"
    assert "closed without a token" in server


def test_an_expired_ticket_that_a_client_thinks_is_good(realm: Realm, aged: Aged) -> None:
    with environment(KRB5_CONFIG=realm.config("skew", clockskew=str(SKEW))):
        client, server = outcomes(
            GssAuthenticator(keytab=realm.keytab), GssCredential("localhost", ccache=aged.prolonged)
        )
    assert REFUSED in client
    assert "ticket expired" in server


def test_clocks_that_differ(realm: Realm, aged: Aged) -> None:
    with (
        environment(KRB5_CONFIG=realm.config("skew", clockskew=str(SKEW))),
        pytest.raises(AuthFailed, match=r"clock skew too great.*NTP"),
    ):
        step("accept", Acceptor(realm.keytab)(), aged.token)


def test_a_session_outlives_its_ticket(aged: Aged) -> None:
    one, two = tcp_pair()
    initiator, acceptor = aged.stream
    with one, two:
        GssStream(one, initiator, CONFIDENTIALITY).sendall(b"still here")
        assert GssStream(two, acceptor, CONFIDENTIALITY).recv(100) == b"still here"


# Somebody between the two


def flip(way: str, offset: int) -> Tap:
    """A tap that turns over one bit of the octet at ``offset``."""

    def edit(data: bytes, seen: str, start: int) -> bytes:
        if seen != way or not start <= offset < start + len(data):
            return data
        at = offset - start
        return data[:at] + bytes((data[at] ^ 0x10,)) + data[at + 1 :]

    return Tap(edit)


def sizes(realm: Realm, ccache: str) -> dict[str, int]:
    """Octets of a whole sub-negotiation, each way."""
    tap = Tap()
    with connected(tap) as (client, server):
        established(
            GssAuthenticator(keytab=realm.keytab),
            GssCredential("localhost", ccache=ccache),
            client,
            server,
        )
    return {way: len(octets) for way, octets in tap.seen.items()}


@pytest.mark.parametrize(("way", "from_end"), [("up", 60), ("up", 200), ("up", 3), ("down", 60)])
def test_a_bit_changed_in_the_handshake_is_refused_at_both_ends(
    realm: Realm, ccache: str, way: str, from_end: int
) -> None:
    offset = sizes(realm, ccache)[way] - from_end
    client, server = outcomes(
        GssAuthenticator(keytab=realm.keytab),
        GssCredential("localhost", ccache=ccache),
        flip(way, offset),
    )
    assert client.isprintable()
    assert server.isprintable()
    if way == "up":
        assert REFUSED in client


def flip_end_of(way: str, number: int) -> Tap:
    """A tap that turns over one bit of the last octet of the message of that number, from 1."""
    messages = itertools.count(1)

    def edit(data: bytes, seen: str, start: int) -> bytes:
        if seen != way or next(messages) != number:
            return data
        return data[:-1] + bytes((data[-1] ^ 0x10,))

    return Tap(edit)


def test_a_level_changed_in_the_answer_is_noticed(realm: Realm, ccache: str) -> None:
    # Not by its offset: one token in some hundred is an octet shorter than the others.
    with connected(flip_end_of("down", 2)) as (client, server):
        up, down = negotiate(
            GssAuthenticator(keytab=realm.keytab),
            GssCredential("localhost", ccache=ccache),
            client,
            server,
        )
    assert isinstance(up, ProtocolError)
    assert "does not unwrap" in str(up)
    assert isinstance(down, Grant)


@pytest.mark.parametrize("level", [INTEGRITY, CONFIDENTIALITY])
@pytest.mark.parametrize("way", ["up", "down"])
def test_a_bit_changed_in_the_data_ends_the_stream(
    realm: Realm, ccache: str, way: str, level: ProtectionLevel
) -> None:
    offset = sizes(realm, ccache)[way] + 40
    with connected(flip(way, offset)) as (client, server):
        up, down = established(
            GssAuthenticator(keytab=realm.keytab),
            GssCredential("localhost", ccache=ccache, level=level),
            client,
            server,
        )
        sender, reader = (up, down) if way == "up" else (down, up)
        sender.stream.sendall(b"pay 100 to alice")
        with pytest.raises(ProtocolError, match="does not unwrap"):
            reader.stream.recv(100)


def test_messages_dropped_repeated_or_exchanged_end_the_stream(realm: Realm, ccache: str) -> None:
    contexts = Acceptor(realm.keytab)
    for order, fault in (
        ((1,), "expected per-message token was not received"),
        ((0, 0), "duplicate"),
        ((0, 2, 1), "expected per-message token was not received"),
    ):
        initiator = initiate("rcmd@localhost", REQUESTED, store={"ccache": ccache})
        acceptor = contexts()
        initiator.step(acceptor.step(initiator.step()))
        one, two = tcp_pair()
        far, near = tcp_pair()
        with one, two, far, near:
            sending = GssStream(one, initiator, CONFIDENTIALITY)
            reading = GssStream(near, acceptor, CONFIDENTIALITY)
            messages = []
            for number in b"012":
                sending.sendall(bytes((number,)))
                messages.append(two.recv(1000))
            for number in order:
                far.sendall(messages[number])
            far.shutdown(SHUT_WR)
            with pytest.raises(ProtocolError, match=fault):
                read_all(reading)


def test_a_connection_cut_inside_a_message_is_no_half_close(realm: Realm, ccache: str) -> None:
    with connected() as (client, server):
        up, down = established(
            GssAuthenticator(keytab=realm.keytab),
            GssCredential("localhost", ccache=ccache),
            client,
            server,
        )
        up.stream.sendall(b"whole")
        client.sendall(b"\x01\x03\x00\x40half of one")
        client.shutdown(SHUT_WR)
        assert down.stream.recv(100) == b"whole"
        with pytest.raises(Truncated):
            down.stream.recv(100)


def test_clear_octets_under_a_protected_level_are_refused(realm: Realm, ccache: str) -> None:
    with connected() as (client, server):
        _, down = established(
            GssAuthenticator(keytab=realm.keytab),
            GssCredential("localhost", ccache=ccache),
            client,
            server,
        )
        client.sendall(b"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50")
        with pytest.raises(ProtocolError, match="VER is 0x05"):
            down.stream.recv(100)


# Other matters


def test_tickets_are_not_delegated(realm: Realm, ccache: str) -> None:
    initiator = initiate("rcmd@localhost", REQUESTED, store={"ccache": ccache})
    acceptor: Any = Acceptor(realm.keytab)()
    step("initiate", initiator, step("accept", acceptor, step("initiate", initiator, None)))
    flags = ContextFlag(int(acceptor.actual_flags))
    assert not flags & ContextFlag.DELEG
    assert acceptor.delegated_creds is None
    for flag in ("MUTUAL", "REPLAY", "SEQUENCE", "CONF", "INTEG"):
        assert flags & ContextFlag[flag]


AS_CURL = ContextFlag.MUTUAL | ContextFlag.REPLAY
"""What curl asks for (every version), and Dante's client for UDP."""


def test_the_flags_that_the_acceptor_sees_are_those_that_were_asked_for(
    realm: Realm, ccache: str
) -> None:
    """MIT Kerberos gives INTEG and CONF unasked, and REPLAY and SEQUENCE as they are asked for."""
    acceptor = Acceptor(realm.keytab)
    ordered = ContextFlag.REPLAY | ContextFlag.SEQUENCE
    for asked in (REQUESTED, AS_CURL, ContextFlag.SEQUENCE, ContextFlag.MUTUAL):
        initiator: Any = initiate("rcmd@localhost", asked, store={"ccache": ccache})
        accepted: Any = acceptor()
        answer = accepted.step(initiator.step())
        if answer:
            initiator.step(answer)
        for context in (initiator, accepted):
            flags = ContextFlag(int(context.actual_flags))
            assert flags & ordered == asked & ordered
            assert ContextFlag.INTEG | ContextFlag.CONF in flags


def asks(
    authenticator: GssAuthenticator, realm: Realm, ccache: str, flags: ContextFlag, level: int
) -> tuple[bytes, Outcome]:
    """Be a client that asks for ``flags`` and ``level``: the last answer, and what comes of it.

    The answer is the server's level, unwrapped, or 01 FF.
    """
    context = initiate("rcmd@localhost", flags, store={"ccache": ccache})
    with connected() as (client, server):
        serving = gevent.spawn(attempt, lambda: authenticator.authenticate(server, PEER), server)
        client.sendall(Frame(Mtyp.AUTHENTICATION, context.step() or b"").encode())
        context.step(read_message(client, Frame.decode).token)
        assert context.complete
        token = context.wrap(bytes((level,)), False).message
        client.sendall(Frame(Mtyp.PROTECTION_LEVEL, token).encode())
        answer = read_message(client, Frame.decode)
        outcome = serving.get()
        if answer.mtyp == Mtyp.ABORT:
            assert read_all(client) == b""
            return answer.encode(), outcome
        return context.unwrap(answer.token).message, outcome


SEQUENCE_OPTIONS = [
    # who, asks for, options, gets
    pytest.param(AS_CURL, 2, {}, None, id="curl-8.17"),
    pytest.param(AS_CURL, 2, {"levels": [CONFIDENTIALITY, CLEAR]}, None, id="curl-8.17-clear-can"),
    pytest.param(AS_CURL, 2, {"grant_clear": True}, 0, id="curl-8.17-granted-clear"),
    pytest.param(AS_CURL, 0, {"levels": [CONFIDENTIALITY, CLEAR]}, 0, id="curl-8.16"),
    pytest.param(AS_CURL, 0, {}, None, id="curl-8.16-without-clear"),
    pytest.param(AS_CURL, 1, {}, None, id="dante-udp-1"),
    pytest.param(AS_CURL, 1, {"unsequenced": True}, 1, id="dante-udp-1-by-option"),
    pytest.param(AS_CURL, 2, {"unsequenced": True}, 2, id="dante-udp-2-by-option"),
    pytest.param(AS_CURL | ContextFlag.SEQUENCE, 2, {}, 2, id="dante-tcp-2"),
    pytest.param(AS_CURL | ContextFlag.SEQUENCE, 1, {}, 1, id="dante-tcp-1"),
    pytest.param(AS_CURL | ContextFlag.SEQUENCE, 3, {}, 2, id="level-3-gets-the-strongest"),
]


@pytest.mark.parametrize(("flags", "level", "options", "gets"), SEQUENCE_OPTIONS)
def test_protection_is_granted_where_the_context_keeps_the_sequence(
    realm: Realm,
    ccache: str,
    flags: ContextFlag,
    level: int,
    options: dict[str, Any],
    gets: int | None,
) -> None:
    authenticator = GssAuthenticator(keytab=realm.keytab, **options)
    answer, outcome = asks(authenticator, realm, ccache, flags, level)
    if gets is None:
        assert answer == b"\x01\xff"
        assert isinstance(outcome, AuthFailed)
        assert outcome.identity == ALICE
        assert ("out of sequence" in str(outcome)) == (level != 0)
    else:
        assert answer == bytes((gets,))
        assert isinstance(outcome, Grant)


@pytest.mark.parametrize("flags", [REQUESTED, AS_CURL])
def test_what_is_lost_without_sequence(realm: Realm, ccache: str, flags: ContextFlag) -> None:
    """A message that somebody took out of the stream is missed with SEQUENCE only."""
    initiator = initiate("rcmd@localhost", flags, store={"ccache": ccache})
    acceptor = Acceptor(realm.keytab)()
    initiator.step(acceptor.step(initiator.step()))
    one, two = tcp_pair()
    with one, two:
        sender = GssStream(one, initiator, CONFIDENTIALITY)
        sender.sendall(b"do not ")
        assert two.recv(1000)  # and it goes no further
        sender.sendall(b"pay")
        reader = GssStream(two, acceptor, CONFIDENTIALITY)
        if ContextFlag.SEQUENCE in flags:
            with pytest.raises(ProtocolError, match="token was not received"):
                reader.recv(100)
        else:
            assert reader.recv(100) == b"pay"


def test_a_client_that_proves_nothing_of_us_is_served(realm: Realm, ccache: str) -> None:
    """Without MUTUAL the answer is the empty token (section 3.6)."""
    from gssapi import Credentials, Name, NameType, SecurityContext

    context = SecurityContext(
        name=Name("rcmd@localhost", NameType.hostbased_service),
        creds=Credentials(usage="initiate", store={"ccache": ccache}),
        flags=int(ContextFlag.REPLAY | ContextFlag.SEQUENCE | ContextFlag.INTEG),
        usage="initiate",
    )
    with connected() as (client, server):
        serving = gevent.spawn(GssAuthenticator(keytab=realm.keytab).authenticate, server, PEER)
        token = context.step()
        client.sendall(b"\x01\x01" + len(token).to_bytes(2, "big") + token)
        level = context.wrap(b"\x01", False).message
        client.sendall(b"\x01\x02" + len(level).to_bytes(2, "big") + level)
        answer = client.recv(4)
        assert answer == b"\x01\x01\x00\x00"
        assert serving.get().detail == "integrity"


def test_a_wait_for_the_kdc_does_not_stop_others(realm: Realm, ccache: str) -> None:
    """The KDC that never answers is a UDP socket; the deadline is the session's own."""
    with gevent.socket.socket(type=gevent.socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        conf = Path(realm.config("silent")).read_text()
        kdc = next(line for line in conf.splitlines() if line.strip().startswith("kdc = "))
        path = realm.path / "krb5.conf.silent"
        path.write_text(conf.replace(kdc, f"\t\tkdc = 127.0.0.1:{silent.getsockname()[1]}"))
        ticks = []
        ticking = gevent.spawn(lambda: [ticks.append(gevent.sleep(0.01)) for _ in range(1000)])
        fresh = realm.ticket()
        with environment(KRB5_CONFIG=str(path)), connected() as (client, _):
            with (
                pytest.raises(NegotiationTimeout),
                deadline(0.3, NegotiationTimeout("too slow")),
            ):
                GssCredential("localhost", ccache=fresh).present(client)
            with connected() as (other, server):
                known = GssCredential("localhost", ccache=ccache)
                established(GssAuthenticator(keytab=realm.keytab), known, other, server)
        assert len(ticks) >= 10
        ticking.kill()


def test_many_contexts_leave_nothing_behind(realm: Realm, ccache: str) -> None:
    acceptor = Acceptor(realm.keytab)

    def one() -> None:
        initiator = initiate("rcmd@localhost", REQUESTED, store={"ccache": ccache})
        context = acceptor()
        initiator.step(context.step(initiator.step()))

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    for _ in range(300):
        in_thread("accept", one)
    before = resident()
    for _ in range(1500):
        in_thread("accept", one)
    assert resident() - before < 2_000_000
