"""Generated values, many at a time, go to tasks on each broker and come back as they left."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from taskiq import AsyncBroker, InMemoryBroker

from taskiq_flow import DAGBuilder, ExecutionEngine, MapReduce, MemoryJournal
from tests.distributed import app
from tests.distributed.app import started, task
from tests.distributed.conftest import Farm
from tests.values.generated import batch, form

COUNT = 150


LIBRARIES = tuple(name for name in ("numpy", "pandas") if importlib.util.find_spec(name))


@pytest.fixture
async def any_broker(kind: str, farm: Farm) -> AsyncIterator[AsyncBroker]:
    """A broker whose workers have imported what the values need."""
    settings = farm.settings(kind, queue="generated", imports=LIBRARIES)
    farm.serve(settings)
    async with started(settings) as broker:
        yield broker


@pytest.fixture
async def remote(any_broker: AsyncBroker) -> AsyncBroker:
    if isinstance(any_broker, InMemoryBroker):
        pytest.skip("references are for workers elsewhere")
    return any_broker


@pytest.fixture(scope="module")
def sent() -> list[Any]:
    """The values of this run of the tests, which nobody may change."""
    return batch(COUNT)


@pytest.fixture(scope="module")
def forms(sent: list[Any]) -> list[Any]:
    return [form(value) for value in sent]


def assert_arrived(arrived: Sequence[Any], sent: list[Any], forms: list[Any]) -> None:
    """What was sent is as it was, and each value that arrived is the one that was sent."""
    assert [n for n, value in enumerate(sent) if form(value) != forms[n]] == []
    changed = [(value, sent[n]) for n, value in enumerate(arrived) if form(value) != forms[n]]
    assert changed == []
    assert len(arrived) == len(sent)


async def test_each_as_run_input_argument_result_and_resumed(
    any_broker: AsyncBroker, sent: list[Any], forms: list[Any]
) -> None:
    builder = DAGBuilder()
    for number in range(COUNT):
        inputs = {"value": f"value {number}"}
        builder.node(task(any_broker, app.anything), name=f"first {number}", inputs=inputs)
        inputs = {"value": f"first {number}"}
        builder.node(task(any_broker, app.anything), name=f"second {number}", inputs=inputs)
    engine = ExecutionEngine(any_broker, builder.build(), journal=MemoryJournal())
    given = {f"value {number}": value for number, value in enumerate(sent)}
    results = await engine.execute(given, run_id="generated")
    resumed = {name: value async for name, value in engine.resume("generated")}
    for found in (results, resumed):
        assert_arrived([found[f"second {number}"] for number in range(COUNT)], sent, forms)


async def test_a_list_of_all_stays_as_it_is_though_other_tasks_change_theirs(
    any_broker: AsyncBroker, sent: list[Any], forms: list[Any]
) -> None:
    """Tasks that change all that they are given stand before and after those that return it."""
    builder = DAGBuilder()
    for name, key in (("first", "given"), ("second", "first")):
        for number in range(2):
            builder.node(task(any_broker, app.spoil), name=f"{name} {number}", inputs=[key])
            if number == 0:
                builder.node(task(any_broker, app.anything), name=name, inputs=[key])
    results = await ExecutionEngine(any_broker, builder.build()).execute({"given": sent})
    for name in ("first", "second"):
        assert_arrived(results[name], sent, forms)


async def test_each_as_element_of_a_map(
    any_broker: AsyncBroker, sent: list[Any], forms: list[Any]
) -> None:
    mapped = await MapReduce.map(any_broker, task(any_broker, app.anything), sent)
    assert_arrived((await mapped.wait_result()).return_value, sent, forms)


async def test_a_list_of_all_by_reference(
    remote: AsyncBroker, sent: list[Any], forms: list[Any]
) -> None:
    builder = DAGBuilder()
    for name, key in (("first", "given"), ("second", "first")):
        builder.node(task(remote, app.anything), name=name, inputs={"value": key})
    engine = ExecutionEngine(remote, builder.build(), pass_by="reference")
    results = await engine.execute({"given": sent})
    for name in ("first", "second"):
        assert_arrived(await results[name].get(), sent, forms)
