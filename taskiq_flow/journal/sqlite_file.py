"""A journal's SQLite file: its connection, its thread, its tables and its errors."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from taskiq_flow.cleanup import to_the_end
from taskiq_flow.errors import JournalError
from taskiq_flow.giving_way import give_way
from taskiq_flow.journal.lease import is_gone, new_owner
from taskiq_flow.journal.sqlite_opened import Opened, id_of, replacing
from taskiq_flow.journal.sqlite_rows import ADDED_COLUMNS, ADDED_TABLES, TAGS_COLUMN

logger = logging.getLogger("taskiq_flow")

T = TypeVar("T")

APPLICATION_ID = 0x74666C6F
"""Marks a SQLite file as a journal: 'tflo' in ASCII."""

SCHEMA_VERSION = 3
"""The version of the file. One of version 1 or 2 gets what it lacks when it is opened.

Version 1 has no events, and version 2 has a line for each of them.
"""

_OF_LINES = 2
"""The version of files that have a line for each event."""

BUSY_TIMEOUT = 30.0
"""Seconds to wait for another process that has the file locked."""

_BUSY_DELAY = 0.002  # seconds

IN_PLACE_BYTES = 64 * 1024
"""Bytes that are written in the caller's thread at the most."""

PAUSE = 0.001
"""Seconds between two writes for which records gather."""

_CHECKPOINT_BYTES = 4 * 1024 * 1024
"""Bytes in the write-ahead log that are moved into the file, as many as SQLite would wait for."""

_MOVE = "PRAGMA wal_checkpoint(PASSIVE)"

_EMPTY = "PRAGMA wal_checkpoint(RESTART)"

_EMPTYING_TIMEOUT = 0.1
"""Seconds that emptying the log waits for others at most. No process can write meanwhile."""

_BYTES_PER_WRITE = 16 * 1024
"""What a transaction adds to the log at least: some pages."""

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE runs (
    number INTEGER PRIMARY KEY, run_id BLOB NOT NULL UNIQUE, owner TEXT, expires REAL NOT NULL,
    {", ".join((*ADDED_COLUMNS, TAGS_COLUMN))}
);
CREATE TABLE chunks (number INTEGER PRIMARY KEY, run INTEGER NOT NULL, data BLOB NOT NULL);
CREATE INDEX chunks_of_run ON chunks (run, number);
{ADDED_TABLES}
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""

_UPGRADE = f"""
BEGIN IMMEDIATE;
{"".join(f"ALTER TABLE runs ADD COLUMN {column};" for column in (*ADDED_COLUMNS, TAGS_COLUMN))}
{ADDED_TABLES}
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""

_OPENERS = """
CREATE TABLE IF NOT EXISTS openers (owner TEXT PRIMARY KEY, opened REAL NOT NULL)
"""
"""The owners of open connections. If an owner's process has ended, it was killed."""

_RENEW_OPENER = "UPDATE openers SET opened = ? WHERE owner = ?"

_FORGET_OPENER = "DELETE FROM openers WHERE owner = ?"

OPENER_EXPIRY = 30 * 24 * 3600.0
"""Seconds after which an opener is removed whose process cannot be seen, in a container say. They
count from when it opened the file or last emptied the log."""


class _Turns(asyncio.Lock):
    """Has the writes of one loop made one at a time. ``users``: how many there are."""

    users = 0


