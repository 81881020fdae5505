"""Commands of many tasks to Redis: sent together, each answered for itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from taskiq_flow.transport.redis_batches import MOST_BYTES, Batches
from tests.servers.redis import RedisServer

pytestmark = pytest.mark.skipif(not RedisServer.is_available(), reason="no redis-server")


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Any]:
    server = RedisServer(tmp_path, appendonly=False)
    server.start()
    try:
        async with asyncio.timeout(30), Redis.from_url(server.url) as client:
            yield client
    finally:
        server.stop()


async def connections(client: Any) -> int:
    """How many connections the server has accepted so far."""
    info = await client.info("stats")
    return int(info["total_connections_received"])


def pushes(batches: Batches, numbers: range) -> list[asyncio.Task[Any]]:
    return [
        asyncio.create_task(batches.execute("RPUSH", "list", number, size=1)) for number in numbers
    ]


async def test_commands_of_many_tasks_take_one_connection_and_stay_in_order(client: Any) -> None:
    before = await connections(client)
    assert await asyncio.gather(*pushes(Batches(client), range(200))) == [*range(1, 201)]
    assert [int(item) for item in await client.lrange("list", 0, -1)] == [*range(200)]
    assert await connections(client) == before


async def test_an_error_is_that_of_its_own_command_only(client: Any) -> None:
    batches = Batches(client)
    await client.set("text", "")
    commands = [("RPUSH", "list", 1), ("RPUSH", "text", 1), ("RPUSH", "list", 2)]
    answers = await asyncio.gather(
        *(batches.execute(*command, size=1) for command in (commands[0], *commands)),
        return_exceptions=True,
    )
    assert [answers[0], answers[1], answers[3]] == [1, 2, 3]
    assert isinstance(answers[2], ResponseError)


async def test_a_command_whose_task_was_cancelled_before_is_not_sent(client: Any) -> None:
    sending = pushes(Batches(client), range(4))
    await asyncio.sleep(0)
    sending[2].cancel()
    answers = await asyncio.gather(*sending, return_exceptions=True)
    assert isinstance(answers[2], asyncio.CancelledError)
    assert await client.lrange("list", 0, -1) == [b"0", b"1", b"3"]


async def test_others_are_sent_if_the_first_task_is_cancelled(client: Any) -> None:
    batches = Batches(client)
    sending = pushes(batches, range(3))
    await asyncio.sleep(0)
    sending[0].cancel()
    answers = await asyncio.gather(*sending, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert not isinstance(answers[1], BaseException)
    assert (await client.lrange("list", 0, -1))[-2:] == [b"1", b"2"]
    assert await batches.execute("LLEN", "list", size=0) >= 2


async def test_all_commands_of_a_batch_fail_with_its_connection(client: Any) -> None:
    class Broken:
        """Its first command is carried out, its pipelines meet an outage."""

        def __init__(self) -> None:
            self.execute_command = client.execute_command

        def pipeline(self, *, transaction: bool) -> Any:
            pipeline = client.pipeline(transaction=transaction)

            async def execute(*, raise_on_error: bool) -> list[Any]:
                raise RedisConnectionError("away")

            pipeline.execute = execute
            return pipeline

    answers = await asyncio.gather(*pushes(Batches(Broken()), range(3)), return_exceptions=True)
    assert answers[0] == 1
    assert [type(answer) for answer in answers[1:]] == [RedisConnectionError] * 2


async def test_a_large_command_does_not_take_part(client: Any) -> None:
    batches, value = Batches(client), b"x" * (MOST_BYTES + 1)
    blocked = asyncio.create_task(batches.execute("BLPOP", "nothing", 0, size=0))
    await asyncio.sleep(0)
    assert await batches.execute("SET", "large", value, size=len(value))
    blocked.cancel()


async def test_a_batch_has_at_most_so_many_bytes(client: Any) -> None:
    batches = Batches(client)
    half = b"x" * (MOST_BYTES // 2)
    answers = await asyncio.gather(
        *(batches.execute("RPUSH", "list", half, size=len(half)) for _ in range(6))
    )
    assert answers == [1, 2, 3, 4, 5, 6]
