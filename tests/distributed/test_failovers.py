"""A Redis that is killed for good, in a cluster or behind a sentinel; its replica takes over."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Iterator
from contextlib import aclosing
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest
from redis.crc import key_slot

from taskiq_flow import ExecutionEngine, RedisJournal
from tests.distributed import app
from tests.distributed.app import Settings, started
from tests.distributed.conftest import AT_LENGTH, Farm
from tests.distributed.watching import Notes, chain_of, check_cancelling, inputs, many
from tests.servers.process import free_port
from tests.servers.redis import RedisSentinel, RedisServer, ReplicatedCluster, newest_program

# taskiq's brokers leave connections to the collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

LOST_AFTER = 5.0
"""Seconds. The replica takes over within three."""

NEWEST = newest_program()
"""Redis 7, unless it is not installed; the environment has 6.2."""

KINDS: list[tuple[str, str | None]] = [
    ("redis-cluster-streams", NEWEST),
    ("redis-sentinel-lists", None),
]
if AT_LENGTH:
    KINDS += [("redis-cluster-lists", NEWEST), ("redis-sentinel-streams", NEWEST)]
    KINDS += [("redis-cluster-streams", None)]


class Site(NamedTuple):
    """The settings to reach servers, the one that has the queue, and the sentinel of it.

    ``journal``: the address of a journal there, and the prefix by which that server has its keys.
    """

    settings: Settings
    master: RedisServer
    journal: tuple[str, str]
    sentinel: RedisSentinel | None = None


@contextlib.contextmanager
def cluster(kind: str, folder: Path, program: str | None = None) -> Iterator[Site]:
    """The node that is killed is the one at the URL, too."""
    with ReplicatedCluster(folder, program=program) as servers:
        first = servers.masters[0]
        queue = next(f"tests {n}" for n in count() if key_slot(f"tests {n}".encode()) < 5000)
        addresses = ",".join(f"127.0.0.1:{node.port}" for node in servers.masters)
        journal = f"redis+cluster://{addresses}", f"{{{queue}}}:journal"
        yield Site(Settings(kind, redis=first.url, queue=queue), first, journal)


@contextlib.contextmanager
def sentinel(kind: str, folder: Path, program: str | None = None) -> Iterator[Site]:
    master = RedisServer(folder / "master", appendonly=False, program=program)
    follows = ("--replicaof", "127.0.0.1", str(master.port), "--repl-diskless-sync-delay", "0")
    replica = RedisServer(folder / "replica", appendonly=False, arguments=follows, program=program)
    watches = RedisSentinel(folder / "sentinel", master)
    with master, replica, watches:
        replica.wait_for_master()
        watches.wait_for_replica()
        gone = free_port()  # of a sentinel that is the first, and is not there
        settings = Settings(kind, sentinel=(gone, watches.port), queue="tests")
        address = f"redis+sentinel://127.0.0.1:{gone},127.0.0.1:{watches.port}"
        journal = f"{address}/{watches.master_name}", "journal"
        yield Site(settings, master, journal, watches)


@pytest.mark.parametrize(("kind", "program"), KINDS)
async def test_a_master_that_dies_for_good_is_succeeded(
    kind: str, program: str | None, farm: Farm, tmp_path: Path
) -> None:
    """Engine, workers and journal have talked to it first; tasks run longer than ``lost_after``."""
    notes = Notes(tmp_path)
    servers = cluster if "cluster" in kind else sentinel
    with (
        servers(kind, tmp_path, program) as site,
        farm.workers(site.settings, processes=2) as workers,
    ):
        pids = workers.pids
        address, prefix = site.journal
        journal = RedisJournal(address, prefix=prefix)
        async with started(site.settings) as broker, aclosing(journal):
            dag = many(broker, app.noted, 4)
            engine = ExecutionEngine(broker, dag, lost_after=LOST_AFTER, journal=journal)
            assert len(await engine.execute(inputs(notes, 4, 0.0))) == 4
            given = inputs(notes, 4, LOST_AFTER + 3.0)
            run = asyncio.ensure_future(engine.execute(given, run_id="long"))
            await notes.until("begin", 8)
            values = {"path": str(notes.path), "name": "chain", "seconds": 0.5}
            short = asyncio.ensure_future(chain_of(broker, 6).execute(values))
            await notes.until("begin", 8 + 7)  # nothing is on its way to a worker or a replica
            site.master.kill()
            assert await run == {f"n{number}": f"n{number}" for number in range(4)}
            assert len(await short) == 12
            assert len(dict([pair async for pair in engine.resume("long")])) == 4
            assert len(notes.of("begin")) == len(notes.of("end")) == 20
            await check_cancelling(engine, notes, 4, begun=24)
        assert workers.pids == pids
    del broker, engine, journal, run, short
    gc.collect()  # so that it is this test where what taskiq's brokers leave open is found


@pytest.mark.parametrize("kind", ["redis-sentinel-streams", "redis-sentinel-lists"])
@pytest.mark.skipif(not AT_LENGTH, reason="takes half a minute; scripts/production does it")
async def test_a_master_that_hangs_is_succeeded(kind: str, farm: Farm, tmp_path: Path) -> None:
    """Its connections stay open, so that clients find out by their timeouts only."""
    notes = Notes(tmp_path)
    with sentinel(kind, tmp_path) as site, farm.workers(site.settings, processes=2) as workers:
        pids = workers.pids
        async with started(site.settings) as broker:
            engine = ExecutionEngine(broker, many(broker, app.noted, 4), lost_after=20.0)
            run = asyncio.ensure_future(engine.execute(inputs(notes, 4, 4.0)))
            await notes.until("begin", 4)
            site.master.suspend()
            assert len(await run) == 4
            assert len(await engine.execute(inputs(notes, 4, 0.0))) == 4
            assert len(notes.of("begin")) == 8
        assert workers.pids == pids
    del broker, engine, run
    gc.collect()


@pytest.mark.parametrize("kind", ["redis-sentinel-streams", "redis-sentinel-lists"])
@pytest.mark.skipif(not AT_LENGTH, reason="takes half a minute; scripts/production does it")
async def test_a_master_may_become_a_replica_of_its_replica(
    kind: str, farm: Farm, tmp_path: Path
) -> None:
    """It is alive, and accepts no writes any more."""
    notes = Notes(tmp_path)
    with sentinel(kind, tmp_path) as site, farm.workers(site.settings, processes=2) as workers:
        pids = workers.pids
        async with started(site.settings) as broker:
            values = {"path": str(notes.path), "name": "chain", "seconds": 0.3}
            run = asyncio.ensure_future(chain_of(broker, 20).execute(values))
            await notes.until("end", 6)
            assert site.sentinel is not None
            site.sentinel.fail_over()
            assert len(await run) == 40
            assert len(notes.of("begin")) == 40
        with site.master.client() as client:
            assert client.info("replication")["role"] == "slave"
        assert workers.pids == pids
    del broker, run
    gc.collect()


@pytest.mark.skipif(not AT_LENGTH, reason="takes 20 seconds; scripts/production does it")
async def test_the_slot_of_a_queue_may_move_to_another_node(farm: Farm, tmp_path: Path) -> None:
    """While workers wait for messages there, and hold some."""
    notes = Notes(tmp_path)
    with ReplicatedCluster(tmp_path) as servers:
        first, second, _ = servers.masters
        queue = next(f"tests {n}" for n in count() if key_slot(f"tests {n}".encode()) < 5000)
        settings = Settings("redis-cluster-streams", redis=first.url, queue=queue)
        with farm.workers(settings, processes=2) as workers:
            pids = workers.pids
            async with started(settings) as broker:
                values = {"path": str(notes.path), "name": "chain", "seconds": 0.1}
                run = asyncio.ensure_future(chain_of(broker, 20).execute(values))
                await notes.until("end", 6)
                await asyncio.to_thread(servers.move_slot, key_slot(queue.encode()), first, second)
                assert len(await run) == 40
            assert workers.pids == pids
        assert len(notes.of("begin")) == 40
