"""Numbers, times and reasons as a person reads them."""

from typing import Final

REASONS: Final = {
    "no_method": "no authentication method in common",
    "timeout": "too slow to make a request",
    "gone": "left before making a request",
    "protocol": "spoke something other than SOCKS",
    "authentication": "wrong password, ticket or the like",
    "penalised": "failed to authenticate too often",
    "handshakes": "too many were making a request at once",
    "handshakes_of_source": "too many of one source were making a request at once",
    "general_failure": "general failure",
    "not_allowed": "denied by a rule or a limit",
    "network_unreachable": "no way to the target's network",
    "host_unreachable": "target not found or not reached",
    "connection_refused": "target refused the connection",
    "ttl_expired": "target did not answer in time",
    "command_not_supported": "command not supported",
    "address_type_not_supported": "address type not supported",
    "other": "other",
}
"""Every one of ``cells.REASONS``."""

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")


def number(value: float) -> str:
    """1234567 is 1,234,567; small ones keep a digit behind the point."""
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.1f}"


def octets(value: float) -> str:
    """1234567 is 1.2 MB: units of a thousand."""
    unit = 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value /= 1000
        unit += 1
    return (
        f"{value:.0f} {_UNITS[unit]}"
        if value >= 9.95 or not unit
        else f"{value:.1f} {_UNITS[unit]}"
    )


def rate(value: float) -> str:
    """Octets a second."""
    return f"{octets(value)}/s"


def duration(seconds: float) -> str:
    """Two units at most: 3 d 4 h, 12 min, 5 s."""
    left = max(0, int(seconds))
    parts = []
    for name, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {name}")
        elif parts:
            break
        if len(parts) == 2:
            break
    return " ".join(parts) or "0 s"


def ago(seconds: float) -> str:
    """How long ago, roughly."""
    return "just now" if seconds < 2 else f"{roughly(seconds)} ago"


def roughly(seconds: float) -> str:
    """A duration in one unit."""
    for name, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {name}"
    return f"{int(seconds)} s"
