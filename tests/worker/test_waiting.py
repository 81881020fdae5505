"""Tasks that wait for tasks, and runs whose tasks nobody takes, are warned of."""

from __future__ import annotations

import asyncio

import pytest

from taskiq_flow import DAGBuilder, ExecutionEngine
from taskiq_flow.completion.queue_warnings import UNTAKEN
from taskiq_flow.testing import LocalBroker, LocalNotices
from tests.local_flow import with_flow
from tests.virtual_clock import virtually


@pytest.mark.parametrize("slots", [1, 2])
@virtually
async def test_a_task_that_waits_for_tasks_in_a_full_pool_is_warned_of(
    slots: int, caplog: pytest.LogCaptureFixture
) -> None:
    broker = LocalBroker()
    flow = with_flow(broker, LocalNotices())

    @broker.task(task_name="inner")
    async def inner() -> int:
        return 1

    @broker.task(task_name="outer")
    async def outer() -> int:
        results = await ExecutionEngine(broker, DAGBuilder().node(inner).build()).execute()
        return int(results["inner"])

    engine = ExecutionEngine(broker, DAGBuilder().node(outer).build())
    run = asyncio.ensure_future(engine.execute())
    async with broker.worker(slots):
        if slots > 1:
            assert await run == {"outer": 1}
            await asyncio.sleep(2 * UNTAKEN)
            assert caplog.text == ""
        else:
            await asyncio.sleep(2 * UNTAKEN)
            assert caplog.text.count("no worker has reported any of 1 tasks for 10 s") == 1
            assert caplog.text.count(":outer:1' waits for them and holds a place") == 1
            assert caplog.text.count(":outer:1' runs a graph, and no worker takes") == 1
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)
    await flow.shutdown()


@virtually
async def test_a_run_whose_tasks_no_worker_takes_is_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = LocalBroker()
    flow = with_flow(broker, LocalNotices())

    @broker.task
    async def work() -> int:
        await asyncio.sleep(30)
        return 1

    builder = DAGBuilder().node(work, name="a").node(work, name="b")
    run = asyncio.ensure_future(ExecutionEngine(broker, builder.build()).execute())
    await asyncio.sleep(4 * UNTAKEN)
    assert caplog.text.count("2 tasks wait") == 1
    assert "no worker has reported" not in caplog.text
    assert "holds a place" not in caplog.text
    async with broker.worker(1):  # b waits for its turn, which is no reason to warn
        assert await run == {"a": 1, "b": 1}
    assert len(caplog.records) == 1
    await flow.shutdown()
