"""Processes that share a file, are killed while they do, and have no room left on its disk."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import ExecutionEngine, JournalError, Lease, SqliteJournal
from taskiq_flow.journal import sqlite_file
from taskiq_flow.journal.history import restore_run
from tests.journal.processes import (
    Child,
    big,
    big_inputs,
    big_text,
    check_that_one_resumes,
    noted,
    open_gate,
)

LEASE = Lease("engine", 60.0)


async def test_of_two_processes_that_resume_a_run_one_goes_on(path: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    with Child(str(path)) as a, Child(str(path)) as b, Child(str(path)) as beginner:
        await beginner.begin(notes)
        beginner.kill()
        await check_that_one_resumes(a, b, notes, "run")
    assert noted(notes) == ["first", "second", "gate", "gate", "last"]


async def test_processes_that_make_a_file_at_once_all_write_to_it(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(Child("")) for _ in range(3)]
        for number in range(15):
            path = tmp_path / f"{number}.db"
            for child in children:
                child.tell("create", path=str(path), run_id=f"run of {child.pid}")
            assert [await child.hear() for child in children] == [["end"]] * 3
            journal = SqliteJournal(path)
            run_ids = await journal.run_ids()
            assert set(run_ids) == {f"run of {child.pid}" for child in children}
            await journal.aclose()


async def test_a_file_that_is_just_being_made_is_waited_for(
    path: Path, journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite itself does not always wait to become the one that changes how a file is written."""
    connect = sqlite3.connect
    with contextlib.closing(connect(path, check_same_thread=False)) as maker:
        maker.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr(sqlite3, "connect", lambda *a, **m: connect(*a, **{**m, "timeout": 0}))
        monkeypatch.setattr(time, "sleep", lambda _: maker.rollback())
        await journal.create("run", LEASE, b"chunk")
        assert not maker.in_transaction
    assert await journal.run_ids() == ["run"]


async def test_a_file_that_becomes_a_journal_while_it_is_looked_at_is_one(
    path: Path, journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(sqlite3.connect(path, check_same_thread=False)) as maker:
        maker.execute("PRAGMA journal_mode = WAL")

        class Interrupted(sqlite3.Connection):
            def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
                if sql == "PRAGMA user_version" and not maker.execute(sql).fetchone()[0]:
                    maker.executescript(sqlite_file._SCHEMA)
                return super().execute(sql, *parameters)

        connect = sqlite3.connect
        monkeypatch.setattr(
            sqlite3, "connect", lambda *a, **more: connect(*a, factory=Interrupted, **more)
        )
        await journal.create("run", LEASE, b"chunk")
    assert await journal.run_ids() == ["run"]


# A disk that is full

COUNT = 30


async def check_what_is_kept(path: Path, notes: Path, read: set[str]) -> None:
    """Nothing was read that is not kept, and the run is completed where there is room again."""
    journal = SqliteJournal(path)
    kept = set((await restore_run(journal, "run")).results)
    assert read <= kept < {f"n{number}" for number in range(COUNT)}
    before = len(noted(notes))
    engine = ExecutionEngine(InMemoryBroker(), big(COUNT), journal=journal)
    pairs = [pair async for pair in engine.resume("run")]
    assert pairs == [(f"n{number}", big_text(number)) for number in range(COUNT)]
    assert kept.isdisjoint(noted(notes)[before:])
    await journal.aclose()


async def test_a_disk_that_is_full_ends_the_run_with_what_it_has_reached(
    path: Path, tmp_path: Path
) -> None:
    notes, read = tmp_path / "notes", set()
    with Child(str(path)) as child:
        child.tell("fill", notes=str(notes), count=COUNT, limit=300_000)
        while (said := await child.hear())[0] == "pair":
            read.add(said[1])
        assert said[:2] == ["error", "JournalError"]
        assert f"{path} cannot be used: disk I/O error; check" in said[2]
        assert read
        assert read <= set(said[3])
    await check_what_is_kept(path, notes, read)


async def test_a_file_that_may_not_grow_ends_the_run_with_what_it_has_reached(
    path: Path, journal: SqliteJournal, tmp_path: Path
) -> None:
    notes, read = tmp_path / "notes", set()
    await journal.file.read(lambda connection: connection.execute("PRAGMA max_page_count = 40"))
    engine = ExecutionEngine(InMemoryBroker(), big(COUNT), journal=journal)
    with pytest.raises(JournalError, match="cannot be used: database or disk is full") as caught:
        async for name, _ in engine.execute_async(big_inputs(notes, COUNT), run_id="run"):
            read.add(name)
            open_gate(notes)
    assert read
    assert read <= set(caught.value.results)
    await check_what_is_kept(path, notes, read)
