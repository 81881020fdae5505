"""Generators over Redis: what their items cost, and whether credit keeps those busy who take them.

*Cost*: a no-op task for each item of a generator stands beside the same tasks over a run input that
is read one by one, in turns, on one worker process; items are read alone. *Credit*: a generator
makes an item each millisecond, and each is worked on for ten, on a worker with five places, one of
which the generator has. At best that is 400 in a second. The workers run on uvloop, as they do
where that is installed, and then on asyncio's loop. Beside it stand the same tasks over a run input
on a worker with four places, and four loops that only sleep for so long, here, on asyncio's loop.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
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
"""The usual one. As many tasks over a run input are with the worker or on their way to it."""
MADE_IN, TAKEN_IN = 0.001, 0.01
MOST_CREDIT = 1 / 0.95


async def run(options: Options) -> list[Check]:
    """Measure both."""
    rounds = 3 if options.quick else 7
    items = 2_000 if options.quick else 20_000
    with redis_server() as url:
        with taskiq_workers(WORKER, url, "cost"):
            async with (
                _runs(url, "cost", items, AT_ONCE, 0.0, 0.0) as (generator, tasks),
                _runs(url, "cost", items, AT_ONCE, 0.0, 0.0, window=AT_ONCE) as (wide, _),
            ):
                contestants = {"generator": generator, "wide": wide, "tasks": tasks}
                cost = await interleaved(contestants, rounds)
        count = items // 10
        credit = await _credit(url, count, rounds, on_uvloop=True)
        on_asyncio = await _credit(url, count, 3, on_uvloop=False)
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
            "on asyncio",
            *_shown(on_asyncio, count, "generator", "sleep"),
            f"{statistics.median(on_asyncio['generator']) / best:.2f} x the best",
            "",
            "",
        ],
    ]
    heads = ("us per item", "generator", "run input", "sleep", *CHECKED)
    print_table(f"Redis: generators, median of {rounds} rounds", heads, rows)
    return checks


async def _credit(url: str, count: int, rounds: int, *, on_uvloop: bool) -> dict[str, list[float]]:
    """The seconds of tasks that take a while, over a generator and over a run input."""
    queue = "uvloop" if on_uvloop else "asyncio"
    with (
        taskiq_workers(WORKER, url, f"credit {queue}", slots=TAKING + 1, on_uvloop=on_uvloop),
        taskiq_workers(WORKER, url, f"tasks {queue}", slots=TAKING, on_uvloop=on_uvloop),
    ):
        async with (
            _runs(url, f"credit {queue}", count, None, MADE_IN, TAKEN_IN) as (generator, _),
            _runs(url, f"tasks {queue}", count, WINDOW, MADE_IN, TAKEN_IN) as (_, tasks),
        ):
            contestants = {"generator": generator, "tasks": tasks, "sleep": _sleeping(count)}
            return await interleaved(contestants, rounds)


@asynccontextmanager
async def _runs(
    url: str,
    queue: str,
    count: int,
    at_once: int | None,
    made_in: float,
    taken_in: float,
    *,
    window: int = WINDOW,
) -> AsyncIterator[tuple[Contestant, Contestant]]:
    """A run over a generator's items, and one over a run input."""
    broker = engine_broker(url, queue)
    tasks = register(broker)
    await broker.startup()

    def run_of(inputs: Mapping[str, Any], *, from_generator: bool) -> Contestant:
        dag = graph(tasks, from_generator=from_generator, window=window)
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
    making = {"count": count, "seconds": made_in}
    yield run_of({**took, **making}, from_generator=True), run_of(took, from_generator=False)
    await broker.shutdown()


def _sleeping(count: int) -> Contestant:
    """As many loops as are worked on at a time, which only sleep: timers are late."""

    async def sleep() -> None:
        for _ in range(count // TAKING):
            await asyncio.sleep(TAKEN_IN)

    async def run() -> None:
        await asyncio.gather(*(sleep() for _ in range(TAKING)))

    return run


def _shown(taken: Mapping[str, list[float]], count: int, first: str, *others: str) -> list[str]:
    """Microseconds per item of one contestant, of the tasks alone, and of others."""
    of = (first, "tasks", *others)
    return [f"{statistics.median(taken[name]) / count * 1e6:,.0f}" for name in of]
