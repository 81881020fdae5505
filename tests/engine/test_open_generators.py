"""Many generators are open at once, each of which gives an item now and then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import DAGBuilder, ExecutionEngine
from taskiq_flow.elements.growing import GrowingRows
from tests.virtual_clock import run_virtually

EACH = 5


async def stream(number: int) -> AsyncIterator[int]:
    for item in range(EACH):
        await asyncio.sleep(1 + number / 1000)  # none gives one together with another
        yield item


@pytest.mark.parametrize("is_mapped_over", [False, True])
def test_an_item_has_no_look_taken_at_all_generators_that_are_open(
    is_mapped_over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, lead = 0, GrowingRows.lead

    def counting(rows: GrowingRows, *args: object) -> float:
        nonlocal looks
        looks += 1
        return lead(rows, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(GrowingRows, "lead", counting)

    async def looks_of_each(count: int) -> float:
        nonlocal looks
        looks = given = 0
        inputs = {"number": "numbers"}
        builder = DAGBuilder().node(
            stream, inputs=inputs, map_over="numbers", output="item", max_parallel=count
        )
        if is_mapped_over:
            builder.node(abs, inputs={"x": "item"}, map_over={"item": 2})
        engine = ExecutionEngine(InMemoryBroker(), builder.build())
        async for name, _ in engine.execute_async({"numbers": range(count)}, items="only"):
            given += name == "stream"
        assert given == count * EACH
        return looks / given

    few, many = run_virtually(looks_of_each(5)), run_virtually(looks_of_each(100))
    assert many < 2 * few
