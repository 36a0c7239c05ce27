#!/usr/bin/env python3
"""The tests of ``tests/test_hostile.py`` with larger numbers, for a developer to run by hand.

Starts a server of its own on loopback for each part, prints what it measured, one line a part, and
ends with exit code 1 where a promise was not kept.  From the project's root:

    .venv/bin/python scripts/soak.py                 everything, about two minutes
    .venv/bin/python scripts/soak.py churn trickle   only these
"""

import argparse
import hashlib
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gevent

from geosocks.codes import Cmd
from tests.support.load import (
    OFFER,
    churn,
    good_clients,
    obedient_target,
    percentile,
    trickling,
)
from tests.support.net import recv_all, recv_exactly
from tests.support.programs import run
from tests.support.proxy import running
from tests.support.servers import request
from tests.support.web import big_digest, web

MEGABYTE = 1_000_000


class Broken(Exception):
    """A promise was not kept."""


def promise(kept: bool, what: str) -> None:
    """Raise Broken unless ``kept``."""
    if not kept:
        raise Broken(what)


def soak_churn(options: argparse.Namespace, folder: Path) -> str:
    """Short sessions that end in every way: no wrong octet, no descriptor, no memory lost."""
    with obedient_target() as target, running(folder, log_level="info") as proxy:
        churn(proxy, target, 10_000, clients=64)  # what it allocates once is not what leaks
        proxy.wait_for(lambda: proxy.descriptors() < 20)
        descriptors, resident = proxy.descriptors(), proxy.resident()
        began = time.monotonic()
        tally = churn(proxy, target, options.sessions, clients=64, seed=2)
        seconds = time.monotonic() - began
        promise(not tally.wrong, f"{len(tally.wrong)} wrong, first: {tally.wrong[:1]}")
        proxy.wait_for(lambda: proxy.descriptors() <= descriptors, 2.0)
        grown = (proxy.resident() - resident) / MEGABYTE
        promise(grown < 4, f"memory grew by {grown:.1f} MB")
        return (
            f"{options.sessions} sessions, 0 wrong, {options.sessions / seconds:.0f}/s, "
            f"descriptors +0, memory {grown:+.1f} MB"
        )


def soak_trickle(options: argparse.Namespace, folder: Path) -> str:
    """Half-open handshakes, arriving within a second or all at once."""
    told = []
    for within in (1.0, 0.0):
        with (
            obedient_target() as target,
            running(folder, "--timeout-handshake", options.handshake, log_level="info") as proxy,
        ):
            churn(proxy, target, 500)
            resident = proxy.resident()
            with (
                good_clients(proxy, target) as waits,
                trickling(proxy, options.half_open, options.handshake + 5, within) as fate,
            ):
                gevent.sleep(options.handshake / 2)
                each = (proxy.resident() - resident) / options.half_open
            promise(fate["cut"] == options.half_open, f"only {fate['cut']} were cut")
            promise(fate["longest"] < options.handshake + 1, f"one lived {fate['longest']:.1f} s")
            p99 = percentile(waits, 0.99)
            promise(p99 < 0.05, f"p99 of others is {p99 * 1000:.0f} ms, arriving in {within:g} s")
            told.append(
                f"in {within:g} s: cut after {fate['shortest']:.2f} to {fate['longest']:.2f} s, "
                f"others p50 {percentile(waits, 0.5) * 1000:.1f}, p99 {p99 * 1000:.1f}, "
                f"max {max(waits) * 1000:.0f} ms, {each / 1000:.1f} kB each"
            )
    return f"{options.half_open} half-open, arriving " + "; ".join(told)


def soak_dns(options: argparse.Namespace, folder: Path) -> str:
    """Look-ups that nobody answers."""
    with obedient_target() as target, socket.socket(type=socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        dns = f"127.0.0.1:{silent.getsockname()[1]}"
        with running(folder, "--dns-server", dns, log_level="info") as proxy:

            def look_up(number: int) -> tuple[bytes, float]:
                began = time.monotonic()
                with proxy.dial() as sock, gevent.Timeout(20.0):
                    sock.sendall(OFFER + request(Cmd.CONNECT, f"host{number}.silent.test", 80))
                    got = recv_exactly(sock, 4)
                    sock.shutdown(socket.SHUT_WR)
                    recv_all(sock)
                return got, time.monotonic() - began

            with good_clients(proxy, target, ("localhost", target[1])) as waits:
                lookers = [gevent.spawn(look_up, number) for number in range(options.look_ups)]
                gevent.joinall(lookers, raise_error=True)
        answers = {looker.value[0] for looker in lookers}
        promise(answers == {b"\x05\x00\x05\x04"}, f"answered {answers}")
        longest = max(looker.value[1] for looker in lookers)
        p99 = percentile(waits, 0.99)
        promise(longest < 12, f"one waited {longest:.1f} s")
        promise(p99 < 0.2, f"p99 of others is {p99 * 1000:.0f} ms")
        return (
            f"{options.look_ups} silent look-ups, each answered within {longest:.1f} s, "
            f"others p99 {p99 * 1000:.1f}, max {max(waits) * 1000:.0f} ms"
        )


def soak_bulk(options: argparse.Namespace, folder: Path) -> str:
    """One large download by curl, with its checksum."""
    size, file = options.bulk * MEGABYTE, folder / "bulk"
    with web() as site, running(folder, log_level="info") as proxy:
        began = time.monotonic()
        words = ("-q", "-sS", "-o", file, "-x", proxy.url(), site.url(f"/big/{size}"))
        done = run(("curl", *words), seconds=600.0)
        seconds = time.monotonic() - began
        promise(done.code == 0, done.err)
        spent = proxy.cpu_seconds()
    with file.open("rb") as octets:
        digest = hashlib.file_digest(octets, "sha256").hexdigest()
    file.unlink()
    promise(digest == big_digest(size), "the checksum is wrong")
    return (
        f"{options.bulk} MB by curl, checksum right, {options.bulk / seconds:.0f} MB/s with this "
        f"process as the web server, {spent:.1f} s of the proxy's processor time"
    )


PARTS: dict[str, Callable[[argparse.Namespace, Path], str]] = {
    "churn": soak_churn,
    "trickle": soak_trickle,
    "dns": soak_dns,
    "bulk": soak_bulk,
}


def main() -> int:
    """Run the parts that were asked for."""
    summary, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    add(
        "--sessions", type=int, default=50_000, help="short sessions of churn (default %(default)s)"
    )
    add("--half-open", type=int, default=2000, help="clients of trickle (default %(default)s)")
    add(
        "--handshake", type=float, default=10.0, help="their limit in seconds (default %(default)g)"
    )
    add("--look-ups", type=int, default=300, help="look-ups of dns (default %(default)s)")
    add("--bulk", type=int, default=1000, help="megabytes of bulk (default %(default)s)")
    options = parser.parse_args()
    unknown = set(options.parts) - PARTS.keys()
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    code = 0
    for name in options.parts or PARTS:
        with tempfile.TemporaryDirectory(prefix="geosocks-soak-") as folder:
            try:
                print(f"{name}: {PARTS[name](options, Path(folder))}", flush=True)
            except (Broken, AssertionError) as error:
                print(f"{name}: BROKEN: {error}", flush=True)
                code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
