"""From ``engine.cancel()`` until the last worker is idle: 200 sleeping tasks over Redis.

Each task adds one to a number in Redis when it begins and takes it away in a ``finally``. The clock
starts with the call of ``cancel()``, when the number is 200, and stops when it is seen to be 0; it
is asked for every 5 ms, so that the telling of it is in the figure. The tasks are async and would
sleep for a minute, on four worker processes each of which has room for all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time

from redis.asyncio import Redis

from benchmarks.distributed.engine import engine_broker
from benchmarks.distributed.napping import COUNTER, WORKER, nap
from benchmarks.distributed.processes import redis_server, taskiq_workers
from benchmarks.report import Check, Options, print_checks
from benchmarks.shapes import chains, dag_of, drain
from taskiq_flow import ExecutionEngine, RunCancelledError

TASKS = 200
PROCESSES = 4
MOST = 1.0
LOOK_INTERVAL = 0.005
LONGEST_START = 30.0
LONGEST_END = 10.0
QUEUE = "naps"


async def run(options: Options) -> list[Check]:
    """Cancel some runs, one after the other; the slowest is what counts."""
    rounds = 2 if options.quick else 7
    taken: list[float] = []
    with (
        redis_server() as url,
        taskiq_workers(WORKER, url, QUEUE, processes=PROCESSES, slots=TASKS),
    ):
        broker = engine_broker(url, QUEUE)
        dag = dag_of(nap(broker, url), chains(TASKS, 1))
        await broker.startup()
        engine = ExecutionEngine(broker, dag)
        async with Redis.from_url(url) as client:
            for _ in range(rounds):
                taken.append(await _cancelled(engine, client))
                if taken[-1] >= LONGEST_END:
                    break  # the workers sleep on
        await broker.shutdown()
    checks = [Check(f"Redis, cancel() of {TASKS} tasks, slowest", max(taken), MOST, "s")]
    title = f"From cancel() to idle workers, {len(taken)} runs"
    print_checks(f"{title}, median {statistics.median(taken):.3f} s", checks)
    return checks


async def _cancelled(engine: ExecutionEngine, client: Redis) -> float:
    """Seconds from ``cancel()`` until no task is left, or the longest that is waited for."""
    reader = asyncio.create_task(drain(engine, TASKS))
    if not await _counted(client, TASKS, LONGEST_START):
        raise TimeoutError(f"not all of {TASKS} tasks began within {LONGEST_START:g} s")
    start = time.perf_counter()
    engine.cancel()
    idle = await _counted(client, 0, LONGEST_END)
    taken = time.perf_counter() - start
    with contextlib.suppress(RunCancelledError):
        await reader
    return taken if idle else LONGEST_END


async def _counted(client: Redis, number: int, longest: float) -> bool:
    """Whether as many tasks were seen to sleep within a time."""
    deadline = time.perf_counter() + longest
    while int(await client.get(COUNTER) or 0) != number:
        if time.perf_counter() > deadline:
            return False
        await asyncio.sleep(LOOK_INTERVAL)
    return True
