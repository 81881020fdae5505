"""Generators over Redis: what their items cost, and whether credit keeps those busy who take them.

*Cost*: a no-op task for each item of a generator stands beside the same tasks over a run input that
is read one by one, in turns, on one worker process; items are read alone. *Credit*: a generator
makes an item each millisecond, and four at a time are worked on for ten, on a worker with five
places. At best that is 400 in a second. The same over a run input stands beside it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks.distributed.engine import engine_broker
from benchmarks.distributed.generating import WORKER, graph, register
from benchmarks.distributed.processes import redis_server, taskiq_workers
from benchmarks.measure import interleaved, median_ratio
from benchmarks.report import CHECKED, Check, Options, print_table
from taskiq_flow import ExecutionEngine

MOST_COST = 1.2
AT_ONCE = 64
TAKING = 4
MADE_IN, TAKEN_IN = 0.001, 0.01
MOST_CREDIT = 1 / 0.95


async def run(options: Options) -> list[Check]:
    """Measure both."""
    rounds = 3 if options.quick else 7
    items = 2_000 if options.quick else 20_000
    with redis_server() as url:
        with taskiq_workers(WORKER, url, "cost"):
            given, listed = await _measured(url, "cost", items, rounds, AT_ONCE, None, 0.0, 0.0)
        with taskiq_workers(WORKER, url, "credit", slots=TAKING + 1):
            count = items // 10
            credit = await _measured(url, "credit", count, rounds, None, TAKING, MADE_IN, TAKEN_IN)
    best = count * TAKEN_IN / TAKING
    checks = [
        Check("Redis, items of a generator", median_ratio(given, listed), MOST_COST, "x the tasks"),
        Check("Redis, credit", statistics.median(credit[0]) / best, MOST_CREDIT, "x the best"),
    ]
    rows = [
        ["no-op tasks", *_shown((given, listed), items), *checks[0].cells()],
        [f"{TAKING} x {TAKEN_IN * 1e3:g} ms", *_shown(credit, count), *checks[1].cells()],
    ]
    heads = ("", "generator, us/item", "run input, us/item", *CHECKED)
    print_table(f"Redis: generators, median of {rounds} rounds", heads, rows)
    return checks


async def _measured(
    url: str,
    queue: str,
    count: int,
    rounds: int,
    at_once: int | None,
    max_parallel: int | None,
    made_in: float,
    taken_in: float,
) -> tuple[list[float], list[float]]:
    """Seconds of each round over a generator's items, and over a run input."""
    broker = engine_broker(url, queue)
    tasks = register(broker)
    await broker.startup()

    def run_of(inputs: Mapping[str, Any], *, from_generator: bool) -> Any:
        dag = graph(tasks, from_generator=from_generator, max_parallel=max_parallel)
        engine = ExecutionEngine(broker, dag, at_once)

        async def run() -> None:
            given = {} if from_generator else {"numbers": iter(range(count))}
            done = 0
            async for name, _ in engine.execute_async(
                {**inputs, **given}, items="only", outputs=["work"]
            ):
                done += name == "work"
            if done != count:
                raise AssertionError(f"{done} of {count} items")

        return run

    took = {"took": taken_in}
    contestants = {
        "generator": run_of({**took, "count": count, "seconds": made_in}, from_generator=True),
        "input": run_of(took, from_generator=False),
    }
    taken = await interleaved(contestants, rounds)
    await broker.shutdown()
    return taken["generator"], taken["input"]


def _shown(taken: tuple[list[float], list[float]], count: int) -> list[str]:
    return [f"{statistics.median(seconds) / count * 1e6:,.0f}" for seconds in taken]
