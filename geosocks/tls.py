"""TLS around a stream: contexts, the handshake of either side, and the stream inside.

The octets of TLS travel through memory, not through a socket of the ssl module, so it goes around
any ``Stream``, a connection through other proxies among them, and two greenlets may use it, one
for each way.

Each way ends by itself (RFC 8446, section 6.1): ``shutdown`` sends close_notify, and reading goes
on.  Under TLS 1.2 that is so with peers of our kind; others may take a close_notify for the end of
both ways, as RFC 5246 had it.  An end without close_notify is no end but a fault: somebody may have
cut the connection.

Knows certificates and nothing of SOCKS.
"""

import os
import ssl
import stat
from _socket import SHUT_RD
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, Final, cast

from gevent.lock import BoundedSemaphore

from geosocks.errors import ConfigError, GeosocksError, ProtocolError, RelayBroken
from geosocks.stream import SHUT_WR, Stream, deadline, finish

READ: Final = 64 * 1024
"""Octets read from the inner stream at a time."""

PIECE: Final = 256 * 1024
"""Octets encrypted before they are sent on."""

GOODBYE: Final = 1.0
"""Seconds that closing waits for a peer to take close_notify."""

_FIRST_OCTETS: Final = {
    0x04: "client speaks SOCKS4 without TLS, and this listener is tls://",
    0x05: "client speaks SOCKS5 without TLS, and this listener is tls://",
}
_ALERT: Final = 0x15
_HANDSHAKE: Final = 0x16


# --- contexts ---------------------------------------------------------------------------------


def server_context(
    cert: str, key: str | None = None, client_ca: str | None = None
) -> ssl.SSLContext:
    """What a listener shows: TLS 1.2 and later, with the certificate (and chain) in ``cert``.

    ``key`` is its key's file, by default the same.  ``client_ca`` holds the authorities whose
    certificates clients have to have.

    Raises:
        ConfigError: a file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _set_up(context)
    # A client that closes with an unread session ticket resets, and what it said last is lost.
    context.num_tickets = 0
    _load_certificate(context, cert, key)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        _load_authorities(context, client_ca)
    return context


def client_context(
    ca: str | None = None, cert: str | None = None, key: str | None = None
) -> ssl.SSLContext:
    """How a client verifies a server: by the authorities in ``ca``, by default the system's.

    ``cert`` and ``key`` are what it shows if it is asked.

    Raises:
        ConfigError: a file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _set_up(context)
    if ca is None:
        context.load_default_certs()
    else:
        _load_authorities(context, ca)
    if cert is not None:
        _load_certificate(context, cert, key)
    return context


def _set_up(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    # Some builds of Python take an end without close_notify for an orderly one, Debian 12's too.
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)


def _load_certificate(context: ssl.SSLContext, cert: str, key: str | None) -> None:
    for path in dict.fromkeys((cert, key or cert)):
        _readable(path)
    if stat.S_IMODE(os.stat(key or cert).st_mode) & 0o007:
        raise ConfigError("everybody may read this key; chmod o= it", key or cert)
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except _Encrypted:
        raise ConfigError("the key is encrypted, and there is nobody to ask", key or cert) from None
    except ssl.SSLError as error:
        what = "certificate and key do not belong together"
        if error.reason != "KEY_VALUES_MISMATCH":
            what = f"no certificate with its key can be read from it: {_reason(error)}"
        raise ConfigError(what, key or cert) from error


def _load_authorities(context: ssl.SSLContext, path: str) -> None:
    _readable(path)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise ConfigError(f"no certificates can be read from it: {_reason(error)}", path) from error


def _readable(path: str) -> None:
    """Raise ConfigError, with the file's name, where ssl would leave it out."""
    try:
        with open(path, "rb"):
            pass
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "no file's name"
        raise ConfigError(f"cannot be read: {why}", path) from error


class _Encrypted(Exception):
    """A key's password was asked for."""


def _no_password() -> bytes:
    raise _Encrypted


