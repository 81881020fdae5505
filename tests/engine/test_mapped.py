"""Nodes that map: what their elements are given, when they run, and what becomes of failures."""

from __future__ import annotations

import asyncio
import gc
import itertools
from array import array
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakSet

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    BindingError,
    DAGBuilder,
    DAGNode,
    ElementsKnown,
    ExecutionEngine,
    Failure,
    GraphChangedError,
    GraphError,
    InputConflictError,
    InputError,
    Item,
    MemoryJournal,
    MissingNodeError,
    NodeCompleted,
    NodeFailed,
    NodeFailedError,
    NodeFailure,
    NodeSkipped,
    OutputShapeError,
    Product,
    RunCancelledError,
    RunFailedError,
    RunTimeoutError,
)
from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.engine import run_state
from taskiq_flow.engine.run_state import RunState
from tests.recording import AtOnce, Recorder
from tests.virtual_clock import virtual_loop, virtually


def double(number: int) -> int:
    return 2 * number


computed: list[int] = []  # not of a closure, which would count in the key of a cached result


def compute(number: int) -> int:
    computed.append(number)
    return number


def add(left: Any, right: Any) -> Any:
    return left + right


def fail_at(*numbers: int) -> Any:
    def task(number: int) -> int:
        if number in numbers:
            raise ValueError(f"no {number}")
        return number

    return task


def after(*seconds: float) -> Any:
    """A task that takes as many seconds as its number says, and gives the number."""

    async def task(number: int) -> int:
        await asyncio.sleep(seconds[number])
        return number

    return task


def mapped(task: Any = double, key: str = "numbers", **options: Any) -> DAGBuilder:
    return DAGBuilder().node(task, name="m", inputs=[key], map_over=key, **options)


def engine_of(builder: DAGBuilder | DAG, **options: Any) -> ExecutionEngine:
    dag = builder if isinstance(builder, DAG) else builder.build()
    return ExecutionEngine(InMemoryBroker(), dag, **options)


# What is given


@pytest.mark.parametrize(
    "numbers",
    [[1, 2, 3], (1, 2, 3), range(1, 4), array("i", [1, 2, 3])],
    ids=lambda n: type(n).__name__,
)
async def test_a_node_maps_over_what_can_be_listed(numbers: Any) -> None:
    assert await engine_of(mapped()).execute({"numbers": numbers}) == {"m": [2, 4, 6]}


async def test_an_empty_list_gives_one_and_who_takes_it_whole_runs() -> None:
    builder = mapped().node(sum, name="total", inputs=["m"])
    assert await engine_of(builder).execute({"numbers": []}) == {"m": [], "total": 0}


async def test_other_keys_are_passed_whole() -> None:
    builder = DAGBuilder()
    builder.node(lambda one, all_: (one, all_), name="m", inputs=["xs", "ys"], map_over="xs")
    results = await engine_of(builder).execute({"xs": [1, 2], "ys": [3]})
    assert results == {"m": [(1, [3]), (2, [3])]}


async def test_keys_are_taken_together_by_position() -> None:
    builder = DAGBuilder().node(add, name="m", inputs=["xs", "ys"], map_over=["xs", "ys"])
    assert await engine_of(builder).execute({"xs": [1, 2], "ys": [3, 4]}) == {"m": [4, 6]}


async def test_a_key_that_two_parameters_take_gives_the_element_to_both() -> None:
    builder = DAGBuilder().node(
        pow, name="m", inputs={"base": "numbers", "exp": "numbers"}, map_over="numbers"
    )
    assert await engine_of(builder).execute({"numbers": [1, 2, 3]}) == {"m": [1, 4, 27]}


async def test_several_outputs_give_a_list_each_and_the_pair_is_what_was_returned() -> None:
    builder = DAGBuilder().node(
        lambda n: (n, -n), name="m", inputs=["ns"], outputs=["plus", "minus"], map_over="ns"
    )
    builder.node(lambda plus, minus: (plus, minus), name="whole")
    engine = engine_of(builder)
    results = await engine.execute({"ns": [1, 2]})
    assert results == {"plus": [1, 2], "minus": [-1, -2], "whole": ([1, 2], [-1, -2])}
    pairs = [pair async for pair in engine.execute_async({"ns": [1, 2]})]
    assert pairs[0] == ("m", [(1, -1), (2, -2)])


async def test_a_reader_cannot_change_what_later_elements_are_given() -> None:
    builder = mapped(lambda number: [number]).node(
        lambda one: one, name="n", inputs=["m"], map_over="m"
    )
    seen: dict[str, list[Any]] = {}
    async for name, item in engine_of(builder, max_parallel=1).execute_async(
        {"numbers": [1, 2]}, items="only"
    ):
        item.value.append("changed")
        seen.setdefault(name, []).append(item.value[:-1])
    assert seen == {"m": [[1], [2]], "n": [[1], [2]]}


async def test_items_are_yielded_instead_of_lists_or_beside_them() -> None:
    engine = engine_of(mapped().node(sum, name="total", inputs=["m"]), max_parallel=1)
    items = [("m", Item(0, 2)), ("m", Item(1, 4))]
    inputs = {"numbers": [1, 2]}
    both = [pair async for pair in engine.execute_async(inputs, items=True)]
    assert both == [*items, ("m", [2, 4]), ("total", 6)]
    assert [p async for p in engine.execute_async(inputs, items="only")] == [*items, ("total", 6)]
    with pytest.raises(ValueError, match="items is 'all'; give True, False or 'only'"):
        engine.execute_async(inputs, items="all")  # type: ignore[arg-type]


