"""Results that are kept and taken again, in a journal: each key has a log, and its lease a claim.

Who has the lease of a key's log computes the result; others who want it wait for that.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections.abc import Coroutine, Hashable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from taskiq_flow.cleanup import until_ended
from taskiq_flow.errors import JournalError, RunLockedError, RunNotFoundError
from taskiq_flow.journal.lease import new_owner
from taskiq_flow.journal.protocol import LEASE_SECONDS, Journal, Lease
from taskiq_flow.journal.records import COMPLETED, chunk, dumped, read_chunk, record

logger = logging.getLogger("taskiq_flow")

PREFIX = "taskiq_flow cache "
"""What the names of the logs begin with that hold results, and no runs."""

CLOSING_GRACE = 5.0
"""Seconds that the journal is given to take what a run leaves, when it is closed."""

_TIME = struct.Struct(">d")  # seconds since 1970, as of the clock of whoever has kept a result


@dataclass(frozen=True, slots=True)
class Hit:
    """A result that was kept."""

    value: Any


@dataclass(frozen=True, slots=True)
class Claim:
    """The duty to compute a result, which others wait for."""

    key: str
    lease: Lease


class CachedResults:
    """What one run takes from a cache and gives to it. ``journal``: where results are kept."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._claims: dict[Hashable, Claim] = {}
        self._keeper: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def look_up(self, key: str, ttl: float | None, holder: Hashable) -> Hit | Claim | None:
        """A result that is at most ``ttl`` seconds old; or the claim on it, now ``holder``'s.

        ``None`` while another has the claim. Raises ``JournalError`` if the journal cannot tell.
        """
        name, lease = PREFIX + key, Lease(new_owner())
        try:
            if (hit := await self._read(name, ttl)) is not None:
                return hit
            await self._journal.acquire(name, lease)
        except RunLockedError:
            return None
        except RunNotFoundError:
            try:
                await self._journal.create(name, lease, chunk(()))
            except JournalError:
                if name in await self._journal.run_ids():  # another was faster
                    return None
                raise
        else:
            hit = await self._read(name, ttl)  # it may have come in between
            if hit is not None:
                await self._journal.release(name, lease)
                return hit
        claim = self._claims[holder] = Claim(key, lease)
        if self._keeper is None:
            self._keeper = asyncio.get_running_loop().create_task(self._keep_claims())
        return claim

    def keep(self, holder: Hashable, value: Any) -> None:
        """Keep a result that was claimed, and let others have it.

        Raises whatever the journal's serializer does for one that it cannot carry; the claim stays.
        """
        claim = self._claims[holder]
        data = _TIME.pack(time.time()) + dumped(self._journal.serializer, value)
        del self._claims[holder]
        self._start(self._write(claim, chunk([record(COMPLETED, "", 0, data)])))

    def release(self, holder: Hashable) -> None:
        """Let others compute what was claimed, if it was and is not kept."""
        claim = self._claims.pop(holder, None)
        if claim is not None:
            self._start(self._write(claim, None))

    async def aclose(self) -> None:
        """Release all claims, and wait until the journal has taken everything, for a while."""
        for holder in tuple(self._claims):
            self.release(holder)
        if self._keeper is not None:
            self._keeper.cancel()
            await until_ended([self._keeper], CLOSING_GRACE)
        await until_ended(self._tasks, CLOSING_GRACE)

    async def _read(self, name: str, ttl: float | None) -> Hit | None:
        found: bytes | None = None
        async with aclosing(self._journal.read(name)) as chunks:
            async for data in chunks:
                for entry in read_chunk(name, data):
                    found = entry.data
        if found is None:
            return None
        age = time.time() - _TIME.unpack_from(found)[0]
        if ttl is not None and age > ttl:
            return None
        return Hit(self._journal.serializer.loadb(found[_TIME.size :]))

    async def _write(self, claim: Claim, data: bytes | None) -> None:
        name = PREFIX + claim.key
        try:
            if data is not None:
                await self._journal.append(name, claim.lease, data)
            await self._journal.release(name, claim.lease)
        except Exception as error:  # whatever a journal raises: the node has its result
            logger.warning("a result was not kept in the cache: %r", error)

    async def _keep_claims(self) -> None:
        while True:
            await asyncio.sleep(LEASE_SECONDS / 4)
            for claim in tuple(self._claims.values()):
                try:
                    await self._journal.renew(PREFIX + claim.key, claim.lease)
                except Exception as error:  # it is computed twice, at worst
                    logger.warning("a claim on a cached result was not renewed: %r", error)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
