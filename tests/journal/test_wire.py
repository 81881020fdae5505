"""Events as lines: what is written at speed says what ``to_dict`` says, and is read again."""

from __future__ import annotations

import json
import zlib
from base64 import b64encode
from dataclasses import replace
from typing import Any

import pytest

from taskiq_flow import (
    EventBatch,
    JournalError,
    Lease,
    MemoryJournal,
    NodeBegan,
    NodeCompleted,
    NodeRetried,
    NodeStarted,
    RunFinished,
    RunReader,
    RunStarted,
    RunSummary,
)
from taskiq_flow.events import Event
from taskiq_flow.journal.packed import GraphText, PackedWriter
from taskiq_flow.journal.wire import read_lines
from taskiq_flow.notes import notes_of
from tests.journal.events_contract import line_of
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
            "r",
            0.1,
            ("a",),
            edges={"a": (name,)},
            outputs={"a": ("a", "b")},
            in_memory=True,
            on_error="collect",
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
def test_events_of_a_line_say_what_they_said(event: Event) -> None:
    events = [replace(event, seq=98), replace(event, seq=99)]
    read = read_lines(event.run_id, line_of(*events))
    assert [one.to_dict() for one in read] == [one.to_dict() for one in events]


def test_a_line_may_have_all_kinds_of_events_of_many_nodes_and_attempts() -> None:
    later = "r:a:fallback-3"
    events: list[Event] = [
        RunStarted("r", 0.1, ("a", "b", "c", "r:a:1"), 2.5),
        NodeStarted("r", 0.2, "a", "r:a:1"),
        NodeStarted("r", 0.2, "b[1,2]", "r:b[1,2]:1:x", (1, 2)),
        NodeBegan("r", 0.3, "a", "r:a:1", "host:7"),
        NodeRetried("r", 0.4, "a", "r:a:2", 2, ValueError("odd")),
        NodeBegan("r", 0.4, "b[1,2]", "r:b[1,2]:1:x", "host:8", (1, 2)),
        NodeBegan("r", 0.5, "a", "r:a:2", "host:7", attempt=2),
        NodeCompleted("r", 0.6, "b[1,2]", "r:b[1,2]:1:x", [1], "task", (1, 2), 1, 0.25, 0.5),
        NodeCompleted("r", 0.7, "a", later, -1.5, "fallback", None, 3, queued=0.1),
        NodeCompleted("r", 0.7, "c", "", ODD, "journal"),
        NodeCompleted("r", 0.8, "r:a:1", "", 2, "cache"),
        RunFinished("r", 0.9, "completed", None),
    ]
    numbered = [replace(event, seq=seq) for seq, event in enumerate(events, 7)]
    line = line_of(*numbered)
    assert line.count(b"\n") == 1
    assert [e.to_dict() for e in read_lines("r", line)] == [e.to_dict() for e in numbered]


def test_a_thousand_nodes_take_little_room() -> None:
    names = [f"node_{number}" for number in range(1_000)]
    events: list[Event] = []
    for name in names:
        about = ("r" * 32, 12345.678901234, name, f"{'r' * 32}:{name}:1")
        events += [NodeStarted(*about), NodeBegan(*about, "host:7")]
        events += [NodeCompleted(*about, 1, "task", None, 1, 0.25, 0.5)]
    line = line_of(*(replace(event, seq=seq) for seq, event in enumerate(events, 1)))
    assert len(line) < 130_000


STARTED = RunStarted("r", 0.1, NAMES, 2.5, {"b": NAMES}, {"b": 1}, {"a": 7.5}, {"a": "f"}, seq=1)


def test_a_line_of_the_first_form_is_read_in_which_a_graph_stands_as_it_is() -> None:
    sent = NodeStarted("r", 0.2, "a", "r:a:1", seq=2)
    content = json.loads(line_of(STARTED, sent))
    content |= {"packed": 1, "others": [STARTED.to_dict()]}
    assert [*read_lines("r", json.dumps(content).encode())] == [STARTED, sent]


