"""Timing of several contestants side by side, so that a busy machine is busy for all of them."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

Contestant = Callable[[], Awaitable[object]]
"""One timed run: what it returns is of no account."""


Clock = Callable[[], float]
"""Seconds: ``time.perf_counter``, or ``time.process_time`` for those that this process computed."""


async def interleaved(
    contestants: Mapping[str, Contestant], rounds: int, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds that each contestant took in each round, in rounds of A B C, C B A, A B C.

    So nobody always follows the same other. A first round that nobody counts comes before: caches
    fill, hooks find their place.
    """
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants.items())
    for number in range(rounds + 1):
        for name, run in order if number % 2 else reversed(order):
            seconds = await timed(run, clock)
            if number:
                taken[name].append(seconds)
    return taken


async def timed(run: Contestant, clock: Clock = time.perf_counter) -> float:
    """Seconds that one run takes, with nothing of an earlier one to be ended or collected in it."""
    await asyncio.sleep(0.005)
    gc.collect()
    start = clock()
    await run()
    return clock() - start


def median_ratio(taken: Sequence[float], beside: Sequence[float]) -> float:
    """The median of the ratios within each round, of two contestants that took turns."""
    return statistics.median(a / b for a, b in zip(taken, beside, strict=True))


def middle_half(taken: Sequence[float], beside: Sequence[float]) -> str:
    """Between which ratios the middle half of the rounds lies."""
    low, _, high = statistics.quantiles(a / b for a, b in zip(taken, beside, strict=True))
    return f"{low:.2f} to {high:.2f}"
