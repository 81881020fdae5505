"""A journal in a file: one that is none, is damaged or may not be written; opened and closed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import ExecutionEngine, JournalError, Lease, RunNotFoundError, SqliteJournal
from taskiq_flow.journal import sqlite_file
from taskiq_flow.journal.history import restore_run
from taskiq_flow.journal.lease import new_owner
from tests.journal.open_files import open_files
from tests.journal.processes import big, big_inputs, open_gate

LEASE = Lease("engine", 60.0)

PAGE = 4096


def lying_beside(path: Path) -> set[str]:
    return {other.name for other in path.parent.iterdir()} - {path.name}


# The size of the file


async def test_room_of_deleted_runs_is_used_again_and_given_back_by_vacuum(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    journal = SqliteJournal(path)

    async def fill(name: str) -> None:
        for number in range(10):
            await journal.create(f"{name} {number}", LEASE, bytes(20 * PAGE))
            await journal.release(f"{name} {number}", LEASE)

    async def size_without(name: str) -> int:
        for number in range(10):
            await journal.delete(f"{name} {number}")
        await journal.aclose()
        return path.stat().st_size

    await journal.create("kept", LEASE, b"chunk")
    await fill("first")
    size = await size_without("first")
    assert size > 200 * PAGE
    await fill("second")
    assert await size_without("second") <= size + PAGE
    assert await journal.run_ids() == ["kept"]  # it is open
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("VACUUM")
    assert [chunk async for chunk in journal.read("kept")] == [b"chunk"]
    await journal.aclose()
    assert path.stat().st_size < 50 * PAGE


# Files that cannot be used


async def _fill_journal(path: Path) -> None:
    """Make a journal of many pages, with a finished run called "run"."""
    journal = SqliteJournal(path)
    engine = ExecutionEngine(InMemoryBroker(await_inplace=True), big(3), journal=journal)
    notes = path.with_name("notes")
    open_gate(notes)
    async for _ in engine.execute_async(big_inputs(notes, 3), run_id="run"):
        pass
    for number in range(150):
        await journal.create(f"small {number}", LEASE, b"chunk")
    await journal.aclose()


@pytest.fixture(scope="module")
def a_journal(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The content of a journal in good order, which a process had open that was killed."""
    path = tmp_path_factory.mktemp("journal") / "runs.db"
    asyncio.run(_fill_journal(path))
    _have_been_killed(path)
    return path.read_bytes()


def _have_been_killed(path: Path) -> None:
    killed = re.sub(r"since \S+", "since 1", new_owner())
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO openers VALUES (?, ?)", (killed, time.time()))


