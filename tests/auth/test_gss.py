"""Method X'01' octet by octet, with contexts that only pretend; no KDC is needed."""

import subprocess
import sys
from collections.abc import Callable
from itertools import product
from typing import Any

import gevent
import pytest
from gevent.socket import SHUT_WR, socketpair
from gssapi.exceptions import ExpiredContextError

from geosocks.auth import Authenticator, Credential, Grant
from geosocks.auth.gss import REQUESTED, GssAuthenticator, GssCredential
from geosocks.auth.gss_context import ContextFlag
from geosocks.auth.gss_level import choose_level
from geosocks.auth.gss_stream import GssStream
from geosocks.codes import Method, ProtectionLevel
from geosocks.errors import AuthFailed, ConfigError, ProtocolError, Truncated
from geosocks.stream import Connection, Stream
from geosocks.wire.socks5 import Address
from tests.support.fake_gss import (
    ALL,
    UNSEQUENCED,
    FakeContext,
    UnspeakableName,
    octets,
    read_all,
    turned,
)

CLEAR, INTEGRITY, CONFIDENTIALITY, SELECTIVE = ProtectionLevel
PEER = Address("192.0.2.7", 40000)
ABORT = "01 ff"
CLIENT_TOKEN, SERVER_TOKEN = b"AP-REQ", b"AP-REP"
HELLO = "01 01 00 06 41 50 2d 52 45 51"
"""The client's context token."""
WELCOME = "01 01 00 06 41 50 2d 52 45 50"
"""The server's."""


def server(**options: Any) -> GssAuthenticator:
    """An authenticator whose context needs one token and answers with one."""
    options.setdefault("new_context", lambda: FakeContext(SERVER_TOKEN, expects=(CLIENT_TOKEN,)))
    return GssAuthenticator(**options)


def client(**options: Any) -> GssCredential:
    """A credential whose context sends one token and wants one."""
    options.setdefault(
        "new_context", lambda: FakeContext(CLIENT_TOKEN, None, expects=(None, SERVER_TOKEN))
    )
    return GssCredential("proxy.example.org", **options)


class Trickle:
    """A stream that gives one octet at a time, however many are there."""

    def __init__(self, inner: Stream) -> None:
        self.inner = inner

    def recv(self, size: int, /) -> bytes:
        return self.inner.recv(min(size, 1))

    def sendall(self, data: bytes, /) -> None:
        self.inner.sendall(data)

    def shutdown(self, how: int, /) -> None:
        self.inner.shutdown(how)

    def close(self) -> None:
        self.inner.close()


def exchange(
    call: Callable[[Stream], Grant], octets: str | bytes, trickle: bool = False
) -> tuple[Grant | Exception, bytes, Stream]:
    """Give ``octets`` and an end to ``call``: its outcome, what it sent, and its stream."""
    peer, ours = socketpair()
    stream: Stream = Connection.take(ours)
    with peer:
        peer.sendall(bytes.fromhex(octets) if isinstance(octets, str) else octets)
        peer.shutdown(SHUT_WR)
        outcome: Grant | Exception
        try:
            outcome = call(Trickle(stream) if trickle else stream)
        except Exception as error:
            outcome = error
        stream.shutdown(SHUT_WR)
        return outcome, read_all(peer), stream


def served(
    authenticator: GssAuthenticator, octets: str | bytes, trickle: bool = False
) -> tuple[Grant | Exception, bytes, Stream]:
    return exchange(lambda stream: authenticator.authenticate(stream, PEER), octets, trickle)


# The server's half

