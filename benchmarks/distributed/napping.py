"""A task that sleeps for a minute, and is counted in Redis while it does."""

from __future__ import annotations

import asyncio

from redis.asyncio import BlockingConnectionPool, Redis
from taskiq import AsyncBroker
from taskiq_redis import RedisStreamBroker

from benchmarks.distributed.engine import engine_broker
from benchmarks.distributed.streams import address
from benchmarks.shapes import NoOp

WORKER = f"{__name__}:worker"
"""What ``taskiq worker`` is given."""

COUNTER = "napping"
SECONDS = 60.0
CONNECTIONS = 16


def nap(broker: AsyncBroker, url: str) -> NoOp:
    """The task; it counts itself in when it begins and out when it ends, for whatever reason."""
    client = Redis(
        connection_pool=BlockingConnectionPool.from_url(url, max_connections=CONNECTIONS)
    )

    async def work(*_: int) -> int:
        await client.incr(COUNTER)
        try:
            await asyncio.sleep(SECONDS)
        finally:
            await client.decr(COUNTER)
        return 1

    return broker.register_task(work, task_name="nap")


def worker() -> RedisStreamBroker:
    """The broker in a worker process."""
    url, queue = address()
    broker = engine_broker(url, queue)
    nap(broker, url)
    return broker
