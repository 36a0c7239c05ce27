"""Values with slots, made and written down by where in the object each slot lies.

It saves an interpreted ``__init__``, and the look-up of each field by its name.  For which values
that is worth it, and what is to be said of them, ``events`` and ``logs`` know.
"""

import cython

if not cython.compiled:
    raise ImportError("it has not been compiled")

from types import MemberDescriptorType

from cython.cimports.cpython.float import PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cython.cimports.cpython.long import (
    PyLong_AsLongLongAndOverflow,
    PyLong_Check,
    PyLong_CheckExact,
)
from cython.cimports.cpython.object import PyObject
from cython.cimports.cpython.ref import Py_INCREF
from cython.cimports.cpython.unicode import (
    PyUnicode_1BYTE_DATA,
    PyUnicode_CheckExact,
    PyUnicode_GET_LENGTH,
    PyUnicode_New,
)
from cython.cimports.geosocks.in_c.python import (
    ADDRESS,
    CODE,
    CODES,
    DIGITS,
    EACH,
    FIELDS,
    KNOWN,
    LONG,
    MILLENNIA,
    NUMBER,
    PEER,
    ROOM,
    SECONDS,
    STAMP,
    TEXT,
    WORD,
    PyMemberDescrObject,
    PyType_GenericAlloc,
    PyUnicode_IS_ASCII,
)
from cython.cimports.libc.string import memcpy

_HOW = {"number": NUMBER, "seconds": SECONDS, "text": TEXT, "address": ADDRESS, "peer": PEER}


@cython.cfunc
@cython.exceptval(-1)
def _place(kind: type, name: str) -> cython.Py_ssize_t:
    """Where the slot ``name`` lies in an object of ``kind``: octets from its beginning."""
    slot = getattr(kind, name)
    if type(slot) is not MemberDescriptorType:
        raise TypeError(f"{kind.__name__}.{name} is no slot")
    return cython.cast(cython.pointer(PyMemberDescrObject), slot).d_member.offset


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _slot(thing: object, place: cython.Py_ssize_t) -> cython.pointer(cython.pointer(PyObject)):
    octets: cython.p_char = cython.cast(cython.p_char, cython.cast(cython.pointer(PyObject), thing))
    return cython.cast(cython.pointer(cython.pointer(PyObject)), octets + place)


@cython.final
@cython.cclass
class Maker:
    """Makes values of ``kind`` with something in each of its slots ``names``, in their order.

    It is for a class whose ``__init__`` does no more than that, and calls none.
    """

    _kind: type
    _count: cython.Py_ssize_t
    _places: cython.Py_ssize_t[FIELDS]

    def __init__(self, kind: type, names: tuple):
        if len(names) > FIELDS:
            raise ValueError(f"{len(names)} fields are more than {FIELDS}")
        self._kind = kind
        self._count = len(names)
        for number, name in enumerate(names):
            self._places[number] = _place(kind, name)

    @cython.boundscheck(False)
    @cython.wraparound(False)
    def __call__(self, *values):
        """Make one."""
        number: cython.Py_ssize_t
        if len(values) != self._count:
            raise TypeError(f"{len(values)} values for {self._count} fields")
        made = PyType_GenericAlloc(self._kind, 0)
        for number in range(self._count):
            one = values[number]
            Py_INCREF(one)  # the slot's own, and there was nothing in it
            _slot(made, self._places[number])[0] = cython.cast(cython.pointer(PyObject), one)
        return made


