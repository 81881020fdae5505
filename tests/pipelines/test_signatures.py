"""Each call that users of pipelines know, as they write it."""

from __future__ import annotations

import inspect
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from taskiq import InMemoryBroker, TaskiqDepends

import taskiq_flow
from taskiq_flow import (
    DAGVisualizer,
    DataflowPipeline,
    EventFilter,
    HookManager,
    InMemoryPipelineStorage,
    MermaidGenerator,
    Pipeline,
    PipelineContext,
    PipelineMiddleware,
    PipelineScheduler,
    PipelineStatus,
    PipelineTrackingManager,
    RedisPipelineStorage,
    Retry,
    StepStatus,
    TrackingEventBroadcaster,
    TrackingMetrics,
    TrackingStorage,
    get_task_inputs,
    get_task_outputs,
    is_pipeline_task,
    pipeline_task,
    pipeline_task_multi_output,
)


@pytest.fixture
def broker() -> InMemoryBroker:
    return InMemoryBroker().with_middlewares(PipelineMiddleware())


def join(words: list[str], mark: str = " ") -> str:
    return mark.join(words)


def is_long(word: str) -> bool:
    return len(word) > 2


def parsed(text: str) -> int:
    return int(text)


async def test_the_steps_of_a_pipeline(broker: InMemoryBroker) -> None:
    pipeline: Pipeline[Any] = Pipeline(broker, max_parallel=4, timeout=30, pipeline_id="tides")
    pipeline.call_next(str.split).filter(is_long).map(
        str.upper, max_parallel=2, output_name="loud"
    ).call_next(join, "-").call_next(join, param_name="mark", words=["a", "b"])
    pipeline.group([len, str.lower], param_names=None).call_after(join, words=["c"], mark="+")
    task = await pipeline.kiq("ebb at flow")
    result = await task.wait_result(check_interval=0.2, timeout=10)
    assert result.return_value == "c"
    assert task.run.results["loud"] == ["EBB", "FLOW"]
    assert task.run.results["join"] == "EBB-FLOW"
    assert task.run.results["join_2"] == "aEBB-FLOWb"
    assert task.run.results["group"] == [10, "aebb-flowb"]
    assert task.pipeline_id == pipeline.pipeline_id == "tides"
    skipping = Pipeline(broker).call_next(str.split).call_next(join, param_name=-1, words=["d"])
    assert await (await skipping.kiq("a b")) == "d"


async def test_the_options_of_a_pipeline(broker: InMemoryBroker) -> None:
    tracking, hooks = PipelineTrackingManager(), HookManager()
    for pipeline in (Pipeline(broker).call_next(abs), DataflowPipeline(broker, [abs])):
        same = (
            pipeline.with_tracking(tracking)
            .with_hooks(hooks)
            .with_context(enable=True)
            .with_timeout(30)
            .with_retry(max_attempts=2, delay=0.1, backoff=2.0)
            .with_retry(policy=Retry(attempts=2))
            .on_error("stop")
            .on_error("continue")
            .on_error("retry")
        )
        assert same is pipeline
        pipeline.pipeline_id = "mine"
        assert pipeline.pipeline_id == "mine"


