"""What is counted: families of figures with closed sets of labels, and where in a row they are.

A family's cells are dealt out once, before there are workers; a reload never moves one.  Users,
hosts and rules are no labels: there is no end of them, and they are nobody else's business.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Final, Literal

from geosocks.codes import Cmd, Method, Rep
from geosocks.events import NEGOTIATION_ENDS
from geosocks.relay.pump import End
from geosocks.shared import Layout

MICRO: Final = 1_000_000
"""Times are kept in microseconds: a cell holds whole numbers."""

BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds: the upper bounds of a histogram's buckets; one more is for all that took longer."""

OTHER: Final = "other"


@dataclass(frozen=True, slots=True)
class Family:
    """Figures of one name.

    A counter is of the whole server, the sum of all rows.  A gauge is of each worker, and gone
    with it.  A histogram's cells are its buckets and the sum.
    """

    name: str
    help: str
    kind: Literal["counter", "gauge", "histogram"] = "counter"
    labels: tuple[str, ...] = ()
    values: tuple[tuple[str, ...], ...] = ((),)
    """What the labels may be, in the order of the cells."""

    scale: int = 1
    """Parts of the unit that a cell counts."""

    counts_up: bool = False
    """A gauge that only grows while its worker lives: a counter to those who read it."""

    @property
    def size(self) -> int:
        """Its cells."""
        return len(BOUNDS) + 2 if self.kind == "histogram" else len(self.values)


def _counter(name: str, help: str, *labels: tuple[str, Iterable[str]]) -> Family:
    names = tuple(name for name, _ in labels)
    return Family(name, help, "counter", names, tuple(product(*(values for _, values in labels))))


def _gauge(name: str, help: str, scale: int = 1, *, counts_up: bool = False) -> Family:
    return Family(name, help, "gauge", scale=scale, counts_up=counts_up)


COMMANDS: Final = (*(cmd.name.lower() for cmd in Cmd), OTHER)
NO_REPLY: Final = "none"
REPLIES: Final = (*(rep.name.lower() for rep in Rep), NO_REPLY, OTHER)
METHODS: Final = ("none", "gssapi", "username", "private", OTHER)
assert METHODS[:3] == tuple(method.name.lower() for method in Method if method < 0x80)

ENDS: Final = (
    *(end.value for end in End),
    *("idle", "half_close_idle", "udp_idle", "crowded_out", "drained", "killed", "crashed"),
    *("nothing_said", "given_up", "no_longer_allowed", "refused", OTHER),
)
REFUSED_AT_ONCE: Final = ("penalised", "handshakes", "handshakes_of_source")
"""Why connections are closed before a word is said."""

REFUSALS: Final = tuple(
    dict.fromkeys((*NEGOTIATION_ENDS, "authentication", *REFUSED_AT_ONCE, OTHER))
)
LIMITS: Final = (
    "sessions",
    "sessions_per_user",
    "sessions_of_rule",
    "handshakes",
    "handshakes_of_source",
    "udp_associations",
    "udp_associations_per_user",
    OTHER,
)

DATAGRAMS: Final = {
    ("up", "relayed"): "datagrams_up",
    ("down", "relayed"): "datagrams_down",
    ("up", "strangers"): "strangers",
    ("up", "malformed"): "malformed",
    ("up", "fragments"): "fragments",
    ("up", "denied"): "denied",
    ("up", "unresolved"): "unresolved",
    ("up", "overflow"): "overflow",
    ("either", "failed"): "failed",
    ("down", "unasked"): "unasked",
    ("down", "too_long"): "too_long",
}
"""Direction and result, and the field of ``UdpEnded`` that tells how many."""

SESSIONS: Final = _counter(
    "sessions",
    "Sessions that have ended, by command and by the reply to it.",
    ("command", COMMANDS),
    ("reply", REPLIES),
)
SESSION_ENDS: Final = _counter(
    "session_ends", "Sessions that have ended, by what ended them.", ("reason", ENDS)
)
REFUSED: Final = _counter(
    "refused_connections",
    "Connections of which no request came, by what was wrong.",
    ("reason", REFUSALS),
)
AUTHENTICATIONS: Final = _counter(
    "authentications",
    "Clients that were let in to make a request, or were not, by method.",
    ("method", METHODS),
    ("result", ("success", "failure")),
)
OCTETS: Final = _counter(
    "octets",
    "Octets relayed: up from clients, down to them.  Those of running sessions are in it.",
    ("direction", ("up", "down")),
)
UDP: Final = Family(
    "udp_datagrams",
    "Datagrams of UDP associations that have ended, relayed or dropped for which reason.",
    labels=("direction", "result"),
    values=tuple(DATAGRAMS),
)
LIMITS_REACHED: Final = _counter(
    "limits_reached", "Times that a limit was told to be reached.", ("limit", LIMITS)
)
ACCEPT_PAUSES: Final = _counter(
    "accept_pauses", "Times that no connection was accepted for want of descriptors or memory."
)
UPSTREAM_FAILURES: Final = _counter(
    "upstream_failures", "Times that an upstream was told to have failed."
)
CRASHES: Final = _counter("session_crashes", "Sessions ended by a fault of this program.")
HANDSHAKE: Final = Family(
    "handshake_seconds", "From accept to the whole request.", "histogram", scale=MICRO
)
CONNECT: Final = Family(
    "connect_seconds",
    "From the request of a CONNECT until its target was reached.",
    "histogram",
    scale=MICRO,
)

