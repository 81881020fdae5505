"""A server that is away, hangs, or comes back with or without its data."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from taskiq import AsyncBroker
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from taskiq_flow import (
    ConfigurationError,
    DAGBuilder,
    ExecutionEngine,
    FlowMiddleware,
    Item,
    NodeFailedError,
    inventory,
)
from tests.distributed import app
from tests.distributed.app import Settings, started, task
from tests.distributed.conftest import Farm
from tests.distributed.watching import Notes, chain_of, check_cancelling, inputs, many, until_sent
from tests.servers.nats import NatsServer
from tests.servers.process import free_port, process_info
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import RedisServer
from tests.servers.server import Server
from tests.servers.workers import Workers
from tests.waiting import until

AWAY = 3.0
"""Seconds for which a server is gone."""


SERVERS = {"nats": NatsServer, "rabbitmq": RabbitServer, "redis": RedisServer}


class Site:
    """A server that may be killed, with workers that serve a broker there."""

    def __init__(self, settings: Settings, server: Server, workers: Workers) -> None:
        self.settings = settings
        self.server = server
        self.workers = workers


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    """Servers that these tests share. A test may leave its server killed or suspended."""
    folder = tmp_path_factory.mktemp("outages")
    servers: dict[str, Server] = {name: kind(folder / name) for name, kind in SERVERS.items()}
    yield servers
    for server in servers.values():
        server.kill()


@pytest.fixture
def site(
    remote_kind: str, farm: Farm, servers: dict[str, Server], tmp_path: Path
) -> Iterator[Site]:
    where = remote_kind.partition("-")[0]
    server = servers[where]
    if not server.is_running:
        server.restart(keep_data=True)
    server.resume()
    at = {where: server.url}
    settings = farm.settings(remote_kind, queue=tmp_path.name, idle_timeout=4000, **at)
    with farm.workers(settings) as workers:
        yield Site(settings, server, workers)


async def test_a_run_survives_a_server_that_is_gone_for_three_seconds(
    site: Site, tmp_path: Path
) -> None:
    notes = Notes(tmp_path)
    async with started(site.settings) as broker:
        engine = chain_of(broker, 12)
        values = {"path": str(notes.path), "name": "n", "seconds": 0.2}
        run = asyncio.ensure_future(engine.execute(values))
        await notes.until("begin", 15)  # the third one, beside which nothing is on its way
        site.server.kill()
        there = asyncio.ensure_future(inventory(broker))
        await asyncio.sleep(AWAY)  # the length of the outage
        site.server.restart(keep_data=True)
        assert site.settings.queue in {left.name for left in await there}
        assert len(await run) == 24
        await check_all_is_there(broker, tmp_path / "again")  # with the same workers


async def test_a_generator_survives_a_server_that_is_gone_for_three_seconds(
    site: Site, tmp_path: Path
) -> None:
    notes = Notes(tmp_path)
    async with started(site.settings) as broker:
        builder = DAGBuilder().node(task(broker, app.numbers), name="numbers")
        item = {"item": "numbers"}
        # A list forgets a message that the server hands over at the moment in which it is killed.
        attempts = 3 if site.settings.kind == "redis-lists" else 1
        double = task(broker, app.double)
        builder.node(double, name="double", inputs=item, map_over="numbers", retry=attempts)
        engine = ExecutionEngine(broker, builder.build(), lost_after=10.0)
        values = {"path": str(notes.path), "count": 300, "seconds": 0.01}
        doubled = []
        async for name, value in engine.execute_async(values, items="only"):
            if name != "double":
                continue
            assert isinstance(value, Item)
            doubled.append(value.value)
            if len(doubled) == 50:
                site.server.kill()
                await asyncio.sleep(AWAY)  # the length of the outage
                site.server.restart(keep_data=True)
        assert sorted(doubled) == [2 * number for number in range(300)]
        assert notes.of("begin") == ["numbers"]


async def test_a_run_survives_a_server_that_hangs(site: Site, tmp_path: Path) -> None:
    notes = Notes(tmp_path)
    async with started(site.settings) as broker:
        engine = chain_of(broker, 6)
        values = {"path": str(notes.path), "name": "n", "seconds": 0.2}
        run = asyncio.ensure_future(engine.execute(values))
        await notes.until("end", 7)
        site.server.suspend()
        await asyncio.sleep(AWAY)
        site.server.resume()
        assert len(await run) == 12


@pytest.mark.parametrize("how", ["is gone", "hangs"])
async def test_a_worker_that_is_told_to_stop_ends_though_its_server_goes_away(
    site: Site, how: str
) -> None:
    pids = site.workers.pids
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    if how == "hangs":
        site.server.suspend()
    else:
        site.server.kill()
    await until(lambda: not any(map(process_info, pids)), "the worker has ended", 40.0)


async def test_a_server_that_comes_back_without_its_data(site: Site, tmp_path: Path) -> None:
    """What was queued there is lost, and said to be; the next run goes on with the same workers."""
    # More than workers have executed, and hold, when the last of them is sent.
    await check_what_is_queued_is_lost(site, tmp_path, count=600, seconds=2.0, begun=1)


@pytest.mark.parametrize("remote_kind", ["redis-streams"])
async def test_a_worker_that_is_busy_outlives_the_loss_of_its_streams(
    site: Site, tmp_path: Path
) -> None:
    """All of its places are taken, so that it does not read when the streams vanish."""
    await check_what_is_queued_is_lost(site, tmp_path, count=300, seconds=60.0, begun=100)


async def check_what_is_queued_is_lost(
    site: Site, folder: Path, *, count: int, seconds: float, begun: int
) -> None:
    """The server loses its data once all tasks are sent, and so many of them have begun."""
    notes, pids = Notes(folder), site.workers.pids
    async with started(site.settings) as broker:
        engine = ExecutionEngine(broker, many(broker, app.noted, count), lost_after=3.0)
        run = asyncio.ensure_future(engine.execute(inputs(notes, count, seconds)))
        await notes.until("begin", begun)
        await until_sent(engine)
        site.server.kill()
        site.server.restart(keep_data=False)
        with pytest.raises(NodeFailedError, match="TaskLostError"):
            await run
        await check_all_is_there(broker, folder / "1")
    assert site.workers.pids == pids


async def test_a_server_may_lose_its_data_more_than_once(site: Site, tmp_path: Path) -> None:
    pids = site.workers.pids
    async with started(site.settings) as broker:
        for number in range(2):
            await check_all_is_there(broker, tmp_path / str(number))
            site.server.kill()
            site.server.restart(keep_data=False)
        await check_all_is_there(broker, tmp_path / "2")
    assert site.workers.pids == pids


async def check_all_is_there(broker: AsyncBroker, folder: Path) -> None:
    """Tasks are sent and executed, their results are stored and read, cancellation arrives."""
    folder.mkdir()
    notes = Notes(folder)
    builder = DAGBuilder().node(task(broker, app.blob), inputs={"size": "size"})
    dag = builder.node(task(broker, app.measure), inputs={"blob": "blob"}).build()
    by_reference = ExecutionEngine(broker, dag, pass_by=1000, lost_after=30.0)
    assert (await by_reference.execute({"size": 5000}))["measure"] == 5000
    engine = ExecutionEngine(broker, many(broker, app.noted, 3), lost_after=30.0)
    await check_cancelling(engine, notes, 3)


async def test_a_server_that_cannot_be_reached_is_a_clear_error(remote_kind: str) -> None:
    port = free_port()
    urls = {"nats": f"nats://127.0.0.1:{port}", "rabbitmq": f"amqp://127.0.0.1:{port}"}
    url = urls.get(remote_kind, f"redis://127.0.0.1:{port}")
    broker = RedisStreamBroker("redis://127.0.0.1").with_middlewares(FlowMiddleware(url))
    broker = broker.with_result_backend(RedisAsyncResultBackend("redis://127.0.0.1"))
    dag = DAGBuilder().node(broker.register_task(app.double, task_name="double")).build()
    with pytest.raises(ConfigurationError, match=f"cannot reach its server, {url}"):
        await ExecutionEngine(broker, dag).execute({"item": 1})


async def test_a_broker_that_was_not_started_is_a_clear_error(remote_kind: str, farm: Farm) -> None:
    if remote_kind.startswith("redis"):
        return  # they connect when they send
    broker = app.broker_of(farm.settings(remote_kind))
    dag = DAGBuilder().node(task(broker, app.double)).build()
    with pytest.raises(ConfigurationError, match=r"call 'await broker.startup\(\)'"):
        await ExecutionEngine(broker, dag).execute({"item": 1})
