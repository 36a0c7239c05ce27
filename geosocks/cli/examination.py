"""What is asked of a SOCKS server to know whether it is well, step by step.

Every step has a connection of its own, so that none stands on what another left behind.
"""

import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Final, Literal

import gevent.socket

from geosocks.auth import Credential
from geosocks.cli.connect import words_of
from geosocks.client import Association, Bound, Client
from geosocks.client.address import address_of, is_reachable, is_unspecified
from geosocks.codes import Cmd, Method, Rep, name_of
from geosocks.errors import GeosocksError, NegotiationTimeout
from geosocks.stream import Stream, deadline, read_message
from geosocks.wire import need
from geosocks.wire.socks5 import (
    UNSPECIFIED,
    Address,
    IPAddress,
    MethodChoice,
    MethodOffer,
    Reply,
    Request,
)

UNASSIGNED: Final = 0x7F
"""A METHOD that IANA has not assigned, and a CMD that RFC 1928 does not have."""

NOWHERE: Final = Address("0.0.0.0", 0)
"""DST of the request that is to be refused: a server that takes it for a CONNECT harms nobody."""

CLOSE: Final = 2.0
"""Seconds that a server gets to close after a refusal; the RFC gives it 10 (section 6)."""

ASK_AGAIN: Final = 1.0
"""Seconds after which an unanswered datagram is sent again, since any may get lost."""

DNS_PORT: Final = 53

TOKEN: Final = 16
"""Random octets that tell us from anybody else."""