SERVED = [
    pytest.param({}, "01 02 00 03 00 00 02", "01 02 00 03 00 00 02", "confidentiality", id="2"),
    pytest.param({}, "01 02 00 03 00 00 01", "01 02 00 03 00 00 01", "integrity", id="1"),
    pytest.param(
        {}, "01 02 00 03 00 01 fd", "01 02 00 03 00 00 02", "confidentiality", id="sealed"
    ),
    pytest.param({}, "01 02 00 03 00 00 03", "01 02 00 03 00 00 02", "confidentiality", id="3"),
    pytest.param(
        {"levels": [CLEAR, INTEGRITY]},
        "01 02 00 03 00 00 00",
        "01 02 00 03 00 00 00",
        "clear",
        id="curl-to-8.16-asks-0",
    ),
    pytest.param(
        {"grant_clear": True},
        "01 02 00 03 00 00 02",
        "01 02 00 03 00 00 00",
        "clear",
        id="curl-from-8.17-asks-2-and-can-0",
    ),
    pytest.param(
        {"levels": [CONFIDENTIALITY]},
        "01 02 00 03 00 00 01",
        "01 02 00 03 00 00 02",
        "confidentiality",
        id="more-than-asked",
    ),
    pytest.param({"nec": True}, "01 02 00 01 02", "01 02 00 01 02", "confidentiality", id="nec-2"),
    pytest.param(
        {"nec": True, "levels": [CLEAR]}, "01 02 00 01 00", "01 02 00 01 00", "clear", id="nec-0"
    ),
    pytest.param(
        {"nec": True},
        "01 02 00 03 00 00 01",
        "01 02 00 03 00 00 01",
        "integrity",
        id="nec-not-used",
    ),
]


@pytest.mark.parametrize("trickle", [False, True])
@pytest.mark.parametrize(("options", "asks", "answers", "detail"), SERVED)
def test_server_transcripts(
    options: dict[str, Any], asks: str, answers: str, detail: str, trickle: bool
) -> None:
    grant, sent, stream = served(server(**options), HELLO + asks, trickle)
    assert isinstance(grant, Grant), grant
    assert sent == octets(WELCOME + answers)
    assert (grant.identity, grant.detail) == ("alice@EXAMPLE.ORG", detail)
    assert isinstance(grant.stream, GssStream) == (detail != "clear")
    stream.close()


@pytest.mark.parametrize(("options", "asks", "answers", "detail"), SERVED)
def test_server_refuses_an_exchange_that_is_cut_anywhere(
    options: dict[str, Any], asks: str, answers: str, detail: str
) -> None:
    whole = octets(HELLO + asks)
    for cut in range(len(whole)):
        error, sent, stream = served(server(**options), whole[:cut])
        assert isinstance(error, Truncated if cut else AuthFailed)
        assert sent == octets((WELCOME if cut >= 10 else "") + ABORT)
        stream.close()


REFUSED = [
    pytest.param({}, "05 01 00", "", ProtocolError, "VER is 0x05", id="no-frame"),
    pytest.param({}, "01 07 00 00", "", ProtocolError, "MTYP 0x07", id="unknown-mtyp"),
    pytest.param(
        {}, "01 02 00 01 02", "", ProtocolError, "MTYP is 0x02, expected 0x01", id="early"
    ),
    pytest.param({}, "01 01 00 00", "", AuthFailed, "empty context token", id="empty-token"),
    pytest.param({}, "01 ff", "", AuthFailed, "the peer refused", id="client-aborts"),
    pytest.param({}, "01 01 00 03 6e 6f 6e", "", AuthFailed, "Invalid token", id="bad-token"),
    pytest.param({}, HELLO + HELLO, WELCOME, ProtocolError, "expected 0x02", id="a-second-token"),
    pytest.param({}, HELLO + "01 03 00 00", WELCOME, ProtocolError, "expected 0x02", id="no-level"),
    pytest.param({}, HELLO + "01 ff", WELCOME, AuthFailed, "the peer refused", id="late-abort"),
    pytest.param(
        {}, HELLO + "01 02 00 02 00 00", WELCOME, ProtocolError, "0 octets", id="level-of-no-octet"
    ),
    pytest.param(
        {}, HELLO + "01 02 00 04 00 00 02 02", WELCOME, ProtocolError, "2 octets", id="two-levels"
    ),
    pytest.param(
        {}, HELLO + "01 02 00 05 00 00 ba d1 ee", WELCOME, ProtocolError, "not unwrap", id="bad-mic"
    ),
    pytest.param(
        {}, HELLO + "01 02 00 00", WELCOME, ProtocolError, "not unwrap", id="level-of-no-token"
    ),
    pytest.param(
        {}, HELLO + "01 02 00 01 02", WELCOME, ProtocolError, "not unwrap", id="nec-without-option"
    ),
    pytest.param(
        {},
        HELLO + "01 02 00 03 00 00 00",
        WELCOME,
        AuthFailed,
        "asks for clear, granted: confidentiality, integrity",
        id="clear-without-option",
    ),
    pytest.param(
        {"levels": [INTEGRITY]},
        HELLO + "01 02 00 03 00 00 02",
        WELCOME,
        AuthFailed,
        "asks for confidentiality, granted: integrity",
        id="less-than-asked",
    ),
    pytest.param(
        {}, HELLO + "01 02 00 03 00 00 09", WELCOME, AuthFailed, "asks for 0x09", id="unknown-level"
    ),
    pytest.param(
        {"nec": True}, HELLO + "01 02 00 01 09", WELCOME, AuthFailed, "asks for 0x09", id="nec-9"
    ),
]


