"""What mypyc is told in the source of the modules that it may compile (see setup.py)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr as mypyc_attr
else:

    def mypyc_attr(**_):
        """Leave the class as it is: nothing here needs a compiler."""
        return lambda marked: marked
