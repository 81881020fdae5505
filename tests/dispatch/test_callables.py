"""Once a graph and its runs are gone, so are its functions and what they hold."""

import asyncio
import functools
import gc
from collections.abc import Callable
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import DAGBuilder, ExecutionEngine, MapReduce

alive = 0


class Counted:
    """Counts its instances, as one without ``__weakref__`` cannot be watched otherwise."""

    __slots__ = ("refers_to",)

    def __init__(self) -> None:
        global alive  # noqa: PLW0603 - counted across instances
        alive += 1
        self.refers_to: Any = None

    def __del__(self) -> None:
        global alive  # noqa: PLW0603
        alive -= 1

    def method(self, item: int) -> int:
        return item + 1

    async def async_method(self, item: int) -> int:
        return item + 1

    def __call__(self, item: int) -> int:
        return item + 1


class Referable(Counted):
    pass


def function_with_default() -> Callable[..., int]:
    held = Counted()

    def add(item: int, me: Counted = held) -> int:
        return item + 1

    held.refers_to = add
    return add


def lambda_with_default() -> Callable[..., int]:
    held = Counted()
    held.refers_to = function = lambda item, me=held: item + 1
    return function


def async_function_with_default() -> Callable[..., Any]:
    held = Counted()

    async def add(item: int, me: Counted = held) -> int:
        return item + 1

    held.refers_to = add
    return add


def closure() -> Callable[..., int]:
    held = Counted()

    def add(item: int) -> int:
        return item + (held is not None)

    held.refers_to = add
    return add


def partial() -> Callable[..., int]:
    held = Counted()
    held.refers_to = function = functools.partial(lambda me, item: item + 1, held)
    return function


def annotated_with_a_local_class() -> Callable[..., int]:
    held = Counted()

    class Local(int):
        def method(self) -> Any:
            return held

    def add(item: int, other: Local | None = None) -> int:
        return item + 1

    held.refers_to = add
    return add


KINDS: list[Callable[[], Callable[..., Any]]] = [
    function_with_default,
    async_function_with_default,
    lambda_with_default,
    closure,
    partial,
    lambda: Counted().method,
    lambda: Counted().async_method,
    Counted,
    lambda: Referable().method,
    Referable,
]


async def until_collected() -> None:
    """Wait until a thread of the broker has let go of what it has just called; it needs no time."""
    for _ in range(1000):
        gc.collect()
        if alive == 0:
            return
        await asyncio.sleep(0.001)
    raise AssertionError(f"{alive} are still alive")


@pytest.fixture(autouse=True)
def _none_alive() -> None:
    global alive  # noqa: PLW0603
    gc.collect()
    alive = 0


@pytest.mark.parametrize("make", KINDS)
async def test_nothing_is_left_of_a_graph_that_has_run(
    broker: InMemoryBroker, make: Callable[[], Callable[..., Any]]
) -> None:
    for number in range(3):
        dag = DAGBuilder().node(make(), output="out", inputs=["item"], name="node").build()
        assert await ExecutionEngine(broker, dag).execute({"item": number}) == {"out": number + 1}
        assert alive == 1
        del dag
        await until_collected()
    assert broker.local_task_registry == {}
    assert broker.receiver.known_tasks == set()


@pytest.mark.parametrize("make", KINDS)
async def test_nothing_is_left_of_a_map(
    broker: InMemoryBroker, make: Callable[[], Callable[..., Any]]
) -> None:
    mapped = await MapReduce.map(broker, make(), [1, 2])
    assert (await mapped.wait_result()).return_value == [2, 3]
    del mapped
    await until_collected()


# taskiq itself keeps the types that it has parsed, in a bounded cache, once the task has run.
@pytest.mark.parametrize("make", [*KINDS, annotated_with_a_local_class])
def test_nothing_is_left_of_a_graph_that_was_only_built(
    make: Callable[[], Callable[..., Any]],
) -> None:
    dag = DAGBuilder().node(make(), output="out", inputs=["item"]).build()
    assert (alive, len(dag.nodes)) == (1, 1)
    del dag
    gc.collect()
    assert alive == 0


def test_nothing_is_left_of_a_condition() -> None:
    held = Counted()
    held.refers_to = when = lambda item, me=held: bool(item)
    dag = DAGBuilder().node(len, output="out", inputs=["item"], when=when).build()
    assert len(dag.nodes) == 1
    del dag, when, held
    gc.collect()
    assert alive == 0


async def test_a_slotted_objects_method_runs_in_a_graph_that_outlives_another(
    broker: InMemoryBroker,
) -> None:
    owner = Counted()
    first, second = (
        DAGBuilder().node(task, output="out", inputs=["item"]).node(owner, name="n").build()
        for task in (owner.method, owner.method)
    )
    assert (await ExecutionEngine(broker, first).execute({"item": 1}))["out"] == 2
    assert (await ExecutionEngine(broker, second).execute({"item": 1}))["out"] == 2
    del first
    gc.collect()
    assert await ExecutionEngine(broker, second).execute({"item": 1}) == {"out": 2, "n": 2}
