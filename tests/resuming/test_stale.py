"""Resumed runs: results that were made of failures, the order of what is yielded again."""

from __future__ import annotations

from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAGBuilder,
    ExecutionEngine,
    GraphChangedError,
    MemoryJournal,
    MissingInputError,
    NodeSkipped,
)

fails = {1}
calls: list[str] = []


@pytest.fixture(autouse=True)
def again() -> None:
    fails.clear()
    fails.add(1)
    calls.clear()


def step(number: int) -> int:
    calls.append(f"step {number}")
    if number in fails:
        raise ValueError(number)
    return 10 * number


def report(numbers: Any = "none", failures: Any = ()) -> Any:
    calls.append("report")
    return [numbers, len(failures)]


def after(report: Any) -> str:
    calls.append("after")
    return f"after {report}"


def apart() -> str:
    calls.append("apart")
    return "apart"


def engine_of(builder: DAGBuilder) -> ExecutionEngine:
    dag = builder.node(after).node(apart).build()
    return ExecutionEngine(InMemoryBroker(), dag, on_error="collect", journal=MemoryJournal())


async def pairs_of(stream: Any) -> list[Any]:
    return [pair async for pair in stream]


async def test_what_was_made_of_a_failure_is_made_again_when_that_is_tried_again() -> None:
    builder = DAGBuilder().node(step, inputs=["n"])
    builder.node(report, inputs={"numbers": "step", "failures": "step.failures"}, join="ended")
    engine = engine_of(builder)
    first = await engine.execute({"n": 1}, run_id="r")
    assert first["report"] == ["none", 1]
    fails.clear()
    calls.clear()
    second = dict(await pairs_of(engine.resume("r")))
    assert second == {
        "step": 10, "report": [10, 0], "after": "after [10, 0]", "apart": "apart",
    }  # fmt: skip
    assert calls == ["step 1", "report", "after"]
    calls.clear()
    assert dict(await pairs_of(engine.resume("r"))) == second
    assert calls == []


@pytest.mark.parametrize("from_", [["apart"], ["after"], []])
async def test_a_rerun_makes_again_what_was_made_of_a_failure_that_is_tried_again(
    from_: list[str],
) -> None:
    builder = DAGBuilder().node(step, inputs=["ns"], map_over="ns")
    builder.node(report, inputs={"numbers": "step", "failures": "step.failures"}, join="ended")
    engine = engine_of(builder)
    await engine.execute({"ns": [0, 1, 2]}, run_id="r")
    fails.clear()
    calls.clear()
    second = await engine.start_rerun("r", from_, new_run_id="s")
    assert second == {
        "step": [0, 10, 20],
        "report": [[0, 10, 20], 0],
        "after": "after [[0, 10, 20], 0]",
        "apart": "apart",
    }
    apart = ["apart"] if from_ == ["apart"] else []
    assert sorted(calls) == sorted([*apart, "step 1", "report", "after"])
    calls.clear()
    assert dict(await pairs_of(engine.resume("s"))) == second
    assert calls == []


async def test_a_rerun_makes_only_the_elements_again_that_were_made_of_a_failure() -> None:
    builder = DAGBuilder().node(step, inputs=["ns"], map_over="ns")
    builder.node(report, inputs={"numbers": "step"}, map_over="step", join="ended")
    engine = engine_of(builder)
    await engine.execute({"ns": [0, 1, 2]}, run_id="r")
    fails.clear()
    calls.clear()
    second = await engine.start_rerun("r", ["apart"])
    assert second["report"] == [[0, 0], [10, 0], [20, 0]]
    assert sorted(calls) == ["after", "apart", "report", "step 1"]


async def test_a_rerun_with_other_inputs_tries_again_what_had_failed_beside_them() -> None:
    builder = DAGBuilder().node(step, inputs=["n"])
    builder.node(report, inputs={"numbers": "other", "failures": "step.failures"}, join="ended")
    engine = engine_of(builder.node(step, name="each", inputs=["ns"], map_over="ns"))
    first = await engine.execute({"n": 1, "other": 0, "ns": [2]}, run_id="r")
    assert first["report"] == [0, 1]
    fails.clear()
    calls.clear()
    second = await engine.start_rerun("r", [], inputs={"ns": [3, 4]})
    assert (second["each"], second["step"], second["report"]) == ([30, 40], 10, [0, 0])
    assert sorted(calls) == ["after", "report", "step 1", "step 3", "step 4"]