# When they run


@virtually
async def test_no_map_of_a_chain_waits_for_another() -> None:
    builder = mapped(after(5.0, 1.0)).node(after(1.0, 1.0), name="n", inputs=["m"], map_over="m")
    ends = {}
    async for name, item in engine_of(builder).execute_async({"numbers": [0, 1]}, items="only"):
        ends[name, item.index] = virtual_loop().time()
    assert ends == {("m", 1): 1.0, ("n", 1): 2.0, ("m", 0): 5.0, ("n", 0): 6.0}


@pytest.mark.parametrize("is_made", [False, True], ids=["list", "generator"])
async def test_neither_a_map_nor_a_reader_of_items_has_an_asyncio_task_of_its_own(
    is_made: bool,
) -> None:
    async def numbers() -> AsyncIterator[int]:
        for number in range(4):
            yield number

    async def most_tasks(maps: int) -> int:
        seen = []

        async def look(number: int) -> int:
            seen.append(len(asyncio.all_tasks()))
            return number

        builder = DAGBuilder()
        if is_made:
            builder.node(numbers)
        for name in map(str, range(maps)):
            builder.node(look, name=name, inputs={"number": "numbers"}, map_over="numbers")
        await engine_of(builder, max_parallel=2).execute({} if is_made else {"numbers": range(4)})
        assert len(seen) == 4 * maps
        return max(seen)

    assert await most_tasks(12) == await most_tasks(1)


@virtually
async def test_under_a_limit_elements_that_have_begun_go_first() -> None:
    seconds = [1.0] * 9
    builder = mapped(after(*seconds)).node(after(*seconds), name="n", inputs=["m"], map_over="m")
    recorder = Recorder()
    engine = engine_of(builder, max_parallel=2, listeners=[recorder])
    await engine.execute({"numbers": list(range(9))})
    names = [event.task_name for event in recorder.of(NodeCompleted)]
    assert names[:8] == ["m[0]", "m[1]", "n[0]", "n[1]", "m[2]", "m[3]", "n[2]", "n[3]"]


@virtually
async def test_the_last_elements_of_a_list_start_first() -> None:
    """So that all chains end together: the long ones are not begun last."""
    builder = mapped(after(1.0, 1.0, 1.0, 1.0)).node(
        after(1.0, 1.0, 1.0, 1.0), name="n", inputs=["m"], map_over="m"
    )
    recorder = Recorder()
    engine = engine_of(builder, max_parallel=2, listeners=[recorder])
    await engine.execute({"numbers": list(range(4))})
    names = [event.task_name for event in recorder.of(NodeCompleted)]
    assert names == ["m[0]", "m[1]", "m[2]", "m[3]", "n[0]", "n[1]", "n[2]", "n[3]"]


@virtually
async def test_the_last_elements_of_all_lists_within_a_list_start_first() -> None:
    async def part(page: str) -> list[str]:
        return [f"{page}{number}" for number in range(3)]

    async def slow(part: str) -> str:
        await asyncio.sleep(1)
        return part

    builder = DAGBuilder().node(part, inputs=["pages"], map_over="pages")
    builder.node(slow, name="m", inputs=["part"], map_over={"part": 2})
    builder.node(slow, name="n", inputs=["m"], map_over={"m": 2})
    recorder = Recorder()
    await engine_of(builder, max_parallel=2, listeners=[recorder]).execute({"pages": ["a", "b"]})
    done = [(e.task_name[0], e.result) for e in recorder.of(NodeCompleted)]
    begun = [("m", "a0"), ("m", "a1"), ("n", "a0"), ("n", "a1"), ("m", "a2"), ("m", "b0")]
    last = [("m", "b1"), ("m", "b2"), ("n", "a2"), ("n", "b0"), ("n", "b1"), ("n", "b2")]
    assert [pair for pair in done if pair[0] in "mn"] == begun + last


@virtually
async def test_a_node_has_a_limit_of_its_own() -> None:
    running = AtOnce()

    async def task(number: int) -> int:
        with running:
            await asyncio.sleep(1)
        return number

    await engine_of(mapped(task, max_parallel=3)).execute({"numbers": list(range(10))})
    assert (running.most, virtual_loop().time()) == (3, 4.0)


@virtually
async def test_each_run_has_the_limits_of_its_nodes_for_itself() -> None:
    builder = DAGBuilder().node(
        after(1, 1, 1), name="m", inputs=["xs"], map_over="xs", max_parallel=1
    )
    engine = engine_of(builder)
    inputs = {"xs": [0, 1, 2]}
    left = engine.start(inputs)
    await asyncio.sleep(0.5)
    left.cancel()  # in the middle of an element
    await asyncio.gather(engine.start(inputs), engine.start(inputs))
    assert virtual_loop().time() == 3.5


