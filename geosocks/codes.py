"""Every number of RFC 1928, RFC 1929, RFC 1961 and SOCKS4, by the documents' own names.

One enum per field.  A field whose values are open (METHOD has private values, a server may answer
a REP we cannot name) stays ``int`` in a message; the enum names the values we know, and
``name_of`` writes any of them for a log.
"""

from enum import IntEnum
from typing import Final

SOCKS5_VERSION: Final = 5
"""VER of every RFC 1928 message (section 3)."""

SOCKS4_VERSION: Final = 4
"""VN of a SOCKS4 request; its reply has 0."""

USERPASS_VERSION: Final = 1
"""VER of the username/password sub-negotiation, in both directions (RFC 1929, section 2)."""

GSSAPI_VERSION: Final = 1
"""VER of every RFC 1961 message (section 3.4)."""

SOCKS_PORT: Final = 1080
"""Where a SOCKS server conventionally listens (RFC 1928, section 3)."""


class Method(IntEnum):
    """METHOD (RFC 1928, section 3; IANA registry "SOCKS Methods")."""

    NONE = 0x00
    GSSAPI = 0x01
    USERNAME = 0x02
    NO_ACCEPTABLE = 0xFF


PRIVATE_METHODS: Final = range(0x80, 0xFF)
"""Reserved for private methods: X'80' to X'FE' (RFC 1928, section 3)."""


class Cmd(IntEnum):
    """CMD of a request (RFC 1928, section 4)."""

    CONNECT = 0x01
    BIND = 0x02
    UDP_ASSOCIATE = 0x03


class Atyp(IntEnum):
    """ATYP: the type of the address that follows (RFC 1928, section 5)."""

    IPV4 = 0x01
    DOMAINNAME = 0x03
    IPV6 = 0x04


class Rep(IntEnum):
    """REP of a reply (RFC 1928, section 6)."""

    SUCCEEDED = 0x00
    GENERAL_FAILURE = 0x01
    NOT_ALLOWED = 0x02
    NETWORK_UNREACHABLE = 0x03
    HOST_UNREACHABLE = 0x04
    CONNECTION_REFUSED = 0x05
    TTL_EXPIRED = 0x06
    COMMAND_NOT_SUPPORTED = 0x07
    ADDRESS_TYPE_NOT_SUPPORTED = 0x08


class Socks4Cd(IntEnum):
    """CD of a SOCKS4 request and of its reply.

    What IDENT_MISSING and IDENT_DIFFERS speak of is an identd (RFC 1413) on the client's host.
    """

    CONNECT = 1
    BIND = 2
    GRANTED = 90
    REJECTED = 91
    IDENT_MISSING = 92
    IDENT_DIFFERS = 93


class UserPassStatus(IntEnum):
    """STATUS of the username/password answer: X'00' succeeds, any other fails (RFC 1929)."""

    SUCCESS = 0x00
    FAILURE = 0x01


class Mtyp(IntEnum):
    """MTYP of an RFC 1961 message (sections 3.4, 3.8, 4.3 and 5)."""

    AUTHENTICATION = 0x01
    PROTECTION_LEVEL = 0x02
    ENCAPSULATED = 0x03
    ABORT = 0xFF


class ProtectionLevel(IntEnum):
    """Security of what follows the sub-negotiation (RFC 1961, section 4.3).

    CLEAR is not in the RFC: curl and Dante use X'00' for "no encapsulation at all".
    """

    CLEAR = 0x00
    INTEGRITY = 0x01
    CONFIDENTIALITY = 0x02
    SELECTIVE = 0x03


def name_of(field: type[IntEnum], value: int) -> str:
    """Write ``value`` for a log: the RFC's name in lower case, or ``0x..`` when it has none."""
    try:
        return field(value).name.lower()
    except ValueError:
        return f"{value:#04x}"
