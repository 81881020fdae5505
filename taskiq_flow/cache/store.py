"""Where cached results are kept: one value for each key, and a claim by whoever computes it."""

from __future__ import annotations

import math
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary, proxy

from taskiq_flow.journal.lease import is_gone
from taskiq_flow.journal.memory import MemoryJournal
from taskiq_flow.journal.protocol import Journal, encoded
from taskiq_flow.journal.redis import RedisJournal
from taskiq_flow.journal.sqlite import SqliteJournal

T = TypeVar("T")

MOST_ENTRIES = 10_000
"""Values that a store keeps; the least recently used go first."""

MOST_BYTES = 256 * 1024 * 1024
"""Bytes of values that a store in memory keeps."""


class CacheStore(Protocol):
    """One value for each key, under claims that end by themselves.

    All calls may come from several runs at once. What they raise costs a run nothing but the value.
    """

    async def get(self, key: str) -> bytes | None:
        """The key's value, unless there is none or it has expired."""

    async def put(self, key: str, value: bytes, seconds: float | None) -> None:
        """Keep a value in place of any other, for so many seconds; ``None``: without an end."""

    async def claim(self, key: str, owner: str, seconds: float) -> bool:
        """Claim a key, or keep one's claim, for so many seconds; ``False`` if another has it."""

    async def release(self, key: str, owner: str) -> None:
        """Give a claim back. Nothing happens if another has it."""


class MemoryCacheStore:
    """Keeps values in this process, as many as the two limits allow."""

    def __init__(self, *, most_entries: int = MOST_ENTRIES, most_bytes: int = MOST_BYTES) -> None:
        self._most_entries = most_entries
        self._most_bytes = most_bytes
        self._bytes = 0
        self._values: OrderedDict[str, tuple[bytes, float]] = OrderedDict()  # with their expiry
        self._claims: dict[str, tuple[str, float]] = {}  # owner, expiry

    async def get(self, key: str) -> bytes | None:
        """The key's value."""
        value, expires = self._values.get(key, (None, math.inf))
        if expires <= time.monotonic():
            self._remove(key)
            return None
        if value is not None:
            self._values.move_to_end(key)
        return value

    async def put(self, key: str, value: bytes, seconds: float | None) -> None:
        """Store a value, unless it is larger than the limit on bytes."""
        self._remove(key)
        if len(value) > self._most_bytes:
            return
        self._values[key] = value, math.inf if seconds is None else time.monotonic() + seconds
        self._bytes += len(value)
        while self._bytes > self._most_bytes or len(self._values) > self._most_entries:
            self._remove(next(iter(self._values)))

    async def claim(self, key: str, owner: str, seconds: float) -> bool:
        """Claim a key."""
        now = time.monotonic()
        other, expires = self._claims.get(key, (owner, now))
        if other != owner and expires > now:
            return False
        self._claims[key] = owner, now + seconds
        return True

    async def release(self, key: str, owner: str) -> None:
        """Give a claim back."""
        if self._claims.get(key, ("", 0.0))[0] == owner:
            del self._claims[key]

    def _remove(self, key: str) -> None:
        value, _ = self._values.pop(key, (b"", 0.0))
        self._bytes -= len(value)


