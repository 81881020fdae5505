"""The summary of a run: it is kept from batches of events, and says the same as its view."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAGBuilder,
    ElementsKnown,
    Event,
    ExecutionEngine,
    NodeBegan,
    NodeCompleted,
    NodeFellBack,
    NodeRetried,
    NodeStarted,
    RunFailedError,
    RunFinished,
    RunStarted,
    RunView,
)
from taskiq_flow.events import Outcome
from taskiq_flow.journal.summary import Head, RunState, RunSummary, SummaryWriter
from taskiq_flow.notes import notes_of
from tests.recording import Recorder


def of_node(name: str, index: int | None = None) -> list[Event]:
    return [
        NodeStarted("r", 1.0, name, f"r:{name}:1", index),
        NodeBegan("r", 2.0, name, f"r:{name}:1", "host:7", index),
        NodeCompleted("r", 3.0, name, f"r:{name}:1", None, "task", index, 1),
    ]


PLAIN: list[Event] = [RunStarted("r", 0.0, ("a", "b"), 1e9), *of_node("a"), *of_node("b")]
MAPPED: list[Event] = [
    RunStarted("r", 0.0, ("a", "b"), 1e9, mapped={"b": 1}),
    *of_node("a"),
    ElementsKnown("r", 3.0, "b", 2),
    *of_node("b[0]", 0),
    *of_node("b[1]", 1),
]


def summary_of(batches: Sequence[Sequence[Event]]) -> RunSummary:
    writer = SummaryWriter("r", Head())
    for batch in batches:
        writer.apply(notes_of(batch), batch[-1].seq)
    return replace(writer.summary(), started=0.0)


UNKNOWN = [event for event in MAPPED if not isinstance(event, ElementsKnown)]


@pytest.mark.parametrize(
    ("events", "counts"),
    [(PLAIN, (2, 2)), (MAPPED, (3, 3)), (MAPPED[1:], (3, 2)), (UNKNOWN, (3, 3))],
)
def test_batches_of_any_size_make_the_same_summary(
    events: list[Event], counts: tuple[int, int]
) -> None:
    events = [replace(event, seq=number) for number, event in enumerate(events, 1)]
    one_by_one = summary_of([[event] for event in events])
    assert (one_by_one.completed, one_by_one.total) == counts
    assert one_by_one.seq == len(events)
    for size in range(2, len(events) + 1):
        batches = [events[start : start + size] for start in range(0, len(events), size)]
        assert summary_of(batches) == one_by_one


def numbers(count: int) -> Iterator[int]:
    yield from range(count)


def half(number: int) -> int:
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number // 2


def total_of(view: RunView) -> int:
    """A mapped node counts by its elements, and as one more if it failed or was skipped itself."""
    return sum(
        1 if node.elements is None else node.elements.known + node.ended_itself
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
        writer.apply(notes_of([event]), event.seq)
        summary = writer.summary()
        assert summary.total == total_of(view), event
    assert (summary.total, summary.completed, summary.failed, summary.skipped) == (19, 9, 4, 6)


async def test_a_map_that_fails_itself_counts_beside_its_elements() -> None:
    builder = DAGBuilder()
    builder.node(lambda xs, ys: xs + ys, name="m", inputs=["xs", "ys"], map_over=["xs", "ys"])
    recorder = Recorder()
    engine = ExecutionEngine(
        InMemoryBroker(), builder.build(), listeners=[recorder], on_error="collect"
    )
    await engine.execute({"xs": [1, 2], "ys": [1]}, run_id="r")
    view, writer = RunView(), SummaryWriter("r", Head())
    view.apply_all(recorder.events)
    writer.apply(notes_of(recorder.events), recorder.events[-1].seq)
    summary = writer.summary()
    assert (summary.total, summary.completed, summary.failed) == (2, 1, 1) == (total_of(view), 1, 1)


def test_an_element_that_is_tried_again_by_another_engine_is_in_the_total() -> None:
    error = ValueError("odd")
    events: list[Event] = [
        RunStarted("r", 0.0, ("m",), 1e9, mapped={"m": 1}, seq=1),
        NodeRetried("r", 1.0, "m[0]", "t", 2, error, 0, seq=2),
        NodeFellBack("r", 1.0, "m[1]", "t", error, 1, 1, 2, seq=3),
        NodeBegan("r", 1.0, "m[0]", "t", "host:7", 0, 2, seq=4),
        NodeRetried("r", 1.0, "m[0]", "t", 3, error, 0, seq=5),
    ]
    view = RunView()
    view.apply_all(events)
    assert summary_of([events]).total == total_of(view) == 2


def test_a_run_has_not_ended_before_it_began_by_the_clock_of_an_earlier_engine() -> None:
    writer = SummaryWriter("r", Head())
    writer.go_on_after(RunSummary("r", "running", started=1_000.0))
    events: list[Event] = [
        RunStarted("r", 5.0, ("a",), 400.0),
        RunFinished("r", 7.0, "completed", None),
    ]
    writer.apply(notes_of(events), 9)
    summary = writer.summary()
    assert (summary.started, summary.ended) == (1_000.0, 1_000.0)


@pytest.mark.parametrize(
    ("status", "event", "outcome", "ended"),
    [
        ("completed", NodeCompleted("r", 6.0, "a", "", 7, "journal"), "completed", 400.0),
        ("completed", NodeCompleted("r", 6.0, "a", "", 7, "cache"), "completed", 1_002.0),
        ("completed", NodeStarted("r", 6.0, "a", ""), "completed", 1_002.0),
        ("completed", NodeRetried("r", 6.0, "a", "", 2, ValueError()), "completed", 1_002.0),
        ("completed", NodeCompleted("r", 6.0, "a", "", 7, "journal"), "cancelled", 1_002.0),
        ("cancelled", NodeCompleted("r", 6.0, "a", "", 7, "journal"), "completed", 1_002.0),
    ],
)
def test_a_resume_that_runs_nothing_does_not_move_the_end_of_a_completed_run(
    status: RunState, event: Event, outcome: Outcome, ended: float
) -> None:
    writer = SummaryWriter("r", Head())
    writer.go_on_after(RunSummary("r", status, started=100.0, ended=400.0))
    writer.apply(notes_of([RunStarted("r", 5.0, ("a",), 1_000.0)]), 9)
    assert writer.summary().ended is None
    writer.apply(notes_of([event, RunFinished("r", 7.0, outcome, None)]), 11)
    assert writer.summary().ended == ended
