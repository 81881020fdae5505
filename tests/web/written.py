"""Runs that are written into a journal event by event, by no engine."""

from __future__ import annotations

from dataclasses import replace

from taskiq_flow import Event, EventBatch, EventJournal, Lease, NodeStarted, RunFinished, RunStarted
from taskiq_flow.journal.packed import GraphText, PackedWriter
from taskiq_flow.journal.summary import Head, SummaryWriter
from taskiq_flow.notes import notes_of


class Written:
    """One such run."""

    def __init__(
        self,
        journal: EventJournal,
        run_id: str = "r1",
        lease_seconds: float = 60,
        name: str | None = None,
    ) -> None:
        self.journal, self.run_id = journal, run_id
        self._lease = Lease("test", lease_seconds)
        self._lines = PackedWriter(run_id, GraphText())
        self._summary = SummaryWriter(run_id, Head(name))
        self._seq = 0

    async def begin(self, *events: Event) -> None:
        await self.journal.create(
            self.run_id, self._lease, None, EventBatch(b"", self._summary.summary())
        )
        await self.write(*events or [RunStarted(self.run_id, 0.0, ("load",))])

    async def send(self, count: int, text: str = "") -> None:
        events = [NodeStarted(self.run_id, 0.0, "load", text) for _ in range(count)]
        await self.write(*events)

    async def end(self) -> None:
        await self.write(RunFinished(self.run_id, 1.0, "completed", None))

    async def write(self, *events: Event) -> None:
        numbered = []
        for event in events:
            self._seq += 1
            numbered.append(replace(event, seq=self._seq))
        notes, first = notes_of(numbered), numbered[0].seq
        self._summary.apply(notes, self._seq)
        batch = EventBatch(self._lines.line(notes, first), self._summary.summary())
        await self.journal.append(self.run_id, self._lease, None, batch)

    async def leave(self) -> None:
        """Its engine is gone."""
        await self.journal.release(self.run_id, self._lease)

    async def go_on(self) -> None:
        """An engine has it again."""
        await self.journal.acquire(self.run_id, self._lease)

    def skip(self, count: int) -> None:
        self._seq += count
