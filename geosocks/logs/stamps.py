"""The time in a log's line."""

from functools import lru_cache
from time import gmtime, strftime


def when(created: float) -> str:
    """RFC 3339, UTC, milliseconds."""
    milliseconds = int(created * 1000)
    return _second(milliseconds // 1000) + str(1000 + milliseconds % 1000)[1:] + "Z"


@lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return strftime("%Y-%m-%dT%H:%M:%S.", gmtime(seconds))
