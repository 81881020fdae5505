"""Statuses of runs on a Redis server, where other processes read them."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest

from taskiq_flow import (
    DAGBuilder,
    ExecutionEngine,
    PipelineTrackingManager,
    RedisPipelineStorage,
    TrackingError,
    TrackingStorage,
)
from tests.distributed import app
from tests.distributed.app import started, task
from tests.distributed.conftest import Farm
from tests.listeners.storage_contract import StorageContract, names, status

counter = itertools.count()


@pytest.fixture(params=[False, True], ids=["bytes", "decoded"])
async def client(request: pytest.FixtureRequest, farm: Farm) -> AsyncIterator[Any]:
    from redis.asyncio import Redis  # noqa: PLC0415 - where it is needed

    async with Redis.from_url(farm.redis.url, decode_responses=request.param) as client:
        yield client


class TestRedisPipelineStorage(StorageContract):
    @pytest.fixture
    def storage(self, client: Any) -> TrackingStorage:
        return RedisPipelineStorage(client, key_prefix=f"tracking-{next(counter)}:")


async def test_what_has_expired_is_not_listed_and_leaves_nothing(client: Any) -> None:
    prefix = f"tracking-{next(counter)}:"
    storage = RedisPipelineStorage(client, key_prefix=prefix, ttl_seconds=100)
    await storage.save_status(status("a"))
    await storage.save_status(status("b"))
    assert 90 < await client.ttl(f"{prefix}status:a") <= 100
    await client.delete(f"{prefix}status:a")  # as the server does when its time is over
    assert names(await storage.list_pipelines()) == ["b"]
    assert await client.zcard(f"{prefix}index") == 1


async def test_what_is_no_status_is_an_error_that_says_what_to_do(client: Any) -> None:
    prefix = f"tracking-{next(counter)}:"
    storage = RedisPipelineStorage(client, key_prefix=prefix)
    for content in ("{", '{"pipeline_id": 7}'):
        await client.set(f"{prefix}status:a", content)
        with pytest.raises(TrackingError, match=r"run 'a' cannot be read: .*delete_pipeline\(\)"):
            await storage.get_status("a")


async def test_a_manager_elsewhere_reads_how_a_run_has_ended(farm: Farm) -> None:
    settings = farm.settings("redis-streams", retries=True, broken=True)
    farm.serve(settings)
    async with started(settings) as broker, started(settings) as elsewhere:
        tracking = PipelineTrackingManager().with_auto_storage(broker)
        dag = DAGBuilder().node(task(broker, app.double), inputs=["item"]).build()
        engine = ExecutionEngine(broker, dag, listeners=[tracking])
        await engine.execute({"item": 7}, run_id="tracked")
        reading = PipelineTrackingManager().with_auto_storage(elsewhere)
        found = await reading.get_status("tracked")
        assert found is not None
        assert (found.status, found.steps[0].status) == ("COMPLETED", "COMPLETED")
        assert found.result is not None
        assert found.result["text"] == "14"
        assert await reading.delete_pipeline("tracked")
        assert await tracking.get_status("tracked") is None
