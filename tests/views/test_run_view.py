"""A view of events: states, times and counts of nodes and of elements, without a clock."""

from __future__ import annotations

import copy
import gc
import pickle
import tracemalloc
import weakref
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAGBuilder,
    ElementsKnown,
    Event,
    ExecutionEngine,
    Gap,
    MissingNodeError,
    NodeBegan,
    NodeCompleted,
    NodeFailed,
    NodeFellBack,
    NodeRetried,
    NodeSkipped,
    NodeStarted,
    NodeView,
    RunFinished,
    RunReport,
    RunStarted,
    RunView,
)
from taskiq_flow.events import Outcome
from taskiq_flow.listeners.texts import node_text, run_text
from taskiq_flow.notes import notes_of
from taskiq_flow.views.node_view import MOST_FAILURES, ElementsView
from taskiq_flow.views.pipeline_status import status_of
from tests.recording import Recorder

ODD = ValueError("7 is odd")


def started(*names: str, at: float = 0.0, **options: Any) -> RunStarted:
    return RunStarted("r", at, names, 1.7e9 + at, **options)


def sent(name: str, at: float, attempt: int = 1) -> NodeStarted:
    return NodeStarted("r", at, name, f"r:{name}:{attempt}", attempt=attempt)


def began(name: str, at: float, attempt: int = 1, worker: str = "host:7") -> NodeBegan:
    return NodeBegan("r", at, name, f"r:{name}:{attempt}", worker, attempt=attempt)


def retried(name: str, at: float, attempt: int, delay: float) -> NodeRetried:
    return NodeRetried("r", at, name, f"r:{name}:{attempt}", attempt, ODD, delay=delay)


def completed(name: str, at: float, result: object = None, attempt: int = 1) -> NodeCompleted:
    return NodeCompleted("r", at, name, f"r:{name}:{attempt}", result, attempt=attempt)


def view_of(*events: Event) -> RunView:
    view = RunView()
    for event in events:
        view.apply(event)
    return view


def times(node: NodeView) -> tuple[float, float, float]:
    return node.waiting, node.queued, node.running


def test_a_node_that_has_completed() -> None:
    view = view_of(
        started("a", "b", edges={"b": ("a",)}),
        *(sent("a", 0.0), began("a", 1.0), completed("a", 3.0, [7])),
        *(sent("b", 3.5), began("b", 4.0)),
    )
    a, b = view.nodes["a"], view.nodes["b"]
    assert (a.state, a.attempts, a.worker, a.source) == ("completed", 1, "host:7", "task")
    assert a.preview == {"kind": "list", "size": 3, "text": "[7]", "cut": False}
    assert times(a) == (0.0, 1.0, 2.0)
    assert (b.state, b.ready_at, b.preview) == ("running", 3.0, None)
    assert times(b) == (0.5, 0.5, 0.0)
    assert view.counts == {"completed": 1, "running": 1}
    assert (view.status, view.seconds, view.time) == ("running", 4.0, 1.7e9)


async def test_a_batch_of_events_makes_the_same_view_as_each_of_them() -> None:
    recorder = Recorder()
    dag = (
        DAGBuilder()
        .node(lambda numbers: numbers, name="plain", inputs=["numbers"])
        .node(float, name="mapped", inputs=["plain"], map_over="plain", fallback=0.0)
        .node(len, name="after", inputs=["mapped"])
        .build()
    )
    engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[recorder])
    await engine.execute({"numbers": [1, "x", 3]})
    at_once = RunView()
    at_once.apply_all(recorder.events)
    assert at_once == view_of(*recorder.events)
    assert at_once.counts == {"completed": 3}
    with pytest.raises(ValueError, match="give each run a view of its own"):
        at_once.apply_all([started("a")])


def test_attempts_and_the_pauses_between_them_are_told_apart() -> None:
    node = view_of(
        started("a"),
        *(sent("a", 0.0), began("a", 1.0)),
        *(retried("a", 5.0, 2, delay=2.0), began("a", 5.5, 2, "other:8")),
        completed("a", 6.0, attempt=2),
    ).nodes["a"]
    assert times(node) == (2.0, 1.5, 2.5)
    assert (node.attempts, node.worker) == (2, "other:8")
    assert node.error is not None
    assert node.error["message"] == "7 is odd"


