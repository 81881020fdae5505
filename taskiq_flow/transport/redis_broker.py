"""Redis as a system: its clients, its queues, how workers listen to lists; see ``redis.py`` too."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from redis.asyncio import Redis, RedisCluster
from taskiq import AsyncBroker, AsyncResultBackend, BrokerMessage, TaskiqEvents, TaskiqResult
from taskiq_redis import (
    ListQueueBroker,
    ListQueueClusterBroker,
    ListQueueSentinelBroker,
    RedisStreamBroker,
    RedisStreamClusterBroker,
    RedisStreamSentinelBroker,
)

from taskiq_flow.reconnect import listen_through_outages
from taskiq_flow.transport import redis_errors
from taskiq_flow.transport.deliveries import Deliveries, Listen, holding, holding_ahead
from taskiq_flow.transport.protocol import Backlog, Begin, Kick, Leftover, NothingWaits
from taskiq_flow.transport.redis import RedisNotifier
from taskiq_flow.transport.redis_batches import Batches
from taskiq_flow.transport.redis_connection import Client, patience_of
from taskiq_flow.transport.redis_errors import LEAST_LIMIT, explaining_size, naming
from taskiq_flow.transport.redis_streams import StreamReader

logger = logging.getLogger("taskiq_flow")

STREAM_BROKERS = (RedisStreamBroker, RedisStreamSentinelBroker, RedisStreamClusterBroker)
LIST_BROKERS = (ListQueueBroker, ListQueueSentinelBroker, ListQueueClusterBroker)

LIST_WAIT = 1.0
"""Seconds for which the server waits for an element of a list."""


# The first functions of a ``System``; the others follow.
is_outage, is_full = redis_errors.is_outage, redis_errors.is_full


def client_of(owner: Any) -> Client:
    """A client for a broker or a result backend, over its own connections, or through sentinels."""
    client = _clients.get(owner)
    if client is None:
        pool = getattr(owner, "connection_pool", None) or getattr(owner, "redis_pool", None)
        if pool is not None:
            client = Redis(connection_pool=pool)
        elif is_behind_sentinels(owner):
            client = owner.sentinel.master_for(owner.master_name)
        else:
            client = owner.redis
        _clients[owner] = client
    return client


def is_behind_sentinels(owner: object) -> bool:
    """Whether sentinels say where the server of a broker or a result backend is."""
    return hasattr(owner, "sentinel")


_clients: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
_senders: WeakKeyDictionary[Any, Batches] = WeakKeyDictionary()


def notifier_at(url: str, prefix: str) -> RedisNotifier:
    """A notifier with the settings of a URL: ``redis://``, ``rediss://`` or ``unix://``."""
    return RedisNotifier(Redis.from_url(url), prefix, is_own=True)


def notifier_of(broker: AsyncBroker, prefix: str) -> RedisNotifier:
    """A notifier with a broker's settings: of one server, behind sentinels, or of a cluster."""
    client = client_of(broker)
    batches = None if isinstance(client, RedisCluster) else sender_of(broker)
    return RedisNotifier(client, prefix, batches, is_own=is_behind_sentinels(broker))


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
    """A function that sends a message as ``broker.kick`` does, with one ``XADD`` or ``LPUSH``.

    Its error says so if the message is too large for the server.
    """
    kick = _fast_kick_of(broker)

    async def kick_of_any_size(message: BrokerMessage) -> None:
        size = len(message.message)
        if size <= LEAST_LIMIT:
            await kick(message)
            return
        what = f"the message of task {message.task_id!r}"
        async with explaining_size(client_of(broker), lambda: size, what):
            await kick(message)

    return kick_of_any_size


def _fast_kick_of(broker: AsyncBroker) -> Kick:
    """Sends on a connection that is kept: taking one takes longer than sending."""
    command = _command_of(broker)
    if command is None:
        return broker.kick
    batches = sender_of(broker)

    async def kick(message: BrokerMessage) -> None:
        name, key, *rest = command(message)
        with naming(name, key):
            await batches.execute(name, key, *rest, size=len(message.message))

    return kick


