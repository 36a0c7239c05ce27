"""One client's relay: datagrams both ways, each greenlet with one of them."""

import errno
import time
from _socket import socket as RawSocket
from collections.abc import Callable, Mapping
from typing import Final

import gevent

from geosocks.errors import ProtocolError
from geosocks.relay.fragments import ReassemblyQueue
from geosocks.relay.pump import End
from geosocks.relay.target import Family
from geosocks.relay.udp.hosts import ASK_AGAIN, NEVER, Hosts
from geosocks.relay.udp.onward import MAX_STRAY, Onward, Seal
from geosocks.relay.udp.quick import quick_of
from geosocks.relay.udp.routes import Judge, Outside, Route, Routes
from geosocks.relay.udp.sockets import (
    NO_WAY,
    Inbox,
    SockAddr,
    Version,
    address_of,
    kernel_name,
    wait_writable,
)
from geosocks.relay.udp.traffic import Traffic
from geosocks.relay.way import Meter
from geosocks.stream import Connection
from geosocks.wire.socks5 import IPAddress, udp_header_size

BATCH: Final = 32
"""Datagrams taken from a socket before others get their turn."""

SIZE: Final = 1 << 16
"""Octets received at a time.  UDP's Length ends at 65,535, so no datagram is ever cut."""

ASKED_FOR: Final = 120.0
"""Seconds that a host may answer after a datagram was last sent to it."""

_CLIENT, _DATAGRAMS, _FAULT = 1, 2, 4  # what woke ``up``
_ONWARD: Final = 4  # and ``down``, beside ``routes.BIT``


