"""Workers that had nothing to do for longer than redis-py waits for an answer."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import app
from tests.distributed.app import Settings, started, task
from tests.distributed.conftest import AT_LENGTH, Farm
from tests.distributed.watching import Notes
from tests.servers.redis import RedisCluster, RedisSentinel, RedisServer
from tests.servers.workers import Workers

IDLE = 20.0 if AT_LENGTH else 6.0
"""Seconds. redis-py 8 waits for 5 s, by default."""

TASKS = 30
"""Tasks that each broker is sent, over three seconds: at any moment of its blocking reads."""

LONG = {"xread_block": 10_000}
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "lists": ("redis-lists", {}),
    "streams": ("redis-streams", LONG),
    "sentinel-streams": ("redis-sentinel-streams", LONG),
}
if AT_LENGTH:
    WAYS |= {
        "lists-impatient": ("redis-lists", {"socket_timeout": 0.3}),
        "streams-impatient": ("redis-streams", {**LONG, "socket_timeout": 0.3}),
        "streams-patient": ("redis-streams", {**LONG, "socket_timeout": None}),
        "sentinel-lists": ("redis-sentinel-lists", {}),
        "cluster-lists": ("redis-cluster-lists", {}),
        "cluster-streams": ("redis-cluster-streams", LONG),
    }


@contextlib.contextmanager
def workers_of_each(farm: Farm, folder: Path) -> Iterator[dict[str, tuple[Settings, Workers]]]:
    """A worker for each of the ways; all of them start at once."""
    cluster = RedisCluster(folder / "cluster", appendonly=False)
    master = RedisServer(folder / "master", appendonly=False)
    sentinel = RedisSentinel(folder / "sentinel", master)
    with contextlib.ExitStack() as stack:
        for server in (cluster, master, sentinel):
            server.start()
            stack.callback(server.kill)
        sites: dict[str, tuple[Settings, Workers]] = {}
        for name, (kind, options) in WAYS.items():
            settings = Settings(
                kind,
                redis=cluster.url if "cluster" in kind else master.url,
                sentinel=sentinel.port,
                queue=f"{{{name}}}",
                prefix=name,
                idle_timeout=60_000,
                options=json.dumps(options),
            )
            workers = Workers(
                "tests.distributed.app:from_environment",
                folder=folder / name,
                env=settings.environment,
            )
            stack.callback(workers.kill)
            sites[name] = settings, workers
        with ThreadPoolExecutor() as pool:
            list(pool.map(Workers.start, (workers for _, workers in sites.values())))
        yield sites


# taskiq's broker behind sentinels leaves connections to the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_idle_workers_report_no_outage_and_lose_no_task(farm: Farm, tmp_path: Path) -> None:
    notes: dict[str, Notes] = {}
    with workers_of_each(farm, tmp_path) as sites:
        pids = {name: workers.pids for name, (_, workers) in sites.items()}
        await asyncio.sleep(IDLE)  # which is what this is about

        async def send(name: str, settings: Settings) -> None:
            async with started(settings) as broker:
                for number in range(TASKS):
                    await task(broker, app.noted).kiq(str(notes[name].path), f"n{number}")
                    await asyncio.sleep(0.1)
                await notes[name].until("end", TASKS)

        for name in sites:
            (tmp_path / name / "notes").mkdir()
            notes[name] = Notes(tmp_path / name / "notes")
        await asyncio.gather(*(send(name, settings) for name, (settings, _) in sites.items()))
        for name, (_, workers) in sites.items():
            assert "WARNING" not in workers.log(), name
            assert "ERROR" not in workers.log(), name
            assert workers.pids == pids[name]
            assert len(notes[name].of("begin")) == TASKS, name
    gc.collect()  # so that it is this test where what was left open is found