def _database(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def _text(path: Path, journal: bytes) -> None:
    path.write_text("no database at all, " * 1000)


def _short_text(path: Path, journal: bytes) -> None:
    path.write_text("no")


def _zeros(path: Path, journal: bytes) -> None:
    path.write_bytes(bytes(3 * PAGE))


def _other(path: Path, journal: bytes) -> None:
    _database(path, "CREATE TABLE runs (number)", "INSERT INTO runs VALUES (1)")


def _other_with_wal(path: Path, journal: bytes) -> None:
    _database(path, "PRAGMA journal_mode = WAL", "CREATE TABLE runs (number)")


def _other_with_an_id(path: Path, journal: bytes) -> None:
    _database(
        path, "PRAGMA application_id = 12", f"PRAGMA user_version = {sqlite_file.SCHEMA_VERSION}"
    )


def _other_version(path: Path, journal: bytes) -> None:
    path.write_bytes(journal)
    _database(path, "PRAGMA user_version = 7")


def _name_with_a_letter_that_is_none(path: Path, journal: bytes) -> None:
    path.write_bytes(journal.replace(b"chunks_of_runchunks", b"chunks\xffof_runchunks"))


def _chunk_missing_in_the_index(path: Path, journal: bytes) -> None:
    path.write_bytes(journal)
    change = "UPDATE sqlite_master SET sql = replace(sql, {}, {}) WHERE name = 'chunks_of_run'"
    columns, some = "'(run, number)'", "'(run, number) WHERE run <> 1'"
    _database(path, "PRAGMA writable_schema = 1", change.format(columns, some))
    _database(path, "INSERT INTO chunks (run, data) VALUES (1, 'chunk')")
    _database(path, "PRAGMA writable_schema = 1", change.format(some, columns))


def _truncated(pages: float) -> Callable[[Path, bytes], None]:
    def make(path: Path, journal: bytes) -> None:
        path.write_bytes(journal[: int(pages * PAGE)])

    return make


def _page_overwritten(number: int, content: bytes) -> Callable[[Path, bytes], None]:
    def make(path: Path, journal: bytes) -> None:
        begin = number * PAGE if number >= 0 else len(journal) + number * PAGE
        path.write_bytes(journal[:begin] + content * PAGE + journal[begin + PAGE :])

    return make


def _folder(path: Path, journal: bytes) -> None:
    path.mkdir()


DAMAGED = "is damaged: .*; it was left unchanged: restore it from a copy, or .* another file"
NO_JOURNAL = "is a database but not a journal; give the journal another file"

BAD_FILES = {
    "a text": (_text, DAMAGED),
    "a short text": (_short_text, DAMAGED),
    "zeros": (_zeros, DAMAGED),
    "a database": (_other, NO_JOURNAL),
    "a database with WAL": (_other_with_wal, NO_JOURNAL),
    "a database with an id": (_other_with_an_id, NO_JOURNAL),
    "another version": (
        _other_version,
        rf"of format 7, .* reads format {sqlite_file.SCHEMA_VERSION}; use the version that",
    ),
    **{f"{pages} pages left": (_truncated(pages), DAMAGED) for pages in (0.01, 0.5, 1, 2.5, 4)},
    **{f"page {number}": (_page_overwritten(number, b"\xff"), DAMAGED) for number in (0, 1, 3, -1)},
    **{f"page {number} empty": (_page_overwritten(number, b"\0"), DAMAGED) for number in (2, -2)},
    "an unreadable name": (_name_with_a_letter_that_is_none, DAMAGED),
    "a chunk missing in the index": (_chunk_missing_in_the_index, DAMAGED),
    "a folder": (_folder, r"cannot be used: .*; check its folder, its disk and its permissions$"),
}


async def check_it_is_refused(path: Path, message: str) -> None:
    """Before anything is sent, in whatever way it is used."""
    sent: list[str] = []

    class Broker(InMemoryBroker):
        async def kick(self, message: Any) -> None:
            sent.append(message.task_name)

    journal = SqliteJournal(path)
    engine = ExecutionEngine(Broker(), big(3), journal=journal)
    new = engine.execute_async(big_inputs(path, 3))
    for attempt in (new, engine.resume("run"), engine.rerun("run", ["n0"])):
        with pytest.raises(JournalError, match=message) as caught:
            await anext(attempt)
        assert str(path) in str(caught.value)
    assert not sent
    await journal.aclose()


@pytest.mark.parametrize(("make", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
async def test_a_file_that_is_no_journal_in_good_order_is_refused_and_left_as_it_is(
    path: Path, a_journal: bytes, make: Callable[[Path, bytes], None], message: str
) -> None:
    make(path, a_journal)
    before = None if path.is_dir() else path.read_bytes()
    await check_it_is_refused(path, message)
    assert before is None or path.read_bytes() == before
    assert lying_beside(path) == set()


async def test_whatever_byte_is_damaged_what_is_read_is_right_or_an_error(
    path: Path, a_journal: bytes
) -> None:
    path.write_bytes(a_journal)
    journal = SqliteJournal(path)
    expected = await restore_run(journal, "run")
    await journal.aclose()
    outcomes = []
    for place in range(0, len(a_journal), 997):
        damaged = bytearray(a_journal)
        damaged[place] ^= 0x21
        path.write_bytes(damaged)
        journal = SqliteJournal(path)
        try:
            assert await restore_run(journal, "run") == expected
            outcomes.append("right")
        except JournalError:
            outcomes.append("error")
        await journal.aclose()
    assert {"right", "error"} == set(outcomes)


async def test_an_empty_file_becomes_a_journal(path: Path, journal: SqliteJournal) -> None:
    path.touch()
    await journal.create("run", LEASE, b"chunk")
    assert await journal.run_ids() == ["run"]


@pytest.mark.parametrize("name", ["a?mode=ro#b", "%41 b", "ä\n", ":memory: ", os.fsdecode(b"\xff")])
async def test_a_file_may_be_called_anything(tmp_path: Path, name: str) -> None:
    journal = SqliteJournal(tmp_path / name)
    await journal.create("run", LEASE, b"chunk")
    await journal.aclose()
    assert [other.name for other in tmp_path.iterdir()] == [name]
    assert await journal.run_ids() == ["run"]
    await journal.aclose()


@pytest.mark.parametrize(
    "place", ["not there/runs.db", "runs.db/runs.db", "x" * 300, "not there/" + "x" * 300]
)
async def test_a_file_that_cannot_be_there_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "runs.db").touch()
    await check_it_is_refused(tmp_path / place, "cannot be (used|opened): .*; (check its|give it)")
    assert [other.name for other in tmp_path.iterdir()] == ["runs.db"]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder of which others than root see what is in it."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@contextlib.contextmanager
def with_no_more_rights_than_others() -> Iterator[None]:
    """Rights mean nothing to root."""
    is_root = os.geteuid() == 0
    if is_root:
        os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        if is_root:
            os.setresuid(0, 0, 0)


@pytest.mark.parametrize(
    ("file_mode", "folder_mode"),
    [(0o444, 0o777), (0o666, 0o555), (0o444, 0o555), (None, 0o555), (0o666, 0o600)],
)
async def test_a_journal_that_may_not_be_written_is_refused_and_left_as_it_is(
    open_folder: Path, a_journal: bytes, file_mode: int | None, folder_mode: int
) -> None:
    path = open_folder / "runs.db"
    if file_mode is not None:
        path.write_bytes(a_journal)
        path.chmod(file_mode)
    open_folder.chmod(folder_mode)
    with with_no_more_rights_than_others():
        await check_it_is_refused(path, "cannot be (used|opened): .*; (check its|give it)")
    open_folder.chmod(0o755)
    assert [other.name for other in open_folder.iterdir()] == ["runs.db"][: file_mode is not None]
    assert file_mode is None or path.read_bytes() == a_journal


async def test_a_chunk_that_is_too_big_is_an_error_that_does_not_speak_of_damage(
    journal: SqliteJournal,
) -> None:
    await journal.create("run", LEASE, b"chunk")
    await journal.file.read(
        lambda connection: connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1000)
    )
    with pytest.raises(JournalError, match="cannot store a value this large"):
        await journal.append("run", LEASE, bytes(1001))
    assert [chunk async for chunk in journal.read("run")] == [b"chunk"]


# The file, open and closed


@pytest.mark.parametrize(("fsync", "level"), [(True, 2), (False, 1)])
async def test_a_loss_of_power_is_survived_if_that_is_asked_for(
    path: Path, fsync: bool, level: int
) -> None:
    journal = SqliteJournal(path, fsync=fsync)
    ask = "PRAGMA synchronous"
    assert await journal.file.read(lambda found: found.execute(ask).fetchone()[0]) == level
    assert (
        await journal.file.read(lambda f: f.execute("PRAGMA journal_mode").fetchone()[0]) == "wal"
    )
    await journal.aclose()


def _threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("taskiq_flow-journal")]


