"""Redis as a broker: its clients, its queues, and how its workers keep listening.

With ``redis.py`` beside it, the only file that knows Redis's clients.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from redis.asyncio import Redis, RedisCluster
from redis.exceptions import BusyLoadingError, ReadOnlyError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from taskiq import AckableMessage, AsyncBroker, AsyncResultBackend, BrokerMessage
from taskiq_redis import (
    ListQueueBroker,
    ListQueueClusterBroker,
    ListQueueSentinelBroker,
    RedisStreamBroker,
    RedisStreamClusterBroker,
    RedisStreamSentinelBroker,
)

from taskiq_flow.reconnect import listen_through_outages
from taskiq_flow.transport.deliveries import (
    Deliveries,
    Delivery,
    Listen,
    holding,
    holding_ahead,
)
from taskiq_flow.transport.protocol import Backlog, Kick, NothingWaits

logger = logging.getLogger("taskiq_flow")

_OUTAGES = (RedisConnectionError, RedisTimeoutError, BusyLoadingError, ReadOnlyError, OSError)

Client = Redis | RedisCluster

STREAM_BROKERS = (RedisStreamBroker, RedisStreamSentinelBroker, RedisStreamClusterBroker)
LIST_BROKERS = (ListQueueBroker, ListQueueSentinelBroker, ListQueueClusterBroker)

IDLE_TIMEOUT = 600_000
"""Milliseconds after which a message that is not acknowledged is delivered again, by default."""


def is_outage(error: BaseException) -> bool:
    """Whether an error says that the server cannot serve now, and may later."""
    return isinstance(error, _OUTAGES)


def client_of(broker: Any) -> Client:
    """A client for a broker, over its own connections, or through sentinels."""
    client = _clients.get(broker)
    if client is None:
        if hasattr(broker, "connection_pool"):
            client = Redis(connection_pool=broker.connection_pool)
        elif is_behind_sentinels(broker):
            client = broker.sentinel.master_for(broker.master_name)
        else:
            client = broker.redis
        _clients[broker] = client
    return client


def is_behind_sentinels(broker: AsyncBroker) -> bool:
    """Whether sentinels say where the broker's server is."""
    return hasattr(broker, "sentinel")


_clients: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def is_started(_: AsyncBroker) -> bool:
    """Whether the broker can send; one over Redis connects when it does."""
    return True


def backlog_of(broker: AsyncBroker) -> Backlog:
    """The backlog of a broker over streams or lists; where it broadcasts, nothing waits."""
    if isinstance(broker, STREAM_BROKERS):
        return StreamBacklog(client_of(broker), broker.queue_name, broker.consumer_group_name)
    if isinstance(broker, LIST_BROKERS):
        return ListBacklog(client_of(broker), broker.queue_name)
    return NothingWaits()


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


def steady(broker: AsyncBroker) -> Deliveries:
    """Have the broker keep listening when the server goes away for a while.

    A broker over a stream declares its group again if the server has come back without its data,
    and takes over what a worker that is gone has left unacknowledged.
    """
    listen: Listen
    if type(broker).listen in {kind.listen for kind in STREAM_BROKERS}:
        reader = StreamReader(broker)
        listen, deliveries = reader.listen, reader.deliveries
    else:
        deliveries = Deliveries(broker)
        has_queue = isinstance(broker, (*STREAM_BROKERS, *LIST_BROKERS))
        listen = (holding if has_queue else holding_ahead)(broker.listen, deliveries)
    if isinstance(broker, ListQueueBroker):
        # A client that gives up waiting for the list loses what is taken from it at that moment.
        broker.connection_pool.connection_kwargs["socket_timeout"] = None
    what = f"{type(broker).__name__} cannot listen"
    # Replaced, as taskiq has no hook for it.
    broker.listen = lambda: listen_through_outages(listen, is_outage, what)  # type: ignore[method-assign]
    return deliveries


def steady_results(_: AsyncResultBackend[Any]) -> None:
    """Nothing to do: a result needs no queue or bucket that the server could lose."""


