"""Sessions as rows: what is told of each state, in what order, and that others get their turn."""

import json
import time

import gevent
import pytest

from geosocks.policy import Policy, Timeouts
from geosocks.rows import TURN, session_row, session_rows
from geosocks.wire.socks5 import Address
from tests.support.net import echo, recv_exactly, serving, wait_for
from tests.support.servers import EVERYWHERE, dial, greeted, proxy, read_reply, request

pytestmark = pytest.mark.usefixtures("no_leaks")


def test_a_session_in_its_handshake_has_nothing_to_tell_but_where_it_comes_from() -> None:
    with proxy() as (server, _), dial(server) as sock:
        wait_for(lambda: server.sessions)
        (session,) = server.sessions.values()
        row = session_row(session, session.opened + 1.5, worker=3)
        host, port = sock.getsockname()
        told = {name: value for name, value in row.items() if value is not None}
        assert told == {
            "session": session.id,
            "worker": 3,
            "state": "handshake",
            "client": f"{host}:{port}",
            "listener": server.listening[0].name,
            "version": 5,
            "up": 0,
            "down": 0,
            "datagrams": 0,
            "seconds": 1.5,
        }


def test_an_open_session_tells_whom_it_serves_and_where_it_leads() -> None:
    policy = Policy(rules=EVERYWHERE, timeouts=Timeouts(half_close=0.2))
    with serving(echo) as to, proxy(policy) as (server, _), greeted(server) as sock:
        sock.sendall(request(1, *to) + b"four")
        assert read_reply(sock).rep == 0
        assert recv_exactly(sock, 4) == b"four"
        wait_for(lambda: next(session_rows(server))["idle"])
        (row,) = session_rows(server)
        assert row["state"] == "open"
        assert (row["command"], row["method"], row["identity"]) == ("connect", "none", None)
        assert row["destination"] == row["dialled"] == f"{to[0]}:{to[1]}"
        assert row["rule"] == "rules:1: allow to everywhere"
        assert (row["up"], row["down"]) == (4, 4)
        assert 0 < row["idle"] < row["seconds"] < 5
        assert json.loads(json.dumps(row)) == row
        sock.sendall(b"more")
        assert recv_exactly(sock, 4) == b"more"
        (session,) = server.sessions.values()
        assert server.silence(session, time.monotonic()) == 0.0


def test_what_a_client_says_is_escaped() -> None:
    with proxy() as (server, _), dial(server):
        wait_for(lambda: server.sessions)
        (session,) = server.sessions.values()
        session.identity = "eve\x1b[2J\n"
        session.destination = Address("a\tb", 1)
        row = session_row(session, time.monotonic())
        assert row["identity"] == r"eve\x1b[2J\x0a"
        assert row["destination"] == r"a\x09b:1"


def test_rows_come_by_id_and_others_get_their_turn() -> None:
    turns = 0

    def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            gevent.sleep(0)

    with proxy() as (server, _):
        socks = [dial(server) for _ in range(2 * TURN + 1)]
        wait_for(lambda: len(server.sessions) == len(socks))
        rows = session_rows(server, wanted=lambda session: session.id % 2 == 1)
        first = next(rows)
        gone = max(server.sessions)
        server.cut(server.sessions[gone])
        wait_for(lambda: gone not in server.sessions)
        other = gevent.spawn(others)
        before = turns
        ids = [first["session"], *(row["session"] for row in rows)]
        assert turns - before >= 2
        other.kill()
        assert ids == sorted(ids)
        assert gone not in ids
        assert all(number % 2 for number in ids)
        assert len(ids) >= TURN
        for sock in socks:
            sock.close()
