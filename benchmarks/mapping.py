"""A map over a generator of 1,000,000 items, streamed and not collected: memory and speed.

Memory is what the operating system counts as resident, read at each tenth of the items; flat means
that it grows by no more than two bytes per item between the first reading and the last. A short map
goes before: what a process imports when its first run ends, some 500 KB, is not growth per item.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from taskiq import InMemoryBroker

from benchmarks.report import Check, Options, print_checks, print_table
from taskiq_flow import MapReduce

STATM = Path("/proc/self/statm")
PAGE = 4096
MOST_BYTES = 2.0
WARM_UP = 1_000


async def run(options: Options) -> list[Check]:
    """Map over all items once."""
    items = 100_000 if options.quick else 1_000_000
    if sys.platform != "linux":
        print("The mapping benchmark reads /proc/self/statm, which only Linux has.")
        return []
    broker = InMemoryBroker()

    @broker.task(task_name="add_one")
    async def add_one(number: int) -> int:
        return number + 1

    async for _ in await MapReduce.map(broker, add_one, (number for number in range(WARM_UP))):
        pass
    rows = []
    sizes = []
    start = time.perf_counter()
    count = total = 0
    mapped = await MapReduce.map(broker, add_one, (number for number in range(items)))
    async for _, value in mapped:
        count += 1
        total += value
        if not count % (items // 10):
            sizes.append(resident())
            passed = time.perf_counter() - start
            rows.append([f"{count:,}", f"{sizes[-1] / 1e6:.2f}", f"{count / passed:,.0f}"])
    if (count, total) != (items, items * (items + 1) // 2):
        raise AssertionError(f"{count} results of {items}, {total} in sum")
    print_table(
        "A map over a generator, streamed", ("items", "resident, MB", "items/s so far"), rows
    )
    growth = max(0, sizes[-1] - sizes[0]) / (items - items // 10)
    checks = [Check(f"memory growth over {items:,} items", growth, MOST_BYTES, "bytes per item")]
    print_checks("From the first reading to the last", checks)
    return checks


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(STATM.read_text().split()[1]) * PAGE
