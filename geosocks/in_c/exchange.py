"""Short messages, passed on between the two ends of sessions without a turn of the loop for each.

What it saves is all that Python and gevent's loop do about a read(2) and a write(2), and the sleep
before an answer that comes at once: to fall asleep and be woken costs more than to stay awake until
then.  Whose the descriptors are, and when it is time for this, is known by
``relay.volleys``.
"""

import cython

if not cython.compiled:
    raise ImportError("it has not been compiled")

from cython.cimports.geosocks.in_c.linux import (
    ENDS,
    EPOLLIN,
    EVENTS,
    FDS,
    IN_VAIN,
    LOOK,
    MOST_DOUBT,
    OFTEN,
    ROOM,
    SLICE,
    WAIT,
    epoll_event,
    epoll_wait,
    peer,
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


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _is_other(around: cython.int, epoll: cython.int, wait: cython.int) -> cython.bint:
    """Whether within ``wait`` milliseconds anything but ``epoll`` has something to tell."""
    events: epoll_event[2]
    event: cython.int
    for event in range(epoll_wait(around, events, 2, wait)):
        # The loop has the descriptor in the lower half, and what is its own above.
        if cython.cast(cython.int, events[event].data.u64 & 0x7FFFFFFF) != epoll:
            return True
    return False


@cython.cclass
class Exchange:
    """One hub's; from one ``run`` to the next it remembers only who answers at once."""

    looks = cython.declare(cython.longlong, visibility="readonly")
    """How often it has stayed awake, as an answer was likely."""

    in_vain = cython.declare(cython.longlong, visibility="readonly")
    """How often of these none came, and it went to sleep after all."""

    _peers: cython.pointer[peer]
    """Of each descriptor."""

    def __cinit__(self):
        self._peers = cython.cast(cython.pointer[peer], calloc(FDS, cython.sizeof(peer)))
        if not self._peers:
            raise MemoryError

    def __dealloc__(self):
        free(self._peers)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _wait(
        self,
        epoll: cython.int,
        events: cython.pointer[epoll_event],
        told: cython.int,
        late: cython.bint,
        around: cython.int,
        others: cython.pointer[cython.bint],
    ) -> cython.int:
        """As epoll_wait(2), but stays awake for a moment where ``told`` is likely to answer in it.

        ``told`` has just been sent a message; it is -1 where nobody has.  Who is ``late`` goes to
        no sleep at all, and wants to know only whether something has come.  ``others`` becomes
        true when something else has come on the epoll ``around`` this one.
        """
        most: cython.int = 1 if late else EVENTS
        found: cython.int = 0
        until: cython.longlong
        is_over: cython.bint = False
        doubt: cython.int
        if 0 <= told < FDS:
            if self._peers[told].asleep:
                self._peers[told].asleep -= 1
            else:
                self.looks += 1
                doubt = self._peers[told].doubt
                until = _nanoseconds() + LOOK
                # Once more when time is over: others may have had the processor meanwhile.
                while not (found or is_over):
                    is_over = _nanoseconds() >= until
                    found = epoll_wait(epoll, events, most, 0)
                if found:
                    self._peers[told].doubt = max(doubt - 1, 0)
                    return found
                self.in_vain += 1
                doubt = min(doubt + IN_VAIN, MOST_DOUBT)
                self._peers[told].doubt = doubt
                self._peers[told].asleep = 1 << doubt
        if late:
            return 0
        if around < 0:
            return epoll_wait(epoll, events, EVENTS, WAIT)
        found = epoll_wait(epoll, events, EVENTS, 0)
        if found:
            return found
        others[0] = _is_other(around, epoll, WAIT)
        return epoll_wait(epoll, events, EVENTS, 0)

    def run(self, epoll: int, ends: list, last: int = -1, around: int = -1) -> tuple:
        """Wait for messages and pass each on, until something else is to be done.

        ``ends`` are up to ``MOST`` descriptors, each beside the one that its octets are for: 0 and
        1, 2 and 3.  ``epoll`` waits for each of them to be readable; as it is told of what is
        there, not of what has come (level-triggered), the loop finds whatever is not taken here.
        ``last`` is the descriptor that was sent a message just before, -1 if none was.  ``around``
        is the epoll of the loop, on which that one is; -1 where it is the same.

        Ends with the first event that is no message at one of the ends, with a message that is not
        taken whole, after three milliseconds, or when nothing comes for five.  After those three it
        still stays awake for an answer, if one is likely, and leaves it to the loop, which so need
        not go to sleep for it.

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
        outer: cython.int = around
        rounds: cython.int = 0
        others: cython.bint = False
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
        told: cython.int = last
        late: cython.bint = False
        leave: cython.bint = False
        with cython.nogil:
            for place in range(count):
                if 0 <= fds[place] < FDS:
                    self._peers[fds[place]].place = place + 1
            until: cython.longlong = _nanoseconds() + SLICE
            while not leave:
                found = self._wait(descriptor, events, told, late, outer, cython.address(others))
                if late:
                    break
                rounds += 1
                if outer >= 0 and rounds % OFTEN == 1:
                    others |= _is_other(outer, descriptor, 0)
                leave = others or found <= 0
                for event in range(found):
                    fd = cython.cast(cython.int, events[event].data.u64 & 0x7FFFFFFF)
                    place = self._peers[fd].place - 1 if 0 <= fd < FDS else -1
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
                    told = fds[place ^ 1]
                    messages += 1
                    leave |= got == ROOM
                late = _nanoseconds() >= until
            for place in range(count):
                if 0 <= fds[place] < FDS:
                    self._peers[fds[place]].place = 0
        moved = [(place, octets[place]) for place in range(count) if octets[place]]
        rest = b""
        if odd >= 0 and got > 0:
            rest = buffer[max(sent, 0) : got]
        return messages, moved, odd, got, sent, failure, rest
