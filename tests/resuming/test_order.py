"""A resumed run yields a pair before any pair of what depends on it, as a new run does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Literal

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import DAGBuilder, ExecutionEngine, Item, MemoryJournal, Product
from taskiq_flow.engine.run_spec import Items
from tests.virtual_clock import virtually


async def made(count: int) -> AsyncIterator[int]:
    for number in range(count):
        await asyncio.sleep(1)
        yield number


async def made_again(number: int) -> AsyncIterator[int]:
    for further in range(2):
        await asyncio.sleep(1)
        yield number + further


async def more(number: int) -> int:
    await asyncio.sleep(1)
    return number + 1


def chain() -> DAGBuilder:
    builder = DAGBuilder().node(made, name="a").node(more, name="b", inputs=["a"], map_over="a")
    return builder.node(more, name="c", inputs=["b"], map_over="b")


def nested() -> DAGBuilder:
    """The items of ``b`` lie within those of ``a``."""
    builder = DAGBuilder().node(made, name="a")
    builder.node(made_again, name="b", inputs=["a"], map_over="a")
    return builder.node(more, name="c", inputs=["b"], map_over={"b": 2})


def engine_of(builder: DAGBuilder, journal: MemoryJournal) -> ExecutionEngine:
    return ExecutionEngine(InMemoryBroker(), builder.build(), 3, journal=journal)


def path_of(item: Item) -> tuple[int, ...]:
    return item.index if isinstance(item.index, tuple) else (item.index,)


def check_order(pairs: Sequence[tuple[str, Any]]) -> None:
    """Each of ``a``, ``b`` and ``c`` takes what the one before gives at the same place."""
    seen = {
        (name, path_of(value)): n for n, (name, value) in enumerate(pairs) if type(value) is Item
    }
    assert {name for name, _ in seen} == {"a", "b", "c"}
    for (name, path), number in seen.items():
        for (other, around), earlier in seen.items():
            if other < name and path[: len(around)] == around:
                assert earlier < number, (other, around, name, path)


@virtually
@pytest.mark.parametrize("items", [True, "only"])
@pytest.mark.parametrize("builder", [chain(), nested()], ids=["chain", "nested"])
async def test_items_of_a_generator_come_again_before_what_was_made_of_them(
    builder: DAGBuilder, items: Literal[True, "only"]
) -> None:
    journal = MemoryJournal()
    async with aclosing(
        engine_of(builder, journal).execute_async({"count": 4}, run_id="run", items=True)
    ) as pairs:
        async for name, value in pairs:
            if name == "c" and path_of(value)[0] == 1:
                break
    check_order([pair async for pair in engine_of(builder, journal).resume("run", items=items)])


@virtually
@pytest.mark.parametrize("builder", [chain(), nested()], ids=["chain", "nested"])
async def test_items_of_many_runs_come_again_before_what_was_made_of_them(
    builder: DAGBuilder,
) -> None:
    journal, source = MemoryJournal(), [{"count": 2}, {"count": 3}]
    stream = engine_of(builder, journal).execute_many(source, run_id="run", items=True)
    async with aclosing(stream) as triples:
        async for _, name, value in triples:
            if name == "c" and path_of(value)[0] == 1:
                break
    found: dict[int, list[tuple[str, Any]]] = {0: [], 1: []}
    again = engine_of(builder, journal).execute_many(source, run_id="run", resume=True, items=True)
    async for number, name, value in again:
        found[number].append((name, value))
    for each in found.values():
        check_order(each)


async def total(numbers: list[int]) -> int:
    return sum(numbers)


async def share(number: int, whole: int) -> float:
    await asyncio.sleep(number)
    return number / whole


def shares() -> DAGBuilder:
    builder = DAGBuilder().node(more, name="each", inputs=["xs"], map_over="xs")
    builder.node(total, name="total", inputs=["each"])
    return builder.node(share, name="share", inputs=["each", "total"], map_over="each")


@virtually
@pytest.mark.parametrize("items", [False, True])
async def test_what_takes_a_list_comes_again_before_the_elements_that_depend_on_it(
    items: Items,
) -> None:
    journal = MemoryJournal()
    begun = engine_of(shares(), journal).execute_async({"xs": [0, 1]}, run_id="run", items=True)
    async with aclosing(begun) as pairs:
        async for name, _ in pairs:
            if name == "share":
                break
    resumed = engine_of(shares(), journal).resume("run", items=items)
    found = [name async for name, value in resumed if items or type(value) is not Item]
    if items:
        assert found == ["each", "each", "each", "total", "share", "share", "share"]
    else:
        assert found == ["each", "total", "share"]


@virtually
async def test_what_takes_a_list_of_one_of_many_runs_comes_again_after_it() -> None:
    journal, source = MemoryJournal(), [{"xs": [0, 1]}, {"xs": [2]}]
    begun = engine_of(shares(), journal).execute_many(source, run_id="run")
    async with aclosing(begun) as triples:
        async for _, name, _ in triples:
            if name == "total":
                break
    resumed = engine_of(shares(), journal).execute_many(source, run_id="run", resume=True)
    found = [(number, name) async for number, name, _ in resumed]
    for number in (0, 1):
        assert [name for n, name in found if n == number] == ["each", "total", "share"]


@virtually
async def test_what_went_on_without_a_node_comes_again_behind_it() -> None:
    builder = DAGBuilder().node(more, name="first", inputs=["count"], when=lambda count: count > 1)
    builder.node(lambda first=0: first, name="without", inputs=["first"], join="ended")
    builder.node(more, name="last", inputs=["without"])
    journal = MemoryJournal()
    engine = ExecutionEngine(InMemoryBroker(), builder.build(), on_error="collect", journal=journal)
    begun = [name async for name, _ in engine.execute_async({"count": 1}, run_id="run")]
    assert begun == ["first", "without", "last"]
    assert [name async for name, _ in engine.resume("run")] == begun


@virtually
async def test_what_a_filter_left_out_is_told_behind_what_its_node_waits_for() -> None:
    """Also where what it gave is not yielded once more."""
    reached = asyncio.Event()

    def odd(number: int, halves: Any = ()) -> bool:
        return bool(number % 2)

    def total(halves: Any = ()) -> int:
        return len(halves)

    async def report(half: Any = (), total: int = 0) -> None:  # let in beside "odd"
        await asyncio.Event().wait()

    async def last(odd: list[int]) -> None:
        reached.set()
        await asyncio.Event().wait()

    builder = DAGBuilder().node(total, join="ended")
    over = {"half": "halves", "total": "total"}
    builder.node(report, inputs=over, map_over={"halves": 1}, join="ended")
    builder.node(
        lambda number, parts: number / parts,
        name="halves",
        inputs={"number": "numbers", "parts": "parts"},
        map_over=Product("numbers", "parts"),
        when=lambda numbers: numbers > 9,
    )
    inputs = {"number": "numbers", "halves": "halves"}
    builder.node(odd, inputs=inputs, map_over="numbers", join="ended", filter=True)
    engine = ExecutionEngine(
        InMemoryBroker(),
        builder.node(last).build(),
        on_error="collect",
        journal=MemoryJournal(),
        type_check="off",
    )
    async with engine.start({"numbers": [2, 4], "parts": [2]}, run_id="r") as run:
        await reached.wait()
        run.cancel()
    reached.clear()
    resumed = engine.resume("r", items="only", replay=False)
    names = []
    async with aclosing(resumed):
        async for name, _ in resumed:
            names.append(name)
            if len(names) == 4:
                break
    assert names == ["halves", "halves", "odd", "odd"]
