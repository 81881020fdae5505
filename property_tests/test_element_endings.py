"""Runs of maps, generators, many inputs and added graphs: an early end leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from taskiq import InMemoryBroker

from property_tests.elements import Graph, Sequential, graphs
from property_tests.strategies import LIMITS
from property_tests.test_elements import (
    GIVEN_AS,
    ITEMS,
    GivenAs,
    Seen,
    as_given,
    same,
    shown,
    with_values_read,
)
from property_tests.test_many import inputs_of
from taskiq_flow import DAG, DAGBuilder, ExecutionEngine, RunCancelledError
from taskiq_flow.engine.run_spec import Items
from tests.virtual_clock import run_virtually, virtual_loop

Ending = Literal["closed", "dropped", "raised", "closed by another task", "cancelled", "reader"]
ENDINGS: st.SearchStrategy[Ending] = st.sampled_from(
    ["closed", "dropped", "raised", "closed by another task", "cancelled", "reader"]
)


Way = Literal["alone", "many", "added", "mapped", "mapped twice"]
WAYS: st.SearchStrategy[Way] = st.sampled_from(["alone", "many", "added", "mapped", "mapped twice"])
"""A graph runs by itself, for many inputs, or is added to another one, and may be mapped there.

That one may be mapped in a third.
"""

INPUTS = 4
"""How many these are."""


class LeftError(Exception):
    """Comes from the body of a reader's loop."""


async def end(
    engine: ExecutionEngine, stream: AsyncGenerator[Any, None], ending: Ending, after: int
) -> None:
    """Read so many pairs, or for so many half seconds, then end the run in some way."""
    if ending in ("cancelled", "reader"):
        reader = asyncio.ensure_future(drained(stream))
        await asyncio.sleep(after / 2)
        if ending == "reader":
            reader.cancel()
        else:
            engine.cancel()
        await asyncio.wait([reader])
        if not reader.cancelled() and (error := reader.exception()) is not None:
            assert isinstance(error, RunCancelledError)
        return
    for _ in range(after):
        if await anext(stream, None) is None:
            break
    if ending == "closed by another task":
        await asyncio.create_task(stream.aclose())
    elif ending == "raised":
        with pytest.raises(LeftError):
            async with aclosing(stream):
                raise LeftError
    elif ending == "closed":
        await stream.aclose()


async def drained(stream: AsyncGenerator[Any, None]) -> None:
    async with aclosing(stream):
        async for _ in stream:
            pass


def around(dag: DAG, way: Way) -> DAG:
    """The graph itself, or another one that it is added to."""
    if way == "added":
        return DAGBuilder().add_graph(dag, "g").build()
    if way == "mapped":
        return DAGBuilder().add_graph(dag, "g", map_over=mapped_keys(dag)).build()
    if way == "mapped twice":
        mapped = around(dag, "mapped")
        return DAGBuilder().add_graph(mapped, "h", map_over=mapped_keys(mapped)).build()
    return dag


def mapped_keys(dag: DAG) -> list[str]:
    """What it is mapped over: a graph without inputs runs as often as any list says."""
    return list(dag.external_inputs) or ["xs"]


def inputs_around(graph: Graph, dag: DAG, way: Way) -> dict[str, list[Any]]:
    """The lists of a run."""
    if way == "mapped twice":
        rows = inputs_around(graph, dag, "mapped")
        return {key: [row, [], row[:1]] for key, row in rows.items()}
    if way != "mapped":
        return dict(graph.lists)
    return {key: [each[key] for each in inputs_of(graph, INPUTS)] for key in mapped_keys(dag)}


def expected_of(graph: Graph, way: Way) -> dict[str, Any]:
    """The results of a run with ``on_error="collect"``."""
    if way in ("mapped", "mapped twice"):
        runs = [
            Sequential(Graph(graph.nodes, each)).evaluate() for each in inputs_of(graph, INPUTS)
        ]
        values = {n.name: [value_of(run, n.name) for run in runs] for n in graph.nodes}
        if way == "mapped":
            return {f"g/{name}": made(each) for name, each in values.items()}
        return {f"h/g/{name}": [made(e), [], made(e[:1])] for name, e in values.items()}
    alone = Sequential(graph).evaluate()
    prefix = "g/" if way == "added" else ""
    return {prefix + node.name: value_of(alone, node.name) for node in graph.nodes}


def made(values: list[Any]) -> list[Any]:
    """A list of a mapped node, which has nothing in the places of what was skipped."""
    return [value for value in values if value != "skipped"]


def value_of(run: Sequential, name: str) -> Any:
    """What the reader of a run is given of a node."""
    outcome = run.whole[name]
    is_whole = () not in run.uneven.get(name, ()) and () not in run.cut.get(name, ())
    if name in run.elements and is_whole:
        return run.lists(name, shown=True)
    return shown(outcome)


@settings(max_examples=settings().max_examples // 3)  # each runs a graph twice
@given(graphs(), LIMITS, ITEMS, GIVEN_AS, WAYS, ENDINGS, st.integers(0, 12))
def test_a_run_that_ends_early_leaves_nothing_behind(
    graph: Graph,
    limit: int | None,
    items: Items,
    given_as: GivenAs,
    way: Way,
    ending: Ending,
    after: int,
) -> None:
    async def main() -> None:
        seen = Seen(graph, given_as)
        stage = seen.stage
        dag = stage.dag()
        options: dict[str, Any] = {"on_error": "collect", "type_check": "off"}
        engine = ExecutionEngine(InMemoryBroker(), around(dag, way), limit, **options)
        inputs = inputs_around(graph, dag, way)
        given_inputs = (
            {key: as_given(values, given_as) for key, values in inputs.items()}
            if way in ("mapped", "mapped twice")
            else seen.inputs()
        )
        stream: Any = (
            engine.execute_many(inputs_of(graph, INPUTS), task_limit=2, items=bool(items))
            if way == "many"
            else engine.execute_async(given_inputs, items=items)
        )
        await end(engine, stream, ending, after)
        del stream
        if ending == "dropped":
            gc.collect()
            await asyncio.sleep(10)
        assert not +stage.running
        assert asyncio.all_tasks() == {asyncio.current_task()}
        calls = stage.calls.total()
        await asyncio.sleep(100)
        assert stage.calls.total() == calls
        again = engine.execute_async(inputs)
        results = {name: same(await with_values_read(value)) async for name, value in again}
        assert results == expected_of(graph, way)
        assert virtual_loop().time() < 1000

    with warnings.catch_warnings(action="ignore"):
        run_virtually(main())
