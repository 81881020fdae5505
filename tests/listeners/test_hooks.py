"""Hooks: which callbacks are called, when, with what, and what one of them may not do to others."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from datetime import UTC, datetime
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAG,
    Cache,
    ConfigurationError,
    DAGBuilder,
    EventFilter,
    ExecutionEngine,
    HookManager,
    NodeFailedError,
    Retry,
)
from taskiq_flow.listeners.hook_events import EVENT_TYPES
from tests.virtual_clock import virtually


class Log:
    """A hook that keeps all events."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def _keep(self, event: Any) -> None:
        self.events.append(event)

    on_pipeline_start = on_step_start = on_step_complete = _keep
    on_step_error = on_pipeline_complete = on_pipeline_error = _keep

    @property
    def told(self) -> list[tuple[str, ...]]:
        """The type of each event, and the step that it is about."""
        return [(e.type, *([e.step_name] if "step" in e.type else [])) for e in self.events]

    def of(self, kind: str) -> Any:
        """The one event of a type."""
        (event,) = [event for event in self.events if event.type == kind]
        return event


async def run(dag: DAG, hooks: HookManager, inputs: Any = None, run_id: str = "nightly") -> Any:
    engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[hooks])
    return await engine.execute(inputs, run_id=run_id)


def two_steps() -> DAG:
    async def load() -> int:
        await asyncio.sleep(2.0)
        return 7

    async def double(load: int) -> int:
        await asyncio.sleep(1.0)
        return 2 * load

    return DAGBuilder().node(load).node(double).build()


@virtually
async def test_a_run_that_succeeds_is_told_from_start_to_end() -> None:
    log = Log()
    before = time.time()
    await run(two_steps(), HookManager().add_hook(log))
    assert log.told == [
        ("pipeline_start",),
        ("step_start", "load"),
        ("step_complete", "load"),
        ("step_start", "double"),
        ("step_complete", "double"),
        ("pipeline_complete",),
    ]
    assert {event.pipeline_id for event in log.events} == {"nightly"}
    start, end = log.events[0], log.events[-1]
    assert datetime.fromtimestamp(before, UTC) <= start.timestamp
    assert start.timestamp <= datetime.fromtimestamp(before + 60, UTC)
    seconds = [(event.timestamp - start.timestamp).total_seconds() for event in log.events]
    assert seconds == pytest.approx([0.0, 0.0, 2.0, 2.0, 3.0, 3.0], abs=0.01)
    complete = [event for event in log.events if event.type == "step_complete"]
    assert [event.duration_ms for event in complete] == pytest.approx([2000, 1000], abs=10)
    assert [event.step_index for event in complete] == [0, 1]
    assert complete[0].task_id.startswith("nightly:load:1")
    assert (end.status, end.result) == ("COMPLETED", 14)
    assert end.duration_ms == pytest.approx(3000, abs=10)


async def test_the_start_of_a_step_is_told_before_it_ends() -> None:
    has_started = asyncio.Event()

    class Hook:
        def on_step_start(self, event: object) -> None:
            has_started.set()

    async def waits() -> None:
        await has_started.wait()

    await run(DAGBuilder().node(waits).build(), HookManager().add_hook(Hook()))


async def test_a_run_that_fails_is_told_with_its_error() -> None:
    def fail() -> None:
        raise LookupError("no such page")

    log = Log()
    with pytest.raises(NodeFailedError) as caught:
        await run(
            DAGBuilder().node(fail, retry=Retry(2, wait=0.0)).build(), HookManager().add_hook(log)
        )
    assert log.told == [
        ("pipeline_start",),
        ("step_start", "fail"),
        ("step_error", "fail"),
        ("pipeline_error",),
    ]
    assert isinstance(log.of("step_error").error, LookupError)
    assert log.of("pipeline_error").error is caught.value


async def test_a_run_that_is_cancelled_is_told_as_such() -> None:
    log = Log()

    async def hang() -> None:
        await asyncio.Event().wait()

    class Cancelling:
        async def on_step_start(self, event: object) -> None:
            engine.cancel()

    hooks = HookManager().add_hook(log).add_hook(Cancelling())
    engine = ExecutionEngine(InMemoryBroker(), DAGBuilder().node(hang).build(), listeners=[hooks])
    with pytest.raises(Exception, match="was cancelled"):
        await engine.execute()
    assert (log.of("pipeline_complete").status, log.of("pipeline_complete").result) == (
        "CANCELLED",
        None,
    )


async def test_elements_are_steps_and_each_step_that_ends_has_started() -> None:
    log = Log()
    dag = (
        DAGBuilder()
        .node(abs, inputs=["xs"], map_over="xs")
        .node(sum, inputs=["abs"], cache=Cache())
        .build()
    )
    hooks = HookManager().add_hook(log)
    engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[hooks])
    for _ in range(2):  # the second time, the sum is cached
        log.events.clear()
        await engine.execute({"xs": [-1, 2]})
    started = [event for event in log.events if event.type == "step_start"]
    ended = [event for event in log.events if event.type == "step_complete"]
    assert [(e.step_name, e.step_index) for e in started] == [
        ("abs[0]", 0),
        ("abs[1]", 0),
        ("sum", 1),
    ]
    assert {(e.step_name, e.result) for e in ended} == {("abs[0]", 1), ("abs[1]", 2), ("sum", 3)}
    assert log.of("pipeline_complete").result == 3


