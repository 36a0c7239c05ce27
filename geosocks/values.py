"""Values: small things that are made by the thousand, compared, and never changed."""

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: type[T]) -> type[T]:
    """Make a dataclass with slots and a hash, whose fields nobody may assign.

    It is the type checker that says so: a class that refuses by itself (``frozen=True``) takes
    twenty times as long to make, and a session makes dozens.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)
