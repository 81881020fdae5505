"""Waiting for what happens elsewhere: in other processes, on servers, in threads."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

LONGEST = 25.0
"""Seconds after which what a test waits for will not come any more, however busy the machine is."""


async def until(condition: Callable[[], Any], what: str, within: float = LONGEST) -> float:
    """Wait until something holds, which may be a coroutine's to say; the seconds that it took."""
    begin = time.monotonic()
    while not (await found if inspect.isawaitable(found := condition()) else found):
        if time.monotonic() - begin > within:
            raise AssertionError(f"after {within:g} s, still not so: {what}")
        await asyncio.sleep(0.005)
    return time.monotonic() - begin
