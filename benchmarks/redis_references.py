"""Large values by reference: what they take of the engine and of Redis.

One value of 50 MB goes to 100 consumers. 100 elements of 1 MB go through two maps and are taken
together as a list.

The memory of the engine's process is its resident size, read every 5 ms from before the run until
its end. Stored is the length of all results of the run; the server's buffers for what is on its way
are not in it. The size of messages is that of what the engine hands to its broker. Two worker
processes of four tasks at a time read a value again for each consumer; the time that takes is
told, and has no target.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from taskiq import AsyncBroker, BrokerMessage

from benchmarks.distributed.blobs import WORKER, large_dag, mapped_dag
from benchmarks.distributed.engine import engine_broker
from benchmarks.distributed.processes import redis_server, taskiq_workers
from benchmarks.report import Check, Options, print_checks
from taskiq_flow import DAG, ExecutionEngine

MB = 1_000_000
QUEUE = "blobs"
LOOK_INTERVAL = 0.005
PAGE = 4096


async def run(options: Options) -> list[Check]:
    """Run each graph once."""
    size, consumers = (10 * MB, 20) if options.quick else (50 * MB, 100)
    elements = 20 if options.quick else 100
    with redis_server() as url, taskiq_workers(WORKER, url, QUEUE, processes=2, slots=4):
        what = f"{size // MB} MB for {consumers}"
        large = Measured("large", what, stored=size, memory=5.0)
        results = await large.run(url, lambda b: large_dag(b, consumers), {"size": size})
        if any(results[f"measure_{number}"] != size for number in range(consumers)):
            raise AssertionError("a consumer was given another value")
        what = f"{elements} elements of 1 MB"
        mapped = Measured("mapped", what, stored=2 * elements * MB, memory=10.0)
        results = await mapped.run(url, mapped_dag, {"sizes": [MB] * elements})
        if results["length"] != [MB] * elements or results["together"] != elements * MB:
            raise AssertionError("an element was given another value")
    checks = [*large.checks, *mapped.checks]
    print_checks(f"Redis, by reference, in {large.taken:.1f} s and {mapped.taken:.1f} s", checks)
    return checks


class Measured:
    """What the run of one graph takes.

    ``stored``: the bytes of its large values. ``memory``: the target of the engine's, in MB.
    """

    def __init__(self, run_id: str, what: str, *, stored: int, memory: float) -> None:
        self._memory = memory
        self._run_id = run_id
        self._what = what
        self._stored = stored

    async def run(
        self, url: str, graph: Callable[[AsyncBroker], DAG], inputs: dict[str, Any]
    ) -> dict[str, Any]:
        """Run the graph and return its results."""
        broker = engine_broker(url, QUEUE)
        kick, sizes = broker.kick, []

        async def noting_kick(message: BrokerMessage) -> None:
            sizes.append(len(message.message))
            await kick(message)

        broker.kick = noting_kick  # type: ignore[method-assign]  # measures what is sent
        engine = ExecutionEngine(broker, graph(broker), pass_by=65536)
        await broker.startup()
        async with Redis.from_url(url) as client:
            async with _growth() as grown:
                start = time.perf_counter()
                results = await engine.execute(inputs, run_id=self._run_id)
                self.taken = time.perf_counter() - start
            keys = client.scan_iter(f"{self._run_id}:*", count=10_000)
            stored = sum([await client.strlen(key) async for key in keys])
        await broker.shutdown()
        self.checks = [
            Check(f"{self._what}, engine's memory", max(grown) / MB, self._memory, "MB more"),
            Check(f"{self._what}, stored in Redis", stored / self._stored, 1.01, "x the values"),
            Check(f"{self._what}, largest message", max(sizes) / 1000, 10.0, "KB"),
        ]
        return results


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