async def test_dataflow_pipelines(
    broker: InMemoryBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    @pipeline_task(output="words", inputs=["text"], description="cuts a text")
    @broker.task
    async def split(text: str) -> list[str]:
        return text.split()

    @broker.task
    @pipeline_task_multi_output(["first", "last"], inputs=["words"])
    async def ends(words: list[str]) -> tuple[str, str]:
        return words[0], words[-1]

    assert is_pipeline_task(split)
    assert (get_task_inputs(split), get_task_outputs(ends)) == (["text"], ["first", "last"])
    pipeline = DataflowPipeline.from_tasks(broker, [ends], max_parallel=4)
    pipeline.add_dataflow_task(split)
    assert await pipeline.kiq_dataflow(text="a b") == {
        "words": ["a", "b"],
        "first": "a",
        "last": "b",
    }
    pipeline.map(str.upper, "words", "loud", max_parallel=2, chunk_config=None)
    pipeline.map(join, "pairs", "joined", param_name="words", chunk_config={"chunk_size": 2})
    shown = pipeline.visualize()
    assert {"id": "split", "inputs": ["text"], "outputs": ["words"]} in shown["nodes"]
    assert {"from": "split", "to": "ends"} in shown["edges"]
    assert pipeline.visualize_dot().startswith("digraph")
    pipeline.print_dag()
    assert "split" in capsys.readouterr().out

    summing = DataflowPipeline(broker).map(abs, [-1, 2, -3], "sizes")
    summing.reduce(sum, "sizes", "total", initial=10, chunk_size=2)
    assert await summing.kiq_map_reduce() == {"sizes": [1, 2, 3], "total": 16}


async def test_the_context_of_a_step(broker: InMemoryBroker) -> None:
    @broker.task
    async def told(number: int, context: PipelineContext = TaskiqDepends()) -> list[Any]:  # noqa: B008
        assert context.broker is broker
        assert context.started_at <= datetime.now(UTC)
        assert context.task_id.startswith(context.pipeline_id)
        return [context.pipeline_id, context.step_index, context.execution_mode]

    pipeline = Pipeline(broker, pipeline_id="tides").with_context().call_next(abs).call_next(told)
    assert await (await pipeline.kiq(-1)) == ["tides", 1, "sequential"]


async def test_tracking(broker: InMemoryBroker) -> None:
    class Listener:
        def __init__(self) -> None:
            self.told: list[tuple[Any, ...]] = []

        def __getattr__(self, name: str) -> Any:
            if not name.startswith("on_") or name == "on_event":
                raise AttributeError(name)
            return lambda *args: self.told.append((name, *args))

    listener = Listener()
    tracking = PipelineTrackingManager(storage=None, max_history=1000, auto_cleanup=True)
    tracking.with_storage(InMemoryPipelineStorage(max_records=1000)).with_auto_storage(broker)
    tracking.add_listener(listener)
    pipeline = Pipeline(broker, pipeline_id="tides").with_tracking(tracking).call_next(abs)
    await (await pipeline.kiq(-7))

    status = await tracking.get_status("tides")
    assert status is not None
    assert status.is_finished()
    assert (status.status, status.error) == ("COMPLETED", None)
    assert status.model_dump().keys() >= {
        *("pipeline_id", "status", "pipeline_type", "started_at", "completed_at"),
        *("duration_ms", "steps", "result", "error"),
    }
    assert set(StepStatus.model_fields) == {
        *("step_name", "status", "started_at", "completed_at", "duration_ms"),
        *("result", "error", "retry_count"),
    }
    (step,) = status.steps
    assert (step.step_name, step.status, step.retry_count) == ("abs", "COMPLETED", 0)
    assert await tracking.get_status("nothing") is None
    listed = await tracking.list_pipelines(status_filter="COMPLETED", limit=100)
    since = datetime.now(UTC) - timedelta(minutes=1)
    assert listed == await tracking.get_history(since=since, until=None, limit=100) == [status]
    metrics = await tracking.get_metrics(days=7)
    assert (metrics.total_pipelines, metrics.success_rate) == (1, 1.0)
    assert set(TrackingMetrics.model_fields) == {
        *("total_pipelines", "completed", "failed", "success_rate", "avg_duration_ms"),
        *("p95_duration_ms", "failure_reasons", "most_frequent_step"),
    }
    assert await tracking.cleanup_older_than(days=30) == 0
    await tracking.delete_pipeline("tides")
    assert await tracking.get_status("tides") is None
    assert [(name, *args[:2]) for name, *args in listener.told] == [
        ("on_pipeline_start", "tides"),
        ("on_step_start", "tides", "abs"),
        ("on_step_complete", "tides", "abs"),
        ("on_pipeline_complete", "tides", "COMPLETED"),
    ]


def test_storages_of_tracking() -> None:
    keywords = inspect.signature(RedisPipelineStorage).parameters
    assert list(keywords) == ["redis_client", "key_prefix", "ttl_seconds", "serializer"]
    assert keywords["serializer"].default is json.dumps
    for method in ("save_status", "get_status", "list_pipelines", "delete_pipeline"):
        assert inspect.iscoroutinefunction(getattr(TrackingStorage, method))
    assert inspect.iscoroutinefunction(TrackingStorage.cleanup_older_than)
    for status in ("PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED"):
        finished = status in {"COMPLETED", "FAILED", "CANCELLED"}
        made = PipelineStatus(pipeline_id="a", status=status)
        assert made.is_finished() is finished


EVENTS = {
    "PipelineStartEvent": {"pipeline_type", "input"},
    "StepStartEvent": {"step_name", "step_index", "task_id"},
    "StepCompleteEvent": {"step_name", "step_index", "task_id", "result", "duration_ms"},
    "StepErrorEvent": {"step_name", "step_index", "task_id", "error"},
    "PipelineCompleteEvent": {"status", "duration_ms", "result"},
    "PipelineErrorEvent": {"error"},
}


async def test_hooks(broker: InMemoryBroker) -> None:
    class Hook:
        def __init__(self) -> None:
            self.events: list[Any] = []
            for method in (
                *("on_pipeline_start", "on_step_start", "on_step_complete"),
                *("on_pipeline_complete", "on_step_error", "on_pipeline_error"),
            ):
                setattr(self, method, self.events.append)

    hook, hooks = Hook(), HookManager()
    hooks.add_hook(hook)
    hooks.add_filter(EventFilter(pipeline_ids=["good", "bad"], event_types=None))
    pipeline = Pipeline(broker).with_hooks(hooks).call_next(parsed)
    for pipeline.pipeline_id, text in (("good", "7"), ("bad", "x"), ("other", "7")):
        await (await pipeline.kiq(text)).wait_result(timeout=10)
    found = {type(event).__name__: event for event in hook.events}
    assert {event.pipeline_id for event in hook.events} == {"good", "bad"}
    assert found.keys() == EVENTS.keys()
    for name, fields in EVENTS.items():
        for field in {"type", "pipeline_id", "timestamp"} | fields:
            assert hasattr(found[name], field), (name, field)


async def test_events_over_a_websocket(broker: InMemoryBroker) -> None:
    pytest.importorskip("starlette")
    from taskiq_flow.web import (  # noqa: PLC0415 - needs what is looked for here
        create_visualization_api,
        setup_websocket_bridge,
    )
    from tests.web.site import connected, serving  # noqa: PLC0415 - likewise

    tracking, hooks = PipelineTrackingManager(), HookManager()
    TrackingEventBroadcaster(tracking, hooks)
    api = create_visualization_api(broker, app=setup_websocket_bridge(hooks))
    pipeline = Pipeline(broker).with_tracking(tracking).call_next(parsed)
    api.add_pipeline("parsed", pipeline)
    async with serving(api.app) as address, connected(address) as client:
        await client.ask(type="subscribe", pipeline_id="*")
        for pipeline.pipeline_id, text in (("good", "7"), ("bad", "x")):
            await (await pipeline.kiq(text)).wait_result(timeout=10)
        found = {event["type"]: event for event in [await client.line() for _ in range(8)]}
        for name, fields in EVENTS.items():
            kind = getattr(taskiq_flow, name).type
            assert found[kind].keys() >= {"id", "type", "pipeline_id", "timestamp"} | fields
        await client.ask(type="unsubscribe", pipeline_id="*")


async def test_the_scheduler(broker: InMemoryBroker) -> None:
    scheduler = PipelineScheduler(broker, store="memory", timezone="Europe/Berlin")
    pipeline = Pipeline(broker).call_next(abs)
    common: dict[str, Any] = {"kwargs": None, "misfire_grace_time": 300, "jitter": None}
    common["pipeline_id"] = "tides"
    moment = datetime(2040, 1, 1, tzinfo=UTC)
    async with scheduler:
        one = await scheduler.schedule(
            pipeline, "0 3 * * *", args=(1,), timezone="UTC", job_id="one", **common
        )
        two = await scheduler.schedule_interval(
            pipeline, hours=1, minutes=0, seconds=0, args=(2,), job_id="two", jitter=3600
        )
        three = await scheduler.schedule_at(pipeline, moment, args=(3,), job_id="three", **common)
        assert {job.id for job in await scheduler.list_jobs()} == {one, two, three}
        await scheduler.pause_job("one")
        await scheduler.resume_job("one")
        await scheduler.reschedule_job("one", "5 3 * * *")
        await scheduler.modify_job("one", args=(4,))
        job = await scheduler.get_job("one")
        assert job is not None
        assert (job.cron, job.args, job.is_paused) == ("5 3 * * *", (4,), False)
        await scheduler.remove_job("one")
        assert await scheduler.get_job("one") is None
    await scheduler.start()
    await scheduler.shutdown(wait=True)


def test_drawings(broker: InMemoryBroker, capsys: pytest.CaptureFixture[str]) -> None:
    dag = Pipeline(broker).call_next(str.split).group([len, sorted]).dag
    assert json.loads(DAGVisualizer.to_json(dag))
    assert DAGVisualizer.to_dot(dag).startswith("digraph")
    DAGVisualizer.print_ascii(dag)
    assert "split" in capsys.readouterr().out
    assert DAGVisualizer.detect_critical_path(dag)[0] == "split"
    assert ["len", "sorted"] in DAGVisualizer.find_parallelizable_groups(dag)
    assert MermaidGenerator(dag).to_mermaid(orientation="TB").startswith("flowchart TB")


@pytest.mark.parametrize(
    "name", ["PipelineError", "TrackingError", "ConfigurationError", "CycleError"]
)
def test_errors(name: str) -> None:
    assert issubclass(getattr(taskiq_flow, name), taskiq_flow.TaskiqFlowError)
