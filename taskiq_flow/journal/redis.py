"""A journal on a Redis server, for engines on any number of machines."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any
from weakref import WeakValueDictionary

from taskiq.abc.serializer import TaskiqSerializer
from taskiq.serializers import JSONSerializer

from taskiq_flow.errors import JournalError
from taskiq_flow.journal import errors
from taskiq_flow.journal.protocol import Lease, decoded, encoded, is_run
from taskiq_flow.reconnect import OUTAGE_TIMEOUT, retry_through_outage
from taskiq_flow.transport.systems import without_secrets

_CHUNKS_PER_READ = 64

MAX_CONNECTIONS = 32
"""Connections in the pool, unless the URL has ``max_connections``."""

CONNECT_TIMEOUT = 5.0
"""Seconds of an outage after which a call fails, if the server has never answered."""

# A script returns one of 0 (done), _NOT_FOUND and _REFUSED. After _REFUSED there may follow the
# owner of the lease and the milliseconds until it expires.
_NOT_FOUND, _REFUSED = 1, 2

# A call that appends a chunk stores its id in the log's state. If its answer is lost in an outage,
# the call is repeated, and the script recognises it by the id.
_CREATE = """
if redis.call('HGET', KEYS[3], 'call') == ARGV[4] then return {0} end
if redis.call('EXISTS', KEYS[1]) == 1 then return {2} end
redis.call('RPUSH', KEYS[1], ARGV[3])
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
redis.call('HSET', KEYS[3], 'owner', ARGV[1], 'call', ARGV[4])
redis.call('ZADD', KEYS[4], redis.call('INCR', KEYS[5]), ARGV[5])
return {0}
"""
_ACQUIRE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return {1} end
local owner = redis.call('GET', KEYS[2])
if owner and owner ~= ARGV[1] then return {2, owner, redis.call('PTTL', KEYS[2])} end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
redis.call('HSET', KEYS[3], 'owner', ARGV[1])
return {0}
"""
# The owner in the state has no expiry: an expired lease stays its owner's until another takes it.
_RENEW = """
if redis.call('EXISTS', KEYS[1]) == 0 then return {1} end
if redis.call('HGET', KEYS[3], 'owner') ~= ARGV[1] then return {2} end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
if ARGV[3] and redis.call('HGET', KEYS[3], 'call') ~= ARGV[4] then
    redis.call('RPUSH', KEYS[1], ARGV[3])
    redis.call('HSET', KEYS[3], 'call', ARGV[4])
end
return {0}
"""
_RELEASE = """
if redis.call('HGET', KEYS[3], 'owner') == ARGV[1] then
    redis.call('DEL', KEYS[2])
    redis.call('HDEL', KEYS[3], 'owner')
end
return {0}
"""
# A deletion stores its call's id for two minutes, so that the call may be repeated.
_DELETE = """
if redis.call('EXISTS', KEYS[1]) == 0 then
    if redis.call('GET', KEYS[6]) == ARGV[2] then return {0} end
    return {1}
end
local owner = redis.call('GET', KEYS[2])
if owner then return {2, owner, redis.call('PTTL', KEYS[2])} end
redis.call('DEL', KEYS[1], KEYS[3])
redis.call('SET', KEYS[6], ARGV[2], 'PX', 120000)
redis.call('ZREM', KEYS[4], ARGV[1])
return {0}
"""


