"""Method X'01', GSSAPI: both halves of the sub-negotiation (RFC 1961).

::

    client                                      server
    01 01 LEN TOKEN        ------------------>  context tokens, until both are complete
                           <------------------  01 01 LEN TOKEN
    01 02 LEN wrap(LEVEL)  ------------------>  protection level, section 4
                           <------------------  01 02 LEN wrap(LEVEL)
    01 03 LEN wrap(data)   <----------------->  encapsulated data, section 5 (``GssStream``)

A server that refuses, at any point, answers 01 FF (section 3.8).  LEVEL is 1 (integrity), 2
(integrity and confidentiality) or 3 (per message).  Not in the RFC, and by option only: level 0
(clear), which curl and Dante know and after which nothing is encapsulated; and NEC's mode, where
LEVEL travels as one bare octet.

Knows when which message travels; ``gss_level.py`` which level, ``gss_context.py`` Kerberos.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from geosocks.auth import Grant
from geosocks.auth.gss_context import (
    Acceptor,
    Context,
    ContextFlag,
    in_thread,
    initiate,
    load_gssapi,
    step,
)
from geosocks.auth.gss_level import DEFAULT_LEVELS, choose_level, offers, usable
from geosocks.auth.gss_seal import GssSeal
from geosocks.auth.gss_stream import GssStream
from geosocks.codes import Method, Mtyp, ProtectionLevel, name_of
from geosocks.errors import AuthFailed, ProtocolError
from geosocks.stream import Stream, read_message
from geosocks.wire.gss import ABORT, Frame
from geosocks.wire.socks5 import Address

MAX_TOKENS: Final = 10
"""Context tokens from the peer; Kerberos needs one or two."""

SERVICE: Final = "rcmd"
"""The service name that SOCKS clients ask for: curl's and Dante's default."""

# Section 3.2 has a client always request MUTUAL, REPLAY, DELEG and SEQUENCE.  We obey but for
# DELEG: it would hand our tickets to the proxy, which has no use for them.  "SEQUENCE_FLAG should
# only be passed in for TCP-based clients, not for UDP-based clients": we pass it always, since the
# requests of a UDP client travel on TCP, and ``GssSeal`` takes datagrams in any order.
REQUESTED: Final = (
    ContextFlag.MUTUAL
    | ContextFlag.REPLAY
    | ContextFlag.SEQUENCE
    | ContextFlag.INTEG
    | ContextFlag.CONF
)


class GssAuthenticator:
    """The server's half.  Frozen: a new keytab or option takes a new one."""

    method: int = Method.GSSAPI

    def __init__(
        self,
        *,
        keytab: str | None = None,
        service: str | None = None,
        hostname: str | None = None,
        rcache: str | None = None,
        levels: Sequence[ProtectionLevel] = DEFAULT_LEVELS,
        grant_clear: bool = False,
        nec: bool = False,
        unsequenced: bool = False,
        user_of: Callable[[str], str] | None = None,
        new_context: Callable[[], Context] | None = None,
    ) -> None:
        """Read the keytab (the system's by default), without asking a KDC or making a hub.

        Args:
            keytab: a file, or what MIT Kerberos takes as a keytab's name.
            service: accept tickets for this service only; any in the keytab by default.
            hostname: accept tickets for this host only; goes with ``service``.
            rcache: MIT's name for the replay cache, when its default will not do.  Leave it on:
                the wrapped level message stops a replayed ticket by itself, but with ``nec`` and
                CLEAR nothing else does.
            levels: those that may be granted.
            grant_clear: answer level 0 whatever the client asks for.  curl from 8.17 on asks for
                2 and can only do 0; every other client gets less than it asks for.
            nec: take and give the level as one bare octet, unprotected, when the client does.
            unsequenced: grant levels 1 and 2 also to contexts that do not detect messages out of
                sequence, as Dante's clients make them for UDP.  Somebody on the way can then take
                messages out of their stream, or move them in it, unnoticed.
            user_of: what a principal is called from here on; a ``PrincipalMap``, for example.
            new_context: makes the contexts, in place of a keytab.

        Raises:
            ConfigError: no gssapi package, no usable keytab, or ``levels`` is not usable.
        """
        self._levels = usable(levels)
        self._grant_clear = grant_clear
        self._nec = nec
        self._unsequenced = unsequenced
        self._user_of = user_of
        self._principals: tuple[str, ...] = ()
        if new_context is None:
            new_context = acceptor = Acceptor(keytab, service, hostname, rcache)
            self._principals = acceptor.principals
        self._new_context = new_context

    def authenticate(self, stream: Stream, peer: Address) -> Grant:
        """Run the sub-negotiation; ``Grant.identity`` is the principal, such as alice@REALM.

        Where ``user_of`` calls it something else, that is the identity, and ``Grant.detail`` tells
        the principal.

        Raises:
            AuthFailed: refused for the reason told, and 01 FF was sent.
            ProtocolError: the client broke the wire; 01 FF was sent.
        """
        try:
            context = self._establish(stream)
            identity = _initiator_of(context)
            level = self._agree(stream, context, identity)
        except (AuthFailed, ProtocolError):
            with suppress(OSError):  # it may be the client that has gone
                stream.sendall(ABORT)
            raise
        grant = _grant(stream, context, level, identity)
        user = identity if self._user_of is None else self._user_of(identity)
        if user != identity:
            grant = Grant(grant.stream, user, f"{grant.detail}, {identity}", grant.seal)
        return grant

    def _establish(self, stream: Stream) -> Context:
        """Exchange context tokens until the context is complete (sections 3.3 to 3.7)."""
        context = self._new_context()
        start = stream.recv(2)
        if not start:
            raise AuthFailed("the client closed without a token; it may have no ticket for us")
        for _ in range(MAX_TOKENS):
            token = _read_token(stream, Mtyp.AUTHENTICATION, start)
            if not token:
                raise AuthFailed("the client sent an empty context token")
            answer = step("accept", context, token, self._principals)
            # Complete and no token: one of no octets is sent all the same (section 3.6).
            if answer or context.complete:
                stream.sendall(Frame(Mtyp.AUTHENTICATION, answer or b"").encode())
            if context.complete:
                return context
            start = b""
        raise AuthFailed(f"no context after {MAX_TOKENS} tokens")

    def _agree(self, stream: Stream, context: Context, identity: str) -> ProtectionLevel:
        """Read the level that the client asks for, and answer with ours (sections 4.2 to 4.4)."""
        token = _read_token(stream, Mtyp.PROTECTION_LEVEL)
        bare = self._nec and len(token) == 1
        asked = token[0] if bare else _unwrap_level(context, token)
        try:
            level = choose_level(
                asked, self._levels, _flags_of(context), self._grant_clear, self._unsequenced
            )
        except AuthFailed as error:
            error.identity = identity
            raise
        stream.sendall(_level_message(context, level, bare))
        return level


