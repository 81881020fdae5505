"""Quorum queues of RabbitMQ, which taskiq-aio-pika declares by default: all holds on them too."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskiq_flow import ExecutionEngine, NodeFailedError
from taskiq_flow.transport.rabbitmq_broker import notifier_at
from tests.distributed import app
from tests.distributed.app import started
from tests.distributed.conftest import AT_LENGTH, HOW_TO_INSTALL, Farm
from tests.distributed.test_systems import check
from tests.distributed.watching import Notes, inputs, many, until_empty
from tests.servers.rabbitmq import RabbitServer
from tests.waiting import until

pytestmark = pytest.mark.skipif(not RabbitServer.is_available(), reason=HOW_TO_INSTALL)


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    """A server on which a message may be unacknowledged for seconds."""
    folder = tmp_path_factory.mktemp("impatient")
    server = RabbitServer(
        folder,
        consumer_timeout=2000,
        channel_tick_interval=500,
        default_queue_type="rabbit_quorum_queue",
    )
    server.start()
    yield server
    server.kill()


async def test_tasks_of_all_kinds_on_a_quorum_queue(
    farm: Farm, impatient: RabbitServer, notes: Notes, tmp_path: Path
) -> None:
    """Results and cancellation arrive; long tasks are executed once; deadly ones are lost."""
    settings = farm.settings(
        "rabbitmq", "quorum", rabbitmq=impatient.url, queue_type="quorum", park_after=0.5
    )
    (tmp_path / "deadly").mkdir()
    deaths = Notes(tmp_path / "deadly")
    with farm.workers(settings):
        async with started(settings) as broker:
            await check(broker, notes)
            long = ExecutionEngine(broker, many(broker, app.noted, 3), lost_after=30.0)
            await long.execute(inputs(notes, 3, 4.0))
            assert len(notes.of("begin")) == 2 + 3
            if not AT_LENGTH:
                return
            deadly = ExecutionEngine(broker, many(broker, app.deadly, 1), lost_after=60.0)
            with pytest.raises(NodeFailedError, match="was delivered 3 times"):
                await deadly.execute(inputs(deaths, 1, 0.0))
            assert len(deaths.of("begin")) == 3
            await until_empty(settings)


async def test_a_worker_that_reconnects_executes_as_many_at_once_as_before(
    farm: Farm, impatient: RabbitServer, notes: Notes
) -> None:
    settings = farm.settings(
        "rabbitmq", "again", rabbitmq=impatient.url, queue_type="quorum", qos=8
    )
    with farm.workers(settings, max_async_tasks=8):
        async with started(settings) as broker:
            engine = ExecutionEngine(broker, many(broker, app.noted, 8), lost_after=30.0)
            run = asyncio.ensure_future(engine.execute(inputs(notes, 8, 1.0)))
            await notes.until("begin", 8)
            await asyncio.to_thread(impatient.control, "close_all_connections", "a test")
            await run
            engine = ExecutionEngine(broker, many(broker, app.held, 24), lost_after=30.0)
            run = asyncio.ensure_future(engine.execute(inputs(notes, 24, 0.0)))
            await notes.until("begin", 8 + 8)
            notes.release()
            await run
        assert len(notes.of("begin")) == 8 + 24
        await until_empty(settings)


async def test_revocations_outlive_the_starts_of_many_workers(impatient: RabbitServer) -> None:
    """A quorum queue of RabbitMQ 4 drops what was returned to it 20 times."""
    revoked: list[str] = []
    notifier = notifier_at(impatient.url, "outlive")
    await notifier.open()
    await notifier.revoke("run")
    await notifier.aclose()
    for number in range(1, 25):
        listener = notifier_at(impatient.url, "outlive")
        await listener.open()
        await listener.subscribe_to_revocations(revoked.append)
        await until(lambda: len(revoked) == number, "it was heard of")  # noqa: B023
        await listener.aclose()
