"""BIND: the server listens for us, and tells of it in two replies (RFC 1928, section 6)."""

import errno
import os
from collections.abc import Callable
from typing import Any, Self

import gevent

from geosocks.auth import Grant
from geosocks.client.address import address_of, is_unspecified
from geosocks.wire.socks5 import Address, Reply


class Bound:
    """A listening socket at the server's end, for one peer.

    ``address`` is where the peer shall connect to: BND of the first reply, which is ``told``, with
    the server's own address in the place of zeros.  A server behind a NAT may tell an address that
    only its neighbours can reach; whether the peer is one of those we cannot know, so it is left
    as it is.  ``method`` and ``grant`` tell how it was negotiated.  The caller closes it.
    """

    def __init__(
        self, method: int, grant: Grant, told: Address, second: Callable[[], Reply]
    ) -> None:
        """Go on from the first reply; ``second`` reads the other."""
        control: Any = grant.stream
        self.address = told
        if is_unspecified(told):
            self.address = Address(address_of(control.getpeername()).host, told.port)
        self.told = told
        self.method = method
        self.grant = grant
        self._second = second
        self._is_ours = True

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.address)!r})"

    def accept(self, timeout: float | None = None) -> tuple[Any, Address]:
        """Wait for the peer: its stream, as of ``Client.connect``, and who the server says it is.

        The stream is the caller's to close.  There is one peer, so this can be called once, and
        whatever it raises ends the BIND.  ``timeout`` is in seconds; None leaves it to the server,
        which has a limit of its own.

        Raises:
            RequestFailed: the server says that nobody came, or nobody whom it lets in.
            TimeoutError: nobody came in time.
            ProtocolError: what came is no reply.
            OSError: the server went away, or there is nothing left to wait for.
        """
        if not self._is_ours:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        try:
            with gevent.Timeout(timeout) as late:
                try:
                    reply = self._second()
                except gevent.Timeout as timeout_:
                    if timeout_ is not late:
                        raise
                    raise TimeoutError(f"no peer came within {timeout:g} s") from None
        except BaseException:
            self.close()
            raise
        self._is_ours = False
        return self.grant.stream, reply.bound

    def close(self) -> None:
        """Give up waiting; may be called again, and does nothing to an accepted stream."""
        if self._is_ours:
            self._is_ours = False
            self.grant.stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
