"""What tasks are told of their pipeline."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from taskiq import InMemoryBroker, TaskiqDepends

from taskiq_flow import DataflowPipeline, NodeFailedError, Pipeline, PipelineContext, PipelineError
from taskiq_flow.pipelines.context import ContextLabels


def seen(value: Any, context: PipelineContext = TaskiqDepends()) -> list[Any]:  # noqa: B008
    return [context.pipeline_id, context.step_index, context.execution_mode]


def whole(value: Any, context: PipelineContext = TaskiqDepends()) -> PipelineContext:  # noqa: B008
    return context


async def test_tasks_are_told_of_the_run_and_their_step(broker: InMemoryBroker) -> None:
    pipeline = Pipeline(broker, pipeline_id="p").with_context().map(seen).call_next(seen)
    task = await pipeline.kiq([0, 1])
    assert await task == ["p", 1, "sequential"]
    assert task.run.results["seen"] == [["p", 0, "sequential"]] * 2
    dataflow = DataflowPipeline(broker, [seen], pipeline_id="d").with_context()
    assert await dataflow.kiq_dataflow(value=1) == {"seen": ["d", 0, "dataflow"]}


async def test_the_context_has_the_run_s_begin_the_task_and_the_broker(
    broker: InMemoryBroker,
) -> None:
    pipeline = Pipeline(broker, pipeline_id="p").with_context().call_next(whole)
    context = await (await pipeline.kiq(1))
    assert timedelta(0) <= datetime.now(UTC) - context.started_at < timedelta(minutes=1)
    assert context.task_id.startswith("p:whole:1")
    assert context.broker is broker
    assert repr(context) == "<PipelineContext of step 0 of sequential 'p'>"


async def test_two_runs_at_once_have_contexts_of_their_own(broker: InMemoryBroker) -> None:
    pipeline = Pipeline(broker).with_context().call_next(seen)
    first, second = await pipeline.kiq(1), await pipeline.kiq(2)
    assert (await first)[0] == first.task_id != (await second)[0] == second.task_id


async def test_nothing_is_kept_of_a_run_that_is_over(broker: InMemoryBroker) -> None:
    labels = ContextLabels("sequential")
    await (await Pipeline(broker, listeners=[labels]).map(seen).kiq([1, 2]))
    assert labels._runs == {}


async def test_without_with_context_the_task_fails_and_says_so(broker: InMemoryBroker) -> None:
    for pipeline in (Pipeline(broker), Pipeline(broker).with_context().with_context(enable=False)):
        with pytest.raises(NodeFailedError) as failure:
            await (await pipeline.call_next(seen).kiq(1))
        cause = failure.value.__cause__
        assert isinstance(cause, PipelineError)
        assert "call pipeline.with_context()" in str(cause)
