"""A module with pipelines, as workers and those who run them import it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

from redis.asyncio import Redis
from taskiq import AsyncBroker, TaskiqDepends
from taskiq_redis import ListRedisScheduleSource, RedisAsyncResultBackend, RedisStreamBroker

from taskiq_flow import (
    DataflowPipeline,
    Pipeline,
    PipelineContext,
    PipelineMiddleware,
    PipelineScheduler,
    pipeline_task,
)

REDIS = "TASKIQ_FLOW_TEST_REDIS"
"""The environment variable with the server's address."""

url = os.environ.get(REDIS, "redis://127.0.0.1:1")


def on_queue(name: str) -> AsyncBroker:
    """A broker without the middleware."""
    return RedisStreamBroker(url, queue_name=name).with_result_backend(RedisAsyncResultBackend(url))


broker = on_queue("pipelined").with_middlewares(PipelineMiddleware())
bare = on_queue("pipelined")

of_bare_workers = on_queue("bare workers")
"""Of workers without the middleware; the task is there for engines with it, too."""

of_engines = on_queue("bare workers").with_middlewares(PipelineMiddleware())

for each in (of_bare_workers, of_engines):

    @each.task(task_name="nap")
    async def nap(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds


@broker.task
@pipeline_task(output="words")
async def split(text: str) -> list[str]:
    return text.split()


@pipeline_task(output="size", inputs=["words"])
@broker.task
async def measure(words: list[str]) -> int:
    return len(words)


@broker.task
async def shout(word: str, mark: str = "!") -> tuple[str, int]:
    if word == "bad":
        raise LookupError(word)
    return word.upper() + mark, os.getpid()


@broker.task
async def forget(text: str) -> None:
    """Gives nothing."""


@broker.task
async def letters(text: str) -> AsyncIterator[str]:
    for letter in text or "":
        yield letter


@broker.task
async def named(value: object) -> str:
    return type(value).__name__


@broker.task
async def is_long(word: str) -> bool:
    return len(word) > 2


@broker.task
async def seen(value: object, context: PipelineContext = TaskiqDepends()) -> str:  # noqa: B008
    return f"{context.execution_mode} {context.pipeline_id} {context.step_index}"


@broker.task
async def note(text: str) -> None:
    async with Redis.from_url(url) as redis:
        await redis.rpush("pipelined noted", text)


async def noted() -> list[str]:
    """What ``note`` was given, by all workers."""
    async with Redis.from_url(url, decode_responses=True) as redis:
        return [str(text) for text in await redis.lrange("pipelined noted", 0, -1)]


loud = Pipeline(broker).call_next(split).filter(is_long).map(shout, mark="?")
sizes = DataflowPipeline(broker, [measure, split])
told = Pipeline(broker).call_next(split).group([measure, measure]).call_next(seen)
told.with_context().as_task("told")
nightly = Pipeline(broker).call_next(seen).call_next(note)
nightly.with_context().as_task("nightly")


class Source(ListRedisScheduleSource):
    """One that closes its connections, which the original leaves open."""

    async def shutdown(self) -> None:
        await self._connection_pool.disconnect()


scheduler = PipelineScheduler(broker, store=Source(url, prefix="pipelined"))
