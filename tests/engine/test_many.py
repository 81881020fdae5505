"""``execute_many``: a graph that runs for each of many inputs."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAGBuilder,
    ExecutionEngine,
    InputConflictError,
    InputError,
    Item,
    MemoryJournal,
    MissingInputError,
    MissingNodeError,
    NodeFailedError,
    NodeFailure,
    NodeSkipped,
    RunCancelledError,
    RunFailedError,
    RunReader,
    UnusedInputWarning,
)
from taskiq_flow.engine import run_state
from tests.memory import growth
from tests.virtual_clock import virtually


def words(text: str) -> list[str]:
    return text.split()


def size(word: str, most: int = 9) -> int:
    return min(len(word), most)


def reading() -> DAGBuilder:
    builder = DAGBuilder().node(words)
    builder.node(size, inputs={"word": "words"}, map_over="words", output="sizes")
    return builder.node(sum, name="total", inputs=["sizes"])


def engine_of(builder: DAGBuilder, **options: Any) -> ExecutionEngine:
    return ExecutionEngine(InMemoryBroker(), builder.build(), **options)


TEXTS = ["ebb and flow", "", "tide"]


@pytest.mark.parametrize("limit", [None, 1])
@pytest.mark.parametrize("task_limit", [1, 8])
async def test_each_input_has_the_results_of_a_run_of_its_own(
    limit: int | None, task_limit: int
) -> None:
    engine = engine_of(reading(), max_parallel=limit)
    inputs = [{"text": text} for text in TEXTS]
    many = engine.execute_many(iter(inputs), task_limit=task_limit, whole=True)
    found = {index: results async for index, results in many}
    assert found == {n: await engine.execute(each) for n, each in enumerate(inputs)}


async def test_results_come_with_the_number_of_their_input() -> None:
    found = [triple async for triple in engine_of(reading()).execute_many([{"text": "a bc"}] * 2)]
    expected = [("words", ["a", "bc"]), ("size", [1, 2]), ("total", 3)]
    assert sorted(found) == sorted((n, *pair) for n in range(2) for pair in expected)


async def test_elements_of_maps_are_items_if_asked_for() -> None:
    many = engine_of(reading(), max_parallel=1).execute_many([{"text": "a bc"}], items=True)
    found = [(name, value) async for _, name, value in many]
    assert found.index(("size", Item(1, 2))) < found.index(("size", [1, 2]))
    assert ("size", Item(0, 1)) in found


async def test_only_what_outputs_need_is_run() -> None:
    many = engine_of(reading()).execute_many([{"text": "a"}], outputs=["words"], whole=True)
    assert [pair async for pair in many] == [(0, {"words": ["a"]})]


async def test_optional_inputs_may_be_there_for_some() -> None:
    def added(n: int, plus: int = 1) -> int:
        return n + plus

    builder = DAGBuilder().node(added, name="sum")
    many = engine_of(builder).execute_many([{"n": 1}, {"n": 1, "plus": 5}], whole=True)
    assert [pair async for pair in many] == [(0, {"sum": 2}), (1, {"sum": 6})]


async def test_a_graph_without_inputs_runs_as_often_as_the_source_says() -> None:
    numbers = itertools.count()
    builder = DAGBuilder().node(lambda: next(numbers), name="n")
    many = engine_of(builder).execute_many([{}, {}, {}], task_limit=1, whole=True)
    assert [pair async for pair in many] == [(n, {"n": n}) for n in range(3)]


# Order and room


async def slow(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


@virtually
async def test_results_come_as_they_arrive_or_in_the_order_of_the_inputs() -> None:
    engine = engine_of(DAGBuilder().node(slow))
    inputs = [{"seconds": n} for n in (3.0, 1.0, 2.0)]
    assert [n async for n, _, _ in engine.execute_many(inputs)] == [1, 2, 0]
    assert [n async for n, _, _ in engine.execute_many(inputs, ordered=True)] == [0, 1, 2]


class Source:
    """Counts how far it is read, and whether it was closed."""

    def __init__(self) -> None:
        self.read = 0
        self.is_closed = False

    def __call__(self) -> Iterator[dict[str, Any]]:
        try:
            for number in itertools.count():
                self.read = number + 1
                yield {"seconds": 100.0 if number == 0 else 1.0}
        finally:
            self.is_closed = True


@virtually
async def test_an_input_that_is_slow_holds_back_no_more_than_the_task_limit() -> None:
    source = Source()
    many = engine_of(DAGBuilder().node(slow)).execute_many(source(), task_limit=4, ordered=True)
    first = await anext(many)
    assert first == (0, "slow", 100.0)
    assert source.read <= 4
    found = [await anext(many) for _ in range(20)]
    assert [index for index, _, _ in found] == list(range(1, 21))
    await many.aclose()
    assert source.is_closed


@virtually
@pytest.mark.parametrize("is_generator", [False, True])
async def test_inputs_that_are_held_back_do_not_hold_up_the_one_they_wait_for(
    is_generator: bool,
) -> None:
    async def parts(seconds: float) -> AsyncIterator[float]:
        for _ in range(20):
            await asyncio.sleep(seconds)
            yield seconds

    async def listed(seconds: float) -> list[float]:
        return [part async for part in parts(seconds)]

    builder = DAGBuilder().node(parts if is_generator else listed, name="parts")
    builder.node(slow, inputs=["parts"], map_over="parts")
    many = engine_of(builder, max_parallel=2).execute_many(
        [{"seconds": n} for n in (100.0, *[1.0] * 11)], task_limit=12, ordered=True, whole=True
    )
    assert [index async for index, _ in many] == list(range(12))


@virtually
@pytest.mark.parametrize("whole", [False, True])
async def test_a_reader_that_waits_between_ordered_results_is_given_all_of_them(
    *, whole: bool
) -> None:
    engine, found = engine_of(DAGBuilder().node(slow)), []
    async for index, *_ in engine.execute_many(
        [{"seconds": 1.0}] * 3, task_limit=1, ordered=True, whole=whole
    ):
        found.append(index)
        await asyncio.sleep(5)
    assert found == [0, 1, 2]


@virtually
async def test_an_input_takes_the_place_of_each_result_that_was_held_back_and_is_read() -> None:
    began = []

    async def noting(seconds: float) -> None:
        began.append(asyncio.get_running_loop().time())
        await asyncio.sleep(seconds)

    engine = engine_of(DAGBuilder().node(noting))
    inputs = [{"seconds": n} for n in (10.0, 1.0, 1.0, 1000.0, 1.0)]
    async for index, _ in engine.execute_many(inputs, task_limit=4, ordered=True, whole=True):
        await asyncio.sleep(100 if index < 3 else 0)
    assert began == [0, 0, 0, 0, 10 + 100]


@virtually
async def test_the_source_is_read_no_further_than_its_reader() -> None:
    source = Source()
    many = engine_of(DAGBuilder().node(slow)).execute_many(source(), task_limit=4)
    await anext(many)
    await asyncio.sleep(1000)
    assert source.read <= 1 + 4
    await many.aclose()


@virtually
async def test_an_async_source_may_be_slow_and_what_it_raises_is_raised() -> None:
    async def source() -> AsyncIterator[dict[str, Any]]:
        for number in range(3):
            await asyncio.sleep(5)
            yield {"seconds": float(number)}
        raise OSError("the line is dead")

    found = []
    with pytest.raises(OSError, match="the line is dead"):
        async for index, _, _ in engine_of(DAGBuilder().node(slow)).execute_many(source()):
            found.append(index)
    assert found == [0, 1]


async def test_memory_does_not_grow_with_the_number_of_inputs() -> None:
    async def halves(n: int) -> list[int]:
        return [n, n]

    async def same(n: int) -> int:
        return n

    builder = DAGBuilder().node(halves).node(same, inputs=["halves"], map_over="halves")
    many = engine_of(builder, max_parallel=1).execute_many(
        ({"n": n} for n in itertools.count()), task_limit=1, ordered=True, whole=True
    )
    try:
        assert await growth(many, every=55) < 100
    finally:
        await many.aclose()


async def test_memory_does_not_grow_with_the_number_of_failures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_state, "MOST_FAILURES", 10)

    async def halves(n: int) -> list[int]:
        return [n, n]

    async def fails(n: int) -> int:
        raise ValueError

    async def same(n: int) -> int:
        return n

    async def total(numbers: list[int]) -> int:
        return sum(numbers)

    builder = DAGBuilder().node(halves).node(fails, inputs=["halves"], map_over="halves")
    builder.node(same, inputs=["fails"], map_over="fails")
    builder.node(total, inputs=["same"])
    many = engine_of(builder, max_parallel=1, on_error="collect").execute_many(
        ({"n": n} for n in itertools.count()), task_limit=1, ordered=True, whole=True
    )
    try:
        assert await growth(many, every=75) < 100
    finally:
        await many.aclose()


# Failures


def inverse(n: int) -> float:
    return 1 / n


async def test_the_failure_of_one_input_ends_all_unless_on_error_says_otherwise() -> None:
    builder = DAGBuilder().node(inverse).node(lambda inverse: 2 * inverse, name="twice")
    inputs = [{"n": 1}, {"n": 0}, {"n": 2}]
    with pytest.raises(NodeFailedError, match=r"'inverse\[1\]'"):
        async for _ in engine_of(builder).execute_many(inputs, task_limit=1):
            pass
    found = []
    with pytest.raises(RunFailedError, match=r"'inverse\[1\]'"):
        async for index, name, _ in engine_of(builder, on_error="continue").execute_many(inputs):
            found.append((index, name))
    assert sorted(found) == [(0, "inverse"), (0, "twice"), (2, "inverse"), (2, "twice")]
    engine = engine_of(builder, on_error="collect")
    results = dict([pair async for pair in engine.execute_many(inputs, whole=True)])
    assert isinstance(results[1]["inverse"], NodeFailure)
    assert isinstance(results[1]["twice"], NodeSkipped)
    assert results[2] == {"inverse": 0.5, "twice": 1.0}


async def test_whole_results_say_what_is_missing_where_others_go_on() -> None:
    def is_long(words: list[str]) -> bool:
        return len(words) > 1

    builder = DAGBuilder().node(words).node(len, name="count", inputs=["words"], when=is_long)
    builder.node(lambda word: 1 / (len(word) - 1), name="part", inputs=["words"], map_over="words")
    engine = engine_of(builder.node(sum, name="sum", inputs=["part"]), on_error="continue")
    results: dict[int, dict[str, Any]] = {}
    with pytest.raises(RunFailedError, match=r"'part\[1,1\]'.*'inputs\[2\]'"):
        async for index, found in engine.execute_many(
            [{"text": "abc"}, {"text": "abc d"}, {"texts": ""}], whole=True, task_limit=1
        ):
            results[index] = found
    assert results[0] == {"words": ["abc"], "part": [0.5], "sum": 0.5}
    assert results[1]["count"] == 2
    assert [type(part) for part in results[1]["part"]] == [float, NodeFailure]
    assert isinstance(results[1]["sum"], NodeSkipped)
    assert isinstance(results[2]["inputs"], NodeFailure)
    assert {key for key, found in results[2].items() if isinstance(found, NodeSkipped)} == {
        *("words", "count", "part", "sum")
    }


@virtually
async def test_what_had_ended_is_yielded_though_an_earlier_input_fails() -> None:
    async def late(n: int) -> int:
        await asyncio.sleep(5 if n == 0 else 1)
        if n == 0:
            raise ValueError("the first")
        return n

    many = engine_of(DAGBuilder().node(late)).execute_many(
        [{"n": n} for n in range(3)], ordered=True
    )
    found = []
    with pytest.raises(NodeFailedError):
        async for index, _, _ in many:
            found.append(index)
    assert found == [1, 2]


async def test_an_input_that_is_not_as_it_has_to_be_fails_by_itself() -> None:
    engine = engine_of(reading(), on_error="collect")
    inputs: list[Any] = [{"texts": "a"}, {"text": "bc"}, "text", {"text": "bc", 2: "d"}]
    results = dict([pair async for pair in engine.execute_many(inputs, whole=True)])
    assert results[1]["total"] == 2
    missing, wrong = results[0]["inputs"].error, results[2]["inputs"].error
    assert isinstance(missing, MissingInputError)
    assert "node 'words' needs 'text', which no node produces" in str(missing)
    assert "it was given 'texts', which no node takes; did you mean 'text'?" in str(missing)
    assert type(wrong) is InputError
    assert str(results[3]["inputs"].error) == "a run was given the key 2; keys are strings"
    assert results[0]["words"].because_of == ("inputs[0]",)
    with pytest.raises(NodeFailedError, match=r"'inputs\[0\]' failed before its first attempt"):
        async for _ in engine_of(reading()).execute_many(inputs):
            pass


@pytest.mark.parametrize("ordered", [False, True])
async def test_an_input_that_ends_all_has_no_results(*, ordered: bool) -> None:
    inputs: list[Any] = [{"text": "a"}, None]
    found = []
    with pytest.raises(NodeFailedError, match=r"inputs\[1\]"):
        async for pair in engine_of(reading()).execute_many(
            inputs, task_limit=1, ordered=ordered, whole=True
        ):
            found.append(pair)
    assert found == [(0, {"words": ["a"], "sizes": [1], "total": 1})]


async def test_an_input_is_checked_as_that_of_a_run_of_its_own() -> None:
    builder = DAGBuilder().node(lambda x: x + 1, name="y").node(lambda y, c: y * c, name="z")
    engine = engine_of(builder, on_error="collect")
    only_y = engine.execute_many([{"x": 1}], outputs=["y"], whole=True)
    assert [pair async for pair in only_y] == [(0, {"y": 2})]
    inputs = [{"x": 1, "c": 2, "y": 7}, {"x": 1, "c": 2, "q": 3}, {"x": 1, "c": 2, "q": 3}]
    with pytest.warns(UnusedInputWarning, match="was given 'q'") as warned:
        results = dict([pair async for pair in engine.execute_many(inputs, whole=True)])
    assert len(warned) == 1
    assert isinstance(results[0]["inputs"].error, InputConflictError)
    assert results[1] == {"y": 2, "z": 4}
    with pytest.raises(MissingNodeError, match="outputs: 'y', 'z'"):
        await anext(engine.execute_many([], outputs=["w"]))


async def test_what_a_run_was_given_is_no_result_of_it() -> None:
    builder = DAGBuilder().node(inverse)
    with pytest.raises(NodeFailedError) as caught:
        await anext(engine_of(builder).execute_many([{"n": 0}]))
    assert caught.value.results == {}


@virtually
async def test_cancel_stops_all_of_it() -> None:
    source = Source()
    engine = engine_of(DAGBuilder().node(slow))
    asyncio.get_running_loop().call_later(10, engine.cancel)
    with pytest.raises(RunCancelledError):
        async for _ in engine.execute_many(source()):
            pass
    assert source.is_closed


@virtually
async def test_what_was_given_for_inputs_that_have_not_ended_is_no_result_of_it() -> None:
    builder = DAGBuilder().node(slow).node(slow, name="slower", inputs=["slow"])
    engine = engine_of(builder)
    found = []
    with pytest.raises(RunCancelledError) as caught:
        async for each in engine.execute_many({"seconds": n % 5} for n in range(99)):
            found.append(each)
            if len(found) == 10:
                engine.cancel()
    assert caught.value.results == {}
    assert ".results" not in str(caught.value)


async def test_on_step_complete_is_called_for_each_result() -> None:
    called = []
    engine = engine_of(reading(), on_step_complete=lambda name, item: called.append((name, item)))
    async for _ in engine.execute_many([{"text": "a"}], whole=True):
        pass
    assert sorted(called, key=repr) == [
        ("size", Item(0, [1])), ("total", Item(0, 1)), ("words", Item(0, ["a"])),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        ({"text": "a"}, {}, TypeError, "source is a dict; give an iterable of mappings"),
        (3, {}, TypeError, "source is a int"),
        ([], {"task_limit": 0}, ValueError, "task_limit is 0"),
        ([], {"whole": True, "items": True}, ValueError, "leave items= out"),
        ([], {"outputs": 3}, TypeError, "outputs is 3"),
        ([], {"items": "only"}, TypeError, "items is 'only'"),
    ],
)
def test_mistakes_are_told_at_the_call(
    source: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        engine_of(reading()).execute_many(source, **options)


async def test_listeners_are_told_of_the_nodes_of_the_graph_alone() -> None:
    """What gives each run its inputs is no node of the user's, unless an input was wrong."""
    journal = MemoryJournal()
    engine = engine_of(DAGBuilder().node(words).node(len, inputs=["words"]), journal=journal)
    inputs: list[Any] = [{"text": "ebb and flow"}, {"text": "tide"}]
    assert len([pair async for pair in engine.execute_many(inputs, run_id="r")]) == 4
    reader = RunReader(journal)
    run, view = await reader.run("r"), await reader.view("r")
    assert (run.completed, run.total) == (4, 4)
    assert view.edges == {"len": ("words",)}
    assert {
        name: (node.state, node.elements and (node.elements.completed, node.elements.known))
        for name, node in view.nodes.items()
    } == {"words": ("completed", (2, 2)), "len": ("completed", (2, 2))}

    engine = engine_of(DAGBuilder().node(words), journal=journal, on_error="collect")
    async for _ in engine.execute_many([{"text": "ebb"}, {}], run_id="s"):
        pass
    run, view = await reader.run("s"), await reader.view("s")
    assert (run.completed, run.failed, run.skipped, run.total) == (1, 1, 1, 3)
    assert view.node("inputs[1]").error
    assert view.nodes["inputs"].state == "failed"


@virtually
@pytest.mark.parametrize("is_inplace", [False, True])
async def test_items_that_are_let_in_last_reach_a_reader_that_waits(is_inplace: bool) -> None:
    async def up_to(limit: int) -> AsyncIterator[int]:
        for number in range(limit):
            yield number

    dag = DAGBuilder().node(up_to, inputs=["limits"], map_over="limits").build()
    engine = ExecutionEngine(InMemoryBroker(await_inplace=is_inplace), dag)
    source = [{"limits": [1, 2]}, {"limits": [1, 2]}]
    found = []
    async with asyncio.timeout(60):
        async for number, _, value in engine.execute_many(source, task_limit=2, items=True):
            found.append((number, value))
    whole = [value for value in found if isinstance(value[1], list)]
    assert sorted(whole) == [(0, [[0], [0, 1]]), (1, [[0], [0, 1]])]
    assert len(found) - len(whole) == 6