@virtually
async def test_a_limit_of_its_own_holds_up_no_other_node() -> None:
    builder = mapped(after(*[1.0] * 4), max_parallel=1)
    builder.node(after(*[1.0] * 4), name="n", inputs=["numbers"], map_over="numbers")
    ends = {}
    engine = engine_of(builder)
    async for name, item in engine.execute_async({"numbers": list(range(4))}, items="only"):
        ends[name, item.index] = virtual_loop().time()
    assert [ends["n", index] for index in range(4)] == [1.0] * 4
    assert [ends["m", index] for index in range(4)] == [1.0, 2.0, 3.0, 4.0]


async def test_only_as_many_elements_exist_as_there_is_room_for() -> None:
    alive: set[int] = set()
    most = 0

    async def first(number: int) -> int:
        nonlocal most
        alive.add(number)
        most = max(most, len(alive))
        return number

    async def last(number: int) -> None:
        alive.discard(number)

    builder = mapped(first).node(last, name="n", inputs=["m"], map_over="m")
    await engine_of(builder, max_parallel=4).execute({"numbers": range(100)})
    assert most <= 8


@virtually
async def test_a_pass_after_a_gather_takes_the_elements_once_more() -> None:
    builder = mapped().node(sum, name="total", inputs=["m"])
    builder.node(lambda one, total: one / total, name="n", inputs=["m", "total"], map_over="m")
    for limit in (None, 1):
        results = await engine_of(builder, max_parallel=limit).execute({"numbers": [1, 3]})
        assert results["n"] == [0.25, 0.75]


@virtually
async def test_an_ordering_edge_waits_for_all_elements() -> None:
    async def now() -> float:
        return virtual_loop().time()

    dag = mapped(after(1.0, 3.0)).node(now, name="last").build()
    dag.add_edge("m", "last")
    assert (await engine_of(dag).execute({"numbers": [0, 1]}))["last"] == 3.0


# Failures


async def test_a_failure_names_its_element_and_carries_what_was_gathered() -> None:
    engine = engine_of(mapped(fail_at(2)), max_parallel=1)
    with pytest.raises(NodeFailedError, match=r"node 'm\[1\]' failed in attempt 1") as caught:
        await engine.execute({"numbers": [1, 2, 3]})
    assert caught.value.task_name == "m[1]"
    assert caught.value.results == {"m[0]": 1}
    assert list(caught.value.failures) == ["m[1]"]


async def test_other_elements_go_on_and_who_takes_the_list_is_skipped() -> None:
    builder = mapped(fail_at(2)).node(double, name="n", inputs=["m"], map_over="m")
    builder.node(sum, name="total", inputs=["n"])
    with pytest.raises(RunFailedError) as caught:
        await engine_of(builder, on_error="continue").execute({"numbers": [1, 2, 3]})
    assert caught.value.results == {"m[0]": 1, "m[2]": 3, "n[0]": 2, "n[2]": 6}
    assert caught.value.skipped == ["total", "n[1]"]


class Unshown:
    def __len__(self) -> int:
        raise ValueError

    shape = property(__len__)


LONG = "archive/" + "x" * 100 + "/13.txt"


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (7, "7"),
        ("tides.txt", "'tides.txt'"),
        (Path("tides.txt"), "'tides.txt'"),
        (LONG, f"'{LONG[:38]}...{LONG[-39:]}'"),
        ({"page": 3}, "dict(page=3)"),
        (Unshown(), None),
    ],
)
async def test_the_event_of_a_failed_element_tells_its_item(item: object, text: str | None) -> None:
    def fail(item: object, others: list[object]) -> None:
        raise ValueError

    recorder = Recorder()
    dag = DAGBuilder().node(fail, inputs=["items", "others"], map_over="items").build()
    engine = engine_of(dag, on_error="collect", listeners=[recorder])
    await engine.execute({"items": [item], "others": [0]})
    assert [event.item for event in recorder.of(NodeFailed)] == [text]


async def test_the_items_of_a_zip_are_told_and_none_of_a_plain_node() -> None:
    recorder = Recorder()
    builder = DAGBuilder().node(add, name="m", inputs=["xs", "ys"], map_over=["xs", "ys"])
    builder.node(fail_at(1), name="plain", inputs=["one"])
    engine = engine_of(builder, on_error="collect", listeners=[recorder])
    await engine.execute({"xs": [1, 2], "ys": [1, "x"], "one": 1})
    failed = {event.task_name: event.item for event in recorder.of(NodeFailed)}
    assert failed == {"m[1]": "2, 'x'", "plain": None}


async def test_collected_failures_stand_in_the_list() -> None:
    builder = mapped(fail_at(2)).node(double, name="n", inputs=["m"], map_over="m")
    builder.node(sum, name="total", inputs=["n"])
    results = await engine_of(builder, on_error="collect").execute({"numbers": [1, 2, 3]})
    assert results["m"][::2] == [1, 3]
    assert isinstance(results["m"][1], NodeFailure)
    assert (results["m"][1].task_name, results["m"][1].index) == ("m[1]", 1)
    assert isinstance(results["n"][1], NodeSkipped)
    assert results["n"][1].because_of == ("m[1]",)
    assert results["total"].because_of == ("n",)
    assert results["total"].reason == "failure"


