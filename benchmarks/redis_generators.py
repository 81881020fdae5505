"""Generators over Redis: what their items cost, and whether credit keeps those busy who take them.

*Cost*: a no-op task for each item of a generator stands beside the same tasks over a run input that
is read one by one, in turns, on one worker process; items are read alone. *Credit*: a generator
makes an item each millisecond, and each is worked on for ten, on a worker with five places, one of
which the generator has as long as it is looked at. At best that is 400 in a second. The times are
drawn between 5 and 15 milliseconds, with a mean of ten. Then they are equal: timers count whole
milliseconds, so that tasks end together that began within one, all four after a while, and each
waits for what the worker does for the others. The workers run on uvloop, as they do where that is
installed, and at last on asyncio's loop. Beside it stand the same tasks over a run input on a
worker with four places.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, aclosing, asynccontextmanager
from typing import Any

from benchmarks.distributed.engine import engine_broker
from benchmarks.distributed.generating import WORKER, graph, register
from benchmarks.distributed.processes import redis_server, taskiq_workers
from benchmarks.measure import Contestant, interleaved, median_ratio
from benchmarks.report import CHECKED, Check, Options, print_table
from taskiq_flow import ExecutionEngine

MOST_COST = 1.2
AT_ONCE = 64
TAKING = 4
WINDOW = 16
"""The usual one."""
ENDLESS = 10**9
MADE_IN, TAKEN_IN = 0.001, 0.01
SPREAD = 0.5
"""By how much of its mean the time of a task differs from it, at the most."""
LEAST_CREDIT = 0.95


async def run(options: Options) -> list[Check]:
    """Measure both."""
    rounds = 3 if options.quick else 7
    items = 2_000 if options.quick else 20_000
    count = items // 10
    with redis_server() as url:  # first, as what follows fills this process and a server
        credit = {
            "5 to 15 ms, on uvloop": await _credit(url, count, rounds, SPREAD),
            "10 ms, on uvloop": await _credit(url, count, rounds, 0.0),
            "5 to 15 ms, on asyncio's loop": await _credit(
                url, count, rounds, SPREAD, on_uvloop=False
            ),
        }
    with redis_server() as url, taskiq_workers(WORKER, url, "cost"):
        async with (
            _runs(url, "cost", items, WINDOW) as (generator, tasks),
            _runs(url, "cost", items, AT_ONCE) as (wide, _),
        ):
            contestants = {"generator": generator, "wide": wide, "tasks": tasks}
            cost = await interleaved(contestants, rounds)
    at_best = count * TAKEN_IN / TAKING
    over_best = {
        what: statistics.median(taken["generator"]) / at_best for what, taken in credit.items()
    }
    against_tasks = median_ratio(cost["generator"], cost["tasks"])
    wide_against_tasks = median_ratio(cost["wide"], cost["tasks"])
    checks = [
        Check("Redis, items of a generator", against_tasks, MOST_COST, "x the tasks"),
        Check("Redis, window as large as the limit", wide_against_tasks, MOST_COST, "x the tasks"),
        Check("Redis, credit", next(iter(over_best.values())), 1 / LEAST_CREDIT, "x the best"),
    ]
    rows = [
        [f"no-op, window {WINDOW}", *_shown(cost, items, "generator"), *checks[0].cells()],
        [f"no-op, window {AT_ONCE}", *_shown(cost, items, "wide"), *checks[1].cells()],
    ]
    for what, taken in credit.items():
        shown = [f"{TAKING} x {what}", *_shown(taken, count, "generator")]
        rows.append([*shown, f"{over_best[what]:.4g} {checks[2].unit}", "", ""])
    rows[2][-3:] = checks[2].cells()
    heads = ("us per item", "generator", "run input", *CHECKED)
    print_table(f"Redis: generators, median of {rounds} rounds", heads, rows)
    return checks


async def _credit(
    url: str, count: int, rounds: int, spread: float, *, on_uvloop: bool = True
) -> dict[str, list[float]]:
    """The seconds that so many tasks take over a generator, and over a run input.

    A first round that nobody counts comes before.
    """
    kind = f"{spread} {on_uvloop}"
    queues = {"generator": f"credit {kind}", "tasks": f"tasks {kind}"}
    slots = {"generator": TAKING + 1, "tasks": TAKING}
    found: dict[str, list[float]] = {name: [] for name in queues}
    with ExitStack() as workers:
        for name, queue in queues.items():
            workers.enter_context(
                taskiq_workers(WORKER, url, queue, slots=slots[name], on_uvloop=on_uvloop)
            )
        for number in range(rounds + 1):
            for name, queue in queues.items():
                is_endless = name == "generator"
                seconds = await _while_it_lasts(url, queue, count, spread, is_endless=is_endless)
                if number:
                    found[name].append(seconds)
    return found


async def _while_it_lasts(
    url: str, queue: str, count: int, spread: float, *, is_endless: bool
) -> float:
    """The seconds from the first finished task until so many more are, while others follow.

    ``is_endless``: over a generator that has its place all the time; else over a run input.
    """
    broker = engine_broker(url, queue)
    tasks = register(broker)
    await broker.startup()
    dag = graph(tasks, from_generator=is_endless, window=WINDOW)
    inputs: dict[str, Any] = {"took": TAKEN_IN, "spread": spread}
    if is_endless:
        inputs |= {"count": ENDLESS, "seconds": MADE_IN}
    else:
        inputs["numbers"] = itertools.count()
    results = ExecutionEngine(broker, dag).execute_async(inputs, items="only", outputs=["work"])
    times: list[float] = []
    async with aclosing(results):
        async for name, _ in results:
            if name == "work":
                times.append(time.perf_counter())
            if len(times) > count:
                break
    await broker.shutdown()
    return times[-1] - times[0]


@asynccontextmanager
async def _runs(
    url: str, queue: str, count: int, window: int
) -> AsyncIterator[tuple[Contestant, Contestant]]:
    """A run of no-ops over a generator's items, and one over a run input."""
    broker = engine_broker(url, queue)
    tasks = register(broker)
    await broker.startup()

    def run_of(*, from_generator: bool) -> Contestant:
        dag = graph(tasks, from_generator=from_generator, window=window)
        engine = ExecutionEngine(broker, dag, AT_ONCE)

        async def run() -> None:
            inputs: dict[str, Any] = {"took": 0.0, "spread": 0.0}
            if from_generator:
                inputs |= {"count": count, "seconds": 0.0}
            else:
                inputs["numbers"] = iter(range(count))
            done = 0
            async for name, _ in engine.execute_async(inputs, items="only", outputs=["work"]):
                done += name == "work"
            if done != count:
                raise AssertionError(f"{done} of {count} items")

        return run

    yield run_of(from_generator=True), run_of(from_generator=False)
    await broker.shutdown()


def _shown(taken: Mapping[str, list[float]], count: int, first: str) -> list[str]:
    """Microseconds per item of one contestant, and of the tasks alone."""
    return [f"{statistics.median(taken[name]) / count * 1e6:,.0f}" for name in (first, "tasks")]
