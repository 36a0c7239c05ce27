"""A DNS server for tests: answers from a dict, counts what it is asked, or says nothing at all."""

import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address

from gevent.server import DatagramServer

from geosocks.relay.target import AresResolver

A, AAAA = 1, 28


class Dns:
    """``names`` holds addresses for each name; a name that is missing does not exist.

    Names under ``silent.test`` are never answered.
    """

    def __init__(self, names: Mapping[str, list[str]]) -> None:
        self.names = names
        self.asked: Counter[str] = Counter()
        self.server = DatagramServer(("127.0.0.1", 0), self._answer)

    def resolver(self, seconds: float = 5.0) -> AresResolver:
        """A resolver that asks this server; the caller closes it."""
        return AresResolver(("127.0.0.1",), port=self.server.server_port, seconds=seconds)

    def _answer(self, query: bytes, client: tuple[str, int]) -> None:
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode("latin-1").lower())
            at += 1 + query[at]
        kind = struct.unpack_from("!H", query, at + 1)[0]
        question = query[12 : at + 5]
        name = ".".join(labels)
        self.asked[name] += 1
        if name.endswith("silent.test"):
            return
        known = self.names.get(name)
        version = {A: 4, AAAA: 6}.get(kind)
        records = b"".join(
            b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 60, len(packed)) + packed
            for packed in (ip_address(text).packed for text in known or ())
            if ip_address(packed).version == version
        )
        count = sum(ip_address(text).version == version for text in known or ())
        flags = 0x8180 | (0 if known is not None else 3)
        header = query[:2] + struct.pack("!HHHHH", flags, 1, count, 0, 0)
        self.server.sendto(header + question + records, client)


@contextmanager
def dns(names: Mapping[str, list[str]]) -> Iterator[Dns]:
    """Serve ``names`` on loopback."""
    server = Dns(names)
    server.server.start()
    try:
        yield server
    finally:
        server.server.stop(timeout=0)
