"""A task that sleeps, as each of three maps in a chain, and a loop by hand that sends it.

What the task is given and returns is the number of an item, and when each stage of it began and
ended, on the clock of all processes.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from redis.asyncio.client import PubSub
from taskiq import AsyncBroker, AsyncTaskiqDecoratedTask
from taskiq_redis import RedisStreamBroker

from benchmarks.distributed.engine import engine_broker
from benchmarks.distributed.hand_written import ID_LENGTH, hand_broker, subscribed, value_of
from benchmarks.distributed.streams import address
from benchmarks.sleeps import LIMIT, STAGES, seconds_of
from taskiq_flow import DAG, DAGBuilder

WORKER, HAND_WORKER = f"{__name__}:worker", f"{__name__}:hand_worker"
"""What ``taskiq worker`` is given, for the engine and for the loop."""

Task = AsyncTaskiqDecoratedTask[[list[float], int, float], Any]

Done = Callable[[list[float]], None]
"""Is given each item that is through."""


async def nap(chain: list[float], seed: int, mean: float) -> list[float]:
    """Sleep for as long as the next stage of an item takes."""
    began = time.perf_counter()
    await asyncio.sleep(seconds_of_next(chain, seed, mean))
    return [*chain, began, time.perf_counter()]


def nap_in_thread(chain: list[float], seed: int, mean: float) -> list[float]:
    """The same in a thread."""
    began = time.perf_counter()
    time.sleep(seconds_of_next(chain, seed, mean))
    return [*chain, began, time.perf_counter()]


def seconds_of_next(chain: Sequence[float], seed: int, mean: float) -> float:
    """How long the next stage of an item takes."""
    return seconds_of(random.Random(f"{seed} {chain[0]:.0f} {len(chain)}"), mean)


def slept(chain: Sequence[float]) -> float:
    """What the stages of an item have slept."""
    return sum(ended - began for began, ended in zip(chain[1::2], chain[2::2], strict=True))


def register(broker: AsyncBroker) -> Task:
    """Give a broker the task."""
    return broker.register_task(nap, task_name="nap")


def graph(task: Task) -> DAG:
    """The chain of maps over the run input ``items``."""
    builder = DAGBuilder()
    for number in range(STAGES):
        key = f"s{number - 1}" if number else "items"
        inputs = {"chain": key, "seed": "seed", "mean": "mean"}
        builder.node(task, name=f"s{number}", inputs=inputs, map_over=key)
    return builder.build()


def worker() -> RedisStreamBroker:
    """The engine's broker in a worker process."""
    broker = engine_broker(*address())
    register(broker)
    return broker


def hand_worker() -> RedisStreamBroker:
    """The loop's broker in a worker process."""
    broker = hand_broker(*address())
    register(broker)
    return broker


async def send_by_hand(
    task: Task, pubsub: PubSub, items: int, seed: int, mean: float, done: Done
) -> None:
    """Send each item through the stages, with an asyncio task for each and a semaphore."""
    places = asyncio.Semaphore(LIMIT)
    waiting: dict[bytes, asyncio.Future[list[float]]] = {}

    async def through(item: int) -> None:
        chain: list[float] = [item]
        async with places:
            for _ in range(STAGES):
                task_id = uuid4().hex
                future = waiting[task_id.encode()] = asyncio.get_running_loop().create_future()
                await task.kicker().with_task_id(task_id).kiq(chain, seed, mean)
                chain = await future
        done(chain)

    published = pubsub.listen()
    async with asyncio.TaskGroup() as group:
        for item in range(items):
            group.create_task(through(item))
        for _ in range(STAGES * items):
            data = (await anext(published))["data"]
            waiting.pop(data[:ID_LENGTH]).set_result(value_of(data))


@asynccontextmanager
async def by_hand(url: str, queue: str) -> AsyncIterator[tuple[Task, PubSub]]:
    """The loop's task, and where its results are published."""
    broker = hand_broker(url, queue)
    task = register(broker)
    async with subscribed(broker, url, queue) as pubsub:
        yield task, pubsub
