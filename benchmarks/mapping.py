"""A million items, streamed and not collected, through maps: memory and speed.

*Source*: one map over a plain generator, which the engine reads. *Generator*: a task that is a
generator, and two maps in a chain over its items, with ``items="only"``. All in one process.

Memory is what the operating system counts as resident, read at each tenth of the items; flat means
that it grows by no more than two bytes per item between the first reading and the last. A short run
goes before: what a process imports when its first run ends, some 500 KB, is not growth per item.
"""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

from taskiq import InMemoryBroker

from benchmarks.report import Check, Options, print_checks, print_table
from taskiq_flow import DAGBuilder, ExecutionEngine, MapReduce

STATM = Path("/proc/self/statm")
PAGE = 4096
MOST_BYTES = 2.0
WARM_UP = 1_000
LIMIT = 32


async def run(options: Options) -> list[Check]:
    """Go through all items once in each way."""
    if sys.platform != "linux":
        print("The mapping benchmark reads /proc/self/statm, which only Linux has.")
        return []
    checks = []
    for title, ways, items in (
        ("A map over a source", over_source, 100_000 if options.quick else 1_000_000),
        ("Two maps over a generator", over_generator, 20_000 if options.quick else 1_000_000),
    ):
        async for _ in ways(WARM_UP):
            pass
        growth = await growth_of(title, ways(items), items)
        what = f"{title.lower()}: memory growth over {items:,} items"
        checks.append(Check(what, growth, MOST_BYTES, "bytes per item"))
    print_checks("From the first reading to the last", checks)
    return checks


async def over_source(items: int) -> AsyncIterator[int]:
    """The results of one map over what the engine reads."""
    broker = InMemoryBroker()

    @broker.task(task_name="add_one")
    async def add_one(number: int) -> int:
        return number + 1

    async for _, value in await MapReduce.map(broker, add_one, (number for number in range(items))):
        yield value


async def over_generator(items: int) -> AsyncIterator[int]:
    """The results of the second of two maps over the items of a task."""
    broker = InMemoryBroker()

    @broker.task(task_name="numbers")
    async def numbers(count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number

    @broker.task(task_name="same")
    async def same(number: int) -> int:
        return number

    @broker.task(task_name="add_one")
    async def add_one(number: int) -> int:
        return number + 1

    builder = DAGBuilder().node(numbers, name="numbers", inputs=["count"])
    builder.node(same, name="same", inputs=["numbers"], map_over="numbers")
    builder.node(add_one, name="add_one", inputs=["same"], map_over="same")
    engine = ExecutionEngine(broker, builder.build(), LIMIT)
    async for name, item in engine.execute_async({"count": items}, items="only"):
        if name == "add_one":
            yield item.value


async def growth_of(title: str, values: AsyncIterator[int], items: int) -> float:
    """Bytes of memory that each item leaves behind, but for the first tenth of them."""
    rows = []
    sizes = []
    start = time.perf_counter()
    count = total = 0
    async for value in values:
        count += 1
        total += value
        if not count % (items // 10):
            sizes.append(resident())
            passed = time.perf_counter() - start
            rows.append([f"{count:,}", f"{sizes[-1] / 1e6:.2f}", f"{count / passed:,.0f}"])
    if (count, total) != (items, items * (items + 1) // 2):
        raise AssertionError(f"{count} results of {items}, {total} in sum")
    print_table(title, ("items", "resident, MB", "items/s so far"), rows)
    return max(0, sizes[-1] - sizes[0]) / (items - items // 10)


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(STATM.read_text().split()[1]) * PAGE
