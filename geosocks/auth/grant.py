"""What a sub-negotiation ends in."""

from typing import Final

from geosocks.octets import Seal as Seal
from geosocks.octets import Stream


class Grant:
    """What a sub-negotiation ends in: who the client is, and the stream to go on with.

    ``stream`` is the one given, or a wrapper of it when the method encapsulates what follows
    (RFC 1928, section 4).  ``identity`` is None when the method does not tell.  ``detail`` is a
    word for the log, such as the protection level.  ``seal`` encapsulates the datagrams of a
    UDP ASSOCIATE; None when the method leaves them as they are.
    """

    __slots__ = ("detail", "identity", "seal", "stream")

    def __init__(
        self,
        stream: Stream,
        identity: str | None = None,
        detail: str | None = None,
        seal: Seal | None = None,
    ) -> None:
        self.stream: Final = stream
        self.identity: Final = identity
        self.detail: Final = detail
        self.seal: Final = seal