def test_where_no_begin_is_told_the_time_from_the_sending_counts_as_running() -> None:
    node = view_of(started("a"), sent("a", 1.0), completed("a", 3.0)).nodes["a"]
    assert times(node) == (1.0, 0.0, 2.0)
    assert node.worker is None


def test_a_task_that_is_delivered_again_is_sent_until_its_second_begin() -> None:
    node = view_of(
        *(started("a"), sent("a", 0.0), began("a", 1.0), began("a", 4.0, worker="other:8")),
        completed("a", 6.0),
    ).nodes["a"]
    assert (times(node), node.worker) == ((0.0, 4.0, 2.0), "other:8")


def test_a_fallback_is_one_more_attempt() -> None:
    node = view_of(
        *(started("a"), sent("a", 0.0), began("a", 1.0)),
        NodeFellBack("r", 2.0, "a", "r:a:1", ODD, 1, attempt=2),
        *(began("a", 2.5, 2), NodeCompleted("r", 3.0, "a", "", 7, "fallback", attempt=2)),
    ).nodes["a"]
    assert (node.state, node.attempts, node.source) == ("completed", 2, "fallback")
    assert times(node) == (0.0, 1.5, 1.5)


def test_failed_and_skipped_nodes_say_why() -> None:
    view = view_of(
        started("a", "b", edges={"b": ("a",)}),
        *(sent("a", 0.0), NodeFailed("r", 1.0, "a", "r:a:1", ODD, 1, attempt=1)),
        NodeSkipped("r", 1.0, "b", ("a",)),
        RunFinished("r", 1.0, "failed", ODD),
    )
    a, b = view.nodes["a"], view.nodes["b"]
    assert (a.state, b.state, b.because_of, b.reason) == ("failed", "skipped", ("a",), "failure")
    assert a.error == view.error
    assert view.error is not None
    assert view.error["type"] == "ValueError"
    assert (view.status, view.ended_at) == ("failed", 1.0)


def test_what_is_in_flight_at_the_end_is_cancelled_and_what_was_not_sent_is_pending() -> None:
    view = view_of(
        *(started("a", "b"), sent("a", 0.0), began("a", 1.0)),
        RunFinished("r", 3.0, "cancelled", None),
    )
    assert [node.state for node in view.nodes.values()] == ["cancelled", "pending"]
    assert times(view.nodes["a"]) == (0.0, 1.0, 2.0)


def elements_of(view: RunView) -> ElementsView:
    found = view.nodes["m"].elements
    assert found is not None
    return found


def element(kind: Any, index: int, at: float, *args: Any, **options: Any) -> Any:
    return kind("r", at, f"m[{index}]", *args, index=index, **options)


def test_elements_are_counted_and_those_in_flight_or_failed_have_a_record() -> None:
    view = view_of(
        *(started("m", mapped={"m": 1}), ElementsKnown("r", 0.0, "m", 6)),
        *(element(NodeStarted, i, float(i), f"r:m[{i}]:1") for i in range(4)),
        *(element(NodeBegan, i, 4.0, f"r:m[{i}]:1", "host:7") for i in range(3)),
        element(NodeCompleted, 0, 5.0, "r:m[0]:1", 7, attempt=1),
        element(NodeFailed, 1, 6.0, "r:m[1]:1", ODD, 1, attempt=1),
        element(NodeSkipped, 4, 6.0, ()),
    )
    found = elements_of(view)
    assert (found.known, found.are_all_known, found.ended) == (6, True, 3)
    assert (found.queued, found.running, found.completed) == (1, 1, 1)
    assert (found.failed, found.skipped, found.cancelled) == (1, 1, 0)
    assert [*found.records] == ["m[2]", "m[3]", "m[1]"]
    assert view.node("m[1]").state == "failed"
    assert view.node("m[2]").state == "running"
    assert view.nodes["m"].state == "running"
    assert view.nodes["m"].longest == 2.0
    for name, message in {
        "m[0]": r"no record of element 'm\[0\]': it is not in flight.*; of 6 elements, 1 have "
        "completed, 1 failed and 1 were skipped; its events are in the run's journal",
        "n": "run 'r' has no node 'n'; nodes has all of them",
        "n[0]": "run 'r' has no node",
        "mm": "has no node 'mm'; did you mean 'm'?",
    }.items():
        with pytest.raises(MissingNodeError, match=message) as raised:
            view.node(name)
        assert raised.value.reference == name


