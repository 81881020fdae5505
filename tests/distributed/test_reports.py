"""What users have reported of other task queues in production; the docstrings name the reports."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from taskiq_flow import DAGBuilder, ExecutionEngine, RedisJournal, Retry, TaskLostError, inventory
from tests.distributed import app
from tests.distributed.app import Settings, started, task
from tests.distributed.conftest import AT_LENGTH, NEEDS_RABBITMQ, Farm
from tests.distributed.test_failovers import sentinel
from tests.distributed.watching import Notes, chain_of, inputs, many
from tests.servers.redis import RedisServer, newest_program
from tests.waiting import until

pytestmark = pytest.mark.skipif(
    not AT_LENGTH, reason="take some minutes; scripts/production does them"
)

ON_REDIS = ["redis-streams", "redis-lists"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis", program=newest_program()) as server:
        yield server


async def let_no_client_in(client: Any) -> None:
    """resque 1226, sidekiq 117: ``max number of clients reached`` ended workers."""
    await client.config_set("maxclients", 1)
    for kind in ("normal", "pubsub"):
        await client.client_kill_filter(_type=kind, skipme=True)
    await asyncio.sleep(2.0)
    await client.config_set("maxclients", 1000)


async def forget_scripts(client: Any) -> None:
    """groupmq 16, bee-queue 489: ``NOSCRIPT`` until the process was started again."""
    for _ in range(10):
        await client.script_flush()
        await asyncio.sleep(0.1)


async def close_what_is_idle(client: Any) -> None:
    """rq 249: the worker ended when the server's ``timeout`` had closed its connection."""
    await client.config_set("timeout", 1)
    await asyncio.sleep(4.0)
    await client.config_set("timeout", 0)


@pytest.mark.parametrize("kind", ON_REDIS)
@pytest.mark.parametrize("disturb", [let_no_client_in, forget_scripts, close_what_is_idle])
async def test_it_is_survived(
    disturb: Any, kind: str, farm: Farm, server: RedisServer, tmp_path: Path
) -> None:
    """By engine, workers and journal; each task is executed once, and no process ends."""
    settings = Settings(kind, redis=server.url, idle_timeout=20_000)
    notes = Notes(tmp_path)
    with farm.workers(settings, processes=2) as workers:
        pids = workers.pids
        async with started(settings) as broker, aclosing(RedisJournal(server.url)) as journal:
            engine = ExecutionEngine(broker, chain_of(broker, 8)._dag, journal=journal)
            values = {"path": str(notes.path), "name": "x", "seconds": 0.5}
            run = asyncio.ensure_future(engine.execute(values, run_id="r"))
            await notes.until("end", 4)
            async with Redis(port=server.port, single_connection_client=True) as client:
                await client.ping()
                await disturb(client)
            assert len(await run) == 16
        assert workers.pids == pids
    assert len(notes.of("begin")) == len(notes.of("end")) == 16


async def test_a_server_without_the_command_config(farm: Farm, tmp_path: Path) -> None:
    """kue-scheduler 83, phpredis 609: hosted servers have no ``CONFIG``."""
    without = ("--rename-command", "CONFIG", "")
    with RedisServer(tmp_path / "redis", program=newest_program(), arguments=without) as server:
        settings = Settings("redis-streams", redis=server.url)
        with farm.workers(settings):
            async with started(settings) as broker, aclosing(RedisJournal(server.url)) as journal:
                builder = DAGBuilder().node(task(broker, app.blob))
                builder.node(task(broker, app.measure), inputs={"blob": "blob"}, output="length")
                engine = ExecutionEngine(broker, builder.build(), journal=journal)
                assert (await engine.execute({"size": 2_000_000}))["length"] == 2_000_000
                assert settings.queue in {left.name for left in await inventory(broker)}


async def test_a_subscriber_that_the_server_closes_as_it_reads_too_slowly_loses_no_result(
    farm: Farm, server: RedisServer
) -> None:
    """nautobot 2351, redis-py 1261: ``client-output-buffer-limit pubsub`` closed it."""
    settings = Settings("redis-streams", redis=server.url)
    with server.client() as client, farm.workers(settings, processes=2):
        client.config_set("client-output-buffer-limit", "pubsub 64kb 64kb 1")
        async with started(settings) as broker:
            builder = DAGBuilder()
            for number in range(400):
                builder.node(task(broker, app.blob), name=f"n{number}", inputs=["size"])
            engine = ExecutionEngine(broker, builder.build())
            run = asyncio.ensure_future(engine.execute({"size": 60_000}))
            await until(lambda: client.dbsize() > 20, "some tasks have ended")
            await asyncio.to_thread(_wait_for, client, 100)
            time.sleep(5.0)  # noqa: ASYNC251 - the engine's event loop is blocked
            assert {len(value) for value in (await run).values()} == {60_000}


