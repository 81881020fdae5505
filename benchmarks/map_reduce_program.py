"""Prints the CPU time of maps over no-ops, by whichever version is on the path."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Iterable

from taskiq import InMemoryBroker

from taskiq_flow import MapReduce

ITEMS, RUNS, LIMIT = 10_000, 5, 32

WAYS: dict[str, tuple[Callable[[], Iterable[int]], int | None]] = {
    "a list": (lambda: list(range(ITEMS)), LIMIT),
    "a list, no limit": (lambda: list(range(ITEMS)), None),
    "a generator": (lambda: (number for number in range(ITEMS)), LIMIT),
}


async def main() -> None:
    """One line for each map."""
    broker = InMemoryBroker()

    @broker.task(task_name="add_one")
    async def add_one(number: int) -> int:
        return number + 1

    for title, (items, limit) in WAYS.items():
        taken = []
        for _ in range(RUNS):
            start = time.process_time()
            mapped = await MapReduce.map(broker, add_one, items(), max_parallel=limit)
            if sum([value async for _, value in mapped]) != ITEMS * (ITEMS + 1) // 2:
                raise AssertionError("other results")
            taken.append(time.process_time() - start)
        print(title, statistics.median(taken))


if __name__ == "__main__":
    asyncio.run(main())
