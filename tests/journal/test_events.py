"""Events in the journals of this process; the one on Redis is with the tests that need servers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import DAGBuilder, ExecutionEngine, MemoryJournal
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