async def test_a_rerun_makes_again_what_was_made_of_a_failure_that_it_tries_again() -> None:
    builder = DAGBuilder().node(step, inputs=["n"])
    builder.node(report, inputs={"numbers": "step", "failures": "step.failures"}, join="ended")
    engine = engine_of(builder)
    await engine.execute({"n": 1}, run_id="r")
    fails.clear()
    calls.clear()
    pairs = await pairs_of(engine.rerun("r", ["apart"]))
    assert dict(pairs)["report"] == [10, 0]
    names = [name for name, _ in pairs]
    assert names.index("step") < names.index("report") < names.index("after")
    assert sorted(calls) == ["after", "apart", "report", "step 1"]


@pytest.mark.parametrize("is_mapped", [False, True])
async def test_what_another_node_has_gone_on_without_stays_skipped(is_mapped: bool) -> None:
    """dagster 5668: what had skipped, and what had been made without it, did not fit any more."""
    wanted = {0}
    builder = DAGBuilder()
    if is_mapped:
        builder.node(step, inputs=["n"], map_over="n", when=lambda n: n in wanted)
    else:
        builder.node(step, inputs=["n"], when=lambda n: n in wanted)
    builder.node(report, inputs={"numbers": "step"}, join="none_failed")
    builder.node(step, name="last", inputs={"number": "m"})
    engine = engine_of(builder)
    await engine.execute({"n": [0, 2] if is_mapped else 2, "m": 1}, run_id="r")
    fails.clear()
    wanted.add(2)
    for stream in (engine.rerun("r", ["last"]), engine.resume("r")):
        calls.clear()
        results = dict(await pairs_of(stream))
        assert calls == ["step 1"]
        assert results["report"] == ([[0], 0] if is_mapped else ["none", 0])
        if is_mapped:
            assert results["step"] == [0]
        else:
            assert isinstance(results["step"], NodeSkipped)
    again = dict(await pairs_of(engine.rerun("r", ["step"])))
    assert again["report"] == [[0, 20] if is_mapped else 20, 0]


async def test_a_condition_is_asked_again_where_nothing_has_gone_on_without_its_node() -> None:
    wanted: set[int] = set()
    builder = DAGBuilder().node(step, inputs=["n"], when=lambda n: n in wanted)
    builder.node(report, inputs={"numbers": "step", "failures": "m"}, join="any")
    engine = engine_of(builder.node(apart, name="m"))
    await engine.execute({"n": 2}, run_id="r")
    wanted.add(2)
    assert dict(await pairs_of(engine.resume("r")))["step"] == 20


async def test_a_list_that_lacked_an_element_is_taken_again() -> None:
    builder = DAGBuilder().node(step, inputs=["ns"], map_over="ns")
    builder.node(report, inputs={"numbers": "step", "failures": "step.failures"}, join="ended")
    engine = engine_of(builder)
    first = await engine.execute({"ns": [0, 1, 2]}, run_id="r")
    assert first["report"] == [[0, 20], 1]
    fails.clear()
    calls.clear()
    pairs = await pairs_of(engine.resume("r"))
    assert dict(pairs)["report"] == [[0, 10, 20], 0]
    names = [name for name, _ in pairs]
    assert names.index("step") < names.index("report") < names.index("after")
    assert calls == ["step 1", "report", "after"]


async def test_only_the_elements_that_were_made_of_a_failure_are_made_again() -> None:
    builder = DAGBuilder().node(step, inputs=["ns"], map_over="ns")
    builder.node(report, inputs={"numbers": "step"}, map_over="step", join="ended")
    engine = engine_of(builder)
    first = await engine.execute({"ns": [0, 1, 2]}, run_id="r")
    assert first["report"] == [[0, 0], ["none", 0], [20, 0]]
    fails.clear()
    calls.clear()
    second = dict(await pairs_of(engine.resume("r")))
    assert second["report"] == [[0, 0], [10, 0], [20, 0]]
    assert calls == ["step 1", "report", "after"]