@pytest.mark.parametrize(("options", "sends", "gets", "error", "reason"), REFUSED)
def test_server_refuses_with_01_ff_and_a_reason(
    options: dict[str, Any], sends: str, gets: str, error: type[Exception], reason: str
) -> None:
    outcome, sent, stream = served(server(**options), sends)
    assert type(outcome) is error
    assert reason in str(outcome)
    assert sent == octets(gets + ABORT)
    stream.close()


def unsequenced(**options: Any) -> GssAuthenticator:
    """An authenticator for a client whose context does not detect messages out of sequence."""
    return server(new_context=lambda: FakeContext(SERVER_TOKEN, flags=UNSEQUENCED), **options)


CURL_8_16 = HELLO + "01 02 00 03 00 00 00"
"""curl to 8.16 passes MUTUAL and REPLAY, and asks for 0 (lib/socks_gssapi.c)."""
CURL_8_17 = HELLO + "01 02 00 03 00 00 02"
"""From 8.17 on it asks for 2, and hangs up unless the answer is 0.  So does Dante with UDP, which
can do 2: the same flags, the same level."""


@pytest.mark.parametrize("sends", [CURL_8_17, HELLO + "01 02 00 03 00 00 01"])
@pytest.mark.parametrize("options", [{}, {"levels": [CONFIDENTIALITY, INTEGRITY, CLEAR]}])
def test_a_client_whose_context_is_not_in_sequence_is_refused_protection(
    options: dict[str, Any], sends: str
) -> None:
    error, sent, stream = served(unsequenced(**options), sends)
    assert type(error) is AuthFailed
    assert sent == octets(WELCOME + ABORT)
    assert "does not detect messages out of sequence (RFC 1961, section 3.2)" in str(error)
    assert "--gss-grant clear serves curl" in str(error)
    assert error.identity == "alice@EXAMPLE.ORG"
    stream.close()


WITHOUT_SEQUENCE = [
    pytest.param({"grant_clear": True}, CURL_8_17, 0, id="curl-8.17-granted-clear"),
    pytest.param({"levels": [CLEAR]}, CURL_8_16, 0, id="curl-8.16-asks-for-clear"),
    pytest.param({"unsequenced": True}, CURL_8_17, 2, id="dante-udp-at-2"),
    pytest.param({"unsequenced": True}, HELLO + "01 02 00 03 00 00 01", 1, id="dante-udp-at-1"),
    pytest.param({"unsequenced": True, "grant_clear": True}, CURL_8_17, 0, id="clear-to-all"),
]


@pytest.mark.parametrize(("options", "sends", "level"), WITHOUT_SEQUENCE)
def test_a_client_whose_context_is_not_in_sequence_is_served_by_option(
    options: dict[str, Any], sends: str, level: int
) -> None:
    grant, sent, stream = served(unsequenced(**options), sends)
    assert isinstance(grant, Grant), grant
    assert sent == octets(f"{WELCOME} 01 02 00 03 00 00 {level:02x}")
    assert grant.detail == ProtectionLevel(level).name.lower()
    stream.close()


def test_our_own_client_asks_for_sequence() -> None:
    assert ContextFlag.SEQUENCE in REQUESTED


def test_a_refusal_over_the_level_names_the_client() -> None:
    error, _, stream = served(server(), HELLO + "01 02 00 03 00 00 00")
    assert isinstance(error, AuthFailed)
    assert error.identity == "alice@EXAMPLE.ORG"
    stream.close()


def test_a_context_complete_without_a_token_sends_one_of_no_octets() -> None:
    """RFC 1961, section 3.6."""
    authenticator = server(new_context=lambda: FakeContext(None))
    grant, sent, stream = served(authenticator, HELLO + "01 02 00 03 00 00 02")
    assert isinstance(grant, Grant)
    assert sent == octets("01 01 00 00" + "01 02 00 03 00 00 02")
    stream.close()


