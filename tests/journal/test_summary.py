"""The summary of a run, as it is kept from batches of events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from taskiq_flow import ElementsKnown, Event, NodeBegan, NodeCompleted, NodeStarted, RunStarted
from taskiq_flow.journal.summary import Head, RunSummary, SummaryWriter


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
        writer.apply(batch)
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
