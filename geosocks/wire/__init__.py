"""Octets to values and back, one module per published document.

No module here knows a socket.  ``decode(data)`` reads the message that ``data`` begins or is;
when there is too little of it, ``NeedMore.missing`` says how many octets are certainly still to
come: a lower bound, never a guess, so a reader that asks for just that many cannot over-read.
"""


class NeedMore(Exception):
    """A good beginning of a message; at least ``missing`` (>= 1) octets are to come."""

    def __init__(self, missing: int) -> None:
        super().__init__(missing)
        self.missing = missing


def need(data: bytes, size: int) -> None:
    """Raise NeedMore unless ``data`` has ``size`` octets."""
    if len(data) < size:
        raise NeedMore(size - len(data))
