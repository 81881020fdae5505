"""A journal in one SQLite file, for all processes of one machine."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from taskiq.abc.serializer import TaskiqSerializer
from taskiq.serializers import JSONSerializer

from taskiq_flow.cleanup import to_the_end
from taskiq_flow.errors import JournalError
from taskiq_flow.journal import errors
from taskiq_flow.journal.lease import is_gone
from taskiq_flow.journal.protocol import Lease, decoded, encoded

T = TypeVar("T")

APPLICATION_ID = 0x74666C6F
"""What tells a journal from other SQLite files: 'tflo'."""

SCHEMA_VERSION = 1

BUSY_PATIENCE = 30.0
"""Seconds to wait for another process that writes to the file."""

_PAUSE = 0.01  # seconds

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE runs (
    number INTEGER PRIMARY KEY, run_id BLOB NOT NULL UNIQUE, owner TEXT, expires REAL NOT NULL
);
CREATE TABLE chunks (number INTEGER PRIMARY KEY, run INTEGER NOT NULL, data BLOB NOT NULL);
CREATE INDEX chunks_of_run ON chunks (run, number);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""

_READ_AT_ONCE = 64  # chunks


class _Own(threading.local):
    """What each thread has to itself: one may still be closing the file when the next opens it."""

    connection: sqlite3.Connection | None = None


class SqliteJournal:
    """Keeps runs in the SQLite file at ``path``, which is made if it is not there.

    What was written survives a kill of the process. ``fsync=True``: a loss of power as well, as
    nothing counts as written before the disk has it; that takes the disk's time for each batch.
    ``serializer``: how values are written, JSON by default.

    The file is opened when it is first needed. All engines of a machine may share it, not those of
    several: SQLite's log ahead of writing (WAL) works by shared memory.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        fsync: bool = False,
        serializer: TaskiqSerializer | None = None,
    ) -> None:
        self.serializer = JSONSerializer() if serializer is None else serializer
        self._path = Path(path)
        self._fsync = fsync
        self._own = _Own()
        # SQLite blocks, and a connection is used by one thread at a time: this one.
        self._thread: ThreadPoolExecutor | None = None

    async def create(self, run_id: str, lease: Lease, chunk: bytes) -> None:
        """Begin a log."""

        def insert(connection: sqlite3.Connection) -> None:
            expires = time.time() + lease.seconds
            try:
                run = connection.execute(
                    "INSERT INTO runs (run_id, owner, expires) VALUES (?, ?, ?)",
                    (encoded(run_id), lease.owner, expires),
                ).lastrowid
            except sqlite3.IntegrityError:
                raise errors.exists(run_id) from None
            connection.execute("INSERT INTO chunks (run, data) VALUES (?, ?)", (run, chunk))

        await self._write(insert)

    async def acquire(self, run_id: str, lease: Lease) -> None:
        """Take the lease of a log, at once if its owner was a process here that is gone."""

        def take(connection: sqlite3.Connection) -> None:
            number = _free(connection, run_id, lease.owner)
            connection.execute(
                "UPDATE runs SET owner = ?, expires = ? WHERE number = ?",
                (lease.owner, time.time() + lease.seconds, number),
            )

        await self._write(take)

    async def renew(self, run_id: str, lease: Lease) -> None:
        """Keep a lease."""
        await self._write(lambda connection: _renew(connection, run_id, lease))

    async def release(self, run_id: str, lease: Lease) -> None:
        """Give a lease back."""
        await self._write(
            lambda connection: connection.execute(
                "UPDATE runs SET owner = NULL WHERE run_id = ? AND owner = ?",
                (encoded(run_id), lease.owner),
            )
        )

    async def append(self, run_id: str, lease: Lease, chunk: bytes) -> None:
        """Add a chunk, and renew the lease with it."""

        def insert(connection: sqlite3.Connection) -> None:
            number = _renew(connection, run_id, lease)
            connection.execute("INSERT INTO chunks (run, data) VALUES (?, ?)", (number, chunk))

        await self._write(insert)

    async def read(self, run_id: str) -> AsyncGenerator[bytes, None]:
        """The chunks of a log."""
        run, last = await self._call(lambda connection: _run(connection, run_id)[0]), 0
        while True:
            rows = await self._call(partial(_chunks, run=run, behind=last))
            for _, data in rows:
                yield data
            if len(rows) < _READ_AT_ONCE:
                return
            last = rows[-1][0]

    async def run_ids(self) -> list[str]:
        """The logs there are."""
        rows = await self._call(
            lambda connection: connection.execute(
                "SELECT run_id FROM runs ORDER BY number"
            ).fetchall()
        )
        return [decoded(run_id) for (run_id,) in rows]

    async def delete(self, run_id: str) -> None:
        """Remove a log."""

        def remove(connection: sqlite3.Connection) -> None:
            number = _free(connection, run_id, None)
            connection.execute("DELETE FROM chunks WHERE run = ?", (number,))
            connection.execute("DELETE FROM runs WHERE number = ?", (number,))

        await self._write(remove)

    async def aclose(self) -> None:
        """Close the file. It is opened again when it is needed again."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        closing = asyncio.wrap_future(thread.submit(self._close))
        await to_the_end(asyncio.wait_for(closing, None))
        thread.shutdown(wait=False)

    # In the journal's thread

    def _close(self) -> None:
        if self._own.connection is not None:
            self._own.connection.close()
            self._own.connection = None

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def in_a_transaction(connection: sqlite3.Connection) -> T:
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            return result

        return await self._call(in_a_transaction)

    async def _call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def call() -> T:
            with self._explained():
                if self._own.connection is None:
                    self._own.connection = self._opened()
                return work(self._own.connection)

        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="taskiq_flow-journal")
        return await asyncio.wrap_future(self._thread.submit(call))

    def _opened(self) -> sqlite3.Connection:
        """Open the file, after others that are just making it or letting go of it.

        SQLite waits for whoever writes, and not for these.
        """
        gives_up_at = time.monotonic() + BUSY_PATIENCE
        while True:
            try:
                return self._open()
            except sqlite3.OperationalError as error:
                code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without its details
                if code != sqlite3.SQLITE_BUSY or time.monotonic() > gives_up_at:
                    raise
            time.sleep(_PAUSE)

    def _open(self) -> sqlite3.Connection:
        if self._path.exists() and self._path.stat().st_size:
            self._check()
        connection = sqlite3.connect(
            self._path, timeout=BUSY_PATIENCE, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {'FULL' if self._fsync else 'NORMAL'}")
            if not connection.execute("PRAGMA user_version").fetchone()[0]:
                self._declare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    @staticmethod
    def _declare(connection: sqlite3.Connection) -> None:
        try:
            connection.executescript(_SCHEMA)
        except sqlite3.OperationalError:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if not connection.execute("PRAGMA user_version").fetchone()[0]:
                raise  # and it was not that another process has just done so

    def _check(self) -> None:
        """Look at a file that is there before anything is written to it."""
        if not os.access(self._path, os.W_OK):  # to be read, it would still need files beside it
            raise PermissionError(f"{self._path} may not be written")
        # Where nothing lies beside the file, a look that may write clears away what it puts there.
        # What a kill has left beside it is not for a look to bring in.
        mode = "ro" if Path(f"{self._path}-wal").exists() else "rw"
        location = f"file:{quote(os.fsencode(self._path.absolute()))}?mode={mode}"
        connection = sqlite3.connect(location, uri=True, timeout=BUSY_PATIENCE)
        try:
            connection.execute("BEGIN")  # it is looked at as it is at one moment
            ours = connection.execute("PRAGMA application_id").fetchone()[0]
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if (ours, version) == (0, 0) and not connection.execute(
                "SELECT count(*) FROM sqlite_master"
            ).fetchone()[0]:
                return  # another process has made the file and is about to declare its tables
            if ours != APPLICATION_ID:
                raise JournalError(
                    f"{self._path} is a database, but no journal; give it a file of its own"
                )
            if version != SCHEMA_VERSION:
                raise JournalError(
                    f"{self._path} is a journal of format {version}, and this version of "
                    f"taskiq_flow reads format {SCHEMA_VERSION}; use the version that wrote it, or "
                    "give the journal another file"
                )
            # A quick_check would not see that a chunk is missing in the index by which it is read.
            problem = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if problem != "ok":
                raise sqlite3.DatabaseError(problem.splitlines()[-1])
        finally:
            connection.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:  # of the disk, of the file's place or rights
            raise JournalError(
                f"the journal {self._path} cannot be used: {error}; see to its folder, its disk "
                "and its rights, then resume the run"
            ) from error
        except sqlite3.DataError as error:
            raise JournalError(
                f"the journal {self._path} cannot take that much at once: {error}; have large "
                "results passed by reference, or keep runs elsewhere"
            ) from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # or damage in its message
            raise JournalError(
                f"the journal {self._path} is damaged: {error}; it was left as it is: restore it "
                "from a copy, or give the journal another file"
            ) from error
        except OSError as error:
            raise JournalError(
                f"the journal {self._path} cannot be opened: {error}; give it another file"
            ) from error


def _run(connection: sqlite3.Connection, run_id: str) -> tuple[int, str | None, float]:
    row: tuple[int, str | None, float] | None = connection.execute(
        "SELECT number, owner, expires FROM runs WHERE run_id = ?", (encoded(run_id),)
    ).fetchone()
    if row is None:
        raise errors.not_found(run_id)
    return row


def _chunks(connection: sqlite3.Connection, run: int, behind: int) -> list[tuple[int, bytes]]:
    return connection.execute(
        "SELECT number, data FROM chunks WHERE run = ? AND number > ? ORDER BY number LIMIT ?",
        (run, behind, _READ_AT_ONCE),
    ).fetchall()


def _free(connection: sqlite3.Connection, run_id: str, owner: str | None) -> int:
    """The number of a run that nobody else has."""
    number, other, expires = _run(connection, run_id)
    left = expires - time.time()
    if other not in (None, owner) and left > 0 and not is_gone(str(other)):
        raise errors.locked(run_id, str(other), left)
    return number


def _renew(connection: sqlite3.Connection, run_id: str, lease: Lease) -> int:
    """Keep a lease; the number of its run."""
    row = connection.execute(
        "UPDATE runs SET expires = ? WHERE run_id = ? AND owner = ? RETURNING number",
        (time.time() + lease.seconds, encoded(run_id), lease.owner),
    ).fetchone()
    if row is None:
        _run(connection, run_id)
        raise errors.taken_over(run_id)
    number: int = row[0]
    return number
