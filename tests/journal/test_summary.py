"""The summary of a run says the same as its view, at each event."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from taskiq import InMemoryBroker

from taskiq_flow import DAGBuilder, ExecutionEngine, RunFailedError, RunView
from taskiq_flow.journal.summary import Head, SummaryWriter
from tests.recording import Recorder


def numbers(count: int) -> Iterator[int]:
    yield from range(count)


def half(number: int) -> int:
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number // 2


def total_of(view: RunView) -> int:
    """A mapped node counts by its elements, or as one if it failed or was skipped as a whole."""
    return sum(
        1 if node.elements is None else node.elements.known or node.state in ("failed", "skipped")
        for node in view.nodes.values()
    )


async def test_the_totals_of_a_generator_that_runs_are_those_of_the_view() -> None:
    builder = DAGBuilder().node(numbers, inputs=["count"], retry=2)
    builder.node(half, inputs={"number": "numbers"}, map_over="numbers")
    builder.node(abs, name="again", inputs={"x": "half"}, map_over="half")
    builder.node(sum, name="total", inputs=["half"])
    builder.node(abs, name="each", inputs={"x": "total"}, map_over="total")
    recorder = Recorder()
    engine = ExecutionEngine(
        InMemoryBroker(), builder.build(), listeners=[recorder], on_error="continue"
    )
    with suppress(RunFailedError):
        await engine.execute({"count": 8}, run_id="r")
    view, writer = RunView(), SummaryWriter("r", Head())
    for event in recorder.events:
        view.apply(event)
        writer.apply([event])
        summary = writer.summary()
        assert summary.total == total_of(view), event
    assert (summary.total, summary.completed, summary.failed, summary.skipped) == (19, 9, 4, 6)
