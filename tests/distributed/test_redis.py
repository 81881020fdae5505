"""Redis as its workers and engines use it: messages that come again, and runs that are revoked."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Connection, Redis
from taskiq import AckableMessage, BrokerMessage
from taskiq_redis import ListQueueBroker, RedisStreamBroker

from taskiq_flow.transport import redis, redis_connection, redis_subscription
from taskiq_flow.transport.redis_broker import (
    kick_of,
    notifier_at,
    notifier_of,
    steady,
    stream_reader_of,
)
from taskiq_flow.transport.redis_replies import Replies
from tests.distributed.conftest import Farm
from tests.servers.redis import RedisServer
from tests.waiting import LONGEST, until

_numbers = itertools.count()


@pytest.fixture
async def client(farm: Farm) -> AsyncIterator[Redis]:
    async with Redis.from_url(farm.redis.url) as client:
        yield client


victims: list[asyncio.Task[Any]] = []  # one at the most


def cancel_at_read(command: bytes) -> None:
    """Cancel the victim at the moment at which its blocking read was written to the socket."""
    if victims and any(name in command for name in (b"XREADGROUP", b"BRPOP")):
        victims.pop().cancel()


class CancellingReplies(Replies):
    """Of a connection of our own."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        write = self.write

        def write_and_cancel(data: bytes) -> None:
            write(data)
            cancel_at_read(data)

        self.write = write_and_cancel


class CancellingConnection(Connection):
    """Of the client's pool.

    redis-py waits for the writing by ``asyncio.wait_for`` if it has a timeout of its own, which in
    Python 3.11 swallows the cancellation.
    """

    async def _send_packed_command(self, command: Any) -> None:
        await super()._send_packed_command(command)
        cancel_at_read(b"".join(command))

    async def send_packed_command(self, command: Any, *args: Any, **kwargs: Any) -> None:
        await super().send_packed_command(command, *args, **kwargs)
        cancel_at_read(b"".join(command))


@pytest.mark.parametrize("kind", [RedisStreamBroker, ListQueueBroker])
@pytest.mark.parametrize("goes_away", [False, True], ids=["", "the server goes away"])
async def test_a_listener_ends_whenever_it_is_cancelled(
    kind: type[RedisStreamBroker | ListQueueBroker],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    goes_away: bool,
) -> None:
    monkeypatch.setattr(redis_connection, "Replies", CancellingReplies)
    with RedisServer(tmp_path / "redis", appendonly=False) as server:
        broker = kind(server.url, queue_name="ends", connection_class=CancellingConnection)
        await broker.startup()
        steady(broker)
        messages: Any = broker.listen()
        listening = asyncio.ensure_future(anext(messages))
        victims[:] = [listening]
        await until(listening.cancelling, "the listener was cancelled")
        if goes_away:
            server.kill()
        done, _ = await asyncio.wait([listening], timeout=LONGEST)
        assert done
        await messages.aclose()
        await broker.shutdown()


async def test_a_stream_is_not_read_on_if_the_client_has_lost_a_cancellation(farm: Farm) -> None:
    broker = RedisStreamBroker(farm.redis.url, queue_name="lost")
    await broker.startup()
    steady(broker)
    messages: Any = broker.listen()

    async def read() -> Any:
        me: Any = asyncio.current_task()
        me.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)  # as a client that loses it
        return await anext(messages)

    reading = asyncio.create_task(read())
    done, _ = await asyncio.wait([reading], timeout=LONGEST)
    assert done
    assert reading.cancelled()
    await broker.shutdown()


@pytest.mark.parametrize(
    "options", [{"protocol": 2}, {"protocol": 3}, {"protocol": 3, "legacy_responses": False}]
)
async def test_messages_are_read_whatever_form_the_client_gives_them(
    farm: Farm, client: Redis, options: dict[str, Any]
) -> None:
    """New ones, and one that another worker has left."""
    queue = f"forms {next(_numbers)}"
    broker = RedisStreamBroker(
        farm.redis.url, queue_name=queue, idle_timeout=20, xread_block=10, **options
    )
    await broker.startup()

    async def send(body: bytes) -> None:
        await broker.kick(BrokerMessage(task_id="", task_name="", message=body, labels={}))

    await send(b"left")
    await client.xreadgroup("taskiq", "another", {queue: ">"})
    await send(b"new")
    async with asyncio.timeout(20), aclosing(stream_reader_of(broker).listen()) as messages:
        assert {(await anext(messages)).data for _ in range(2)} == {b"left", b"new"}
    await broker.shutdown()