def _wait_for(client: Any, keys: int) -> None:
    while client.dbsize() < keys:
        time.sleep(0.01)


def cpu_of(pid: int) -> float:
    """Seconds of CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_nothing_spins_after_a_failover(farm: Farm, tmp_path: Path) -> None:
    """bull 1170: workers used a whole core each after a failover by sentinels."""
    kind, notes = "redis-sentinel-streams", Notes(tmp_path)
    with (
        sentinel(kind, tmp_path, newest_program()) as site,
        farm.workers(site.settings, processes=2) as workers,
    ):
        async with started(site.settings) as broker:
            engine = ExecutionEngine(broker, many(broker, app.noted, 4), lost_after=30.0)
            assert len(await engine.execute(inputs(notes, 4, 0.0))) == 4
            assert site.sentinel is not None
            site.sentinel.fail_over()
            assert len(await engine.execute(inputs(notes, 4, 3.0))) == 4
            pids = [*workers.pids, os.getpid()]
            before = [cpu_of(pid) for pid in pids]
            await asyncio.sleep(5.0)
            used = [cpu_of(pid) - past for pid, past in zip(pids, before, strict=True)]
    assert max(used) < 0.5, used


@pytest.mark.parametrize("kind", ON_REDIS)
async def test_idle_workers_ask_little(kind: str, farm: Farm, server: RedisServer) -> None:
    """activepieces 14297, Hangfire.Redis 102: thousands of commands a second for an empty queue."""
    settings = Settings(kind, redis=server.url, idle_timeout=10_000)
    with server.client() as client, farm.workers(settings, processes=2):
        async with started(settings):
            before = client.info("stats")["total_commands_processed"]
            await asyncio.sleep(5.0)
            asked = client.info("stats")["total_commands_processed"] - before
    assert asked < 2 * 5 * 5  # five a second for each process


@pytest.mark.parametrize("kind", ON_REDIS)
async def test_a_retry_that_waits_outlives_a_restart_of_the_server(
    kind: str, farm: Farm, server: RedisServer, tmp_path: Path
) -> None:
    """dramatiq 527: a delayed message was executed hours later."""
    settings = Settings(kind, redis=server.url)
    with farm.workers(settings):
        async with started(settings) as broker:
            dag = DAGBuilder().node(task(broker, app.fails_once), name="node").build()
            engine = ExecutionEngine(broker, dag, retry=Retry(wait=3.0))
            notes = Notes(tmp_path)
            run = asyncio.ensure_future(engine.execute({"path": str(notes.path)}))
            await notes.until("begin", 1)
            began = time.monotonic()
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.restart, keep_data=True)
            assert await run == {"node": 2}
            assert time.monotonic() - began < 10.0


@pytest.mark.parametrize("kind", [NEEDS_RABBITMQ])
async def test_a_queue_that_is_deleted_while_workers_consume_it(
    kind: str, farm: Farm, notes: Notes
) -> None:
    """wascally 117, php-amqplib 95: the server cancels the consumers, which waited for ever."""
    settings = farm.settings(kind, "deleted")
    with farm.workers(settings, processes=2) as workers:
        pids = workers.pids
        async with started(settings) as broker:
            engine = ExecutionEngine(broker, many(broker, app.noted, 8), lost_after=30.0)
            assert len(await engine.execute(inputs(notes, 8, 0.0))) == 8
            await asyncio.to_thread(farm.rabbitmq.control, "delete_queue", settings.queue)
            assert len(await engine.execute(inputs(notes, 8, 0.0))) == 8
        assert workers.pids == pids


async def test_a_task_that_a_list_forgot_with_its_worker_is_sent_again_by_a_retry(
    farm: Farm, server: RedisServer, tmp_path: Path
) -> None:
    """celery 1789, rq 580: what a worker had popped from a list was gone with it."""
    settings = Settings("redis-lists", redis=server.url)
    notes = Notes(tmp_path)
    with farm.workers(settings, processes=2) as workers:
        async with started(settings) as broker:
            retry = Retry(on=(TaskLostError,))
            dag = many(broker, app.noted, 4)
            engine = ExecutionEngine(broker, dag, retry=retry, lost_after=3.0)
            run = asyncio.ensure_future(engine.execute(inputs(notes, 4, 2.0)))
            await notes.until("begin", 4)
            workers.kill_one()
            assert len(await run) == 4
    assert len(notes.of("end")) == 4
