"""Every option of ``geosocks serve``, declared once: how it is read, its default, its help."""

from typing import Any, Final

from geosocks.codes import ProtectionLevel
from geosocks.config.listeners import listen_option
from geosocks.config.process import PROCESS_GROUPS, Group
from geosocks.config.values import (
    count,
    dns_address,
    drain_seconds,
    early_drop,
    ip,
    level_list,
    method_list,
    named_proxy,
    network,
    port_range,
    principal_mapping,
    proxy_or_names,
    seconds,
)


def _listening(add: Any) -> None:
    add(
        "--listen",
        action="append",
        type=listen_option,
        metavar="ADDR:PORT",
        help="address to listen on, or tls://ADDR:PORT, or unix:PATH, or systemd[:NAME] for "
        "sockets that a service manager hands over; with settings of its own "
        "after a ?, as in ADDR:PORT?name=inside&methods=gssapi; may be given again "
        "(default 127.0.0.1:1080)",
    )
    add(
        "--tls-cert",
        metavar="FILE",
        help="certificate and its chain (PEM), for listeners written tls://ADDR:PORT",
    )
    add("--tls-key", metavar="FILE", help="its key (default: in the same file)")
    add(
        "--tls-client-ca",
        metavar="FILE",
        help="demand a certificate of clients, signed by one of these authorities (PEM); it names "
        "the user where method none is used",
    )
    add(
        "--allow-open",
        action="store_true",
        help="start even where anybody on the network could use the proxy",
    )
    add(
        "--max-sessions",
        type=count,
        metavar="N",
        help="sessions at a time; further clients wait (default: what the descriptors allow)",
    )


def _entering(add: Any) -> None:
    add(
        "--methods",
        type=method_list,
        metavar="LIST",
        help="authentication methods, in the server's order of preference: gssapi, username, none, "
        "or one of your own by import path, MODULE:NAME "
        "(default: gssapi with --keytab, username with --users, none with neither)",
    )
    add(
        "--users",
        metavar="FILE",
        help="htpasswd file with bcrypt hashes, as 'geosocks passwd' and 'htpasswd -B' write it",
    )
    add(
        "--keytab",
        metavar="FILE",
        help="the server's Kerberos keys (default: the system's keytab)",
    )
    add(
        "--gss-levels",
        type=level_list,
        default=(ProtectionLevel.CONFIDENTIALITY, ProtectionLevel.INTEGRITY),
        metavar="LIST",
        help="GSSAPI protection levels that may be granted: confidentiality, integrity, clear "
        "(default confidentiality,integrity)",
    )
    add(
        "--gss-grant",
        choices=("clear",),
        help="answer level 'clear' to clients that ask for more, as curl from 8.17 on needs; "
        "their data then travels unprotected",
    )
    add(
        "--gss-nec",
        action="store_true",
        help="take the protection level unwrapped from clients that send it so (NEC's SOCKS)",
    )
    add(
        "--gss-unsequenced",
        action="store_true",
        help="grant integrity and confidentiality also to clients whose context does not detect "
        "messages out of sequence, as Dante's with UDP; somebody on the way could then drop or "
        "move messages of theirs unnoticed",
    )
    add(
        "--gss-map",
        action="append",
        type=principal_mapping,
        metavar="MAP",
        help="what a Kerberos principal is called by rules and log: strip:REALM, or "
        "PRINCIPAL=USER, with one * on the left and on the right; may be given again, the first "
        "that matches wins (default: the principal)",
    )
    add(
        "--max-handshakes",
        type=early_drop,
        metavar="START:RATE:FULL",
        help="clients at a time that have not made their request within a second: from START on "
        "RATE percent of new connections are closed, more the more there are, all at FULL; of "
        "each worker (default: a quarter of the sessions it can have, 30, a half; 10000:30:20000 "
        "at most)",
    )
    add(
        "--max-handshakes-per-source",
        type=count,
        metavar="N",
        help="the same of one IPv4 address, or of one IPv6 network of 64 bits; beyond, "
        "connections are closed (default: half of START)",
    )
    add(
        "--penalty-exempt",
        action="append",
        type=network,
        metavar="NET",
        help="clients that are not turned away for many handshakes or for failures to "
        "authenticate, may be given again (default 127.0.0.0/8 and ::1)",
    )


def _going(add: Any) -> None:
    add(
        "--rules",
        metavar="FILE",
        help="who may go where (default: on loopback listeners, clients of this host may go "
        "anywhere; on others, who may enter may go to any but guarded addresses)",
    )
    add(
        "--rejudge",
        action="store_true",
        help="at a reload, close the sessions that the new rules would not let through (default: "
        "what was allowed goes on)",
    )
    add(
        "--sessions-per-user",
        type=count,
        metavar="N",
        help="sessions at a time of one user, or of one client host where nobody is named, over "
        "all workers; the next one is refused; 'sessions N' in a rule counts beside it (default: "
        "any number)",
    )


