"""How many sessions the descriptors of a process are enough for."""

from typing import Final

from geosocks.relay.pipes import MAX_PIPES

RESERVED_DESCRIPTORS: Final = 64 + 2 * MAX_PIPES
"""Kept free of sessions: listeners, logs, DNS, and the pipes that bulk sessions share."""

DESCRIPTORS_EACH: Final = 3
"""What a session may hold: its client, its target, one more while it dials several addresses."""


def max_sessions_for(descriptors: int) -> int:
    """How many sessions ``descriptors`` (RLIMIT_NOFILE) are enough for; at least 1."""
    return max(1, (descriptors - RESERVED_DESCRIPTORS) // DESCRIPTORS_EACH)


def descriptor_limit() -> int:
    """The soft RLIMIT_NOFILE of this process; a large number where there is no such thing."""
    try:
        import resource
    except ImportError:  # not a Unix
        return 1 << 16
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft
