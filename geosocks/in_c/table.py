"""A table of C's, by octets: what ``datagrams`` has been told."""

import cython

if not cython.compiled:
    raise ImportError("it has not been compiled")

from cython.cimports.cpython.bytes import PyBytes_AS_STRING, PyBytes_GET_SIZE
from cython.cimports.cpython.ref import Py_DECREF, Py_INCREF
from cython.cimports.geosocks.in_c.linux import FEWEST, MOST, WAYS, Place
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.libc.string import memcmp


@cython.cfunc
@cython.exceptval(check=False)
def _hash_of(octets: cython.p_uchar, size: cython.Py_ssize_t) -> cython.uint:
    """FNV-1a."""
    code: cython.uint = 2166136261
    at: cython.Py_ssize_t
    for at in range(size):
        code = (code ^ octets[at]) * 16777619
    return code


@cython.cclass
class Table:
    """Remembers by octets, and may forget.

    A key has ``WAYS`` places to stand in, side by side from the one its hash says.  Where all are
    taken, the table grows; at its last size, whoever has the first of them is forgotten.  So it is
    bounded however the keys were chosen, and no look-up takes longer than another.
    """

    def __cinit__(self):
        self._make(FEWEST)

    def __dealloc__(self):
        self.clear()
        free(self._places)

    def _make(self, places: cython.uint) -> cython.int:
        made = cython.cast(cython.pointer[Place], calloc(places, cython.sizeof(Place)))
        if not made:
            raise MemoryError
        self._places, self._mask = made, places - 1
        return 0

    def find(self, octets: cython.p_uchar, size: cython.Py_ssize_t) -> cython.pointer[Place]:
        """The place of a key; NULL where it has none."""
        code: cython.uint = _hash_of(octets, size)
        place: cython.pointer[Place]
        way: cython.uint
        for way in range(WAYS):
            place = cython.address(self._places[(code + way) & self._mask])
            if place.key and place.hash == code:
                key = cython.cast(bytes, place.key)
                if PyBytes_GET_SIZE(key) == size and not memcmp(
                    PyBytes_AS_STRING(key), octets, size
                ):
                    return place
        return cython.NULL

    def put(self, key: bytes) -> cython.pointer[Place]:
        """The place of a key, which has one now."""
        octets = cython.cast(cython.p_uchar, PyBytes_AS_STRING(key))
        place = self.find(octets, PyBytes_GET_SIZE(key))
        if place:
            return place
        code: cython.uint = _hash_of(octets, PyBytes_GET_SIZE(key))
        place = self._free(code)
        while not place and self._mask + 1 < MOST:
            self._grow()
            place = self._free(code)
        if not place:
            place = cython.address(self._places[code & self._mask])
            self._empty(place)
        Py_INCREF(key)
        place.key, place.hash = cython.cast(cython.p_void, key), code
        return place

    def _free(self, code: cython.uint) -> cython.pointer[Place]:
        """A place for a key with this hash; NULL where there is none."""
        way: cython.uint
        for way in range(WAYS):
            place = cython.address(self._places[(code + way) & self._mask])
            if not place.key:
                return place
        return cython.NULL

    def _grow(self) -> cython.int:
        old = self._places
        count: cython.uint = self._mask + 1
        self._make(2 * count)
        at: cython.uint
        for at in range(count):
            if old[at].key:
                place = self._free(old[at].hash)
                if place:
                    place[0] = old[at]
                else:
                    self._empty(cython.address(old[at]))
        free(old)
        return 0

    def _empty(self, place: cython.pointer[Place]) -> cython.void:
        key = cython.cast(bytes, place.key)
        place.key = cython.NULL
        Py_DECREF(key)

    def drop(self, key: bytes) -> cython.void:
        """Forget it."""
        octets = cython.cast(cython.p_uchar, PyBytes_AS_STRING(key))
        place = self.find(octets, PyBytes_GET_SIZE(key))
        if place:
            self._empty(place)

    def clear(self) -> cython.void:
        """Forget all."""
        at: cython.uint
        for at in range(self._mask + 1):
            if self._places and self._places[at].key:
                self._empty(cython.address(self._places[at]))
