"""From ``cancel()`` until 100 open generators and 200 sleeping tasks have ended.

Each adds one to a number when it begins and takes it away in a ``finally``. The clock starts with
the call of ``cancel()``, when the number is 300, and stops when it is seen to be 0. Tasks and
generators are async and would sleep for a minute. *In one process* the number is a variable, looked
at when the run has ended. *Over Redis* it is there, asked for every 5 ms, so that the telling of it
is in the figure, and four worker processes have room for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from redis.asyncio import Redis
from taskiq import InMemoryBroker

from benchmarks.distributed.engine import engine_broker
from benchmarks.distributed.napping import COUNTER, WORKER, graph, in_redis
from benchmarks.distributed.processes import redis_server, taskiq_workers
from benchmarks.report import Check, Options, print_checks
from taskiq_flow import ExecutionEngine, RunCancelledError

GENERATORS, TASKS = 100, 200
ALL = GENERATORS + TASKS
PROCESSES = 4
MOST = 1.0
LOOK_INTERVAL = 0.005
LONGEST_START = 30.0
LONGEST_END = 10.0
QUEUE = "naps"

Number = Callable[[], Awaitable[int]]
"""How many have begun and not ended."""


async def run(options: Options) -> list[Check]:
    """Cancel some runs, one after the other; the slowest is what counts."""
    rounds = 2 if options.quick else 7
    here = await _in_process(rounds)
    there = await _over_redis(rounds)
    what = f"{GENERATORS} generators and {TASKS} tasks have ended, slowest"
    checks = [
        Check(f"in one process: {what}", max(here), MOST, "s"),
        Check(f"Redis: {what}", max(there), MOST, "s"),
    ]
    medians = [f"{statistics.median(taken):.3f} s" for taken in (here, there)]
    print_checks(f"From cancel(), {rounds} runs, medians {' and '.join(medians)}", checks)
    return checks


async def _in_process(rounds: int) -> list[float]:
    begun = 0

    @contextlib.asynccontextmanager
    async def counted() -> AsyncIterator[None]:
        nonlocal begun
        begun += 1
        try:
            yield
        finally:
            begun -= 1

    async def number() -> int:
        return begun

    broker = InMemoryBroker()
    engine = ExecutionEngine(broker, graph(broker, counted, GENERATORS))
    return [await _cancelled(engine, number) for _ in range(rounds)]


async def _over_redis(rounds: int) -> list[float]:
    with (
        redis_server() as url,
        taskiq_workers(WORKER, url, QUEUE, processes=PROCESSES, slots=ALL),
    ):
        broker = engine_broker(url, QUEUE)
        engine = ExecutionEngine(broker, graph(broker, in_redis(url), GENERATORS))
        await broker.startup()
        async with Redis.from_url(url) as client:

            async def number() -> int:
                return int(await client.get(COUNTER) or 0)

            taken = [await _cancelled(engine, number) for _ in range(rounds)]
        await broker.shutdown()
    return taken


async def _cancelled(engine: ExecutionEngine, number: Number) -> float:
    """Seconds from ``cancel()`` until nothing is left."""
    inputs = {"sources": list(range(GENERATORS)), "numbers": list(range(TASKS))}
    run = engine.start(inputs, items="only")
    await _until(number, ALL, LONGEST_START)
    start = time.perf_counter()
    run.cancel()
    with contextlib.suppress(RunCancelledError):
        await run
    await _until(number, 0, LONGEST_END)
    return time.perf_counter() - start


async def _until(number: Number, wanted: int, longest: float) -> None:
    """Wait until as many have begun and not ended."""
    deadline = time.perf_counter() + longest
    while (found := await number()) != wanted:
        if time.perf_counter() > deadline:
            raise TimeoutError(f"after {longest:g} s {found} go on, where {wanted} should")
        await asyncio.sleep(LOOK_INTERVAL)
