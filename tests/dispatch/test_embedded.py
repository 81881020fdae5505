"""What taskiq's receiver knows of the tasks of an engine in this process."""

# ruff: noqa: B008 - taskiq's way to inject

import asyncio
import contextlib
import gc
import threading
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from taskiq import Context, InMemoryBroker, TaskiqDepends

from taskiq_flow import DAGBuilder, ExecutionEngine, NodeFailedError
from taskiq_flow.completion.in_memory_hooks import InMemoryHooks
from taskiq_flow.dataflow.tasks import task_info


def double(number: int) -> int:
    return 2 * number


class Double:
    def __call__(self, number: int) -> int:
        return 2 * number


class UnhashableType(type):
    def __eq__(cls, other: object) -> bool:
        return cls is other

    __hash__ = None  # type: ignore[assignment]


class Unhashable(metaclass=UnhashableType):
    pass


def seven() -> int:
    return 7


def injected(
    number: "Later" = TaskiqDepends(seven),  # type: ignore[name-defined]  # noqa: F821
) -> Any:
    return number + 1


async def test_an_engine_has_its_broker_know_its_tasks_before_the_first_run(
    broker: InMemoryBroker,
) -> None:
    @broker.task("increment")
    def increment(number: int) -> int:
        return number + 1

    inner = DAGBuilder().node(increment, output="more", inputs=["number"]).build()
    builder = (
        DAGBuilder()
        .node(double, output="number", inputs={"number": "half"})
        .add_graph(inner, "inner")
    )
    ExecutionEngine(broker, builder.build())
    assert broker.receiver.known_tasks == {"increment", f"{__name__}:double"}


async def test_a_task_that_is_decorated_anew_is_given_what_it_asks_for_now(
    broker: InMemoryBroker,
) -> None:
    @broker.task("present")
    async def before(context: Context = TaskiqDepends()) -> str:
        return context.message.task_name

    async def results() -> dict[str, Any]:
        task = broker.find_task("present")
        assert task is not None
        dag = DAGBuilder().node(task, output="found").build()
        return await ExecutionEngine(broker, dag).execute()

    assert await results() == {"found": "present"}

    @broker.task("present")
    async def now(number: int = TaskiqDepends(seven)) -> int:
        return number

    assert await results() == {"found": 7}


@pytest.mark.parametrize("warned", ["error", "always"])
async def test_what_dependencies_name_may_be_defined_behind_the_engine(
    broker: InMemoryBroker, monkeypatch: pytest.MonkeyPatch, warned: Any
) -> None:
    @broker.task("eight")
    async def eight(number: int = TaskiqDepends(injected)) -> int:
        return number

    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter(warned)
        engine = ExecutionEngine(broker, DAGBuilder().node(eight, output="found").build())
    assert not issued
    monkeypatch.setitem(globals(), "Later", int)
    assert await engine.execute() == {"found": 8}


async def test_a_task_that_is_decorated_anew_behind_the_engine_may_be_sent_by_itself(
    broker: InMemoryBroker,
) -> None:
    @broker.task("present")
    async def before(number: int) -> int:
        return number

    dag = DAGBuilder().node(before, output="found", inputs=["number"]).build()
    ExecutionEngine(broker, dag)

    @broker.task("present")
    async def now(number: int = TaskiqDepends(seven)) -> int:
        return number

    sent = await now.kiq()
    await broker.wait_all()
    assert (await sent.get_result()).return_value == 7


async def test_a_task_that_is_decorated_anew_in_a_run_is_given_the_values_of_the_run(
    broker: InMemoryBroker,
) -> None:
    begun, goes_on = asyncio.Event(), asyncio.Event()

    @broker.task("wait")
    async def wait(number: int) -> int:
        begun.set()
        await goes_on.wait()
        return number

    @broker.task("present")
    async def before(number: int = 0) -> int:
        return number

    dag = (
        DAGBuilder()
        .node(wait, output="waited", inputs=["number"])
        .node(before, output="found", inputs={"number": "waited"})
        .build()
    )
    async with ExecutionEngine(broker, dag).start({"number": 7}) as run:
        await begun.wait()

        @broker.task("present")
        async def now(number: int = 0) -> int:
            return 10 * number

        goes_on.set()
        assert (await run)["found"] == 70


async def test_a_task_that_cannot_be_injected_what_it_asks_for_fails_each_time(
    broker: InMemoryBroker,
) -> None:
    @broker.task("present")
    async def untyped(number=TaskiqDepends()) -> Any:  # type: ignore[no-untyped-def]
        return number

    engine = ExecutionEngine(broker, DAGBuilder().node(untyped, output="found").build())
    for _ in range(2):
        with pytest.raises(NodeFailedError, match="cannot be resolved"):
            await engine.execute()


async def test_a_task_of_the_users_own_stays_when_a_callable_of_its_name_is_collected(
    broker: InMemoryBroker,
) -> None:
    def engine() -> ExecutionEngine:
        return ExecutionEngine(broker, DAGBuilder().node(Double(), inputs=["number"]).build())

    first = engine()
    own = broker.register_task(double, f"{__name__}:Double")
    second = engine()
    for each in (first, second):
        assert await each.execute({"number": 2}) == {"Double": 4}
    assert len(broker.local_task_registry) == 3
    del first, second, each
    gc.collect()
    assert broker.local_task_registry == {own.task_name: own}


def test_nothing_is_left_of_brokers_that_were_used_for_one_graph() -> None:
    dag = DAGBuilder().node(double, inputs=["number"]).build()
    for _ in range(10):
        ExecutionEngine(InMemoryBroker(), dag).execute_sync({"number": 1})
    gc.collect()
    assert weakref.getweakrefcount(task_info(double)) == 1  # the table of all


def test_an_engine_raises_what_an_annotation_does_when_it_runs(broker: InMemoryBroker) -> None:
    def take(number: Unhashable) -> None:
        pass

    engine = ExecutionEngine(broker, DAGBuilder().node(take, inputs=["number"]).build())
    with pytest.raises(TypeError, match="unhashable"):
        engine.execute_sync({"number": 1})


@pytest.mark.parametrize(
    ("place", "step"), [(InMemoryHooks, "set_broker"), (InMemoryBroker, "register_task")]
)
def test_two_threads_may_make_an_engine_each(
    broker: InMemoryBroker, monkeypatch: pytest.MonkeyPatch, place: type, step: str
) -> None:
    both, own = threading.Barrier(2), getattr(place, step)

    def meet(*args: Any, **kwargs: Any) -> Any:
        result = own(*args, **kwargs)
        with contextlib.suppress(threading.BrokenBarrierError):  # the other one waits outside
            both.wait(0.2)
        return result

    monkeypatch.setattr(place, step, meet)

    def engine(number: int) -> ExecutionEngine:
        return ExecutionEngine(broker, DAGBuilder().node(lambda: number, output="found").build())

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(engine, (1, 2))
    assert [first.execute_sync(), second.execute_sync()] == [{"found": 1}, {"found": 2}]
