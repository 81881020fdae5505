"""Collects a run's events until they are written, and keeps its summary."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from taskiq_flow.errors import NODE_ERRORS
from taskiq_flow.journal.packed import GraphText, PackedWriter
from taskiq_flow.journal.protocol import EventBatch
from taskiq_flow.journal.summary import Head, RunSummary, SummaryWriter
from taskiq_flow.notes import WIDTH, Notes, events_of

logger = logging.getLogger("taskiq_flow")

_AT_ONCE = 2_000
"""Events of one line at the most."""


class EventBatcher:
    """Makes batches of a run's events. ``wake``: called when there are some to be written.

    ``graph``: shared by runs that are likely to be of one graph. ``held``: of how many events it
    holds the lines.
    """

    def __init__(self, run_id: str, head: Head, wake: Callable[[], None], graph: GraphText) -> None:
        self._wake = wake
        self._run_id = run_id
        self._lines = PackedWriter(run_id, graph)
        self._summary = SummaryWriter(run_id, head)
        self._pending: deque[tuple[int, bytes]] = deque()  # how many events, and their lines
        self.held = 0

    @property
    def seq(self) -> int:
        """The number of the last event."""
        return self._summary.seq

    def go_on_after(self, earlier: RunSummary | None) -> None:
        """Continue a run of which this is the summary."""
        if earlier is not None:
            self._summary.go_on_after(earlier)

    def take(self, notes: Notes, first: int) -> None:
        """Take in the next events, and hold their lines until they are written.

        ``first``: the number of the first one.
        """
        count = len(notes) // WIDTH
        self._summary.apply(notes, first + count - 1)
        for start in range(0, count, _AT_ONCE):
            part = notes[WIDTH * start : WIDTH * (start + _AT_ONCE)]
            self._pending.append((len(part) // WIDTH, self._line_of(part, first + start)))
        self.held += count
        self._wake()

    def _line_of(self, notes: Notes, first: int) -> bytes:
        """The line of events. One that cannot be written is logged, and missing to readers."""
        try:
            return self._lines.line(notes, first)
        except NODE_ERRORS:  # of a class of the user's, as one shows its values
            starts = range(0, len(notes), WIDTH)
            if len(starts) > 1:
                singly = enumerate([notes[start : start + WIDTH] for start in starts], first)
                return b"".join([self._line_of(note, seq) for seq, note in singly])
            (event,) = events_of(notes, self._run_id, first)
            logger.exception(
                "event %d of run %s (%s) cannot be written, and is left out of its history",
                *(first, self._run_id, event.type),
            )
            return b""

    def leave_out(self, most: int) -> None:
        """Hold the lines of ``most`` events at the most: the oldest ones are not written."""
        while self.held > most and len(self._pending) > 1:
            self.held -= self._pending.popleft()[0]

    def first(self) -> EventBatch:
        """The summary before the first event."""
        return EventBatch(b"", self._summary.summary())

    def next(self) -> EventBatch | None:
        """The events that are not written yet, if there are any."""
        if not self._pending:
            return None
        lines = b"".join([lines for _, lines in self._pending])
        self._pending.clear()
        self.held = 0
        return EventBatch(lines, self._summary.summary())
