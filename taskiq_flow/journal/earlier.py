"""The newest run of a graph that has completed: how long the next one may take."""

from __future__ import annotations

from taskiq_flow.errors import JournalError, RunNotFoundError
from taskiq_flow.journal.reader import RunReader
from taskiq_flow.views.time_left import EarlierRun

MOST_EVENTS = 100_000
"""Events of an earlier run that are read at most, as an estimate is worth no more."""


async def earlier_run(reader: RunReader, name: str | None, run_id: str) -> EarlierRun | None:
    """What the newest completed run of the graph of this name tells, other than this run.

    ``None`` if there is none, it is too long, or the journal cannot be read.
    """
    if name is None:
        return None
    try:
        runs = await reader.runs(status="completed", name=name, limit=2)
        found = next((run.run_id for run in runs if run.run_id != run_id), None)
        if found is None or (await reader.run(found)).seq > MOST_EVENTS:
            return None
        return EarlierRun.of(await reader.view(found))
    except (JournalError, RunNotFoundError):
        return None