def test_a_context_may_take_ten_tokens_and_no_more() -> None:
    ten = server(new_context=lambda: FakeContext(*[b"?"] * 10))
    grant, sent, stream = served(ten, HELLO * 10 + "01 02 00 03 00 00 02")
    assert isinstance(grant, Grant)
    assert sent == octets("01 01 00 01 3f" * 10 + "01 02 00 03 00 00 02")
    stream.close()
    eleven = server(new_context=lambda: FakeContext(*[b"?"] * 11))
    error, sent, stream = served(eleven, HELLO * 11)
    assert isinstance(error, AuthFailed)
    assert "after 10 tokens" in str(error)
    assert sent == octets("01 01 00 01 3f" * 10 + ABORT)
    stream.close()


def test_a_token_may_have_65535_octets() -> None:
    token = bytes(range(256)) * 256
    token = token[:65535]
    authenticator = server(new_context=lambda: FakeContext(token, expects=(token,)))
    peer, ours = socketpair()
    stream = Connection.take(ours)
    with peer:
        serving = gevent.spawn(authenticator.authenticate, stream, PEER)
        peer.sendall(octets("01 01 ff ff") + token + octets("01 02 00 03 00 00 01"))
        expected = octets("01 01 ff ff") + token + octets("01 02 00 03 00 00 01")
        got = b""
        while len(got) < len(expected):
            got += peer.recv(65536)
        assert got == expected
        assert serving.get().detail == "integrity"
    stream.close()


def test_a_client_that_has_gone_does_not_hide_the_reason() -> None:
    peer, ours = socketpair()
    peer.sendall(octets("01 01 00 03 6e 6f 6e"))
    peer.close()
    stream = Connection.take(ours)
    with pytest.raises(AuthFailed, match="Invalid token"):
        server().authenticate(stream, PEER)
    stream.close()


class Expired(FakeContext):
    """A context that can be read and no more written."""

    def wrap(self, message: bytes, encrypt: bool) -> Any:
        raise ExpiredContextError(0xC0000, 0)


def test_a_context_that_expires_before_the_level_is_refused() -> None:
    authenticator = server(new_context=lambda: Expired(SERVER_TOKEN))
    error, sent, stream = served(authenticator, HELLO + "01 02 00 03 00 00 02")
    assert isinstance(error, AuthFailed)
    assert "cannot be wrapped" in str(error)
    assert sent == octets(WELCOME + ABORT)
    stream.close()


@pytest.mark.parametrize(
    ("context", "reason"),
    [
        ({"name": UnspeakableName()}, "not UTF-8"),
        ({"flags": ALL | ContextFlag.ANON}, "anonymous"),
    ],
)
def test_a_client_without_a_usable_name_is_refused(context: dict[str, Any], reason: str) -> None:
    authenticator = server(new_context=lambda: FakeContext(SERVER_TOKEN, **context))
    error, sent, stream = served(authenticator, HELLO)
    assert isinstance(error, AuthFailed)
    assert reason in str(error)
    assert sent == octets(WELCOME + ABORT)
    stream.close()


def test_a_request_behind_the_level_in_the_same_segment_is_kept() -> None:
    request = "05 01 00 01 c0 00 02 01 00 50"
    sealed = f"01 03 00 0c 01 01 {turned(octets(request)).hex()}"
    more = "01 03 00 05 02 01 98 9a 8b"
    grant, _, stream = served(server(), HELLO + "01 02 00 03 00 00 02" + sealed + more)
    assert isinstance(grant, Grant)
    assert grant.stream.recv(4) == octets("05 01 00 01")
    assert grant.stream.recv(1024) == octets("c0 00 02 01 00 50")
    assert read_all(grant.stream) == b"get"
    stream.close()


def test_clear_octets_behind_level_0_are_kept() -> None:
    authenticator = server(levels=[CLEAR])
    grant, _, stream = served(authenticator, HELLO + "01 02 00 03 00 00 00" + "05 01 00")
    assert isinstance(grant, Grant)
    assert grant.stream is stream
    assert stream.recv(100) == octets("05 01 00")
    stream.close()


# The choice of a level

