"""Workers with one place, where the server of results is slow to take them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from taskiq_flow import ExecutionEngine, RunCancelledError
from tests.distributed import app
from tests.distributed.app import started
from tests.distributed.conftest import NEEDS_RABBITMQ, Farm
from tests.distributed.watching import Notes, inputs, many, until_empty, until_sent
from tests.servers.process import Process
from tests.servers.server import Server

TASKS = 4
TOOK = 0.3


@contextmanager
def suspended(server: Server) -> Iterator[None]:
    """A server is suspended while the block runs."""
    server.suspend()
    try:
        yield
    finally:
        server.resume()


async def begin_to_stop(worker: Process) -> None:
    """Tell a worker to stop, and return when it takes no more messages."""
    os.kill(worker.pid, signal.SIGTERM)
    stops = "Stopping prefetching"
    await asyncio.to_thread(
        worker.wait_until, lambda: stops in worker.log_since_start(), "the worker stops", 30.0
    )


@pytest.mark.parametrize("kind", [NEEDS_RABBITMQ])  # its workers fetch ahead, whatever tasks take
@pytest.mark.parametrize("stops", [False, True], ids=["goes-on", "stops"])
async def test_a_place_is_free_while_a_result_is_saved_and_no_result_is_lost(
    kind: str, stops: bool, farm: Farm, notes: Notes
) -> None:
    settings = farm.settings(kind, queue=f"places-{stops}", idle_timeout=60_000)
    first = farm.workers(settings, max_async_tasks=1)
    second = farm.workers(settings, folder=farm.folder / "second")
    with first:
        async with started(settings) as broker:
            engine = ExecutionEngine(broker, many(broker, app.noted, TASKS), lost_after=20.0)
            run = asyncio.ensure_future(engine.execute(inputs(notes, TASKS, TOOK)))
            await notes.until("begin", 1)
            with suspended(farm.redis):  # which takes the results
                await notes.until("end", 2)  # of the second one, the result waits in its place
                if stops:
                    await begin_to_stop(first.process)
            if stops:
                second.start()
            try:
                assert len(await run) == TASKS
            finally:
                second.kill()
        assert Counter(notes.of("begin")) == Counter(notes.of("end"))
        assert set(Counter(notes.of("begin")).values()) == {1}
        await until_empty(settings)


@pytest.mark.parametrize("kind", [NEEDS_RABBITMQ])
async def test_a_worker_that_stops_waits_for_a_result_in_whose_place_no_task_is(
    kind: str, farm: Farm, notes: Notes
) -> None:
    settings = farm.settings(kind, queue="emptied", idle_timeout=60_000)
    workers = farm.workers(settings, max_async_tasks=1)
    with workers:
        async with started(settings) as broker:
            first = ExecutionEngine(broker, many(broker, app.noted, 1), lost_after=20.0)
            run = asyncio.ensure_future(first.execute(inputs(notes, 1, 1.0)))
            await notes.until("begin", 1)
            second = ExecutionEngine(broker, many(broker, app.noted, 1))
            other = asyncio.ensure_future(second.execute(inputs(notes, 1, 60.0)))
            await until_sent(second)
            with suspended(farm.redis):
                await notes.until("begin", 2)
                second.cancel()
                with pytest.raises(RunCancelledError):
                    await other
                await notes.until("cancel", 1)
                await begin_to_stop(workers.process)
            assert len(await run) == 1
        assert notes.of("begin") == ["n0", "n0"]
        await until_empty(settings)
