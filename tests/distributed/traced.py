"""A broker whose workers trace what they execute, as taskiq's own instrumentation does."""

from __future__ import annotations

import os
from pathlib import Path

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from taskiq import AsyncBroker
from taskiq.instrumentation import TaskiqInstrumentor

from tests.distributed import app

SPANS = "TASKIQ_FLOW_TEST_SPANS"
"""The environment variable by which a worker is told where it writes its spans, one a line."""


def from_environment() -> AsyncBroker:
    """The broker that a worker serves."""
    broker = app.from_environment()
    file = Path(os.environ[SPANS]).open("a", encoding="utf-8", buffering=1)  # noqa: SIM115 - to the end
    exporter = ConsoleSpanExporter(
        out=file, formatter=lambda span: f"{span.to_json(indent=None)}\n"
    )
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    TaskiqInstrumentor().instrument_broker(broker, provider)
    return broker
