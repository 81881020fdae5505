from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from taskiq_flow import SqliteJournal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a journal's file may be made."""
    return tmp_path / "runs.db"


@pytest.fixture
async def journal(path: Path) -> AsyncIterator[SqliteJournal]:
    """A journal in a file."""
    journal = SqliteJournal(path)
    yield journal
    await journal.aclose()