Result = Literal["ok", "note", "FAIL"]
Outcome = tuple[Result, str]


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one step, which took ``ms`` milliseconds.

    ``note`` is for what is not as the RFC has it or good to know, and was not asked for.
    """

    result: Result
    what: str
    detail: str
    ms: float | None = None

    @property
    def good(self) -> bool:
        """True when all is as it should be."""
        return self.result == "ok"

    def __str__(self) -> str:
        took = "" if self.ms is None else f"{self.ms:.1f} ms"
        return f"{self.result:<4}  {self.what:<15}  {self.detail:<48}  {took:>9}".rstrip()


class Check:
    """The examination of one server, with ``seconds`` for each step."""

    def __init__(self, client: Client, seconds: float) -> None:
        self._client = client
        self._seconds = seconds

    def run(
        self, to: Address | None = None, bind: bool = False, udp: Address | None = None
    ) -> Iterator[Finding]:
        """Examine, and give each finding as it comes.

        ``to`` is a target to CONNECT to, ``bind`` asks for a BIND, ``udp`` is whom to send to.
        """
        reached = self._step("reach", "FAIL", self._reach)
        yield reached
        if reached.result == "FAIL":
            return
        works = True
        if self._client.socks4 is None:
            works = yield from self._methods_and_credentials()
        if to is not None:
            yield from self._connect(to)
        if bind:
            yield from self._bind()
        if udp is not None:
            yield from self._udp(udp)
        if works and self._client.socks4 is None:
            yield self._step(f"command {UNASSIGNED:#04x}", "note", self._ask_unknown)

    def _methods_and_credentials(self) -> Generator[Finding, None, bool]:
        """Each method alone, then each credential; True when there is a way in."""
        for method in self._methods():
            yield self._step(f"method {name_of(Method, method)}", "note", self._offer, method)
        yield self._step(f"method {UNASSIGNED:#04x}", "note", self._offer_unassigned)
        authenticated = [
            self._step(f"auth {name_of(Method, method)}", "FAIL", self._authenticate, credential)
            for method, credential in self._client.credentials.items()
        ]
        works = any(finding.good for finding in authenticated)
        for finding in authenticated:
            # One way in is enough.
            yield replace(finding, result="note") if works and not finding.good else finding
        return works

    def _step(
        self, what: str, failed: Result, job: Callable[..., Outcome], *args: object
    ) -> Finding:
        """Do ``job``; an error of it is a finding, too: ``failed``."""
        late = NegotiationTimeout(f"no answer within {self._seconds:g} s")
        start = time.perf_counter()
        try:
            with deadline(self._seconds, late):
                result, detail = job(*args)
        except (OSError, GeosocksError) as error:
            result, detail = failed, words_of(error)
        return Finding(result, what, detail, round((time.perf_counter() - start) * 1000, 1))

    def _reach(self) -> Outcome:
        try:
            with closing(self._client.reach()) as sock:
                return "ok", f"connected to {_peer_of(sock)}"
        except OSError as error:
            return "FAIL", f"{self._client.server}: {words_of(error)}"

    def _methods(self) -> list[int]:
        """Those to offer alone: the RFC's; GSSAPI only to who has a use for it."""
        methods = [Method.NONE, Method.USERNAME]
        if Method.GSSAPI in self._client.credentials or find_spec("gssapi"):
            methods.append(Method.GSSAPI)
        return [*methods, *(m for m in self._client.credentials if m not in methods)]

    def _offer(self, method: int) -> Outcome:
        with closing(self._client.reach()) as sock:
            choice = _choice(self._client.secure(sock), method)
            match choice:
                case Method.NO_ACCEPTABLE:
                    return "ok", "not taken (X'FF')"
                case Method.NONE if method == choice and not is_loopback(_peer_of(sock).host):
                    return "note", "taken: whoever can reach the server is let in"
                case _ if choice == method:
                    return "ok", "taken"
            return "note", f"X'{choice:02X}' selected, which was not offered"

    def _offer_unassigned(self) -> Outcome:
        with closing(self._client.reach()) as sock:
            stream = self._client.secure(sock)
            choice = _choice(stream, UNASSIGNED)
            if choice == Method.NO_ACCEPTABLE:
                return _with_ending(stream, "not taken (X'FF')")
            return "note", f"X'{choice:02X}' selected; expected X'FF'"

    def _authenticate(self, credential: Credential) -> Outcome:
        with closing(self._client.reach()) as sock:
            client = Client(self._client.server, [credential], tls=self._client.tls)
            _, grant = client.negotiate(sock)
        known = [grant.identity and f"as {grant.identity!a}", grant.detail]
        return "ok", ", ".join(["let in", *filter(None, known)])

    def _connect(self, to: Address) -> Iterator[Finding]:
        """CONNECT, and a look at BND."""
        seen: list[tuple[Address, Address]] = []

        def connect() -> Outcome:
            with closing(self._client.reach()) as sock:
                method, grant = self._client.negotiate(sock)
                reply = self._client.request(grant.stream, Request(Cmd.CONNECT, to))
                seen.append((reply.bound, _peer_of(sock)))
            return "ok", f"{to}, with method {name_of(Method, method)}"

        yield self._step("connect", "FAIL", connect)
        if self._client.socks4 is not None:
            return  # "ignored" in the answer to a CONNECT
        for bound, server in seen:
            yield Finding(*weigh_bound(bound, to, server))

    def _bind(self) -> Iterator[Finding]:
        """BIND, a look at BND, and a visit as its peer."""
        with ExitStack() as stack:
            opened: list[Bound] = []

            def bind() -> Outcome:
                listening = stack.enter_context(self._client.bind(self._as_seen()))
                opened.append(listening)
                return "ok", f"listens at {listening.address}"

            yield self._step("bind", "FAIL", bind)
            for listening in opened:
                yield Finding(*weigh_told("bind bound", listening.told, self._server_of(listening)))
                yield self._step("bind peer", "FAIL", self._visit, listening)

    def _as_seen(self) -> Address:
        """Whom the server shall let in: us, if it sees the address that we have; else anybody."""
        with closing(self._client.reach()) as sock:
            ours, server = address_of(sock.getsockname()), _peer_of(sock)
        nat = is_public(server.host) and not is_public(ours.host)
        return UNSPECIFIED if nat else Address(ours.host, 0)

    def _visit(self, listening: Bound) -> Outcome:
        to = listening.address
        if isinstance(to.host, str):
            return "FAIL", f"BND is a name, {to.host!a}, and no address to come to"
        family = gevent.socket.AF_INET if to.host.version == 4 else gevent.socket.AF_INET6
        with closing(gevent.socket.socket(family)) as peer:
            try:
                peer.connect((str(to.host), to.port))
            except OSError as error:
                return "FAIL", f"{to} is not to be reached from here: {words_of(error)}"
            stream, who = listening.accept()
            with closing(stream):
                token = os.urandom(TOKEN)
                stream.sendall(token)
                came = read_message(peer, _token_of)
                peer.sendall(token)
                went = read_message(stream, _token_of)
            if not came == went == token:
                return "FAIL", "somebody else's octets came"
            ours = address_of(peer.getsockname())
        if who != ours:
            return "note", f"connected; the server sees {who}, and we are {ours}: a NAT between us"
        return "ok", f"connected, and the server says it was {who}"

    def _udp(self, to: Address) -> Iterator[Finding]:
        """UDP ASSOCIATE, a look at BND, and a datagram there and back."""
        with ExitStack() as stack:
            made: list[Association] = []

            def associate() -> Outcome:
                association = stack.enter_context(self._client.associate())
                made.append(association)
                return "ok", f"relay at {association.relay}"

            yield self._step("udp associate", "FAIL", associate)
            for association in made:
                server = self._server_of(association)
                yield Finding(*weigh_told("udp bound", association.told, server))
                yield self._step("udp answer", "FAIL", self._exchange, association, to)

    def _exchange(self, association: Association, to: Address) -> Outcome:
        """Send until there is an answer; the step's own limit ends it."""
        query, is_answer = question_for(to)
        association.settimeout(ASK_AGAIN)
        lost = 0
        while True:
            association.sendto(query, to)
            try:
                data, source = association.recvfrom()
                while not is_answer(data):
                    data, source = association.recvfrom()
            except TimeoutError as late:
                if isinstance(late, GeosocksError):
                    raise  # the step's
                lost += 1
                continue
            say = f"{len(data)} octets from {source}"
            if not to.is_name and source != to:
                return "note", f"{say}, and not from {to}"
            return "ok", say if not lost else f"{say}, after {lost} lost"

    def _server_of(self, asked: Bound | Association) -> Address:
        control: Any = asked.grant.stream
        return address_of(control.getpeername())

    def _ask_unknown(self) -> Outcome:
        with closing(self._client.reach()) as sock:
            _, grant = self._client.negotiate(sock)
            grant.stream.sendall(Request(UNASSIGNED, NOWHERE).encode())
            rep = read_message(grant.stream, Reply.decode).rep
            if rep == Rep.COMMAND_NOT_SUPPORTED:
                return _with_ending(grant.stream, "refused (X'07')")
            return "note", f"X'{rep:02X}' answered; expected X'07'"


