"""Pipelines whose order follows from keys."""

from __future__ import annotations

from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    CycleError,
    DataflowPipeline,
    MissingInputError,
    NodeFailedError,
    PipelineError,
    RunFailedError,
    pipeline_task,
    pipeline_task_multi_output,
)


@pipeline_task(output="words", description="splits at spaces")
def split(text: str) -> list[str]:
    return text.split()


@pipeline_task_multi_output(["short", "long"], inputs=["words"])
def sort(items: list[str]) -> tuple[str, str]:
    ordered = sorted(items, key=len)
    return ordered[0], ordered[-1]


def count(words: list[str]) -> int:
    return len(words)


def square(number: int) -> int:
    return number * number


def squares(numbers: list[int]) -> list[int]:
    return [number * number for number in numbers]


def odd_fails(number: int) -> int:
    if number % 2:
        raise LookupError(number)
    return number


def odd_chunk_fails(numbers: list[int]) -> list[int]:
    return [odd_fails(number) for number in numbers]


async def test_the_order_follows_from_the_keys(broker: InMemoryBroker) -> None:
    pipeline = DataflowPipeline(broker, [sort, count, split])
    expected = {"words": ["flow", "at", "ebb"], "short": "at", "long": "flow", "count": 3}
    assert await pipeline.kiq_dataflow(text="flow at ebb") == expected
    task = await pipeline.kiq(text="a")
    assert (await task.wait_result()).return_value == await task
    pairs = [pair async for pair in pipeline.stream(text="a")]
    assert pairs[0] == ("split", ["a"])
    assert sorted(name for name, _ in pairs) == ["count", "sort", "split"]


async def test_each_way_to_make_one_gives_the_same(broker: InMemoryBroker) -> None:
    one = DataflowPipeline.from_tasks(broker, [split, count], max_parallel=1, pipeline_id="p")
    two = DataflowPipeline(broker).add_dataflow_task(count).add_dataflow_task(split)
    assert await one.kiq_dataflow(text="a b") == await two.kiq_dataflow(text="a b")
    assert one.pipeline_id == (await one.kiq(text="a")).task_id == "p"


async def test_options_of_a_node_come_before_what_a_task_declares(broker: InMemoryBroker) -> None:
    pipeline = DataflowPipeline(broker).add_dataflow_task(split, output="parts", retry=2)
    assert await pipeline.kiq_dataflow(text="a b") == {"parts": ["a", "b"]}
    (node,) = pipeline.dag.nodes
    assert node.metadata == {"description": "splits at spaces"}


async def test_a_task_that_fails_gives_no_none_in_its_place(broker: InMemoryBroker) -> None:
    def a(x: int) -> int:
        raise LookupError(x)

    def c(a: int) -> tuple[str, int]:
        return "got", a

    pipeline = DataflowPipeline(broker, [a, c])
    with pytest.raises(NodeFailedError) as failure:
        await pipeline.kiq_dataflow(x=1)
    assert failure.value.results == {}
    with pytest.raises(RunFailedError) as failed:
        await pipeline.on_error("continue").kiq_dataflow(x=1)
    assert failed.value.skipped == ["c"]


async def test_maps_and_reductions(broker: InMemoryBroker) -> None:
    pipeline = DataflowPipeline(broker).map(square, "numbers", "squares", max_parallel=2)
    pipeline.reduce(sum, "squares", "total")
    assert await pipeline.kiq_map_reduce(numbers=[1, 2, 3]) == {"squares": [1, 4, 9], "total": 14}
    assert await pipeline.kiq_map_reduce(numbers=[]) == {"squares": [], "total": 0}


async def test_a_list_is_mapped_over_in_each_run(broker: InMemoryBroker) -> None:
    pipeline = DataflowPipeline(broker).map(square, range(3), "squares")
    for _ in range(2):
        assert await pipeline.kiq_map_reduce() == {"squares": [0, 1, 4]}
    for once in (iter([1]), 7):
        with pytest.raises(PipelineError, match="give a list, or the key"):
            pipeline.map(square, once, "more")  # type: ignore[arg-type]


async def test_a_map_over_the_output_of_a_task_with_another_input(broker: InMemoryBroker) -> None:
    def marked(mark: str, word: str) -> str:
        return word + mark

    pipeline = DataflowPipeline(broker, [split]).map(marked, "words", "marked", param_name="word")
    results = await pipeline.kiq_map_reduce(text="a b", mark="!")
    assert results["marked"] == ["a!", "b!"]


