"""The rows of a journal's SQLite file that say what becomes of runs: events and summaries."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from taskiq_flow.journal.lease import is_gone
from taskiq_flow.journal.protocol import EventBatch, decoded
from taskiq_flow.journal.summary import RunSummary

ADDED_COLUMNS = (
    *("status TEXT", "name TEXT", "started REAL", "ended REAL", "seq INTEGER"),
    *("total INTEGER", "completed INTEGER", "failed INTEGER", "skipped INTEGER"),
    *("host TEXT", "pid INTEGER", "parent TEXT", "is_resumable INTEGER", "request TEXT"),
)
"""Columns of ``runs`` that a file of format 1 lacks. Its runs have no ``status``."""

TAGS_COLUMN = "tags TEXT"
"""A column that earlier files of format 2 lack: a list as JSON. Earlier versions pass over it."""

ADDED_TABLES = """
CREATE TABLE events (
    run INTEGER NOT NULL, last INTEGER NOT NULL, lines BLOB NOT NULL, PRIMARY KEY (run, last)
) WITHOUT ROWID;
CREATE INDEX runs_by_start ON runs (started);
"""

_COLUMNS = (
    *("status", "name", "started", "ended", "seq", "total", "completed", "failed", "skipped"),
    *("host", "pid", "parent", "is_resumable", "tags"),
)
_ASSIGNED = ", ".join(f"{column} = ?" for column in _COLUMNS)
_SELECT = f"SELECT run_id, owner, expires, {', '.join(_COLUMNS)} FROM runs"  # noqa: S608

_ROWS_PER_READ = 64


def size(chunk: bytes | None, batch: EventBatch | None) -> int:
    """How many bytes a chunk and events have."""
    return (0 if chunk is None else len(chunk)) + (0 if batch is None else len(batch.lines))


def write(
    connection: sqlite3.Connection, run: int, chunk: bytes | None, batch: EventBatch | None
) -> None:
    """Insert a chunk and events."""
    if chunk is not None:
        connection.execute("INSERT INTO chunks (run, data) VALUES (?, ?)", (run, chunk))
    if batch is not None and batch.lines:
        connection.execute(
            "INSERT INTO events VALUES (?, ?, ?)", (run, batch.summary.seq, batch.lines)
        )


def forget_events(connection: sqlite3.Connection, run: int) -> None:
    """Delete the events of a run that is deleted, or of one whose number a new run was given.

    A process of an earlier version that has the file open deletes runs without their events.
    """
    connection.execute("DELETE FROM events WHERE run = ?", (run,))


def renew(
    connection: sqlite3.Connection, run_id: bytes, owner: str, summary: RunSummary, expires: float
) -> tuple[int] | None:
    """Renew a lease, and write the summary. Returns the run's number, if the owner has the run."""
    row: tuple[int] | None = connection.execute(
        f"UPDATE runs SET expires = ?, {_ASSIGNED} "  # noqa: S608
        "WHERE run_id = ? AND owner = ? RETURNING number",
        (expires, *_values(summary), run_id, owner),
    ).fetchone()
    return row


def events(connection: sqlite3.Connection, run: int, after: int) -> list[tuple[int, bytes]]:
    """The next lines of events, each with the number of its last event."""
    return connection.execute(
        "SELECT last, lines FROM events WHERE run = ? AND last > ? ORDER BY last LIMIT ?",
        (run, after, _ROWS_PER_READ),
    ).fetchall()


def summary(connection: sqlite3.Connection, run: int, now: float) -> RunSummary:
    """The summary of a run. ``now``: as leases are measured."""
    return next(_read(connection.execute(f"{_SELECT} WHERE number = ?", (run,)), now))


def summaries(
    connection: sqlite3.Connection,
    now: float,
    status: str | None,
    name: str | None,
    since: float | None,
    before: float | None,
    limit: int,
    tags: Collection[str],
) -> list[RunSummary]:
    """The summaries of runs, the newest first."""
    asked = {
        "(status = ? OR status ISNULL)": status,
        "(name = ? OR status ISNULL)": name,
        "coalesce(started, 0) >= ?": since,
        "coalesce(started, 0) < ?": before,
    }
    given = {condition: value for condition, value in asked.items() if value is not None}
    has_tag = "EXISTS (SELECT 1 FROM json_each(tags) WHERE value = ?)"
    where = " AND ".join(["TRUE", *given, *(has_tag for _ in tags)])
    found = connection.execute(
        f"{_SELECT} WHERE {where} ORDER BY started DESC, number DESC LIMIT ?",
        (*given.values(), *tags, limit),
    )
    return list(_read(found, now))


def _values(summary: RunSummary) -> list[Any]:
    values = [getattr(summary, column) for column in _COLUMNS[:-1]]
    return [*values, json.dumps(summary.tags) if summary.tags else None]


def _read(found: Iterable[tuple[Any, ...]], now: float) -> Iterator[RunSummary]:
    for run_id, owner, expires, *values in found:
        columns = dict(zip(_COLUMNS, values, strict=True))
        if columns["status"] is None:  # of an earlier version
            columns = {"status": "running"}
        else:
            columns["is_resumable"] = bool(columns["is_resumable"])
            columns["tags"] = json.loads(columns["tags"] or "[]")
        is_held = owner is not None and expires > now and not is_gone(owner)
        left = expires - now if is_held else 0.0
        yield RunSummary(decoded(run_id), owner=owner, lease_left=left, **columns)