@virtually
async def test_no_element_of_a_chain_waits_for_one_that_never_runs() -> None:
    builder = DAGBuilder().node(fail_at(0), name="bad", inputs=["zero"])
    builder.node(add, name="first", inputs=["numbers", "bad"], map_over="numbers")
    builder.node(double, name="then", inputs=["first"], map_over="first")
    engine = engine_of(builder, on_error="collect")
    async with asyncio.timeout(10):
        pairs = [p async for p in engine.execute_async({"zero": 0, "numbers": [1, 2]}, items=True)]
    skipped = [(name, value.index) for name, value in pairs if isinstance(value, Item)]
    assert sorted(skipped) == [("first", 0), ("first", 1), ("then", 0), ("then", 1)]


async def test_what_a_condition_skips_is_missing_and_no_failure() -> None:
    builder = DAGBuilder().node(
        double, name="m", inputs=["xs"], map_over="xs", when=lambda xs: xs != 2
    )
    builder.node(double, name="n", inputs=["m"], map_over="m").node(sum, name="t", inputs=["n"])
    results = await engine_of(builder).execute({"xs": [1, 2, 3]})
    assert results == {"m": [2, 6], "n": [4, 12], "t": 16}


async def test_the_failures_of_a_map_can_be_taken() -> None:
    builder = mapped(fail_at(3, 1))
    builder.node(
        lambda m=None, failures=(): (m, failures),
        name="report",
        inputs={"m": "m", "failures": "m.failures"},
        join="ended",
    )
    results = await engine_of(builder, on_error="collect").execute({"numbers": [1, 2, 3]})
    given, failures = results["report"]
    assert given == [2]
    assert failures == [
        Failure("m", 0, "ValueError", "no 1"),
        Failure("m", 2, "ValueError", "no 3"),
    ]


async def test_each_element_is_tried_again_and_falls_back_by_itself() -> None:
    calls: list[int] = []

    def flaky(number: int) -> int:
        calls.append(number)
        if number == 2:
            raise ValueError
        return number

    results = await engine_of(mapped(flaky, retry=2, fallback=-1)).execute({"numbers": [1, 2, 3]})
    assert results == {"m": [1, -1, 3]}
    assert sorted(calls) == [1, 2, 2, 3]


async def test_elements_with_the_same_inputs_are_computed_once_with_a_cache() -> None:
    computed.clear()
    results = await engine_of(mapped(compute, cache=True)).execute({"numbers": [1, 2, 1, 1]})
    assert results == {"m": [1, 2, 1, 1]}
    assert sorted(computed) == [1, 2]


async def test_a_list_that_never_came_to_be_skips_its_map_once() -> None:
    builder = DAGBuilder().node(fail_at(0), name="numbers", inputs=["number"])
    builder.node(double, name="m", inputs=["numbers"], map_over="numbers")
    builder.node(double, name="n", inputs=["m"], map_over="m")
    recorder = Recorder()
    engine = engine_of(builder, on_error="collect", listeners=[recorder])
    results = await engine.execute({"number": 0})
    assert isinstance(results["m"], NodeSkipped)
    assert isinstance(results["n"], NodeSkipped)
    assert [event.task_name for event in recorder.of(NodeSkipped)] == ["m", "n"]


@pytest.mark.parametrize("given", ["text", b"bytes", {"a": 1}, {1, 2}, 7, None])
async def test_what_is_no_list_fails_the_node_that_gave_it(given: Any) -> None:
    builder = DAGBuilder().node(lambda: given, name="numbers")
    builder.node(double, name="m", inputs=["numbers"], map_over="numbers")
    with pytest.raises(NodeFailedError) as caught:
        await engine_of(builder, type_check="off").execute()
    assert caught.value.task_name == "numbers"
    assert isinstance(caught.value.__cause__, OutputShapeError)
    assert f"gives 'numbers' as a {type(given).__name__}, and it is mapped" in str(caught.value)


async def test_a_node_that_gave_no_list_is_tried_again() -> None:
    answers = iter(["text", [1]])
    builder = DAGBuilder().node(lambda: next(answers), name="numbers", retry=2)
    builder.node(double, name="m", inputs=["numbers"], map_over="numbers")
    assert (await engine_of(builder).execute())["m"] == [2]


@pytest.mark.parametrize("given", ["text", {"a": 1}, 7, None])
async def test_an_input_that_is_no_list_is_refused_before_anything_runs(given: Any) -> None:
    calls: list[int] = []
    builder = mapped().node(lambda: calls.append(1), name="other")
    with pytest.raises(InputError, match="the run was given 'numbers', which is mapped over"):
        await engine_of(builder).execute({"numbers": given})
    assert calls == []


async def test_lists_of_different_length_fail_the_node_that_takes_them_together() -> None:
    builder = DAGBuilder().node(add, name="m", inputs=["xs", "ys"], map_over=["xs", "ys"])
    builder.node(sum, name="total", inputs=["m"])
    inputs = {"xs": [1, 2], "ys": [3, 4, 5]}
    with pytest.raises(
        NodeFailedError, match="'xs' has 2, 'ys' has 3; give them the same"
    ) as caught:
        await engine_of(builder).execute(inputs)
    assert caught.value.task_name == "m"
    assert caught.value.results == {"m[0]": 4, "m[1]": 6}
    results = await engine_of(builder, on_error="collect").execute(inputs)
    assert isinstance(results["m"], NodeFailure)
    assert results["total"].because_of == ("m",)


