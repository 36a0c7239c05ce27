"""HTTP CONNECT as values: how a tunnel is asked of an HTTP proxy (RFC 9110, section 9.3.6).

The client sends, each line ended by CR LF::

    CONNECT host:port HTTP/1.1
    Host: host:port
    Proxy-Authorization: Basic base64(user:password)      (RFC 7617; where the proxy wants it)
    (an empty line)

The proxy answers a status line, header lines and an empty line, the head.  "Any 2xx (Successful)
response indicates that the sender (and all inbound proxies) will switch to tunnel mode immediately
after the response header section": what follows the head is the target's, whatever the header lines
say of a body.

Knows octets and nothing else: no sockets, no upstreams.
"""

import re
from base64 import b64encode
from dataclasses import field
from typing import Final, Self

from geosocks.errors import ProtocolError
from geosocks.values import value
from geosocks.wire import NeedMore
from geosocks.wire.socks5 import Address

MAX_HEAD: Final = 16384
"""Octets of a head; a longer one is none."""

_SHORTEST: Final = len(b"HTTP/1.1 200\n\n")
_PREFIX: Final = b"HTTP/1."
# A line may end in a bare LF (RFC 9112, section 2.2).
_END: Final = re.compile(rb"\n\r?\n")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[0-9] ([1-9][0-9]{2})(?: ([^\r\n]*))?\r?\n")
_AUTHORITY: Final = re.compile(r"[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]")
_MAX_REASON: Final = 80


def basic(user: bytes, password: bytes) -> str:
    """The value of Proxy-Authorization for method Basic (RFC 7617, section 2).

    Raises:
        ValueError: a colon in the user name, which is where the password would begin.
    """
    if b":" in user:
        raise ValueError("a user name for HTTP Basic has no colon")
    return "Basic " + b64encode(user + b":" + password).decode("ascii")


@value
class ConnectRequest:
    """A request for a tunnel to ``destination``, a name or an address."""

    destination: Address
    authorization: str | None = field(default=None, repr=False)

    def encode(self) -> bytes:
        """The whole head.

        Raises:
            ValueError: a host that could be read as something else than a host.
        """
        target = str(self.destination)
        if not _AUTHORITY.fullmatch(target.rpartition(":")[0]):
            raise ValueError("a host name of other characters than letters, digits, . - and _")
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        if self.authorization is not None:
            lines.append(f"Proxy-Authorization: {self.authorization}")
        return "".join(f"{line}\r\n" for line in (*lines, "")).encode("ascii")


@value
class ResponseHead:
    """A response's status line; its header lines are read over.

    ``reason`` is for people: printable ASCII, cut to 80 characters.
    """

    status: int
    reason: str = ""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the head that ``data`` begins or is.

        Raises:
            NeedMore: a good beginning.
            ProtocolError: not HTTP/1, or a head of more than ``MAX_HEAD`` octets.
        """
        if data[: len(_PREFIX)] != _PREFIX[: len(data)]:
            raise ProtocolError("the answer does not begin as HTTP/1 does")
        end = _END.search(data)
        if end is None:
            if len(data) >= MAX_HEAD:
                raise ProtocolError(f"an HTTP head of more than {MAX_HEAD} octets")
            # An LF, or LF LF, is still to come; never one octet more than there must be.
            short = 1 if data.endswith((b"\n", b"\n\r")) else 2
            raise NeedMore(max(short, _SHORTEST - len(data)))
        if end.end() > MAX_HEAD:
            raise ProtocolError(f"an HTTP head of more than {MAX_HEAD} octets")
        line = _STATUS_LINE.match(data)
        if line is None:
            raise ProtocolError("an HTTP status line that cannot be read")
        reason = (line[2] or b"")[:_MAX_REASON].decode("latin-1")
        return cls(int(line[1]), "".join(c for c in reason if c.isascii() and c.isprintable()))