FULL, SIGNING = ALL, ContextFlag.INTEG | ContextFlag.SEQUENCE
CHOICES = [
    # asked, granted, flags, answered
    (2, {CONFIDENTIALITY, INTEGRITY}, FULL, 2),
    (1, {CONFIDENTIALITY, INTEGRITY}, FULL, 1),
    (1, {CONFIDENTIALITY}, FULL, 2),
    (1, {CONFIDENTIALITY}, SIGNING, None),
    (2, {CONFIDENTIALITY, INTEGRITY}, SIGNING, None),
    (1, {CONFIDENTIALITY, INTEGRITY}, SIGNING, 1),
    (2, {INTEGRITY, CLEAR}, FULL, None),
    (1, {CLEAR}, FULL, None),
    (3, {CONFIDENTIALITY, INTEGRITY, CLEAR}, FULL, 2),
    (3, {CONFIDENTIALITY, INTEGRITY}, SIGNING, 1),
    (3, {CLEAR}, FULL, None),
    (0, {CLEAR, CONFIDENTIALITY}, FULL, 0),
    (0, {CONFIDENTIALITY}, FULL, None),
    (0, {CLEAR}, ContextFlag(0), 0),
    (1, {INTEGRITY}, ContextFlag(0), None),
    (2, {CONFIDENTIALITY}, ContextFlag.CONF | ContextFlag.SEQUENCE, None),
    (4, {CONFIDENTIALITY, INTEGRITY, CLEAR}, FULL, None),
    (255, {CONFIDENTIALITY, INTEGRITY, CLEAR}, FULL, None),
    (2, {CONFIDENTIALITY, INTEGRITY}, UNSEQUENCED, None),
    (1, {CONFIDENTIALITY, INTEGRITY}, UNSEQUENCED, None),
    (3, {CONFIDENTIALITY, INTEGRITY}, UNSEQUENCED, None),
    (2, {CONFIDENTIALITY, INTEGRITY, CLEAR}, UNSEQUENCED, None),
    (0, {CONFIDENTIALITY, INTEGRITY, CLEAR}, UNSEQUENCED, 0),
    (0, {CONFIDENTIALITY, INTEGRITY}, UNSEQUENCED, None),
]


@pytest.mark.parametrize(("asked", "granted", "flags", "answered"), CHOICES)
def test_the_level_is_what_is_asked_or_stronger_or_refused(
    asked: int, granted: set[ProtectionLevel], flags: ContextFlag, answered: int | None
) -> None:
    if answered is None:
        with pytest.raises(AuthFailed, match="no protection level"):
            choose_level(asked, granted, flags)
    else:
        assert choose_level(asked, granted, flags) == answered


def test_granting_clear_answers_everybody_with_0() -> None:
    for asked in range(256):
        assert choose_level(asked, {CONFIDENTIALITY}, FULL, grant_clear=True) == CLEAR


@pytest.mark.parametrize(("asked", "granted", "flags", "answered"), CHOICES)
def test_sequence_is_all_that_can_be_done_without(
    asked: int, granted: set[ProtectionLevel], flags: ContextFlag, answered: int | None
) -> None:
    """With ``unsequenced`` a context without SEQUENCE gets what one with it gets."""
    with_it = outcome_of(asked, granted, flags | ContextFlag.SEQUENCE)
    assert outcome_of(asked, granted, flags & ~ContextFlag.SEQUENCE, unsequenced=True) == with_it
    assert outcome_of(asked, granted, flags | ContextFlag.SEQUENCE, unsequenced=True) == with_it


def outcome_of(asked: int, *args: Any, **options: bool) -> ProtectionLevel | str:
    try:
        return choose_level(asked, *args, **options)
    except AuthFailed as error:
        return str(error)


def test_no_level_is_granted_that_the_context_cannot_do() -> None:
    for asked, flags in product(range(5), (SIGNING, ContextFlag(0))):
        try:
            level = choose_level(asked, {CONFIDENTIALITY, INTEGRITY}, flags)
        except AuthFailed:
            continue
        assert level == INTEGRITY
        assert flags & ContextFlag.INTEG


def test_a_context_that_only_signs_says_so_in_the_refusal() -> None:
    with pytest.raises(AuthFailed, match="granted that this context can do: integrity"):
        choose_level(2, {CONFIDENTIALITY, INTEGRITY}, SIGNING)


