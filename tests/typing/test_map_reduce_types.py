"""Checked by mypy, as all of ``tests``: types flow through maps and reductions. And each is run."""

from __future__ import annotations

import tomllib
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import date
from pathlib import Path
from typing import Any, assert_type

import pytest
from taskiq import AsyncTaskiqTask, InMemoryBroker, TaskiqResult

from taskiq_flow import FlowTask, MapReduce, MapReduceResult, in_process
from taskiq_flow.errors import TypeMismatchWarning


@pytest.fixture
def broker() -> InMemoryBroker:
    return InMemoryBroker()


def length(item: str) -> int:
    return len(item)


async def length_async(item: str) -> int:
    return len(item)


def letters(item: str) -> Iterator[str]:
    yield from item


async def letters_async(item: str) -> AsyncIterator[str]:
    for letter in item:
        yield letter


def total(mapped: list[int]) -> float:
    return sum(mapped) / 2


async def total_async(mapped: list[int]) -> float:
    return sum(mapped) / 2


def untyped(item):  # type: ignore[no-untyped-def]
    return item


async def test_a_map_has_the_type_of_its_function(broker: InMemoryBroker) -> None:
    mapped = await MapReduce.map(broker, length, ["a"])
    assert_type(mapped, MapReduceResult[int])
    assert_type(await mapped.wait_result(), TaskiqResult[list[int]])
    streamed = await MapReduce.map(broker, length_async, ["a"], max_parallel=1)
    assert_type(streamed, MapReduceResult[int])
    async for index, value in streamed:
        assert_type(index, int)
        assert_type(value, int)
    as_task: AsyncTaskiqTask[list[int]] = mapped
    assert (await as_task.wait_result()).return_value == [1]


async def test_a_map_over_a_task_has_its_type(broker: InMemoryBroker) -> None:
    @broker.task
    def sync_task(item: str) -> int:
        return len(item)

    @broker.task(task_name="named")
    async def async_task(item: str) -> int:
        return len(item)

    for mapped in (
        assert_type(await MapReduce.map(broker, sync_task, ["ab"]), MapReduceResult[int]),
        assert_type(await MapReduce.map(broker, async_task, ["ab"]), MapReduceResult[int]),
    ):
        assert (await mapped.wait_result()).return_value == [2]


async def test_the_value_of_a_generator_is_the_list_of_its_items(broker: InMemoryBroker) -> None:
    lists = assert_type(await MapReduce.map(broker, letters, ["ab"]), MapReduceResult[list[str]])
    others = assert_type(
        await MapReduce.map(broker, letters_async, ["ab"]), MapReduceResult[list[str]]
    )
    for mapped in (lists, others):
        assert (await mapped.wait_result()).return_value == [["a", "b"]]


async def test_what_is_not_annotated_is_any(broker: InMemoryBroker) -> None:
    mapped = await MapReduce.map(broker, untyped, [1])
    assert_type(mapped, Any)  # so mypy answers where an argument is Any
    assert (await mapped.wait_result()).return_value == [1]


async def test_a_reduction_has_the_type_of_its_function(broker: InMemoryBroker) -> None:
    mapped = await MapReduce.map(broker, length, ["a", "bc"])
    reduced = await MapReduce.reduce(broker, total, mapped, "mapped")
    assert_type(reduced, FlowTask[float])
    assert_type((await reduced.wait_result()).return_value, float)
    both = await MapReduce.map_reduce(broker, length_async, ["a", "bc"], total_async)
    assert_type(both, FlowTask[float])
    assert (await both.wait_result()).return_value == 1.5


def test_in_process_keeps_parameters_and_result() -> None:
    measured = in_process(length)
    assert_type(measured("a"), Coroutine[Any, Any, int]).close()
    measured(item=3).close()  # type: ignore[arg-type]
    limited = in_process(limit=1)(length)
    assert_type(limited("a"), Coroutine[Any, Any, int]).close()


def days(mapped: list[date]) -> int:
    return len(mapped)


def lengths(mapped: dict[str, int]) -> int:
    return len(mapped)


async def test_a_reduction_that_cannot_take_the_list_of_results_is_warned_of(
    broker: InMemoryBroker,
) -> None:
    expected = r"node 'mapped' gives 'mapped' as list\[int\].*'mapped': dict\[str, int\]"
    with pytest.warns(TypeMismatchWarning, match=expected) as caught:
        await MapReduce.map_reduce(broker, length, [], lengths)
    assert caught[0].filename == __file__
    with pytest.warns(TypeMismatchWarning, match=r"list\[list\[str\]\].*list\[datetime\.date\]"):
        await MapReduce.map_reduce(broker, letters, [], days)


@pytest.mark.parametrize("mapper", [length, length_async, untyped])
async def test_a_reduction_that_fits_is_not_warned_of(
    broker: InMemoryBroker, mapper: Callable[..., Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", TypeMismatchWarning)
        await MapReduce.map_reduce(broker, mapper, [], total)


def test_mypy_checks_this_file_strictly() -> None:
    root = Path(__file__).parents[2]
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["mypy"]
    assert settings["strict"]
    assert "tests" in settings["files"]