class GssCredential:
    """The client's half, for one server."""

    method: int = Method.GSSAPI

    def __init__(
        self,
        server_host: str,
        *,
        service: str = SERVICE,
        level: ProtectionLevel = ProtectionLevel.CONFIDENTIALITY,
        nec: bool = False,
        principal: str | None = None,
        ccache: str | None = None,
        client_keytab: str | None = None,
        new_context: Callable[[], Context] | None = None,
    ) -> None:
        """Present a ticket for ``service`` on ``server_host``, the name the KDC knows it by.

        Nothing is looked for before ``present``: tickets come and go.

        Args:
            service: first part of the server's principal.
            level: the weakest protection to accept, and what we ask for.
            nec: send the level as one bare octet, to servers that know no better.
            principal: as whom; by default the credential cache's own.
            ccache: MIT's name for the credential cache; by default the user's.
            client_keytab: get tickets with the keys in this file, and renew them so.
            new_context: makes the contexts, in place of a ticket.

        Raises:
            ConfigError: ``level`` is not one that we do.
        """
        usable((level,))
        self.server_host = server_host
        self._target = f"{service}@{server_host}"
        self._level = level
        self._nec = nec
        self._principal = principal
        store = {"ccache": ccache, "client_keytab": client_keytab}
        self._store = {key: value for key, value in store.items() if value is not None} or None
        self._new_context = new_context or self._initiate

    def __repr__(self) -> str:
        return f"GssCredential({self._target!r}, level={self._level.name})"

    def present(self, stream: Stream) -> Grant:
        """Run the sub-negotiation.

        Raises:
            AuthFailed: no ticket to present, the server refused, or it did not prove itself or
                grants less protection than we ask for.  The caller closes (sections 3.5, 4.4).
            ProtocolError: the server broke the wire.
            ConfigError: there is no gssapi package.
        """
        context = self._establish(stream)
        level = self._agree(stream, context)
        return _grant(stream, context, level, None)

    def _initiate(self) -> Context:
        return initiate(self._target, REQUESTED, self._principal, self._store)

    def _establish(self, stream: Stream) -> Context:
        """Exchange context tokens until the context is complete (sections 3.2 to 3.7)."""
        context = in_thread("initiate", self._new_context)
        token = None
        for _ in range(MAX_TOKENS):
            answer = step("initiate", context, token)
            if answer:
                stream.sendall(Frame(Mtyp.AUTHENTICATION, answer).encode())
            if context.complete:
                if not _flags_of(context) & ContextFlag.MUTUAL:
                    raise AuthFailed("the server did not prove that it is who we asked for")
                return context
            token = _read_token(stream, Mtyp.AUTHENTICATION)
            if not token:
                raise AuthFailed("the server sent an empty context token")
        raise AuthFailed(f"no context after {MAX_TOKENS} tokens")

    def _agree(self, stream: Stream, context: Context) -> ProtectionLevel:
        """Ask for our level, and judge the server's (sections 4.2 to 4.4)."""
        if not offers(_flags_of(context), self._level):
            raise AuthFailed(f"this context cannot do {self._level.name.lower()}")
        stream.sendall(_level_message(context, self._level, self._nec))
        token = _read_level(stream)
        bare = self._nec and len(token) == 1
        level = token[0] if bare else _unwrap_level(context, token)
        if level not in DEFAULT_LEVELS and level != ProtectionLevel.CLEAR:
            found = name_of(ProtectionLevel, level)
            raise AuthFailed(f"the server answers protection level {found}, which we do not do")
        agreed = ProtectionLevel(level)
        if agreed < self._level:
            ours, theirs = self._level.name.lower(), agreed.name.lower()
            raise AuthFailed(f"the server grants {theirs} only, and we ask for {ours}")
        if not offers(_flags_of(context), agreed):
            raise AuthFailed(f"this context cannot do {agreed.name.lower()}")
        return agreed