@pytest.mark.parametrize(
    "other",
    [
        replace(STARTED, task_names=(*NAMES, "c")),
        replace(STARTED, edges={"a": NAMES}),
        replace(STARTED, mapped={}),
        replace(STARTED, expected={}),
        replace(STARTED, tasks={"b": "f"}),
        replace(STARTED, outputs={"a": ("a", "b")}),
    ],
)
def test_runs_of_two_graphs_have_each_its_own(other: RunStarted) -> None:
    graph = GraphText()
    for event in (STARTED, other, STARTED, replace(other, time=3.0)):
        line = PackedWriter("r", graph).line(notes_of([event]), 1)
        assert [*read_lines("r", line)] == [event]


def test_a_graph_is_compressed_once_for_its_runs() -> None:
    graph = GraphText()
    assert graph.of(STARTED) is graph.of(replace(STARTED, run_id="r2", at=7.0))


DEEP = b64encode(zlib.compress(b"[" * 100_000)).decode()


@pytest.mark.parametrize("graph", ["%", "AAAA", "eJwDAAAAAAE=", DEEP, 5, {}])
async def test_a_damaged_graph_is_an_error(graph: Any) -> None:
    content = json.loads(line_of(STARTED))
    content["others"][0]["graph"] = graph
    journal, lease = MemoryJournal(), Lease("engine")
    batch = EventBatch(json.dumps(content).encode(), RunSummary("r", "running", started=1.0, seq=2))
    await journal.create("r", lease, None, batch)
    with pytest.raises(JournalError, match="is damaged"):
        [event async for event in RunReader(journal).events("r")]


def test_a_line_of_a_later_version_is_an_error_that_names_both() -> None:
    line = line_of(NodeStarted("r", 0.1, "a", "t", seq=2)).replace(b'"packed":2', b'"packed":3')
    with pytest.raises(JournalError, match=r"written in form 3, and .* reads form 2; read them"):
        list(read_lines("r", line))


@pytest.mark.parametrize("key", ["seq", "events", "at", "of", "nodes", "worker", "value", "ran"])
async def test_a_line_that_lacks_something_is_an_error(key: str) -> None:
    events: list[Event] = [
        NodeBegan("r", 0.3, "a", "t", "host:7", seq=1),
        NodeCompleted("r", 0.6, "a", "t", 2, "task", None, 1, 0.25, 0.5, seq=2),
    ]
    content = json.loads(line_of(*events))
    del content[key]
    journal, lease = MemoryJournal(), Lease("engine")
    batch = EventBatch(json.dumps(content).encode(), RunSummary("r", "running", started=1.0, seq=2))
    await journal.create("r", lease, None, batch)
    with pytest.raises(JournalError, match="is damaged"):
        [event async for event in RunReader(journal).events("r")]


@pytest.mark.parametrize("event", [*(event for event, _ in EXAMPLES.values()), *FREQUENT])
def test_an_event_that_is_read_says_the_same_again(event: Event) -> None:
    said = event.to_dict()
    (read,) = read_lines(event.run_id, json.dumps(said).encode())
    assert read.to_dict() == said


def test_types_of_a_later_version_are_left_out() -> None:
    known = NodeStarted("r", 0.1, "a", "t", seq=2)
    later = json.dumps({"v": 1, "run": "r", "seq": 1, "type": "node.dreamt", "at": 0.0})
    lines = later.encode() + b"\n" + line_of(known)
    assert list(read_lines("r", lines)) == [known]
    with pytest.raises(ValueError, match="Expecting"):
        list(read_lines("r", b"no JSON\n"))


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_what_is_shown_of_a_value_takes_2_kilobytes_at_the_most(value: object) -> None:
    event = NodeCompleted("r", 0.1, "a", "t", value, "task", seq=1)
    bare = NodeCompleted("r", 0.1, "a", "t", None, "task", seq=1)
    assert len(line_of(event)) - len(line_of(bare)) < 2_048
