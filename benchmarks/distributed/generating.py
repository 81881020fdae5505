"""A generator on a worker, and the tasks that map over its items."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from typing import Any

from taskiq import AsyncBroker, AsyncTaskiqDecoratedTask
from taskiq_redis import RedisStreamBroker

from benchmarks.distributed.engine import engine_broker
from benchmarks.distributed.streams import address
from taskiq_flow import DAG, DAGBuilder

WORKER = f"{__name__}:worker"
"""What ``taskiq worker`` is given."""


async def numbers(count: int, seconds: float) -> AsyncIterator[int]:
    """So many numbers, each of which takes a while to make."""
    due = time.monotonic()
    for number in range(count):
        if seconds:
            due = max(due + seconds, time.monotonic())  # timers are late: the next one is not
            await asyncio.sleep(due - time.monotonic())
        yield number


async def work(number: int, took: float, spread: float) -> int:
    """What is done with each of them: sleep. ``spread``: by how much of ``took`` it may differ.

    What an even number sleeps more, the next one sleeps less, so that the mean is ``took``.
    """
    if took:
        more = random.Random(number // 2).uniform(-spread, spread)
        await asyncio.sleep(took * (1 - more if number % 2 else 1 + more))
    return number


Tasks = tuple[AsyncTaskiqDecoratedTask[..., Any], AsyncTaskiqDecoratedTask[..., Any]]


def register(broker: AsyncBroker) -> Tasks:
    """Give a broker both tasks."""
    making: Any = broker.register_task(numbers, task_name="numbers")
    return making, broker.register_task(work, task_name="work")


def graph(tasks: Tasks, *, from_generator: bool, window: int) -> DAG:
    """``work`` for each item of the generator, or of the run input ``numbers``."""
    making, working = tasks
    builder = DAGBuilder()
    if from_generator:
        builder.node(making, name="numbers", window=window)
    inputs = {"number": "numbers", "took": "took", "spread": "spread"}
    builder.node(working, name="work", inputs=inputs, map_over="numbers")
    return builder.build()


def worker() -> RedisStreamBroker:
    """The broker in a worker process."""
    broker = engine_broker(*address())
    register(broker)
    return broker
