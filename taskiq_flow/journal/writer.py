"""Writes one run's log to a journal, in batches, and renews its lease."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from taskiq_flow.cleanup import end, to_the_end, was_cancelled
from taskiq_flow.errors import JournalError, RunError, RunLockedError, SerializationError, describe
from taskiq_flow.journal.event_batches import EventBatcher
from taskiq_flow.journal.lease import new_owner
from taskiq_flow.journal.packed import GraphText
from taskiq_flow.journal.protocol import EventBatch, Journal, Lease, stores_events
from taskiq_flow.journal.records import COMPLETED, ENDED, FAILED, REFERRED, SESSION, chunk, record
from taskiq_flow.journal.summary import Head
from taskiq_flow.previews import printable
from taskiq_flow.values.handle import ResultHandle
from taskiq_flow.values.stored import StoredValues

logger = logging.getLogger("taskiq_flow")

T = TypeVar("T")

MAX_CHUNK_BYTES = 16 * 1024 * 1024
"""Bytes of records in one chunk. A larger record has a chunk of its own."""

LEASE_PAUSE = 0.2
"""Seconds between two attempts to take a lease that another owner has."""

CLOSING_GRACE = 5.0
"""Seconds that a closing run waits for the last batch, and for the lease to be released."""


class LogWriter(Generic[T]):
    """Appends a run's records to its log, and delivers each pair once it is durable.

    Records gather while the previous batch is written, so the run never waits for the journal.
    ``values``: how values are written. ``initial``: the records that a new log begins with;
    ``None`` for a log that exists. ``head``: what its summary says of it. ``graph``: of runs of the
    same graph. ``batcher``: collects the run's events, unless the journal cannot.
    """

    def __init__(
        self,
        journal: Journal,
        run_id: str,
        values: StoredValues,
        initial: Sequence[bytes] | None = None,
        head: Head = Head(),  # noqa: B008 - it never changes
        graph: GraphText | None = None,
    ) -> None:
        self._journal = journal
        self._store = journal if stores_events(journal) else None
        self.batcher = (
            None
            if self._store is None
            else EventBatcher(run_id, head, self._wake_for_events, graph or GraphText())
        )
        self._run_id = run_id
        self.values = values
        self._lease = Lease(new_owner())
        self._has_lease = False
        self._is_new = initial is not None
        self._initial = list(initial or ())
        self._records: list[bytes] = []
        self._pairs: list[T] = []
        self._pairs_being_written: list[T] = []
        self._are_events_due = False
        self._is_writing = False
        self._writer: asyncio.Task[None] | None = None
        self._renewer: asyncio.Task[None] | None = None
        self._is_stopped = False
        self._deliver: Callable[[Sequence[T]], None]
        self._fail: Callable[[RunError], None]
        self._cancel: Callable[[], None]

    async def acquire(self, wait: float = 0.0) -> None:
        """Take the lease of an existing log. Raises what ``Journal.acquire`` does.

        ``wait``: seconds to wait for it while another owner has it.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + wait
        while True:
            try:
                await self._take_lease(self._journal.acquire(self._run_id, self._lease))
            except RunLockedError:
                if loop.time() >= until:
                    raise
                await asyncio.sleep(min(LEASE_PAUSE, until - loop.time()))
            else:
                break
        if self._store is not None and self.batcher is not None:
            self.batcher.go_on_after(await self._store.summary(self._run_id))

    @property
    def seq(self) -> int:
        """The number of the run's last event that the journal has, or that is to be written."""
        return 0 if self.batcher is None else self.batcher.seq

    async def release(self) -> None:
        """Release the lease, if this writer has it."""
        if not self._has_lease:
            return
        try:
            async with asyncio.timeout(CLOSING_GRACE):
                await self._journal.release(self._run_id, self._lease)
        except (Exception, asyncio.CancelledError) as error:  # the lease expires
            if was_cancelled():
                raise
            logger.warning(
                "the lease of run %r was not released: %s", self._run_id, describe(error)
            )

    def prepend(self, records: Iterable[bytes]) -> None:
        """Write these records together with the session, before it."""
        self._initial += records

    async def begin(self, session: str, task_suffix: str) -> None:
        """Create the log of a new run, or continue one whose lease was acquired.

        ``session``: the id under which this engine sends the run's tasks. It is written before
        anything is sent, so that an engine that resumes the run can revoke those tasks.
        ``task_suffix``: ends the ids of those tasks, so that it can look for their results.
        """
        started = record(SESSION, task_suffix, 0, session.encode())
        data = chunk([*self._initial, started])
        if self._store is not None and self.batcher is not None:
            write = self._store.create if self._is_new else self._store.append
            await self._take_lease(write(self._run_id, self._lease, data, self.batcher.first()))
        else:
            plain = self._journal.create if self._is_new else self._journal.append
            await self._take_lease(plain(self._run_id, self._lease, data))

    async def _take_lease(self, call: Coroutine[Any, Any, None]) -> None:
        """Await a call that takes the lease, also one that is cancelled: it may take it as well."""
        calling = asyncio.ensure_future(call)
        try:
            await asyncio.shield(calling)
        except asyncio.CancelledError as error:
            try:
                await to_the_end(asyncio.wait([calling], timeout=CLOSING_GRACE))
            finally:  # it may be cancelled once more
                calling.cancel()
                self._has_lease = calling.done() and not (
                    calling.cancelled() or calling.exception()
                )
            if not was_cancelled():
                raise _cannot_write(self._run_id, self._journal, error) from error
            raise
        self._has_lease = True

    def open(
        self,
        deliver: Callable[[Sequence[T]], None],
        fail: Callable[[RunError], None],
        cancel: Callable[[], None],
    ) -> None:
        """Begin to renew the lease. ``deliver``: called with pairs that are durable.

        ``fail``: called once, with ``JournalError`` or ``RunLockedError``, when the log cannot be
        written any more. Records that are not written by then are lost, and so are their pairs.
        ``cancel``: called when another process asks the run to stop.
        """
        self._cancel = cancel
        self._deliver = deliver
        self._fail = fail
        self._renewer = asyncio.get_running_loop().create_task(self._renew_lease())

    def completion(self, name: str, attempt: int, value: Any) -> bytes:
        """The record of a result. Raises ``SerializationError`` if it cannot be serialized."""
        if isinstance(value, ResultHandle):
            return record(REFERRED, name, attempt, value.reference.task_id.encode())
        try:
            return record(COMPLETED, name, attempt, self.values.dumps(value))
        except Exception as error:  # whatever a value or a serializer raises
            kind = type(value)
            raise SerializationError(
                f"node {name!r} returned a {kind.__module__}.{kind.__qualname__}, which the "
                f"journal's {type(self._journal.serializer).__name__} cannot write ({error}); "
                "return plain data (numbers, strings, lists, dicts, models), or give the journal "
                "a serializer that can",
                task_name=name,
                value_type=kind,
            ) from error

    def failure(
        self, name: str, attempt: int, error: BaseException, after: BaseException | None
    ) -> bytes:
        """The record of a node that has failed for good. ``after``: as of ``NodeFailed``."""
        return record(FAILED, name, attempt, printable(describe(error, after)).encode())

    def append(self, record: bytes) -> None:
        """Write a record with the next batch."""
        if not self._is_stopped:
            self._records.append(record)
            self._wake()

    def deliver_when_durable(self, pair: T) -> None:
        """Deliver a pair once all records appended so far are written."""
        if not self._is_stopped:
            self._pairs.append(pair)
            self._wake()

    @property
    def undelivered(self) -> int:
        """How many pairs have not been delivered yet."""
        return len(self._pairs) + len(self._pairs_being_written)

    def discard_pairs(self) -> None:
        """Deliver none of the pairs that are pending. Their records are written all the same."""
        self._pairs, self._pairs_being_written = [], []

    async def aclose(self, outcome: str) -> None:
        """Write the pending records, then release the lease. Takes a bounded time."""
        self._are_events_due = True
        self.append(record(ENDED, "", 0, outcome.encode()))
        if (writer := self._writer) is not None:
            await asyncio.wait([writer], timeout=CLOSING_GRACE)
            await end([writer], CLOSING_GRACE)  # has an effect only if the store hangs
        self._is_stopped = True
        if self._renewer is not None:
            await end([self._renewer], CLOSING_GRACE)
        await self.release()

    def _wake(self) -> None:
        if not self._is_writing and not self._is_stopped:
            self._is_writing = True  # first, as an eager task runs at once
            self._writer = asyncio.get_running_loop().create_task(self._write())

    def _wake_for_events(self) -> None:
        """Write events with the next batch. They wait for this, so that a batch has many."""
        self._are_events_due = True
        self._wake()

    async def _write(self) -> None:
        try:
            while (batch := self._next_batch()) or self._records or self._pairs:
                records, self._records = self._records, []
                self._pairs_being_written, self._pairs = self._pairs, []
                await self._append(records, batch)
                durable, self._pairs_being_written = self._pairs_being_written, []
                if durable:
                    self._deliver(durable)
        except (Exception, asyncio.CancelledError) as error:  # whatever a journal raises
            if was_cancelled():
                raise
            self._stop(error)
        finally:
            self._is_writing = False

    def _next_batch(self) -> EventBatch | None:
        if self.batcher is None or self._is_stopped or not self._are_events_due:
            return None
        self._are_events_due = False
        return self.batcher.next()

    async def _append(self, records: Sequence[bytes], batch: EventBatch | None) -> None:
        """Append records, and events with the last of them, which the events tell of."""
        chunks = [chunk(part) for part in _parts(records)]
        last = chunks.pop() if chunks and batch is not None else None
        for data in chunks:
            await self._journal.append(self._run_id, self._lease, data)
        if batch is not None and self._store is not None:
            await self._store.append(self._run_id, self._lease, last, batch)

    async def _renew_lease(self) -> None:
        """Renew the lease each quarter of it, and look for requests twice as often."""
        is_due = False
        while not was_cancelled():  # a client may have swallowed it
            await asyncio.sleep(self._lease.seconds / 8)
            try:
                if is_due:
                    await self._journal.renew(self._run_id, self._lease)
                is_due = not is_due
                if self._store is not None and await self._store.requested(self._run_id):
                    self._cancel()
            except RunLockedError as error:
                self._stop(error)
                return
            except (Exception, asyncio.CancelledError) as error:  # the next batch fails as well
                if was_cancelled():
                    raise
                logger.warning(
                    "the lease of run %r was not renewed: %s", self._run_id, describe(error)
                )

    def _stop(self, error: BaseException) -> None:
        if self._is_stopped:
            return
        self._is_stopped = True
        self._records = []
        self.discard_pairs()
        if not isinstance(error, RunError):
            error = _cannot_write(self._run_id, self._journal, error)
        self._fail(error)


def _parts(records: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Split records into parts of at most ``MAX_CHUNK_BYTES``."""
    start = size = 0
    for place, record_ in enumerate(records):
        if size and size + len(record_) > MAX_CHUNK_BYTES:
            yield records[start:place]
            start, size = place, 0
        size += len(record_)
    if size:
        yield records[start:]


def _cannot_write(run_id: str, journal: Journal, cause: BaseException) -> JournalError:
    error = JournalError(
        f"run {run_id!r} cannot be written to {type(journal).__name__}: {describe(cause)}; fix "
        "that, then resume the run"
    )
    error.__cause__ = cause
    return error
