"""Tasks that return a large text and measure one."""

from __future__ import annotations

from taskiq import AsyncBroker
from taskiq_redis import RedisStreamBroker

from benchmarks.distributed.engine import engine_broker
from benchmarks.distributed.streams import address
from taskiq_flow import DAG, DAGBuilder

WORKER = f"{__name__}:worker"
"""What ``taskiq worker`` is given."""


def large_dag(broker: AsyncBroker, consumers: int) -> DAG:
    """One node that returns a text of ``size`` characters, and those that measure it."""

    async def blob(size: int) -> str:
        return "x" * size

    async def measure(blob: str) -> int:
        return len(blob)

    make = broker.register_task(blob, task_name="blob")
    look = broker.register_task(measure, task_name="measure")
    builder = DAGBuilder().node(make, output="blob")
    for number in range(consumers):
        builder.node(look, name=f"measure_{number}", inputs=["blob"])
    return builder.build()


def worker() -> RedisStreamBroker:
    """The broker in a worker process."""
    broker = engine_broker(*address())
    large_dag(broker, 0)
    return broker