class StreamReader:
    """Reads a broker's streams, as the broker does, and what others have left in them.

    The broker itself looks for what was left only behind messages that have just come, if at all,
    makes a client for each acknowledgement, and has what takes longer than its idle timeout
    delivered again while it is still being executed.
    """

    def __init__(self, broker: Any) -> None:
        self._broker = broker
        self._client: Any = client_of(broker)
        self._group: str = broker.consumer_group_name
        self._consumer: str = broker.consumer_name
        self._streams = {broker.queue_name: ">", **broker.additional_streams}
        self._idle_timeout: int = getattr(broker, "idle_timeout", IDLE_TIMEOUT)
        self._most_at_once: int | None = getattr(broker, "count", 100)
        self._renewed_at = time.monotonic()
        self.deliveries = Deliveries(broker, self._renew, self._give_back)

    async def listen(self) -> AsyncGenerator[AckableMessage, None]:
        """Messages, each for one worker."""
        looked_at = -math.inf
        try:
            while True:
                for message in self._held(await self._read()):
                    yield self.deliveries.hand_over(message)
                if time.monotonic() - looked_at > self._idle_timeout / 1000 / 2:
                    looked_at = time.monotonic()
                    for stream in self._streams:
                        for message in self._held([(stream, await self._left_in(stream))]):
                            yield self.deliveries.hand_over(message)
        finally:
            await self.deliveries.give_back()

    async def _give_back(self, delivery: Delivery) -> None:
        stream, message_id = delivery.origin
        await self._client.eval(_GIVE_BACK, 1, stream, self._group, message_id, delivery.data)

    async def _renew(self, held: list[Delivery]) -> None:
        """Claim again the messages that this worker has not finished."""
        now = time.monotonic()
        if now - self._renewed_at < self._idle_timeout / 1000 / 4:
            return
        self._renewed_at = now
        by_stream: dict[Any, list[Any]] = {}
        for delivery in held:
            stream, message_id = delivery.origin
            by_stream.setdefault(stream, []).append(message_id)
        for stream, ids in by_stream.items():
            await self._answer(
                self._client.xclaim(
                    stream,
                    self._group,
                    self._consumer,
                    min_idle_time=0,
                    message_ids=ids,
                    justid=True,
                )
            )

    async def _read(self) -> Any:
        return await self._answer(
            self._client.xreadgroup(
                self._group,
                self._consumer,
                self._streams,
                block=min(self._broker.block, max(1, self._idle_timeout // 2)),
                count=self._most_at_once,
            )
        )

    async def _answer(self, asked: Awaitable[Any]) -> Any:
        """The server's answer. If it has lost the streams, they are created again: no answer."""
        try:
            return await asked
        except ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
            logger.warning("the server has lost its streams (%s); they are begun anew", error)
            await self._declare_groups()
            return ()

    async def _left_in(self, stream: Any) -> Any:
        """Messages that a consumer has held for the idle timeout without acknowledging them."""
        place = _START
        left: list[Any] = []
        while not left:  # the server looks at some at a time, and says where to go on
            answer = await self._answer(
                self._client.xautoclaim(
                    stream,
                    self._group,
                    self._consumer,
                    min_idle_time=self._idle_timeout,
                    start_id=place,
                    count=self._most_at_once,
                )
            )
            if not answer:
                break
            place, messages, *_ = answer
            # One that was trimmed away meanwhile comes without an id. One that is here already is
            # idle only as this process or the server has stood still for so long.
            here = self.deliveries.keys()
            left = [m for m in messages if m[0] is not None and _key(stream, m[0]) not in here]
            if place == _START:
                break
        return left

    async def _declare_groups(self) -> None:
        """Create the group, as the broker does, but from the stream's beginning."""
        self.deliveries.clear()
        for stream in self._streams:
            try:
                await self._client.xgroup_create(stream, self._group, id="0", mkstream=True)
            except ResponseError as error:
                logger.debug("another worker has declared the group of %r: %s", stream, error)

    def _held(self, fetched: Any) -> list[AckableMessage]:
        """Messages for taskiq, which this worker holds from now on."""
        return [
            self.deliveries.hold(
                fields[b"data"],
                partial(self._client.xack, stream, self._group, message_id),
                (stream, message_id),
                _key(stream, message_id),
            )
            for stream, entries in fetched
            for message_id, fields in entries
        ]


class StreamBacklog:
    """A stream, and how far its consumer group has read it."""

    def __init__(self, client: Client, stream: str, group: str) -> None:
        self._client = client
        self._stream = stream
        self._group = group

    async def position(self, queue: str | None) -> tuple[Any, Any]:
        """The ids of the newest entry and of the newest one delivered, as pairs of numbers.

        Where no entry waits to be delivered, the group has passed all that ever were.
        """
        stream = queue or self._stream
        if not await self._client.exists(stream):
            return _NOTHING, _NOTHING
        groups = await self._client.xinfo_groups(stream)
        info = await self._client.xinfo_stream(stream)
        delivered = [g for g in groups if g["name"].decode() == self._group]
        read = _numbers(delivered[0]["last-delivered-id"]) if delivered else _NOTHING
        newest = _numbers(info["last-generated-id"])
        last_entry = info["last-entry"]
        if last_entry is None or _numbers(last_entry[0]) <= read:
            return newest, newest
        return newest, read


class ListBacklog:
    """Lists, from which workers take what they execute.

    A list does not number what is in it. So the element that was its newest at some time is
    remembered: when that has left the list, all that stood before it has.
    """

    def __init__(self, client: Client, key: str) -> None:
        self._client: Any = client
        self._key = key
        self._remembered: dict[str, tuple[int, bytes | None]] = {}

    async def position(self, queue: str | None) -> tuple[Any, Any]:
        """The number of the element that will be remembered next, and of the last one that left."""
        key = queue or self._key
        number, element = self._remembered.get(key, (0, None))
        if element is None or await self._client.lpos(key, element) is None:
            number, element = number + 1, await self._client.lindex(key, 0)
            self._remembered[key] = number, element
        return number + 1, number + 1 if element is None else number - 1


# Redis cannot have a message delivered again at once. So a copy takes its place.
_GIVE_BACK = """
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 1 then
    redis.call('XADD', KEYS[1], '*', 'data', ARGV[3])
end
"""


def _key(stream: bytes | str, message_id: bytes) -> tuple[str, bytes]:
    """The key of a message: its stream and its id."""
    return (stream.decode() if isinstance(stream, bytes) else stream), message_id


_START = b"0-0"
_NOTHING = (0, 0)


def _numbers(entry_id: bytes) -> tuple[int, ...]:
    return tuple(int(part) for part in entry_id.split(b"-"))
