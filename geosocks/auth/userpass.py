"""Method X'02', username/password, both halves (RFC 1929).

Who may enter is a callable's business: ``htpasswd.UserFile.check``, or an embedder's own.
"""

import time
from collections.abc import Callable
from typing import ClassVar, Final

from gevent import sleep

from geosocks.auth import Grant
from geosocks.codes import Method, UserPassStatus
from geosocks.compiling import mypyc_attr
from geosocks.errors import AuthFailed
from geosocks.scores import FADE, SLOWEST, Scores, delay_after
from geosocks.stream import Stream, at_once, read_message, send
from geosocks.wire.socks5 import Address
from geosocks.wire.straight import UnameAndPasswd
from geosocks.wire.userpass import UserPassReply, UserPassRequest

ACCEPTED: Final = UserPassReply(UserPassStatus.SUCCESS).encode()
REFUSED: Final = UserPassReply(UserPassStatus.FAILURE).encode()
_FIELDS: Final = UnameAndPasswd()


def _as_octets(text: str | bytes) -> bytes:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text


def _as_identity(uname: bytes) -> str:
    """Write UNAME as a str from which the very octets can be had back."""
    return uname.decode("utf-8", "surrogateescape")


@mypyc_attr(allow_interpreted_subclasses=True)
class Password:
    """The client's half: a user name and a password, as text (sent as UTF-8) or as octets.

    Raises:
        ValueError: a field of no octets, or of more than 255 (RFC 1929, section 2).
    """

    method: ClassVar[int] = Method.USERNAME

    def __init__(self, user: str | bytes, password: str | bytes) -> None:
        self._request = UserPassRequest(_as_octets(user), _as_octets(password))
        if not self._request.uname or not self._request.passwd:
            raise ValueError("user name and password hold 1 to 255 octets each")
        self._message = self._request.encode()

    @property
    def user(self) -> str:
        """The user name; octets that are no UTF-8 as ``surrogateescape`` writes them."""
        return _as_identity(self._request.uname)

    @property
    def uname(self) -> bytes:
        """The octets of UNAME."""
        return self._request.uname

    @property
    def passwd(self) -> bytes:
        """The octets of PASSWD, for who has another way to present them."""
        return self._request.passwd

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.user!r})"

    def present(self, stream: Stream) -> Grant:
        """Send UNAME and PASSWD, in clear as the RFC has it, and read the answer.

        Raises:
            AuthFailed: the server refused; it closes the connection.
            ProtocolError: the server's answer is none.
        """
        stream.sendall(self._message)
        reply = read_message(stream, UserPassReply.decode)
        if reply.status != UserPassStatus.SUCCESS:
            raise AuthFailed(
                f"the server refused user name and password (STATUS {reply.status:#04x})", self.user
            )
        return Grant(stream, identity=self.user)


@mypyc_attr(allow_interpreted_subclasses=True)
class PasswordAuthenticator:
    """The server's half, asking ``check(uname, passwd)`` about the octets as they came.

    ``check`` answers True or False, and may wait as gevent does.  It may also raise ``AuthFailed``
    with a reason of its own, for the log alone: the client is told no more than that it failed.
    Neither field is promised to be of RFC 1929's 1 to 255 octets: either may have none.

    A name under which many attempts have failed of late has to wait, 2 seconds at most, whoever
    asks, from wherever, and whether there is such a user or not.  Nobody can lock another out.
    """

    method: ClassVar[int] = Method.USERNAME

    def __init__(self, check: Callable[[bytes, bytes], bool]) -> None:
        self._check = check
        self._failures = Scores(FADE, SLOWEST)  # of names

    def authenticate(self, stream: Stream, peer: Address) -> Grant:
        """Read UNAME and PASSWD, ask, and answer.

        "A server MUST close the connection" after a STATUS of failure (RFC 1929, section 2): that
        is the caller's to do.

        Raises:
            AuthFailed: refused, and the client was told.
            ProtocolError: the client's message is none; nothing was answered.
        """
        fields = at_once(stream, _FIELDS)
        if fields is None:
            request = read_message(stream, UserPassRequest.decode)
            fields = request.uname, request.passwd
        uname, passwd = fields
        identity = _as_identity(uname)
        if self._failures:
            delay = delay_after(self._failures.of(identity, time.monotonic()))
            if delay:
                sleep(delay)
        try:
            if not self._check(uname, passwd):
                raise AuthFailed("wrong user name or password")
        except AuthFailed as refusal:
            now = time.monotonic()
            self._failures.sweep(now)
            self._failures.add(identity, now)
            stream.sendall(REFUSED)
            raise AuthFailed(str(refusal), identity) from None
        send(stream, ACCEPTED)
        return Grant(stream, identity=identity)
