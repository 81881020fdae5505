"""What taskiq's receiver knows of the tasks of an engine in this process."""

# ruff: noqa: B008 - taskiq's way to inject

from typing import Any

import pytest
from taskiq import Context, InMemoryBroker, TaskiqDepends

from taskiq_flow import DAGBuilder, ExecutionEngine


def double(number: int) -> int:
    return 2 * number


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


async def test_a_class_in_annotations_may_be_defined_behind_the_engine(
    broker: InMemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    @broker.task("eight")
    async def eight(number: int = TaskiqDepends(injected)) -> int:
        return number

    engine = ExecutionEngine(broker, DAGBuilder().node(eight, output="found").build())
    monkeypatch.setitem(globals(), "Later", int)
    assert await engine.execute() == {"found": 8}
