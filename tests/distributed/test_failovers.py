"""A Redis that is killed for good, in a cluster or behind a sentinel; its replica takes over."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest
from redis.crc import key_slot

from taskiq_flow import ExecutionEngine, RunCancelledError
from tests.distributed import app
from tests.distributed.app import Settings, started
from tests.distributed.conftest import AT_LENGTH, Farm
from tests.distributed.watching import Notes, chain_of, inputs, many
from tests.servers.redis import RedisSentinel, RedisServer, ReplicatedCluster

LOST_AFTER = 5.0
"""Seconds. The replica takes over within three."""

KINDS = ["redis-cluster-streams", "redis-sentinel-lists"]
if AT_LENGTH:
    KINDS += ["redis-cluster-lists", "redis-sentinel-streams"]


class Site(NamedTuple):
    """The settings to reach servers, and how to kill the one that has the queue."""

    settings: Settings
    kill: Callable[[], None]


@contextlib.contextmanager
def cluster(kind: str, folder: Path) -> Iterator[Site]:
    """The node that is killed is the one at the URL, too."""
    servers = ReplicatedCluster(folder)
    try:
        servers.start()
        first = servers.masters[0]
        queue = next(f"tests {n}" for n in count() if key_slot(f"tests {n}".encode()) < 5000)
        yield Site(Settings(kind, redis=first.url, queue=queue), first.kill)
    finally:
        servers.kill()


@contextlib.contextmanager
def sentinel(kind: str, folder: Path) -> Iterator[Site]:
    master = RedisServer(folder / "master", appendonly=False)
    follows = ("--replicaof", "127.0.0.1", str(master.port), "--repl-diskless-sync-delay", "0")
    replica = RedisServer(folder / "replica", appendonly=False, arguments=follows)
    watches = RedisSentinel(folder / "sentinel", master)
    servers = (master, replica, watches)
    try:
        for server in servers:
            server.start()
        replica.wait_for_master()
        watches.wait_for_replica()
        yield Site(Settings(kind, sentinel=watches.port, queue="tests"), master.kill)
    finally:
        for server in servers:
            server.kill()


@pytest.mark.timeout(90)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("kind", KINDS)
async def test_a_master_that_dies_for_good_is_succeeded(
    kind: str, farm: Farm, tmp_path: Path
) -> None:
    """Engine and workers have talked to it first; tasks run for longer than ``lost_after``."""
    notes = Notes(tmp_path)
    servers = cluster if "cluster" in kind else sentinel
    with servers(kind, tmp_path) as site, farm.working(site.settings, processes=2) as workers:
        pids = workers.pids
        async with started(site.settings) as broker:
            engine = ExecutionEngine(broker, many(broker, app.noted, 4), lost_after=LOST_AFTER)
            assert len(await engine.execute(inputs(notes, 4, 0.0))) == 4
            run = asyncio.ensure_future(engine.execute(inputs(notes, 4, LOST_AFTER + 3.0)))
            await notes.until("begin", 8)
            values = {"path": str(notes.path), "name": "chain", "seconds": 0.5}
            short = asyncio.ensure_future(chain_of(broker, 6).execute(values))
            await notes.until("begin", 12)
            site.kill()
            assert await run == {f"n{number}": f"n{number}" for number in range(4)}
            assert len(await short) == 12
            assert len(notes.of("begin")) == len(notes.of("end")) == 20
            run = asyncio.ensure_future(engine.execute(inputs(notes, 4, 60.0)))
            await notes.until("begin", 24)
            engine.cancel()
            with pytest.raises(RunCancelledError):
                await run
            await notes.until("cancel", 4)
        assert workers.pids == pids
    del broker, engine, run, short
    gc.collect()  # so that it is this test where what taskiq's brokers leave open is found
