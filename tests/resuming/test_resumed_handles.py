"""Runs of the journal that their user holds: continued, and run again in part."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    ConfigurationError,
    DAGBuilder,
    ExecutionEngine,
    InputConflictError,
    Item,
    MemoryJournal,
    MissingNodeError,
    NodeCompleted,
    RunCancelledError,
    RunNotFoundError,
    RunStarted,
)
from tests.virtual_clock import virtually


class Site:
    """A journal, and a graph of a node, a map and the sum of that, each of a second."""

    def __init__(self) -> None:
        self.journal = MemoryJournal()
        self.done: list[Any] = []

    async def first(self, n: int) -> list[int]:
        await asyncio.sleep(1)
        self.done.append("first")
        return list(range(n))

    async def square(self, x: int) -> int:
        await asyncio.sleep(1)
        self.done.append(x)
        return x * x

    async def total(self, squares: list[int]) -> int:
        await asyncio.sleep(1)
        self.done.append("total")
        return sum(squares)

    def engine(self, **options: Any) -> ExecutionEngine:
        builder = DAGBuilder().node(self.first, output="xs")
        builder.node(self.square, inputs=["xs"], map_over="xs", output="squares")
        dag = builder.node(self.total, inputs=["squares"]).build()
        return ExecutionEngine(InMemoryBroker(), dag, 1, journal=self.journal, **options)

    async def stop_after_two_elements(self) -> None:
        stream = self.engine().execute_async({"n": 3}, run_id="r", items=True)
        async with aclosing(stream) as pairs:
            async for _, value in pairs:
                if value == Item(1, 1):
                    break
        self.done.clear()


RESULTS = {"xs": [0, 1, 2], "squares": [0, 1, 4], "total": 5}


@virtually
async def test_a_run_is_continued_with_all_that_a_handle_has() -> None:
    site = Site()
    await site.stop_after_two_elements()
    run = site.engine().start_resume("r")
    events = [event async for event in run.events()]
    assert (run.run_id, run.status, await run) == ("r", "completed", RESULTS)
    assert site.done == [2, "total"]
    assert isinstance(events[0], RunStarted)
    kept = [e.task_name for e in events if isinstance(e, NodeCompleted) and e.source == "journal"]
    assert kept == ["first", "square[0]", "square[1]"]


@virtually
async def test_start_begins_a_run_or_continues_it() -> None:
    site = Site()
    async with site.engine().start({"n": 3}, run_id="r", resume=True) as run:
        await anext(aiter(run))
    assert run.status == "cancelled"
    again = site.engine().start({"n": 3}, run_id="r", resume=True)
    assert await again == RESULTS
    assert site.done.count("first") == 1
    assert await site.engine().start(run_id="r", resume=True) == RESULTS
    other = site.engine().start({"n": 4}, run_id="r", resume=True)
    with pytest.raises(InputConflictError, match="begun with other inputs"):
        await other
    assert other.status == "failed"


@virtually
async def test_what_had_completed_comes_again_only_if_it_is_asked_for() -> None:
    site = Site()
    await site.stop_after_two_elements()
    rest = [("square", Item(2, 4)), ("square", [0, 1, 4]), ("total", 5)]
    options: dict[str, Any] = {"run_id": "r", "resume": True, "replay": False}
    stream = site.engine().execute_async({"n": 3}, items=True, **options)
    assert [pair async for pair in stream] == rest
    engine = site.engine()
    assert [pair async for pair in engine.execute_async(**options)] == []
    assert [pair async for pair in engine.execute_async(items="only", **options)] == []
    assert [pair async for pair in engine.start(**options)] == []
    assert await engine.execute(**options) == {}
    assert await engine.execute(run_id="r", resume=True) == RESULTS
    async with engine.stream(**options).stream() as pairs:
        assert [pair async for pair in pairs] == []
    assert site.done == [2, "total"]


@virtually
async def test_a_run_that_is_begun_gives_all_results_whether_they_are_asked_for_or_not() -> None:
    site = Site()
    options: dict[str, Any] = {"run_id": "r", "resume": True, "replay": False}
    assert await site.engine().execute({"n": 3}, **options) == RESULTS


@virtually
async def test_a_continued_run_is_cancelled_by_itself_and_can_be_continued_again() -> None:
    site = Site()
    await site.stop_after_two_elements()
    engine = site.engine()
    run, other = engine.start_resume("r"), engine.start({"n": 1})
    await asyncio.sleep(0.5)
    run.cancel()
    with pytest.raises(RunCancelledError) as caught:
        await run
    assert caught.value.results["square[1]"] == 1
    assert (await other)["total"] == 0
    pairs = [pair async for pair in site.engine().start_resume("r", replay=False, items=True)]
    assert pairs == [("square", Item(2, 4)), ("square", [0, 1, 4]), ("total", 5)]


@virtually
async def test_a_part_is_run_again_as_a_run_of_its_own() -> None:
    site = Site()
    await site.engine().execute({"n": 2}, run_id="r")
    site.done.clear()
    run = site.engine().start_rerun("r", ["square"], new_run_id="s", items=True)
    pairs = [pair async for pair in run]
    assert (run.run_id, run.status) == ("s", "completed")
    assert await run == {"xs": [0, 1], "squares": [0, 1], "total": 1}
    assert pairs[:2] == [("first", [0, 1]), ("square", Item(0, 0))]
    assert site.done == [0, 1, "total"]


@virtually
@pytest.mark.parametrize("items", [False, True, "only"])
async def test_a_rerun_yields_elements_as_a_run_does(items: Any) -> None:
    site = Site()
    run = [pair async for pair in site.engine().execute_async({"n": 2}, run_id="r", items=items)]
    again = [pair async for pair in site.engine().rerun("r", ["total"], items=items)]
    assert again == run
    again = [pair async for pair in site.engine().rerun("r", ["square"], items=items)]
    assert again == run


async def test_what_is_wrong_is_raised_at_the_call_or_where_it_is_awaited() -> None:
    engine = Site().engine()
    bare = ExecutionEngine(InMemoryBroker(), DAGBuilder().node(lambda: 1, name="one").build())
    for start in (
        partial(bare.start_resume, "r"),
        partial(bare.start_rerun, "r", ["one"]),
        partial(bare.start, run_id="r", resume=True),
    ):
        with pytest.raises(ConfigurationError, match="has no journal"):
            start()
    with pytest.raises(ValueError, match="resume=True continues a run by its run_id"):
        engine.start({"n": 1}, resume=True)
    for begin in (engine.start, engine.execute_async):
        with pytest.raises(ValueError, match=r"replay=False .* give resume=True as well"):
            begin({"n": 1}, run_id="new", replay=False)
    with pytest.raises(RunNotFoundError):
        await engine.start_resume("unknown")
    await engine.execute({"n": 0}, run_id="r")
    with pytest.raises(MissingNodeError):
        await engine.start_rerun("r", ["unknown"])


@virtually
async def test_a_continued_run_over_an_endless_source_is_cancelled_when_nobody_holds_it() -> None:
    closed: list[bool] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            for number in itertools.count():
                yield number
        finally:
            closed.append(True)

    dag = DAGBuilder().node(abs, inputs=["numbers"], map_over="numbers").build()
    engine = ExecutionEngine(InMemoryBroker(), dag, 1, journal=MemoryJournal())
    async with engine.start({"numbers": numbers()}, run_id="r", items="only") as run:
        await anext(aiter(run))
    for start in (engine.start_resume, partial(engine.start, resume=True)):
        closed.clear()
        run = start(run_id="r", inputs={"numbers": numbers()}, items="only")
        assert await anext(aiter(run)) == ("abs", Item(0, 0))
        del run
        gc.collect()
        await asyncio.sleep(1)
        assert closed


@virtually
async def test_the_results_of_a_run_in_progress_have_the_elements_so_far() -> None:
    site = Site()
    run = site.engine().start({"n": 3})
    seen = []
    while run.status == "running":
        seen.append([*run.results])
        await asyncio.sleep(1)
    assert ["xs", "square[0]", "square[1]"] in seen
    assert seen[-1] == ["xs", "squares"]
    assert run.results == RESULTS
    results = site.engine().start({"n": 3}).results
    assert results == {}


@virtually
async def test_elements_so_far_are_the_readers_own() -> None:
    taken: list[int] = []

    async def part(n: int) -> list[int]:
        await asyncio.sleep(n)
        return [n]

    def lengths(parts: list[list[int]]) -> int:
        taken.extend(len(each) for each in parts)
        return len(parts)

    builder = DAGBuilder().node(part, inputs=["ns"], map_over="ns", output="parts").node(lengths)
    run = ExecutionEngine(InMemoryBroker(), builder.build()).start({"ns": [0, 5]})
    await asyncio.sleep(1)
    run.results["part[0]"].append("mine")
    assert await run == {"parts": [[0], [5]], "lengths": 2}
    assert taken == [1, 1]
