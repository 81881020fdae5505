"""Tracking: statuses are those of the runs, soon, at the end, and whatever the storage does."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAG,
    Cache,
    ConfigurationError,
    DAGBuilder,
    ExecutionEngine,
    InMemoryPipelineStorage,
    MemoryJournal,
    NodeFailedError,
    Pipeline,
    PipelineStatus,
    PipelineTrackingManager,
    Retry,
    RunCancelledError,
    TrackingMetrics,
)
from tests.listeners.storage_contract import names, status
from tests.virtual_clock import virtually


async def nap() -> int:
    await asyncio.sleep(2.0)
    return 7


async def double(nap: int) -> int:
    await asyncio.sleep(1.0)
    return 2 * nap


def fail() -> None:
    raise LookupError("no such page")


def chain() -> DAG:
    return DAGBuilder().node(nap).node(double).build()


def engine_of(dag: DAG, tracking: PipelineTrackingManager, **options: Any) -> ExecutionEngine:
    return ExecutionEngine(InMemoryBroker(), dag, listeners=[tracking], **options)


class CountingStorage(InMemoryPipelineStorage):
    """Keeps the texts of all statuses that were saved."""

    def __init__(self) -> None:
        super().__init__()
        self.saved: list[str] = []

    async def save_status(self, status: PipelineStatus) -> None:
        self.saved.append(" ".join([status.status, *(step.status for step in status.steps)]))
        await super().save_status(status)


@virtually
async def test_a_run_that_succeeds_is_completed_with_the_times_of_its_steps() -> None:
    tracking = PipelineTrackingManager()
    before, begin = datetime.now(UTC), asyncio.get_running_loop().time()
    await engine_of(chain(), tracking).execute(run_id="nightly")
    assert asyncio.get_running_loop().time() - begin == pytest.approx(3.0, abs=0.01)
    found = await tracking.get_status("nightly")
    assert found is not None
    assert found.is_finished()
    assert (found.pipeline_id, found.status, found.error) == ("nightly", "COMPLETED", None)
    assert found.duration_ms == pytest.approx(3000, abs=10)
    assert found.started_at is not None
    assert found.completed_at is not None
    assert before <= found.started_at <= before + timedelta(seconds=60)
    assert (found.completed_at - found.started_at).total_seconds() == pytest.approx(3, abs=0.01)
    assert [(step.step_name, step.status) for step in found.steps] == [
        ("nap", "COMPLETED"),
        ("double", "COMPLETED"),
    ]
    durations = [step.duration_ms for step in found.steps]
    assert durations == pytest.approx([2000, 1000], abs=10)
    assert found.result == found.steps[1].result
    assert found.result is not None
    assert found.result["text"] == "14"
    assert PipelineStatus.model_validate(found.model_dump(mode="json")) == found


@virtually
async def test_the_status_follows_the_run() -> None:
    storage = CountingStorage()
    tracking = PipelineTrackingManager().with_storage(storage)
    run = engine_of(chain(), tracking).start(run_id="nightly")
    await asyncio.sleep(1.0)
    found = await tracking.get_status("nightly")
    assert found is not None
    assert not found.is_finished()
    assert [step.status for step in found.steps] == ["RUNNING", "PENDING"]
    await run
    assert storage.saved[-1] == "COMPLETED COMPLETED COMPLETED"
    assert "RUNNING COMPLETED RUNNING" in storage.saved


@virtually
async def test_changes_in_quick_succession_are_saved_together() -> None:
    storage, builder = CountingStorage(), DAGBuilder()

    async def step(x: int) -> int:
        return x

    for number in range(50):
        builder.node(step, name=f"n{number}", inputs=[f"n{number - 1}" if number else "x"])
    await engine_of(builder.build(), PipelineTrackingManager(storage)).execute({"x": 1})
    assert len(storage.saved) < 5
    assert storage.saved[-1] == " ".join(["COMPLETED"] * 51)


@virtually
async def test_whoever_has_awaited_a_run_reads_its_end_also_from_a_slow_storage() -> None:
    class Slow(CountingStorage):
        async def save_status(self, status: PipelineStatus) -> None:
            await asyncio.sleep(1.0)
            await super().save_status(status)

    tracking = PipelineTrackingManager(Slow())
    await engine_of(chain(), tracking).execute(run_id="nightly")
    assert names(await tracking.list_pipelines("COMPLETED")) == ["nightly"]


@virtually
async def test_the_duration_of_a_step_has_all_of_its_attempts() -> None:
    answers = iter([LookupError("busy"), None])

    async def ask() -> None:
        await asyncio.sleep(1.0)
        if (answer := next(answers)) is not None:
            raise answer

    tracking = PipelineTrackingManager()
    dag = DAGBuilder().node(ask, retry=Retry(2, wait=1.0, jitter=0.0)).build()
    await engine_of(dag, tracking).execute(run_id="nightly")
    found = await tracking.get_status("nightly")
    assert found is not None
    assert found.steps[0].duration_ms == pytest.approx(3000, abs=10)
    assert found.steps[0].retry_count == 1


async def test_a_run_that_fails_has_its_error_and_that_of_its_step() -> None:
    tracking = PipelineTrackingManager()
    dag = DAGBuilder().node(fail, retry=Retry(3, wait=0.0)).node(nap).build()
    with pytest.raises(NodeFailedError):
        await engine_of(dag, tracking).execute(run_id="nightly")
    found = await tracking.get_status("nightly")
    assert found is not None
    assert found.status == "FAILED"
    assert found.error is not None
    assert found.error.startswith("NodeFailedError: node 'fail'")
    failed, other = found.steps
    assert (failed.status, failed.retry_count) == ("FAILED", 2)
    assert failed.error == "LookupError: no such page"
    assert other.status == "CANCELLED"


async def test_a_run_that_is_cancelled_is_so() -> None:
    tracking = PipelineTrackingManager()
    run = engine_of(chain(), tracking).start(run_id="nightly")
    async for _ in run.events():
        run.cancel()
    with pytest.raises(RunCancelledError):
        await run
    assert names(await tracking.list_pipelines("CANCELLED")) == ["nightly"]


async def test_a_step_that_needs_no_task_has_started_when_it_ended() -> None:
    tracking, cache = PipelineTrackingManager(), Cache()
    pipeline = Pipeline(InMemoryBroker()).group([len, sorted]).call_next(len)
    pipeline.pipeline_id = "grouped"
    await (await pipeline.with_tracking(tracking).kiq("abc"))
    builder = DAGBuilder().node(abs, inputs=["number"], cache=cache)
    dag = builder.node(bin, inputs=["numbers"], map_over="numbers").build()
    engine = engine_of(dag, tracking, journal=MemoryJournal())
    for run_id in ("computed", "cached"):
        await engine.execute({"number": -1, "numbers": []}, run_id=run_id)
    for run_id, name in (("grouped", "group"), ("cached", "abs"), ("cached", "bin")):
        found = await tracking.get_status(run_id)
        assert found is not None
        (step,) = [step for step in found.steps if step.step_name == name]
        assert step.status == "COMPLETED"
        assert step.started_at == step.completed_at is not None
        assert step.duration_ms == 0.0


async def test_a_step_that_has_not_ended_or_is_skipped_has_not_started() -> None:
    tracking = PipelineTrackingManager()
    builder = DAGBuilder().node(fail).node(len, inputs=["fail"]).node(abs, inputs=["number"])
    dag = builder.node(hex, inputs=["abs"], when=lambda: False).build()
    await engine_of(dag, tracking, on_error="collect").execute({"number": 1}, run_id="nightly")
    found = await tracking.get_status("nightly")
    assert found is not None
    started = {step.step_name: step.started_at is not None for step in found.steps}
    assert started == {"fail": True, "len": False, "abs": True, "hex": False}


async def test_a_mapped_node_is_one_step_with_the_error_of_its_first_element() -> None:
    tracking = PipelineTrackingManager()

    def number(text: str) -> int:
        return int(text)

    builder = DAGBuilder().node(number, inputs=["texts"], map_over="texts")
    builder.node(len, inputs=["number"])
    engine = engine_of(builder.build(), tracking, on_error="collect")
    await engine.execute({"texts": ["1", "x"]}, run_id="nightly")
    found = await tracking.get_status("nightly")
    assert found is not None
    assert [(step.step_name, step.status) for step in found.steps] == [
        ("number", "FAILED"),
        ("len", "SKIPPED"),
    ]
    assert found.steps[0].error is not None
    assert found.steps[0].error.startswith("ValueError: invalid literal")


async def test_a_storage_that_fails_is_logged_once_and_fails_no_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Away(InMemoryPipelineStorage):
        async def save_status(self, status: PipelineStatus) -> None:
            raise ConnectionError("away")

        async def list_pipelines(
            self, status_filter: str | None = None, limit: int = 100
        ) -> list[PipelineStatus]:
            raise ConnectionError("away as well")

    tracking = PipelineTrackingManager(Away(), max_history=1)
    await engine_of(DAGBuilder().node(list, inputs=[]).build(), tracking).execute(run_id="nightly")
    assert [record.getMessage().partition(": ")[0] for record in caplog.records] == [
        "the status of run nightly was not saved",
        "old statuses of runs were not removed",
    ]


@virtually
async def test_a_storage_that_hangs_holds_up_no_run_for_long() -> None:
    class Hanging(InMemoryPipelineStorage):
        async def save_status(self, status: PipelineStatus) -> None:
            await asyncio.Event().wait()

    begin = asyncio.get_running_loop().time()
    await engine_of(chain(), PipelineTrackingManager(Hanging())).execute()
    assert asyncio.get_running_loop().time() - begin < 15.0


async def test_the_oldest_are_removed_unless_that_is_unwanted() -> None:
    dag, storage = DAGBuilder().node(list, inputs=[]).build(), InMemoryPipelineStorage()
    await storage.save_status(status("running", 9, "RUNNING"))
    kept = PipelineTrackingManager(storage, max_history=2, auto_cleanup=False)
    for name in "abc":
        await engine_of(dag, kept).execute(run_id=name)
    assert names(await storage.list_pipelines()) == ["c", "b", "a", "running"]
    await engine_of(dag, PipelineTrackingManager(storage, max_history=3)).execute(run_id="d")
    assert names(await storage.list_pipelines()) == ["d", "c", "b", "running"]


async def test_the_history_has_the_runs_that_have_ended_of_some_time() -> None:
    storage = InMemoryPipelineStorage()
    for name, hours in (("a", 1), ("b", 2), ("c", 3), ("d", 4)):
        await storage.save_status(status(name, hours))
    await storage.save_status(status("r", 0, "RUNNING"))
    tracking = PipelineTrackingManager(storage)
    now = datetime.now(UTC)
    assert names(await tracking.get_history()) == ["a", "b", "c", "d"]
    assert names(await tracking.get_history(limit=1)) == ["a"]
    since, until = now - timedelta(hours=3.5), now - timedelta(hours=1.5)
    assert names(await tracking.get_history(since, until)) == ["b", "c"]
    local = since.astimezone().replace(tzinfo=None)
    assert names(await tracking.get_history(local)) == ["a", "b", "c"]


async def test_metrics() -> None:
    storage = InMemoryPipelineStorage()
    for number in range(20):
        one = status(f"c{number}")
        one.duration_ms = number + 1.0
        await storage.save_status(one)
    for number in range(4):
        one = status(f"f{number}", state="FAILED")
        one.error = "NodeFailedError: node 'fail' failed" if number else "RunTimeoutError"
        await storage.save_status(one)
    await storage.save_status(status("x", state="CANCELLED"))
    await storage.save_status(status("old", 24 * 8))
    assert await PipelineTrackingManager(storage).get_metrics() == TrackingMetrics(
        total_pipelines=25,
        completed=20,
        failed=4,
        success_rate=20 / 24,
        avg_duration_ms=10.5,
        p95_duration_ms=19.0,
        failure_reasons={"NodeFailedError": 3, "RunTimeoutError": 1},
        most_frequent_step="load",
    )
    assert TrackingMetrics.of([]) == TrackingMetrics()


async def test_a_listener_is_told_by_the_methods_that_it_has(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[tuple[object, ...]] = []

    class Everything:
        def on_pipeline_start(self, *about: object) -> None:
            told.append(about)

        async def on_step_start(self, *about: object) -> None:
            told.append(about)

        def on_step_complete(self, *about: object) -> None:
            told.append(about)
            raise RuntimeError("broken")

        def on_pipeline_complete(self, *about: object) -> None:
            told.append(about)

        def on_pipeline_error(self, run_id: str, error: Exception) -> None:
            told.append((run_id, type(error)))

    tracking = PipelineTrackingManager().add_listener(Everything())
    await engine_of(DAGBuilder().node(list, inputs=[]).build(), tracking).execute(run_id="a")
    with pytest.raises(NodeFailedError):
        await engine_of(DAGBuilder().node(fail).build(), tracking).execute(run_id="b")
    assert told == [
        ("a",),
        ("a", "list"),
        ("a", "list", []),
        ("a", "COMPLETED"),
        ("b",),
        ("b", "fail"),
        ("b", NodeFailedError),
    ]
    assert "Everything object" in caplog.text
    assert names(await tracking.list_pipelines("COMPLETED")) == ["a"]


async def test_what_cannot_be_is_refused() -> None:
    tracking = PipelineTrackingManager()
    with pytest.raises(ConfigurationError, match="give it one of on_pipeline_start"):
        tracking.add_listener(object())
    with pytest.raises(ConfigurationError, match="max_history=0"):
        PipelineTrackingManager(max_history=0)
    misspelt: Any = "done"
    with pytest.raises(ConfigurationError, match="no pipeline has the status 'done'"):
        await tracking.list_pipelines(misspelt)


async def test_a_broker_that_is_no_redis_has_its_statuses_in_memory() -> None:
    tracking = PipelineTrackingManager().with_auto_storage(InMemoryBroker())
    await engine_of(DAGBuilder().node(list, inputs=[]).build(), tracking).execute(run_id="a")
    assert names(await tracking.list_pipelines()) == ["a"]
