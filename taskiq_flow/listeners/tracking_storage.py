"""Where the statuses of runs are stored: in memory, or on a Redis server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from inspect import iscoroutinefunction
from typing import Any, Protocol

from taskiq_flow.errors import ConfigurationError, TrackingError
from taskiq_flow.suggestions import suggests_keywords
from taskiq_flow.views.pipeline_status import PipelineStatus

_PER_READ = 100
"""Statuses that are read at once."""

_DAY = 86_400.0


class TrackingStorage(Protocol):
    """Stores the status of each run, the last one that was saved. It may raise what it likes.

    ``InMemoryPipelineStorage`` and ``RedisPipelineStorage`` are such.
    """

    async def save_status(self, status: PipelineStatus) -> None:
        """Store the status of a run in place of an earlier one."""

    async def get_status(self, pipeline_id: str) -> PipelineStatus | None:
        """The status of a run, if it is stored."""

    async def list_pipelines(
        self, status_filter: str | None = None, limit: int = 100
    ) -> list[PipelineStatus]:
        """Those that are stored, with this ``status`` if one is given; the newest first."""

    async def delete_pipeline(self, pipeline_id: str) -> bool:
        """Remove a run. Returns whether it was stored."""

    async def cleanup_older_than(self, days: float = 30) -> int:
        """Remove the runs that started so many days ago. Returns how many there were."""


@suggests_keywords()
class InMemoryPipelineStorage:
    """Stores statuses in this process. ``max_records``: runs that are stored, the newest ones.

    Those that have ended make room first, so that a long run is seen to its end.

    >>> storage = InMemoryPipelineStorage(max_records=100)
    >>> status = PipelineStatus(pipeline_id="nightly", status="RUNNING")
    >>> asyncio.run(storage.save_status(status))
    >>> asyncio.run(storage.get_status("nightly")).status
    'RUNNING'
    """

    def __init__(self, max_records: int = 1000) -> None:
        if max_records < 1:
            raise ConfigurationError(
                f"InMemoryPipelineStorage() was given max_records={max_records}; it is 1 or more"
            )
        self._most = max_records
        self._records: dict[str, PipelineStatus] = {}

    async def save_status(self, status: PipelineStatus) -> None:
        """Store the status of a run in place of an earlier one."""
        self._records[status.pipeline_id] = status
        if len(self._records) > self._most:
            oldest = min(
                self._records.values(), key=lambda one: (not one.is_finished(), _start(one))
            )
            del self._records[oldest.pipeline_id]

    async def get_status(self, pipeline_id: str) -> PipelineStatus | None:
        """The status of a run, if it is stored."""
        status = self._records.get(pipeline_id)
        return None if status is None else status.model_copy(deep=True)

    async def list_pipelines(
        self, status_filter: str | None = None, limit: int = 100
    ) -> list[PipelineStatus]:
        """Those that are stored, with this ``status`` if one is given; the newest first."""
        newest = sorted(self._records.values(), key=_start, reverse=True)
        found = [one for one in newest if status_filter in (None, one.status)]
        return [one.model_copy(deep=True) for one in found[:limit]]

    async def delete_pipeline(self, pipeline_id: str) -> bool:
        """Remove a run. Returns whether it was stored."""
        return self._records.pop(pipeline_id, None) is not None

    async def cleanup_older_than(self, days: float = 30) -> int:
        """Remove the runs that started so many days ago. Returns how many there were."""
        before = time.time() - days * _DAY
        old = [name for name, status in self._records.items() if _start(status) <= before]
        for name in old:
            del self._records[name]
        return len(old)


@suggests_keywords(ttl="ttl_seconds=", prefix="key_prefix=")
class RedisPipelineStorage:
    """Stores statuses on a Redis server, where other processes read them too.

    ``redis_client``: a client of ``redis.asyncio``, which stays its owner's to close.
    ``key_prefix``: begins each key; another one for each deployment that shares a server.
    ``ttl_seconds``: when a status expires after it was last saved. ``serializer``: makes of plain
    data what ``json.loads`` reads. Raises ``ConfigurationError`` for a client that is not async,
    and ``TrackingError`` when it reads what is no status.

    >>> from redis.asyncio import Redis
    >>> storage = RedisPipelineStorage(Redis.from_url("redis://localhost:6379"))
    """

    def __init__(
        self,
        redis_client: Any,
        key_prefix: str = "taskiq_flow:tracking:",
        ttl_seconds: int = 604_800,
        serializer: Callable[[Any], str | bytes] = json.dumps,
    ) -> None:
        if not iscoroutinefunction(getattr(redis_client, "execute_command", None)):
            raise ConfigurationError(
                f"RedisPipelineStorage() was given {redis_client!r}, which is no async client of "
                "Redis; give it a redis.asyncio.Redis"
            )
        if ttl_seconds < 1:
            raise ConfigurationError(
                f"RedisPipelineStorage() was given ttl_seconds={ttl_seconds}; it is 1 or more"
            )
        self._client = redis_client
        self._prefix = key_prefix
        self._ttl = ttl_seconds
        self._serializer = serializer
        self._index = f"{key_prefix}index"  # ids by when they started

    async def save_status(self, status: PipelineStatus) -> None:
        """Store the status of a run in place of an earlier one."""
        content = self._serializer(status.model_dump(mode="json"))
        async with self._client.pipeline(transaction=False) as pipe:
            pipe.set(self._key(status.pipeline_id), content, ex=self._ttl)
            pipe.zadd(self._index, {status.pipeline_id: _start(status)})
            await pipe.execute()

    async def get_status(self, pipeline_id: str) -> PipelineStatus | None:
        """The status of a run, if it is stored."""
        content = await self._client.get(self._key(pipeline_id))
        return None if content is None else _read(pipeline_id, content)

    async def list_pipelines(
        self, status_filter: str | None = None, limit: int = 100
    ) -> list[PipelineStatus]:
        """Those that are stored, with this ``status`` if one is given; the newest first."""
        found: list[PipelineStatus] = []
        expired: list[str] = []
        first = 0
        while len(found) < limit:
            names = await self._client.zrevrangebyscore(
                self._index, "+inf", "-inf", start=first, num=_PER_READ
            )
            if not names:
                break
            first += len(names)
            for name, content in (await self._contents([_text(n) for n in names])).items():
                if content is None:
                    expired.append(name)
                elif status_filter in (None, (status := _read(name, content)).status):
                    found.append(status)
        if expired:
            await self._client.zrem(self._index, *expired)
        return found[:limit]

    async def delete_pipeline(self, pipeline_id: str) -> bool:
        """Remove a run. Returns whether it was stored."""
        return await self._delete([pipeline_id]) > 0

    async def cleanup_older_than(self, days: float = 30) -> int:
        """Remove the runs that started so many days ago. Returns how many there were."""
        before, count = time.time() - days * _DAY, 0
        while names := await self._client.zrevrangebyscore(
            self._index, before, "-inf", start=0, num=_PER_READ
        ):
            count += await self._delete([_text(name) for name in names])
        return count

    async def _contents(self, names: list[str]) -> Mapping[str, Any]:
        async with self._client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.get(self._key(name))
            return dict(zip(names, await pipe.execute(), strict=True))

    async def _delete(self, names: list[str]) -> int:
        """Remove runs. Returns how many of them were stored, and had not expired."""
        async with self._client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.delete(self._key(name))
            pipe.zrem(self._index, *names)
            *deleted, _ = await pipe.execute()
        return sum(deleted)

    def _key(self, pipeline_id: str) -> str:
        return f"{self._prefix}status:{pipeline_id}"


def _start(status: PipelineStatus) -> float:
    return 0.0 if status.started_at is None else status.started_at.timestamp()


def _text(name: str | bytes) -> str:
    """A member of the index, whether the client decodes answers or not."""
    return name.decode() if isinstance(name, bytes) else name


def _read(pipeline_id: str, content: str | bytes) -> PipelineStatus:
    try:
        return PipelineStatus.model_validate(json.loads(content))
    except ValueError as error:
        raise TrackingError(
            f"the stored status of run {pipeline_id!r} cannot be read: "
            f"{str(error).partition(chr(10))[0]}; delete it by delete_pipeline(), or give this "
            "deployment a key_prefix= of its own"
        ) from error