@pytest.mark.parametrize("levels", [[], [SELECTIVE], [CONFIDENTIALITY, SELECTIVE]])
def test_levels_that_cannot_be_granted_are_a_configuration_error(
    levels: list[ProtectionLevel],
) -> None:
    with pytest.raises(ConfigError, match="GSSAPI levels"):
        server(levels=levels)


# The client's half

PRESENTED = [
    pytest.param({}, "01 02 00 03 00 00 02", "01 02 00 03 00 00 02", "confidentiality", id="2"),
    pytest.param(
        {"level": INTEGRITY}, "01 02 00 03 00 00 01", "01 02 00 03 00 00 01", "integrity", id="1"
    ),
    pytest.param(
        {"level": INTEGRITY},
        "01 02 00 03 00 00 01",
        "01 02 00 03 00 00 02",
        "confidentiality",
        id="more-than-asked",
    ),
    pytest.param({"level": CLEAR}, "01 02 00 03 00 00 00", "01 02 00 03 00 00 00", "clear", id="0"),
    pytest.param(
        {"level": CLEAR}, "01 02 00 03 00 00 00", "01 02 00 03 00 00 01", "integrity", id="0-gets-1"
    ),
    pytest.param({"nec": True}, "01 02 00 01 02", "01 02 00 01 02", "confidentiality", id="nec"),
    pytest.param(
        {"nec": True}, "01 02 00 01 02", "01 02 00 03 00 00 02", "confidentiality", id="nec-wrapped"
    ),
]


@pytest.mark.parametrize("trickle", [False, True])
@pytest.mark.parametrize(("options", "asks", "answers", "detail"), PRESENTED)
def test_client_transcripts(
    options: dict[str, Any], asks: str, answers: str, detail: str, trickle: bool
) -> None:
    grant, sent, stream = exchange(client(**options).present, WELCOME + answers, trickle)
    assert isinstance(grant, Grant), grant
    assert sent == octets(HELLO + asks)
    assert grant.detail == detail
    assert isinstance(grant.stream, GssStream) == (detail != "clear")
    stream.close()


ASKS = HELLO + "01 02 00 03 00 00 02"
DISLIKED = [
    pytest.param(
        {}, "01 ff", HELLO, AuthFailed, "refused our GSSAPI context", id="refused-at-once"
    ),
    pytest.param({}, WELCOME + "01 ff", ASKS, AuthFailed, "refused our", id="refused-by-name"),
    pytest.param({}, "01 01 00 00", HELLO, AuthFailed, "empty context token", id="empty-token"),
    pytest.param({}, "01 01 00 01 00", HELLO, AuthFailed, "Invalid token", id="wrong-token"),
    pytest.param({}, "01 02 00 01 02", HELLO, ProtocolError, "expected 0x01", id="level-at-once"),
    pytest.param({}, "05 ff", HELLO, ProtocolError, "VER is 0x05", id="no-frame"),
    pytest.param({}, "", HELLO, Truncated, "closed before", id="closed"),
    pytest.param({}, WELCOME, ASKS, Truncated, "closed before", id="closed-later"),
    pytest.param({}, WELCOME + WELCOME, ASKS, ProtocolError, "expected 0x02", id="second-token"),
    pytest.param(
        {}, WELCOME + "01 01 00 00" * 2, ASKS, ProtocolError, "expected 0x02", id="two-empty-tokens"
    ),
    pytest.param(
        {},
        WELCOME + "01 02 00 03 00 00 01",
        ASKS,
        AuthFailed,
        "grants integrity only",
        id="1-for-2",
    ),
    pytest.param(
        {}, WELCOME + "01 02 00 03 00 00 00", ASKS, AuthFailed, "grants clear only", id="0-for-2"
    ),
    pytest.param(
        {}, WELCOME + "01 02 00 03 00 00 03", ASKS, AuthFailed, "level selective", id="3-for-2"
    ),
    pytest.param(
        {}, WELCOME + "01 02 00 03 00 00 07", ASKS, AuthFailed, "level 0x07", id="no-level"
    ),
    pytest.param(
        {}, WELCOME + "01 02 00 01 02", ASKS, ProtocolError, "not unwrap", id="bare-without-option"
    ),
    pytest.param(
        {"nec": True},
        WELCOME + "01 02 00 01 00",
        HELLO + "01 02 00 01 02",
        AuthFailed,
        "grants clear only",
        id="nec-does-not-weaken",
    ),
]


