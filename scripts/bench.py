#!/usr/bin/env python3
"""Measure geosocks beside the other SOCKS5 servers that are installed here.

    scripts/bench.py                  everything, 5 rounds; a quarter of an hour
    scripts/bench.py --quick          about half a minute
    scripts/bench.py --list           which servers are here, and which are not
    scripts/bench.py --only rate,rtt --peers microsocks --json out.json

Each server is started on 127.0.0.1, alone, for each scenario of each round; the servers take turns
within a scenario, so that what else the machine does falls on all of them alike.  All run on the
same one core, the load on another.  Judge by the least cost per unit of work: CPU time of the
server's processes, theirs and the kernel's for them.  Other work can only add to it, while speed
is also a matter of the load, which is Python.  Nothing leaves this host, and whatever was started
is ended, on ctrl-C, too.  Any Python 3.11 will do: geosocks itself runs in this one or in .venv.
"""

import argparse
import datetime
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from benchlib.load import raise_descriptor_limit
from benchlib.measure import SCENARIOS, Machine, Round, Scenario, measure, smaller
from benchlib.plot import svg
from benchlib.processes import Failed
from benchlib.report import DIRECT, Result, as_json, table
from benchlib.servers import GEOSOCKS, PEERS, Server


def names_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    """An option's value: names out of ``known``, with commas between."""

    def read(value: str) -> list[str]:
        names = [name for name in value.split(",") if name]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(
                f"no {', '.join(unknown)} here; there are {', '.join(known)}"
            )
        return names

    return read


def between(kind: type, least: float, most: float) -> Callable[[str], Any]:
    """An option's value: a number within bounds."""

    def read(value: str) -> Any:
        try:
            number = kind(value)
        except ValueError:
            number = most + 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{value} is no number from {least:g} to {most:g}")
        return number

    return read


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    summary, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary,
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    scenarios, peers = [each.name for each in SCENARIOS], [each.name for each in PEERS]
    add("--list", action="store_true", help="say which servers are here, and end")
    add("--quick", action="store_true", help="one round of half a second, 200 idle sessions")
    add("--rounds", type=between(int, 1, 100), metavar="N", help="rounds (default 5)")
    add("--seconds", type=between(float, 0.1, 60), metavar="S", help="of each run (default 2)")
    add("--sessions", type=between(int, 1, 5000), metavar="N", help="of idle (default 1000)")
    only, others = names_of(scenarios), names_of(peers)
    add("--only", type=only, default=scenarios, metavar="SCENARIOS", help=",".join(scenarios))
    add("--peers", type=others, default=peers, metavar="PEERS", help=",".join(peers))
    add("--json", type=Path, metavar="FILE", help="write all rounds there")
    add("--svg", type=Path, metavar="FILE", help="draw the costs there")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.seconds = options.seconds or (0.5 if options.quick else 2.0)
    options.sessions = options.sessions or (200 if options.quick else 1000)
    for file in filter(None, (options.json, options.svg)):
        if not file.absolute().parent.is_dir():
            parser.error(f"no folder {file.absolute().parent} to write {file.name} to")
    return options


def list_servers() -> None:
    """Say which are here."""
    for server in (GEOSOCKS, *PEERS):
        missing = server.missing()
        what = f"missing: {missing} (Debian: {server.package})" if missing else server.version()
        if server.package.startswith("not in Debian") and missing:
            what = f"missing: {missing} ({server.package})"
        print(f"{server.name:<12}{what or 'here'}")


