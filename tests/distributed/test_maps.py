"""Maps within a graph, whichever broker carries their elements."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest
from taskiq import AsyncBroker

from taskiq_flow import (
    DAG,
    DAGBuilder,
    ExecutionEngine,
    Failure,
    Item,
    MemoryJournal,
    NodeFailure,
    NodeSkipped,
)
from taskiq_flow.events import Index
from tests.distributed import app
from tests.distributed.app import task


def graph(broker: AsyncBroker) -> DAG:
    """numbers → doubled → twice, element by element; their sum; each of them added to that."""
    double, total = task(broker, app.double), task(broker, app.total)
    builder = DAGBuilder().node(double, name="m", inputs={"item": "numbers"}, map_over="numbers")
    builder.node(double, name="n", inputs={"item": "m"}, map_over="m", max_parallel=3)
    builder.node(task(broker, app.anything), name="all", inputs={"value": "n"})
    return builder.node(total, name="pair", inputs=["m", "n"], map_over=["m", "n"]).build()


@pytest.mark.parametrize("limit", [None, 4])
async def test_chained_and_zipped_maps(any_broker: AsyncBroker, limit: int | None) -> None:
    engine = ExecutionEngine(any_broker, graph(any_broker), limit)
    numbers = list(range(20))
    expected = {
        "m": [2 * n for n in numbers],
        "n": [4 * n for n in numbers],
        "all": [4 * n for n in numbers],
        "pair": [6 * n for n in numbers],
    }
    assert await engine.execute({"numbers": numbers}) == expected
    items: dict[str, dict[Index, Any]] = {}
    async for name, value in engine.execute_async({"numbers": iter(numbers)}, items=True):
        if isinstance(value, Item):
            items.setdefault(name, {})[value.index] = value.value
        else:
            assert value == expected[name]
            assert name == "all" or [items[name][index] for index in numbers] == value
    assert items.keys() == {"m", "n", "pair"}


async def test_an_element_that_fails_on_its_worker(any_broker: AsyncBroker) -> None:
    builder = DAGBuilder().node(
        task(any_broker, app.double), name="m", inputs={"item": "numbers"}, map_over="numbers"
    )
    builder.node(task(any_broker, app.double), name="n", inputs={"item": "m"}, map_over="m")
    builder.node(
        task(any_broker, app.anything), inputs={"value": "m.failures"}, name="f", join="ended"
    )
    engine = ExecutionEngine(any_broker, builder.build(), on_error="collect", type_check="off")
    results = await engine.execute({"numbers": [1, "x", 3]})
    assert [part for part in results["m"] if not isinstance(part, NodeFailure)] == [2, 6]
    assert results["m"][1].index == 1
    assert isinstance(results["n"][1], NodeSkipped)
    assert [(f.task_name, f.index) for f in results["f"] if isinstance(f, Failure)] == [("m", 1)]


async def test_a_source_without_an_end_is_left_early(any_broker: AsyncBroker) -> None:
    closed = asyncio.Event()

    async def source() -> AsyncIterator[int]:
        try:
            for number in itertools.count():
                yield number
        finally:
            closed.set()

    dag = DAG()
    for node in graph(any_broker).nodes[:2]:
        dag.add_node(node)
    engine = ExecutionEngine(any_broker, dag, 4)
    seen: set[int] = set()
    stream = engine.execute_async({"numbers": source()}, items="only")
    async for name, item in stream:
        if name == "n":
            assert item.value == 4 * item.index
            seen.add(item.index)
        if len(seen) == 30:
            break
    await stream.aclose()
    assert closed.is_set()


async def test_a_resumed_map_sends_only_what_is_left(any_broker: AsyncBroker) -> None:
    engine = ExecutionEngine(any_broker, graph(any_broker), 4, journal=MemoryJournal())
    stream = engine.execute_async({"numbers": list(range(20))}, run_id="r", items=True)
    done = 0
    async for _, value in stream:
        done += isinstance(value, Item)
        if done == 10:
            break
    await stream.aclose()
    results = {name: value async for name, value in engine.resume("r")}
    assert results["pair"] == [6 * n for n in range(20)]


def document(broker: AsyncBroker) -> DAG:
    """text → its words, each measured; their number."""
    builder = DAGBuilder().node(task(broker, app.load), name="words", inputs={"text": "text"})
    builder.node(
        task(broker, app.anything), name="same", inputs={"value": "words"}, map_over="words"
    )
    return builder.node(task(broker, app.anything), name="all", inputs={"value": "same"}).build()


async def test_lists_within_lists_joined_and_of_a_graph_within_a_graph(
    any_broker: AsyncBroker,
) -> None:
    builder = DAGBuilder().add_graph(
        document(any_broker), "doc", inputs={"text": "texts"}, map_over="texts"
    )
    load, anything = task(any_broker, app.load), task(any_broker, app.anything)
    builder.node(load, name="flat", inputs={"text": "texts"}, map_over="texts", flatten=True)
    builder.node(anything, name="kept", inputs={"value": "flat"}, map_over="flat", filter=True)
    engine = ExecutionEngine(any_broker, builder.build(), 6)
    results = await engine.execute({"texts": iter(["a b", "c"])})
    assert results["doc/same"] == results["doc/all"] == [["a", "b"], ["c"]]
    assert results["flat"] == results["kept"] == ["a", "b", "c"]


async def test_a_graph_for_many_inputs(any_broker: AsyncBroker) -> None:
    engine = ExecutionEngine(any_broker, document(any_broker))
    texts = ({"text": f"a {number}"} for number in range(12))
    many = engine.execute_many(texts, task_limit=3, ordered=True, whole=True)
    assert [(number, results["all"]) async for number, results in many] == [
        (number, ["a", str(number)]) for number in range(12)
    ]
