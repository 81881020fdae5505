"""The spans that a test makes, those that are open among them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider


class SpanRecorder(SpanProcessor):
    """Keeps the spans of its provider: those that have ended, and those that have not."""

    def __init__(self) -> None:
        self.provider = TracerProvider()
        self.provider.add_span_processor(self)
        self.open: list[str] = []
        self.ended: list[Any] = []

    def on_start(self, span: Any, parent_context: object = None) -> None:
        self.open.append(span.name)

    def on_end(self, span: ReadableSpan) -> None:
        self.open.remove(span.name)
        self.ended.append(span)

    def of(self, name: str) -> Any:
        """The one span of a name."""
        (span,) = [span for span in self.ended if span.name == name]
        return span

    def parent(self, span: Any) -> Any:
        """The span above another one."""
        (parent,) = [s for s in self.ended if s.context.span_id == span.parent.span_id]
        return parent

    def ancestry(self, span: Any) -> Iterator[Any]:
        """A span and those above it."""
        yield span
        while span.parent is not None:
            span = self.parent(span)
            yield span
