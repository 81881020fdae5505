"""Generators over Redis: what their items cost, and whether credit keeps those busy who take them.

*Cost*: a no-op task for each item of a generator stands beside the same tasks over a run input that
is read one by one, in turns, on one worker process; items are read alone. *Credit*: a generator
makes an item each millisecond, and each is worked on for ten, on a worker with five places, one of
which the generator has as long as it is looked at. At best that is 400 in a second. The workers run
on uvloop, as they do where that is installed, and then on asyncio's loop. Beside it stand the same
tasks over a run input on a worker with four places, and four loops that only sleep for so long, in
this process, on asyncio's loop.
"""

from __future__ import annotations

import asyncio
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
MOST_CREDIT = 1 / 0.95


async def run(options: Options) -> list[Check]:
    """Measure both."""
    rounds = 3 if options.quick else 7
    items = 2_000 if options.quick else 20_000
    with redis_server() as url:
        with taskiq_workers(WORKER, url, "cost"):
            async with (
                _runs(url, "cost", items, WINDOW) as (generator, tasks),
                _runs(url, "cost", items, AT_ONCE) as (wide, _),
            ):
                contestants = {"generator": generator, "wide": wide, "tasks": tasks}
                cost = await interleaved(contestants, rounds)
        count = items // 10
        credit = await _credit(url, count, rounds, on_uvloop=True)
        on_asyncio = await _credit(url, count, rounds, on_uvloop=False)
    best = count * TAKEN_IN / TAKING
    against_tasks = median_ratio(cost["generator"], cost["tasks"])
    wide_against_tasks = median_ratio(cost["wide"], cost["tasks"])
    against_best = statistics.median(credit["generator"]) / best
    checks = [
        Check("Redis, items of a generator", against_tasks, MOST_COST, "x the tasks"),
        Check("Redis, window as large as the limit", wide_against_tasks, MOST_COST, "x the tasks"),
        Check("Redis, credit", against_best, MOST_CREDIT, "x the best"),
    ]
    rows = [
        [f"no-op, window {WINDOW}", *_shown(cost, items, "generator"), "", *checks[0].cells()],
        [f"no-op, window {AT_ONCE}", *_shown(cost, items, "wide"), "", *checks[1].cells()],
        [
            f"{TAKING} x {TAKEN_IN * 1e3:g} ms, on uvloop",
            *_shown(credit, count, "generator", "sleep"),
            *checks[2].cells(),
        ],
        [
            "on asyncio's loop",
            *_shown(on_asyncio, count, "generator", "sleep"),
            f"{statistics.median(on_asyncio['generator']) / best:.4g} {checks[2].unit}",
            *("", ""),
        ],
    ]
    heads = ("us per item", "generator", "run input", "sleep", *CHECKED)
    print_table(f"Redis: generators, median of {rounds} rounds", heads, rows)
    return checks


async def _credit(url: str, count: int, rounds: int, *, on_uvloop: bool) -> dict[str, list[float]]:
    """The seconds that so many tasks take over a generator, over a run input, and for sleeping."""
    loop = "uvloop" if on_uvloop else "asyncio"
    queues = {"generator": f"credit {loop}", "tasks": f"tasks {loop}"}
    slots = {"generator": TAKING + 1, "tasks": TAKING}
    found: dict[str, list[float]] = {}
    with ExitStack() as workers:
        for name, queue in queues.items():
            workers.enter_context(
                taskiq_workers(WORKER, url, queue, slots=slots[name], on_uvloop=on_uvloop)
            )
        for _ in range(rounds):
            for name, queue in queues.items():
                seconds = await _while_it_lasts(url, queue, count, endless=name == "generator")
                found.setdefault(name, []).append(seconds)
            found.setdefault("sleep", []).append(await _sleeping(count))
    return found


async def _while_it_lasts(url: str, queue: str, count: int, *, endless: bool) -> float:
    """The seconds from the first finished task until so many more are, while others follow.

    ``endless``: over a generator that has its place all the time; else over a run input.
    """
    broker = engine_broker(url, queue)
    tasks = register(broker)
    await broker.startup()
    dag = graph(tasks, from_generator=endless, window=WINDOW)
    inputs: dict[str, Any] = {"took": TAKEN_IN, "numbers": itertools.count()}
    if endless:
        inputs = {"took": TAKEN_IN, "count": ENDLESS, "seconds": MADE_IN}
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
            inputs: dict[str, Any] = {"took": 0.0, "numbers": iter(range(count))}
            if from_generator:
                inputs = {"took": 0.0, "count": count, "seconds": 0.0}
            done = 0
            async for name, _ in engine.execute_async(inputs, items="only", outputs=["work"]):
                done += name == "work"
            if done != count:
                raise AssertionError(f"{done} of {count} items")

        return run

    yield run_of(from_generator=True), run_of(from_generator=False)
    await broker.shutdown()


async def _sleeping(count: int) -> float:
    """The seconds of as many loops as are worked on at a time, which only sleep."""

    async def sleep() -> None:
        for _ in range(count // TAKING):
            await asyncio.sleep(TAKEN_IN)

    began = time.perf_counter()
    await asyncio.gather(*(sleep() for _ in range(TAKING)))
    return time.perf_counter() - began


def _shown(taken: Mapping[str, list[float]], count: int, first: str, *others: str) -> list[str]:
    """Microseconds per item of one contestant, of the tasks alone, and of others."""
    of = (first, "tasks", *others)
    return [f"{statistics.median(taken[name]) / count * 1e6:,.0f}" for name in of]
