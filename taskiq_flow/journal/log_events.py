"""The events that a log tells of, for a run whose events were not stored.

Earlier versions wrote the log alone, as journals do that have no ``EventJournal`` methods.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from typing import Any

from taskiq_flow.dataflow.axes import parted
from taskiq_flow.events import (
    Event,
    Index,
    NodeCompleted,
    NodeFailed,
    NodeStarted,
    RunFinished,
    RunStarted,
)
from taskiq_flow.journal import records
from taskiq_flow.journal.protocol import Journal
from taskiq_flow.journal.records import Header, Record, read_chunk
from taskiq_flow.previews import Preview, ReportedError


async def events_of_log(journal: Journal, run_id: str) -> AsyncGenerator[Event, None]:
    """The events, all at the moment 0, as a log has no times. Reads the values with the log."""
    reading = _Reading(run_id)
    async with aclosing(journal.read(run_id)) as chunks:
        async for data in chunks:
            for entry in read_chunk(run_id, data):
                for event in reading.events(entry):
                    yield event


class _Reading:
    """Makes events of records, one after the other."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._seq = 0
        self._nodes: Mapping[str, str] = {}
        self._results: dict[str, int] = {}

    def events(self, entry: Record) -> Iterator[Event]:
        """The events of the next record."""
        run_id, name = self._run_id, entry.name
        index = self._index(name)
        about: dict[str, Any] = {"index": index, "attempt": entry.attempt}
        if entry.kind == records.HEADER:
            self._nodes = Header.decoded(run_id, entry).nodes
        elif entry.kind == records.SESSION:
            yield RunStarted(run_id, 0.0, tuple(self._nodes), seq=self._next())
            for done, size in self._results.items():
                yield self._completed(done, size, 0, "journal")
        elif entry.kind == records.SENT:
            yield NodeStarted(run_id, 0.0, name, "", **about, seq=self._next())
        elif entry.kind in (records.COMPLETED, records.REFERRED):
            self._results[name] = len(entry.data)
            yield self._completed(name, len(entry.data), entry.attempt, "task")
        elif entry.kind == records.FAILED:
            kind, _, message = entry.data.decode().partition(": ")
            error = ReportedError(kind, message)
            yield NodeFailed(run_id, 0.0, name, "", error, entry.attempt, **about, seq=self._next())
        elif entry.kind == records.ENDED:
            outcome: Any = entry.data.decode()
            yield RunFinished(run_id, 0.0, outcome, None, self._next())

    def _completed(self, name: str, size: int, attempt: int, source: Any) -> Event:
        shown = Preview(kind="", size=size, text="", cut=True)
        index, seq = self._index(name), self._next()
        return NodeCompleted(self._run_id, 0.0, name, "", shown, source, index, attempt, seq=seq)

    def _index(self, name: str) -> Index | None:
        if name in self._nodes:
            return None
        path = parted(name)[1]
        return path[0] if len(path) == 1 else path or None

    def _next(self) -> int:
        self._seq += 1
        return self._seq
