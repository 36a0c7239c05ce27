"""Method X'02': both halves over real sockets."""

import time
from collections.abc import Callable, Iterator

import gevent
import pytest
from gevent import Timeout
from gevent.socket import SHUT_WR, socket, socketpair

from geosocks.auth import Authenticator, Credential
from geosocks.auth.userpass import Password, PasswordAuthenticator
from geosocks.codes import Method
from geosocks.errors import AuthFailed, ProtocolError, Truncated
from geosocks.scores import FREE
from geosocks.stream import Connection
from geosocks.wire.socks5 import Address
from geosocks.wire.userpass import UserPassRequest

PEER = Address("192.0.2.7", 40000)
ALICE = bytes.fromhex("01 05") + b"alice" + b"\x06wonder"
SECRET = "wonder"


def only_alice(uname: bytes, passwd: bytes) -> bool:
    return (uname, passwd) == (b"alice", b"wonder")


def never(uname: bytes, passwd: bytes) -> bool:
    raise AssertionError("nobody should have asked")


@pytest.fixture
def ends() -> Iterator[tuple[socket, socket]]:
    """A client's end and a server's; the test has 5 s."""
    client, server = socketpair()
    with client, server, Timeout(5):
        yield client, server


def started(call: Callable[..., object], *arguments: object) -> "gevent.Greenlet[..., object]":
    """Run in a greenlet, whose value is the outcome, an error too."""

    def outcome() -> object:
        try:
            return call(*arguments)
        except Exception as error:
            return error

    return gevent.spawn(outcome)


def test_both_halves_are_what_sessions_ask_for() -> None:
    authenticator: Authenticator = PasswordAuthenticator(only_alice)
    credential: Credential = Password("alice", SECRET)
    assert authenticator.method == credential.method == Method.USERNAME == 2


@pytest.mark.parametrize("user", ["alice", b"alice"])
def test_client_and_server_agree(ends: tuple[socket, socket], user: str | bytes) -> None:
    client, server = ends
    serving = started(PasswordAuthenticator(only_alice).authenticate, server, PEER)
    grant = Password(user, SECRET).present(client)
    assert (grant.stream, grant.identity) == (client, "alice")
    grant = serving.get()
    assert (grant.stream, grant.identity, grant.detail) == (server, "alice", None)


def test_a_refusal_reaches_both_ends_and_names_no_password(ends: tuple[socket, socket]) -> None:
    client, server = ends
    serving = started(PasswordAuthenticator(only_alice).authenticate, server, PEER)
    with pytest.raises(AuthFailed) as caught:
        Password("alice", "wunder-9").present(client)
    refusal = serving.get()
    assert isinstance(refusal, AuthFailed)
    assert str(refusal) == "wrong user name or password"
    assert refusal.identity == caught.value.identity == "alice"
    assert refusal.__cause__ is None
    for error in (refusal, caught.value):
        assert "wunder" not in f"{error!r} {error} {vars(error)}"


def test_accepting_sends_0100_and_reads_no_further(ends: tuple[socket, socket]) -> None:
    client, server = ends
    client.sendall(ALICE + b"\x05\x01")
    stream = Connection.take(server)
    try:
        grant = PasswordAuthenticator(only_alice).authenticate(stream, PEER)
        assert client.recv(10) == b"\x01\x00"
        assert grant.stream is stream
        assert stream.recv(10) == b"\x05\x01"
    finally:
        stream.close()


def test_a_request_may_come_octet_by_octet(ends: tuple[socket, socket]) -> None:
    client, server = ends
    serving = started(PasswordAuthenticator(only_alice).authenticate, server, PEER)
    for octet in ALICE:
        assert not serving.ready()
        client.sendall(bytes((octet,)))
        gevent.sleep(0)
    assert client.recv(10) == b"\x01\x00"
    assert serving.get().identity == "alice"


@pytest.mark.parametrize("cut", range(len(ALICE)))
def test_a_request_cut_short_is_not_asked_about(ends: tuple[socket, socket], cut: int) -> None:
    client, server = ends
    client.sendall(ALICE[:cut])
    client.shutdown(SHUT_WR)
    with pytest.raises(Truncated):
        PasswordAuthenticator(never).authenticate(server, PEER)
    server.close()
    assert client.recv(10) == b""


@pytest.mark.parametrize("version", [0, 2, 5, 0xFF])
def test_another_version_is_not_answered(ends: tuple[socket, socket], version: int) -> None:
    client, server = ends
    client.sendall(bytes((version,)) + ALICE[1:])
    with pytest.raises(ProtocolError, match=r"VER is 0x.., expected 0x01"):
        PasswordAuthenticator(never).authenticate(server, PEER)


@pytest.mark.parametrize(
    ("uname", "passwd"),
    [(b"", b""), (b"alice", b""), (b"", b"wonder"), (b"u" * 255, b"p" * 255)],
)
def test_check_is_given_the_octets_as_they_came(
    ends: tuple[socket, socket], uname: bytes, passwd: bytes
) -> None:
    client, server = ends
    asked = []

    def check(*fields: bytes) -> bool:
        asked.append(fields)
        return False

    client.sendall(UserPassRequest(uname, passwd).encode())
    with pytest.raises(AuthFailed):
        PasswordAuthenticator(check).authenticate(server, PEER)
    assert asked == [(uname, passwd)]
    assert client.recv(10) == b"\x01\x01"


