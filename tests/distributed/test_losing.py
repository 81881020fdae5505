"""Nothing is lost in silence: each task that will never be heard of again is a typed error."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from taskiq import AsyncBroker

from taskiq_flow import (
    DAGBuilder,
    ExecutionEngine,
    NodeFailedError,
    ResultUnavailableError,
    TaskLostError,
)
from taskiq_flow.events import NodeCompleted
from taskiq_flow.transport.redis_broker import backlog_of
from tests.distributed import app
from tests.distributed.app import started, task
from tests.distributed.conftest import NEEDS_RABBITMQ, Farm
from tests.distributed.watching import Notes, chain_of, inputs, many, purge, until_empty, until_sent
from tests.recording import Recorder
from tests.servers.proxy import Proxy
from tests.servers.redis import RedisServer
from tests.waiting import until


async def test_a_task_that_no_worker_knows(remote: AsyncBroker, remote_kind: str) -> None:
    @remote.task(task_name="unknown")
    async def unknown() -> None: ...

    # One that was sent before it and runs on keeps nobody from noticing.
    dag = DAGBuilder().node(task(remote, app.nap)).node(unknown).build()
    engine = ExecutionEngine(remote, dag)
    loop = asyncio.get_running_loop()
    begin = loop.time()
    with pytest.raises(NodeFailedError) as caught:
        await engine.execute({"seconds": 60.0}, run_id=remote_kind)
    assert loop.time() - begin < 30.0  # and not its minute; it takes some milliseconds
    cause = caught.value.__cause__
    assert isinstance(cause, TaskLostError)
    assert cause.task_name == "unknown"
    assert f"task '{remote_kind}:unknown:1." in str(cause)
    assert "knows no task named 'unknown'; have its process import" in str(cause)


async def test_a_task_that_takes_longer_is_not_lost(remote: AsyncBroker) -> None:
    dag = DAGBuilder().node(task(remote, app.nap)).node(task(remote, app.hold)).build()
    engine = ExecutionEngine(remote, dag, lost_after=2.0)
    assert await engine.execute({"seconds": 2.5}) == {"nap": 2.5, "hold": 2.5}


async def test_a_task_that_waits_in_a_long_queue_is_not_lost(
    remote_kind: str, farm: Farm, notes: Notes
) -> None:
    settings = farm.settings(remote_kind, queue="one-slot")
    farm.serve(settings, max_async_tasks=1)
    async with started(settings) as broker:
        engine = ExecutionEngine(broker, many(broker, app.noted, 8), lost_after=2.0)
        assert len(await engine.execute(inputs(notes, 8, 0.4))) == 8


async def test_a_task_that_waits_behind_those_of_others_is_not_lost(
    remote_kind: str, farm: Farm, notes: Notes
) -> None:
    """In the queue, or with a worker that took it and is busy; nothing of this engine is ahead."""
    settings = farm.settings(remote_kind, queue="one-slot")
    farm.serve(settings, max_async_tasks=1)
    async with started(settings) as other, started(settings) as broker:
        before = ExecutionEngine(other, many(other, app.noted, 8))
        ahead = asyncio.ensure_future(before.execute(inputs(notes, 8, 0.4)))
        await notes.until("begin", 1)
        dag = DAGBuilder().node(task(broker, app.double)).build()
        assert await ExecutionEngine(broker, dag, lost_after=2.0).execute({"item": 1})
        await ahead


async def test_a_task_that_waits_for_the_first_worker_is_not_lost(
    remote_kind: str, farm: Farm
) -> None:
    settings = farm.settings(remote_kind, queue="late")
    async with started(settings) as broker:
        dag = DAGBuilder().node(task(broker, app.double)).build()
        run = asyncio.ensure_future(
            ExecutionEngine(broker, dag, lost_after=1.0).execute({"item": 1})
        )
        await asyncio.sleep(3.0)  # the time without workers
        assert not run.done()
        farm.serve(settings)
        assert await run == {"double": 2}


async def test_a_message_that_has_vanished_from_its_queue_is_lost(
    remote_kind: str, farm: Farm
) -> None:
    settings = farm.settings(remote_kind, queue="purged")
    async with started(settings) as broker:
        dag = DAGBuilder().node(task(broker, app.double)).build()
        run = asyncio.ensure_future(
            ExecutionEngine(broker, dag, lost_after=1.0).execute({"item": 1})
        )
        await asyncio.sleep(2.0)  # it is seen where it stands
        assert not run.done()
        await purge(settings)
        with pytest.raises(NodeFailedError, match="TaskLostError"):
            await run


async def test_a_list_into_which_others_push_does_not_hide_what_has_left_it(farm: Farm) -> None:
    settings = farm.settings("redis-lists", queue="busy")
    async with started(settings) as broker, app.redis_client(settings) as client:
        backlog, key = backlog_of(broker), settings.queue
        await client.lpush(key, "before", "message")
        mark, passed = await backlog.position(None)
        for number in range(6):
            assert passed < mark
            await client.rpop(key)
            await client.lpush(key, f"other {number}")
            _, passed = await backlog.position(None)
            if passed >= mark:
                break
        assert number >= 1  # behind the message itself
        assert passed >= mark


@pytest.mark.parametrize("where", ["pre_execute", "post_execute", "cancel"])
async def test_a_task_that_a_middleware_has_stopped_does_not_come_again(
    remote: AsyncBroker, remote_kind: str, farm: Farm, where: str
) -> None:
    dag = DAGBuilder().node(task(remote, app.breaks_middleware)).build()
    with pytest.raises(NodeFailedError):
        await ExecutionEngine(remote, dag).execute({"breaks": where})
    settings = farm.settings(remote_kind, retries=True, broken=True)
    await until_empty(settings)


async def test_a_killed_workers_task_comes_again_or_is_an_error(
    remote_kind: str, farm: Farm, notes: Notes
) -> None:
    settings = farm.settings(remote_kind, queue="killed", idle_timeout=2000)
    with farm.workers(settings) as workers:
        async with started(settings) as broker:
            # A list has no redelivery; for the others, a worker in its place may take a while.
            lost_after = 3.0 if remote_kind == "redis-lists" else 60.0
            engine = ExecutionEngine(broker, many(broker, app.held, 1), lost_after=lost_after)
            reading = asyncio.ensure_future(_read(engine, inputs(notes, 1, 0.0)))
            await notes.until("begin", 1)
            workers.kill_one()
            notes.release()
            if remote_kind == "redis-lists":
                with pytest.raises(NodeFailedError) as caught:
                    await reading
                assert isinstance(caught.value.__cause__, TaskLostError)
            else:
                assert await reading == [("n0", "n0")]
                assert len(notes.of("begin")) == 2


async def _read(engine: ExecutionEngine, values: dict[str, object]) -> list[tuple[str, object]]:
    return [pair async for pair in engine.execute_async(values)]


async def test_a_suspended_worker_is_waited_for(farm: Farm, notes: Notes) -> None:
    settings = farm.settings("redis-streams", queue="suspended", idle_timeout=60_000)
    with farm.workers(settings) as workers:
        async with started(settings) as broker:
            engine = ExecutionEngine(broker, many(broker, app.held, 3), lost_after=10.0)
            reading = asyncio.ensure_future(_read(engine, inputs(notes, 3, 0.0)))
            await notes.until("begin", 3)
            workers.suspend()
            notes.release()
            await asyncio.sleep(2.0)  # not in the hope of anything: it is the length of the outage
            assert not reading.done()
            workers.resume()
            assert len(await reading) == 3
            assert len(notes.of("begin")) == 3


@pytest.mark.parametrize("kind", ["redis-streams", "redis-lists"])
async def test_a_result_that_has_expired_before_it_is_read(kind: str, farm: Farm) -> None:
    settings = farm.settings(kind, queue="expired", result_px_time=50, inline_limit=0)
    farm.serve(settings)
    async with Proxy(farm.redis.port) as proxy:
        heard = replace(settings, notifier=f"redis://127.0.0.1:{proxy.port}")
        proxy.delay(0.2)  # of the notice that it is there
        async with started(heard) as broker:
            dag = DAGBuilder().node(task(broker, app.double)).build()
            with pytest.raises(NodeFailedError) as caught:
                await ExecutionEngine(broker, dag).execute({"item": 1}, run_id=f"short {kind}")
    cause = caught.value.__cause__
    assert isinstance(cause, ResultUnavailableError)
    assert re.search(rf"task 'short {kind}:double:1\.\w+' has ended", str(cause))


@pytest.mark.parametrize("kind", ["redis-streams", "redis-lists", NEEDS_RABBITMQ])
async def test_a_result_that_expires_before_a_later_node_needs_it(kind: str, farm: Farm) -> None:
    settings = farm.settings(kind, queue="expires", result_ex_time=1)
    farm.serve(settings)
    async with started(settings) as broker:
        builder = DAGBuilder().node(task(broker, app.double), inputs=["item"], output="early")
        builder.node(task(broker, app.nap), inputs=["seconds"], output="late")
        dag = builder.node(task(broker, app.total), inputs=["early", "late"]).build()
        values = {"item": 1, "seconds": 2.5}
        assert await ExecutionEngine(broker, dag).execute(values)  # by value: it has arrived
        with pytest.raises(NodeFailedError) as caught:
            engine = ExecutionEngine(broker, dag, pass_by="reference")
            await engine.execute(values, run_id=f"expired {kind}")
    assert caught.value.task_name == "total"
    assert isinstance(caught.value.__cause__, ResultUnavailableError)
    said = str(caught.value.__cause__)
    assert "has expired or was deleted" in said
    assert f"engine.rerun('expired {kind}', ['double'])" in said
    assert "result_ex_time=" in said


@pytest.mark.parametrize("kind", ["redis-streams", "nats", NEEDS_RABBITMQ])
async def test_a_task_that_kills_its_worker_is_lost_and_those_beside_it_are_not(
    kind: str, farm: Farm, notes: Notes
) -> None:
    """Whether an engine has sent it or nobody."""
    settings = farm.settings(kind, queue="deadly", idle_timeout=1500)
    with farm.workers(settings, processes=2):
        async with started(settings) as broker:
            engine = ExecutionEngine(broker, many(broker, app.noted, 12))
            others = asyncio.ensure_future(engine.execute(inputs(notes, 12, 0.5)))
            await until_sent(engine)
            if kind == "nats":  # a second and a half may be over before a worker gives them back
                await others
            given = {**inputs(notes, 1, 0.0), "name 0": "deadly"}
            with pytest.raises(NodeFailedError, match="was delivered 3 times") as caught:
                await ExecutionEngine(broker, many(broker, app.deadly, 1)).execute(given)
            assert isinstance(caught.value.__cause__, TaskLostError)
            assert len(await others) == 12
            sent = await task(broker, app.deadly).kiq(str(notes.path), "alone")
            result = await sent.wait_result(check_interval=0.1, timeout=60)
            assert isinstance(result.error, TaskLostError)
    assert [notes.of("begin").count(name) for name in ("deadly", "alone")] == [3, 3]


async def test_a_result_that_can_be_read_only_once_reaches_all_consumers(
    remote_kind: str, farm: Farm
) -> None:
    settings = farm.settings(remote_kind, queue="read-once", keep_results=False)
    farm.serve(settings)
    async with started(settings) as broker:
        builder = DAGBuilder().node(task(broker, app.double), inputs=["item"], output="two")
        builder.node(task(broker, app.echo), inputs=["two"], output="one")
        builder.node(task(broker, app.echo), inputs=["two"], output="other")
        recorder = Recorder()
        engine = ExecutionEngine(broker, builder.build(), listeners=[recorder])
        results = await engine.execute({"item": 1})
        assert results == {"two": 2, "one": 2, "other": 2}
        completed = recorder.of(NodeCompleted)
        assert len(completed) == 3
        for event in completed:
            assert not await broker.result_backend.is_result_ready(event.task_id)


async def test_a_result_for_which_the_store_has_no_room(farm: Farm, tmp_path: Path) -> None:
    with RedisServer(tmp_path / "full", appendonly=False, maxmemory="8mb") as server:
        settings = farm.settings("redis-streams", queue="full", redis=server.url, full_timeout=1.0)
        with farm.workers(settings):
            async with started(settings) as broker:
                dag = DAGBuilder().node(task(broker, app.blob)).build()
                engine = ExecutionEngine(broker, dag)
                with pytest.raises(NodeFailedError) as caught:
                    await engine.execute({"size": 20_000_000})
                cause = caught.value.__cause__
                assert isinstance(cause, ResultUnavailableError)
                assert "the result of node 'blob' could not be stored" in str(cause)


async def test_a_server_that_is_full_for_a_while_loses_nothing(
    farm: Farm, notes: Notes, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the results of tasks that end meanwhile nor the tasks that are to be sent."""
    with RedisServer(notes.path.parent / "full", appendonly=False) as server:
        settings = farm.settings("redis-streams", queue="full", redis=server.url)
        with farm.workers(settings) as workers:
            async with started(settings) as broker:
                given = {"path": str(notes.path), "name": "x", "seconds": 0.2}
                run = asyncio.ensure_future(chain_of(broker, 8).execute(given))
                await notes.until("begin", 4)
                with server.client() as client:
                    client.config_set("maxmemory", 1)
                    await until(
                        lambda: "has no room" in workers.log() or "cannot be sent" in caplog.text,
                        "it was full",
                    )
                    client.config_set("maxmemory", 0)
                assert len(await run) == 16
            assert len(notes.of("begin")) == 16