async def test_nothing_is_left_of_a_journal_that_was_closed(path: Path) -> None:
    journal = SqliteJournal(path)
    await journal.create("run", LEASE, b"chunk")
    assert [chunk async for chunk in journal.read("run")] == [b"chunk"]
    (thread,) = _threads()
    assert open_files(path)
    await journal.aclose()
    await asyncio.to_thread(thread.join, 5.0)
    assert not _threads()
    assert not open_files(path)
    assert lying_beside(path) == set()


async def test_a_journal_may_be_closed_while_it_is_used(path: Path, journal: SqliteJournal) -> None:
    await journal.create("run", LEASE, b"")
    for _ in range(30):
        appends = [journal.append("run", LEASE, b"chunk") for _ in range(6)]
        await asyncio.gather(*appends[:3], journal.aclose(), *appends[3:], journal.aclose())
    assert len([chunk async for chunk in journal.read("run")]) == 1 + 30 * 6
    await journal.aclose()
    assert not open_files(path)


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_journal_serves_one_event_loop_after_the_other(path: Path, is_closed: bool) -> None:
    journal = SqliteJournal(path)

    async def use(number: int) -> list[bytes]:
        if number == 0:
            await journal.create("run", LEASE, b"0")
        else:
            await journal.append("run", LEASE, str(number).encode())
        try:
            return [chunk async for chunk in journal.read("run")]
        finally:
            if is_closed:
                await journal.aclose()

    assert [len(asyncio.run(use(number))) for number in range(3)] == [1, 2, 3]
    asyncio.run(journal.aclose())


