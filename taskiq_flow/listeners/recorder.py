"""Records runs in a journal: their events, without the values that a resumed run would need."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Sequence

from taskiq_flow.errors import (
    ConfigurationError,
    JournalError,
    RunLockedError,
    RunNotFoundError,
    describe,
)
from taskiq_flow.events import Event, RunFinished
from taskiq_flow.journal.event_batches import EventBatcher
from taskiq_flow.journal.given import as_journal
from taskiq_flow.journal.lease import new_owner
from taskiq_flow.journal.packed import GraphText
from taskiq_flow.journal.protocol import EventBatch, EventJournal, Journal, Lease, stores_events
from taskiq_flow.journal.summary import Head
from taskiq_flow.notes import Notes, notes_of
from taskiq_flow.suggestions import suggests_keywords

logger = logging.getLogger("taskiq_flow")

FLUSH_EVERY = 0.05
"""Seconds between two batches."""

MOST_EVENTS = 10_000
"""Events that are held while the journal is slow. Then the oldest ones are left out."""


@suggests_keywords()
class Recorder:
    """A listener that records runs in a journal for ``RunReader``, as history.

    Of values, it writes what ``to_dict`` shows of them, so its runs cannot be resumed. It does its
    best and never fails a run: if the journal fails, the log has one line, and the rest of that run
    is not recorded. ``journal``: an object, a path or an address, as the engine takes it. ``name``:
    of the graph, for lists of runs. A run that was recorded under the same run id is replaced.

    Raises ``ConfigurationError`` for a journal without the methods of ``EventJournal``.

    >>> journal = MemoryJournal()
    >>> dag = DAGBuilder().node(abs, inputs=["number"]).build()
    >>> engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[Recorder(journal)])
    >>> engine.execute_sync({"number": -1}, run_id="r1")
    {'abs': 1}
    >>> asyncio.run(RunReader(journal).view("r1")).nodes["abs"].preview["text"]
    '1'
    """

    def __init__(
        self, journal: Journal | str | os.PathLike[str], *, name: str | None = None
    ) -> None:
        store = as_journal(journal)
        if store is None:
            raise TypeError("journal is None; give the journal in which runs are to be recorded")
        if not stores_events(store):
            raise ConfigurationError(
                f"{type(store).__name__} stores no events, so no run can be recorded in it; give "
                "the Recorder a path, a redis:// address, or a journal with the methods of "
                "EventJournal"
            )
        self.journal: EventJournal = store
        self._name = name
        self._graph = GraphText()
        self._runs: dict[str, _Recording] = {}

    def on_event(self, event: Event) -> Awaitable[None] | None:
        """Hold an event, which is written a little later. The last one is waited for."""
        return self.on_events([event])

    def on_events(self, events: Sequence[Event]) -> Awaitable[None] | None:
        """Hold events of one run."""
        return self.on_notes(events[0].run_id, notes_of(events), events[0].seq)

    def on_notes(self, run_id: str, notes: Notes, first: int) -> Awaitable[None] | None:
        """Hold events of one run, as an engine has them. ``first``: the number of the first one."""
        run = self._runs.get(run_id)
        if run is None:
            run = self._runs[run_id] = _Recording(self.journal, run_id, self._name, self._graph)
        run.add(notes, first)
        if isinstance(notes[-1], RunFinished):
            del self._runs[run_id]
            return run.finish()
        return None


class _Recording:
    """One run that is recorded."""

    def __init__(
        self, journal: EventJournal, run_id: str, name: str | None, graph: GraphText
    ) -> None:
        self._journal = journal
        self._run_id = run_id
        self._lease = Lease(new_owner())
        head = Head(name, is_resumable=False)
        self._batcher = EventBatcher(run_id, head, wake=lambda: None, graph=graph)
        self._ends = asyncio.Event()
        self._has_warned = self._has_failed = False
        self._task = asyncio.get_running_loop().create_task(self._write())

    def add(self, notes: Notes, first: int) -> None:
        """Write events with the next batch. If the journal is too slow, the oldest are left out."""
        self._batcher.take(notes, first)
        if self._batcher.held <= MOST_EVENTS:
            return
        self._batcher.leave_out(MOST_EVENTS)
        if not self._has_warned and not self._has_failed:
            self._has_warned = True
            logger.warning(
                "the Recorder lags by more than %d events of run %s; the oldest are left out",
                MOST_EVENTS,
                self._run_id,
            )

    async def finish(self) -> None:
        """Write what is left. Whoever does not wait so long gives the rest up."""
        self._ends.set()
        try:
            await asyncio.wait([self._task])
        except asyncio.CancelledError:
            self._task.cancel()
            raise

    async def _write(self) -> None:
        try:
            # With its first events: short runs have no other transaction.
            await self._create(self._batcher.next() or self._batcher.first())
            renewed_at = asyncio.get_running_loop().time()
            while not self._ends.is_set():
                await self._pause()
                now = asyncio.get_running_loop().time()
                if (batch := self._batcher.next()) is not None:
                    await self._journal.append(self._run_id, self._lease, None, batch)
                    renewed_at = now
                elif now - renewed_at > self._lease.seconds / 4:
                    await self._journal.renew(self._run_id, self._lease)
                    renewed_at = now
            if (batch := self._batcher.next()) is not None:
                await self._journal.append(self._run_id, self._lease, None, batch)
            await self._journal.release(self._run_id, self._lease)
        except Exception as error:  # whatever a journal raises
            self._has_failed = True
            logger.warning("run %s is not recorded: %s", self._run_id, describe(error))
            with contextlib.suppress(Exception):  # then the lease expires
                await self._journal.release(self._run_id, self._lease)

    async def _pause(self) -> None:
        """Until events are due, or the run has ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_EVERY):
                await self._ends.wait()

    async def _create(self, first: EventBatch) -> None:
        """Create the run, in place of one that was recorded under the same run id."""
        try:
            await self._journal.create(self._run_id, self._lease, None, first)
        except RunLockedError:
            raise
        except JournalError:
            with contextlib.suppress(RunNotFoundError):
                if (await self._journal.summary(self._run_id)).is_resumable:
                    raise
                await self._journal.delete(self._run_id)
            await self._journal.create(self._run_id, self._lease, None, first)
