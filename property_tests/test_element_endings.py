"""Runs of mapped nodes, generators and many inputs that end early: nothing of them stays behind."""

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

from property_tests.elements import Graph, graphs
from property_tests.strategies import LIMITS
from property_tests.test_elements import (
    GIVEN_AS,
    ITEMS,
    GivenAs,
    Seen,
    with_values_read,
)
from property_tests.test_many import inputs_of
from taskiq_flow import ExecutionEngine, RunCancelledError
from taskiq_flow.engine.run_spec import Items
from tests.virtual_clock import run_virtually, virtual_loop

Ending = Literal["closed", "dropped", "raised", "closed by another task", "cancelled", "reader"]
ENDINGS: st.SearchStrategy[Ending] = st.sampled_from(
    ["closed", "dropped", "raised", "closed by another task", "cancelled", "reader"]
)


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


@settings(max_examples=settings().max_examples // 3)  # each runs a graph twice
@given(graphs(), LIMITS, ITEMS, GIVEN_AS, st.booleans(), ENDINGS, st.integers(0, 12))
def test_a_run_that_ends_early_leaves_nothing_behind(
    graph: Graph,
    limit: int | None,
    items: Items,
    given_as: GivenAs,
    many: bool,  # noqa: FBT001 - hypothesis passes it by name
    ending: Ending,
    after: int,
) -> None:
    async def main() -> None:
        seen = Seen(graph, given_as)
        stage = seen.stage
        engine = ExecutionEngine(
            InMemoryBroker(), stage.dag(), limit, on_error="collect", type_check="off"
        )
        stream: Any = (
            engine.execute_many(inputs_of(graph, 4), task_limit=2, items=bool(items))
            if many
            else engine.execute_async(seen.inputs(), items=items)
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
        again = engine.execute_async(graph.lists)
        results = {name: await with_values_read(value) async for name, value in again}
        assert results.keys() == {node.name for node in graph.nodes}
        assert virtual_loop().time() < 1000

    with warnings.catch_warnings(action="ignore"):
        run_virtually(main())