def _grant(stream: Stream, context: Context, level: ProtectionLevel, identity: str | None) -> Grant:
    """What goes on at ``level``: in the clear, or encapsulated."""
    detail = level.name.lower()
    if level == ProtectionLevel.CLEAR:
        return Grant(stream, identity, detail)
    inner = GssStream(stream, context, level)
    return Grant(inner, identity, detail, GssSeal(inner))


def _flags_of(context: Context) -> ContextFlag:
    return ContextFlag(int(context.actual_flags))


def _initiator_of(context: Context) -> str:
    """The client's principal in display form: alice@REALM."""
    if _flags_of(context) & ContextFlag.ANON:
        raise AuthFailed("an anonymous ticket says nothing about who the client is")
    try:
        return str(context.initiator_name)
    except UnicodeDecodeError as error:
        raise AuthFailed("the client's principal is not UTF-8") from error


def _read_token(stream: Stream, mtyp: Mtyp, start: bytes = b"") -> bytes:
    """The token of the next message, which must have ``mtyp``."""
    return _token_of(read_message(stream, Frame.decode, start), mtyp)


def _read_level(stream: Stream) -> bytes:
    """The token of the server's level message.

    A server whose context completes without a token sends an empty one (section 3.6), which a
    client that is complete by then meets here.
    """
    frame = read_message(stream, Frame.decode)
    if frame == Frame(Mtyp.AUTHENTICATION):
        frame = read_message(stream, Frame.decode)
    return _token_of(frame, Mtyp.PROTECTION_LEVEL)


def _token_of(frame: Frame, mtyp: Mtyp) -> bytes:
    """The token of ``frame``, which must have ``mtyp``."""
    if frame.mtyp == Mtyp.ABORT:
        raise AuthFailed("the peer refused our GSSAPI context (01 FF); its log tells why")
    if frame.mtyp != mtyp:
        raise ProtocolError(f"GSSAPI MTYP is {frame.mtyp:#04x}, expected {int(mtyp):#04x}")
    return frame.token


def _level_message(context: Context, level: ProtectionLevel, bare: bool) -> bytes:
    """The message that says ``level``: wrapped with conf_req FALSE (section 4.3), or bare."""
    octet = bytes((level,))
    if not bare:
        try:
            octet = context.wrap(octet, False).message
        except load_gssapi().exceptions.GSSError as error:
            raise AuthFailed(f"the protection level cannot be wrapped: {error}") from error
    return Frame(Mtyp.PROTECTION_LEVEL, octet).encode()


def _unwrap_level(context: Context, token: bytes) -> int:
    """The level in the peer's level message: one octet, unwrapped (section 4.3)."""
    try:
        octets = context.unwrap(token).message
    except load_gssapi().exceptions.GSSError as error:
        raise ProtocolError(f"the protection level does not unwrap: {error}") from error
    if len(octets) != 1:
        raise ProtocolError(f"a protection level of {len(octets)} octets, expected 1")
    return octets[0]
