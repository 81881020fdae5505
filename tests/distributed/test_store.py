"""Large values in a store that engine and workers reach: a directory, and a bucket of S3."""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from taskiq import AsyncBroker, BrokerMessage

from taskiq_flow import (
    ConfigurationError,
    DAGBuilder,
    ExecutionEngine,
    MapReduce,
    MemoryJournal,
    NodeFailedError,
    ResultHandle,
    ResultUnavailableError,
    RunCancelledError,
    SerializationError,
)
from taskiq_flow.values.codec import ValueCodec
from tests.distributed import app
from tests.distributed.app import Settings, started, task
from tests.distributed.conftest import Farm
from tests.distributed.watching import Notes
from tests.servers.s3 import S3Server
from tests.values.kinds import KINDS
from tests.waiting import until

SIZE = 2_000_000
SMALL = 20_000
"""Bytes above which nothing may be in the messages, or in the result backend, of these tests."""


def sizes_of_messages(broker: AsyncBroker) -> list[int]:
    """The bytes of each message that the broker is given from now on."""
    kick, sizes = broker.kick, []

    async def noting_kick(message: BrokerMessage) -> None:
        sizes.append(len(message.message))
        await kick(message)

    broker.kick = noting_kick  # type: ignore[method-assign]
    return sizes


def objects(folder: Path) -> list[Path]:
    """Those that are written, and not those that are being written."""
    return sorted(path for path in folder.rglob("[!.]*") if path.is_file())


def settings_of(kind: str, farm: Farm, *, name: str = "store") -> tuple[Settings, Path]:
    folder = farm.folder / f"{name}-{kind}"
    folder.mkdir(exist_ok=True)
    return farm.settings(kind, queue=name, store=f"file://{folder}", retries=True), folder


@pytest.fixture
async def stored(remote_kind: str, farm: Farm) -> AsyncIterator[tuple[AsyncBroker, Path]]:
    """A broker of each kind with a store, and the store's directory."""
    settings, folder = settings_of(remote_kind, farm)
    farm.serve(settings)
    async with started(settings) as broker:
        yield broker, folder


@pytest.fixture
async def on_redis(farm: Farm) -> AsyncIterator[tuple[AsyncBroker, Path]]:
    """A broker over Redis with a store, and the store's directory."""
    settings, folder = settings_of("redis-streams", farm)
    farm.serve(settings)
    async with started(settings) as broker:
        yield broker, folder


def consumers(broker: AsyncBroker, count: int) -> DAGBuilder:
    """A node that returns so many bytes, and those that measure them."""
    builder = DAGBuilder().node(task(broker, app.content))
    for number in range(count):
        keys = {"content": "content"}
        builder.node(task(broker, app.measure_content), name=f"n{number}", inputs=keys)
    return builder


async def executed(
    engine: ExecutionEngine, inputs: dict[str, Any], folder: Path
) -> tuple[dict[str, Any], list[int]]:
    """The results of a run, and the sizes of the objects that it had in the store."""
    results, before, seen = {}, set(objects(folder)), dict[Path, int]()
    async for name, value in engine.execute_async(inputs):
        results[name] = value
        seen |= {path: path.stat().st_size for path in set(objects(folder)) - before}
    return results, list(seen.values())


@pytest.mark.parametrize("pass_by", ["value", "reference", 1000])
async def test_a_large_value_for_many_is_stored_once_and_travels_in_no_message(
    stored: tuple[AsyncBroker, Path], pass_by: Any, farm: Farm
) -> None:
    broker, folder = stored
    sizes = sizes_of_messages(broker)
    engine = ExecutionEngine(broker, consumers(broker, 5).build(), pass_by=pass_by)
    results, stored_sizes = await executed(engine, {"size": SIZE}, folder)
    for name, value in results.items():
        got = await value.get() if isinstance(value, ResultHandle) else value
        assert got == (b"x" * SIZE if name == "content" else SIZE)
    assert isinstance(results["content"], ResultHandle) == (pass_by != "value")
    assert len(stored_sizes) == 1
    assert SIZE < stored_sizes[0] < SIZE + 1_000
    assert max(sizes) < SMALL


async def test_every_kind_of_value_goes_through_the_store(
    stored: tuple[AsyncBroker, Path],
) -> None:
    broker, folder = stored
    builder = DAGBuilder()
    for kind in KINDS:
        for key, name in ((f"{kind} given", f"{kind} once"), (f"{kind} once", kind)):
            builder.node(task(broker, app.anything), name=name, inputs={"value": key})
    given = {f"{kind} given": [value, bytes(600_000)] for kind, value in KINDS.items()}
    results, sizes = await executed(ExecutionEngine(broker, builder.build()), given, folder)
    text = {kind: json.dumps(ValueCodec().encode(value)) for kind, value in KINDS.items()}
    assert {kind: json.dumps(ValueCodec().encode(results[kind][0])) for kind in KINDS} == text
    assert len(sizes) == 3 * len(KINDS)


