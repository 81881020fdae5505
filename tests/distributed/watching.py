"""How a test sees what workers do: by the lines that tasks write, and by what is left in queues."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from taskiq import AsyncBroker

from taskiq_flow import DAG, DAGBuilder, ExecutionEngine, FlowMiddleware, RunCancelledError
from tests.distributed import app
from tests.distributed.app import Settings, started, task
from tests.waiting import until


async def until_sent(engine: ExecutionEngine) -> None:
    """Wait until the broker has taken all that the engine's one run has to send at first."""

    def is_sent() -> bool:
        runs = [one._run for one in engine._in_progress if one._run is not None]
        loops = [run._start_loop for run in runs if run._ready.in_progress()]
        return any(loop._is_idle and not loop.tasks for loop in loops)

    await until(is_sent, "the run's tasks were sent")


class Notes:
    """What the tasks of a test write down."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notes"
        self.path.touch()

    def of(self, word: str) -> list[str]:
        """The names of the tasks that wrote a word."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return [line.split()[1] for line in lines if line.startswith(f"{word} ")]

    def release(self) -> None:
        """Let the tasks that are ``held`` end, and those that are yet to begin."""
        Path(f"{self.path}.released").touch()

    async def until(self, word: str, count: int) -> float:
        """Wait until this many tasks have written a word; the seconds that it took."""
        return await until(lambda: len(self.of(word)) >= count, f"{count} x {word}")


def many(broker: AsyncBroker, function: Any, count: int) -> DAG:
    """So many nodes of one task that notes what it does; inputs: path, seconds and names."""
    builder = DAGBuilder()
    for number in range(count):
        keys = {"path": "path", "name": f"name {number}", "seconds": "seconds"}
        builder.node(task(broker, function), name=f"n{number}", inputs=keys)
    return builder.build()


def inputs(notes: Notes, count: int, seconds: float) -> dict[str, Any]:
    """The inputs of a run of ``many``."""
    names = {f"name {number}": f"n{number}" for number in range(count)}
    return {"path": str(notes.path), "seconds": seconds, **names}


@asynccontextmanager
async def blocked_generator(broker: AsyncBroker, notes: Notes) -> AsyncIterator[None]:
    """A generator on a worker has no room while the block runs. Then all of its items are read."""
    dag = DAGBuilder().node(task(broker, app.numbers), name="numbers").build()
    values = {"path": str(notes.path), "count": 1000}
    async with aclosing(ExecutionEngine(broker, dag).execute_async(values, items="only")) as run:
        _, first = await anext(run)
        yield
        assert "numbers" not in notes.of("closed")
        items = [first, *[item async for _, item in run]]
    assert [item.value for item in items] == list(range(1000))


async def check_cancelling(
    engine: ExecutionEngine, notes: Notes, count: int, *, begun: int | None = None
) -> None:
    """A cancellation reaches the workers: each of ``count`` tasks of a minute is told.

    ``engine`` is of ``many(broker, app.noted, count)``. ``begun``: how many tasks have begun by
    then, with earlier ones.
    """
    run = asyncio.ensure_future(engine.execute(inputs(notes, count, 60.0)))
    await notes.until("begin", count if begun is None else begun)
    engine.cancel()
    with pytest.raises(RunCancelledError):
        await run
    await notes.until("cancel", count)


def chain_of(broker: AsyncBroker, count: int) -> ExecutionEngine:
    """Tasks that take a while, one after the other, and as many beside them."""
    builder = DAGBuilder()
    for number in range(count):
        before = [f"n{number - 1}"] if number else []
        keys = {"path": "path", "name": "name", "seconds": "seconds"}
        after = {"after": before[0]} if before else {}
        builder.node(task(broker, app.noted), name=f"n{number}", inputs={**keys, **after})
        builder.node(task(broker, app.noted), name=f"m{number}", inputs=keys)
    return ExecutionEngine(broker, builder.build(), lost_after=30.0)


async def hear_no_more(broker: AsyncBroker) -> None:
    """Have a broker's engines hear nothing, which is what a server sees of killed ones."""
    (flow,) = [m for m in broker.middlewares if isinstance(m, FlowMiddleware)]
    await (await flow.inbox()).notifier.aclose()


async def until_empty(settings: Settings) -> None:
    """Wait until a broker's queue is empty: workers acknowledge behind the result."""

    async def is_empty() -> bool:
        return not await left_over(settings)

    await until(is_empty, f"nothing is left in {settings.queue}")


async def left_over(settings: Settings) -> int:
    """Messages in a broker's queue that are not taken, or taken and not acknowledged."""
    async with started(settings) as broker:
        queues: Any = broker
        if settings.kind == "redis-streams":
            client = app.redis_client(settings)
            async with client:
                pending = await client.xpending(settings.queue, "taskiq")
                groups = await client.xinfo_groups(settings.queue)
                info = await client.xinfo_stream(settings.queue)
            unread = groups[0]["last-delivered-id"] != info["last-generated-id"]
            return int(pending["pending"]) + int(unread)
        if settings.kind == "redis-lists":
            async with app.redis_client(settings) as client:
                return int(await client.llen(settings.queue))
        if settings.kind == "nats":
            consumer = await queues.consumer.consumer_info()
            return int(consumer.num_pending + consumer.num_ack_pending)
        declared = await queues.write_channel.declare_queue(settings.queue, passive=True)
        return int(declared.declaration_result.message_count)


async def purge(settings: Settings) -> None:
    """Throw away what stands in a broker's queue."""
    if settings.kind.startswith("redis"):
        async with app.redis_client(settings) as client:
            await client.delete(settings.queue)
        return
    async with started(settings) as broker:
        queues: Any = broker
        if settings.kind == "nats":
            await queues.js.purge_stream(settings.queue)
        else:
            queue = await queues.write_channel.get_queue(settings.queue)
            await queue.purge()
