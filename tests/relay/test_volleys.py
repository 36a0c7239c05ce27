"""Short messages to and fro: none lost, none elsewhere, and nobody else kept waiting.

The far ends are in threads of their own, as the hub itself is what waits for them.  On the source
the tests bring an ``Exchange`` in Python; on the compiled form they meet the real one.
"""

import errno
import os
import random
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from typing import Any

import gevent
import pytest
from gevent.hub import get_hub

from geosocks.greenlets import give_way
from geosocks.relay import volleys
from geosocks.relay.pump import End, Pump, abort
from geosocks.relay.volleys import DOUBT, MOST_DOUBT, Volleys, volleys_of
from geosocks.relay.way import Meter
from geosocks.stream import Connection
from tests.support import exchange as in_python
from tests.support.net import recv_exactly, wait_for

pytestmark = pytest.mark.usefixtures("no_leaks")

try:
    Exchange: Any = import_module("geosocks.in_c.exchange")
except ImportError:
    Exchange = in_python

SECONDS = 15.0


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of one TCP connection, as plain sockets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname(), SECONDS)
        other, _ = listener.accept()
    for sock in (one, other):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one, other


def near_end(sock: socket.socket) -> Connection:
    """The hub's end of one."""
    sock.setblocking(False)
    return Connection(sock)


class Relayed:
    """One session, with far ends for threads."""

    def __init__(self, pump: Pump) -> None:
        self.client, near_client = pair()
        self.target, near_target = pair()
        self.near = near_end(near_client), near_end(near_target)
        self.meter = Meter()
        self.relay = gevent.spawn(self._run, pump)

    def _run(self, pump: Pump) -> tuple[End, str | None]:
        end, error = pump.relay(*self.near, self.meter)
        for near in self.near:
            near.close() if end is End.CLOSED else abort(near)
        return end, error

    def close(self) -> None:
        for sock in (self.client, self.target):
            sock.close()
        self.relay.kill()
        for near in self.near:
            near.close()


