"""What a session's last event, and that of a failed handshake, tell those who count."""

from collections.abc import Callable

import gevent
import gevent.socket
import pytest

from geosocks.codes import Rep
from geosocks.errors import AuthFailed
from geosocks.events import NEGOTIATION_ENDS, NegotiationEnded, SessionClosed, plain
from geosocks.policy import Policy, Timeouts
from geosocks.rules import RuleSet
from tests.support.net import echo, recv_all, recv_exactly, serving, unused_port
from tests.support.servers import EVERYWHERE, dial, greeted, proxy, read_reply, request

pytestmark = pytest.mark.usefixtures("no_leaks")


def test_a_relayed_session_tells_its_reply_and_how_long_each_part_took() -> None:
    with proxy() as (server, witness), serving(echo) as target:
        with greeted(server) as sock:
            gevent.sleep(0.05)
            sock.sendall(request(1, *target))
            assert read_reply(sock).rep == Rep.SUCCEEDED
        closed = witness.wait(SessionClosed)
    assert closed.reply == Rep.SUCCEEDED
    assert closed.handshake is not None
    assert closed.connect is not None
    assert 0.05 <= closed.handshake < closed.handshake + closed.connect <= closed.seconds


def test_a_target_that_refuses_has_a_reply_and_was_not_reached() -> None:
    with proxy() as (server, witness), greeted(server) as sock:
        sock.sendall(request(1, "127.0.0.1", unused_port()))
        assert read_reply(sock).rep == Rep.CONNECTION_REFUSED
        sock.close()
        closed = witness.wait(SessionClosed)
    assert (closed.reply, closed.connect) == (Rep.CONNECTION_REFUSED, None)
    assert closed.handshake is not None


@pytest.mark.parametrize(
    ("sent", "reply"),
    [
        pytest.param(request(9, "127.0.0.1", 1), Rep.COMMAND_NOT_SUPPORTED, id="command"),
        pytest.param(b"\x05\x01\x00\x07", Rep.ADDRESS_TYPE_NOT_SUPPORTED, id="address-type"),
        pytest.param(request(1, "127.0.0.1", 9), Rep.NOT_ALLOWED, id="denied"),
    ],
)
def test_a_refusal_tells_which(sent: bytes, reply: Rep) -> None:
    with proxy(Policy(rules=RuleSet.parse("deny"))) as (server, witness):
        sock = greeted(server)
        sock.sendall(sent)
        assert recv_exactly(sock, 2) == bytes((5, reply))
        sock.close()
        assert witness.wait(SessionClosed).reply == reply


def test_who_crashes_a_session_is_answered_and_counted() -> None:
    class Broken:
        def resolve(self, name: str) -> tuple[()]:
            raise ZeroDivisionError

    with proxy(Policy(rules=EVERYWHERE, resolver=Broken())) as (server, witness):
        sock = greeted(server)
        sock.sendall(request(1, "www.example.org", 80))
        assert read_reply(sock).rep == Rep.GENERAL_FAILURE
        sock.close()
        assert witness.wait(SessionClosed).reply == Rep.GENERAL_FAILURE


def cut_short(sock: gevent.socket.socket) -> None:
    sock.sendall(b"\x05\x02\x00")
    sock.close()


def late(sock: gevent.socket.socket) -> None:
    sock.sendall(b"\x05\x01\x00\x05")
    assert recv_exactly(sock, 2) == b"\x05\x00"
    recv_all(sock)
    sock.close()


def no_method(sock: gevent.socket.socket) -> None:
    sock.sendall(b"\x05\x01\x99")
    assert recv_exactly(sock, 2) == b"\x05\xff"
    sock.close()


def nonsense(sock: gevent.socket.socket) -> None:
    sock.sendall(b"\x99\x99")
    sock.close()


@pytest.mark.parametrize(
    ("client", "kind"),
    [(cut_short, "gone"), (late, "timeout"), (no_method, "no_method"), (nonsense, "protocol")],
)
def test_a_handshake_that_fails_tells_its_kind(
    client: Callable[[gevent.socket.socket], None], kind: str
) -> None:
    assert kind in NEGOTIATION_ENDS
    with proxy(timeouts=Timeouts(negotiation=0.2)) as (server, witness):
        client(dial(server))
        assert witness.wait(NegotiationEnded).kind == kind
        closed = witness.wait(SessionClosed)
        assert (closed.reply, closed.handshake, closed.connect) == (None, None, None)


def test_a_failed_login_has_no_reply() -> None:
    class Strict:
        method = 0x80

        def authenticate(self, stream: object, peer: object) -> None:
            raise AuthFailed("no")

    with proxy(Policy(rules=EVERYWHERE, authenticators=(Strict(),))) as (server, witness):  # type: ignore[arg-type]
        sock = dial(server)
        sock.sendall(b"\x05\x01\x80")
        assert recv_exactly(sock, 2) == b"\x05\x80"
        sock.close()
        closed = witness.wait(SessionClosed)
        assert (closed.method, closed.reply) == (0x80, None)


def test_figures_for_counting_stay_out_of_the_log() -> None:
    with proxy() as (server, witness), serving(echo) as target, greeted(server) as sock:
        sock.sendall(request(1, *target))
        read_reply(sock)
        sock.close()
        shown = plain(witness.wait(SessionClosed))
    assert shown["reason"] == "closed"
    assert not {"reply", "handshake", "connect"} & shown.keys()
