"""Children of the test itself, for what only fork(2) shares."""

import os
import traceback
import warnings
from collections.abc import Callable


def in_children(*works: Callable[[], object]) -> list[int]:
    """Run each of ``works`` in a forked process, all at a time; returns their exit codes.

    A child must not touch the hub of the test, nor anything that other threads may hold.
    """
    children = [_fork(work) for work in works]
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


def _fork(work: Callable[[], object]) -> int:
    with warnings.catch_warnings():
        # Python 3.12 warns of threads, which gevent may have started for an earlier test; the
        # child starts none and waits for none.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
