"""Maps that are gone on with: what was done is not done again, and what comes is checked."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    ConfigurationError,
    GraphChangedError,
    JournalError,
    MapReduce,
    MapReduceResult,
    MemoryJournal,
    RunLockedError,
)
from taskiq_flow.journal.history import restore_run
from tests.virtual_clock import virtually


class Site:
    """A journal, a broker, and the items that were worked on."""

    def __init__(self) -> None:
        self.journal = MemoryJournal()
        self.broker = InMemoryBroker()
        self.done: list[Any] = []

    async def double(self, item: Any) -> Any:
        await asyncio.sleep(1)
        self.done.append(item)
        return 2 * item

    async def map(self, items: Any, **options: Any) -> MapReduceResult[Any]:
        return await MapReduce.map(
            self.broker, self.double, items, journal=self.journal, run_id="m", **options
        )

    async def stop_after(self, count: int, items: Any, **options: Any) -> None:
        """Begin the map, and leave it behind so many pairs."""
        seen = 0
        mapped = await self.map(items, **options)
        async for _ in mapped:
            seen += 1
            if seen == count:
                break
        while mapped._run.status == "running":
            await asyncio.sleep(1)


@virtually
async def test_a_map_that_is_begun_twice_says_how_to_continue_it() -> None:
    site = Site()
    await (await site.map([1])).wait_result()
    again = await (await site.map([1])).wait_result()
    assert isinstance(again.error, JournalError)
    assert "a map with MapReduce.map(..., run_id='m', resume=True)" in str(again.error)
    resumed = await (await site.map([1, 2], resume=True)).wait_result()
    assert resumed.return_value == [2, 4]


@pytest.mark.parametrize("limit", [1, 2, None])
@virtually
async def test_what_was_done_is_not_done_again(limit: int | None) -> None:
    site = Site()
    await site.stop_after(3, range(10), max_parallel=limit)
    kept = (await restore_run(site.journal, "m")).results
    site.done.clear()
    mapped = await site.map(range(10), max_parallel=limit, resume=True)
    result = await mapped.wait_result()
    assert result.raise_for_error().return_value == [2 * number for number in range(10)]
    assert len(kept) >= 3
    assert sorted(site.done) == [n for n in range(10) if f"mapped[{n}]" not in kept]


@virtually
async def test_pairs_come_again_first_and_a_finished_map_runs_nothing() -> None:
    site = Site()
    assert (await (await site.map(range(4))).wait_result()).return_value == [0, 2, 4, 6]
    site.done.clear()
    pairs = [pair async for pair in await site.map(range(4), resume=True)]
    assert pairs == [(0, 0), (1, 2), (2, 4), (3, 6)]
    assert site.done == []


@virtually
async def test_a_source_without_an_end_is_gone_on_with_where_it_was() -> None:
    site = Site()
    await site.stop_after(5, itertools.count(), max_parallel=2)
    site.done.clear()

    async def numbers() -> AsyncIterator[int]:
        for number in itertools.count():
            yield number

    seen = []
    async for index, value in await site.map(numbers(), max_parallel=2, resume=True):
        seen.append((index, value))
        if index == 8:
            break
    assert sorted(seen)[:8] == [(n, 2 * n) for n in range(8)]
    assert min(site.done) >= 5


@virtually
async def test_an_item_that_is_another_now_ends_the_map_by_name() -> None:
    site = Site()
    await site.stop_after(3, ["a", "b", "c", "d"], max_parallel=1)
    mapped = await site.map(["a", "x", "c", "d"], max_parallel=1, resume=True)
    error = (await mapped.wait_result()).error
    assert isinstance(error, GraphChangedError)
    assert error.changed == ["mapped[1]"]
    assert "item 1 of node 'mapped' is not the one with which run 'm' was begun" in str(error)
    mapped = await site.map(["a", "b", "c", "d", "e"], resume=True)
    assert (await mapped.wait_result()).return_value == ["aa", "bb", "cc", "dd", "ee"]


@virtually
async def test_another_task_is_a_changed_graph() -> None:
    site = Site()
    await site.stop_after(1, range(3))
    mapped = await MapReduce.map(
        site.broker, abs, range(3), journal=site.journal, run_id="m", resume=True
    )
    assert isinstance((await mapped.wait_result()).error, GraphChangedError)


@virtually
async def test_resume_begins_a_map_that_the_journal_does_not_have() -> None:
    site = Site()
    for _ in range(2):
        mapped = await site.map(range(3), resume=True)
        assert (await mapped.wait_result()).return_value == [0, 2, 4]
    assert sorted(site.done) == [0, 1, 2]


@virtually
async def test_who_may_go_on_with_a_map() -> None:
    site = Site()
    first = await site.map(range(20), max_parallel=1)
    await asyncio.sleep(0.5)
    second = await site.map(range(20), resume=True)
    assert isinstance((await second.wait_result()).error, RunLockedError)
    again = await site.map(range(3))
    assert isinstance((await again.wait_result()).error, JournalError)
    assert (await first.wait_result()).return_value == [*range(0, 40, 2)]
    with pytest.raises(ValueError, match="resumed by its run_id"):
        await MapReduce.map(site.broker, abs, [1], journal=site.journal, resume=True)
    with pytest.raises(ConfigurationError, match="map 'm' has no journal to be resumed from"):
        await MapReduce.map(site.broker, abs, [1], run_id="m", resume=True)
