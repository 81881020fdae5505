"""Reading Redis streams as a worker: new messages, what other workers left, and giving back."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Iterable
from functools import partial
from typing import Any, NamedTuple

from redis.asyncio import RedisCluster
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.exceptions import ResponseError
from taskiq import AckableMessage

from taskiq_flow.cleanup import was_cancelled
from taskiq_flow.transport.deliveries import SUSPECT, Deliveries, Delivery
from taskiq_flow.transport.redis_connection import OwnConnection, patience_of
from taskiq_flow.transport.redis_errors import is_without_group, naming

logger = logging.getLogger("taskiq_flow")

IDLE_TIMEOUT = 600_000
"""Milliseconds after which a message that is not acknowledged is delivered again, by default."""

MOST_AT_ONCE = 100
"""Messages that one question may fetch, by default."""

QUICKLY = 0.1
"""Seconds within which a worker should begin what it fetches at once."""

HELD_BACK = 1.0
"""Seconds after which other workers are given what this one has fetched and not begun."""

GONE_AFTER = 60.0
"""Seconds of silence after which a consumer that holds no message is removed, at the least."""


class StreamEntry(NamedTuple):
    """Where a message stands. ``database``: as of ``database_of``."""

    stream: Any
    group: str
    id: Any
    database: tuple[Any, ...] | None


def database_of(client: Any) -> tuple[Any, ...] | None:
    """What two clients have in common that use one database as one user.

    ``None`` for a client of a cluster or behind sentinels.
    """
    pool = getattr(client, "connection_pool", None)
    if pool is None or isinstance(pool, SentinelConnectionPool):
        return None
    settings = pool.connection_kwargs
    names = ("host", "port", "path", "username", "credential_provider")
    return (settings.get("db") or 0, *map(settings.get, names))


class StreamReader:
    """Reads a broker's streams, as the broker does, and what others have left in them.

    The broker itself differs: it looks for messages that others have left only when new ones have
    come, if at all; it makes a client for each acknowledgement; a task that takes longer than the
    idle timeout is delivered again while it is executed; and no message or consumer is removed.

    ``client``: the broker's.
    """

    def __init__(self, broker: Any, client: Any) -> None:
        self._client = client
        self._own = None if isinstance(client, RedisCluster) else OwnConnection(client)
        self.ends_when_cancelled = self._own is not None
        """Whether ``listen`` ends when its reader is cancelled. The client may wait on."""
        self._database = database_of(client)
        self._group: str = broker.consumer_group_name
        self._consumer: str = broker.consumer_name
        self._streams = {broker.queue_name: ">", **broker.additional_streams}
        self._idle_timeout: int = getattr(broker, "idle_timeout", IDLE_TIMEOUT)
        self._most_at_once: int = getattr(broker, "count", None) or MOST_AT_ONCE
        self._at_once = 1
        half_of_patience = patience_of(client) * 500  # milliseconds
        self._wait = max(1, int(min(broker.block, self._idle_timeout / 2, half_of_patience)))
        self._renewed_at = time.monotonic()
        self._looked_at = -math.inf
        self._suspects_wait = False
        self.deliveries = Deliveries(broker, self._renew, self._give_back, self._leave)

    async def listen(self) -> AsyncGenerator[AckableMessage, None]:
        """Messages, each for one worker."""
        deliveries = self.deliveries
        try:
            while True:
                if was_cancelled():  # and the client has lost it, not while it waited for messages
                    raise asyncio.CancelledError
                self._hold(_entries(await self._read()))
                began, count = time.monotonic(), 0
                while (following := deliveries.next(deliveries.may_begin)) is not None:
                    yield following[0]
                    count += 1
                took = time.monotonic() - began
                # A worker that is busy fetches no more than it can begin, and one that was idle
                # fetches one message at first: others may be idle.
                most = 2 * self._at_once if took < QUICKLY else int(count * QUICKLY / took)
                self._at_once = max(1, min(most, self._most_at_once)) if count else 1
                if self._is_time_to_look():
                    self._looked_at = time.monotonic()
                    self._suspects_wait = False
                    for stream in self._streams:
                        await self._take_over(stream)
                        await self._remove_consumers(stream)
                    while (following := deliveries.next(deliveries.may_begin)) is not None:
                        yield following[0]
        finally:
            await self.aclose()
            await self.deliveries.give_back_at_the_end()

    async def aclose(self) -> None:
        """Close the connection on which new messages are waited for."""
        if self._own is not None:
            await self._own.aclose()

    def _is_time_to_look(self) -> bool:
        """Whether to look for messages that others have left."""
        if self._suspects_wait and not self._has_suspect():
            return True
        return time.monotonic() - self._looked_at > self._idle_timeout / 1000 / 2

    async def _give_back(self, delivery: Delivery) -> None:
        entry: StreamEntry = delivery.origin
        arguments = (entry.group, entry.id, delivery.data, delivery.number - 1)
        await self._client.eval(_GIVE_BACK, 1, entry.stream, *arguments)

    async def _leave(self) -> None:
        """Remove this worker's consumer from each stream where it holds no message."""
        for stream in self._streams:
            await self._client.eval(_REMOVE_CONSUMER, 1, stream, self._group, self._consumer)

    async def _renew(self, held: list[Delivery]) -> None:
        """Claim again the messages that this worker has not finished.

        Those that it has not begun for a while are given to others.
        """
        if await self.deliveries.give_back(HELD_BACK):
            self._at_once = 1
        now = time.monotonic()
        if now - self._renewed_at < self._idle_timeout / 1000 / 4:
            return
        self._renewed_at = now
        by_stream: dict[Any, list[Any]] = {}
        for delivery in held:
            entry: StreamEntry = delivery.origin
            by_stream.setdefault(entry.stream, []).append(entry.id)
        for stream, ids in by_stream.items():
            await self._claim(stream, ids, justid=True)  # which is not counted as a delivery

    async def _read(self) -> Any:
        wait = min(self._wait, _SHORT_WAIT) if self._suspects_wait else self._wait
        reader = ("GROUP", self._group, self._consumer)
        limits = ("COUNT", self._at_once, "BLOCK", wait)
        streams = ("STREAMS", *self._streams, *self._streams.values())
        client = self._own or self._client
        return await self._answer(client.execute_command("XREADGROUP", *reader, *limits, *streams))

    async def _claim(
        self, stream: Any, ids: list[Any], idle: int = 0, *, justid: bool = False
    ) -> Any:
        return await self._answer(
            self._client.xclaim(stream, self._group, self._consumer, idle, ids, justid=justid)
        )

    async def _answer(self, asked: Awaitable[Any]) -> Any:
        """The server's answer. If it has lost the streams, they are created again: no answer."""
        try:
            with naming("the commands of the group", ", ".join(map(str, self._streams))):
                return await asked
        except ResponseError as error:
            if not is_without_group(error):
                raise
            logger.warning("the server has lost its streams (%s); they are created again", error)
            await self._declare_groups()
            return ()

    async def _take_over(self, stream: Any) -> None:
        """Take over messages that a consumer has held for the idle timeout without finishing them.

        A message that was taken over before may have killed its workers, and others that they held
        with it. So each such message is executed with no other one beside it: what is innocent ends
        before it was delivered too often.
        """
        pending: list[dict[str, Any]] = await self._answer(
            self._client.xpending_range(
                stream, self._group, "-", "+", self._most_at_once, idle=self._idle_timeout
            )
        )
        # A message that is held here is idle only if this process or the server was suspended.
        here = self.deliveries.keys()
        left = [entry for entry in pending if _key(stream, entry["message_id"]) not in here]
        suspects = [entry for entry in left if entry["times_delivered"] >= SUSPECT]
        alone = [] if self._has_suspect() else suspects[:1]
        self._suspects_wait |= len(suspects) > len(alone)
        for entry in [e for e in left if e["times_delivered"] < SUSPECT] + alone:
            # Those that have been idle for so long, unless another worker was faster.
            for message in await self._claim(stream, [entry["message_id"]], self._idle_timeout):
                if message[1]:
                    self._hold([(stream, [message])], entry["times_delivered"] + 1)
                else:  # it was trimmed: Redis 6 leaves the entry pending
                    await self._client.xack(stream, self._group, entry["message_id"])

    async def _remove_consumers(self, stream: Any) -> None:
        """Remove consumers that hold no message and have not been heard of for long."""
        gone_after = max(GONE_AFTER * 1000, 2 * self._idle_timeout)
        arguments = (stream, self._group, "", gone_after)
        await self._answer(self._client.eval(_REMOVE_CONSUMER, 1, *arguments))

    def _has_suspect(self) -> bool:
        return any(delivery.is_suspect for delivery in self.deliveries.redelivered)

    async def _declare_groups(self) -> None:
        """Create the group, as the broker does, but from the stream's beginning."""
        self.deliveries.clear()
        for stream in self._streams:
            try:
                with naming("XGROUP CREATE", str(stream)):
                    await self._client.xgroup_create(stream, self._group, id="0", mkstream=True)
            except ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise
                logger.debug("another worker has declared the group of %r: %s", stream, error)

    def _hold(self, fetched: Any, number: int = 1) -> None:
        """Hold messages from now on, to be handed to taskiq."""
        for stream, entries in fetched:
            for message_id, fields in entries:
                entry = StreamEntry(stream, self._group, message_id, self._database)
                self.deliveries.hold(
                    fields[b"data"],
                    partial(self._client.eval, _ACKNOWLEDGE, 1, stream, self._group, message_id),
                    entry,
                    _key(stream, message_id),
                    number + int(fields.get(_IN_VAIN, 0)),
                )


