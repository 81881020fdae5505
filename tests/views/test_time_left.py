"""How long a run is going to take, by what nodes were expected to take and by what they took."""

from __future__ import annotations

from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAGBuilder,
    ElementsKnown,
    ExecutionEngine,
    NodeBegan,
    NodeCompleted,
    NodeSkipped,
    NodeStarted,
    RunFinished,
    RunStarted,
    RunView,
)
from taskiq_flow.views.time_left import EarlierRun, seconds_left
from tests.recording import Recorder
from tests.views.test_run_view import began, completed, element, sent, view_of

CHAIN = {"b": ("a",), "c": ("b",), "d": ("c",)}


def started(*names: str, **options: Any) -> RunStarted:
    return RunStarted("r", 0.0, names, **options)


def ran(name: str, begin: float, end: float) -> tuple[Any, ...]:
    return sent(name, begin), began(name, begin), completed(name, end)


def test_nothing_is_known_before_a_node_has_ended() -> None:
    assert seconds_left(RunView(), 1.0) is None
    assert seconds_left(view_of(started("a"), sent("a", 0.0), began("a", 0.0)), 1.0) is None


def test_before_a_node_has_ended_expected_seconds_are_the_estimate() -> None:
    view = view_of(started("a", "b", edges=CHAIN, expected={"a": 4.0, "b": 2.0}))
    assert seconds_left(view, 0.0) == 6.0
    view.apply(sent("a", 0.0))
    view.apply(began("a", 0.0))
    assert seconds_left(view, 3.0) == 3.0


def test_nodes_that_have_ended_correct_the_estimate() -> None:
    expected = dict.fromkeys("abcd", 10.0)
    view = view_of(started(*"abcd", edges=CHAIN, expected=expected), *ran("a", 0.0, 1.0))
    assert seconds_left(view, 1.0) == pytest.approx(3.0)


def test_without_a_path_the_speed_so_far_decides() -> None:
    view = view_of(started(*"abcdef"), *ran("a", 0.0, 2.0), *ran("b", 0.0, 2.0))
    assert seconds_left(view, 2.0) == pytest.approx(4.0)


def test_elements_count_each() -> None:
    view = view_of(started("m", mapped={"m": 1}), ElementsKnown("r", 0.0, "m", 4))
    for index in range(2):
        for event in ran(f"m[{index}]", 0.0, 3.0):
            kind = type(event)
            options: dict[str, Any] = {"result": 7} if kind is NodeCompleted else {}
            options |= {"worker": "host:7"} if kind.__name__ == "NodeBegan" else {}
            view.apply(element(kind, index, event.at, event.task_id, **options))
    assert seconds_left(view, 3.0) == pytest.approx(3.0)


def test_elements_that_run_count_by_how_long_they_have_run() -> None:
    view = view_of(
        started("m", "b", edges={"b": ("m",)}, mapped={"m": 1}, expected={"m": 10.0, "b": 2.0}),
        ElementsKnown("r", 0.0, "m", 3),
        *(element(NodeStarted, number, 0.0, "t") for number in range(3)),
        element(NodeBegan, 0, 0.0, "t", "host:7"),
        element(NodeBegan, 1, 4.0, "t", "host:7"),
    )
    assert seconds_left(view, 9.0) == pytest.approx(12.0)  # of the one that has not begun
    view.apply(element(NodeBegan, 2, 9.0, "t", "host:7"))
    left = [seconds_left(view, now) for now in (10.0, 13.0, 30.0)]
    assert left == pytest.approx([11.0, 8.0, 2.0])  # of the one that has begun last


def test_a_node_that_runs_for_longer_than_expected_leaves_no_estimate() -> None:
    view = view_of(started("a", expected={"a": 2.0}), sent("a", 0.0), began("a", 0.0))
    assert seconds_left(view, 1.5) == 0.5
    assert seconds_left(view, 2.5) is None


