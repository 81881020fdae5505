"""Dask's threaded scheduler: a dictionary with a call for each item and stage."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import dask.threaded

from benchmarks.sleeps import LIMIT, STAGES, Sleeps, Taken


class Peer:
    """``dask.threaded.get``."""

    title = "Dask threaded, get"
    most_items = 10_000

    async def take(self, sleeps: Sleeps) -> Taken:
        """Compute the last stage of all items."""
        return await asyncio.to_thread(self._take, sleeps)

    def _take(self, sleeps: Sleeps) -> Taken:
        items = range(len(sleeps.seconds[0]))
        graph: dict[Any, Any] = {
            (f"s{number}", item): (
                sleeps.function(number),
                (f"s{number - 1}", item) if number else item,
            )
            for number in range(STAGES)
            for item in items
        }
        last = [(f"s{STAGES - 1}", item) for item in items]
        start = time.perf_counter()
        dask.threaded.get(graph, last, num_workers=LIMIT)
        return sleeps.taken(start)