# --- the handshakes ---------------------------------------------------------------------------


def accept(inner: Stream, context: ssl.SSLContext) -> "TlsStream | None":
    """Run the server's half of the handshake; None when the client closed without a word.

    Raises:
        ProtocolError: it failed, and the client was told as far as it speaks TLS.
    """
    start = inner.recv(READ)
    if not start:
        return None
    if start[0] != _HANDSHAKE:
        what = _FIRST_OCTETS.get(start[0], f"first octet is {start[0]:#04x}, which is not TLS")
        raise ProtocolError(what)
    stream = TlsStream(inner, context, server_side=True)
    stream.handshake(start)
    return stream


def wrap_client(inner: Stream, context: ssl.SSLContext, host: str) -> "TlsStream":
    """Run the client's half of the handshake with the server called ``host``.

    Raises:
        ProtocolError: it failed; the server is not who it should be, or does not take us.
        OSError: as the inner stream's.
    """
    try:
        name = str(ip_address(host.partition("%")[0]))
    except ValueError:
        name = host
    stream = TlsStream(inner, context, server_hostname=name)
    stream.handshake()
    return stream


# --- the stream -------------------------------------------------------------------------------


class TlsStream:
    """A Stream inside TLS.  Owned by a session: one greenlet reads, one may write meanwhile."""

    def __init__(
        self,
        inner: Stream,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
    ) -> None:
        self.inner = inner
        self._server_side = server_side
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side, server_hostname)
        self._sending = BoundedSemaphore()  # the order of records is the order on the wire
        self._ahead = bytearray()
        self._ended = False  # the peer's way
        self._fault: ProtocolError | None = None
        self._said_goodbye = False
        self._established = False
        self._heard = server_side  # whose first octet ``accept`` has looked at

    @property
    def version(self) -> str | None:
        """Such as TLSv1.3."""
        return self._tls.version()

    def handshake(self, start: bytes = b"") -> None:
        """Come to terms with the peer, whose first octets may have been read already.

        Raises:
            ProtocolError: we do not.
        """
        self._incoming.write(start)
        try:
            while True:
                try:
                    self._tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    self._flush()
                    self._feed()
            self._flush()
        except ssl.SSLError as error:
            with suppress(OSError):  # an alert says why
                self._flush()
            finish(self.inner, 1.0)
            reason = _reason(error, self._server_side)
            if reason == _REASONS[_NO_CLOSE_NOTIFY]:
                reason = "the peer closed during the handshake"
            raise ProtocolError(f"TLS: {reason}") from error
        self._established = True

    def peer_name(self) -> str | None:
        """Whom the peer's verified certificate names; None when it has shown none.

        The first CN of its subject; where there is none, the first alternative name (e-mail, DNS or
        URI).

        Raises:
            ProtocolError: it names nobody.
        """
        certificate = self._tls.getpeercert()
        if not certificate:
            return None
        subject = cast(Any, certificate.get("subject", ()))
        for part in subject:
            for key, value in part:
                if key == "commonName":
                    return _printable(value)
        for kind, value in cast(Any, certificate.get("subjectAltName", ())):
            if kind in ("email", "DNS", "URI"):
                return _printable(value)
        raise ProtocolError("TLS: the client's certificate names nobody")

    def recv(self, size: int, /) -> bytes:
        """Read up to ``size`` octets; b"" once the peer has sent close_notify.

        Raises:
            ProtocolError: what came is not TLS, or ended without close_notify.
        """
        while not self._ahead:
            if self._fault is not None:
                raise self._fault
            if self._ended:
                return b""
            try:
                return self._decrypt(size)
            except ssl.SSLWantReadError:
                self._flush()
                self._feed()
            except ssl.SSLError as error:
                self._fault = ProtocolError(f"TLS: {_reason(error, self._server_side)}")
        data = bytes(self._ahead[:size])
        del self._ahead[:size]
        return data

    def _decrypt(self, size: int) -> bytes:
        try:
            data = self._tls.read(size)
        except ssl.SSLZeroReturnError:  # after our own close_notify
            data = b""
        if not data:
            self._ended = True
        return data

    def _feed(self) -> None:
        """Wait for octets from the peer."""
        data = self.inner.recv(READ)
        # OpenSSL would wait for a whole record of what is none.
        if not self._heard and data and data[0] not in (_HANDSHAKE, _ALERT):
            raise ProtocolError("TLS: the server does not speak TLS on this port")
        self._heard = True
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _flush(self) -> None:
        """Send what has been encrypted."""
        if self._outgoing.pending:
            with self._sending:
                while self._outgoing.pending:
                    self.inner.sendall(self._outgoing.read())

    def sendall(self, data: bytes, /) -> None:
        """Encrypt and send all of ``data``."""
        if self._said_goodbye:
            raise RelayBroken("TLS: this way was closed")
        with memoryview(data) as view:
            for start in range(0, len(view), PIECE):
                piece = view[start : start + PIECE]
                try:
                    while piece:
                        piece = piece[self._tls.write(piece) :]
                except ssl.SSLError as error:
                    raise RelayBroken(f"TLS: {_reason(error, self._server_side)}") from error
                self._flush()

    def shutdown(self, how: int, /) -> None:
        """End our way by close_notify; what the peer still sends can be read."""
        if how != SHUT_WR:
            self.inner.shutdown(SHUT_RD)
        if self._said_goodbye or how == SHUT_RD:
            return
        self._said_goodbye = True
        # The ssl module looks for the peer's close_notify at once, and takes data there for a
        # fault, so what has come is put aside before.
        with suppress(ssl.SSLError):
            while not self._ended and (data := self._decrypt(READ)):
                self._ahead += data
        with suppress(ssl.SSLError):
            self._tls.unwrap()
        self._flush()

    def close(self) -> None:
        """Say goodbye if that was not done and the peer takes it at once; close."""
        if self._established and not self._said_goodbye:
            with suppress(OSError, GeosocksError), deadline(GOODBYE, TimeoutError()):
                self.shutdown(SHUT_WR)
        self._established = False
        self.inner.close()

    def reset(self) -> None:
        """Close so that the peer sees a reset, not the end of what was said."""
        self._established = False
        cast(Any, getattr(self.inner, "reset", self.inner.close))()

    def fileno(self) -> int:
        """The inner descriptor.  That it is readable does not mean that ``recv`` has data."""
        return cast(int, cast(Any, self.inner).fileno())

    def getpeername(self) -> Any:
        """The inner stream's peer."""
        return cast(Any, self.inner).getpeername()

    def getsockname(self) -> Any:
        """The inner stream's own address."""
        return cast(Any, self.inner).getsockname()


def _printable(name: str) -> str:
    if not name or not name.isprintable():
        raise ProtocolError("TLS: the client's certificate has a name that cannot be printed")
    return name


_NO_CLOSE_NOTIFY: Final = "UNEXPECTED_EOF_WHILE_READING"
_REASONS: Final = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the client shows no certificate",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the server demands a certificate of us",
    "TLSV1_ALERT_UNKNOWN_CA": "the peer does not know who signed our certificate",
    "UNSUPPORTED_PROTOCOL": "the peer speaks no version from 1.2 on",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the peer and we have no version in common",
    _NO_CLOSE_NOTIFY: "the connection ended without close_notify",
}


def _reason(error: ssl.SSLError, server_side: bool = False) -> str:
    """One line about what OpenSSL says."""
    if isinstance(error, ssl.SSLCertVerificationError):
        whose = "client" if server_side else "server"
        return f"the {whose}'s certificate is not good: {error.verify_message}"
    if isinstance(error, ssl.SSLEOFError):
        return _REASONS[_NO_CLOSE_NOTIFY]
    reason = error.reason or error.strerror or str(error)
    return _REASONS.get(reason, reason.replace("_", " ").lower())
