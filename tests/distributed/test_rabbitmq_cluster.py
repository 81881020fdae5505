"""A RabbitMQ cluster of three nodes, one of which is killed for good in the middle of a run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from taskiq_flow import ExecutionEngine
from tests.distributed import app
from tests.distributed.app import Settings, started
from tests.distributed.conftest import AT_LENGTH, HOW_TO_INSTALL, Farm
from tests.distributed.watching import Notes, check_cancelling, inputs, many
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import RabbitServer
from tests.servers.workers import Workers

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not RabbitServer.is_available(), reason=HOW_TO_INSTALL),
    pytest.mark.skipif(not AT_LENGTH, reason="takes a minute; scripts/production does it"),
]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RabbitServer]]:
    folder = tmp_path_factory.mktemp("nodes")
    first = RabbitServer(folder / "0", default_queue_type="rabbit_quorum_queue")
    nodes = [first]
    try:
        first.start()
        for number in (1, 2):
            node = RabbitServer(
                folder / str(number), joins=first, default_queue_type="rabbit_quorum_queue"
            )
            nodes.append(node)
            node.start()
        yield nodes
    finally:
        for node in reversed(nodes):
            node.kill()


@asynccontextmanager
async def working(farm: Farm, settings: Settings, **options: Any) -> AsyncIterator[Workers]:
    """Workers that reach their server over a proxy, which this event loop has."""
    workers = farm.workers(settings, **options)
    await asyncio.to_thread(workers.start)
    try:
        yield workers
    finally:
        workers.kill()


async def test_the_node_of_the_clients_dies_for_good(
    nodes: list[RabbitServer], farm: Farm, tmp_path: Path
) -> None:
    """What they reach it by, such as a load balancer, leads them to another one.

    The run ends, though the node had parked messages. What was acknowledged is executed once. Runs
    that are cancelled later end on the workers, and others start, while the node is down.
    """
    first, second, _ = nodes
    notes = Notes(tmp_path)
    async with Proxy(first.port) as proxy:
        settings = Settings(
            "rabbitmq",
            redis=farm.redis.url,
            rabbitmq=f"amqp://guest:guest@127.0.0.1:{proxy.port}/",
            queue="cluster",
            queue_type="quorum",
            park_after=0.5,
        )
        async with working(farm, settings, processes=2) as workers:
            pids = workers.pids
            async with started(settings) as broker:
                engine = ExecutionEngine(broker, many(broker, app.noted, 12), 4, lost_after=60.0)
                run = asyncio.ensure_future(engine.execute(inputs(notes, 12, 2.5)))
                await notes.until("end", 4)
                ended = notes.of("end")[:4]  # and acknowledged, when four more have ended
                await notes.until("begin", 12)
                proxy.target_port = second.port
                await asyncio.to_thread(first.process.kill)
                assert len(await run) == 12
                begun = notes.of("begin")
                assert {begun.count(name) for name in ended} == {1}
                assert len(begun) <= 12 + 4  # those in progress came again
                engine = ExecutionEngine(broker, many(broker, app.noted, 4), lost_after=60.0)
                await check_cancelling(engine, notes, 4, begun=len(begun) + 4)
            assert workers.pids == pids
        async with working(farm, settings), started(settings) as broker:
            engine = ExecutionEngine(broker, many(broker, app.noted, 4))
            assert len(await engine.execute(inputs(notes, 4, 0.0))) == 4