class Table:
    """Sessions of one pump, and threads for their far ends."""

    def __init__(self) -> None:
        self.pump = Pump()
        if self.pump.volleys is None:
            self.pump.volleys = Volleys(self.pump, Exchange.Exchange(), Exchange.MOST // 2)
        self.volleys = self.pump.volleys
        self.threads = ThreadPoolExecutor(32)
        self.sessions: list[Relayed] = []

    def session(self) -> Relayed:
        """One more."""
        self.sessions.append(Relayed(self.pump))
        return self.sessions[-1]

    def within(self, function: Callable[..., object], *args: Any) -> Any:
        """What ``function`` comes to, in a thread, while the hub goes on."""
        return self.result(self.threads.submit(function, *args))

    def result(self, future: Future[Any]) -> Any:
        """What came of it."""
        with gevent.Timeout(SECONDS, AssertionError("a far end waits for ever")):
            while not future.done():
                gevent.sleep(0.002)
        return future.result()

    def close(self) -> None:
        for session in self.sessions:
            session.close()
        self.threads.shutdown()
        self.pump.close()


@pytest.fixture
def table() -> Iterator[Table]:
    table = Table()
    yield table
    table.close()


def echo(sock: socket.socket) -> None:
    """In a thread: send back what comes, then the end."""
    while data := sock.recv(65536):
        sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def talk(sock: socket.socket, messages: int, seed: int = 0) -> int:
    """In a thread: say something, hear the same, and so on; how many octets."""
    chance, octets = random.Random(seed), 0
    for number in range(messages):
        message = b"%d,%d:" % (seed, number) + chance.randbytes(chance.choice((0, 1, 70, 500)))
        sock.sendall(message)
        assert recv_exactly(sock, len(message)) == message
        octets += len(message)
    return octets


def test_messages_are_passed_on_without_a_turn_of_the_loop_and_counted(table: Table) -> None:
    session = table.session()
    echoing = table.threads.submit(echo, session.target)
    octets = table.within(talk, session.client, 1500)
    assert table.volleys.messages > 100  # most of 3,000, where nothing else runs
    assert (session.meter.up, session.meter.down) == (octets, octets)
    session.client.shutdown(socket.SHUT_WR)
    table.result(echoing)
    assert session.relay.get() == (End.CLOSED, None)


def test_the_sessions_of_a_crowd_are_not_mixed_up(table: Table) -> None:
    sessions = [table.session() for _ in range(12)]
    echoing = [table.threads.submit(echo, session.target) for session in sessions]
    talking = [
        table.threads.submit(talk, session.client, 300, number)
        for number, session in enumerate(sessions)
    ]
    for session, done in zip(sessions, talking, strict=True):
        octets = table.result(done)
        assert (session.meter.up, session.meter.down) == (octets, octets)
    for session in sessions:
        session.client.shutdown(socket.SHUT_WR)
    for done in echoing:
        table.result(done)
    assert [session.relay.get() for session in sessions] == [(End.CLOSED, None)] * len(sessions)
    assert table.volleys.messages > 0


def lively(table: Table, session: Relayed) -> Future[Any]:
    """Have its messages passed on in volleys; the far end that echoes."""
    echoing = table.threads.submit(echo, session.target)
    before = table.volleys.messages
    while table.volleys.messages < before + 100:
        table.within(talk, session.client, 100)
    return echoing


@pytest.mark.parametrize("size", [1, 449, 16_383, 16_384, 16_385, 65_537, 3_000_000])
def test_what_is_no_short_message_arrives_whole(table: Table, size: int) -> None:
    session = table.session()
    lively(table, session)
    before = session.meter.up
    data = os.urandom(size)

    def both(sock: socket.socket) -> bytes:
        sending = threading.Thread(target=sock.sendall, args=(data,))
        sending.start()
        heard = recv_exactly(sock, size)
        sending.join()
        return heard

    for _ in range(3):
        assert table.within(both, session.client) == data
        table.within(talk, session.client, 50)
    assert session.meter.up == session.meter.down > before + 3 * size
    session.client.shutdown(socket.SHUT_WR)
    assert session.relay.get() == (End.CLOSED, None)


def test_an_end_amid_messages_is_passed_on_and_the_other_way_goes_on(table: Table) -> None:
    session = table.session()

    def after_the_end(sock: socket.socket) -> None:
        while data := sock.recv(100):
            sock.sendall(data)
        sock.sendall(b"as I said")
        sock.close()

    answering = table.threads.submit(after_the_end, session.target)

    def end(sock: socket.socket) -> bytes:
        talk(sock, 400)
        sock.shutdown(socket.SHUT_WR)
        return recv_exactly(sock, 9) + sock.recv(1)

    assert table.within(end, session.client) == b"as I said"
    table.result(answering)
    assert session.relay.get() == (End.CLOSED, None)
    assert session.meter.down == session.meter.up + 9


@pytest.mark.parametrize("who", ["client", "target"])
def test_a_reset_amid_messages_is_told_of_whoever_it_was(table: Table, who: str) -> None:
    session = table.session()
    ends = {"client": session.client, "target": session.target}
    stayed = ends["target" if who == "client" else "client"]

    def answer(sock: socket.socket) -> type[Exception] | bytes:
        try:
            while data := sock.recv(100):
                sock.sendall(data)
        except ConnectionResetError as error:
            return type(error)
        return b"an end"

    def leave(sock: socket.socket) -> None:
        talk(sock, 400)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()

    answering = table.threads.submit(answer, stayed)
    table.within(leave, ends[who])
    end, error = session.relay.get()
    assert end is (End.RESET_BY_CLIENT if who == "client" else End.RESET_BY_TARGET)
    assert error == "[Errno 104] Connection reset by peer"
    assert table.result(answering) is ConnectionResetError
    assert table.volleys.messages > 0


def test_what_a_slow_reader_does_not_take_is_kept_for_it(table: Table) -> None:
    session = table.session()
    messages = [b"%06d" % number + b"." * (number % 300) for number in range(30_000)]

    def say(sock: socket.socket) -> None:
        for message in messages:
            sock.sendall(message)
        sock.shutdown(socket.SHUT_WR)

    def hear(sock: socket.socket) -> bytes:
        heard = bytearray()
        while data := sock.recv(5_000):
            heard += data
            if len(heard) % 7 == 0:
                time.sleep(0.001)
        return bytes(heard)

    table.pump.before_volley = 0
    saying = table.threads.submit(say, session.client)
    hearing = table.threads.submit(hear, session.target)
    table.result(saying)
    assert table.result(hearing) == b"".join(messages)
    assert session.meter.up == sum(map(len, messages))
    session.target.close()
    assert session.relay.get()[0] is End.CLOSED


class Clock:
    """How late others have been."""

    def __init__(self) -> None:
        self.late: list[float] = []
        self.greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        while True:
            due = time.monotonic() + 0.004
            gevent.sleep(0.004)
            self.late.append(time.monotonic() - due)


def test_timers_have_their_turn(table: Table) -> None:
    session = table.session()
    clock = Clock()
    lively(table, session)
    clock.late.clear()
    table.within(talk, session.client, 3000)
    clock.greenlet.kill()
    late = sorted(clock.late)
    assert len(late) > 10
    assert late[len(late) // 2] < 0.1, "a volley lasts milliseconds"


def test_whoever_gives_way_goes_on(table: Table) -> None:
    session = table.session()
    turns = 0

    def work() -> None:
        nonlocal turns
        while True:
            give_way()
            turns += 1

    lively(table, session)
    busy = gevent.spawn(work)
    gevent.sleep(0.01)
    before, messages = turns, table.volleys.messages
    table.within(talk, session.client, 300)
    busy.kill()
    assert turns - before > 300
    assert table.volleys.messages == messages  # there was somebody else at any time
    table.within(talk, session.client, 300)
    assert table.volleys.messages > messages


def test_a_new_client_is_not_kept_waiting(table: Table) -> None:
    session = table.session()
    lively(table, session)
    stop = threading.Event()

    def chatter(sock: socket.socket) -> None:
        while not stop.is_set():
            talk(sock, 10)

    chattering = table.threads.submit(chatter, session.client)
    late = []
    for _ in range(20):
        other = table.session()
        table.threads.submit(echo, other.target)
        begun = time.monotonic()
        table.within(talk, other.client, 1)
        late.append(time.monotonic() - begun)
    stop.set()
    table.result(chattering)
    assert sorted(late)[10] < 0.5


def test_a_session_that_is_ended_from_here_is_no_longer_one_of_them(table: Table) -> None:
    session, other = table.session(), table.session()
    lively(table, session)
    assert len(table.volleys._lively) == 1
    session.relay.kill()
    assert not table.volleys._lively
    for near in session.near:
        near.close()
    # Others have those descriptors now.
    third = table.session()
    table.threads.submit(echo, third.target)
    table.threads.submit(echo, other.target)
    for one in (other, third):
        octets = table.within(talk, one.client, 300)
        assert (one.meter.up, one.meter.down) == (octets, octets)


def test_the_silent_are_forgotten_and_there_is_a_limit(table: Table) -> None:
    table.volleys._most = 2
    sessions = [table.session() for _ in range(3)]
    for session in sessions:
        table.threads.submit(echo, session.target)
        table.within(talk, session.client, 9)
    assert len(table.volleys._lively) == 2
    wait_for(lambda: table.within(talk, sessions[2].client, 500) and len(table.volleys._lively) < 2)
    table.within(talk, sessions[2].client, 500)
    [up] = table.volleys._lively
    assert up.source.getpeername() == sessions[2].client.getsockname()


class Idle:
    """An Exchange to which nothing comes."""

    def __init__(self) -> None:
        self.asked = 0

    def run(self, epoll: int, ends: list[int], last: int, around: int) -> Any:
        self.asked += 1
        return 0, [], -1, 0, 0, 0, b""


def test_what_is_not_worth_it_is_tried_less_and_less(table: Table) -> None:
    idle = Idle()
    table.volleys = table.pump.volleys = Volleys(table.pump, idle, 10)
    session = table.session()
    table.threads.submit(echo, session.target)
    passed = 0
    while idle.asked < 6:
        table.within(talk, session.client, 10)
        passed += 20
    assert passed >= DOUBT * (1 + 3 + 7 + 15 + 31)
    for _ in range(20):
        table.volleys._judge(0, 2)
    assert table.pump.before_volley == MOST_DOUBT


def test_not_where_the_loop_is_another_one_or_nothing_is_compiled(table: Table) -> None:
    assert (volleys_of(table.pump) is None) is (Exchange is in_python)

    class Other:
        fileno = pendingcnt = 0

    table.pump.here.loop, loop = Other(), table.pump.here.loop
    try:
        assert volleys_of(table.pump) is None
    finally:
        table.pump.here.loop = loop


@pytest.mark.skipif(Exchange is not in_python, reason="compiled code takes no other one")
def test_it_is_used_where_it_can_be_had(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volleys, "_exchange", in_python)
    found = volleys_of(table.pump)
    assert found is not None
    assert found._most == in_python.MOST // 2


# --- the exchange itself ----------------------------------------------------------------------


class Waiting:
    """Ends beside each other, all waited for by one epoll(7): the loop's, or one that is on it."""

    def __init__(self, pairs: int = 1, is_loops: bool = True) -> None:
        self.epoll = self.loop = select.epoll()
        if not is_loops:
            self.loop = select.epoll()
            self.loop.register(self.epoll, select.EPOLLIN)
        self.far: list[socket.socket] = []
        self.near: list[socket.socket] = []
        for _ in range(2 * pairs):
            far, near = pair()
            self.add(far, near)
        self.exchange = Exchange.Exchange()

    def add(self, far: socket.socket, near: socket.socket) -> None:
        near.setblocking(False)
        self.far.append(far)
        self.near.append(near)
        self.epoll.register(near, select.EPOLLIN)

    def run(self) -> Any:
        ends = [near.fileno() for near in self.near]
        around = -1 if self.loop is self.epoll else self.loop.fileno()
        return self.exchange.run(self.epoll.fileno(), ends, -1, around)

    def close(self) -> None:
        for sock in self.far + self.near:
            sock.close()
        self.epoll.close()
        self.loop.close()


ON_ANOTHER = [] if Exchange is in_python else [False]


@pytest.fixture(params=[True, *ON_ANOTHER])
def waiting(request: pytest.FixtureRequest) -> Iterator[Waiting]:
    waiting = Waiting(2, request.param)
    yield waiting
    waiting.close()


def test_each_end_s_octets_are_for_the_one_beside_it(waiting: Waiting) -> None:
    for number, far in enumerate(waiting.far):
        far.sendall(b"from %d" % number)
    messages, moved, odd, *_ = waiting.run()
    assert (messages, moved, odd) == (4, [(place, 6) for place in range(4)], -1)
    for number, far in enumerate(waiting.far):
        assert far.recv(100) == b"from %d" % (number ^ 1)


def test_silence_is_not_waited_for_long(waiting: Waiting) -> None:
    begun = time.monotonic()
    assert waiting.run() == (0, [], -1, 0, 0, 0, b"")
    assert 0.004 < time.monotonic() - begun < 0.5


def test_a_stranger_s_event_ends_it_and_is_left_to_the_loop(waiting: Waiting) -> None:
    stranger, near = pair()
    with stranger, near:
        waiting.loop.register(near, select.EPOLLIN)
        stranger.sendall(b"hello")
        waiting.far[0].sendall(b"a message")
        begun = time.monotonic()
        messages, moved, odd, *_ = waiting.run()
        assert time.monotonic() - begun < 0.5
        assert (messages, moved, odd) == (1, [(0, 9)], -1)
        assert waiting.loop.poll(0) == [(near.fileno(), select.EPOLLIN)]
        assert near.recv(100) == b"hello"


@pytest.mark.skipif(Exchange is in_python, reason="there is but one epoll")
def test_a_stranger_of_the_loop_s_does_not_wait_for_talkers_to_fall_silent() -> None:
    waiting = Waiting(1, is_loops=False)
    over = threading.Event()

    def talk_on() -> None:
        with suppress(OSError):
            while not over.is_set():
                waiting.far[0].sendall(b"x")
                waiting.far[1].recv(1)

    talking = threading.Thread(target=talk_on)
    talking.start()
    stranger, near = pair()
    with stranger, near:
        waiting.loop.register(near, select.EPOLLIN)
        lasted = []
        for _ in range(20):  # three milliseconds each, or until the stranger has come
            waiting.run()
        stranger.sendall(b"hello")
        gevent.sleep(0.01)
        for _ in range(20):
            begun = time.monotonic()
            assert waiting.run()[2] == -1
            lasted.append(time.monotonic() - begun)
        assert waiting.loop.poll(0)
    over.set()
    talking.join(SECONDS)
    waiting.close()
    assert sorted(lasted)[10] < 0.003


def test_an_end_is_told_of_with_what_came_before_it(waiting: Waiting) -> None:
    waiting.far[3].sendall(b"last words")
    waiting.far[1].shutdown(socket.SHUT_WR)
    outcomes = [waiting.run()]
    while outcomes[-1][2] < 0:
        outcomes.append(waiting.run())
    assert sum(outcome[0] for outcome in outcomes) <= 1
    odd, got, sent, _, rest = outcomes[-1][2:]
    assert (odd, got, sent, rest) == (1, 0, -1, b"")
    waiting.epoll.unregister(waiting.near[1])
    if not any(outcome[0] for outcome in outcomes):
        assert waiting.run()[:3] == (1, [(3, 10)], -1)
    assert waiting.far[2].recv(100) == b"last words"


def test_a_reset_is_left_to_the_loop_which_sees_it(waiting: Waiting) -> None:
    waiting.far[2].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    waiting.far[2].close()
    assert waiting.run()[:3] == (0, [], -1)
    with pytest.raises(ConnectionResetError):
        waiting.near[2].recv(1)


def test_octets_for_one_that_has_gone_are_handed_over_with_the_error(waiting: Waiting) -> None:
    waiting.near[1].shutdown(socket.SHUT_WR)
    waiting.far[0].sendall(b"too late")
    _, moved, odd, got, sent, failure, rest = waiting.run()
    assert (moved, odd, got, sent, failure, rest) == ([], 0, 8, -1, errno.EPIPE, b"too late")


def test_octets_for_one_that_is_full_are_handed_over(waiting: Waiting) -> None:
    filled = 0
    try:
        while True:
            filled += waiting.near[3].send(bytes(65536))
    except BlockingIOError:
        pass
    waiting.far[2].sendall(b"no room")
    _, moved, odd, got, sent, failure, rest = waiting.run()
    assert (moved, odd, got, sent, failure, rest) == ([], 2, 7, -1, errno.EAGAIN, b"no room")
    far = waiting.far[3]
    assert len(recv_exactly(far, filled)) == filled


def test_a_message_of_which_a_part_was_taken_is_handed_over_from_there(waiting: Waiting) -> None:
    one, other = socket.socketpair()  # its room is counted in octets, or nearly
    waiting.near[1].close()
    waiting.far[1].close()
    waiting.near[1], waiting.far[1] = one, other
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
    one.setblocking(False)
    message = os.urandom(16_000)
    waiting.far[0].sendall(message)
    gevent.sleep(0.05)
    _, moved, odd, got, sent, _, rest = waiting.run()
    assert (odd, got) == (0, 16_000)
    assert 0 < sent < 16_000
    assert (moved, rest) == ([(0, sent)], message[sent:])
    assert recv_exactly(other, sent) == message[:sent]


def test_a_descriptor_that_has_nothing_after_all_does_no_harm(waiting: Waiting) -> None:
    """An event of a stranger under one of our numbers: an old one of a loop's, say."""
    waiting.far[0].sendall(b"x")
    places = [near.fileno() for near in waiting.near]
    places[0], places[2] = places[2], places[0]
    waiting.epoll.unregister(waiting.near[0])
    waiting.epoll.register(waiting.near[0], select.EPOLLIN)
    assert waiting.exchange.run(waiting.epoll.fileno(), places)[:2] == (1, [(2, 1)])
    assert waiting.far[3].recv(1) == b"x"


class Answering:
    """Sends back what it is sent, in a thread, until it has heard enough; then it does ``then``."""

    def __init__(self, sock: socket.socket, enough: int, then: Callable[[], object]) -> None:
        self.sock = sock
        self.enough = enough
        self.then = then
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        for _ in range(self.enough):
            if not (data := self.sock.recv(100)):
                return
            self.sock.sendall(data)
        self.then()

    def join(self) -> None:
        self.thread.join(SECONDS)
        assert not self.thread.is_alive()


def until_odd(waiting: Waiting) -> tuple[int, dict[int, int], Any]:
    """Run until an end is not as expected: messages, octets of each place, and what it was."""
    messages, octets = 0, dict.fromkeys(range(4), 0)
    before = time.monotonic()
    while time.monotonic() < before + SECONDS:
        some, moved, *odd = waiting.run()
        messages += some
        for place, count in moved:
            octets[place] += count
        if odd[0] >= 0:
            return messages, octets, odd
    raise AssertionError("nothing odd has come")


def test_answers_at_once_are_passed_on_and_what_ends_them_is_told(waiting: Waiting) -> None:
    there, back = waiting.far[0], waiting.far[1]
    answering = Answering(back, 500, lambda: back.shutdown(socket.SHUT_WR))
    there.sendall(b"to and fro")
    asking = Answering(there, 499, lambda: None)
    messages, octets, odd = until_odd(waiting)
    for thread in (answering, asking):
        thread.join()
    assert (messages, octets) == (1000, {0: 5000, 1: 5000, 2: 0, 3: 0})
    assert odd == [1, 0, -1, odd[3], b""]
    assert waiting.exchange.looks > 0  # how many of them paid is the machine's


def test_the_answer_to_one_that_has_gone_is_handed_over_with_the_error(waiting: Waiting) -> None:
    there, back = waiting.far[0], waiting.far[1]

    def last() -> None:
        back.recv(100)
        waiting.near[0].shutdown(socket.SHUT_WR)
        back.sendall(b"too late")

    answering = Answering(back, 100, last)
    there.sendall(b"to and fro")
    asking = Answering(there, 100, lambda: None)
    messages, octets, odd = until_odd(waiting)
    for thread in (answering, asking):
        thread.join()
    assert (messages, octets[1]) == (201, 1000)
    assert odd == [1, 8, -1, errno.EPIPE, b"too late"]


def test_a_reset_in_place_of_an_answer_is_left_to_the_loop(waiting: Waiting) -> None:
    back = waiting.far[1]

    def reset() -> None:
        back.recv(100)
        back.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        back.close()

    answering = Answering(back, 100, reset)
    waiting.far[0].sendall(b"to and fro")
    asking = Answering(waiting.far[0], 100, lambda: None)
    messages = 0
    while answering.thread.is_alive():
        some, _, odd, *_ = waiting.run()
        messages += some
        assert odd == -1
    asking.join()
    for _ in range(3):
        messages += waiting.run()[0]
    assert messages == 201
    with pytest.raises(ConnectionResetError):
        waiting.near[1].recv(1)


def test_a_stranger_is_seen_amid_messages_without_end(waiting: Waiting) -> None:
    stop = threading.Event()

    def answer(sock: socket.socket) -> None:
        sock.settimeout(0.1)
        while not stop.is_set():
            with suppress(TimeoutError):
                sock.sendall(sock.recv(100))

    threads = [threading.Thread(target=answer, args=(far,)) for far in waiting.far[:2]]
    waiting.far[0].sendall(b"to and fro")
    for thread in threads:
        thread.start()
    stranger, near = pair()
    with stranger, near:
        waiting.epoll.register(near, select.EPOLLIN)
        passed = most = 0
        before = time.monotonic()
        while passed < 500 and time.monotonic() < before + SECONDS:
            passed += waiting.run()[0]
            stranger.sendall(b"hello")
            wait_for(lambda: select.select([near], [], [], 0)[0])
            most = max(most, waiting.run()[0])
            assert near.recv(100) == b"hello"
        stop.set()
        for thread in threads:
            thread.join(SECONDS)
    assert passed >= 500
    assert most <= 2, "it is told of together with the messages that are there"


def test_an_answer_to_what_was_sent_before_is_stayed_awake_for_too(waiting: Waiting) -> None:
    ends = [near.fileno() for near in waiting.near]
    epoll = waiting.epoll.fileno()
    assert waiting.exchange.run(epoll, ends, ends[1])[0] == 0
    assert (waiting.exchange.looks, waiting.exchange.in_vain) == (1, 1)
    for stranger in (-1, 65536, 1 << 30):
        assert waiting.exchange.run(epoll, ends, stranger)[0] == 0
    assert waiting.exchange.looks == 1


def test_an_answer_that_is_there_is_found_by_a_look(waiting: Waiting) -> None:
    ends = [near.fileno() for near in waiting.near]
    waiting.far[1].sendall(b"answer")
    wait_for(lambda: select.select([waiting.near[1]], [], [], 0)[0])
    assert waiting.exchange.run(waiting.epoll.fileno(), ends, ends[1])[:2] == (1, [(1, 6)])
    assert waiting.far[0].recv(100) == b"answer"
    # The second look was for what ``far[0]`` would say, which is nothing.
    assert (waiting.exchange.looks, waiting.exchange.in_vain) == (2, 1)


def test_who_does_not_answer_at_once_is_stayed_awake_for_ever_more_rarely(
    waiting: Waiting,
) -> None:
    def until_the_next_look() -> int:
        looks = waiting.exchange.looks
        for messages in range(1, 10_000):
            waiting.far[0].sendall(b"x")
            assert waiting.run()[0] == 1
            assert waiting.far[1].recv(1) == b"x"
            if waiting.exchange.looks > looks:
                return messages
        raise AssertionError("it looks no more")

    until_the_next_look()
    assert until_the_next_look() > 8
    assert until_the_next_look() > 64
    assert waiting.exchange.in_vain == waiting.exchange.looks == 3
    # That says nothing about others.
    for _ in range(100):
        waiting.far[2].sendall(b"x")
        waiting.run()
        if waiting.exchange.looks > 3:
            break
    assert waiting.exchange.looks == 4


def test_no_more_ends_than_there_is_room_for() -> None:
    exchange = Exchange.Exchange()
    with select.epoll() as epoll:
        assert exchange.run(epoll.fileno(), [-1] * Exchange.MOST)[0] == 0
        with pytest.raises(ValueError, match="257 ends are more than 256"):
            exchange.run(epoll.fileno(), [-1] * (Exchange.MOST + 1))


def test_no_epoll_is_no_message() -> None:
    with socket.socket() as sock:
        assert Exchange.Exchange().run(sock.fileno(), [])[:3] == (0, [], -1)


def test_other_threads_run_while_it_waits(waiting: Waiting) -> None:
    turns: list[float] = []
    stop = threading.Event()

    def count() -> None:
        while not stop.is_set():
            turns.append(time.monotonic())
            time.sleep(0.0002)

    thread = threading.Thread(target=count)
    thread.start()
    for _ in range(20):
        waiting.run()
    stop.set()
    thread.join()
    assert len(turns) > 20
    assert get_hub() is not None
