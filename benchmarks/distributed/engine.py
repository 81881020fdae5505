"""The engine across processes: its broker as users write it, and what its workers run."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from benchmarks.distributed.streams import address, stream_broker
from benchmarks.measure import Contestant
from benchmarks.shapes import Shape, dag_of, drain, no_op
from taskiq_flow import ExecutionEngine, FlowMiddleware

WORKER = f"{__name__}:worker"
"""What ``taskiq worker`` is given."""


def engine_broker(url: str, queue: str) -> RedisStreamBroker:
    """The broker of the engine and of its workers."""
    broker = stream_broker(url, queue).with_result_backend(RedisAsyncResultBackend(url))
    return broker.with_middlewares(FlowMiddleware())


def worker() -> RedisStreamBroker:
    """The broker in a worker process."""
    broker = engine_broker(*address())
    no_op(broker)
    return broker


@contextlib.asynccontextmanager
async def by_engine(url: str, queue: str) -> AsyncIterator[Callable[[Shape], Contestant]]:
    """Gives runs of shapes by the engine, each graph built and validated beforehand."""
    broker = engine_broker(url, queue)
    task = no_op(broker)
    await broker.startup()

    def run_of(shape: Shape) -> Contestant:
        dag = dag_of(task, shape)
        dag.validate()
        engine = ExecutionEngine(broker, dag)
        return lambda: drain(engine, len(shape))

    try:
        yield run_of
    finally:
        await broker.shutdown()