async def test_large_inputs_and_elements_travel_in_no_message(
    on_redis: tuple[AsyncBroker, Path],
) -> None:
    broker, folder = on_redis
    before = objects(folder)
    sizes = sizes_of_messages(broker)
    builder = DAGBuilder()
    for number in range(4):
        node = task(broker, app.measure_content)
        builder.node(node, name=f"n{number}", inputs={"content": "given"})
    engine = ExecutionEngine(broker, builder.build())
    results, stored_sizes = await executed(engine, {"given": bytes(SIZE)}, folder)
    assert set(results.values()) == {SIZE}
    assert len(stored_sizes) == 1
    items = [bytes([n]) * SIZE for n in range(3)]
    mapped = await MapReduce.map(broker, task(broker, app.anything), items)
    assert (await mapped.wait_result()).return_value == items
    assert max(sizes) < SMALL
    assert objects(folder) == before


async def test_a_fixed_value_is_stored_as_well(on_redis: tuple[AsyncBroker, Path]) -> None:
    broker, _ = on_redis
    sizes = sizes_of_messages(broker)
    given = {"content": bytes(SIZE)}
    dag = DAGBuilder().node(task(broker, app.measure_content), name="n", given=given).build()
    assert await ExecutionEngine(broker, dag).execute() == {"n": SIZE}
    assert max(sizes) < SMALL


async def test_small_values_are_not_stored(on_redis: tuple[AsyncBroker, Path]) -> None:
    broker, folder = on_redis
    engine = ExecutionEngine(broker, consumers(broker, 1).build())
    assert (await executed(engine, {"size": 100_000}, folder))[1] == []


# Afterwards


async def test_nothing_is_left_of_a_run_by_value(stored: tuple[AsyncBroker, Path]) -> None:
    broker, folder = stored
    before = objects(folder)
    for journal in (None, MemoryJournal()):
        engine = ExecutionEngine(broker, consumers(broker, 3).build(), journal=journal)
        results, sizes = await executed(engine, {"size": SIZE}, folder)
        assert (results["n2"], len(sizes)) == (SIZE, 1)
        assert objects(folder) == before


async def test_nothing_is_left_of_a_run_that_failed_or_was_cancelled(
    on_redis: tuple[AsyncBroker, Path], notes: Notes
) -> None:
    broker, folder = on_redis
    before = objects(folder)
    dag = consumers(broker, 1).node(task(broker, app.fail), given={"words": ["no"]}).build()
    dag.add_edge("n0", "fail")
    with pytest.raises(NodeFailedError):
        await ExecutionEngine(broker, dag).execute({"size": SIZE})
    assert objects(folder) == before
    builder = (
        DAGBuilder()
        .node(task(broker, app.content))
        .node(task(broker, app.measure_when_released), name="waits")
    )
    engine = ExecutionEngine(broker, builder.build())
    inputs = {"size": SIZE, "path": str(notes.path), "name": "n"}
    run = asyncio.create_task(engine.execute(inputs))
    await notes.until("begin", 1)
    assert len(objects(folder)) == len(before) + 1
    engine.cancel()
    with pytest.raises(RunCancelledError):
        await run
    assert objects(folder) == before


@pytest.mark.parametrize("pass_by", ["value", "reference"])
async def test_a_resumed_run_finds_what_was_stored(
    on_redis: tuple[AsyncBroker, Path], notes: Notes, pass_by: Any, farm: Farm
) -> None:
    broker, folder = on_redis
    before = set(objects(folder))
    builder = consumers(broker, 2).node(task(broker, app.measure_when_released), name="waits")
    journal, dag = MemoryJournal(), builder.build()
    engine = ExecutionEngine(broker, dag, journal=journal, pass_by=pass_by)
    inputs = {"size": SIZE, "path": str(notes.path), "name": "n"}
    run_id = f"resumed-{pass_by}"
    run = asyncio.create_task(engine.execute(inputs, run_id=run_id))
    await notes.until("begin", 1)
    engine.cancel()
    with pytest.raises(RunCancelledError):
        await run
    notes.release()
    (kept,) = set(objects(folder)) - before
    again = ExecutionEngine(broker, dag, journal=journal, pass_by=pass_by)
    results = {name: value async for name, value in again.resume(run_id)}
    values = {
        name: await value.get() if isinstance(value, ResultHandle) else value
        for name, value in results.items()
    }
    assert values == {"content": b"x" * SIZE, "n0": SIZE, "n1": SIZE, "waits": SIZE}
    # What earlier sessions have stored goes by its age. Of this one, nothing is left.
    assert set(objects(folder)) - before == {kept}


async def test_a_handle_whose_object_was_removed_says_so(
    on_redis: tuple[AsyncBroker, Path],
) -> None:
    broker, folder = on_redis
    before = set(objects(folder))
    engine = ExecutionEngine(broker, consumers(broker, 0).build(), pass_by="reference")
    handle = (await engine.execute({"size": SIZE}, run_id="removed"))["content"]
    assert await handle.get() == b"x" * SIZE
    (path,) = set(objects(folder)) - before
    path.unlink()
    says = rf"task 'removed:content:1.*{path.name} of store file://{folder}.*is not there"
    with pytest.raises(ResultUnavailableError, match=says):
        await handle.get()