def weigh_bound(bound: Address, to: Address, server: Address) -> tuple[Result, str, str]:
    """Judge the BND of a CONNECT to ``to`` by what "is usually different" (RFC 1928, section 6).

    It should be the address that ``server`` connects from.  No client has a use for it, but what
    is wrong in it tells of a server that does not know, or that tells too much.
    """
    result: Result = "note"
    host = bound.host
    if isinstance(host, str):
        say = f"BND is a name, {host!a}, and no address"
    elif bound == to:
        say = f"BND is the destination itself, {bound}"
    elif bound == server:
        say = f"BND is where the server listens, {bound}"
    elif host.is_unspecified or not bound.port:
        say = f"BND is {bound}, which tells nothing"
    elif is_public(server.host) and not is_public(host):
        say = f"BND is {bound}: a public server tells of its inside"
    else:
        result, say = "ok", f"BND is {bound}"
    return result, "bound", say


def weigh_told(what: str, told: Address, server: Address) -> tuple[Result, str, str]:
    """Judge the BND of a BIND or a UDP ASSOCIATE, which somebody is to come to.

    ``server`` is where we reached it; ``what`` names the finding.
    """
    result: Result = "note"
    say = f"BND is {told}"
    if isinstance(told.host, str):
        say = f"BND is a name, {told.host!a}, and no address"
    elif not told.port:
        say += ", a port that nobody can reach"
    elif is_unspecified(told):
        say += f": the server does not know its own address; clients have to take {server.host}"
    elif not is_reachable(told, server):
        say += f": inside a NAT, of a server that is {server.host} from here (--advertise)"
    elif told.host != server.host:
        say += f", another address than {server.host}, where we reached it"
    else:
        result = "ok"
    return result, what, say


def question_for(to: Address) -> tuple[bytes, Callable[[bytes], bool]]:
    """A datagram that ``to`` is likely to answer, and what tells an answer to it."""
    token = os.urandom(TOKEN)
    if to.port != DNS_PORT:
        return token, lambda data: True
    # ID, RD; one question: the root's name servers, class IN (RFC 1035, section 4.1).
    query = token[:2] + bytes.fromhex("0100 0001 0000 0000 0000  00 0002 0001")
    return query, lambda data: data[:2] == token[:2] and len(data) >= 12


def _token_of(data: bytes) -> bytes:
    need(data, TOKEN)
    return data


def is_public(host: IPAddress | str) -> bool:
    """True for an address that can be reached from anywhere."""
    return not isinstance(host, str) and host.is_global


def is_loopback(host: IPAddress | str) -> bool:
    """True for an address that only this host can reach."""
    return not isinstance(host, str) and host.is_loopback


def _choice(stream: Stream, method: int) -> int:
    """What the server selects when ``method`` is all it is offered."""
    stream.sendall(MethodOffer(bytes((method,))).encode())
    return read_message(stream, MethodChoice.decode).method


def _with_ending(stream: Stream, refusal: str) -> Outcome:
    """Add how the server ends after its ``refusal``: it should close, and not lose it by a reset.

    RFC 1928, section 6: "the SOCKS server MUST terminate the TCP connection shortly after".
    """
    try:
        with deadline(CLOSE, NegotiationTimeout()):
            while stream.recv(4096):
                pass
    except NegotiationTimeout:
        return "note", f"{refusal}, but not closed within {CLOSE:g} s"
    except (OSError, GeosocksError) as error:
        return "note", f"{refusal}, but then: {words_of(error)}"
    return "ok", f"{refusal}, then closed"


def _peer_of(sock: gevent.socket.socket) -> Address:
    return address_of(sock.getpeername())
