"""What servers of production do: they say «not now», lose streams, fill up, and are shared."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError
from taskiq import TaskiqResult
from taskiq_redis import RedisStreamBroker

from taskiq_flow import (
    Cache,
    DAGBuilder,
    ExecutionEngine,
    NodeCompleted,
    NodeFailedError,
    PipelineTrackingManager,
    RunReader,
)
from taskiq_flow.journal.redis import RedisJournal
from taskiq_flow.transport.redis_broker import inventory_of, notifier_of, stream_reader_of
from tests.distributed import app
from tests.distributed.app import Settings, started, task
from tests.distributed.conftest import Farm
from tests.distributed.watching import Notes, chain_of, inputs, many, until_sent
from tests.recording import Recorder
from tests.servers.process import find_program
from tests.servers.redis import RedisCluster, RedisServer, newest_program
from tests.waiting import until

PROGRAMS = {"6.2": find_program("redis-server"), "7": newest_program()}

NOT_NOW = 2.0
"""Seconds for which the server says «not now»."""


@pytest.fixture(params=["7"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of a version."""
    program = PROGRAMS[request.param]
    if program is None:
        pytest.skip("Redis 7 is not installed; scripts/test does so where it may (apt-get)")
    with RedisServer(tmp_path / "redis", appendonly=False, program=program) as server:
        yield server


@pytest.fixture
async def client(server: RedisServer) -> AsyncIterator[Any]:
    async with Redis.from_url(server.url) as client:
        yield client


async def become_replica(client: Any, _: RedisServer) -> None:
    await client.execute_command("REPLICAOF", "127.0.0.1", "1")


async def become_master(client: Any, _: RedisServer) -> None:
    await client.execute_command("REPLICAOF", "NO", "ONE")


async def miss_replicas(client: Any, _: RedisServer) -> None:
    await client.config_set("min-replicas-to-write", 1)


async def need_no_replicas(client: Any, _: RedisServer) -> None:
    await client.config_set("min-replicas-to-write", 0)


async def fail_to_save(client: Any, server: RedisServer) -> None:
    in_the_way = server.data / "dump.rdb" / "in the way"
    in_the_way.mkdir(parents=True)
    await client.config_set("save", "3600 1")
    await save(client)


async def be_able_to_save(client: Any, server: RedisServer) -> None:
    shutil.rmtree(server.data / "dump.rdb")
    await save(client)
    await client.config_set("save", "")


async def save(client: Any) -> None:
    """Have the server save its data, which it may fail to do."""
    await client.execute_command("BGSAVE")
    while (await client.info("persistence"))["rdb_bgsave_in_progress"]:
        await asyncio.sleep(0.01)


async def run_long_script(client: Any, server: RedisServer) -> None:
    """It runs on although its client has left."""
    await client.config_set("lua-time-limit", 100)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b'EVAL "while true do end" 0\r\n')


async def end_script(client: Any, _: RedisServer) -> None:
    await client.script_kill()


READONLY, NOREPLICAS = (become_replica, become_master), (miss_replicas, need_no_replicas)
MISCONF, BUSY = (fail_to_save, be_able_to_save), (run_long_script, end_script)


@pytest.mark.parametrize(
    ("server", "kind", "states"),
    [
        ("6.2", "redis-streams", READONLY),
        ("7", "redis-streams", READONLY),
        ("7", "redis-lists", READONLY),
        ("6.2", "redis-lists", NOREPLICAS),
        ("7", "redis-streams", MISCONF),
        ("7", "redis-streams", BUSY),
    ],
    indirect=["server"],
    ids=[
        *("READONLY, 6.2", "READONLY", "READONLY, lists", "NOREPLICAS, lists, 6.2"),
        *("MISCONF", "BUSY"),
    ],
)
async def test_a_server_that_says_not_now_is_waited_for(
    kind: str, states: Any, farm: Farm, server: RedisServer, client: Any, tmp_path: Path
) -> None:
    """By engine, workers and journal; each task is executed once, and no process ends."""
    begin, end = states
    settings = Settings(kind, redis=server.url, idle_timeout=20_000)
    notes = Notes(tmp_path)
    with farm.workers(settings, processes=2) as workers:
        pids = workers.pids
        async with started(settings) as broker:
            journal = RedisJournal(server.url)
            engine = ExecutionEngine(broker, chain_of(broker, 8)._dag, journal=journal)
            run = asyncio.ensure_future(
                engine.execute({"path": str(notes.path), "name": "x", "seconds": 0.3}, run_id="r")
            )
            await notes.until("end", 4)
            await begin(client, server)
            await asyncio.sleep(NOT_NOW)
            await end(client, server)
            assert len(await run) == 16
            await journal.aclose()
        assert workers.pids == pids
    assert len(notes.of("begin")) == len(notes.of("end")) == 16


