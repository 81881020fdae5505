"""The spans and metrics of runs. Imports OpenTelemetry's interface, and not its implementation.

Spans of attempts start when they are sent, as the message has to carry their context, and end by
events, which come a little later. Whatever is open when ``RunFinished`` comes ends with it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from opentelemetry import context as context_api
from opentelemetry import metrics, propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode

from taskiq_flow.events import (
    Event,
    Index,
    NodeBegan,
    NodeCompleted,
    NodeFailed,
    NodeFellBack,
    NodeRetried,
    NodeSkipped,
    NodeStarted,
    RunFinished,
    RunStarted,
    node_of,
)
from taskiq_flow.previews import printable
from taskiq_flow.version import __version__

MOST_LINKS = 128
"""Links of one span, as OpenTelemetry limits them by default."""

MOST_HELD = 1_000
"""Elements of a mapped node, the last ones, to which other spans may link."""

Place = tuple[int, ...]
"""The index of an element as a tuple; empty for a node that is no map."""


class Spans:
    """Starts and ends the spans of any number of runs, and records their metrics."""

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        self._tracer = trace.get_tracer("taskiq_flow", __version__, tracer_provider)
        self._metrics = _Metrics(metrics.get_meter("taskiq_flow", __version__, meter_provider))
        self._runs: dict[str, _Run] = {}

    def on_sending(self, sending: NodeStarted) -> Mapping[str, str]:
        """Start the span of an attempt, in the present context. Returns this as labels."""
        run = self._run(sending)
        name, place = _whole(sending.task_name, sending.index), _place(sending.index)
        attributes: dict[str, Any] = {
            "taskiq_flow.run_id": printable(sending.run_id),
            "taskiq_flow.node": name,
            "taskiq_flow.task_id": printable(sending.task_id),
            "taskiq_flow.attempt": sending.attempt,
        }
        if place:
            attributes["taskiq_flow.index"] = place
        links = [Link(context) for context in run.inputs_of(name, place)]
        span = self._tracer.start_span(
            name,
            run.context,
            SpanKind.PRODUCER,
            attributes,
            links,
            run.nanoseconds(sending.at),
        )
        run.hold(name, place, span.get_span_context())
        run.attempts[sending.task_name, sending.attempt] = _Attempt(span, name, sending.at)
        self._metrics.in_flight.add(1)
        context = trace.set_span_in_context(span, run.context)
        context_api.attach(context)  # for the sending alone, which has a context of its own
        labels: dict[str, str] = {}
        propagate.inject(labels, context)
        return labels

    def on_event(self, event: Event) -> None:
        """Do what follows from an event."""
        run = self._run(event)
        match event:
            case RunStarted():
                run.edges = {
                    printable(name): [printable(other) for other in others]
                    for name, others in event.edges.items()
                }
            case NodeBegan():
                if attempt := run.attempts.get((event.task_name, event.attempt)):
                    worker = {"taskiq_flow.worker": printable(event.worker)}
                    attempt.span.set_attributes(worker)
                    attempt.span.add_event("began", worker, run.nanoseconds(event.at))
            case NodeRetried():
                self._retried(run, event)
            case NodeFellBack():
                self._end(run, event.task_name, event.attempt - 1, event.at, "failed", event.error)
            case NodeCompleted(task_name=name, attempt=number):
                self._end(run, name, number, event.at, "completed", queued=event.queued)
            case NodeFailed(task_name=name, attempt=number):
                self._metrics.count_failure(_whole(name, event.index), event.error)
                self._end(run, name, number, event.at, "failed", event.error, event.queued)
            case NodeSkipped():
                self._end(run, event.task_name, event.attempt, event.at, "skipped")
            case RunFinished():
                self._finish(run, event)

    def _run(self, event: Event) -> _Run:
        """The run of an event. Its span starts with whatever is heard of it first."""
        run = self._runs.get(event.run_id)
        if run is None:
            now = event.time if isinstance(event, RunStarted) else time.time()
            run = self._runs[event.run_id] = _Run(event.at, now - event.at)
            run.span = self._tracer.start_span(
                "taskiq_flow.run",
                attributes={"taskiq_flow.run_id": printable(event.run_id)},
                start_time=run.nanoseconds(event.at),
            )
            run.context = trace.set_span_in_context(run.span)
        return run

    def _retried(self, run: _Run, event: NodeRetried) -> None:
        """The attempt before has ended, unless a middleware has sent it again under its context."""
        name, number = event.task_name, event.attempt
        self._metrics.retries.add(1, {"taskiq_flow.node": _whole(name, event.index)})
        if (name, number) in run.attempts:
            self._end(run, name, number - 1, event.at - event.delay, "failed", event.error)
        elif attempt := run.attempts.pop((name, number - 1), None):
            attempt.span.add_event("sent again", timestamp=run.nanoseconds(event.at))
            run.attempts[name, number] = attempt

    def _end(
        self,
        run: _Run,
        name: str,
        number: int,
        at: float,
        outcome: str,
        error: BaseException | None = None,
        queued: float | None = None,
    ) -> None:
        """End the span of an attempt, if there is one: what the cache gives has none."""
        attempt = run.attempts.pop((name, number), None)
        if attempt is None:
            return
        _close(attempt.span, run.nanoseconds(at), outcome, error)
        self._metrics.in_flight.add(-1)
        about = {"taskiq_flow.node": attempt.name, "taskiq_flow.outcome": outcome}
        self._metrics.node_duration.record(at - attempt.sent_at, about)
        if queued is not None:
            self._metrics.node_queued.record(queued, {"taskiq_flow.node": attempt.name})

    def _finish(self, run: _Run, event: RunFinished) -> None:
        for name, number in tuple(run.attempts):
            self._end(run, name, number, event.at, "cancelled")
        error = event.error if event.outcome == "failed" else None
        _close(run.span, run.nanoseconds(event.at), event.outcome, error)
        about = {"taskiq_flow.outcome": event.outcome}
        self._metrics.run_duration.record(event.at - run.started_at, about)
        del self._runs[event.run_id]


class _Metrics:
    """The instruments. Durations are in seconds; attributes have nodes, and never elements."""

    def __init__(self, meter: metrics.Meter) -> None:
        self.run_duration = meter.create_histogram(
            "taskiq_flow.run.duration", "s", "How long runs took"
        )
        self.node_duration = meter.create_histogram(
            "taskiq_flow.node.duration", "s", "From the sending of an attempt to its end"
        )
        self.node_queued = meter.create_histogram(
            "taskiq_flow.node.queued", "s", "From the sending of an attempt until a worker began it"
        )
        self.failures = meter.create_counter(
            "taskiq_flow.node.failures", "{node}", "Nodes and elements that failed for good"
        )
        self.retries = meter.create_counter(
            "taskiq_flow.node.retries", "{attempt}", "Attempts after the first one"
        )
        self.in_flight = meter.create_up_down_counter(
            "taskiq_flow.node.in_flight", "{node}", "Nodes and elements that are sent, not ended"
        )

    def count_failure(self, name: str, error: BaseException) -> None:
        """Count a node or an element that has failed for good."""
        about = {"taskiq_flow.node": name, "error.type": type(error).__qualname__}
        self.failures.add(1, about)


@dataclass(slots=True)
class _Attempt:
    """An attempt in flight. ``name``: of the node, also for an element of it."""

    span: Span
    name: str
    sent_at: float


@dataclass(slots=True)
class _Run:
    """A run in progress. ``offset``: seconds between ``Event.at`` and the system's clock.

    ``attempts``: those in flight, by the name of the node or element and the attempt's number.
    ``contexts``: by node and place, where spans of the nodes behind it link to.
    """

    started_at: float
    offset: float
    span: Span = trace.INVALID_SPAN
    context: Context = field(default_factory=Context)
    edges: Mapping[str, list[str]] = field(default_factory=dict)
    attempts: dict[tuple[str, int], _Attempt] = field(default_factory=dict)
    contexts: dict[str, OrderedDict[Place, SpanContext]] = field(default_factory=dict)

    def nanoseconds(self, at: float) -> int:
        """A moment of ``Event.at`` as OpenTelemetry has it."""
        return int((at + self.offset) * 1e9)

    def hold(self, name: str, place: Place, context: SpanContext) -> None:
        """Remember the last attempt of a node or an element, for links."""
        held = self.contexts.setdefault(name, OrderedDict())
        held[place] = context
        if len(held) > MOST_HELD:
            held.popitem(last=False)

    def inputs_of(self, name: str, place: Place) -> list[SpanContext]:
        """Where the inputs of a node or an element come from: up to 128 of the last ones."""
        others = self.edges.get(name, ())
        found = [context for other in others for context in self._outputs_of(other, place)]
        return found[-MOST_LINKS:]

    def _outputs_of(self, name: str, place: Place) -> Iterator[SpanContext]:
        """The span of a node, of its element at the same place, or of all its elements there."""
        held = self.contexts.get(name, OrderedDict())
        for length in range(len(place), -1, -1):
            if (context := held.get(place[:length])) is not None:
                yield context
                return
        for other, context in held.items():
            if other[: len(place)] == place:
                yield context


def _close(span: Span, at: int, outcome: str, error: BaseException | None) -> None:
    span.set_attribute("taskiq_flow.outcome", outcome)
    if outcome == "failed":
        kind = "" if error is None else type(error).__qualname__
        if error is not None:
            span.record_exception(error, timestamp=at)
            span.set_attribute("error.type", kind)
        span.set_status(Status(StatusCode.ERROR, kind or None))
    span.end(at)


def _place(index: Index | None) -> Place:
    if index is None:
        return ()
    return index if isinstance(index, tuple) else (index,)


def _whole(name: str, index: Index | None) -> str:
    """The name of a node, of that also for an element of it."""
    return printable(node_of(name, index))
