"""What can go wrong, cut by who must act.

=====================  ========================================================================
ConfigError            the operator: a file or an option is wrong; says where and how to mend it
ProtocolError          nobody: the peer broke the wire, the connection is closed
NegotiationFailed      no session came of it; the refusal, if the method has one, was sent
RequestFailed          a relay request ends in a reply other than X'00'; ``rep`` says which
RelayBroken            it broke after the reply, when nothing can be answered any more
=====================  ========================================================================

Whatever is shaped like a failed connection is a ``ConnectionError`` too, so that a caller who
knows nothing but sockets still catches it.
"""

from geosocks.codes import Rep


class GeosocksError(Exception):
    """Any failure that this package declares."""


class ConfigError(GeosocksError, ValueError):
    """Settings, rules or users cannot be used as written.

    ``str()`` is one line, ``path:line:column: what, and how to mend it``, as far as they are known.
    """

    def __init__(
        self, what: str, path: str | None = None, line: int | None = None, column: int | None = None
    ) -> None:
        super().__init__(what)
        self.what = what
        self.path = path
        self.line = line
        self.column = column

    def __str__(self) -> str:
        place = [str(part) for part in (self.path, self.line, self.column) if part is not None]
        return f"{':'.join(place)}: {self.what}" if place else self.what


class ProtocolError(GeosocksError, ConnectionError):
    """The peer sent what no RFC allows here."""


class Truncated(ProtocolError):
    """The peer closed before a message was whole."""


class NothingSaid(Truncated):
    """The client closed before its first octet: a health check, or a change of mind."""


class NegotiationFailed(GeosocksError, ConnectionError):
    """No relay request could be considered."""


class NegotiationTimeout(NegotiationFailed, TimeoutError):
    """The peer did not finish its handshake in time."""


class Penalised(NegotiationFailed):
    """The client's source has failed to authenticate too often of late."""


class NoAcceptableMethod(NegotiationFailed):
    """None of the offered METHODs is acceptable: X'FF' (RFC 1928, section 3)."""


class AuthFailed(NegotiationFailed):
    """The method's sub-negotiation ended in a refusal.

    ``identity`` is who the peer claimed to be, where it said so; never a secret.
    """

    def __init__(self, reason: str, identity: str | None = None) -> None:
        super().__init__(reason)
        self.identity = identity


class RequestFailed(GeosocksError, ConnectionError):
    """A relay request ends in a reply other than X'00'.

    The server raises it to send ``rep``; the client raises it on receiving one.
    """

    rep: int = Rep.GENERAL_FAILURE

    def __init__(self, reason: str, rep: int | None = None) -> None:
        super().__init__(reason)
        if rep is not None:
            self.rep = rep


class RequestDenied(RequestFailed):
    """A rule said no: X'02'.  ``rule`` is the rule's text, or what else decided."""

    rep = Rep.NOT_ALLOWED

    def __init__(self, reason: str, rule: str | None = None) -> None:
        super().__init__(reason)
        self.rule = rule


class NetworkUnreachable(RequestFailed):
    """No way to the target's network: X'03'."""

    rep = Rep.NETWORK_UNREACHABLE


class HostUnreachable(RequestFailed):
    """The target's host cannot be reached, or its name has no address: X'04'."""

    rep = Rep.HOST_UNREACHABLE


class TargetRefused(RequestFailed, ConnectionRefusedError):
    """The target refused the connection: X'05'."""

    rep = Rep.CONNECTION_REFUSED


class TargetTimeout(RequestFailed, TimeoutError):
    """The target did not answer in time: X'06'."""

    rep = Rep.TTL_EXPIRED


class CommandNotSupported(RequestFailed):
    """We do not do this CMD: X'07'."""

    rep = Rep.COMMAND_NOT_SUPPORTED


class AddressTypeNotSupported(RequestFailed):
    """We do not know this ATYP, or cannot dial its family: X'08'."""

    rep = Rep.ADDRESS_TYPE_NOT_SUPPORTED


class RelayBroken(GeosocksError, ConnectionError):
    """The relay ended in something other than two orderly closes."""
