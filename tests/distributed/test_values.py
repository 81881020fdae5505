"""Values of many types go to workers elsewhere and come back as they left."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from taskiq import AsyncBroker

from taskiq_flow import (
    DAG,
    AnnotationError,
    DAGBuilder,
    ExecutionEngine,
    MapReduce,
    MemoryJournal,
    NodeCompleted,
    NodeFailedError,
    SerializationError,
)
from taskiq_flow.values.codec import ValueCodec
from tests.distributed import app
from tests.distributed.app import KINDS as KINDS_OF_BROKERS
from tests.distributed.app import SERIALIZERS, started, task
from tests.distributed.conftest import NEEDS_RABBITMQ, Farm
from tests.recording import Recorder
from tests.values import kinds
from tests.values.kinds import Point
from tests.values.library_kinds import LIBRARIES, NOT_COMPARED, library_kinds

KINDS = kinds.KINDS | library_kinds()


def text(value: Any) -> str:
    """What differs for values that differ in anything, their types included."""
    return json.dumps(ValueCodec().encode((value,)), sort_keys=True)


def assert_arrived(results: dict[str, Any]) -> None:
    """The results by the names of kinds are the values of these kinds."""
    assert {n: v for n, v in results.items() if text(v) != text(KINDS[n])} == {}
    assert results.keys() == KINDS.keys()


def served_by() -> Iterator[Any]:
    """Each kind of broker with each serializer. Both kinds over Redis serialize alike."""
    for kind in KINDS_OF_BROKERS:
        for serializer in SERIALIZERS if kind != "redis-lists" else ["json"]:
            marks = NEEDS_RABBITMQ.marks if kind == "rabbitmq" else ()
            yield pytest.param((kind, serializer), marks=marks, id=f"{kind}-{serializer}")


@pytest.fixture(params=served_by())
async def served(request: pytest.FixtureRequest, farm: Farm) -> AsyncIterator[AsyncBroker]:
    """A broker with a serializer for messages and results."""
    kind, serializer = request.param
    queue = f"kinds-{serializer}"
    settings = farm.settings(kind, queue=queue, serializer=serializer, imports=LIBRARIES)
    farm.serve(settings)
    async with started(settings) as broker:
        yield broker


def graph(broker: AsyncBroker, *, cache: bool = False) -> DAG:
    """For each kind, two tasks that return what they are given, one behind the other."""
    builder = DAGBuilder()
    for kind in KINDS:
        for key, name in ((f"{kind} given", f"{kind} once"), (f"{kind} once", kind)):
            node = task(broker, app.anything)
            is_cached = cache and kind not in NOT_COMPARED
            builder.node(node, name=name, inputs={"value": key}, cache=is_cached)
    return builder.build()


GIVEN = {f"{kind} given": value for kind, value in KINDS.items()}


def assert_both_arrived(results: dict[str, Any]) -> None:
    """What both tasks of each kind have given."""
    assert_arrived({kind: results[kind] for kind in KINDS})
    assert_arrived({kind: results[f"{kind} once"] for kind in KINDS})


async def test_every_kind_as_input_argument_and_result_resumed_and_cached(
    served: AsyncBroker,
) -> None:
    journal = MemoryJournal(serializer=served.serializer)
    recorder = Recorder()
    engine = ExecutionEngine(
        served, graph(served, cache=True), journal=journal, listeners=[recorder]
    )
    assert_both_arrived(await engine.execute(GIVEN, run_id="kinds"))
    assert_both_arrived({name: value async for name, value in engine.resume("kinds")})
    recorder.events.clear()
    assert_both_arrived(await engine.execute(GIVEN))
    for event in recorder.of(NodeCompleted):
        is_cached = event.task_name.removesuffix(" once") not in NOT_COMPARED
        assert event.source == ("cache" if is_cached else "task"), event


async def test_every_kind_by_reference(served: AsyncBroker) -> None:
    engine = ExecutionEngine(served, graph(served), pass_by="reference")
    results = await engine.execute(GIVEN)
    assert_arrived({kind: await results[kind].get() for kind in KINDS})


async def test_every_kind_as_element_of_a_map(served: AsyncBroker) -> None:
    mapped = await MapReduce.map(served, task(served, app.anything), list(KINDS.values()))
    values = (await mapped.wait_result()).return_value
    assert_arrived(dict(zip(KINDS, values, strict=True)))


async def test_every_kind_as_item_of_a_generator_and_as_element_of_its_consumer(
    served: AsyncBroker,
) -> None:
    dag = (
        DAGBuilder()
        .node(task(served, app.various), name="items", inputs={"values": "values"})
        .node(task(served, app.anything), name="each", inputs={"value": "items"}, map_over="items")
        .build()
    )
    engine = ExecutionEngine(served, dag, journal=MemoryJournal(serializer=served.serializer))
    first = await engine.execute({"values": list(KINDS.values())}, run_id="items")
    resumed = {name: value async for name, value in engine.resume("items")}
    for results in (first, resumed):
        assert_arrived(dict(zip(KINDS, results["items"], strict=True)))
        assert_arrived(dict(zip(KINDS, results["each"], strict=True)))


async def test_what_cannot_be_carried_is_named(remote: AsyncBroker) -> None:
    dag = DAGBuilder().node(task(remote, app.anything), name="n").build()
    with pytest.raises(NodeFailedError, match=r"'n' cannot be sent the value of 'value'") as caught:
        await ExecutionEngine(remote, dag).execute({"value": [object()]})
    cause = caught.value.__cause__
    assert isinstance(cause, SerializationError)
    assert (cause.key, cause.task_name) == ("value", "n")


async def test_what_does_not_fit_is_converted_or_fails_the_node(remote: AsyncBroker) -> None:
    engine = ExecutionEngine(remote, DAGBuilder().node(task(remote, app.fitted)).build())
    results = await engine.execute({"model": {"when": 1}, "number": "3"})
    assert results == {"fitted": Point(1, 3)}
    with pytest.raises(NodeFailedError, match="parameter 'number' of fitted takes int") as caught:
        await engine.execute({"model": {"when": 1}, "number": "three"})
    assert isinstance(caught.value.__cause__, AnnotationError)
