"""A journal in one SQLite file, for all processes of one machine."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import AsyncGenerator
from functools import partial

from taskiq.abc.serializer import TaskiqSerializer
from taskiq.serializers import JSONSerializer

from taskiq_flow.journal import errors
from taskiq_flow.journal.lease import is_gone
from taskiq_flow.journal.protocol import Lease, decoded, encoded, is_run
from taskiq_flow.journal.sqlite_file import SqliteFile

_CHUNKS_PER_READ = 64


class SqliteJournal:
    """A journal in the SQLite file at ``path``, which is created if it does not exist.

    Writes survive a kill of the process. With ``fsync=True`` they also survive a loss of power;
    each batch then waits for the disk. ``serializer``: serializes values; JSON by default.

    The file is opened at the first call, and again in a forked process. All engines of one machine
    may share it. Several machines may not: SQLite's write-ahead log (WAL) needs shared memory. A
    relative path is resolved now.

    >>> dag = DAGBuilder().node(abs, inputs=["number"]).build()
    >>> async def main():
    ...     journal = SqliteJournal("runs.db")
    ...     engine = ExecutionEngine(InMemoryBroker(), dag, journal=journal)
    ...     await engine.execute({"number": -1}, run_id="r1")
    ...     print(await journal.run_ids())
    ...     await journal.aclose()
    >>> asyncio.run(main())
    ['r1']
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        fsync: bool = False,
        serializer: TaskiqSerializer | None = None,
    ) -> None:
        self.serializer = JSONSerializer() if serializer is None else serializer
        self.file = SqliteFile(path, fsync=fsync)

    def __repr__(self) -> str:
        return f"<SqliteJournal at {self.file.path}>"

    async def create(self, run_id: str, lease: Lease, chunk: bytes) -> None:
        """Create a log and take its lease."""

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

        await self.file.write(insert)

    async def acquire(self, run_id: str, lease: Lease) -> None:
        """Take the lease of a log, at once if its owner was a process here that has ended."""

        def take(connection: sqlite3.Connection) -> None:
            number = _unlocked_run(connection, run_id, lease.owner)
            connection.execute(
                "UPDATE runs SET owner = ?, expires = ? WHERE number = ?",
                (lease.owner, time.time() + lease.seconds, number),
            )

        await self.file.write(take)

    async def renew(self, run_id: str, lease: Lease) -> None:
        """Renew a lease."""
        await self.file.write(lambda connection: _renew(connection, run_id, lease))

    async def release(self, run_id: str, lease: Lease) -> None:
        """Release a lease."""
        await self.file.write(
            lambda connection: connection.execute(
                "UPDATE runs SET owner = NULL WHERE run_id = ? AND owner = ?",
                (encoded(run_id), lease.owner),
            )
        )

    async def append(self, run_id: str, lease: Lease, chunk: bytes) -> None:
        """Append a chunk, and renew the lease with it."""

        def insert(connection: sqlite3.Connection) -> None:
            number = _renew(connection, run_id, lease)
            connection.execute("INSERT INTO chunks (run, data) VALUES (?, ?)", (number, chunk))

        await self.file.write(insert)

    async def read(self, run_id: str) -> AsyncGenerator[bytes, None]:
        """Yield the chunks of a log."""
        run, last = await self.file.read(lambda connection: _find_run(connection, run_id)[0]), 0
        while True:
            rows = await self.file.read(partial(_chunks, run=run, after=last))
            for _, data in rows:
                yield data
            if len(rows) < _CHUNKS_PER_READ:
                return
            last = rows[-1][0]

    async def run_ids(self) -> list[str]:
        """The ids of all runs."""
        rows = await self.file.read(
            lambda connection: connection.execute(
                "SELECT run_id FROM runs ORDER BY number"
            ).fetchall()
        )
        return list(filter(is_run, (decoded(run_id) for (run_id,) in rows)))

    async def delete(self, run_id: str) -> None:
        """Delete a log."""

        def remove(connection: sqlite3.Connection) -> None:
            number = _unlocked_run(connection, run_id, None)
            connection.execute("DELETE FROM chunks WHERE run = ?", (number,))
            connection.execute("DELETE FROM runs WHERE number = ?", (number,))

        await self.file.write(remove)

    async def check(self) -> None:
        """Read the whole file. Raises ``JournalError`` if it is damaged.

        Opening the file does the same if a process was killed while it had the file open.
        """
        await self.file.check()

    async def aclose(self) -> None:
        """Close the file. Using the journal again opens it again."""
        await self.file.aclose()


def _find_run(connection: sqlite3.Connection, run_id: str) -> tuple[int, str | None, float]:
    row: tuple[int, str | None, float] | None = connection.execute(
        "SELECT number, owner, expires FROM runs WHERE run_id = ?", (encoded(run_id),)
    ).fetchone()
    if row is None:
        raise errors.not_found(run_id)
    return row


def _chunks(connection: sqlite3.Connection, run: int, after: int) -> list[tuple[int, bytes]]:
    return connection.execute(
        "SELECT number, data FROM chunks WHERE run = ? AND number > ? ORDER BY number LIMIT ?",
        (run, after, _CHUNKS_PER_READ),
    ).fetchall()


def _unlocked_run(connection: sqlite3.Connection, run_id: str, owner: str | None) -> int:
    """The number of a run. Raises ``RunLockedError`` if another owner has its lease."""
    number, other, expires = _find_run(connection, run_id)
    left = expires - time.time()
    if other not in (None, owner) and left > 0 and not is_gone(str(other)):
        raise errors.locked(run_id, str(other), left)
    return number


def _renew(connection: sqlite3.Connection, run_id: str, lease: Lease) -> int:
    """Renew a lease. Returns the number of its run."""
    row = connection.execute(
        "UPDATE runs SET expires = ? WHERE run_id = ? AND owner = ? RETURNING number",
        (time.time() + lease.seconds, encoded(run_id), lease.owner),
    ).fetchone()
    if row is None:
        _find_run(connection, run_id)
        raise errors.taken_over(run_id)
    number: int = row[0]
    return number
