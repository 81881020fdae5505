"""pipefunc: map specifications, a thread for each call that may run, one item in each call."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipefunc import PipeFunc, Pipeline

from benchmarks.sleeps import LIMIT, STAGES, Sleeps, Taken


class Peer:
    """``Pipeline.map`` with its eager scheduler."""

    title = "pipefunc, map, eager"
    most_items = 10_000

    async def take(self, sleeps: Sleeps) -> Taken:
        """Map with as many threads as may run at once."""
        return await asyncio.to_thread(self._take, sleeps)

    def _take(self, sleeps: Sleeps) -> Taken:
        pipeline = Pipeline([_stage(sleeps, number) for number in range(STAGES)])
        inputs = {"items": list(range(len(sleeps.seconds[0])))}
        with ThreadPoolExecutor(LIMIT) as threads:
            start = time.perf_counter()
            pipeline.map(
                inputs,
                executor=threads,
                chunksizes=1,
                storage="dict",
                scheduling_strategy="eager",
                show_progress=False,
            )
            return sleeps.taken(start)


def _stage(sleeps: Sleeps, number: int) -> Any:
    name, before = f"s{number}", f"s{number - 1}" if number else "items"
    function = sleeps.function(number)
    return PipeFunc(function, name, renames={"item": before}, mapspec=f"{before}[i] -> {name}[i]")
