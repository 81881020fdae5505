"""CPU time of the engine's own process for each node, over Redis, beside that of bare taskiq.

Counted is what ``time.process_time`` says of this process, user and system, all threads; workers
and server are other processes. For the engine and for the loop written by hand: of a whole run,
read to its end, with all that wakes the process while it waits; building and validating the graph
is not in it. For bare taskiq: of ``await task.kiq(1)`` for as many tasks, one after the other, and
of reading the values when all are there, with one ``MGET`` for each 100, each value loaded with the
backend's serializer and validated as a ``TaskiqResult``. Waiting for the tasks to end is not in it,
and neither are dependencies: a chain's tasks are all sent at once.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from benchmarks.distributed import bare
from benchmarks.distributed.both import both
from benchmarks.distributed.processes import redis_server, taskiq_workers
from benchmarks.measure import Contestant, median_ratio
from benchmarks.report import CHECKED, Check, Options, print_table
from benchmarks.shapes import chain, fan

SHAPES = {"chain of 200": chain(200), "fan of 1,000": fan(1_000)}
MOST = 1.5
PAUSE = 0.05

CpuTime = Callable[[], Awaitable[float]]
"""One run; gives the CPU seconds that count of it."""


async def run(options: Options) -> list[Check]:
    """Measure both shapes."""
    rounds = 3 if options.quick else 11
    checks = []
    rows = []
    with redis_server() as url, taskiq_workers(bare.WORKER, url, "bare"):
        async with both(url) as (by_engine, by_hand), bare.bare_cpu(url, "bare") as of_bare:
            for name, shape in SHAPES.items():
                runs: dict[str, CpuTime] = {
                    "engine": _cpu_of(by_engine(shape)),
                    "bare": partial(of_bare, len(shape)),
                    "hand": _cpu_of(by_hand(shape)),
                }
                taken = await _in_turns(runs, rounds)
                ratio = median_ratio(taken["engine"], taken["bare"])
                check = Check(f"Redis, CPU per node, {name}", ratio, MOST, "x bare")
                costs = [f"{statistics.median(taken[who]) / len(shape) * 1e6:,.0f}" for who in runs]
                rows.append([name, *costs, *check.cells()])
                checks.append(check)
    heads = ("CPU, us/node", "engine", "bare kiq and MGET", "by hand", *CHECKED)
    print_table(f"Redis: CPU of the engine's process, median of {rounds} rounds", heads, rows)
    return checks


def _cpu_of(run: Contestant) -> CpuTime:
    async def seconds() -> float:
        start = time.process_time()
        await run()
        return time.process_time() - start

    return seconds


async def _in_turns(runs: Mapping[str, CpuTime], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each in each round, after a first round that nobody counts."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            await asyncio.sleep(PAUSE)
            gc.collect()
            seconds = await run()
            if number:
                taken[name].append(seconds)
    return taken
