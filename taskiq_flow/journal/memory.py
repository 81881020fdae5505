"""A journal in this process's memory, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass, field, replace
from math import ceil

from taskiq.abc.serializer import TaskiqSerializer
from taskiq.serializers import JSONSerializer

from taskiq_flow.journal import errors
from taskiq_flow.journal.protocol import EventBatch, Lease, Request
from taskiq_flow.journal.summary import RunSummary
from taskiq_flow.suggestions import suggests_keywords

_LOOK_EVERY = 0.02
"""Seconds between two looks of somebody who waits for a change, as engines may be in threads."""


@dataclass(slots=True)
class _Log:
    owner: str | None = None
    expires: float = 0.0
    chunks: list[bytes] = field(default_factory=list)
    batches: list[EventBatch] = field(default_factory=list)
    request: Request | None = None
    changes: int = 0

    def add(self, chunk: bytes | None, batch: EventBatch | None) -> None:
        """Append a chunk, and events."""
        if chunk is not None:
            self.chunks.append(chunk)
        if batch is not None:
            self.batches.append(batch)
        self.changes += 1


@suggests_keywords()
class MemoryJournal:
    """A journal in memory. Engines in this process that share it can resume each other's runs.

    ``serializer``: serializes values; JSON by default.

    >>> journal = MemoryJournal()
    >>> dag = DAGBuilder().node(abs, inputs=["number"]).build()
    >>> engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal)
    >>> engine.execute_sync({"number": -1}, run_id="r1")
    {'abs': 1}
    >>> journal
    <MemoryJournal of 1 run>
    """

    def __init__(self, *, serializer: TaskiqSerializer | None = None) -> None:
        self.serializer = JSONSerializer() if serializer is None else serializer
        self._logs: dict[str, _Log] = {}

    def __repr__(self) -> str:
        return f"<MemoryJournal of {len(self._logs)} {'run' if len(self._logs) == 1 else 'runs'}>"

    async def create(
        self, run_id: str, lease: Lease, chunk: bytes | None, batch: EventBatch | None = None
    ) -> None:
        """Create a log and take its lease."""
        if run_id in self._logs:
            raise errors.exists(run_id)
        self._logs[run_id] = _Log()
        await self.acquire(run_id, lease)
        self._logs[run_id].add(chunk, batch)

    async def acquire(self, run_id: str, lease: Lease) -> None:
        """Take the lease of a log."""
        log, now = self._log(run_id), asyncio.get_running_loop().time()
        if log.owner not in (None, lease.owner) and log.expires > now:
            raise errors.locked(run_id, str(log.owner), log.expires - now)
        log.owner, log.expires, log.request = lease.owner, now + lease.seconds, None
        log.changes += 1

    async def renew(self, run_id: str, lease: Lease) -> None:
        """Renew a lease."""
        self._owned(run_id, lease).expires = asyncio.get_running_loop().time() + lease.seconds

    async def release(self, run_id: str, lease: Lease) -> None:
        """Release a lease."""
        log = self._logs.get(run_id)
        if log is not None and log.owner == lease.owner:
            log.owner = None
            log.changes += 1

    async def append(
        self, run_id: str, lease: Lease, chunk: bytes | None, batch: EventBatch | None = None
    ) -> None:
        """Append a chunk, and events."""
        self._owned(run_id, lease).add(chunk, batch)

    async def read(self, run_id: str) -> AsyncGenerator[bytes, None]:
        """Yield the chunks of a log."""
        for chunk in tuple(self._log(run_id).chunks):
            yield chunk

    async def run_ids(self) -> list[str]:
        """The ids of all runs."""
        return list(self._logs)

    async def delete(self, run_id: str) -> None:
        """Delete a log."""
        log, now = self._log(run_id), asyncio.get_running_loop().time()
        if log.owner is not None and log.expires > now:
            raise errors.locked(run_id, log.owner, log.expires - now)
        del self._logs[run_id]

    async def events(self, run_id: str, after: int = 0) -> AsyncGenerator[bytes, None]:
        """Yield the lines of a run's events."""
        for batch in tuple(self._log(run_id).batches):
            if batch.lines and batch.summary.seq > after:
                yield batch.lines

    async def summary(self, run_id: str) -> RunSummary:
        """The summary of a run."""
        log = self._log(run_id)
        written = log.batches[-1].summary if log.batches else RunSummary(run_id, "running")
        left = log.expires - asyncio.get_running_loop().time()
        is_held = log.owner is not None and left > 0
        return replace(written, owner=log.owner, lease_left=left if is_held else 0.0)

    async def summaries(
        self,
        *,
        status: str | None = None,
        name: str | None = None,
        since: float | None = None,
        before: float | None = None,
        limit: int = 100,
        tags: Collection[str] = (),
    ) -> list[RunSummary]:
        """The summaries of runs, the newest first."""
        found = [await self.summary(run_id) for run_id in reversed(self._logs)]
        asked = [
            run
            for run in found
            if not run.started or (status in (None, run.status) and name in (None, run.name))
            if since is None or run.started >= since
            if before is None or run.started < before
            if set(tags).issubset(run.tags)
        ]
        return sorted(asked, key=lambda run: -run.started)[:limit]

    async def changed(self, run_id: str, mark: object, seconds: float) -> object:
        """Wait for a change of a run."""
        # The writer may be on another event loop, so there is no event to wait for.
        for _ in range(ceil(seconds / _LOOK_EVERY)):
            if (changes := self._changes(run_id)) != mark:
                return changes
            await asyncio.sleep(_LOOK_EVERY)
        return mark

    async def request(self, run_id: str, request: Request) -> None:
        """Store a request."""
        log = self._log(run_id)
        log.request = request
        log.changes += 1

    async def requested(self, run_id: str) -> str | None:
        """The request that was stored."""
        return self._log(run_id).request

    async def aclose(self) -> None:
        """Do nothing: there is nothing to close."""

    def _changes(self, run_id: str) -> tuple[int, int]:
        log = self._logs.get(run_id)
        return (0, 0) if log is None else (id(log), log.changes)

    def _log(self, run_id: str) -> _Log:
        try:
            return self._logs[run_id]
        except KeyError:
            raise errors.not_found(run_id) from None

    def _owned(self, run_id: str, lease: Lease) -> _Log:
        log = self._log(run_id)
        if log.owner != lease.owner:
            raise errors.taken_over(run_id)
        return log
