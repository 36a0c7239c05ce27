"""What the tests of the relay have in common."""

from collections.abc import Iterator
from typing import Any

import pytest

from geosocks.stream import Connection
from tests.support.net import connection_pair


@pytest.fixture
def pair() -> Iterator[tuple[Any, Connection]]:
    """The two ends of a TCP connection on loopback: the peer's, and ours."""
    far, near = connection_pair()
    yield far, near
    far.close()
    near.close()
