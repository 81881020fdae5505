"""The local broker and its middleware are to an engine what servers and workers are."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import DAGBuilder, ExecutionEngine, PollingWarning, RunCancelledError
from taskiq_flow.testing import (
    LocalBroker,
    LocalFlowMiddleware,
    LocalNotices,
    LocalNotifier,
    LocalResults,
    run_virtually,
)


def engine_of(broker: LocalBroker, task: Any) -> ExecutionEngine:
    return ExecutionEngine(broker, DAGBuilder().node(task).build())


def pair_on(broker: LocalBroker) -> Any:
    """A task of the broker that takes a minute."""

    @broker.task(task_name="pair")
    async def pair(number: int) -> tuple[int, int]:
        await asyncio.sleep(60)
        return number, 2 * number

    return pair


def test_tasks_are_executed_inside_the_block_of_a_worker() -> None:
    async def main() -> None:
        broker = LocalBroker().with_middlewares(LocalFlowMiddleware())
        run = engine_of(broker, pair_on(broker)).start({"number": 4})
        await asyncio.sleep(30)
        assert broker.queue.qsize() == 1
        async with broker.worker():
            assert await run == {"pair": (4, 8)}
        assert asyncio.get_running_loop().time() == pytest.approx(90, abs=0.1)
        await broker.shutdown()

    run_virtually(main())


def test_sync_tasks_and_a_worker_with_few_places_run_on_the_virtual_clock() -> None:
    async def main() -> None:
        broker = LocalBroker().with_middlewares(LocalFlowMiddleware())

        @broker.task
        def count(pair: list[tuple[int, int]]) -> int:
            return len(pair)

        dag = DAGBuilder().node(pair_on(broker), map_over="number").node(count).build()
        async with broker.worker(slots=1):
            results = await ExecutionEngine(broker, dag).execute({"number": [1, 2, 3]})
        assert results["count"] == 3
        assert asyncio.get_running_loop().time() == pytest.approx(180, abs=1)
        await broker.shutdown()

    run_virtually(main())


def test_a_cancellation_reaches_the_worker() -> None:
    async def main() -> None:
        broker, ended = LocalBroker(), list[float]()
        flow = LocalFlowMiddleware()
        broker.add_middlewares(flow)

        @broker.task
        async def wait() -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                ended.append(asyncio.get_running_loop().time())

        async with broker.worker():
            run = engine_of(broker, wait).start()
            await asyncio.sleep(10)
            run.cancel()
            with pytest.raises(RunCancelledError):
                await run
        assert len(flow.notices.revoked) == 1
        assert ended[0] < 20
        await broker.shutdown()

    run_virtually(main())


def test_a_block_that_raises_is_not_kept_by_tasks_that_wait_for_it() -> None:
    async def main() -> None:
        broker, begun = LocalBroker(), asyncio.Event()

        @broker.task
        async def wait() -> None:
            begun.set()
            await asyncio.Event().wait()

        async with asyncio.timeout(60), broker.worker():
            await wait.kiq()
            await begun.wait()
            raise LookupError

    with pytest.raises(LookupError):
        run_virtually(main())


def test_a_notifier_that_is_closed_hears_nothing() -> None:
    async def main() -> None:
        notices, heard = LocalNotices(), list[object]()
        closed, other = LocalNotifier(notices), LocalNotifier(notices)
        await closed.subscribe("tides", heard.append)
        await closed.subscribe_to_revocations(heard.append)
        await closed.aclose()
        await closed.aclose()
        await other.publish("tides", b"ebb")
        await other.revoke("run")
        assert heard == []

    run_virtually(main())


def test_notices_that_are_lost_cost_time_and_no_result() -> None:
    async def main() -> None:
        notices = LocalNotices()
        notices.drops = lambda notice: True
        engines = LocalBroker()
        workers = LocalBroker(engines.results)
        workers.queue = engines.queue
        for broker in (engines, workers):
            broker.add_middlewares(LocalFlowMiddleware(notices))
            broker.register_task(lambda: (4, 8), task_name="pair")
        async with workers.worker():
            task = engines.find_task("pair")
            assert await engine_of(engines, task).execute() == {"pair": (4, 8)}
        assert notices.published
        await engines.shutdown()
        await workers.shutdown()

    run_virtually(main())


def test_results_that_cannot_be_read_for_a_while_are_read_later() -> None:
    async def main() -> None:
        broker = LocalBroker(LocalResults(keep_results=False))
        broker.results.failures_to_come = 3
        async with broker.worker():
            with pytest.warns(PollingWarning):
                results = await engine_of(broker, pair_on(broker)).execute({"number": 4})
        assert results == {"pair": (4, 8)}
        assert broker.results.stored == {}

    run_virtually(main())


async def test_the_middleware_is_for_any_broker_and_refuses_wrong_options() -> None:
    InMemoryBroker().add_middlewares(LocalFlowMiddleware())
    with pytest.raises(ValueError, match="inline_limit is -1"):
        LocalFlowMiddleware(inline_limit=-1)
