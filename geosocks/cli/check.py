"""``geosocks check``: examine a SOCKS5 server as a client does, step by step.

Every step has a connection of its own, so that none stands on what another left behind.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from ipaddress import ip_address
from typing import Final, Literal, TextIO

import gevent.socket

from geosocks.auth import Credential
from geosocks.cli.connect import PASSWORD, UrlParser, dying_of_interrupt, words_of
from geosocks.client import Client, destination
from geosocks.codes import Cmd, Method, Rep, name_of
from geosocks.errors import ConfigError, GeosocksError, NegotiationTimeout
from geosocks.stream import Stream, deadline, read_message
from geosocks.wire.socks5 import Address, IPAddress, MethodChoice, MethodOffer, Reply, Request

UNASSIGNED: Final = 0x7F
"""A METHOD that IANA has not assigned, and a CMD that RFC 1928 does not have."""

NOWHERE: Final = Address("0.0.0.0", 0)
"""DST of the request that is to be refused: a server that takes it for a CONNECT harms nobody."""

CLOSE: Final = 2.0
"""Seconds that a server gets to close after a refusal; the RFC gives it 10 (section 6)."""

Result = Literal["ok", "note", "FAIL"]
Outcome = tuple[Result, str]

COLOURS: Final[dict[Result, str]] = {"ok": "32", "note": "33", "FAIL": "31"}
"""SGR codes: green, yellow, red."""


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


def main(argv: Sequence[str]) -> int:
    """Run ``geosocks check``; the exit code: 0 all asked for works, 1 not all, 2 not understood."""
    options = _parser().parse_args(argv)
    try:
        client = Client.from_url(
            options.url, password=os.environ.get(PASSWORD), credentials=options.credential
        )
    except ConfigError as error:
        print(f"geosocks check: {error}", file=sys.stderr)
        return 2
    findings: list[Finding] = []
    with dying_of_interrupt():
        for finding in Check(client, options.timeout).run(options.to):
            findings.append(finding)
            if not options.json:
                print(_coloured(finding, sys.stdout), flush=True)
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    return 1 if any(finding.result == "FAIL" for finding in findings) else 0


def _parser() -> UrlParser:
    parser = UrlParser(
        prog="geosocks check",
        description="Examine a SOCKS5 server as a client: can it be reached, which methods does it "
        "take when each is offered alone, does it take what the URL has to show, does it connect, "
        "and does it refuse as the RFC has it.  BIND and UDP ASSOCIATE are not examined.",
        epilog="Exit code 0: it can be reached, takes what the URL has to show, and connects (with "
        f"--to).  A note changes no exit code.  The password may stand in {PASSWORD}, or in a "
        "file: ?password-file=F.",
    )
    parser.add_argument(
        "--to", type=_target, metavar="HOST:PORT", help="have it CONNECT to this target, too"
    )
    parser.add_timeout(10.0, "seconds that each step may take")
    parser.add_argument("--json", action="store_true", help="print a list of objects, for scripts")
    return parser


def _target(text: str) -> Address:
    host, _, port = text.rpartition(":")
    try:
        return destination((host.removeprefix("[").removesuffix("]"), int(port)))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!a} is not HOST:PORT, such as www.example.org:443"
        ) from None


def _coloured(finding: Finding, out: TextIO) -> str:
    line = str(finding)
    if not out.isatty() or os.environ.get("NO_COLOR"):
        return line
    end = len(finding.result)
    return f"\x1b[{COLOURS[finding.result]}m{line[:end]}\x1b[0m{line[end:]}"


class Check:
    """The examination of one server, with ``seconds`` for each step."""

    def __init__(self, client: Client, seconds: float) -> None:
        self._client = client
        self._seconds = seconds

    def run(self, to: Address | None) -> Iterator[Finding]:
        """Examine, and give each finding as it comes; ``to`` is a target to CONNECT to."""
        reached = self._step("reach", "FAIL", self._reach)
        yield reached
        if reached.result == "FAIL":
            return
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
        if to is not None:
            yield from self._connect(to)
        if works:
            yield self._step(f"command {UNASSIGNED:#04x}", "note", self._ask_unknown)

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
        for bound, server in seen:
            yield Finding(*weigh_bound(bound, to, server))

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
    host, port = sock.getpeername()[:2]
    return Address(ip_address(host.partition("%")[0]), port)
