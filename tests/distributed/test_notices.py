"""Notices that are dropped, late or broken off on their way, and a server for them that hangs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from taskiq_flow import ExecutionEngine
from tests.distributed import app
from tests.distributed.app import Settings, started
from tests.distributed.conftest import Farm
from tests.distributed.watching import Notes, chain_of, inputs, many
from tests.servers.proxy import Proxy
from tests.servers.redis import RedisServer
from tests.waiting import until


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


async def test_what_is_lost_of_the_first_connection_is_sent_again(
    remote_kind: str, farm: Farm
) -> None:
    async with (
        through_a_proxy(farm, remote_kind) as (settings, proxy),
        started(settings) as broker,
    ):
        proxy.drop()
        values = {"path": str(farm.folder / "unread"), "name": "n", "seconds": 0.0}
        run = asyncio.ensure_future(chain_of(broker, 2).execute(values))
        await proxy.has_dropped.wait()
        await proxy.heal()
        assert len(await run) == 4


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
        await until(lambda: "broke" in caplog.text, "it was told")


async def test_a_server_for_notices_that_hangs_does_not_hold_up_the_tasks(
    farm: Farm, tmp_path: Path
) -> None:
    server, notes = RedisServer(tmp_path / "server", appendonly=False), Notes(tmp_path)
    server.start()
    settings = farm.settings("redis-streams", queue="deaf", notifier=server.url)
    workers = farm.workers(settings, max_async_tasks=1)
    workers.start()
    try:
        async with started(settings) as broker:
            engine = ExecutionEngine(broker, many(broker, app.noted, 4))
            run = asyncio.ensure_future(engine.execute(inputs(notes, 4, 0.1)))
            await notes.until("begin", 1)
            server.suspend()
            # A second for each, and not the client's five.
            assert await notes.until("end", 4) < 15.0
            server.resume()
            assert len(await run) == 4
    finally:
        workers.kill()
        server.kill()
