"""A task that sleeps for a minute and a generator that does between its items, both counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from redis.asyncio import BlockingConnectionPool, Redis
from taskiq import AsyncBroker
from taskiq_redis import RedisStreamBroker

from benchmarks.distributed.engine import engine_broker
from benchmarks.distributed.streams import address
from taskiq_flow import DAG, DAGBuilder

WORKER = f"{__name__}:worker"
"""What ``taskiq worker`` is given."""

COUNTER = "napping"
SECONDS = 60.0
CONNECTIONS = 16

Counted = Callable[[], AbstractAsyncContextManager[None]]
"""Counts one in as it is entered, and out as it is left, for whatever reason."""


def graph(broker: AsyncBroker, counted: Counted, generators: int) -> DAG:
    """As many generators as the run input ``sources`` has items, and tasks as ``numbers`` has.

    ``generators``: how many of them are open at once.
    """

    async def ticks(number: int) -> AsyncIterator[int]:
        async with counted():
            while True:
                yield number
                await asyncio.sleep(SECONDS)

    async def nap(number: int) -> int:
        async with counted():
            await asyncio.sleep(SECONDS)
        return number

    ticking = broker.register_task(ticks, task_name="ticks")
    napping = broker.register_task(nap, task_name="nap")
    builder = DAGBuilder()
    inputs = {"number": "sources"}
    builder.node(ticking, inputs=inputs, map_over="sources", max_parallel=generators)
    return builder.node(napping, inputs={"number": "numbers"}, map_over="numbers").build()


def in_redis(url: str) -> Counted:
    """Counts in Redis, where all processes see it."""
    client = Redis(
        connection_pool=BlockingConnectionPool.from_url(url, max_connections=CONNECTIONS)
    )

    @asynccontextmanager
    async def counted() -> AsyncIterator[None]:
        await client.incr(COUNTER)
        try:
            yield
        finally:
            await client.decr(COUNTER)

    return counted


def worker() -> RedisStreamBroker:
    """The broker in a worker process."""
    url, queue = address()
    broker = engine_broker(url, queue)
    graph(broker, in_redis(url), 1)
    return broker