@virtually
async def test_a_list_beside_an_empty_one_is_longer_also_if_another_node_has_read_it() -> None:
    builder = DAGBuilder().node(add, name="m", inputs=["xs", "rows"], map_over=["xs", "rows"])
    builder.node(lambda row, m: row, name="n", inputs=["rows", "m"], map_over={"rows": 2})
    with pytest.raises(NodeFailedError, match="'rows' has more, 'xs' has 0"):
        await engine_of(builder).execute({"xs": [], "rows": iter([[1]])})


@virtually
async def test_cancelling_ends_all_elements() -> None:
    ended = 0

    async def task(number: int) -> int:
        nonlocal ended
        try:
            await asyncio.sleep(100)
        finally:
            ended += 1
        return number

    engine = engine_of(mapped(task))
    run = asyncio.ensure_future(engine.execute({"numbers": range(20)}))
    await asyncio.sleep(1)
    engine.cancel()
    with pytest.raises(RunCancelledError):
        await run
    assert (ended, virtual_loop().time()) == (20, 1.0)


@virtually
async def test_a_run_that_takes_too_long_names_elements() -> None:
    engine = engine_of(mapped(after(9.0, 0.0), max_parallel=1), run_timeout=1.0)
    with pytest.raises(RunTimeoutError, match=r"in progress were 'm\[0\]'"):
        await engine.execute({"numbers": [0, 1]})