def test_attempts_of_elements_are_counted_when_they_end() -> None:
    view = view_of(
        *(started("m", mapped={"m": 1}), ElementsKnown("r", 0.0, "m", 2)),
        *(element(NodeStarted, i, 0.0, f"r:m[{i}]:1") for i in range(2)),
        element(NodeRetried, 1, 1.0, "r:m[1]:2", 2, ODD),
        element(NodeCompleted, 0, 5.0, "r:m[0]:1", 7, attempt=1),
        element(NodeCompleted, 1, 5.0, "r:m[1]:2", 7, attempt=2),
    )
    assert (elements_of(view).attempts, elements_of(view).repeated) == (3, 1)
    assert RunReport.of(view).nodes["m"].attempts == 3
    assert status_of(view).steps[0].retry_count == 1


def test_a_mapped_node_has_ended_with_the_last_of_its_elements() -> None:
    view = view_of(
        started("m", mapped={"m": 1}), element(NodeCompleted, 0, 1.0, "r:m[0]:1", 7, attempt=1)
    )
    assert view.nodes["m"].state == "running"
    view.apply(ElementsKnown("r", 2.0, "m", 2))
    assert view.nodes["m"].state == "running"
    view.apply(element(NodeCompleted, 1, 3.0, "r:m[1]:1", 7, attempt=1))
    assert (view.nodes["m"].state, view.nodes["m"].ended_at) == ("completed", 3.0)
    assert view.counts == {"completed": 1}


@pytest.mark.parametrize("stopped", [True, False], ids=["cancelled", "interrupted"])
def test_a_map_that_was_stopped_before_its_end_has_neither_completed_nor_failed(
    stopped: bool,
) -> None:
    """Its source was going to give more, of which an element of "n" had failed before."""
    n = ["n[0]", "n[1]"]
    view = view_of(
        *(started("m", "n", mapped={"m": 1, "n": 1}), ElementsKnown("r", 0.0, "n", 3)),
        element(NodeStarted, 0, 0.0, ""),
        element(NodeCompleted, 0, 1.0, "", 7),
        *(NodeStarted("r", 1.0, name, "", index) for index, name in enumerate(n)),
        NodeFailed("r", 2.0, "n[0]", "", ODD, 1, index=0),
        NodeCompleted("r", 2.0, "n[1]", "", 7, index=1),
    )
    if stopped:
        view.apply(RunFinished("r", 3.0, "cancelled", None))
    else:
        view.note_status("interrupted")
    state = "cancelled" if stopped else "interrupted"
    assert {name: node.state for name, node in view.nodes.items()} == {"m": state, "n": state}
    first = run_text(view).partition("; ")[2]
    assert first == f"2 {state}; 1 element failed"
    assert node_text(view.nodes["n"]).partition("; ")[0] == f"{state}, 2/3, 1 failed"


def test_an_element_that_ends_the_run_has_failed_its_map() -> None:
    view = view_of(
        *(started("m", mapped={"m": 1}), ElementsKnown("r", 0.0, "m", 3)),
        *(element(NodeStarted, 0, 0.0, ""), element(NodeFailed, 0, 1.0, "", ODD, 1)),
        RunFinished("r", 1.0, "failed", ODD),
    )
    assert view.nodes["m"].state == "failed"
    assert run_text(view) == "failed in 1.0 s; 1 failed"


def test_a_run_in_progress_says_what_runs_and_what_is_queued() -> None:
    view = view_of(
        *(started("a", "b", "c", "d"), sent("a", 0.0), completed("a", 1.0)),
        *(sent("b", 1.0), began("b", 2.0), sent("c", 2.0)),
    )
    assert run_text(view) == "running for 2.0 s; 1 completed, 1 running, 1 queued, 1 pending"


def test_a_mapped_node_without_elements_completes() -> None:
    view = view_of(started("m", mapped={"m": 1}), ElementsKnown("r", 0.0, "m", 0))
    assert view.nodes["m"].state == "completed"


