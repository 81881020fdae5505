"""taskiq over Redis as it comes: tasks sent with ``kiq()``, results read from the backend."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from redis.asyncio import Redis
from taskiq import TaskiqResult
from taskiq.serializers import PickleSerializer
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from benchmarks.distributed.streams import address, stream_broker
from benchmarks.shapes import no_op

WORKER = f"{__name__}:worker"
"""What ``taskiq worker`` is given."""

AT_ONCE = 100
LOOK_INTERVAL = 0.02


def bare_broker(url: str, queue: str) -> RedisStreamBroker:
    """A broker that nobody has added anything to."""
    return stream_broker(url, queue).with_result_backend(RedisAsyncResultBackend(url))


def worker() -> RedisStreamBroker:
    """The broker in a worker process."""
    broker = bare_broker(*address())
    no_op(broker)
    return broker


@contextlib.asynccontextmanager
async def bare_cpu(url: str, queue: str) -> AsyncIterator[Callable[[int], Awaitable[float]]]:
    """Gives the CPU seconds that a number of tasks take this process: sent, then read.

    Waiting for the tasks to end lies between the two and is not counted.
    """
    broker = bare_broker(url, queue)
    task = no_op(broker)
    serializer = PickleSerializer()  # the backend's own
    await broker.startup()
    client: Any = Redis.from_url(url)  # whose types leave open whether it decodes

    async def seconds(tasks: int) -> float:
        start = time.process_time()
        ids = [(await task.kiq(1)).task_id for _ in range(tasks)]
        sending = time.process_time() - start
        while await client.exists(*ids) < tasks:  # noqa: ASYNC110  # another process is waited for
            await asyncio.sleep(LOOK_INTERVAL)
        start = time.process_time()
        values: list[int] = []
        for first in range(0, tasks, AT_ONCE):
            for saved in await client.mget(ids[first : first + AT_ONCE]):
                result = TaskiqResult[int].model_validate(serializer.loadb(saved))
                values.append(result.return_value)
        reading = time.process_time() - start
        if values != [1] * tasks:
            raise AssertionError(f"the values of {tasks} tasks are {values}")
        return sending + reading

    try:
        yield seconds
    finally:
        await client.aclose()
        await broker.shutdown()
