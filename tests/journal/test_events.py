"""Events in the journals of this process; the one on Redis is with the tests that need servers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.journal.events_contract import EventJournalContract
from tests.journal.test_protocol import MemoryStore, SqliteStore, Store


class TestEventJournals(EventJournalContract):
    """In memory, and in a file."""

    @pytest.fixture(params=[MemoryStore, SqliteStore], ids=["memory", "sqlite"])
    async def store(
        self, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[Store]:
        store: Store = request.param(tmp_path, monkeypatch)
        yield store
        await store.aclose()