def through(count: int) -> Iterable[Event]:
    for index in range(count):
        yield element(NodeStarted, index, 0.0, f"r:m[{index}]:1")
        yield element(NodeBegan, index, 0.0, f"r:m[{index}]:1", "host:7")
        yield element(NodeCompleted, index, 0.0, f"r:m[{index}]:1", [index], attempt=1)


def test_memory_does_not_grow_with_the_number_of_elements() -> None:
    view = view_of(started("m", mapped={"m": 1}), *through(100))
    gc.collect()
    tracemalloc.start()
    try:
        for event in through(20_000):
            view.apply(event)
        gc.collect()
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert elements_of(view).completed == 20_100
    assert grown < 20_000


def test_of_many_failures_the_first_have_a_record_and_all_are_counted() -> None:
    view = view_of(started("m", mapped={"m": 1}))
    for index in range(MOST_FAILURES + 5):
        view.apply(element(NodeFailed, index, 1.0, "", ODD, 1, attempt=1))
    found = elements_of(view)
    assert (found.failed, len(found.records)) == (MOST_FAILURES + 5, MOST_FAILURES)
    assert all(record.error for record in found.records.values())


@pytest.mark.parametrize(
    ("outcome", "state"), [("completed", "completed"), ("cancelled", "cancelled")]
)
def test_what_was_in_flight_has_ended_with_its_run_if_its_end_was_missed(
    outcome: Outcome, state: str
) -> None:
    """flower 869 and 1428: such tasks stayed as they were."""
    view = view_of(
        replace(started("a", "m", mapped={"m": 1}), seq=1),
        replace(began("a", 1.0), seq=2),
        element(NodeStarted, 0, 1.0, "r:m[0]:1", seq=3),
        Gap("r", 2.0, missed=10, seq=13),
        RunFinished("r", 3.0, outcome, None, seq=14),
    )
    assert view.nodes["a"].state == state
    assert getattr(elements_of(view), state) == 1


def test_a_view_that_comes_late_knows_what_it_has_missed() -> None:
    view = view_of(
        NodeBegan("r", 4.0, "a", "r:a:1", "host:7", seq=7),
        element(NodeStarted, 3, 5.0, "r:m[3]:1", seq=8),
        Gap("r", 6.0, missed=10, seq=18),
        ElementsKnown("r", 6.0, "m", 9, seq=19),
    )
    assert (view.missed, view.seq, view.status) == (16, 19, "running")
    assert {name: node.state for name, node in view.nodes.items()} == {
        "a": "running",
        "m": "running",
    }


def test_an_event_that_comes_twice_is_taken_once() -> None:
    event = NodeStarted("r", 1.0, "a", "r:a:1", seq=2)
    begin = RunStarted("r", 0.0, ("a",), 1.7e9, seq=1)
    end = NodeCompleted("r", 2.0, "a", "r:a:1", 7, seq=3)
    once = view_of(begin, event, end)
    assert view_of(begin, event, end, begin, event, end) == once
    assert once.sessions == 1


def test_a_view_is_of_one_run() -> None:
    view = view_of(started("a"))
    with pytest.raises(ValueError, match="'r', and the event of run 'other'; give each run"):
        view.apply(RunFinished("other", 1.0, "completed", None))


def test_a_resumed_run_begins_anew_and_what_is_in_the_journal_keeps_its_times() -> None:
    view = view_of(
        *(started("a", "b", "c"), sent("a", 0.0), began("a", 1.0), completed("a", 3.0)),
        *(sent("b", 0.0), sent("c", 0.0), completed("c", 1.0)),
        started("a", "b", "c", at=90.0),
        NodeCompleted("r", 90.0, "a", "", 7, "journal"),
    )
    assert [node.state for node in view.nodes.values()] == ["completed", "pending", "pending"]
    assert times(view.nodes["a"]) == (0.0, 1.0, 2.0)
    assert view.nodes["a"].ended_at is None
    assert (view.sessions, view.started_at) == (2, 90.0)
    assert view.counts == {"completed": 1, "pending": 2}


