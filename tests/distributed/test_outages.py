"""A server that is away, hangs, or comes back with or without its data; a connection that fails."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from taskiq import AsyncBroker
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from taskiq_flow import (
    ConfigurationError,
    DAGBuilder,
    ExecutionEngine,
    FlowMiddleware,
    NodeFailedError,
)
from tests.distributed import app
from tests.distributed.app import Settings, started, task
from tests.distributed.conftest import Farm
from tests.distributed.watching import Notes, inputs, many
from tests.servers.nats import NatsServer
from tests.servers.process import free_port
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import RedisServer
from tests.servers.server import Server
from tests.servers.workers import Workers

AWAY = 3.0
"""Seconds for which a server is gone."""


class Site:
    """A server of its own, with workers that serve a broker there."""

    def __init__(self, settings: Settings, server: Server, workers: Workers) -> None:
        self.settings = settings
        self.server = server
        self.workers = workers


@pytest.fixture
async def site(remote_kind: str, farm: Farm, tmp_path: Path) -> AsyncIterator[Site]:
    servers = {"nats": NatsServer, "rabbitmq": RabbitServer}
    server: Server = servers.get(remote_kind, RedisServer)(tmp_path / "server")
    server.start()
    where = {"nats": "nats", "rabbitmq": "rabbitmq"}.get(remote_kind, "redis")
    at = {where: server.url}
    settings = farm.settings(remote_kind, queue="outages", idle_timeout=4000, **at)
    workers = farm.workers(settings)
    try:
        workers.start()
        yield Site(settings, server, workers)
    finally:
        workers.kill()
        server.kill()


def chain_of(broker: AsyncBroker, count: int) -> ExecutionEngine:
    """Tasks that take a while, one after the other, and as many beside them."""
    builder = DAGBuilder()
    for number in range(count):
        before = [f"n{number - 1}"] if number else []
        keys = {"path": "path", "name": "name", "seconds": "seconds"}
        after = {"after": before[0]} if before else {}
        builder.node(task(broker, app.noted), name=f"n{number}", inputs={**keys, **after})
        builder.node(task(broker, app.noted), name=f"m{number}", inputs=keys)
    return ExecutionEngine(broker, builder.build(), lost_after=30.0)


@pytest.mark.timeout(90)
async def test_a_run_survives_a_server_that_is_gone_for_three_seconds(
    site: Site, tmp_path: Path
) -> None:
    notes = Notes(tmp_path)
    async with started(site.settings) as broker:
        engine = chain_of(broker, 12)
        values = {"path": str(notes.path), "name": "n", "seconds": 0.2}
        run = asyncio.ensure_future(engine.execute(values))
        await notes.until("end", 14)
        site.server.kill()
        await asyncio.sleep(AWAY)  # the length of the outage
        site.server.restart(keep_data=True)
        assert len(await run) == 24
        again = await engine.execute(values)  # with the same workers
        assert len(again) == 24


@pytest.mark.timeout(90)
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


@pytest.mark.timeout(90)
@pytest.mark.parametrize("remote_kind", ["redis-streams", "redis-lists"])
async def test_a_server_that_comes_back_without_its_data(site: Site, tmp_path: Path) -> None:
    """What was queued there is lost, and said to be; the next run goes on with the same workers."""
    notes = Notes(tmp_path)
    async with started(site.settings) as broker:
        engine = ExecutionEngine(broker, many(broker, app.noted, 150), lost_after=3.0)
        run = asyncio.ensure_future(engine.execute(inputs(notes, 150, 0.5)))
        await notes.until("begin", 100)
        site.server.kill()
        site.server.restart(keep_data=False)
        with pytest.raises(NodeFailedError, match="TaskLostError"):
            await run
        dag = DAGBuilder().node(task(broker, app.double)).build()
        assert await ExecutionEngine(broker, dag).execute({"item": 1}) == {"double": 2}


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


@contextlib.asynccontextmanager
async def through_a_proxy(farm: Farm, kind: str) -> AsyncIterator[tuple[Settings, Proxy]]:
    """A broker whose engine hears through a proxy, while all else goes straight to the server."""
    settings = farm.settings(kind, queue="proxied")
    farm.serve(settings)
    url = {"nats": settings.nats, "rabbitmq": settings.rabbitmq}.get(kind, settings.redis)
    port = urlsplit(url).port
    assert port is not None
    async with Proxy(port) as proxy:
        yield replace(settings, notifier=url.replace(f":{port}", f":{proxy.port}")), proxy


async def test_notices_that_never_come_are_made_up_for(remote_kind: str, farm: Farm) -> None:
    async with (
        through_a_proxy(farm, remote_kind) as (settings, proxy),
        started(settings) as broker,
    ):
        engine = chain_of(broker, 4)
        values = {"path": str(farm.folder / "unread"), "name": "n", "seconds": 0.0}
        assert len(await engine.execute(values)) == 8
        proxy.drop()
        assert len(await engine.execute(values)) == 8
        await proxy.cut()
        await proxy.heal()
        assert len(await engine.execute(values)) == 8


async def test_notices_that_come_late_change_nothing(remote_kind: str, farm: Farm) -> None:
    async with (
        through_a_proxy(farm, remote_kind) as (settings, proxy),
        started(settings) as broker,
    ):
        engine = chain_of(broker, 3)
        values = {"path": str(farm.folder / "unread"), "name": "n", "seconds": 0.0}
        proxy.delay(0.3)  # they come behind the polls
        names = [name async for name, _ in engine.execute_async(values)]
        assert sorted(names) == sorted({*names})
        assert len(names) == 6


async def test_a_subscription_that_breaks_is_renewed(
    farm: Farm, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        through_a_proxy(farm, "redis-streams") as (settings, proxy),
        started(settings) as broker,
    ):
        engine = chain_of(broker, 3)
        values = {"path": str(farm.folder / "unread"), "name": "n", "seconds": 0.0}
        assert len(await engine.execute(values)) == 6
        await proxy.cut()
        assert len(await engine.execute(values)) == 6
        assert "broke" in caplog.text
