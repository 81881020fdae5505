"""Cached results. All runs of one event loop share them.

The first node that wants a key asks the store, and computes the result if it is not there. Other
nodes of this process wait for it on one future. One loop polls the keys that other processes
compute.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakSet, WeakValueDictionary

from taskiq_flow.cache.store import CacheStore
from taskiq_flow.cleanup import until_ended, was_cancelled
from taskiq_flow.errors import describe
from taskiq_flow.journal.lease import new_owner
from taskiq_flow.reconnect import backoff_delays
from taskiq_flow.values.stored import StoredValues

T = TypeVar("T")

logger = logging.getLogger("taskiq_flow")

CLAIM_SECONDS = 10.0
"""Seconds after which a claim ends whose process was killed."""

STORE_PATIENCE = 5.0
"""Seconds that the store may take to answer before a result is computed without it."""

CLOSING_GRACE = 5.0
"""Seconds that a run which is closed waits for the store to take its results."""

CLOCK_TOLERANCE = 10.0
"""Seconds by which a result may come from the future: clocks of machines differ a little."""

_PAUSES = (0.05, 0.5)  # seconds between two polls of other processes' keys: the first, the most

_TIME = struct.Struct(">d")  # stands before each value: when it was stored, in seconds since 1970


@dataclass(frozen=True, slots=True)
class Hit:
    """A cached result."""

    value: Any


@dataclass(frozen=True, slots=True)
class Claim:
    """The caller must compute the result. Other nodes wait for it."""

    key: str


class PendingResult:
    """Another node computes the result. Call ``look_up`` again when ``wait`` says so."""

    __slots__ = ("future", "waiters")

    def __init__(self) -> None:
        self.future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self.waiters = 0  # callbacks of the future, while it is not done

    def wait(self, callback: Callable[[object], None]) -> None:
        """Call ``callback`` soon after the result is there, or is known not to come."""
        self.waiters += 1
        self.future.add_done_callback(callback)

    def leave(self, callback: Callable[[object], None]) -> None:
        """Wait no longer."""
        self.waiters -= self.future.remove_done_callback(callback)


class ResultCache:
    """The cached results in one store, as bytes. Its users encode and decode them."""

    def __init__(self, store: CacheStore) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._owner = new_owner()
        self._wanted: dict[str, PendingResult] = {}  # by a node of this process
        self._claims: set[str] = set()
        self._elsewhere: set[str] = set()  # keys that other processes compute
        self._renewer: asyncio.Task[None] | None = None
        self._poller: asyncio.Task[None] | None = None
        self._stop_polling = asyncio.Event()
        self._writes: set[asyncio.Task[None]] = set()
        self._ask_again_at = 0.0
        self._logged_unreadable: set[str] = set()  # keys

    @staticmethod
    def of(store: CacheStore) -> ResultCache:
        """The instance that all runs with this store share on this event loop."""
        key = id(asyncio.get_running_loop()), id(store)
        cache = _shared.get(key)
        if cache is None:
            cache = _shared[key] = ResultCache(store)
        return cache

    async def look_up(
        self,
        key: str,
        ttl: float | None,
        convert: Callable[[bytes], Any],
        waited_for: PendingResult | None = None,
    ) -> Hit | Claim | PendingResult | None:
        """Get a result that is at most ``ttl`` seconds old, or say who computes it.

        ``Claim``: the caller computes the result, and then calls ``put`` or ``release``.
        ``PendingResult``: another node computes it. ``None``: the caller computes it without the
        cache, which does not answer. ``convert``: makes the value of the bytes; what it refuses
        by raising is computed anew. ``waited_for``: the ``PendingResult`` that the node has waited
        for.
        """
        pending = self._wanted.get(key)
        is_computed = pending is not None and pending.future.done()  # and being stored
        computed = pending if is_computed else waited_for
        if computed and (hit := self._fresh(key, computed.future.result(), ttl, convert)):
            return hit
        if pending is not None:
            return None if is_computed else pending
        if self._is_away:
            return None
        pending = self._wanted[key] = PendingResult()
        found: Hit | Claim | PendingResult | None = None
        try:
            found = await self._call(self._ask(key, ttl, convert, pending))
        finally:
            if not isinstance(found, (Claim, PendingResult)):
                self._resolve(key, None)
        if found is not None:
            _warned_of.discard(self._store)
        return found

    def put(self, claim: Claim, content: bytes, ttl: float | None) -> None:
        """Store a claimed result, and give it to the nodes that wait for it."""
        data = _TIME.pack(time.time()) + content
        self._wanted[claim.key].future.set_result(data)
        self._start(self._write(claim.key, data, ttl))

    def release(self, claim: Claim) -> None:
        """Give up a claim, so that another node computes the result."""
        self._resolve(claim.key, None)
        self._start(self._give_back(claim.key))

    async def aclose(self) -> None:
        """Wait until the store has taken all results, for at most ``CLOSING_GRACE`` seconds."""
        await until_ended(self._writes, CLOSING_GRACE)
        is_wanted = any(self._wanted[key].waiters for key in self._elsewhere)
        if self._poller is not None and not is_wanted:
            self._stop_polling.set()  # it is not cancelled: it may just have claimed a key
            await until_ended([self._poller], CLOSING_GRACE)

    async def _ask(
        self, key: str, ttl: float | None, convert: Callable[[bytes], Any], pending: PendingResult
    ) -> Hit | Claim | PendingResult:
        if hit := self._fresh(key, await self._store.get(key), ttl, convert):
            return hit
        if not await self._store.claim(key, self._owner, CLAIM_SECONDS):
            self._elsewhere.add(key)
            if self._poller is None or self._poller.done():
                self._start_poller()
            return pending
        # Another process may have stored it before the claim was ours.
        if hit := self._fresh(key, await self._store.get(key), ttl, convert):
            self._start(self._give_back(key))
            return hit
        self._claims.add(key)
        if self._renewer is None:
            self._renewer = self._loop.create_task(self._renew_claims())
        return Claim(key)

    def _fresh(
        self, key: str, data: bytes | None, ttl: float | None, convert: Callable[[bytes], Any]
    ) -> Hit | None:
        """The decoded result, if it can be decoded and is not too old."""
        if data is None:
            return None
        try:
            age = time.time() - _TIME.unpack_from(data)[0]
            if ttl is not None and not -CLOCK_TOLERANCE <= age <= ttl:
                return None
            return Hit(convert(data[_TIME.size :]))
        except Exception as error:  # of a damaged entry, or of a type that was changed since
            if key not in self._logged_unreadable:
                self._logged_unreadable.add(key)
                logger.warning(
                    "a cached result cannot be read: %s; it is computed anew", describe(error)
                )
            return None

    def _resolve(self, key: str, data: bytes | None) -> None:
        """Have the nodes that wait for a key call ``look_up`` again."""
        self._elsewhere.discard(key)
        pending = self._wanted.pop(key, None)
        if pending is not None and not pending.future.done():
            pending.future.set_result(data)

    def _drop_unwanted(self) -> None:
        """Drop the keys of other processes for which no node of this one waits any more."""
        for key in tuple(self._elsewhere):
            if not self._wanted[key].waiters:
                self._resolve(key, None)

    async def _write(self, key: str, data: bytes, ttl: float | None) -> None:
        await self._call(self._store.put(key, data, ttl))
        self._resolve(key, data)
        await self._give_back(key)

    async def _give_back(self, key: str) -> None:
        self._claims.discard(key)
        if not self._claims and self._renewer is not None:
            self._renewer.cancel()
            self._renewer = None
        await self._call(self._store.release(key, self._owner))

    async def _renew_claims(self) -> None:
        async def renew() -> None:
            for key in tuple(self._claims):
                if key in self._claims:
                    await self._store.claim(key, self._owner, CLAIM_SECONDS)
                    if key not in self._claims:  # it was given back meanwhile
                        await self._store.release(key, self._owner)

        while True:
            await asyncio.sleep(CLAIM_SECONDS / 4)
            await self._call(renew())

    def _start_poller(self) -> None:
        self._stop_polling.clear()
        self._poller = self._loop.create_task(self._poll())

    async def _poll(self) -> None:
        """Poll the keys that other processes compute, until there are none or ``aclose`` stops it.

        If nodes began to wait after that, a new poller is started.
        """
        pauses = backoff_delays(*_PAUSES)
        while self._elsewhere and not self._stop_polling.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(next(pauses)):
                    await self._stop_polling.wait()
            self._drop_unwanted()
            for key in tuple(self._elsewhere):
                if self._stop_polling.is_set():
                    break
                # If the store fails, the key counts as free: its result is computed here.
                found = (True, None) if self._is_away else await self._call(self._take_if_free(key))
                is_free, data = found or (True, None)
                if is_free:
                    self._resolve(key, data)
        self._drop_unwanted()
        self._poller = None
        if self._elsewhere:
            self._start_poller()

    async def _take_if_free(self, key: str) -> tuple[bool, bytes | None]:
        """Whether no other process has the claim of a key, and the result if there is one."""
        if not await self._store.claim(key, self._owner, CLAIM_SECONDS):
            return False, None
        data = await self._store.get(key)
        await self._store.release(key, self._owner)
        return True, data

    async def _call(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Await calls of the store, for a bounded time. If they fail: ``None``, and a warning."""
        try:
            async with asyncio.timeout(STORE_PATIENCE):
                return await work
        except (Exception, asyncio.CancelledError) as error:  # whatever a store raises
            if was_cancelled():
                raise
            self._note_away(error)
            return None

    @property
    def _is_away(self) -> bool:
        return self._loop.time() < self._ask_again_at

    def _note_away(self, error: BaseException) -> None:
        """Warn once, and leave the store alone for ``STORE_PATIENCE`` seconds."""
        if self._store not in _warned_of:
            _warned_of.add(self._store)
            logger.warning(
                "the cache cannot be used, and results are computed anew: %s", describe(error)
            )
        self._ask_again_at = self._loop.time() + STORE_PATIENCE

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)


class ValueCache:
    """The cached results of one engine, as values. Its methods are those of ``ResultCache``."""

    def __init__(self, results: ResultCache, values: StoredValues) -> None:
        self._results = results
        self._values = values
        self.release = results.release
        self.aclose = results.aclose

    async def look_up(
        self,
        key: str,
        ttl: float | None,
        convert: Callable[[Any], Any],
        waited_for: PendingResult | None = None,
    ) -> Hit | Claim | PendingResult | None:
        """As ``ResultCache.look_up``. ``convert``: converts a value that was read."""

        def read(content: bytes) -> Any:
            return convert(self._values.loads(content))

        return await self._results.look_up(key, ttl, read, waited_for)

    def put(self, claim: Claim, value: Any, ttl: float | None) -> None:
        """As ``ResultCache.put``. Raises what the codec or the serializer raises."""
        self._results.put(claim, self._values.dumps(value), ttl)


_warned_of: WeakSet[CacheStore] = WeakSet()
"""Stores that did not answer when they were asked last. A warning has said so."""

_shared: WeakValueDictionary[tuple[int, int], ResultCache] = WeakValueDictionary()
