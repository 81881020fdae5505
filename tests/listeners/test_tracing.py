"""Tracing: each span that starts ends, in the right place of the tree, however a run ends."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Iterable
from typing import Any

import pytest
from taskiq import Context, InMemoryBroker, SimpleRetryMiddleware, TaskiqDepends

from taskiq_flow import (
    Cache,
    ConfigurationError,
    DAGBuilder,
    ExecutionEngine,
    MemoryJournal,
    NodeFailedError,
    NodeStarted,
    Retry,
    RunCancelledError,
    RunStarted,
    Tracing,
)
from tests.recording import Recorder
from tests.virtual_clock import virtually

pytest.importorskip("opentelemetry.sdk")  # not in the environment of the core

from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from taskiq.middlewares.opentelemetry_middleware import OpenTelemetryMiddleware

from tests.listeners.spans import SpanRecorder


@pytest.fixture
def spans() -> SpanRecorder:
    return SpanRecorder()


def attributes(span: ReadableSpan, *names: str) -> tuple[Any, ...]:
    assert span.attributes is not None
    return tuple(span.attributes.get(f"taskiq_flow.{name}") for name in names)


def linked(spans: SpanRecorder, span: ReadableSpan) -> list[tuple[str, Any]]:
    by_id = {other.get_span_context().span_id: other for other in spans.ended}
    found = [by_id[link.context.span_id] for link in span.links]
    return [(other.name, attributes(other, "index")[0]) for other in found]


async def succeed(x: int = 0, y: int = 0) -> int:
    return x + 1


async def fail(x: int = 0) -> int:
    raise LookupError("no such thing")


async def hang(x: int = 0) -> int:
    await asyncio.Event().wait()
    return x


async def test_a_run_is_a_span_and_each_node_one_below_it(spans: SpanRecorder) -> None:
    dag = (
        DAGBuilder()
        .node(succeed, name="load")
        .node(succeed, name="left", inputs={"x": "load"})
        .node(succeed, name="right", inputs={"x": "load"})
        .node(succeed, name="both", inputs={"x": "left", "y": "right"})
        .build()
    )
    tracer = spans.provider.get_tracer("test")
    with tracer.start_as_current_span("request"):
        engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[Tracing(spans.provider)])
        await engine.execute(run_id="nightly")
    assert spans.open == []
    run, both = spans.of("taskiq_flow.run"), spans.of("both")
    assert spans.parent(run).name == "request"
    assert attributes(run, "run_id", "outcome") == ("nightly", "completed")
    assert attributes(both, "node", "attempt", "index") == ("both", 1, None)
    for name in ("load", "left", "right", "both"):
        assert spans.parent(spans.of(name)) is run
        assert run.start_time <= spans.of(name).start_time <= spans.of(name).end_time
        assert spans.of(name).end_time <= run.end_time
    assert linked(spans, spans.of("load")) == []
    assert linked(spans, both) == [("left", None), ("right", None)]


@virtually
async def test_spans_have_the_times_of_the_events() -> None:
    async def nap() -> None:
        await asyncio.sleep(2.0)

    spans, dag = SpanRecorder(), DAGBuilder().node(nap).build()
    await ExecutionEngine(InMemoryBroker(), dag, listeners=[Tracing(spans.provider)]).execute()
    for name in ("nap", "taskiq_flow.run"):
        span = spans.of(name)
        assert (span.end_time - span.start_time) / 1e9 == pytest.approx(2.0, abs=1e-3)


async def test_each_attempt_is_a_span_with_its_error(spans: SpanRecorder) -> None:
    dag = DAGBuilder().node(fail, retry=Retry(2, wait=0.0), fallback=succeed).build()
    engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[Tracing(spans.provider)])
    await engine.execute()
    assert spans.open == []
    attempts = [span for span in spans.ended if span.name == "fail"]
    told = [attributes(span, "attempt", "outcome") for span in attempts]
    assert told == [(1, "failed"), (2, "failed"), (3, "completed")]
    assert [span.status.is_ok for span in attempts] == [False, False, True]
    assert [event.name for event in attempts[0].events] == ["began", "exception"]
    assert attempts[1].attributes is not None
    assert attempts[1].attributes["error.type"] == "LookupError"


async def test_spans_end_when_a_run_fails(spans: SpanRecorder) -> None:
    dag = DAGBuilder().node(hang).node(fail).build()
    engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[Tracing(spans.provider)])
    with pytest.raises(NodeFailedError):
        await engine.execute()
    assert spans.open == []
    assert attributes(spans.of("hang"), "outcome") == ("cancelled",)
    assert attributes(spans.of("taskiq_flow.run"), "outcome") == ("failed",)
    assert not spans.of("taskiq_flow.run").status.is_ok


async def test_spans_end_when_a_run_is_cancelled(spans: SpanRecorder) -> None:
    dag = DAGBuilder().node(hang).build()
    engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[Tracing(spans.provider)])
    run = engine.start()
    async for event in run.events():
        if isinstance(event, NodeStarted):
            run.cancel()
    with pytest.raises(RunCancelledError):
        await run
    assert spans.open == []
    assert attributes(spans.of("taskiq_flow.run"), "outcome") == ("cancelled",)
    assert spans.of("taskiq_flow.run").status.is_ok


async def test_spans_end_when_a_run_is_abandoned(spans: SpanRecorder) -> None:
    dag = DAGBuilder().node(succeed).node(hang).build()
    engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[Tracing(spans.provider)])
    results = engine.execute_async()
    async for _ in results:
        break
    await results.aclose()
    assert spans.open == []
    assert attributes(spans.of("hang"), "outcome") == ("cancelled",)
    assert attributes(spans.of("taskiq_flow.run"), "outcome") == ("cancelled",)


async def test_an_element_is_a_span_that_links_to_the_element_before_it(
    spans: SpanRecorder,
) -> None:
    dag = (
        DAGBuilder()
        .node(str.split, name="words", inputs=["texts"], map_over="texts", flatten=True)
        .node(str.upper, name="up", inputs=["words"], map_over="words")
        .node(len, name="count", inputs=["up"])
        .build()
    )
    engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[Tracing(spans.provider)])
    await engine.execute({"texts": ["a b", "c d"]})
    assert spans.open == []
    up = {attributes(s, "index")[0]: linked(spans, s) for s in spans.ended if s.name == "up"}
    assert up == {(i, j): [("words", (i,))] for i in range(2) for j in range(2)}
    indices = {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert set(linked(spans, spans.of("count"))) == {("up", index) for index in indices}


async def test_what_an_endless_map_holds_is_bounded(
    spans: SpanRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("taskiq_flow.listeners.spans")
    monkeypatch.setattr(module, "MOST_HELD", 5)
    monkeypatch.setattr(module, "MOST_LINKS", 3)
    dag = (
        DAGBuilder()
        .node(succeed, name="one", inputs={"x": "xs"}, map_over="xs")
        .node(len, name="count", inputs=["one"])
        .build()
    )
    engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[Tracing(spans.provider)])
    await engine.execute({"xs": list(range(20))})
    assert [place for _, place in linked(spans, spans.of("count"))] == [(17,), (18,), (19,)]


async def test_what_needs_no_task_has_no_span(spans: SpanRecorder) -> None:
    dag = (
        DAGBuilder()
        .node(succeed, cache=Cache())
        .node(fail, inputs={"x": "succeed"}, when=lambda succeed: False)
        .build()
    )
    engine = ExecutionEngine(
        InMemoryBroker(), dag, listeners=[Tracing(spans.provider)], journal=MemoryJournal()
    )
    await engine.execute()
    spans.ended.clear()
    await engine.execute()
    assert [span.name for span in spans.ended] == ["taskiq_flow.run"]
    assert spans.open == []


async def test_the_span_of_a_task_is_below_that_of_its_node(spans: SpanRecorder) -> None:
    """With taskiq's middleware on the broker: there is the span of the sending between the two."""
    broker = InMemoryBroker().with_middlewares(OpenTelemetryMiddleware(spans.provider))

    async def ask(x: int) -> int:
        with spans.provider.get_tracer("test").start_as_current_span("asking"):
            return x

    dag = DAGBuilder().node(succeed, inputs={"x": "n"}).node(ask, inputs={"x": "succeed"}).build()
    engine = ExecutionEngine(broker, dag, listeners=[Tracing(spans.provider)])
    await engine.execute({"n": 1})
    assert spans.open == []
    lines = [span.name.partition(":")[0] for span in spans.ancestry(spans.of("asking"))]
    assert [line.partition("/")[0] for line in lines] == [
        "asking",
        "execute",
        "send",
        "ask",
        "taskiq_flow.run",
    ]


