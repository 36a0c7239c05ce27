"""Events and running sessions become counts in a row."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from geosocks.codes import Cmd, Method, Rep
from geosocks.entrance import REASONS
from geosocks.events import (
    AcceptPaused,
    AuthenticationFailed,
    ConnectionRefused,
    Draining,
    FanOut,
    LimitReached,
    NegotiationEnded,
    Reloaded,
    ReloadRefused,
    SessionClosed,
    SessionCrashed,
    SessionOpened,
    UdpEnded,
    UpstreamFailed,
)
from geosocks.metrics import cells as c
from geosocks.metrics.cells import BOUNDS, MICRO, Cells, Family
from geosocks.metrics.observer import TURN, Metrics
from geosocks.policy import Policy
from geosocks.server import Server
from geosocks.shared import Layout, Slab
from geosocks.wire.socks5 import UNSPECIFIED
from tests.support.net import echo, recv_exactly, serving, wait_for
from tests.support.servers import EVERYWHERE, dial, greeted, proxy, read_reply, request


class Sheet:
    """A slab of two rows, and the metrics of the second."""

    def __init__(self) -> None:
        layout = Layout()
        layout.cell("somebody else's")
        self.cells = Cells.take(layout)
        self.slab: Slab = layout.slab(2)
        self.metrics = Metrics(self.cells, self.slab.row(1))

    def count(self, family: Family, *labels: str) -> int:
        return self.slab.total(self.cells.one(family, *labels))

    def counts(self, family: Family) -> dict[tuple[str, ...], int]:
        """Those that are not zero."""
        found = zip(family.values, map(self.slab.total, self.cells.of(family)), strict=True)
        return {labels: count for labels, count in found if count}

    def histogram(self, family: Family) -> list[int]:
        return [self.slab.total(cell) for cell in self.cells.of(family)]


@pytest.fixture
def sheet() -> Sheet:
    return Sheet()


CLOSED = SessionClosed(
    1,
    client=UNSPECIFIED,
    method=Method.USERNAME,
    identity="alice",
    command=Cmd.CONNECT,
    destination=UNSPECIFIED,
    dialled=UNSPECIFIED,
    rule="allow",
    reason="closed",
    up=10,
    down=20,
    seconds=3.0,
    reply=Rep.SUCCEEDED,
    handshake=0.002,
    connect=0.2,
)


def test_the_end_of_a_session_tells_all_of_it(sheet: Sheet) -> None:
    sheet.metrics(CLOSED)
    assert sheet.counts(c.SESSIONS) == {("connect", "succeeded"): 1}
    assert sheet.counts(c.SESSION_ENDS) == {("closed",): 1}
    assert sheet.counts(c.OCTETS) == {("up",): 10, ("down",): 20}
    assert sheet.counts(c.AUTHENTICATIONS) == {("username", "success"): 1}
    handshake, connect = sheet.histogram(c.HANDSHAKE), sheet.histogram(c.CONNECT)
    assert handshake[BOUNDS.index(0.0025)] == 1
    assert connect[BOUNDS.index(0.25)] == 1
    assert (handshake[-1], connect[-1]) == (2000, 200_000)
    assert sum(handshake[:-1]) == sum(connect[:-1]) == 1


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(0.0, 0), (0.001, 0), (0.0011, 1), (10.0, len(BOUNDS) - 1), (10.1, len(BOUNDS)), (1e6, -2)],
)
def test_a_time_goes_into_the_bucket_of_its_bound(
    sheet: Sheet, seconds: float, bucket: int
) -> None:
    sheet.metrics(replace(CLOSED, handshake=seconds))
    assert sheet.histogram(c.HANDSHAKE)[bucket] == 1


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        pytest.param({"reply": Rep.NOT_ALLOWED}, ("connect", "not_allowed"), id="refused"),
        pytest.param({"command": Cmd.BIND, "reply": None}, ("bind", "none"), id="given-up"),
        pytest.param({"command": 9, "reply": 7}, ("other", "command_not_supported"), id="command"),
        pytest.param({"command": None, "reply": 8}, ("other", "address_type_not_supported")),
        pytest.param({"reply": 0x63}, ("connect", "other"), id="an-upstream's-reply"),
    ],
)
def test_command_and_reply_come_from_closed_sets(
    sheet: Sheet, changes: dict[str, Any], labels: tuple[str, str]
) -> None:
    sheet.metrics(replace(CLOSED, **changes))
    assert sheet.counts(c.SESSIONS) == {labels: 1}


@pytest.mark.parametrize(
    ("method", "label"),
    [
        (0, "none"),
        (1, "gssapi"),
        (2, "username"),
        (3, "other"),
        (0x80, "private"),
        (0xFE, "private"),
        (0xFF, "other"),
        (None, "other"),
    ],
)
def test_methods_come_from_a_closed_set(sheet: Sheet, method: int | None, label: str) -> None:
    sheet.metrics(replace(CLOSED, method=method))
    assert sheet.counts(c.AUTHENTICATIONS) == {(label, "success"): 1}


@pytest.mark.parametrize(
    ("reason", "label"),
    [
        ("closed", "closed"),
        ("reset_by_target", "reset_by_target"),
        ("broken_by_client: bad frame: no", "broken_by_client"),
        ("given_up", "given_up"),
        ("no_longer_allowed", "no_longer_allowed"),
        ("a word of an embedder's", "other"),
        ("", "other"),
    ],
)
def test_ends_come_from_a_closed_set(sheet: Sheet, reason: str, label: str) -> None:
    sheet.metrics(replace(CLOSED, reason=reason))
    assert sheet.counts(c.SESSION_ENDS) == {(label,): 1}


def test_who_made_no_request_is_no_session_of_any_command(sheet: Sheet) -> None:
    nothing = replace(
        CLOSED, command=None, reply=None, handshake=None, connect=None, reason="refused"
    )
    sheet.metrics(NegotiationEnded(1, UNSPECIFIED, "why", "timeout"))
    sheet.metrics(nothing)
    sheet.metrics(AuthenticationFailed(2, UNSPECIFIED, Method.GSSAPI, "mallory", "no"))
    sheet.metrics(nothing)
    sheet.metrics(replace(nothing, method=None, reason="nothing_said"))
    assert sheet.counts(c.SESSIONS) == {}
    assert sheet.counts(c.REFUSED) == {("timeout",): 1, ("authentication",): 1}
    assert sheet.counts(c.AUTHENTICATIONS) == {("gssapi", "failure"): 1}
    assert sheet.counts(c.SESSION_ENDS) == {("refused",): 2, ("nothing_said",): 1}
    assert not any(sheet.histogram(c.HANDSHAKE))


def test_rare_events_are_counted(sheet: Sheet) -> None:
    for event in (
        LimitReached("sessions", 10),
        LimitReached("a limit of tomorrow", 10),
        AcceptPaused("too many open files", 7, 0.1),
        UpstreamFailed("office", "refused", 30.0),
        SessionCrashed(1, "boom", ""),
        UdpEnded(1, None, UNSPECIFIED, UNSPECIFIED, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11),
    ):
        assert sheet.metrics.wants(type(event))
        sheet.metrics(event)
    assert sheet.counts(c.LIMITS_REACHED) == {("sessions",): 1, ("other",): 1}
    assert sheet.count(c.ACCEPT_PAUSES) == 7
    assert sheet.count(c.UPSTREAM_FAILURES) == sheet.count(c.CRASHES) == 1
    assert sheet.counts(c.UDP) == {
        ("up", "relayed"): 1,
        ("down", "relayed"): 2,
        ("up", "strangers"): 3,
        ("up", "malformed"): 4,
        ("up", "fragments"): 5,
        ("up", "denied"): 6,
        ("up", "unresolved"): 7,
        ("up", "overflow"): 8,
        ("down", "unasked"): 9,
        ("down", "too_long"): 10,
        ("either", "failed"): 11,
    }


@pytest.mark.parametrize(
    ("reason", "label"),
    [*((reason, reason) for reason in REASONS), ("a reason of tomorrow", "other")],
)
def test_connections_refused_at_once_are_counted(sheet: Sheet, reason: str, label: str) -> None:
    sheet.metrics(ConnectionRefused(UNSPECIFIED, "here", reason))
    assert sheet.counts(c.REFUSED) == {(label,): 1}


def test_reloads_and_drain_show_in_gauges(sheet: Sheet) -> None:
    sheet.metrics.begin()
    loaded = sheet.count(c.CONFIG_LOADED)
    assert (sheet.count(c.UP), sheet.count(c.CONFIG_GOOD), sheet.count(c.DRAINING)) == (1, 1, 0)
    sheet.metrics(ReloadRefused("rules.conf:1: no"))
    assert (sheet.count(c.CONFIG_GOOD), sheet.count(c.CONFIG_LOADED)) == (0, loaded)
    sheet.metrics(Reloaded("policy"))
    assert sheet.count(c.CONFIG_GOOD) == 1
    assert sheet.count(c.CONFIG_LOADED) >= loaded > 1_700_000_000 * MICRO
    sheet.metrics(Draining(3, 30.0))
    assert sheet.count(c.DRAINING) == 1


def test_what_is_not_counted_is_not_asked_for(sheet: Sheet) -> None:
    assert not sheet.metrics.wants(SessionOpened)
    assert sheet.metrics.wants(SessionClosed)


def test_a_row_of_its_own_is_all_that_it_writes(sheet: Sheet) -> None:
    sheet.metrics.begin()
    sheet.metrics.measure_process()
    sheet.metrics(CLOSED)
    assert not any(sheet.slab.row(0))
    assert sheet.slab.row(1)[0] == 0  # somebody else's


def test_counts_outlive_a_worker_and_its_gauges_do_not(sheet: Sheet) -> None:
    sheet.metrics.begin()
    sheet.metrics.measure_process()
    sheet.metrics(CLOSED)
    sheet.slab.forget(1)
    assert {sheet.count(family) for family in c.FAMILIES if family.kind == "gauge"} == {0}
    next_one = Metrics(sheet.cells, sheet.slab.row(1))
    next_one(CLOSED)
    assert sheet.counts(c.SESSIONS) == {("connect", "succeeded"): 2}


def test_an_orderly_end_clears_the_gauges_too(sheet: Sheet) -> None:
    sheet.metrics.begin()
    sheet.metrics.measure_process()
    sheet.metrics.end()
    assert {sheet.count(family) for family in c.FAMILIES if family.kind == "gauge"} == {0}


def test_the_process_is_measured(sheet: Sheet) -> None:
    sheet.metrics.measure_process()
    assert sheet.count(c.CPU) > 0
    assert sheet.count(c.MEMORY) > 1 << 20
    with open("/dev/null", "rb"):
        before = sheet.count(c.DESCRIPTORS)
        sheet.metrics.measure_process()
        assert sheet.count(c.DESCRIPTORS) == before + 1 > 3


# --- running sessions -------------------------------------------------------------------------


@pytest.fixture
def running(sheet: Sheet) -> Iterator[tuple[Sheet, Server, tuple[str, int]]]:
    with proxy(Policy(rules=EVERYWHERE)) as (server, _), serving(echo) as target:
        server.emit.add(sheet.metrics)
        yield sheet, server, target


@pytest.mark.usefixtures("no_leaks")
def test_octets_of_a_running_session_count_once(
    running: tuple[Sheet, Server, tuple[str, int]],
) -> None:
    sheet, server, target = running
    shares: list[tuple[int, int]] = []
    with dial(server) as idle, greeted(server) as sock:
        wait_for(lambda: len(server.sessions) == 2)
        sock.sendall(request(1, *target))
        read_reply(sock)
        for octets in (5, 7):
            sock.sendall(b"x" * octets)
            recv_exactly(sock, octets)
            for _ in range(2):
                sheet.metrics.look(server, [lambda _, up, down: shares.append((up, down))])
        assert shares == [(5, 5), (7, 7)]
        assert sheet.count(c.OCTETS, "up") == sheet.count(c.OCTETS, "down") == 12
        assert (sheet.count(c.ACTIVE), sheet.count(c.HANDSHAKES)) == (2, 1)
        assert sheet.count(c.CEILING) == server.max_sessions
        sock.sendall(b"x")
        recv_exactly(sock, 1)
        idle.close()
    wait_for(lambda: not server.sessions)
    assert sheet.count(c.OCTETS, "up") == sheet.count(c.OCTETS, "down") == 13
    assert not sheet.metrics._told
    sheet.metrics.look(server)
    assert sheet.count(c.ACTIVE) == 0


def test_looking_at_many_sessions_lets_others_run_and_leaves_out_who_has_gone(
    sheet: Sheet,
) -> None:
    sessions = {
        number: SimpleNamespace(
            id=number, requested=1.0, meter=SimpleNamespace(up=1, down=0, datagrams=0)
        )
        for number in range(2 * TURN)
    }
    server = SimpleNamespace(sessions=sessions, max_sessions=9)

    def gone() -> None:
        for number in range(TURN, 2 * TURN):
            del sessions[number]

    other = gevent.spawn(gone)
    sheet.metrics.look(server)
    assert other.ready()
    assert sheet.count(c.OCTETS, "up") == TURN
    assert sheet.count(c.ACTIVE) == TURN


def test_an_observer_that_counts_never_fails(sheet: Sheet) -> None:
    fan = FanOut([sheet.metrics])
    fan(replace(CLOSED, command=77, reply=99, method=77, reason="?"))
    fan(NegotiationEnded(1, UNSPECIFIED, "why"))
    assert fan.failures == 0
