"""The schedules behind the figures of the benchmarks, where nothing but the tasks takes time."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
from taskiq import InMemoryBroker

from benchmarks.sleeps import LIMIT, STAGES, bound, drawn
from taskiq_flow import DAGBuilder, ExecutionEngine, MapReduce, RunCancelledError
from tests.virtual_clock import virtual_loop, virtually


class Stages:
    """Tasks that sleep for a second on average, as those of the benchmarks do."""

    def __init__(self, seed: int, items: int) -> None:
        self.items = items
        self.seconds = drawn(seed, items, 1.0)
        self.chains: list[float] = [sum(each) for each in zip(*self.seconds, strict=True)]
        self.tasks = [self._task(number) for number in range(STAGES)]
        self.alive: set[int] = set()
        self.most_alive = 0

    def _task(self, number: int) -> Any:
        async def task(item: int) -> int:
            if number == 0:
                self.alive.add(item)
                self.most_alive = max(self.most_alive, len(self.alive))
            await asyncio.sleep(self.seconds[number][item])
            if number == STAGES - 1:
                self.alive.remove(item)
            return item

        return task

    async def chained(self) -> tuple[float, float]:
        """The seconds of the maps in a chain, and those until the first item is through.

        The latter beside what its own tasks have slept.
        """
        builder = DAGBuilder()
        for number, task in enumerate(self.tasks):
            key = f"s{number - 1}" if number else "items"
            builder.node(task, name=f"s{number}", inputs={"item": key}, map_over=key)
        engine = ExecutionEngine(InMemoryBroker(), builder.build(), LIMIT)
        inputs = {"items": list(range(self.items))}
        start, first = virtual_loop().time(), 0.0
        async for name, item in engine.execute_async(inputs, items="only"):
            if name == f"s{STAGES - 1}" and not first:
                first = (virtual_loop().time() - start) / self.chains[item.value]
        return virtual_loop().time() - start, first

    async def one_after_the_other(self) -> float:
        """The seconds of the maps with a barrier behind each."""
        start = virtual_loop().time()
        values: list[Any] = list(range(self.items))
        for task in self.tasks:
            mapped = await MapReduce.map(InMemoryBroker(), task, values, max_parallel=LIMIT)
            values = (await mapped.wait_result()).return_value
        return virtual_loop().time() - start


@virtually
@pytest.mark.parametrize(
    ("items", "sets", "most"), [(1000, 3, 1.03), (256, 5, 1.09), (64, 30, 1.24)]
)
async def test_maps_in_a_chain_take_little_longer_than_they_must(
    items: int, sets: int, most: float
) -> None:
    over_bound = []
    for seed in range(sets):
        stages = Stages(seed, items)
        took, first = await stages.chained()
        over_bound.append(took / bound(stages.chains))
        if items > 2 * LIMIT:  # else the last ones begin before any other goes on
            assert first == pytest.approx(1.0)
        assert stages.most_alive <= 2 * LIMIT
    assert statistics.median(over_bound) <= most


@virtually
async def test_maps_in_a_chain_are_faster_than_one_after_the_other() -> None:
    ratios = []
    for seed in range(30):
        took, _ = await Stages(seed, 64).chained()
        ratios.append(took / await Stages(seed, 64).one_after_the_other())
    assert statistics.median(ratios) <= 0.73


@virtually
@pytest.mark.parametrize("window", [1, 16, 64])
async def test_a_generator_keeps_all_busy_who_take_its_items(window: int) -> None:
    """One that makes an item in 1 ms, tasks of 10 ms, five places in all."""
    made = done = most_ahead = 0

    async def numbers() -> AsyncIterator[int]:
        nonlocal made, most_ahead
        while True:
            await asyncio.sleep(0.001)
            made += 1
            most_ahead = max(most_ahead, made - done)
            yield made

    async def work(number: int) -> int:
        await asyncio.sleep(0.01)
        return number

    builder = DAGBuilder().node(numbers, window=window)
    builder.node(work, inputs={"number": "numbers"}, map_over="numbers", max_parallel=4)
    engine = ExecutionEngine(InMemoryBroker(), builder.build(), 5)
    times: list[float] = []
    async with aclosing(engine.execute_async(items="only", outputs=["work"])) as results:
        async for name, _ in results:
            done += name == "work"
            times.append(virtual_loop().time())
            if len(times) > 400:
                break
    room = 2 * 4
    assert 400 / (times[-1] - times[0]) >= 0.95 * 400
    assert most_ahead <= window + room


@virtually
async def test_many_inputs_leave_no_place_empty() -> None:
    async def step(number: int) -> int:
        await asyncio.sleep(1)
        return number

    builder = DAGBuilder()
    for number in range(5):
        builder.node(step, name=f"s{number}", inputs=[f"s{number - 1}" if number else "number"])
    engine = ExecutionEngine(InMemoryBroker(), builder.build())
    start = virtual_loop().time()
    inputs = ({"number": number} for number in range(200))
    found = [result async for result in engine.execute_many(inputs, task_limit=8, whole=True)]
    assert len(found) == 200
    assert virtual_loop().time() - start == pytest.approx(200 * 5 / 8)


@virtually
async def test_a_cancelled_run_ends_open_generators_and_tasks_at_once() -> None:
    open_ones = 0
    all_open = asyncio.Event()

    def begin(count: int) -> None:
        nonlocal open_ones
        open_ones += count
        if open_ones == 300:
            all_open.set()

    async def ticks(number: int) -> AsyncIterator[int]:
        begin(1)
        try:
            while True:
                yield number
                await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            begin(-1)

    async def nap(number: int) -> None:
        begin(1)
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.01)
            begin(-1)

    builder = DAGBuilder()
    builder.node(ticks, inputs={"number": "a"}, map_over="a", max_parallel=100)
    builder.node(nap, inputs={"number": "b"}, map_over="b")
    engine = ExecutionEngine(InMemoryBroker(), builder.build())
    run = engine.start({"a": list(range(100)), "b": list(range(200))}, items="only")
    await all_open.wait()
    start = virtual_loop().time()
    run.cancel()
    with pytest.raises(RunCancelledError):
        await run
    assert open_ones == 0
    assert virtual_loop().time() - start < 1
