"""One machine for all tests of this folder: booting takes a second."""

from collections.abc import Iterator

import pytest

from tests.support.booted import Booted, booted
from tests.support.units import install


@pytest.fixture(scope="package")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    """A systemd as process 1, with geosocks installed as deploying it would."""
    with booted(tmp_path_factory.mktemp("machine")) as machine:
        install(machine)
        yield machine
