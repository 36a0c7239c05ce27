"""Method X'00', NO AUTHENTICATION REQUIRED (RFC 1928, section 3)."""

from typing import ClassVar

from geosocks.auth.grant import Grant
from geosocks.codes import Method
from geosocks.compiling import mypyc_attr
from geosocks.stream import Stream
from geosocks.wire.socks5 import Address


@mypyc_attr(allow_interpreted_subclasses=True)
class NoAuth:
    """Method X'00', NO AUTHENTICATION REQUIRED: both halves, and there is nothing to say."""

    method: ClassVar[int] = Method.NONE

    def authenticate(self, stream: Stream, peer: Address) -> Grant:
        """Anybody may go on, as nobody in particular."""
        return Grant(stream)

    def present(self, stream: Stream) -> Grant:
        """Go on."""
        return Grant(stream)
