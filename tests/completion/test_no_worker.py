"""An engine that hears of no worker says so; one whose worker is only slow does not."""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType

import pytest

from taskiq_flow import DAGBuilder, ExecutionEngine, NodeFailedError, TaskLostError
from taskiq_flow.testing import LocalBroker, LocalNotices
from tests.local_flow import with_flow
from tests.virtual_clock import virtually


@virtually
async def test_an_engine_that_hears_of_no_worker_says_so_after_five_seconds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = LocalBroker()
    flow = with_flow(broker, LocalNotices())

    @broker.task
    async def work() -> int:
        return 1

    run = asyncio.ensure_future(
        ExecutionEngine(broker, DAGBuilder().node(work).build()).execute(run_id="r")
    )
    await asyncio.sleep(4.5)
    assert caplog.text == ""
    await asyncio.sleep(1.5)
    assert "no worker was heard of for 5 s, and 1 task waits, of which 'r:work:1" in caplog.text
    assert "start one, as with 'taskiq worker " in caplog.text
    await asyncio.sleep(30)
    assert len(caplog.records) == 1
    async with broker.worker(1):
        assert await run == {"work": 1}
    await flow.shutdown()


@pytest.mark.parametrize(
    ("having_broker", "having_tasks", "said"),
    [
        (["__main__", "shop.broker", "shop.tasks"], ["shop.tasks"], "shop.tasks:broker"),
        (["__main__", "shop.broker"], ["shop.tasks"], "shop.broker:broker shop.tasks"),
        (["shop.tasks", "shop.more"], ["shop.more", "shop.tasks"], "shop.tasks:broker shop.more"),
        (["__main__"], ["__main__"], "nightly:broker"),
        (["__main__", "shop.broker"], ["__main__"], "shop.broker:broker nightly"),
        (["shop.tasks"], ["shop.tasks", "taskiq_flow.pipelines.base"], "shop.tasks:broker"),
        ([], ["shop.tasks"], "module:broker"),
    ],
)
@virtually
async def test_the_command_that_starts_a_worker_imports_the_tasks_and_not_the_script(
    having_broker: list[str],
    having_tasks: list[str],
    said: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broker = LocalBroker()
    flow = with_flow(broker, LocalNotices())
    for name in ["__main__", "shop.broker", "shop.tasks", "shop.more"]:
        module = ModuleType(name)
        module.__file__ = "/srv/shop/nightly.py"
        if name in having_broker:
            module.broker = broker  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
    tasks = []
    for name in having_tasks:

        def work() -> int:
            return 1

        work.__module__ = name
        tasks.append(broker.register_task(work, task_name=f"work of {name}"))
    run = asyncio.ensure_future(
        ExecutionEngine(broker, DAGBuilder().node(tasks[0]).build()).execute()
    )
    await asyncio.sleep(6)
    assert f"start one, as with 'taskiq worker {said}', and" in caplog.text
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)
    await flow.shutdown()


@pytest.mark.parametrize("other", ["idle", "slow"])
@virtually
async def test_an_engine_that_hears_of_a_worker_says_nothing_about_workers(
    other: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker has another queue, or all of its places are taken by tasks of another engine."""
    board = LocalNotices()
    broker, working = LocalBroker(), LocalBroker()
    flow, flow_of_worker = with_flow(broker, board), with_flow(working, board)

    @broker.task
    async def work() -> int:
        return 1

    @working.task
    async def slow() -> int:
        await asyncio.sleep(60)
        return 1

    run = asyncio.ensure_future(ExecutionEngine(broker, DAGBuilder().node(work).build()).execute())
    async with working.worker(1):
        if other == "slow":
            await slow.kiq()
        else:
            await flow_of_worker._worker.get()  # as at the startup of a worker process
        await asyncio.sleep(8)
        assert caplog.text == ""
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)
    await flow_of_worker.shutdown()
    await flow.shutdown()


@virtually
async def test_an_engine_listens_for_workers_once_the_server_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    board, broker = LocalNotices(), LocalBroker()
    flow = with_flow(broker, board)

    @broker.task
    async def work() -> int:
        return 1

    run = asyncio.ensure_future(ExecutionEngine(broker, DAGBuilder().node(work).build()).execute())
    await asyncio.sleep(0.1)
    board.is_up = False
    await asyncio.sleep(20)
    assert caplog.text == ""
    board.is_up = True
    await asyncio.sleep(20)
    assert caplog.text.count("no worker was heard of for 5 s, and 1 task waits") == 1
    assert "Traceback" not in caplog.text
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)
    await flow.shutdown()


@virtually
async def test_an_engine_that_may_not_listen_for_workers_knows_which_tasks_are_lost(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = LocalBroker()
    flow = with_flow(broker, LocalNotices())
    inbox = await flow.inbox()

    async def refused(channel: str, hear: object) -> None:
        raise PermissionError(channel)

    monkeypatch.setattr(inbox.notifier, "subscribe", refused)

    @broker.task
    async def work() -> int:
        return 1

    engine = ExecutionEngine(broker, DAGBuilder().node(work).build(), lost_after=20.0)
    with pytest.raises(NodeFailedError) as caught:
        await engine.execute()
    assert isinstance(caught.value.__cause__, TaskLostError)
    assert [record.message.partition(": ")[0] for record in caplog.records] == [
        "it is not known whether there are workers"
    ]
    await flow.shutdown()


@virtually
async def test_workers_without_the_middleware_are_told_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = LocalBroker()
    board = LocalNotices()
    board.drops = lambda _: True  # as they send no notices
    flow = with_flow(broker, board)

    @broker.task
    async def work() -> int:
        await asyncio.sleep(8)
        return 1

    async with broker.worker(1):
        engine = ExecutionEngine(broker, DAGBuilder().node(work).build())
        assert await engine.execute() == {"work": 1}
    assert caplog.text.count("no worker was heard of for 5 s") == 1
    assert "give their broker a FlowMiddleware" in caplog.text
    await flow.shutdown()
