"""A run id is a name. A run is never given what an earlier run of the same name has left."""

from __future__ import annotations

import asyncio
import re
import threading

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import DAGBuilder, ExecutionEngine, FlowMiddleware, RunCancelledError
from taskiq_flow.completion.safety_net import SILENCE
from taskiq_flow.testing import LocalBroker, LocalNotices
from tests.local_flow import with_flow
from tests.virtual_clock import virtually
from tests.waiting import until


async def ids_of_tasks(run_id: str | None, broker: InMemoryBroker) -> list[str]:
    seen: list[str] = []

    class Listener:
        def on_event(self, event: object) -> None:
            if (task_id := getattr(event, "task_id", None)) is not None:
                seen.append(task_id)

    engine = ExecutionEngine(
        broker, DAGBuilder().node(lambda: 1, name="one").build(), listeners=[Listener()]
    )
    await engine.execute(run_id=run_id)
    return seen


async def test_ids_of_tasks_differ_between_runs_of_one_name(broker: InMemoryBroker) -> None:
    ids = [(await ids_of_tasks("nightly", broker))[0] for _ in range(3)]
    assert len(set(ids)) == 3
    assert all(re.fullmatch(r"nightly:one:1\.[0-9a-f]{8}", task_id) for task_id in ids)


async def test_a_run_that_the_engine_has_named_needs_no_more(broker: InMemoryBroker) -> None:
    (task_id, *_) = await ids_of_tasks(None, broker)
    assert re.fullmatch(r"[0-9a-f]{16}:one:1", task_id)


async def test_a_thread_of_an_earlier_run_of_the_same_name_is_not_heard(
    broker: InMemoryBroker,
) -> None:
    first_may_end, second_may_end = threading.Event(), threading.Event()
    first_has_begun, first_has_ended = threading.Event(), threading.Event()

    def work(number: int) -> int:
        first_has_begun.set()
        (first_may_end if number == 1 else second_may_end).wait(10.0)
        if number == 1:
            first_has_ended.set()
        return number

    engine = ExecutionEngine(broker, DAGBuilder().node(work).build())
    first = asyncio.ensure_future(engine.execute({"number": 1}, run_id="nightly"))
    await until(first_has_begun.is_set, "the thread is there")
    engine.cancel()
    with pytest.raises(RunCancelledError):
        await first
    second = asyncio.ensure_future(engine.execute({"number": 2}, run_id="nightly"))
    await asyncio.sleep(0)
    first_may_end.set()
    await asyncio.to_thread(first_has_ended.wait, 10.0)
    second_may_end.set()
    assert await second == {"work": 2}


@virtually
async def test_a_result_of_an_earlier_run_of_the_same_name_is_not_taken() -> None:
    """The task waits in the queue for so long that the result backend is asked for its result."""
    broker, board = LocalBroker(), LocalNotices()
    flow = with_flow(broker, board)

    @broker.task
    async def number(value: int) -> int:
        return value

    engine = ExecutionEngine(broker, DAGBuilder().node(number).build())
    async with broker.worker():
        board.drops = lambda _: True
        assert await engine.execute({"value": 1}, run_id="nightly") == {"number": 1}
    await flow.shutdown()
    run = asyncio.ensure_future(engine.execute({"value": 2}, run_id="nightly"))
    await asyncio.sleep(5 * SILENCE)
    assert not run.done()
    async with broker.worker():
        assert await run == {"number": 2}
    await flow.shutdown()


def test_the_middleware_of_one_broker_is_refused_by_another() -> None:
    flow = FlowMiddleware("redis://localhost")
    LocalBroker().add_middlewares(flow)
    with pytest.raises(Exception, match="belongs to a LocalBroker already; give the LocalBroker"):
        LocalBroker().add_middlewares(flow)
