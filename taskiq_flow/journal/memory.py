"""A journal in this process's memory, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from taskiq.abc.serializer import TaskiqSerializer
from taskiq.serializers import JSONSerializer

from taskiq_flow.journal import errors
from taskiq_flow.journal.protocol import Lease


@dataclass(slots=True)
class _Log:
    owner: str | None = None
    expires: float = 0.0
    chunks: list[bytes] = field(default_factory=list)


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

    async def create(self, run_id: str, lease: Lease, chunk: bytes) -> None:
        """Create a log and take its lease."""
        if run_id in self._logs:
            raise errors.exists(run_id)
        self._logs[run_id] = _Log(chunks=[chunk])
        await self.acquire(run_id, lease)

    async def acquire(self, run_id: str, lease: Lease) -> None:
        """Take the lease of a log."""
        log, now = self._log(run_id), asyncio.get_running_loop().time()
        if log.owner not in (None, lease.owner) and log.expires > now:
            raise errors.locked(run_id, str(log.owner), log.expires - now)
        log.owner, log.expires = lease.owner, now + lease.seconds

    async def renew(self, run_id: str, lease: Lease) -> None:
        """Renew a lease."""
        self._owned(run_id, lease).expires = asyncio.get_running_loop().time() + lease.seconds

    async def release(self, run_id: str, lease: Lease) -> None:
        """Release a lease."""
        log = self._logs.get(run_id)
        if log is not None and log.owner == lease.owner:
            log.owner = None

    async def append(self, run_id: str, lease: Lease, chunk: bytes) -> None:
        """Append a chunk."""
        self._owned(run_id, lease).chunks.append(chunk)

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

    async def aclose(self) -> None:
        """Do nothing: there is nothing to close."""

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