@pytest.mark.parametrize("server", PROGRAMS, indirect=True)
async def test_workers_begin_streams_anew_that_the_server_has_lost(
    farm: Farm, server: RedisServer, client: Any, tmp_path: Path
) -> None:
    settings = Settings("redis-streams", redis=server.url, idle_timeout=20_000)
    notes = Notes(tmp_path)
    with farm.workers(settings, processes=2) as workers:
        pids = workers.pids
        async with started(settings) as broker:
            run = asyncio.ensure_future(
                chain_of(broker, 1).execute({"path": str(notes.path), "name": "x", "seconds": 1.0})
            )
            await notes.until("begin", 2)
            await client.flushall()
            assert len(await run) == 2
            await client.delete(settings.queue)
            engine = ExecutionEngine(broker, many(broker, app.noted, 10))
            assert len(await engine.execute(inputs(notes, 10, 0.0))) == 10
        assert workers.pids == pids
    assert len(notes.of("begin")) == 12


async def test_a_burst_of_heavy_tasks_is_shared(farm: Farm, tmp_path: Path) -> None:
    """Four workers, one place each: none fetches what another could begin."""
    settings = farm.settings("redis-streams", queue="burst", idle_timeout=60_000)
    notes = Notes(tmp_path)
    async with started(settings) as broker, Redis.from_url(farm.redis.url) as client:
        engine = ExecutionEngine(broker, many(broker, app.held, 20))
        run = asyncio.ensure_future(engine.execute(inputs(notes, 20, 0.0)))
        await until_sent(engine)
        with farm.workers(settings, processes=4, max_async_tasks=1):
            await notes.until("begin", 1)
            fetched = await client.xpending(settings.queue, "taskiq")
            assert fetched["pending"] <= 2 * 4  # one that runs, and one that is fetched next
            await notes.until("begin", 4)
            notes.release()
            assert len(await run) == 20


async def test_nothing_is_left_of_tasks_and_workers(farm: Farm, tmp_path: Path) -> None:
    settings = farm.settings("redis-streams", queue="nothing-left", idle_timeout=20_000)
    notes = Notes(tmp_path)
    async with started(settings) as broker:
        for _ in range(3):
            with farm.workers(settings, processes=2) as workers:
                engine = ExecutionEngine(broker, many(broker, app.noted, 50))
                await engine.execute(inputs(notes, 50, 0.0))
                workers.stop()
        left = {item.name: item for item in await inventory_of(broker, "taskiq_flow")}
    assert left[settings.queue].count == 0
    assert left[f"{settings.queue} taskiq"].count == 0


@pytest.mark.parametrize("kind", ["redis-streams", "redis-lists"])
@pytest.mark.parametrize("result_prefix", ["shop", "shop:results"])
async def test_the_inventory_says_of_each_key_with_the_prefix_whose_it_is(
    kind: str, result_prefix: str, farm: Farm, server: RedisServer, client: Any, tmp_path: Path
) -> None:
    settings = Settings(
        kind, redis=server.url, queue="shop:tasks", prefix="shop", result_prefix=result_prefix
    )
    notes = Notes(tmp_path)
    await client.set("shop:cart", "of the user's own")
    with farm.workers(settings):
        async with started(settings) as broker:
            journal = RedisJournal(server.url, prefix="shop:journal")
            for run_id in ("r1", "cache:r2", "r3"):
                engine = ExecutionEngine(broker, many(broker, app.noted, 2), journal=journal)
                await engine.execute(inputs(notes, 2, 0.0), run_id=run_id)
            cached = DAGBuilder().node(task(broker, app.double), cache=Cache()).build()
            tracking = PipelineTrackingManager().with_auto_storage(broker)
            engine = ExecutionEngine(broker, cached, journal=journal, listeners=[tracking])
            await engine.execute({"item": 1}, run_id="c")
            await journal.aclose()
            left = await inventory_of(broker, "shop")
    keys = {(item.name, item.note): item.count for item in left if item.kind == "keys"}
    assert keys == {
        (f"{result_prefix}:*", "results"): 7,
        ("shop:journal:log:*", "of a journal"): 4,
        ("shop:journal:state:*", "of a journal"): 4,
        ("shop:journal:events:*", "of a journal"): 4,
        ("shop:journal:started", "of a journal"): 1,
        ("shop:journal:runs", "of a journal"): 1,
        ("shop:journal:count", "of a journal"): 1,
        ("shop:journal:cache:*", "of a cache"): 1,
        ("shop:tracking:*", "statuses of runs"): 2,
        ("shop:*", "other keys"): 1,
    }


