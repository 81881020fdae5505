"""Tasks that return a large text, pass one on and measure some."""

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


def mapped_dag(broker: AsyncBroker) -> DAG:
    """Texts of ``sizes`` characters, each passed on and measured, and all of them together."""

    async def text(size: int) -> str:
        return "x" * size

    async def passed_on(text: str) -> str:
        return text

    async def length(text: str) -> int:
        return len(text)

    async def together(texts: list[str]) -> int:
        return sum(map(len, texts))

    task = broker.register_task
    builder = DAGBuilder().node(
        task(text, task_name="text"), inputs={"size": "sizes"}, map_over="sizes"
    )
    builder.node(task(passed_on, task_name="passed_on"), inputs=["text"], map_over="text")
    builder.node(task(length, task_name="length"), inputs=["passed_on"], map_over="passed_on")
    builder.node(task(together, task_name="together"), inputs=["passed_on"])
    return builder.build()


def worker() -> RedisStreamBroker:
    """The broker in a worker process."""
    broker = engine_broker(*address())
    large_dag(broker, 0)
    mapped_dag(broker)
    return broker
