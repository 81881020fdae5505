"""The SQLite file of a journal: its thread, its connection, its tables, and its errors."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from taskiq_flow.cleanup import to_the_end
from taskiq_flow.errors import JournalError
from taskiq_flow.journal.lease import is_gone, new_owner

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

_OPENERS = """
CREATE TABLE IF NOT EXISTS openers (owner TEXT PRIMARY KEY, opened REAL NOT NULL)
"""
"""Who has the file open. One whose process is gone has not closed it."""

LONGEST_OPENING = 30 * 24 * 3600.0
"""Seconds after which an opener that cannot be seen from here, in a container say, is forgotten."""


class _Own(threading.local):
    """What each thread has to itself: one may still be closing the file when the next opens it."""

    connection: sqlite3.Connection | None = None
    opener = ""


class SqliteFile:
    """The file at ``path``, opened when it is first needed, by a thread of its own.

    Raises ``JournalError`` for whatever SQLite or the disk does not do.
    """

    def __init__(self, path: str | os.PathLike[str], *, fsync: bool) -> None:
        self._path = Path(path).absolute()
        self._fsync = fsync
        self._pid = os.getpid()
        self._own = _Own()
        self._inherited: list[_Own] = []  # SQLite allows no connection to be closed behind a fork
        # SQLite blocks, and a connection is used by one thread at a time: this one.
        self._thread: ThreadPoolExecutor | None = None

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What ``work`` returns, in a transaction of its own."""
        return await self.read(lambda connection: _in_a_transaction(connection, work))

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What ``work`` returns, given the connection."""

        def call() -> T:
            with self._explained():
                if self._own.connection is None:
                    self._own.connection = self._opened()
                return work(self._own.connection)

        if self._pid != os.getpid():  # neither threads nor connections outlive a fork
            self._pid, self._thread = os.getpid(), None
            self._inherited.append(self._own)
            self._own = _Own()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="taskiq_flow-journal")
        return await asyncio.wrap_future(self._thread.submit(call))

    async def check(self) -> None:
        """Read the whole file. Raises ``JournalError`` if it is damaged."""
        await self.read(_check_whole)

    async def aclose(self) -> None:
        """Close the file. It is opened again when it is needed again."""
        thread, self._thread = self._thread, None
        if thread is None or self._pid != os.getpid():
            return
        closing = asyncio.wrap_future(thread.submit(self._close))
        await to_the_end(asyncio.wait_for(closing, None))
        thread.shutdown(wait=False)

    # In the file's thread

    def _close(self) -> None:
        connection, self._own.connection = self._own.connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):  # then the file is checked once more
                connection.execute("DELETE FROM openers WHERE owner = ?", (self._own.opener,))
            connection.close()

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
            self._check_format()
        connection = sqlite3.connect(
            self._path, timeout=BUSY_PATIENCE, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {'FULL' if self._fsync else 'NORMAL'}")
            if not connection.execute("PRAGMA user_version").fetchone()[0]:
                self._declare(connection)
            self._note_opener(connection)
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

    def _note_opener(self, connection: sqlite3.Connection) -> None:
        """Note that this process has the file open.

        If another was killed while it had, the file is checked first. That takes long for a large
        file, and is done outside of a transaction, so that nobody else has to wait.
        """
        connection.execute(_OPENERS)
        openers = [owner for (owner,) in connection.execute("SELECT owner FROM openers")]
        gone = [(owner,) for owner in openers if is_gone(owner)]
        if gone:
            _check_whole(connection)
        self._own.opener, now = new_owner(), time.time()

        def note(connection: sqlite3.Connection) -> None:
            connection.executemany("DELETE FROM openers WHERE owner = ?", gone)
            connection.execute("DELETE FROM openers WHERE opened < ?", (now - LONGEST_OPENING,))
            connection.execute("INSERT INTO openers VALUES (?, ?)", (self._own.opener, now))

        _in_a_transaction(connection, note)

    def _check_format(self) -> None:
        """Look at a file that is there before anything is written to it."""
        if not os.access(self._path, os.W_OK):  # to be read, it would still need files beside it
            raise PermissionError(f"{self._path} may not be written")
        # Where nothing lies beside the file, a look that may write clears away what it puts there.
        # What a kill has left beside it is not for a look to bring in.
        mode = "ro" if Path(f"{self._path}-wal").exists() else "rw"
        location = f"file:{quote(os.fsencode(self._path))}?mode={mode}"
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
        finally:
            connection.close()

    @contextlib.contextmanager
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


def _in_a_transaction(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = work(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return result


def _check_whole(connection: sqlite3.Connection) -> None:
    # A quick_check would not see that a chunk is missing in the index by which it is read.
    problem = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if problem != "ok":
        raise sqlite3.DatabaseError(problem.splitlines()[-1])