def test_identity_keeps_octets_that_are_no_utf8(ends: tuple[socket, socket]) -> None:
    client, server = ends
    client.sendall(UserPassRequest(b"z\xc3\xbc\xff", b"x").encode())
    grant = PasswordAuthenticator(lambda uname, passwd: True).authenticate(server, PEER)
    assert grant.identity == "z\u00fc\udcff"
    assert grant.identity.encode("utf-8", "surrogateescape") == b"z\xc3\xbc\xff"


def test_a_reason_of_checks_own_is_told_to_the_log_alone(ends: tuple[socket, socket]) -> None:
    client, server = ends

    def busy(uname: bytes, passwd: bytes) -> bool:
        raise AuthFailed("busy")

    client.sendall(ALICE)
    with pytest.raises(AuthFailed, match=r"^busy$") as caught:
        PasswordAuthenticator(busy).authenticate(server, PEER)
    assert caught.value.identity == "alice"
    assert client.recv(10) == b"\x01\x01"


def test_a_broken_check_lets_nobody_in(ends: tuple[socket, socket]) -> None:
    client, server = ends
    client.sendall(ALICE)
    with pytest.raises(AssertionError):
        PasswordAuthenticator(never).authenticate(server, PEER)
    server.close()
    assert client.recv(10) == b""


def test_client_sends_what_the_rfc_says(ends: tuple[socket, socket]) -> None:
    client, server = ends
    server.sendall(b"\x01\x00" + b"\x05")
    Password("alice", SECRET).present(client)
    assert server.recv(100) == ALICE
    assert client.recv(10) == b"\x05"


def test_client_sends_text_as_utf8_and_octets_as_they_are(ends: tuple[socket, socket]) -> None:
    client, server = ends
    server.sendall(b"\x01\x00")
    assert Password("z\u00fc", b"\xff\x00").present(client).identity == "z\u00fc"
    assert server.recv(100) == b"\x01\x03z\xc3\xbc\x02\xff\x00"


@pytest.mark.parametrize("status", [1, 2, 0x80, 0xFF])
def test_client_takes_any_other_status_for_a_refusal(
    ends: tuple[socket, socket], status: int
) -> None:
    client, server = ends
    server.sendall(bytes((1, status)))
    with pytest.raises(AuthFailed, match=f"STATUS {status:#04x}"):
        Password("alice", SECRET).present(client)


@pytest.mark.parametrize("answer", ["05 00", "00 00", "ff"])
def test_client_refuses_an_answer_of_another_version(
    ends: tuple[socket, socket], answer: str
) -> None:
    client, server = ends
    server.sendall(bytes.fromhex(answer))
    with pytest.raises(ProtocolError):
        Password("alice", SECRET).present(client)


@pytest.mark.parametrize("answer", [b"", b"\x01"])
def test_client_is_told_when_the_server_hangs_up(
    ends: tuple[socket, socket], answer: bytes
) -> None:
    client, server = ends
    server.sendall(answer)
    server.shutdown(SHUT_WR)
    with pytest.raises(Truncated):
        Password("alice", SECRET).present(client)


@pytest.mark.parametrize(
    ("user", "password"),
    [("", "x"), ("x", ""), ("u" * 256, "x"), ("x", "p" * 256), ("\u00fc" * 128, "x")],
)
def test_a_field_that_the_rfc_cannot_hold_is_refused_at_once(user: str, password: str) -> None:
    with pytest.raises(ValueError, match="1 to 255 octets"):
        Password(user, password)


def test_a_password_is_in_no_repr() -> None:
    password = Password("alice", SECRET)
    assert repr(password) == str(password) == "Password('alice')"
    request = UserPassRequest(b"alice", SECRET.encode())
    for text in (repr(request), str(request), repr(PasswordAuthenticator(only_alice))):
        assert SECRET not in text


# --- names that are guessed at ----------------------------------------------------------------


def outcome(authenticator: PasswordAuthenticator, message: bytes) -> tuple[bool, float]:
    """Whether a client is let in, and after how many seconds."""
    client, server = socketpair()
    with client, server, Timeout(5):
        client.sendall(message)
        began = time.monotonic()
        try:
            authenticator.authenticate(server, PEER)
        except AuthFailed:
            return False, time.monotonic() - began
        return True, time.monotonic() - began


@pytest.mark.parametrize("name", [b"alice", b"no such user"])
def test_a_name_with_many_failures_waits_and_others_do_not(name: bytes) -> None:
    authenticator = PasswordAuthenticator(only_alice)
    wrong = UserPassRequest(name, b"guess").encode()
    for _ in range(FREE + 1):
        let_in, seconds = outcome(authenticator, wrong)
        assert not let_in
        assert seconds < 0.12
    let_in, seconds = outcome(authenticator, wrong)
    assert not let_in
    assert 0.125 <= seconds < 0.25 + 0.25
    right = outcome(authenticator, ALICE)
    assert right[0]  # never shut out
    assert (right[1] >= 0.25) == (name == b"alice")
    let_in, seconds = outcome(authenticator, UserPassRequest(b"bob", b"guess").encode())
    assert not let_in
    assert seconds < 0.12


def test_success_is_no_way_to_buy_more_guesses() -> None:
    authenticator = PasswordAuthenticator(only_alice)
    wrong = UserPassRequest(b"alice", b"guess").encode()
    for _ in range(FREE + 1):
        assert not outcome(authenticator, wrong)[0]
    assert outcome(authenticator, ALICE)[0]
    assert outcome(authenticator, wrong)[1] >= 0.125