async def test_a_stream_that_another_group_reads_keeps_its_messages(
    farm: Farm, tmp_path: Path
) -> None:
    settings = farm.settings("redis-streams", queue="two-groups")
    notes = Notes(tmp_path)
    async with started(settings) as broker, app.redis_client(settings) as client:
        await client.xgroup_create(settings.queue, "others", id="0")
        with farm.workers(settings):
            engine = ExecutionEngine(broker, many(broker, app.noted, 5))
            await engine.execute(inputs(notes, 5, 0.0))
        assert await client.xlen(settings.queue) == 5
        await client.delete(settings.queue)


async def test_consumers_that_are_gone_are_removed_with_nothing_lost(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskiq_flow.transport.redis_streams.GONE_AFTER", 0.1)
    settings = farm.settings("redis-streams", queue="gone", idle_timeout=50)
    async with started(settings) as broker, app.redis_client(settings) as client:
        await client.xadd(settings.queue, {"data": b"held"})
        await client.xreadgroup("taskiq", "holds one", {settings.queue: ">"})
        await client.xreadgroup("taskiq", "holds none", {settings.queue: ">"})
        await asyncio.sleep(0.2)  # which is what consumers are judged by
        reader = stream_reader_of(broker)
        await reader._remove_consumers(settings.queue)
        consumers = await client.xinfo_consumers(settings.queue, "taskiq")
        assert [consumer["name"] for consumer in consumers] == [b"holds one"]
        await client.delete(settings.queue)


@pytest.mark.parametrize("kind", ["redis-streams", "redis-lists"])
async def test_a_confined_user_needs_these_rights(
    kind: str,
    farm: Farm,
    server: RedisServer,
    client: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The line stands in docs/production.md."""
    page = (Path(__file__).parents[2] / "docs/production.md").read_text("utf-8")
    line = page[page.index("ACL SETUSER shop") :].partition("```")[0]
    words = line.replace("shop", "tenant").replace("PASSWORD", "hidden").split()
    if kind == "redis-lists":
        ((instead, kept),) = re.findall(r"Lists need `(.*)` in place .* but for `(.*)`", page)
        words = [w for w in words if not w.startswith("+x") or w in kept.split()] + instead.split()
    await client.execute_command(*words)
    url = server.url.replace("redis://", "redis://tenant:hidden@")
    settings = Settings(
        kind,
        redis=url,
        queue="tenant:tasks",
        prefix="tenant",
        result_prefix="tenant:results",
    )
    notes, recorder = Notes(tmp_path), Recorder()
    with farm.workers(settings):
        async with started(settings) as broker:
            journal = RedisJournal(url, prefix="tenant:journal")
            engine = ExecutionEngine(broker, many(broker, app.noted, 5), journal=journal)
            assert len(await engine.execute(inputs(notes, 5, 0.0))) == 5
            engine.cancel()
            cached = DAGBuilder().node(task(broker, app.double), cache=Cache()).build()
            for _ in range(2):
                engine = ExecutionEngine(broker, cached, journal=journal, listeners=[recorder])
                assert await engine.execute({"item": 1}) == {"double": 2}
            assert [event.source for event in recorder.of(NodeCompleted)] == ["task", "cache"]
            reader = RunReader(journal)
            runs = await reader.runs()
            assert {run.status for run in runs} == {"completed"}
            assert [event async for event in reader.events(runs[0].run_id, follow=True)]
            assert not await reader.request(runs[0].run_id, "cancel")
            assert len(await reader.prune(keep=1)) == len(runs) - 1
            await reader.aclose()
            tracking = PipelineTrackingManager(max_history=1).with_auto_storage(broker)
            engine = ExecutionEngine(broker, cached, listeners=[tracking])
            for run_id in ("first", "second"):
                await engine.execute({"item": 1}, run_id=run_id)
            assert [one.pipeline_id for one in await tracking.list_pipelines()] == ["second"]
            assert (await tracking.get_metrics()).completed == 1
            assert await tracking.delete_pipeline("second")
            assert await tracking.cleanup_older_than(0) == 0
            assert await tracking.get_status("second") is None
    assert "was not saved" not in caplog.text
    assert "were not removed" not in caplog.text


async def test_what_a_confined_user_lacks_is_named(
    farm: Farm, server: RedisServer, client: Any, tmp_path: Path
) -> None:
    await client.execute_command(
        "ACL", "SETUSER", "tenant", "on", ">hidden", "~*", "+@all", "resetchannels"
    )
    url = server.url.replace("redis://", "redis://tenant:hidden@")
    settings = Settings("redis-streams", redis=url, queue="tasks")
    async with started(settings) as broker:
        engine = ExecutionEngine(broker, many(broker, app.noted, 1))
        with pytest.raises(Exception, match=r"SUBSCRIBE taskiq_flow\.") as caught:
            await engine.execute(inputs(Notes(tmp_path), 1, 0.0))
    assert "hidden" not in str(caught.value)
    assert "channel" in str(caught.value)


async def test_blocking_reads_are_shorter_than_the_clients_patience(farm: Farm) -> None:
    """Else the client gives up on an answer, and what the server has handed over is lost."""
    for patience in (None, 0.5, 5.0):
        broker = RedisStreamBroker(
            farm.redis.url, xread_block=10_000, idle_timeout=600_000, socket_timeout=patience
        )
        assert stream_reader_of(broker)._wait <= (10_000 if patience is None else patience * 500)
        await broker.connection_pool.disconnect()
    default = RedisStreamBroker(farm.redis.url, xread_block=10_000)
    assert stream_reader_of(default)._wait <= 2_500
    await default.connection_pool.disconnect()


async def test_runs_wait_their_turn_for_few_connections(farm: Farm, tmp_path: Path) -> None:
    settings = farm.settings("redis-streams", queue="few", idle_timeout=20_000)
    notes = Notes(tmp_path)
    with farm.workers(settings):
        few = replace(settings, redis=f"{settings.redis}?max_connections=4")
        async with started(few) as broker:
            journal = RedisJournal(few.redis)
            engine = ExecutionEngine(broker, many(broker, app.noted, 3), journal=journal)
            runs = [engine.execute(inputs(notes, 3, 0.0)) for _ in range(60)]
            assert [len(results) for results in await asyncio.gather(*runs)] == [3] * 60
            await journal.aclose()


async def test_a_result_stays_though_its_notice_is_refused(
    farm: Farm, server: RedisServer, client: Any, tmp_path: Path
) -> None:
    """As by a user of the result backend who may write and not publish, or by some proxies."""
    await client.execute_command(
        "ACL", "SETUSER", "mute", "on", ">hidden", *["~*", "&*", "+@all", "-publish"]
    )
    mute = server.url.replace("redis://", "redis://mute:hidden@")
    notes = Notes(tmp_path)
    settings = Settings("redis-streams", redis=server.url, queue="mute")
    with farm.workers(replace(settings, results=mute)) as workers:
        async with started(settings) as broker:
            engine = ExecutionEngine(broker, many(broker, app.noted, 2))
            assert len(await engine.execute(inputs(notes, 2, 0.0))) == 2
        await until(lambda: "PUBLISH" in workers.log(), "it was told that")
        assert "hidden" not in workers.log()
    assert len(notes.of("end")) == 2


async def test_children_that_are_replaced_leave_nothing_waiting(farm: Farm, tmp_path: Path) -> None:
    """As a worker is by ``--max-tasks-per-child``."""
    settings = farm.settings("redis-streams", queue="children", idle_timeout=90_000)
    notes = Notes(tmp_path)
    with farm.workers(settings, processes=2, arguments=("--max-tasks-per-child", "10")):
        async with started(settings) as broker:
            engine = ExecutionEngine(broker, many(broker, app.noted, 60))
            async with asyncio.timeout(60.0):  # what a child had left would wait for longer
                await engine.execute(inputs(notes, 60, 0.02))
    assert len(notes.of("begin")) == 60


async def test_a_cluster_whose_node_dies_for_good_is_heard_by_another(
    farm: Farm, tmp_path: Path
) -> None:
    """The node that engine and workers talked to first; it has no slots, so that none is lost."""
    with (
        RedisCluster(tmp_path / "cluster", appendonly=False) as cluster,
        RedisCluster(tmp_path / "first", appendonly=False, slots=0) as first,
    ):
        first.join(cluster)
        settings = Settings("redis-cluster-streams", redis=first.url, queue="cluster")
        notes = Notes(tmp_path)
        with farm.workers(settings):
            async with started(settings) as broker:
                engine = ExecutionEngine(broker, many(broker, app.noted, 4), lost_after=3.0)
                assert len(await engine.execute(inputs(notes, 4, 0.0))) == 4
                run = asyncio.ensure_future(engine.execute(inputs(notes, 4, 5.0)))
                await notes.until("begin", 8)
                first.kill()
                assert len(await run) == 4  # the heartbeats are heard, else they would be lost
                run = asyncio.ensure_future(engine.execute(inputs(notes, 4, 60.0)))
                await notes.until("begin", 12)
                engine.cancel()
                await notes.until("cancel", 4)
                await asyncio.gather(run, return_exceptions=True)


async def test_what_is_given_back_keeps_the_number_of_its_deliveries(farm: Farm) -> None:
    settings = farm.settings("redis-streams", queue="numbers", idle_timeout=30)
    async with started(settings) as broker, app.redis_client(settings) as client:
        await client.xadd(settings.queue, {"data": b"begun in vain"})
        await client.xreadgroup("taskiq", "killed", {settings.queue: ">"})
        await asyncio.sleep(0.05)  # the idle timeout
        reader = stream_reader_of(broker)
        await reader._take_over(settings.queue)
        (delivery,) = reader.deliveries.redelivered
        assert delivery.number == 2
        await reader.deliveries.give_back()
        reader._hold(await reader._read())
        await reader.aclose()
        assert [again.number for again in reader.deliveries.redelivered] == [2]
        await client.delete(settings.queue)


async def test_messages_that_were_begun_in_vain_twice_are_taken_one_at_a_time(farm: Farm) -> None:
    settings = farm.settings("redis-streams", queue="suspects", idle_timeout=30)
    async with started(settings) as broker, app.redis_client(settings) as client:
        for number in range(4):
            await client.xadd(settings.queue, {"data": b"%d" % number})
        ids = [key for key, _ in await client.xrange(settings.queue)]
        await client.xreadgroup("taskiq", "killed", {settings.queue: ">"})
        await client.xclaim(settings.queue, "taskiq", "killed too", 0, ids[:3])
        await asyncio.sleep(0.05)  # the idle timeout
        reader = stream_reader_of(broker)
        for expected in ([0, 3], [1], [2]):
            await reader._take_over(settings.queue)
            held = [int(delivery.data) for delivery in reader.deliveries.redelivered]
            assert sorted(held) == expected
            for _ in held:
                following = reader.deliveries.next()
                assert following is not None
                await following[0].ack()  # type: ignore[misc]
        await client.delete(settings.queue)


@pytest.mark.parametrize("where", ["redis-streams", "redis-cluster-streams", "results elsewhere"])
async def test_what_is_larger_than_the_server_takes_is_an_error(
    where: str, farm: Farm, tmp_path: Path
) -> None:
    """The server closes the connection while such a value is written, as in an outage."""
    size = 20_000_000
    of_cluster = where == "redis-cluster-streams"
    with (RedisCluster if of_cluster else RedisServer)(
        tmp_path / "server", appendonly=False
    ) as server:
        with server.client() as client:
            client.config_set("proto-max-bulk-len", 1024 * 1024)
        at = {"results": server.url} if where == "results elsewhere" else {"redis": server.url}
        kind = where if "results" not in at else "redis-streams"
        settings = farm.settings(kind, queue=f"{{large-{where[-3:]}}}", **at)
        with farm.workers(settings):
            async with started(settings) as broker, asyncio.timeout(45.0):
                dag = DAGBuilder().node(task(broker, app.blob)).build()
                with pytest.raises(NodeFailedError, match="takes no value above 1048576 bytes"):
                    await ExecutionEngine(broker, dag).execute({"size": size})
                if "redis" in at:
                    dag = DAGBuilder().node(task(broker, app.measure)).build()
                    with pytest.raises(NodeFailedError, match="takes no value above 1048576 bytes"):
                        await ExecutionEngine(broker, dag).execute({"blob": size * "x"})


@pytest.mark.parametrize("size", [1_000, 200_000])
async def test_nobody_hears_of_a_result_that_could_not_be_saved(
    farm: Farm, server: RedisServer, client: Any, size: int
) -> None:
    settings = Settings("redis-streams", redis=server.url, queue="unsaved")
    async with started(settings) as broker:
        notifier = notifier_of(broker, "unsaved")
        save = notifier.saver(broker.result_backend)
        assert save is not None
        heard: list[bytes] = []
        await notifier.subscribe("channel", heard.append)
        result: TaskiqResult[Any] = TaskiqResult(
            is_err=False, return_value="x" * size, execution_time=0.0
        )
        await client.config_set("min-replicas-to-write", 1)
        with pytest.raises(ResponseError, match="NOREPLICAS"):
            await save("task", result, "channel", lambda _: b"a")
        await client.config_set("min-replicas-to-write", 0)
        await save("task", result, "channel", lambda _: b"b")
        await until(lambda: heard, "a notice was heard")
        assert heard == [b"b"]
        await notifier.aclose()


@pytest.mark.parametrize("size", [1_000, 200_000])
@pytest.mark.parametrize("expiry", ["result_ex_time", "result_px_time"])
async def test_results_expire_as_their_backend_says(
    farm: Farm, server: RedisServer, client: Any, size: int, expiry: str
) -> None:
    """Those of a million elements would fill the server otherwise."""
    times: dict[str, Any] = {expiry: 100 if expiry == "result_ex_time" else 100_000}
    settings = Settings("redis-streams", redis=server.url, result_prefix="own", **times)
    async with started(settings) as broker:
        notifier = notifier_of(broker, "expiry")
        save = notifier.saver(broker.result_backend)
        assert save is not None
        result: TaskiqResult[Any] = TaskiqResult(
            is_err=False, return_value="x" * size, execution_time=0.0
        )
        await save(f"{expiry}-{size}", result, "channel", lambda _: b"")
        assert 90 < await client.ttl(f"own:{expiry}-{size}") <= 100
        await notifier.aclose()


async def test_results_are_saved_without_the_text_of_the_script_while_the_server_knows_it(
    farm: Farm, server: RedisServer, client: Any
) -> None:
    async with started(Settings("redis-streams", redis=server.url, queue="digest")) as broker:
        notifier = notifier_of(broker, "digest")
        save = notifier.saver(broker.result_backend)
        assert save is not None
        result: TaskiqResult[Any] = TaskiqResult(is_err=False, return_value=1, execution_time=0.0)
        await client.script_flush()
        await client.config_resetstat()
        for number in range(3):
            await save(f"before-{number}", result, "channel", lambda _: b"")
        await client.script_flush()  # as a restart does
        await save("after", result, "channel", lambda _: b"")
        assert await broker.result_backend.is_result_ready("after")
        assert (await client.info("commandstats"))["cmdstat_eval"]["calls"] == 2
        await notifier.aclose()


async def test_a_message_is_acknowledged_with_the_result_of_its_task_and_not_without(
    farm: Farm, server: RedisServer, client: Any
) -> None:
    settings = Settings("redis-streams", redis=server.url, queue="one-step")
    async with started(settings) as broker:
        notifier = notifier_of(broker, "one-step")
        save = notifier.saver(broker.result_backend)
        assert save is not None
        reader = stream_reader_of(broker)
        stream, group = settings.queue, reader._group
        for name in ("first", "second"):
            await client.xadd(stream, {"data": name})
        async with contextlib.aclosing(reader.listen()) as messages:
            await anext(messages)
            first, *_ = reader.deliveries._held
            result: TaskiqResult[Any] = TaskiqResult(
                is_err=False, return_value=1, execution_time=0.0
            )
            backend: Any = broker.result_backend
            backend.result_ex_time = -1  # the server refuses the result, and nothing else
            with pytest.raises(ResponseError, match="invalid expire time"):
                await save("task", result, "channel", lambda _: b"", first)
            backend.result_ex_time = None
            assert not first.is_acknowledged
            assert (await client.xpending(stream, group))["pending"] >= 1
            await save("task", result, "channel", lambda _: b"", first)
            assert first.is_acknowledged
            assert await client.xrange(stream, first.origin.id, first.origin.id) == []
            # Also if it was saved before, as by an execution whose acknowledgement got lost.
            await anext(messages)
            second = next(held for held in reader.deliveries._held if held is not first)
            await save("task", result, "channel", lambda _: b"", second)
            assert second.is_acknowledged
        assert (await client.xpending(stream, group))["pending"] == 0
        assert await client.xlen(stream) == 0
        await notifier.aclose()


async def test_a_result_is_saved_though_its_message_cannot_be_acknowledged(
    farm: Farm, server: RedisServer, client: Any
) -> None:
    settings = Settings("redis-streams", redis=server.url, queue="replaced")
    async with started(settings) as broker:
        notifier = notifier_of(broker, "replaced")
        save = notifier.saver(broker.result_backend)
        assert save is not None
        reader = stream_reader_of(broker)
        await client.xadd(settings.queue, {"data": "message"})
        async with contextlib.aclosing(reader.listen()) as messages:
            await anext(messages)
            delivery, *_ = reader.deliveries._held
            await client.set(settings.queue, "no stream")
            result: TaskiqResult[Any] = TaskiqResult(
                is_err=False, return_value=1, execution_time=0.0
            )
            await save("task", result, "channel", lambda _: b"", delivery)
            assert not delivery.is_acknowledged
            assert await broker.result_backend.is_result_ready("task")
        await notifier.aclose()


async def test_a_worker_that_may_not_make_its_group_anew_says_so(
    farm: Farm, server: RedisServer, client: Any
) -> None:
    await client.execute_command(
        "ACL", "SETUSER", "reader", "on", ">hidden", "~*", "&*", "+@all", "-xgroup"
    )
    url = server.url.replace("redis://", "redis://reader:hidden@")
    broker = RedisStreamBroker(url, queue_name="none")
    with pytest.raises(NoPermissionError, match="XGROUP CREATE none"):
        await anext(stream_reader_of(broker).listen())
    await broker.connection_pool.disconnect()


@pytest.mark.parametrize("server", PROGRAMS, indirect=True)
async def test_entries_that_were_trimmed_away_do_not_stay_pending(server: RedisServer) -> None:
    broker = RedisStreamBroker(server.url, queue_name="trimmed", consumer_id="0", idle_timeout=30)
    await broker.startup()
    async with Redis.from_url(server.url) as client:
        (message_id,) = [await client.xadd("trimmed", {"data": b"x"})]
        await client.xreadgroup("taskiq", "killed", {"trimmed": ">"})
        await client.xdel("trimmed", message_id)
        await asyncio.sleep(0.05)  # the idle timeout
        reader = stream_reader_of(broker)
        await reader._take_over("trimmed")
        assert (await client.xpending("trimmed", "taskiq"))["pending"] == 0
        await client.delete("trimmed")
        await reader._remove_consumers("trimmed")
    await broker.shutdown()


async def test_copies_that_are_suspect_are_executed_one_at_a_time(farm: Farm) -> None:
    settings = farm.settings("redis-streams", queue="copies")
    async with started(settings) as broker, app.redis_client(settings) as client:
        for number in (2, 0, 2):
            await client.xadd(settings.queue, {"data": b"x", "taskiq_flow_deliveries": number})
        reader = stream_reader_of(broker)
        reader._at_once = 10
        reader._hold(await reader._read())
        await reader.aclose()
        first = reader.deliveries.next(reader.deliveries.may_begin)
        innocent = reader.deliveries.next(reader.deliveries.may_begin)
        assert first is not None
        assert innocent is not None
        assert reader.deliveries.next(reader.deliveries.may_begin) is None
        await first[0].ack()  # type: ignore[misc]
        assert reader.deliveries.next(reader.deliveries.may_begin) is not None
        await client.delete(settings.queue)
