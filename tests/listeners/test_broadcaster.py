"""Hooks that are told of what is tracked: all of it, in order, and each event once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAGBuilder,
    ExecutionEngine,
    HookManager,
    Listener,
    MemoryJournal,
    NodeFailedError,
    Pipeline,
    PipelineTrackingManager,
    TrackingEventBroadcaster,
)
from tests.listeners.test_hooks import Log

WHOLE = [
    ("pipeline_start",),
    ("step_start", "abs"),
    ("step_complete", "abs"),
    ("step_start", "hex"),
    ("step_complete", "hex"),
    ("pipeline_complete",),
]


async def run(*listeners: Listener, pipeline_id: str = "nightly") -> None:
    pipeline = Pipeline(InMemoryBroker(), pipeline_id=pipeline_id).call_next(abs).call_next(hex)
    for listener in listeners:
        pipeline.with_hooks(listener)
    await (await pipeline.kiq(-7))


async def test_hooks_are_told_of_a_pipeline_that_is_only_tracked() -> None:
    tracking, log = PipelineTrackingManager(), Log()
    TrackingEventBroadcaster(tracking, HookManager().add_hook(log))
    pipeline = Pipeline(InMemoryBroker(), pipeline_id="nightly").with_tracking(tracking)
    await (await pipeline.call_next(abs).call_next(hex).kiq(-7))
    assert log.told == WHOLE
    assert {event.pipeline_id for event in log.events} == {"nightly"}
    assert (log.events[-1].result, log.events[0].pipeline_type) == ("0x7", "sequential")
    status = await tracking.get_status("nightly")
    assert status is not None
    assert status.status == "COMPLETED"


@pytest.mark.parametrize("is_first", [True, False], ids=["hooks first", "tracking first"])
async def test_each_event_is_told_once_if_both_listen(is_first: bool) -> None:
    tracking, others, log = PipelineTrackingManager(), PipelineTrackingManager(), Log()
    hooks = HookManager().add_hook(log)
    TrackingEventBroadcaster(tracking, hooks)
    TrackingEventBroadcaster(tracking, hooks)
    TrackingEventBroadcaster(others, hooks)
    both = (hooks, tracking, others) if is_first else (others, tracking, hooks)
    await run(*both)
    await run(*both)  # under the same id
    await run(tracking)
    await run(hooks)
    assert log.told == 4 * WHOLE


async def test_a_slow_hook_is_told_in_order_if_both_listen() -> None:
    class Slow(Log):
        async def on_step_start(self, event: Any) -> None:  # type: ignore[override]
            await asyncio.sleep(0.01)
            self.events.append(event)

    tracking, log = PipelineTrackingManager(), Slow()
    hooks = HookManager().add_hook(log)
    TrackingEventBroadcaster(tracking, hooks)
    await run(tracking, hooks)
    assert log.told == WHOLE


async def test_a_run_that_is_resumed_is_told_once_as_well() -> None:
    tracking, log = PipelineTrackingManager(), Log()
    hooks = HookManager().add_hook(log)
    TrackingEventBroadcaster(tracking, hooks)
    is_broken = True

    def load(number: int) -> int:
        if is_broken:
            raise ValueError(number)
        return number

    dag = DAGBuilder().node(load, inputs=["number"]).build()
    engine = ExecutionEngine(
        InMemoryBroker(), dag, journal=MemoryJournal(), listeners=[tracking, hooks]
    )
    with pytest.raises(NodeFailedError):
        await engine.execute({"number": 1}, run_id="r1")
    is_broken = False
    async for _ in engine.resume("r1"):
        pass
    step = ("step_start", "load")
    assert log.told == [
        *[("pipeline_start",), step, ("step_error", "load"), ("pipeline_error",)],
        *[("pipeline_start",), step, ("step_complete", "load"), ("pipeline_complete",)],
    ]


async def test_it_can_be_closed() -> None:
    tracking, log = PipelineTrackingManager(), Log()
    broadcaster = TrackingEventBroadcaster(tracking, HookManager().add_hook(log))
    broadcaster.close()
    broadcaster.close()
    await run(tracking)
    assert log.told == []


async def test_runs_that_were_in_progress_are_not_told_twice() -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def wait(number: int) -> None:
        begun.set()
        await may_end.wait()

    tracking, log = PipelineTrackingManager(), Log()
    hooks = HookManager().add_hook(log)
    dag = DAGBuilder().node(wait, inputs=["number"]).build()
    handle = ExecutionEngine(InMemoryBroker(), dag, listeners=[hooks, tracking]).start(
        {"number": 1}
    )
    await begun.wait()
    TrackingEventBroadcaster(tracking, hooks)
    may_end.set()
    await handle
    assert len(log.events) == 4


def test_wrong_arguments_are_refused() -> None:
    tracking, hooks = PipelineTrackingManager(), HookManager()
    with pytest.raises(TypeError, match="give a PipelineTrackingManager"):
        TrackingEventBroadcaster(hooks, hooks)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="give a HookManager"):
        TrackingEventBroadcaster(tracking, tracking)  # type: ignore[arg-type]
