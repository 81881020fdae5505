"""What a recorder leaves of runs that have no journal, and what it does not do to them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    ConfigurationError,
    DAGBuilder,
    EventBatch,
    ExecutionEngine,
    JournalError,
    Lease,
    MemoryJournal,
    MissingNodeError,
    Recorder,
    RunReader,
    SqliteJournal,
)
from taskiq_flow.listeners import recorder as recorder_module
from tests.journal.processes import gated, open_gate
from tests.recording import Recorder as Events
from tests.virtual_clock import virtually


async def double(x: Any) -> Any:
    return x * 2


DAG = DAGBuilder("doubling").node(double).build()


async def wait(double: Any) -> Any:
    await asyncio.sleep(1)
    return double


LASTING = DAGBuilder("doubling").node(double).node(wait).build()


@pytest.fixture(params=["memory", "sqlite"])
async def journal(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    journal = MemoryJournal() if request.param == "memory" else SqliteJournal(tmp_path / "runs.db")
    yield journal
    await journal.aclose()


async def test_a_reader_has_the_events_of_a_run_that_was_recorded(journal: Any) -> None:
    seen, big = Events(), "x" * 1_000_000
    engine = ExecutionEngine(
        InMemoryBroker(), DAG, listeners=[seen, Recorder(journal, name="doubling")]
    )
    assert await engine.execute({"x": big}, run_id="r") == {"double": big * 2}
    reader = RunReader(journal)
    read = [event.to_dict() async for event in reader.events("r")]
    assert read == [event.to_dict() for event in seen.events]
    (run,) = await reader.runs(name="doubling", status="completed")
    assert (run.run_id, run.completed, run.is_resumable, run.owner) == ("r", 1, False, None)
    assert [chunk async for chunk in journal.read("r")] == []


async def test_a_run_in_progress_shows_and_cannot_be_cancelled_from_outside(
    journal: Any, tmp_path: Path
) -> None:
    engine, reader = (
        ExecutionEngine(InMemoryBroker(), gated(), listeners=[Recorder(journal)]),
        RunReader(journal),
    )
    async with engine.start({"notes": str(tmp_path / "notes")}, run_id="r") as run:
        async with asyncio.timeout(10.0):
            while not [r for r in await reader.runs() if r.completed == 2]:
                await asyncio.sleep(0.01)
        assert (await reader.run("r")).status == "running"
        assert not await reader.request("r", "cancel")
        open_gate(tmp_path / "notes")
        await run
    assert (await reader.run("r")).status == "completed"


async def test_a_recorded_run_cannot_be_resumed(journal: Any) -> None:
    await ExecutionEngine(InMemoryBroker(), DAG, listeners=[Recorder(journal)]).execute(
        {"x": 1}, run_id="r"
    )
    engine = ExecutionEngine(InMemoryBroker(), DAG, journal=journal)
    with pytest.raises(JournalError, match=r"'r' was recorded by a Recorder, .*journal="):
        await anext(engine.resume("r"))


async def test_the_last_run_of_a_run_id_is_recorded(journal: Any) -> None:
    engine = ExecutionEngine(InMemoryBroker(), DAG, listeners=[Recorder(journal)])
    for x in (1, 2):
        await engine.execute({"x": x}, run_id="r")
    view = await RunReader(journal).view("r")
    assert (view.nodes["double"].preview or {})["text"] == "4"
    assert view.sessions == 1


class Unshowable:
    """A value that cannot even be shown."""

    def __repr__(self) -> str:
        raise asyncio.CancelledError


async def test_an_event_that_cannot_be_written_is_missing_and_not_lost_in_silence(
    journal: Any, caplog: pytest.LogCaptureFixture
) -> None:
    dag = (
        DAGBuilder()
        .node(lambda x: Unshowable(), name="odd", inputs=["x"])
        .node(lambda odd: 7, name="after", inputs=["odd"])
        .build()
    )
    engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[Recorder(journal)], values="shared")
    await engine.execute({"x": 1}, run_id="r")
    view = await RunReader(journal).view("r")
    assert (view.status, view.missed, view.nodes["after"].state) == ("completed", 1, "completed")
    (record,) = caplog.records
    assert "of run r (node.completed) cannot be written" in record.message


async def test_values_were_recorded_as_previews(journal: Any) -> None:
    def long(double: int) -> str:
        return "x" * 5_000

    dag = DAGBuilder().node(abs, inputs=["x"], name="double").node(long).build()
    await ExecutionEngine(InMemoryBroker(), dag, listeners=[Recorder(journal)]).execute(
        {"x": -2}, run_id="r"
    )
    for name, words in {
        "double": "engine with journal= stores values; the whole of 'double' \\(int\\) is 2$",
        "long": r"the beginning of 'long' \(str\) is x+…$",
        "other": "with previews of them; an engine with journal= stores values$",
    }.items():
        with pytest.raises(MissingNodeError, match=f"recorded by a Recorder, .*{words}"):
            await RunReader(journal).value("r", name)


async def test_a_run_of_an_engine_with_a_journal_is_not_replaced(
    journal: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await ExecutionEngine(InMemoryBroker(), DAG, journal=journal).execute({"x": 1}, run_id="r")
    await ExecutionEngine(InMemoryBroker(), DAG, listeners=[Recorder(journal)]).execute(
        {"x": 2}, run_id="r"
    )
    assert await RunReader(journal).value("r", "double") == 2
    assert "run r is not recorded: JournalError: run 'r' is in the journal already" in caplog.text


class Failing(MemoryJournal):
    async def append(
        self, run_id: str, lease: Lease, chunk: bytes | None, batch: EventBatch | None = None
    ) -> None:
        raise OSError("no space left")


class Hanging(MemoryJournal):
    async def append(
        self, run_id: str, lease: Lease, chunk: bytes | None, batch: EventBatch | None = None
    ) -> None:
        await asyncio.sleep(100_000)


@virtually
async def test_a_run_is_recorded_again_at_once_after_the_journal_has_failed() -> None:
    class Flaky(MemoryJournal):
        has_failed = False

        async def append(
            self, run_id: str, lease: Lease, chunk: bytes | None, batch: EventBatch | None = None
        ) -> None:
            if not self.has_failed:
                self.has_failed = True
                raise OSError("full")
            await super().append(run_id, lease, chunk, batch)

    journal = Flaky()
    engine, reader = (
        ExecutionEngine(InMemoryBroker(), LASTING, listeners=[Recorder(journal)]),
        RunReader(journal),
    )
    statuses = []
    for _ in range(2):
        await engine.execute({"x": 1}, run_id="r")
        statuses.append((await reader.run("r")).status)
    assert statuses == ["interrupted", "completed"]


@virtually
async def test_a_journal_that_fails_fails_no_run(caplog: pytest.LogCaptureFixture) -> None:
    engine = ExecutionEngine(InMemoryBroker(), LASTING, listeners=[Recorder(Failing())])
    assert await engine.execute({"x": 1}, run_id="r") == {"double": 2, "wait": 2}
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == [
        "run r is not recorded: OSError: no space left"
    ]


@virtually
async def test_a_journal_that_hangs_holds_no_run_for_long() -> None:
    engine = ExecutionEngine(InMemoryBroker(), LASTING, listeners=[Recorder(Hanging())])
    begun_at = asyncio.get_running_loop().time()
    assert await engine.execute({"x": 1}, run_id="r") == {"double": 2, "wait": 2}
    assert asyncio.get_running_loop().time() - begun_at < 16


async def test_a_recorder_holds_a_bounded_number_of_events(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recorder_module, "MOST_EVENTS", 10)
    monkeypatch.setattr(recorder_module, "FLUSH_EVERY", 10.0)
    journal = MemoryJournal()
    dag = DAGBuilder().node(abs, inputs=["numbers"], map_over="numbers").build()
    engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[Recorder(journal)])
    await engine.execute({"numbers": list(range(1_000))}, run_id="r")
    view = await RunReader(journal).view("r")
    assert view.status == "completed"
    assert view.missed > 1_000  # of 3,000: the first batch was written, and so is the last one
    assert caplog.text.count("the oldest are left out") == 1


def test_a_journal_that_stores_no_events_is_refused() -> None:
    class LogsOnly:
        serializer = create = acquire = renew = release = append = read = None

    with pytest.raises(ConfigurationError, match="LogsOnly stores no events"):
        Recorder(LogsOnly())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="journal is None"):
        Recorder(None)  # type: ignore[arg-type]


async def test_a_run_is_in_the_journal_as_soon_as_its_first_events_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(recorder_module, "FLUSH_EVERY", 1_000.0)
    journal, gate = SqliteJournal(tmp_path / "runs.db"), asyncio.Event()

    async def waits() -> None:
        await gate.wait()

    dag = DAGBuilder().node(waits).build()
    run = ExecutionEngine(InMemoryBroker(), dag, listeners=[Recorder(journal)]).start(run_id="r")
    async with asyncio.timeout(30):
        while "r" not in await journal.run_ids():
            await asyncio.sleep(0.001)
    assert (await journal.summary("r")).status == "running"
    gate.set()
    await run
    await journal.aclose()
