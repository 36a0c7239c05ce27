"""A GSSAPI context without Kerberos, and what its tests share."""

from collections.abc import Callable
from threading import Barrier
from types import SimpleNamespace
from typing import Any, Final

import gevent
from gssapi.exceptions import (
    BadMICError,
    DuplicateTokenError,
    InvalidTokenError,
    TokenTooEarlyError,
)

from geosocks.auth.gss_context import THREADS, ContextFlag, in_thread
from geosocks.stream import Stream

ALL: Final = (
    ContextFlag.MUTUAL
    | ContextFlag.REPLAY
    | ContextFlag.SEQUENCE
    | ContextFlag.INTEG
    | ContextFlag.CONF
)
UNSEQUENCED: Final = ALL & ~ContextFlag.SEQUENCE
"""As curl makes them, and Dante for UDP: MUTUAL and REPLAY, and what Kerberos always gives."""


class FakeContext:
    """A context that believes its script and pretends to encrypt.

    A wrapped message is a sequence octet, a conf_state octet, and the message, each octet of it
    turned over when encrypted.
    """

    def __init__(
        self,
        *answers: bytes | None,
        expects: tuple[bytes | None, ...] = (),
        flags: ContextFlag = ALL,
        name: object = "alice@EXAMPLE.ORG",
        limit: int = 1000,
        steps_to_complete: int | None = None,
    ) -> None:
        self.answers = list(answers)
        self.expects = list(expects)
        self.actual_flags = flags
        self.initiator_name = name
        self.limit = limit
        self.steps = 0
        self.steps_to_complete = len(answers) if steps_to_complete is None else steps_to_complete
        self.sent = self.received = 0
        self.fault: Exception | None = None
        self.wrap_as: Callable[[bool], bool] = lambda encrypt: encrypt
        self.overhead = b""

    @property
    def complete(self) -> bool:
        return self.steps >= self.steps_to_complete

    def step(self, token: bytes | None = None) -> bytes | None:
        if self.fault is not None:
            raise self.fault
        if self.expects and token != self.expects.pop(0):
            raise InvalidTokenError(0x90000, 0)
        self.steps += 1
        return self.answers.pop(0)

    def wrap(self, message: bytes, encrypt: bool) -> Any:
        if self.fault is not None:
            raise self.fault
        encrypt = self.wrap_as(encrypt)
        body = turned(message) if encrypt else message
        octets = bytes((self.sent % 256, encrypt)) + body + self.overhead
        self.sent += 1
        return SimpleNamespace(message=octets, encrypted=encrypt)

    def unwrap(self, message: bytes) -> Any:
        if self.fault is not None:
            raise self.fault
        if len(message) < 2:
            raise InvalidTokenError(0x90000, 0)
        if message[0] != self.received % 256:
            early = message[0] > self.received % 256
            raise TokenTooEarlyError(0x10, 0) if early else DuplicateTokenError(0x2, 0)
        if message[-3:] == b"\xba\xd1\xee":
            raise BadMICError(0x60000, 0)
        self.received += 1
        body = turned(message[2:]) if message[1] else message[2:]
        return SimpleNamespace(message=body, encrypted=bool(message[1]))

    def get_wrap_size_limit(self, desired_output_size: int, encrypted: bool = True) -> int:
        assert desired_output_size == 65535
        return self.limit


def start_threads() -> None:
    """Start every thread of both pools for context steps."""
    for work in ("accept", "initiate"):
        together = Barrier(THREADS)
        jobs = [gevent.spawn(in_thread, work, together.wait) for _ in range(THREADS)]
        gevent.joinall(jobs, raise_error=True)


def turned(octets: bytes) -> bytes:
    return bytes(octet ^ 0xFF for octet in octets)


class UnspeakableName:
    def __str__(self) -> str:
        return b"ren\xe9@EXAMPLE.ORG".decode()


def read_all(stream: Stream) -> bytes:
    return b"".join(iter(lambda: stream.recv(65536), b""))


def octets(text: str) -> bytes:
    return bytes.fromhex(text)


class KerberosShaped(FakeContext):
    """A context whose tokens are laid out as MIT Kerberos does it (RFC 4121, section 4.2.6.2).

    TOK_ID 05 04, flags (1 from the acceptor, 2 sealed, 4 by its subkey), FF, EC, RRC, and SND_SEQ
    in 8 octets; then, signed, the message and 12 octets; sealed, 16 octets, the message (turned
    over) and 28 octets.  What a key would make is ``FILLER``.
    """

    FILLER: Final = b"\xc5"

    def __init__(
        self,
        *answers: bytes | None,
        sends_from: int,
        receives_from: int,
        acceptor: bool,
        **how: Any,
    ) -> None:
        super().__init__(*answers, **how)
        self.acceptor = acceptor
        self.sent, self.received = sends_from, receives_from

    def wrap(self, message: bytes, encrypt: bool) -> Any:
        token = shaped(self.sent, message, encrypt, self.acceptor)
        self.sent += 1
        return SimpleNamespace(message=token, encrypted=encrypt)

    def unwrap(self, message: bytes) -> Any:
        sealed = bool(message[2] & 2)
        body = turned(message[32:-28]) if sealed else message[16:-12]
        if message != shaped(self.received, body, sealed, not self.acceptor):
            raise BadMICError(0x60000, 0)
        self.received += 1
        return SimpleNamespace(message=body, encrypted=sealed)

    def get_wrap_size_limit(self, desired_output_size: int, encrypted: bool = True) -> int:
        return desired_output_size - (60 if encrypted else 28)


def shaped(number: int, message: bytes, sealed: bool, acceptor: bool) -> bytes:
    """The token of a ``KerberosShaped`` context for ``message``."""
    flags = 4 | (2 if sealed else 0) | (1 if acceptor else 0)
    extra = b"\0\0" if sealed else b"\0\x0c"
    head = bytes((5, 4, flags, 255)) + extra + b"\0\0" + number.to_bytes(8, "big")
    filler = KerberosShaped.FILLER
    return head + (filler * 16 + turned(message) + filler * 28 if sealed else message + filler * 12)
