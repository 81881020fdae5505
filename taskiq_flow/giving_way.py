"""Lets threads run beside a busy event loop.

A thread that wants the interpreter's lock asks for it after 5 ms (``sys.getswitchinterval``), but
counts these anew each time that the lock was free in between. An event loop frees it whenever it
looks for I/O, for some microseconds, and has it again before the thread is awake. So a thread gets
nowhere as long as the loop has something to do, and waking it in vain slows the loop by a quarter.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from anyio import CapacityLimiter, to_thread

from taskiq_flow.clock import clock_of

try:
    from resource import RUSAGE_THREAD, getrusage
except ImportError:  # neither macOS nor Windows counts the waits of a thread

    def _waits() -> float:
        return float("nan")
else:

    def _waits() -> float:
        # Some systems have the field and never count.
        return getrusage(RUSAGE_THREAD).ru_nvcsw or float("nan")


T = TypeVar("T")

MOMENT = 1e-5
"""Seconds for which the loop sleeps, so that a thread runs."""

AT_ONCE = 8
"""Calls of ``in_thread`` at once on one loop, unless they have a limiter of their own."""

OFTEN, SELDOM = 0.001, 0.05
"""Seconds from one look at the loop to the next while it is busy, and at most while it is idle."""


def give_way(called: Future[Any] | asyncio.Future[Any]) -> None:
    """Have the running loop, if any, give way to a call in a thread while it is busy."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    if clock_of(loop) is not time.monotonic:  # a virtual time, which further timers would drive on
        return
    giver = _givers.get(loop)
    if giver is None:
        giver = _givers[loop] = _Giver()
    giver.add(loop, called)


async def in_thread(
    function: Callable[..., T],
    *args: Any,
    limiter: CapacityLimiter | None = None,
    abandon_on_cancel: bool = False,
) -> T:
    """Call a function in a thread, as ``anyio.to_thread.run_sync`` does, and give way to it.

    It needs none of the tokens of anyio's default limiter: the user's own calls may have them all,
    and wait for this one. On a loop with a virtual time the function is called at once, as the time
    would go on for as long as the thread takes.
    """
    loop = asyncio.get_running_loop()
    if clock_of(loop) is not time.monotonic:
        return function(*args)
    if limiter is None and (limiter := _limiters.get(loop)) is None:
        limiter = _limiters[loop] = CapacityLimiter(AT_ONCE)
    ended = loop.create_future()
    give_way(ended)
    try:
        return await to_thread.run_sync(
            partial(function, *args), limiter=limiter, abandon_on_cancel=abandon_on_cancel
        )
    finally:
        ended.set_result(None)


class _Giver:
    """Gives way on one loop while calls are in threads."""

    def __init__(self) -> None:
        self._under_way = 0
        self._ended = deque[None]()  # since the last look; grows in threads
        self._is_looking = False
        self._seconds = OFTEN
        self._seen = self._used = self._waited = 0.0

    def add(
        self, loop: asyncio.AbstractEventLoop, called: Future[Any] | asyncio.Future[Any]
    ) -> None:
        """One more call has begun."""
        self._under_way += 1
        called.add_done_callback(lambda _: self._ended.append(None))
        if not self._is_looking:
            self._is_looking = True
            self._seconds, self._seen, self._used = OFTEN, time.monotonic(), time.thread_time()
            self._waited = _waits()
            loop.call_later(OFTEN, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        for _ in range(len(self._ended)):
            self._ended.popleft()
            self._under_way -= 1
        if not self._under_way:
            self._is_looking = False
            return
        seen, used, waited = time.monotonic(), time.thread_time(), _waits()
        # Where other processes have the processor, a busy loop has little of it, and never waits.
        is_busy = used - self._used > (seen - self._seen) / 2 or waited == self._waited
        self._seen, self._used, self._waited = seen, used, waited + is_busy
        self._seconds = OFTEN if is_busy else min(2 * self._seconds, SELDOM)
        loop.call_later(self._seconds, self._look, loop)
        if is_busy:
            time.sleep(MOMENT)  # last, as a signal's handler may raise here


_limiters: WeakKeyDictionary[asyncio.AbstractEventLoop, CapacityLimiter] = WeakKeyDictionary()

_givers: WeakKeyDictionary[asyncio.AbstractEventLoop, _Giver] = WeakKeyDictionary()
