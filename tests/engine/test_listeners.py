"""Listeners: told everything in order, waited for within bounds, and never able to break a run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAG,
    DAGBuilder,
    ExecutionEngine,
    NodeCompleted,
    NodeFailed,
    NodeSkipped,
    NodeStarted,
    RunFailedError,
    RunFinished,
    RunStarted,
)
from taskiq_flow.engine import listeners
from taskiq_flow.engine.listeners import CATCHING_UP, LISTENER_GRACE
from tests.recording import Recorder
from tests.virtual_clock import start_tasks_later, virtually

pytestmark = pytest.mark.usefixtures("plain_task_ids")


class SlowRecorder(Recorder):
    async def on_event(self, event: Any) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        self.events.append(event)


def chain() -> DAG:
    return DAGBuilder().node(lambda: [1], name="a").node(lambda a: a, name="b").build()


async def test_every_event_comes_once_and_in_order_to_sync_and_async_listeners(
    broker: InMemoryBroker,
) -> None:
    recorders = [Recorder(), SlowRecorder()]
    await ExecutionEngine(broker, chain(), listeners=recorders).execute(run_id="r")
    for recorder in recorders:
        assert [(type(e), getattr(e, "task_name", None)) for e in recorder.events] == [
            (RunStarted, None),
            (NodeStarted, "a"),
            (NodeCompleted, "a"),
            (NodeStarted, "b"),
            (NodeCompleted, "b"),
            (RunFinished, None),
        ]
        started, a_started, a_completed, *_, finished = recorder.events
        assert started == RunStarted("r", started.at, ("a", "b"))
        assert a_started == NodeStarted("r", a_started.at, "a", "r:a:1")
        assert a_completed == NodeCompleted("r", a_completed.at, "a", "r:a:1", [1])
        assert finished == RunFinished("r", finished.at, "completed", None)
        times = [event.at for event in recorder.events]
        assert times == sorted(times)


async def test_failures_and_skips_are_told(broker: InMemoryBroker) -> None:
    dag = DAGBuilder().node(lambda: 1 // 0, name="bad").node(lambda bad: 1, name="behind").build()
    recorder = Recorder()
    engine = ExecutionEngine(broker, dag, on_error="continue", listeners=[recorder])
    with pytest.raises(RunFailedError) as caught:
        await engine.execute(run_id="r")
    failed, skipped, finished = recorder.events[2:]
    assert failed == NodeFailed("r", failed.at, "bad", "r:bad:1", failed.error, 1)
    assert isinstance(failed.error, ZeroDivisionError)
    assert skipped == NodeSkipped("r", skipped.at, "behind", ("bad",))
    assert finished == RunFinished("r", finished.at, "failed", caught.value)


@pytest.mark.parametrize("how", ["cancel", "break"])
async def test_a_run_that_is_left_or_cancelled_is_told_as_cancelled(
    broker: InMemoryBroker, how: str
) -> None:
    recorder = Recorder()
    engine = ExecutionEngine(broker, chain(), listeners=[recorder])
    stream = engine.execute_async()
    await anext(stream)
    if how == "cancel":
        engine.cancel()
        with pytest.raises(Exception, match="was cancelled"):
            await anext(stream)
    await stream.aclose()
    assert [event.outcome for event in recorder.of(RunFinished)] == ["cancelled"]


async def test_a_listener_that_raises_is_logged_and_dropped_for_that_run_only(
    broker: InMemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    class Raising(Recorder):
        def on_event(self, event: Any) -> None:
            super().on_event(event)
            raise RuntimeError("not today")

    raising, other = Raising(), Recorder()
    engine = ExecutionEngine(broker, chain(), listeners=[raising, other])
    for run in (1, 2):
        assert await engine.execute() == {"a": [1], "b": [1]}
        assert len(raising.events) == run
        assert len(other.events) == 6 * run
    assert "it is dropped for this run" in caplog.text


@pytest.mark.parametrize("how", ["on_step_complete", "all read"])
async def test_how_a_run_ended_is_told_as_it_was(broker: InMemoryBroker, how: str) -> None:
    problem = LookupError("mine")

    def on_step(task_name: str, result: Any) -> None:
        if how == "on_step_complete":
            raise problem

    recorder = Recorder()
    engine = ExecutionEngine(broker, chain(), on_step_complete=on_step, listeners=[recorder])
    stream = engine.execute_async()
    if how == "on_step_complete":
        with pytest.raises(LookupError):
            await anext(stream)
        expected: tuple[str, Any] = ("failed", problem)
    else:
        await anext(stream)
        await anext(stream)  # the last pair; the reader leaves without asking for more
        expected = ("completed", None)
    await stream.aclose()
    assert (recorder.events[-1].outcome, recorder.events[-1].error) == expected


@virtually
async def test_a_slow_listener_gets_every_event_in_the_end() -> None:
    class Slow(Recorder):
        async def on_event(self, event: Any) -> None:  # type: ignore[override]
            await asyncio.sleep(3)
            self.events.append(event)

    slow = Slow()

    engine = ExecutionEngine(InMemoryBroker(), chain_of_sleeps(), listeners=[slow])
    await engine.execute()
    assert len(slow.events) == 6


@virtually
async def test_a_listener_that_hangs_holds_up_neither_nodes_nor_the_end_for_long(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Hanging:
        async def on_event(self, event: Any) -> None:
            await asyncio.Event().wait()

    loop = asyncio.get_running_loop()
    stream = ExecutionEngine(
        InMemoryBroker(), chain_of_sleeps(), listeners=[Hanging()]
    ).execute_async()
    async for _ in stream:
        completed = loop.time()
    assert completed == pytest.approx(2.0)
    assert loop.time() == pytest.approx(7.0)
    assert "a listener took more than 5 s for an event; dropped" in caplog.text


def chain_of_sleeps() -> DAG:
    async def sleep(**_: Any) -> None:
        await asyncio.sleep(1)

    return DAGBuilder().node(sleep, name="a").node(sleep, name="b", inputs=["a"]).build()


@virtually
async def test_a_listener_that_lags_holds_up_the_end_for_a_bounded_time_in_all(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Slow(Recorder):
        async def on_event(self, event: Any) -> None:  # type: ignore[override]
            await asyncio.sleep(4)
            self.events.append(event)

    async def nothing(**_: Any) -> None: ...

    slow = Slow()
    builder = DAGBuilder()
    for number in range(200):
        builder.node(nothing, name=f"n{number}")
    await ExecutionEngine(InMemoryBroker(), builder.build(), listeners=[slow]).execute()
    assert 0 < len(slow.events) < 10
    assert asyncio.get_running_loop().time() <= CATCHING_UP + LISTENER_GRACE
    assert "a listener took more than 30 s for its events; dropped, with 3" in caplog.text


@virtually
async def test_what_a_lagging_listener_misses_is_bounded_and_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "MOST_EVENTS", 10)
    gate = asyncio.Event()

    class Held(Recorder):
        async def on_event(self, event: Any) -> None:  # type: ignore[override]
            await gate.wait()
            self.events.append(event)

    async def nothing(**_: Any) -> None: ...

    start_tasks_later()
    held, quick = Held(), Recorder()
    builder = DAGBuilder().node(nothing, name="n0")
    for number in range(1, 50):
        builder.node(nothing, name=f"n{number}", inputs=[f"n{number - 1}"])
    engine = ExecutionEngine(InMemoryBroker(), builder.build(), listeners=[held, quick])
    async for name, _ in engine.execute_async():
        if name == "n49":
            gate.set()
    assert len(quick.events) == 102
    assert held.events[1:] == quick.events[-10:]
    assert "lags by more than 10 events" in caplog.text
