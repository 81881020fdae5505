"""A run that its user holds, on workers in other processes: what becomes of its tasks there."""

from __future__ import annotations

import asyncio
import gc

import pytest
from taskiq import AsyncBroker

from taskiq_flow import DAGBuilder, ExecutionEngine, NodeStarted, RunCancelledError, RunFinished
from taskiq_flow.engine import run_handle
from tests.distributed import app
from tests.distributed.app import task
from tests.distributed.watching import Notes, inputs, many
from tests.waiting import until

LONG = 60.0


def named(notes: Notes, name: str, seconds: float) -> dict[str, object]:
    return {**inputs(notes, 1, seconds), "name 0": name}


async def test_cancelling_one_of_two_runs_of_an_engine_ends_its_tasks_alone(
    remote: AsyncBroker, notes: Notes
) -> None:
    engine = ExecutionEngine(remote, many(remote, app.noted, 1))
    one, other = engine.start(named(notes, "one", LONG)), engine.start(named(notes, "other", 0.5))
    await notes.until("begin", 2)
    one.cancel()
    with pytest.raises(RunCancelledError):
        await one
    await notes.until("cancel", 1)
    assert notes.of("cancel") == ["one"]
    assert await other == {"n0": "other"}
    assert notes.of("end") == ["other"]


async def test_a_block_that_an_exception_leaves_ends_what_runs_on_workers(
    remote: AsyncBroker, notes: Notes
) -> None:
    engine = ExecutionEngine(remote, many(remote, app.noted, 3))
    with pytest.raises(KeyError):
        async with engine.start(inputs(notes, 3, LONG)):
            await notes.until("begin", 3)
            raise KeyError
    await notes.until("cancel", 3)


async def test_a_run_that_nobody_holds_goes_on_to_its_end_on_workers(
    remote: AsyncBroker, notes: Notes
) -> None:
    ExecutionEngine(remote, many(remote, app.noted, 2)).start(inputs(notes, 2, 0.2))
    await notes.until("begin", 2)
    gc.collect()
    await notes.until("end", 2)
    await until(lambda: not run_handle._running, "the run has ended")
    assert not notes.of("cancel")


async def test_it_is_read_awaited_and_watched_at_the_same_time(remote: AsyncBroker) -> None:
    double = task(remote, app.double)
    dag = (
        DAGBuilder()
        .node(double, name="two")
        .node(double, name="four", inputs={"item": "two"})
        .build()
    )
    run = ExecutionEngine(remote, dag).start({"item": 1})
    events = run.events()
    waiting = asyncio.ensure_future(run.wait_result(timeout=20))
    assert [pair async for pair in run] == [("two", 2), ("four", 4)]
    assert (await waiting).return_value == await run == {"two": 2, "four": 4}
    told = [event async for event in events]
    assert [event.task_name for event in told if isinstance(event, NodeStarted)] == ["two", "four"]
    assert isinstance(told[-1], RunFinished)
