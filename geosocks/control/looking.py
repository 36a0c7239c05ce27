"""The verbs that look: status, sessions, users, limits, explain."""

import logging
import os
import time
from collections import Counter
from collections.abc import Iterator

from geosocks.client import destination
from geosocks.codes import Cmd, Method, name_of
from geosocks.control.arguments import BadRequest, needed
from geosocks.control.desk import Call, Work
from geosocks.control.selection import chosen, in_turns
from geosocks.events import LogObserver, escape
from geosocks.explaining import COMMANDS, Asked, method_of
from geosocks.explaining import explain as explained
from geosocks.greenlets import give_way
from geosocks.listening import Listen
from geosocks.rows import TURN, Row, session_rows
from geosocks.rules import WrittenRule
from geosocks.server import Server
from geosocks.session import address_of
from geosocks.wire.socks5 import Address


def status(call: Call) -> Work:
    """How the server is."""
    call.arguments.end()
    yield from ()
    desk = call.desk
    server = desk.server
    policy_seconds = desk.clock.policy_seconds()  # first, so that it is no longer than the whole
    return {
        "version": desk.version,
        "pid": os.getpid(),
        "worker": desk.worker,
        "workers": desk.workers,
        "started": round(desk.clock.started, 3),
        "seconds": round(time.monotonic() - desk.began, 3),
        "listeners": list(map(_listener, server.listening)),
        "sessions": len(server.sessions),
        "max_sessions": server.max_sessions,
        "draining": desk.clock.draining,
        "policy_seconds": round(policy_seconds, 3),
        "log_level": logging.getLevelName(LogObserver().logger.getEffectiveLevel()).lower(),
        "observer_failures": server.emit.failures,
    }


def lately(call: Call) -> Work:
    """What happened lately, for another worker's status page; nothing where nobody keeps it."""
    call.arguments.end()
    yield from ()
    return {} if call.desk.lately is None else call.desk.lately()


def sessions(call: Call) -> Work:
    """The live sessions, by id."""
    wanted = chosen(call.arguments)
    call.arguments.end()
    yield from session_rows(call.desk.server, call.desk.worker, wanted)
    return {}


def users(call: Call) -> Work:
    """Who has how many sessions, and how much these have moved; the busiest first."""
    call.arguments.end()
    counts = Counter[str | None]()
    up, down, hosts = Counter[str | None](), Counter[str | None](), dict[str | None, set[object]]()
    for session in in_turns(call.desk.server):
        user = session.identity
        counts[user] += 1
        up[user] += session.meter.up
        down[user] += session.meter.down
        hosts.setdefault(user, set()).add(session.peer.host)
    for user, number in counts.most_common():
        yield {
            "user": None if user is None else escape(user),
            "sessions": number,
            "clients": len(hosts[user]),
            "up": up[user],
            "down": down[user],
        }
    return {}


def limits(call: Call) -> Work:
    """What ceilings there are, and how much of each is used."""
    call.arguments.end()
    server = call.desk.server
    policy = server.policy
    udp = sum(session.command == Cmd.UDP_ASSOCIATE for session in in_turns(server))
    yield _limit("sessions", len(server.sessions), server.max_sessions, over="worker")
    gate = server.gate
    yield _limit("handshakes", gate.handshakes, gate.full, over="worker")
    yield _limit("handshakes_of_source", None, gate.per_source, over="worker")
    yield _limit("udp_associations", udp, policy.udp.max_associations, over="worker")
    yield _limit("udp_associations_per_user", None, policy.udp.max_per_user, over="worker")
    of_rules = {
        rule.effects.name or rule.text: rule.effects.sessions
        for rule in policy.rules.rules
        if isinstance(rule, WrittenRule) and rule.effects and rule.effects.sessions
    }
    if policy.limits.per_user is not None:
        yield _limit("sessions_per_user", None, policy.limits.per_user)
    for name, ceiling in of_rules.items():
        yield _limit("sessions_of_rule", None, ceiling, f"each user by {name}")
    counts: dict[str, int] = getattr(policy.limits.store, "counts", dict)()
    for key, used in sorted(counts.items()):
        rule = next((name for name in of_rules if key.endswith(f" by {name}")), None)
        if rule is not None:
            yield _limit("sessions_of_rule", used, of_rules[rule], key)
        elif policy.limits.per_user is not None:
            yield _limit("sessions_per_user", used, policy.limits.per_user, key)
    return {}


def penalties(call: Call) -> Work:
    """Sources that failed to authenticate so often that they have to wait, or are turned away."""
    call.arguments.end()
    gate = call.desk.server.gate
    for number, source in enumerate(gate.failures.keys(), 1):
        if number % TURN == 0:
            give_way()
        delay, refused = gate.penalty(str(source))
        if delay or refused:
            yield {"source": source, "delay": delay, "refused": round(refused, 1)}
    return {}


def explain(call: Call) -> Work:
    """Which rule of the policy in force decides a request."""
    arguments = call.arguments
    user, source = arguments.text("user"), arguments.address("from")
    host = needed(arguments.text("host"), "host")
    method = arguments.number("method", Method.NONE, Method.NO_ACCEPTABLE - 1)
    asked = Asked(
        command=needed(arguments.word("command", COMMANDS), "command"),
        destination=_destination(host, needed(arguments.number("port", 0, 0xFFFF), "port")),
        user=user,
        method=method_of(user) if method is None else method,
        source=needed(source, "from"),
        listener=arguments.text("listener"),
    )
    arguments.end()
    yield None
    server = call.desk.server
    facts = explained(asked, server.policy, _own_ports(server))
    return facts | {"notes": list(_notes(asked, server))}


def _destination(host: str, port: int) -> Address:
    try:
        return destination((host, port))
    except ValueError as error:
        raise BadRequest(f"host: {host!a}: {error}") from None


def _listener(listen: Listen) -> Row:
    where = listen.where
    spelt = str(address_of(where)) if isinstance(where, tuple) else str(where)
    return {"address": escape(spelt), "name": escape(listen.name or spelt), "tls": listen.tls}


def _own_ports(server: Server) -> frozenset[int]:
    return frozenset(one.where[1] for one in server.listening if isinstance(one.where, tuple))


def _notes(asked: Asked, server: Server) -> Iterator[str]:
    """What the rules cannot know, and would stop the request before they are asked."""
    names = [one.name or "" for one in server.listening]
    if asked.listener is not None and asked.listener not in names:
        yield f"no listener is called {asked.listener!a}"
        return
    for name in names if asked.listener is None else [asked.listener]:
        if asked.method in [one.method for one in server.policy.authenticators_at(name)]:
            return
    where = f"listener {asked.listener}" if asked.listener else "no listener"
    takes = "does not take" if asked.listener else "takes"
    yield f"{where} {takes} method {name_of(Method, asked.method)}: nobody gets in with it"


def _limit(
    limit: str, used: int | None, ceiling: int, key: str | None = None, over: str = "all"
) -> Row:
    """A row: a ceiling that holds ``over`` all workers together, or each ``worker``."""
    shown = None if key is None else escape(key)
    return {"limit": limit, "key": shown, "used": used, "ceiling": ceiling, "over": over}