async def test_what_a_worker_has_fetched_is_given_back_at_once_when_it_is_told_to_stop(
    remote_kind: str, farm: Farm, notes: Notes
) -> None:
    """Though the task that it executes goes on for as long as it likes."""
    settings = farm.settings(remote_kind, queue="deployed")
    old, new = farm.workers(settings, max_async_tasks=1), farm.workers(settings)
    new.folder = old.folder / "new"
    try:
        async with started(settings) as broker:
            builder = DAGBuilder()
            builder.node(task(broker, app.held), name="held", inputs={"path": "path", "name": "h"})
            for number in range(20):
                keys = {"path": "path", "name": "name", "seconds": "seconds"}
                builder.node(task(broker, app.noted), name=f"n{number}", inputs=keys)
            engine = ExecutionEngine(broker, builder.build(), lost_after=30.0)
            given = {"path": str(notes.path), "name": "n", "seconds": 0.0, "h": "h"}
            running = asyncio.ensure_future(engine.execute(given))
            await until_sent(engine)
            await asyncio.to_thread(old.start)  # which fetches all that is there at once
            await until(lambda: "h" in notes.of("begin"), "the long task has begun")
            os.kill(old.process.pid, signal.SIGTERM)
            await asyncio.to_thread(new.start)
            await notes.until("end", 20)
            notes.release()
            assert len(await running) == 21
    finally:
        new.kill()
        old.kill()
