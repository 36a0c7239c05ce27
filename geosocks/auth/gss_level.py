"""Which protection level a context gets (RFC 1961, section 4).

LEVEL is 1 (integrity), 2 (integrity and confidentiality) or 3 (per message); 0 (clear) is not in
the RFC, but curl and Dante know it.

Knows no socket and no token: flags and numbers go in, a level comes out.
"""

from collections.abc import Collection, Sequence
from typing import Final

from geosocks.auth.gss_context import ContextFlag
from geosocks.codes import ProtectionLevel, name_of
from geosocks.errors import AuthFailed, ConfigError

DEFAULT_LEVELS: Final = (ProtectionLevel.CONFIDENTIALITY, ProtectionLevel.INTEGRITY)


def choose_level(
    asked: int,
    granted: Collection[ProtectionLevel],
    flags: ContextFlag,
    grant_clear: bool = False,
    unsequenced: bool = False,
) -> ProtectionLevel:
    """The level to answer a client that asks for ``asked``, out of those ``granted``.

    What it asks for, if that is granted and the context can do it; otherwise the strongest that
    is no weaker: a server need not follow the client's request, and a client that dislikes the
    answer closes (section 4.2).  Level 3 would let each message have its own protection;
    it is answered with the strongest that protects.  With ``grant_clear`` the answer is always 0.
    ``unsequenced`` is as in ``offers``.

    Raises:
        AuthFailed: there is none, or ``asked`` is no level.
    """
    if grant_clear:
        return ProtectionLevel.CLEAR
    able = {level for level in granted if offers(flags, level, unsequenced)}
    if asked in able:
        return ProtectionLevel(asked)
    suitable = _no_weaker(asked, able)
    if suitable:
        return max(suitable)
    wanted = name_of(ProtectionLevel, asked)
    if _no_weaker(asked, {level for level in granted if offers(flags, level, True)}):
        raise AuthFailed(
            f"no protection level: the client asks for {wanted}, but its context does not detect "
            "messages out of sequence (RFC 1961, section 3.2), so neither integrity nor "
            "confidentiality can be promised; --gss-grant clear serves curl, which does so, and "
            "--gss-unsequenced Dante's clients, which do so for UDP"
        )
    told = able if asked else set(granted)  # what a context can do is not why 0 is refused
    ours = ", ".join(level.name.lower() for level in sorted(told, reverse=True)) or "none"
    lack = "" if told == set(granted) else " that this context can do"
    raise AuthFailed(f"no protection level: the client asks for {wanted}, granted{lack}: {ours}")


def offers(flags: ContextFlag, level: ProtectionLevel, unsequenced: bool = False) -> bool:
    """True when a context with ``flags`` can do ``level``.

    A protected stream must notice a message that is missing or comes in another's place, which a
    context does that was made with SEQUENCE; REPLAY finds those that come twice, and no more (RFC
    2743, section 1.2.3).  ``unsequenced`` does without it.
    """
    if level == ProtectionLevel.CLEAR:
        return True
    needed = ContextFlag.INTEG
    if level == ProtectionLevel.CONFIDENTIALITY:
        needed |= ContextFlag.CONF
    if not unsequenced:
        needed |= ContextFlag.SEQUENCE
    return flags & needed == needed


def usable(levels: Sequence[ProtectionLevel]) -> frozenset[ProtectionLevel]:
    """``levels``, if we can do each.

    Raises:
        ConfigError: there is none, or one that we cannot.
    """
    if not levels or ProtectionLevel.SELECTIVE in levels:
        raise ConfigError("GSSAPI levels: one or more of confidentiality, integrity, clear")
    return frozenset(levels)


def _no_weaker(asked: int, levels: Collection[ProtectionLevel]) -> set[ProtectionLevel]:
    """Those of ``levels`` that protect as much as ``asked``."""
    if asked == ProtectionLevel.SELECTIVE:
        return {level for level in levels if level != ProtectionLevel.CLEAR}
    if asked in (ProtectionLevel.INTEGRITY, ProtectionLevel.CONFIDENTIALITY):
        return {level for level in levels if level >= asked}
    return set()  # 0 comes from clients that cannot do better; 4 and up are nothing
