"""The newest run of a graph that has completed: how long the next one may take."""

from __future__ import annotations

from contextlib import aclosing

from taskiq_flow.errors import JournalError, RunNotFoundError
from taskiq_flow.events import RunStarted
from taskiq_flow.journal.reader import RunReader
from taskiq_flow.previews import printable
from taskiq_flow.views.time_left import EarlierRun

MOST_EVENTS = 100_000
"""Events of an earlier run that are read at most, as an estimate is worth no more."""

MOST_RECORDED = 20
"""Runs under other names that are looked at, as a ``Recorder`` may have named them."""


async def earlier_run(reader: RunReader, name: str | None, run_id: str) -> EarlierRun | None:
    """What the newest completed run of the graph of this name tells, other than this run.

    ``None`` if there is none, it is too long, or the journal cannot be read.
    """
    if name is None:
        return None
    try:
        found = await _newest(reader, name, run_id)
        if found is None or (await reader.run(found)).seq > MOST_EVENTS:
            return None
        return EarlierRun.of(await reader.view(found))
    except (JournalError, RunNotFoundError):
        return None


async def _newest(reader: RunReader, name: str, run_id: str) -> str | None:
    for run in await reader.runs(status="completed", name=name, limit=2):
        if run.run_id != run_id:
            return run.run_id
    for run in await reader.runs(status="completed", limit=MOST_RECORDED):
        is_other = run.run_id != run_id and not run.is_resumable
        if is_other and await _is_of_graph(reader, run.run_id, name):
            return run.run_id
    return None


async def _is_of_graph(reader: RunReader, run_id: str, name: str) -> bool:
    """Whether the graph of a run has this name, whatever the run was recorded as."""
    async with aclosing(reader.events(run_id)) as events:
        async for event in events:
            return isinstance(event, RunStarted) and event.name == printable(name)
    return False
