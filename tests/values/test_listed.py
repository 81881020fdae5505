"""The list of an async generator's items."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import DAGBuilder, ExecutionEngine
from taskiq_flow.values.listed import ITEMS_IN_A_ROW, listed
from taskiq_flow.worker.execution import guarded


class Generator:
    """Gives so many items and awaits nothing. ``turns``: of another asyncio task, while it ran."""

    def __init__(self) -> None:
        self.turns = 0
        self.is_closed = False

    async def items(self, count: int) -> AsyncGenerator[int, None]:
        ticking = asyncio.create_task(self._tick())
        try:
            for number in range(count):
                yield number
        finally:
            ticking.cancel()
            self.is_closed = True

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0)
            self.turns += 1


async def in_this_process(function: Callable[..., Any], count: int) -> Any:
    dag = DAGBuilder().node(function, name="items").build()
    return (await ExecutionEngine(InMemoryBroker(), dag).execute({"count": count}))["items"]


async def on_a_worker(function: Callable[..., Any], count: int) -> Any:
    return await guarded(function)(count)


@pytest.mark.parametrize("call", [in_this_process, on_a_worker])
async def test_a_generator_that_awaits_nothing_lets_the_event_loop_go_on(
    call: Callable[..., Any],
) -> None:
    generator = Generator()
    count = 10 * ITEMS_IN_A_ROW
    assert await call(generator.items, count) == list(range(count))
    assert generator.turns >= 8


async def test_a_generator_is_closed_when_its_list_is_cancelled() -> None:
    generator = Generator()
    listing = asyncio.create_task(listed(generator.items(1_000_000)))
    await asyncio.sleep(0)
    listing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listing
    assert generator.is_closed
