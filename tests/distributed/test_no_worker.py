"""Over each system: an engine without a worker says so, and one whose workers are busy does not."""

from __future__ import annotations

import asyncio

import pytest

from taskiq_flow import DAGBuilder, ExecutionEngine
from tests.distributed.app import Settings, started
from tests.distributed.conftest import Farm
from tests.distributed.watching import until_sent
from tests.waiting import until

NO_WORKER = "no worker was heard of for 5 s"


def own(farm: Farm, kind: str, name: str) -> Settings:
    """Settings that no workers of other tests share."""
    return farm.settings(kind, queue=name, prefix=name)


def nap_of(broker: object) -> ExecutionEngine:
    dag = DAGBuilder().node(broker.find_task("nap")).build()  # type: ignore[attr-defined]
    return ExecutionEngine(broker, dag)  # type: ignore[arg-type]


async def test_an_engine_without_any_worker_says_so_and_goes_on_when_one_comes(
    remote_kind: str, farm: Farm, caplog: pytest.LogCaptureFixture
) -> None:
    settings = own(farm, remote_kind, "unserved")
    loop = asyncio.get_running_loop()
    async with started(settings) as broker:
        begun = loop.time()
        run = asyncio.ensure_future(nap_of(broker).execute({"seconds": 0.0}))
        await until(lambda: NO_WORKER in caplog.text, "the engine says so")
        assert loop.time() - begun > 4.5
        assert "1 task waits in queue 'unserved-" in caplog.text
        with farm.workers(settings):
            assert await run == {"nap": 0.0}


async def test_an_engine_whose_only_worker_is_busy_is_not_told_that_there_is_none(
    remote_kind: str, farm: Farm, caplog: pytest.LogCaptureFixture
) -> None:
    settings = own(farm, remote_kind, "busy")
    with farm.workers(settings, max_async_tasks=1):
        async with started(settings) as first, started(settings) as second:
            engine = nap_of(first)
            long = asyncio.ensure_future(engine.execute({"seconds": 8.0}))
            await until_sent(engine)  # it is the earlier one in the queue
            assert await nap_of(second).execute({"seconds": 0.1}) == {"nap": 0.1}
            assert await long == {"nap": 8.0}
    assert NO_WORKER not in caplog.text
