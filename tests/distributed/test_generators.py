"""Generators on workers, whichever broker carries their items."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest
from taskiq import AsyncBroker

from taskiq_flow import (
    DAG,
    DAGBuilder,
    ExecutionEngine,
    Item,
    MemoryJournal,
    NodeFailedError,
    NodeTimeoutError,
    Retry,
)
from tests.distributed import app
from tests.distributed.app import started, task
from tests.distributed.conftest import Farm
from tests.distributed.watching import Notes, hear_no_more
from tests.values import kinds

both = pytest.mark.parametrize("function", [app.numbers, app.numbers_in_thread])
"""An async generator, or one that runs in a thread."""


def either(kind: str) -> Any:
    """One of the two: each is tried on some of the brokers. What they share takes long."""
    return app.numbers if kind in ("redis-streams", "rabbitmq") else app.numbers_in_thread


def graph(broker: AsyncBroker, function: Any, **options: Any) -> DAG:
    """numbers → double, item by item → all of them."""
    builder = DAGBuilder().node(task(broker, function), name="numbers", **options)
    item = {"item": "numbers"}
    builder.node(task(broker, app.double), "double", inputs=item, map_over="numbers", **options)
    return builder.node(task(broker, app.echo), name="all", inputs={"value": "double"}).build()


def inputs(notes: Notes, count: int, seconds: float = 0.0) -> dict[str, Any]:
    return {"path": str(notes.path), "count": count, "seconds": seconds}


def expected(count: int) -> dict[str, list[int]]:
    doubled = [2 * number for number in range(count)]
    return {"numbers": list(range(count)), "double": doubled, "all": doubled}


@both
async def test_items_are_mapped_over_and_yielded(
    remote: AsyncBroker, notes: Notes, function: Any
) -> None:
    engine = ExecutionEngine(remote, graph(remote, function))
    items: dict[str, list[Any]] = {"numbers": [], "double": []}
    async for name, value in engine.execute_async(inputs(notes, 100), items=True):
        if isinstance(value, Item):
            items[name].append((value.index, value.value))
        else:
            assert value == expected(100)[name]
    assert items["numbers"] == list(enumerate(range(100)))
    assert sorted(items["double"]) == [(n, 2 * n) for n in range(100)]
    assert notes.of("closed") == ["numbers"]


async def test_items_of_any_type_arrive_as_they_left(remote: AsyncBroker) -> None:
    model = kinds.Model(when=date(2020, 2, 29))
    values: list[Any] = [model, (1, 2), {3: {4}}, None, "ä" * 100_000, b"\0\xff"]
    engine = ExecutionEngine(remote, DAGBuilder().node(task(remote, app.various), name="v").build())
    assert await engine.execute({"values": values}) == {"v": values}


async def test_twenty_thousand_items(remote: AsyncBroker, notes: Notes) -> None:
    dag = DAGBuilder().node(task(remote, app.numbers), name="numbers").build()
    count = 0
    async for _, value in ExecutionEngine(remote, dag).execute_async(
        inputs(notes, 20_000), items="only"
    ):
        assert isinstance(value, Item)
        assert value.index == value.value == count
        count += 1
    assert count == 20_000


@both
async def test_a_run_that_is_cancelled_closes_its_generator(
    remote: AsyncBroker, notes: Notes, function: Any
) -> None:
    engine = ExecutionEngine(remote, graph(remote, function))
    async for _, value in engine.execute_async(inputs(notes, 1_000_000), items="only"):
        assert isinstance(value, Item)
        if value.index == 50:
            break
    await notes.until("closed", 1)


async def test_a_generator_for_each_element(remote: AsyncBroker, notes: Notes) -> None:
    builder = DAGBuilder().node(
        task(remote, app.numbers),
        name="numbers",
        inputs={"path": "path", "count": "counts"},
        map_over="counts",
        window=2,
    )
    item = {"item": "numbers"}
    builder.node(task(remote, app.double), "double", inputs=item, map_over={"numbers": 2})
    counts = [5, 0, 30, *[1] * 20]
    engine = ExecutionEngine(remote, builder.build(), 4)
    results = await engine.execute({"path": str(notes.path), "counts": counts})
    assert results == {
        "numbers": [list(range(count)) for count in counts],
        "double": [[2 * number for number in range(count)] for count in counts],
    }
    assert len(notes.of("begin")) == len(notes.of("closed")) == len(counts)


async def test_a_timeout_counts_for_each_item(
    remote: AsyncBroker, remote_kind: str, notes: Notes, tmp_path: Path
) -> None:
    function = either(remote_kind)
    engine = ExecutionEngine(remote, graph(remote, function, timeout=1.5))
    assert await engine.execute(inputs(notes, 5, 0.5)) == expected(5)
    (tmp_path / "slow").mkdir()
    slow = Notes(tmp_path / "slow")
    with pytest.raises(NodeFailedError) as caught:
        await engine.execute(inputs(slow, 5, 4.0))
    assert isinstance(caught.value.__cause__, NodeTimeoutError)
    assert caught.value.task_name == "numbers"
    await slow.until("closed", 1)


async def test_a_worker_that_is_killed_in_the_middle(
    remote_kind: str, farm: Farm, notes: Notes
) -> None:
    function = either(remote_kind)
    settings = farm.settings(remote_kind, queue="killed-generator", idle_timeout=1000)
    with farm.workers(settings) as workers:
        async with started(settings) as broker:
            # A list has no redelivery: the engine sends tasks once more.
            lost_after = 3.0 if remote_kind == "redis-lists" else 60.0
            dag = graph(broker, function, retry=Retry(2))
            engine = ExecutionEngine(broker, dag, lost_after=lost_after)
            results: dict[str, Any] = {}
            async for name, value in engine.execute_async(inputs(notes, 300, 0.002), items=True):
                if not isinstance(value, Item):
                    results[name] = value
                elif (name, value.index) == ("numbers", 100):
                    workers.kill_one()
    assert results == expected(300)
    assert len(notes.of("begin")) == 2


async def test_the_generator_of_an_engine_that_is_gone_is_closed(
    remote_kind: str, farm: Farm, notes: Notes, tmp_path: Path
) -> None:
    function = either(remote_kind)
    settings = farm.settings(
        remote_kind, queue="dead-generator", idle_timeout=20_000, engine_patience=1.0
    )
    (tmp_path / "living").mkdir()
    living = Notes(tmp_path / "living")
    with farm.workers(settings, max_async_tasks=1):
        async with started(settings) as broker:
            dag = DAGBuilder().node(task(broker, function), name="numbers", window=4).build()
            run = ExecutionEngine(broker, dag).execute_async(inputs(notes, 10**6), items="only")
            await anext(run)
            await hear_no_more(broker)
            async with started(settings) as other:
                engine = ExecutionEngine(other, graph(other, function))
                # The one place of the worker is free again, and the message does not come back.
                assert await engine.execute(inputs(living, 10)) == expected(10)
            assert notes.of("closed") == ["numbers"]
            assert len(notes.of("begin")) == 1
            await run.aclose()


async def test_a_run_is_resumed_in_the_middle_of_a_generator(
    remote_kind: str, farm: Farm, notes: Notes
) -> None:
    function = either(remote_kind)
    settings = farm.settings(
        remote_kind, queue="resumed-generator", idle_timeout=20_000, engine_patience=1.0
    )
    journal = MemoryJournal()
    with farm.workers(settings):
        async with started(settings) as broker:
            engine = ExecutionEngine(broker, graph(broker, function), journal=journal)
            values = inputs(notes, 200, 0.002)
            run = engine.execute_async(values, items="only", run_id="run")
            async for name, value in run:
                if name == "numbers" and isinstance(value, Item) and value.index == 60:
                    break
            await hear_no_more(broker)
            await run.aclose()
            async with started(settings) as other:
                resuming = ExecutionEngine(other, graph(other, function), journal=journal)
                results = {name: value async for name, value in resuming.resume("run")}
        assert results == expected(200)
        await notes.until("closed", 2)  # that of the engine that is gone as well
