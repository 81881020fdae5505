"""An event loop whose time is virtual: it jumps to the next timer when nothing else is ready."""

from __future__ import annotations

import asyncio
import math
import selectors
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

LONGEST_RUN = 100_000.0
"""Virtual seconds after which a run that still has timers counts as hanging."""

MOST_TURNS = 1_000_000
"""Turns of the loop in which no time passes, after which a run counts as hanging."""

_RESOLUTION = time.get_clock_info("monotonic").resolution
"""Seconds by which asyncio looks ahead for timers that are due. Large times have larger steps."""


class HangingError(Exception):
    """Nothing that is waited for will come, on a virtual clock."""


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """An event loop that waits no real time, and notices when it would wait forever.

    Its time begins at 0, and jumps to the next timer when nothing is ready. What asyncio would
    have a thread do is done at once, and takes no time. Raises ``HangingError`` when no timer is
    left, after ``longest`` seconds of its time, and when something is always ready. ``on_idle``:
    called before time passes; returns whether it has made something ready, so that no time passes.

    >>> async def main():
    ...     await asyncio.sleep(3600)
    ...     return asyncio.get_running_loop().time()
    >>> with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
    ...     runner.run(main())
    3600.0
    """

    def __init__(
        self, longest: float = LONGEST_RUN, *, on_idle: Callable[[], bool] = lambda: False
    ) -> None:
        self._clock = _Clock(longest, on_idle)
        super().__init__(self._clock)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._clock.now

    def run_in_executor(  # type: ignore[override]  # a future of this loop, as from the base class
        self, executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Call a function at once, in place of a thread, whose time nobody could know."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # the function's own
            future.set_exception(error)
        return future

    @property
    def pending_timers(self) -> list[asyncio.TimerHandle]:
        """The timers that would still come to pass."""
        scheduled: list[asyncio.TimerHandle] = vars(self)["_scheduled"]
        return [timer for timer in scheduled if not timer.cancelled()]


class _Clock(selectors.SelectSelector):
    """Looks whether something is ready, and lets the time pass at once if nothing is."""

    def __init__(self, longest: float, on_idle: Callable[[], bool]) -> None:
        super().__init__()
        self.now = 0.0
        self._turns = 0  # since time has passed
        self._on_idle = on_idle
        self._longest = self.hangs_at = longest

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events or timeout == 0 or self._on_idle():
            self._turns += 1
            if self._turns > MOST_TURNS:
                self._turns = 0  # what is left is still to be cancelled
                raise HangingError(
                    f"no time passes after {self.now:g} virtual seconds, as something is always "
                    "ready: perhaps a task that goes on in spite of its cancellation"
                )
            return events
        self._turns = 0
        if timeout is None:
            raise HangingError("nothing is ready and no timer is pending")
        self.now += timeout
        if self.now + _RESOLUTION == self.now:  # asyncio would find the timer due only after it
            self.now = math.nextafter(self.now, math.inf)
        if self.now > self.hangs_at:
            self.hangs_at += self._longest  # what is left is still to be cancelled
            raise HangingError(f"still not at the end after {self.now:g} virtual seconds")
        return events


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, on a loop of its own whose time is virtual and begins at 0.

    May be called while another event loop runs in this thread. Raises what the coroutine raises,
    and ``HangingError`` if it would wait forever. The coroutine must not wait for what takes real
    time: a thread, a process, a connection.

    >>> dag = DAGBuilder().node(lambda: asyncio.sleep(3600, "late"), name="wait").build()
    >>> run_virtually(ExecutionEngine(InMemoryBroker(), dag).execute())
    {'wait': 'late'}
    """
    return run_on_clock(main, lambda: False)


def run_on_clock(main: Coroutine[Any, Any, T], on_idle: Callable[[], bool]) -> T:
    """As ``run_virtually``. ``on_idle`` is called before time passes.

    It returns whether it has made something ready, so that no time passes.
    """

    def run() -> T:
        make = partial(VirtualClockLoop, LONGEST_RUN, on_idle=on_idle)
        with asyncio.Runner(loop_factory=make) as runner:
            return runner.run(main)

    if not _is_loop_running():
        return run()
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(copy_context().run, run).result()


def _is_loop_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