async def test_a_task_of_this_process_is_executed_in_the_context_of_its_node(
    spans: SpanRecorder,
) -> None:
    async def ask(x: int) -> int:
        with spans.provider.get_tracer("test").start_as_current_span(f"asking {x}"):
            return x + 1

    dag = (
        DAGBuilder()
        .node(ask, name="first", inputs={"x": "n"})
        .node(ask, name="second", inputs={"x": "first"})
        .build()
    )
    engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[Tracing(spans.provider)])
    await engine.execute({"n": 1})
    assert spans.parent(spans.of("asking 1")).name == "first"
    assert spans.parent(spans.of("asking 2")).name == "second"
    assert not trace.get_current_span().get_span_context().is_valid


async def test_a_message_carries_the_context_of_its_attempt(spans: SpanRecorder) -> None:
    async def context(context: Context = TaskiqDepends()) -> str:  # noqa: B008
        label: str = context.message.labels["traceparent"]
        return label

    dag = DAGBuilder().node(context).build()
    engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[Tracing(spans.provider)])
    sent = (await engine.execute())["context"]
    about = spans.of("context").context
    assert sent.startswith(f"00-{about.trace_id:032x}-{about.span_id:016x}-")


async def test_an_attempt_that_a_middleware_sends_again_goes_on_in_its_span(
    spans: SpanRecorder,
) -> None:
    broker, answers = InMemoryBroker().with_middlewares(SimpleRetryMiddleware()), iter([0, 0, 1])

    @broker.task(retry_on_error=True, max_retries=5)
    async def divide() -> float:
        return 1 / next(answers)

    engine = ExecutionEngine(
        broker, DAGBuilder().node(divide).build(), listeners=[Tracing(spans.provider)]
    )
    await engine.execute()
    assert spans.open == []
    (span,) = [span for span in spans.ended if span.name.endswith("divide")]
    assert attributes(span, "outcome") == ("completed",)
    assert [event.name for event in span.events].count("sent again") == 2


