"""Security contexts: the gssapi package, loaded when first needed, its waits and its errors.

A context step or a look for credentials may wait for a disk or a KDC, so they run in small thread
pools of their own.  Every failure of the library becomes one line that names cause and cure.

Knows no SOCKS: which token travels when is said in ``gss.py``.
"""

from collections.abc import Callable, Sequence
from enum import IntFlag
from typing import Any, Final, Literal, Protocol, TypeVar

from gevent.hub import get_hub
from gevent.threadpool import ThreadPool

from geosocks.auth.keytab import KeytabEntry, read_keytab
from geosocks.errors import AuthFailed, ConfigError, GeosocksError

T = TypeVar("T")

THREADS: Final = 4
"""Threads of each pool."""

WAITING: Final = 64
"""Steps that may wait for a thread; the next one fails at once."""

MAX_TEXT: Final = 400
"""Characters of the library's text in an error: a peer can put a name of its own into it."""

Work = Literal["accept", "initiate"]
"""A pool for each: a client that waits for its KDC must not stop clients being accepted."""


class ContextFlag(IntFlag):
    """Services of a context (RFC 2744, appendix A: GSS_C_..._FLAG)."""

    DELEG = 1
    MUTUAL = 2
    REPLAY = 4
    SEQUENCE = 8
    CONF = 16
    INTEG = 32
    ANON = 64


class Message(Protocol):
    """What wrap and unwrap return."""

    @property
    def message(self) -> bytes: ...

    @property
    def encrypted(self) -> bool:
        """conf_state (RFC 2744, sections 5.27 and 5.30)."""
        ...


class Wrapping(Protocol):
    """What we ask of an established context."""

    def wrap(self, message: bytes, encrypt: bool) -> Message: ...

    def unwrap(self, message: bytes) -> Message: ...

    def get_wrap_size_limit(self, desired_output_size: int, encrypted: bool = True) -> int: ...


class Context(Wrapping, Protocol):
    """What we ask of a ``gssapi.SecurityContext``."""

    @property
    def complete(self) -> bool: ...

    @property
    def actual_flags(self) -> Any:
        """The flags as something that ``int`` takes."""
        ...

    @property
    def initiator_name(self) -> object: ...

    def step(self, token: bytes | None = None) -> bytes | None: ...


def load_gssapi() -> Any:
    """The gssapi package.

    Raises:
        ConfigError: the package, or the Kerberos library below it, is not installed.
    """
    try:
        import gssapi
    except (ImportError, OSError) as error:  # OSError: no libgssapi where the package expects it
        raise ConfigError(
            f"GSSAPI is not available ({error}): pip install 'geosocks[gssapi]', "
            "which needs libgssapi (Debian: libgssapi-krb5-2; to build, libkrb5-dev)"
        ) from error
    return gssapi


class Acceptor:
    """The server's credentials: makes a context for each client.

    The library opens the keytab anew for each context, so new keys in it count at once.
    """

    def __init__(
        self,
        keytab: str | None = None,
        service: str | None = None,
        hostname: str | None = None,
        rcache: str | None = None,
    ) -> None:
        """Acquire them from ``keytab``, by default the system's; reads a file, asks no KDC.

        Any key of the keytab will do, unless ``service`` and ``hostname`` narrow it down.
        ``rcache`` names the replay cache (MIT: ``none:``, ``dfl:``, ``file2:PATH``).

        Raises:
            ConfigError: no gssapi package, or no key of that name can be read.
        """
        self._gssapi = gssapi = load_gssapi()
        self.entries = _entries(keytab)
        store = {"keytab": keytab, "rcache": rcache}
        # Kerberos alone: with IAKERB, which "every mechanism" includes, a stranger's token would
        # have us talk to the KDC on his behalf.
        try:
            self._credentials = gssapi.Credentials(
                usage="accept",
                name=_service_name(gssapi, service, hostname),
                mechs=[gssapi.MechType.kerberos],
                store={key: value for key, value in store.items() if value is not None} or None,
            )
        except gssapi.exceptions.GSSError as error:
            raise ConfigError(explain(error, self.principals), keytab) from error

    @property
    def principals(self) -> tuple[str, ...]:
        """Whom the keytab has keys for; none when it is not a file of a known place."""
        return tuple(dict.fromkeys(entry.principal for entry in self.entries))

    def __call__(self) -> Context:
        """A new context, not yet begun."""
        context = self._gssapi.SecurityContext(creds=self._credentials, usage="accept")
        return _without_error_tokens(context)