class Association:
    """One client's relay; owned by the greenlet that calls ``run`` and then ``close``."""

    def __init__(
        self,
        inside: RawSocket,
        client: Connection,
        host: IPAddress,
        port: int,
        judge: Judge,
        meter: Meter,
        *,
        seal: Seal | None = None,
        outgoing: Mapping[Version, str] | None = None,
        family: Family = "any",
        from_any: bool = False,
        asked_for: float = ASKED_FOR,
        reassemble: bool = True,
        onward: Onward | None = None,
    ) -> None:
        """Relay between ``inside``, which it closes, and the world.

        Args:
            inside: a bound socket, as ``open_inside`` makes it.
            client: the connection whose end is the end of the association.
            host: the client's address; what comes from any other MUST be dropped (section 7).
            port: the client's, 0 when it is not known: then the first valid datagram tells.
            judge: asked once for each destination that is remembered.
            meter: counts octets of DATA, and datagrams.
            seal: encapsulates every datagram between the client and us.
            outgoing: source address by IP version.
            family: leaves the addresses of the other one out.
            from_any: pass on what any host sends, not only those that were written to.
            asked_for: seconds that a host is one that was.
            reassemble: make a whole of fragments; they are dropped otherwise.
            onward: where to send what ``judge`` wants to go there; closed by ``close``.
        """
        self.traffic = Traffic()
        self.client: SockAddr | None = None
        """Where the client's datagrams come from, once one has told."""

        self.bound = address_of(inside)
        """Where the client is to send its datagrams."""

        self._inside = inside
        self._connection = client
        self._host = kernel_name(host)
        self._port = port
        self._meter = meter
        self._seal = seal
        self._from_any = from_any
        self._asked_for = asked_for
        self._queue = ReassemblyQueue() if reassemble else None
        self._stray = len(client.take_rest())
        self._quick = quick_of(inside, self.traffic, meter) if seal is None else None
        self._hosts = Hosts(self._quick)
        self._outside = Outside(outgoing or {}, family, self._hear)
        self._routes = Routes(
            judge, self._outside, onward, self.traffic, self._spawn, self._deliver, self._quick
        )
        self._fault: Exception | None = None
        self._onward = onward
        self._onward_ended = ""
        self._up = Inbox()
        self._down = Inbox()
        self._greenlets: list[gevent.Greenlet[..., None]] = []
        self._is_down_running = False

    def run(self) -> tuple[End, str | None]:
        """Relay until the client's connection ends; returns how, and the error.

        Raises:
            Exception: what ``judge`` raises beyond RequestFailed.
        """
        self._up.add(self._connection.fileno(), _CLIENT)
        self._up.add(self._inside.fileno(), _DATAGRAMS)
        if self._onward is not None:
            self._hear(self._onward.sock, _ONWARD)
            self._spawn(self._watch, self._onward)
        while True:
            events = self._up.wait()
            if self._fault is not None:
                raise self._fault
            if self._onward_ended:
                return End.RESET_BY_TARGET, self._onward_ended
            if events & _CLIENT:
                end = self._listen()
                if end is not None:
                    return end
            if events & _DATAGRAMS:
                self._take()

    def close(self) -> None:
        """End its greenlets, then close its sockets; the connection is the caller's."""
        try:
            gevent.killall(self._greenlets)
        finally:  # even if somebody loses patience with us
            self._up.close()
            self._down.close()
            self._inside.close()
            self._outside.close()
            if self._onward is not None:
                self._onward.close()
        if self._queue is not None:
            self._queue.abandon()
            self.traffic.fragments, self._queue.abandoned = self._queue.abandoned, 0

    def _listen(self) -> tuple[End, str | None] | None:
        """How the client's connection ended; None while it lives.  What it says means nothing."""
        try:
            data = self._connection.sock.recv(4096)
        except BlockingIOError:
            return None
        except OSError as error:
            return End.RESET_BY_CLIENT, str(error)
        if not data:
            return End.CLOSED, None
        self._stray += len(data)
        if self._stray > MAX_STRAY:
            return End.BROKEN_BY_CLIENT, "it keeps sending on the connection of an association"
        return None

    # --- up -----------------------------------------------------------------------------------

    def _take(self) -> None:
        """Take up to BATCH datagrams from the inside socket."""
        now = time.monotonic()
        quick, queue = self._quick, self._queue
        if quick is not None and quick.is_told and not (queue is not None and queue.pending):
            for datagram, source in quick.up(now - ASK_AGAIN):
                self._pass_on(datagram, source, now)
            return
        receive = self._inside.recvfrom
        for _ in range(BATCH):
            try:
                datagram, source = receive(SIZE)
            except BlockingIOError:
                return
            except OSError:
                self.traffic.failed += 1
                continue
            self._pass_on(datagram, source, now)

    def _pass_on(self, datagram: bytes, source: SockAddr, now: float) -> None:
        """Do what is to be done with a datagram to the inside socket."""
        traffic, seal = self.traffic, self._seal
        if source != self.client and not self._may_be_client(source):
            traffic.strangers += 1
            return
        try:
            if seal is not None:
                datagram = seal.unwrap(datagram)
            size = udp_header_size(datagram)
        except ProtocolError:
            traffic.malformed += 1
            return
        if self.client is None:
            self.client = source  # "valid": only now it is locked
        destination, data = datagram[3:size], datagram[size:]
        if datagram[2] or (self._queue is not None and self._queue.pending):
            whole = self._reassembled(datagram[2], destination, data, now)
            if whole is None:
                return
            data = whole
        route = self._routes.known.get(destination)
        if route is None or route.until < now:
            self._routes.find(destination, data, now)
        else:
            self._deliver(route, data, now)
            self._lead(destination, route)

    def _lead(self, destination: bytes, route: Route) -> None:
        """Have what comes next for a known destination go the quick way."""
        quick, client, sock = self._quick, self.client, route.sock
        if quick is None or client is None or sock is None or route.onward:
            return
        if self._routes.known.get(destination) is not route:
            return  # forgotten while it was sent
        asked = self._hosts.asked(route.to[0])
        if asked > NEVER:
            quick.lead(client, destination, sock, route.to, asked)

    def _may_be_client(self, source: SockAddr) -> bool:
        """True for a source that nothing speaks against: none was seen yet, and it fits."""
        if self.client is not None or source[0] != self._host:
            return False
        return self._port in (0, source[1])

    def _reassembled(self, frag: int, destination: bytes, data: bytes, now: float) -> bytes | None:
        """DATA to send on: the whole of a sequence, or of a datagram of its own."""
        queue = self._queue
        if queue is None:
            self.traffic.fragments += 1
            return None
        if not frag:
            # X'00' is less than any FRAG processed, too: who sends it has done with the sequence.
            queue.abandon()
            return data
        return queue.add(frag, destination, data, now)

    def _hear(self, sock: RawSocket, event: int) -> None:
        """Have ``down`` read ``sock``, too."""
        self._down.add(sock.fileno(), event)
        if not self._is_down_running:
            self._is_down_running = True
            self._spawn(self._run_down)

    def _watch(self, onward: Onward) -> None:
        """End with the upstream's association; in its own greenlet."""
        self._onward_ended = onward.wait()
        self._up.wake(_FAULT)

    def _deliver(self, route: Route, data: bytes, now: float) -> None:
        if route.sock is None:
            self._drop(route.refusal)
        else:
            self._send(route, data, now)

    def _drop(self, why: str) -> None:
        traffic = self.traffic
        setattr(traffic, why, getattr(traffic, why) + 1)

    def _send(self, route: Route, data: bytes, now: float) -> None:
        """Send DATA to a target."""
        octets = data
        if route.onward:
            assert self._onward is not None
            octets, seal = route.onward + data, self._onward.seal
            try:
                octets = octets if seal is None else seal.wrap(octets)
            except ProtocolError:
                self.traffic.failed += 1
                return
        while True:
            assert route.sock is not None
            try:
                if route.onward:
                    route.sock.send(octets)
                else:
                    route.sock.sendto(octets, route.to)
            except BlockingIOError:
                wait_writable(route.sock)
            except OSError as error:
                if (
                    error.errno in NO_WAY
                    and route.others
                    and self._outside.aim(route, route.others)
                ):
                    if self._quick is not None:
                        self._quick.forget_all()
                    continue
                self.traffic.failed += 1
                return
            else:
                break
        if not route.onward:  # whom it lets answer is the upstream's to know
            self._hosts.ask(route.to[0], now)
        self.traffic.up += 1
        self._meter.up += len(data)
        self._meter.datagrams += 1

    # --- down ---------------------------------------------------------------------------------

    def _run_down(self) -> None:
        """Pass on to the client what comes to the outside sockets; in its own greenlet."""
        while True:
            ready = self._down.wait()
            for sock in self._outside.ready(ready):
                self._answer(sock)
            if ready & _ONWARD and self._onward is not None:
                self._pass_back(self._onward)

    def _answer(self, sock: RawSocket) -> None:
        """Take up to BATCH datagrams from an outside socket."""
        quick = self._quick
        since = time.monotonic() - self._asked_for
        if quick is not None and quick.is_told:
            for data, source in quick.down(sock, since, self._from_any):
                self._answer_with(data, source, since)
            return
        receive = sock.recvfrom
        for _ in range(BATCH):
            try:
                data, source = receive(SIZE)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error, for example
                self.traffic.failed += 1
                continue
            self._answer_with(data, source, since)

    def _answer_with(self, data: bytes, source: SockAddr, since: float) -> None:
        """Pass DATA on to the client, if ``source`` was asked ``since`` then."""
        if not self._from_any and self._hosts.asked(source[0]) < since:
            self.traffic.unasked += 1
            return
        client = self.client
        assert client is not None  # nothing is outside before it has spoken
        self._to_client(self._hosts.header(source) + data, len(data), client)

    def _pass_back(self, onward: Onward) -> None:
        """Take up to BATCH datagrams from the upstream, each with its header."""
        traffic, theirs = self.traffic, onward.seal
        for _ in range(BATCH):
            try:
                datagram = onward.sock.recv(SIZE)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error, for example
                traffic.failed += 1
                continue
            try:
                if theirs is not None:
                    datagram = theirs.unwrap(datagram)
                size = udp_header_size(datagram)
            except ProtocolError:
                traffic.failed += 1
                continue
            if datagram[2] or self.client is None:  # a fragment; nobody to send it to
                traffic.failed += 1
                continue
            self._to_client(datagram, len(datagram) - size, self.client)

    def _to_client(self, datagram: bytes, payload: int, client: SockAddr) -> None:
        """Send a datagram, its header included, to the client; ``payload`` octets count."""
        try:
            if self._seal is not None:
                datagram = self._seal.wrap(datagram)
            while True:
                try:
                    self._inside.sendto(datagram, client)
                except BlockingIOError:
                    wait_writable(self._inside)
                else:
                    break
        except ProtocolError:
            self.traffic.too_long += 1
        except OSError as error:
            self._drop("too_long" if error.errno == errno.EMSGSIZE else "failed")
        else:
            self.traffic.down += 1
            self._meter.down += payload
            self._meter.datagrams += 1

    # --- greenlets ----------------------------------------------------------------------------

    def _spawn(self, job: Callable[..., None], *args: object) -> None:
        """Run ``job`` beside ``run``, which raises what it raises."""

        def guarded() -> None:
            try:
                job(*args)
            except Exception as fault:
                self._fault = fault
                self._up.wake(_FAULT)

        greenlet = gevent.spawn(guarded)
        self._greenlets = [other for other in self._greenlets if not other.dead]
        self._greenlets.append(greenlet)
