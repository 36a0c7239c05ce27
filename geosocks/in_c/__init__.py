"""What goes without Python's own ways: compiled by Cython (setup.py), from pure Python mode.

Each module knows descriptors or objects and nothing of SOCKS, and is there only where it has been
compiled: whoever uses one has another way to the same.  ``linux.pxd`` and ``python.pxd`` are what
they need in C's terms.
"""

from importlib import import_module
from typing import Any


def compiled(name: str) -> Any:
    """The module ``name`` of this package; None where it has not been compiled."""
    try:
        return import_module(f"{__name__}.{name}")
    except ImportError:
        return None