@pytest.mark.parametrize("config", [{"chunk_size": 2}, 2])
async def test_a_chunked_map_joins_what_its_chunks_give(
    broker: InMemoryBroker, config: Any
) -> None:
    pipeline = DataflowPipeline(broker).map(squares, "numbers", "squares", chunk_config=config)
    assert await pipeline.kiq_map_reduce(numbers=range(5)) == {"squares": [0, 1, 4, 9, 16]}


async def test_a_chunk_that_fails_is_no_empty_list(broker: InMemoryBroker) -> None:
    chunked = {"chunk_size": 2}
    pipeline = DataflowPipeline(broker).map(odd_chunk_fails, "ns", "out", chunk_config=chunked)
    assert await pipeline.kiq_map_reduce(ns=[0, 2, 4]) == {"out": [0, 2, 4]}
    with pytest.raises(NodeFailedError, match=r"odd_chunk_fails\[1\]"):
        await pipeline.kiq_map_reduce(ns=[0, 2, 3])


async def test_a_reduction_may_begin_with_a_value_and_go_by_chunks(broker: InMemoryBroker) -> None:
    given: list[list[int]] = []

    def total(numbers: list[int]) -> int:
        given.append(list(numbers))
        return sum(numbers)

    pipeline = DataflowPipeline(broker, max_parallel=1)
    pipeline.reduce(total, "numbers", "total", initial=100, chunk_size=2)
    assert await pipeline.kiq_map_reduce(numbers=[1, 2, 3]) == {"total": 106}
    assert given == [[1, 2], [3], [100, 3, 3]]
    whole = DataflowPipeline(broker).reduce(total, "numbers", "total", initial=None)
    with pytest.raises(NodeFailedError):
        await whole.kiq_map_reduce(numbers=[1])


async def test_it_can_be_looked_at(
    broker: InMemoryBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = DataflowPipeline(broker, [sort, split])
    assert pipeline.visualize() == {
        "nodes": [
            {"id": "split", "inputs": ["text"], "outputs": ["words"]},
            {"id": "sort", "inputs": ["words"], "outputs": ["short", "long"]},
        ],
        "edges": [{"from": "split", "to": "sort"}],
    }
    assert pipeline.visualize_dot() == pipeline.dag.to_dot()
    pipeline.print_dag()
    assert "1 ── sort   ← split  gives short, long" in capsys.readouterr().out
    assert repr(pipeline) == "<DataflowPipeline of 2 nodes: sort, split>"


async def test_a_pipeline_of_tasks_that_do_not_fit_is_refused(broker: InMemoryBroker) -> None:
    with pytest.raises(MissingInputError, match="text"):
        await DataflowPipeline(broker, [split]).kiq_dataflow()
    circle = DataflowPipeline(broker).add_dataflow_task(len, name="a", inputs=["b"])
    with pytest.raises(CycleError):
        await circle.add_dataflow_task(len, name="b", inputs=["a"]).kiq_dataflow()
    with pytest.raises(TypeError, match="is no task"):
        DataflowPipeline(broker, ["split"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"give \{'chunk_size': 100\}"):
        DataflowPipeline(broker).map(squares, "n", "s", chunk_config={"size": 2})


async def test_what_is_refused_leaves_nothing_behind(broker: InMemoryBroker) -> None:
    pipeline = DataflowPipeline(broker)
    with pytest.raises(ValueError, match="max_parallel is 0"):
        pipeline.map(squares, [1, 2], "squares", chunk_config=2, max_parallel=0)
    with pytest.raises(TypeError, match="a node's task"):
        pipeline.reduce(None, "squares", "total", initial=0, chunk_size=2)  # type: ignore[arg-type]
    assert repr(pipeline) == "<DataflowPipeline of 0 nodes>"
    pipeline.map(square, "numbers", "squares")
    assert await pipeline.kiq_dataflow(numbers=[3]) == {"squares": [9]}


@pytest.mark.filterwarnings("ignore::taskiq_flow.TypeMismatchWarning")
async def test_a_map_whose_function_cannot_take_the_elements_fails(broker: InMemoryBroker) -> None:
    pipeline = DataflowPipeline(broker, [split]).map(square, "words", "squares")
    with pytest.raises(NodeFailedError, match="number"):
        await pipeline.kiq_map_reduce(text="a")


async def test_the_decorator_may_stand_over_and_under_that_of_the_broker(
    broker: InMemoryBroker,
) -> None:
    @broker.task
    @pipeline_task(output="words")
    def under(text: str) -> list[str]:
        return text.split()

    @pipeline_task(output="count", inputs=["words"])
    @broker.task(task_name="my.count")
    async def over(items: list[str]) -> int:
        return len(items)

    pipeline = DataflowPipeline(broker, [over, under])
    assert await pipeline.kiq_dataflow(text="a b") == {"words": ["a", "b"], "count": 2}
