"""A client's messages as a session reads them: in one piece, most often, and as many before them.

What it asks of each lies in a class of its own: a field of a value that is not compiled costs ten
times as much.
"""

from typing import Final

from geosocks.wire.socks5 import MethodOffer, Request, whole_offer, whole_request
from geosocks.wire.straight import Familiar, Whole


class Offered:
    """A client's METHODS: what every session asks of a MethodOffer, where it is found at once."""

    def __init__(self, offer: MethodOffer) -> None:
        self.methods: Final = offer.methods


class Requested:
    """What every session asks of a Request, where it is found at once."""

    def __init__(self, request: Request) -> None:
        self.request: Final = request
        self.command: Final = request.cmd
        self.destination: Final = request.destination


def _offered(octets: bytes) -> Offered | None:
    offer = whole_offer(octets)
    return None if offer is None else Offered(offer)


def _requested(octets: bytes) -> Requested | None:
    request = whole_request(octets)
    return None if request is None else Requested(request)


OFFERS: Final[Whole[Offered]] = Familiar(_offered, 256)
REQUESTS: Final[Whole[Requested]] = Familiar(_requested, 4096)
