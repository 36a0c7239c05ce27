"""Who is to be called when there is something to read: one epoll(7) for all connections of a hub.

The loop watches this epoll's descriptor, and nothing else of them.  What it saves is all that
gevent does for each event and for each watcher that is started and stopped; what it does is the
same: it is told of what is there, not of what has come (level-triggered).
"""

import os
import sys
from weakref import WeakSet

import cython

if not cython.compiled:
    raise ImportError("it has not been compiled")

from cython.cimports.cpython.exc import PyErr_SetFromErrno
from cython.cimports.cpython.ref import Py_DECREF, Py_INCREF
from cython.cimports.cpython.type import PyType_IsSubtype
from cython.cimports.geosocks.in_c.linux import (
    AT_ONCE,
    EPOLL_CLOEXEC,
    EPOLL_CTL_ADD,
    EPOLL_CTL_DEL,
    EPOLL_CTL_MOD,
    EPOLLIN,
    FEWEST_WATCHED,
    STALE,
    epoll_create1,
    epoll_ctl,
    epoll_event,
    epoll_wait,
    watched,
)
from cython.cimports.libc.errno import EEXIST, errno
from cython.cimports.libc.stdlib import free, realloc
from cython.cimports.libc.string import memset
from cython.cimports.posix.unistd import close
from gevent._hub_local import get_hub_if_exists
from greenlet import greenlet

_READ = 1
_Greenlet = cython.declare(type, greenlet)
_switch = cython.declare(object, greenlet.switch)

_all = WeakSet()


def _begin_anew() -> None:
    """In a child of fork(2), where only the hub of the thread that forked goes on."""
    hub = get_hub_if_exists()
    for polls in list(_all):
        if polls.hub is hub:
            polls.begin_anew()


