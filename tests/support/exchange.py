"""What ``geosocks.in_c.exchange`` does, said in Python: for tests of all that is around it."""

import errno
import os
import select
import time
from collections import defaultdict
from contextlib import suppress

MOST = 256
ROOM = 16384
FDS = 65536
SLICE = 0.02  # longer than the compiled one's: Python passes fewer messages in a time
LOOK = 0.000_016
IN_VAIN = 3
MOST_DOUBT = 8


class Peer:
    """Whoever is at a descriptor."""

    doubt = asleep = 0


class Exchange:
    """As the compiled one, with its arguments and its results."""

    def __init__(self) -> None:
        self.looks = self.in_vain = 0
        self._peers: defaultdict[int, Peer] = defaultdict(Peer)

    def _wait(self, waiting: select.epoll, told: int, late: bool) -> list[tuple[int, int]]:
        if 0 <= told < FDS:
            peer = self._peers[told]
            if peer.asleep:
                peer.asleep -= 1
            else:
                self.looks += 1
                until = time.monotonic() + LOOK
                is_over = False
                while not is_over:
                    is_over = time.monotonic() >= until
                    if events := waiting.poll(0, 1 if late else 64):
                        peer.doubt = max(peer.doubt - 1, 0)
                        return events
                self.in_vain += 1
                peer.doubt = min(peer.doubt + IN_VAIN, MOST_DOUBT)
                peer.asleep = 1 << peer.doubt
        return [] if late else waiting.poll(0.005, 64)

    def run(
        self, epoll: int, ends: list[int], last: int = -1, around: int = -1
    ) -> tuple[int, list[tuple[int, int]], int, int, int, int, bytes]:
        if len(ends) > MOST:
            raise ValueError(f"{len(ends)} ends are more than {MOST}")
        places = {fd: place for place, fd in enumerate(ends) if 0 <= fd < FDS}
        octets = dict.fromkeys(range(len(ends)), 0)
        messages = failure = got = sent = 0
        odd, told, rest, leave, late = -1, last, b"", False, False
        until = time.monotonic() + SLICE
        with select.epoll.fromfd(os.dup(epoll)) as waiting:
            while not leave:
                events: list[tuple[int, int]] = []
                with suppress(OSError):
                    events = self._wait(waiting, told, late)
                if late:
                    break
                leave = not events
                for fd, what in events:
                    place = places.get(fd, -1)
                    if place < 0 or what != select.EPOLLIN:
                        leave = True
                        continue
                    got, sent = 0, -1
                    try:
                        data = os.read(fd, ROOM)
                        got = len(data)
                        if data:
                            sent = os.write(ends[place ^ 1], data)
                            octets[place] += sent
                    except OSError as error:
                        failure = error.errno or 0
                        if not got and failure == errno.EAGAIN:
                            leave = True
                            continue
                        got = got or -1
                    if got <= 0 or sent < got:
                        odd, leave = place, True
                        rest = data[max(sent, 0) :] if got > 0 else b""
                        break
                    told = ends[place ^ 1]
                    messages += 1
                    leave |= got == ROOM
                late = time.monotonic() >= until
        moved = [(place, count) for place, count in octets.items() if count]
        return messages, moved, odd, got, sent, failure, rest
