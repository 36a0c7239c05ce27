"""Short messages, passed on between the two ends of sessions without a turn of the loop for each.

What it saves is all that Python and gevent's loop do about a read(2) and a write(2).  Whose the
descriptors are, and when it is time for this, is known by ``relay.volleys``.
"""

import cython

if not cython.compiled:
    raise ImportError("it has not been compiled")

from cython.cimports.geosocks.in_c.linux import (
    ENDS,
    EPOLLIN,
    EVENTS,
    FDS,
    ROOM,
    SLICE,
    WAIT,
    epoll_event,
    epoll_wait,
)
from cython.cimports.libc.errno import EAGAIN, errno
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.posix.time import CLOCK_MONOTONIC, clock_gettime, timespec
from cython.cimports.posix.unistd import read, write

MOST = ENDS
"""Ends at a time."""


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _nanoseconds() -> cython.longlong:
    now: timespec
    clock_gettime(CLOCK_MONOTONIC, cython.address(now))
    return cython.cast(cython.longlong, now.tv_sec) * 1000000000 + now.tv_nsec


@cython.cclass
class Exchange:
    """One hub's; it remembers nothing from one ``run`` to the next."""

    _places: cython.p_short
    """For each descriptor 1 more than its place among the ends; 0 for a stranger's."""

    def __cinit__(self):
        self._places = cython.cast(cython.p_short, calloc(FDS, cython.sizeof(cython.short)))
        if not self._places:
            raise MemoryError

    def __dealloc__(self):
        free(self._places)

    def run(self, epoll: int, ends: list) -> tuple:
        """Wait for messages and pass each on, until something else is to be done.

        ``ends`` are up to ``MOST`` descriptors, each beside the one that its octets are for: 0 and
        1, 2 and 3.  ``epoll`` is the loop's, which waits for each of them to be readable; as it is
        told of what is there, not of what has come (level-triggered), it finds whatever is not
        taken here.

        Ends with the first event that is no message at one of the ends, with a message that is not
        taken whole, after a millisecond, or when nothing comes for five.

        Returns:
            How many messages; (place, octets) of each end that some came from; and of an end where
            it was not as expected: its place, what read(2) and write(2) returned, errno, and the
            octets that were read and not written, which are the caller's now.  There is none where
            the place is -1.
        """
        fds: cython.int[ENDS]
        octets: cython.longlong[ENDS]
        events: epoll_event[EVENTS]
        buffer: cython.char[ROOM]
        descriptor: cython.int = epoll
        count: cython.int = len(ends)
        place: cython.int
        if count > ENDS:
            raise ValueError(f"{count} ends are more than {ENDS}")
        for place in range(count):
            fds[place] = ends[place]
            octets[place] = 0
        messages: cython.int = 0
        odd: cython.int = -1
        got: cython.Py_ssize_t = 0
        sent: cython.Py_ssize_t = 0
        failure: cython.int = 0
        found: cython.int
        event: cython.int
        fd: cython.int
        leave: cython.bint = False
        with cython.nogil:
            for place in range(count):
                if 0 <= fds[place] < FDS:
                    self._places[fds[place]] = place + 1
            until: cython.longlong = _nanoseconds() + SLICE
            while not leave:
                found = epoll_wait(descriptor, events, EVENTS, WAIT)
                leave = found <= 0
                for event in range(found):
                    fd = events[event].data.fd
                    place = self._places[fd] - 1 if 0 <= fd < FDS else -1
                    if place < 0 or events[event].events != EPOLLIN:
                        leave = True  # once the others have had their turn
                        continue
                    got = read(fd, buffer, ROOM)
                    if got < 0 and errno == EAGAIN:
                        leave = True
                        continue
                    sent = -1
                    if got > 0:
                        sent = write(fds[place ^ 1], buffer, got)
                        if sent > 0:
                            octets[place] += sent
                    if got <= 0 or sent < got:
                        failure = errno
                        odd = place
                        leave = True
                        break
                    messages += 1
                    leave |= got == ROOM
                leave |= _nanoseconds() >= until
            for place in range(count):
                if 0 <= fds[place] < FDS:
                    self._places[fds[place]] = 0
        moved = [(place, octets[place]) for place in range(count) if octets[place]]
        rest = b""
        if odd >= 0 and got > 0:
            rest = buffer[max(sent, 0) : got]
        return messages, moved, odd, got, sent, failure, rest
