"""The newest runs, and which of them have changed, for all who watch the list of runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import Any

from taskiq_flow.errors import JournalError
from taskiq_flow.events import WIRE_VERSION
from taskiq_flow.journal.reader import RunReader
from taskiq_flow.journal.summary import RunSummary
from taskiq_flow.previews import printable
from taskiq_flow.web.frames import Frame, Line, encoded
from taskiq_flow.web.news import News

MOST_RUNS = 100
"""Runs of which changes are told: the newest."""

LOOK_EVERY = 0.5
"""Seconds between two looks at the journal, while anybody watches."""

_LOOKS_UNTIL_LIFE = 30
"""So many looks find no change before a sign of life is due."""


def shown_run(run: RunSummary) -> dict[str, Any]:
    """The summary of a run as plain data."""
    content = asdict(run)
    del content["owner"], content["lease_left"]
    return {"run": printable(content.pop("run_id")), **content}


class RecentRuns:
    """Looks at the journal on behalf of all who watch, and numbers the changes that it sees.

    A cursor into them is the number of the last change that was sent. What changed again since is
    sent once, so that whoever is slow misses states and no run.
    """

    def __init__(self, reader: RunReader) -> None:
        self._reader = reader
        self._lines: dict[str, Line] = {}
        self._summaries: dict[str, RunSummary] = {}
        self._number = 0
        self._watchers = 0
        self._task: asyncio.Task[None] | None = None
        self._news = News()
        self._is_closed = False

    async def frames(self) -> AsyncGenerator[Frame | None, None]:
        """The newest runs, and then those that changed. ``None``: a sign of life is due."""
        self._watchers += 1
        if self._task is None:
            self._lines, self._summaries = {}, {}
            self._task = asyncio.get_running_loop().create_task(self._look())
        after = 0
        try:
            while not self._is_closed and self._task is not None and not self._task.done():
                if lines := sorted(line for line in self._lines.values() if line[0] > after):
                    after = lines[-1][0]
                    yield Frame(lines)
                elif not await self._news.wait():
                    yield None
        finally:
            self._watchers -= 1
            if not self._watchers and self._task is not None:
                self._task.cancel()
                self._task = None

    def close(self) -> None:
        """End the streams of all who watch."""
        self._is_closed = True
        self._news.tell()

    async def _look(self) -> None:
        quiet = 0
        try:
            while True:
                before = self._number
                with contextlib.suppress(JournalError):  # it is away for a while, perhaps
                    self._compare(await self._reader.runs(limit=MOST_RUNS))
                quiet = 0 if self._number > before else quiet + 1
                if quiet % _LOOKS_UNTIL_LIFE == 0:
                    self._news.tell(is_news=not quiet)
                await asyncio.sleep(LOOK_EVERY)
        finally:
            self._news.tell()  # those who watch see that nobody looks any more

    def _compare(self, runs: list[RunSummary]) -> None:
        """Number the runs that changed. Those that are gone were deleted or are too old."""
        present = {run.run_id: run for run in runs}
        oldest = runs[-1].started if len(runs) == MOST_RUNS else 0.0
        for run in runs[::-1]:
            content = shown_run(run)
            before = self._summaries.get(run.run_id)
            if before is None or shown_run(before) != content:
                self._write(run.run_id, "run.summary", content)
        for run_id, before in self._summaries.items():
            if run_id not in present and before.started >= oldest:
                self._write(run_id, "run.deleted", {"run": printable(run_id)})
            elif run_id not in present:
                self._lines.pop(run_id, None)
        self._summaries = present
        gone = [run_id for run_id in self._lines if run_id not in present]
        for run_id in gone[:-MOST_RUNS]:  # whoever watches has been told
            del self._lines[run_id]

    def _write(self, run_id: str, kind: str, content: dict[str, Any]) -> None:
        self._number += 1
        about = {"v": WIRE_VERSION, "seq": self._number, "type": kind, **content}
        self._lines[run_id] = (self._number, encoded(about))