async def test_metrics(spans: SpanRecorder) -> None:
    reader = InMemoryMetricReader()
    meters = MeterProvider(metric_readers=[reader])
    dag = (
        DAGBuilder()
        .node(succeed, inputs={"x": "xs"}, map_over="xs")
        .node(fail, retry=Retry(3, wait=0.0))
        .build()
    )
    tracing = Tracing(spans.provider, meters)
    engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[tracing], on_error="collect")
    await engine.execute({"xs": [1, 2, 3]})
    found = dict(points(reader))
    assert found["taskiq_flow.run.duration", "completed"].count == 1
    assert found["taskiq_flow.node.duration", "succeed", "completed"].count == 3
    assert found["taskiq_flow.node.duration", "fail", "failed"].count == 3
    assert found["taskiq_flow.node.queued", "succeed"].count == 3
    assert found["taskiq_flow.node.failures", "fail", "LookupError"].value == 1
    assert found["taskiq_flow.node.retries", "fail"].value == 2
    assert found["taskiq_flow.node.in_flight",].value == 0


def points(reader: InMemoryMetricReader) -> Iterable[tuple[tuple[Any, ...], Any]]:
    data: Any = reader.get_metrics_data()
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        for point in metric.data.data_points:
            yield (metric.name, *point.attributes.values()), point


async def test_a_listener_adds_labels_to_messages_and_one_that_raises_is_dropped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Labelling:
        def on_event(self, event: object) -> None:
            events.append(event)

        def on_sending(self, sending: NodeStarted) -> dict[str, str]:
            assert isinstance(events[0], RunStarted)
            if sending.task_name == "second":
                raise RuntimeError("broken")
            return {"sent": f"{sending.task_name} {sending.attempt}"}

    async def label(x: object = None, context: Context = TaskiqDepends()) -> Any:  # noqa: B008
        return context.message.labels.get("sent")

    dag = (
        DAGBuilder()
        .node(label, name="first")
        .node(label, name="second", inputs={"x": "first"})
        .node(label, name="third", inputs={"x": "second"})
        .build()
    )
    recorder, events = Recorder(), list[object]()
    engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[Labelling(), recorder])
    results = await engine.execute()
    assert results == {"first": "first 1", "second": None, "third": None}
    assert len(recorder.of(NodeStarted)) == 3
    assert "it is dropped for this run" in caplog.text


def test_without_opentelemetry_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "taskiq_flow.listeners.spans", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ConfigurationError, match=r"taskiq-flow\[otel\]"):
        Tracing()