_SHORT_WAIT = 200
"""Milliseconds to wait for new messages while one that is suspect waits for its turn."""


_IN_VAIN = b"taskiq_flow_deliveries"
"""The field of a copy with the number of times that the message was begun in vain."""

# Redis cannot have a message delivered again at once. So a copy takes its place.
_GIVE_BACK = """
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 1 then
    redis.call('XADD', KEYS[1], '*', 'data', ARGV[3], 'taskiq_flow_deliveries', ARGV[4])
    if #redis.call('XINFO', 'GROUPS', KEYS[1]) == 1 then
        redis.call('XDEL', KEYS[1], ARGV[2])
    end
end
"""

# Nobody reads a message that is acknowledged, unless the stream has another group.
ACKNOWLEDGE = """
local function acknowledge(stream, group, id)
    if redis.call('XACK', stream, group, id) == 1
            and #redis.call('XINFO', 'GROUPS', stream) == 1 then
        redis.call('XDEL', stream, id)
    end
end
"""
"""The Lua function ``acknowledge(stream, group, id)``, for scripts."""

_ACKNOWLEDGE = f"{ACKNOWLEDGE} acknowledge(KEYS[1], ARGV[1], ARGV[2])"

# Consumers come as lists of names and values. Removing one would lose the messages that it holds.
_REMOVE_CONSUMER = """
if redis.call('EXISTS', KEYS[1]) == 0 then return end
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
    local is = {}
    for i = 1, #consumer, 2 do is[consumer[i]] = consumer[i + 1] end
    if is['pending'] == 0 and (is['name'] == ARGV[2] or ARGV[3] and is['idle'] > tonumber(ARGV[3]))
    then
        redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], is['name'])
    end
end
"""


def _entries(fetched: Any) -> Iterable[tuple[Any, Any]]:
    """The streams with their new entries, in whichever form the client gives them.

    A list of pairs; with ``protocol=3`` a dictionary, where each stream's list is in a list; with
    ``legacy_responses=False`` a dictionary without.
    """
    for stream, entries in fetched.items() if isinstance(fetched, dict) else fetched:
        is_nested = bool(entries) and isinstance(entries[0], list)
        yield stream, entries[0] if is_nested else entries


def _key(stream: bytes | str, message_id: bytes) -> tuple[str, bytes]:
    """The key of a message: its stream and its id."""
    return (stream.decode() if isinstance(stream, bytes) else stream), message_id