class SqliteCacheStore:
    """Keeps values in the file of a ``SqliteJournal``."""

    def __init__(self, journal: SqliteJournal, *, most_entries: int = MOST_ENTRIES) -> None:
        self._file = journal.file
        self._most_entries = most_entries

    async def get(self, key: str) -> bytes | None:
        """The key's value."""

        def select(connection: sqlite3.Connection) -> bytes | None:
            if not _has_tables(connection):
                return None
            row = connection.execute(
                "SELECT value FROM cache WHERE key = ? AND expires > ?", (key, time.time())
            ).fetchone()
            return None if row is None else row[0]

        return await self._file.read(select)

    async def put(self, key: str, value: bytes, seconds: float | None) -> None:
        """Store a value. Expired values are removed, and the oldest ones beyond the limit."""
        now = time.time()
        expires = math.inf if seconds is None else now + seconds

        def insert(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT OR REPLACE INTO cache (key, value, written, expires) VALUES (?, ?, ?, ?)",
                (key, value, now, expires),
            )
            connection.execute("DELETE FROM cache WHERE expires <= ?", (now,))
            connection.execute(
                "DELETE FROM cache WHERE rowid IN (SELECT rowid FROM cache ORDER BY rowid"
                " LIMIT max(0, (SELECT count(*) FROM cache) - ?))",  # rowids ascend, clocks may not
                (self._most_entries,),
            )

        await self._write(insert)

    async def claim(self, key: str, owner: str, seconds: float) -> bool:
        """Claim a key.

        Another's claim counts unless its process is gone. It counts for ``seconds`` at the most, as
        the clock may have been set back since.
        """

        def take(connection: sqlite3.Connection) -> bool:
            now = time.time()  # no claim in the file is newer
            connection.execute("DELETE FROM claims WHERE expires <= ?", (now,))
            other = connection.execute(
                "SELECT owner FROM claims WHERE key = ? AND owner != ? AND expires <= ?",
                (key, owner, now + seconds),
            ).fetchone()
            if other is not None and not is_gone(other[0]):
                return False
            connection.execute(
                "INSERT OR REPLACE INTO claims (key, owner, expires) VALUES (?, ?, ?)",
                (key, owner, now + seconds),
            )
            return True

        return await self._write(take)

    async def release(self, key: str, owner: str) -> None:
        """Give a claim back."""
        await self._write(
            lambda connection: connection.execute(
                "DELETE FROM claims WHERE key = ? AND owner = ?", (key, owner)
            )
        )

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def with_tables(connection: sqlite3.Connection) -> T:
            if not _has_tables(connection):
                for statement in _TABLES:
                    connection.execute(statement)
            return work(connection)

        return await self._file.write(with_tables)


def _has_tables(connection: sqlite3.Connection) -> bool:
    last = "SELECT 1 FROM sqlite_master WHERE name = 'cache_expires'"
    return connection.execute(last).fetchone() is not None


# Versions of the journal that have no cache ignore these. A value is not read to find its expiry.
_TABLES = (
    """CREATE TABLE IF NOT EXISTS cache (
        key TEXT PRIMARY KEY, value BLOB NOT NULL, written REAL NOT NULL, expires REAL NOT NULL
    )""",
    """CREATE TABLE IF NOT EXISTS claims (
        key TEXT PRIMARY KEY, owner TEXT NOT NULL, expires REAL NOT NULL
    )""",
    "CREATE INDEX IF NOT EXISTS cache_expires ON cache (expires)",
)


class RedisCacheStore:
    """Keeps values on the server of a ``RedisJournal``, which removes them when they expire.

    Values without an end are kept as long as the server's own limits allow. A key of another type
    counts as empty and is overwritten.
    """

    def __init__(self, journal: RedisJournal) -> None:
        self._journal = journal

    async def get(self, key: str) -> bytes | None:
        """The key's value."""
        values: list[bytes | None] = await self._journal.call(
            lambda client: client.mget([self._key("cache", key)])
        )
        return values[0]

    async def put(self, key: str, value: bytes, seconds: float | None) -> None:
        """Keep a value."""
        expires = None if seconds is None else max(1, round(seconds * 1000))
        await self._journal.call(
            lambda client: client.set(self._key("cache", key), value, px=expires)
        )

    async def claim(self, key: str, owner: str, seconds: float) -> bool:
        """Claim a key."""
        life = max(1, round(seconds * 1000))
        return bool(await self._eval(_CLAIM, key, owner, life))

    async def release(self, key: str, owner: str) -> None:
        """Give a claim back."""
        await self._eval(_RELEASE, key, owner)

    async def _eval(self, script: str, key: str, *arguments: str | int) -> Any:
        place = self._key("claim", key)
        return await self._journal.call(lambda client: client.eval(script, 1, place, *arguments))

    def _key(self, what: str, key: str) -> bytes:
        return encoded(f"{self._journal.prefix}:{what}:{key}")


# MGET has nothing for a key of another type, of which GET makes an error.
_CLAIM = """
local owner = redis.call('MGET', KEYS[1])[1]
if owner and owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_RELEASE = """
if redis.call('MGET', KEYS[1])[1] == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""

_stores: WeakKeyDictionary[Journal, CacheStore] = WeakKeyDictionary()


def store_beside(journal: Journal | None) -> CacheStore:
    """The store that all engines with this journal share.

    Without a journal, and with one that is none of this package's, it is a new one in memory.
    """
    if not isinstance(journal, (MemoryJournal, RedisJournal, SqliteJournal)):
        return MemoryCacheStore()
    store = _stores.get(journal)
    if store is None:
        match journal:
            case SqliteJournal():
                store = SqliteCacheStore(journal)
            case RedisJournal():
                store = RedisCacheStore(proxy(journal))  # which is the key of this entry
            case _:
                store = MemoryCacheStore()
        _stores[journal] = store
    return store
