"""Other ways to be connected: sentinels, clusters, one system's notices beside another's broker."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
from taskiq import AsyncBroker

from taskiq_flow import DAGBuilder, ExecutionEngine, inventory
from tests.distributed import app
from tests.distributed.app import started, task
from tests.distributed.conftest import NEEDS_RABBITMQ, Farm
from tests.distributed.test_contract import graph
from tests.distributed.watching import (
    Notes,
    blocked_generator,
    check_cancelling,
    inputs,
    many,
    until_sent,
)
from tests.servers.redis import RedisCluster, RedisSentinel, RedisServer
from tests.values.kinds import Pair, Point
from tests.waiting import until


async def check(broker: AsyncBroker, notes: Notes) -> None:
    """Results are pushed, and cancellation arrives."""
    engine = ExecutionEngine(broker, graph(broker), on_error="collect")
    loop = asyncio.get_running_loop()
    seconds = []
    for _ in range(3):
        begin = loop.time()
        results = await engine.execute({"text": "a b c"})
        seconds.append(loop.time() - begin)
        assert results["joined"] == "a-b-c"
    assert min(seconds) < 1.0  # nothing of it had to be asked for
    engine = ExecutionEngine(broker, many(broker, app.noted, 2))
    await check_cancelling(engine, notes, 2)


@pytest.fixture(params=["redis-sentinel-streams", "redis-sentinel-lists"])
def behind_sentinels(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Any]]:
    master = RedisServer(tmp_path / "master", appendonly=False)
    with master, RedisSentinel(tmp_path / "sentinel", master) as sentinel:
        yield {"kind": request.param, "redis": master.url, "sentinel": sentinel.port}


# taskiq's broker makes a client for each send, and at times leaves its connection to the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_redis_behind_sentinels(
    behind_sentinels: dict[str, Any], farm: Farm, tmp_path: Path
) -> None:
    settings = app.Settings(queue="sentinels", **behind_sentinels)
    with farm.workers(settings):
        async with started(settings) as broker:
            await check(broker, Notes(tmp_path))
        at_sentinels: Any = broker
        for client in at_sentinels.sentinel.sentinels:  # which it leaves open as well
            await client.aclose()
        del at_sentinels, broker, client
    gc.collect()  # so that it is this test where they are found


@pytest.mark.parametrize("kind", ["redis-cluster-streams", "redis-cluster-lists"])
async def test_a_redis_cluster(kind: str, farm: Farm, tmp_path: Path) -> None:
    with RedisCluster(tmp_path / "cluster", appendonly=False) as cluster:
        settings = app.Settings(kind, redis=cluster.url, queue="cluster")
        with farm.workers(settings):
            async with started(settings) as broker:
                await check(broker, Notes(tmp_path))


@pytest.mark.parametrize("kind", ["nats", NEEDS_RABBITMQ])
async def test_notices_over_redis_beside_another_broker(
    kind: str, farm: Farm, tmp_path: Path
) -> None:
    settings = farm.settings(kind, queue="beside", notifier=farm.redis.url)
    farm.serve(settings)
    async with started(settings) as broker:
        await check(broker, Notes(tmp_path))


@pytest.mark.parametrize("kind", ["redis-streams", "nats"])
async def test_a_task_that_outlives_the_time_for_an_acknowledgement_is_executed_once(
    kind: str, farm: Farm, tmp_path: Path
) -> None:
    notes = Notes(tmp_path)
    settings = farm.settings(kind, queue="renewed", idle_timeout=2000)
    farm.serve(settings, processes=2)
    async with started(settings) as broker:
        engine = ExecutionEngine(broker, many(broker, app.noted, 2))
        async with blocked_generator(broker, notes):
            assert len(await engine.execute(inputs(notes, 2, 4.0))) == 2
        dag = DAGBuilder().node(task(broker, app.double)).build()
        assert await ExecutionEngine(broker, dag).execute({"item": 1}) == {"double": 2}
        sent = await task(broker, app.noted).kiq(str(notes.path), "of no engine", 4.0)
        await sent.wait_result(timeout=45.0)
    assert sorted(notes.of("begin")) == ["n0", "n1", "numbers", "of"]


def test_the_workers_of_a_pool_of_processes_run_tasks(farm: Farm, tmp_path: Path) -> None:
    """The wrapper around a task's function travels to another process."""
    settings = farm.settings("redis-streams", queue="pool")
    workers = farm.workers(settings, arguments=["--use-process-pool"])

    async def main() -> None:
        async with started(settings) as broker:
            engine = ExecutionEngine(broker, many(broker, app.noted_in_thread, 1))
            run = asyncio.ensure_future(engine.execute(inputs(notes, 1, 0.0)))
            await until_sent(engine)
            engine.cancel()  # the first that the workers see, and that the pool is begun with
            await asyncio.wait([run])
            await asyncio.to_thread(workers.start)
            dag = many(broker, app.noted_in_thread, 2)
            await ExecutionEngine(broker, dag).execute(inputs(notes, 2, 0.0))  # the pool is there
            engine = ExecutionEngine(broker, dag, queue_timeout=2.0)  # they begin, as is told
            results = await engine.execute(inputs(notes, 2, 3.0))
            assert results == {"n0": "n0", "n1": "n1"}

    notes = Notes(tmp_path)
    try:
        asyncio.run(main())
    finally:
        workers.kill()
    pids = {int(line.split()[2]) for line in notes.path.read_text(encoding="utf-8").splitlines()}
    assert os.getpid() not in pids


