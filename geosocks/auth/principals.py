"""What a Kerberos principal is called by the rules and the log: ``alice@EXAMPLE.ORG`` is alice.

One mapping an option, tried in order, the first that matches wins::

    strip:EXAMPLE.ORG                        alice@EXAMPLE.ORG is alice, a/b@EXAMPLE.ORG is a/b
    alice/admin@EXAMPLE.ORG=root-alice       this one
    */admin@EXAMPLE.ORG=root-*               * stands for one name on either side
    *@PARTNER.EXAMPLE=partner

``*`` matches one or more characters, but no ``/`` and no ``@``: a pattern never takes in a second
name of a principal, or another realm, by accident.  A principal that nothing matches stays what it
is, and so does one with an escaped character: no realm can make its users look like those of
another.
"""

import re
from dataclasses import dataclass
from typing import Final, Self

STRIP: Final = "strip:"
_REALM: Final = re.compile(r"[^\s@/\\=*]+")
_STAR: Final = r"([^/@\\]+)"


@dataclass(frozen=True, slots=True)
class Mapping:
    """One mapping; ``text`` is as written."""

    text: str
    _pattern: re.Pattern[str]
    _user: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read one mapping.

        Raises:
            ValueError: it cannot be used as written; says why.
        """
        if text.startswith(STRIP):
            realm = text.removeprefix(STRIP)
            if not _REALM.fullmatch(realm):
                raise ValueError("write strip:REALM, such as strip:EXAMPLE.ORG")
            return cls(text, re.compile(rf"([^@\\]+)@{re.escape(realm)}"), "*")
        principal, _, user = text.rpartition("=")
        if not principal or not user:
            raise ValueError(f"{text!a} is neither PRINCIPAL=USER nor strip:REALM")
        if not text.isprintable() or " " in text:
            raise ValueError(f"{text!a} has a blank in it, or what cannot be printed")
        name, at, realm = principal.rpartition("@")
        if not name or not at or not realm:
            raise ValueError(f"{principal!a} is no principal: it has no realm, as in a@EXAMPLE.ORG")
        if principal.count("*") > 1 or user.count("*") > principal.count("*"):
            raise ValueError(f"{text!a}: one * stands on the left, and then may on the right")
        before, star, after = principal.partition("*")
        return cls(text, re.compile(re.escape(before) + (star and _STAR) + re.escape(after)), user)

    def user_of(self, principal: str) -> str | None:
        """The user that ``principal`` is; None when this does not match."""
        found = self._pattern.fullmatch(principal)
        if found is None:
            return None
        return self._user.replace("*", found[1]) if found.groups() else self._user

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class PrincipalMap:
    """Mappings, the first that matches wins."""

    mappings: tuple[Mapping, ...] = ()

    @classmethod
    def parse(cls, *texts: str) -> Self:
        """Read mappings, each as ``Mapping.parse`` does."""
        return cls(tuple(map(Mapping.parse, texts)))

    def __call__(self, principal: str) -> str:
        """The user that ``principal`` is; itself when nothing matches."""
        for mapping in self.mappings:
            user = mapping.user_of(principal)
            if user is not None:
                return user
        return principal
