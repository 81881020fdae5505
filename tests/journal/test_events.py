"""Events in the journals of this process; the one on Redis is with the tests that need servers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import DAGBuilder, ExecutionEngine, MemoryJournal, NodeFailure, RunReader
from tests.journal.events_contract import EventJournalContract
from tests.journal.test_protocol import MemoryStore, SqliteStore, Store
from tests.virtual_clock import virtually


class TestEventJournals(EventJournalContract):
    """In memory, and in a file."""

    @pytest.fixture(params=[MemoryStore, SqliteStore], ids=["memory", "sqlite"])
    async def store(
        self, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[Store]:
        store: Store = request.param(tmp_path, monkeypatch)
        yield store
        await store.aclose()


@virtually
async def test_a_run_that_is_over_at_once_has_all_of_its_events() -> None:
    async def task() -> int:
        return 1

    journal = MemoryJournal()
    engine = ExecutionEngine(InMemoryBroker(), DAGBuilder().node(task).build(), journal=journal)
    await engine.execute(run_id="r1")
    written = await journal.summary("r1")
    assert (written.status, written.completed, written.seq) == ("completed", 1, 5)


async def test_an_error_whose_text_is_no_utf_8_fails_its_node_alone() -> None:
    async def unreadable() -> None:
        raise ValueError("cannot read caf\udce9.txt")

    async def other() -> int:
        return 1

    journal = MemoryJournal()
    dag = DAGBuilder().node(unreadable).node(other).build()
    engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal, on_error="collect")
    results = await engine.execute(run_id="r")
    assert results["other"] == 1
    assert isinstance(results["unreadable"], NodeFailure)
    view = await RunReader(journal).view("r")
    assert view.nodes["unreadable"].state == "failed"
