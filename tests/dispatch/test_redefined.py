"""A broker knows one task by each name. A graph may have been built with another one."""

import asyncio
import re
import warnings
from collections.abc import AsyncIterator
from contextlib import nullcontext
from inspect import signature
from typing import Annotated, Any

import pytest
from taskiq import AsyncTaskiqDecoratedTask, Context, InMemoryBroker, TaskiqDepends

from taskiq_flow import (
    Cache,
    ConfigurationError,
    DAGBuilder,
    ExecutionEngine,
    GraphError,
    Item,
    MemoryJournal,
    Pipeline,
    RedefinedTaskWarning,
)
from taskiq_flow.testing import in_memory

Decorated = AsyncTaskiqDecoratedTask[Any, Any]


def adder(broker: InMemoryBroker, amount: int) -> Decorated:
    @broker.task
    async def add(number: int) -> int:
        return number + amount

    return add


def engine_of(broker: InMemoryBroker, task: Decorated) -> ExecutionEngine:
    return ExecutionEngine(broker, DAGBuilder().node(task, output="sum").build())


def test_two_tasks_of_one_name_are_no_graph(broker: InMemoryBroker) -> None:
    builder = DAGBuilder().node(adder(broker, 1), name="one").node(adder(broker, 2), name="two")
    with pytest.raises(GraphError, match="nodes 'one' and 'two' have two tasks of the name"):
        builder.build()
    pipeline = Pipeline(broker).call_next(adder(broker, 1)).call_next(adder(broker, 10))
    with pytest.raises(GraphError, match="nodes 'add' and 'add_2' have two tasks of the name"):
        pipeline.dag.validate()


def test_a_fallback_is_one_of_the_tasks_of_a_graph(broker: InMemoryBroker) -> None:
    builder = DAGBuilder().node(adder(broker, 1), fallback=adder(broker, 2))
    with pytest.raises(GraphError, match=r"^node 'add' has two tasks of the name"):
        builder.build()


async def test_a_function_may_be_decorated_twice(broker: InMemoryBroker) -> None:
    async def double(number: int) -> int:
        return 2 * number

    first, urgent = broker.task("double")(double), broker.task("double", priority=9)(double)
    dag = DAGBuilder().node(first, name="a").node(urgent, name="b", inputs=["a"]).build()
    assert await ExecutionEngine(broker, dag).execute({"number": 3}) == {"a": 6, "b": 12}


@pytest.mark.parametrize(
    ("before", "after", "is_same"),
    [
        ("number + 1", "number + 1", True),
        ("number + 1", "number + 2", False),
        ("number + ONE", "number + ONE", True),
    ],
)
async def test_a_cell_of_a_notebook_that_is_executed_once_more_changes_nothing(
    broker: InMemoryBroker, before: str, after: str, *, is_same: bool
) -> None:
    names: dict[str, Any] = {"__name__": __name__, "broker": broker, "ONE": 1}

    def execute_cell(result: str) -> Decorated:
        cell = f"@broker.task('add')\ndef add(number: int) -> int:\n    return {result}"
        exec(cell, names)  # noqa: S102 - as IPython does
        task: Decorated = names["add"]
        return task

    engine = engine_of(broker, execute_cell(before))
    execute_cell(after)
    with nullcontext() if is_same else pytest.warns(RedefinedTaskWarning):
        assert await engine.execute({"number": 1}) == {"sum": 2 if is_same else 3}


@pytest.mark.parametrize(("annotation", "is_same"), [(int, True), (float, False)])
def test_annotations_and_variables_tell_functions_of_one_code_apart(
    broker: InMemoryBroker, annotation: type, *, is_same: bool
) -> None:
    def decorated(kind: type) -> Decorated:
        @broker.task("add")
        def add(number: kind) -> int:  # type: ignore[valid-type]
            return 1

        return add

    builder = DAGBuilder().node(decorated(int), name="a").node(decorated(annotation), name="b")
    with nullcontext() if is_same else pytest.raises(GraphError):
        builder.build()


async def test_a_graph_of_another_function_is_told_of(broker: InMemoryBroker) -> None:
    before = engine_of(broker, adder(broker, 1))
    now = engine_of(broker, adder(broker, 2))
    with pytest.warns(RedefinedTaskWarning, match=r"node 'add' runs add\(number\), at .*, which"):
        assert await before.execute({"number": 1}) == {"sum": 3}
    assert await now.execute({"number": 1}) == {"sum": 3}