@pytest.mark.parametrize(("options", "gets", "sends", "error", "reason"), DISLIKED)
def test_client_gives_up_with_a_reason(
    options: dict[str, Any], gets: str, sends: str, error: type[Exception], reason: str
) -> None:
    outcome, sent, stream = exchange(client(**options).present, gets)
    assert type(outcome) is error, outcome
    assert reason in str(outcome)
    assert sent == octets(sends)
    stream.close()


def test_client_skips_the_empty_token_that_it_had_no_need_of() -> None:
    """A server whose context completes without a token sends 01 01 00 00 (section 3.6)."""
    credential = client(new_context=lambda: FakeContext(CLIENT_TOKEN))
    gets = "01 01 00 00" + "01 02 00 03 00 00 02"
    grant, sent, stream = exchange(credential.present, gets)
    assert isinstance(grant, Grant)
    assert sent == octets(ASKS)
    stream.close()


@pytest.mark.parametrize(
    ("flags", "level", "reason"),
    [
        (ALL & ~ContextFlag.MUTUAL, CONFIDENTIALITY, "did not prove"),
        (ALL & ~ContextFlag.CONF, CONFIDENTIALITY, "cannot do confidentiality"),
        (ALL & ~ContextFlag.INTEG, INTEGRITY, "cannot do integrity"),
        (ALL & ~ContextFlag.CONF, INTEGRITY, "cannot do confidentiality"),
        (UNSEQUENCED, INTEGRITY, "cannot do integrity"),
    ],
)
def test_client_wants_a_context_that_does_what_it_must(
    flags: ContextFlag, level: ProtectionLevel, reason: str
) -> None:
    credential = client(
        level=level, new_context=lambda: FakeContext(CLIENT_TOKEN, None, flags=flags)
    )
    error, _, stream = exchange(credential.present, WELCOME + "01 02 00 03 00 00 02")
    assert isinstance(error, AuthFailed)
    assert reason in str(error)
    stream.close()


def test_client_gives_up_after_ten_tokens() -> None:
    credential = client(new_context=lambda: FakeContext(*[b"?"] * 11))
    error, sent, stream = exchange(credential.present, WELCOME * 10)
    assert isinstance(error, AuthFailed)
    assert sent == octets("01 01 00 01 3f" * 10)
    stream.close()


def test_client_does_not_ask_for_a_level_of_each_message() -> None:
    with pytest.raises(ConfigError):
        client(level=SELECTIVE)


def test_both_halves_are_what_sessions_ask_for() -> None:
    authenticator: Authenticator = server()
    credential: Credential = client()
    assert authenticator.method == credential.method == Method.GSSAPI == 1
    assert repr(credential) == "GssCredential('rcmd@proxy.example.org', level=CONFIDENTIALITY)"


@pytest.mark.parametrize("level", [INTEGRITY, CONFIDENTIALITY])
def test_client_and_server_agree(level: ProtectionLevel) -> None:
    one, two = socketpair()
    ours, theirs = Connection.take(one), Connection.take(two)
    serving = gevent.spawn(server().authenticate, ours, PEER)
    up, down = client(level=level).present(theirs), serving.get()
    assert up.detail == down.detail == level.name.lower()
    up.stream.sendall(b"question" * 1000)
    up.stream.shutdown(SHUT_WR)
    assert read_all(down.stream) == b"question" * 1000
    down.stream.sendall(b"answer")
    down.stream.close()
    assert read_all(up.stream) == b"answer"
    up.stream.close()


def test_the_module_is_importable_without_gssapi_and_makes_no_hub() -> None:
    program = """
import sys
sys.modules["gssapi"] = None
from geosocks.auth.gss import GssAuthenticator, GssCredential
from geosocks.errors import ConfigError
GssCredential("proxy.example.org")
try:
    GssAuthenticator()
except ConfigError as error:
    print(error)
from gevent._hub_local import get_hub_if_exists
from gevent import monkey
assert get_hub_if_exists() is None
assert not monkey.is_anything_patched()
try:
    GssCredential("proxy.example.org").present(None)
except ConfigError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    lines = run.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert "pip install 'geosocks[gssapi]'" in line
        assert "libgssapi" in line