async def test_what_is_yielded_again_comes_after_the_lists_that_it_was_made_of() -> None:
    fails.clear()
    builder = DAGBuilder().node(step, inputs=["ns"], map_over="ns")
    builder.node(report, inputs={"numbers": "step"})
    engine = engine_of(builder)
    await engine.execute({"ns": iter([0, 1])}, run_id="r")
    names = [name for name, _ in await pairs_of(engine.resume("r", inputs={"ns": iter([0, 1])}))]
    assert names.index("step") < names.index("report") < names.index("after")
    assert await pairs_of(engine.resume("r", replay=False, inputs={"ns": iter([0, 1])})) == []


async def test_a_source_that_has_become_shorter_gives_no_list() -> None:
    fails.clear()
    engine = engine_of(DAGBuilder().node(step, inputs=["ns"], map_over="ns").node(report))
    await engine.execute({"ns": iter([0, 1, 2])}, run_id="r")
    found = []
    with pytest.raises(GraphChangedError, match="fewer items than the 3"):
        async for name, _ in engine.resume("r", inputs={"ns": iter([0])}):
            found.append(name)
    assert "step" not in found


async def test_a_run_over_an_iterable_is_run_again_with_another_one() -> None:
    fails.clear()
    builder = DAGBuilder().node(step, inputs=["ns"], map_over="ns")
    builder.node(report, inputs={"numbers": "step"})
    engine = engine_of(builder)
    await engine.execute({"ns": iter([0, 1])}, run_id="r")
    calls.clear()
    again = dict(await pairs_of(engine.rerun("r", ["report"], inputs={"ns": iter([0, 1])})))
    assert again["report"] == [[0, 10], 0]
    assert calls == ["report", "after"]
    for stream in (engine.rerun("r", ["report"]), engine.resume("r")):
        with pytest.raises(MissingInputError, match="was begun with an iterable as 'ns'"):
            await pairs_of(stream)


@pytest.mark.parametrize("kind", [iter, list])
@pytest.mark.parametrize(
    ("others", "problem"),
    [([5, 6], "item 0 of"), ([0], "fewer items than the 2"), ([0, 1, 2], "more items than the 2")],
)
async def test_other_items_than_those_of_the_iterable_are_refused(
    kind: Any, others: list[int], problem: str
) -> None:
    fails.clear()
    builder = DAGBuilder().node(step, inputs=["ns"], map_over="ns")
    engine = engine_of(builder.node(report, inputs={"numbers": "step"}))
    await engine.execute({"ns": iter([0, 1])}, run_id="r")
    same = engine.rerun("r", ["apart"], new_run_id="again", inputs={"ns": kind([0, 1])})
    assert dict(await pairs_of(same))["report"] == [[0, 10], 0]
    for again in (
        engine.resume("r", inputs={"ns": kind(others)}),
        engine.rerun("r", ["apart"], inputs={"ns": kind(others)}),
        engine.resume("again", inputs={"ns": kind(others)}),
        engine.rerun("again", ["apart"], inputs={"ns": kind(others)}),
    ):
        with pytest.raises(GraphChangedError, match=problem):
            await pairs_of(again)
    anew = dict(await pairs_of(engine.rerun("again", ["step"], inputs={"ns": kind(others)})))
    assert anew["report"] == [[10 * number for number in others], 0]


async def test_a_filter_of_groups_gives_the_same_groups_when_it_is_resumed() -> None:
    fails.clear()
    builder = DAGBuilder().node(step, inputs=["rows"], map_over={"rows": 2})

    def long(row: list[int]) -> int:
        calls.append("long")
        return len(row)

    builder.node(long, inputs=["step"], map_over="step", filter=True)
    builder.node(sum, name="sums", inputs=["long"], map_over="long")
    engine = engine_of(builder.node(report))
    first = await engine.execute({"rows": [[0, 1], [], [2]]}, run_id="r")
    assert (first["long"], first["sums"]) == ([[0, 10], [20]], [10, 20])
    calls.clear()
    second = dict(await pairs_of(engine.resume("r")))
    assert (second["long"], second["sums"]) == (first["long"], first["sums"])
    assert calls == []