async def test_a_broker_that_is_shut_down_leaves_no_connection(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis", appendonly=False) as server:
        broker = RedisStreamBroker(server.url, queue_name="ends")
        async with Redis.from_url(server.url) as client:
            await broker.startup()
            for _ in range(2):  # two runs
                send = kick_of(broker)
                await send(BrokerMessage(task_id="", task_name="", message=b"", labels={}))
            assert await client.xlen("ends") == 2
            assert len(await client.client_list()) == 3  # the broker's, its sender's, and this one
            await broker.shutdown()

            async def is_alone() -> bool:
                return len(await client.client_list()) == 1

            await until(is_alone, "the broker has no connection")


async def test_a_message_that_a_worker_holds_does_not_come_to_it_again(
    farm: Farm, client: Redis
) -> None:
    """Though the worker, or the server, has stood still for longer than the idle timeout."""
    queue = f"held {next(_numbers)}"
    broker = RedisStreamBroker(
        farm.redis.url, queue_name=queue, idle_timeout=50, xread_block=10, consumer_id="0"
    )
    await broker.startup()
    reader = stream_reader_of(broker)
    looks = 0
    xpending_range = reader._client.xpending_range

    async def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal looks
        looks += 1
        return await xpending_range(*args, **kwargs)

    reader._client.xpending_range = counted

    async def send(body: bytes) -> None:
        await broker.kick(BrokerMessage(task_id="", task_name="", message=body, labels={}))

    async with aclosing(reader.listen()) as messages:
        await send(b"first")
        first = await anext(messages)
        assert first.data == b"first"
        pending: dict[str, Any] = {"time_since_delivered": 0}
        while pending["time_since_delivered"] < 50:
            (pending,) = await client.xpending_range(queue, "taskiq", "-", "+", 1)
        following = asyncio.ensure_future(anext(messages))
        await until(lambda: looks >= 2 or following.done(), "what was left was looked for")
        assert not following.done()
        await send(b"second")
        second: AckableMessage = await following
        assert second.data == b"second"
        for message in (first, second):
            await message.ack()  # type: ignore[misc]
    assert (await client.xpending(queue, "taskiq"))["pending"] == 0
    await broker.shutdown()


async def test_a_worker_that_was_idle_fetches_one_message_at_first(
    farm: Farm, client: Redis
) -> None:
    """Others may be idle as well, and what has come be more than it can begin."""
    queue = f"idle {next(_numbers)}"
    broker = RedisStreamBroker(farm.redis.url, queue_name=queue, idle_timeout=50, xread_block=10)
    await broker.startup()
    reader = stream_reader_of(broker)
    reads = 0
    read = reader._read

    async def counted() -> Any:
        nonlocal reads
        reads += 1
        return await read()

    reader._read = counted  # type: ignore[method-assign]
    async with aclosing(reader.listen()) as messages:
        following = asyncio.ensure_future(anext(messages))
        await until(lambda: reads >= 5, "nothing was there several times")
        async with client.pipeline() as pipe:
            for _ in range(3):
                pipe.xadd(queue, {b"data": b""})
            await pipe.execute()
        await following
        assert (await client.xpending(queue, "taskiq"))["pending"] == 1
    await broker.shutdown()


async def test_what_names_no_run_among_the_revoked_is_ignored(farm: Farm, client: Redis) -> None:
    heard: list[str] = []
    notifier = notifier_at(farm.redis.url, "taskiq_flow")
    await client.zadd("taskiq_flow:revoked", {b"\xff\xfe": 1e12})
    try:
        await notifier.open()
        await notifier.subscribe_to_revocations(heard.append)
        await client.publish("taskiq_flow:revoked", b"\xff")
        await notifier.revoke("run")
        await until(lambda: heard[-1:] == ["run"], "the revoked run was heard of")
    finally:
        await client.zrem("taskiq_flow:revoked", b"\xff\xfe", "run")
        await notifier.aclose()


async def test_a_revocation_is_written_before_it_is_told(farm: Farm, client: Redis) -> None:
    """Whoever begins to listen in between finds it written."""
    notifier = notifier_at(farm.redis.url, "taskiq_flow")
    redis_client: Any = notifier._client
    publish = redis_client.publish
    written: list[bool] = []

    async def seen(*args: Any) -> Any:
        written.append(await client.zscore("taskiq_flow:revoked", "run") is not None)
        return await publish(*args)

    redis_client.publish = seen
    await notifier.revoke("run")
    assert written == [True]
    await client.zrem("taskiq_flow:revoked", "run")
    await redis_client.aclose()


async def test_many_revocations_leave_the_event_loop_its_turn(farm: Farm, client: Redis) -> None:
    await client.zadd("many:revoked", {f"run {number}": 1e12 for number in range(2_000)})
    notifier = notifier_at(farm.redis.url, "many")
    await notifier.open()
    heard: list[str] = []
    turns: list[int] = []

    async def watch() -> None:
        while len(heard) < 2_000:
            turns.append(len(heard))
            await asyncio.sleep(0)

    watching = asyncio.ensure_future(watch())
    await notifier.subscribe_to_revocations(heard.append)
    await watching
    assert len(set(turns)) > 10
    await client.delete("many:revoked")
    await notifier.aclose()


async def test_a_worker_may_take_long_to_hear_of_all_that_was_revoked(
    farm: Farm, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the server's first answer has to come soon."""
    monkeypatch.setattr(redis, "FIRST_ANSWER", 1.0)
    await client.zadd("slow:revoked", {f"run {number}": 1e12 for number in range(500)})
    notifier = notifier_at(farm.redis.url, "slow")
    heard: list[str] = []

    def hear(run: str) -> None:
        time.sleep(0.004)  # two seconds for all
        heard.append(run)

    await notifier.open()
    await notifier.subscribe_to_revocations(hear)
    assert len(heard) == 500
    await client.delete("slow:revoked")
    await notifier.aclose()


async def test_revocations_are_bounded(
    farm: Farm, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis, "MOST_KEPT", 3)
    notifier = notifier_at(farm.redis.url, "bounded")
    for number in range(5):
        await notifier.revoke(f"run {number}")
    assert await client.zrange("bounded:revoked", 0, -1) == [b"run 2", b"run 3", b"run 4"]
    await client.delete("bounded:revoked")
    await notifier.aclose()


async def test_notices_that_are_published_at_once_share_a_connection(tmp_path: Path) -> None:
    with RedisServer(tmp_path, appendonly=False) as server:
        client = Redis.from_url(server.url)
        broker = RedisStreamBroker(server.url, queue_name="notices")
        notifier, heard = notifier_of(broker, broker.queue_name), list[bytes]()
        unheard: list[str] = []
        notifier.on_unheard = unheard.append
        await notifier.open()
        await notifier.subscribe("notices", heard.append)
        before = len(await client.client_list())
        await asyncio.gather(*(notifier.publish("notices", b"%d" % n) for n in range(50)))
        await notifier.publish("nobody", b"")
        assert len(await client.client_list()) <= before + 1
        await until(lambda: len(heard) == 50, "all were heard")
        assert sorted(map(int, heard)) == list(range(50))
        assert unheard == ["nobody"]
        await notifier.aclose()
        await broker.shutdown()
        await client.aclose()


async def test_a_server_from_which_nothing_comes_is_asked_and_then_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(redis_subscription, "SILENCE", 0.5)
    with RedisServer(tmp_path, appendonly=False) as server, server.client() as other:
        notifier, heard = notifier_at(server.url, "silent"), list[bytes]()
        await notifier.subscribe("notices", heard.append)
        await until(lambda: _subscribed(other) >= 3, "it has asked twice")
        other.publish("notices", "first")
        await until(lambda: heard == [b"first"], "it has heard")
        server.suspend()
        await until(lambda: not notifier.is_listening, "it has given the server up")
        server.resume()
        await until(lambda: notifier.is_listening, "it listens again")
        other.publish("notices", "second")
        await until(lambda: heard == [b"first", b"second"], "it has heard again")
        await notifier.aclose()
    assert "no word from the server for 1 s" in caplog.text


def _subscribed(client: Any) -> int:
    """How often connections to a server have subscribed."""
    stats = client.info("commandstats")
    return int(stats["cmdstat_subscribe"]["calls"])
