"""Runs of another process: watched, asked to stop, and left when that process is killed."""

from __future__ import annotations

import asyncio
from pathlib import Path

from taskiq_flow import NodeCompleted, RunFinished, RunReader
from tests.journal.processes import GATED, Child, open_gate
from tests.waiting import LONGEST, until


async def check_watching(place: str, notes: Path) -> None:
    """Watch a run from its begin to its end, from the process beside its engine's."""
    reader = RunReader(place)
    with Child(place) as child:
        await child.begin(notes)

        async def both_are_written() -> bool:
            return (await reader.run("run")).completed == 2

        await until(both_are_written, "events are written a moment after results")
        run = await reader.run("run")
        assert (run.status, run.pid, run.completed) == ("running", child.pid, 2)
        seen = []
        async with asyncio.timeout(LONGEST):
            async for event in reader.events("run", follow=True):
                seen.append(event)
                if isinstance(event, NodeCompleted) and event.task_name == "second":
                    open_gate(notes)
        assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
        assert isinstance(seen[-1], RunFinished)
        assert await child.hear_all() == GATED[2:]
        assert (await reader.view("run")).status == "completed"
    await reader.aclose()


async def check_cancelling(place: str, notes: Path) -> None:
    """Ask a run to stop, from outside. Returns when its engine has said that it has."""
    reader = RunReader(place)
    with Child(place) as child:
        await child.begin(notes)
        assert await reader.request("run", "cancel")
        async with asyncio.timeout(10.0):  # its engine looks more often than its lease lasts
            said = await child.hear()
        assert said[:2] == ["error", "RunCancelledError"]
        assert (await reader.run("run")).status == "cancelled"
        assert not await reader.request("run", "cancel")
        open_gate(notes)
        child.tell("resume")  # the request is not held against it
        assert await child.hear_all() == GATED
        events = [event async for event in reader.events("run")]
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
    await reader.aclose()


async def check_killing(place: str, notes: Path, seconds: float) -> None:
    """Kill an engine, and see within some seconds that its run is interrupted.

    The lease lasts for ten. Another process on the same machine does not wait for its end.
    """
    reader = RunReader(place)
    with Child(place) as child:
        await child.begin(notes)
        assert [run.run_id for run in await reader.runs(status="running")] == ["run"]
        child.kill()
    async with asyncio.timeout(seconds):
        async for _ in reader.events("run", follow=True):
            pass
    (run,) = await reader.runs(status="interrupted")
    assert (await reader.view("run")).status == "interrupted"
    open_gate(notes)
    with Child(place) as child:
        child.tell("resume")
        assert await child.hear_all() == GATED
    events = [event async for event in reader.events("run")]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert sum(isinstance(event, RunFinished) for event in events) == 1
    assert (await reader.run("run")).started == run.started
    await reader.aclose()


async def test_a_run_of_another_process_is_watched(tmp_path: Path) -> None:
    await check_watching(str(tmp_path / "runs.db"), tmp_path / "notes")


async def test_a_run_of_another_process_is_cancelled(tmp_path: Path) -> None:
    await check_cancelling(str(tmp_path / "runs.db"), tmp_path / "notes")


async def test_the_run_of_a_process_that_was_killed_is_interrupted_at_once(tmp_path: Path) -> None:
    await check_killing(str(tmp_path / "runs.db"), tmp_path / "notes", 9.0)
