"""A private method for geosocks: X'80', tickets of our own office.  Both halves, and the message.

A ticket says who may use the proxy and until when; a secret that the office and the proxy share
vouches for it.  The client shows its ticket, the server answers with one octet of status::

    client   VER X'01' | LEN 1 | HOLDER 1 to 255, UTF-8 | EXPIRES 8, Unix time | MAC 32
    server   VER X'01' | STATUS 1, X'00' for success

MAC is HMAC-SHA256 over all that stands before it.  Whoever sees a ticket on the wire can use it
until it expires, so it belongs inside TLS or on a network that nobody else listens to.

To serve with it::

    PYTHONPATH=etc/examples TICKET_KEY_FILE=ticket.key \\
        geosocks serve --methods ticket_method:make,none

To use it, with a ticket in a file (``Ticket.issue(...).encode()`` wrote it)::

    PYTHONPATH=etc/examples TICKET_FILE=alice.ticket \\
        geosocks check --credential ticket_method:present socks5://127.0.0.1
"""

import hashlib
import hmac
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from geosocks.auth import Grant
from geosocks.errors import AuthFailed, ConfigError, ProtocolError
from geosocks.stream import Stream, read_message
from geosocks.wire import NeedMore, need
from geosocks.wire.socks5 import Address

METHOD = 0x80
"""The first of those "reserved for private methods" (RFC 1928, section 3)."""

VER = 1
MAC_SIZE = 32


# --- the message ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ticket:
    """``holder`` may use the proxy until ``expires``, seconds since 1970."""

    holder: str
    expires: int
    mac: bytes = field(repr=False)

    @classmethod
    def issue(cls, holder: str, expires: int, key: bytes) -> Self:
        """Write a ticket, as the office does.

        Raises:
            ValueError: the name is of no octets, or of more than 255.
        """
        if not 1 <= len(holder.encode()) <= 255:
            raise ValueError("a holder's name has 1 to 255 octets")
        blank = cls(holder, expires, b"")
        return cls(holder, expires, hmac.digest(key, blank.encode(), hashlib.sha256))

    def encode(self) -> bytes:
        """Write it as octets."""
        name = self.holder.encode()
        return bytes((VER, len(name))) + name + self.expires.to_bytes(8, "big") + self.mac

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the ticket that ``data`` begins or is.

        Raises:
            NeedMore: there is more to come.
            ProtocolError: this is no ticket.
        """
        need(data, 2)
        if data[0] != VER:
            raise ProtocolError(f"ticket VER is {data[0]:#04x}, expected 0x01")
        end = 2 + data[1]
        need(data, end + 8 + MAC_SIZE)
        try:
            holder = data[2:end].decode()
        except UnicodeDecodeError as error:
            raise ProtocolError("the ticket's holder is not UTF-8") from error
        expires = int.from_bytes(data[end : end + 8], "big")
        return cls(holder, expires, data[end + 8 : end + 8 + MAC_SIZE])

    def is_genuine(self, key: bytes) -> bool:
        """True when it was issued with ``key``."""
        said = type(self)(self.holder, self.expires, b"").encode()
        return hmac.compare_digest(self.mac, hmac.digest(key, said, hashlib.sha256))


@dataclass(frozen=True, slots=True)
class Answer:
    """The server's STATUS."""

    status: int

    def encode(self) -> bytes:
        """Write it as octets."""
        return bytes((VER, self.status))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the answer that ``data`` begins or is.

        Raises:
            NeedMore: there is more to come.
            ProtocolError: this is no answer.
        """
        need(data, 2)
        if data[0] != VER:
            raise ProtocolError(f"answer VER is {data[0]:#04x}, expected 0x01")
        return cls(data[1])


# --- the server's half ------------------------------------------------------------------------


class TicketAuthenticator:
    """Lets in who shows a genuine ticket in time; the identity is its holder."""

    method: int = METHOD

    def __init__(self, key: bytes) -> None:
        self._key = key

    def authenticate(self, stream: Stream, peer: Address) -> Grant:
        """Read a ticket, and answer.

        Raises:
            AuthFailed: the ticket is forged or has expired; the client was told.
            ProtocolError: what came is no ticket.
        """
        ticket = read_message(stream, Ticket.decode)
        fault = self._fault_of(ticket)
        stream.sendall(Answer(1 if fault else 0).encode())
        if fault:
            raise AuthFailed(fault, ticket.holder)
        return Grant(stream, identity=ticket.holder, detail=f"until {ticket.expires}")

    def _fault_of(self, ticket: Ticket) -> str | None:
        if not ticket.is_genuine(self._key):
            return "the ticket is not one of ours"
        if ticket.expires < time.time():
            return "the ticket has expired"
        return None


def make() -> TicketAuthenticator:
    """What ``--methods ticket_method:make`` calls, at the start and at each reload.

    Raises:
        ConfigError: there is no key to be had.
    """
    path = os.environ.get("TICKET_KEY_FILE")
    if not path:
        raise ConfigError("ticket_method: TICKET_KEY_FILE is not set; it names the key's file")
    try:
        key = Path(path).read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", path) from error
    if len(key) < 16:
        raise ConfigError("the key has fewer than 16 octets", path)
    return TicketAuthenticator(key)


# --- the client's half ------------------------------------------------------------------------


class TicketCredential:
    """Shows a ticket: ``Client(server, credentials=[TicketCredential(ticket)])``."""

    method: int = METHOD

    def __init__(self, ticket: Ticket) -> None:
        self._ticket = ticket

    def present(self, stream: Stream) -> Grant:
        """Send the ticket, and read the answer.

        Raises:
            AuthFailed: the server does not take it.
            ProtocolError: what came is no answer.
        """
        stream.sendall(self._ticket.encode())
        if read_message(stream, Answer.decode).status != 0:
            raise AuthFailed("the server does not take our ticket")
        return Grant(stream)


def present() -> TicketCredential:
    """What ``--credential ticket_method:present`` calls.

    Raises:
        ConfigError: there is no ticket to be had.
    """
    path = os.environ.get("TICKET_FILE")
    if not path:
        raise ConfigError("ticket_method: TICKET_FILE is not set; it names the ticket's file")
    try:
        return TicketCredential(Ticket.decode(Path(path).read_bytes()))
    except (NeedMore, ProtocolError) as error:
        raise ConfigError("holds no ticket", path) from error
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", path) from error