async def test_a_pool_of_processes_is_given_values_of_all_types(farm: Farm) -> None:
    settings = farm.settings("redis-streams", queue="values-in-pool")
    with farm.workers(settings, arguments=["--use-process-pool"]) as workers:
        async with started(settings) as broker:
            dag = DAGBuilder().node(task(broker, app.in_pool)).build()
            engine = ExecutionEngine(broker, dag)
            for value in (3, (1, {2}), Point(Pair(1, 2))):
                pid, arrived = (await engine.execute({"value": value}))["in_pool"]
                assert arrived == value
                assert type(arrived) is type(value)
                assert pid not in {os.getpid(), *workers.pids}


@pytest.mark.parametrize("pass_by", ["value", "reference"])
async def test_a_run_id_that_is_used_again_gives_the_new_results(
    farm: Farm, pass_by: Literal["value", "reference"]
) -> None:
    """Results that are read from the result backend, in which the earlier run's still are."""
    settings = farm.settings("redis-streams", queue="again", inline_limit=0)
    farm.serve(settings)
    async with started(settings) as broker:
        builder = DAGBuilder().node(task(broker, app.blob))
        dag = builder.node(task(broker, app.measure), inputs=["blob"]).build()
        engine = ExecutionEngine(broker, dag, pass_by=pass_by)
        for size in (10, 20):
            results = await engine.execute({"size": size}, run_id=f"again-{pass_by}")
            measured = results["measure"]
            assert (measured if pass_by == "value" else await measured.get()) == size


async def test_the_inventory_shows_what_stands_on_the_server(
    remote_kind: str, farm: Farm, tmp_path: Path
) -> None:
    settings, notes = farm.settings(remote_kind, queue="inventory"), Notes(tmp_path)
    async with started(settings) as broker:
        engine = ExecutionEngine(broker, many(broker, app.noted, 3))
        run = asyncio.ensure_future(engine.execute(inputs(notes, 3, 0.0)))
        await until_sent(engine)
        assert await is_left(broker, settings.queue, 3)
        farm.serve(settings)
        await run
        await until(partial(is_left, broker, settings.queue, 0), "all are acknowledged")


async def is_left(broker: AsyncBroker, queue: str, count: int) -> bool:
    return {item.name: item.count for item in await inventory(broker)}[queue] == count
