"""The virtual clock of ``taskiq_flow.testing`` for tests: with a closer limit, eagerly if asked."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from taskiq_flow.testing import VirtualClockLoop as ClockLoop

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


class VirtualClockLoop(ClockLoop):
    """With real threads, as tests of this package are about them too."""

    run_in_executor = asyncio.SelectorEventLoop.run_in_executor

    def __init__(self) -> None:
        super().__init__(LONGEST_RUN)
        start_tasks_eagerly(self)


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


def virtual_loop() -> ClockLoop:
    """The running loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, ClockLoop)
    return loop
