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

_READ_AT_ONCE = 64  # chunks

MOST_CONNECTIONS = 32
"""Connections that calls share, unless the URL has ``max_connections`` of its own."""

OPENING_PATIENCE = 5.0
"""Seconds for which a server that has never answered may be away."""

# A script's first answer; behind the third come the owner and the milliseconds it has left.
_NOT_FOUND, _REFUSED = 1, 2

# What adds a chunk is told the number of its call, and says so in the log's state: if the answer is
# lost in an outage, the same call comes once more, and is not to be taken for another.
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
# The last owner is remembered without an end: a lease that is over is one's own until another
# has taken it.
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
# A deletion leaves the number of its call for a minute, so that the same call may come again.
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
    """Keeps runs on the Redis server at ``url``, under keys that begin with ``prefix``.

    What was written is as safe as the server makes it: with ``appendfsync always`` it survives a
    loss of power there, with ``everysec``, what was written up to a second before. Outages of up to
    a minute are ridden out. ``serializer``: how values are written, JSON by default. Needs the
    extra ``redis``; for one server, or one behind a proxy, not for a cluster.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "taskiq_flow:journal",
        serializer: TaskiqSerializer | None = None,
    ) -> None:
        # Here, as those who keep their runs elsewhere need no client of Redis.
        from redis import exceptions  # noqa: PLC0415
        from redis.asyncio import BlockingConnectionPool, Redis  # noqa: PLC0415
        from redis.asyncio.connection import parse_url  # noqa: PLC0415

        self.serializer = JSONSerializer() if serializer is None else serializer
        parse_url(url)  # which refuses what is none
        self.prefix = prefix
        self._url = url
        self._redis = Redis
        self._pool = BlockingConnectionPool
        self._client: Any = None
        self._place: tuple[int, Any] | None = None  # the process and the event loop of the client
        self._has_answered = False
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._outages = (OSError, exceptions.ConnectionError, exceptions.TimeoutError)
        self._errors = (*self._outages, exceptions.RedisError)

    async def create(self, run_id: str, lease: Lease, chunk: bytes) -> None:
        """Begin a log."""
        answer = await self._run(_CREATE, run_id, *_terms(lease), chunk, _call_number(), run_id)
        if answer[0] == _REFUSED:
            raise errors.exists(run_id)

    async def acquire(self, run_id: str, lease: Lease) -> None:
        """Take the lease of a log."""
        _check(run_id, await self._run(_ACQUIRE, run_id, *_terms(lease)))

    async def renew(self, run_id: str, lease: Lease) -> None:
        """Keep a lease."""
        _check(run_id, await self._run(_RENEW, run_id, *_terms(lease)))

    async def release(self, run_id: str, lease: Lease) -> None:
        """Give a lease back."""
        await self._run(_RELEASE, run_id, lease.owner)

    async def append(self, run_id: str, lease: Lease, chunk: bytes) -> None:
        """Add a chunk, and renew the lease with it."""
        _check(run_id, await self._run(_RENEW, run_id, *_terms(lease), chunk, _call_number()))

    async def read(self, run_id: str) -> AsyncGenerator[bytes, None]:
        """The chunks of a log."""
        log, place = self._keys(run_id)[0], 0
        while True:
            last = place + _READ_AT_ONCE - 1
            chunks = await self.call(lambda client: client.lrange(log, place, last))  # noqa: B023
            if not place and not chunks:
                raise errors.not_found(run_id)
            for chunk in chunks:
                yield chunk
            place += len(chunks)
            if len(chunks) < _READ_AT_ONCE:
                return

    async def run_ids(self) -> list[str]:
        """The logs there are."""
        index = self._keys("")[3]
        names = await self.call(lambda client: client.zrange(index, 0, -1))
        return list(filter(is_run, map(decoded, names)))

    async def delete(self, run_id: str) -> None:
        """Remove a log."""
        _check(run_id, await self._run(_DELETE, run_id, run_id, _call_number()))

    async def aclose(self) -> None:
        """Close the connections. They are opened again when they are needed again."""
        if self._client is not None and self._is_at_home():
            await self._client.aclose()

    def _keys(self, run_id: str) -> list[bytes]:
        """Of the log, its lease, its state; of the index and its counter; of the log's deletion."""
        parts = (
            *(f"log:{run_id}", f"lease:{run_id}", f"state:{run_id}", "runs", "count"),
            f"deleted:{run_id}",
        )
        return [encoded(f"{self.prefix}:{part}") for part in parts]

    async def _run(self, script: str, run_id: str, *arguments: Any) -> list[Any]:
        keys = self._keys(run_id)
        values = [encoded(a) if isinstance(a, str) else a for a in arguments]
        # By connections of their own, and after outages, calls would overtake each other.
        async with self._turns.setdefault(run_id, asyncio.Lock()):
            answer: list[Any] = await self.call(
                lambda client: client.eval(script, len(keys), *keys, *values)
            )
        return answer

    async def call(self, call: Callable[[Any], Awaitable[Any]]) -> Any:
        """The server's answer to ``call``, which is given the client. Outages are waited out."""
        client = self._connected()
        patience = OUTAGE_TIMEOUT if self._has_answered else OPENING_PATIENCE
        try:
            answer = await retry_through_outage(
                lambda: call(client), self._outages, "the journal cannot be reached", patience
            )
        except self._errors as error:
            raise JournalError(
                f"the journal on Redis cannot be used: {type(error).__name__}: {error}; see to the "
                "server or its URL, then resume the run"
            ) from error
        self._has_answered = True
        return answer

    def _connected(self) -> Any:
        """The client of this process and event loop: connections outlive neither."""
        if self._client is None or not self._is_at_home():
            self._place = os.getpid(), asyncio.get_running_loop()
            self._turns = WeakValueDictionary()
            # Calls wait their turn for a connection; by default they would be refused.
            pool = self._pool.from_url(self._url, max_connections=MOST_CONNECTIONS, timeout=None)
            self._client = self._redis.from_pool(pool)
        return self._client

    def _is_at_home(self) -> bool:
        return self._place == (os.getpid(), asyncio.get_running_loop())


def _terms(lease: Lease) -> tuple[str, int]:
    return lease.owner, max(1, round(lease.seconds * 1000))


def _call_number() -> bytes:
    return secrets.token_bytes(8)


def _check(run_id: str, answer: list[Any]) -> None:
    """Raise what a script's answer says."""
    if answer[0] == _NOT_FOUND:
        raise errors.not_found(run_id)
    if answer[0] == _REFUSED and len(answer) > 1:
        raise errors.locked(run_id, answer[1].decode(), answer[2] / 1000)
    if answer[0] == _REFUSED:
        raise errors.taken_over(run_id)
