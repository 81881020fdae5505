"""Time limits and pauses of the nodes in flight: at most one for each."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any


class Timers:
    """One timer for each key. A timer that is set again replaces the one before."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timers: dict[Any, asyncio.TimerHandle] = {}

    def set(self, key: Any, seconds: float, call: Callable[[Any], None]) -> None:
        """Call ``call(key)`` after ``seconds``. Infinite seconds set no timer."""
        self.cancel(key)
        if math.isfinite(seconds):
            self._timers[key] = self._loop.call_later(seconds, self._expire, key, call)

    def cancel(self, key: Any) -> None:
        """Drop the key's timer, if it has one."""
        if self._timers and (timer := self._timers.pop(key, None)) is not None:
            timer.cancel()

    def stop(self) -> None:
        """Drop all timers."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _expire(self, key: Any, call: Callable[[Any], None]) -> None:
        del self._timers[key]
        call(key)
