# What others may ask of a table, and what it consists of.

from geosocks.in_c.linux cimport Place

cdef class Table:
    cdef Place *_places
    cdef unsigned int _mask

    cdef int _make(self, unsigned int places) except -1
    cdef Place *find(self, unsigned char *octets, Py_ssize_t size) noexcept
    cdef Place *put(self, bytes key) except NULL
    cdef Place *_free(self, unsigned int code) noexcept
    cdef int _grow(self) except -1
    cdef void _empty(self, Place *place) noexcept
    cdef void drop(self, bytes key) noexcept
    cdef void clear(self) noexcept