@cython.cclass
class Polls:
    """One hub's.  A descriptor is known from its first ``watch`` until ``forget``.

    The epoll of a thread's hub is closed while none is known: when such a hub ends tells nobody.
    """

    __weakref__: object
    hub = cython.declare(object, visibility="readonly")

    left = cython.declare(cython.int, visibility="readonly")
    """Events that have been taken from the kernel and told nobody yet."""

    _watcher: object
    _epoll: cython.int
    _slots: cython.pointer[watched]
    _room: cython.int
    _known: cython.int
    _stale: cython.int
    _stays: cython.bint
    _events: epoll_event[AT_ONCE]
    """Not on the stack, of which greenlets copy what lies in their way."""

    _silent: cython.int[AT_ONCE]

    def __cinit__(self, hub: object):
        self._epoll = -1
        self.hub = hub
        self._stays = getattr(hub, "main_hub", False)
        if self._stays:
            self._open()

    def __init__(self, hub: object):
        _see_to_forks()
        _all.add(self)

    def __dealloc__(self):
        fd: cython.int
        for fd in range(self._room):
            self._set(fd, None, False)
        free(self._slots)
        if self._epoll >= 0:
            close(self._epoll)

    def fileno(self) -> int:
        """The descriptor of epoll(7) on which the connections are waited for; -1 if none is."""
        return self._epoll

    def around(self) -> int:
        """The loop's own, on which that one is."""
        return self.hub.loop.fileno()

    @cython.cfunc
    @cython.exceptval(-1)
    def _open(self) -> cython.int:
        self._epoll = epoll_create1(EPOLL_CLOEXEC)
        if self._epoll < 0:
            PyErr_SetFromErrno(OSError)
        if self._watcher is None:
            self._watcher = self.hub.loop.io(self._epoll, _READ)
        else:
            self._watcher.fd = self._epoll
        return 0

    @cython.cfunc
    def _close(self) -> None:
        close(self._epoll)
        self._epoll = -1

    @cython.cfunc
    @cython.exceptval(check=False)
    def _set(self, fd: cython.int, wake: object, keep: cython.bint) -> cython.void:
        """Have ``wake`` called for ``fd``; None for nobody."""
        slot: cython.pointer[watched] = cython.address(self._slots[fd])
        former: cython.p_void = slot.wake
        slot.wake = cython.NULL
        slot.keep = keep
        if wake is not None:
            Py_INCREF(wake)
            slot.wake = cython.cast(cython.p_void, wake)
        if former:
            Py_DECREF(cython.cast(object, former))

    @cython.cfunc
    @cython.exceptval(-1)
    def _make_room(self, fd: cython.int) -> cython.int:
        room: cython.int = max(self._room, FEWEST_WATCHED)
        while room <= fd:
            room *= 2
        slots: cython.p_void = realloc(self._slots, room * cython.sizeof(watched))
        if not slots:
            raise MemoryError
        self._slots = cython.cast(cython.pointer[watched], slots)
        memset(
            cython.address(self._slots[self._room]),
            0,
            (room - self._room) * cython.sizeof(watched),
        )
        self._room = room
        return 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def _control(self, what: cython.int, fd: cython.int) -> cython.int:
        """As epoll_ctl(2)."""
        event: epoll_event
        event.events = EPOLLIN
        event.data.u64 = cython.cast(cython.ulonglong, self._slots[fd].turn) << 32 | fd
        return epoll_ctl(self._epoll, what, fd, cython.address(event))

    @cython.cfunc
    @cython.exceptval(-1)
    def _add(self, fd: cython.int) -> cython.int:
        """Know ``fd``, whatever was known of another one of this number."""
        if fd < 0:
            raise ValueError(f"fd must be non-negative, not {fd}")
        if fd >= self._room:
            self._make_room(fd)
        if self._epoll < 0:
            self._open()
        self._set(fd, None, False)
        self._slots[fd].turn += 1
        failed: cython.bint = self._control(EPOLL_CTL_ADD, fd) < 0
        if failed and errno == EEXIST:  # nobody looked at it any more, and it was not closed
            failed = self._control(EPOLL_CTL_MOD, fd) < 0
        if failed:
            PyErr_SetFromErrno(OSError)
        if not self._slots[fd].known:
            self._slots[fd].known = True
            self._known += 1
            if self._known == 1:
                self._watcher.start(self.tell)
        return 0

    @cython.cfunc
    def _lose(self, fd: cython.int) -> None:
        """Know ``fd`` no longer."""
        self._set(fd, None, False)
        if self._slots[fd].known:
            self._slots[fd].known = False
            self._known -= 1
            if not self._known:
                self._watcher.stop()
                if not self._stays:
                    self._close()

    def watch(self, fd: cython.int, wake: object, keep: cython.bint, first: cython.bint) -> None:
        """Have ``wake`` called in the hub, once, when there is something to read at ``fd``.

        A greenlet is switched to.  To ``keep`` is to have it called each time, until ``unwatch``;
        the ``first`` time of a descriptor is to be told, as another one may have had its number.

        Raises:
            ValueError: ``fd`` is negative.
            OSError: as epoll_ctl(2).
        """
        if first or fd >= self._room or not self._slots[fd].known:
            self._add(fd)
        self._set(fd, wake, keep)

    def unwatch(self, fd: cython.int) -> None:
        """Have nobody called."""
        if 0 <= fd < self._room:
            self._set(fd, None, False)

    def is_watched(self, fd: cython.int) -> bool:
        """Whether somebody is called each time there is something to read."""
        return 0 <= fd < self._room and self._slots[fd].wake != cython.NULL and self._slots[fd].keep

    def forget(self, fd: cython.int) -> None:
        """It is about to be closed, which takes it out of the epoll."""
        if 0 <= fd < self._room:
            self._lose(fd)

    def tell(self) -> None:
        """Call all who are to be called; the loop calls this in the hub.

        What nobody waits for is looked at no longer: but last of all, as one way of a session ends
        before the other, and what was closed meanwhile is no longer there.
        """
        place: cython.int
        fd: cython.int
        slot: cython.pointer[watched]
        silenced: cython.int = 0
        stale: cython.bint = False
        count: cython.int = epoll_wait(self._epoll, self._events, AT_ONCE, 0)
        for place in range(count):
            self.left = count - place - 1
            fd = cython.cast(cython.int, self._events[place].data.u64 & 0x7FFFFFFF)
            slot = cython.address(self._slots[fd])
            if not slot.known or slot.turn != self._events[place].data.u64 >> 32:
                stale = True  # closed by one of those before it, as a rule
            elif not slot.wake:
                self._silent[silenced] = fd
                silenced += 1
            else:
                wake = cython.cast(object, slot.wake)
                if not slot.keep:
                    slot.wake = cython.NULL
                    Py_DECREF(wake)
                try:
                    if type(wake) is _Greenlet:
                        _switch(wake)
                    elif PyType_IsSubtype(type(wake), _Greenlet):
                        wake.switch()
                    else:
                        wake()
                except BaseException:
                    self._failed(fd, wake)
        self.left = 0
        for place in range(silenced):
            fd = self._silent[place]
            if self._slots[fd].known and not self._slots[fd].wake:
                self._control(EPOLL_CTL_DEL, fd)
                self._lose(fd)
        if stale:
            self._look_at_stale()
        else:
            self._stale = 0

    @cython.cfunc
    def _failed(self, fd: cython.int, wake: object) -> None:
        """It raised an error: as gevent does, have the hub say so, and call it no more."""
        if self._slots[fd].wake == cython.cast(cython.p_void, wake):
            self._set(fd, None, False)
        self.hub.loop.handle_error(self._watcher, *sys.exc_info())

    @cython.cfunc
    def _look_at_stale(self) -> None:
        """What is closed here and still told of is open in another process, and cannot be removed.

        Nothing but an epoll without it helps.
        """
        self._stale += 1
        if self._stale >= STALE:
            self.begin_anew()

    def begin_anew(self) -> None:
        """Have another epoll, on which is what was watched on this one."""
        fd: cython.int
        self._stale = 0
        if self._epoll < 0:
            return
        if self._known:
            self._watcher.stop()
        self._close()
        self._open()
        self._known = 0
        for fd in range(self._room):
            if self._slots[fd].known:
                self._slots[fd].known = self._slots[fd].wake != cython.NULL
                if self._slots[fd].known and self._control(EPOLL_CTL_ADD, fd) < 0:
                    self._slots[fd].known = False
                    self._set(fd, None, False)
                self._known += self._slots[fd].known
        if self._known:
            self._watcher.start(self.tell)


def _see_to_forks() -> None:
    global _is_seen_to
    if not _is_seen_to:
        _is_seen_to = True
        os.register_at_fork(after_in_child=_begin_anew)


_is_seen_to = False