# Declaring


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"map_over": "number"}, BindingError, "did you mean 'numbers'"),
        ({"map_over": []}, ValueError, "map_over of node 'm' is empty"),
        ({"map_over": ["numbers", "numbers"]}, ValueError, "repeats a key"),
        ({"map_over": {"numbers"}}, TypeError, "is a set, which has no order"),
        ({"map_over": {"numbers": 0}}, ValueError, "'numbers': 0; give a number of levels"),
        ({"map_over": [["numbers"]]}, TypeError, "keys are strings"),
        ({"map_over": 3}, TypeError, "give a key, a list of keys"),
        ({"map_over": Product("numbers", "numbers")}, ValueError, "repeats a key"),
        ({"flatten": True}, ValueError, "runs once; give it map_over="),
        ({"map_over": "numbers", "flatten": 1}, TypeError, "give True or False"),
        ({"map_over": "numbers", "filter": True, "flatten": True}, ValueError, "goes without"),
        ({"map_over": "numbers", "filter": True, "outputs": ["a", "b"]}, ValueError, "one output"),
        ({"max_parallel": 3}, ValueError, "runs once; give it map_over="),
        ({"map_over": "numbers", "max_parallel": 0}, ValueError, "max_parallel of node 'm' is 0"),
        ({"foreach": "numbers"}, TypeError, "map_over="),
    ],
)
def test_mistakes_are_told_when_the_graph_is_built(
    options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        DAGBuilder().node(double, name="m", inputs=["numbers"], **options).build()


def test_a_name_as_elements_have_is_refused_beside_mapped_nodes() -> None:
    builder = mapped().node(double, name="m[3]", inputs=["number"])
    with pytest.raises(GraphError, match=r"node 'm\[3\]' has a name as elements"):
        builder.build()
    assert DAGBuilder().node(double, name="m[3]", inputs=["number"]).build()


def test_a_key_that_is_mapped_over_is_required() -> None:
    dag = DAG()
    dag.add_node(DAGNode(lambda number=1: number, inputs={"number": "ns"}, map_over="ns", name="m"))
    assert list(dag.plan().required) == ["ns"]


async def test_events_carry_the_place_of_an_element() -> None:
    recorder = Recorder()
    await engine_of(mapped(), listeners=[recorder]).execute({"numbers": [1, 2]})
    assert [e.count for e in recorder.of(ElementsKnown)] == [2]
    completed = [(e.task_name, e.index, e.result) for e in recorder.of(NodeCompleted)]
    assert sorted(completed) == [("m[0]", 0, 2), ("m[1]", 1, 4)]


# Runs that survive


async def test_a_resumed_run_computes_no_finished_element_again() -> None:
    calls: list[int] = []

    def noted(number: int) -> int:
        calls.append(number)
        return 2 * number

    builder = mapped(noted).node(sum, name="total", inputs=["m"])
    engine = engine_of(builder, journal=MemoryJournal(), max_parallel=1)
    stream = engine.execute_async({"numbers": [1, 2, 3]}, run_id="r", items=True)
    async for _, item in stream:
        if item.index == 1:
            break
    await stream.aclose()
    first = list(calls)
    results = [pair async for pair in engine.resume("r")]
    assert results == [("m", [2, 4, 6]), ("total", 12)]
    assert first[:2] == [1, 2]
    assert len(calls) <= len(first) + 1


async def test_rerunning_a_map_computes_all_of_its_elements_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def noted(number: int) -> int:
        calls.append(number)
        return number

    builder = mapped(noted)
    engine = engine_of(builder.node(sum, name="t", inputs=["m"]), journal=tmp_path / "runs.db")
    await engine.execute({"numbers": [1, 2]}, run_id="r")
    pairs = [pair async for pair in engine.rerun("r", ["t"])]
    assert pairs == [("m", [1, 2]), ("t", 3)]
    assert sorted(calls) == [1, 2]  # they run in threads
    with pytest.raises(MissingNodeError) as caught:
        await _read(engine.rerun("r", ["m[1]"]))
    assert str(caught.value) == (
        "'m[1]' is an element of node 'm', and elements cannot be run again alone; run the node "
        "again, or resume run 'r', which runs its failed elements"
    )
    with pytest.raises(MissingNodeError, match="the graph has no node 't\\[1\\]'"):
        await _read(engine.rerun("r", ["t[1]"]))
    await asyncio.wait_for(_read(engine.rerun("r", ["m"])), 10)
    assert sorted(calls) == [1, 1, 2, 2]
    await engine.journal.aclose()


async def _read(stream: Any) -> None:
    async for _ in stream:
        pass


async def test_a_run_is_not_resumed_with_another_mapping() -> None:
    journal = MemoryJournal()
    plain = DAGBuilder().node(len, name="m", inputs=["numbers"])
    await engine_of(plain, journal=journal).execute({"numbers": [1]}, run_id="r")
    with pytest.raises(GraphChangedError, match="changed: m"):
        await _read(engine_of(mapped(len), journal=journal).resume("r"))


# Sources


@pytest.mark.parametrize("limit", [None, 1, 3])
@virtually
async def test_a_source_that_is_zipped_is_not_read_ahead(limit: int | None) -> None:
    """However quickly it gives, and although the shorter list has ended or is still to come."""
    read = 0

    async def endless() -> AsyncIterator[int]:
        nonlocal read
        for number in itertools.count():
            read += 1
            yield number

    async def later() -> list[int]:
        await asyncio.sleep(5)
        return [0, 0]

    async def slowly(left: int, right: int) -> int:
        await asyncio.sleep(5)
        return left + right

    for given in ([0, 0], None):
        read = 0
        builder = DAGBuilder()
        if given is None:
            builder.node(later, name="ys")
        builder.node(slowly, name="m", inputs=["xs", "ys"], map_over=["xs", "ys"])
        engine = engine_of(builder, max_parallel=limit, on_error="collect")
        inputs = {"xs": endless()} | ({} if given is None else {"ys": given})
        results = await engine.execute(inputs)
        assert isinstance(results["m"], NodeFailure)  # one list has no end
        assert read <= 2 + (limit or 256)


async def awaited(value: int) -> int:
    return value


async def paired(left: int, right: int) -> tuple[int, int]:
    return left, right


@pytest.mark.parametrize("limit", [None, 1])
@pytest.mark.parametrize("slow", ["xs", "ys"])
@pytest.mark.parametrize("given_as", ["generators", "async", "sync"])
@virtually
async def test_endless_lists_are_taken_together_behind_a_map_over_one_of_them(
    limit: int | None, slow: str, given_as: str
) -> None:
    """The quicker one goes on only as far as there is room for what takes both."""
    most = 50 + 16 + (limit or 256)  # what is read, a window and what is in flight
    made = {"xs": 0, "ys": 0}

    def numbers(key: str) -> Iterator[int]:
        for number in range(most):
            made[key] += 1
            yield number
        raise AssertionError(f"{key!r} is read ahead")

    def generator(key: str) -> Callable[[], AsyncIterator[int]]:
        async def generated() -> AsyncIterator[int]:
            for number in numbers(key):
                await asyncio.sleep(int(key == slow))
                yield number

        return generated

    builder, inputs = DAGBuilder(), dict[str, Any]()
    for key in made:
        if given_as == "generators":
            builder.node(generator(key), name=key)
        else:
            inputs[key] = generator(key)() if given_as == "async" else numbers(key)
    builder.node(awaited, name="m", inputs=["xs"], map_over="xs")
    builder.node(paired, name="n", inputs=["m", "ys"], map_over=["m", "ys"])
    engine = engine_of(builder, max_parallel=limit)
    async with aclosing(engine.execute_async(inputs, items="only")) as pairs:
        found = (item.value async for name, item in pairs if name == "n")
        assert sorted([await anext(found) for _ in range(50)]) == [(n, n) for n in range(50)]
    assert max(made.values()) < most


async def test_a_source_that_ends_earlier_than_before_is_no_resumption() -> None:
    journal = MemoryJournal()
    engine = engine_of(mapped(fail_at(3)), journal=journal, max_parallel=1)
    with pytest.raises(NodeFailedError):
        await engine.execute({"numbers": iter([1, 2, 3, 4])}, run_id="r")
    for shorter in ([], [1], [1, 2]):
        with pytest.raises(GraphChangedError, match="fewer items than the 3 with which"):
            await _read(engine.resume("r", inputs={"numbers": iter(shorter)}))
    with pytest.raises(GraphChangedError, match="item 1 of node 'm' is not the one"):
        await _read(engine.resume("r", inputs={"numbers": iter([1, 9, 3])}))


async def test_an_input_that_the_journal_has_is_not_given_again() -> None:
    journal = MemoryJournal()
    builder = DAGBuilder().node(
        lambda number, factor: number * factor,
        name="m",
        inputs={"number": "numbers", "factor": "factor"},
        map_over="numbers",
    )
    engine = engine_of(builder, journal=journal)
    await engine.execute({"numbers": iter([1, 2]), "factor": 3}, run_id="r")
    with pytest.raises(InputConflictError, match="has its input 'factor' in the journal; resume"):
        await _read(engine.resume("r", inputs={"numbers": iter([1, 2]), "factor": 4}))


async def test_elements_that_a_condition_skips_are_forgotten() -> None:
    builder = DAGBuilder().node(
        double, name="m", inputs=["numbers"], map_over="numbers", when=lambda numbers: not numbers
    )
    engine = engine_of(builder, max_parallel=4)
    stream = engine.execute_async({"numbers": iter([1] * 500 + [0])}, items="only")
    runs = []
    async for _ in stream:
        runs = [o for o in gc.get_objects() if isinstance(o, RunState) and o.elements is not None]
        assert all(len(state.skipped) < 10 for state in runs)
    assert runs


async def test_a_longer_source_is_no_resumption_of_a_list_that_was_taken_whole() -> None:
    journal = MemoryJournal()
    builder = mapped().node(sum, name="total", inputs=["m"])
    builder.node(fail_at(6), name="last", inputs=["total"])
    engine = engine_of(builder, journal=journal)
    with pytest.raises(NodeFailedError):
        await engine.execute({"numbers": iter([1, 2])}, run_id="r")
    with pytest.raises(GraphChangedError, match="more items than the 2 with which"):
        await _read(engine.resume("r", inputs={"numbers": iter([1, 2, 3])}))
    with pytest.raises(GraphChangedError, match="fewer items than the 2 with which"):
        await _read(engine.resume("r", inputs={"numbers": iter([1])}))


async def test_a_source_may_give_one_object_again_and_again() -> None:
    def buffer() -> Iterator[list[int]]:
        values = [0]
        for number in range(6):
            values[0] = number
            yield values

    builder = DAGBuilder().node(
        lambda values: values[0], name="m", inputs=["xs"], map_over="xs", max_parallel=1
    )
    builder.node(lambda values, m: values[0], name="n", inputs=["xs", "m"], map_over=["xs", "m"])
    results = await engine_of(builder).execute({"xs": buffer()})
    assert results == {"m": list(range(6)), "n": list(range(6))}


class Shared:
    """An iterable whose readers all get the same iterator, as those of an open cursor do."""

    def __init__(self, iterator: Iterator[int]) -> None:
        self._iterator = iterator

    def __iter__(self) -> Iterator[int]:
        return self._iterator


class SharedAsync:
    """The same for an async iterator."""

    def __init__(self, iterator: AsyncIterator[int]) -> None:
        self._iterator = iterator

    def __aiter__(self) -> AsyncIterator[int]:
        return self._iterator


async def counted(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


@pytest.mark.parametrize(
    "make_source",
    [
        lambda: iter(range(4)),
        lambda: counted(4),
        lambda: Shared(iter(range(4))),
        lambda: SharedAsync(counted(4)),
    ],
    ids=["iterator", "async iterator", "one iterator for all", "one async iterator for all"],
)
async def test_one_iterator_under_two_keys_is_refused(make_source: Callable[[], Any]) -> None:
    source = make_source()
    builder = DAGBuilder().node(double, name="a", inputs=["xs"], map_over="xs")
    engine = engine_of(builder.node(double, name="b", inputs=["ys"], map_over="ys"))
    with pytest.raises(InputError, match="as 'xs' and as 'ys', which is read once; give it under"):
        await engine.execute({"xs": source, "ys": source})


@pytest.mark.parametrize("is_async", [False, True])
async def test_what_is_read_anew_each_time_may_be_given_under_two_keys(is_async: bool) -> None:
    class Numbers:
        def __iter__(self) -> Iterator[int]:
            return iter(range(3))

    class AsyncNumbers:
        def __aiter__(self) -> AsyncIterator[int]:
            return counted(3)

    builder = DAGBuilder().node(double, name="a", inputs=["xs"], map_over="xs")
    builder.node(double, name="b", inputs=["ys"], map_over="ys")
    numbers = AsyncNumbers() if is_async else Numbers()
    results = await engine_of(builder).execute({"xs": numbers, "ys": numbers})
    assert results == {"a": [0, 2, 4], "b": [0, 2, 4]}


async def test_zipped_sources_with_a_node_that_waits_for_a_whole_do_not_stop_each_other() -> None:
    for limit in (None, 1, 2):
        builder = DAGBuilder().node(double, name="a", inputs=["xs"], map_over="xs")
        builder.node(add, name="b", inputs=["xs", "ys"], map_over=["xs", "ys"])
        builder.node(lambda y, a: len(a), name="c", inputs=["ys", "a"], map_over="ys")
        engine = engine_of(builder, max_parallel=limit)
        inputs = {"xs": iter(range(300)), "ys": iter(range(300))}
        results = await engine.execute(inputs)
        assert results["c"] == [300] * 300


async def test_a_source_of_a_node_that_is_not_asked_for_is_left_alone() -> None:
    builder = mapped().node(lambda: 1, name="other")
    source = iter([1, 2])
    results = await engine_of(builder).execute({"numbers": source}, outputs=["other"])
    assert results == {"other": 1}
    assert list(source) == [1, 2]


async def test_nothing_is_read_after_a_source_has_cancelled_its_run() -> None:
    read = 0

    def cancels() -> Iterator[int]:
        nonlocal read
        for number in range(1000):
            read += 1
            if number == 100:
                engine.cancel()
            yield number

    engine = engine_of(mapped())
    with pytest.raises(RunCancelledError):
        await engine.execute({"numbers": cancels()})
    assert read == 101


def listed(number: int) -> list[int]:
    return [number]


async def generate(numbers: list[int]) -> AsyncIterator[list[int]]:
    for number in numbers:
        yield [number]


@pytest.mark.parametrize("is_generator", [False, True])
@pytest.mark.parametrize("many", [False, True])
async def test_what_the_reader_makes_of_an_element_is_not_in_its_list(
    is_generator: bool, many: bool
) -> None:
    """It reads when the run has ended, and no node needs the values any more."""
    builder = DAGBuilder()
    if is_generator:
        builder.node(generate, name="m", inputs=["numbers"])
    else:
        builder.node(listed, name="m", inputs=["numbers"], map_over="numbers")
    inputs, lists = {"numbers": [1, 2, 3]}, []
    engine = engine_of(builder)
    stream: Any = (
        engine.execute_many([inputs], items=True)
        if many
        else engine.execute_async(inputs, items=True)
    )
    async for *_, value in stream:
        if isinstance(value, Item):
            value.value.append("changed")
            await asyncio.sleep(0.05)
        else:
            lists.append(value)
    assert lists == [[[1], [2], [3]]]


async def test_a_table_is_no_list() -> None:
    class Table(list[int]):
        columns = ("a", "b")

    with pytest.raises(InputError, match="mapped over, as a Table"):
        await engine_of(mapped()).execute({"numbers": Table([1])})


async def test_an_error_names_a_few_of_many_failures() -> None:
    engine = engine_of(mapped(fail_at(*range(100))), on_error="continue")
    with pytest.raises(RunFailedError, match="and 95 more") as caught:
        await engine.execute({"numbers": range(100)})
    assert len(str(caught.value)) < 1000
    assert len(caught.value.failures) == 100


async def test_a_run_keeps_the_first_failures_of_elements_and_counts_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_state, "MOST_FAILURES", 10)
    builder = mapped(fail_at(*range(30)))
    builder.node(double, name="next", inputs=["m"], map_over="m")
    builder.node(len, name="count", inputs={"obj": "m.failures"}, join="ended")
    run = engine_of(builder, on_error="continue").start({"numbers": range(32)}, items=True)
    with pytest.raises(RunFailedError, match="and 25 more") as caught:
        await run
    error = caught.value
    assert len(error.failures) == 10
    assert (error.failure_count, run.failure_count) == (30, 30)
    assert (len(error.skipped), len(run.skipped)) == (10, 10)
    assert error.results["count"] == 30
    assert error.results["next[31]"] == 62


class Large:
    """A value that tells whether it is alive."""

    alive: ClassVar[WeakSet[Large]] = WeakSet()

    def __init__(self) -> None:
        self.alive.add(self)


# These are async: a thread may hold what it has returned for a moment longer than the run.
async def of_x(x: int) -> Large:
    return Large()


async def pair_of_x(x: Any) -> tuple[Large, Large]:
    return Large(), Large()


async def of_a(a: Large) -> Large:
    return Large()


async def all_of_b(b: list[Large]) -> int:
    return len(b)


async def items_of_x(x: list[int]) -> AsyncIterator[Large]:
    for _ in x:
        yield Large()


async def large_items() -> AsyncIterator[Large]:
    for _ in range(100):
        yield Large()


async def of_both(b: Large, y: Large) -> None:
    """Takes what a map has given together with an element of another list."""


@pytest.mark.parametrize("given_as", ["generators", "async", "sync"])
async def test_values_that_are_taken_together_with_another_list_are_let_go_of(
    given_as: str,
) -> None:
    builder, inputs = DAGBuilder(), dict[str, Any]()
    for key in ("x", "y"):
        if given_as == "generators":
            builder.node(large_items, name=key)
        else:
            is_async = given_as == "async"
            inputs[key] = large_items() if is_async else (Large() for _ in range(100))
    builder.node(of_a, inputs={"a": "x"}, output="b", map_over="x")
    builder.node(of_both, map_over=["b", "y"])
    engine = engine_of(builder, max_parallel=2)
    async for _ in engine.execute_async(inputs, items="only"):
        assert len(Large.alive) < 60  # two windows, and what is in flight


@pytest.mark.parametrize(
    "builder",
    [
        DAGBuilder().node(of_x, map_over="x"),
        DAGBuilder()
        .node(of_x, output="a", map_over="x")
        .node(of_a, output="b", map_over="a")
        .node(all_of_b),
        DAGBuilder().node(pair_of_x, output="a", map_over="x").node(of_a, map_over={"a": 2}),
        DAGBuilder().node(pair_of_x, output="a").node(of_a, map_over="a"),
        DAGBuilder().node(pair_of_x, outputs=["a", "b"], map_over="x").node(of_a, map_over="a"),
        DAGBuilder().node(items_of_x, output="a").node(of_a, map_over="a"),
    ],
    ids=["one", "chain", "nested", "list", "two outputs", "generator"],
)
def test_the_values_of_elements_are_let_go_of_when_their_run_is_over(builder: DAGBuilder) -> None:
    """And not when the garbage collector has looked at everything, which may be much later."""
    gc.collect()
    Large.alive.clear()
    gc.disable()
    try:
        engine = ExecutionEngine(InMemoryBroker(), builder.build(), values="shared")
        assert engine.execute_sync({"x": [1, 2, 3]})
        assert not Large.alive
    finally:
        gc.enable()
