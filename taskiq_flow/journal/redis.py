"""A journal on a Redis server, for engines on any number of machines."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

from taskiq.abc.serializer import TaskiqSerializer
from taskiq.serializers import JSONSerializer

from taskiq_flow.errors import JournalError
from taskiq_flow.journal import errors
from taskiq_flow.journal import redis_scripts as scripts
from taskiq_flow.journal.protocol import EventBatch, Lease, Request, decoded, encoded, is_run
from taskiq_flow.journal.summary import RunSummary
from taskiq_flow.reconnect import OUTAGE_TIMEOUT, retry_through_outage
from taskiq_flow.suggestions import suggests_keywords
from taskiq_flow.transport.systems import without_secrets

_CHUNKS_PER_READ = 64
_RUNS_PER_READ = 200

LOOK_EVERY = 0.05
"""Seconds between two looks of somebody who waits for a change of a run."""

MAX_CONNECTIONS = 32
"""Connections, and so calls at once, unless the URL has ``max_connections``."""

CONNECT_TIMEOUT = 5.0
"""Seconds of an outage after which a call fails, if the server has never answered."""


@suggests_keywords()
class RedisJournal:
    """A journal on the Redis server at ``url``, under keys that begin with ``prefix``.

    A write is as durable as the server makes it: with ``appendfsync always`` it survives a loss of
    power at the server, with ``everysec`` one up to a second old may be lost. Calls are retried
    through outages of up to a minute. ``serializer``: serializes values; JSON by default. Needs the
    extra ``redis``.

    ``url`` is that of one server, of sentinels as ``redis+sentinel://HOST:PORT,HOST:PORT/MASTER``,
    or of a cluster as ``redis+cluster://HOST:PORT``. In a cluster, keys begin with ``{prefix}``, so
    that all are in one slot, unless the prefix has braces of its own.

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

        from taskiq_flow.journal.redis_client import clients_at  # noqa: PLC0415
        from taskiq_flow.transport.redis_errors import is_outage  # noqa: PLC0415

        self.serializer = JSONSerializer() if serializer is None else serializer
        clients = clients_at(url)  # raises ValueError
        self.prefix = f"{{{prefix}}}" if clients.is_cluster and "{" not in prefix else prefix
        self._url = url
        self._make_client = clients.make
        self._most_connections = clients.most_connections or MAX_CONNECTIONS
        self._of_loops: dict[_Here, _OfLoop] = {}
        self._has_answered = False
        self._is_outage = is_outage
        self._errors = (OSError, exceptions.RedisError)

    def __repr__(self) -> str:
        return f"<RedisJournal at {without_secrets(self._url)}, prefix {self.prefix!r}>"

    async def create(
        self, run_id: str, lease: Lease, chunk: bytes | None, batch: EventBatch | None = None
    ) -> None:
        """Create a log and take its lease."""
        written = scripts.written(run_id, chunk, batch)
        answer = await self._run(scripts.CREATE, run_id, *_arguments(lease), *written)
        if answer[0] == scripts.REFUSED:
            raise errors.exists(run_id)

    async def acquire(self, run_id: str, lease: Lease) -> None:
        """Take the lease of a log."""
        _raise_for(run_id, await self._run(scripts.ACQUIRE, run_id, *_arguments(lease)))

    async def renew(self, run_id: str, lease: Lease) -> None:
        """Renew a lease."""
        _raise_for(run_id, await self._run(scripts.RENEW, run_id, *_arguments(lease)))

    async def release(self, run_id: str, lease: Lease) -> None:
        """Release a lease."""
        await self._run(scripts.RELEASE, run_id, lease.owner)

    async def append(
        self, run_id: str, lease: Lease, chunk: bytes | None, batch: EventBatch | None = None
    ) -> None:
        """Append a chunk and events, and renew the lease with them."""
        written = scripts.written(run_id, chunk, batch)
        _raise_for(run_id, await self._run(scripts.APPEND, run_id, *_arguments(lease), *written))

    async def read(self, run_id: str) -> AsyncGenerator[bytes, None]:
        """Yield the chunks of a log."""
        log, place = self._keys(run_id)[0], 0
        while True:
            last = place + _CHUNKS_PER_READ - 1
            # Each call has ended before the variables change.
            chunks = await self.call(lambda client: client.lrange(log, place, last))  # noqa: B023
            if not place and not chunks:
                await self.requested(run_id)  # raises if there is no such run
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
        _raise_for(run_id, await self._run(scripts.DELETE, run_id, run_id, scripts.call_id()))

    async def events(self, run_id: str, after: int = 0) -> AsyncGenerator[bytes, None]:
        """Yield the lines of a run's events."""
        await self.requested(run_id)  # raises if there is no such run
        stream, last = self._keys(run_id)[6], f"({after}-0"
        while True:
            # Each call has ended before the variables change.
            entries = await self.call(
                lambda client: client.xrange(stream, last, count=_CHUNKS_PER_READ)  # noqa: B023
            )
            for _, fields in entries:
                yield fields[b"lines"]
            if len(entries) < _CHUNKS_PER_READ:
                return
            last = f"({entries[-1][0].decode()}"

    async def summary(self, run_id: str) -> RunSummary:
        """The summary of a run."""
        answer = await self._run(scripts.SUMMARY, run_id)
        _raise_for(run_id, answer)
        return scripts.summary(run_id, answer)

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
        found, wanted = list[RunSummary](), set(tags)
        async for run in self._all_summaries(since, before):
            if not wanted.issubset(run.tags):
                continue
            if not run.started or (status in (None, run.status) and name in (None, run.name)):
                found.append(run)
                if len(found) >= limit:
                    break
        return found

    async def changed(self, run_id: str, mark: object, seconds: float) -> object:
        """Wait until something was written of the run."""
        loop = asyncio.get_running_loop()
        state, until = self._keys(run_id)[2], loop.time() + seconds
        while loop.time() < until:
            changes = await self.call(lambda client: client.hget(state, "changes"))
            if (changes or b"") != mark:
                return changes or b""
            await asyncio.sleep(LOOK_EVERY)
        return mark

    async def request(self, run_id: str, request: Request) -> None:
        """Store a request."""
        _raise_for(run_id, await self._run(scripts.REQUEST, run_id, request))

    async def requested(self, run_id: str) -> str | None:
        """The request that was stored."""
        state = self._keys(run_id)[2]
        exists, request = await self.call(lambda client: client.hmget(state, "call", "request"))
        if exists is None:
            raise errors.not_found(run_id)
        return None if request is None else str(request.decode())

    async def aclose(self) -> None:
        """Close the connections of this event loop. Using the journal again opens new ones.

        Those of other loops are closed by calls there, or when ``asyncio.run`` ends there.
        """
        if (of_loop := self._of_loops.get(_here())) is not None:
            await of_loop.open.aclose()

    def _keys(self, run_id: str) -> list[bytes]:
        """Keys of the log, its lease, its state, the index, its counter and the log's deletion.

        Then of its events, and of the index by time.
        """
        parts = (
            *(f"log:{run_id}", f"lease:{run_id}", f"state:{run_id}", "runs", "count"),
            *(f"deleted:{run_id}", f"events:{run_id}", "started"),
        )
        return [encoded(f"{self.prefix}:{part}") for part in parts]

    async def _all_summaries(
        self, since: float | None, before: float | None
    ) -> AsyncGenerator[RunSummary, None]:
        index, by_time = self._keys("")[3], self._keys("")[7]
        least = "-inf" if since is None else since
        most = "+inf" if before is None else f"({before}"
        place = 0
        while True:
            # Each call has ended before the variables change.
            names = await self.call(
                lambda client: client.zrevrangebyscore(
                    by_time,
                    most,
                    least,
                    place,  # noqa: B023
                    _RUNS_PER_READ,
                )
            )
            for run in await self._summaries_of(names):
                yield run
            place += len(names)
            if len(names) < _RUNS_PER_READ:
                break
        if (since is None or since <= 0) and (before is None or before > 0):
            old = await self.call(lambda client: client.zdiff([index, by_time]))
            for run in await self._summaries_of([n for n in old[::-1] if is_run(decoded(n))]):
                yield run

    async def _summaries_of(self, names: Sequence[bytes]) -> list[RunSummary]:
        """The summaries of runs, except of those that were deleted just now."""
        run_ids = list(map(decoded, names))

        async def ask(client: Any) -> Any:
            async with client.pipeline(transaction=False) as pipeline:
                for run_id in run_ids:
                    keys = self._keys(run_id)
                    pipeline.eval(scripts.SUMMARY, len(keys), *keys)
                return await pipeline.execute()

        answers = await self.call(ask) if run_ids else []
        return [
            scripts.summary(run_id, answer)
            for run_id, answer in zip(run_ids, answers, strict=True)
            if answer[0] == scripts.DONE
        ]

    async def _run(self, script: str, run_id: str, *arguments: Any) -> list[Any]:
        keys = self._keys(run_id)
        values = [encoded(a) if isinstance(a, str) else a for a in arguments]
        locks = (await self._of_loop()).locks
        # One at a time: on several connections, or after outages, calls would overtake each other.
        async with locks.setdefault(run_id, asyncio.Lock()):
            answer: list[Any] = await self.call(
                lambda client: client.eval(script, len(keys), *keys, *values)
            )
        return answer

    async def call(self, call: Callable[[Any], Awaitable[Any]]) -> Any:
        """What ``call`` returns, given the client. It is called again during an outage."""
        of_loop = await self._of_loop()
        seconds = OUTAGE_TIMEOUT if self._has_answered else CONNECT_TIMEOUT

        async def in_turn() -> Any:
            async with of_loop.places:
                return await call(of_loop.client)

        try:
            answer = await retry_through_outage(
                in_turn, self._is_outage, "the journal cannot be reached", seconds
            )
        except self._errors as error:
            raise JournalError(
                f"the journal on Redis cannot be used: {type(error).__name__}: {error}; check the "
                "server and its URL"
            ) from error
        self._has_answered = True
        return answer

    async def _of_loop(self) -> _OfLoop:
        """The client of this process and event loop, as connections outlive neither."""
        here = _here()
        if (of_loop := self._of_loops.get(here)) is None:
            for process, loop in tuple(self._of_loops):
                if loop.is_closed():
                    self._of_loops.pop((process, loop), None)
            client = self._make_client()
            of_loop = self._of_loops[here] = _OfLoop(
                client,
                self._kept_open(client, here),
                # The client's own pool refuses a call for which it has no connection left.
                asyncio.Semaphore(self._most_connections),
            )
            await anext(of_loop.open)
        return of_loop

    async def _kept_open(self, client: Any, here: _Here) -> AsyncGenerator[None, None]:
        """Close the client when this is closed, as ``asyncio.run`` closes generators at its end."""
        try:
            yield
        finally:
            self._of_loops.pop(here, None)
            await client.aclose()


@dataclass
class _OfLoop:
    """What one event loop uses: a client, so many calls at once, and the locks of runs."""

    client: Any
    open: AsyncGenerator[None, None]
    places: asyncio.Semaphore
    locks: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)


_Here = tuple[int, asyncio.AbstractEventLoop]
"""A process and an event loop."""


def _here() -> _Here:
    return os.getpid(), asyncio.get_running_loop()


def _arguments(lease: Lease) -> tuple[str, int]:
    return lease.owner, max(1, round(lease.seconds * 1000))


def _raise_for(run_id: str, answer: list[Any]) -> None:
    """Raise the error that a script has returned."""
    if answer[0] == scripts.NOT_FOUND:
        raise errors.not_found(run_id)
    if answer[0] == scripts.REFUSED and len(answer) > 1:
        raise errors.locked(run_id, answer[1].decode(), answer[2] / 1000)
    if answer[0] == scripts.REFUSED:
        raise errors.taken_over(run_id)