def initiate(
    target: str,
    flags: ContextFlag,
    principal: str | None = None,
    store: dict[str, str] | None = None,
) -> Context:
    """A new context with the host-based service ``target``, not yet begun; may ask a KDC.

    Raises:
        ConfigError: there is no gssapi package.
        GSSError: (gssapi) there are no credentials.
    """
    gssapi = load_gssapi()
    kerberos = gssapi.MechType.kerberos
    name = None if principal is None else gssapi.Name(principal, gssapi.NameType.user)
    credentials = gssapi.Credentials(usage="initiate", name=name, mechs=[kerberos], store=store)
    context = gssapi.SecurityContext(
        name=gssapi.Name(target, gssapi.NameType.hostbased_service),
        creds=credentials,
        mech=kerberos,
        flags=int(flags),
        usage="initiate",
    )
    return _without_error_tokens(context)


def step(
    work: Work, context: Context, token: bytes | None, principals: Sequence[str] = ()
) -> bytes | None:
    """Give ``context`` the peer's token in a thread; the token for the peer, if there is one.

    Raises:
        AuthFailed: the library refuses, in words that may name ``principals``; or too many wait.
    """
    return in_thread(work, context.step, token, principals=principals)


def in_thread(
    work: Work, job: Callable[..., T], *args: object, principals: Sequence[str] = ()
) -> T:
    """Run ``job(*args)``, which calls the library, in a thread of the pool for ``work``.

    A greenlet that is interrupted while it waits leaves at once; the job ends by itself.

    Raises:
        AuthFailed: the library refuses, in words that may name ``principals``; or too many wait.
    """

    results: list[T] = []

    def attempt() -> Exception | None:
        # An exception that leaves the thread is printed by the hub, so it leaves as a value.
        try:
            results.append(job(*args))
        except Exception as error:
            # The library keeps the text of an error for the thread that met it.
            return _as_ours(error, principals)
        return None

    failure = _pool(work).run(attempt)
    if failure is not None:
        try:
            raise failure
        finally:
            del failure  # its traceback has this frame: together they would keep the context
    return results[0]


class ContextPool:
    """The threads for one kind of work; owned by the hub."""

    def __init__(self, threads: int = THREADS, waiting: int = WAITING) -> None:
        self._threads = ThreadPool(threads, get_hub())
        self._room = threads + waiting

    def run(self, job: Callable[[], Exception | None]) -> Exception | None:
        """Run ``job`` in a thread; what it returns.  It must not raise.

        Raises:
            AuthFailed: too many wait already.
        """
        # Nothing blocks between the check and the count.
        if self._room == 0:
            raise AuthFailed("busy: too many wait for a GSSAPI step")
        self._room -= 1
        try:
            return self._threads.spawn(job).get()
        finally:
            self._room += 1


def _pool(work: Work) -> ContextPool:
    """This hub's pool for ``work``.

    It is kept on the hub, so that it lives as long: a table of ours would keep the hubs of ended
    threads alive, since a pool refers to its hub.
    """
    pools: dict[Work, ContextPool] = vars(get_hub()).setdefault("geosocks_gss_pools", {})
    if work not in pools:
        pools[work] = ContextPool()
    return pools[work]


_KRB5: Final = 0x96C73A00
"""Where the minor codes of libkrb5 begin; the table below counts from here."""

_KEYTAB_STALE = "write the keytab anew (kadmin ktadd) and restart or reload"
_KINIT = "run kinit"
_CLOCK = "set both clocks, for example by NTP"
_NAME = "the client must ask for a service name in the server's keytab"

