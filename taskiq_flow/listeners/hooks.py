"""Hooks: a listener that calls ``on_step_complete`` and the like of any number of objects."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from inspect import isawaitable
from typing import Any, Self

from taskiq_flow.errors import ConfigurationError
from taskiq_flow.events import (
    Event,
    NodeCompleted,
    NodeFailed,
    NodeSkipped,
    NodeStarted,
    RunFinished,
    RunStarted,
    node_of,
)
from taskiq_flow.listeners.hook_events import (
    EVENT_TYPES,
    EventFilter,
    HookEvent,
    PipelineCompleteEvent,
    PipelineErrorEvent,
    PipelineStartEvent,
    StepCompleteEvent,
    StepErrorEvent,
    StepStartEvent,
)
from taskiq_flow.listeners.tellers import Tellers

logger = logging.getLogger("taskiq_flow")

Answers = list[tuple[object, Awaitable[object]]]
"""Hooks, and what their callbacks have returned that is to be awaited."""

_Ends = NodeCompleted | NodeFailed | NodeSkipped


class HookManager:
    """Tells objects by name what the runs of the engines do that it is a listener of.

    A hook is an object with any of the methods ``on_pipeline_start``, ``on_step_start``,
    ``on_step_complete``, ``on_step_error``, ``on_pipeline_complete`` and ``on_pipeline_error``,
    sync or async, that take one event. One that raises is logged, and the others are called. All
    hooks have been called for one event, and what async ones do has ended, before the next event.

    >>> class Log:
    ...     def on_step_complete(self, event):
    ...         print(event.step_index, event.step_name, event.result)
    ...     async def on_pipeline_complete(self, event):
    ...         print(event.status, event.result)
    >>> dag = DAGBuilder().node(abs, inputs=["number"]).node(hex, inputs=["abs"]).build()
    >>> hooks = HookManager().add_hook(Log())
    >>> ExecutionEngine(InMemoryBroker(), dag, listeners=[hooks]).execute_sync({"number": -7})
    0 abs 7
    1 hex 0x7
    COMPLETED 0x7
    {'abs': 7, 'hex': '0x7'}
    """

    def __init__(self) -> None:
        self._hooks: tuple[tuple[object, EventFilter | None], ...] = ()
        self._filters: tuple[EventFilter, ...] = ()
        self._runs: dict[str, _Run] = {}
        self._tellers = Tellers()

    def add_hook(self, hook: object, event_filter: EventFilter | None = None) -> Self:
        """Call a hook from now on, for events that pass its own filter and those of the manager.

        Raises ``ConfigurationError`` if it has none of the methods.
        """
        if not any(callable(getattr(hook, f"on_{kind}", None)) for kind in EVENT_TYPES):
            methods = ", ".join(f"on_{kind}" for kind in EVENT_TYPES)
            raise ConfigurationError(
                f"hook {hook!r} has no method that is called; give it one of {methods}"
            )
        self._hooks = (*self._hooks, (hook, event_filter))
        return self

    def remove_hook(self, hook: object) -> Self:
        """Call a hook no more, and do not keep it alive. Does nothing if it is not there."""
        self._hooks = tuple(pair for pair in self._hooks if pair[0] is not hook)
        return self

    def add_filter(self, event_filter: EventFilter) -> Self:
        """Tell no hook what does not pass this filter. An event has to pass all of them."""
        self._filters = (*self._filters, event_filter)
        return self

    def on_event(self, event: Event) -> Awaitable[None] | None:
        """Call the hooks for what follows from an event."""
        return self.take(event, self)

    def take(self, event: Event, teller: object) -> Awaitable[None] | None:
        """Like ``on_event``, for an event that another listener passes on.

        The events of a run are those of its first teller, which may be this manager itself.
        """
        if not self._tellers.are_heard(teller, event, by_default=teller is self):
            return None
        return self._tell(iter([*self._events_of(event)]))

    def _tell(self, events: Iterator[HookEvent]) -> Awaitable[None] | None:
        for event in events:
            if answers := self._call(event):
                return self._await(answers, events)
        return None

    async def _await(self, answers: Answers, events: Iterator[HookEvent]) -> None:
        """Await the answers to one event, then go on with the next ones."""
        await asyncio.gather(*(_awaited(hook, answer) for hook, answer in answers))
        if (rest := self._tell(events)) is not None:
            await rest

    def _call(self, event: HookEvent) -> Answers:
        """Call all hooks that want an event. Returns what is to be awaited."""
        answers: Answers = []
        if not all(each.passes(event) for each in self._filters):
            return answers
        for hook, own in self._hooks:
            if own is not None and not own.passes(event):
                continue
            try:
                callback = getattr(hook, f"on_{event.type}", None)
                answer = None if callback is None else callback(event)
            except Exception as error:  # whatever it raises is its own affair
                _log(hook, error)
                continue
            if isawaitable(answer):
                answers.append((hook, answer))
        return answers

    def _events_of(self, event: Event) -> Iterator[HookEvent]:
        run = self._runs.get(event.run_id)
        if run is None or isinstance(event, RunStarted):
            run = self._runs[event.run_id] = _Run.of(event)
        match event:
            case RunStarted():
                yield PipelineStartEvent(
                    pipeline_id=run.id,
                    timestamp=run.timestamp(event.at),
                    pipeline_type=event.kind,
                )
            case NodeStarted():
                yield run.begin(event)
            case NodeCompleted() | NodeFailed() | NodeSkipped():
                yield from run.end(event)
            case RunFinished():
                del self._runs[event.run_id]
                yield run.finish(event)


@dataclass(slots=True)
class _Run:
    """A run in progress. ``offset``: seconds between ``Event.at`` and the system's clock.

    ``places``: of the nodes, by name. ``last``: those that no other takes from, in order.
    ``begun``: when steps in progress have started.
    """

    id: str
    started_at: float
    offset: float
    places: Mapping[str, int] = field(default_factory=dict)
    last: tuple[str, ...] = ()
    begun: dict[str, float] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, event: Event) -> Self:
        """The run of an event, which is the first one that is told of it."""
        if not isinstance(event, RunStarted):  # events were left out
            return cls(event.run_id, event.at, time.time() - event.at)
        taken_from = {name for others in event.edges.values() for name in others}
        return cls(
            event.run_id,
            event.at,
            event.time - event.at,
            {name: number for number, name in enumerate(event.task_names)},
            tuple(name for name in event.task_names if name not in taken_from),
        )

    def timestamp(self, at: float) -> datetime:
        """A moment of ``Event.at``."""
        return datetime.fromtimestamp(at + self.offset, UTC)

    def begin(self, event: NodeStarted | _Ends) -> StepStartEvent:
        """A step has started, now."""
        self.begun[event.task_name] = event.at
        return StepStartEvent(**self._about(event))

    def end(self, event: _Ends) -> Iterator[HookEvent]:
        """A step has ended. One that needed no task has started in the same moment."""
        name = event.task_name
        if name not in self.begun:
            if isinstance(event, NodeSkipped):
                return
            yield self.begin(event)
        duration, about = (event.at - self.begun.pop(name)) * 1000, self._about(event)
        if isinstance(event, NodeFailed):
            yield StepErrorEvent(error=event.error, **about)
            return
        result = event.result if isinstance(event, NodeCompleted) else None
        if name in self.last:
            self.results[name] = result
        is_left_out = isinstance(event, NodeSkipped)  # what has begun is skipped by a filter only
        yield StepCompleteEvent(
            result=result, duration_ms=duration, is_left_out=is_left_out, **about
        )

    def finish(self, event: RunFinished) -> PipelineCompleteEvent | PipelineErrorEvent:
        """The run has ended."""
        moment = self.timestamp(event.at)
        if event.outcome == "failed" and event.error is not None:
            return PipelineErrorEvent(pipeline_id=self.id, timestamp=moment, error=event.error)
        is_whole = event.outcome == "completed"
        return PipelineCompleteEvent(
            pipeline_id=self.id,
            timestamp=moment,
            status="COMPLETED" if is_whole else "CANCELLED",
            duration_ms=(event.at - self.started_at) * 1000,
            result=self._result() if is_whole else None,
        )

    def _about(self, event: NodeStarted | _Ends) -> dict[str, Any]:
        name = event.task_name
        node = node_of(name, event.index)
        return {
            "pipeline_id": self.id,
            "timestamp": self.timestamp(event.at),
            "step_name": name,
            "step_index": self.places.get(node, 0),
            "task_id": "" if isinstance(event, NodeSkipped) else event.task_id,
        }

    def _result(self) -> Any:
        if len(self.last) == 1:
            return self.results.get(self.last[0])
        return {name: self.results[name] for name in self.last if name in self.results}


async def _awaited(hook: object, answer: Awaitable[object]) -> None:
    try:
        await answer
    except Exception as error:  # whatever it raises is its own affair
        _log(hook, error)


def _log(hook: object, error: Exception) -> None:
    logger.error("hook %r raised; the others are called", hook, exc_info=error)
