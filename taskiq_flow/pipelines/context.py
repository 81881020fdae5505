"""What a task is told of the pipeline that it is a step of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated

from taskiq import AsyncBroker, Context, TaskiqDepends

from taskiq_flow.errors import PipelineError
from taskiq_flow.events import Event, NodeStarted, RunFinished, RunStarted, node_of

LABEL = "taskiq_flow_pipeline"
"""The label of a message that has what the context is made of."""


class PipelineContext:
    """The pipeline that runs a task, for tasks of pipelines with ``with_context()``.

    taskiq makes one for a parameter ``context: PipelineContext = TaskiqDepends()``.
    ``pipeline_id``: of the run. ``step_index``: the place of the step, from 0 on. ``task_id``: of
    the task. ``execution_mode``: ``"sequential"`` or ``"dataflow"``. ``started_at``: when the run
    began, in UTC. ``broker``: that of the worker.

    Raises ``PipelineError`` in a task that no such pipeline has sent: the task fails with it.

    >>> from taskiq import TaskiqDepends
    >>> broker = InMemoryBroker()
    >>> @broker.task
    ... async def place(number: int, context: PipelineContext = TaskiqDepends()) -> str:
    ...     return f"step {context.step_index} of {context.pipeline_id}"
    >>> async def main():
    ...     pipeline = Pipeline(broker, pipeline_id="tides").with_context().call_next(place)
    ...     return await (await pipeline.kiq(7))
    >>> asyncio.run(main())
    'step 0 of tides'
    """

    def __init__(self, context: Annotated[Context, TaskiqDepends()]) -> None:
        message = context.message
        text = message.labels.get(LABEL)
        if text is None:
            raise PipelineError(
                f"task {message.task_name!r} takes a PipelineContext, and was not sent by a "
                "pipeline that has one; call pipeline.with_context()"
            )
        told = json.loads(text)
        self.pipeline_id: str = told["pipeline_id"]
        self.step_index: int = told["step_index"]
        self.task_id: str = message.task_id
        self.execution_mode: str = told["execution_mode"]
        self.started_at = datetime.fromisoformat(told["started_at"])
        self.broker: AsyncBroker = context.broker

    def __repr__(self) -> str:
        return (
            f"<PipelineContext of step {self.step_index} of {self.execution_mode} "
            f"{self.pipeline_id!r}>"
        )


class ContextLabels:
    """A listener of engines that adds to each message what ``PipelineContext`` reads there."""

    def __init__(self, execution_mode: str) -> None:
        self._execution_mode = execution_mode
        self._runs: dict[str, RunStarted] = {}

    def on_event(self, event: Event) -> None:
        """Take notice of runs that begin and end."""
        if isinstance(event, RunStarted):
            self._runs[event.run_id] = event
        elif isinstance(event, RunFinished):
            self._runs.pop(event.run_id, None)

    def on_sending(self, sending: NodeStarted) -> Mapping[str, str]:
        """The label for the message of an attempt."""
        step, run = node_of(sending.task_name, sending.index), self._runs[sending.run_id]
        told = {
            "pipeline_id": sending.run_id,
            "step_index": run.task_names.index(step),
            "execution_mode": self._execution_mode,
            "started_at": datetime.fromtimestamp(run.time, UTC).isoformat(),
        }
        return {LABEL: json.dumps(told)}
