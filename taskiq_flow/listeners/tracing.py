"""A listener that traces runs with OpenTelemetry."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from taskiq_flow.errors import ConfigurationError
from taskiq_flow.events import Event, NodeStarted, SendingListener
from taskiq_flow.suggestions import suggests_keywords


@suggests_keywords()
class Tracing:
    """Makes spans and metrics of the runs of the engines that it is a listener of.

    A run is a span, and so is each attempt of a node within it, with links to the spans of its
    inputs. Messages carry the context of the attempt's span: the spans that taskiq's
    ``OpenTelemetryMiddleware`` makes on workers are below it. ``docs/tracing.md`` lists attributes
    and metrics.

    ``tracer_provider``, ``meter_provider``: those of OpenTelemetry; otherwise the global ones.
    Needs the extra ``otel``; ``ConfigurationError`` is raised if ``opentelemetry-api`` is not
    installed.

    >>> from opentelemetry.sdk.trace import TracerProvider
    >>> from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    >>> from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    >>> provider, exporter = TracerProvider(), InMemorySpanExporter()
    >>> provider.add_span_processor(SimpleSpanProcessor(exporter))
    >>> dag = DAGBuilder().node(abs, inputs=["number"]).build()
    >>> engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[Tracing(provider)])
    >>> engine.execute_sync({"number": -7})
    {'abs': 7}
    >>> [span.name for span in exporter.get_finished_spans()]
    ['abs', 'taskiq_flow.run']
    """

    def __init__(self, tracer_provider: Any = None, meter_provider: Any = None) -> None:
        self._spans = _spans(tracer_provider, meter_provider)

    def on_event(self, event: Event) -> None:
        """End the spans that the event ends, and note what it says in those that are open."""
        self._spans.on_event(event)

    def on_sending(self, sending: NodeStarted) -> Mapping[str, str]:
        """Start the span of an attempt. Returns its context as the labels of the message."""
        return self._spans.on_sending(sending)


def _spans(tracer_provider: Any, meter_provider: Any) -> SendingListener:
    try:
        module: Any = importlib.import_module("taskiq_flow.listeners.spans")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "opentelemetry":
            raise
        raise ConfigurationError(
            "Tracing() needs opentelemetry-api, which is not installed; install the extra otel: "
            "pip install 'taskiq-flow[otel]'"
        ) from error
    spans: SendingListener = module.Spans(tracer_provider, meter_provider)
    return spans