FIRST: list[Event] = [
    started("a", "m", mapped={"m": 1}),
    *(sent("a", 0.0), began("a", 1.0), completed("a", 3.0, 7), ElementsKnown("r", 3.0, "m", 1)),
    *(element(NodeStarted, 0, 3.0, ""), element(NodeCompleted, 0, 4.0, "", 7)),
    RunFinished("r", 4.0, "completed", None),
]
RESUMED = started("a", "m", at=90.0, mapped={"m": 1})
A = NodeCompleted("r", 90.0, "a", "", 7, "journal")
M: list[Event] = [
    ElementsKnown("r", 90.0, "m", 1),
    NodeCompleted("r", 90.0, "m[0]", "", 7, "journal", 0),
]
ENDED = RunFinished("r", 91.0, "completed", None)


def test_a_resume_that_runs_nothing_leaves_a_completed_run_as_it_was() -> None:
    before = view_of(*FIRST)
    view = copy.deepcopy(before)
    for number in (1, 2):
        again = [replace(event, seq=seq) for seq, event in enumerate([RESUMED, A, *M, ENDED], 9)]
        for event in again:
            view.apply(event)
        assert (view.sessions, view.seconds, view.time, view.seq) == (1, 4.0, 1.7e9, 13), number
        assert view.nodes == before.nodes
    assert times(view.nodes["a"]) == (0.0, 1.0, 2.0)
    view.apply(again[0])
    assert view.status == "completed"  # as that was applied before


def test_a_resume_in_which_a_node_failed_once_more_is_a_session() -> None:
    """With on_error="collect", a run with failed nodes has completed."""
    failed = NodeFailed("r", 1.0, "a", "", ODD, 1)
    view = view_of(
        *(started("a"), sent("a", 0.0), failed, RunFinished("r", 1.0, "completed", None)),
        *(started("a", at=90.0), retried("a", 90.0, 2, 0.0), replace(failed, at=91.0), ENDED),
    )
    assert view.sessions == 2


@pytest.mark.parametrize(
    "events",
    [
        [sent("a", 90.0), completed("a", 91.0), *M, ENDED],
        [NodeCompleted("r", 90.0, "a", "", 7, "cache"), *M, ENDED],
        [A, M[0], element(NodeStarted, 0, 90.0, ""), element(NodeCompleted, 0, 91.0, "", 7), ENDED],
        [A, M[0], NodeCompleted("r", 90.0, "m[0]", "", 7, "cache", 0), ENDED],
        [A, NodeSkipped("r", 90.0, "m", ()), ENDED],
        [A, *M, replace(ENDED, outcome="cancelled")],
    ],
    ids=["node", "cached", "element", "cached element", "skipped", "cancelled"],
)
def test_a_resume_of_a_completed_run_in_which_something_happened_is_a_session(
    events: list[Event],
) -> None:
    view = view_of(*FIRST, RESUMED, *events)
    assert (view.sessions, view.seconds, view.started_at) == (2, 1.0, 90.0)


def test_the_critical_path_is_the_longest_by_the_times_that_were_measured() -> None:
    view = view_of(
        started("a", "b", "c", "d", edges={"b": ("a",), "c": ("a",), "d": ("b", "c")}),
        *(sent("a", 0.0), completed("a", 1.0)),
        *(sent("b", 1.0), sent("c", 1.0), completed("b", 3.0), completed("c", 6.0)),
        *(sent("d", 6.0), completed("d", 7.0)),
    )
    assert view.critical_path == ["a", "c", "d"]
    assert RunView().critical_path == []


def test_a_copy_goes_on_by_itself() -> None:
    view = view_of(started("a"), sent("a", 0.0))
    for copied in (copy.deepcopy(view), pickle.loads(pickle.dumps(view))):  # noqa: S301 - our own
        copied.apply(completed("a", 2.0, 7))
        assert copied.nodes["a"].state == "completed"
        assert view.nodes["a"].state == "queued"


async def test_a_view_of_a_real_run_keeps_no_result(broker: InMemoryBroker) -> None:
    class Value:
        def __repr__(self) -> str:
            return "a value"

    made: list[weakref.ref[Value]] = []

    async def make() -> Value:
        value = Value()
        made.append(weakref.ref(value))
        return value

    recorder = Recorder()
    dag = DAGBuilder().node(make).build()
    await ExecutionEngine(broker, dag, listeners=[recorder]).execute()
    view = view_of(*recorder.events)
    recorder.events.clear()
    gc.collect()
    assert made[0]() is None
    shown = view.nodes["make"].preview
    assert shown is not None
    assert shown["text"] == "a value"


