"""A journal's file in several threads, loops and processes, and its write-ahead log."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sqlite3
import sys
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from taskiq_flow import Lease, SqliteJournal
from taskiq_flow.journal import sqlite_file, sqlite_opened
from tests.journal.open_files import open_files

LEASE = Lease("engine", 60.0)


async def thread_of(file: sqlite_file.SqliteFile) -> str:
    return await file.write(lambda _: threading.current_thread().name)


# Forks


def test_what_a_forked_process_writes_is_kept_once_the_other_has_closed_the_file(
    path: Path,
) -> None:
    journal = SqliteJournal(path)
    asyncio.run(journal.create("parent", LEASE, b"chunk"))
    is_closed, closed = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        with contextlib.suppress(BaseException):
            signal.alarm(10)
            asyncio.run(journal.create("child", LEASE, b"chunk"))
            os.read(is_closed, 1)
            asyncio.run(journal.append("child", LEASE, b"more"))
            code = 0
        os._exit(code)
    asyncio.run(journal.append("parent", LEASE, b"more"))
    asyncio.run(journal.aclose())
    os.write(closed, b"1")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(is_closed)
    os.close(closed)

    async def chunks() -> list[list[bytes]]:
        await journal.check()
        runs = await journal.run_ids()
        found = [[chunk async for chunk in journal.read(run)] for run in runs]
        await journal.aclose()
        return found

    assert asyncio.run(chunks()) == [[b"chunk", b"more"]] * 2


def test_a_fork_waits_for_what_the_thread_of_a_file_does(path: Path) -> None:
    file, reads = sqlite_file.SqliteFile(path, fsync=False), threading.Event()
    forked: list[int] = []

    def read(connection: sqlite3.Connection) -> int:
        reads.set()
        time.sleep(0.05)
        assert not forked
        return int(connection.execute("SELECT count(*) FROM runs").fetchone()[0])

    def fork() -> None:
        reads.wait(10)
        if not (child := os.fork()):
            os._exit(0)
        forked.append(child)

    async def read_and_close() -> int:
        count = await file.read(read)
        await file.aclose()
        return count

    forking = threading.Thread(target=fork)
    forking.start()
    assert asyncio.run(read_and_close()) == 0
    forking.join(10)
    assert os.waitstatus_to_exitcode(os.waitpid(forked[0], 0)[1]) == 0


async def test_a_fork_in_the_middle_of_a_write_does_not_wait_for_its_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler of a signal may fork."""
    monkeypatch.setattr(sqlite_opened, "FORK_PATIENCE", -1)  # without end
    file = sqlite_file.SqliteFile(path, fsync=False)
    await thread_of(file)

    def fork(_: sqlite3.Connection) -> int:
        if not (child := os.fork()):
            os._exit(0)
        return child

    child = await file.write(fork)
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    await file.aclose()


# Loops and threads


def test_a_journal_does_not_hold_loops_that_have_ended(path: Path) -> None:
    journal, loops = SqliteJournal(path), []

    async def append() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await journal.create(str(len(loops)), LEASE, b"chunk")
        await asyncio.gather(*(journal.append(str(len(loops)), LEASE, b"more") for _ in range(3)))

    asyncio.run(append())
    asyncio.run(append())
    # Its thread may still have to return from what has told the first loop of a result, and holds
    # that loop meanwhile. It has returned once it makes its next call.
    asyncio.run(journal.check())
    gc.collect()
    assert [loop() for loop in loops] == [None, None]
    asyncio.run(journal.aclose())


def test_a_journal_may_be_closed_in_one_thread_while_others_use_it(path: Path) -> None:
    journal, errors, ended = SqliteJournal(path), list[BaseException](), threading.Event()
    asyncio.run(journal.create("run", LEASE, b""))

    async def append(size: int) -> None:
        for _ in range(60):
            await journal.append("run", LEASE, bytes(size))

    async def close() -> None:
        while not ended.is_set():
            await journal.aclose()

    def call(function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            asyncio.run(function())
        except BaseException as error:
            errors.append(error)

    sizes = [10, sqlite_file.IN_PLACE_BYTES + 10, 10]
    using = [threading.Thread(target=call, args=(partial(append, size),)) for size in sizes]
    closing = threading.Thread(target=call, args=(close,))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in (*using, closing):
            thread.start()
        for thread in using:
            thread.join(20)
        ended.set()
        closing.join(20)
    finally:
        sys.setswitchinterval(interval)
    assert not errors

    async def count() -> int:
        found = [chunk async for chunk in journal.read("run")]
        await journal.aclose()
        return len(found)

    assert asyncio.run(count()) == 1 + 60 * len(sizes)
    assert not open_files(path)


# Writes


async def test_a_write_whose_caller_was_cancelled_is_seen(path: Path) -> None:
    journal = SqliteJournal(path)
    await journal.create("run", LEASE, b"chunk")
    before = await journal.file.changes()
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        writing = asyncio.ensure_future(journal.append("run", LEASE, b"more"))
        await asyncio.sleep(0.05)
        writing.cancel()
        await asyncio.wait([writing])
        other.rollback()
    assert [chunk async for chunk in journal.read("run")] == [b"chunk", b"more"]
    assert await journal.file.changes() != before
    await journal.aclose()


# The write-ahead log


async def test_the_write_ahead_log_is_emptied_while_another_process_writes_as_well(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "_CHECKPOINT_BYTES", most := 256 * 1024)
    journal = SqliteJournal(path)
    await journal.create("run", LEASE, b"")
    ended = threading.Event()

    def write() -> None:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("PRAGMA wal_autocheckpoint = 0")
            while not ended.is_set():
                other.execute("BEGIN IMMEDIATE")
                other.execute("UPDATE runs SET expires = expires + 1")
                time.sleep(0.004)  # a checkpoint most often begins meanwhile
                other.execute("COMMIT")
                time.sleep(0.001)

    writing = threading.Thread(target=write)
    writing.start()
    try:
        for _ in range(80):
            await journal.append("run", LEASE, bytes(50_000))
    finally:
        ended.set()
        await asyncio.to_thread(writing.join)
    assert Path(f"{path}-wal").stat().st_size < 8 * most
    await journal.aclose()
