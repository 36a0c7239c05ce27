"""What every test gets: a time limit in hub time, and a look at what it left behind."""

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import gevent
import gevent.socket
import pytest
from greenlet import greenlet
from hypothesis import HealthCheck, settings

import geosocks.session
from geosocks.hubs import of_hub
from tests.support.kdc import realm  # noqa: F401  # a fixture, for all tests
from tests.support.wheels import single_file  # noqa: F401  # another

# How long an example takes says something of the machine, and nothing of what is tested.
settings.register_profile("any", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any")

SECONDS = 60.0
SECONDS_SLOW = 400.0

WANTS_COMPILED = os.environ.pop("GEOSOCKS_TEST_COMPILED", "") == "1"
"""Set by tests/test_compiled.py, and for pytest only."""


def pytest_configure() -> None:
    """Tests are of the source, and not of what was once compiled of another one."""
    package = Path(geosocks.__file__).parent
    is_compiled = not str(geosocks.session.__file__).endswith(".py")
    left = sorted(str(path) for path in package.rglob("*.so"))
    if WANTS_COMPILED and not is_compiled:
        pytest.exit(f"{package} is not compiled, as it should be", returncode=4)
    if left and not WANTS_COMPILED:
        pytest.exit(
            f"compiled modules are in the way of the source, such as {left[0]}: "
            "scripts/test removes them",
            returncode=4,
        )
    # A shell has what it starts in the background ignore these, and all that is started by that.
    for number, usual in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGQUIT, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


def pytest_collection_finish() -> None:
    """What stays for all tests need not be looked through after each: a third of a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _time_limit(request: pytest.FixtureRequest) -> Iterator[None]:
    """End a test whose greenlets wait for ever; ``slow(seconds=...)`` may say when that is."""
    slow = request.node.get_closest_marker("slow") or request.node.get_closest_marker("e2e")
    seconds = slow.kwargs.get("seconds", SECONDS_SLOW) if slow else SECONDS
    with gevent.Timeout(seconds, TimeoutError(f"the test took longer than {seconds:g} s")):
        yield


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))


def greenlets() -> int:
    """How many are alive."""
    gc.collect()
    return sum([isinstance(thing, greenlet) and bool(thing) for thing in gc.get_objects()])


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fail a test that leaves a descriptor or a greenlet behind five seconds after its end."""
    of_hub()
    gevent.socket.getaddrinfo("127.0.0.1", 1)  # the hub makes its own resolver at first use
    gevent.sleep(0)
    before = descriptors(), greenlets()
    yield
    with gevent.Timeout(5.0, False):
        while descriptors() > before[0] or greenlets() > before[1]:
            gevent.sleep(0.02)
    after = descriptors(), greenlets()
    assert after[0] <= before[0], f"descriptors: {before[0]} before, {after[0]} after"
    assert after[1] <= before[1], f"greenlets: {before[1]} before, {after[1]} after"