UP: Final = _gauge("worker_up", "1 for a worker that is alive.")
ACTIVE: Final = _gauge("sessions_active", "Sessions at this moment.")
HANDSHAKES: Final = _gauge("handshakes_active", "Sessions whose request is not whole yet.")
CEILING: Final = _gauge("sessions_limit", "How many sessions there may be.")
DRAINING: Final = _gauge("draining", "1 while no more connections are accepted.")
CONFIG_GOOD: Final = _gauge(
    "config_last_reload_successful", "1 unless the last reload was refused."
)
CONFIG_LOADED: Final = _gauge(
    "config_last_reload_success_timestamp_seconds",
    "When the settings in force were read.",
    MICRO,
)
STARTED: Final = _gauge("process_start_time_seconds", "When the process began to serve.", MICRO)
CPU: Final = _gauge(
    "process_cpu_seconds", "Processor time spent, by it and on its behalf.", MICRO, counts_up=True
)
MEMORY: Final = _gauge("process_resident_memory_bytes", "Memory that it occupies.")
DESCRIPTORS: Final = _gauge("process_open_fds", "Descriptors that it has open.")
MAX_DESCRIPTORS: Final = _gauge("process_max_fds", "How many it may have.")

FAMILIES: Final = (
    SESSIONS,
    SESSION_ENDS,
    REFUSED,
    AUTHENTICATIONS,
    OCTETS,
    UDP,
    LIMITS_REACHED,
    ACCEPT_PAUSES,
    UPSTREAM_FAILURES,
    CRASHES,
    HANDSHAKE,
    CONNECT,
    UP,
    ACTIVE,
    HANDSHAKES,
    CEILING,
    DRAINING,
    CONFIG_GOOD,
    CONFIG_LOADED,
    STARTED,
    CPU,
    MEMORY,
    DESCRIPTORS,
    MAX_DESCRIPTORS,
)

MOMENTS: Final = 360
"""Moments that the history keeps: an hour's, one every ``EVERY`` seconds."""

EVERY: Final = 10.0

REFUSING_REPLIES: Final = tuple(
    reply for reply in REPLIES if reply not in ("succeeded", NO_REPLY, OTHER)
)

REASONS: Final = (*REFUSALS, *REFUSING_REPLIES)
"""Why nothing came of a connection: before the request, or by the reply to it."""

OF_A_MOMENT: Final = ("number", "active", "ended", "up", "down", *REASONS)
"""A moment's cells: which it is, sessions at it, and all counted until then."""


@dataclass(frozen=True, slots=True)
class Cells:
    """Where in a row each family begins, and where the history is."""

    blocks: dict[str, range]
    history: range

    @classmethod
    def take(cls, layout: Layout) -> "Cells":
        """Have them dealt out, once for a program."""
        blocks = {
            family.name: layout.block(
                f"metrics.{family.name}", family.size, gauge=family.kind == "gauge"
            )
            for family in FAMILIES
        }
        return cls(blocks, layout.block("metrics.history", MOMENTS * len(OF_A_MOMENT)))

    def of(self, family: Family) -> range:
        """The cells of ``family``."""
        return self.blocks[family.name]

    def reason(self, reason: str) -> tuple[int, ...]:
        """The cells whose sum is how often ``reason``, one of REASONS, was one."""
        before = (self.one(REFUSED, reason),) if reason in REFUSALS else ()
        by_reply = [
            self.one(SESSIONS, command, reason) for command in COMMANDS if reason in REPLIES
        ]
        return (*before, *by_reply)

    def one(self, family: Family, *values: str) -> int:
        """The cell of these values of its labels.

        Raises:
            ValueError: they are not in the closed set.
        """
        return self.of(family)[family.values.index(values)]