@cython.final
@cython.cclass
class Line:
    """Writes values of ``kind`` as a line of JSON: the time, ``begin``, and each of ``fields``.

    A field is its name and how it is written: as a ``number``, an int from 0 on; as ``seconds``, a
    float from 0 on, with six decimals; as a ``text``; as an ``address``, which has its ``text``; as
    a ``peer``, whose text is that of ``forms.before_port`` and then its ``port``, as its ``text``
    would be made for this and nothing else; or as a table tells that has something for each int of
    an octet.  None is left out, but for the first two.

    ``when`` makes text of a time; it is asked once a second.  ``escaped`` makes JSON of a text
    that does not simply stand for itself.
    """

    _kind: type
    _begin: str
    _when: object
    _escaped: object
    _known: dict
    """Of texts that do not simply stand for themselves: a rule with a quote comes again."""

    _count: cython.Py_ssize_t
    _places: cython.Py_ssize_t[FIELDS]
    _how: cython.int[FIELDS]
    _names: tuple
    """What stands before each field."""

    _tables: tuple
    """That of each field, or None."""

    _second: cython.ulonglong
    _stamp: cython.uchar[STAMP]
    """The time up to its milliseconds, in this second."""

    def __init__(self, kind: type, begin: str, fields: tuple, when: object, escaped: object):
        if len(fields) > FIELDS:
            raise ValueError(f"{len(fields)} fields are more than {FIELDS}")
        self._kind = kind
        self._begin = f'", {begin}'
        self._when = when
        self._escaped = escaped
        self._known = {}
        self._count = len(fields)
        self._second = MILLENNIA
        self._names = tuple([f', "{name}": ' for name, _ in fields])
        self._tables = tuple([how if isinstance(how, tuple) else None for _, how in fields])
        for number, (name, how) in enumerate(fields):
            self._places[number] = _place(kind, name)
            self._how[number] = CODE if isinstance(how, tuple) else _HOW[how]
        tables = [table for table in self._tables if table is not None]
        if any(len(table) != CODES for table in tables):
            raise ValueError(f"a table that is not of {CODES}")
        words = "".join([self._begin, *self._names, *("".join(table) for table in tables)])
        if not words.isascii() or len(self._begin) > ROOM // 4:
            raise ValueError("names that are not ASCII, or too long")

    def write(self, thing: object, created: cython.double):
        """The line of ``thing`` at a time; None for what is rare, and to be written otherwise."""
        line: cython.uchar[ROOM]
        at: cython.p_uchar
        number: cython.Py_ssize_t
        field: cython.pointer(PyObject)
        if type(thing) is not self._kind:
            return None
        at = self._put_begin(line, created)
        for number in range(self._count):
            if at == cython.NULL:
                return None
            field = _slot(thing, self._places[number])[0]
            if field == cython.NULL:  # somebody has deleted it
                return None
            fact = cython.cast(object, field)  # held, whatever becomes of the slot meanwhile
            at = self._put_field(at, line + ROOM, number, fact)
        if at == cython.NULL or at == line + ROOM:
            return None
        at[0] = b"}"
        size: cython.Py_ssize_t = at + 1 - line
        text = PyUnicode_New(size, 127)
        memcpy(PyUnicode_1BYTE_DATA(text), line, size)
        return text

    # In what follows there is room from ``at`` to ``end``; it returns where it has ended, or NULL
    # where it could not.

    @cython.cfunc
    def _put_begin(self, at: cython.p_uchar, created: cython.double) -> cython.p_uchar:
        milliseconds: cython.ulonglong
        if not 0 <= created < MILLENNIA:
            return cython.NULL
        milliseconds = cython.cast(cython.ulonglong, created * 1000)
        if milliseconds // 1000 != self._second:
            text = self._when(created)
            if len(text) != STAMP + 4 or not text.isascii():
                return cython.NULL
            self._second = milliseconds // 1000
            memcpy(self._stamp, PyUnicode_1BYTE_DATA(text), STAMP)
        at = _put(at, '{"time": "')
        memcpy(at, self._stamp, STAMP)
        at = _put_last(at + STAMP, milliseconds, 3)
        at[0] = b"Z"
        return _put(at + 1, self._begin)

    @cython.cfunc
    @cython.boundscheck(False)
    @cython.wraparound(False)
    def _put_field(
        self, at: cython.p_uchar, end: cython.p_uchar, number: cython.Py_ssize_t, fact: object
    ) -> cython.p_uchar:
        how: cython.int = self._how[number]
        count: cython.longlong
        overflow: cython.int = 0
        amount: cython.double
        if fact is None:
            return at if how >= TEXT else cython.NULL
        name = self._names[number]
        if end - at < PyUnicode_GET_LENGTH(name) + 2 * DIGITS:
            return cython.NULL
        at = _put(at, name)
        if how == SECONDS:
            if not PyFloat_CheckExact(fact):
                return cython.NULL
            amount = PyFloat_AS_DOUBLE(fact)
            if not 0 <= amount < MILLENNIA:
                return cython.NULL
            count = cython.cast(cython.longlong, amount * 1000000 + 0.5)
            at = _put_digits(at, cython.cast(cython.ulonglong, count) // 1000000)
            at[0] = b"."
            return _put_last(at + 1, count, 6)
        if how == ADDRESS:
            return self._put_text(at, end, fact.text)
        if how == PEER:
            return self._put_peer(at, end, fact.forms.before_port, fact.port)
        if how == TEXT:
            return self._put_text(at, end, fact)
        if not (PyLong_CheckExact(fact) if how == NUMBER else PyLong_Check(fact)):
            return cython.NULL
        count = PyLong_AsLongLongAndOverflow(fact, cython.address(overflow))
        if overflow or count < 0:
            return cython.NULL
        if how == NUMBER:
            return _put_digits(at, count)
        if count >= CODES:
            return cython.NULL
        return _put_within(at, end, cython.cast(tuple, self._tables[number])[count])

    @cython.cfunc
    def _put_peer(
        self, at: cython.p_uchar, end: cython.p_uchar, before: object, port: cython.uint
    ) -> cython.p_uchar:
        at = self._put_text(at, end, before)
        if at == cython.NULL or end - at < DIGITS + 1:
            return cython.NULL
        at = _put_digits(at - 1, port)  # in the place of the quotation mark
        at[0] = b'"'
        return at + 1

    @cython.cfunc
    def _put_text(self, at: cython.p_uchar, end: cython.p_uchar, text: object) -> cython.p_uchar:
        size: cython.Py_ssize_t
        if not PyUnicode_CheckExact(text):
            return cython.NULL
        size = PyUnicode_GET_LENGTH(text)
        if PyUnicode_IS_ASCII(text) and size <= LONG and size + WORD + 2 <= end - at:
            at[0] = b'"'
            memcpy(at + 1, PyUnicode_1BYTE_DATA(text), size)
            if _is_plain(at + 1, size):
                at[1 + size] = b'"'
                return at + size + 2
        written = self._known.get(text)
        if written is None:
            written = self._escaped(text)
            if len(self._known) >= KNOWN:
                self._known.clear()
            self._known[text] = written
        return _put_within(at, end, written)


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _is_plain(text: cython.p_uchar, size: cython.Py_ssize_t) -> cython.bint:
    """Whether no control character, quotation mark or backslash is among ``size`` of ASCII.

    Looks at eight octets at a time, and puts as many more behind the text, so that these are whole.
    A difference below shows in the highest bit of an octet, which is 0 in all of ASCII.  What one
    octet borrows of the next may change the verdict on that one, but not on all together.
    """
    word: cython.ulonglong
    odd: cython.ulonglong = 0
    place: cython.Py_ssize_t = 0
    memcpy(text + size, cython.cast(cython.p_char, b"01234567"), WORD)
    while place < size:  # a range of steps that are no literal is made by Python
        memcpy(cython.address(word), text + place, WORD)
        odd |= (
            (word - 0x20 * EACH)  # below the first that is printed
            | (word + EACH)  # 0x7F
            | ((word ^ 0x22 * EACH) - EACH)  # a quotation mark, which is 0 now
            | ((word ^ 0x5C * EACH) - EACH)  # a backslash
        )
        place += WORD
    return odd & 0x80 * EACH == 0


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _put(at: cython.p_uchar, words: str) -> cython.p_uchar:
    """Write ``words``, which are ASCII."""
    size: cython.Py_ssize_t = PyUnicode_GET_LENGTH(words)
    memcpy(at, PyUnicode_1BYTE_DATA(words), size)
    return at + size


@cython.cfunc
def _put_within(at: cython.p_uchar, end: cython.p_uchar, words: str) -> cython.p_uchar:
    if not PyUnicode_IS_ASCII(words) or end - at < PyUnicode_GET_LENGTH(words):
        return cython.NULL
    return _put(at, words)


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _put_digits(at: cython.p_uchar, number: cython.ulonglong) -> cython.p_uchar:
    digits: cython.uchar[DIGITS]
    first: cython.int = DIGITS
    while True:
        first -= 1
        digits[first] = 48 + number % 10
        number //= 10
        if number == 0:
            break
    memcpy(at, digits + first, DIGITS - first)
    return at + (DIGITS - first)


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _put_last(at: cython.p_uchar, number: cython.ulonglong, count: cython.int) -> cython.p_uchar:
    """Write the last ``count`` digits of ``number``."""
    place: cython.int
    for place in range(count - 1, -1, -1):
        at[place] = 48 + number % 10
        number //= 10
    return at + count