def begin_of(broker: AsyncBroker) -> Begin | None:
    """A function that sends a message as ``kick_of`` does, without waiting, unless it is large."""
    command = _command_of(broker)
    if command is None:
        return None
    submit = sender_of(broker).submit

    def begin(message: BrokerMessage) -> asyncio.Future[Any] | None:
        size = len(message.message)
        return submit(*command(message), size=size) if size <= LEAST_LIMIT else None

    return begin


def _command_of(broker: AsyncBroker) -> Callable[[BrokerMessage], tuple[Any, ...]] | None:
    """What makes the command that sends a message, for brokers whose ``kick`` sends but one."""
    kick = type(broker).kick
    if isinstance(broker, RedisStreamBroker) and kick is RedisStreamBroker.kick:
        stream = broker.queue_name
        limit: tuple[Any, ...] = ()
        if broker.maxlen is not None:
            limit = ("MAXLEN", "~" if broker.approximate else "=", broker.maxlen)
        entry = (*limit, "*", "data")

        def add(message: BrokerMessage) -> tuple[Any, ...]:
            key = message.labels.get("queue_name") or stream
            return ("XADD", key, *entry, message.message)

        return add
    if isinstance(broker, ListQueueBroker) and kick is ListQueueBroker.kick:
        queue = broker.queue_name

        def push(message: BrokerMessage) -> tuple[Any, ...]:
            return ("LPUSH", message.labels.get("queue_name") or queue, message.message)

        return push
    return None


def sender_of(broker: AsyncBroker) -> Batches:
    """What sends the messages of all runs on a broker, until the broker is shut down."""
    sender = _senders.get(broker)
    if sender is None:
        sender = _senders[broker] = Batches(client_of(broker))
        for event in (TaskiqEvents.CLIENT_SHUTDOWN, TaskiqEvents.WORKER_SHUTDOWN):
            broker.add_event_handler(event, lambda _: sender.aclose())
    return sender


async def inventory_of(broker: AsyncBroker, prefix: str) -> list[Leftover]:
    """Queues with their groups, and the keys with the prefix, counted by kind."""
    client: Any = client_of(broker)
    found: list[Leftover] = []
    if isinstance(broker, STREAM_BROKERS):
        for stream in (broker.queue_name, *broker.additional_streams):
            if not await client.exists(stream):
                continue
            length = await client.xlen(stream)
            found.append(Leftover(stream, "stream", length, "messages that are not acknowledged"))
            for group in await client.xinfo_groups(stream):
                name = f"{stream} {group['name'].decode()}"
                note = f"consumers; {group['pending']} messages are with them"
                found.append(Leftover(name, "consumer group", group["consumers"], note))
    elif isinstance(broker, LIST_BROKERS):
        length = await client.llen(broker.queue_name)
        found.append(Leftover(broker.queue_name, "list", length, "messages that wait"))
    revoked = f"{prefix}:revoked"
    found.append(Leftover(revoked, "sorted set", await client.zcard(revoked), "revoked runs"))
    queue = broker.queue_name if isinstance(broker, LIST_BROKERS) else None
    listed = {queue, *(leftover.name for leftover in found)}
    results: str | None = getattr(broker.result_backend, "prefix_str", None)
    groups: Counter[tuple[str, str]] = Counter()
    async for key in client.scan_iter(match=f"{prefix}:*", count=1000):
        if (name := key.decode(errors="replace")) not in listed:
            groups[_group_of(name, prefix, results)] += 1
    found += [Leftover(name, "keys", count, note) for (name, note), count in groups.items()]
    return sorted(found, key=lambda leftover: leftover.name)


_OF_JOURNAL_OR_CACHE = re.compile(
    r"(?P<group>.+?:(?P<part>log|lease|state|deleted|events|cache|claim)):.+|.+:(?:runs|count|started)"
)
_TASK_ID = re.compile(r".+:.+:\d+(?:\.[0-9a-f]{8})?|[0-9a-f]{32}")
"""Of an engine's task, or of another with an id that taskiq has made."""


