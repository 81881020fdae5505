"""Collects a run's events until they are written, and keeps its summary."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from taskiq_flow.events import Event
from taskiq_flow.journal.protocol import News
from taskiq_flow.journal.summary import Head, RunSummary, SummaryWriter
from taskiq_flow.journal.wire import LineWriter

_AT_ONCE = 200
"""Events whose lines are put together at once."""


class NewsWriter:
    """Makes ``News`` of a run's events. ``wake``: called when there are some to be written.

    The run's ``Listeners`` hold the events until they are taken, all at once.
    """

    def __init__(self, run_id: str, head: Head, wake: Callable[[], None]) -> None:
        self.wake = wake
        self._lines = LineWriter(run_id)
        self._summary = SummaryWriter(run_id, head)
        self._pending: list[bytes] = []
        self._take: Callable[[], Sequence[Event]] = tuple

    @property
    def seq(self) -> int:
        """The number of the last event."""
        return self._summary.seq

    def go_on_after(self, earlier: RunSummary | None) -> None:
        """Continue a run of which this is the summary."""
        if earlier is not None:
            self._summary.go_on_after(earlier)

    def take_from(self, take: Callable[[], Sequence[Event]]) -> None:
        """Take the events by ``take``, which returns those that were not taken yet."""
        self._take = take

    def take_now(self) -> None:
        """Take the events that there are, and hold their lines."""
        if events := self._take():
            self._summary.apply(events)
            for start in range(0, len(events), _AT_ONCE):
                self._pending.append(self._lines.lines(events[start : start + _AT_ONCE]))

    def first(self) -> News:
        """The summary before the first event."""
        return News(b"", self._summary.summary())

    def next(self) -> News | None:
        """The events that are not written yet, if there are any."""
        self.take_now()
        if not self._pending:
            return None
        pending, self._pending = self._pending, []
        return News(b"".join(pending), self._summary.summary())