async def test_a_filter_tells_the_elements_that_it_keeps_and_which_it_leaves_out() -> None:
    log = Log()

    def is_big(number: int | None) -> bool:
        return number is None or number > 1

    dag = DAGBuilder().node(is_big, inputs=["numbers"], map_over="numbers", filter=True).build()
    await run(dag, HookManager().add_hook(log), {"numbers": [1, 2, None]})
    ends = [event for event in log.events if event.type == "step_complete"]
    told = [
        (event.step_name, event.result, event.is_left_out)
        for event in sorted(ends, key=lambda event: event.step_name)
        if "[" in event.step_name
    ]
    assert told == [
        ("is_big[0]", None, True),
        ("is_big[1]", 2, False),
        ("is_big[2]", None, False),
    ]


async def test_the_filter_of_a_hook_silences_no_other() -> None:
    one, other = Log(), Log()
    hooks = HookManager().add_hook(one, EventFilter(event_types=["pipeline_complete"]))
    await run(DAGBuilder().node(list, inputs=[]).build(), hooks.add_hook(other))
    assert one.told == [("pipeline_complete",)]
    assert len(other.told) == 4


async def test_a_filter_of_the_manager_is_one_for_all_hooks() -> None:
    log, dag = Log(), DAGBuilder().node(list, inputs=[]).build()
    hooks = HookManager().add_hook(log).add_filter(EventFilter(pipeline_ids=["nightly"]))
    hooks.add_filter(EventFilter(event_types=["pipeline_start"]))
    await run(dag, hooks, run_id="hourly")
    assert log.told == []
    await run(dag, hooks, run_id="nightly")
    assert log.told == [("pipeline_start",)]


async def test_a_callback_that_raises_is_logged_and_the_others_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Raising:
        def on_step_start(self, event: object) -> None:
            raise RuntimeError("broken")

        async def on_step_complete(self, event: object) -> None:
            await asyncio.sleep(0)
            raise RuntimeError("broken as well")

        def on_pipeline_complete(self, event: object) -> None:
            raised.append(True)

    log, raised = Log(), list[bool]()
    hooks = HookManager().add_hook(Raising()).add_hook(log)
    await run(DAGBuilder().node(list, inputs=[]).build(), hooks)
    errors = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert errors == ["broken", "broken as well"]
    assert len(log.told) == 4
    assert raised == [True]  # it is not dropped either


@virtually
async def test_async_callbacks_of_one_event_wait_side_by_side_and_in_order() -> None:
    order: list[str] = []

    class Slow:
        def __init__(self, name: str) -> None:
            self.name = name

        async def on_step_start(self, event: Any) -> None:
            await asyncio.sleep(1.0)
            order.append(f"{self.name} {event.step_name}")

        async def on_step_complete(self, event: Any) -> None:
            order.append(f"{self.name} end")

    async def step() -> None: ...

    hooks = HookManager().add_hook(Slow("a")).add_hook(Slow("b"))
    begin = asyncio.get_running_loop().time()
    await run(DAGBuilder().node(step).build(), hooks)
    assert order == ["a step", "b step", "a end", "b end"]
    assert asyncio.get_running_loop().time() - begin == pytest.approx(1.0, abs=0.1)


async def test_what_is_removed_is_neither_called_nor_kept_alive() -> None:
    class Hook:
        def on_step_start(self, event: object) -> None:
            called.append(event)

    called: list[object] = []
    hooks, hook = HookManager(), Hook()
    hooks.add_hook(hook)
    dag = DAGBuilder().node(list, inputs=[]).build()
    await run(dag, hooks)
    gone = weakref.ref(hook)
    hooks.remove_hook(hook)
    del hook
    gc.collect()
    assert gone() is None
    await run(dag, hooks)
    assert len(called) == 1


async def test_nothing_is_kept_of_runs_that_have_ended() -> None:
    hooks = HookManager().add_hook(Log())
    await run(two_steps_at_once(), hooks)
    assert hooks._runs == {}


def two_steps_at_once() -> DAG:
    return DAGBuilder().node(list, inputs=[]).node(tuple, inputs=[]).build()


async def test_the_result_of_several_last_steps_is_a_dict() -> None:
    log = Log()
    await run(two_steps_at_once(), HookManager().add_hook(log))
    assert log.of("pipeline_complete").result == {"list": [], "tuple": ()}


def test_what_could_never_be_called_is_refused() -> None:
    class Misspelt:
        def on_step_begin(self) -> None: ...

    with pytest.raises(ConfigurationError, match="give it one of on_pipeline_start"):
        HookManager().add_hook(Misspelt())
    with pytest.raises(ConfigurationError, match="'step_begin', which no event has"):
        EventFilter(event_types=["step_begin"])
    with pytest.raises(ConfigurationError, match=r"write pipeline_ids=\['nightly'\]"):
        EventFilter(pipeline_ids="nightly")
    assert EventFilter(event_types=EVENT_TYPES)