class Bench:
    """One run of everything that was asked for; keeps what has come of it so far."""

    def __init__(self, options: argparse.Namespace, servers: Sequence[Server | None]) -> None:
        self.options = options
        self.machine = Machine.of_this_process()
        scenarios = [each for each in SCENARIOS if each.name in options.only]
        self.plan: list[tuple[Result, Server | None]] = [
            (Result(each, server.name if server else DIRECT), server)
            for each in (smaller(each, options.sessions) for each in scenarios)
            for server in servers
            if each.suits(server)
        ]

    @property
    def results(self) -> list[Result]:
        """In the order of the plan."""
        return [result for result, _ in self.plan]

    def run(self) -> None:
        """Measure; a server that fails twice in a scenario is not tried there again."""
        for number in range(self.options.rounds):
            for result, server in self.plan:
                if len(result.failures) < 2:
                    self._tell(number, result)
                    self._one(result, server)
        self._tell(0, None)

    def _one(self, result: Result, server: Server | None) -> None:
        try:
            result.rounds.append(self._measure(result.scenario, server))
        except Failed as failure:
            result.failures.append(str(failure))
        except OSError as error:
            result.failures.append(f"cannot be measured: {error}")

    def _measure(self, scenario: Scenario, server: Server | None) -> Round:
        return measure(scenario, server, self.options.seconds, self.machine)

    def _tell(self, number: int, result: Result | None) -> None:
        if sys.stderr.isatty():
            what = f"round {number + 1}: {result.scenario.name} {result.server}" if result else ""
            print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)

    # --- what is told about it --------------------------------------------------------------------

    def about(self, servers: Sequence[Server], began: datetime.datetime) -> dict[str, Any]:
        """What the figures depend on."""
        return {
            "date": began.isoformat(timespec="seconds"),
            "rounds": self.options.rounds,
            "seconds": self.options.seconds,
            "cores": len(os.sched_getaffinity(0)),
            "server_cores": sorted(self.machine.server),
            "load_cores": sorted(self.machine.load),
            "kernel": platform.release(),
            "architecture": platform.machine(),
            "python": platform.python_version(),
            "others": self._others(),
            "versions": {server.name: server.version() for server in servers},
        }

    def _others(self) -> float | None:
        """Cores that others used, on average."""
        seen = [one.others for result in self.results for one in result.rounds if one.cost]
        return round(sum(seen) / len(seen), 2) if seen and self.machine.spin else None


def headline(about: dict[str, Any]) -> str:
    """The run in a few lines."""
    versions = [f"{name} {version}".strip() for name, version in about["versions"].items()]
    where = f"{about['cores']} cores, Linux {about['kernel']}, Python {about['python']}"
    pinned = "server and load each on a core of their own"
    rounds = f"{about['rounds']} round{'s' if about['rounds'] > 1 else ''}"
    lines = [
        ", ".join(versions),
        f"{about['date']}: {rounds} of {about['seconds']:g} s; {where}",
        pinned if about["server_cores"] != about["load_cores"] else "server and load on one core",
    ]
    if about["others"] is not None:
        lines[-1] += f"; others used {about['others']:g} cores on average"
    return "\n".join(lines)


def interrupted(number: int, frame: FrameType | None) -> None:
    """Have TERM and HUP end the run as ctrl-C does."""
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write; the exit code is 1 where geosocks failed in a scenario."""
    options = options_of(arguments)
    if options.list:
        list_servers()
        return 0
    if missing := GEOSOCKS.missing():
        print(f"bench.py: missing: {missing}; scripts/run makes .venv", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    raise_descriptor_limit()
    peers = [each for each in PEERS if each.name in options.peers and not each.missing()]
    if not peers:
        print("No other server to compare with (see --list): geosocks alone.\n")
    servers = [GEOSOCKS, *peers]
    bench = Bench(options, [*servers, None])
    began, code = datetime.datetime.now().astimezone(), 0
    clock = time.monotonic()
    try:
        bench.run()
    except KeyboardInterrupt:
        print("\nInterrupted; this is what there is so far.\n", file=sys.stderr)
        code = 130
    results, about = bench.results, bench.about(servers, began)
    about["took"] = round(time.monotonic() - clock, 1)
    print(headline(about), table(results), sep="\n\n")
    if options.json:
        whole = {**about, "scenarios": as_json(results)}
        options.json.write_text(json.dumps(whole, indent=1) + "\n")
    if options.svg:
        options.svg.write_text(svg(results, about))
    failed = [one for one in results if one.server == GEOSOCKS.name and one.failures]
    return code or int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
