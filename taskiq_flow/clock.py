"""The clock of events and durations."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_IN_MILLISECONDS = {"uvloop", "winloop"}
"""Packages of event loops that count real time in whole milliseconds."""


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """The time of an event loop, exactly: ``time.monotonic`` for each loop that runs in real time.

    That is what the method ``time`` of asyncio's loops calls. It is at hand without that, as each
    node reads the clock three times. A loop with a time of its own, such as a virtual one, has that
    one. Moments of different loops' times must not be compared, nor those of ``loop.time()``.
    """
    time_of_loop = loop.time
    function = getattr(time_of_loop, "__func__", None)  # none if it was replaced in this loop
    package = str(getattr(function, "__module__", "")).partition(".")[0]
    is_real = function is asyncio.BaseEventLoop.time or package in _IN_MILLISECONDS
    return time.monotonic if is_real else time_of_loop
