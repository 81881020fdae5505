"""The storage in memory, and what storages refuse."""

from __future__ import annotations

from typing import Any

import pytest

from taskiq_flow import (
    ConfigurationError,
    InMemoryPipelineStorage,
    RedisPipelineStorage,
    TrackingStorage,
)
from tests.listeners.storage_contract import StorageContract, names, status


class TestInMemoryPipelineStorage(StorageContract):
    @pytest.fixture
    def storage(self) -> TrackingStorage:
        return InMemoryPipelineStorage()


async def test_only_the_newest_are_stored_in_memory() -> None:
    storage = InMemoryPipelineStorage(max_records=2)
    for name, hours in (("b", 2), ("a", 1), ("c", 3)):
        await storage.save_status(status(name, hours))
    assert names(await storage.list_pipelines()) == ["a", "b"]


async def test_a_long_run_is_stored_while_newer_ones_end() -> None:
    storage = InMemoryPipelineStorage(max_records=2)
    running = status("long", 9, "RUNNING")
    for one in (running, status("b", 2), status("a", 1), running):
        await storage.save_status(one)
    assert await storage.get_status("long") == running
    assert names(await storage.list_pipelines()) == ["a", "long"]


async def test_what_is_given_back_can_be_changed_without_harm() -> None:
    storage = InMemoryPipelineStorage()
    await storage.save_status(status("a"))
    for given in (await storage.get_status("a"), *await storage.list_pipelines()):
        assert given is not None
        given.steps.clear()
    assert await storage.get_status("a") == status("a")


def test_a_client_that_is_not_async_is_refused() -> None:
    redis = pytest.importorskip("redis")
    clients: list[Any] = [redis.Redis(), "redis://localhost", None]
    for client in clients:
        with pytest.raises(ConfigurationError, match=r"give it a redis\.asyncio\.Redis"):
            RedisPipelineStorage(client)


def test_numbers_below_one_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="max_records=0"):
        InMemoryPipelineStorage(0)
    asynchronous: Any = pytest.importorskip("redis.asyncio")
    with pytest.raises(ConfigurationError, match="ttl_seconds=0"):
        RedisPipelineStorage(asynchronous.Redis(), ttl_seconds=0)