_CAUSES: Final = {
    6: ("the KDC does not know the client", "add the principal, or log in as another"),
    7: ("the KDC knows no such service", "check the service and host name, or add the principal"),
    14: ("the KDC and we share no encryption type", "see permitted_enctypes in krb5.conf"),
    18: ("the KDC has locked the client out", "ask the realm's administrator"),
    23: ("the client's password has expired", "run kpasswd"),
    24: ("the KDC does not accept the client's key", _KEYTAB_STALE),
    31: ("the ticket does not decrypt: keytab and KDC have different keys", _KEYTAB_STALE),
    32: ("ticket expired", _KINIT),
    33: ("ticket not yet valid", _CLOCK),
    34: ("the context token was seen before: a replay", "the client must begin anew"),
    35: ("wrong principal in ticket", _NAME),
    37: ("clock skew too great", _CLOCK),
    41: ("the context token was changed on its way", "look for who changes the traffic"),
    44: ("the ticket is for a newer key than the keytab has", _KEYTAB_STALE),
    45: ("no key for the ticket", _KEYTAB_STALE),
    135: ("krb5.conf cannot be read", "see KRB5_CONFIG, or write /etc/krb5.conf"),
    136: ("krb5.conf is not well-formed", "mend it, and what it includes"),
    141: ("no Kerberos ticket", _KINIT),
    148: ("clock skew too great", _CLOCK),
    154: ("no KDC is known for the realm", "name one in krb5.conf"),
    156: ("no KDC answers", "check the network, and krb5.conf"),
    181: ("no usable keytab", "check its path and that we may read it"),
    195: ("no Kerberos ticket", _KINIT),
    220: ("no KDC's address can be found", "check krb5.conf, and name look-up"),
    224: ("no default realm", "set default_realm in krb5.conf"),
}
"""By minor code: what it means, and the usual cure (krb5 error table)."""

_NAMES_KEYTAB: Final = frozenset((35, 45, 181))


def minor_of(error: Any) -> int:
    """The libkrb5 code of a GSSError, counted from the start of its table; -1 if it is none."""
    offset = int(error.min_code) - _KRB5
    return offset if 0 <= offset < 256 else -1


def explain(error: Any, principals: Sequence[str] = ()) -> str:
    """A GSSError in one line: what it means, what the library says, and the usual cure.

    ``principals`` are those of the keytab in use.
    """
    cause, cure = diagnose(error, principals)
    return f"{cause} ({cure})" if cure else cause


def diagnose(error: Any, principals: Sequence[str] = ()) -> tuple[str, str]:
    """A GSSError's cause and its usual cure, which is empty when we know none."""
    minor = minor_of(error)
    meaning, cure = _CAUSES.get(minor, ("", ""))
    parts = [meaning] if meaning else []
    parts.append(_said(error))
    if principals and minor in _NAMES_KEYTAB:
        parts.append(f"the keytab has {', '.join(principals[:5])}")
    return ": ".join(parts), cure


def _said(error: Any) -> str:
    """The library's own words for ``error``: the minor code's, where it has one."""
    words: list[str] = []
    if error.min_code:
        words = list(error.get_all_statuses(error.min_code, False))
    if not words or words[0] in ("Success", "Unknown error"):
        words = list(error.get_all_statuses(error.maj_code, True))
    text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in " ".join(words))
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "..."


def _as_ours(error: Exception, principals: Sequence[str]) -> Exception:
    """A library's refusal as AuthFailed; anything else as it is."""
    if isinstance(error, GeosocksError):
        return error
    if isinstance(error, load_gssapi().exceptions.GSSError):
        ours: Exception = AuthFailed(explain(error, principals))
    elif isinstance(error, UnicodeDecodeError):
        # A name in the peer's token that is no UTF-8: gssapi fails to write the error's text.
        ours = AuthFailed("refused by the Kerberos library, in words that are not UTF-8")
    else:
        return error
    ours.__cause__ = error
    return ours


def _entries(keytab: str | None) -> tuple[KeytabEntry, ...]:
    """What ``keytab`` has, where it is a file; the library judges the other types of MIT's."""
    if keytab is None:
        return ()
    kind, colon, path = keytab.partition(":")
    if not colon or "/" in kind:
        return read_keytab(keytab)
    return read_keytab(path) if kind in ("FILE", "WRFILE") else ()


def _service_name(gssapi: Any, service: str | None, hostname: str | None) -> Any:
    """The name to acquire; None for any, and for any host when only the service is given."""
    if service is None:
        if hostname is not None:
            raise ConfigError("a GSSAPI host name needs a service name beside it, such as rcmd")
        return None
    name = service if hostname is None else f"{service}@{hostname}"
    return gssapi.Name(name, gssapi.NameType.hostbased_service)


def _without_error_tokens(context: Any) -> Context:
    """``context``, made to raise where it fails.

    gssapi would rather return the error's token to be sent, and raise at the next look at the
    context; RFC 1961 answers a failure with 01 FF and nothing else (section 3.8).
    """
    context.__DEFER_STEP_ERRORS__ = False
    checked: Context = context
    return checked
