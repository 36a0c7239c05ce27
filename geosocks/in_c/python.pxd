# What these modules need of Python's own C, and sizes that C wants to know beforehand.

cdef enum:
    FIELDS = 24  # of a value, at most
    KNOWN = 4096  # texts that are kept in writing
    ROOM = 4096  # octets of a line; a longer one is not written here
    LONG = 512  # characters of a text that is not looked through
    DIGITS = 20  # of a number of 64 bits, at most
    CODES = 256  # there are for one octet
    WORD = 8  # octets in an unsigned long long
    STAMP = 20  # octets of a time up to its milliseconds: 2026-01-31T23:59:59.
    MILLENNIA = 1000000000000  # seconds, and more than anything takes

cdef extern from *:
    """#define EACH 0x0101010101010101ULL"""
    const unsigned long long EACH  # 1 in each octet of a word

# How a field is written.
cdef enum:
    NUMBER
    SECONDS
    TEXT
    ADDRESS
    PEER
    CODE

# What a class has for each of its slots (since 3.12 Python.h has it, too).
cdef extern from "structmember.h":
    ctypedef struct PyMemberDef:
        Py_ssize_t offset

    ctypedef struct PyMemberDescrObject:
        PyMemberDef *d_member

cdef extern from "Python.h":
    object PyType_GenericAlloc(type kind, Py_ssize_t items)
    bint PyUnicode_IS_ASCII(object text)
