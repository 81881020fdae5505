"""Cached results. All runs of one event loop share them.

The first node that wants a key asks the store, and computes the result if it is not there. Other
nodes of this process wait for it on one future. One loop polls the keys that other processes
compute.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet, WeakValueDictionary

from taskiq.abc.serializer import TaskiqSerializer

from taskiq_flow.cache.store import CacheStore
from taskiq_flow.cleanup import until_ended
from taskiq_flow.journal.lease import new_owner
from taskiq_flow.journal.records import serialize
from taskiq_flow.reconnect import backoff_delays

logger = logging.getLogger("taskiq_flow")

CLAIM_SECONDS = 10.0
"""Seconds after which a claim ends whose process was killed."""

STORE_PATIENCE = 5.0
"""Seconds that the store may take to answer before a result is computed without it."""

CLOSING_GRACE = 5.0
"""Seconds that a run which is closed waits for the store to take its results."""

_PAUSES = (0.05, 0.5)  # seconds between two polls of other processes' keys: the first, the most

_TIME = struct.Struct(">d")  # stands before each value: when it was stored, in seconds since 1970


@dataclass(frozen=True, slots=True)
class Hit:
    """A cached result."""

    value: Any


@dataclass(frozen=True, slots=True)
class Claim:
    """The caller has to compute the result. Others wait for it."""

    key: str


@dataclass(frozen=True, slots=True, eq=False)
class PendingResult:
    """Another node computes the result. Call ``look_up`` again when ``future`` is done.

    The future has the encoded result, or ``None`` if there is none.
    """

    future: asyncio.Future[bytes | None]


class ResultCache:
    """The results in one store. ``serializer`` encodes the values."""

    def __init__(self, store: CacheStore, serializer: TaskiqSerializer) -> None:
        self._store = store
        self._serializer = serializer
        self._loop = asyncio.get_running_loop()
        self._owner = new_owner()
        self._wanted: dict[str, PendingResult] = {}  # by a node of this process
        self._claims: set[str] = set()
        self._elsewhere: set[str] = set()  # keys that other processes compute
        self._renewer: asyncio.Task[None] | None = None
        self._poller: asyncio.Task[None] | None = None
        self._writes: set[asyncio.Task[None]] = set()
        self._away_until = 0.0
        self._unreadable: set[str] = set()  # keys of which that was said

    @staticmethod
    def of(store: CacheStore, serializer: TaskiqSerializer) -> ResultCache:
        """The instance that all runs with this store and serializer share on this event loop."""
        key = id(asyncio.get_running_loop()), id(store), id(serializer)
        cache = _shared.get(key)
        if cache is None:
            cache = _shared[key] = ResultCache(store, serializer)
        return cache

    async def look_up(
        self, key: str, ttl: float | None, waited_for: PendingResult | None = None
    ) -> Hit | Claim | PendingResult | None:
        """Get a result that is at most ``ttl`` seconds old, or say who computes it.

        ``Claim``: the caller computes the result, and then calls ``put`` or ``release``.
        ``PendingResult``: another node computes it. ``None``: the caller computes it without the
        cache, which does not answer. ``waited_for``: what an earlier call has returned.
        """
        pending = self._wanted.get(key)
        is_written = pending is not None and pending.future.done()  # the store is taking it
        computed = pending if is_written else waited_for
        if computed and (hit := self._fresh(key, computed.future.result(), ttl)) is not None:
            return hit
        if pending is not None:
            return None if is_written else pending
        if self._is_away:
            return None
        pending = self._wanted[key] = PendingResult(self._loop.create_future())
        found: Hit | Claim | PendingResult | None = None
        try:
            async with asyncio.timeout(STORE_PATIENCE):
                found = await self._ask(key, ttl, pending)
            _away.discard(self._store)
        except Exception as error:  # whatever a store raises, or how long it takes
            self._note_away(error)
        finally:
            if not isinstance(found, (Claim, PendingResult)):
                self._resolve(key, None)
        return found

    def put(self, claim: Claim, value: Any, ttl: float | None) -> None:
        """Store a claimed result, and give it to the nodes that wait for it.

        Raises what the serializer raises for a value that it cannot encode; the claim stays.
        """
        data = _TIME.pack(time.time()) + serialize(self._serializer, value)
        self._wanted[claim.key].future.set_result(data)
        self._start(self._write(claim.key, data, ttl))

    def release(self, claim: Claim) -> None:
        """Give up a claim, so that another node computes the result."""
        self._resolve(claim.key, None)
        self._start(self._give_back(claim.key))

    async def aclose(self) -> None:
        """Wait until the store has taken all results, for at most ``CLOSING_GRACE`` seconds."""
        await until_ended(self._writes, CLOSING_GRACE)

    async def _ask(
        self, key: str, ttl: float | None, pending: PendingResult
    ) -> Hit | Claim | PendingResult:
        if (hit := self._fresh(key, await self._store.get(key), ttl)) is not None:
            return hit
        if not await self._store.claim(key, self._owner, CLAIM_SECONDS):
            self._elsewhere.add(key)
            if self._poller is None:
                self._poller = self._loop.create_task(self._poll())
            return pending
        # It may have been kept in between.
        if (hit := self._fresh(key, await self._store.get(key), ttl)) is not None:
            self._start(self._give_back(key))
            return hit
        self._claims.add(key)
        if self._renewer is None:
            self._renewer = self._loop.create_task(self._renew_claims())
        return Claim(key)

    def _fresh(self, key: str, data: bytes | None, ttl: float | None) -> Hit | None:
        """The decoded result, if it can be decoded and is not too old."""
        if data is None:
            return None
        try:
            age = time.time() - _TIME.unpack_from(data)[0]
            if ttl is not None and age > ttl:
                return None
            return Hit(self._serializer.loadb(data[_TIME.size :]))
        except Exception as error:  # of a damaged entry, which is computed and written anew
            if key not in self._unreadable:
                self._unreadable.add(key)
                logger.warning("a cached result cannot be read: %r; it is computed anew", error)
            return None

    def _resolve(self, key: str, data: bytes | None) -> None:
        """Have the nodes that wait for a key call ``look_up`` again."""
        self._elsewhere.discard(key)
        pending = self._wanted.pop(key, None)
        if pending is not None and not pending.future.done():
            pending.future.set_result(data)

    async def _write(self, key: str, data: bytes, ttl: float | None) -> None:
        try:
            async with asyncio.timeout(STORE_PATIENCE):
                await self._store.put(key, data, ttl)
        except Exception as error:  # whatever a store raises: the node has its result
            self._note_away(error)
        self._resolve(key, data)
        await self._give_back(key)

    async def _give_back(self, key: str) -> None:
        self._claims.discard(key)
        if not self._claims and self._renewer is not None:
            self._renewer.cancel()
            self._renewer = None
        try:
            async with asyncio.timeout(STORE_PATIENCE):
                await self._store.release(key, self._owner)
        except Exception as error:  # the claim ends by itself
            self._note_away(error)

    async def _renew_claims(self) -> None:
        while True:
            await asyncio.sleep(CLAIM_SECONDS / 4)
            try:
                async with asyncio.timeout(STORE_PATIENCE):
                    for key in tuple(self._claims):
                        await self._store.claim(key, self._owner, CLAIM_SECONDS)
            except Exception as error:  # they are computed twice, at worst
                self._note_away(error)

    async def _poll(self) -> None:
        """Poll the keys that other processes compute, until there are none."""
        pauses = backoff_delays(*_PAUSES)
        while self._elsewhere:
            await asyncio.sleep(next(pauses))
            for key in tuple(self._elsewhere):
                data, is_free = None, True
                if not self._is_away:  # else it is computed without the store
                    try:
                        async with asyncio.timeout(STORE_PATIENCE):
                            is_free = await self._store.claim(key, self._owner, CLAIM_SECONDS)
                            if is_free:  # it is kept by now, or nobody computes it
                                data = await self._store.get(key)
                                await self._store.release(key, self._owner)
                    except Exception as error:  # whatever a store raises
                        self._note_away(error)
                if is_free:
                    self._resolve(key, data)
        self._poller = None

    @property
    def _is_away(self) -> bool:
        return self._loop.time() < self._away_until

    def _note_away(self, error: Exception) -> None:
        """Warn once, and leave the store alone for ``STORE_PATIENCE`` seconds."""
        if self._store not in _away:
            _away.add(self._store)
            logger.warning("the cache cannot be used, and results are computed anew: %r", error)
        self._away_until = self._loop.time() + STORE_PATIENCE

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)


_away: WeakSet[CacheStore] = WeakSet()
"""Stores of which it was said that they do not answer."""

_shared: WeakValueDictionary[tuple[int, int, int], ResultCache] = WeakValueDictionary()
