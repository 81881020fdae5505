"""What hooks are told of runs: six events with the names that pipelines have for things."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Literal

from taskiq_flow.errors import ConfigurationError
from taskiq_flow.events import GraphKind

EVENT_TYPES = (
    "pipeline_start",
    "step_start",
    "step_complete",
    "step_error",
    "pipeline_complete",
    "pipeline_error",
)
"""The ``type`` of each event. The method of a hook that is called has ``on_`` before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _HookEvent:
    type: ClassVar[str]

    pipeline_id: str
    timestamp: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class _StepEvent(_HookEvent):
    step_name: str
    step_index: int
    task_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineStartEvent(_HookEvent):
    """A run has started, or an engine goes on with it.

    ``pipeline_id``: the run's id. ``timestamp``: when, in UTC. ``pipeline_type``: ``"sequential"``
    for a run of a ``Pipeline``, ``"dataflow"`` for those of other graphs. ``input``: ``None`` for
    a run of an engine, which does not tell its listeners.
    """

    type: ClassVar[str] = "pipeline_start"

    pipeline_type: GraphKind = "dataflow"
    input: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineCompleteEvent(_HookEvent):
    """A run has ended without an error.

    ``status``: ``"COMPLETED"`` or ``"CANCELLED"``. ``duration_ms``: since it has started.
    ``result``: what the last step gave; of several that no other step takes from, a dict by name.
    ``None`` if the run was cancelled, or if the last step is a mapped node.
    """

    type: ClassVar[str] = "pipeline_complete"

    status: Literal["COMPLETED", "CANCELLED"]
    duration_ms: float
    result: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineErrorEvent(_HookEvent):
    """A run has failed. ``error``: the one that its reader gets."""

    type: ClassVar[str] = "pipeline_error"

    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStartEvent(_StepEvent):
    """A step's task is being sent, for the first time.

    A step is a node, or an element of a mapped node: ``embed[3]``. ``step_index``: the place of the
    node in the run, from 0 on. ``task_id``: of the first attempt; empty if there was none.
    """

    type: ClassVar[str] = "step_start"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCompleteEvent(_StepEvent):
    """A step has its result. ``duration_ms``: since it has started, with all of its attempts.

    ``step_name``, ``step_index``: as of ``StepStartEvent``. ``task_id``: of the last attempt.
    ``result``: the value itself, which others may hold too. Of a filter it is the element that it
    keeps, and not what its task returned. ``is_left_out``: a filter leaves its element out, and
    there is no result.
    """

    type: ClassVar[str] = "step_complete"

    result: Any
    duration_ms: float
    is_left_out: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepErrorEvent(_StepEvent):
    """A step has failed for good. Attempts that are repeated are not told.

    ``step_name``, ``step_index``, ``task_id``: as of ``StepCompleteEvent``.
    """

    type: ClassVar[str] = "step_error"

    error: BaseException


HookEvent = (
    PipelineStartEvent
    | PipelineCompleteEvent
    | PipelineErrorEvent
    | StepStartEvent
    | StepCompleteEvent
    | StepErrorEvent
)


class EventFilter:
    """Which events are told: those of some runs, and of some types. ``None`` stands for all.

    ``event_types``: such as ``"step_error"``. Raises ``ConfigurationError`` for one that no event
    has.

    >>> class Log:
    ...     def on_step_complete(self, event):
    ...         print(event.pipeline_id, event.result)
    >>> hooks = HookManager().add_hook(Log(), EventFilter(pipeline_ids=["nightly"]))
    >>> dag = DAGBuilder().node(abs, inputs=["number"]).build()
    >>> engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[hooks])
    >>> results = engine.execute_sync({"number": -1}, run_id="nightly")
    nightly 1
    >>> results = engine.execute_sync({"number": -2}, run_id="hourly")
    """

    def __init__(
        self,
        pipeline_ids: Iterable[str] | None = None,
        event_types: Iterable[str] | None = None,
    ) -> None:
        self._pipeline_ids = _set_of("pipeline_ids", pipeline_ids)
        self._event_types = _set_of("event_types", event_types)
        for name in self._event_types or ():
            if name not in EVENT_TYPES:
                raise ConfigurationError(
                    f"EventFilter() was given the event type {name!r}, which no event has; the "
                    f"types are {', '.join(EVENT_TYPES)}"
                )

    def passes(self, event: HookEvent) -> bool:
        """Whether an event is told."""
        if self._pipeline_ids is not None and event.pipeline_id not in self._pipeline_ids:
            return False
        return self._event_types is None or event.type in self._event_types


def _set_of(option: str, names: Iterable[str] | None) -> Collection[str] | None:
    if isinstance(names, str):
        raise ConfigurationError(
            f"EventFilter({option}={names!r}) is a text, of which each letter would be one; "
            f"write {option}=[{names!r}]"
        )
    return None if names is None else frozenset(names)
