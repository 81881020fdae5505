"""What is stored of a run for those who ask later: plain data, with previews in place of values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pydantic import BaseModel

from taskiq_flow.events import GraphKind
from taskiq_flow.previews import printable
from taskiq_flow.views.node_view import NodeState, NodeView
from taskiq_flow.views.run_view import RunStatus, RunView

PipelineState = Literal["PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED"]

StepState = Literal["PENDING", "RUNNING", "COMPLETED", "FAILED", "SKIPPED", "CANCELLED"]


class StepStatus(BaseModel):
    """What has become of a node of a run; a mapped node is one step.

    ``status``: ``"PENDING"``, ``"RUNNING"`` (its task is sent), ``"COMPLETED"``, ``"FAILED"``,
    ``"SKIPPED"`` or ``"CANCELLED"``. ``duration_ms``: from its first sending to its end. A step
    that needed no task, as with a result from the cache, has started when it ended. ``result``: a
    preview, as ``NodeView.preview``. ``error``: type and message, also of an attempt that was
    repeated. ``retry_count``: attempts after the first one, a fallback included.

    >>> StepStatus(step_name="load", status="PENDING").model_dump(exclude_none=True)
    {'step_name': 'load', 'status': 'PENDING', 'retry_count': 0}
    """

    step_name: str
    status: StepState
    started_at: datetime | None = None
    completed_at: datetime | None = None
    duration_ms: float | None = None
    result: dict[str, Any] | None = None
    error: str | None = None
    retry_count: int = 0


class PipelineStatus(BaseModel):
    """How far a run is, or how it has ended.

    ``pipeline_id``: the run's id. ``status``: ``"PENDING"``, ``"RUNNING"``, ``"COMPLETED"``,
    ``"FAILED"`` or ``"CANCELLED"``. ``pipeline_type``: ``"sequential"`` for a run of a
    ``Pipeline``, ``"dataflow"`` for those of other graphs. Times are in UTC. ``steps``: in the
    order of the graph. ``result``: the preview of what the last step gave; of several that no other
    takes from, a dict by name. ``error``: type and message.

    >>> status = PipelineStatus(pipeline_id="nightly", status="RUNNING")
    >>> status.is_finished()
    False
    """

    pipeline_id: str
    status: PipelineState
    pipeline_type: GraphKind = "dataflow"
    started_at: datetime | None = None
    completed_at: datetime | None = None
    duration_ms: float | None = None
    steps: list[StepStatus] = []
    result: dict[str, Any] | None = None
    error: str | None = None

    def is_finished(self) -> bool:
        """Whether nothing more will become of it."""
        return self.status not in ("PENDING", "RUNNING")


class TrackingMetrics(BaseModel):
    """Figures of the runs of some days. Durations are those of completed runs.

    ``success_rate``: completed ones as a part of completed and failed ones, from 0 to 1.
    ``failure_reasons``: by type of error, how many runs have failed with it.
    ``most_frequent_step``: the name of the step that has started in most runs.

    >>> one = PipelineStatus(pipeline_id="a", status="COMPLETED", duration_ms=20.0)
    >>> other = PipelineStatus(pipeline_id="b", status="FAILED", error="LookupError: 'page'")
    >>> metrics = TrackingMetrics.of([one, other])
    >>> metrics.success_rate, metrics.avg_duration_ms, metrics.failure_reasons
    (0.5, 20.0, {'LookupError': 1})
    """

    total_pipelines: int = 0
    completed: int = 0
    failed: int = 0
    success_rate: float = 0.0
    avg_duration_ms: float = 0.0
    p95_duration_ms: float = 0.0
    failure_reasons: dict[str, int] = {}
    most_frequent_step: str | None = None

    @classmethod
    def of(cls, statuses: Iterable[PipelineStatus]) -> TrackingMetrics:
        """The figures of these runs."""
        metrics, durations = cls(), list[float]()
        begun, reasons = Counter[str](), Counter[str]()
        for status in statuses:
            metrics.total_pipelines += 1
            if status.status == "COMPLETED":
                metrics.completed += 1
                durations.append(status.duration_ms or 0.0)
            elif status.status == "FAILED":
                metrics.failed += 1
                reasons[(status.error or "").partition(":")[0]] += 1
            begun.update(step.step_name for step in status.steps if step.started_at is not None)
        metrics.failure_reasons = dict(reasons)
        if ended := metrics.completed + metrics.failed:
            metrics.success_rate = metrics.completed / ended
        if durations:
            durations.sort()
            metrics.avg_duration_ms = sum(durations) / len(durations)
            metrics.p95_duration_ms = durations[-(-95 * len(durations) // 100) - 1]
        if begun:
            metrics.most_frequent_step = max(begun, key=begun.__getitem__)
        return metrics


def status_of(view: RunView) -> PipelineStatus:
    """What is stored of a run, by its view."""
    return PipelineStatus(
        pipeline_id=printable(view.run_id),
        status=_state(view.status),
        pipeline_type=view.kind,
        started_at=_moment(view, view.started_at),
        completed_at=_moment(view, view.ended_at),
        duration_ms=None if view.ended_at is None else view.seconds * 1000,
        steps=[_step_of(node, view) for node in view.nodes.values()],
        result=_result_of(view) if view.status == "completed" else None,
        error=_error_text(view.error),
    )


def _state(state: RunStatus | NodeState) -> Any:
    """The status of a run or a step. There is no other word for what may be resumed."""
    return "RUNNING" if state in ("queued", "interrupted") else state.upper()


def _step_of(node: NodeView, view: RunView) -> StepStatus:
    sent_at = node.earlier[0][0] if node.earlier else node.sent_at
    duration, elements = None, node.elements
    if sent_at is None and node.state in ("completed", "failed"):  # it needed no task
        sent_at = node.ended_at
    if sent_at is not None and node.is_ended and node.ended_at is not None:
        duration = (node.ended_at - sent_at) * 1000
    return StepStatus(
        step_name=printable(node.name),
        status=_state(node.state),
        started_at=_moment(view, sent_at),
        completed_at=_moment(view, node.ended_at) if node.is_ended else None,
        duration_ms=duration,
        result=node.preview,
        error=_error_text(_error_of(node)),
        retry_count=max(0, node.attempts - 1) if elements is None else elements.repeated,
    )


def _error_of(node: NodeView) -> dict[str, str] | None:
    """The error of a node; of a mapped node, that of the first element that failed."""
    if node.elements is None:
        return node.error
    failed = (one for one in node.elements.records.values() if one.state == "failed")
    return next((one.error for one in failed), None)


def _error_text(error: Mapping[str, str] | None) -> str | None:
    if error is None:
        return None
    return f"{error['type']}: {error['message']}" if error["message"] else error["type"]


def _result_of(view: RunView) -> dict[str, Any] | None:
    taken_from = {name for others in view.edges.values() for name in others}
    last = [node for name, node in view.nodes.items() if name not in taken_from]
    if len(last) == 1:
        return last[0].preview
    return {printable(node.name): node.preview for node in last if node.preview is not None}


def _moment(view: RunView, at: float | None) -> datetime | None:
    """A moment of ``Event.at`` in UTC."""
    if at is None or view.time is None or view.started_at is None:
        return None
    start = datetime.fromtimestamp(view.time, UTC)
    return start + timedelta(seconds=at - view.started_at)
