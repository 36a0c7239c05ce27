"""A security context that gives a message even where it comes out of order.

GSS_Unwrap tells a gap, another order or a repetition by a status beside the message (RFC 2743,
section 1.2.3: GSS_S_GAP_TOKEN and its like), but the gssapi package raises then, and the message is
gone.
So the context is moved by its own export and import (RFC 2743, sections 2.2.8 and 2.2.9) and lives
on behind six calls of the C library that the package has loaded already.  Where that cannot be
done the package's context is used as it is, and what follows a lost datagram is lost, too.
"""

import ctypes
import weakref
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Protocol

from geosocks.auth.gss_context import Message, Wrapping, load_gssapi

LIBRARY: Final = "libgssapi_krb5.so.2"
"""MIT Kerberos, as the gssapi package links it on Linux."""

_ORDER: Final = 2 | 4 | 8 | 16
"""DUPLICATE, OLD, UNSEQ and GAP: bits of a major status that are no errors (RFC 2744, 3.9.1)."""


class LooseContext(Wrapping, Protocol):
    """Wraps and unwraps, in order or in any."""

    def unwrap_in_any_order(self, message: bytes) -> Message:
        """Unwrap a token whatever came before it; whether it did itself is the caller's to know.

        Raises:
            gssapi's GSSError: as ``unwrap``, but for what is said of the order.
        """
        ...


def loosened(context: Wrapping) -> LooseContext:
    """``context`` moved to where it can be loose; afterwards ``context`` itself is of no use."""
    export = getattr(context, "export", None)
    library = _library()
    if export is None or library is None:
        return _AsItIs(context)
    return _Moved(library, export())


class _AsItIs:
    """A context that can unwrap in order only."""

    def __init__(self, context: Wrapping) -> None:
        self.wrap = context.wrap
        self.unwrap = self.unwrap_in_any_order = context.unwrap
        self.get_wrap_size_limit = context.get_wrap_size_limit


class _Buffer(ctypes.Structure):
    """gss_buffer_desc (RFC 2744, section 3.2)."""

    _fields_ = (("length", ctypes.c_size_t), ("value", ctypes.c_void_p))

    @classmethod
    def of(cls, octets: bytes) -> "_Buffer":
        """A buffer that shows ``octets``, which the caller keeps."""
        return cls(len(octets), ctypes.cast(ctypes.c_char_p(octets), ctypes.c_void_p))


_STATUS = ctypes.POINTER(ctypes.c_uint32)
_OUT = ctypes.POINTER(_Buffer)
_CONTEXT = ctypes.POINTER(ctypes.c_void_p)
_INT = ctypes.POINTER(ctypes.c_int)

_CALLS: Final[dict[str, list[Any]]] = {
    "gss_import_sec_context": [_STATUS, _OUT, _CONTEXT],
    "gss_delete_sec_context": [_STATUS, _CONTEXT, _OUT],
    "gss_release_buffer": [_STATUS, _OUT],
    "gss_wrap": [_STATUS, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, _OUT, _INT, _OUT],
    "gss_unwrap": [_STATUS, ctypes.c_void_p, _OUT, _OUT, _INT, _STATUS],
    "gss_wrap_size_limit": [
        _STATUS,
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.c_uint32,
        ctypes.c_uint32,
        _STATUS,
    ],
}
"""The calls and their arguments (RFC 2744, section 5)."""


@cache
def _library() -> Any:
    """The C library; None where there is no such one."""
    try:
        library = ctypes.CDLL(LIBRARY)
        for name, arguments in _CALLS.items():
            call = getattr(library, name)
            call.argtypes, call.restype = arguments, ctypes.c_uint32
    except (OSError, AttributeError):
        return None
    return library


@dataclass(frozen=True, slots=True)
class _Unwrapped:
    message: bytes
    encrypted: bool


class _Moved:
    """A context in the C library, deleted with its last reference."""

    def __init__(self, library: Any, exported: bytes) -> None:
        self._library = library
        self._context = ctypes.c_void_p()
        minor = ctypes.c_uint32()
        token = _Buffer.of(exported)
        major = library.gss_import_sec_context(
            ctypes.byref(minor), ctypes.byref(token), ctypes.byref(self._context)
        )
        _check(major, minor)
        weakref.finalize(self, _delete, library, self._context)

    def wrap(self, message: bytes, encrypt: bool) -> Message:
        minor, used, out = ctypes.c_uint32(), ctypes.c_int(), _Buffer()
        given = _Buffer.of(message)
        major = self._library.gss_wrap(
            ctypes.byref(minor),
            self._context,
            encrypt,
            0,
            ctypes.byref(given),
            ctypes.byref(used),
            ctypes.byref(out),
        )
        return self._taken(major, minor, used, out)

    def unwrap(self, message: bytes) -> Message:
        return self._unwrap(message, 0)

    def unwrap_in_any_order(self, message: bytes) -> Message:
        return self._unwrap(message, _ORDER)

    def _unwrap(self, message: bytes, harmless: int) -> Message:
        minor, used, qop, out = ctypes.c_uint32(), ctypes.c_int(), ctypes.c_uint32(), _Buffer()
        # A copy: the library turns and decrypts a token where it stands.
        octets = ctypes.create_string_buffer(message, len(message))
        given = _Buffer(len(message), ctypes.cast(octets, ctypes.c_void_p))
        major = self._library.gss_unwrap(
            ctypes.byref(minor),
            self._context,
            ctypes.byref(given),
            ctypes.byref(out),
            ctypes.byref(used),
            ctypes.byref(qop),
        )
        return self._taken(major & ~harmless, minor, used, out)

    def get_wrap_size_limit(self, desired_output_size: int, encrypted: bool = True) -> int:
        minor, limit = ctypes.c_uint32(), ctypes.c_uint32()
        major = self._library.gss_wrap_size_limit(
            ctypes.byref(minor),
            self._context,
            encrypted,
            0,
            desired_output_size,
            ctypes.byref(limit),
        )
        _check(major, minor)
        return limit.value

    def _taken(
        self, major: int, minor: ctypes.c_uint32, used: ctypes.c_int, out: _Buffer
    ) -> Message:
        """What a call put ``out``, which the library gets back whatever came of it."""
        message = ctypes.string_at(out.value, out.length) if out.value else b""
        self._library.gss_release_buffer(ctypes.byref(ctypes.c_uint32()), ctypes.byref(out))
        _check(major, minor)
        return _Unwrapped(message, bool(used.value))


def _delete(library: Any, context: ctypes.c_void_p) -> None:
    # No output token: "nothing on the wire" (RFC 1961, section 6).
    library.gss_delete_sec_context(ctypes.byref(ctypes.c_uint32()), ctypes.byref(context), None)


def _check(major: int, minor: ctypes.c_uint32) -> None:
    """Raise what the gssapi package would, in its own words."""
    if major:
        raise load_gssapi().exceptions.GSSError(major, minor.value)
