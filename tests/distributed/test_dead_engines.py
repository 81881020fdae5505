"""Nobody waits for the tasks of an engine that is gone, so they do not stand before other tasks."""

from __future__ import annotations

import asyncio
from pathlib import Path

from taskiq_flow import ExecutionEngine
from tests.distributed import app
from tests.distributed.app import started
from tests.distributed.conftest import Farm
from tests.distributed.watching import Notes, hear_no_more, inputs, many, until_sent

COUNT = 60
SECONDS = 0.25


async def test_the_tasks_of_an_engine_that_is_gone_are_dropped(
    remote_kind: str, farm: Farm, tmp_path: Path
) -> None:
    settings = farm.settings(remote_kind, queue="dead", idle_timeout=20_000, engine_patience=1.0)
    (tmp_path / "living").mkdir()
    dead, living = Notes(tmp_path), Notes(tmp_path / "living")
    async with started(settings) as broker:
        engine = ExecutionEngine(broker, many(broker, app.noted, COUNT))
        run = asyncio.ensure_future(engine.execute(inputs(dead, COUNT, SECONDS)))
        await until_sent(engine)
        with farm.workers(settings, max_async_tasks=2):
            await dead.until("end", 4)
            await hear_no_more(broker)
            async with started(settings) as other:
                living_engine = ExecutionEngine(other, many(other, app.noted, 1))
                await living_engine.execute(inputs(living, 1, 0.0))
            assert len(dead.of("begin")) < COUNT  # which stood before it, for seven seconds
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