class RedisJournal:
    """A journal on the Redis server at ``url``, under keys that begin with ``prefix``.

    A write is as durable as the server makes it: with ``appendfsync always`` it survives a loss of
    power at the server, with ``everysec`` one up to a second old may be lost. Calls are retried
    through outages of up to a minute. ``serializer``: serializes values; JSON by default. Needs the
    extra ``redis``. Works with one server, also behind a proxy, but not with a cluster.

    >>> journal = RedisJournal("redis://localhost:6379", prefix="shop:runs")
    >>> dag = DAGBuilder().node(abs, inputs=["number"]).build()
    >>> engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal)
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "taskiq_flow:journal",
        serializer: TaskiqSerializer | None = None,
    ) -> None:
        # Imported here, as other journals need no Redis client.
        from redis import exceptions  # noqa: PLC0415
        from redis.asyncio import BlockingConnectionPool, Redis  # noqa: PLC0415
        from redis.asyncio.connection import parse_url  # noqa: PLC0415

        from taskiq_flow.transport.redis_errors import is_outage  # noqa: PLC0415

        self.serializer = JSONSerializer() if serializer is None else serializer
        parse_url(url)  # raises ValueError
        self.prefix = prefix
        self._url = url
        self._redis = Redis
        self._pool = BlockingConnectionPool
        self._client: Any = None
        self._client_home: tuple[int, Any] | None = None  # its process and its event loop
        self._has_answered = False
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._is_outage = is_outage
        self._errors = (OSError, exceptions.RedisError)

    def __repr__(self) -> str:
        return f"<RedisJournal at {without_secrets(self._url)}, prefix {self.prefix!r}>"

    async def create(self, run_id: str, lease: Lease, chunk: bytes) -> None:
        """Create a log and take its lease."""
        answer = await self._run(_CREATE, run_id, *_arguments(lease), chunk, _call_id(), run_id)
        if answer[0] == _REFUSED:
            raise errors.exists(run_id)

    async def acquire(self, run_id: str, lease: Lease) -> None:
        """Take the lease of a log."""
        _raise_for(run_id, await self._run(_ACQUIRE, run_id, *_arguments(lease)))

    async def renew(self, run_id: str, lease: Lease) -> None:
        """Renew a lease."""
        _raise_for(run_id, await self._run(_RENEW, run_id, *_arguments(lease)))

    async def release(self, run_id: str, lease: Lease) -> None:
        """Release a lease."""
        await self._run(_RELEASE, run_id, lease.owner)

    async def append(self, run_id: str, lease: Lease, chunk: bytes) -> None:
        """Append a chunk, and renew the lease with it."""
        _raise_for(run_id, await self._run(_RENEW, run_id, *_arguments(lease), chunk, _call_id()))

    async def read(self, run_id: str) -> AsyncGenerator[bytes, None]:
        """Yield the chunks of a log."""
        log, place = self._keys(run_id)[0], 0
        while True:
            last = place + _CHUNKS_PER_READ - 1
            # Each call has ended before the variables change.
            chunks = await self.call(lambda client: client.lrange(log, place, last))  # noqa: B023
            if not place and not chunks:
                raise errors.not_found(run_id)
            for chunk in chunks:
                yield chunk
            place += len(chunks)
            if len(chunks) < _CHUNKS_PER_READ:
                return

    async def run_ids(self) -> list[str]:
        """The ids of all runs."""
        index = self._keys("")[3]
        names = await self.call(lambda client: client.zrange(index, 0, -1))
        return list(filter(is_run, map(decoded, names)))

    async def delete(self, run_id: str) -> None:
        """Delete a log."""
        _raise_for(run_id, await self._run(_DELETE, run_id, run_id, _call_id()))

    async def aclose(self) -> None:
        """Close the connections. Using the journal again opens new ones."""
        if self._client is not None and self._client_is_usable():
            await self._client.aclose()

    def _keys(self, run_id: str) -> list[bytes]:
        """Keys of the log, its lease, its state, the index, its counter and the log's deletion."""
        parts = (
            *(f"log:{run_id}", f"lease:{run_id}", f"state:{run_id}", "runs", "count"),
            f"deleted:{run_id}",
        )
        return [encoded(f"{self.prefix}:{part}") for part in parts]

    async def _run(self, script: str, run_id: str, *arguments: Any) -> list[Any]:
        keys = self._keys(run_id)
        values = [encoded(a) if isinstance(a, str) else a for a in arguments]
        # One at a time: on several connections, or after outages, calls would overtake each other.
        async with self._locks.setdefault(run_id, asyncio.Lock()):
            answer: list[Any] = await self.call(
                lambda client: client.eval(script, len(keys), *keys, *values)
            )
        return answer

    async def call(self, call: Callable[[Any], Awaitable[Any]]) -> Any:
        """What ``call`` returns, given the client. It is called again during an outage."""
        client = self._connected_client()
        seconds = OUTAGE_TIMEOUT if self._has_answered else CONNECT_TIMEOUT
        try:
            answer = await retry_through_outage(
                lambda: call(client), self._is_outage, "the journal cannot be reached", seconds
            )
        except self._errors as error:
            raise JournalError(
                f"the journal on Redis cannot be used: {type(error).__name__}: {error}; check the "
                "server and its URL, then resume the run"
            ) from error
        self._has_answered = True
        return answer

    def _connected_client(self) -> Any:
        """The client of this process and event loop, as connections outlive neither."""
        if self._client is None or not self._client_is_usable():
            self._client_home = os.getpid(), asyncio.get_running_loop()
            self._locks = WeakValueDictionary()
            # This pool lets calls wait for a connection; redis-py's default pool would raise.
            pool = self._pool.from_url(self._url, max_connections=MAX_CONNECTIONS, timeout=None)
            self._client = self._redis.from_pool(pool)
        return self._client

    def _client_is_usable(self) -> bool:
        return self._client_home == (os.getpid(), asyncio.get_running_loop())


def _arguments(lease: Lease) -> tuple[str, int]:
    return lease.owner, max(1, round(lease.seconds * 1000))


def _call_id() -> bytes:
    return secrets.token_bytes(8)


def _raise_for(run_id: str, answer: list[Any]) -> None:
    """Raise the error that a script has returned."""
    if answer[0] == _NOT_FOUND:
        raise errors.not_found(run_id)
    if answer[0] == _REFUSED and len(answer) > 1:
        raise errors.locked(run_id, answer[1].decode(), answer[2] / 1000)
    if answer[0] == _REFUSED:
        raise errors.taken_over(run_id)