# What goes wrong


async def test_a_store_that_is_away_is_waited_for(farm: Farm, notes: Notes) -> None:
    settings, folder = settings_of("redis-streams", farm, name="store-away")
    hidden = folder.with_name("hidden")
    farm.serve(settings)
    async with started(settings) as broker:
        dag = consumers(broker, 2).node(task(broker, app.held)).build()
        dag.add_edge("held", "content")
        inputs = {"size": SIZE, "path": str(notes.path), "name": "first"}
        run = asyncio.create_task(ExecutionEngine(broker, dag).execute(inputs))
        await notes.until("begin", 1)
        folder.rename(hidden)
        notes.release()
        log = farm.folder / f"workers-{settings.queue}" / "workers.log"
        await until(lambda: "values cannot be stored yet" in log.read_text(), "the worker waits")
        assert not run.done()
        hidden.rename(folder)
        assert (await run)["n1"] == SIZE


async def test_a_worker_without_the_store_fails_the_node_and_says_so(farm: Farm) -> None:
    settings, _ = settings_of("redis-streams", farm, name="lacking")
    farm.serve(replace(settings, store=""))
    async with started(settings) as broker:
        dag = DAGBuilder().node(task(broker, app.measure_content), name="n").build()
        with pytest.raises(NodeFailedError, match="give the FlowMiddleware of") as caught:
            await ExecutionEngine(broker, dag).execute({"content": bytes(SIZE)})
        assert isinstance(caught.value.__cause__, SerializationError)


async def test_a_worker_with_another_store_fails_the_node_and_says_so(farm: Farm) -> None:
    settings, _ = settings_of("redis-streams", farm, name="other")
    elsewhere = farm.folder / "elsewhere"
    elsewhere.mkdir()
    farm.serve(replace(settings, store=f"file://{elsewhere}"))
    async with started(settings) as broker:
        dag = DAGBuilder().node(task(broker, app.measure_content), name="n").build()
        with pytest.raises(NodeFailedError, match=r"elsewhere.*the same store=") as caught:
            await ExecutionEngine(broker, dag).execute({"content": bytes(SIZE)})
        assert isinstance(caught.value.__cause__, ResultUnavailableError)


async def test_an_engine_whose_store_is_not_there_does_not_begin(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskiq_flow.middleware.CONNECT_PATIENCE", 0.2)
    missing = farm.folder / "missing"
    settings = farm.settings("redis-streams", queue="missing", store=f"file://{missing}")
    async with started(settings) as broker:
        engine = ExecutionEngine(broker, consumers(broker, 1).build())
        with pytest.raises(ConfigurationError, match=rf"file://{missing}.*create the directory"):
            await engine.execute({"size": 1})


async def test_a_store_needs_results_that_stay(farm: Farm) -> None:
    settings, _ = settings_of("redis-streams", farm, name="fleeting")
    async with started(replace(settings, keep_results=False)) as broker:
        with pytest.raises(ConfigurationError, match="keep_results=True"):
            await ExecutionEngine(broker, consumers(broker, 1).build()).execute({"size": 1})


async def test_a_value_that_is_not_carried_is_an_error_as_without_a_store(
    on_redis: tuple[AsyncBroker, Path],
) -> None:
    broker, _ = on_redis
    dag = DAGBuilder().node(task(broker, app.anything), name="n").build()
    with pytest.raises(NodeFailedError, match=r"'n' cannot be sent the value of 'value'"):
        await ExecutionEngine(broker, dag).execute({"value": [object()] * 10_000})


# S3


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    if not S3Server.is_available():
        pytest.skip("moto[s3], flask, flask-cors and s3fs are not installed")
    server = S3Server(tmp_path / "s3")
    server.start()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    client = importlib.import_module("s3fs").S3FileSystem(
        use_listings_cache=False, skip_instance_cache=True
    )
    client.mkdir("bucket")
    yield server, lambda: client.find("bucket", refresh=True)
    server.kill()


async def test_s3(farm: Farm, bucket: tuple[S3Server, Callable[[], list[str]]]) -> None:
    """Of several parts each, stored once, removed at the end; a server that is away for a while."""
    server, names = bucket
    settings = farm.settings("redis-streams", queue="s3", store="s3://bucket/some/prefix")
    with farm.workers(settings):
        async with started(settings) as broker:
            dag = consumers(broker, 3).build()
            size = 20_000_000
            results = await ExecutionEngine(broker, dag).execute({"size": size})
            assert results == {"content": b"x" * size, "n0": size, "n1": size, "n2": size}
            assert names() == []
            engine = ExecutionEngine(broker, dag, pass_by="reference")
            handle = (await engine.execute({"size": size}))["content"]
            (name,) = names()
            assert name.startswith("bucket/some/prefix/taskiq_flow/")
            server.suspend()
            reading = asyncio.create_task(handle.get())
            await asyncio.sleep(0.5)
            assert not reading.done()
            server.resume()
            assert await reading == b"x" * size
