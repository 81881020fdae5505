"""Sending one task: labels and hooks as with taskiq's own kicker, and plain callables as tasks."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import gc
import sys
from typing import Annotated, Any

import pytest
from pydantic import BaseModel
from taskiq import Context, InMemoryBroker, TaskiqDepends, TaskiqMessage, TaskiqMiddleware

from taskiq_flow import DAG, DAGBuilder, ExecutionEngine, NodeFailedError
from taskiq_flow.completion.in_memory_hooks import RUN_LABEL

pytestmark = pytest.mark.usefixtures("plain_task_ids")


class Point(BaseModel):
    x: int


@dataclasses.dataclass
class Pair:
    left: int


class Watcher(TaskiqMiddleware):
    def __init__(self) -> None:
        super().__init__()
        self.sent: list[TaskiqMessage] = []
        self.told: list[str] = []

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        message.labels["stamp"] = str(len(self.sent))
        self.sent.append(message)
        return message

    async def post_send(self, message: TaskiqMessage) -> None:
        self.told.append(message.task_id)


async def test_a_message_is_what_taskiqs_kicker_makes_of_the_same_call(
    broker: InMemoryBroker,
) -> None:
    @broker.task(priority=3, ratio=0.5, flag=True, blob=b"x", types_of_exceptions=[ValueError])
    async def work(a: int, b: Point, c: Pair, d: list[int]) -> int:
        return a + b.x + c.left + d[0]

    watcher = Watcher()
    broker.add_middlewares(watcher)
    values: dict[str, Any] = {"a": 1, "b": Point(x=2), "c": Pair(left=3), "d": [4]}
    sent = await work.kicker().with_task_id("r:work:1").kiq(**values)
    await sent.wait_result()
    results = await ExecutionEngine(broker, DAGBuilder().node(work).build()).execute(
        values, run_id="r"
    )
    by_kicker, by_engine = watcher.sent
    by_engine.labels["stamp"] = by_kicker.labels["stamp"]
    assert by_engine.labels.pop(RUN_LABEL) == "r"
    assert (by_engine.args, by_engine.kwargs) == ([], values)  # the objects themselves
    assert by_engine.model_copy(update={"kwargs": by_kicker.kwargs}) == by_kicker
    assert watcher.told == ["r:work:1"] * 2
    assert results == {"work": 10}


async def test_what_a_hook_puts_into_one_message_is_not_in_the_next(
    broker: InMemoryBroker,
) -> None:
    watcher = Watcher()
    broker.add_middlewares(watcher)
    dag = DAGBuilder().node(len, name="a", inputs=["x"]).node(len, name="b", inputs=["x"]).build()
    await ExecutionEngine(broker, dag).execute({"x": [1]}, run_id="r")
    labels = [message.labels for message in watcher.sent]
    assert labels == [{RUN_LABEL: "r", "stamp": "0"}, {RUN_LABEL: "r", "stamp": "1"}]


async def test_a_hook_that_raises_fails_the_node(broker: InMemoryBroker) -> None:
    class Refusing(TaskiqMiddleware):
        def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
            raise PermissionError("not this one")

    broker.add_middlewares(Refusing())
    with pytest.raises(NodeFailedError) as caught:
        await ExecutionEngine(broker, DAGBuilder().node(lambda: 1).build()).execute()
    assert repr(caught.value.__cause__) == "PermissionError('not this one')"


@pytest.mark.parametrize("in_place", [True, False])
async def test_a_hook_that_raises_after_the_send_changes_nothing(
    in_place: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Raising(TaskiqMiddleware):
        def post_send(self, message: TaskiqMessage) -> None:
            raise RuntimeError

    broker = InMemoryBroker(await_inplace=in_place)
    broker.add_middlewares(Raising())
    dag = DAGBuilder().node(lambda: 1, name="a").node(lambda a: a + 1, name="b").build()
    assert await ExecutionEngine(broker, dag).execute() == {"a": 1, "b": 2}
    assert "post_send" in caplog.text


class Scaler:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    def scale(self, number: int) -> int:
        return self.factor * number

    async def __call__(self, number: int) -> int:
        return self.factor * number


async def asynchronous(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


CALLABLES: dict[str, Any] = {
    "lambda": lambda number: 2 * number,
    "coroutine function": asynchronous,
    "bound method": Scaler(2).scale,
    "callable object": Scaler(2),
    "partial": functools.partial(lambda factor, number: factor * number, 2),
    "partial of a coroutine function": functools.partial(asynchronous),
    "built-in": (2).__mul__,
    "returns a coroutine": lambda number: asynchronous(number + 0),
}


@pytest.mark.parametrize("kind", CALLABLES)
async def test_plain_callables_of_every_kind_run(broker: InMemoryBroker, kind: str) -> None:
    dag = DAGBuilder().node(CALLABLES[kind], output="twice", inputs=["number"]).build()
    assert await ExecutionEngine(broker, dag).execute({"number": 21}) == {"twice": 42}


async def test_a_plain_callable_is_registered_once_and_left_as_it_was(
    broker: InMemoryBroker,
) -> None:
    def load() -> int:
        return 1

    before = set(vars(sys.modules[__name__]))
    for _ in range(3):
        dag = DAGBuilder().node(load, name="a").node(load, name="b").build()
        assert await ExecutionEngine(broker, dag).execute() == {"a": 1, "b": 1}
    assert load.__name__ == "load"
    assert set(vars(sys.modules[__name__])) == before
    assert list(broker.local_task_registry) == [f"{__name__}:load"]


async def test_different_callables_of_one_name_are_different_tasks(broker: InMemoryBroker) -> None:
    def numbered(number: int) -> Any:
        def load() -> int:
            return number

        return load

    first, second = numbered(1), numbered(2)
    dag = DAGBuilder().node(first).node(second).node(first, name="again").build()
    assert await ExecutionEngine(broker, dag).execute() == {"load": 1, "load_2": 2, "again": 1}


class Named:
    async def __call__(
        self, number: int, context: Annotated[Context, TaskiqDepends()]
    ) -> tuple[int, str]:
        return number, context.message.task_id


@pytest.mark.parametrize("kind", ["function", "object", "partial"])
async def test_taskiq_injects_into_plain_callables(broker: InMemoryBroker, kind: str) -> None:
    async def named(
        number: int,
        context: Context = TaskiqDepends(),  # noqa: B008 - taskiq's way
    ) -> tuple[int, str]:
        return number, context.message.task_id

    tasks: dict[str, Any] = {
        "function": named,
        "object": Named(),
        "partial": functools.partial(named),
    }
    task = tasks[kind]
    dag = DAGBuilder().node(task, name="named").build()
    results = await ExecutionEngine(broker, dag).execute({"number": 1}, run_id="r")
    assert results == {"named": (1, "r:named:1")}


async def test_a_callable_made_for_one_run_goes_with_it(broker: InMemoryBroker) -> None:
    def run_of(number: int) -> Any:
        async def give(held: list[int]) -> int:
            return number + len(held)

        dag = DAGBuilder().node(give).build()
        return ExecutionEngine(broker, dag).execute({"held": [0]})

    for number in range(20):
        assert await run_of(number) == {"give": number + 1}
        await asyncio.sleep(0)  # the event loop lets go of what it has just called
        gc.collect()
    assert len(broker.local_task_registry) <= 1
    assert len(broker.receiver.known_tasks) <= 1


async def test_a_callable_of_a_gone_ones_name_has_its_own_signature(
    broker: InMemoryBroker,
) -> None:
    def once(number: int) -> Any:
        def first(value: int) -> str:
            return f"{value!r} {number}"

        return first

    def other() -> Any:
        def first(value: str) -> str:
            return f"{value!r}"

        first.__qualname__ = "first"
        return first

    assert await _run(broker, once(1)) == "5 1"
    gc.collect()
    assert await _run(broker, other()) == "'5'"


async def _run(broker: InMemoryBroker, task: Any) -> Any:
    dag = DAGBuilder().node(task, output="out").build()
    return (await ExecutionEngine(broker, dag).execute({"value": "5"}))["out"]


async def test_a_sync_callable_that_raises_stop_iteration_fails(broker: InMemoryBroker) -> None:
    dag = DAGBuilder().node(lambda: next(iter([])), name="none").build()
    with pytest.raises(NodeFailedError, match="raised StopIteration"):
        await ExecutionEngine(broker, dag).execute()


async def test_values_are_parsed_as_the_tasks_annotations_say(broker: InMemoryBroker) -> None:
    def shift(point: Point) -> Point:
        return Point(x=point.x + 1)

    dag = DAGBuilder().node(shift, name="one", inputs={"point": "start"})
    dag.node(shift, name="two", inputs={"point": "one"})
    results = await ExecutionEngine(broker, dag.build()).execute({"start": {"x": 1}})
    assert results == {"one": Point(x=2), "two": Point(x=3)}


async def test_an_engine_with_an_empty_graph_registers_nothing(broker: InMemoryBroker) -> None:
    await ExecutionEngine(broker, DAG()).execute()
    assert broker.local_task_registry == {}
