"""Events as lines: what is written at speed says what ``to_dict`` says, and is read again."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from taskiq_flow import NodeBegan, NodeCompleted, NodeStarted, RunStarted
from taskiq_flow.events import Event
from taskiq_flow.journal.wire import LineWriter, read_lines
from tests.test_events import EXAMPLES

ODD = 'a"\\\n%d%\u2028\ud800é🏃'
VALUES: list[Any] = [
    *(None, True, 0, -7, 1 << 80, 1 << 90_000, 1.5, float("nan"), float("-inf")),
    *("", "text", ODD, "x" * 1_000, "運" * 1_000, b"\xff", [1, {"a": None}], object()),
]

NAMES = ("a", "b [x, y]{%s}'")
FREQUENT: list[Event] = [
    RunStarted("r", 0.1, (), 2.5),
    RunStarted(ODD, 0.1, NAMES, 2.5, {"b": NAMES}, {"b": 1}, {"a": 7.5}, {"a": "f"}, {"a": ()}),
    *(
        RunStarted(
            "r", 0.1, ("a",), edges={"a": (name,)}, outputs={"a": ("a", "b")}, in_memory=True
        )
        for name in (ODD, '"', "\\", "\n", "é", "\x7f")
    ),
    NodeStarted(ODD, 0.1, ODD, ODD, seq=1),
    NodeStarted("r", 1e-7, "a[1,2]", "r:a[1,2]:1", (1, 2), 3, seq=2),
    NodeBegan("r", 123456.789012345, "a[4]", "t", ODD, 4, seq=3),
    NodeCompleted("r", 0.1, "a", "", None, "journal", seq=4),
    *(
        NodeCompleted("r", 0.1, "a", "t", value, "task", None, 1, 1e-9, 0.25, seq=5)
        for value in VALUES
    ),
]


@pytest.mark.parametrize("event", [*(event for event, _ in EXAMPLES.values()), *FREQUENT])
def test_a_line_says_what_to_dict_says(event: Event) -> None:
    lines = LineWriter(event.run_id).lines([event, replace(event, seq=99)])
    first, second = map(json.loads, lines.splitlines())
    assert first == event.to_dict()
    assert second == {**event.to_dict(), "seq": 99}


def test_lines_of_a_task_that_was_sent_twice_have_its_attempts() -> None:
    events: list[Event] = [
        NodeStarted("r", 0.1, "a", "t", seq=1),
        NodeBegan("r", 0.2, "a", "t", "host:7", attempt=1, seq=2),
        NodeBegan("r", 0.3, "a", "t", "host:8", attempt=2, seq=3),
        NodeCompleted("r", 0.4, "a", "t", None, attempt=2, queued=0.1, seq=4),
        NodeCompleted("r", 0.4, "a", "t", None, attempt=2, queued=0.1, ran=0.1, seq=5),
    ]
    lines = LineWriter("r").lines(events)
    assert list(map(json.loads, lines.splitlines())) == [event.to_dict() for event in events]


@pytest.mark.parametrize("event", [*(event for event, _ in EXAMPLES.values()), *FREQUENT])
def test_an_event_that_is_read_says_the_same_again(event: Event) -> None:
    said = event.to_dict()
    (read,) = read_lines(event.run_id, json.dumps(said).encode())
    assert read.to_dict() == said


def test_types_of_a_later_version_are_left_out() -> None:
    known = NodeStarted("r", 0.1, "a", "t", seq=2)
    later = json.dumps({"v": 1, "run": "r", "seq": 1, "type": "node.dreamt", "at": 0.0})
    lines = later.encode() + b"\n" + LineWriter("r").lines([known])
    assert list(read_lines("r", lines)) == [known]
    with pytest.raises(ValueError, match="Expecting"):
        list(read_lines("r", b"no JSON\n"))


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_what_is_shown_of_a_value_takes_2_kilobytes_at_the_most(value: object) -> None:
    event = NodeCompleted("r", 0.1, "a", "t", value, "task", seq=1)
    bare = NodeCompleted("r", 0.1, "a", "t", None, "task", seq=1)
    assert len(LineWriter("r").lines([event])) - len(LineWriter("r").lines([bare])) < 2_048
