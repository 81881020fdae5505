"""Large values by reference: they stay in the result backend, and their ids travel."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from taskiq import AsyncBroker, BrokerMessage, InMemoryBroker

from taskiq_flow import (
    ConfigurationError,
    DAGBuilder,
    ExecutionEngine,
    MemoryJournal,
    NodeFailedError,
    OutputShapeError,
    PollingWarning,
    ResultHandle,
)
from taskiq_flow.values.handle import with_values
from taskiq_flow.values.results import failed
from tests.distributed import app
from tests.distributed.app import started, task
from tests.distributed.conftest import Farm
from tests.distributed.watching import until_empty
from tests.waiting import until

SIZE = 100_000


async def test_the_stream_gives_handles_and_later_nodes_get_values(
    any_broker: AsyncBroker,
) -> None:
    builder = DAGBuilder().node(task(any_broker, app.blob))
    dag = builder.node(task(any_broker, app.measure)).build()
    engine = ExecutionEngine(any_broker, dag, pass_by="reference")
    pairs = [pair async for pair in engine.execute_async({"size": SIZE}, run_id="refers")]
    assert [name for name, _ in pairs] == ["blob", "measure"]
    blob, length = (handle for _, handle in pairs)
    assert isinstance(blob, ResultHandle)
    assert re.fullmatch(r"<ResultHandle 'refers:blob:1\.[0-9a-f]{8}'>", repr(blob))
    assert await blob.get() == "x" * SIZE
    assert await length.get() == SIZE


async def test_only_what_is_larger_goes_by_reference(any_broker: AsyncBroker) -> None:
    builder = DAGBuilder().node(task(any_broker, app.blob))
    dag = builder.node(task(any_broker, app.measure)).build()
    engine = ExecutionEngine(any_broker, dag, pass_by=SIZE // 2)
    results = await engine.execute({"size": SIZE})
    assert isinstance(results["blob"], ResultHandle)
    assert results["measure"] == SIZE
    assert await engine.execute({"size": 10}) == {"blob": "x" * 10, "measure": 10}


async def test_a_value_is_parsed_as_it_is_annotated(any_broker: AsyncBroker) -> None:
    builder = DAGBuilder().node(task(any_broker, app.point), inputs=["words"], output="point")
    dag = builder.node(task(any_broker, app.shifted)).build()
    results = await ExecutionEngine(any_broker, dag, pass_by="reference").execute(
        {"words": ["a", "b"]}
    )
    assert await results["point"].get() == app.Point(x=2)
    assert await results["shifted"].get() == 3


async def test_each_of_several_outputs_has_a_handle(any_broker: AsyncBroker) -> None:
    builder = DAGBuilder().node(task(any_broker, app.two_blobs), outputs=["left", "right"])
    builder.node(task(any_broker, app.echo), inputs=["right"], output="taken")
    engine = ExecutionEngine(any_broker, builder.build(), pass_by="reference")
    results = await engine.execute({"size": 3}, run_id="parts")
    assert [await results[key].get() for key in ("left", "right", "taken")] == ["xxx", "yyy", "yyy"]
    named = re.escape("<ResultHandle 'parts:two_blobs:1.") + "[0-9a-f]{8}', 'left'>"
    assert re.fullmatch(named, repr(results["left"]))


async def test_outputs_of_the_wrong_shape_show_where_they_are_read(
    any_broker: AsyncBroker,
) -> None:
    builder = DAGBuilder().node(task(any_broker, app.two_blobs), outputs=["a", "b", "c"])
    builder.node(task(any_broker, app.echo), inputs=["b"], output="taken")
    engine = ExecutionEngine(any_broker, builder.build(), pass_by="reference")
    with pytest.raises(NodeFailedError) as caught:
        await engine.execute({"size": 3})
    assert isinstance(caught.value.__cause__, OutputShapeError)
    with pytest.raises(OutputShapeError, match="node 'two_blobs' declares 3 outputs"):
        await caught.value.results["a"].get()


async def test_elements_are_read_by_who_maps_over_them_and_by_who_takes_their_list(
    any_broker: AsyncBroker,
) -> None:
    inputs = {"size": "sizes"}
    builder = DAGBuilder().node(task(any_broker, app.blob), inputs=inputs, map_over="sizes")
    builder.node(task(any_broker, app.measure), map_over="blob", max_parallel=2)
    builder.node(task(any_broker, app.echo), inputs=["blob"], output="all")
    engine = ExecutionEngine(any_broker, builder.build(), pass_by=SIZE // 2)
    sizes = [SIZE, 10, SIZE + 1]
    results = await engine.execute({"sizes": sizes}, run_id="elements")
    assert results["measure"] == sizes
    kinds = [ResultHandle, str, ResultHandle]
    assert [type(part) for part in results["blob"]] == kinds
    assert await with_values(results["blob"]) == ["x" * size for size in sizes]
    assert await results["all"].get() == ["x" * size for size in sizes]


async def test_a_resumed_map_reads_what_earlier_elements_have_stored(remote: AsyncBroker) -> None:
    builder = DAGBuilder().node(
        task(remote, app.double), name="m", inputs={"item": "numbers"}, map_over="numbers"
    )
    builder.node(task(remote, app.total), inputs=["m"], map_over="m", name="n")
    builder.node(task(remote, app.echo), inputs=["m"], output="all")
    journal, numbers = MemoryJournal(), list(range(10))
    engine = ExecutionEngine(remote, builder.build(), 2, pass_by="reference", journal=journal)
    stream = engine.execute_async({"numbers": numbers}, run_id="resumed", items=True)
    done = 0
    async for name, _ in stream:
        done += name == "m"
        if done == 5:
            break
    await stream.aclose()
    results = {name: value async for name, value in engine.resume("resumed")}
    assert await with_values(results["n"]) == [2 * n for n in numbers]
    assert await results["echo"].get() == [2 * n for n in numbers]


async def test_a_failure_is_a_failure(any_broker: AsyncBroker) -> None:
    dag = DAGBuilder().node(task(any_broker, app.fail)).build()
    engine = ExecutionEngine(any_broker, dag, pass_by="reference")
    with pytest.raises(NodeFailedError) as caught:
        await engine.execute({"words": ["a"]})
    assert isinstance(caught.value.__cause__, LookupError)


async def test_a_value_that_looks_like_a_reference_is_a_value(any_broker: AsyncBroker) -> None:
    """What a task returned, from a web page say, cannot have a worker read other results."""
    value = {"task_id": "refers:blob:1"}
    builder = DAGBuilder().node(task(any_broker, app.echo), inputs=["given"], output="one")
    builder.node(task(any_broker, app.echo), inputs=["one"], output="other")
    for pass_by in ("value", "reference", 1000):
        engine = ExecutionEngine(any_broker, builder.build(), pass_by=pass_by)
        other = (await engine.execute({"given": value}))["other"]
        assert (await other.get() if isinstance(other, ResultHandle) else other) == value


async def test_a_retry_is_sent_the_reference_again(any_broker: AsyncBroker, tmp_path: Any) -> None:
    builder = DAGBuilder().node(task(any_broker, app.echo), inputs=["given"], output="times")
    dag = builder.node(task(any_broker, app.fails_at_first)).build()
    engine = ExecutionEngine(any_broker, dag, pass_by="reference")
    results = await engine.execute({"given": 1, "path": str(tmp_path / "attempts")})
    assert await results["fails_at_first"].get() == 2


async def test_a_task_that_requeues_itself_has_its_values_again(
    any_broker: AsyncBroker, tmp_path: Any
) -> None:
    builder = DAGBuilder().node(
        task(any_broker, app.echo), inputs={"value": "given"}, output="value"
    )
    dag = builder.node(task(any_broker, app.passes_on_requeued), output="passed").build()
    engine = ExecutionEngine(any_broker, dag, pass_by="reference")
    results = await engine.execute({"given": "x", "path": str(tmp_path / "attempts")})
    assert await results["passed"].get() == "x"


async def test_what_is_executed_twice_keeps_its_first_outcome(
    large: AsyncBroker, farm: Farm, tmp_path: Path
) -> None:
    path = tmp_path / "attempts"
    dag = DAGBuilder().node(task(large, app.succeeds_at_first), output="first").build()
    sent = messages_of(large)
    engine = ExecutionEngine(large, dag, pass_by="reference")
    handle = (await engine.execute({"path": str(path)}))["first"]
    settings = farm.settings("redis-streams", queue="large")
    async with app.redis_client(settings) as client:
        await client.xadd(settings.queue, {"data": sent[-1]})
    await until(lambda: len(path.read_text(encoding="utf-8").split()) == 2, "it was executed twice")
    await until_empty(settings)  # the second outcome is dealt with
    assert await handle.get() == 1


async def test_a_failure_where_a_value_should_be_is_raised(large: AsyncBroker) -> None:
    dag = DAGBuilder().node(task(large, app.double), output="two").build()
    engine = ExecutionEngine(large, dag, pass_by="reference")
    handle = (await engine.execute({"item": 1}))["two"]
    await large.result_backend.set_result(handle.reference.task_id, failed(LookupError("later")))
    with pytest.raises(LookupError, match="later"):
        await handle.get()


def messages_of(broker: AsyncBroker) -> list[bytes]:
    """The messages that the broker is given from now on."""
    kick, messages = broker.kick, []

    async def noting_kick(message: BrokerMessage) -> None:
        messages.append(message.message)
        await kick(message)

    broker.kick = noting_kick  # type: ignore[method-assign]
    return messages


@pytest.fixture
async def large(farm: Farm) -> AsyncIterator[AsyncBroker]:
    settings = farm.settings("redis-streams", queue="large")
    farm.serve(settings)
    async with started(settings) as broker:
        yield broker


async def test_a_large_value_for_many_consumers_is_stored_once_in_small_messages(
    large: AsyncBroker, farm: Farm
) -> None:
    """20 MB to 20 consumers here; ``benchmarks`` has 50 MB to 100, and the engine's memory."""
    size, count = 20_000_000, 20
    sent = messages_of(large)
    builder = DAGBuilder().node(task(large, app.blob))
    for number in range(count):
        keys = {"blob": "blob"}
        builder.node(task(large, app.measure), name=f"n{number}", inputs=keys)
    engine = ExecutionEngine(large, builder.build(), pass_by=65536, max_parallel=4)
    results = await engine.execute({"size": size}, run_id="large")
    with farm.redis.client() as redis:
        stored = sum(redis.strlen(key) for key in redis.scan_iter("large:*", count=10_000))
    assert size < stored < 1.1 * size
    assert {results[f"n{number}"] for number in range(count)} == {size}
    assert max(map(len, sent)) < 10_000


