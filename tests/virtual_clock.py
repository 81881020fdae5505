"""An event loop whose time is virtual: it jumps to the next timer when nothing else is ready."""

from __future__ import annotations

import asyncio
import functools
import os
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

LONGEST_RUN = 10_000.0
"""Virtual seconds after which a run that still has timers counts as hanging."""


EAGERLY = "TASKIQ_FLOW_TESTS_EAGERLY"
"""The environment variable that has every asyncio task of a test start eagerly (Python 3.12)."""


def start_tasks_eagerly(loop: asyncio.AbstractEventLoop) -> None:
    """Have the loop start tasks eagerly, if that is asked for."""
    if os.environ.get(EAGERLY):
        loop.set_task_factory(vars(asyncio)["eager_task_factory"])


def start_tasks_later() -> None:
    """For a test that is about what happens before a task begins: it does not begin at once."""
    asyncio.get_running_loop().set_task_factory(None)


class HangingError(Exception):
    """Whoever is waited for will never come."""


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """An event loop that waits no real time, and knows when it would wait forever."""

    def __init__(self) -> None:
        self._clock = _Clock()
        super().__init__(self._clock)
        start_tasks_eagerly(self)

    def time(self) -> float:
        return self._clock.now

    @property
    def pending_timers(self) -> list[asyncio.TimerHandle]:
        """The timers that would still come to pass."""
        scheduled: list[asyncio.TimerHandle] = vars(self)["_scheduled"]
        return [timer for timer in scheduled if not timer.cancelled()]


class _Clock(selectors.SelectSelector):
    """Looks whether something is ready, and lets the time pass at once if nothing is."""

    now = 0.0
    hangs_at = LONGEST_RUN

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events or timeout == 0:
            return events
        if timeout is None:
            raise HangingError("nothing is ready and no timer is pending")
        self.now += timeout
        if self.now > self.hangs_at:
            self.hangs_at += LONGEST_RUN  # what is left is still to be cancelled
            raise HangingError(f"still not at the end after {self.now:g} virtual seconds")
        return events


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, on a loop of its own that begins at second zero."""
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        return runner.run(main)


def virtually(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run each call of an async test as ``run_virtually`` does."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        run_virtually(test(*args, **kwargs))

    return run


def virtual_loop() -> VirtualClockLoop:
    """The running loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualClockLoop)
    return loop
