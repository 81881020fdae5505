"""One run's log in a journal: written in batches, under a lease that is kept."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from taskiq_flow.cleanup import to_the_end, until_ended
from taskiq_flow.errors import JournalError, RunError, RunLockedError, SerializationError, describe
from taskiq_flow.journal.lease import new_owner
from taskiq_flow.journal.protocol import Journal, Lease
from taskiq_flow.journal.records import (
    COMPLETED,
    ENDED,
    FAILED,
    REFERRED,
    SESSION,
    chunk,
    record,
    serialize,
)
from taskiq_flow.values.handle import ResultHandle

logger = logging.getLogger("taskiq_flow")

T = TypeVar("T")

MOST_BYTES = 16 * 1024 * 1024
"""Bytes that are gathered into one chunk, unless a single record is larger."""

CLOSING_GRACE = 5.0
"""Seconds that the last batch is given, when a run is closed, to be written."""


class LogWriter(Generic[T]):
    """What a run notes, and the pairs that its reader may have once all noted before is safe.

    While one batch is written the next one gathers, so that the run never waits for the journal.
    ``first``: the records that the log of a new run begins with; ``None`` for one that is there.
    """

    def __init__(self, journal: Journal, run_id: str, first: Sequence[bytes] | None = None) -> None:
        self._journal = journal
        self._run_id = run_id
        self._lease = Lease(new_owner())
        self._is_held = False
        self._is_new = first is not None
        self._first = list(first or ())
        self._records: list[bytes] = []
        self._pairs: list[T] = []
        self._being_written: list[T] = []
        self._is_writing = False
        self._writer: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._has_failed = False
        self._release_pairs: Callable[[Sequence[T]], None]
        self._fail: Callable[[RunError], None]

    async def acquire(self) -> None:
        """Take the lease of a log that is there; raises what ``Journal.acquire`` does."""
        await self._hold(self._journal.acquire(self._run_id, self._lease))

    async def release(self) -> None:
        """Give the lease back, if one has it."""
        if not self._is_held:
            return
        try:
            async with asyncio.timeout(CLOSING_GRACE):
                await self._journal.release(self._run_id, self._lease)
        except (Exception, TimeoutError) as error:  # the lease ends by itself
            logger.warning("the lease of run %r was not given back: %r", self._run_id, error)

    def prepend(self, records: Iterable[bytes]) -> None:
        """Have records written with the session."""
        self._first += records

    async def begin(self, session: str) -> None:
        """Begin the log of a new run, or go on with one whose lease was acquired.

        ``session``: how workers know this engine's part of the run. It is noted before anything is
        sent, so that whoever goes on can have them drop all of that.
        """
        write = self._journal.create if self._is_new else self._journal.append
        noted = record(SESSION, "", 0, session.encode())
        await self._hold(write(self._run_id, self._lease, chunk([*self._first, noted])))

    async def _hold(self, call: Coroutine[Any, Any, None]) -> None:
        """Have the lease once the journal's call has returned, also if that is cancelled first."""
        calling = asyncio.ensure_future(call)
        try:
            await asyncio.shield(calling)
        except asyncio.CancelledError:
            await to_the_end(asyncio.wait([calling], timeout=CLOSING_GRACE))
            self._is_held = not calling.cancel() and not calling.exception()
            raise
        self._is_held = True

    def open(
        self, release_pairs: Callable[[Sequence[T]], None], fail: Callable[[RunError], None]
    ) -> None:
        """Keep the lease from now on. ``release_pairs``: takes pairs that are safe to be read.

        ``fail``: told once, with ``JournalError`` or ``RunLockedError``, when nothing can be kept
        any more; what was noted and not written is lost then, and so are its pairs.
        """
        self._release_pairs = release_pairs
        self._fail = fail
        self._keeper = asyncio.get_running_loop().create_task(self._keep_lease())

    def completion(self, name: str, attempt: int, value: Any) -> bytes:
        """The record of a result. Raises ``SerializationError`` if it cannot be kept."""
        if isinstance(value, ResultHandle):
            return record(REFERRED, name, attempt, value.reference.task_id.encode())
        try:
            return record(COMPLETED, name, attempt, serialize(self._journal.serializer, value))
        except Exception as error:  # whatever a value or a serializer raises
            kind = type(value)
            raise SerializationError(
                f"node {name!r} returned a {kind.__module__}.{kind.__qualname__}, which the "
                f"journal's {type(self._journal.serializer).__name__} cannot keep ({error}); "
                "return plain data (numbers, strings, lists, dicts, models), or give the journal "
                "a serializer that can",
                task_name=name,
                value_type=kind,
            ) from error

    def failure(self, name: str, attempt: int, error: BaseException) -> bytes:
        """The record of a node that has failed for good."""
        return record(FAILED, name, attempt, describe(error).encode())

    def append(self, record: bytes) -> None:
        """Have a record written."""
        if not self._has_failed:
            self._records.append(record)
            self._wake()

    def deliver_when_durable(self, pair: T) -> None:
        """Have a pair released once all that was noted so far is safe."""
        if not self._has_failed:
            self._pairs.append(pair)
            self._wake()

    @property
    def undelivered(self) -> int:
        """How many pairs are still to be released."""
        return len(self._pairs) + len(self._being_written)

    def discard_pairs(self) -> None:
        """Nobody will read them any more. What was noted is written all the same."""
        self._pairs, self._being_written = [], []

    async def aclose(self, outcome: str) -> None:
        """Write what was noted, and give the lease back; takes a bounded time."""
        self.append(record(ENDED, "", 0, outcome.encode()))
        if (writer := self._writer) is not None:
            await asyncio.wait([writer], timeout=CLOSING_GRACE)
            writer.cancel()  # a store that hangs has had its time
            await until_ended([writer], CLOSING_GRACE)
        if self._keeper is not None:
            self._keeper.cancel()
            await until_ended([self._keeper], CLOSING_GRACE)
        await self.release()

    def _wake(self) -> None:
        if not self._is_writing:
            self._is_writing = True  # before the task begins: it may do so at once
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        try:
            while self._records or self._pairs:
                records, self._records = self._records, []
                self._being_written, self._pairs = self._pairs, []
                for part in _parts(records):
                    await self._journal.append(self._run_id, self._lease, chunk(part))
                safe, self._being_written = self._being_written, []
                if safe:
                    self._release_pairs(safe)
        except Exception as error:  # whatever a journal raises: nothing more can be kept
            self._give_up(error)
        finally:
            self._is_writing = False

    async def _keep_lease(self) -> None:
        while True:
            await asyncio.sleep(self._lease.seconds / 4)
            try:
                await self._journal.renew(self._run_id, self._lease)
            except RunLockedError as error:
                self._give_up(error)
                return
            except Exception as error:  # the store is away: the next batch will tell
                logger.warning("the lease of run %r was not renewed: %r", self._run_id, error)

    def _give_up(self, error: Exception) -> None:
        if self._has_failed:
            return
        self._has_failed = True
        self._records = []
        self.discard_pairs()
        if not isinstance(error, RunError):
            error = _explained(self._run_id, self._journal, error)
        self._fail(error)


def _parts(records: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Records in parts that a store takes at once, in order."""
    start = size = 0
    for place, record_ in enumerate(records):
        if size and size + len(record_) > MOST_BYTES:
            yield records[start:place]
            start, size = place, 0
        size += len(record_)
    if size:
        yield records[start:]


def _explained(run_id: str, journal: Journal, cause: Exception) -> JournalError:
    error = JournalError(
        f"run {run_id!r} cannot be kept in {type(journal).__name__}: {cause!r}; see to that, then "
        "resume the run"
    )
    error.__cause__ = cause
    return error