def test_results_that_were_not_computed_here_say_nothing_of_the_speed() -> None:
    cached = NodeCompleted("r", 0.1, "a", "", 7, "cache")
    assert seconds_left(view_of(started("a", "b"), cached), 1.0) is None


def test_a_run_that_has_ended_has_no_time_left() -> None:
    view = view_of(started("a"), *ran("a", 0.0, 1.0), RunFinished("r", 1.0, "completed", None))
    assert seconds_left(view, 1.0) is None


async def test_a_run_tells_what_its_nodes_are_expected_to_take(broker: InMemoryBroker) -> None:
    recorder = Recorder()
    dag = DAGBuilder().node(lambda: 1, name="a", expected_seconds=5).node(lambda: 1, name="b")
    await ExecutionEngine(broker, dag.build(), listeners=[recorder]).execute()
    assert recorder.of(RunStarted)[0].expected == {"a": 5.0}


def test_elements_that_an_earlier_session_completed_do_not_make_the_run_faster() -> None:
    view = RunView()
    view.apply(RunStarted("r", 0.0, ("m",), 1.7e9, mapped={"m": 1}))
    view.apply(ElementsKnown("r", 0.0, "m", 100))
    for index in range(90):
        view.apply(element(NodeCompleted, index, 0.0, "", 7, "journal"))
    for index in (90, 91):  # one after the other, 10 s each
        at = (index - 90) * 10.0
        view.apply(element(NodeStarted, index, at, ""))
        view.apply(element(NodeBegan, index, at, "", "w"))
        view.apply(element(NodeCompleted, index, at + 10.0, "", 7))
    assert seconds_left(view, 20.0) == pytest.approx(80.0)


def test_an_earlier_run_is_the_estimate_until_nodes_have_ended_and_says_how_they_compare() -> None:
    before = view_of(started("a", "b", edges=CHAIN), *ran("a", 0.0, 4.0), *ran("b", 4.0, 6.0))
    earlier = EarlierRun.of(before)
    view = view_of(started("a", "b", edges=CHAIN, expected={"a": 1.0, "b": 9.0}))
    assert seconds_left(view, 0.0, earlier) == 6.0
    for event in ran("a", 0.0, 8.0):  # twice as long as before, and so will the other be
        view.apply(event)
    assert seconds_left(view, 8.0, earlier) == pytest.approx(4.0)


def test_a_map_is_expected_to_have_as_many_elements_as_before_until_they_are_known() -> None:
    earlier = EarlierRun(0.0, {"m": (2.0, 10)})
    view = view_of(started("m", mapped={"m": 1}))
    for index in range(2):
        view.apply(element(NodeStarted, index, 0.0, ""))
        view.apply(element(NodeBegan, index, 0.0, "", "w"))
        view.apply(element(NodeCompleted, index, 2.0, "", 7))
    assert seconds_left(view, 2.0, earlier) == pytest.approx(8.0)
    view.apply(ElementsKnown("r", 2.0, "m", 4))
    assert seconds_left(view, 2.0, earlier) == pytest.approx(2.0)


def test_work_that_is_left_is_done_at_the_speed_of_the_earlier_run() -> None:
    kept = NodeCompleted("r", 0.0, "kept", "", 7, "journal")
    skipped = NodeSkipped("r", 0.0, "never", ())
    four = [event for name in "abcd" for event in ran(name, 0.0, 3.0)]
    before = view_of(started("kept", "never", *"abcd"), kept, skipped, *four)
    earlier = EarlierRun.of(before)
    assert earlier.parallelism == 4.0
    assert earlier.executions == {"never": (0.0, 0)} | dict.fromkeys("abcd", (3.0, 1))
    view = view_of(started("never", *"abcd"), sent("a", 0.0), began("a", 0.0))
    assert seconds_left(view, 0.0, earlier) == 3.0
    assert seconds_left(view, 1.0, earlier) == 3.0  # the others have not begun