def test_what_was_in_flight_is_interrupted_until_an_engine_goes_on() -> None:
    view = view_of(
        started("a", "b", "c", "m", "n", mapped={"m": 1, "n": 1}),
        *(sent("a", 0.0), began("a", 1.0), sent("b", 1.0)),
        ElementsKnown("r", 1.0, "m", 3),
        *(element(NodeStarted, 0, 1.0, ""), element(NodeBegan, 0, 2.0, "", "w")),
        element(NodeStarted, 1, 2.0, ""),
    )
    before = copy.deepcopy(view)
    view.note_status("interrupted")
    states = {name: node.state for name, node in view.nodes.items()}
    gone = "interrupted"
    assert states == {"a": gone, "b": gone, "c": "pending", "m": gone, "n": "pending"}
    assert view.status == gone
    assert view.counts == {"interrupted": 3, "pending": 2}
    elements = view.nodes["m"].elements
    assert elements is not None
    assert (elements.interrupted, elements.running, elements.queued) == (2, 0, 0)
    assert view.node("m[1]").state == gone
    assert not view.nodes["a"].is_ended
    report = RunReport.of(view)
    assert [span.part for span in report.nodes["b"].spans] == ["waiting", "queued"]
    assert status_of(view).steps[0].status == "RUNNING"
    copied = copy.deepcopy(view)
    copied.note_status("running")
    assert copied == before
    for one in (view, before):  # an engine that was away for a while goes on
        one.apply(completed("a", 4.0))
        one.apply(element(NodeCompleted, 0, 4.0, "", None))
    assert view == before


def test_the_status_of_a_run_that_has_ended_is_that_of_its_events() -> None:
    view = view_of(started("a"), sent("a", 0.0), RunFinished("r", 1.0, "cancelled", None))
    view.note_status("interrupted")
    assert (view.status, view.nodes["a"].state) == ("cancelled", "cancelled")


def test_a_map_is_not_ready_before_its_elements_are_known_while_others_make_them() -> None:
    edges = {"clean": ("read",), "all": ("clean",)}
    mapped = {"read": 1, "clean": 1, "all": 1}
    view = view_of(
        started("read", "clean", "all", edges=edges, mapped=mapped),
        ElementsKnown("r", 3.0, "read", 1),
        ElementsKnown("r", 3.0, "clean", 1),
        NodeStarted("r", 4.0, "read[0]", "t", 0),
        NodeCompleted("r", 5.0, "read[0]", "t", 7, index=0, attempt=1),
        NodeStarted("r", 6.0, "clean[0]", "t", 0),
        NodeCompleted("r", 7.0, "clean[0]", "t", 7, index=0, attempt=1),
        ElementsKnown("r", 8.0, "all", 1),
    )
    assert [node.ready_at for node in view.nodes.values()] == [0.0, 3.0, 7.0]


@pytest.mark.parametrize("at_once", [1, 3, 1_000])
async def test_notes_make_the_view_that_their_events_make(at_once: int) -> None:
    builder = DAGBuilder().node(abs, name="size", inputs=["text"], retry=2, fallback=[1, -2])
    builder.node(abs, name="each", inputs={"x": "size"}, map_over="size").node(sum, inputs=["each"])
    recorder = Recorder()
    engine = ExecutionEngine(InMemoryBroker(), builder.build(), listeners=[recorder])
    await engine.execute({"text": "odd"}, run_id="r")
    by_events, by_notes = RunView(), RunView()
    by_events.apply_all(recorder.events)
    for start in range(0, len(recorder.events), at_once):
        part = recorder.events[start : start + at_once]
        by_notes.apply_notes("r", notes_of(part), part[0].seq)
    assert by_notes == by_events
    assert (by_notes.status, by_notes.missed) == ("completed", 0)
    by_notes.apply_notes("r", notes_of(recorder.events), 1)  # once more
    assert by_notes == by_events