class SqliteFile:
    """The file at ``path``, opened at the first call.

    A small write is made in the caller's thread, in 0.1 ms: to hand it to another one takes longer,
    and far longer beside a busy event loop (``giving_way.py``). What may wait has a thread of its
    own all the same: opening, the disk (``fsync``), large values, long reads, locks and
    checkpoints.

    Calls raise ``JournalError`` if SQLite or the disk fails.
    """

    def __init__(self, path: str | os.PathLike[str], *, fsync: bool) -> None:
        self.path = Path(path).absolute()
        self._path = str(self.path)
        self._fsync = fsync
        self._opened = Opened()
        self._openings = self._writes = 0
        self._written_at = -math.inf
        self._turns: dict[asyncio.AbstractEventLoop, _Turns] = {}

    def is_written(self) -> bool:
        """Whether there is a file, and something in it."""
        try:
            return self.path.stat().st_size > 0
        except FileNotFoundError:
            return False
        except OSError:  # opening it says what is wrong
            return True

    async def write_in_turn(self, work: Callable[[sqlite3.Connection], T], size: int) -> T:
        """Write in the order of the calls, and a while after the last write.

        Records gather meanwhile: a busy event loop would write each of them alone.
        """
        loop = asyncio.get_running_loop()
        turns = self._turns.setdefault(loop, _Turns())
        has_waited = turns.locked()
        turns.users += 1
        try:
            async with turns:
                pause = self._written_at + PAUSE - time.monotonic()
                if pause > 0 and not has_waited:
                    await asyncio.sleep(pause)
                return await self.write(work, size)
        finally:
            turns.users -= 1
            if not turns.users:  # it refers to the loop, which may end
                del self._turns[loop]

    async def write(self, work: Callable[[sqlite3.Connection], T], size: int = 0) -> T:
        """Call ``work`` with the connection, in a transaction; return what it returns.

        ``size``: about how many bytes it writes.
        """
        opened = self._current()

        def write(connection: sqlite3.Connection) -> T:
            result = _in_transaction(connection, work)
            self._writes += 1  # here, as the caller may be cancelled meanwhile
            self._written_at = time.monotonic()
            return result

        if self._fsync or size > IN_PLACE_BYTES:
            result = await self.read(write)
        else:
            result = await self.look(write)
        opened.bytes_in_log += size + _BYTES_PER_WRITE
        if opened.bytes_in_log > _CHECKPOINT_BYTES:
            opened.bytes_in_log = 0
            called = opened.submit(self._checkpoint)
            if called is not None:
                give_way(called)
        return result

    async def look(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Call ``work``, which takes little time, in this thread; return what it returns."""
        opened = self._current()
        if opened.connection is not None and opened.lock.acquire(blocking=False):
            try:
                opened.caller = threading.get_ident()
                # Nobody has just closed it, and it is the file that readers find.
                if opened.connection is not None and not self._is_removed(opened):
                    with self._translated_errors():
                        return work(opened.connection)
            except JournalError as error:
                if not _is_busy(error.__cause__):
                    raise
            finally:
                opened.caller = None
                opened.lock.release()
        return await self.read(work)

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Call ``work`` with the connection, in the file's thread; return what it returns."""

        def call(opened: Opened) -> T:
            with self._translated_errors(), opened.lock:
                self._leave_if_removed(opened)
                return _when_free(lambda: work(opened.connection or self._open(opened)))

        while (called := self._current().submit(call)) is None:
            pass  # it was closed in another thread
        give_way(called)
        return await asyncio.wrap_future(called)

    def _current(self) -> Opened:
        if self._opened.is_over:
            with replacing:  # other threads have the same one
                if self._opened.is_over:
                    self._opened = Opened()
        return self._opened

    def _is_removed(self, opened: Opened) -> bool:
        """Whether the file that is open has another name by now, or none."""
        return id_of(self._path) != opened.file_id

    async def changes(self) -> tuple[int, int, int]:
        """What is another value once something was written to the file."""
        version = await self.look(
            # It tells of what other connections have written.
            lambda connection: (
                self._openings,
                connection.execute("PRAGMA data_version").fetchone()[0],
            )
        )
        return (*version, self._writes)

    async def check(self) -> None:
        """Read the whole file. Raises ``JournalError`` if it is damaged."""
        await self.read(_check_integrity)

    async def aclose(self) -> None:
        """Close the file. Another call opens it again."""
        closing = self._current().close(_close)
        if closing is not None:
            await to_the_end(asyncio.wait_for(asyncio.wrap_future(closing), None))

    # In the file's thread

    def _leave_if_removed(self, opened: Opened) -> None:
        """Close a file in which nobody would find what is written."""
        if opened.connection is None or not self._is_removed(opened):
            return
        logger.warning(
            "the journal %s was removed or replaced while it was open; it is opened anew", self.path
        )
        opened.connection.close()
        opened.connection, opened.opener = None, ""

    def _checkpoint(self, opened: Opened) -> None:
        """Move the write-ahead log into the file, as far as no reader needs it.

        This waits for the disk, while writes go on. The log begins anew only if all of it was
        moved: so what they have added is moved while neither this process nor another writes.
        The first write to the new log is made here: it waits for the disk once more, and cuts off
        what readers have made the log longer by.
        """
        try:
            connecting = contextlib.closing(self._connect("rw", _EMPTYING_TIMEOUT))
            with opened.moving, connecting as connection:
                connection.execute(f"PRAGMA journal_size_limit = {2 * _CHECKPOINT_BYTES}")
                _, pages, moved = connection.execute(_MOVE).fetchone()
                if moved > pages / 2:  # else a reader needs the rest, and all would wait for it
                    with opened.lock, connection:
                        connection.execute(_EMPTY).fetchone()
                        connection.execute(_RENEW_OPENER, (time.time(), opened.opener))
        except sqlite3.Error as error:  # the log grows, and the next call moves more
            logger.debug("the write-ahead log of %s was not moved: %s", self.path, error)

    def _connect(self, mode: str, timeout: float = BUSY_TIMEOUT) -> sqlite3.Connection:
        """A further connection to the file, which must exist."""
        location = f"file:{quote(os.fsencode(self.path))}?mode={mode}"
        return sqlite3.connect(location, uri=True, timeout=timeout)

    def _open(self, opened: Opened) -> sqlite3.Connection:
        if self.path.exists() and self.path.stat().st_size:
            self._check_format()
        # It never waits for a lock: a call in place must not, and others are made once more.
        connection = sqlite3.connect(
            self.path, timeout=0.0, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {'FULL' if self._fsync else 'NORMAL'}")
            connection.execute("PRAGMA wal_autocheckpoint = 0")  # it would wait for the disk
            self._create_tables(connection)
            if not opened.opener:  # else it was closed for a fork
                opened.opener = self._register_opener(connection)
            opened.bytes_in_log = Path(f"{self.path}-wal").stat().st_size
        except BaseException:  # whatever it is, the file must not stay open
            connection.close()
            raise
        opened.file_id = id_of(self._path)
        self._openings += 1
        opened.connection = connection
        return connection

    @staticmethod
    def _create_tables(connection: sqlite3.Connection) -> None:
        """Create the tables, or those that a file of an earlier version lacks."""
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        try:
            if version == _OF_LINES:
                _in_transaction(connection, _allow_columns)
            elif version != SCHEMA_VERSION:
                connection.executescript(_UPGRADE if version else _SCHEMA)
        except sqlite3.OperationalError:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if not _has_tags(connection):
                raise  # else another process has just created them

    @staticmethod
    def _register_opener(connection: sqlite3.Connection) -> str:
        """Record that this process has the file open, and return the name that it has there.

        If another process was killed while it had the file open, check the file first. For a large
        file that takes long, so it is done outside a transaction, which would block others.
        """
        connection.execute(_OPENERS)
        openers = [owner for (owner,) in connection.execute("SELECT owner FROM openers")]
        gone = [(owner,) for owner in openers if is_gone(owner)]
        if gone:
            _check_integrity(connection)
        opener, now = new_owner(), time.time()

        def register(connection: sqlite3.Connection) -> None:
            connection.executemany(_FORGET_OPENER, gone)
            connection.execute("DELETE FROM openers WHERE opened < ?", (now - OPENER_EXPIRY,))
            connection.execute("INSERT INTO openers VALUES (?, ?)", (opener, now))

        _in_transaction(connection, register)
        return opener

    def _check_format(self) -> None:
        """Check that an existing file is a journal of this format. Writes nothing to it."""
        if not os.access(self.path, os.W_OK):  # WAL needs files beside it even to read
            raise PermissionError(f"{self.path} may not be written")
        # Without a WAL file, a read-write connection removes the files that it creates. A WAL file
        # that a killed process has left must not be merged by this check, so then read only.
        mode = "ro" if Path(f"{self.path}-wal").exists() else "rw"
        connection = self._connect(mode)
        try:
            connection.execute("BEGIN")  # all reads see one state of the file
            application = connection.execute("PRAGMA application_id").fetchone()[0]
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if (application, version) == (0, 0) and not connection.execute(
                "SELECT count(*) FROM sqlite_master"
            ).fetchone()[0]:
                return  # another process has created the file and not yet its tables
            if application != APPLICATION_ID:
                raise JournalError(
                    f"{self.path} is a database but not a journal; give the journal another file"
                )
            if not 1 <= version <= SCHEMA_VERSION:
                raise JournalError(
                    f"{self.path} is a journal of format {version}, and this version of "
                    f"taskiq_flow reads format {SCHEMA_VERSION}; use the version that wrote it, or "
                    "give the journal another file"
                )
        finally:
            connection.close()

    @contextlib.contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Raise ``JournalError`` in place of SQLite's errors and the disk's."""
        try:
            yield
        except sqlite3.OperationalError as error:  # the disk, the folder or the permissions
            raise JournalError(
                f"the journal {self.path} cannot be used: {error}; check its folder, its disk "
                "and its permissions"
            ) from error
        except sqlite3.DataError as error:
            raise JournalError(
                f"the journal {self.path} cannot store a value this large: {error}; pass large "
                "results by reference, or use another journal"
            ) from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # in a damaged message
            raise JournalError(
                f"the journal {self.path} is damaged: {error}; it was left unchanged: restore "
                "it from a copy, or give the journal another file"
            ) from error
        except OSError as error:
            raise JournalError(
                f"the journal {self.path} cannot be opened: {error}; give it another file"
            ) from error


def _close(opened: Opened) -> None:
    with opened.lock:
        connection, opened.connection = opened.connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):  # then the next open checks the file
                _when_free(lambda: connection.execute(_FORGET_OPENER, (opened.opener,)))
            connection.close()


def _when_free(call: Callable[[], T]) -> T:
    """Call again while another process has the file locked, creates it or closes it."""
    deadline = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            return call()
        except sqlite3.OperationalError as error:
            if not _is_busy(error) or time.monotonic() > deadline:
                raise
        time.sleep(_BUSY_DELAY)


def _is_busy(error: BaseException | None) -> bool:
    """Whether another process has the file locked."""
    primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return primary == sqlite3.SQLITE_BUSY


def _allow_columns(connection: sqlite3.Connection) -> None:
    """Bring a file of version 2 to the present one."""
    if not _has_tags(connection):
        connection.execute(f"ALTER TABLE runs ADD COLUMN {TAGS_COLUMN}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _has_tags(connection: sqlite3.Connection) -> bool:
    """Whether the tables are there with their newest column."""
    columns = connection.execute("SELECT name FROM pragma_table_info('runs')").fetchall()
    return (TAGS_COLUMN.partition(" ")[0],) in columns


def _in_transaction(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = work(connection)
        connection.execute("COMMIT")
    except BaseException:  # whatever it is, no transaction may stay open
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return result


def _check_integrity(connection: sqlite3.Connection) -> None:
    # quick_check would not find a chunk that is missing in the index.
    problem = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if problem != "ok":
        raise sqlite3.DatabaseError(problem.splitlines()[-1])