def _group_of(name: str, prefix: str, results: str | None) -> tuple[str, str]:
    """The group in which the inventory counts a key that begins with ``prefix``, and its note.

    ``results``: the prefix of the result backend. If that is no longer than ``prefix``, journals
    and caches may have keys below it as well, and results are known by their task ids.
    """
    if name.startswith((f"{prefix}:tracking:status:", f"{prefix}:tracking:index")):
        return f"{prefix}:tracking:*", "statuses of runs"
    if results is not None and name.startswith(f"{results}:"):
        rest = name.removeprefix(f"{results}:")
        if len(results) > len(prefix) or _TASK_ID.fullmatch(rest):
            return f"{results}:*", "results"
    if match := _OF_JOURNAL_OR_CACHE.fullmatch(name):
        note = "of a cache" if match["part"] in ("cache", "claim") else "of a journal"
        return (f"{match['group']}:*" if match["group"] else name), note
    return f"{prefix}:*", "other keys"


def steady(broker: AsyncBroker) -> Deliveries:
    """Have the broker keep listening when the server goes away for a while.

    A broker over a stream declares its group again if the server has come back without its data,
    and takes over what a worker that is gone has left unacknowledged.
    """
    listen: Listen
    ends_when_cancelled = False
    if type(broker).listen in {kind.listen for kind in STREAM_BROKERS}:
        reader = stream_reader_of(broker)
        listen, deliveries = reader.listen, reader.deliveries
        ends_when_cancelled = reader.ends_when_cancelled
    elif type(broker).listen in {kind.listen for kind in LIST_BROKERS}:
        deliveries = Deliveries(broker)
        listen = holding(partial(_pop, broker), deliveries)
    else:
        deliveries = Deliveries(broker)
        has_queue = isinstance(broker, (*STREAM_BROKERS, *LIST_BROKERS))
        listen = (holding if has_queue else holding_ahead)(broker.listen, deliveries)
    what = f"{type(broker).__name__} cannot listen"
    # Replaced, as taskiq has no hook for it.
    broker.listen = lambda: listen_through_outages(  # type: ignore[method-assign]
        listen, is_outage, what, ends_when_cancelled=ends_when_cancelled
    )
    return deliveries


def stream_reader_of(broker: AsyncBroker) -> StreamReader:
    """The reader of a broker's streams, over the broker's own client."""
    return StreamReader(broker, client_of(broker))


async def _pop(broker: Any) -> AsyncGenerator[bytes, None]:
    """Take the elements of a broker's list.

    The client gives up on an answer after its own timeout, and what the server has taken from the
    list by then is lost. So the server waits for less than that.
    """
    client: Any = client_of(broker)
    wait = min(LIST_WAIT, patience_of(client) / 2)
    while True:
        with naming("BRPOP", broker.queue_name):
            popped = await client.brpop([broker.queue_name], timeout=wait)
        if popped is not None:
            yield popped[1]


def steady_reads(_: AsyncResultBackend[Any]) -> None:
    """Its client waits for an answer with a limit of its own."""


def steady_results(backend: AsyncResultBackend[Any]) -> None:
    """Make the error of a worker's result backend say if a result is too large for the server."""
    redis_backend: Any = backend
    set_result = backend.set_result

    async def set_result_that_fits(task_id: str, result: TaskiqResult[Any]) -> None:
        def size() -> int:
            return len(redis_backend.serializer.dumpb(result.model_dump(mode="json")))

        async with explaining_size(client_of(backend), size, "the result"):
            await set_result(task_id, result)

    # Replaced, as taskiq has no hook for it.
    backend.set_result = set_result_that_fits  # type: ignore[method-assign]


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


_NOTHING = (0, 0)


def _numbers(entry_id: bytes) -> tuple[int, ...]:
    return tuple(int(part) for part in entry_id.split(b"-"))
