"""Checked by mypy, as all of ``tests``: the type of a pipeline is that of its last step."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, assert_type

from taskiq import AsyncTaskiqDecoratedTask, AsyncTaskiqTask, InMemoryBroker, TaskiqResult

from taskiq_flow import DataflowPipeline, Pipeline, PipelineTask, pipeline_task


def words(text: str) -> list[str]:
    return text.split()


async def length(word: str) -> int:
    return len(word)


def letters(word: str) -> Iterator[str]:
    yield from word


async def letters_async(word: str) -> AsyncIterator[str]:
    for letter in word:
        yield letter


def is_odd(number: int) -> bool:
    return number % 2 == 1


def total(lengths: list[int]) -> float:
    return sum(lengths) / 2


async def test_a_pipeline_has_the_type_of_its_last_step(broker: InMemoryBroker) -> None:
    @broker.task
    async def task(word: str) -> int:
        return len(word)

    pipeline = Pipeline(broker)
    assert_type(pipeline, Pipeline[Any])
    assert_type(pipeline.call_next(words), Pipeline[list[str]])
    mapped = Pipeline(broker).call_next(words).map(length)
    assert_type(mapped, Pipeline[list[int]])
    assert_type(mapped.filter(is_odd), Pipeline[list[int]])
    assert_type(Pipeline(broker).call_next(task), Pipeline[int])
    assert_type(Pipeline(broker).map(task), Pipeline[list[int]])
    assert_type(Pipeline(broker).call_next(letters), Pipeline[list[str]])
    assert_type(Pipeline(broker).call_next(letters_async), Pipeline[list[str]])
    assert_type(Pipeline(broker).map(letters), Pipeline[list[list[str]]])
    assert_type(Pipeline(broker).call_after(length, "a"), Pipeline[int])
    assert_type(Pipeline(broker).group([words, length]), Pipeline[list[Any]])
    assert_type(Pipeline(broker).call_next(total).with_timeout(1), Pipeline[float])


async def test_a_task_has_the_type_of_the_result(broker: InMemoryBroker) -> None:
    pipeline = Pipeline(broker).call_next(words).map(length).call_next(total)
    task = await pipeline.kiq("ebb and flow")
    assert_type(task, PipelineTask[float])
    as_task: AsyncTaskiqTask[float] = task
    assert_type(await as_task.wait_result(), TaskiqResult[float])
    assert assert_type(await task, float) == 5
    async for step, result in pipeline.stream("ebb"):
        assert_type(step, str)
        assert_type(result, Any)


async def test_a_dataflow_pipeline_gives_a_dictionary(broker: InMemoryBroker) -> None:
    @pipeline_task(output="count")
    @broker.task
    async def count(words: list[str]) -> int:
        return len(words)

    task: AsyncTaskiqDecoratedTask[[list[str]], Any] = count
    pipeline = DataflowPipeline(broker, [task, words])
    assert_type(await pipeline.kiq_dataflow(text="a"), dict[str, Any])
    assert_type(await pipeline.kiq(text="a"), PipelineTask[dict[str, Any]])
