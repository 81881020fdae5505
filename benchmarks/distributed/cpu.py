"""CPU time of everybody who takes part: the driver, the server and the workers (Linux).

On a busy machine each process waits for its turn, as long for each message whoever sends it, and so
the ratio of two times comes closer to one. The CPU time of a run hardly changes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from functools import partial

from benchmarks.measure import Clock
from tests.servers.process import descendants

_OF_PROCESS = 2
"""The kind of clock: what the scheduler has counted, user and system, of all threads."""


def cpu_clock() -> Clock:
    """A clock that runs with the CPU seconds of this process and of all that it has started."""
    return partial(_seconds, [os.getpid(), *descendants(os.getpid())])


def _seconds(pids: Iterable[int]) -> float:
    # The number of a process's clock, as clock_getcpuclockid() of the C library makes it.
    return sum(time.clock_gettime((~pid << 3) | _OF_PROCESS) for pid in pids)
