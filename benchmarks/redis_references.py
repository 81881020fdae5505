"""One value of 50 MB for 100 consumers, by reference: what it takes of the engine and of Redis.

The memory of the engine's process is its resident size, read every 5 ms from before the run until
its end. Stored is the length of all results of the run; the server's buffers for what is on its way
are not in it. The size of messages is that of what the engine hands to its broker. Two worker
processes of four tasks at a time read the value again for each consumer; the time that takes is
told, and has no target.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

from redis.asyncio import Redis
from taskiq import TaskiqMessage, TaskiqMiddleware

from benchmarks.distributed.blobs import WORKER, large_dag
from benchmarks.distributed.engine import engine_broker
from benchmarks.distributed.processes import redis_server, taskiq_workers
from benchmarks.report import Check, Options, print_checks
from taskiq_flow import ExecutionEngine

MB = 1_000_000
QUEUE = "blobs"
RUN_ID = "large"
LOOK_INTERVAL = 0.005
PAGE = 4096


class Sizes(TaskiqMiddleware):
    """The largest message that the engine sent."""

    largest = 0

    def post_send(self, message: TaskiqMessage) -> None:
        """Look at a message."""
        self.largest = max(self.largest, len(self.broker.formatter.dumps(message).message))


async def run(options: Options) -> list[Check]:
    """Run the graph once."""
    size, consumers = (10 * MB, 20) if options.quick else (50 * MB, 100)
    with redis_server() as url, taskiq_workers(WORKER, url, QUEUE, processes=2, slots=4):
        sizes = Sizes()
        broker = engine_broker(url, QUEUE).with_middlewares(sizes)
        dag = large_dag(broker, consumers)
        await broker.startup()
        engine = ExecutionEngine(broker, dag, pass_by=65536)
        async with Redis.from_url(url) as client:
            async with _growth() as grown:
                start = time.perf_counter()
                results = await engine.execute({"size": size}, run_id=RUN_ID)
                taken = time.perf_counter() - start
            keys = client.scan_iter(f"{RUN_ID}:*", count=10_000)
            stored = sum([await client.strlen(key) async for key in keys])
        await broker.shutdown()
    if any(results[f"measure_{number}"] != size for number in range(consumers)):
        raise AssertionError("a consumer was given another value")
    what = f"{size // MB} MB for {consumers}"
    checks = [
        Check(f"{what}, engine's memory", max(grown) / MB, 5.0, "MB more"),
        Check(f"{what}, stored in Redis", stored / size, 1.01, "x the value"),
        Check(f"{what}, largest message", sizes.largest / 1000, 10.0, "KB"),
    ]
    print_checks(f"Redis, by reference: {what} consumers, in {taken:.1f} s", checks)
    return checks


@contextlib.asynccontextmanager
async def _growth() -> AsyncIterator[list[int]]:
    """Gives a list to which the growth of this process is added, in bytes, again and again."""
    before = _resident()
    grown: list[int] = [0]

    async def watch() -> None:
        while True:
            grown.append(_resident() - before)
            await asyncio.sleep(LOOK_INTERVAL)

    watching = asyncio.create_task(watch())
    try:
        yield grown
    finally:
        watching.cancel()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE
