"""What a server's refusal is to us: the exception for a REP, or for a SOCKS4 server's CD."""

from typing import Final

from geosocks.codes import Rep, Socks4Cd
from geosocks.errors import (
    AddressTypeNotSupported,
    CommandNotSupported,
    HostUnreachable,
    NetworkUnreachable,
    RequestDenied,
    RequestFailed,
    TargetRefused,
    TargetTimeout,
)
from geosocks.wire.socks5 import Address

FAILURES: Final[dict[int, tuple[type[RequestFailed], str]]] = {
    Rep.GENERAL_FAILURE: (RequestFailed, "general SOCKS server failure"),
    Rep.NOT_ALLOWED: (RequestDenied, "connection not allowed by ruleset"),
    Rep.NETWORK_UNREACHABLE: (NetworkUnreachable, "network unreachable"),
    Rep.HOST_UNREACHABLE: (HostUnreachable, "host unreachable"),
    Rep.CONNECTION_REFUSED: (TargetRefused, "connection refused"),
    Rep.TTL_EXPIRED: (TargetTimeout, "TTL expired"),
    Rep.COMMAND_NOT_SUPPORTED: (CommandNotSupported, "command not supported"),
    Rep.ADDRESS_TYPE_NOT_SUPPORTED: (AddressTypeNotSupported, "address type not supported"),
}
"""The RFC's words for each REP (RFC 1928, section 6)."""


class IdentWanted(RequestDenied):
    """A SOCKS4 server asks an identd (RFC 1413) about us, and is not content."""


SOCKS4_FAILURES: Final[dict[int, tuple[type[RequestFailed], str]]] = {
    Socks4Cd.REJECTED: (RequestFailed, "request rejected or failed"),
    Socks4Cd.IDENT_MISSING: (IdentWanted, "the server cannot reach an identd on this host"),
    Socks4Cd.IDENT_DIFFERS: (IdentWanted, "this host's identd names another user"),
}
"""And for each CD of SOCKS4, which tells less: any failure at all may be 91."""


def failure_of(rep: int, to: Address | str) -> RequestFailed:
    """The exception for a reply other than X'00'; ``to`` is what was asked for."""
    kind, words = FAILURES.get(rep, (RequestFailed, "unassigned reply"))
    failure = kind(f"{to}: the server answers X'{rep:02X}', {words}")
    failure.rep = rep
    return failure


def socks4_failure_of(cd: int, to: Address | str) -> RequestFailed:
    """The exception for a SOCKS4 reply other than 90; its ``rep`` is what version 5 would say."""
    kind, words = SOCKS4_FAILURES.get(cd, (RequestFailed, "unassigned reply"))
    return kind(f"{to}: the server answers CD {cd}, {words}")
