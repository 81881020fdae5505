"""The limit across processes: a loop written by hand for one graph over Redis, no engine.

It does what somebody would do who knows taskiq and Redis and has nothing else. In the worker, the
result backend saves a result and publishes it, in one round trip. Here, one subscription brings the
results, and the loop sends with ``kiq()`` what each makes ready, one after the other, which takes
less time than all at once. It checks nothing, cancels nothing, notices nothing that is lost.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from taskiq import TaskiqResult
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from benchmarks.distributed.streams import address, stream_broker
from benchmarks.measure import Contestant
from benchmarks.shapes import NoOp, Shape, no_op

WORKER = f"{__name__}:worker"
"""What ``taskiq worker`` is given."""

ID_LENGTH = 32  # of taskiq's own ids


class SaveAndPublish(RedisAsyncResultBackend[Any]):
    """Saves a result as its base does, and publishes it behind its task's id."""

    def __init__(self, url: str, channel: str) -> None:
        super().__init__(url)
        self.channel = channel
        self.redis = Redis(connection_pool=self.redis_pool)  # its base makes one for each call

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        """Save and publish, in one round trip."""
        value = self.serializer.dumpb(result.model_dump(mode="json"))
        pipeline = self.redis.pipeline(transaction=False)
        pipeline.set(task_id, value)
        pipeline.publish(self.channel, task_id.encode() + value)
        await pipeline.execute()


def channel_of(queue: str) -> str:
    """Where the results of a queue are published."""
    return f"{queue}:results"


def value_of(published: bytes) -> Any:
    """What a task returned, as it was published behind its id."""
    return pickle.loads(published[ID_LENGTH:])["return_value"]  # noqa: S301  # our own


def hand_broker(url: str, queue: str) -> RedisStreamBroker:
    """The broker of the loop and of its workers."""
    return stream_broker(url, queue).with_result_backend(SaveAndPublish(url, channel_of(queue)))


def worker() -> RedisStreamBroker:
    """The broker in a worker process."""
    broker = hand_broker(*address())
    no_op(broker)
    return broker


async def run_by_hand(
    published: AsyncIterator[bytes], task: NoOp, predecessors: Shape
) -> Mapping[int, Any]:
    """Run ``task`` once per node, with its predecessors' results; return all results by node."""
    successors: list[list[int]] = [[] for _ in predecessors]
    missing = [len(before) for before in predecessors]
    for node, before in enumerate(predecessors):
        for other in before:
            successors[other].append(node)
    waiting: dict[bytes, int] = {}
    results: dict[int, Any] = {}
    ready = [node for node, count in enumerate(missing) if not count]
    while len(results) < len(predecessors):
        for node in ready:
            sent = await task.kiq(*[results[other] for other in predecessors[node]])
            waiting[sent.task_id.encode()] = node
        ready = []
        data = await anext(published)
        node = waiting.pop(data[:ID_LENGTH])
        results[node] = value_of(data)
        for after in successors[node]:
            missing[after] -= 1
            if not missing[after]:
                ready.append(after)
    return results


@contextlib.asynccontextmanager
async def subscribed(broker: RedisStreamBroker, url: str, queue: str) -> AsyncIterator[PubSub]:
    """Start a loop's broker, and listen to what is published of its results."""
    await broker.startup()
    try:
        async with Redis.from_url(url) as client, client.pubsub() as pubsub:
            await pubsub.subscribe(channel_of(queue))
            await pubsub.get_message(timeout=None)  # says that it is subscribed
            yield pubsub
    finally:
        await broker.shutdown()


@contextlib.asynccontextmanager
async def by_hand(url: str, queue: str) -> AsyncIterator[Callable[[Shape], Contestant]]:
    """Gives runs of shapes by the loop: broker, task and subscription are there beforehand."""
    broker = hand_broker(url, queue)
    task = no_op(broker)
    async with subscribed(broker, url, queue) as pubsub:
        published = (message["data"] async for message in pubsub.listen())
        yield lambda shape: lambda: run_by_hand(published, task, shape)
