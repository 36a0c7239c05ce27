"""What every event is, and who is told of it."""

import logging
from collections.abc import Callable
from typing import ClassVar, Final

from geosocks.values import value


@value
class Event:
    """A fact.  ``level`` is its weight in a log (``logging``'s numbers)."""

    level: ClassVar[int] = logging.INFO


UNLOGGED: Final = {"unlogged": True}
"""Metadata of a field that ``plain`` leaves out."""


Observer = Callable[[Event], None]
"""Called in the greenlet that saw the fact: be quick, do not block."""