# When the whole file is read


def checks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each time that a whole file is read."""
    done: list[int] = []
    check_integrity = sqlite_file._check_integrity

    def check(connection: sqlite3.Connection) -> None:
        done.append(1)
        check_integrity(connection)

    monkeypatch.setattr(sqlite_file, "_check_integrity", check)
    return done


async def test_a_file_that_was_closed_is_not_read_whole_when_it_is_opened(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = checks(monkeypatch)
    for run_id in ("a", "b"):
        journal = SqliteJournal(path)
        await journal.create(run_id, LEASE, b"chunk")
        beside = SqliteJournal(path)
        assert run_id in await beside.run_ids()
        await beside.aclose()
        await journal.aclose()
    assert done == []
    await journal.check()
    assert done == [1]
    await journal.aclose()


async def test_a_file_that_a_killed_process_had_open_is_read_whole_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = SqliteJournal(path)
    await journal.create("a", LEASE, b"chunk")
    await journal.aclose()
    _have_been_killed(path)
    done = checks(monkeypatch)
    for _ in range(2):
        assert await journal.run_ids() == ["a"]
        await journal.aclose()
    assert done == [1]


async def test_a_check_that_is_asked_for_finds_damage(path: Path, a_journal: bytes) -> None:
    _chunk_missing_in_the_index(path, a_journal)
    _database(path, "DELETE FROM openers")
    journal = SqliteJournal(path)
    assert await journal.run_ids()
    with pytest.raises(JournalError, match=DAMAGED):
        await journal.check()
    await journal.aclose()


# Another directory, another process


async def test_a_relative_path_stays_where_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    journal = SqliteJournal("runs.db")
    monkeypatch.chdir(tmp_path / "elsewhere")
    await journal.create("a", LEASE, b"chunk")
    await journal.aclose()
    assert (tmp_path / "runs.db").exists()
    assert not (tmp_path / "elsewhere" / "runs.db").exists()


async def test_a_copy_by_sqlite_is_a_journal_also_while_the_file_is_used(path: Path) -> None:
    """oq-engine 11752: a copy of the file alone had nothing of what was newest."""
    journal, copy = SqliteJournal(path), path.with_name("copy.db")
    await journal.create("run", LEASE, b"chunk")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("VACUUM INTO ?", (str(copy),))
    await journal.append("run", LEASE, b"later")
    copied = SqliteJournal(copy)
    assert [chunk async for chunk in copied.read("run")] == [b"chunk"]
    await copied.aclose()
    await journal.aclose()


@pytest.mark.parametrize("kind", ["removed", "removed with its log", "renamed", "replaced"])
async def test_a_file_that_is_removed_while_it_is_open_is_made_anew(
    path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """mlflow 4808: what was written then was nowhere."""
    journal, other = SqliteJournal(path), SqliteJournal(path)
    await journal.create("before", LEASE, b"chunk")
    match kind:
        case "renamed":
            path.rename(path.with_name("old.db"))
        case "replaced":
            replacement = SqliteJournal(path.with_name("new.db"))
            await replacement.create("given", LEASE, b"chunk")
            await replacement.aclose()
            replacement.file.path.replace(path)
        case _:
            path.unlink()
    if kind in ("removed with its log", "replaced"):
        for end in ("-wal", "-shm"):
            Path(f"{path}{end}").unlink()
    with pytest.raises(RunNotFoundError, match="the journal has no run 'before'"):
        await journal.append("before", LEASE, b"more")
    await journal.create("after", LEASE, b"chunk")
    expected = ["given", "after"] if kind == "replaced" else ["after"]
    assert await other.run_ids() == await journal.run_ids() == expected
    (record,) = caplog.records
    assert record.getMessage() == (
        f"the journal {path} was removed or replaced while it was open; it is opened anew"
    )
    await journal.aclose()
    await other.aclose()


def test_a_journal_that_was_used_goes_on_in_a_forked_process(path: Path) -> None:
    """Neither its thread nor its connection is there."""
    journal = SqliteJournal(path)

    async def add(run_id: str) -> list[str]:
        await journal.create(run_id, LEASE, b"chunk")
        return await journal.run_ids()

    assert asyncio.run(add("parent")) == ["parent"]
    child = os.fork()
    if not child:
        code = 1
        with contextlib.suppress(BaseException):
            signal.alarm(10)
            code = asyncio.run(add("child")) != ["parent", "child"]
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert asyncio.run(add("parent again")) == ["parent", "child", "parent again"]
    asyncio.run(journal.aclose())


async def test_cached_results_that_earlier_versions_kept_as_logs_are_no_runs(
    journal: SqliteJournal,
) -> None:
    await journal.create("taskiq_flow cache 00ff", LEASE, b"chunk")
    await journal.create("run", LEASE, b"chunk")
    assert await journal.run_ids() == ["run"]


# Which thread writes, and what it waits for


async def thread_of(file: sqlite_file.SqliteFile, size: int = 0) -> str:
    return await file.write(lambda _: threading.current_thread().name, size)


async def test_small_writes_are_made_in_place_and_others_in_the_thread_of_the_file(
    path: Path,
) -> None:
    file, here = sqlite_file.SqliteFile(path, fsync=False), threading.current_thread().name
    assert await thread_of(file) != here  # it opens the file
    assert await thread_of(file) == here
    assert await thread_of(file, sqlite_file.IN_PLACE_BYTES + 1) != here
    assert await file.look(lambda _: threading.current_thread().name) == here
    await file.aclose()
    assert await thread_of(file) != here
    await file.aclose()
    durable = sqlite_file.SqliteFile(path, fsync=True)
    assert [await thread_of(durable), await thread_of(durable)].count(here) == 0
    await durable.aclose()


async def test_a_file_that_another_process_has_locked_keeps_no_loop_waiting(path: Path) -> None:
    journal = SqliteJournal(path)
    await journal.create("run", LEASE, b"chunk")
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        writing = asyncio.ensure_future(journal.append("run", LEASE, b"more"))
        began = time.monotonic()
        await asyncio.sleep(0.05)
        assert time.monotonic() - began < sqlite_file.BUSY_TIMEOUT / 2
        assert not writing.done()
        other.rollback()
    await writing
    assert [chunk async for chunk in journal.read("run")] == [b"chunk", b"more"]
    await journal.aclose()


async def test_large_and_small_appends_keep_their_order(path: Path) -> None:
    journal = SqliteJournal(path)
    await journal.create("run", LEASE, b"")
    sizes = [10, sqlite_file.IN_PLACE_BYTES + 10]
    chunks = [bytes([number]) * sizes[number % 2] for number in range(20)]
    await asyncio.gather(*(journal.append("run", LEASE, chunk) for chunk in chunks))
    assert [chunk async for chunk in journal.read("run")][1:] == chunks
    await journal.aclose()


async def test_the_write_ahead_log_is_emptied_while_the_file_is_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "_CHECKPOINT_BYTES", most := 256 * 1024)
    journal = SqliteJournal(path)
    await journal.create("run", LEASE, b"")
    for _ in range(100):
        await journal.append("run", LEASE, bytes(20_000))
    await journal.file.read(lambda _: None)  # behind what it has been given
    assert path.stat().st_size > 100 * 20_000 - 2 * most
    assert Path(f"{path}-wal").stat().st_size < 4 * most
    await journal.aclose()


def _size_of_log(path: Path) -> int:
    return Path(f"{path}-wal").stat().st_size


async def test_the_first_write_to_a_new_log_is_made_in_the_thread_of_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """YapDatabase 197: who made it waited for the disk, as SQLite syncs the header of the log."""
    monkeypatch.setattr(sqlite_file, "_CHECKPOINT_BYTES", 256 * 1024)
    called: list[object] = []
    monkeypatch.setattr(sqlite_file, "give_way", called.append)
    journal = SqliteJournal(path)
    await journal.create("run", LEASE, b"")
    logs = set()
    for _ in range(40):
        before, count = _salt_of_log(path), len(called)
        await journal.append("run", LEASE, bytes(20_000))
        if len(called) == count:  # this thread alone has written
            assert _salt_of_log(path) == before
        await journal.file.read(lambda _: None)  # behind a checkpoint
        logs.add(_salt_of_log(path))
    assert len(logs) > 2
    await journal.aclose()


def _salt_of_log(path: Path) -> bytes:
    """What is another in each new log."""
    with Path(f"{path}-wal").open("rb") as file:
        return file.read(24)[16:]


async def test_the_log_is_as_small_as_before_once_nobody_reads_what_is_old(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """loreai 1221 and codebase-memory-mcp 1083: it kept its size for as long as it was used."""
    monkeypatch.setattr(sqlite_file, "_CHECKPOINT_BYTES", most := 256 * 1024)
    monkeypatch.setattr(sqlite_file, "_EMPTYING_TIMEOUT", 0.01)
    journal = SqliteJournal(path)
    await journal.create("run", LEASE, b"")

    async def fill() -> int:
        for _ in range(60):
            await journal.append("run", LEASE, bytes(20_000))
        await journal.file.read(lambda _: None)
        return _size_of_log(path)

    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM runs").fetchone()
        assert await fill() > 4 * most
    assert await fill() <= 2 * most
    await journal.aclose()


_WRITER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], timeout=20, isolation_level=None)
connection.execute("PRAGMA wal_autocheckpoint = 0")
print("ready", flush=True)
while True:
    connection.execute("UPDATE runs SET expires = expires + 1")
    time.sleep(0.0002)
"""


