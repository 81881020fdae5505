"""A journal in one SQLite file, for all processes of one machine."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncGenerator, Collection
from functools import partial

from taskiq.abc.serializer import TaskiqSerializer
from taskiq.serializers import JSONSerializer

from taskiq_flow.journal import errors
from taskiq_flow.journal import sqlite_rows as rows
from taskiq_flow.journal.lease import is_gone
from taskiq_flow.journal.protocol import EventBatch, Lease, Request, decoded, encoded, is_run
from taskiq_flow.journal.sqlite_file import SqliteFile
from taskiq_flow.journal.summary import RunSummary
from taskiq_flow.suggestions import suggests_keywords

_CHUNKS_PER_READ = 64

LOOK_EVERY = 0.05
"""Seconds between two looks at whether another process has written to the file."""


@suggests_keywords()
class SqliteJournal:
    """A journal in the SQLite file at ``path``, which is created if it does not exist.

    Writes survive a kill of the process. With ``fsync=True`` they also survive a loss of power;
    each batch then waits for the disk. ``serializer``: serializes values; JSON by default.

    The file is opened at the first call, and again in a forked process. All engines of one machine
    may share it. Several machines may not: SQLite's write-ahead log (WAL) needs shared memory. A
    relative path is resolved now. Raises ``ValueError`` for an address and for ``":memory:"``.

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
        if isinstance(path, str) and (path in ("", ":memory:") or "://" in path):
            raise ValueError(
                f"{path!r} is not the path of a SQLite file; give one, such as 'runs.db', or a "
                "MemoryJournal() to keep runs in memory"
            )
        self.serializer = JSONSerializer() if serializer is None else serializer
        self.file = SqliteFile(path, fsync=fsync)

    def __repr__(self) -> str:
        return f"<SqliteJournal at {self.file.path}>"

    async def create(
        self, run_id: str, lease: Lease, chunk: bytes | None, batch: EventBatch | None = None
    ) -> None:
        """Create a log and take its lease."""

        def insert(connection: sqlite3.Connection) -> None:
            expires = time.time() + lease.seconds
            try:
                run = connection.execute(
                    "INSERT INTO runs (run_id, owner, expires) VALUES (?, ?, ?) RETURNING number",
                    (encoded(run_id), lease.owner, expires),
                ).fetchone()[0]
            except sqlite3.IntegrityError:
                raise errors.exists(run_id) from None
            rows.forget_events(connection, run)
            if batch is not None:
                rows.renew(connection, encoded(run_id), lease.owner, batch.summary, expires)
            rows.write(connection, run, chunk, batch)

        await self.file.write(insert, rows.size(chunk, batch))

    async def acquire(self, run_id: str, lease: Lease) -> None:
        """Take the lease of a log, at once if its owner was a process here that has ended."""

        def take(connection: sqlite3.Connection) -> None:
            number = _unlocked_run(connection, run_id, lease.owner)
            connection.execute(
                "UPDATE runs SET owner = ?, expires = ?, request = NULL WHERE number = ?",
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

    async def append(
        self, run_id: str, lease: Lease, chunk: bytes | None, batch: EventBatch | None = None
    ) -> None:
        """Append a chunk and events, and renew the lease with them."""

        def insert(connection: sqlite3.Connection) -> None:
            number = _renew(connection, run_id, lease, batch)
            rows.write(connection, number, chunk, batch)

        await self.file.write_in_turn(insert, rows.size(chunk, batch))

    async def read(self, run_id: str) -> AsyncGenerator[bytes, None]:
        """Yield the chunks of a log."""
        run, last = await self.file.look(lambda connection: _find_run(connection, run_id)[0]), 0
        while True:
            found = await self.file.read(partial(_chunks, run=run, after=last))
            for _, data in found:
                yield data
            if len(found) < _CHUNKS_PER_READ:
                return
            last = found[-1][0]

    async def run_ids(self) -> list[str]:
        """The ids of all runs."""
        found = await self.file.read(
            lambda connection: connection.execute(
                "SELECT run_id FROM runs ORDER BY number"
            ).fetchall()
        )
        return list(filter(is_run, (decoded(run_id) for (run_id,) in found)))

    async def delete(self, run_id: str) -> None:
        """Delete a log."""

        def remove(connection: sqlite3.Connection) -> None:
            number = _unlocked_run(connection, run_id, None)
            connection.execute("DELETE FROM chunks WHERE run = ?", (number,))
            rows.forget_events(connection, number)
            connection.execute("DELETE FROM runs WHERE number = ?", (number,))

        await self.file.write(remove)

    async def events(self, run_id: str, after: int = 0) -> AsyncGenerator[bytes, None]:
        """Yield the lines of a run's events."""
        run = await self.file.look(lambda connection: _find_run(connection, run_id)[0])
        last = after
        while found := await self.file.read(partial(rows.events, run=run, after=last)):
            for _, lines in found:
                yield lines
            last = found[-1][0]

    async def summary(self, run_id: str) -> RunSummary:
        """The summary of a run."""

        def find(connection: sqlite3.Connection) -> RunSummary:
            number = _find_run(connection, run_id)[0]
            return rows.summary(connection, number, time.time())

        return await self.file.look(find)

    async def summaries(
        self,
        *,
        status: str | None = None,
        name: str | None = None,
        since: float | None = None,
        before: float | None = None,
        limit: int = 100,
        tags: Collection[str] = (),
    ) -> list[RunSummary]:
        """The summaries of runs, the newest first."""
        return await self.file.read(
            lambda connection: rows.summaries(
                connection, time.time(), status, name, since, before, limit, tags
            )
        )

    async def changed(self, run_id: str, mark: object, seconds: float) -> object:
        """Wait until something was written to the file, by this process or by another."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while loop.time() < until:
            if (changes := await self.file.changes()) != mark:
                return changes
            await asyncio.sleep(LOOK_EVERY)
        return mark

    async def request(self, run_id: str, request: Request) -> None:
        """Store a request."""

        def store(connection: sqlite3.Connection) -> None:
            number = _find_run(connection, run_id)[0]
            connection.execute("UPDATE runs SET request = ? WHERE number = ?", (request, number))

        await self.file.write(store)

    async def requested(self, run_id: str) -> str | None:
        """The request that was stored."""

        def find(connection: sqlite3.Connection) -> str | None:
            number = _find_run(connection, run_id)[0]
            found: str | None = connection.execute(
                "SELECT request FROM runs WHERE number = ?", (number,)
            ).fetchone()[0]
            return found

        return await self.file.look(find)

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


def _renew(
    connection: sqlite3.Connection, run_id: str, lease: Lease, batch: EventBatch | None = None
) -> int:
    """Renew a lease, and write the summary with it. Returns the number of the run."""
    expires = time.time() + lease.seconds
    if batch is None:
        row = connection.execute(
            "UPDATE runs SET expires = ? WHERE run_id = ? AND owner = ? RETURNING number",
            (expires, encoded(run_id), lease.owner),
        ).fetchone()
    else:
        row = rows.renew(connection, encoded(run_id), lease.owner, batch.summary, expires)
    if row is None:
        _find_run(connection, run_id)
        raise errors.taken_over(run_id)
    number: int = row[0]
    return number