async def test_a_result_is_cached_with_the_code_that_made_it(broker: InMemoryBroker) -> None:
    journal = MemoryJournal()

    def engine(amount: int) -> ExecutionEngine:
        dag = DAGBuilder().node(adder(broker, amount), output="sum", cache=Cache()).build()
        return ExecutionEngine(broker, dag, journal=journal)

    before = engine(1)
    assert await before.execute({"number": 1}) == {"sum": 2}
    engine(2)
    with pytest.warns(RedefinedTaskWarning):
        assert await before.execute({"number": 1}) == {"sum": 3}
    with pytest.warns(RedefinedTaskWarning):
        assert await before.execute({"number": 5}) == {"sum": 7}
    assert await engine(1).execute({"number": 5}) == {"sum": 6}


async def test_what_the_other_function_has_injected_is_given(broker: InMemoryBroker) -> None:
    async def now(number: int, context: Annotated[Context, TaskiqDepends()]) -> str:
        return f"{context.message.task_name} {number}"

    engine = engine_of(broker, broker.task("add")(added))
    broker.task("add")(now)
    with pytest.warns(RedefinedTaskWarning):
        assert await engine.execute({"number": 1}) == {"sum": "add 1"}


async def test_a_run_in_progress_goes_on_with_tasks_that_are_decorated_anew(
    broker: InMemoryBroker,
) -> None:
    @broker.task("items")
    async def items(count: int) -> AsyncIterator[int]:
        for number in range(count):
            if number == 2:
                begun.set()
                await decorated.wait()
            yield number

    @broker.task("shown")
    async def shown(number: int) -> str:
        return f"{number} before"

    begun, decorated = asyncio.Event(), asyncio.Event()
    builder = DAGBuilder().node(items, output="numbers")
    dag = builder.node(shown, inputs=["numbers"], map_over="numbers").build()
    async with ExecutionEngine(broker, dag).start({"count": 4}, items="only") as run:
        pairs = aiter(run)
        while (await anext(pairs))[1] != Item(1, "1 before"):
            pass
        await begun.wait()

        @broker.task("shown")
        def anew(number: int, context: Annotated[Context, TaskiqDepends()]) -> str:
            return f"{number} {context.message.task_name}"

        decorated.set()
        later = [result async for name, result in pairs if name == "shown"]
    assert later == [Item(2, "2 shown"), Item(3, "3 shown")]


async def test_graphs_of_a_twin_have_the_functions_of_its_broker(broker: InMemoryBroker) -> None:
    task = adder(broker, 1)
    await engine_of(broker, task).execute({"number": 1})
    assert await engine_of(in_memory(broker), task).execute({"number": 1}) == {"sum": 2}


def renamed(other: int) -> int:
    return other


def longer(number: int, amount: int) -> int:
    return number + amount


def exchanged(amount: int, number: int) -> int:
    return number - amount


def with_default(number: int, amount: int = 5) -> int:
    return number + amount


def any_call(*args: Any, **kwargs: Any) -> int:
    return len(args) + len(kwargs)


def added(number: int) -> int:
    return number


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (added, renamed),
        (added, longer),
        (with_default, longer),
        (with_default, added),
        (longer, exchanged),
    ],
)
async def test_parameters_that_do_not_fit_are_refused(
    broker: InMemoryBroker, before: Any, after: Any
) -> None:
    engine = engine_of(broker, broker.task("add")(before))
    broker.task("add")(after)
    problem = "node 'add' has its task called as add(number"
    inputs = {"number": 1, "amount": 2}
    with pytest.raises(ConfigurationError, match=re.escape(problem)):
        await engine.execute({key: inputs[key] for key in signature(before).parameters})


@pytest.mark.parametrize(("after", "result"), [(with_default, 6), (any_call, 1)])
async def test_parameters_that_fit_are_called(
    broker: InMemoryBroker, after: Any, result: int
) -> None:
    engine = engine_of(broker, broker.task("add")(added))
    broker.task("add")(after)
    with pytest.warns(RedefinedTaskWarning):
        assert await engine.execute({"number": 1}) == {"sum": result}


async def test_plain_functions_of_one_name_are_those_of_their_graph(broker: InMemoryBroker) -> None:
    def adding(amount: int) -> Any:
        def add(number: int) -> int:
            return number + amount

        return add

    dag = DAGBuilder().node(adding(1), name="a").node(adding(2), name="b").build()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert await ExecutionEngine(broker, dag).execute({"number": 0}) == {"a": 1, "b": 2}