def _times(add: Any) -> None:
    add(
        "--timeout-handshake",
        type=seconds,
        default=10.0,
        metavar="S",
        help="seconds from connection to complete request, all of it (default 10)",
    )
    add(
        "--timeout-connect",
        type=seconds,
        default=10.0,
        metavar="S",
        help="seconds to reach the target, all its addresses together (default 10)",
    )
    add(
        "--timeout-idle",
        type=seconds,
        default=3600.0,
        metavar="S",
        help="seconds without an octet after which a session is closed (default 3600)",
    )
    add(
        "--timeout-half-close",
        type=seconds,
        default=300.0,
        metavar="S",
        help="the same once one side has ended its way (default 300)",
    )
    add(
        "--timeout-bind",
        type=seconds,
        default=60.0,
        metavar="S",
        help="seconds that a BIND waits for its peer (default 60)",
    )
    add(
        "--timeout-udp",
        type=seconds,
        default=120.0,
        metavar="S",
        help="seconds without a datagram after which a UDP association is closed (default 120)",
    )
    add(
        "--drain",
        type=drain_seconds,
        default=30.0,
        metavar="S",
        help="seconds that sessions may go on after TERM (default 30)",
    )


def _reaching(add: Any) -> None:
    add(
        "--resolver",
        choices=("ares", "thread"),
        default="ares",
        help="how names are looked up: c-ares, or the system's resolver in threads (default ares)",
    )
    add(
        "--dns-server",
        action="append",
        type=dns_address,
        metavar="ADDR[:PORT]",
        help="DNS server to ask instead of the system's, may be given again (c-ares only)",
    )
    add(
        "--outgoing",
        action="append",
        type=ip,
        metavar="ADDR",
        help="source address of outgoing connections, may be given once for each family",
    )
    add(
        "--family",
        choices=("any", "ipv4", "ipv6"),
        default="any",
        help="address family of outgoing connections (default any)",
    )
    add(
        "--via",
        type=proxy_or_names,
        metavar="URL",
        help="send sessions through this proxy unless a rule says otherwise: socks5://, "
        "socks5+tls://, socks4a://, socks4:// or http://, as "
        "[user[:password]@]host[:port][?auth=gssapi&...]; or names of --upstream, the first that "
        "answers (default: direct)",
    )
    add(
        "--upstream",
        action="append",
        type=named_proxy,
        metavar="NAME=URL",
        help="a proxy that rules may name (via NAME), may be given again; ?via=OTHER reaches it "
        "through another one",
    )


def _other_requests(add: Any) -> None:
    add(
        "--bind-ports",
        type=port_range,
        metavar="A-B",
        help="ports that BIND listens on, for a firewall to let in (default: any)",
    )
    add(
        "--advertise",
        action="append",
        type=ip,
        metavar="ADDR",
        help="address that peers reach this host at, where a NAT hides its own; may be given once "
        "for each family",
    )
    add(
        "--udp-ports",
        type=port_range,
        metavar="A-B",
        help="ports that clients send their UDP datagrams to, for a firewall to let in "
        "(default: any)",
    )
    add(
        "--udp-replies",
        choices=("asked", "any"),
        default="asked",
        help="pass on to a client the datagrams of hosts that it wrote to in the last 2 minutes, "
        "or of any (default asked)",
    )
    add(
        "--udp-fragments",
        choices=("reassemble", "drop"),
        default="reassemble",
        help="what becomes of datagrams that a client sends in fragments (default reassemble)",
    )
    add(
        "--max-udp",
        type=count,
        default=1000,
        metavar="N",
        help="UDP associations at a time (default 1000)",
    )
    add(
        "--max-udp-per-user",
        type=count,
        default=64,
        metavar="N",
        help="the same of one user, or of one client host where there are no users (default 64)",
    )
    add(
        "--socks4",
        choices=("on", "off"),
        default="on",
        help="serve SOCKS4 and 4A on the same port, where method none is taken (default on)",
    )


GROUPS: Final[tuple[Group, ...]] = (
    ("where it listens", _listening),
    ("who may enter", _entering),
    ("where they may go", _going),
    ("how long things may take, in seconds", _times),
    ("how targets are found and reached", _reaching),
    ("BIND, UDP ASSOCIATE, SOCKS4", _other_requests),
    *PROCESS_GROUPS,
)
"""Titles of the help, and what declares the options below each, given ``add_argument``."""
