"""Redis as a broker: its clients, its queues, and how its workers keep listening.

With ``redis.py`` beside it, the only file that knows Redis's clients.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any

from redis.asyncio import Redis, RedisCluster
from redis.exceptions import BusyLoadingError, ReadOnlyError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from taskiq import AckableMessage, AsyncBroker, BrokerMessage
from taskiq_redis import (
    ListQueueBroker,
    ListQueueClusterBroker,
    ListQueueSentinelBroker,
    RedisStreamBroker,
    RedisStreamClusterBroker,
    RedisStreamSentinelBroker,
)

from taskiq_flow.completion.notifier import Backlog, Kick
from taskiq_flow.outages import listen_through

logger = logging.getLogger("taskiq_flow")

OUTAGES = (RedisConnectionError, RedisTimeoutError, BusyLoadingError, ReadOnlyError, OSError)

Client = Redis | RedisCluster


def client_of(broker: Any) -> Client:
    """A client over the broker's own connections."""
    if hasattr(broker, "connection_pool"):
        return Redis(connection_pool=broker.connection_pool)
    if hasattr(broker, "sentinel"):
        master: Redis = broker.sentinel.master_for(broker.master_name)
        return master
    cluster: RedisCluster = broker.redis
    return cluster


def is_started(_: AsyncBroker) -> bool:
    """Whether the broker can send; one over Redis connects when it does."""
    return True


def backlog_of(broker: AsyncBroker) -> Backlog | None:
    """The backlog of a broker with queues, which one that broadcasts has not."""
    if isinstance(broker, (RedisStreamBroker, RedisStreamSentinelBroker, RedisStreamClusterBroker)):
        return StreamBacklog(client_of(broker), broker.queue_name, broker.consumer_group_name)
    if isinstance(broker, (ListQueueBroker, ListQueueSentinelBroker, ListQueueClusterBroker)):
        return ListBacklog(client_of(broker), broker.queue_name)
    return None


def kick_of(broker: AsyncBroker) -> Kick:
    """What ``broker.kick`` does, by a client that is kept: making one takes longer than sending."""
    client: Any = client_of(broker)
    kick = type(broker).kick
    if isinstance(broker, RedisStreamBroker) and kick is RedisStreamBroker.kick:

        async def add(message: BrokerMessage) -> None:
            await client.xadd(
                message.labels.get("queue_name") or broker.queue_name,
                {b"data": message.message},
                maxlen=broker.maxlen,
                approximate=broker.approximate,
            )

        return add
    if isinstance(broker, ListQueueBroker) and kick is ListQueueBroker.kick:

        async def push(message: BrokerMessage) -> None:
            await client.lpush(
                message.labels.get("queue_name") or broker.queue_name, message.message
            )

        return push
    return broker.kick


def steady(broker: AsyncBroker) -> None:
    """Have the broker keep listening when the server goes away for a while.

    A broker over a stream declares its group again if the server has come back without its data,
    and takes over what a worker that is gone has left unacknowledged.
    """
    listen: Callable[[], AsyncGenerator[bytes | AckableMessage, None]] = broker.listen
    if isinstance(broker, ListQueueBroker):
        # A client that gives up waiting for the list loses what is taken from it at that moment.
        broker.connection_pool.connection_kwargs["socket_timeout"] = None
    if isinstance(broker, RedisStreamBroker) and type(broker).listen is RedisStreamBroker.listen:
        listen = StreamReader(broker).listen
    what = f"{type(broker).__name__} cannot listen"
    broker.listen = lambda: listen_through(listen, OUTAGES, what)  # type: ignore[method-assign]


class StreamReader:
    """Reads a broker's streams, as the broker does, and what others have left in them.

    The broker itself looks for what was left only behind messages that have just come, and makes
    a client for each acknowledgement.
    """

    def __init__(self, broker: RedisStreamBroker) -> None:
        self._broker = broker
        self._client: Any = client_of(broker)
        self._streams = {broker.queue_name: ">", **broker.additional_streams}
        self._idle_seconds = broker.idle_timeout / 1000

    async def listen(self) -> AsyncGenerator[AckableMessage, None]:
        """Messages, each for one worker."""
        broker = self._broker
        block = min(broker.block, max(1, broker.idle_timeout // 2))
        looked_at = -math.inf
        while True:
            fetched = await self._read(block)
            for stream, messages in fetched:
                for message_id, fields in messages:
                    yield self._message(stream, message_id, fields)
            if time.monotonic() - looked_at > self._idle_seconds / 2:
                looked_at = time.monotonic()
                for stream in self._streams:
                    for message_id, fields in await self._left_in(stream):
                        yield self._message(stream, message_id, fields)

    async def _read(self, block: int) -> Any:
        broker = self._broker
        try:
            return await self._client.xreadgroup(
                broker.consumer_group_name,
                broker.consumer_name,
                self._streams,
                block=block,
                count=broker.count,
            )
        except ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
            logger.warning("the server has lost its streams (%s); they are begun anew", error)
            await self._declare_groups()
            return ()

    async def _left_in(self, stream: Any) -> Any:
        """What has been with a consumer for the idle timeout without being acknowledged."""
        broker = self._broker
        _, messages, *_ = await self._client.xautoclaim(
            stream,
            broker.consumer_group_name,
            broker.consumer_name,
            min_idle_time=broker.idle_timeout,
            count=broker.unacknowledged_batch_size,
        )
        return messages

    async def _declare_groups(self) -> None:
        """As the broker does when it starts, but from the beginning: all that is there is new."""
        for stream in self._streams:
            try:
                await self._client.xgroup_create(
                    stream, self._broker.consumer_group_name, id="0", mkstream=True
                )
            except ResponseError as error:
                logger.debug("another worker has declared the group of %r: %s", stream, error)

    def _message(self, stream: Any, message_id: Any, fields: Any) -> AckableMessage:
        group = self._broker.consumer_group_name
        ack = partial(self._client.xack, stream, group, message_id)
        return AckableMessage(data=fields[b"data"], ack=ack)


class StreamBacklog:
    """A stream, and how far its consumer group has read it."""

    def __init__(self, client: Client, stream: str, group: str) -> None:
        self._client = client
        self._stream = stream
        self._group = group

    async def position(self, queue: str | None) -> tuple[Any, Any]:
        """The ids of the newest entry and of the newest one delivered, as pairs of numbers."""
        stream = queue or self._stream
        groups = await self._client.xinfo_groups(stream)
        info = await self._client.xinfo_stream(stream)
        delivered = [g for g in groups if g["name"].decode() == self._group]
        read = _numbers(delivered[0]["last-delivered-id"]) if delivered else (0, 0)
        return _numbers(info["last-generated-id"]), read


class ListBacklog:
    """A list, from which workers take what they execute."""

    def __init__(self, client: Client, key: str) -> None:
        self._client = client
        self._key = key

    async def position(self, queue: str | None) -> tuple[Any, Any]:
        """A list does not number what is in it: all is taken, or some is not."""
        return 1, int(not await self._client.llen(queue or self._key))


def _numbers(entry_id: bytes) -> tuple[int, ...]:
    return tuple(int(part) for part in entry_id.split(b"-"))