@pytest.mark.parametrize("pass_by", [1000, "reference"])
async def test_a_large_input_of_a_run_goes_by_reference(
    any_broker: AsyncBroker, pass_by: Any
) -> None:
    """Its message would be too large for some servers."""
    dag = DAGBuilder().node(task(any_broker, app.measure), inputs={"blob": "text"}).build()
    engine = ExecutionEngine(any_broker, dag, pass_by=pass_by)
    length = (await engine.execute({"text": "x" * 2_000_000}))["measure"]
    assert (await length.get() if isinstance(length, ResultHandle) else length) == 2_000_000


async def test_references_need_the_middleware(farm: Farm) -> None:
    settings = farm.settings("redis-streams", queue="polled", flow=False)
    farm.serve(settings)
    async with started(settings) as broker:
        dag = DAGBuilder().node(task(broker, app.double)).build()
        with pytest.raises(ConfigurationError, match=r"with_middlewares\(FlowMiddleware\(\)\)"):
            await ExecutionEngine(broker, dag, pass_by="reference").execute({"item": 1})
        with pytest.warns(PollingWarning, match="values keep no types but JSON's; add one with"):
            assert await ExecutionEngine(broker, dag).execute({"item": 1}) == {"double": 2}


async def test_references_need_results_that_stay(farm: Farm) -> None:
    settings = farm.settings("redis-streams", queue="fleeting", keep_results=False)
    async with started(settings) as broker:
        dag = DAGBuilder().node(task(broker, app.double)).build()
        with pytest.raises(ConfigurationError, match="keep_results=True"):
            await ExecutionEngine(broker, dag, pass_by="reference").execute({"item": 1})


@pytest.mark.parametrize("pass_by", ["values", -1, 1.5, True, None])
def test_other_ways_to_pass_are_refused(pass_by: Any) -> None:
    with pytest.raises(ValueError, match="pass_by is"):
        ExecutionEngine(InMemoryBroker(), DAGBuilder().build(), pass_by=pass_by)


async def test_a_handle_of_the_embedded_broker_cannot_be_used_to_change_a_value() -> None:
    async with started(app.Settings("in-memory")) as broker:
        builder = DAGBuilder().node(task(broker, app.load), output="words")
        dag = builder.node(task(broker, app.echo), inputs=["words"], output="later").build()
        engine = ExecutionEngine(broker, dag, pass_by="reference")
        async for name, handle in engine.execute_async({"text": "a b"}):
            if name == "load":
                (await handle.get()).clear()
                await asyncio.sleep(0)
            else:
                assert await handle.get() == ["a", "b"]
