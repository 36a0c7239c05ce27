"""``geosocks check``: examine a SOCKS server as a client does, and tell what came of each step."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final, TextIO

from geosocks.cli.connect import PASSWORD, UrlParser, dying_of_interrupt
from geosocks.cli.examination import Check, Finding, Result
from geosocks.client import Client, destination
from geosocks.errors import ConfigError
from geosocks.wire.socks5 import Address

COLOURS: Final[dict[Result, str]] = {"ok": "32", "note": "33", "FAIL": "31"}
"""SGR codes: green, yellow, red."""


def main(argv: Sequence[str]) -> int:
    """Run ``geosocks check``; the exit code: 0 all asked for works, 1 not all, 2 not understood."""
    options = _parser().parse_args(argv)
    try:
        client = Client.from_url(
            options.url, password=os.environ.get(PASSWORD), credentials=options.credential
        )
    except ConfigError as error:
        print(f"geosocks check: {error}", file=sys.stderr)
        return 2
    findings: list[Finding] = []
    with dying_of_interrupt():
        for finding in Check(client, options.timeout).run(options.to, options.bind, options.udp):
            findings.append(finding)
            if not options.json:
                print(_coloured(finding, sys.stdout), flush=True)
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    return 1 if any(finding.result == "FAIL" for finding in findings) else 0


def _parser() -> UrlParser:
    parser = UrlParser(
        prog="geosocks check",
        description="Examine a SOCKS server as a client: can it be reached, which methods does it "
        "take when each is offered alone, does it take what the URL has to show, does it connect, "
        "listen and relay datagrams where it is asked to, what did a NAT do to the addresses that "
        "it tells, and does it refuse as the RFC has it.",
        epilog="Exit code 0: it can be reached, takes what the URL has to show, and does what is "
        "asked of it with --to, --bind and --udp.  A note changes no exit code.  The password may "
        f"stand in {PASSWORD}, or in a file: ?password-file=F.",
    )
    parser.add_argument(
        "--to", type=_target, metavar="HOST:PORT", help="have it CONNECT to this target, too"
    )
    parser.add_argument(
        "--bind",
        action="store_true",
        help="have it listen for us (BIND), and come to it as its peer",
    )
    parser.add_argument(
        "--udp",
        type=_target,
        metavar="HOST:PORT",
        help="have it relay a datagram to this target (UDP ASSOCIATE), and wait for an answer: to "
        "port 53 a DNS query, else random octets for an echo",
    )
    parser.add_timeout(10.0, "seconds that each step may take")
    parser.add_argument("--json", action="store_true", help="print a list of objects, for scripts")
    return parser


def _target(text: str) -> Address:
    host, _, port = text.rpartition(":")
    try:
        return destination((host.removeprefix("[").removesuffix("]"), int(port)))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!a} is not HOST:PORT, such as www.example.org:443"
        ) from None


def _coloured(finding: Finding, out: TextIO) -> str:
    line = str(finding)
    if not out.isatty() or os.environ.get("NO_COLOR"):
        return line
    end = len(finding.result)
    return f"\x1b[{COLOURS[finding.result]}m{line[:end]}\x1b[0m{line[end:]}"
