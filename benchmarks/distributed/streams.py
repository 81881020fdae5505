"""What the brokers of both sides have in common, in the driver as in the workers."""

from __future__ import annotations

import os

from redis.asyncio import Redis
from taskiq import TaskiqEvents, TaskiqState
from taskiq_redis import RedisStreamBroker

URL = "BENCHMARK_REDIS_URL"
QUEUE = "BENCHMARK_QUEUE"


def address() -> tuple[str, str]:
    """Within a worker: the server's URL and the name of the queue."""
    return os.environ[URL], os.environ[QUEUE]


def ready_key(queue: str) -> str:
    """The list to which each worker process of a queue adds itself when it starts."""
    return f"{queue}:ready"


def stream_broker(url: str, queue: str) -> RedisStreamBroker:
    """A broker that misses nothing that was sent before its first worker came."""
    broker = RedisStreamBroker(url, queue_name=queue, consumer_id="0")

    async def announce(_: TaskiqState) -> None:
        async with Redis.from_url(url) as client:
            await client.rpush(ready_key(queue), os.getpid())

    broker.add_event_handler(TaskiqEvents.WORKER_STARTUP, announce)
    return broker
