"""The examples of the API reference, word for word, on an embedded broker."""

# ruff: noqa: T201 - the examples print

import io
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from taskiq import AsyncBroker, AsyncTaskiqDecoratedTask, AsyncTaskiqTask, InMemoryBroker

from taskiq_flow import DAGBuilder, DataflowRegistry, ExecutionEngine, MapReduce


def load(source: str) -> str:
    return f"content of {source}"


async def process(raw: str) -> str:
    return raw.upper()


def save(clean: str) -> int:
    return len(clean)


def extract(audio_files: list[str]) -> list[int]:
    return [len(name) for name in audio_files]


def tag(features: list[int]) -> list[str]:
    return ["long" if size > 5 else "short" for size in features]


async def map_func(item: int) -> int:
    return item * item


def reduce_func(values: list[int]) -> int:
    return sum(values)


RESULTS = {
    "raw": "content of data.csv",
    "clean": "CONTENT OF DATA.CSV",
    "saved": 19,
}
files = ["kick.wav", "a.wav"]

Kind = Callable[[AsyncBroker, Callable[..., Any]], Any]


def plain(broker: AsyncBroker, function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def decorated(
    broker: AsyncBroker, function: Callable[..., Any]
) -> AsyncTaskiqDecoratedTask[..., Any]:
    return broker.task(function)


def named(broker: AsyncBroker, function: Callable[..., Any]) -> AsyncTaskiqDecoratedTask[..., Any]:
    return broker.task(task_name=function.__name__.split("__")[0])(function)


def of_kind(
    kind: Kind, broker: AsyncBroker, *functions: Callable[..., Any]
) -> Iterable[Callable[..., Any]]:
    return [kind(broker, function) for function in functions]


@pytest.fixture(params=[plain, decorated, named])
def tasks(request: pytest.FixtureRequest, broker: InMemoryBroker) -> Iterable[Callable[..., Any]]:
    """``load``, ``process`` and ``save``, of each kind that a task can be of."""
    return of_kind(request.param, broker, load, process, save)


def registry_of(tasks: Iterable[Callable[..., Any]]) -> DataflowRegistry:
    load, process, save = tasks
    registry = DataflowRegistry()
    registry.register_task(load, output="raw", inputs=[])
    registry.register_task(process, output="clean", inputs=["raw"])
    registry.register_task(save, output="saved", inputs=["clean"])
    return registry


# ExecutionEngine


async def test_execution_engine(broker: InMemoryBroker, tasks: Iterable[Any]) -> None:
    load, process, save = tasks
    # Build registry manually
    registry = DataflowRegistry()
    registry.register_task(load, output="raw", inputs=[])
    registry.register_task(process, output="clean", inputs=["raw"])
    registry.register_task(save, output="saved", inputs=["clean"])
    # Build DAG
    dag = registry.build_dag()
    # Create engine
    engine = ExecutionEngine(broker, dag)
    # Execute
    results = await engine.execute(inputs={"source": "data.csv"})
    assert results == RESULTS


# DAG


def test_print_draws_on_the_console(capsys: pytest.CaptureFixture[str]) -> None:
    dag = registry_of([load, process, save]).build_dag()
    dag.print()
    drawing = capsys.readouterr().out
    assert all(name in drawing for name in ("load", "process", "save", "source"))


def test_print_draws_on_a_console_that_knows_nothing_but_ascii() -> None:
    dag = registry_of([load, process, save]).build_dag()
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    dag.print(file=console)
    console.seek(0)
    assert "process" in console.read()


# DAGBuilder


async def test_builder_pattern(broker: InMemoryBroker, tasks: Iterable[Any]) -> None:
    load, process, save = tasks
    # fmt: off
    dag = (DAGBuilder()
        .node(load, output="raw", inputs=[])
        .node(process, output="clean", inputs=["raw"])
        .node(save, output="saved", inputs=["clean"])
        .build()
    )
    # fmt: on
    results = await ExecutionEngine(broker, dag).execute(inputs={"source": "data.csv"})
    assert results == RESULTS


# MapReduce


@pytest.mark.parametrize("kind", [plain, decorated, named])
async def test_map_reduce_map_and_reduce(broker: InMemoryBroker, kind: Kind) -> None:
    mapper, reducer = of_kind(kind, broker, map_func, reduce_func)
    mapped = await MapReduce.map(
        broker,
        mapper,  # Task function to apply
        items=range(5),  # Items to process
        output="mapped",
        max_parallel=None,
    )
    assert isinstance(mapped, AsyncTaskiqTask)
    reduced = await MapReduce.reduce(
        broker,
        reducer,  # Aggregation function
        mapped,  # Output from MapReduce.map
        input_name="mapped",  # Name of mapped output to consume
        output="reduced",
    )
    assert isinstance(reduced, AsyncTaskiqTask)
    assert (await mapped.wait_result()).return_value == [0, 1, 4, 9, 16]
    assert (await reduced.wait_result()).return_value == 30


@pytest.mark.parametrize("kind", [plain, decorated, named])
async def test_map_reduce_combined(broker: InMemoryBroker, kind: Kind) -> None:
    mapper, reducer = of_kind(kind, broker, map_func, reduce_func)
    items = [1, 2, 3]
    final = await MapReduce.map_reduce(
        broker,
        mapper,
        items,
        reducer,
        map_output="mapped",
        reduce_output="final",
        max_parallel=10,
    )
    assert isinstance(final, AsyncTaskiqTask)
    assert (await final.wait_result()).return_value == 14


# DataflowRegistry


@pytest.mark.parametrize("kind", [plain, decorated, named])
async def test_dataflow_registry(
    broker: InMemoryBroker, kind: Kind, capsys: pytest.CaptureFixture[str]
) -> None:
    extract_, tag_ = of_kind(kind, broker, extract, tag)
    registry = DataflowRegistry()
    # Register tasks with explicit I/O
    registry.register_task(
        task=extract_,
        output="features",
        inputs=["audio_files"],  # external input
    )
    registry.register_task(
        task=tag_,
        output="tags",
        inputs=["features"],  # depends on extract's output
    )
    # Inspect
    print("Tasks:", [t.task_name for t in registry.get_tasks()])
    print("Outputs:", registry.get_outputs())
    print("External inputs:", registry.get_external_inputs())
    assert capsys.readouterr().out == (
        "Tasks: ['extract', 'tag']\n"
        "Outputs: ['features', 'tags']\n"
        "External inputs: ['audio_files']\n"
    )
    # Build DAG
    dag = registry.build_dag()
    dag.print()
    assert "extract" in capsys.readouterr().out
    # Execute via ExecutionEngine
    engine = ExecutionEngine(broker, dag)
    results = await engine.execute(inputs={"audio_files": files})
    assert results == {"features": [8, 5], "tags": ["long", "short"]}
