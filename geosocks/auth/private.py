"""Methods that somebody else wrote, found by their import path: ``office.auth:make``.

The path names a module, a colon, and in it an ``Authenticator`` (or ``Credential``) or a function
(or class) without arguments that makes one.  Whoever may write that path may run code in this
process, so it comes from whoever starts the program, and from nobody else.
"""

import importlib
import re
from typing import Any, Final

from geosocks.auth import Authenticator, Credential
from geosocks.codes import Method
from geosocks.errors import ConfigError

_REFERENCE: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_reference(text: str) -> bool:
    """True for ``module:attribute``; both may have dots."""
    return _REFERENCE.fullmatch(text) is not None


def load_authenticator(reference: str) -> Authenticator:
    """The server's half of a method, by its import path.

    A function is called anew each time; the module is imported once in the life of the process.

    Raises:
        ConfigError: there is no such thing, it fails, or it is no ``Authenticator``.
    """
    found: Authenticator = _load(reference, "an Authenticator", "authenticate")
    return found


def load_credential(reference: str) -> Credential:
    """The client's half, in the same way."""
    found: Credential = _load(reference, "a Credential", "present")
    return found


def _load(reference: str, what: str, does: str) -> Any:
    thing = _found(reference)
    if isinstance(thing, type) or not hasattr(thing, does):
        if not callable(thing):
            raise ConfigError(f"{reference}: is neither {what} nor callable")
        thing = _made(reference, thing)
    if not callable(getattr(thing, does, None)):
        kind = type(thing).__name__
        raise ConfigError(f"{reference}: a {kind} is not {what}: it cannot {does}")
    method = getattr(thing, "method", None)
    if not isinstance(method, int) or not Method.NONE <= method < Method.NO_ACCEPTABLE:
        raise ConfigError(f"{reference}: its method is {method!a}, not a number 0x00 to 0xfe")
    return thing


def _found(reference: str) -> Any:
    module, _, path = reference.partition(":")
    try:
        thing: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ConfigError(f"{reference}: {error}") from error  # it lacks something itself
        where = "install it, or put its directory into PYTHONPATH"
        raise ConfigError(f"{reference}: there is no module {error.name}; {where}") from error
    except Exception as error:
        raise ConfigError(f"{reference}: cannot be imported: {_told(error)}") from error
    for name in path.split("."):
        try:
            thing = getattr(thing, name)
        except AttributeError:
            raise ConfigError(f"{reference}: there is no {name} in it") from None
    return thing


def _made(reference: str, factory: Any) -> Any:
    try:
        return factory()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{reference}: failed: {_told(error)}") from error


def _told(error: Exception) -> str:
    """One line about somebody else's exception."""
    return " ".join(f"{type(error).__name__}: {error}".split())
