"""Tasks that return a large array and look at one, over a broker with a store."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from taskiq import AsyncBroker
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from benchmarks.distributed.streams import address, stream_broker
from taskiq_flow import DAG, DAGBuilder, FlowMiddleware

WORKER = f"{__name__}:worker"
"""What ``taskiq worker`` is given."""

STORE = "BENCHMARK_STORE"
"""The environment variable with the address of the store; without it, there is none."""


def store_broker(url: str, queue: str, store: str | None) -> RedisStreamBroker:
    """The broker of the engine and of its workers."""
    broker = stream_broker(url, queue).with_result_backend(RedisAsyncResultBackend(url))
    return broker.with_middlewares(FlowMiddleware(store=store))


def array_dag(broker: AsyncBroker, consumers: int) -> DAG:
    """One node that returns an array of ``size`` bytes, and those that look at it."""

    def array(size: int) -> Any:
        return np.ones(size, dtype="uint8")

    def look(array: Any) -> int:
        return len(array) + int(array[-1]) - 1

    make = broker.register_task(array, task_name="array")
    seen = broker.register_task(look, task_name="look")
    builder = DAGBuilder().node(make, output="array")
    for number in range(consumers):
        builder.node(seen, name=f"look_{number}", inputs=["array"])
    return builder.build()


def worker() -> RedisStreamBroker:
    """The broker in a worker process."""
    broker = store_broker(*address(), os.environ.get(STORE))
    array_dag(broker, 0)
    return broker