async def test_the_log_is_emptied_also_while_another_process_writes_all_the_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """context-mode 560: the log of several processes grew for as long as they wrote."""
    monkeypatch.setattr(sqlite_file, "_CHECKPOINT_BYTES", 256 * 1024)
    journal, logs = SqliteJournal(path), set()
    await journal.create("run", LEASE, b"")
    command = [sys.executable, "-c", _WRITER, str(path)]
    writer = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert await writer.stdout.readline() == b"ready\n"
    for _ in range(100):
        await journal.append("run", LEASE, bytes(20_000))
        logs.add(_salt_of_log(path))
    writer.kill()
    await writer.wait()
    assert len(logs) > 5
    await journal.aclose()


async def test_a_checkpoint_that_fails_fails_no_run(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sqlite_file, "_CHECKPOINT_BYTES", 0)
    monkeypatch.setattr(sqlite_file, "_MOVE", "PRAGMA no such thing")
    caplog.set_level("DEBUG", "taskiq_flow")
    journal = SqliteJournal(path)
    await journal.create("run", LEASE, b"chunk")
    await journal.append("run", LEASE, b"more")
    assert [chunk async for chunk in journal.read("run")] == [b"chunk", b"more"]
    assert f"the write-ahead log of {path} was not moved: near" in caplog.text
    await journal.aclose()
